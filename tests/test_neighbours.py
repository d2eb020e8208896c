"""Exact top-k: against a full stable sort in NumPy and against scikit-learn, in any blocks, with ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from instdisc.errors import InputError
from instdisc.neighbours import Keyed, Nearest, top_k
from instdisc.neighbours.selection import best_columns


def slow_top_k(queries: np.ndarray, rows: np.ndarray, k: int, exclude: np.ndarray | None = None):
    """Score everything, sort everything; equal scores stay in the order of their rows."""
    scores = queries @ rows.T
    if exclude is not None:
        for query, row in enumerate(exclude):
            if row >= 0:
                scores[query, row] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def small_integers(generator: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Rows whose products are exact in float32 and often equal, so that the rule for ties decides."""
    return generator.integers(-2, 3, (count, dim)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 40),
    rows=st.integers(1, 300),
    dim=st.integers(1, 6),
    block=st.integers(1, 310),
    share=st.floats(0.0, 1.0),
    left_out=st.booleans(),
)
def test_equals_a_full_stable_sort(seed, queries, rows, dim, block, share, left_out) -> None:
    generator = np.random.default_rng(seed)
    q, r = small_integers(generator, queries, dim), small_integers(generator, rows, dim)
    exclude = generator.integers(-1, rows, queries) if left_out else None
    available = rows - (exclude is not None and bool((exclude >= 0).any()))
    if not available:
        return
    k = max(1, int(share * available))
    given_exclude = None if exclude is None else torch.from_numpy(exclude)
    scores, indices = top_k(torch.from_numpy(q), torch.from_numpy(r), k, exclude=given_exclude, block=block)
    slow_scores, slow_indices = slow_top_k(q, r, k, exclude)
    np.testing.assert_array_equal(indices, slow_indices)
    np.testing.assert_array_equal(scores, slow_scores)


@pytest.mark.parametrize("block", [100, 1024, 5000])
def test_equals_scikit_learn_on_unit_vectors(block: int) -> None:
    generator = torch.Generator().manual_seed(1)
    unit = torch.nn.functional.normalize(torch.randn(3000, 32, generator=generator), dim=1)
    scores, indices = top_k(unit[:300], unit, 20, block=block)
    distances, expected = NearestNeighbors(n_neighbors=20, metric="cosine").fit(unit.numpy()).kneighbors(unit[:300])
    assert np.mean(indices.numpy() == expected) > 0.999  # the last bit of a product may order a near tie differently
    np.testing.assert_allclose(1 - scores.numpy(), distances, atol=2e-6)


def test_rows_that_come_best_last_are_found() -> None:
    """Each block beats all before it: the floor filters nothing, and the block's own k-th best must."""
    rows = torch.linspace(0, 1, 5000)[:, None]
    _, indices = top_k(torch.ones(300, 1), rows, 7, block=500)
    assert (indices == torch.arange(4999, 4992, -1)).all()


def test_all_rows_equal_gives_the_first_ones() -> None:
    _, indices = top_k(torch.ones(3, 4), torch.ones(2000, 4), 50, block=300)
    assert (indices == torch.arange(50)).all()


