"""Forward and backward of an encoder on made pictures, timed on this device: how a run chooses what depends on it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch

from instdisc.encoder import Encoder

_ROUNDS, _MORE_ROUNDS, _MORE_SECONDS = 3, 12, 5.0
_CLEAR = 1.3  # times as fast as the slowest: below, a busy machine may have decided, and more rounds are tried


class Trial:
    """A copy of the encoder and `batch` pictures: a trial leaves no trace in weights, statistics or random state."""

    def __init__(self, encoder: Encoder, device: torch.device, batch: int) -> None:
        size = encoder.preprocessing.size
        images = torch.linspace(-2, 2, batch * 3 * size * size, device=device).reshape(batch, 3, size, size)
        self.device, self.images = device, images
        self.module: torch.nn.Module = copy.deepcopy(encoder).to(device).train()
        if device.type != "mps":  # as the training loop lays it out
            self.module = self.module.to(memory_format=torch.channels_last)
            self.images = images.contiguous(memory_format=torch.channels_last)

    def step(self, precision: str, module: Any = None) -> None:
        """Forward and backward, until the device has done it. module: another in the place of the copy."""
        module = self.module if module is None else module  # a compiled one asks for its length where it is tested
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            features = module(self.images)
        features.sum().backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def fastest(ways: dict[str, Callable[[], None]], *, more: bool = True) -> dict[str, float]:
    """The least seconds of each. In turns: what else the machine does slows all alike.

    more: try again and again, for some seconds, where none is clearly the slowest.
    """
    least = dict.fromkeys(ways, float("inf"))
    began = time.perf_counter()
    for number in range(_MORE_ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:  # the first one pays for allocations and kernel choice
                least[name] = min(least[name], time.perf_counter() - started)
        clear = not more or len(ways) == 1 or max(least.values()) > _CLEAR * min(least.values())
        if number >= _ROUNDS and (clear or time.perf_counter() - began > _MORE_SECONDS):
            break
    return least
