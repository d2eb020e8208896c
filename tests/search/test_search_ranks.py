"""All pairs, all neighbours, search and outlier scores on two and three processes: what one process gives, on each."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from several_ranks import alike_rows, tour

from instdisc import ranks
from instdisc.search import pairs

WORLDS = (2, 3)
EXACT = [
    *(f"{which}_{name}" for which in ("within", "between") for name in ("first", "second", "scores")),
    *("all_places", "search_rows", "some_search_rows", "few_search_rows"),
]
ROUNDED = ["all_scores", "search_scores", "some_search_scores", "few_search_scores", "outlier_scores"]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", EXACT)
def test_every_rank_has_the_answer_of_one_process(name: str, world: int) -> None:
    (one,) = tour(1)
    for each in tour(world):
        assert torch.equal(each[f"compared.{name}"], one[f"compared.{name}"])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ROUNDED)
def test_scores_are_those_of_one_process(name: str, world: int) -> None:
    (one,) = tour(1)
    for each in tour(world):
        torch.testing.assert_close(each[f"compared.{name}"], one[f"compared.{name}"], rtol=1e-5, atol=1e-6)


def test_the_planted_copies_are_found_and_ties_go_to_the_lower_row() -> None:
    """By a full matrix in float64: the check that the tour looks at something."""
    (one,) = tour(1)
    rows = alike_rows()
    scores = rows.double() @ rows.double().T
    assert len(one["compared.within_first"]) == int((scores.triu(1) >= 0.8).sum()) > 80
    # Of equal rows the lower ones come first, also where they stand on different ranks; 7 k + 3 are removed.
    assert one["compared.search_rows"][0, :3].tolist() == [0, 300, 600]
    assert one["compared.few_search_rows"][1].tolist() == sorted(
        (2, 851, 854), key=lambda row: (-float(rows[5].double() @ rows[row].double()), row)
    )


@pytest.mark.parametrize("world", [1, *WORLDS])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("not_finite", "NaN or infinity"),
        ("pairs_not_finite", "NaN or infinity"),
        ("search_not_finite", "NaN or infinity"),
        ("too_many", "ask for a higher similarity"),
        ("fail_together", "It went wrong here."),
        ("on_main", "It went wrong here."),
    ],
)
def test_all_ranks_refuse_together_what_one_of_them_meets(name: str, says: str, world: int) -> None:
    """A rank that alone meets it would leave the others waiting."""
    for each in tour(world):
        assert says in bytes(each[f"compared.{name}"].tolist()).decode()


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 1000, 100_003])
def test_ranks_share_the_triangle_evenly(count: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(pairs._share_of_triangle(count))
    assert shares[0][0] == 0 and shares[-1][1] == count
    assert all(before[1] == after[0] for before, after in pairwise(shares))
    work = [sum(count - query for query in range(begin, end)) for begin, end in shares]
    assert max(work) - math.ceil(sum(work) / world) <= 2 * count  # two rows of the triangle
