"""The index: its answers are those of all cosines in NumPy, whatever the parts, filters and types."""

from __future__ import annotations

import fnmatch
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from instdisc.errors import InputError
from instdisc.search.index import Index


def unit(count: int, seed: int = 0, dim: int = 8) -> torch.Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def table(ids: list[str] | list[bytes]) -> pa.Table:
    kind = pa.large_binary() if isinstance(ids[0], bytes) else pa.large_string()
    prefix: Any = b"/p/" if isinstance(ids[0], bytes) else "/p/"
    return pa.table({"id": pa.array(ids, kind), "location": pa.array([prefix + one for one in ids], kind)})


IDS = [f"{'ab'[row % 2]}/{row:03d}.png" for row in range(60)]


@pytest.fixture
def index() -> Index:
    """60 pictures in three parts, of two types."""
    parts = [unit(25), unit(20, 1).half(), unit(15, 2)]
    removed = np.zeros(60, dtype=bool)
    removed[[3, 26, 59]] = True
    labels = np.arange(60) % 3 - 1
    return Index(
        parts,
        table(IDS),
        labels=labels,
        label_names=["cat", "dog"],
        removed=removed,
        tags={"good": np.array([1, 3, 30])},
    )


def by_hand(
    index: Index, queries: torch.Tensor, k: int, among: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    scores = (queries @ torch.cat([part.float() for part in index.parts]).T).numpy()
    scores[:, ~among] = -np.inf
    for line, row in enumerate(own):
        if row >= 0:
            scores[line, row] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


@pytest.mark.parametrize("where", [None, "a/*", "*5.png", "b/02?.png"])
def test_search_is_that_of_all_cosines(index: Index, where: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instdisc.search.index._BLOCK", 7)
    queries = unit(4, 9)
    among = index.matching(where=where)
    own = np.array([5, -1, 3, 20])  # 3 was removed, and 20 may not be among the answers
    scores, rows = index.search(queries, 4, among=among, exclude=own)
    expected_scores, expected = by_hand(index, queries, 4, among, own)
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert not set(rows.flatten().tolist()) & {3, 26, 59}, "a removed picture is no answer"


def test_filters_are_those_of_the_words(index: Index) -> None:
    there = ~index.removed
    for pattern in ("*", "a/*", "?/0?3*", "nothing", "a/000.png"):
        expected = np.array([fnmatch.fnmatchcase(name, pattern) for name in IDS]) & there
        assert (index.matching(where=pattern) == expected).all()
    assert (index.matching(label="dog") == ((index.labels == 1) & there)).all()
    assert np.flatnonzero(index.matching(tag="good")).tolist() == [1, 30]
    both = index.matching(label="cat", where="a/*")
    assert (both == (index.matching(label="cat") & index.matching(where="a/*"))).all()
    with pytest.raises(InputError, match="there are: cat, dog"):
        index.matching(label="cow")
    with pytest.raises(InputError, match="there are: good"):
        index.matching(tag="bad")


def test_brackets_and_stops_in_a_pattern_are_themselves() -> None:
    names = ["a[1].png", "a1.png", "axpng", "a\n.png", "(b)+.png"]
    index = Index([unit(5)], table(names))

    def found(pattern: str) -> list[str]:
        return [names[row] for row in np.flatnonzero(index.matching(where=pattern))]

    assert found("a[1].png") == ["a[1].png"] and found("a?png") == ["axpng"]
    assert found("a*.png") == ["a[1].png", "a1.png", "a\n.png"] and found("(b)+*") == ["(b)+.png"]


def test_names_that_are_not_text(index: Index) -> None:
    names = [b"caf\xe9.png", b"b.png"]
    other = Index([unit(2)], table(names))
    assert np.flatnonzero(other.matching(where="caf*")).tolist() == [0]
    entry = other.entries([0])[0]
    assert entry.id.encode("utf-8", "surrogateescape") == names[0] and other.rows_of([entry.path]).tolist() == [0]


def test_what_is_known_of_rows_and_paths(index: Index) -> None:
    entries = index.entries([4, 2, 0])
    assert [entry.id for entry in entries] == [IDS[4], IDS[2], IDS[0]] and [entry.row for entry in entries] == [4, 2, 0]
    assert [entry.label for entry in entries] == ["cat", "dog", ""]
    asked = ["/p/" + IDS[7], "/p/" + IDS[3], "elsewhere", "/p/" + IDS[7]]
    assert index.rows_of(asked).tolist() == [7, -1, -1, 7], "a removed picture is not there"
    rows = np.array([50, 3, 30])
    np.testing.assert_array_equal(index.vectors(rows), torch.cat([part.float() for part in index.parts])[rows])


def test_a_picture_that_was_added_again_is_the_later_one() -> None:
    index = Index([unit(3), unit(1, 1)], table(["x", "y", "z", "y"]))
    assert index.rows_of(["/p/y"]).tolist() == [3]


def test_what_cannot_be_is_refused(index: Index) -> None:
    with pytest.raises(InputError, match="and 57 pictures are there to choose from: ask for fewer"):
        index.search(unit(1), 58)
    with pytest.raises(InputError, match="and 56 pictures are there"):
        index.search(unit(1), 57, exclude=np.array([4]))
    with pytest.raises(InputError, match="ask for at least one"):
        index.search(unit(1), 0)
    with pytest.raises(InputError, match="do not belong together"):
        Index([unit(3)], table(["a", "b"]))


def test_entries_are_the_same_whether_few_or_many_are_asked_for() -> None:
    """Of a table in many chunks, in any order, and one twice."""
    names = [f"{row}.png" for row in range(700)]
    table = pa.concat_tables(
        [pa.table({"id": names[at : at + 9], "location": names[at : at + 9]}) for at in range(0, 700, 9)]
    )
    index = Index([torch.eye(700)], table, labels=np.arange(700) % 3 - 1, label_names=["a", "b"])
    rows = [699, 0, 5, 5, *range(1, 400, 2)]
    many = index.entries(rows)
    assert len(rows) > 200 and many == [index.entries([row])[0] for row in rows]
    assert [one.id for one in many[:4]] == ["699.png", "0.png", "5.png", "5.png"] and many[1].label == ""
    assert index.entries(np.array([3, 2]))[0].row == 3 and index.entries([]) == []
