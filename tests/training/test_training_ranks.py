"""One, two and four processes train the same: bank, weights and losses for the same global batches.

But in one way the encoder has no batch statistics: of these each process has its own, as the run says at its start,
unless they are shared.
"""

from __future__ import annotations

import contextlib
import io
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from several_ranks import run_on_ranks
from tiny_runs import made_pictures, outcome, picture_folder, tiny, training_in

from instdisc import ranks
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.monitor import make_monitor
from instdisc.jobs.train import train
from instdisc.training import Training

Facts = dict[str, torch.Tensor]

# 67 pictures in batches of 14, 14, 13, 13 and 13: no number of ranks divides them.
WAYS: dict[str, dict[str, Any]] = {
    "softmax": {"proximal": 2.0, "drops": "0.5"},
    "softmax_masked_accumulated": {"mask_own": True, "accumulate": 2},
    "nce": {"objective": "nce", "temperature": 0.3, "partition": "moving_average", "proximal": 1.0},
    "nce_private": {"objective": "nce", "temperature": 0.3, "noise": "private"},
    "sampled_with_views": {
        "objective": "sampled",
        "views": 2,
        "view_share": 0.5,
        "proximal": 1.0,
        "early_sizes": "0.5 0.75",
        "grow_at": "0.4 0.7",
    },
    "parametric": {"objective": "parametric", "schedule": "cosine", "warmup": 1},
    "batch_statistics": {"sync_batchnorm": True, "head": "mlp", "lr": 0.003},
}
ON_FOUR = ("nce", "sampled_with_views")


def all_ways(folder: str) -> dict[str, Facts]:
    """Every way trained for two epochs; then the first one saved after five steps, to be resumed elsewhere."""
    world = ranks.world()
    found = {}
    for name, changes in WAYS.items():
        if world == 4 and name not in ON_FOUR:
            continue
        kept = bool(changes.get("sync_batchnorm"))
        training = training_in(Path(folder, f"{name}-{world}"), tiny(**changes), batch_statistics=kept)
        training.fit()
        ranks.barrier()
        found[name] = outcome(training)
    half = training_in(Path(folder, f"half-{world}"), tiny(**WAYS["softmax"]))
    for parts, planned in half._steps_of(0, 0):
        half._agree(half.step(parts, planned), due=False)
    half.save()
    if "softmax" in found:
        found["softmax"] |= measured(half)
    return found


def measured(training: Training) -> Facts:
    """kNN accuracy while it trains, among the training pictures and of others; the most rows that a rank was sent."""
    known, held_out = (
        open_source(made_pictures(count, seed), labels=np.arange(count) % 3) for count, seed in ((67, 0), (20, 5))
    )
    most, gather = 0, ranks.gather

    def counted(tensor: torch.Tensor, *arguments: Any) -> torch.Tensor:
        nonlocal most
        gathered = gather(tensor, *arguments)
        most = max(most, len(gathered) if gathered.dim() == 2 and gathered.shape[1] == tensor.shape[1] == 8 else 0)
        return gathered

    monitor = make_monitor(training.settings, known, training.pictures, held_out)
    with mock.patch.object(ranks, "gather", counted):
        numbers = monitor(training).numbers
    return {"accuracy": torch.tensor([numbers["knn"], numbers["knn_test"]]), "most": torch.tensor(most)}


@cache
def folder() -> Path:
    return Path(mkdtemp(prefix="instdisc-ranks-"))


@cache
def by(world: int) -> dict[str, Facts]:
    """What rank 0 has in the end; that the others have the same weights and bank is asserted here."""
    if world == 1:
        return all_ways(str(folder()))
    every = run_on_ranks(world, all_ways, str(folder()))
    for other in every[1:]:
        for name, facts in every[0].items():
            assert torch.equal(other[name]["weights"], facts["weights"]), f"{name}: the ranks' weights differ"
            assert torch.equal(other[name]["bank"], facts["bank"])
    return every[0]


