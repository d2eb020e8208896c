"""Limits: nobody's slow, large or many requests keep others from being answered, or fill the memory.

    uvicorn.Server(config_for(Limits(app))).run(sockets=[listening])

Connections, on which uvicorn has no limit of its own where they are slow or idle:

- Within 20 seconds of connecting, or of the last answer, the next request's head must have come, dripping or not.
- A client that reads less than a kilobyte a second of its answer is cut off.
- When there are too many connections, those that have waited longest are closed, of the address that has most of them.

Requests:

- A body must come within 30 seconds, is bounded, and few are held at once. Where one more comes, the one that has been
  coming longest gives way, of the address that sends the most; where all of them have come, the new one is told when
  to try again.
- So many requests of one address are worked on at once, and the next wait in order: another address has turns of its
  own. Where hundreds wait, the next is told when to try again.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from instdisc.serve.upload import MAX_BYTES

PATIENCE, SLOWEST = 20, 20_000  # seconds for a head; bytes of an answer in as long
MOST, _OTHERS, _AT_ONCE = 1_024, 256, 64  # connections; descriptors for all else; connections closed in one go
_AT_ONCE_CLOSED = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
UPLOADS = "/api/uploads"
_OTHER_BYTES = 1_000_000  # of a body that is no upload
_READ_ON = 2  # times what is allowed
BODY_SECONDS = 30.0
BODIES, BODIES_OF_ONE = 12, 4  # held at once: of all, of one address
_CROWDED = "Too many uploads at once: try again."
TURNS, WAITING = 12, 1_000  # of one address; there are 40 threads


class Refused(Exception):
    """Not now, or not this: the status and the words of the answer."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class _Body:
    """One that is held. limit: while it is coming, what ends that."""

    def __init__(self, address: str) -> None:
        self.address, self.gave_way = address, False
        self.limit: asyncio.Timeout | None = None


class _Turns:
    """Of one address."""

    def __init__(self) -> None:
        self.free, self.asked = asyncio.Semaphore(TURNS), 0


class Limits:
    """ASGI middleware, behind the one that decides who may ask."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._bodies: list[_Body] = []
        self._turns: dict[str, _Turns] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Take the body, wait for a turn, answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else ""
        try:
            async with self._whole(scope, receive, address) as content, self._turn(address):
                if content is not None:
                    await self.app(scope, _told_again(content, receive), send)
        except Refused as refused:
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            headers += [(b"retry-after", b"1")] if refused.status == 503 else []
            body = json.dumps({"detail": str(refused)}).encode()
            headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": refused.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    @asynccontextmanager
    async def _turn(self, address: str) -> AsyncIterator[None]:
        turns = self._turns.setdefault(address, _Turns())
        if turns.asked >= TURNS + WAITING:
            raise Refused(503, "Too many questions at once: try again.")
        turns.asked += 1
        try:
            async with turns.free:
                yield
        finally:
            turns.asked -= 1
            if not turns.asked:
                del self._turns[address]

    @asynccontextmanager
    async def _whole(self, scope: Any, receive: Any, address: str) -> AsyncIterator[bytes | None]:
        """The body, held until the answer is given; None where the client has gone."""
        given = {name: value for name, value in scope["headers"] if name in (b"content-length", b"transfer-encoding")}
        if not given or given.get(b"content-length") == b"0":
            yield b""
            return
        most = MAX_BYTES if scope["path"] == UPLOADS else _OTHER_BYTES
        body = self._place(address)
        try:
            async with asyncio.timeout(BODY_SECONDS) as body.limit:
                content = await _read(receive, most, int(given.get(b"content-length", b"0")))
            body.limit = None
            yield content
        except TimeoutError:
            if body.limit is None:  # of somebody else's making
                raise
            refused = Refused(503, _CROWDED) if body.gave_way else Refused(408, "The upload took too long.")
            raise refused from None
        finally:
            if body in self._bodies:
                self._bodies.remove(body)

    def _place(self, address: str) -> _Body:
        """For one more body. Where all places are taken, one that is still coming gives way."""
        of_all = Counter(body.address for body in self._bodies)
        if of_all[address] >= BODIES_OF_ONE or len(self._bodies) >= BODIES:
            among = address if of_all[address] >= BODIES_OF_ONE else max(of_all, key=lambda one: of_all[one])
            coming = [body for body in self._bodies if body.address == among and body.limit is not None]
            if not coming:
                raise Refused(503, _CROWDED)
            first = coming[0]
            assert first.limit is not None
            first.limit.reschedule(0)
            first.gave_way = True
            self._bodies.remove(first)
        self._bodies.append(_Body(address))
        return self._bodies[-1]


async def _read(receive: Any, most: int, announced: int) -> bytes | None:
    """All of it. What is too long is not kept, but read on for a while: else its sender never sees the refusal."""
    content, size, more = bytearray(), 0, announced <= _READ_ON * most
    while more and size <= _READ_ON * most:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        size += len(message["body"])
        more = message["more_body"]
        if max(size, announced) <= most:
            content += message["body"]
        else:
            content.clear()
    if max(size, announced) > most:
        raise Refused(413, f"The file is larger than {most // 1_000_000} MB.")
    return bytes(content)


def _told_again(content: bytes, receive: Any) -> Any:
    """What the app may receive: the body at once, then what still comes."""
    told = False

    async def again() -> Any:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": content, "more_body": False}

    return again


class Connection(H11Protocol):
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
        here = [one for one in self.connections if isinstance(one, Connection)]
        crowd = Counter(one.address for one in here)
        waiting = [one for one in here if one.since is not None]
        most = max((one.address for one in waiting), key=lambda address: crowd[address], default="")
        oldest = sorted((one for one in waiting if one.address == most), key=lambda one: one.since or 0.0)
        for one in oldest[:_AT_ONCE] or [self]:
            one.give_up()


def config_for(app: Any) -> uvicorn.Config:
    """How the page is served: few words in the log, whatever strangers send."""
    Connection.most = min(MOST, max(16, _descriptors(MOST + _OTHERS) - _OTHERS))
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="error",
        backlog=128,  # so many are accepted before any is read: fewer than there is room for
        timeout_keep_alive=PATIENCE,
        h11_max_incomplete_event_size=65_536,
        server_header=False,
        proxy_headers=False,  # security.py reads them, of those proxies that were named
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
