"""Between the host and a device: sent without waiting, fetched with one wait, and constants that stay there.

The host runs ahead of a GPU: it hands over work and goes on. Where it waits, for a number or for a copy to end, the
device runs out of work. On a CPU all of this is nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """The same on a device; the host does not wait until it is there. `values` must not be written to afterwards."""
    if values.device.type != "cpu" or device.type == "cpu":
        return values.to(device)
    # Page-locked memory is what lets a copy to a GPU run beside its work; torch keeps such blocks for the next one.
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=device.type != "mps")


class Upload:
    """A tensor of the host on its way to a device: on CUDA by a stream of its own, beside what the device computes.

    `values` must be page-locked there, and not be written to afterwards.
    """

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self._stream = _upload_stream(device) if device.type == "cuda" and values.device.type == "cpu" else None
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            self._there = values.to(device, non_blocking=device.type != "mps")

    def result(self) -> Tensor:
        """It, on the device: what is asked of it from now on comes after the copy, and the host does not wait."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._there.device)
            current.wait_stream(self._stream)
            self._there.record_stream(current)  # else the next one could have its memory too soon
        return self._there


@lru_cache(maxsize=16)
def _upload_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


def fetch(*tensors: Tensor) -> list[Tensor]:
    """The same on the CPU, after one wait for all of them; they are on one device."""
    # A copy that waits has what was asked for before it on the same queue too.
    ahead = [tensor.to("cpu", non_blocking=tensor.device.type != "mps") for tensor in tensors[:-1]]
    return [*ahead, *(tensor.cpu() for tensor in tensors[-1:])]


def constant(numbers: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of these numbers (a number, or tuples of them), which nobody may write to: made once on a device."""
    return torch.tensor(numbers, dtype=dtype) if device.type == "cpu" else _kept(numbers, device, dtype)


@lru_cache(maxsize=256)
def _kept(numbers: Any, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


class Arriving:
    """A copy of `tensor` that is on its way to the host, whatever the device is given to do meanwhile."""

    def __init__(self, tensor: Tensor) -> None:
        on_cuda = tensor.device.type == "cuda"
        self._copy = tensor.to("cpu", non_blocking=tensor.device.type != "mps")
        self._arrived = torch.cuda.Event() if on_cuda else None
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def result(self) -> Tensor:
        """It, on the CPU, once it is there: the host waits for what came before it, and for nothing since."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
