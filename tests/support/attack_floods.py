"""How much strangers ask, and how slowly: held connections, a thousand at once, uploads."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import time
from collections.abc import Sequence

from attacked import Target, shuffled

_HELD = 1_200  # connections; more than the server takes


def _dripping(target: Target, first: bytes, drop: bytes, count: int) -> None:
    """Many connections, each sending a little every second; those that are closed are opened again."""
    chosen, opened = selectors.DefaultSelector(), 0
    lines: set[socket.socket] = set()
    while target.on:
        started = time.monotonic()
        while len(lines) < count and target.on and time.monotonic() < started + 1:
            try:
                line = target.connect(1)
                line.sendall(first)
                line.setblocking(False)
            except OSError:
                target.count(b"")
                break
            chosen.register(line, selectors.EVENT_READ)
            lines.add(line)
            opened += 1
        for key, _ in chosen.select(0):
            try:
                found = key.fileobj.recv(4_096)
            except OSError:
                found = b""
            target.count(found)
            chosen.unregister(key.fileobj)
            lines.discard(key.fileobj)
            key.fileobj.close()
        for line in list(lines):
            with contextlib.suppress(OSError):
                line.send(drop)
        time.sleep(max(0.0, started + 0.5 - time.monotonic()))
    target.tried += len(lines)
    for line in lines:
        line.close()


def slow_heads(target: Target) -> None:
    """Slowloris: more connections than the server takes, each with a head that never ends."""
    _dripping(target, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\nx: ".encode(), b"y", _HELD)


def silent(target: Target) -> None:
    """As many that say nothing at all."""
    _dripping(target, b"", b"", _HELD)


def slow_bodies(target: Target) -> None:
    """Hundreds of uploads that come a byte at a time."""
    _dripping(target, target.head("POST", "/api/uploads", "Content-Length: 1000000"), b"x", 400)


def slow_readers(target: Target) -> None:
    """Hundreds that ask for much and read nothing."""
    request = target.head("GET", "/api/pictures?count=500").replace(b"Connection: close\r\n", b"") * 20
    lines = []
    while target.on:
        if len(lines) < 300:
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            try:
                line.bind((target.source, 0))
                line.connect(("127.0.0.1", target.port))
                line.settimeout(0.2)
                line.sendall(request)
            except OSError:
                pass
            target.count(b"")
            lines.append(line)
        else:
            time.sleep(0.1)
    for line in lines:
        line.close()


def queries(target: Target) -> None:
    """A thousand searches at the same moment, again and again."""
    while target.on:
        lines = []
        for number in range(1_000):
            try:
                line = target.connect(30)
                line.sendall(target.head("GET", f"/api/neighbours/{number % 30}?count=40"))
                lines.append(line)
            except OSError:
                target.count(b"")
        for line in lines:
            found = b""
            try:
                while part := line.recv(65_536):
                    found += part
            except OSError:
                pass
            target.count(found)
            line.close()


def comparisons(target: Target) -> None:
    """What takes longest to compute, each time a little different."""
    paths = (
        "look-alikes?threshold={}",
        "duplicates?start={}",
        "outliers?start={}",
        "proposals?count=100",
        "labels",
        "map/colours?by=cluster",
    )

    def ask(number: int) -> None:
        target.get(
            "/api/"
            + paths[number % len(paths)].format(round(0.6 + number % 3_999 / 10_000, 4) if number % 5 == 0 else 0)
        )

    target.together(64, ask)


def uploads(target: Target) -> None:
    """Real pictures, from dozens at once."""
    from hostile_pictures import encoded
    from PIL import Image

    noise = random.Random(0).randbytes(1_000 * 800 * 3)
    picture = encoded(Image.frombytes("RGB", (1_000, 800), noise), "JPEG")
    target.together(48, lambda _: target.post("/api/uploads", picture, "application/octet-stream"))


def hostile_uploads(target: Target) -> None:
    """Bombs, cut and crafted files: tests/support/hostile_pictures.py."""
    from hostile_pictures import corpus, sample

    started = time.monotonic()
    files: Sequence[bytes] = shuffled(file.content for file in sample(corpus(), 400) if len(file.content) < 20_000_000)
    target.end += time.monotonic() - started
    target.together(12, lambda number: target.post("/api/uploads", files[number % len(files)], "image/jpeg"))
