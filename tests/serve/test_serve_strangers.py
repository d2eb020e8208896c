"""The API to strangers: other sites, other paths, hostile uploads get nothing."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from serving import COUNT, Client, made_collection, served

from instdisc.errors import InputError
from instdisc.serve.access import names_of
from instdisc.serve.upload import MAX_BYTES, decode_aside


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def client(trained: tuple[Path, Path]) -> Iterator[Client]:
    """A server that no test changes."""
    with served(trained[1]) as client:
        yield client


@pytest.mark.slow
def test_the_api_is_as_it_says_of_itself_whatever_is_asked(run: Path) -> None:
    """schemathesis asks what the description allows: no server error, and no answer that it does not describe."""
    program = Path(sys.executable).with_name("schemathesis")
    if not program.is_file():
        pytest.skip("schemathesis is not installed: pip install schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with served(run) as client:
        words = [program, "run", f"{client.address}/api/openapi.json", "--checks", checks, "--max-examples", "6"]
        words += ["--phases", "coverage,fuzzing", "--seed", "1", "--no-color"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=500, cwd=run)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.fault("no Host check")
@pytest.mark.fault("no Origin check")
def test_other_hosts_and_other_sites_are_refused(client: Client) -> None:
    port = client.port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        f"localhost.evil.example:{port}",
        f"127.0.0.1@evil.example:{port}",
        f"127.0.0.1:{port}:{port}",
        f"127.0.0.1,evil.example:{port}",
        f"localhost.:{port}",
        "[::1",
        "",
    ):
        assert client.send("GET", "/api/collection", host=host)[0] == 421
    for host in ("127.0.0.1", f"localhost:{port}", "LOCALHOST:9000", "[::1]", "[::1]:443"):  # of this machine to itself
        assert client.send("GET", "/api/collection", host=host)[0] == 200
    body = {"rows": [0], "label": "stolen"}
    for origin in (
        "http://evil.example",
        "null",
        f"https://127.0.0.1:{port}",
        f"http://localhost:{port}",
        f"http://127.0.0.1:{port}, x",
        f"http://127.0.0.1:{port + 1}",
        "http://127.0.0.1",
    ):
        assert client.send("POST", "/api/labels", body, origin=origin)[0] == 403
        for site in ("cross-site", "same-site", "none"):  # a page of another port is of the same site
            assert client.send("POST", "/api/labels", body, origin=origin, sec_fetch_site=site)[0] == 403
        assert client.send("POST", "/api/uploads", b"x", origin=origin)[0] == 403
    for site in ("cross-site", "same-site"):
        for path in ("/pictures/0", "/api/collection", "/app.js"):
            assert (
                client.send("GET", path, sec_fetch_site=site, sec_fetch_mode="no-cors", sec_fetch_dest="image")[0]
                == 403
            )
        assert (
            client.send("GET", "/", sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="iframe")[0] == 403
        )
        assert (
            client.send("GET", "/", sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="document")[0] == 200
        )
    assert client.json("/api/labels")["classes"] == []
    for method in ("OPTIONS", "TRACE", "PATCH", "CONNECT", "PROPFIND"):
        assert client.send(method, "/api/labels")[0] == 405


def test_every_answer_carries_the_strict_headers(client: Client) -> None:
    for path in ("/", "/app.js", "/api/collection", "/pictures/0", "/none", "/api/openapi.json"):
        _, headers, _ = client.send("GET", path)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert not any(name.startswith("access-control-") for name in headers)
    assert client.send("GET", "/api/collection", host="evil")[1]["content-security-policy"]


@pytest.mark.fault("path traversal by file name")
def test_nothing_but_the_page_and_the_rows_is_served(client: Client, trained: tuple[Path, Path]) -> None:
    for path in (
        "/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/%2e%2e%2f%2e%2e%2fserve/app.py", "/....//app.py",
        "//etc/passwd", "/etc/passwd", "/pictures/../../etc/passwd", "/pictures/red%2fsecret.txt",
        "/pictures/0/../../../etc/passwd", f"/{trained[0]}/red/secret.txt", "/pictures/-1", "/pictures/0x1",
        "/pictures/1e3", "/pictures/" + "9" * 40, "/pictures/40", "/pictures/NaN", "/app.js%00.png", "/docs", "/redoc",
    ):  # fmt: skip
        status, _, content = client.send("GET", path)
        assert status in (404, 405, 422), path
        assert b"root:" not in content and b"nobody" not in content and b"def make_app" not in content


@pytest.mark.fault("server bound to all interfaces")
def test_beyond_this_machine_a_token_is_needed(trained: tuple[Path, Path]) -> None:
    with served(trained[1], token="right") as client:
        name = f"instdisc-{client.port}"
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right"}, {"cookie": f"{name}=wrong"},
                        {"cookie": f"{name}=\xff; ;;=,"}, {"authorization": "Bearer " + "x" * 5000}):  # fmt: skip
            for path in ("/", "/api/collection", "/pictures/0", "/?token=wrong", "/api/collection?token=right"):
                assert client.send("GET", path, **headers)[0] == 401
        assert client.send("GET", "/api/collection", authorization="Bearer right")[0] == 200
        status, headers, _ = client.send("GET", "/?token=right")
        assert status == 303 and headers["location"] == "./"
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
        assert client.send("GET", "/pictures/0", cookie=headers["set-cookie"].split(";")[0])[0] == 200
    assert names_of("127.0.0.1") == {"127.0.0.1", "localhost", "[::1]"}


def test_two_servers_on_one_host_keep_their_tokens_apart(trained: tuple[Path, Path]) -> None:
    """A browser keeps cookies by host, not by port, and sends both to each."""
    with served(trained[1], token="one") as one, served(trained[1], token="other") as other:
        jar: dict[str, str] = {}
        for client, token in ((one, "one"), (other, "other")):
            name, _, value = client.send("GET", f"/?token={token}")[1]["set-cookie"].split(";")[0].partition("=")
            jar[name] = value
        cookies = "; ".join(f"{name}={value}" for name, value in jar.items())
        assert [client.send("GET", "/api/status", cookie=cookies)[0] for client in (one, other)] == [200, 200]


def test_a_request_that_is_no_good_is_refused_whatever_stands_in_it(client: Client) -> None:
    """Infinity and half a character are no JSON: a refusal that quotes them can't be written."""
    for body in ('{"rows":[1e400],"label":"x"}', '{"rows":[NaN],"label":"x"}', '{"rows":["\\ud800"],"label":"\\ud800"}',
                 '{"rows":' + "[" * 2_000 + "]" * 2_000 + "}", "[" * 100_000, "9" * 10_000):  # fmt: skip
        status, _, content = client.send("POST", "/api/labels", body, content_type="application/json")
        assert status in (400, 422) and len(content) < 5_000, body[:40]