@pytest.mark.fault("the query itself counted as its own neighbour in leave-one-out")
def test_an_excluded_row_is_never_returned_but_its_duplicate_is() -> None:
    rows = torch.eye(6).repeat(2, 1)
    own = torch.arange(12)
    _, indices = top_k(rows, rows, 11, exclude=own, block=5)
    assert not (indices == own[:, None]).any()
    assert (indices[:, 0] == (own + 6) % 12).all()
    assert (indices.sort(dim=1).values[0] == torch.arange(1, 12)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_scored_in_float32(dtype: torch.dtype) -> None:
    rows = torch.randn(500, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    scores, indices = top_k(rows[:40], rows, 9, block=128)
    expected = top_k(rows[:40].float(), rows.float(), 9)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected[0]) and torch.equal(indices, expected[1])


def test_autocast_and_reduced_precision_do_not_reach_it() -> None:
    rows = torch.randn(700, 64, generator=torch.Generator().manual_seed(3))
    expected = top_k(rows[:50], rows, 10)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = top_k(rows[:50], rows, 10)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.fault("evaluation overwrites the training bank")
@pytest.mark.fault("evaluation runs with gradients")
def test_rows_are_neither_written_nor_given_gradients() -> None:
    rows = torch.randn(50, 8, requires_grad=True)
    before = rows.detach().clone()
    scores, _ = top_k(rows, rows, 3, exclude=torch.arange(50))
    assert not scores.requires_grad
    assert torch.equal(rows.detach(), before)


def test_blocks_one_by_one_leave_places_open() -> None:
    nearest = Nearest(torch.ones(2, 3), 4)
    nearest.add(torch.ones(2, 3), 10)
    assert nearest.indices.tolist() == [[10, 11, -1, -1]] * 2
    assert nearest.scores.tolist() == [[3.0, 3.0, -torch.inf, -torch.inf]] * 2
    nearest.add(torch.zeros(0, 3), 12)
    nearest.add(torch.full((1, 3), 2.0), 12)
    assert nearest.indices.tolist() == [[12, 10, 11, -1]] * 2


def test_no_queries_give_no_answers() -> None:
    scores, indices = top_k(torch.zeros(0, 3), torch.ones(5, 3), 2)
    assert scores.shape == indices.shape == (0, 2)


@pytest.mark.fault("k larger than the bank crashes")
def test_what_a_person_can_get_wrong() -> None:
    rows = torch.ones(5, 3)
    with pytest.raises(InputError, match="6 neighbours were asked for but there are only 5 rows"):
        top_k(rows, rows, 6)
    with pytest.raises(InputError, match="only 4 rows"):
        top_k(rows, rows, 5, exclude=torch.arange(5))
    with pytest.raises(InputError, match="at least 1"):
        top_k(rows, rows, 0)
    for bad in (torch.nan, torch.inf):
        damaged = rows.clone()
        damaged[3, 1] = bad
        for queries, bank in ((damaged, rows), (rows, damaged), (torch.zeros(5, 3), damaged)):
            with pytest.raises(InputError, match="NaN or infinity"):
                top_k(queries, bank, 2)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_the_way_of_a_gpu_finds_the_same_rows_with_ties_and_left_out_rows(k: int) -> None:
    """Whole numbers as scores, many equal, some -0; against a stable sort in NumPy."""
    random = np.random.default_rng(k)
    rows = random.integers(-1, 2, (300, 3)).astype(np.float32)
    queries = random.integers(-1, 2, (1_100, 3)).astype(np.float32)
    exclude = random.integers(-1, 300, len(queries))
    keyed = Keyed(torch.from_numpy(queries), k, torch.from_numpy(exclude))
    for first in range(0, 300, 70):
        keyed.add(torch.from_numpy(rows[first : first + 70]), first)
    scores, indices = (found.numpy() for found in keyed.answer())
    products = queries @ rows.T
    products[np.flatnonzero(exclude >= 0), exclude[exclude >= 0]] = -np.inf
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    assert np.array_equal(indices, expected)
    assert np.array_equal(scores, np.take_along_axis(products, expected, 1))


def test_the_way_of_a_gpu_says_what_is_missing_or_no_number() -> None:
    keyed = Keyed(torch.eye(2), 5, None)
    keyed.add(torch.tensor([[1.0, 2.0], [3.0, -4.0]]), 10)
    scores, indices = keyed.answer()
    assert indices.tolist() == [[11, 10, -1, -1, -1], [10, 11, -1, -1, -1]]
    assert scores[:, :2].tolist() == [[3.0, 1.0], [2.0, -4.0]] and torch.isneginf(scores[:, 2:]).all()
    keyed.add(torch.tensor([[0.0, torch.nan]]), 12)
    with pytest.raises(InputError, match="NaN or infinity"):
        keyed.answer()
    with pytest.raises(InputError, match="NaN or infinity"):
        Keyed(torch.tensor([[torch.inf, 0.0]]), 1, None).answer()


@pytest.mark.parametrize("columns", [900, 4096, 4099])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_best_of_many_columns_with_equal_scores(columns: int, k: int) -> None:
    """Groups of columns that are looked at by their maximum: no equal score is taken before an earlier one."""
    generator = np.random.default_rng(columns + k)
    tied = generator.integers(0, 8 * k, (30, columns)).astype(np.float32)
    few = np.where(generator.random((30, columns)) < 0.002, 1.0, 0.0).astype(np.float32)
    few[:, -1] = 2.0  # in the rest that fills no group
    for scores in (tied, few, -tied, np.zeros_like(few)):
        best, chosen = best_columns(torch.from_numpy(scores), k)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(chosen.numpy(), expected)
        np.testing.assert_array_equal(best.numpy(), np.take_along_axis(scores, expected, axis=1))


def test_many_queries_in_threads_give_what_they_give_alone() -> None:
    """Tiles that threads share: the same answers, errors come through, and torch has its threads back."""
    generator = np.random.default_rng(5)
    rows, queries = (small_integers(generator, count, 6) for count in (700, 2100))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        scores, indices = top_k(torch.from_numpy(queries), torch.from_numpy(rows), 30, block=250)
        assert torch.get_num_threads() == 3
        damaged = torch.from_numpy(rows).clone()
        damaged[300, 2] = torch.nan
        with pytest.raises(InputError, match="NaN"):
            top_k(torch.from_numpy(queries), damaged, 30, block=250)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    slow_scores, slow_indices = slow_top_k(queries, rows, 30)
    np.testing.assert_array_equal(indices, slow_indices)
    np.testing.assert_array_equal(scores, slow_scores)
