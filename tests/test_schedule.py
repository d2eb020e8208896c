"""Schedules against the paper's table, and against torch's own schedulers."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from instdisc.errors import InputError
from instdisc.schedule import Schedule


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
