"""Rows in int8 with a scale each: against NumPy on an explicitly rounded copy, in shards, saved, searched, by size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import CLOSE, tensor_of, unit_rows
from several_ranks import run_on_ranks
from tiny_runs import outcome, picture_folder, tiny, training_in

from instdisc import checkpoint
from instdisc.bank import MemoryBank
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.index import describe
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

COUNT, DIM, TEMPERATURE = 503, 12, 0.07
INDICES = (10, 400, 77, 502, 10, 0, 251, 3)


def slow_rounding(row: np.ndarray) -> tuple[list[int], float]:
    """The nearest whole numbers on a grid from -127 to 127, one at a time, and what makes their row a unit vector."""
    step = max(abs(value) for value in row) / 127
    whole = [math.floor(value / step + 0.5) for value in row]
    return whole, 1 / math.sqrt(sum(value * value for value in whole))


def copy_of(bank: MemoryBank) -> np.ndarray:
    """The rows in float64, from the whole numbers alone: no scale is trusted."""
    whole = bank.rows.numpy().astype(np.float64)
    return whole / np.linalg.norm(whole, axis=1, keepdims=True)


def int8_bank(**settings: Any) -> MemoryBank:
    return MemoryBank(COUNT, DIM, seed=4, dtype=torch.int8, **settings)


# ------------------------------------------------------------ against a rounded copy


def test_rows_are_the_random_ones_rounded_to_the_nearest() -> None:
    bank, exact = int8_bank(), MemoryBank(COUNT, DIM, seed=4)
    assert bank.rows.dtype == torch.int8 and bank.scales is not None and bank.scales.shape == (COUNT,)
    for row in range(0, COUNT, 10):
        whole, scale = slow_rounding(exact.rows[row].double().numpy())
        assert bank.rows[row].tolist() == whole
        assert bank.scales[row].item() == pytest.approx(scale, rel=1e-6)
    everything = bank.lookup(torch.arange(COUNT))
    np.testing.assert_allclose(everything, copy_of(bank), atol=1e-7)
    assert (everything * exact.rows).sum(1).min() > 0.9999, "a direction moves by less than a degree"


def test_every_question_is_answered_for_the_rounded_rows() -> None:
    bank = int8_bank()
    rows, features = copy_of(bank), unit_rows(8, DIM, 1)
    own, shared = np.array(INDICES), np.array([7, 0, 502, 7])
    private = np.arange(8 * 60).reshape(8, 60) * 13 % COUNT
    asked = tensor_of(features).requires_grad_()
    np.testing.assert_allclose(bank.positives(asked, tensor_of(own)).detach(), (features * rows[own]).sum(1), **CLOSE)
    np.testing.assert_allclose(bank.scores(asked, tensor_of(shared)).detach(), features @ rows[shared].T, **CLOSE)
    scores = bank.scores(asked, tensor_of(private))
    expected = np.einsum("bd,bmd->bm", features, rows[private])
    np.testing.assert_allclose(scores.detach(), expected, **CLOSE)
    weights = np.linspace(-1, 2, 60)
    (gradient,) = torch.autograd.grad((scores * tensor_of(weights)).sum(), asked)
    np.testing.assert_allclose(gradient, np.einsum("m,bmd->bd", weights, rows[private]), **CLOSE)


@pytest.mark.parametrize(("products", "off"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("temperature", "left_out"), [(TEMPERATURE, False), (TEMPERATURE, True), (0.005, False)])
def test_log_partition_of_rounded_rows(products: torch.dtype, off: float, temperature: float, left_out: bool) -> None:
    if temperature < 0.01 and products == torch.bfloat16:
        off = 0.5  # |s| / 500 with scores up to 200
    bank, features = int8_bank(), unit_rows(8, DIM, 2)
    rows = copy_of(bank)
    exponents = features @ rows.T / temperature
    if left_out:
        exponents[np.arange(8), list(INDICES)] = -np.inf
    largest = exponents.max(1, keepdims=True)
    powers = np.exp(exponents - largest)
    asked = tensor_of(features).requires_grad_()
    without = tensor_of(INDICES) if left_out else None
    found = bank.log_partition(asked, temperature, without=without, products=products)
    np.testing.assert_allclose(found.detach(), largest[:, 0] + np.log(powers.sum(1)), rtol=0, atol=off)
    (gradient,) = torch.autograd.grad(found.sum(), asked)
    slow = powers @ rows / powers.sum(1, keepdims=True) / temperature
    np.testing.assert_allclose(gradient, slow, rtol=0, atol=off * 5 / temperature * 0.07)


def test_an_update_is_in_float32_and_written_rounded() -> None:
    bank = int8_bank(momentum=0.25)
    before, held, features = copy_of(bank), bank.rows.clone(), unit_rows(8, DIM, 3)
    bank.update(tensor_of(INDICES), tensor_of(features))
    for index in range(COUNT):
        places = [place for place, other in enumerate(INDICES) if other == index]
        if not places:
            assert torch.equal(bank.rows[index], held[index])
            continue
        renewed = 0.25 * before[index] + 0.75 * features[places].mean(0)
        whole, scale = slow_rounding(renewed)
        assert np.abs(bank.rows[index].numpy() - np.array(whole)).max() <= 1  # a half may fall to either side
        assert bank.scales is not None
        assert bank.scales[index].item() == pytest.approx(scale, rel=1e-3)
    np.testing.assert_allclose(bank.lookup(torch.arange(COUNT)), copy_of(bank), atol=1e-7)


def test_what_gives_no_direction_leaves_rows_and_scales_to_the_bit() -> None:
    bank = int8_bank(momentum=0.5)
    assert bank.scales is not None
    rows, scales = bank.rows.clone(), bank.scales.clone()
    features = -bank.lookup(torch.arange(COUNT))
    features[::2] = torch.nan
    bank.update(torch.arange(COUNT), features)
    assert torch.equal(bank.rows, rows) and torch.equal(bank.scales, scales)
    for _ in range(3):  # a row that is renewed by itself does not creep
        bank.update(torch.arange(COUNT), bank.lookup(torch.arange(COUNT)))
    assert torch.equal(bank.rows, rows)


def test_it_takes_a_quarter_of_the_memory() -> None:
    bank = MemoryBank(5000, 128, dtype=torch.int8)
    assert bank.kept.nbytes == 5000 * (128 + 4)
    assert sum(tensor.untyped_storage().nbytes() for tensor in bank.tensors().values()) == bank.kept.nbytes


# ------------------------------------------------------------ in shards, saved and opened


def answers(folder: str | None = None) -> dict[str, torch.Tensor]:
    """A step of everything, for this rank's part of a batch; from what `folder` holds, or then saved there."""
    from instdisc import ranks

    bank = int8_bank(momentum=0.25)
    found = None if folder is None else checkpoint.latest(Path(folder))
    if found is not None:
        found.rows("bank", bank.start, bank.stop, into=bank.tensors())
    part = slice(*ranks.share(len(INDICES)))
    indices, features = torch.tensor(INDICES)[part], tensor_of(unit_rows(8, DIM, 3))[part].requires_grad_()
    private = (torch.arange(8 * 60).reshape(8, 60) * 13 % COUNT)[part]
    facts = {
        "lookup": bank.lookup(indices),
        "shared": bank.scores(features, torch.arange(0, COUNT, 50)),
        "private": bank.scores(features, private),
        "log_partition": bank.log_partition(features, TEMPERATURE),
    }
    total = facts["private"].square().sum() + facts["log_partition"].sum()
    (facts["gradient"],) = torch.autograd.grad(total, features)
    bank.update(indices, features.detach())
    facts |= bank.tensors()
    if folder is not None and found is None:
        shard = checkpoint.Shard(bank.tensors(), bank.start, bank.stop)
        checkpoint.save(Path(folder), step=ranks.world(), tensors={}, facts={}, shards={"bank": shard})
    return {name: value.detach().clone() for name, value in facts.items()}


