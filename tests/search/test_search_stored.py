"""A graph that is kept: opened as it was, added to, made anew where it fits no more, never followed when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_search_pairs import clustered
from tiny_runs import picture_folder, tiny

from instdisc.jobs.collection import Collection
from instdisc.jobs.duplicates import look_alikes
from instdisc.jobs.index import add, remove
from instdisc.jobs.open import BEGUN
from instdisc.jobs.own import open_vectors
from instdisc.jobs.purge import purge
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.search.approximate import Graph
from instdisc.search.pairs import Vectors
from instdisc.search.stored import header_of, stored_links
from instdisc.serve.opened import Opened

PARTS = [("first", 2_000), ("second", 1_000)]


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return clustered(3_000, 24, 0, spread=0.8)


def stored(file: Path, rows: torch.Tensor, there: np.ndarray, parts: list[tuple[str, int]] = PARTS) -> Graph:
    some = rows[torch.from_numpy(there)]
    return stored_links(file, Vectors.of(some), rows=there, made_of=parts)


def state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


def recall(graph: Graph, vectors: torch.Tensor) -> float:
    """Of each one's ten nearest, by all products."""
    products = vectors.double() @ vectors.double().T
    products.fill_diagonal_(-2)
    least = products.topk(10, dim=1).values[:, -1:]
    scores, places = graph.search(vectors, 10, exclude=np.arange(len(vectors)))
    assert torch.allclose(scores.double(), products.gather(1, places), atol=1e-6)
    return float((scores.double() >= least - 1e-6).double().mean())


def test_it_is_opened_as_it_was(tmp_path: Path, rows: torch.Tensor) -> None:
    file = tmp_path / "links.usearch"
    there = np.flatnonzero(np.arange(3_000) % 7 != 3)
    first = stored(file, rows, there)
    before = state(file)
    again = stored(file, rows, there)
    assert state(file) == before and again.recall == first.recall >= 0.99
    queries = rows[:50]
    for one, other in zip(first.search(queries, 20), again.search(queries, 20), strict=True):
        assert torch.equal(one, other)
    assert recall(again, rows[torch.from_numpy(there)]) == pytest.approx(again.recall, abs=0.01)


def test_what_comes_is_added_and_what_goes_is_passed_over(tmp_path: Path, rows: torch.Tensor) -> None:
    file = tmp_path / "links.usearch"
    stored(file, rows, np.arange(2_000), PARTS[:1])
    before = file.stat().st_size
    grown = stored(file, rows, np.arange(3_000))
    assert file.stat().st_size > before
    assert recall(grown, rows) == pytest.approx(grown.recall, abs=0.01) and grown.recall >= 0.98

    left = np.setdiff1d(np.arange(3_000), np.random.default_rng(0).choice(3_000, 400, replace=False))
    before = state(file)
    fewer = stored(file, rows, left)
    assert state(file) == before, "nothing is made again for pictures that went"
    assert recall(fewer, rows[torch.from_numpy(left)]) == pytest.approx(fewer.recall, abs=0.01)

    back = stored(file, rows, np.arange(3_000))  # they are in the graph still
    assert state(file) == before and recall(back, rows) == pytest.approx(back.recall, abs=0.01)

    few = np.arange(1_500)
    stored(file, rows, few)
    assert state(file) != before, "of too many that went it is made anew"
    returned = stored(file, rows, np.arange(3_000))
    assert recall(returned, rows) == pytest.approx(returned.recall, abs=0.01)


def test_other_vectors_and_other_orders_make_it_anew(tmp_path: Path, rows: torch.Tensor) -> None:
    file, there = tmp_path / "links.usearch", np.arange(3_000)
    for parts in (PARTS, [("other", 2_000), PARTS[1]], [PARTS[1], PARTS[0]], [("first", 3_000)]):
        before = state(file) if file.exists() else None
        graph = stored(file, rows, there, parts)
        assert state(file) != before and graph.recall >= 0.99
    copy = tmp_path / "copy.usearch"
    copy.write_bytes(file.read_bytes())  # without its header
    assert stored(copy, rows, there, [("first", 3_000)]).recall >= 0.99


@pytest.mark.parametrize("part", ["links", "header"])
def test_a_damaged_one_is_made_anew(tmp_path: Path, rows: torch.Tensor, part: str) -> None:
    file, some = tmp_path / "links.usearch", rows[:300]
    there, parts = np.arange(300), [("first", 300)]
    whole = stored(file, some, there, parts)
    target = file if part == "links" else header_of(file)
    content = target.read_bytes()
    random = np.random.default_rng(1)
    for place in [*random.integers(0, len(content), 12).tolist(), 3, len(content) - 1]:
        target.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        assert recall(stored(file, some, there, parts), some) == whole.recall == 1
        assert stored(file, some, there, parts).recall == 1 and len(target.read_bytes()) == len(content)
        content = target.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    assert stored(file, some, there, parts).recall == 1


def test_where_nothing_can_be_written_it_stays_in_memory(tmp_path: Path, rows: torch.Tensor) -> None:
    (tmp_path / "full").write_bytes(b"no folder")
    graph = stored(tmp_path / "full" / "links.usearch", rows[:300], np.arange(300), [("first", 300)])
    assert graph.recall == 1 and (tmp_path / "full").read_bytes() == b"no folder"


def test_a_collection_keeps_one_for_its_commands_and_its_page(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", 40)
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    file = RunFolder(run).links
    look_alikes(run, threshold=0.9, approximate=True, out=tmp_path / "out", say=None)
    before = state(file)
    said: list[str] = []
    Opened(run, device="cpu").approximate(said.append)
    look_alikes(run, threshold=0.9, approximate=True, out=tmp_path / "out", say=None)
    assert state(file) == before and "100.0 %" in said[0]

    add(run, picture_folder(tmp_path / "more", 12), say=None)
    Opened(run, device="cpu").approximate(said.append)
    after = state(file)
    assert after != before and "100.0 %" in said[1]

    names = [entry.path for entry in Collection(run).index.entries(range(3))]
    remove(run, paths=names[:2])
    opened = Opened(run, device="cpu")
    opened.approximate(said.append)
    assert state(file) == after
    found = opened.index.search(opened.index.vectors(np.arange(8)), 9)[1]
    assert not np.isin(found.numpy(), [0, 1]).any()

    purge(run, names[2:], say=None)
    assert not file.exists() and not header_of(file).exists()
    Opened(run, device="cpu").approximate(said.append)
    assert file.exists() and "100.0 %" in said[-1]


def test_vectors_made_elsewhere_keep_one_too(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", clustered(400, 16, 3, spread=0.9).numpy())
    run = open_vectors(tmp_path / "vectors.npy", tmp_path / "run", say=None).path
    assert not (run / BEGUN).exists()
    Opened(run, device="cpu").approximate(print)
    before = state(RunFolder(run).links)
    Opened(run, device="cpu").approximate(print)
    assert state(RunFolder(run).links) == before
