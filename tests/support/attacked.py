"""One server under attack: every answer is counted, and looked through for what may not be in it.

SECRET stands in files beside and above the collection, and behind links inside it.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

SECRET = "planted where nobody may read"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
Thing = TypeVar("Thing")


class Target:
    """One server, and what it answered."""

    def __init__(self, port: int, seconds: float, source: str, folder: str = "") -> None:
        self.port, self.source, self.folder, self.end = port, source, folder, time.monotonic() + seconds
        self.tried, self.answers, self.leaks, self.first = 0, Counter[str](), 0, ""
        self._timeout = min(10.0, 2 * seconds)
        self._lock = threading.Lock()

    @property
    def on(self) -> bool:
        return time.monotonic() < self.end

    def connect(self, timeout: float | None = None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout or self._timeout, (self.source, 0))

    def count(self, found: bytes, sent: object = b"") -> None:
        """One try, and what came back."""
        statuses = [int(one) for one in _STATUS.findall(found)]
        with self._lock:
            self.tried += 1
            self.answers.update([f"{status}" if status >= 500 else f"{status // 100}xx" for status in statuses])
            self.answers["none"] += not statuses
            if SECRET.encode() in found or b"root:x:" in found:
                self.leaks += 1
            if not self.first and (500 in statuses or SECRET.encode() in found):
                self.first = repr(sent)[:300]

    def ask(self, *pieces: bytes, then: Callable[[socket.socket], None] | None = None) -> bytes:
        """Send, and read until the server closes the connection or says nothing for a while."""
        found = b""
        try:
            with self.connect() as line:
                try:
                    for piece in pieces:
                        line.sendall(piece)
                    if then is not None:
                        then(line)
                except OSError:
                    pass  # it has hung up; its answer may still be there
                while part := line.recv(65_536):
                    found += part
        except OSError:
            pass
        self.count(found, pieces)
        return found

    def head(self, method: str, path: str, *headers: str, host: str | None = None) -> bytes:
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {f'127.0.0.1:{self.port}' if host is None else host}",
            *headers,
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")

    def get(self, path: str, *headers: str) -> bytes:
        return self.ask(self.head("GET", path, *headers))

    def post(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        return self.ask(self.head("POST", path, f"Content-Type: {kind}", f"Content-Length: {len(body)}"), body)

    def together(self, count: int, act: Callable[[int], object]) -> None:
        """Many threads, each again and again with the next number."""
        numbers = itertools.count()

        def work() -> None:
            while self.on:
                act(next(numbers))

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def shuffled(things: Iterable[Thing]) -> list[Thing]:
    """In one order, the same every time."""
    found = list(things)
    random.Random(0).shuffle(found)
    return found
