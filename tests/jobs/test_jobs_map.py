"""The map, also of what can't be told apart: a heap of points or a sentence, and never the end of a server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from serving import Client, served
from tiny_runs import TINY

import instdisc
from instdisc.jobs import tsne
from instdisc.jobs.index import recompute
from instdisc.jobs.map import make_map
from instdisc.jobs.tsne import embed_in_plane

COUNT = 20


@pytest.fixture(scope="module")
def equal_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twenty copies of one picture."""
    folder = tmp_path_factory.mktemp("equal")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    (folder / "pictures").mkdir()
    for number in range(COUNT):
        picture.save(folder / "pictures" / f"{number}.png")
    return instdisc.train(folder / "pictures", folder / "run", say=None, **TINY).path


def points_of(run: Path) -> np.ndarray:
    points = load_file(run / "map" / "map.safetensors")["points"]
    assert points.shape == (COUNT, 2) and np.isfinite(points).all()
    return points


def waited(client: Client) -> dict[str, Any]:
    for _ in range(600):
        state = client.json("/api/map")
        if state["state"] != "computing":
            return dict(state)
        time.sleep(0.1)
    raise AssertionError("it never ends")


@pytest.mark.fault("the map of equal pictures kills the process")
@pytest.mark.parametrize("way", ["command", "server"])
def test_equal_pictures_are_a_heap(equal_run: Path, said: Callable[..., str], way: str) -> None:
    (equal_run / "map" / "map.safetensors").unlink(missing_ok=True)
    if way == "command":
        assert "The map of 20 pictures is in" in said("map", equal_run, "--device", "cpu")
    else:
        with served(equal_run) as client:
            assert client.json("/api/map", {})["state"] == "computing"
            assert waited(client)["state"] == "ready"
            assert client.send("GET", "/api/map/points")[0] == 200
    assert len(np.unique(points_of(equal_run), axis=0)) > 1


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-7, 1e-4])
@pytest.mark.parametrize("apart", [0, 10])
def test_nearly_equal_vectors_are_drawn(noise: float, apart: int) -> None:
    random = np.random.default_rng(1)
    vectors = np.ones((60, 8)) + noise * random.normal(size=(60, 8))
    vectors[:apart] = random.normal(size=(apart, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    places = np.argsort(-scores, axis=1, kind="stable")[:, :57]
    start = vectors[:, :2] - vectors[:, :2].mean(axis=0)
    shares: list[float] = []
    given = np.take_along_axis(scores, places, axis=1).astype(np.float32)
    points = embed_in_plane(given, places, start, perplexity=19, tell=shares.append)
    assert points.shape == (60, 2) and np.isfinite(points).all()
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 75
    if apart:  # what differs stands apart from the heap
        heap = points[apart:].mean(axis=0)
        assert (
            np.linalg.norm(points[:apart] - heap, axis=1).mean() > np.linalg.norm(points[apart:] - heap, axis=1).mean()
        )


def test_vectors_that_are_no_numbers_are_one_sentence(
    equal_run: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recompute(equal_run, say=None)
    from instdisc.search.index import Index

    real = Index.vectors

    def broken(self: Index, rows: np.ndarray) -> Any:
        found = real(self, rows)
        found[3:5] = float("nan")
        return found

    monkeypatch.setattr(Index, "vectors", broken)
    assert "The vectors of 2 pictures are no numbers" in said("map", equal_run, "--device", "cpu", code=1)
    monkeypatch.undo()
    make_map(equal_run, device="cpu", say=None)


@pytest.mark.fault("a library that dies takes the server with it")
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGSEGV)", "raise RuntimeError('of its own')"])
def test_its_death_harms_nobody(equal_run: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    real = subprocess.Popen

    def dying(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return real([words[0], "-c", f"import os, signal; {end}"], **options)

    (equal_run / "map" / "map.safetensors").unlink(missing_ok=True)
    with served(equal_run) as client:
        client.json("/api/map")
        monkeypatch.setattr(tsne.subprocess, "Popen", dying)
        client.json("/api/map", {})
        state = waited(client)
        assert state["state"] == "failed" and "The map could not be computed: openTSNE ended with" in state["error"]
        assert ("of its own" in state["error"]) == ("of its own" in end)
        monkeypatch.undo()
        assert client.json("/api/map", {})["state"] == "computing"
        assert waited(client)["state"] == "ready"


def test_it_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    for name, values in (("scores", np.zeros((4000, 90), np.float32)), ("start", np.zeros((4000, 2)))):
        np.save(tmp_path / f"{name}.npy", values)
    np.save(tmp_path / "places.npy", np.random.default_rng(0).integers(0, 4000, (4000, 90)))
    program = f"import sys; sys.path[:] = {sys.path!r}; from instdisc.jobs.tsne import main; main(30)"
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None and child.stdout is not None
    child.stdout.readline()
    child.stdin.close()
    assert child.wait(120) == 1
    child.stdout.close()


def test_torch_stays_out_of_it() -> None:
    program = "import sys; import instdisc.jobs.tsne; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "False", done.stderr
