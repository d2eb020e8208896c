"""The sum over all rows, log Z: in blocks, in shards and in half precision against slow NumPy, and its gradient."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from by_hand import Work, agrees_with, bank_of, tensor_of, unit_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from several_ranks import joined

from instdisc.bank import MemoryBank
from instdisc.bank import partition as bank_room

WORLDS = (2, 3)
# how many rows of 128 numbers, for as many pictures, are looked at together on a CPU
BLOCK = torch.get_num_threads() * bank_room._rows_at_once(128, torch.get_num_threads(), True)


def slow_log_partition(
    features: np.ndarray, rows: np.ndarray, temperature: float, without: np.ndarray | None = None
) -> np.ndarray:
    """log sum_j exp(v_j . f / temperature), one picture at a time, in float64."""
    result = []
    for picture, feature in enumerate(features):
        scores = [float(row @ feature) / temperature for row in rows]
        if without is not None:
            del scores[without[picture]]
        largest = max(scores)
        result.append(largest + np.log(sum(np.exp(score - largest) for score in scores)))
    return np.array(result)


@pytest.mark.parametrize("instances", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.02, 0.016, 0.005])
def test_log_partition_in_blocks_is_the_slow_sum(instances: int, temperature: float) -> None:
    """0.016 and 0.005 take the running maximum: exp(1 / 0.005) is no float32."""
    rows, features = unit_rows(instances, 4, 0), unit_rows(3, 4, 1)
    features[0] = -rows[-1]  # one picture is opposite to a row, one equal to it
    features[1] = rows[0]
    found = bank_of(rows).log_partition(tensor_of(features), temperature)
    np.testing.assert_allclose(found, slow_log_partition(features, rows, temperature), rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.005])
def test_log_partition_without_the_own_row(temperature: float) -> None:
    rows, features = unit_rows(BLOCK + 50, 4, 0), unit_rows(5, 4, 1)
    own = np.array([0, 7, BLOCK - 1, BLOCK, BLOCK + 49])
    features[[1, 3]] = rows[[7, BLOCK]]  # their own rows are the largest terms of all
    found = bank_of(rows).log_partition(tensor_of(features), temperature, without=tensor_of(own))
    np.testing.assert_allclose(found, slow_log_partition(features, rows, temperature, own), rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02, 0.005])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_of_log_partition_by_finite_differences(temperature: float, masked: bool) -> None:
    rows, features = unit_rows(60, 4, 0), unit_rows(3, 4, 1)
    own = np.array([5, 6, 59]) if masked else None
    weights = np.array([1.0, -2.0, 0.5])

    class Weighted:
        def __call__(self, asked: torch.Tensor, indices: torch.Tensor, bank: MemoryBank) -> torch.Tensor:
            without = indices if masked else None
            return (bank.log_partition(asked, temperature, without=without) * tensor_of(weights)).sum()

    agrees_with(
        lambda asked: float(slow_log_partition(asked, rows, temperature, own) @ weights),
        Weighted(),
        features,
        np.array([5, 6, 59]),
        bank_of(rows),
    )


@pytest.mark.parametrize("temperature", [0.1, 0.005])
@pytest.mark.parametrize("masked", [False, True])
def test_some_rows_alone_as_often_as_they_are_named(temperature: float, masked: bool) -> None:
    """The last picture finds none but its own; instances repeat in the rows and among the pictures."""
    rows, features = unit_rows(60, 4, 0), unit_rows(4, 4, 1)
    own, drawn = np.array([5, 5, 6, 59]), np.array([7, 5, 5, 59, 0, 6])
    features[0] = rows[5]
    without = tensor_of(own) if masked else None
    bank = bank_of(rows)

    def slow(asked: np.ndarray) -> np.ndarray:
        kept = [[row for row in drawn if row != own[k] or not masked] for k in range(4)]
        return np.array([slow_log_partition(asked[k : k + 1], rows[kept[k]], temperature)[0] for k in range(4)])

    def weighted(asked: torch.Tensor, _: torch.Tensor, bank: MemoryBank) -> torch.Tensor:
        found = bank.log_partition(asked, temperature, among=tensor_of(drawn), without=without)
        return (found * torch.tensor([1.0, -2.0, 0.5, 1.0])).sum()

    found = bank.log_partition(tensor_of(features), temperature, among=tensor_of(drawn), without=without)
    np.testing.assert_allclose(found, slow(features), rtol=2e-6, atol=3e-6)
    agrees_with(lambda asked: float(slow(asked) @ [1, -2, 0.5, 1]), weighted, features, own, bank)


@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_where_no_row_is_left_the_sum_is_nothing_and_pulls_nowhere(temperature: float) -> None:
    bank, features = bank_of(unit_rows(9, 4, 0)), tensor_of(unit_rows(2, 4, 1)).requires_grad_()
    found = bank.log_partition(features, temperature, among=torch.tensor([3, 3]), without=torch.tensor([3, 4]))
    assert found[0] == -torch.inf and torch.isfinite(found[1])
    found[1:].sum().backward()
    assert features.grad is not None and torch.equal(features.grad[0], torch.zeros(4))


def test_two_terms_of_a_loss_that_ask_the_same_share_the_products_and_no_graph() -> None:
    bank, features = bank_of(unit_rows(60, 4, 0)), tensor_of(unit_rows(3, 4, 1)).requires_grad_()
    with Work() as work:
        first, second = (bank.log_partition(features, 0.1, among=torch.arange(9)) for _ in range(2))
        first.sum().backward()
        second.sum().backward()
    assert sum(count for name, count in work.operations.items() if "mm" in name) == 2
    twice = features.grad
    features.grad = None
    bank_of(unit_rows(60, 4, 0)).log_partition(features, 0.1, among=torch.arange(9)).sum().backward()
    assert features.grad is not None and twice is not None and torch.equal(twice, 2 * features.grad)


@pytest.mark.parametrize(
    "changed", ["features", "rows", "drawn", "without", "temperature", "dtype", "nothing left out"]
)
def test_what_is_kept_of_the_latest_sum_is_never_out_of_date(changed: str) -> None:
    """Each is changed in place, behind what was asked for before."""
    bank, asked = bank_of(unit_rows(60, 4, 0)), tensor_of(unit_rows(3, 4, 1))
    drawn, own, temperature = torch.arange(9), torch.tensor([1, 2, 3]), 0.1
    bank.log_partition(asked, temperature, among=drawn, without=own)
    if changed == "features":
        asked[1].neg_()
    elif changed == "rows":
        bank.rows[5].neg_()
    elif changed == "drawn":
        drawn[4] = 30
    elif changed == "without":
        own[0] = 8
    elif changed == "dtype":
        asked = asked.bfloat16()
    elif changed == "temperature":
        temperature = 0.2
    without = None if changed == "nothing left out" else own
    found = bank.log_partition(asked, temperature, among=drawn, without=without)
    kept = [drawn.numpy()[(drawn != own[k]).numpy() | (without is None)] for k in range(3)]
    rows, features = bank.rows.numpy(), asked.float().numpy()
    slow = [slow_log_partition(features[k : k + 1], rows[kept[k]], temperature)[0] for k in range(3)]
    np.testing.assert_allclose(found, slow, rtol=2e-6, atol=3e-6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), block=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_what_a_cpu_looks_up_and_a_gpu_compares_is_the_same(seed: int, block: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(seed)
    drawn, own = tensor_of(random.integers(0, 6, 12)), tensor_of(random.integers(0, 6, 5))
    for hide in (bank_room.hide_equal(drawn, own, dtype), bank_room.hide_compared(drawn, own)):
        scores = torch.zeros(12, 5, dtype=dtype)
        for first in range(0, 12, block):
            buffer = torch.zeros(min(block, 12 - first) + 1, 5, dtype=dtype)
            hide(buffer, first)
            scores[first : first + block] = buffer[:-1]
        assert torch.equal(scores == -torch.inf, drawn[:, None] == own)


@pytest.mark.parametrize("temperature", [0.07, 0.005])
def test_gradient_by_hand_is_that_of_autograd_through_the_whole_matrix(temperature: float) -> None:
    bank = MemoryBank(2 * BLOCK + 100, 16)
    features = MemoryBank(7, 16, seed=9).rows.requires_grad_()
    (by_hand,) = torch.autograd.grad(bank.log_partition(features, temperature).square().sum(), features)
    plain = (features.double() @ bank.rows.double().T / temperature).logsumexp(1)
    (naive,) = torch.autograd.grad(plain.square().sum(), features)
    torch.testing.assert_close(by_hand, naive, rtol=1e-4, atol=1e-5 * naive.abs().max().item())


@settings(deadline=None, max_examples=40)
@given(
    instances=st.integers(1, 40),
    block=st.integers(1, 9),
    temperature=st.sampled_from([0.005, 0.03, 0.1, 2.0]),
    seed=st.integers(0, 100),
)
def test_any_size_of_block_gives_the_same(instances: int, block: int, temperature: float, seed: int) -> None:
    """Blocks of one chunk a thread, and the last rows, which fill no block, in one."""
    rows, features = unit_rows(instances, 3, seed), unit_rows(2, 3, seed + 1)
    with mock.patch.object(bank_room, "_rows_at_once", return_value=block):
        found = bank_of(rows).log_partition(tensor_of(features), temperature)
    np.testing.assert_allclose(found, slow_log_partition(features, rows, temperature), rtol=3e-6, atol=3e-6)


@settings(deadline=None, max_examples=40)
@given(shards=st.lists(st.integers(0, 9), min_size=1, max_size=4), spread=st.sampled_from([0.5, 20.0, 200.0]))
def test_parts_of_the_rows_add_up_to_the_whole(shards: list[int], spread: float) -> None:
    """References and sums of shards, also of empty ones, merged as the ranks merge them."""
    rows, queries = unit_rows(sum(shards) + 1, 3, 0), tensor_of(unit_rows(2, 3, 1) * spread)
    parts = np.split(rows, np.cumsum(shards))
    each = [bank_room._sums_over_rows(queries, tensor_of(part), None) for part in parts]
    reference = torch.stack([part[0] for part in each]).amax(0)
    sums, weighted = (sum(part[what] * (part[0] - reference).exp2() for part in each) for what in (1, 2))
    scores = queries.double().numpy() @ rows.T
    powers = np.exp2(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(
        (reference + sums.log2())[:, 0], scores.max(1) + np.log2(powers.sum(1)), rtol=3e-6, atol=3e-6
    )
    np.testing.assert_allclose(weighted / sums, powers @ rows / powers.sum(1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_longer_features_and_zero_features_have_their_sums_too() -> None:
    rows, features = unit_rows(30, 4, 0), unit_rows(3, 4, 1)
    features[0] *= 0
    features[1] *= 9  # 2 * 9 / 0.1 is past what the fixed maximum can hold
    found = bank_of(rows).log_partition(tensor_of(features), 0.1)
    np.testing.assert_allclose(found, slow_log_partition(features, rows, 0.1), rtol=2e-6)
    assert found[0].item() == pytest.approx(np.log(30))
    assert bank_of(rows).log_partition(torch.empty(0, 4), 0.1).shape == (0,)


@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_a_nan_stays_with_its_picture(temperature: float) -> None:
    """The loop must see it and stop; the other pictures' answers are not touched."""
    rows, features = unit_rows(30, 4, 0), unit_rows(3, 4, 1)
    clean = bank_of(rows).log_partition(tensor_of(features), temperature)
    features[1, 2] = np.nan
    found = bank_of(rows).log_partition(tensor_of(features), temperature)
    assert torch.isnan(found[1])
    torch.testing.assert_close(found[[0, 2]], clean[[0, 2]])


