"""Stored pixels on disk: decoded once, mapped into memory ever after.

    cache = PixelCache.of(source, folder, size=256)
    if not cache.complete:
        with cache.locked():
            cache.fill(fetched for fetched in pool.stream(cache.missing(...)))
    cache.read(rows, out=pixels)

One folder a data set and size, named by both. A picture whose file has another size or date than when it was decoded is
missing: it is decoded again, and no other.

    header.json   what the pixels were made from      aspects.f32   (count) width / height before squashing
    pixels.u8     (count, 3, size, size)              state.u8      (count) 0 missing, 1 stored, 2 unreadable
    unreadable.jsonl   row and reason                 lock          held by the process that fills
    stamps.i64    (count, 2) size and date of each row's file, where the pictures are files

The state of a row is written after its pixels are on the disk, so a filling that is killed at any moment goes on where
it was. Pixels are written with write(), never through the map: on a full disk write() fails with an error that can be
answered, and a map kills the process. This file must not import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from instdisc.data.decoding.decode import DECODING_VERSION, UnreadableError
from instdisc.data.loading.workers import Fetched
from instdisc.data.sources.source import Source
from instdisc.errors import is_shortage
from instdisc.files import locked, write_json

_FORMAT = 1
_SYNC_SECONDS = 5.0
_MISSING, _STORED, _UNREADABLE = 0, 1, 2


class PixelCache:
    """The pixels of one data set at one size.

    folder: where caches stand; this one gets a folder of its own inside. fingerprint: which data set it is of.
    stamps: (count, 2) int64, of each row's file as it is now; None where only the fingerprint tells of changes.
    A cache of other content, of another version, or damaged is emptied, never used.
    """

    @classmethod
    def of(cls, source: Source, folder: Path, size: int) -> PixelCache:
        """The cache of a source: of files by their names and location, of anything else by `fingerprint_of`."""
        stamps = source.stamps()
        if stamps is None:
            return cls(folder, fingerprint_of(source), len(source), size)
        ends = [source.locations(row, row + 1)[0] for row in (0, len(source) - 1)]
        named = hashlib.sha256(source.fingerprint.encode() + b"\0" + b"\0".join(ends)).hexdigest()
        return cls(folder, named, len(source), size, stamps)

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        count: int,
        size: int,
        stamps: Int64[np.ndarray, "count 2"] | None = None,
    ) -> None:
        self.path = folder / f"{fingerprint[:24]}-{size}px"
        self.count = count
        self.size = size
        self._header = {
            "format": _FORMAT,
            "decoding": DECODING_VERSION,
            "fingerprint": fingerprint,
            "count": count,
            "size": size,
            "layout": "uint8 (count, channel, height, width), RGB",
        }
        self._stamps = None if stamps is None else np.ascontiguousarray(stamps, dtype=np.int64)
        if stamps is not None:
            self._header["stamps"] = True
        self._pixels: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        """What the finished cache takes on the disk."""
        return self.count * (3 * self.size**2 + 5)

    def state(self) -> UInt8[np.ndarray, "count"]:
        """0 missing, 1 stored, 2 unreadable, for each row; all missing where there is no cache that fits."""
        if not self._fits():
            return np.zeros(self.count, np.uint8)
        state = np.fromfile(self.path / "state.u8", np.uint8)
        state[self._changed()] = _MISSING
        return state

    def changed(self) -> Int64[np.ndarray, "changed"]:
        """The rows that are stored as their file was before it changed, ascending."""
        if not self._fits():
            return np.zeros(0, np.int64)
        known = np.fromfile(self.path / "state.u8", np.uint8) != _MISSING
        return np.flatnonzero(known & self._changed())

    def _changed(self) -> Bool[np.ndarray, "count"]:
        if self._stamps is None:
            return np.zeros(self.count, dtype=bool)
        return (np.fromfile(self.path / "stamps.i64", np.int64).reshape(-1, 2) != self._stamps).any(axis=1)

    def missing(self) -> Int64[np.ndarray, "missing"]:
        """The rows that are still to be filled, ascending."""
        return np.flatnonzero(self.state() == _MISSING)

    def stored(self) -> Int64[np.ndarray, "stored"]:
        """The rows that have pixels, ascending."""
        return np.flatnonzero(self.state() == _STORED)

    def aspects(self) -> Float32[np.ndarray, "count"]:
        """Width / height of every row before squashing; 0 where there are no pixels."""
        return np.fromfile(self.path / "aspects.f32", np.float32)

    def unreadable(self) -> dict[int, str]:
        """Row -> reason, of the rows that are marked unreadable."""
        marked = set(np.flatnonzero(self.state() == _UNREADABLE).tolist())
        reasons: dict[int, str] = {}
        if marked:
            for line in (self.path / "unreadable.jsonl").read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a line that a kill cut short: its row is not marked yet
                    row, reason = json.loads(line)
                    reasons[row] = reason
        return {row: reasons.get(row, "it could not be read when the cache was filled") for row in sorted(marked)}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with this cache: other processes (ranks, other runs) wait here until the one that fills is done."""
        with locked(self.path / "lock"):
            yield

    def prepare(self, retry_unreadable: bool) -> None:
        """Make the files where there are none that fit. Only inside `locked()`.

        retry_unreadable: mark unreadable rows as missing, since the pictures may have been repaired. Not for one of
        several ranks: the others could be reading already.
        """
        if not self._fits():
            for file in self.path.iterdir():
                if file.name != "lock":
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
            for name, length in self._lengths().items():
                (self.path / name).touch()
                os.truncate(self.path / name, length)  # zeros that take no room yet
            write_json(self.path / "header.json", self._header)  # last: files without a header are no cache
            return
        self._mark(self.changed(), _MISSING)
        if retry_unreadable:
            with contextlib.suppress(PermissionError):  # a cache that others own may be complete and read-only
                self._mark(np.flatnonzero(self.state() == _UNREADABLE), _MISSING)

    def fill(self, pieces: Iterable[Fetched]) -> Iterator[Fetched]:
        """Write what arrives, and hand it on. Only inside `locked()`. OSError (no space left) passes through."""
        waiting: list[tuple[np.ndarray, np.ndarray]] = []  # rows stored and rows unreadable, since the last sync
        last = time.monotonic()
        with (
            (self.path / "pixels.u8").open("r+b", buffering=0) as pixels,
            (self.path / "aspects.f32").open("r+b", buffering=0) as aspects,
            (self.path / "unreadable.jsonl").open("ab") as reasons,
        ):

            def sync() -> None:
                for file in (pixels, aspects, reasons):
                    file.flush()
                    os.fsync(file.fileno())
                for stored, unreadable in waiting:
                    self._stamp(np.sort(np.concatenate([stored, unreadable])))
                    self._mark(stored, _STORED)
                    self._mark(unreadable, _UNREADABLE)
                waiting.clear()

            try:
                for fetched in pieces:
                    for run in _runs(fetched.rows):
                        first = int(fetched.rows[run.start])
                        _write(pixels, first * 3 * self.size**2, fetched.pixels[run])
                        _write(aspects, first * 4, fetched.aspects[run])
                    for row, reason in fetched.unreadable.items():
                        reasons.write(b"\n" + json.dumps([row, reason]).encode())
                    waiting.append((fetched.rows, np.array(sorted(fetched.unreadable), np.int64)))
                    if time.monotonic() - last > _SYNC_SECONDS:
                        sync()
                        last = time.monotonic()
                    yield fetched
            finally:
                sync()

    def read(self, rows: Int64[np.ndarray, "rows"], out: UInt8[np.ndarray, "rows 3 size size"]) -> None:
        """Copy the pixels of some rows, in any order."""
        if self._pixels is None:
            self._pixels = np.memmap(
                self.path / "pixels.u8", np.uint8, "r", shape=(self.count, 3, self.size, self.size)
            )
        # take(out=, mode="clip") is the one form that neither buffers a second copy nor holds the interpreter's lock.
        np.take(self._pixels, rows, axis=0, out=out, mode="clip")

    def erase(self, rows: Int64[np.ndarray, "rows"]) -> int:
        """Zeros in the place of the pixels of some rows, which are missing then; of how many there were any.

        OSError passes through. A cache of other content is left alone.
        """
        if not self._fits():
            return 0
        with self.locked():
            stored = np.sort(rows[np.fromfile(self.path / "state.u8", np.uint8)[rows] != _MISSING])
            self._mark(stored, _MISSING)
            for name, size in (("pixels.u8", 3 * self.size**2), ("aspects.f32", 4), ("stamps.i64", 16)):
                if name not in self._lengths():
                    continue
                with (self.path / name).open("r+b", buffering=0) as file:
                    for row in stored.tolist():
                        _write(file, row * size, np.zeros(size, np.uint8))
                    os.fsync(file.fileno())
        return len(stored)

    def remove(self) -> None:
        """Give the disk space back."""
        self._pixels = None
        shutil.rmtree(self.path, ignore_errors=True)

    def _lengths(self) -> dict[str, int]:
        return {
            "pixels.u8": self.count * 3 * self.size**2,
            "aspects.f32": self.count * 4,
            "state.u8": self.count,
            "unreadable.jsonl": 0,
        } | ({} if self._stamps is None else {"stamps.i64": 16 * self.count})

    def _fits(self) -> bool:
        try:
            header: Any = json.loads((self.path / "header.json").read_text(encoding="utf-8"))
            lengths = {name: (self.path / name).stat().st_size for name in self._lengths()}
        except (OSError, ValueError) as error:
            if is_shortage(error):
                raise
            return False
        return header == self._header and {**lengths, "unreadable.jsonl": 0} == self._lengths()

    def _stamp(self, rows: np.ndarray) -> None:
        """What the files of these rows were when they were decoded; before they are marked."""
        if self._stamps is None:
            return
        with (self.path / "stamps.i64").open("r+b", buffering=0) as file:
            for run in _runs(rows):
                _write(file, 16 * int(rows[run.start]), self._stamps[rows[run]])
            os.fsync(file.fileno())

    def _mark(self, rows: np.ndarray, state: int) -> None:
        if len(rows) == 0:
            return
        with (self.path / "state.u8").open("r+b", buffering=0) as file:
            for run in _runs(rows):
                _write(file, int(rows[run.start]), np.full(run.stop - run.start, state, np.uint8))
            os.fsync(file.fileno())


def fingerprint_of(source: Source) -> str:
    """A hash of all ids and of the bytes of sixteen pictures spread over the source.

    The ids alone do not tell apart two data sets whose files are named alike, nor two arrays of one length.
    """
    digest = hashlib.sha256(source.fingerprint.encode())
    for row in looked_at(source):
        with contextlib.suppress(UnreadableError):
            content = source.read(row)
            digest.update(content if isinstance(content, bytes) else np.asarray(content).tobytes())
    return digest.hexdigest()


def looked_at(source: Source) -> list[int]:
    """The rows of the sixteen pictures."""
    return np.unique(np.linspace(0, len(source) - 1, 16).astype(np.int64)).tolist()


def _runs(rows: np.ndarray) -> list[slice]:
    """The slices of an ascending array within which the numbers are consecutive."""
    if len(rows) == 0:
        return []
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _write(file: IO[bytes], position: int, values: np.ndarray) -> None:
    """All of it: a raw write may stop early, which on a disk that is nearly full comes before the error."""
    file.seek(position)
    rest = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    while rest:
        rest = rest[file.write(rest) :]
