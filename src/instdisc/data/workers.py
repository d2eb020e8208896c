"""Decoding in other processes: rows of a source go in, pixels of one stored size come out.

    with Pool(source, size=256, processes=4) as pool:
        for fetched in pool.stream(np.array_split(np.arange(len(source)), 100)):
            fetched.pixels, fetched.rows, fetched.aspects, fetched.unreadable

Each process is a bare interpreter that talks over its standard input and output. It is neither forked (deadlocks beside
torch's threads) nor a `multiprocessing` child (which imports the caller's main script, torch with it, and needs its
`__main__` guard): it starts in a fifth of a second, imports NumPy and Pillow and what the source needs, and ends by
itself when its parent is gone. Pixels come back through the pipe as they are, without pickling and without /dev/shm,
which is tiny in containers. This file must not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import IO

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from instdisc.data.background import Background
from instdisc.data.decode import UnreadableError, decode_stored
from instdisc.data.source import Source
from instdisc.errors import InputError

_LENGTH = struct.Struct("<q")
_LARGEST_PICKLE = 256 << 20  # a source that carries more than this with it is not sent to other processes


@dataclass(frozen=True)
class Fetched:
    """The readable ones of the rows that were asked for, and the reasons of the others."""

    rows: Int64[np.ndarray, "readable"]
    pixels: UInt8[np.ndarray, "readable 3 size size"]
    aspects: Float32[np.ndarray, "readable"]  # width / height before squashing
    unreadable: dict[int, str]  # row -> reason


def fetch(source: Source, rows: Int64[np.ndarray, "rows"], size: int) -> Fetched:
    """Read, decode and store the given rows (ascending) here."""
    pixels = np.empty((len(rows), 3, size, size), np.uint8)
    readable: list[int] = []
    aspects: list[float] = []
    unreadable: dict[int, str] = {}
    for row, content in source.iterate(rows):
        try:
            if isinstance(content, UnreadableError):
                raise content
            stored, aspect = decode_stored(content, size)
        except UnreadableError as error:
            unreadable[row] = error.reason
            continue
        pixels[len(readable)] = stored.transpose(2, 0, 1)
        readable.append(row)
        aspects.append(aspect)
    kept = np.array(readable, np.int64)
    return Fetched(kept, pixels[: len(kept)], np.array(aspects, np.float32), unreadable)


def must_stay_here(source: Source) -> bool:
    """Whether other processes cannot read this source, or would gain nothing from it.

    Pictures in memory (arrays, PIL images, memory:// files) would have to be copied into each process; what a main
    script or a notebook defines does not exist there.
    """
    if type(source).__module__ == "__main__" or source.location(0).startswith("memory:"):
        return True
    with contextlib.suppress(UnreadableError):
        if isinstance(source.read(0), np.ndarray | Image.Image):
            return True
    try:
        return len(pickle.dumps(source)) > _LARGEST_PICKLE
    except Exception:  # an object of the user's own may refuse in any way
        return True


class Pool:
    """Processes that fetch rows of one source. processes=0: one thread of this process does it.

    A process that dies (killed for memory, a crash in a decoder) makes its fetch raise InputError.
    """

    def __init__(self, source: Source, size: int, processes: int) -> None:
        self.processes = processes
        self._children = children = [_Child(source, size) for _ in range(processes)]
        # A thread takes an idle reader, waits for its answer and puts it back; there is one thread for each.
        self._idle: queue.SimpleQueue[_Child | _Here] = queue.SimpleQueue()
        for child in children:
            self._idle.put(child)
        if not children:
            self._idle.put(_Here(source, size))
        self._background = Background(max(1, processes))
        self._end_children = weakref.finalize(self, _end_all, children)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. Fetches that are still waiting are cancelled."""
        self._background.close()
        self._end_children()

    def submit(self, rows: Int64[np.ndarray, "rows"]) -> Future[Fetched]:
        """Fetch the given rows (ascending) in the background."""
        return self._background.submit(_fetch_by_any, self._idle, rows)

    def stream(self, jobs: Iterable[Int64[np.ndarray, "_"]]) -> Iterator[Fetched]:
        """Fetch many pieces; the answers come in the order of the pieces, a few are made ahead."""
        waiting: deque[Future[Fetched]] = deque()
        try:
            for rows in jobs:
                waiting.append(self.submit(rows))
                if len(waiting) > 2 * self._background.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Here:
    """Fetches in this process."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size

    def fetch(self, rows: np.ndarray) -> Fetched:
        return fetch(self._source, rows, self._size)


class _Child:
    """One process, used by one thread."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size
        self._introduced = False
        # The same search path as here, set by the child itself: PYTHONPATH would put it before the standard library.
        program = f"import sys; sys.path[:] = {sys.path!r}; from instdisc.data.workers import main; main()"
        self.process = process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        assert process.stdin is not None and process.stdout is not None
        self.outgoing, self.incoming = process.stdin, process.stdout

    def fetch(self, rows: np.ndarray) -> Fetched:
        try:
            if not self._introduced:
                _send(self.outgoing, pickle.dumps((self._source, self._size)))
                self._introduced = True
            _send(self.outgoing, rows.astype(np.int64).tobytes())
            answer = json.loads(_receive(self.incoming))
            if "error" in answer:
                raise RuntimeError(f"A decoding process met an error of its own:\n{answer['error']}")
            kept = np.array(answer["rows"], np.int64)
            pixels = np.empty((len(kept), 3, self._size, self._size), np.uint8)
            _receive_into(self.incoming, pixels.reshape(-1).data)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(self._obituary(rows)) from error
        unreadable = {int(row): reason for row, reason in answer["unreadable"].items()}
        return Fetched(kept, pixels, np.array(answer["aspects"], np.float32), unreadable)

    def _obituary(self, rows: np.ndarray) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        cause = f"with exit code {code}"
        if code < 0:
            cause = f"by signal {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                cause += ", which often means that the memory was full"
        return (
            f"A decoding process was ended {cause} while it read pictures from {self._source.location(int(rows[0]))} "
            f"to {self._source.location(int(rows[-1]))}: try fewer workers, or leave out the picture that it broke on."
        )


def _fetch_by_any(idle: queue.SimpleQueue[_Child | _Here], rows: np.ndarray) -> Fetched:
    reader = idle.get()
    try:
        return reader.fetch(rows)
    finally:
        idle.put(reader)


def _end_all(children: list[_Child]) -> None:
    for child in children:
        child.process.kill()  # it holds nothing that could be lost
    for child in children:
        child.process.wait()
        for pipe in (child.outgoing, child.incoming):
            with contextlib.suppress(OSError):  # closing writes what is left, and nobody reads it any more
                pipe.close()


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytearray:
    length = bytearray(_LENGTH.size)
    _receive_into(pipe, memoryview(length))
    message = bytearray(_LENGTH.unpack(length)[0])
    _receive_into(pipe, memoryview(message))
    return message


def _receive_into(pipe: IO[bytes], space: memoryview) -> None:
    filled = 0
    while filled < len(space):
        got = pipe.readinto(space[filled:])  # type: ignore[attr-defined]  # both ends are buffered readers
        if not got:
            raise EOFError("the other process is gone")
        filled += got


def main() -> None:
    """What a process does: receive the source once, then rows, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what ends
    # The pipe moves off file descriptor 1, so that whatever a library prints cannot land between the pixels.
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        source, size = None, 0
        while True:
            message = _receive(incoming)
            try:
                if source is None:
                    source, size = pickle.loads(message)  # noqa: S301  # from the parent's own pipe
                    continue
                fetched = fetch(source, np.frombuffer(message, np.int64), size)
            except Exception:
                _send(outgoing, json.dumps({"error": traceback.format_exc()}).encode())
                continue
            answer = {
                "rows": fetched.rows.tolist(),
                "aspects": fetched.aspects.tolist(),
                "unreadable": fetched.unreadable,
            }
            _send(outgoing, json.dumps(answer).encode())
            outgoing.write(fetched.pixels.reshape(-1).data)
            outgoing.flush()
