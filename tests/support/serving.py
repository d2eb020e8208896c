"""A server of a small run in a thread, for the tests of the API and of the page."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from tiny_runs import picture_folder, tiny

from instdisc.jobs.train import train
from instdisc.serve.access import Reach
from instdisc.serve.app import make_app
from instdisc.serve.limits import config_for
from instdisc.serve.opened import Opened
from instdisc.serve.opening import Opening

COUNT = 40


def made_collection(folder: Path) -> tuple[Path, Path]:
    """So many small pictures, a text beside them that is nobody's business, and a run of them."""
    pictures = picture_folder(folder / "pictures", COUNT)
    (pictures / "red" / "secret.txt").write_text("nobody's business")
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


class Told(Opened):
    """Of made pictures, with vectors that tell their colours apart, and a map of them, ten in a row."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, device="cpu")
        colours = [Path(one.path).parent.name for one in self.index.entries(range(len(self.index)))]
        codes = np.unique(colours, return_inverse=True)[1]
        noise = np.random.default_rng(0).normal(0, 0.2, (len(codes), self.index.dim))
        vectors = torch.from_numpy(np.eye(self.index.dim)[codes] + noise).float()
        self.index.parts = [torch.nn.functional.normalize(vectors, dim=1)]

    def map_points(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(self.index))
        return rows, np.stack([rows % 10, rows // 10], axis=1).astype(np.float32)


class Other(Opened):
    """The same pictures by another run: vectors of six dimensions that tell colours apart less well; two are gone."""

    gone = (5, 17)

    def __init__(self, run: Path) -> None:
        super().__init__(run, device="cpu")
        colours = [Path(one.path).parent.name for one in self.index.entries(range(len(self.index)))]
        codes = np.unique(colours, return_inverse=True)[1]
        noise = np.random.default_rng(1).normal(0, 0.6, (len(codes), 6))
        self.index.parts = [torch.nn.functional.normalize(torch.from_numpy(np.eye(6)[codes] + noise).float(), dim=1)]
        self.index.removed[list(self.gone)] = True


def beside(run: Path) -> Opening:
    """A run with the other one beside it."""
    first, second = Told(run), Other(run)
    return Opening("first", lambda: first, beside=("second", second))


class Client:
    """Requests to one server; `host` and other headers can be what a stranger would send."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.address = f"http://127.0.0.1:{port}"

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body."""
        given = {"host": f"127.0.0.1:{self.port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body, given["content-type"] = json.dumps(body), "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=500)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            if body is not None:
                body = body.encode() if isinstance(body, str) else body
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str, body: Any = None, status: int = 200) -> Any:
        """The JSON of an answer that has this status."""
        found, _, content = self.send("GET" if body is None else "POST", path, body)
        assert found == status, (found, content)
        return json.loads(content)


@contextmanager
def served(run: Path | Opened | Opening, *, token: str | None = None, **reach: Any) -> Iterator[Client]:
    """A server of a run folder, or of a collection that is open, or is being opened. reach: as Reach has it."""
    reached = Reach(token=token, **reach)
    family = socket.AF_INET6 if ":" in reached.host else socket.AF_INET
    with socket.socket(family, proto=socket.IPPROTO_TCP) as listening:
        listening.bind((reached.host, 0))
        port = listening.getsockname()[1]
        if isinstance(run, Opening):
            opening = run
        else:
            opening = Opening("made", lambda: Opened(run, device="cpu") if isinstance(run, Path) else run)
        server = uvicorn.Server(config_for(make_app(opening, reached.access())))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield Client(port)
        finally:
            server.should_exit = True
            thread.join(500)
            assert not thread.is_alive()
