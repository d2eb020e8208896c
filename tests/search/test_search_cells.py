"""Cells on the disk: against all products, with pictures that came and went, and files that are none of ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_search_pairs import clustered
from tiny_runs import picture_folder, tiny

from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.jobs.index import add, remove
from instdisc.jobs.purge import purge
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.search import index as index_module
from instdisc.search.cells import CELLS, Cells, made, stored_cells
from instdisc.search.pairs import Vectors
from instdisc.serve.opened import Opened

PARTS = [("first", 4_000), ("second", 2_000)]


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return clustered(6_000, 24, 0, spread=0.8)


def stored(file: Path, rows: torch.Tensor, there: np.ndarray, parts: list[tuple[str, int]] = PARTS) -> Cells:
    return stored_cells(file, Vectors.of(rows[torch.from_numpy(there)]), rows=there, made_of=parts)


def state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


def share_found(cells: Cells, vectors: torch.Tensor) -> float:
    """Of some ones' ten nearest, by all products in float64; scores must be these."""
    asked = np.arange(3, len(vectors), 13)
    products = vectors[asked].double() @ vectors.double().T
    products[np.arange(len(asked)), asked] = -2
    least = products.topk(10, dim=1).values[:, -1:]
    scores, places = cells.search(vectors[asked], 10, exclude=asked)
    assert torch.allclose(scores.double(), products.gather(1, places), atol=1e-6)
    assert (scores[:, :-1] >= scores[:, 1:]).all() and not (places == torch.from_numpy(asked)[:, None]).any()
    return float((scores.double() >= least - 1e-6).double().mean())


def test_nearly_all_are_found_and_it_says_how_many(tmp_path: Path, rows: torch.Tensor) -> None:
    cells = stored(tmp_path / CELLS, rows, np.arange(6_000))
    assert cells.recall >= 0.98
    assert share_found(cells, rows) == pytest.approx(cells.recall, abs=0.015)
    again = stored(tmp_path / CELLS, rows, np.arange(6_000))
    for one, other in zip(cells.search(rows[:9], 30), again.search(rows[:9], 30), strict=True):
        assert torch.equal(one, other)


