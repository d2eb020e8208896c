"""`instdisc open --encoder`: a collection on a published network, against timm's own forward pass."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import picture_folder

import instdisc
from instdisc.errors import InputError
from instdisc.jobs import open as open_job
from instdisc.jobs.collection import Collection
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.grow import grow
from instdisc.jobs.index import add
from instdisc.jobs.open import open_run
from instdisc.jobs.search import search
from instdisc.jobs.train import train

NETWORK, SIDE, COUNT = "test_efficientnet", 32, 40
CONVERTER = Path(__file__).resolve().parents[2] / "experiments" / "convert_pth.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a publisher might ship: a whole network with its classifier, under timm's names."""
    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        save_file(timm.create_model(NETWORK).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("opened")
    pictures = picture_folder(folder / "pictures", COUNT)
    (pictures / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    open_run(pictures, folder / "run", NETWORK, weights=weights, size=SIDE, say=None)
    return pictures, folder / "run"


def by_timm(weights: Path, pictures: Path) -> dict[str, np.ndarray]:
    """Path -> pooled features to unit length, by timm alone: its weights, its mean and deviation."""
    network = timm.create_model(NETWORK)
    network.load_state_dict(load_file(weights))
    network.reset_classifier(0)
    published = timm.get_pretrained_cfg(NETWORK)
    found = {}
    for path in sorted(pictures.glob("*/0*.png")):
        shown = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)  # smaller: all of it
        values = (np.asarray(shown) / 255 - published.mean) / published.std
        with torch.no_grad():
            pooled = network.eval()(torch.tensor(values.transpose(2, 0, 1)[None], dtype=torch.float32))[0].numpy()
        found[str(path)] = pooled / np.linalg.norm(pooled)
    return found


def test_the_embedding_is_the_networks_pooled_features(made: tuple[Path, Path], weights: Path) -> None:
    pictures, run = made
    expected = by_timm(weights, pictures)
    paths = list(expected)
    found = instdisc.load(run).embed(paths, vectors="embedding").numpy()
    np.testing.assert_allclose(found, np.stack(list(expected.values())), atol=1e-5)
    collection = Collection(run)
    bank = collection.saved.bank(0, COUNT).numpy()
    rows = [Collection(run).index.rows_of([path])[0] for path in paths[:3]]
    np.testing.assert_allclose(bank[rows], found[:3], atol=1e-5)


def test_it_is_a_run_with_search_vectors_of_every_picture(made: tuple[Path, Path]) -> None:
    pictures, run = made
    collection = Collection(run)
    assert collection.vectors == "search" and collection.up_to_date and len(collection.index) == COUNT
    paths = [collection.location(row) for row in range(COUNT)]
    vectors = instdisc.load(run).embed(paths).numpy()
    np.testing.assert_allclose(collection.index.vectors(np.arange(COUNT)).numpy(), vectors, atol=1e-4)
    asked = next(pictures.glob("blue/*.png"))
    (nearest,) = search(run, [asked], neighbours=3, say=None)
    scores = vectors @ vectors[paths.index(str(asked))]
    assert [one.path for one in nearest] == [paths[row] for row in np.argsort(-scores)[1:4]]
    assert "broken.png" in (run / "quarantine.csv").read_text()


def test_pictures_can_be_added_and_nothing_can_be_resumed(made: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, given = made
    run = Path(shutil.copytree(given, tmp_path / "run"))
    assert add(run, picture_folder(tmp_path / "more", 3, seed=9), say=None) == 3
    assert len(Collection(run).index) == COUNT + 3
    with pytest.raises(InputError, match="opened and not trained"):
        train(pictures, run, resume=True, say=None)
    with pytest.raises(InputError, match="opened and not trained, so there is nothing to train on"):
        grow(run, say=None)
    with pytest.raises(InputError, match="set dim to"):
        train(pictures, tmp_path / "other", head="none", width=8, epochs=1, say=None)
    with pytest.raises(InputError, match="holds a run already"):
        open_run(pictures, run, NETWORK, say=None)


@pytest.mark.parametrize("wrong", ["lacks", "pth", "gone", "unknown", "no size"])
def test_weights_that_do_not_fit_are_refused_and_leave_nothing(
    wrong: str, made: tuple[Path, Path], weights: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    name, file, words = NETWORK, tmp_path / "weights.safetensors", ""
    if wrong == "lacks":
        tensors = load_file(weights)
        del tensors["conv_stem.weight"]
        save_file(tensors, file)
        words = "lacks 1 of the"
    elif wrong == "pth":
        file = tmp_path / "weights.pth"
        torch.save({"a": torch.zeros(1)}, file)
        words = "can't be read as a safetensors file"
    elif wrong == "gone":
        words = "There is no file"
    elif wrong == "unknown":
        name, file, words = "test_efficientnett", weights, "Did you mean test_efficientnet"
    else:
        name, file, words = "conv6", weights, "--size"
    given = ["open", made[0], "--encoder", name, "--weights", file, "-o", tmp_path / "run"]
    told = said(*given, code=1)
    assert words in told and "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_an_interrupted_opening_goes_on(
    made: tuple[Path, Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, whole = made
    how: dict[str, Any] = {"weights": weights, "size": SIDE, "say": None}
    with monkeypatch.context() as patched:
        patched.setattr(open_job, "write_start", _stopped)  # at the last moment: all but config.json is there
        with pytest.raises(KeyboardInterrupt):
            open_run(pictures, tmp_path / "run", NETWORK, **how)
    with pytest.raises(InputError, match="not empty and holds no run"):
        train(pictures, tmp_path / "run", say=None)
    open_run(pictures, tmp_path / "run", NETWORK, **how)
    ours, theirs = (Collection(run).index.vectors(np.arange(COUNT)) for run in (tmp_path / "run", whole))
    torch.testing.assert_close(ours, theirs)
    assert not (tmp_path / "run" / open_job.BEGUN).exists()


def _stopped(*words: Any, **more: Any) -> None:
    raise KeyboardInterrupt


def test_an_evaluation_has_the_published_encoders_rows(
    made: tuple[Path, Path], weights: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    """kNN with one neighbour, leave-one-out, by NumPy on timm's vectors."""
    pictures, given = made
    run = Path(shutil.copytree(given, tmp_path / "run"))
    vectors = by_timm(weights, pictures)
    matrix = np.stack(list(vectors.values()))
    classes = np.array([Path(path).parent.name for path in vectors])
    scores = matrix @ matrix.T - 2 * np.eye(len(matrix))
    told = said("evaluate", run, "-k", 1, "--published", NETWORK, "--weights", weights)
    assert "published encoder, frozen" in told and "Best for this collection" in told
    report = json.loads((run / "evaluation.json").read_text())
    whole = evaluate(run, neighbours=1, say=None)  # the opened run's own embedding, at its own size
    assert whole["knn"]["top1"] == pytest.approx((classes[scores.argmax(1)] == classes).mean(), abs=1 / COUNT)
    assert {"published", "published_whitened"} <= report["baselines"].keys() and "published" not in whole["baselines"]
    best = max([report["knn"], report["knn_search"], *report["baselines"].values()], key=lambda one: one["top1"])
    assert f"{100 * best['top1']:.2f} %" in report["best"]
    assert "name it with --published" in said("evaluate", run, "--weights", weights, code=1)


class _Program:
    """What a pickle may hold: a call."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_the_converter_renames_foreign_weights_and_runs_no_program(weights: Path, tmp_path: Path) -> None:
    own = timm.create_model(NETWORK).state_dict()
    foreign = {f"net.{at}.{name.rpartition('.')[2]}": value for at, (name, value) in enumerate(own.items())}
    torch.save({"state_dict": foreign}, tmp_path / "good.pth")
    torch.save({"state_dict": foreign, "more": _Program(tmp_path / "ran")}, tmp_path / "bad.pth")

    def converted(name: str, network: str = NETWORK) -> subprocess.CompletedProcess[str]:
        words = [tmp_path / name, "--timm", network, "-o", tmp_path / "out.safetensors"]
        return subprocess.run([sys.executable, CONVERTER, *words], capture_output=True, text=True)

    done = converted("bad.pth")
    assert done.returncode and "can't be read as weights alone" in done.stderr
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.safetensors").exists()
    assert converted("good.pth").returncode == 0
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)
    assert "name another network" in converted("good.pth", "test_resnet").stderr
