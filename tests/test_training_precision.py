"""The short trial that chooses the precision: in turns, so that a busy machine does not choose."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from tiny_encoders import tiny

from instdisc.encoder import Encoder
from instdisc.training import choose_precision
from instdisc.training.precision import _images_per_second


def slow(float32: float, bfloat16: float, busy: int = 0) -> Encoder:
    """An encoder that takes so many milliseconds more, and 60 again while the machine is busy: in `busy` passes."""
    encoder, passes = tiny(), iter(range(10_000))

    def wait(*_: Any) -> None:
        own = (float32, bfloat16)[torch.is_autocast_enabled("cpu")]
        time.sleep((own + 60 * (next(passes) < busy)) / 1000)

    encoder.register_forward_pre_hook(wait)
    return encoder


@pytest.mark.parametrize("busy", [0, 5, 9])
@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_the_faster_is_chosen_though_the_machine_was_busy(faster: str, busy: int) -> None:
    times = (0, 30) if faster == "float32" else (30, 0)
    chosen = choose_precision(slow(*times, busy), torch.device("cpu"), "auto", 8)
    assert chosen.precision == faster
    assert chosen.why.startswith(faster)


def test_what_is_alike_is_tried_more_often_but_not_for_ever() -> None:
    started = time.monotonic()
    speeds = _images_per_second(slow(20, 20), torch.device("cpu"), 8)
    assert max(speeds.values()) < 1.3 * min(speeds.values())
    assert time.monotonic() - started < 5


def test_what_was_asked_for_is_taken_untried() -> None:
    chosen = choose_precision(slow(1000, 1000), torch.device("cpu"), "float32", 8)
    assert chosen.precision == "float32"