def same(found: Facts, expected: Facts) -> None:
    assert found["losses"].shape == expected["losses"].shape
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(found["bank"], expected["bank"], rtol=0, atol=5e-4)
    torch.testing.assert_close(found["weights"], expected["weights"], rtol=2e-3, atol=5e-4)


@pytest.mark.fault("the bank differs between ranks (updates not exchanged)")
@pytest.mark.fault("the bank depends on the number of ranks")
@pytest.mark.fault("`all_reduce` without a backward: gradient off by 1/world_size though the loss is right")
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_as_one(way: str) -> None:
    one, two = by(1)[way], by(2)[way]
    assert len(one["losses"]) == 10
    assert one["losses"][:, 1:].std(0).max() > 1e-3
    same(two, one)


@pytest.mark.fault("all features on one device: out of memory")
def test_measuring_on_two_ranks_is_that_of_one_and_sends_no_bank() -> None:
    one, two = by(1)["softmax"], by(2)["softmax"]
    assert torch.equal(two["accuracy"], one["accuracy"])
    assert 0 < two["most"] <= 20, "the queries alone"


@pytest.mark.slow
@pytest.mark.parametrize("way", ON_FOUR)
def test_four_ranks_train_as_one(way: str) -> None:
    same(by(4)[way], by(1)[way])


@pytest.mark.fault("the bank depends on the number of ranks")
def test_a_run_moves_from_two_ranks_to_one() -> None:
    by(2)
    training = training_in(folder() / "half-2", tiny(**WAYS["softmax"]))
    assert training.resume()
    assert training.step_number == 5
    training.fit()
    whole = by(1)["softmax"]
    same({**outcome(training), "losses": whole["losses"]}, whole)
    # the lines before the checkpoint were never written there: the loop stood still between two lines
    assert outcome(training)["losses"][-1, 0] == 10


def commands(place: str, pictures: str) -> dict[str, Any]:
    """The commands themselves on each rank: train on a folder, with batch statistics, and evaluate."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run = train(pictures, place, tiny(monitor_epochs=1))
        report = evaluate(place, device="cpu", neighbours=5)
        second = evaluate(place, pictures, device="cpu", neighbours=5, bank=True, say=None)
    with pytest.raises(InputError) as too_few:
        train(made_pictures(17), f"{place}-too-few", tiny(batch=2), say=None)
    return {
        "too_few": str(too_few.value),
        "said": said.getvalue(),
        "finished": run.finished,
        "knn": [report["knn"][name] for name in ("top1", "top5", "count")],
        "raw": report["baselines"]["raw_pixels"]["top1"],
        "untrained": report["baselines"]["untrained"]["top1"],
        "bank": second["knn"]["top1"],
        "rank": report["quality"]["effective_rank"],
        "ranks": report["ranks"],
    }


@pytest.mark.fault("duplicates from sampler padding counted as neighbours")
def test_commands_on_two_ranks(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", 61)
    main, other = run_on_ranks(2, commands, str(tmp_path / "run"), str(pictures))
    assert main["finished"] and other["finished"]
    assert other["said"] == ""
    assert main["too_few"] == other["too_few"]
    assert "too few for 2 process(es)" in main["too_few"]
    assert "Batch statistics: each rank's own" in main["said"]
    assert main["said"].count("kNN") >= 2, "it was measured while it trained"
    # One process evaluates the same run folder.
    alone = evaluate(tmp_path / "run", device="cpu", neighbours=5, say=None)
    assert main["ranks"] == 2 and alone["ranks"] == 1
    assert main["knn"] == [alone["knn"][name] for name in ("top1", "top5", "count")] == other["knn"]
    assert main["knn"][2] == 61
    assert main["raw"] == alone["baselines"]["raw_pixels"]["top1"]
    assert main["untrained"] == alone["baselines"]["untrained"]["top1"]
    assert main["rank"] == pytest.approx(alone["quality"]["effective_rank"], rel=1e-4)
    with_bank = evaluate(tmp_path / "run", pictures, device="cpu", neighbours=5, bank=True, say=None)
    assert main["bank"] == with_bank["knn"]["top1"]
