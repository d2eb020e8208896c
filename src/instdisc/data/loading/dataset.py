"""What training sees of a data set: pixels and the numbers of their rows, never labels.

    pictures = open_pictures(source, size=32, device=torch.device("cuda"))
    print(pictures.why)                       # 50,000 pictures at 32 px take 154 MB: kept in GPU memory.
    for batch in pictures.batches(order):     # order: one array of instance numbers a batch
        batch.images, batch.indices, batch.waited

Three ways to hold the pixels, all with the same content: on the device ("memory"), decoded once into a file that is
mapped into memory ("cache"), or decoded again in each epoch by other processes ("workers"). The first that fits is
taken, and `why` says so in a sentence.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from instdisc import ranks
from instdisc.data.loading.batches import (
    Batch,
    ByWorkers,
    InCache,
    InMemory,
    Pictures,
    nothing_readable,
    report_unreadable,
)
from instdisc.data.loading.pixel_cache import PixelCache
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.loading.workers import Fetched, Pool, must_stay_here
from instdisc.data.sources.source import Source
from instdisc.data.storage.scan import cache_folder as default_cache_folder
from instdisc.errors import InputError, counted
from instdisc.progress import Bar
from instdisc.system import free_disk, free_memory, readable_bytes, usable_cores

__all__ = ["Batch", "Pictures", "open_pictures"]

_FEW = 2000  # encoded pictures that one process has decoded before others have got going
_PIECE_BYTES = 4 << 20  # of pixels that a process sends at once while a store is filled
_PIECE_ROWS = 256


def open_pictures(
    source: Source,
    size: int,
    device: torch.device | str,
    *,
    storage: str = "auto",
    memory_budget: int | None = None,
    disk_budget: int | None = None,
    cache_folder: Path | str | None = None,
    workers: int | None = None,
    strict: bool = False,
    quarantine: Quarantine | None = None,
) -> Pictures:
    """Make the pictures of a source ready for training, squashed to size x size.

    storage: "auto" takes the first of memory, cache and workers that fits.
    memory_budget: bytes on the device; without it a quarter of what is free there.
    disk_budget: bytes for the cache; without it a fifth of what is free in `cache_folder` (all but a twentieth of it
        where storage="cache" asks for the cache by name).
    cache_folder: where caches are kept for later runs; the user's cache folder without it.
    workers: decoding processes, 0 for none; without it one for each core (one less where training uses the cores too).
    strict: the first unreadable picture raises InputError. quarantine: where unreadable pictures are listed otherwise.
    Raises InputError when no picture can be read, or when asked for memory that is not there.

    Examples:
        >>> import numpy as np
        >>> from instdisc.data import open_pictures, open_source
        >>> source = open_source(np.zeros((5, 20, 30, 3), np.uint8))
        >>> pictures = open_pictures(source, size=16, device="cpu", storage="memory")
        >>> pictures.why
        '5 pictures at 16 px take 3.8 kB: kept in memory.'
        >>> [tuple(batch.images.shape) for batch in pictures.batches(np.array_split(np.arange(5), 2))]
        [(3, 3, 16, 16), (2, 3, 16, 16)]
    """
    if storage not in ("auto", "memory", "cache", "workers"):
        raise InputError(f"storage is {storage!r}: give auto, memory, cache or workers.")
    if size < 1 or (workers is not None and workers < 0):
        raise InputError(f"size is {size} and workers is {workers}: size must be at least 1, workers at least 0.")
    if strict or quarantine is None:
        quarantine = Quarantine(quarantine.path if quarantine else None, strict=strict)
    folder = Path(cache_folder) if cache_folder else default_cache_folder() / "pixels"
    opening = _Opening(source, size, torch.device(device), quarantine, workers, folder, must_stay_here(source))
    # One process decides for all: free memory and disk differ between them, and the instances must not.
    chosen, why_not = ranks.on_main(lambda: opening.choose(storage, memory_budget, disk_budget))
    if chosen == "memory":
        pictures = opening.in_memory()
    elif chosen == "cache":
        pictures = opening.in_cache(why_not)
    else:
        pictures = opening.by_workers(why_not)
    mine = hashlib.sha256(pictures.rows.tobytes()).hexdigest()
    if ranks.any_rank(mine != ranks.broadcast_object(mine)):
        raise InputError(f"The processes could not all read the same pictures of {source.name}: start again.")
    return pictures


@dataclass(frozen=True)
class _Opening:
    """What the three ways to hold pixels have in common. why_not: why the ways before the chosen one do not do."""

    source: Source
    size: int
    device: torch.device
    quarantine: Quarantine
    workers: int | None
    cache_folder: Path
    stays_here: bool

    @cached_property
    def cache(self) -> PixelCache:
        return PixelCache.of(self.source, self.cache_folder, self.size)

    def choose(self, storage: str, memory_budget: int | None, disk_budget: int | None) -> tuple[str, list[str]]:
        """The way that is asked for, or the first that fits, and why those before it do not."""
        why_not: list[str] = []
        if storage in ("auto", "memory"):
            asked = storage == "memory"
            allowed = memory_budget
            if allowed is None:
                allowed = int(free_memory(self.device) * (0.9 if asked else 0.25))
            if len(self.source) * self._picture_bytes <= allowed:
                return "memory", why_not
            why_not.append(f"more than the {readable_bytes(allowed)} of {self._memory_name} reserved")
            if asked:
                raise InputError(f"{self._needs(why_not)}: give --storage cache, or a smaller size.")
        if storage in ("auto", "cache"):
            allowed = disk_budget
            if allowed is None:
                allowed = int(free_disk(self.cache_folder) * (0.95 if storage == "cache" else 0.2))
            if len(self.cache.missing()) * self._picture_bytes <= allowed:
                return "cache", why_not
            why_not.append(f"more than the {readable_bytes(allowed)} of disk reserved in {self.cache_folder}")
        return "workers", why_not

    def in_memory(self) -> Pictures:
        images = torch.empty((len(self.source), 3, self.size, self.size), dtype=torch.uint8, device=self.device)
        aspects = torch.empty(len(self.source), device=self.device)
        rows: list[np.ndarray] = []
        count = 0
        for fetched in self._decoded(np.arange(len(self.source))):
            stop = count + len(fetched.rows)
            images[count:stop] = torch.from_numpy(fetched.pixels)
            aspects[count:stop] = torch.from_numpy(fetched.aspects)
            rows.append(fetched.rows)
            count = stop
        why = f"{self._needs()}: kept in {self._memory_name}."
        return InMemory(self.source, self.quarantine, why, images[:count], aspects[:count], np.concatenate(rows))

    def in_cache(self, why_not: list[str]) -> Pictures:
        try:
            how = self._fill_cache()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.cache.remove()  # it is what filled the disk
            sentence = f"the cache in {self.cache.path} could not be written ({error.strerror or error})"
            if ranks.world() > 1:  # the others may have got through: all must hold the same instances
                raise InputError(f"{sentence}: make room, or give --storage workers.") from error
            return self.by_workers([*why_not, sentence])
        unreadable = self.cache.unreadable()
        report_unreadable(self.source, unreadable, self.quarantine)
        if len(unreadable) == len(self.source):
            raise nothing_readable(self.source, unreadable, len(self.source))
        why = f"{self._needs(why_not)}: {how} {self.cache.path}."
        return InCache(self.source, self.size, self.device, self.quarantine, why, self.cache)

    def by_workers(self, why_not: list[str]) -> Pictures:
        processes = self.workers
        if processes is None:
            processes = max(1, usable_cores() - (self.device.type == "cpu"))
        if self.stays_here:
            processes = 0
        who = {0: "this process", 1: "one other process"}.get(processes, f"{processes} other processes")
        why = f"{self._needs(why_not)}: decoded in each epoch by {who}."
        return ByWorkers(self.source, self.size, self.device, self.quarantine, why, processes)

    def _fill_cache(self) -> str:
        """Complete the cache; words on what was done. OSError where it cannot be written."""
        alone = ranks.world() == 1
        if len(self.cache.missing()) == 0 and not (alone and self.cache.unreadable()):
            return "read from the cache in"  # which may be write-protected
        with self.cache.locked():
            changed = len(self.cache.changed())
            self.cache.prepare(retry_unreadable=alone)
            missing = self.cache.missing()
            for _ in self.cache.fill(self._decoded(missing)):
                pass
        if len(missing) == len(self.source):
            return "decoded once into the cache in"
        again = f"{counted(changed, 'changed picture')} decoded again, the rest " if changed else ""
        return f"{again}read from the cache in"

    def _decoded(self, rows: np.ndarray) -> Iterator[Fetched]:
        """Decode some rows with as many processes as it is worth, and show how far it has come."""
        processes = self.workers
        if processes is None:
            cores = usable_cores()
            processes = cores if cores > 1 and len(rows) > _FEW else 0
        length = int(np.clip(_PIECE_BYTES // self._picture_bytes, 1, _PIECE_ROWS))
        read = 0
        unreadable: dict[int, str] = {}
        with (
            Pool(self.source, self.size, 0 if self.stays_here else processes) as pool,
            Bar(len(rows), "Reading pictures", "pictures", enabled=ranks.is_main()) as bar,
        ):
            for fetched in pool.stream(rows[start : start + length] for start in range(0, len(rows), length)):
                report_unreadable(self.source, fetched.unreadable, self.quarantine)
                unreadable |= fetched.unreadable
                read += len(fetched.rows)
                bar.advance(len(fetched.rows) + len(fetched.unreadable))
                yield fetched
        if read == 0 and len(rows) == len(self.source):
            raise nothing_readable(self.source, unreadable, len(rows))

    def _needs(self, why_not: list[str] | None = None) -> str:
        needed = len(self.source) * self._picture_bytes
        words = f"{len(self.source):,} pictures at {self.size} px take {readable_bytes(needed)}"
        return f"{words} ({'; '.join(why_not)})" if why_not else words

    @property
    def _picture_bytes(self) -> int:
        return 3 * self.size**2

    @property
    def _memory_name(self) -> str:
        return "memory" if self.device.type == "cpu" else "GPU memory"