def bomb() -> bytes:
    content = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.fault("decompression bomb")
@pytest.mark.fault("SVG decoded")
@pytest.mark.fault("EPS decoded")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"GIF89a" + bytes(50), ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"\x80\x04\x95cos\nsystem\n", ""),
        (b"https://example.com/cat.jpg", ""),
        (bomb(), "pixels"),
        (b"\xff\xd8\xff\xe0" + bytes(1000), ""),
    ],
    ids=["empty", "gif", "svg", "eps", "pickle", "address", "bomb", "jpeg"],
)
def test_hostile_uploads_are_refused_with_a_reason(client: Client, content: bytes, words: str) -> None:
    status, _, answer = client.send("POST", "/api/uploads", content)
    assert status == 400
    detail = json.loads(answer)["detail"]
    assert words in detail and detail.endswith(".") and "Traceback" not in detail


@pytest.mark.fault("an upload without a size limit")
def test_uploads_are_capped_whatever_they_say_of_themselves(client: Client) -> None:
    assert client.send("POST", "/api/uploads", bytes(MAX_BYTES + 1))[0] == 413
    with pytest.raises(InputError, match="larger than 20 MB"):
        decode_aside(bytes(MAX_BYTES + 1))
    # Without a length, in chunks: refused as soon as it is too much.
    with socket.create_connection(("127.0.0.1", client.port), timeout=500) as line:
        line.sendall(
            b"POST /api/uploads HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
            + f"Host: 127.0.0.1:{client.port}\r\n\r\n".encode()
        )
        sent = 0
        try:
            while sent < 3 * MAX_BYTES:
                line.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
                sent += 2**20
        except OSError:
            pass
        line.settimeout(10)
        with contextlib.suppress(ConnectionError):  # the server may hang up before the answer is read
            assert b" 413 " in line.recv(200)


def test_a_decoder_that_hangs_or_eats_memory_takes_nothing_with_it(monkeypatch, tmp_path: Path) -> None:
    from instdisc.serve import upload

    program, python = tmp_path / "program.py", sys.executable
    monkeypatch.setattr(upload, "_SECONDS", 0.3)
    for body, words in (("while True: pass", "too long"), ("import os; os.abort()", "too much time or memory")):
        program.write_text(f"#!{python}\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setattr(upload.sys, "executable", str(program))
        with pytest.raises(InputError, match=words):
            decode_aside(b"anything")


def test_many_at_once_are_all_answered_rightly(client: Client) -> None:
    expected = {row: client.json(f"/api/neighbours/{row}?count=5") for row in range(COUNT)}
    wrong: list[int] = []

    def ask(row: int) -> None:
        if client.json(f"/api/neighbours/{row}?count=5") != expected[row]:
            wrong.append(row)

    threads = [threading.Thread(target=ask, args=(number % COUNT,)) for number in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