@pytest.mark.fault("`exp(1/τ)` in half precision: inf")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_summed_in_float32(dtype: torch.dtype) -> None:
    bank = MemoryBank(3 * BLOCK, 8, dtype=dtype)
    features = bank.rows[:4].float()
    assert torch.isinf(torch.tensor(1 / 0.07).exp().half()), "the fault that is avoided"
    found = bank.log_partition(features, 0.07)
    exact = slow_log_partition(features.double().numpy(), bank.rows.double().numpy(), 0.07)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=3e-6)


@pytest.mark.fault("`exp(1/τ)` in half precision: inf")
def test_a_callers_autocast_does_not_reach_the_sums() -> None:
    bank, features = MemoryBank(3000, 8), MemoryBank(5, 8, seed=3).rows
    exact = bank.log_partition(features, 0.07), bank.scores(features, torch.arange(9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = bank.log_partition(features, 0.07), bank.scores(features, torch.arange(9))
    assert torch.equal(exact[0], within[0])
    assert torch.equal(exact[1], within[1])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    "what", ["log_partition", "without", "cold", "half_partition", "empty_partition", "tiny_partition", "tiny_cold"]
)
def test_log_partition_over_shards_is_that_of_one_process(world: int, what: str) -> None:
    torch.testing.assert_close(joined(world)[f"bank.{what}"], joined(1)[f"bank.{what}"], rtol=1e-6, atol=2e-6)


@pytest.mark.fault("`all_reduce` without a backward: gradient off by 1/world_size though the loss is right")
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("what", ["scores", "private", "log_partition", "without", "cold"])
def test_gradients_over_shards_are_those_of_one_process(world: int, what: str) -> None:
    ours, one = joined(world)[f"bank.{what}_gradient"], joined(1)[f"bank.{what}_gradient"]
    torch.testing.assert_close(ours, one, rtol=1e-5, atol=2e-6 * one.abs().max().item())
