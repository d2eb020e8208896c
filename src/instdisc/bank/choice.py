"""In what the rows of a bank are kept, and where: chosen by size against what is free, and said in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from instdisc import ranks
from instdisc.errors import InputError
from instdisc.system import free_memory, readable_bytes

_ON = {"memory": "in memory", "host": "in the host's memory", "disk": "in a memory-mapped file"}
_COMFORTABLE = 0.5  # of what is free: the encoder, its optimizer and the batches come after the bank


@dataclass(frozen=True)
class RowsChoice:
    """dtype and storage as `MemoryBank` takes them; why: one sentence for the person.

    Examples:
        >>> import torch
        >>> from instdisc.bank import MemoryBank, choose_rows
        >>> choice = choose_rows(1000, 128, torch.device("cpu"), "float16", "memory")
        >>> choice.why
        '1,000 rows in float16, 256 kB, in memory as asked for.'
        >>> MemoryBank(1000, 128, dtype=choice.dtype, storage=choice.storage).rows.dtype
        torch.float16
    """

    dtype: torch.dtype
    storage: str
    why: str


def choose_rows(instances: int, dim: int, device: torch.device, dtype: str, storage: str) -> RowsChoice:
    """What was asked for; where that is "auto", the first that takes at most half of what is free on every rank.

    dtype "auto": float32 in the device's memory, then float16; on disk the numbers stay float32. Beside a GPU, int8 in
    its memory comes before the slower ways, float32 and float16 in the host's memory. Any other dtype is never changed.

    Examples:
        >>> import torch
        >>> from instdisc.bank import choose_rows
        >>> choice = choose_rows(1000, 128, torch.device("cpu"), "auto", "auto")
        >>> choice.dtype, choice.storage
        (torch.float32, 'memory')
    """
    if device.type == "cpu":
        if storage == "host":
            raise InputError("Rows in the host's memory are for training on a GPU: leave bank_storage to auto.")
        kinds = {"memory": ["float32", "float16"], "disk": ["float32"]}
    else:
        kinds = {"memory": ["float32", "float16", "int8"], "host": ["float32", "float16"], "disk": ["float32"]}
    ways = [
        (kind, where)
        for where in (kinds if storage == "auto" else [storage])
        for kind in (kinds[where] if dtype == "auto" else [dtype])
    ]
    first, last = ranks.share(instances, of=0)  # the largest share: all ranks choose alike
    passed = ""
    for kind, where in ways:
        chosen = getattr(torch, kind)
        size = (last - first) * (dim * chosen.itemsize + (4 if chosen == torch.int8 else 0))
        each = " a process" if ranks.world() > 1 else ""
        free = free_memory(device if where == "memory" else torch.device("cpu"))
        fits = where == "disk" or not ranks.any_rank(size > _COMFORTABLE * free)
        if fits or (kind, where) == ways[-1]:
            on = _ON[where] + (" as asked for" if len(ways) == 1 else "")
            return RowsChoice(
                chosen, where, f"{instances:,} rows in {kind}, {readable_bytes(size)}{each}, {on}{passed}."
            )
        passed = passed or f", as {kind} in memory would take {readable_bytes(size)} of {readable_bytes(free)} free"
    raise AssertionError("there is always a way")
