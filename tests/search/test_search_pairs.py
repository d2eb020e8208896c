"""All pairs and all neighbours against a full matrix; groups against scipy's complete linkage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from instdisc import neighbours
from instdisc.errors import InputError
from instdisc.neighbours import Coarse, Nearest, fp16_is_faster
from instdisc.search import pairs as pairs_module
from instdisc.search.groups import linked
from instdisc.search.pairs import Vectors, neighbours_of_all, similar_pairs


def clustered(count: int, dim: int, seed: int, spread: float = 0.3) -> torch.Tensor:
    """Unit vectors around a few centres, so that many pairs are near any threshold."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, count // 12), dim, generator=generator)
    rows = centres[torch.randint(len(centres), (count,), generator=generator)]
    return torch.nn.functional.normalize(rows + spread * torch.randn(count, dim, generator=generator), dim=1)


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16 first"])
def halves(request, monkeypatch):
    """Both ways, whatever this machine is fast at."""
    for module in (neighbours, pairs_module):
        monkeypatch.setattr(module, "fp16_is_faster", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("blocks", [(4096, 512, 64), (100, 37, 16)])
def test_all_pairs_equal_the_full_matrix(halves, blocks, monkeypatch) -> None:
    for name, value in zip(("_QUERIES", "_ROWS", "_TILE"), blocks, strict=True):
        monkeypatch.setattr(pairs_module, name, value)
    rows, others = clustered(300, 24, 0), clustered(170, 24, 0, spread=0.2)
    scores = rows.double() @ rows.double().T
    expected = {(a, b) for a, b in (scores > 0.9).nonzero().tolist() if a < b}
    found = similar_pairs(Vectors.of(rows), 0.9)
    assert len(expected) > 100
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    assert len(found) == len(expected)
    assert (np.diff(found.scores) <= 0).all()
    np.testing.assert_allclose(found.scores, scores[found.first, found.second], atol=1e-6)

    between = similar_pairs(Vectors.of(rows), 0.9, against=Vectors.of(others))
    expected = set(map(tuple, (rows.double() @ others.double().T > 0.9).nonzero().tolist()))
    assert expected and set(zip(between.first.tolist(), between.second.tolist(), strict=True)) == expected


def test_float16_rows_are_compared_in_float32() -> None:
    rows = clustered(200, 16, 3).half()
    found = similar_pairs(Vectors.of(rows), 0.8)
    same = similar_pairs(Vectors.of(rows.float()), 0.8)
    assert len(found) and (found.scores == same.scores).all()


@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_of_all_equal_the_full_matrix(halves, k, monkeypatch) -> None:
    monkeypatch.setattr(pairs_module, "_QUERIES", 700)
    monkeypatch.setattr(pairs_module, "_ROWS", 300)
    monkeypatch.setattr(neighbours, "_PASSED", 80)
    rows = clustered(3100, 24, 1)
    scores, places = neighbours_of_all(Vectors.of(rows), k)
    full = (rows.double() @ rows.double().T).fill_diagonal_(-2).numpy()
    expected = np.sort(full, axis=1)[:, ::-1][:, :k]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(full, places, axis=1), expected, atol=1e-6)
    assert not (places == np.arange(len(rows))[:, None]).any()


