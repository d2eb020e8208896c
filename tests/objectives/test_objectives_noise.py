"""Uniform noise: its shapes, its distribution, and what it depends on."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from by_hand import Allocations

from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives.noise import Noise, is_own


def test_shared_noise_is_one_draw_and_private_noise_one_for_each_picture() -> None:
    bank, own = MemoryBank(100, 4), torch.tensor([5, 9, 5])
    shared = Noise(40, "shared", 0, None).indices(own, bank)
    private = Noise(40, "private", 0, None).indices(own, bank)
    assert shared.shape == (40,)
    assert private.shape == (3, 40)
    assert not torch.equal(private[0], private[1])
    for drawn in (shared, private):
        assert drawn.dtype == torch.int64
        assert drawn.min() >= 0
        assert drawn.max() < 100


@pytest.mark.parametrize("kind", ["shared", "private"])
def test_noise_is_uniform_over_all_rows(kind: str) -> None:
    bank = MemoryBank(100, 4)
    noise, own = Noise(5000, kind, 0, None), torch.arange(4)
    drawn = []
    for bank.updates in range(20):
        drawn.append(noise.indices(own, bank).flatten().numpy())
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    assert counts.size == 100
    expected = counts.sum() / 100
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - 99) < 5 * np.sqrt(2 * 99), "chi-square with 99 degrees of freedom"


def test_noise_hits_the_own_row_as_often_as_any_other() -> None:
    bank, own = MemoryBank(50, 4), torch.arange(50)
    noise = Noise(2000, "private", 0, None)
    hits = is_own(noise.indices(own, bank), own).double()
    assert hits.mean().item() == pytest.approx(1 / 50, abs=5 * np.sqrt(1 / 50 / hits.numel()))


def test_shared_noise_depends_on_seed_and_update_only() -> None:
    bank = MemoryBank(1000, 4)
    noise = Noise(64, "shared", 0, None)
    drawn = noise.indices(torch.tensor([1, 2]), bank)
    assert torch.equal(drawn, noise.indices(torch.tensor([7]), bank)), "every rank, every micro-batch"
    assert torch.equal(drawn, Noise(64, "shared", 0, None).indices(torch.tensor([7]), bank))
    assert not torch.equal(drawn, Noise(64, "shared", 1, None).indices(torch.tensor([7]), bank))
    bank.update(torch.tensor([1]), torch.ones(1, 4))
    assert not torch.equal(drawn, noise.indices(torch.tensor([1, 2]), bank)), "a fresh draw each step"


def test_private_noise_belongs_to_the_picture() -> None:
    bank, noise = MemoryBank(1000, 4), Noise(64, "private", 0, None)
    drawn = noise.indices(torch.tensor([1, 2, 3]), bank)
    assert torch.equal(noise.indices(torch.tensor([3, 1]), bank), drawn[[2, 0]])
    bank.updates += 1
    assert not torch.equal(noise.indices(torch.tensor([3, 1]), bank), drawn[[2, 0]])


@pytest.mark.parametrize(("kind", "count"), [("shared", 6), ("private", 18)])
def test_draw_replaces_the_random_rows(kind: str, count: int) -> None:
    asked = []

    def draw(count: int) -> torch.Tensor:
        asked.append(count)
        return torch.arange(count)

    drawn = Noise(6, kind, 0, draw).indices(torch.tensor([4, 5, 6]), MemoryBank(100, 4))
    assert asked == [count]
    assert torch.equal(drawn.flatten(), torch.arange(count))
    assert drawn.shape == ((6,) if kind == "shared" else (3, 6))


def test_own_rows_are_marked_in_both_kinds() -> None:
    own = torch.tensor([4, 5])
    assert is_own(torch.tensor([5, 4, 4]), own).tolist() == [[False, True, True], [True, False, False]]
    assert is_own(torch.tensor([[5, 4], [5, 5]]), own).tolist() == [[False, True], [True, True]]


@pytest.mark.fault("a Python loop over n to build a sampler for uniform noise")
def test_a_draw_costs_the_same_for_any_number_of_rows() -> None:
    """Nothing is built, and nothing larger than the draw is made, for ten thousand million rows."""

    class Huge(MemoryBank):
        def __init__(self) -> None:
            self.instances, self.updates = 10**10, 0

    noise = Noise(64, "shared", 0, None)
    with Allocations() as made:
        drawn = noise.indices(torch.tensor([0]), Huge())
    assert made.largest <= 64
    assert drawn.max() > 2**32


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match="at least one negative"):
        Noise(0, "shared", 0, None)
    unchecked = inspect.unwrap(Noise.__init__)  # under pytest the type checker would speak first
    with pytest.raises(InputError, match="shared.*private"):
        unchecked(object.__new__(Noise), 5, "common", 0, None)
