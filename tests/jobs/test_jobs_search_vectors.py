"""Search vectors in the life of a run: fitted at its end, kept, used by every command, made later for older runs."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from several_ranks import run_on_ranks
from tiny_runs import made_pictures, picture_folder, tiny, training_in

import instdisc
from instdisc import ranks
from instdisc.encoder.whitening import Moments, Whitening, fit_whitening, load_whitening
from instdisc.errors import InputError
from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.jobs.compare import compare
from instdisc.jobs.duplicates import look_alikes
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.search import search
from instdisc.jobs.search_vectors import finish_search_vectors
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

COUNT = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("searched")
    pictures = picture_folder(folder / "pictures", COUNT)
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


def test_a_run_ends_with_a_map_of_its_training_pictures(trained: tuple[Path, Path]) -> None:
    pictures, run = trained
    encoder = instdisc.load(run)
    assert encoder.whitening is not None and encoder.whitening.facts.pictures == COUNT
    facts = encoder.whitening.facts
    assert facts.stages == tuple(f"stage{number}{way}" for number in (1, 2, 3) for way in ("", " std"))
    images = torch.stack([encoder.preprocessing(path.read_bytes()) for path in sorted(pictures.glob("*/*.png"))])
    with torch.no_grad():
        features = encoder.eval().stage_features(images, facts.stages)
    moments = Moments(facts.channels)
    moments.add(features)
    vectors, again = encoder.embed(pictures), fit_whitening(moments, facts.stages)(features)
    torch.testing.assert_close(vectors @ vectors.T, again @ again.T, atol=2e-3, rtol=0)


def test_a_map_that_was_lost_is_fitted_again_to_the_bit(trained: tuple[Path, Path], run: Path) -> None:
    file = RunFolder(run).search_vectors
    before = file.read_bytes()
    for damage in (file.unlink, lambda: file.write_bytes(before[:100])):
        damage()
        said: list[str] = []
        train(trained[0], run, tiny(epochs=2), resume=True, say=said.append)
        assert file.read_bytes() == before and any("Search vectors: " in line for line in said)
    said = []
    train(trained[0], run, tiny(epochs=2), resume=True, say=said.append)
    assert not any("Search vectors" in line for line in said), "it has one"


def test_a_run_of_an_older_version_gets_them_by_recompute(trained: tuple[Path, Path], run: Path) -> None:
    pictures = trained[0]
    asked = sorted(pictures.glob("red/*.png"))[0]
    RunFolder(run).search_vectors.unlink()
    assert instdisc.load(run).dimensions() == 8
    search(run, [asked], neighbours=3)
    assert Collection(run).vectors == "embedding" and Collection(run).index.dim == 8
    assert index.recompute(run, say=None) == COUNT
    collection = Collection(run)
    assert collection.vectors == "search" and collection.up_to_date
    expected = instdisc.load(run).embed(pictures)
    torch.testing.assert_close(collection.index.vectors(np.arange(COUNT)), expected, atol=1e-5, rtol=0)
    index.recompute(run, vectors="embedding", say=None)
    assert Collection(run).index.dim == 8
    search(run, [asked], neighbours=3)
    assert Collection(run).index.dim == 8, "what was asked for stays"
    with pytest.raises(InputError, match='"search" or "embedding", not "bank"'):
        index.recompute(run, vectors="bank", say=None)


def test_a_map_of_an_older_format_is_made_anew_by_recompute(trained: tuple[Path, Path], run: Path) -> None:
    whitening = load_whitening(RunFolder(run).search_vectors, Collection(run).saved.step)
    assert whitening is not None
    older = Whitening(whitening.mean, whitening.matrix[:, :20], replace(whitening.facts, format=1))
    older.save(RunFolder(run).search_vectors)
    assert instdisc.load(run).dimensions() == 20
    index.recompute(run, say=None)
    assert Collection(run).index.dim == instdisc.load(run).dimensions() > 28


def test_the_first_search_embeds_the_collection_and_later_ones_do_not(trained: tuple[Path, Path], run: Path) -> None:
    asked = sorted(trained[0].glob("red/*.png"))[0]
    search(run, [asked], neighbours=3, bank=True)
    assert Collection(run).changes.recomputed is None, "by the bank nothing is computed"
    first, second = list[str](), list[str]()
    search(run, [asked], neighbours=3, say=first.append)
    search(run, [asked], neighbours=3, say=second.append)
    assert any("were embedded" in line for line in first) and not second
    assert Collection(run).vectors == "search"


def test_the_page_is_served_with_them(run: Path) -> None:
    """They are computed before the address is printed, which stays the first line of the output."""
    words = [sys.executable, "-u", "-m", "instdisc", "serve", str(run), "--port", "0", "--device", "cpu"]
    for said in ("this happens once", ""):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None and server.stderr is not None
            address = server.stdout.readline().strip()
            with urllib.request.urlopen(f"{address}api/collection", timeout=500) as answer:
                about = json.load(answer)
            server.terminate()
            assert said in server.stderr.read()
        assert (about["vectors"], about["dim"], about["threshold"]) == ("search", instdisc.load(run).dimensions(), 0.85)


def test_vectors_of_another_map_are_never_compared(trained: tuple[Path, Path], run: Path) -> None:
    asked = sorted(trained[0].glob("red/*.png"))[0]
    index.recompute(run, say=None)
    whitening = load_whitening(RunFolder(run).search_vectors, Collection(run).saved.step)
    assert whitening is not None
    whitening.matrix *= 2
    whitening.save(RunFolder(run).search_vectors)
    with pytest.raises(InputError, match=r"another map than it has now.*--recompute"):
        _ = Collection(run).index
    search(run, [asked], neighbours=3, say=None)
    assert Collection(run).up_to_date, "a search makes them again"


def test_look_alikes_are_told_by_the_threshold_of_their_vectors(trained: tuple[Path, Path], run: Path) -> None:
    for bank, number in ((True, "0.95"), (False, "0.85")):
        said: list[str] = []
        look_alikes(run, bank=bank, say=said.append)
        assert any(f"cosine of {number}" in line for line in said)


def test_an_evaluation_shows_both_beside_honest_baselines(trained: tuple[Path, Path], run: Path) -> None:
    report = evaluate(run, measures=["retrieval"], neighbours=5, say=None)
    assert {"knn", "knn_search", "retrieval", "retrieval_search"} <= set(report)
    kinds = {"untrained", "untrained_whitened", "raw_pixels", "raw_pixels_centred"}
    assert set(report["baselines"]) == kinds
    RunFolder(run).search_vectors.unlink()
    without = evaluate(run, measures=["retrieval"], neighbours=5, say=None)
    assert "knn_search" not in without and without["knn"] == report["knn"] and set(without["baselines"]) == kinds


def test_two_runs_are_compared_by_what_both_have(trained: tuple[Path, Path], run: Path) -> None:
    assert compare(trained[1], run, trained[0], neighbours=5, say=None)["vectors"] == "search"
    RunFolder(run).search_vectors.unlink()
    said: list[str] = []
    assert compare(trained[1], run, trained[0], neighbours=5, say=said.append)["vectors"] == "embedding"
    assert any("has no search vectors: the embeddings are compared" in line for line in said)


def test_a_run_too_young_has_none_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    run = train(made_pictures(COUNT), tmp_path / "run", tiny(epochs=0.5), say=said.append)
    assert run.finished and not RunFolder(run.path).search_vectors.exists()
    assert any(line.startswith("Search vectors: none, as the run ended before its first epoch") for line in said)
    assert run.encoder().embed(made_pictures(3)).shape == (3, 8)


def test_pictures_that_are_all_the_same_have_none(tmp_path: Path) -> None:
    said: list[str] = []
    pictures = np.repeat(made_pictures(1), 24, axis=0)
    run = train(pictures, tmp_path / "run", tiny(epochs=1, negatives=8), say=said.append)
    assert run.finished
    assert any("All pictures have the same features" in line and "embedding" in line for line in said)


def test_twenty_pictures_are_enough(tmp_path: Path) -> None:
    run = train(made_pictures(20), tmp_path / "run", tiny(epochs=1, negatives=8), say=None)
    vectors = run.encoder().embed(made_pictures(20))
    assert 1 <= vectors.shape[1] <= 19 and vectors.isfinite().all()


def _fitted(folder: str) -> dict[str, Any]:
    """The map at the end of a run on made pictures, as each rank reads it."""
    training = training_in(Path(folder, str(ranks.world())), tiny(epochs=1))
    training.fit()
    said: list[str] = []
    finish_search_vectors(training, said.append)
    ranks.barrier()
    whitening = load_whitening(training.run.search_vectors, training.step_number)
    assert whitening is not None and len(said) == 1
    images = torch.from_numpy(made_pictures(30, seed=5)).permute(0, 3, 1, 2)
    training.encoder.whitening = whitening
    return {"vectors": training.encoder.embed(images), "pictures": whitening.facts.pictures}


def test_two_ranks_fit_what_one_fits(tmp_path: Path) -> None:
    alone = _fitted(str(tmp_path))
    for one in run_on_ranks(2, _fitted, str(tmp_path)):
        assert one["pictures"] == alone["pictures"] == 67
        torch.testing.assert_close(
            one["vectors"] @ one["vectors"].T, alone["vectors"] @ alone["vectors"].T, atol=1e-4, rtol=0
        )