def test_a_product_in_half_precision_comes_first_once_few_rows_pass(monkeypatch) -> None:
    """It is used, gives the same answers, and stands back where too many rows pass."""
    asked = []
    monkeypatch.setattr(neighbours, "fp16_is_faster", lambda device: True)
    monkeypatch.setattr(neighbours, "_PASSED", 200)
    true = Coarse.candidates
    monkeypatch.setattr(Coarse, "candidates", lambda self, *given: asked.append(1) or true(self, *given))
    rows = clustered(4000, 24, 2)
    coarse, plain = Nearest(rows[:256], 3, torch.arange(256), expected=4000), Nearest(rows[:256], 3, torch.arange(256))
    for first in range(0, 4000, 500):
        coarse.add(rows[first : first + 500], first)
        plain.add(rows[first : first + 500], first)
    assert len(asked) == 6 * 2  # two tiles of queries, from the block on before which 200 x 3 rows were seen
    assert torch.equal(coarse.indices, plain.indices)
    torch.testing.assert_close(coarse.scores, plain.scores, atol=1e-6, rtol=0)

    asked.clear()
    same = torch.nn.functional.normalize(torch.ones(4000, 24), dim=1)
    nearest = Nearest(same[:256], 3, expected=4000)
    for first in range(0, 4000, 500):
        nearest.add(same[first : first + 500], first)
    assert len(asked) == 2  # at 1,000 rows, where all pass, and again once twice as many were seen
    assert (nearest.indices == torch.arange(3)).all()


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 200),
    dim=st.integers(1, 130),
    size=st.floats(0.01, 100),
    floor=st.floats(-1, 1),
)
def test_no_candidate_is_missing(seed, rows, dim, size, floor) -> None:
    """The bound on the error of half precision holds, for vectors of any length and floors of any sign."""
    generator = torch.Generator().manual_seed(seed)
    queries, others = (size * torch.randn(count, dim, generator=generator) for count in (9, rows))
    scores = queries.double() @ others.double().T
    floors = (floor * scores.abs().amax(1)).float()
    query, row = Coarse(queries).candidates(slice(2, 9), Coarse(others), floors[2:])
    found = set(zip(query.tolist(), row.tolist(), strict=True))
    assert set(map(tuple, (scores[2:] > floors[2:, None].double()).nonzero().tolist())) <= found
    assert sorted(found) == list(zip(query.tolist(), row.tolist(), strict=True))


def test_the_trial_of_half_precision_answers() -> None:
    assert fp16_is_faster(torch.device("cpu")) in (False, True)
    assert fp16_is_faster(torch.device("meta")) is False


@pytest.mark.fault("a group of duplicates does not show its worst pair")
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 60), threshold=st.floats(0.3, 0.95))
def test_groups_are_those_of_complete_linkage(seed, count, threshold) -> None:
    rows = clustered(count, 5, seed, spread=0.6)
    scores = (rows @ rows.T).double().numpy()
    found = linked(similar_pairs(Vectors.of(rows), threshold))
    distances = np.clip(1 - (scores + scores.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    numbers = fcluster(linkage(squareform(distances), "complete"), 1 - threshold, "distance")
    expected = {tuple(np.flatnonzero(numbers == number)) for number in set(numbers)}
    assert {group.members for group in found} == {one for one in expected if len(one) > 1}
    for group in found:
        own = scores[np.ix_(group.members, group.members)]
        assert group.score == pytest.approx(own.min(), abs=1e-6)
        assert scores[group.worst] == pytest.approx(own.min(), abs=1e-6) and set(group.worst) <= set(group.members)


@pytest.mark.fault("approximate duplicate clusters chain to pairs far below the threshold")
def test_groups_do_not_chain() -> None:
    """Each is 10 degrees from the one before: single linkage makes one group of ends that are 90 degrees apart."""
    angles = torch.deg2rad(torch.arange(0.0, 91, 10))
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    groups = linked(similar_pairs(Vectors.of(rows), float(np.cos(np.deg2rad(10.5)))))
    assert [len(group.members) for group in groups] == [2] * 5
    assert all(group.score == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-5) for group in groups)


def test_what_a_person_can_get_wrong() -> None:
    rows = Vectors.of(clustered(50, 8, 4))
    with pytest.raises(InputError, match="above 0 and at most 1, not 1.5"):
        similar_pairs(rows, 1.5)
    with pytest.raises(InputError, match="More than 5 pairs are at least 0.1 similar: ask for a higher"):
        similar_pairs(rows, 0.1, most=5)
    with pytest.raises(InputError, match="50 neighbours were asked for, and a picture has 49 others: ask for fewer"):
        neighbours_of_all(rows, 50)
    broken = clustered(50, 8, 4)
    broken[7, 2] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        similar_pairs(Vectors.of(broken), 0.9)


def test_nothing_alike_gives_no_pairs() -> None:
    none = similar_pairs(Vectors.of(torch.eye(6)), 0.5)
    assert len(none) == 0 and linked(none) == []
