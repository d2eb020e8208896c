"""The short trial that chooses the precision: in turns, so that a busy machine does not choose."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_encoders import tiny

from instdisc.training import choose_precision, trial
from instdisc.training.precision import _images_per_second
from instdisc.training.trial import Trial


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Steps that take so many milliseconds, by a clock of their own, in place of real ones.

    each: milliseconds a picture more in bfloat16. busy: in so many steps the machine takes 60 again. Answers the
    numbers of pictures of all steps, a list that grows.
    """

    def made(float32: float, bfloat16: float, busy: int = 0, each: float = 0) -> list[int]:
        seen, now = list[int](), [0.0]

        def step(taken: Trial, precision: str, module: Any = None) -> None:
            own = float32 if precision == "float32" else bfloat16 + each * len(taken.images)
            now[0] += (own + 60 * (len(seen) < busy)) / 1000
            seen.append(len(taken.images))

        monkeypatch.setattr(Trial, "step", step)
        monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        return seen

    return made


@pytest.mark.parametrize("busy", [0, 5, 9])
@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_the_faster_is_chosen_though_the_machine_was_busy(
    slow: Callable[..., list[int]], faster: str, busy: int
) -> None:
    slow(*((20, 50) if faster == "float32" else (50, 20)), busy)
    chosen = choose_precision(tiny(), torch.device("cpu"), "auto", 8)
    assert chosen.precision == faster
    assert chosen.why.startswith(faster)


def test_what_is_alike_is_tried_more_often_but_not_for_ever(slow: Callable[..., list[int]]) -> None:
    seen = slow(20, 20)
    speeds = _images_per_second(tiny(), torch.device("cpu"), 8)
    assert max(speeds.values()) < 1.3 * min(speeds.values())
    assert seen.count(8) > 0
    assert len(seen) < 5_000 / 20, "it took five seconds and more"


def test_what_is_hopeless_is_tried_with_few_pictures_only(slow: Callable[..., list[int]]) -> None:
    """A processor without bfloat16 instructions, where 64 pictures would take three seconds and more in each round."""
    seen = slow(5, 5, each=50)
    chosen = choose_precision(tiny(), torch.device("cpu"), "auto", 256)
    assert chosen.precision == "float32"
    assert set(seen) == {4}


def test_a_real_step_runs_in_both() -> None:
    speeds = _images_per_second(tiny(), torch.device("cpu"), 8)
    assert min(speeds.values()) > 0


def test_what_was_asked_for_is_taken_untried(slow: Callable[..., list[int]]) -> None:
    seen = slow(0, 0)
    chosen = choose_precision(tiny(), torch.device("cpu"), "float32", 8)
    assert chosen.precision == "float32"
    assert not seen
