"""Neighbours of all by cells: against all products, with pictures that are gone, planted copies, and in the jobs."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_search_pairs import clustered
from tiny_runs import picture_folder, tiny

from instdisc.errors import InputError
from instdisc.jobs import duplicates as duplicates_job
from instdisc.jobs import map as map_job
from instdisc.jobs.collection import Collection
from instdisc.jobs.duplicates import duplicates, look_alikes
from instdisc.jobs.leaks import leaks
from instdisc.jobs.map import make_map
from instdisc.jobs.outliers import outliers
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.search import graph as graph_module
from instdisc.search import joins
from instdisc.search.cells import CELLS, Cells, made
from instdisc.search.graph import nearest_graph
from instdisc.search.joins import Join
from instdisc.search.pairs import Vectors, neighbours_of_all, similar_pairs
from instdisc.serve import opened as opened_module
from instdisc.serve.opened import Opened

COUNT, PICTURES = 5_000, 41


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return clustered(COUNT, 24, 0, spread=0.8)


def join_of(rows: torch.Tensor, own: np.ndarray | None = None) -> Join:
    """own: of all that the cells hold, those that are there still."""
    there = np.arange(len(rows)) if own is None else own
    return Join(Cells(Vectors.of(rows[torch.from_numpy(there)]), there, made(Vectors.of(rows), np.arange(len(rows)))))


@pytest.mark.parametrize(("gone", "threads"), [(0, 1), (700, 2)])
def test_nearly_all_are_found_and_it_says_how_many(
    rows: torch.Tensor, gone: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins, "_BLOCK", 1_999)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    own = np.sort(np.random.default_rng(1).permutation(COUNT)[gone:])
    join = join_of(rows, own)
    scores, positions = join.neighbours_of_all(10)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    products = (rows[torch.from_numpy(own)].double() @ rows[torch.from_numpy(own)].double().T).numpy()
    np.fill_diagonal(products, -2)
    assert scores == pytest.approx(np.take_along_axis(products, positions.astype(np.int64), 1), abs=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all() and all(len(set(row)) == 10 for row in positions.tolist())
    least = np.partition(-products, 9, axis=1)[:, 9:10]
    found = float((scores >= -least - 1e-6).mean())
    assert join.recall == pytest.approx(found, abs=0.02) and found > 0.8
    assert 1 <= join.looked <= 8


@pytest.mark.parametrize("count", [2, 3, 20])
def test_few_and_equal_vectors_are_all_found(count: int) -> None:
    equal = torch.nn.functional.normalize(torch.ones(count, 8), dim=1)
    join = join_of(equal)
    expected = neighbours_of_all(Vectors.of(equal), count - 1)
    scores, positions = join.neighbours_of_all(count - 1)
    assert np.array_equal(positions, expected[1]) and scores == pytest.approx(expected[0], abs=1e-6)
    assert len(join.similar_pairs(0.99)) == count * (count - 1) // 2


def test_where_the_near_cells_hold_too_few_the_rest_is_found_exactly(rows: torch.Tensor) -> None:
    some = rows[:300]
    scores, positions = join_of(some).neighbours_of_all(299)
    assert all(sorted(row) == sorted(set(range(300)) - {own}) for own, row in enumerate(positions.tolist()))
    assert scores == pytest.approx(neighbours_of_all(Vectors.of(some), 299)[0], abs=1e-6)


def test_planted_copies_are_found_once_and_those_of_another_set_too(rows: torch.Tensor) -> None:
    noise = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
    copies = torch.nn.functional.normalize(rows[:200] + 0.01 * noise, dim=1)
    together = torch.cat([rows, copies])
    found, expected = join_of(together).similar_pairs(0.99), similar_pairs(Vectors.of(together), 0.99)
    pairs, known = ({*zip(one.first.tolist(), one.second.tolist(), strict=True)} for one in (found, expected))
    assert len(found) == len(pairs) and {(row, COUNT + row) for row in range(200)} <= pairs
    assert pairs <= known and len(pairs) >= 0.99 * len(known)
    assert (found.first < found.second).all() and (np.diff(found.scores) <= 0).all()

    theirs = join_of(rows).similar_pairs(0.99, against=Vectors.of(copies))
    assert {*zip(range(200), range(200), strict=True)} <= {
        *zip(theirs.first.tolist(), theirs.second.tolist(), strict=True)
    }
    with pytest.raises(InputError, match="More than 5 pairs"):
        join_of(rows).similar_pairs(0.5, most=5)
    with pytest.raises(InputError, match="NaN"):
        join_of(rows).similar_pairs(0.9, against=Vectors.of(torch.full((3, 24), torch.nan)))
    with pytest.raises(InputError, match="must be above 0"):
        join_of(rows).similar_pairs(1.5)


def test_the_graph_of_many_is_theirs(rows: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = nearest_graph(Vectors.of(rows))
    monkeypatch.setattr(graph_module, "EXACT_UP_TO", 1_000)
    graph = nearest_graph(Vectors.of(rows))
    assert graph.places.dtype == exact.places.dtype == np.int32 and graph.places.shape == exact.places.shape
    same = [len(np.intersect1d(*both)) for both in zip(graph.places, exact.places, strict=True)]
    assert 8 <= np.mean(same) < 10
    assert not np.array_equal(graph.places, exact.places)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joined")
    picture_folder(folder / "pictures", PICTURES - 1)
    first = min((folder / "pictures").glob("*/*.png"))
    shutil.copy(first, first.with_name("copy.png"))
    return train(folder / "pictures", folder / "run", tiny(epochs=1), say=None).path


def test_jobs_on_a_large_collection_use_cells_and_find_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = picture_folder(tmp_path / "others", 6)

    def tables(approximate: bool) -> list[str | float]:
        out = tmp_path / f"{approximate}"
        how = {"approximate": approximate, "device": "cpu", "say": None}
        outliers(run, neighbours=5, out=out, **how)
        found = duplicates(run, out=out, **how)
        look_alikes(run, threshold=0.2, copies=found, out=out, **how)
        leaks(run, others, look_alikes=True, threshold=0.2, out=out, **how)
        names = ("outliers.csv", "duplicates.csv", "look_alikes.csv", "leaks.csv")
        lines = [line for name in names for line in csv.reader((out / name).read_text("utf-8").splitlines())]
        return [float(one) if one.replace(".", "", 1).isdigit() else one for line in lines for one in line]

    exact = tables(False)
    page = Opened(run, device="cpu")
    alike = page.compared(*page.index.present()).similar_pairs(0.2)
    page.make_outliers()
    unusual = page.known_outliers()
    assert len(exact) > 300 and any(str(one).endswith("copy.png") for one in exact) and len(alike) > 100
    monkeypatch.setattr(duplicates_job, "MANY", 30)
    monkeypatch.setattr(joins, "RECALL", 1.0)
    assert tables(True) == [pytest.approx(one, abs=2e-6) if isinstance(one, float) else one for one in exact]
    monkeypatch.setattr(opened_module, "MANY", 30)
    page = Opened(run, device="cpu")
    found = page.compared(*page.index.present()).similar_pairs(0.2)
    assert {*zip(found.first, found.second, strict=True)} == {*zip(alike.first, alike.second, strict=True)}
    page.make_outliers()
    assert page.known_outliers() == unusual
    folder = RunFolder(run)
    assert (folder.index / CELLS).is_file() and not folder.links.exists()


def test_a_map_of_many_places_each_beside_what_it_is_like(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_job, "_MOST_DRAWN", 30)
    monkeypatch.setattr(map_job, "_FEWEST", 12)
    monkeypatch.setattr(map_job, "_SAMPLE", 12)
    monkeypatch.setattr(map_job, "_BLOCK", 7)
    shares: list[float] = []
    found = [load_file(make_map(run, device="cpu", progress=shares.append, say=None)) for _ in range(2)]
    assert torch.equal(found[0]["points"], found[1]["points"]) and found[0]["rows"].tolist() == list(range(PICTURES))
    assert shares[: len(shares) // 2] == sorted(shares[: len(shares) // 2]) and shares[0] > 0 and shares[-1] == 1
    points = found[0]["points"].double()
    assert len(points.unique(dim=0)) == PICTURES
    vectors = Collection(run).index.vectors(np.arange(PICTURES)).double()
    drawn = np.sort(np.random.default_rng(0).choice(PICTURES, 12, replace=False))
    likest = (vectors @ vectors[drawn].T).argmax(1)
    apart = torch.cdist(points, points[drawn])
    gap = torch.cdist(points[drawn], points[drawn]).fill_diagonal_(torch.inf).amin(1)
    assert (apart[torch.arange(PICTURES), likest] <= gap[likest] / 2 + 1e-5).all()


def test_all_vectors_of_one_file_are_not_copied(run: Path) -> None:
    index = Collection(run).index
    rows, vectors = index.whole()
    assert rows.tolist() == list(range(PICTURES)) and vectors.data_ptr() == index.parts[0].data_ptr()
    index.removed[3] = True
    rows, left = index.whole()
    assert 3 not in rows and torch.equal(left, vectors[torch.from_numpy(rows)])
