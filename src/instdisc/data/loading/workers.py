"""Decoding in other processes: rows of a source go in, pixels of one stored size come out.

    with Pool(source, size=256, processes=4) as pool:
        for fetched in pool.stream(np.array_split(np.arange(len(source)), 100)):
            fetched.pixels, fetched.rows, fetched.aspects, fetched.unreadable

Each process is a bare interpreter that talks over its standard input and output. It is neither forked (deadlocks beside
torch's threads) nor a `multiprocessing` child (which imports the caller's main script, torch with it, and needs its
`__main__` guard): it starts in a fifth of a second, imports NumPy and Pillow and what the source needs, and ends by
itself when its parent is gone. Rows and reasons go through the pipe, pixels are written where they are wanted
(`shared`): a batch is put together without a copy. This file must not import torch.
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
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from instdisc.data.background import Background
from instdisc.data.decoding.decode import UnreadableError, decode_stored
from instdisc.data.loading.buffers import Block, Mapped, Shared
from instdisc.data.sources.source import Source
from instdisc.data.storage.retries import trouble
from instdisc.errors import InputError, refusal

_LENGTH = struct.Struct("<q")
_LARGEST_PICKLE = 256 << 20  # a source that carries more than this with it is not sent to other processes


@dataclass(frozen=True)
class Room:
    """Where pictures are stored. block: what it is in the memory that is shared with the children, if there are any."""

    pixels: UInt8[np.ndarray, "count 3 size size"]
    block: Block | None


@dataclass(frozen=True)
class Fetched:
    """The readable ones of the rows that were asked for, and the reasons of the others."""

    rows: Int64[np.ndarray, "readable"]
    aspects: Float32[np.ndarray, "readable"]  # width / height before squashing
    unreadable: dict[int, str]  # row -> reason
    pixels: UInt8[np.ndarray, "_ 3 size size"]  # the whole room


def fetch(
    source: Source, rows: Int64[np.ndarray, "rows"], slots: Int64[np.ndarray, "rows"], out: np.ndarray
) -> Fetched:
    """Read and decode the given rows (ascending) here; the picture of rows[i] is stored in out[slots[i]]."""
    readable: list[int] = []
    aspects: list[float] = []
    unreadable: dict[int, str] = {}
    for (row, content), slot in zip(source.iterate(rows), slots, strict=True):
        try:
            if isinstance(content, UnreadableError):
                raise content
            stored, aspect = decode_stored(content, out.shape[-1])
        except UnreadableError as error:
            unreadable[row] = error.reason
            continue
        out[slot] = stored.transpose(2, 0, 1)
        readable.append(row)
        aspects.append(aspect)
    return Fetched(np.array(readable, np.int64), np.array(aspects, np.float32), unreadable, out)


def must_stay_here(source: Source) -> bool:
    """Whether other processes cannot read this source, or would gain nothing from it.

    Pictures in memory (arrays, PIL images, memory:// files) would have to be copied into each process; what a main
    script or a notebook defines does not exist there. And Windows hands no open file on to a child.
    """
    if sys.platform == "win32":
        return True
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
        self._size = size
        self._shared = Shared() if processes else None
        handle = self._shared.handle if self._shared else -1
        self._children = children = [_Child(source, size, handle) for _ in range(processes)]
        # A thread takes an idle reader, waits for its answer and puts it back; there is one thread for each.
        self._idle: queue.SimpleQueue[_Child | _Here] = queue.SimpleQueue()
        for child in children:
            self._idle.put(child)
        if not children:
            self._idle.put(_Here(source))
        self._background = Background(max(1, processes))
        self._lines: list[tuple[_Child | _Here, Background]] = []
        self._end_children = weakref.finalize(self, _end_all, children)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. Fetches that are still waiting are cancelled."""
        for background in (self._background, *(background for _, background in self._lines)):
            background.close()
        self._end_children()
        if self._shared:
            self._shared.close()

    def room(self, count: int) -> Room:
        """Where so many pictures can be stored."""
        length = 3 * self._size**2
        block = self._shared.block(count * length) if self._shared else None
        content = np.empty(count * length, np.uint8) if block is None else block.content
        return Room(content.reshape(count, 3, self._size, self._size), block)

    def submit(
        self,
        rows: Int64[np.ndarray, "rows"],
        room: Room | None = None,
        slots: Int64[np.ndarray, "rows"] | None = None,
        line: int | None = None,
    ) -> Future[Fetched]:
        """Fetch the given rows (ascending) in the background, the picture of rows[i] into room.pixels[slots[i]].

        line: number of the process that shall do it, each after the other; without it the first that is idle.
        """
        if room is None or slots is None:
            room, slots = self.room(len(rows)), np.arange(len(rows))
        if line is None:
            return self._background.submit(_fetch_by_any, self._idle, rows, slots, room)
        if not self._lines:
            readers = [self._idle.get() for _ in range(max(1, self.processes))]  # none is for everybody any more
            self._lines = [(reader, Background(1)) for reader in readers]
        reader, background = self._lines[line]
        return background.submit(reader.fetch, rows, slots, room)

    def stream(self, jobs: Iterable[Int64[np.ndarray, "_"]]) -> Iterator[Fetched]:
        """Fetch many pieces; the answers come in the order of the pieces, a few are made ahead.

        Here the pixels are those of the readable rows only.
        """
        waiting: deque[Future[Fetched]] = deque()
        try:
            for rows in jobs:
                waiting.append(self.submit(rows))
                if len(waiting) > 2 * self._background.threads:
                    yield _without_gaps(waiting.popleft().result())
            while waiting:
                yield _without_gaps(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()


class _Here:
    """Fetches in this process."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def fetch(self, rows: np.ndarray, slots: np.ndarray, room: Room) -> Fetched:
        return fetch(self._source, rows, slots, room.pixels)


class _Child:
    """One process, used by one thread."""

    def __init__(self, source: Source, size: int, handle: int) -> None:
        self._source = source
        self._size = size
        self._handle = handle
        self._introduced = False
        # The same search path as here, set by the child itself: PYTHONPATH would put it before the standard library.
        program = f"import sys; sys.path[:] = {sys.path!r}; from instdisc.data.loading.workers import main; main()"
        self.process = process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[handle],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        assert process.stdin is not None and process.stdout is not None
        self.outgoing, self.incoming = process.stdin, process.stdout

    def fetch(self, rows: np.ndarray, slots: np.ndarray, room: Room) -> Fetched:
        assert room.block is not None
        try:
            if not self._introduced:
                _send(self.outgoing, pickle.dumps((self._source, self._size, self._handle)))
                self._introduced = True
            request = [room.block.offset, room.block.length, len(room.pixels), *rows.tolist(), *slots.tolist()]
            _send(self.outgoing, np.array(request, np.int64).tobytes())
            answer = json.loads(_receive(self.incoming))
            while "asked_again" in answer:  # a store keeps it waiting
                trouble.note(*answer["asked_again"])
                answer = json.loads(_receive(self.incoming))
        except (OSError, EOFError, ValueError) as error:
            raise InputError(self._crash_report(rows)) from error
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "error" in answer:
            raise RuntimeError(f"A decoding process met an error of its own:\n{answer['error']}")
        unreadable = {int(row): reason for row, reason in answer["unreadable"].items()}
        return Fetched(
            np.array(answer["rows"], np.int64), np.array(answer["aspects"], np.float32), unreadable, room.pixels
        )

    def _crash_report(self, rows: np.ndarray) -> str:
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


def _without_gaps(fetched: Fetched) -> Fetched:
    if not fetched.unreadable:
        return fetched
    asked = np.sort(np.concatenate([fetched.rows, np.array(list(fetched.unreadable), np.int64)]))
    return replace(fetched, pixels=fetched.pixels[np.isin(asked, fetched.rows)])


def _fetch_by_any(idle: queue.SimpleQueue[_Child | _Here], rows: np.ndarray, slots: np.ndarray, room: Room) -> Fetched:
    reader = idle.get()
    try:
        return reader.fetch(rows, slots, room)
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
        source, size, shared = None, 0, None
        # The parent tells the person, once for all its processes.
        trouble.pass_to = lambda location, why: _send(outgoing, json.dumps({"asked_again": [location, why]}).encode())
        while True:
            message = _receive(incoming)
            try:
                if source is None or shared is None:
                    source, size, handle = pickle.loads(message)  # noqa: S301  # from the parent's own pipe
                    shared = Mapped(handle)
                    continue
                offset, length, count, *numbers = np.frombuffer(message, np.int64).tolist()
                rows, slots = np.array(numbers, np.int64).reshape(2, -1)
                pixels = shared.block(offset, length)[: count * 3 * size**2].reshape(count, 3, size, size)
                fetched = fetch(source, rows, slots, pixels)
            except Exception as error:
                sentence = str(error) if isinstance(error, InputError) else refusal(error)
                told = {"error": traceback.format_exc()} if sentence is None else {"refused": sentence}
                _send(outgoing, json.dumps(told).encode())
                continue
            answer = {
                "rows": fetched.rows.tolist(),
                "aspects": fetched.aspects.tolist(),
                "unreadable": fetched.unreadable,
            }
            _send(outgoing, json.dumps(answer).encode())
