"""Stored pixels on disk: decoded once, mapped into memory ever after.

    cache = PixelCache(folder, fingerprint, count=1_281_167, size=256)
    if not cache.complete:
        with cache.locked():
            cache.fill(fetched for fetched in pool.stream(cache.missing(...)))
    cache.read(rows, out=pixels)

One folder a data set and size, named by both:

    header.json   what the pixels were made from      aspects.f32   (count) width / height before squashing
    pixels.u8     (count, 3, size, size)              state.u8      (count) 0 missing, 1 stored, 2 unreadable
    unreadable.jsonl   row and reason                 lock          held by the process that fills

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
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from instdisc.data.decode import DECODING_VERSION, UnreadableError
from instdisc.data.source import Source
from instdisc.data.workers import Fetched
from instdisc.errors import is_shortage
from instdisc.runs import locked, write_json

_FORMAT = 1
_SYNC_SECONDS = 5.0
_MISSING, _STORED, _UNREADABLE = 0, 1, 2


class PixelCache:
    """The pixels of one data set at one size.

    folder: where caches stand; this one gets a folder of its own inside. fingerprint: see `fingerprint_of`.
    A cache of other content, of another version, or damaged is emptied, never used.
    """

    def __init__(self, folder: Path, fingerprint: str, count: int, size: int) -> None:
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
        self._pixels: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        """What the finished cache takes on the disk."""
        return self.count * (3 * self.size**2 + 5)

    def state(self) -> UInt8[np.ndarray, "count"]:
        """0 missing, 1 stored, 2 unreadable, for each row; all missing where there is no cache that fits."""
        if not self._fits():
            return np.zeros(self.count, np.uint8)
        return np.fromfile(self.path / "state.u8", np.uint8)

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
        elif retry_unreadable:
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
        }

    def _fits(self) -> bool:
        try:
            header: Any = json.loads((self.path / "header.json").read_text(encoding="utf-8"))
            lengths = {name: (self.path / name).stat().st_size for name in self._lengths()}
        except (OSError, ValueError) as error:
            if is_shortage(error):
                raise
            return False
        return header == self._header and {**lengths, "unreadable.jsonl": 0} == self._lengths()

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
    for row in np.unique(np.linspace(0, len(source) - 1, 16).astype(np.int64)):
        with contextlib.suppress(UnreadableError):
            content = source.read(int(row))
            digest.update(content if isinstance(content, bytes) else np.asarray(content).tobytes())
    return digest.hexdigest()


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


def being_filled(path: Path) -> bool:
    """Whether a process holds the lock of the cache in this folder; no for a folder that is no cache."""
    if sys.platform == "win32" or not (path / "lock").is_file():
        return False
    import fcntl

    with (path / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # the file system has no locks
            return False
    return False
