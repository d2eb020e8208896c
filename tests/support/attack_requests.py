"""What strangers ask: other sites, paths that lead out, tokens, bodies and heads that are no good."""

from __future__ import annotations

import itertools
import random
import socket
import struct
from collections.abc import Callable

from attacked import SECRET, Target, shuffled


def strangers(target: Target) -> None:
    """Other hosts, other sites, other methods, in all combinations."""
    own = f"127.0.0.1:{target.port}"
    hosts = (
        own,
        "evil.example",
        f"evil.example:{target.port}",
        f"{own}.evil.example",
        f"localhost.evil.example:{target.port}",
        "",
        f"{own}.",
        "[::1",
        f"[::ffff:203.0.113.7]:{target.port}",
    )
    origins = ("", "Origin: http://evil.example", "Origin: null", f"Origin: https://{own}", f"Origin: http://{own}, x",
               "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Origin: http://127.0.0.1:1",
               "Origin: http://evil.example\r\nSec-Fetch-Site: same-origin",
               f"Origin: http://evil.example\r\nX-Forwarded-Host: {own}\r\nX-Forwarded-For: 127.0.0.1")  # fmt: skip
    methods = ("GET", "POST", "OPTIONS", "TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "PROPFIND", "get", "A" * 300)
    paths = ("/api/collection", "/pictures/0", "/api/labels", "/api/uploads", "/", "*", "http://evil.example/", own)
    for host, origin, method, path in itertools.cycle(shuffled(itertools.product(hosts, origins, methods, paths))):
        if not target.on:
            return
        strange = host != own or origin or method not in ("GET", "POST")
        if not strange:
            continue
        headers, body = [origin] if origin else [], b""
        if method == "POST":
            body = b'{"rows": [0], "label": "stolen"}'
            headers += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        found = target.ask(target.head(method, path, *headers, host=host), body)
        if b" 200 " in found[:20] and path != "/":
            target.count(SECRET.encode(), (host, origin, method, path))  # a stranger was let in


def paths(target: Target) -> None:
    """Paths that lead out of the page and of the collection, and rows that are none."""
    up = ("..", "%2e%2e", "%2e.", "..%2f", "%2e%2e%2f", "..%5c", "....//", "%252e%252e", "..;", "%c0%ae%c0%ae", ".%00.")
    files = ("secret.txt", "link.txt", "etc/passwd", "app.py", "config.json", f"{target.folder}/secret.txt".lstrip("/"))
    starts = ("", "api/", "pictures/", "api/pictures/", "api/uploads/", "api/neighbours/", "//", "file:///", "page/")
    rows = ("-1", "-0", "1e3", "1.0", "0x1", "9" * 18, "9" * 400, "NaN", "Infinity", "%D9%A1", "\u00b2", "1%00", "%0a1",
            "1,2", "None", "true", "0 0", "%F0%9D%9F%8F", "+1", "01", "1%2f..%2fsecret.txt", "")  # fmt: skip
    wild = (
        "*" * 500,
        "*a" * 249,
        "[" * 400,
        "[!" + "a-" * 200,
        "%00",
        "%F0%9F%90%88" * 40,
        "\\" * 400,
        "(a+)+$",
        "%ff%fe",
    )
    asked = [f"/{start}{dots * deep}/{file}" for start in starts for dots in up for deep in (1, 4) for file in files]
    asked += [f"/{start}{row}" for start in starts for row in rows]
    asked += [f"/api/search?{name}={row}" for name in ("like", "unlike", "upload", "count") for row in rows]
    asked += [
        f"/api/pictures?{name}={one}" for name in ("where", "label", "tag", "rows", "start") for one in (*wild, *rows)
    ]
    asked += [
        f"/api/look-alikes?threshold={one}"
        for one in ("nan", "inf", "-1", "1e308", "0.5", "1.0000001", "0," + "9" * 99)
    ]
    for path in itertools.cycle(shuffled(asked)):
        if not target.on:
            return
        target.get(path)


def tokens(target: Target) -> None:
    """Wrong, empty, malformed and very long tokens, wherever one may stand."""
    tried = [
        "",
        " ",
        "wrong",
        "x" * 60_000,
        "%00",
        "\xff",
        "right\r\n x",
        '"',
        ";",
        "a=b",
        "Bearer",
        "\t",
        "%",
        "%zz",
        "0" * 32,
    ]
    random.seed(0)
    while target.on:
        token = random.choice([*tried, "".join(map(chr, random.choices(range(33, 256), k=random.randint(1, 40))))])
        path = random.choice(["/api/collection", "/pictures/0", "/", "/api/labels.csv"])
        way = random.randrange(4)
        if way == 0:
            found = target.get(path, f"Authorization: Bearer {token}")
        elif way == 1:
            found = target.get(path, f"Cookie: instdisc-{target.port}={token}; instdisc={token}")
        elif way == 2:
            found = target.get(f"{path}?token={token}&token={token}")
        else:
            found = target.get(path, f"Authorization: {token}", f"Authorization: Bearer {token}", "Cookie: ;=;,,")
        if b" 200 " in found[:20] or b" 303 " in found[:20]:
            target.count(SECRET.encode(), token)  # let in without the token


def bodies(target: Target) -> None:
    """Bodies too large, without an end, of another length than they say; JSON that is no good."""
    kind = "Content-Type: application/json"

    def announced(length: str, body: bytes, path: str = "/api/labels") -> list[bytes]:
        return [target.head("POST", path, kind, f"Content-Length: {length}"), body]

    chunked = target.head("POST", "/api/uploads", "Transfer-Encoding: chunked")
    piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
    texts = [
        b"[" * 100_000,
        b'{"rows":' * 50_000,
        b'{"rows":[' + b"9" * 100_000 + b'],"label":"x"}',
        b"\xff" * 1_000,
        b"null",
        b'{"rows":[1e400],"label":"x"}',
        b'{"rows":[NaN],"label":"x"}',
        b'{"rows":[0],"label":"' + b"x" * 900_000 + b'"}',
        b'{"rows":[' + b"0," * 20_000 + b'0],"label":"x"}',
        b'{"rows":[true],"label":{}}',
        b'{"rows":[0],"label":"\\ud800"}',
    ]
    tries: list[Callable[[], object]] = [
        lambda: target.ask(chunked, *[piece] * 60),
        lambda: target.ask(target.head("POST", "/api/uploads", "Content-Length: 25000000"), *[bytes(2**20)] * 24),
        lambda: target.ask(*announced("9" * 18, b"x" * 2**20, "/api/uploads")),
        lambda: target.ask(*announced("9" * 5_000, b"x")),
        lambda: target.ask(*announced("-1", b"x")),
        lambda: target.ask(*announced("10\r\nContent-Length: 20", b"x" * 20)),
        lambda: target.ask(*announced("4\r\nTransfer-Encoding: chunked", b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n")),
        lambda: target.ask(*announced("1", b"x" * 5_000)),
        lambda: target.ask(*announced("50", b"{}"), then=lambda line: line.shutdown(socket.SHUT_WR)),
        lambda: target.ask(chunked, b"zz\r\n"),
        lambda: target.ask(chunked, b"f" * 40_000),
        lambda: target.ask(chunked, b"1;" + b"x" * 70_000),
        lambda: target.ask(target.head("GET", "/api/collection", "Content-Length: 5"), b"hello"),
        *[lambda text=text: target.post("/api/labels", text) for text in texts],
    ]  # fmt: skip
    target.together(4, lambda number: tries[number % len(tries)]())


def heads(target: Target) -> None:
    """Floods of headers, heads without an end, other protocols, upgrades."""
    start = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n".encode()
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x" * 4)
    noise = random.Random(0).randbytes(2_000)
    tries = [
        start + b"".join(b"x%d: y\r\n" % number for number in range(20_000)) + b"\r\n",
        start + b"x: " + b"y" * 1_000_000,
        b"GET /" + b"a" * 1_000_000,
        start + b"x\r\n y\r\n z: \0\r\n\r\n",
        start + b"Host: other\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n",
        b"\r\n" * 30_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + noise[:500],
        noise,
        bytes(70_000),
        target.head("GET", "/api/status", *upgrade),
        target.head("GET", "/", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        target.head("GET", "/", "Expect: 100-continue", "Content-Length: 3"),
        target.head("GET", "/api/status", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https", "Forwarded: for=x"),
        target.head(
            "GET", "/pictures/0", "Range: bytes=0-0," + "1-2," * 5_000 + "3-", "If-Modified-Since: " + "x" * 999
        ),
        target.head("GET", "/app.js", "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(2_000))),
    ]

    def closing(line: socket.socket) -> None:
        line.shutdown(socket.SHUT_WR)

    target.together(4, lambda number: target.ask(tries[number % len(tries)], then=closing))


def pipelined(target: Target) -> None:
    """Thousands of requests in one go on a few connections; not all answers are read."""
    one = f"GET /api/neighbours/{{}}?count=5 HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n\r\n"

    def flood(number: int) -> None:
        words = "".join(one.format(row % 30) for row in range(1_000)).encode() + target.head("GET", "/api/status")
        target.ask(words, then=(lambda line: line.settimeout(0.2)) if number % 2 else None)

    target.together(4, flood)


def half_closed(target: Target) -> None:
    """Connections that end in every wrong way: half-closed, reset in the middle, left at once."""
    request = target.head("GET", "/api/neighbours/1?count=40")
    reset = struct.pack("ii", 1, 0)

    def leave(number: int) -> None:
        try:
            with target.connect() as line:
                line.sendall(request[: (0, 10, len(request))[number % 3]])
                if number % 2:
                    line.shutdown(socket.SHUT_WR)
                    target.count(line.recv(200))
                else:
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                    target.count(b"")
        except OSError:
            target.count(b"")

    target.together(8, leave)
