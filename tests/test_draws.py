"""Counter-based draws: the mixing in Python's big integers, independence of everything but the key, and uniformity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instdisc import draws

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(word: int) -> int:
    """SplitMix64's finaliser in big integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def word_by_hand(seed: int, step: int, stream: int, index: int, column: int) -> int:
    key = 0
    for part in (seed, step, stream):
        key = mix((key + part * GOLDEN + GOLDEN) & MASK)
    row = mix(((index + 1) * GOLDEN + key) & MASK)
    return mix((row + (column + 1) * GOLDEN) & MASK)


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations the statistic of equal expected counts lies above its mean."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    return float((statistic - freedom) / np.sqrt(2 * freedom))


words = st.integers(-(2**70), 2**70)


@given(seed=words, step=words, stream=st.integers(0, 100), index=st.integers(0, 2**40), column=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_the_arithmetic_is_that_of_big_integers(seed: int, step: int, stream: int, index: int, column: int) -> None:
    word = word_by_hand(seed & MASK, step & MASK, stream, index, column)
    key = {"seed": seed, "step": step, "stream": stream}
    assert draws.uniforms(torch.tensor([index]), column + 1, **key)[0, column].item() == (word >> 40) / 2**24
    assert draws.integers(torch.tensor([index]), column + 1, 1000, **key)[0, column].item() == (word >> 2) % 1000


def test_first_finaliser_value_is_the_published_one() -> None:
    """SplitMix64 from state 0 gives e220a8397b1dcdaf, the value in every published test vector."""
    assert draws._mix_word(GOLDEN) == 0xE220A8397B1DCDAF
    assert draws._mix(torch.tensor([GOLDEN - 2**64])).item() & MASK == 0xE220A8397B1DCDAF


def test_a_draw_belongs_to_its_picture_and_column() -> None:
    indices = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    together = draws.uniforms(indices, 9, seed=1, step=2)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draws.uniforms(indices[order], 9, seed=1, step=2), together[order])
    assert torch.equal(draws.uniforms(indices[100:117], 9, seed=1, step=2), together[100:117])
    assert torch.equal(draws.uniforms(indices, 4, seed=1, step=2), together[:, :4]), (
        "more columns change no earlier one"
    )
    assert torch.equal(draws.uniforms(indices.int(), 9, seed=1, step=2), together)
    assert draws.uniforms(indices[:0], 9, seed=1, step=2).shape == (0, 9)


def test_no_global_generator_is_read_or_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draws.uniforms(torch.arange(10), 3, seed=1, step=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(draws.uniforms(torch.arange(10), 3, seed=1, step=2), first)


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"seed": -1}, {"step": 1}, {"stream": 1}, {"seed": 1, "step": -1}],
    ids=str,
)
def test_another_seed_step_or_stream_gives_unrelated_draws(other: dict[str, int]) -> None:
    indices = torch.arange(20_000)
    key = {"seed": 0, "step": 0, "stream": 0}
    one = draws.uniforms(indices, 4, **key).double().flatten()
    two = draws.uniforms(indices, 4, **{**key, **other}).double().flatten()
    # the correlation of 80,000 independent pairs has a standard deviation of 0.0035
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.0177
    assert (one == two).float().mean() < 1e-4


@pytest.mark.parametrize("columns", [1, 8])
def test_uniforms_are_uniform_and_independent(columns: int) -> None:
    drawn = draws.uniforms(torch.arange(400_000 // columns), columns, seed=7, step=3).double().numpy()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    flat = drawn.flatten()
    assert abs(chi_square(np.bincount((flat * 256).astype(int), minlength=256))) < 5
    deviation = np.sqrt(1 / 12 / flat.size)
    assert abs(flat.mean() - 0.5) < 5 * deviation
    assert abs(flat.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / flat.size)
    # pairs of neighbours, as pictures and as columns, fill the square
    for first, second in [(drawn[:-1], drawn[1:])] + ([(drawn[:, :-1], drawn[:, 1:])] if columns > 1 else []):
        cell = (first.flatten() * 16).astype(int) * 16 + (second.flatten() * 16).astype(int)
        assert abs(chi_square(np.bincount(cell, minlength=256))) < 5
    bits = ((flat * 2**24).astype(int)[:, None] >> np.arange(24)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(flat.size)


@pytest.mark.parametrize("high", [1, 2, 3, 50, 1000])
def test_integers_are_uniform(high: int) -> None:
    drawn = draws.integers(torch.arange(1000), 100, high, seed=1, step=1)
    assert drawn.dtype == torch.int64
    counts = np.bincount(drawn.flatten().numpy(), minlength=high)
    assert counts.size == high
    assert high == 1 or abs(chi_square(counts)) < 5


def test_integers_reach_beyond_32_bits() -> None:
    high = 2**50
    drawn = draws.integers(torch.arange(1000), 10, high, seed=1, step=1).double() / high
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.015


def test_integers_need_a_range() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        draws.integers(torch.arange(3), 2, 0, seed=0, step=0)


def test_permutation_orders_every_picture_once_and_is_a_function_of_seed_and_epoch() -> None:
    order = draws.permutation(1000, seed=3, step=5)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, draws.permutation(1000, seed=3, step=5))
    for other in (draws.permutation(1000, seed=4, step=5), draws.permutation(1000, seed=3, step=6)):
        assert (order == other).mean() < 0.02
    assert draws.permutation(0, seed=3, step=5).size == 0
    assert draws.permutation(1, seed=3, step=5).tolist() == [0]


def test_permutations_are_uniform() -> None:
    places = np.array([draws.permutation(6, seed=1, step=epoch) for epoch in range(3000)])
    for column in places.T:
        assert abs(chi_square(np.bincount(column, minlength=6))) < 5
