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

import uvicorn
from tiny_runs import picture_folder, tiny

from instdisc.jobs.serve import hosts_of
from instdisc.jobs.served import ServedRun
from instdisc.jobs.train import train
from instdisc.serve.app import make_app
from instdisc.serve.handed import Handed, Opening
from instdisc.serve.wire import config_for

COUNT = 40


def made_collection(folder: Path) -> tuple[Path, Path]:
    """So many small pictures, a text beside them that is nobody's business, and a run of them."""
    pictures = picture_folder(folder / "pictures", COUNT)
    (pictures / "red" / "secret.txt").write_text("nobody's business")
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


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
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
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
def served(run: Path | Handed | Opening, *, token: str | None = None) -> Iterator[Client]:
    """A server of a run folder, or of anything that can be handed to it, or is being opened."""
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        if isinstance(run, Opening):
            opening = run
        else:
            opening = Opening("made", lambda: ServedRun(run, device="cpu") if isinstance(run, Path) else run)
        server = uvicorn.Server(config_for(make_app(opening, hosts_of("127.0.0.1", port), token)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield Client(port)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
