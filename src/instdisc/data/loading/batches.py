"""Batches of stored pictures from wherever the pixels are kept: on the device, in a file, or nowhere.

`pictures.open_pictures` chooses among the three classes; what each hands out for the same instances is the same.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from instdisc.data.background import Background
from instdisc.data.loading.pixel_cache import PixelCache
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.loading.workers import Fetched, Pool
from instdisc.data.sources.row_groups import Groups
from instdisc.data.sources.source import Source
from instdisc.errors import InputError
from instdisc.shapes import Float, Int, Tensor, UInt8
from instdisc.transfer import Upload, send


@dataclass(frozen=True)
class Batch:
    """Stored pictures of one batch, on the device, or features of them (loading/kept.py).

    waited: seconds for which training stood still for them.

    Examples:
        >>> import numpy as np
        >>> from instdisc.data import open_pictures, open_source
        >>> pictures = open_pictures(open_source(np.zeros((5, 20, 30, 3), np.uint8)), size=16, device="cpu")
        >>> batch = next(pictures.batches([np.array([4, 0])]))
        >>> batch.indices, batch.images.shape, batch.images.dtype
        (tensor([4, 0]), torch.Size([2, 3, 16, 16]), torch.uint8)
    """

    indices: Int[Tensor, "batch"]
    images: UInt8[Tensor, "batch 3 size size"] | Float[Tensor, "batch width"]
    waited: float


@dataclass(frozen=True)
class Loaded:
    """What a background thread has put together for a batch, in the memory of the host; or `indices` are its instances
    on the device, and the images there too."""

    instances: np.ndarray
    images: Tensor
    aspects: np.ndarray | None = None
    unreadable: dict[int, str] = field(default_factory=dict)
    indices: Tensor | None = None


class Pictures(ABC):
    """The readable pictures of a source, numbered from 0: these numbers are the instances that training tells apart.

    Attributes:
        storage: "memory", "cache" or "workers". why: one sentence on that choice, for a person.
        rows: int64 (count), instance -> row of the source. With "workers" every row counts as readable until it is met.
        aspects: width / height of each picture before it was squashed, on the device. With "workers" the entries of a
            picture are right from the moment that its batch is handed out, and 1 before.

    Examples:
        >>> import numpy as np
        >>> from instdisc.data import open_pictures, open_source
        >>> source = open_source([np.zeros((20, 30, 3), np.uint8), b"no picture", np.zeros((9, 9, 3), np.uint8)])
        >>> with open_pictures(source, size=16, device="cpu") as pictures:
        ...     pictures.count, pictures.rows, pictures.aspects
        (2, array([0, 2]), tensor([1.5000, 1.0000]))
    """

    storage: str

    def __init__(self, source: Source, size: int, device: torch.device, quarantine: Quarantine, why: str) -> None:
        self.size = size
        self.device = device
        self.quarantine = quarantine
        self.why = why
        self.rows: np.ndarray = np.empty(0, np.int64)
        self.aspects: Float[Tensor, "count"] = torch.empty(0, device=device)
        self._source = source
        self._ahead = 2  # batches that are put together while training works on one
        self._met = self._read = 0

    @property
    def count(self) -> int:
        """How many instances there are."""
        return len(self.rows)

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  # only some kinds of storage have something to close
        """End the processes and threads, if there are any."""

    @property
    def name(self) -> str:
        """The source, as the person named it."""
        return self._source.name

    @property
    def processes(self) -> int:
        """How many processes of this rank decode while training goes on."""
        return 0

    def groups(self) -> Groups | None:
        """The instances that the storage gives up together, if it does so."""
        found = self._source.groups()
        if found is None:
            return None
        starts = np.unique(np.searchsorted(self.rows, found.starts))
        return replace(found, starts=starts[starts < self.count])

    def keep_groups(self) -> None:  # noqa: B027  # only what reads the source in each epoch has anything to keep
        """From now on batches come in an order by groups: see Source.keep_groups."""

    @abstractmethod
    def _request(self, instances: np.ndarray) -> Future[Loaded]:
        """Begin to put a batch together."""

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[Batch]:
        """The pictures of each array of instance numbers, in that order, prefetched.

        A picture that turns out unreadable is left out of its batch, and a batch that has none left is skipped.
        Raises InputError for the first such picture under `strict`, and when none at all can be read.
        """
        waiting: deque[Future[Loaded]] = deque()
        ahead: tuple[Loaded, Upload] | None = None  # the batch that comes next, where it is on its way to the device
        upcoming = iter(order)

        def fill() -> None:
            while len(waiting) <= self._ahead and (instances := next(upcoming, None)) is not None:
                waiting.append(self._request(np.asarray(instances, np.int64)))

        def begun() -> tuple[Loaded, Upload]:
            loaded = waiting.popleft().result()
            return loaded, Upload(loaded.images, self.device)

        started = time.perf_counter()
        try:
            while True:
                fill()
                if ahead is None and not waiting:
                    break
                loaded, upload = ahead or begun()
                ahead = None
                if self.device.type != "cpu" and waiting and waiting[0].done():
                    ahead = begun()
                    fill()
                self._note(loaded)
                if len(loaded.instances):
                    yield self._on_device(loaded, upload, started)
                    started = time.perf_counter()
        finally:
            for future in waiting:
                future.cancel()

    def _note(self, loaded: Loaded) -> None:
        report_unreadable(self._source, loaded.unreadable, self.quarantine)
        self._read += len(loaded.instances)
        self._met += len(loaded.instances) + len(loaded.unreadable)
        if self._read == 0 and self._met >= min(1000, self.count):
            raise nothing_readable(self._source, loaded.unreadable, self._met)

    def _on_device(self, loaded: Loaded, upload: Upload, started: float) -> Batch:
        indices = loaded.indices
        if indices is None:
            indices = send(torch.from_numpy(loaded.instances), self.device)
        images = upload.result()
        if loaded.aspects is not None:
            self.aspects[indices] = send(torch.from_numpy(loaded.aspects), self.device)
        return Batch(indices, images, time.perf_counter() - started)


class InMemory(Pictures):
    """All pixels as one uint8 tensor on the device: a batch is one gather.

    images, aspects, rows: (count, 3, size, size) uint8, (count) float32 and the rows of the source, in one order.
    """

    storage = "memory"

    def __init__(
        self,
        source: Source,
        quarantine: Quarantine,
        why: str,
        images: UInt8[Tensor, "count 3 size size"],
        aspects: Float[Tensor, "count"],
        rows: np.ndarray,
    ) -> None:
        super().__init__(source, images.shape[-1], images.device, quarantine, why)
        self._images, self.aspects, self.rows = images, aspects, rows
        self._ahead = 0  # nothing to wait for

    def _request(self, instances: np.ndarray) -> Future[Loaded]:
        ready: Future[Loaded] = Future()
        chosen = send(torch.from_numpy(instances), self.device)
        ready.set_result(Loaded(instances, self._images.index_select(0, chosen), indices=chosen))
        return ready


class InCache(Pictures):
    """Pixels in a file that is mapped into memory: threads gather the next batches."""

    storage = "cache"

    def __init__(
        self, source: Source, size: int, device: torch.device, quarantine: Quarantine, why: str, cache: PixelCache
    ) -> None:
        super().__init__(source, size, device, quarantine, why)
        self._cache = cache
        self.rows = cache.stored()
        self.aspects = torch.from_numpy(cache.aspects()[self.rows]).to(device)
        self._background = Background(threads=2)  # a page fault stops one thread: the other goes on reading

    def close(self) -> None:
        self._background.close()

    def _request(self, instances: np.ndarray) -> Future[Loaded]:
        return self._background.submit(self._gather, instances)

    def _gather(self, instances: np.ndarray) -> Loaded:
        images = _host_tensor(len(instances), self.size, self.device)
        self._cache.read(self.rows[instances], out=images.numpy())
        return Loaded(instances, images)


class ByWorkers(Pictures):
    """Nothing is kept: other processes decode each batch when its turn comes near."""

    storage = "workers"

    def __init__(
        self, source: Source, size: int, device: torch.device, quarantine: Quarantine, why: str, processes: int
    ) -> None:
        super().__init__(source, size, device, quarantine, why)
        self.rows = np.arange(len(source))
        self.aspects = torch.ones(len(source), device=device)
        self._pool = Pool(source, size, processes)
        self._background = Background(threads=1)
        self._by_groups = False

    @property
    def processes(self) -> int:
        return self._pool.processes

    def keep_groups(self) -> None:
        self._source.keep_groups()  # the processes receive it with their first rows
        self._by_groups = True

    def close(self) -> None:
        self._background.close()
        self._pool.close()

    def _request(self, instances: np.ndarray) -> Future[Loaded]:
        # Ascending rows, each process a run of neighbours: what lies together in a Parquet file is read together.
        rows, slots = np.unique(self.rows[instances], return_index=True)
        room = self._pool.room(len(instances))
        if (
            self._by_groups
        ):  # each process has its lanes, which lie together in the batch, and keeps what it read of them
            piece_of = slots * max(1, self._pool.processes) // max(1, len(instances))
        else:
            piece_of = np.arange(len(rows)) * max(1, min(self._pool.processes, len(rows) // 8)) // max(1, len(rows))
        parts = [
            self._pool.submit(
                rows[piece_of == piece], room, slots[piece_of == piece], line=piece if self._by_groups else None
            )
            for piece in range(int(piece_of.max(initial=0)) + 1)
        ]
        future = self._background.submit(self._assemble, instances, rows, slots, parts)
        future.add_done_callback(lambda _: [part.cancel() for part in parts])  # for a batch that nobody wants any more
        return future

    def _assemble(
        self, instances: np.ndarray, rows: np.ndarray, slots: np.ndarray, parts: list[Future[Fetched]]
    ) -> Loaded:
        fetched = [part.result() for part in parts]
        pixels = fetched[0].pixels
        if len(rows) < len(instances):  # a picture that is asked for twice is stored where it is first
            pixels[:] = pixels[slots[np.searchsorted(rows, self.rows[instances])]]
        unreadable = {row: reason for part in fetched for row, reason in part.unreadable.items()}
        if unreadable:
            kept = ~np.isin(self.rows[instances], list(unreadable))
            instances, pixels = instances[kept], pixels[kept]
        read = np.concatenate([part.rows for part in fetched])
        ascending = np.argsort(read, kind="stable")
        positions = ascending[np.searchsorted(read, self.rows[instances], sorter=ascending)]
        aspects = np.concatenate([part.aspects for part in fetched])[positions]
        images = torch.from_numpy(pixels)
        # Page-locked memory is what lets a copy to a GPU run beside its work.
        return Loaded(instances, images.pin_memory() if self.device.type == "cuda" else images, aspects, unreadable)


def report_unreadable(source: Source, unreadable: dict[int, str], quarantine: Quarantine) -> None:
    """Put rows on the list by id and location. Raises InputError under `strict`."""
    for row, reason in unreadable.items():
        quarantine.add(source.identifier(row), source.location(row), reason)


def nothing_readable(source: Source, unreadable: dict[int, str], met: int) -> InputError:
    """The error for a source without a single good picture."""
    row, reason = next(iter(unreadable.items()))
    return InputError(
        f"None of {met:,} pictures of {source.name} can be read; for example {source.location(row)}: {reason}. "
        "Check that this is the right place."
    )


def _host_tensor(count: int, size: int, device: torch.device) -> Tensor:
    # Page-locked memory is what lets a copy to a GPU run beside its work; torch keeps such blocks for the next batch.
    return torch.empty((count, 3, size, size), dtype=torch.uint8, pin_memory=device.type == "cuda")
