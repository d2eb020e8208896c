"""In what the rows of a bank are kept, and where: chosen by size against what is free, and said in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from instdisc import ranks
from instdisc.data.budgets import free_memory, readable_bytes
from instdisc.errors import InputError

_COMFORTABLE = 0.5  # of what is free: the encoder, its optimizer and the batches come after the bank


@dataclass(frozen=True)
class RowsChoice:
    """dtype and storage as `MemoryBank` takes them; why: one sentence for the person."""

    dtype: torch.dtype
    storage: str
    why: str


def choose_rows(instances: int, dim: int, device: torch.device, dtype: str, storage: str) -> RowsChoice:
    """What was asked for; where that is "auto", the first that takes at most half of what is free on every rank.

    dtype "auto": float32 in memory, float16 in memory, then float32 on disk, where the numbers stay what they are; a
    GPU's rows are in its memory, and the last resort is int8. Any other dtype is never changed.
    """
    host = device.type == "cpu"
    if storage == "disk" and not host:
        raise InputError(f"Rows on disk are for training on a CPU, not on {device.type}: leave bank_storage to auto.")
    smaller = ["float16"] if host else ["float16", "int8"]
    ways = [(kind, "memory") for kind in (["float32", *smaller] if dtype == "auto" else [dtype])]
    if host:
        ways.append(("float32" if dtype == "auto" else dtype, "disk"))
    ways = [way for way in ways if storage in ("auto", way[1])]
    first, last = ranks.share(instances, of=0)  # the largest share: all ranks choose alike
    free, passed = free_memory(device), ""
    for kind, where in ways:
        chosen = getattr(torch, kind)
        size = (last - first) * (dim * chosen.itemsize + (4 if chosen == torch.int8 else 0))
        each = " a process" if ranks.world() > 1 else ""
        fits = where == "disk" or not ranks.any_rank(size > _COMFORTABLE * free)
        if fits or (kind, where) == ways[-1]:
            on = "in memory" if where == "memory" else "in a memory-mapped file"
            asked = " as asked for" if len(ways) == 1 else ""
            return RowsChoice(
                chosen, where, f"{instances:,} rows in {kind}, {readable_bytes(size)}{each}, {on}{asked}{passed}."
            )
        passed = passed or f", as {kind} in memory would take {readable_bytes(size)} of {readable_bytes(free)} free"
    raise AssertionError("there is always a way")
