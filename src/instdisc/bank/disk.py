"""Rows in a memory-mapped file of no name: what memory can't hold, the system reads and writes back by pages.

The file has no name in any folder, so that a killed process leaves nothing: the checkpoint is the truth, and a resumed
run makes the file again. All of its room is taken at the start: a full disk is a sentence then, and no SIGBUS later.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path

import torch

from instdisc.errors import InputError, advice
from instdisc.shapes import Tensor
from instdisc.system import readable_bytes

_MOST = 1 << 16  # rows asked for at once: 256 MB of pages; who wants more reads in order, and the system reads ahead
_ZEROS = 1 << 24


class DiskRows:
    """`rows` (rows, dim) lie in a file below `folder` (the system's place for temporary files without)."""

    def __init__(self, rows: int, dim: int, dtype: torch.dtype, folder: Path | None) -> None:
        self._width = dim * dtype.itemsize
        size = max(1, rows * self._width)
        location = tempfile.gettempdir() if folder is None else folder
        try:
            with tempfile.TemporaryFile(dir=location, prefix=".bank-") as file:
                _take_room(file.fileno(), size)
                self._map = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise InputError(
                f"The rows of the bank need {readable_bytes(size)} of disk in {location} and can't have it "
                f"({error.strerror}): {advice(error)}."
            ) from None
        # torch.frombuffer refuses to begin at the end
        self.rows: Tensor = torch.frombuffer(self._map, dtype=dtype, count=size // dtype.itemsize)[: rows * dim]
        self.rows = self.rows.view(rows, dim)
        self._asked: Tensor = torch.empty(0, dtype=torch.int64)

    def want(self, positions: Tensor) -> None:
        """Have the pages of these rows read, all at once: a row that is touched later waits for none, or for one.

        Without it each is read when it is touched, one after another. A page is asked for once until `forget`.
        """
        if positions.numel() > _MOST or not hasattr(mmap, "MADV_WILLNEED"):
            return
        firsts = positions.reshape(-1) * self._width
        pages = torch.cat([firsts // mmap.PAGESIZE, (firsts + self._width - 1) // mmap.PAGESIZE]).unique()
        pages = pages[~torch.isin(pages, self._asked)]
        for page in pages.tolist():
            self._map.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, 1)
        self._asked = torch.cat([self._asked, pages])[-_MOST:]

    def forget(self) -> None:
        """A step is over: by the next, what was read may have left the memory."""
        self._asked = torch.empty(0, dtype=torch.int64)


def _take_room(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    for _ in range(math.ceil(size / _ZEROS)):  # macOS and Windows have no such call
        os.write(file, bytes(_ZEROS))
