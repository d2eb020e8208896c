"""The short trial that chooses the precision: in turns, so that a busy machine does not choose."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from instdisc.training import choose_precision
from instdisc.training.precision import _images_per_second


class Slow(nn.Module):
    """Takes some milliseconds by precision, and 40 more while the machine is busy: in its first `busy` passes."""

    def __init__(self, float32: float, bfloat16: float, busy: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.preprocessing = SimpleNamespace(size=4)
        self.milliseconds, self.busy, self.passes = (float32, bfloat16), busy, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        wait = self.milliseconds[torch.is_autocast_enabled("cpu")]
        time.sleep((wait + 40 * (self.passes < self.busy)) / 1000)
        self.passes += 1
        return images.mean() * self.weight


@pytest.mark.parametrize("busy", [0, 5, 9])
@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_the_faster_is_chosen_though_the_machine_was_busy(faster: str, busy: int) -> None:
    times = (4, 12) if faster == "float32" else (12, 4)
    chosen = choose_precision(Slow(*times, busy), torch.device("cpu"), "auto", 8)
    assert chosen.precision == faster
    assert chosen.why.startswith(faster)


def test_what_is_alike_is_tried_more_often_but_not_for_ever() -> None:
    started = time.monotonic()
    speeds = _images_per_second(Slow(5, 5, 0), torch.device("cpu"), 8)
    assert max(speeds.values()) < 1.3 * min(speeds.values())
    assert time.monotonic() - started < 5


def test_what_was_asked_for_is_taken_untried() -> None:
    chosen = choose_precision(Slow(1000, 1000, 0), torch.device("cpu"), "float32", 8)
    assert chosen.precision == "float32"
