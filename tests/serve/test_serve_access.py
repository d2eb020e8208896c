"""By which names, paths and proxies the page is reached: what is asked for, and what each request is held against."""

from __future__ import annotations

import asyncio
import io
import os
import re
import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import COUNT, made_collection, served

from instdisc.errors import InputError
from instdisc.serve.access import Access, Reach, names_of
from instdisc.serve.security import Security
from instdisc.serve.upload import decode_aside


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("access"))


class Asked:
    """An application that notes what reaches it."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def ask(
    access: Access, client: str = "127.0.0.1", path: str = "/api/status", method: str = "GET", **headers: str
) -> Any:
    """(status, headers, scope that the application saw): one request, without a network."""
    app, sent = Asked(), []
    given = {"host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "scheme": "http",
        "client": (client, 5),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Security(app, access)(scope, None, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}, app.scope


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("photos.example", "photos.example"),
        ("Photos.Example", "photos.example"),
        ("nas.local:8765", "nas.local:8765"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("fd00::1", "[fd00::1]"),
        ("[fd00::1]:80", "[fd00::1]:80"),
        ("192.0.2.7", "192.0.2.7"),
    ],
)
def test_a_name_that_is_allowed_is_answered_to(given: str, name: str) -> None:
    access = Reach(allow_hosts=[given]).access()
    assert access.answers_to(name) and not access.answers_to(f"{name}.evil.example")
    bare = re.sub(r"(?<=[\w\]]):\d+$", "", name) if name.endswith((":8765", ":80")) else name
    assert access.answers_to(f"{bare}:1") == (bare == name), "with its own port alone, if it has one"


WRONG = {
    "allow_hosts": (["http://x"], ["*"], ["a/b"], [""], ["a b"], ["x:"], [":80"], ["a,b"], ["photos.example", "-"]),
    "base_path": ("/a b", "/../x", "/a/./b", "/a//b", "/a?b", "/a#b", "/a%0d%0ab"),
    "trusted_proxies": (["localhost"], [""], ["1.2.3"], ["10.0.0.0/99"], ["*"]),
}
OPTIONS = {"allow_hosts": "--allow-host", "base_path": "--base-path", "trusted_proxies": "--trusted-proxy"}


@pytest.mark.parametrize(("option", "given"), [(option, one) for option, all in WRONG.items() for one in all])
def test_what_is_no_name_path_or_address_is_a_sentence(option: str, given: Any) -> None:
    with pytest.raises(InputError, match=f"Invalid {OPTIONS[option]}"):
        Reach(**{option: given}).access()


def test_the_command_says_it_too(said: Callable[..., str], trained: tuple[Path, Path]) -> None:
    assert "Invalid --allow-host: 'http://x/'" in said("serve", trained[1], "--allow-host", "http://x/", code=1)


def test_a_token_is_made_wherever_others_may_come() -> None:
    local = ("127.0.0.1", "localhost", "::1")
    assert [Reach(host=host).access().token for host in local] == [None] * 3
    assert Reach(base_path="/photos", allow_hosts=["localhost:1", "[::1]"]).access().token is None
    for reach in (Reach(host="0.0.0.0"), Reach(allow_hosts=["nas.local"]), Reach(trusted_proxies=["127.0.0.1"])):
        assert len(reach.access().token or "") > 20 and reach.access().token != reach.access().token
    assert Reach(host="0.0.0.0", token="mine").access().token == "mine"


def test_a_machine_has_its_own_names_and_never_a_strangers() -> None:
    own = socket.gethostname().lower()
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        assert {"localhost", "127.0.0.1", "[::1]", own, f"{own.removesuffix('.local')}.local"} <= names_of(host)
    assert "192.0.2.7" in names_of("192.0.2.7") and "[fd00::1]" in names_of("fd00::1")
    for name in names_of("0.0.0.0"):
        bare = name.strip("[]").partition("%")[0]
        if bare.replace(".", "").isdigit() or ":" in bare:
            assert ip_address(bare), name


def test_the_address_is_what_opens() -> None:
    for reach, port, address in (
        (Reach(), 8765, "http://127.0.0.1:8765/"),
        (Reach(host="::1"), 80, "http://[::1]:80/"),
        (Reach(host="0.0.0.0", token="x", base_path="photos/"), 9, "http://127.0.0.1:9/photos/?token=x"),
        (Reach(base_path="/user/ada%40lab/p"), 9, "http://127.0.0.1:9/user/ada%40lab/p/"),
    ):
        assert reach.address(port, reach.access()) == address


# ---------------------------------------------------------------------------------------------------------------------
# What every request is held against


def test_forwarded_headers_are_believed_of_named_proxies_alone() -> None:
    trusting = Access(frozenset({"localhost"}), proxies=Reach(trusted_proxies=["10.0.0.0/8", "::1"]).access().proxies)
    told = {"x_forwarded_for": "203.0.113.9, 198.51.100.4, 10.1.1.1", "x_forwarded_proto": "https"}
    for client in ("10.2.3.4", "::1", "::ffff:10.2.3.4"):
        _, _, scope = ask(trusting, client, **told)
        assert scope["client"][0] == "198.51.100.4" and scope["scheme"] == "https", "the last that no proxy of ours is"
    for client in ("127.0.0.1", "192.0.2.1", "::ffff:192.0.2.1", "unix", ""):
        _, _, scope = ask(trusting, client, **told)
        assert scope["client"][0] == client and scope["scheme"] == "http"
    for odd in ("unknown", "_hidden, 10.1.1.1", "203.0.113.9, <script>, 10.1.1.1", ",,,", "1.2.3.4:80"):
        assert ask(trusting, "10.2.3.4", x_forwarded_for=odd)[2]["client"][0] in ("10.2.3.4", "10.1.1.1")
    for odd in ("gopher", "https, http", "HTTPS://"):
        assert ask(trusting, "10.2.3.4", x_forwarded_proto=odd)[2]["scheme"] == "http"


@pytest.mark.fault("no Host check")
def test_a_proxys_word_makes_no_name_good(trained: tuple[Path, Path]) -> None:
    """A page of a stranger's name, led here through the proxy, can set headers that the proxy passes on."""
    access = Reach(allow_hosts=["photos.example"], trusted_proxies=["127.0.0.1"], token="right").access()
    more = {"authorization": "Bearer right"}
    assert ask(access, host="photos.example", **more)[0] == 200
    for host in ("evil.example", "photos.example.evil.example", ""):
        for forwarded in ("photos.example", "localhost", ""):
            forged = {"x_forwarded_host": forwarded} if forwarded else {}
            assert ask(access, host=host, **forged, **more)[0] == 421
    assert ask(access, host="localhost", x_forwarded_host="evil.example", **more)[0] == 421
    post = {"path": "/api/labels", "method": "POST"}
    own = {"origin": "https://photos.example", "x_forwarded_proto": "https"}
    assert ask(access, **post, host="photos.example", **own, **more)[0] == 200
    assert ask(access, **post, host="localhost", x_forwarded_host="photos.example", **own, **more)[0] == 200
    assert ask(access, **post, host="localhost", **own, **more)[0] == 403, "and no browser said that they are one"
    assert ask(access, **post, host="localhost", sec_fetch_site="same-origin", **own, **more)[0] == 200
    assert ask(access, "192.0.2.1", **post, host="photos.example", **own, **more)[0] == 403, (
        "the scheme is not believed"
    )
    for site in ("same-site", "cross-site", "none", "Same-Origin", "same-origin, same-origin"):
        assert ask(access, **post, host="localhost", sec_fetch_site=site, **own, **more)[0] == 403


