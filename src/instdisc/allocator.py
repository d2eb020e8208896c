"""How this process's C library hands out memory: kept for the next step, or given back once a crowd has gone.

A training step on a CPU frees the same hundreds of megabytes and asks for them again. By default glibc maps every large
block afresh from the kernel, which zeroes each page again: that cost a sixth of a small network's step where it was
tried, and embedding took 1.4 times as long for pictures of 32 pixels, 1.2 times at 96.
Keeping freed memory gives what preloading another allocator (tcmalloc, jemalloc) gives, without one.

A server is asked by many threads, and glibc gives each its own arena and takes little of it back: after floods of
requests the page's server held 1.6 GB, and with two arenas 0.9 (0.65 when it starts), at the same speed.
"""

from __future__ import annotations

import ctypes
import os
import sys

# The parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8


def keep_freed_memory(device: str = "cpu") -> bool:
    """Tell glibc to keep what is freed; whether it was told. The process then stays as large as it ever was.

    device: where the work is done, as torch.device.type names it. Does nothing for another than a CPU, off Linux, with
    another C library or allocator, or where INSTDISC_ALLOCATOR=system is set.
    """
    return device == "cpu" and _tell({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20, _ARENA_MAX: 1})


def give_back_freed_memory() -> bool:
    """Tell glibc to share two arenas among all threads, and what is freed with the system; whether it was told.

    To be called before there are threads. Does nothing where `keep_freed_memory` does nothing.
    """
    return _tell({_ARENA_MAX: 2, _MMAP_THRESHOLD: 4 << 20, _TRIM_THRESHOLD: 64 << 20})


def _tell(wanted: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux") or os.environ.get("INSTDISC_ALLOCATOR") == "system":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    taken = [mallopt(parameter, value) == 1 for parameter, value in wanted.items()]
    return all(taken)
