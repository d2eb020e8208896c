"""Schedules against the paper's table and torch's own; growing views against their cost, added up step by step."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise

import pytest
import torch

from instdisc.errors import InputError
from instdisc.schedule import Growth, Schedule


def test_the_paper_drops_the_rate_at_epochs_120_and_160_of_200() -> None:
    step = Schedule("step")
    rates = [0.03 * step.factor(epoch / 200) for epoch in range(200)]
    assert rates[:120] == [0.03] * 120
    assert rates[120:160] == pytest.approx([0.003] * 40)
    assert rates[160:] == pytest.approx([0.0003] * 40)


@pytest.mark.parametrize("epochs", range(1, 121))
def test_a_drop_is_not_missed_by_rounding(epochs: int) -> None:
    """Epoch e counts as at or past 3/5 exactly when 5 e >= 3 epochs, in whole numbers."""
    step = Schedule("step", drops=(0.6,), gamma=0.5)
    for epoch in range(epochs + 1):
        assert step.factor(epoch / epochs) == (0.5 if 5 * epoch >= 3 * epochs else 1.0)


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    ours = Schedule("cosine", final=0.1)
    for epoch in range(51):
        assert ours.factor(epoch / 50) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("kind", ["cosine", "step", "constant"])
def test_warm_up_rises_in_a_line_from_zero_to_the_whole_rate(kind: str) -> None:
    warm = Schedule(kind, warmup=0.1)
    assert [warm.factor(progress) for progress in (0.0, 0.025, 0.05)] == pytest.approx([0, 0.25, 0.5])
    assert warm.factor(0.1) == pytest.approx(1.0)
    assert warm.factor(0.1 - 1e-9) == pytest.approx(1.0)


def test_cosine_after_warm_up_spans_what_is_left() -> None:
    warm = Schedule("cosine", warmup=0.2)
    assert warm.factor(0.6) == pytest.approx(0.5)
    assert warm.factor(1.0) == pytest.approx(0.0)
    rates = [warm.factor(0.2 + 0.8 * part / 100) for part in range(101)]
    assert rates == sorted(rates, reverse=True)


def test_constant_stays_and_progress_outside_the_run_is_its_end() -> None:
    assert Schedule("constant").factor(0.7) == 1.0
    assert Schedule("cosine").factor(1.5) == Schedule("cosine").factor(1.0)
    assert Schedule("cosine").factor(-1.0) == 1.0
    assert math.isclose(Schedule("step").factor(2.0), 0.01)


def test_mistakes_are_told() -> None:
    unchecked = inspect.unwrap(Schedule.__init__)  # under pytest the type checker would speak first
    with pytest.raises(InputError, match="cosine or constant"):
        unchecked(object.__new__(Schedule), "linear")
    for warmup in (-0.1, 1.0):
        with pytest.raises(InputError, match="warm-up"):
            Schedule(warmup=warmup)


GROWTHS = [
    Growth((0.5,), (0.5,)),
    Growth((0.5, 0.75), (0.4, 0.7)),
    Growth((0.25, 0.5, 1.0), (0.1, 0.2, 0.9)),
    Growth((1.0,), (0.3,)),
]


@pytest.mark.parametrize("growth", GROWTHS)
def test_progress_is_the_share_of_the_work_done_step_by_step(growth: Growth) -> None:
    """Each step costs the square of its side: added up, and the side of the next step looked up from it."""
    steps, done, costs, at = 100_000, 0.0, [], []
    for step in range(steps):
        at.append(growth.progress(step / steps))
        costs.append(growth.share(at[-1]) ** 2)
    work = sum(costs)
    for step in range(steps):
        assert at[step] == pytest.approx(done / work, abs=1e-4)
        done += costs[step]
    assert growth.progress(1.0) == pytest.approx(1.0)
    assert growth.mean_cost == pytest.approx(work / steps, rel=1e-3)
    for share, (start, end) in zip((*growth.shares, 1.0), pairwise((0.0, *growth.until, 1.0)), strict=True):
        assert {growth.share(start), growth.share((start + end) / 2), growth.share(end - 1e-6)} == {share}
    assert growth.share(1.0) == 1.0


def test_without_growth_progress_is_the_share_of_the_steps_to_the_bit() -> None:
    assert [Growth().progress(step / 77) for step in range(78)] == [step / 77 for step in range(78)]
    assert (Growth().share(0.0), Growth().mean_cost) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("shares", "until", "words"),
    [
        ((0.5,), (), "go together"),
        ((), (0.5,), "go together"),
        ((0.0,), (0.5,), "shares of the size"),
        ((0.75, 0.5), (0.3, 0.5), "smaller ones first"),
        ((1.5,), (0.5,), "shares of the size"),
        ((math.nan,), (0.5,), "shares of the size"),
        ((0.5,), (1.0,), "fractions of the run"),
        ((0.5,), (0.0,), "fractions of the run"),
        ((0.5, 0.7), (0.6, 0.5), "fractions of the run"),
        ((0.5,), (math.nan,), "fractions of the run"),
    ],
)
def test_growth_that_can_not_be_is_refused(shares: tuple[float, ...], until: tuple[float, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Growth(shares, until)