@pytest.mark.fault("no Origin check")
def test_strangers_are_refused_whatever_their_browser_says() -> None:
    access = Reach(allow_hosts=["photos.example"], token="right").access()
    more = {"authorization": "Bearer right", "path": "/api/labels", "method": "POST", "sec_fetch_site": "same-origin"}
    for origin in ("http://evil.example", "null", "photos.example", "file://localhost", "http://localhost.evil.example",
                   "http://evil.example/http://localhost", "http://localhost@evil.example", ""):  # fmt: skip
        assert ask(access, origin=origin, **more)[0] == 403, origin


def test_a_refusal_says_what_to_do_and_repeats_no_markup() -> None:
    def words(host: str) -> str:
        scope = {"headers": [(b"host", host.encode())], "method": "GET", "path": "/"}
        status, said, _ = Security(None, Reach().access()).refusal(scope)
        assert status == 421
        return said

    for host in ("nas.lan", "nas.lan:8765"):
        assert "the name nas.lan. If it is yours: instdisc serve RUN --allow-host nas.lan" in words(host)
    for host in ("<script>", "a b", "x'\"", "[::2]:80", ""):
        assert words(host) == "This server does not answer to that host name."


def test_a_base_path_is_answered_below_and_without(trained: tuple[Path, Path]) -> None:
    """As a proxy passes it on, or takes it off; nothing but the page itself may be linked to."""
    with served(trained[1], token="right", base_path="/deep/photos") as client:

        def get(path: str, **more: str) -> tuple[int, dict[str, str], bytes]:
            return client.send("GET", path, authorization="Bearer right", **more)

        for prefix in ("/deep/photos", ""):
            assert get(f"{prefix}/")[2].startswith(b"<!doctype html>")
            assert b'"total":%d' % COUNT in get(f"{prefix}/api/pictures")[2]
            assert get(f"{prefix}/pictures/0")[1]["content-type"] == "image/jpeg"
        status, headers, _ = client.send("GET", "/deep/photos?token=right&x=1")
        assert status == 307 and headers["location"] == "photos/?token=right&x=1"
        status, headers, _ = client.send("GET", "/deep/photos/?token=right")
        assert status == 303 and headers["location"] == "./" and "path" not in headers["set-cookie"].lower()
        assert b'"servers":[{"url":"/deep/photos"}]' in get("/deep/photos/api/openapi.json")[2]
        for path in ("/deep", "/deep/photosx/api/status", "/photos/api/status", "/deep/photos/deep/photos/api/status"):
            assert get(path)[0] == 404
        link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert [get(path, **link)[0] for path in ("/deep/photos/", "/deep/photos", "/")] == [200, 307, 200]
        assert [get(path, **link)[0] for path in ("/deep/photos/pictures/0", "/deep/photos/app.js")] == [403, 403]
        assert client.send("GET", "/deep/photos/api/status")[0] == 401
        for path in ("/deep/photos/../../etc/passwd", "/deep/photos/%2e%2e/app.py", "/deep/photos//etc/passwd"):
            assert get(path)[0] in (404, 405, 422)


