"""Connections: who holds one and asks nothing gives way. uvicorn has no limit of its own on slow or idle ones.

    uvicorn.Server(config_for(app)).run(sockets=[listening])

- Within 20 seconds of connecting, or of the last answer, the next request's head must have come, dripping or not.
- A client that reads less than a kilobyte a second of its answer is cut off.
- When there are too many connections, those that have waited longest are closed, of the address that has most of them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections import Counter
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE, SLOWEST = 20, 20_000  # seconds for a head; bytes of an answer in as long
MOST, _OTHERS, _AT_ONCE = 1_024, 256, 64  # connections; descriptors for all else; connections closed in one go
_AT_ONCE_CLOSED = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Wire(H11Protocol):
    """uvicorn's HTTP/1.1 with these limits. since: when it began to wait for its client; None while it does not."""

    most = MOST
    since: float | None = None
    _timer: asyncio.TimerHandle | None = None
    _unread = 0  # bytes of the answer, when the timer was set

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or make room for it."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._make_room()
        self._note()

    def data_received(self, data: bytes) -> None:
        """More of a request."""
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """The answer is written; another request may be there already."""
        self._stop()
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        """The client does not read as fast as is written."""
        super().pause_writing()
        self._note()

    def resume_writing(self) -> None:
        """It has read nearly all."""
        super().resume_writing()
        self._stop()
        self._note()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._stop()

    def give_up(self) -> None:
        """Close at once, whatever was to be sent; else the system would go on to send what it holds, for minutes."""
        self.connections.discard(self)
        if (line := self.transport.get_extra_info("socket")) is not None and not self.transport.is_closing():
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE_CLOSED)
        self.transport.abort()

    @property
    def address(self) -> str:
        """Of the client."""
        return self.client[0] if self.client else ""

    def _note(self) -> None:
        """Whether it is the client's turn."""
        if self.cycle and not self.cycle.response_complete and not self.flow.write_paused:
            self._stop()
        elif self.since is None and not self.transport.is_closing():
            self.since = self.loop.time()
            self._wait()

    def _wait(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(PATIENCE, self._late)

    def _late(self) -> None:
        if self._unread - self.transport.get_write_buffer_size() < SLOWEST:
            self.give_up()
        else:
            self._wait()

    def _stop(self) -> None:
        self.since = None
        if self._timer is not None:
            self._timer.cancel()

    def _make_room(self) -> None:
        """Some at once: to look through all of them for each one that comes would be slow."""
        here = [one for one in self.connections if isinstance(one, Wire)]
        crowd = Counter(one.address for one in here)
        waiting = [one for one in here if one.since is not None]
        most = max((one.address for one in waiting), key=lambda address: crowd[address], default="")
        oldest = sorted((one for one in waiting if one.address == most), key=lambda one: one.since or 0.0)
        for one in oldest[:_AT_ONCE] or [self]:
            one.give_up()


def config_for(app: Any) -> uvicorn.Config:
    """How the page is served: few words in the log, whatever strangers send."""
    Wire.most = min(MOST, max(16, _descriptors(MOST + _OTHERS) - _OTHERS))
    return uvicorn.Config(
        app,
        http=Wire,
        ws="none",
        log_level="error",
        backlog=128,  # so many are accepted before any is read: fewer than there is room for
        timeout_keep_alive=PATIENCE,
        h11_max_incomplete_event_size=65_536,
        server_header=False,
    )


def _descriptors(wanted: int) -> int:
    """How many files and connections this process may open, after it has asked for so many."""
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
