"""The page from elsewhere, each way for real, by the commands and configurations of docs/reach.md: all of it works
there, and every stranger is still refused.
"""

from __future__ import annotations

import http.client
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import routes
from browsing import chromium, needs_chromium, playwright, quiet_page
from serving import Told, made_collection, served
from two_processes import free_port

from instdisc.jobs.label import hand_labels
from instdisc.serve.access import Reach

TOKEN = "right"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("routes"))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    """It takes the names of the page for this machine."""
    with chromium(routes.RULES) as browser:
        yield browser


@pytest.fixture
def reached(
    run: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """reached(title): a server as the command of that section of the page starts it, and the token or nothing."""

    @contextmanager
    def act(title: str, which: int = 0) -> Iterator[tuple[int, str]]:
        asked: list[Reach] = []
        with monkeypatch.context() as patched:
            patched.setattr("instdisc.serve.serve.serve", lambda run, reach, **more: asked.append(reach))
            status, _, errors = command("serve", run, *routes.serve_words(title, which))
            assert not status, errors
        (reach,) = asked
        token = TOKEN if reach.access().token else None
        given = {name: getattr(reach, name) for name in ("host", "allow_hosts", "base_path", "trusted_proxies")}
        with served(Told(run), token=token, **given) as client:
            yield client.port, f"?token={token}" if token else ""

    return act


def walk(browser: playwright.Browser, address: str, question: str, trained: tuple[Path, Path], run: Path) -> None:
    """What a person does: look, search, label, undo, the map, lists. All of it stays below the address."""
    asked: list[str] = []
    with quiet_page(browser, address, "Cross-Origin-Opener-Policy") as page:
        page.on("request", lambda request: asked.append(request.url))
        seen = "selector => [...document.querySelectorAll(selector)].some((one) => one.naturalWidth > 0)"
        page.goto(f"{address}{question}#/")
        page.wait_for_function(seen, arg=".scroll .cell img")
        page.locator(".scroll .cell").nth(3).click()
        page.wait_for_selector(".few .score")
        page.get_by_label("Label by hand").fill("leaf")
        page.keyboard.press("Enter")
        page.wait_for_selector("#message >> text=Labelled 1 picture")
        assert list(hand_labels(run).values()) == ["leaf"]
        page.locator("#message button").click()
        page.wait_for_selector("#message >> text=Undone")
        assert hand_labels(run) == {}
        page.set_input_files("#file", trained[0] / "green" / "0001.png")
        page.wait_for_function(seen, arg=".asked img[alt='your picture']")
        page.wait_for_selector(".few .score")
        with page.expect_response("**/api/map/sheet/**") as sheet:
            page.evaluate("location.hash = '#/map'")
        assert sheet.value.status == 200
        page.evaluate("location.hash = '#/label'")
        with page.expect_download() as labels:
            page.get_by_role("link", name="Export labels").click()
        assert Path(labels.value.path()).read_text().startswith("id,path,label")
        page.evaluate("location.hash = '#/'")
        page.locator(".scroll .cell").nth(2).focus()
        page.keyboard.press("x")
        with page.expect_download() as listed:
            page.get_by_role("button", name="Download list").click()
        assert len(Path(listed.value.path()).read_text().splitlines()) == 1
        page.reload()  # the cookie is good for it
        page.wait_for_function(seen, arg=".scroll .cell img")
    assert all(url.startswith((address, f"blob:{address.rstrip('/')[:8]}")) for url in asked), asked


def ask(address: str, method: str, path: str, headers: dict[str, str], body: str = "") -> int:
    """The status of an answer; headers are sent as they are."""
    parts = urlsplit(address)
    host = "127.0.0.1" if parts.hostname in routes.NAMES else parts.hostname
    assert host is not None and parts.port is not None
    if parts.scheme == "https":
        unknown = ssl.create_default_context()
        unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
        line: http.client.HTTPConnection = http.client.HTTPSConnection(host, parts.port, timeout=60, context=unknown)
    else:
        line = http.client.HTTPConnection(host, parts.port, timeout=60)
    try:
        line.putrequest(method, parts.path + path, skip_host=True)
        for name, value in ({"host": parts.netloc} | headers).items():
            line.putheader(name, value)
        if body:
            line.putheader("content-length", str(len(body)))
            line.putheader("content-type", "application/json")
        line.endheaders(body.encode() or None)
        return line.getresponse().status
    finally:
        line.close()


def refuses(
    browser: playwright.Browser, address: str, run: Path, more: dict[str, str], rewritten: bool = False
) -> None:
    """Rebinding, other sites and other ports get nothing, with the token too. rewritten: the Host is a forwarder's."""
    parts = urlsplit(address)
    own = f"{parts.scheme}://{parts.netloc}"
    stolen = '{"rows": [0], "label": "stolen"}'
    assert ask(address, "GET", "api/collection", more) == 200
    assert (
        ask(address, "POST", "api/labels/overwriting", {"origin": own, "sec-fetch-site": "same-origin"} | more, stolen)
        == 200
    )
    for name in (
        "evil.example",
        f"evil.example:{parts.port}",
        f"{parts.netloc}.evil.example",
        f"localhost.:{parts.port}",
    ):
        for forged in ({}, {"x-forwarded-host": parts.netloc}, {"forwarded": f"host={parts.netloc}"}):
            found = 421 if rewritten else ask(address, "GET", "api/collection", {"host": name} | forged | more)
            assert found in (400, 403, 421), (name, forged, found)
    for origin in (
        "http://evil.example",
        f"{parts.scheme}://evil.example:{parts.port}",
        "null",
        f"{own}, {own}",
        f"{own}.evil.example",
    ):
        for site in ("same-origin", "same-site", "cross-site", "none", ""):
            headers = {"origin": origin} | ({"sec-fetch-site": site} if site else {}) | more
            assert ask(address, "POST", "api/labels", headers, stolen) == 403, (origin, site)
    for site in ("same-site", "cross-site"):  # another port of the same name is of the same site
        headers = {"origin": f"{parts.scheme}://{parts.hostname}:1", "sec-fetch-site": site}
        assert ask(address, "POST", "api/labels", headers | more, stolen) == 403
        for path in ("pictures/0", "api/collection", "app.js"):
            assert ask(address, "GET", path, {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"} | more) == 403
    if not rewritten and ":" not in (parts.hostname or ""):
        context = browser.new_context(ignore_https_errors=True)
        answer = context.new_page().goto(f"{parts.scheme}://evil.example:{parts.port}{parts.path}api/collection")
        assert answer is not None and answer.status in (403, 421)
        context.close()
    assert hand_labels(run) == {}


def bearer(question: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKEN}"} if question else {}


# ---------------------------------------------------------------------------------------------------------------------
# Eight ways


@needs_chromium
def test_a_port_forwarded_as_by_ssh(browser, reached, trained: tuple[Path, Path], run: Path) -> None:
    with reached("SSH") as (port, question), routes.forwarded(("127.0.0.1", port)) as other:
        assert not question and other != port
        walk(browser, f"http://localhost:{other}/", question, trained, run)
        refuses(browser, f"http://localhost:{other}/", run, {})


@needs_chromium
def test_an_editors_forward_that_writes_another_host(browser, reached, trained, run: Path, tmp_path: Path) -> None:
    """As nginx does where nothing is said: the Host is 127.0.0.1:8765, the Origin is of the forwarded port."""
    with reached("SSH") as (port, question):
        other = free_port()
        server = f"server {{ listen 127.0.0.1:{other}; location / {{ proxy_pass http://127.0.0.1:8765; }} }}"
        address = f"http://localhost:{other}/"
        with routes.nginx(server, port, tmp_path / "nginx", f"http://127.0.0.1:{other}/"):
            walk(browser, address, question, trained, run)
            refuses(browser, address, run, {}, rewritten=True)


@needs_chromium
@pytest.mark.parametrize("real", [True, False], ids=["jupyter-server-proxy", "the same rewriting"])
def test_below_jupyter(browser, reached, trained: tuple[Path, Path], run: Path, tmp_path: Path, real: bool) -> None:
    with reached("SSH") as (port, question), ExitStack() as stack:
        if real:
            server, token = stack.enter_context(routes.jupyter(tmp_path / "jupyter"))
            address, question, more = f"{server}proxy/{port}/", f"?token={token}", {"authorization": f"token {token}"}
        else:
            other, path, more = free_port(), f"/user/ada/proxy/{port}/", {}
            location = f"location {path} {{ proxy_pass http://127.0.0.1:8765/; proxy_set_header Host $http_host; }}"
            address = f"http://127.0.0.1:{other}{path}"
            listening = f"server {{ listen 127.0.0.1:{other}; {location} }}"
            stack.enter_context(routes.nginx(listening, port, tmp_path / "nginx", address))
        walk(browser, address, question, trained, run)
        refuses(browser, address, run, more)


@needs_chromium
def test_a_container_with_a_published_port(browser, trained: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    """The real command in a network of its own, and a port of this machine that leads there."""
    words = [sys.executable, "-m", "instdisc", "serve", str(run), *routes.serve_words("A container"), "--device", "cpu"]
    assert "--host" in words and "0.0.0.0" in words
    with routes.container(words, tmp_path / "box") as (inside, printed), routes.forwarded((inside, 8765)) as other:
        until = time.monotonic() + 120
        while "?token=" not in printed():
            assert time.monotonic() < until, printed()
            time.sleep(0.1)
        token = printed().split("?token=")[1].split()[0]
        address, more = f"http://localhost:{other}/", {"authorization": f"Bearer {token}"}
        while ask(address, "GET", "api/map", more) != 200:
            assert time.monotonic() < until, printed()
            time.sleep(0.2)
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{address}?token={token}#/")
        page.wait_for_selector(".scroll .cell img")
        context.close()
        refuses(browser, address, run, more)


@needs_chromium
def test_a_local_name(browser, reached, trained: tuple[Path, Path], run: Path) -> None:
    with reached("Your own network", 1) as (port, question):
        assert question
        address = f"http://pictures.local:{port}/"
        assert ask(address, "GET", "", {}) == 401
        walk(browser, address, question, trained, run)
        refuses(browser, address, run, bearer(question))


@needs_chromium
def test_ipv6(browser, reached, trained: tuple[Path, Path], run: Path) -> None:
    try:
        free_port("::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    with reached("IPv6") as (port, question):
        assert not question
        walk(browser, f"http://[::1]:{port}/", question, trained, run)
        refuses(browser, f"http://[::1]:{port}/", run, {})


@needs_chromium
def test_nginx_with_tls(browser, reached, trained: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    other, folder = free_port(), tmp_path / "nginx"
    server = routes.configuration("A name with TLS")
    for old, new in (("listen 443", f"listen 127.0.0.1:{other}"), ("photos.example.", f"{tmp_path}/photos.example.")):
        assert old in server
        server = server.replace(old, new)
    routes.certificate("photos.example", tmp_path)
    with reached("A name with TLS") as (port, question):
        assert question
        address = f"https://photos.example:{other}/"
        with routes.nginx(server, port, folder, f"https://127.0.0.1:{other}/"):
            walk(browser, address, question, trained, run)
            refuses(browser, address, run, bearer(question))


@needs_chromium
@pytest.mark.parametrize("off", [False, True], ids=["the path is passed on", "the path is taken off"])
def test_nginx_at_a_path(browser, reached, trained, run: Path, tmp_path: Path, off: bool) -> None:
    other, location = free_port(), routes.configuration("A path of a site")
    if off:
        location = location.replace("http://127.0.0.1:8765;", "http://127.0.0.1:8765/;")
    server = f"server {{ listen 127.0.0.1:{other}; server_name site.example; {location} }}"
    with reached("A path of a site") as (port, question):
        assert question
        address = f"http://site.example:{other}/photos/"
        with routes.nginx(server, port, tmp_path / "nginx", f"http://127.0.0.1:{other}/photos/"):
            walk(browser, address, question, trained, run)
            refuses(browser, address, run, bearer(question))
