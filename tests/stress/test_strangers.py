"""What a stranger could hand over or ask for, and what the page and the server never do with it."""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
import uvicorn
from serving import Client, served
from tiny_runs import picture_folder, tiny

from instdisc import cli
from instdisc.jobs import index
from instdisc.jobs.duplicates import look_alikes
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.serve.access import Reach
from instdisc.serve.serve import serve

PACKAGE = Path(cli.__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    pictures = picture_folder(folder / "pictures", 40)
    return train(pictures, folder / "run", tiny(epochs=1), say=None).path


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[Client]:
    with served(run) as client:
        yield client


# ---------------------------------------------------------------------------------------------------------------------
# The server


@pytest.mark.fault("server bound to all interfaces")
def test_the_server_listens_on_this_machine_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the function and by the command; wherever else it was sent, it asks for a token that it made itself."""
    listening: list[str] = []
    tokens: list[str | None] = []

    def started(server: uvicorn.Server, sockets: Any) -> None:
        listening.extend(one.getsockname()[0] for one in sockets)
        tokens.append(server.config.app.access.token)

    monkeypatch.setattr(uvicorn.Server, "run", started)
    said: list[str] = []
    serve(run, Reach(port=0), say=said.append)
    monkeypatch.setattr(sys, "argv", ["instdisc", "serve", str(run), "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert listening == ["127.0.0.1"] * 2 and tokens == [None] * 2

    serve(run, Reach(host="0.0.0.0", port=0), say=said.append)
    serve(run, Reach(host="0.0.0.0", port=0), say=said.append)
    assert len(tokens[2] or "") > 20 and tokens[2] != tokens[3]
    assert said[2].endswith(f"?token={tokens[2]}")


@pytest.mark.fault("`*` in CORS")
def test_no_answer_may_be_read_by_another_site(client: Client) -> None:
    """A browser gives it to a foreign script only where a header allows that; servers add it if there is an Origin."""
    preflight = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}
    for origin in (client.address, "http://evil.example", "null"):
        for path in ("/", "/app.js", "/api/collection", "/pictures/0", "/api/labels", "/none"):
            for method, more in (("GET", {}), ("POST", {}), ("OPTIONS", preflight)):
                status, headers, _ = client.send(method, path, origin=origin, **more)
                assert not [name for name in headers if name.startswith("access-control-")], (method, path, origin)
                assert method == "OPTIONS" or origin == client.address or status == 403


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """The address of a picture on another server, and what that one was asked for."""
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cat.jpg", asked
        server.shutdown()
        thread.join()


@pytest.mark.fault("fetching a URL on the user's behalf")
def test_no_address_is_ever_fetched(client: Client, elsewhere: tuple[str, list[str]]) -> None:
    address, asked = elsewhere
    words = quote(address, safe="")
    described = json.loads(client.send("GET", "/api/openapi.json")[2])
    tried = 0
    for path, methods in described["paths"].items():
        for method, facts in methods.items():
            named = [one["name"] for one in facts.get("parameters", []) if one["in"] == "query"]
            query = "&".join(f"{name}={words}" for name in [*named, "url", "uri", "src", "link", "image"])
            filled = re.sub(r"\{\w+\}", words, path)
            bodies: list[Any] = (
                [None] if method == "get" else [address, {"url": address}, {"rows": [0], "label": address}]
            )
            for body in bodies:
                status, _, _ = client.send(method.upper(), f"{filled}?{query}", body)
                assert status < 500
                tried += 1
    client.json("/api/labels", {"rows": [0], "label": None})
    form = f'--x\r\ncontent-disposition: form-data; name="url"\r\n\r\n{address}\r\n--x--\r\n'
    assert client.send("POST", "/api/uploads", form, content_type="multipart/form-data; boundary=x")[0] == 400
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}"/></svg>'
    assert client.send("POST", "/api/uploads", drawing)[0] == 400
    assert tried > 15 and asked == []


class RunsCode:
    """Whoever unpickles it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


def as_array(thing: Any, file: Any) -> None:
    np.save(file, np.array([thing], dtype=object), allow_pickle=True)


@pytest.mark.fault("unpickling an upload")
@pytest.mark.parametrize(
    ("write", "read"),
    [
        (pickle.dump, pickle.load),
        (torch.save, lambda file: torch.load(file, weights_only=False)),
        (as_array, lambda file: np.load(file, allow_pickle=True)),
    ],
    ids=["pickle", "torch", "numpy"],
)
def test_an_upload_is_never_unpickled(client: Client, tmp_path: Path, write: Any, read: Any) -> None:
    trace = tmp_path / "trace"
    content = io.BytesIO()
    write(RunsCode(trace), content)
    status, _, answer = client.send("POST", "/api/uploads", content.getvalue())
    assert status == 400 and json.loads(answer)["detail"].startswith("This can't be used as a picture")
    assert not trace.exists()
    content.seek(0)
    read(content)
    assert trace.exists(), "this is what a reader of pickles does"


# ---------------------------------------------------------------------------------------------------------------------
# The index


@pytest.mark.fault("index files from strangers parsed by C++ code")
def test_a_graph_that_somebody_else_made_is_never_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """usearch parses files in C++: approximate search reads what this user wrote, and builds it again in all others."""
    usearch = pytest.importorskip("usearch.index", reason="usearch is not installed: pip install 'instdisc[ann]'")
    index.add(run, picture_folder(tmp_path / "more", 8, seed=3), say=None)
    strange = [
        folder / name for folder in (run, run / "index") for name in ("graph.usearch", "index.faiss", "hnsw.bin")
    ]
    for file in strange:
        file.write_bytes(b"a stranger's graph")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
    links = RunFolder(run).links
    assert look_alikes(run, threshold=0.5, approximate=True, say=None)
    theirs, restore = links.stat().st_ino, usearch.Index.restore
    opened: list[int] = []

    def seen(path: str, **how: Any) -> Any:
        opened.append(os.stat(path).st_ino)
        return restore(path, **how)

    monkeypatch.setattr(usearch.Index, "restore", seen)
    assert look_alikes(run, threshold=0.5, approximate=True, say=None)
    assert opened == [theirs], "its own is read"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    assert look_alikes(run, threshold=0.5, approximate=True, say=None)
    assert opened[1:] == [links.stat().st_ino] and links.stat().st_ino != theirs
    for file in strange:
        file.unlink()
    (found,) = search(run, sorted((tmp_path / "more").rglob("*.png"))[:1], neighbours=3)
    assert len(found) == 3
    kinds = {
        path.suffix
        for path in run.rglob("*")
        if path.is_file() and path.parent.name != "tensorboard" and path.name != "lock"
    }
    assert kinds <= {".json", ".jsonl", ".csv", ".txt", ".png", ".safetensors", ".arrow", ".lock", ".usearch"}


# ---------------------------------------------------------------------------------------------------------------------
# The page


def code(path: Path) -> bytes:
    """A file of the page without its indentation, and without lines that are a comment alone."""
    lines = [line.strip() for line in path.read_bytes().splitlines()]
    return b"\n".join(one for one in lines if one and not one.startswith((b"//", b"/*")))


@pytest.mark.fault("30 MB of JavaScript from a foreign host")
def test_the_page_is_small_and_names_no_other_host() -> None:
    files = [path for path in (PACKAGE / "serve" / "page").rglob("*") if path.is_file()]
    assert len(files) > 5 and sum(len(code(path)) for path in files) < 120_000
    for path in files:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, and no address
        assert not re.search(r"(https?|wss?)://|[\"'(]//\w", text), path.name
        for imported in re.findall(r"""\b(?:from|import)\s*\(?\s*["']([^"']+)["']""", text):
            assert imported.startswith("./"), f"{path.name} imports {imported}"