def test_a_cookie_over_tls_is_for_tls_alone() -> None:
    access = Reach(allow_hosts=["photos.example"], trusted_proxies=["127.0.0.1"], token="right").access()
    for proto in ("https", "http"):
        scope = {"headers": [(b"host", b"photos.example")], "method": "GET", "path": "/", "scheme": proto}
        status, _, headers = Security(None, access).refusal(scope | {"query_string": b"token=right"})
        assert status == 303 and ("; Secure" in dict(headers)[b"set-cookie"].decode()) == (proto == "https")


# ---------------------------------------------------------------------------------------------------------------------
# Uploads on systems that lack a limit


@pytest.mark.parametrize(
    "lacks",
    [
        "def setrlimit(what, most, before=resource.setrlimit):\n"
        "    if what == resource.RLIMIT_AS: raise ValueError('current limit exceeds maximum limit')\n"
        "    before(what, most)\n"
        "resource.setrlimit = setrlimit",
        "del resource.RLIMIT_AS, resource.RLIMIT_NPROC",
        "resource.setrlimit(resource.RLIMIT_CPU, (5, 5))",
    ],
    ids=["refuses one on memory, as macOS", "has none", "has a lower one already"],
)
def test_uploads_are_read_where_the_system_lacks_a_limit(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the decoding process begins with is changed; it runs as ever."""
    note = tmp_path / "ran"
    (tmp_path / "sitecustomize.py").write_text(f"import resource\n{lacks}\nopen({str(note)!r}, 'w').close()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")])))
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    np.testing.assert_array_equal(decode_aside(content.getvalue()), pixels)
    assert note.exists()