def test_four_ranks_answer_as_one_and_two_go_on_from_what_four_saved(tmp_path: Path) -> None:
    whole = answers()
    four = run_on_ranks(4, answers, str(tmp_path))
    every = {4: (four, whole)}
    every[2] = (run_on_ranks(2, answers, str(tmp_path)), answers(str(tmp_path)))
    for world, (found, expected) in every.items():
        assert len(found) == world
        for name, values in expected.items():
            together = torch.cat([facts[name] for facts in found])
            if name == "rows":
                assert torch.equal(together, values), world
            else:
                torch.testing.assert_close(together, values, rtol=2e-5, atol=2e-5)


def test_a_run_goes_on_to_the_same_bits_and_refuses_other_rows(tmp_path: Path) -> None:
    settings = tiny(bank_dtype="int8", objective="nce", temperature=0.3)
    through = training_in(tmp_path / "through", settings)
    through.fit()
    half = training_in(tmp_path / "half", settings)
    for parts, planned in half._steps_of(0, 0):
        half._agree(half.step(parts, planned), due=False)
    half.save()
    resumed = training_in(tmp_path / "half", settings)
    assert resumed.resume()
    resumed.fit()
    for name, values in outcome(resumed).items():
        if name != "losses":
            assert torch.equal(values, outcome(through)[name]), name
    assert torch.equal(resumed.bank.scales, through.bank.scales)
    with pytest.raises(Exception, match="does not fit the settings"):
        training_in(tmp_path / "half", tiny(bank_dtype="float16", objective="nce", temperature=0.3)).resume()


def test_what_reads_the_bank_of_a_run_reads_int8_too(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", 61)
    run = train(pictures, tmp_path / "run", tiny(bank_dtype="int8", monitor_epochs=1), say=None).path
    saved = checkpoint.latest(RunFolder(run).checkpoints)
    assert saved is not None
    raw = saved.rows("bank", 0, 61)
    assert raw["rows"].dtype == torch.int8
    widened = raw["rows"].double() / raw["rows"].double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(saved.bank(5, 60), widened[5:60].float(), rtol=0, atol=1e-7)
    report = evaluate(run, pictures, device="cpu", neighbours=5, bank=True, say=None)
    assert report["knn"]["count"] == 61
    report = evaluate(run, device="cpu", neighbours=5, measures=("knn", "quality"), say=None)
    assert report["bank_quality"]["bank_drift"] < 1
    assert "in int8" in describe(run)["vectors"]
    found = search(run, [pictures / "red" / "0000.png"], neighbours=3, device="cpu")
    assert len(found[0]) == 3
