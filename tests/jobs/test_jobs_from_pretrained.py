"""`--preset from_pretrained`: a head on a published network's features, computed once; against timm's forward pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from several_ranks import run_on_ranks
from tiny_runs import losses_of, made_pictures, picture_folder, saved_state

import instdisc
from instdisc import ranks
from instdisc.checkpoint import latest
from instdisc.data.augment import Augmentation
from instdisc.errors import InputError
from instdisc.jobs import kept
from instdisc.jobs import train as train_job
from instdisc.jobs.collection import Collection
from instdisc.jobs.grow import grow
from instdisc.jobs.index import searchable
from instdisc.jobs.purge import purge
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.training import Training, preset
from instdisc.training.presets import DataFacts

NETWORK, SIDE, COUNT, VIEWS = "test_efficientnet", 32, 40, 3
HOW: dict[str, Any] = {
    "preset": "from_pretrained",
    "backbone": NETWORK,
    "size": SIDE,
    "batch": 16,
    "epochs": 3,
    "warmup": 0,
    "dim": 8,
    "hidden": 16,
    "kept_views": VIEWS,
    "monitor_epochs": 1,
    "workers": 0,
    "device": "cpu",
    "say": None,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a publisher might ship: a whole network with its classifier, under timm's names."""
    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = timm.create_model(NETWORK)
        for module in network.modules():  # statistics as of a network that has learnt: neither 0 nor 1
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
        save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Path, Path, Path]:
    """Pictures, a run on them, and the features that it had."""
    folder = tmp_path_factory.mktemp("learnt")
    pictures = picture_folder(folder / "pictures", COUNT)
    (pictures / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    with pytest.MonkeyPatch.context() as patched:

        def keep(run: RunFolder) -> None:
            shutil.copytree(run.features, folder / "features")
            kept.forget_features(run)

        patched.setattr(train_job, "forget_features", keep)
        patched.setattr(kept, "_PART_BYTES", 0)  # the least: sixteen pictures a part
        train(pictures, folder / "run", pretrained=str(weights), **HOW)
    return pictures, folder / "run", folder / "features"


def backbone_of(run: Path) -> dict[str, torch.Tensor]:
    saved = latest(RunFolder(run).checkpoints)
    assert saved is not None
    tensors = saved.tensors("encoder")
    return {name.removeprefix("backbone."): tensors[name] for name in tensors if name.startswith("backbone.")}


def test_the_frozen_network_does_not_move_by_a_bit_and_the_head_learns(
    made: tuple[Path, Path, Path], weights: Path
) -> None:
    published, found = load_file(weights), backbone_of(made[1])
    assert len(found) > 20 and all(torch.equal(values, published[name]) for name, values in found.items())
    losses = [line[1]["views"] for line in losses_of(made[1]) if line[1]]
    assert losses[-1] < losses[0]
    measured = [line[3] for line in losses_of(made[1]) if line[3]]
    assert len(measured) == 3 and all(0 <= one["knn"] <= 1 for one in measured)


def test_kept_features_are_those_computed_again(made: tuple[Path, Path, Path], weights: Path) -> None:
    """A picture by itself, by timm's network, in the order of a row: levels of the picture as it is, then its views."""
    _, run, features = made
    (file,) = features.glob("*.npy")
    rows = np.load(file)
    encoder = instdisc.load(run)
    levels, channels = encoder.frozen_levels(), encoder.channels
    assert rows.shape == (COUNT, sum(levels.values()) + VIEWS * channels)
    network = timm.create_model(NETWORK, num_classes=0)
    network.load_state_dict({name: load_file(weights)[name] for name in network.state_dict()})
    settings = preset("from_pretrained", DataFacts(COUNT, 16, "cpu")).with_overrides({"size": SIDE})
    augment: Augmentation = settings.augmentation(encoder.preprocessing.mean, encoder.preprocessing.std)
    collection = Collection(run)
    for number in (0, 17, COUNT - 1):
        alone = encoder.preprocessing.decode(Path(collection.location(number)).read_bytes())
        stored = encoder.preprocessing.fit(alone)[None]  # smaller than it sees: all of it
        instance, square = torch.tensor(collection.rows[number : number + 1]), torch.ones(1)
        views = [augment(stored, instance, square, seed=0, step=kept._APART, view=view) for view in range(VIEWS)]
        with torch.no_grad():
            again = network.eval()(torch.cat([encoder.preprocessing.normalise(stored), *views])).flatten()
        torch.testing.assert_close(
            torch.from_numpy(rows[number, -(1 + VIEWS) * channels :]), again, rtol=1e-4, atol=1e-4
        )
    whole = encoder.features([collection.location(number) for number in range(3)], deviations=True)
    expected = torch.cat([whole[name] for name in levels], dim=1)
    torch.testing.assert_close(torch.from_numpy(rows[:3, : expected.shape[1]]), expected, rtol=1e-3, atol=1e-3)


def test_it_is_a_run_like_any_other_even_without_the_file(
    made: tuple[Path, Path, Path], tmp_path: Path, weights: Path
) -> None:
    pictures, given, _ = made
    run = Path(shutil.copytree(given, tmp_path / "run"))
    assert not RunFolder(run).features.exists() and "broken.png" in (run / "quarantine.csv").read_text()
    assert len(Collection(run).rows) == COUNT
    found = searchable(run, say=None)
    whitening = instdisc.load(run).whitening
    assert found.vectors == "search" and whitening is not None and whitening.facts.stages[-1] == "backbone"
    asked = next(pictures.glob("blue/*.png"))
    assert len(search(run, [asked], neighbours=3, say=None)[0]) == 3
    away = weights.rename(weights.with_suffix(".away"))
    try:
        picture_folder(pictures / "more", 4, seed=9)
        assert grow(run, device="cpu", say=None, epochs=1).instances == COUNT + 4
        assert not RunFolder(run).features.exists()
    finally:
        away.rename(weights)
        shutil.rmtree(pictures / "more")
    published, now = load_file(weights), backbone_of(run)
    assert all(torch.equal(values, published[name]) for name, values in now.items())
    assert purge(run, [str(asked)], say=None) == 1


def test_an_interrupted_run_goes_on_to_the_same_bits_and_computes_no_feature_twice(
    made: tuple[Path, Path, Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, whole, _ = made
    run, computed, compute = tmp_path / "run", [], kept.Features.of
    how = HOW | {"pretrained": str(weights)}

    def of(self: kept.Features, rows: np.ndarray) -> Any:
        if len(computed) == 1:
            computed.append(-1)
            raise KeyboardInterrupt
        computed.append(int(rows[0]))
        return compute(self, rows)

    monkeypatch.setattr(kept.Features, "of", of)
    monkeypatch.setattr(kept, "_PART_BYTES", 0)
    with pytest.raises(KeyboardInterrupt):
        train(pictures, run, **how)
    assert not (run / "config.json").exists()
    step = Training.step

    def stopped(self: Training, *words: Any) -> Any:
        losses = step(self, *words)
        if self.step_number == 4:
            self._asked_to_stop = True
        return losses

    with monkeypatch.context() as patched:
        patched.setattr(Training, "step", stopped)
        assert not train(pictures, run, **how).finished
    assert computed == [0, -1, 16, 32], "parts of sixteen pictures, each once"
    assert train(pictures, run, resume=True, **how).finished
    told: list[str] = []
    assert train(pictures, run, resume=True, **how | {"say": told.append}).finished, "nothing is left to do"
    assert "Data: nothing is computed, as the run has ended." in told
    assert len(computed) == 4
    assert saved_state(run) == saved_state(whole)


def _trained(folder: str, weights: str) -> dict[str, torch.Tensor]:
    """A head on made pictures, on however many ranks: its features, weights, bank and losses."""
    out = Path(folder) / str(ranks.world())
    found: dict[str, torch.Tensor] = {}

    def look(run: RunFolder) -> None:
        (file,) = run.features.glob("*.npy")
        found["features"] = torch.from_numpy(np.load(file))
        kept.forget_features(run)

    train_job.forget_features = look
    train(made_pictures(COUNT), out, pretrained=weights, **HOW | {"head": "linear", "hidden": None})
    ranks.barrier()
    saved = latest(RunFolder(out).checkpoints)
    assert saved is not None
    found["head"] = saved.tensors("encoder")["head.weight"]
    found["bank"] = torch.cat([rows[:] for rows in saved.bank_rows()])
    found["losses"] = torch.tensor([list(line[1].values()) for line in losses_of(out) if line[1]])
    return found


def test_two_ranks_learn_as_one(weights: Path, tmp_path: Path) -> None:
    one, two = (run_on_ranks(world, _trained, str(tmp_path), str(weights)) for world in (1, 2))
    assert torch.equal(one[0]["features"], two[0]["features"])
    for name in ("losses", "bank", "head"):
        assert torch.equal(two[0][name], two[1][name])
        torch.testing.assert_close(two[0][name], one[0][name], rtol=2e-3, atol=5e-4)


def test_with_unfreeze_last_the_last_stage_learns_slowly_and_nothing_before_it(
    made: tuple[Path, Path, Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []
    fit = Training.fit
    monkeypatch.setattr(Training, "fit", lambda self, *words: (rates.append(list(self.base_rates)), fit(self, *words)))
    run = tmp_path / "run"
    train(made[0], run, pretrained=str(weights), unfreeze="last", **HOW | {"epochs": 1, "monitor_epochs": 5})
    published, found = load_file(weights), backbone_of(run)
    moved = {name for name, values in found.items() if not torch.equal(values, published[name])}
    first = timm.create_model(NETWORK).feature_info[-1]["module"]
    names = list(timm.create_model(NETWORK, num_classes=0).state_dict())
    behind = names[next(at for at, name in enumerate(names) if name.startswith(f"{first}.")) :]
    assert moved == set(behind) and {name.partition(".")[0] for name in behind} == {"blocks", "conv_head", "bn2"}
    assert rates == [[0.02, 0.05, pytest.approx(0.002), pytest.approx(0.005)]]
    assert not RunFolder(run).features.exists()


def test_with_unfreeze_all_every_weight_learns_slowly(
    made: tuple[Path, Path, Path], weights: Path, tmp_path: Path
) -> None:
    """From the published weights: after an epoch at a tenth of the rates they are near, and none is where it was."""
    run = tmp_path / "run"
    train(made[0], run, pretrained=str(weights), unfreeze="all", **HOW | {"epochs": 1, "monitor_epochs": 5})
    published, found = load_file(weights), backbone_of(run)
    learnt = {name: values for name, values in found.items() if values.is_floating_point()}
    assert {name for name, values in learnt.items() if torch.equal(values, published[name])} == set()
    far = [float((values - published[name]).norm() / published[name].norm()) for name, values in learnt.items()
           if name.endswith("conv.weight") or name == "conv_stem.weight"]  # fmt: skip
    assert far and max(far) < 0.5
    assert not RunFolder(run).features.exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("unfreeze=nonsense", "unfreeze is one of none, last, all"),
        ("backbone=test_efficientnett", "Did you mean test_efficientnet"),
        ("pretrained=false", "set pretrained to true or to a safetensors file"),
        ("pretrained=nowhere.safetensors", "There is no file"),
        ("backbone=test_resnet", "of the"),
        ("kept_views=1", "set kept_views to as many"),
        ("head=none", "nothing learns"),
        ("backbone_rate=0", "backbone_rate is a share"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence_and_leaves_no_run(
    wrong: str, words: str, made: tuple[Path, Path, Path], weights: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    settings = dict([("backbone", NETWORK), ("pretrained", str(weights)), wrong.split("=")])
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    told = said("train", made[0], "--out", tmp_path / "run", "--preset", "from_pretrained", *given, code=1)
    assert words in told and "Traceback" not in told
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_disk_that_is_too_small_is_told_of_before_anything_is_computed(
    made: tuple[Path, Path, Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instdisc.jobs.frozen.free_disk", lambda folder: 10_000)
    monkeypatch.setattr(kept.Features, "of", lambda *words: pytest.fail("it was computed"))
    with pytest.raises(InputError, match="need .* for a while"):
        train(made[0], tmp_path / "run", pretrained=str(weights), **HOW)
