"""Fair turns: nobody's slow, large or many requests keep others from being answered, or fill the memory.

- A body must come within 30 seconds, is bounded, and few are held at once. Where one more comes, the one that has been
  coming longest gives way, of the address that sends the most; where all of them have come, the new one is told when
  to try again.
- So many requests of one address are worked on at once, and the next wait in order: another address has turns of its
  own. Where hundreds wait, the next is told when to try again.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from instdisc.serve.upload import MAX_BYTES

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


class Intake:
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
