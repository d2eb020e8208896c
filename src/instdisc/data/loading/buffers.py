"""Memory that this process and its children both see: children write pixels, and nobody copies them.

    shared = Shared()
    block = shared.block(1 << 20)            # block.content: a uint8 array
    Popen(..., pass_fds=[shared.handle])     # there: Mapped(handle).block(block.offset, block.length)

A block is used again when the last array or tensor that looks at it is gone. The memory is a file without a name: in
memory where the system can (Linux: it needs no /dev/shm, which is tiny in containers), else in the temporary folder.
This file must not import torch.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

_UNIT = 1 << 20  # batches differ by a picture: rounded up, they use one another's blocks


@dataclass(frozen=True)
class Block:
    """A piece of the memory. length: with what it was rounded up by."""

    content: UInt8[np.ndarray, " bytes"]
    offset: int
    length: int


class Shared:
    """The side that hands out blocks. handle: the file descriptor that children inherit."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.handle = os.memfd_create("instdisc-pixels")
        else:
            with tempfile.TemporaryFile() as file:
                self.handle = os.dup(file.fileno())
        self._free: dict[int, deque[tuple[int, mmap.mmap]]] = defaultdict(deque)
        self._end = 0
        self._close = weakref.finalize(self, os.close, self.handle)

    def block(self, size: int) -> Block:
        """`size` bytes of any content."""
        length = max(1, -(-size // _UNIT)) * _UNIT
        free = self._free[length]
        try:
            offset, view = free.pop()
        except IndexError:
            offset, self._end = self._end, self._end + length
            os.ftruncate(self.handle, self._end)
            view = mmap.mmap(self.handle, length, offset=offset)
        # Every view of an array keeps the first one alive, and so does a tensor made of it.
        whole = np.frombuffer(view, np.uint8)
        weakref.finalize(whole, free.append, (offset, view)).atexit = False
        return Block(whole[:size], offset, length)

    def close(self) -> None:
        """Give the memory back as soon as nobody looks at it."""
        self._free.clear()
        self._close()


class Mapped:
    """The side of a child."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._views: dict[tuple[int, int], np.ndarray] = {}

    def block(self, offset: int, length: int) -> UInt8[np.ndarray, " length"]:
        """The block of that name; it stays mapped."""
        if (offset, length) not in self._views:
            self._views[offset, length] = np.frombuffer(mmap.mmap(self._handle, length, offset=offset), np.uint8)
        return self._views[offset, length]
