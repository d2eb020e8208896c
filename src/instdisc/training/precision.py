"""Which precision a step runs in: float32 or bfloat16 autocast, whichever a short trial on this device shows faster."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch

from instdisc import ranks
from instdisc.encoder import Encoder


@dataclass(frozen=True)
class Choice:
    """precision: "float32" or "bfloat16"; why: one sentence for the person."""

    precision: str
    why: str


def choose_precision(encoder: Encoder, device: torch.device, asked: str, batch: int) -> Choice:
    """What was asked for, or for "auto" the faster of the two on this device, timed on made pictures by rank 0."""
    if asked != "auto":
        return Choice(asked, f"{asked}, as asked for.")
    speeds = None
    if ranks.is_main():
        batch = max(2, min(batch, 64))  # batch statistics need two
        speeds = _images_per_second(encoder, device, batch)
    speeds = ranks.broadcast_object(speeds)
    best = max(_PRECISIONS, key=lambda precision: speeds[precision])
    other = next(precision for precision in _PRECISIONS if precision != best)
    return Choice(
        best,
        f"{best}: {speeds[best]:,.0f} images/s in a short trial, where {other} gave {speeds[other]:,.0f}.",
    )


_PRECISIONS = ("float32", "bfloat16")
_ROUNDS, _MORE_ROUNDS, _MORE_SECONDS = 3, 12, 5.0
_CLEAR = 1.3  # times as fast as the other: below, a busy machine may have decided, and more rounds are tried


def _images_per_second(encoder: Encoder, device: torch.device, batch: int) -> dict[str, float]:
    """Forward and backward in turns on a copy, so the trial leaves no trace in weights, statistics or random state.

    In turns, and by the fastest of each: what else the machine does slows both alike.
    """
    module = copy.deepcopy(encoder).to(device).train()
    size = encoder.preprocessing.size
    images = torch.linspace(-2, 2, batch * 3 * size * size, device=device).reshape(batch, 3, size, size)
    if device.type != "mps":  # as the training loop lays it out
        module = module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    fastest = dict.fromkeys(_PRECISIONS, float("inf"))
    began = time.perf_counter()
    for number in range(_MORE_ROUNDS + 1):
        for precision in _PRECISIONS:
            _wait(device)
            started = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                features = module(images)
            features.sum().backward()
            _wait(device)
            if number:  # the first one pays for allocations and kernel choice
                fastest[precision] = min(fastest[precision], time.perf_counter() - started)
        clear = max(fastest.values()) > _CLEAR * min(fastest.values())
        if number >= _ROUNDS and (clear or time.perf_counter() - began > _MORE_SECONDS):
            break
    return {precision: batch / seconds for precision, seconds in fastest.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
