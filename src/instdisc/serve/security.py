"""Who may ask, and what every answer carries. Private pictures stand behind this file: read it with suspicion.

- The Host must be one that the server answers to: a page of a stranger that points its own name at 127.0.0.1 (DNS
  rebinding) sends its own Host.
- A browser tells where a request comes from (Sec-Fetch-Site, Origin): other sites may only link to the page itself.
- Beyond this machine a token is asked for; a link with it sets a cookie that scripts can't read.
- The page may load from itself alone (Content-Security-Policy), and no page may frame it. There is no CORS.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = Any  # of ASGI; its types live in a library that this file does without
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE"}

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Security:
    """ASGI middleware. hosts: names that the server answers to, with their port; token: None on this machine alone."""

    def __init__(self, app: Any, hosts: Iterable[str], token: str | None = None) -> None:
        self.app, self.hosts, self.token = app, {host.lower() for host in hosts}, token

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer, or refuse."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here

        async def carrying(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message.get("headers", [])}
                more = [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in there
                ]
                if b"cache-control" not in there:
                    more.append((b"cache-control", b"no-store"))
                message = message | {"headers": [*message.get("headers", []), *more]}
            await send(message)

        status, words, extra = self.refusal(scope)
        if status:
            body = words.encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await carrying({"type": "http.response.start", "status": status, "headers": headers + extra})
            await carrying({"type": "http.response.body", "body": body})
            return
        await self.app(scope, receive, carrying)

    def refusal(self, scope: Scope) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        """(status, words, headers) of a refusal; status 0 where the request may pass."""
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.lower(), []).append(value)

        def only(name: bytes) -> str:
            return given[name][0].decode("latin-1") if len(given.get(name, [])) == 1 else ""

        host = only(b"host").lower()
        if host not in self.hosts:
            return 421, "This server does not answer to that host name.", []
        if scope["method"] not in _METHODS:
            return 405, "This method is not known here.", []
        front_page = scope["method"] in ("GET", "HEAD") and scope["path"] == "/"
        if only(b"sec-fetch-site") in ("cross-site", "same-site") and not (
            front_page and only(b"sec-fetch-mode") == "navigate" and only(b"sec-fetch-dest") == "document"
        ):
            return 403, "Another site asked for this: refused.", []
        origin = given.get(b"origin", [])
        if origin and [one.decode("latin-1").lower() for one in origin] != [f"{scope['scheme']}://{host}"]:
            return 403, "Another site asked for this: refused.", []
        return self._without_token(scope, only, front_page, _cookie(host))

    def _without_token(
        self, scope: Scope, only: Any, front_page: bool, name: str
    ) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        if self.token is None:
            return 0, "", []
        if front_page:
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
            if len(asked) == 1 and self._right(asked[0]):
                cookie = f"{name}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                return 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())]
        kind, _, value = only(b"authorization").partition(" ")
        if kind.lower() == "bearer" and self._right(value):
            return 0, "", []
        try:
            cookie_given = SimpleCookie(only(b"cookie")).get(name)
        except CookieError:
            cookie_given = None
        if cookie_given is not None and self._right(cookie_given.value):
            return 0, "", []
        return 401, "Open the address with the token that `instdisc serve` printed.", []

    def _right(self, given: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(given.encode("latin-1", "replace"), self.token.encode())


def _cookie(host: str) -> str:
    """Its name. Browsers keep cookies by host and not by port: two servers on one host must not share one."""
    port = host.rpartition(":")[2]
    return f"instdisc-{port}" if port.isdecimal() else "instdisc"