def test_every_vector_stands_once_in_the_cell_of_its_nearest_centre_as_it_is(rows: torch.Tensor) -> None:
    own = np.arange(6_000) * 3
    found = made(Vectors.of(rows), own)
    assert found["rows"].sort().values.tolist() == own.tolist()
    homes = (rows.double() @ found["centres"].double().T).argmax(1)
    sizes = found["starts"].diff()
    assert homes.bincount(minlength=len(sizes)).sub(sizes).abs().sum() <= 2, "but for roundings of equal distances"
    back = found["codes"].float() * found["scales"][:, None]
    assert (back - rows[found["rows"] // 3]).abs().max() <= rows.abs().max() / 254 + 1e-6
    assert torch.allclose(found["centres"].norm(dim=1), torch.ones(len(sizes)))


def test_what_came_is_looked_through_too_and_what_went_is_no_answer(tmp_path: Path, rows: torch.Tensor) -> None:
    file = tmp_path / CELLS
    stored(file, rows, np.arange(4_000), PARTS[:1])
    before = state(file)
    few = np.arange(4_050)
    grown = stored(file, rows, few)
    assert state(file) == before and grown.beside == 50
    assert share_found(grown, rows[:4_050]) == pytest.approx(grown.recall, abs=0.02)
    own = grown.search(rows[4_000:4_050], 1)
    assert own[1].flatten().tolist() == list(range(4_000, 4_050)), "each finds itself"

    left = np.setdiff1d(np.arange(4_000), np.random.default_rng(0).choice(4_000, 1_500, replace=False))
    fewer = stored(file, rows, left)
    assert state(file) == before and fewer.beside == 0
    assert share_found(fewer, rows[torch.from_numpy(left)]) == pytest.approx(fewer.recall, abs=0.02)

    whole = stored(file, rows, np.arange(6_000))
    assert state(file) != before and whole.beside == 0, "more than a fiftieth: made again"


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_few_and_equal_vectors_are_all_found(tmp_path: Path, count: int) -> None:
    equal = torch.nn.functional.normalize(torch.ones(count, 8), dim=1)
    cells = stored(tmp_path / CELLS, equal, np.arange(count), [("a", count)])
    scores, places = cells.search(equal[:1], count)
    assert sorted(places[0].tolist()) == list(range(count)) and torch.allclose(scores, torch.ones(1, count))
    for neighbours, exclude in ((count + 1, None), (0, None), (count, np.array([0]))):
        with pytest.raises(InputError, match="were asked for"):
            cells.search(equal[:1], neighbours, exclude=exclude)


def test_more_than_the_cells_hold_is_found_exactly(tmp_path: Path, rows: torch.Tensor) -> None:
    cells = stored(tmp_path / CELLS, rows, np.arange(6_000))
    scores, places = cells.search(rows[:1], 5_999, exclude=np.array([0]))
    assert sorted(places[0].tolist()) == list(range(1, 6_000))
    assert torch.allclose(scores[0].double(), rows[places[0]].double() @ rows[0].double(), atol=1e-6)


def test_a_vector_that_is_no_number_is_refused(tmp_path: Path, rows: torch.Tensor) -> None:
    cells = stored(tmp_path / CELLS, rows, np.arange(6_000))
    with pytest.raises(InputError, match="NaN"):
        cells.search(torch.full((1, 24), torch.nan), 3)
    broken = rows.clone()
    broken[5_000, 3] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        made(Vectors.of(broken), np.arange(6_000))


@pytest.mark.parametrize("damage", ["cut", "text", "other vectors", "starts", "rows", "homes", "kinds", "one missing"])
def test_a_file_that_does_not_fit_is_made_again(tmp_path: Path, rows: torch.Tensor, damage: str) -> None:
    file = tmp_path / CELLS
    stored(file, rows, np.arange(6_000))
    tensors = {name: one.clone() for name, one in load_file(file).items()}
    said = {"format": "1", "made_of": json.dumps([*map(list, PARTS)])}
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5_000])
    elif damage == "text":
        file.write_bytes(b"hello")
    else:
        changed = {name: one.clone() for name, one in tensors.items()}
        if damage == "other vectors":
            said["made_of"] = json.dumps([["third", 6_000]])
        elif damage == "starts":
            changed["starts"][3] = 10**12
        elif damage == "rows":
            changed["rows"][7] = 6_000
        elif damage == "homes":
            changed["homes"][0, 0] = 10**9
        elif damage == "kinds":
            changed["codes"] = changed["codes"].float()
        else:
            del changed["scales"]
        save_file(changed, file, said)
    cells = stored(file, rows, np.arange(6_000))
    assert cells.recall >= 0.98 and all(torch.equal(one, tensors[name]) for name, one in load_file(file).items())


def test_where_it_cannot_be_written_it_stays_in_memory(tmp_path: Path, rows: torch.Tensor) -> None:
    (tmp_path / "full").write_bytes(b"no folder")
    cells = stored(tmp_path / "full" / CELLS, rows[:300], np.arange(300), [("first", 300)])
    assert cells.recall == 1 and (tmp_path / "full").read_bytes() == b"no folder"


def test_a_large_collection_is_served_by_them_and_a_purged_picture_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = picture_folder(tmp_path / "pictures", 40)
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    folder = RunFolder(run)
    monkeypatch.setattr(index_module, "MANY", 30)
    said: list[str] = []
    exact, opened = Opened(run, device="cpu"), Opened(run, device="cpu")
    opened.approximate(said.append)
    file = folder.index / CELLS
    assert file.is_file() and not folder.links.exists() and "100.0 %" in said[0]
    queries = exact.index.vectors(np.arange(40))
    for one, other in zip(opened.index.search(queries, 9), exact.index.search(queries, 9), strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=1e-5, rtol=0)

    names = [entry.path for entry in Collection(run).index.entries(range(3))]
    remove(run, paths=names[:2])
    add(run, picture_folder(tmp_path / "more", 12), say=None)
    opened = Opened(run, device="cpu")
    opened.approximate(said.append)
    assert not np.isin(opened.index.search(opened.index.vectors(np.arange(8)), 9)[1].numpy(), [0, 1]).any()

    purge(run, names[2:], say=None)
    assert not file.exists()
