"""Who may ask, and what every answer carries. Private pictures stand behind this file: read it with suspicion.

- The Host must be a name that the server answers to (access.py), with any port: a page of a stranger that points its
  own name at 127.0.0.1 (DNS rebinding) sends its own Host.
- A browser tells where a request comes from (Sec-Fetch-Site, Origin): other sites may only link to the page itself.
- What a proxy says of a request (X-Forwarded-For, -Proto, -Host) is believed of those that were named, and never makes
  a name good that is none: the Host that came must be one, and the one that it stands for.
- Beyond this machine a token is asked for; a link with it sets a cookie that scripts can't read.
- The page may load from itself alone (Content-Security-Policy), and no page may frame it. There is no CORS.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote

from instdisc.serve.access import Access, address_of

Scope = Any  # of ASGI; its types live in a library that this file does without
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE"}
_FOREIGN = "Another site asked for this: refused."

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
    """ASGI middleware: what `access` allows goes on to `app`, without the base path, from whom a proxy says it is."""

    def __init__(self, app: Any, access: Access) -> None:
        self.app, self.access = app, access

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

        scope = self._as_sent(scope)
        status, words, extra = self.refusal(scope)
        if status:
            body = words.encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await carrying({"type": "http.response.start", "status": status, "headers": headers + extra})
            await carrying({"type": "http.response.body", "body": body})
            return
        await self.app(scope, receive, carrying)

    def _as_sent(self, scope: Scope) -> Scope:
        """The request as its browser sent it to a trusted proxy, without the base path."""
        path, base = scope["path"], self.access.base_path
        if base and path.startswith(f"{base}/"):
            scope = scope | {"path": path[len(base) :], "raw_path": None}
        if not self._by_proxy(scope):
            return scope
        client, scheme = scope["client"][0], _only(scope, b"x-forwarded-proto").lower()
        for one in reversed(b",".join(_all(scope, b"x-forwarded-for")).decode("latin-1").split(",")):
            if address_of(one.strip()) is None:
                break  # not written by a proxy: the last one that was stands
            client = one.strip()
            if not self.access.trusts(client):
                break
        return scope | {
            "client": (client, scope["client"][1]),
            "scheme": scheme if scheme in ("http", "https") else scope["scheme"],
            "instdisc.host": _only(scope, b"x-forwarded-host").lower(),
        }

    def _by_proxy(self, scope: Scope) -> bool:
        return bool(scope.get("client")) and self.access.trusts(scope["client"][0])

    def refusal(self, scope: Scope) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        """(status, words, headers) of a refusal or of the way elsewhere; status 0 where the request may pass."""
        hosts = [_only(scope, b"host").lower(), *filter(None, [scope.get("instdisc.host", "")])]
        for host in hosts:
            if not self.access.answers_to(host):
                return 421, _unknown(host), []
        if scope["method"] not in _METHODS:
            return 405, "This method is not known here.", []
        looks, base = scope["method"] in ("GET", "HEAD"), self.access.base_path
        front_page = looks and scope["path"] in ("/", base)
        site = _only(scope, b"sec-fetch-site")
        if site in ("cross-site", "same-site") and not (
            front_page
            and _only(scope, b"sec-fetch-mode") == "navigate"
            and _only(scope, b"sec-fetch-dest") == "document"
        ):
            return 403, _FOREIGN, []
        if not self._own_origin(scope, hosts[-1], site):
            return 403, _FOREIGN, []
        if base and looks and scope["path"] == base:  # what the page loads has addresses below this one
            question = scope["query_string"].decode("latin-1")
            to = quote(base.rpartition("/")[2]) + "/" + (f"?{question}" if question else "")
            return 307, "", [(b"location", to.encode("latin-1"))]
        return self._without_token(scope, front_page, _cookie(hosts[-1]))

    def _own_origin(self, scope: Scope, host: str, site: str) -> bool:
        """Whether the page itself asks, or no page at all.

        Where a forwarder writes another Host, the browser's word counts that page and server are one to it, if the page
        has a name of ours: no script can say so in its place, and browsers say `same-site` of another port.
        """
        origin = [one.decode("latin-1").lower() for one in _all(scope, b"origin")]
        if not origin or origin == [f"{scope['scheme']}://{host}"]:
            return True
        scheme, _, name = origin[0].partition("://")
        ours = scheme in ("http", "https") and self.access.answers_to(name)
        return len(origin) == 1 and site == "same-origin" and ours

    def _without_token(self, scope: Scope, front_page: bool, name: str) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        if self.access.token is None:
            return 0, "", []
        if front_page:
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
            if len(asked) == 1 and self._right(asked[0]):
                # Without a path the cookie is for the folder of the address, whatever a proxy calls it.
                secure = "; Secure" if scope["scheme"] == "https" else ""
                cookie = f"{name}={self.access.token}; HttpOnly; SameSite=Strict{secure}"
                return 303, "", [(b"location", b"./"), (b"set-cookie", cookie.encode())]
        kind, _, value = _only(scope, b"authorization").partition(" ")
        if kind.lower() == "bearer" and self._right(value):
            return 0, "", []
        try:
            cookie_given = SimpleCookie(_only(scope, b"cookie")).get(name)
        except CookieError:
            cookie_given = None
        if cookie_given is not None and self._right(cookie_given.value):
            return 0, "", []
        return 401, "Open the address with the token that `instdisc serve` printed.", []

    def _right(self, given: str) -> bool:
        assert self.access.token is not None
        return hmac.compare_digest(given.encode("latin-1", "replace"), self.access.token.encode())


def _all(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _only(scope: Scope, name: bytes) -> str:
    """The value of a header that was sent once; empty for none and for several."""
    found = _all(scope, name)
    return found[0].decode("latin-1") if len(found) == 1 else ""


def _unknown(host: str) -> str:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if not name or not name.isascii() or not name.replace("-", "").replace(".", "").isalnum():
        return "This server does not answer to that host name."
    return f"This server does not answer to the name {name}. If it is yours: instdisc serve RUN --allow-host {name}"


def _cookie(host: str) -> str:
    """Its name. Browsers keep cookies by host and not by port: two servers on one host must not share one."""
    port = host.rpartition(":")[2]
    return f"instdisc-{port}" if port.isdecimal() else "instdisc"
