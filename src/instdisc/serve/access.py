"""Where the page listens, by which names and ways it is reached from elsewhere, and whether a token is asked for.

    access = Reach(host="0.0.0.0", allow_hosts=["photos.example"]).access()    # an Access, for security.py

What a person asks for is checked here, and refused in a sentence; security.py holds every request against it.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, unquote

from instdisc.errors import InputError

LOCAL = ("127.0.0.1", "localhost", "::1")
Network = IPv4Network | IPv6Network
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)(?::\d{1,5})?")
_BASE = re.compile(r"(/(?!\.{1,2}(/|$))[^/\s?#%\\\"'<>]+)+")


@dataclass(frozen=True)
class Access:
    """Who may ask, and how.

    names: what a browser may call the server in its Host header; `name` with any port, `name:port` with that one alone.
    token: asked of every request; None for nobody. base_path: as in "/photos"; the page is found there, and without it
    too, as a proxy asks that takes it off. proxies: whose word on a request's origin is taken.
    """

    names: frozenset[str]
    token: str | None = None
    base_path: str = ""
    proxies: tuple[Network, ...] = ()

    def answers_to(self, host: str) -> bool:
        """Whether this is a name of the server, or a name and a port."""
        found = _HOST.fullmatch(host)
        return found is not None and (found[1] in self.names or host in self.names)

    def trusts(self, address: str) -> bool:
        """Whether a proxy that was named connects from this address."""
        one = address_of(address)
        return one is not None and any(one in network for network in self.proxies)


@dataclass(frozen=True)
class Reach:
    """Where a server listens, and how it is reached from elsewhere.

    token: made up where one is needed and none is given. allow_hosts: further names, each with or without its port.
    base_path: the path under which a proxy shows the page. trusted_proxies: addresses or networks whose
    X-Forwarded-For, -Proto and -Host are believed.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    allow_hosts: Sequence[str] = ()
    base_path: str = ""
    trusted_proxies: Sequence[str] = ()

    def access(self) -> Access:
        """All of it, checked. Raises InputError for what is no name, path or address."""
        allowed = [_allowed(name) for name in self.allow_hosts]
        local = set(_written(LOCAL))
        beyond = self.host not in LOCAL or self.trusted_proxies or any(_port_off(name) not in local for name in allowed)
        return Access(
            names=frozenset({*names_of(self.host), *allowed}),
            token=self.token or (secrets.token_urlsafe(24) if beyond else None),
            base_path=_base_path(self.base_path),
            proxies=tuple(_network(one) for one in self.trusted_proxies),
        )

    def address(self, port: int, access: Access) -> str:
        """What to open in a browser on this machine."""
        shown = "127.0.0.1" if self.host in ("0.0.0.0", "::") else f"[{self.host}]" if ":" in self.host else self.host
        question = f"?token={access.token}" if access.token else ""
        return f"http://{shown}:{port}{quote(access.base_path)}/{question}"


def names_of(host: str) -> set[str]:
    """What a browser may call a server that listens at `host`, as in a Host header and without a port.

    Names of this machine to itself are always among them: forwarders end there. No page of a stranger can have one.
    """
    names = set(LOCAL)
    if host not in LOCAL:
        own = socket.gethostname()
        names |= {host, own, socket.getfqdn(), f"{own.removesuffix('.local')}.local"}
    if host in ("0.0.0.0", "::"):
        names |= _addresses()
    return set(_written(name.lower() for name in names))


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """An IP address; the IPv4 one of those that sockets for both write as IPv6. None for what is no address."""
    try:
        one = ip_address(text)
    except ValueError:
        return None
    return (one.ipv4_mapped or one) if isinstance(one, IPv6Address) else one


def _written(names: Iterable[str]) -> list[str]:
    return [f"[{name}]" if ":" in name else name for name in names]


def _port_off(name: str) -> str:
    return name if name.endswith("]") else re.sub(r":\d+$", "", name)


def _addresses() -> set[str]:
    """This machine's own addresses, as far as its name leads to them and a route to elsewhere shows one."""
    found = set()
    try:
        found |= {str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None)}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: nothing is sent
            found.add(probe.getsockname()[0])
    except OSError:
        pass
    return found


def _allowed(given: str) -> str:
    name = given.strip().lower()
    try:
        name = name if name.isascii() else name.encode("idna").decode()
        name = f"[{ip_address(name)}]" if name.count(":") > 1 and "[" not in name else name
    except ValueError:
        name = ""
    if not _HOST.fullmatch(name):
        raise InputError(
            f"Invalid --allow-host: {given!r}. Write the name as it stands in the address, without http:// and paths, "
            "as in photos.example or nas.local:8765; several names need the option several times."
        )
    return name


def _base_path(given: str) -> str:
    path = "/" + unquote(given).strip().strip("/")
    if path == "/":
        return ""
    if not _BASE.fullmatch(path):
        raise InputError(f"Invalid --base-path: {given!r}. Write the path of the address alone, as in /photos.")
    return path


def _network(given: str) -> Network:
    try:
        return ip_network(given.strip(), strict=False)
    except ValueError:
        raise InputError(
            f"Invalid --trusted-proxy: {given!r}. Write the address that the proxy connects from, as in 127.0.0.1, or "
            "a network, as in 10.0.0.0/8."
        ) from None
