"""Many, slow and large requests: they wait, give way or are told to come again, and others are answered meanwhile."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException
from serving import COUNT, Client, made_collection, served

from instdisc.errors import InputError
from instdisc.jobs import run as run_job
from instdisc.jobs.collection import Collection
from instdisc.serve import limits
from instdisc.serve import opened as served_job
from instdisc.serve.opened import Opened
from instdisc.serve.opening import Opening
from instdisc.serve.session import Session

OTHER = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"  # only Linux has the whole network


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("crowds"))


def connected(client: Client, source: str = OTHER) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.port), 10, (source, 0))


def head(client: Client, path: str, *more: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{client.port}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def is_closed(line: socket.socket, seconds: float) -> bool:
    line.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        try:
            while line.recv(65_536):
                pass
        except TimeoutError:
            return False
    return True


@contextlib.contextmanager
def running(*threads: threading.Thread) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(500)
            assert not thread.is_alive()


# ---------------------------------------------------------------------------------------------------------------------
# Connections


def test_held_connections_give_way_to_one_that_asks(trained: tuple[Path, Path], monkeypatch) -> None:
    monkeypatch.setattr(limits, "MOST", 40)
    with served(trained[1]) as client, contextlib.ExitStack() as lines:
        own = lines.enter_context(connected(client, "127.0.0.1"))
        held = [lines.enter_context(connected(client)) for _ in range(300)]
        for line in held[::2]:
            with contextlib.suppress(ConnectionError):  # it may have given way already
                line.sendall(head(client, "/")[:30])
        assert client.json("/api/pictures")["total"] == COUNT
        assert sum(not is_closed(line, 0.001) for line in held) <= 40
        if OTHER != "127.0.0.1":  # who has one connection keeps it: those of the address with the most are closed
            own.sendall(head(client, "/api/status"))
            assert b" 200 " in own.recv(1_000)


def test_a_head_that_drips_is_cut_off_and_so_is_silence(trained: tuple[Path, Path], monkeypatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.4)
    with served(trained[1]) as client, connected(client) as silent, connected(client) as drips:
        started, answered = time.monotonic(), head(client, "/api/status")
        drips.sendall(answered)
        assert b" 200 " in drips.recv(1_000)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < started + 1200:
                drips.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() < started + 1200 and is_closed(silent, 2)


def test_an_answer_that_nobody_reads_is_let_go_and_one_read_slowly_is_not(
    trained: tuple[Path, Path], monkeypatch
) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.7)
    monkeypatch.setattr(limits, "SLOWEST", 1_000)
    with served(trained[1]) as client, connected(client) as unread, connected(client) as slow:
        ask = head(client, "/api/openapi.json")
        many = ask * 599 + head(client, "/api/openapi.json", "Connection: close")
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        unread.sendall(many)  # to ten megabytes of answers: more than the system's buffers take
        slow.sendall(many)
        parts, started = list[bytes](), time.monotonic()
        while part := slow.recv(65_536):
            parts.append(part)
            time.sleep(0.006)
        assert b"".join(parts).count(b"HTTP/1.1 200") == 600 and time.monotonic() - started > 0.9
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                unread.sendall(b"x")
                time.sleep(0.05)
            pytest.fail("it is still held")


# ---------------------------------------------------------------------------------------------------------------------
# Bodies and turns


def test_uploads_that_come_slowly_give_way_to_one_that_comes(trained: tuple[Path, Path], monkeypatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 3_000.0)  # nobody waits for so long: not the client either
    picture = next(trained[0].glob("*/*.png")).read_bytes()
    with served(trained[1]) as client, contextlib.ExitStack() as lines:
        slow = [lines.enter_context(connected(client, "127.0.0.1")) for _ in range(limits.BODIES_OF_ONE)]
        for line in slow:
            line.sendall(head(client, "/api/uploads", "Content-Length: 1000000", method="POST") + b"x")
        client.json("/api/status")  # by now all of them are being read
        assert client.send("POST", "/api/uploads", picture)[0] == 200
        answer = slow[0].recv(1_000).lower()
        assert b" 503 " in answer and b"retry-after: 1" in answer


def test_a_body_that_never_ends_is_ended(trained: tuple[Path, Path], monkeypatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    with served(trained[1]) as client, connected(client) as line:
        line.sendall(head(client, "/api/labels", "Content-Length: 20", method="POST") + b"{")
        assert b" 408 " in line.recv(1_000)


class Held(Opened):
    """A collection whose uploads and pictures wait until they are let go."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, device="cpu")
        self.go, self.waiting = threading.Event(), threading.Semaphore(0)

    def embed(self, pictures):
        self._hold()
        return super().embed(pictures)

    def picture(self, row: int, at_least: int | None = None) -> np.ndarray:
        self._hold()
        return super().picture(row)

    def _hold(self) -> None:
        self.waiting.release()
        assert self.go.wait(120)


def test_more_uploads_than_there_is_room_for_are_told_when_to_come_again(trained: tuple[Path, Path]) -> None:
    picture, held, statuses = next(trained[0].glob("*/*.png")).read_bytes(), Held(trained[1]), list[int]()
    with served(held) as client:

        def upload() -> None:
            statuses.append(client.send("POST", "/api/uploads", picture)[0])

        with running(*[threading.Thread(target=upload) for _ in range(limits.BODIES_OF_ONE)]):
            assert held.waiting.acquire(timeout=500)
            for _ in range(100):  # until all the others hold their place too
                status, headers, content = client.send("POST", "/api/uploads", picture)
                if status == 503:
                    break
            held.go.set()
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(content)["detail"] == "Too many uploads at once: try again."
        assert statuses == [200] * limits.BODIES_OF_ONE


@pytest.mark.skipif(OTHER == "127.0.0.1", reason="this system has one address of its own")
def test_an_address_that_asks_for_much_leaves_turns_to_others(trained: tuple[Path, Path]) -> None:
    held, questions = Held(trained[1]), 60  # more than there are threads
    with served(held) as client, contextlib.ExitStack() as lines:
        for row in range(questions):
            line = lines.enter_context(connected(client))
            line.sendall(head(client, f"/pictures/{row % COUNT}?size=full"))
        for _ in range(limits.TURNS):
            assert held.waiting.acquire(timeout=500)
        assert client.json("/api/neighbours/3?count=5")["results"]  # while all of them wait
        assert not held.waiting.acquire(blocking=False)  # no more than its turns
        held.go.set()
        for _ in range(questions - limits.TURNS):  # and all are answered, in the end
            assert held.waiting.acquire(timeout=500)


def test_different_comparisons_wait_in_line_and_one_too_many_is_told_so() -> None:
    go = threading.Event()

    def slow(threshold: float) -> list[float]:
        assert threshold == 0.95 or go.wait(1200)
        return [threshold]

    compare = Session(Opening("made", lambda: None)).once(slow, 4)
    refused, found = queue.Queue[HTTPException](), list[float]()
    assert compare(0.95) == [0.95]

    def ask(threshold: float) -> None:
        try:
            found.extend(compare(threshold))
        except HTTPException as error:
            refused.put(error)

    with running(*[threading.Thread(target=ask, args=(one,)) for one in (0.9, 0.8, 0.7, 0.6)]):
        error = refused.get(timeout=500)  # one of them, while no other is done
        assert (error.status_code, error.headers) == (503, {"retry-after": "2"})
        assert compare(0.95) == [0.95]  # what is known is answered meanwhile
        go.set()
    assert len(found) == 3 and refused.empty()


def test_nothing_long_is_computed_while_the_labels_are_locked(trained: tuple[Path, Path], monkeypatch) -> None:
    """Every view looks whether labels have changed: a vote over a million pictures must not hold it up."""
    run, seen = Opened(trained[1], device="cpu"), list[bool]()
    run.index.entries([0])

    def long(kind: str, *given, **more):
        looking = threading.Thread(target=run.hand_labels)
        looking.start()
        looking.join(5)
        seen.append(not looking.is_alive())
        return real[kind](*given, **more)

    real = {"vote": served_job.votes_job.vote, "proposals": served_job.votes_job.proposals}
    for kind in real:
        monkeypatch.setattr(served_job.votes_job, kind, lambda *given, kind=kind, **more: long(kind, *given, **more))
    run._hand = {0: "one", 1: "other"}
    assert len(run.proposals(5, "mixed")) == 5
    found = run.suggestions()
    assert found is not None and found.names[found.codes[0]] == "one" and found.confidence[0] == 1
    assert seen == [True, True]


def test_pictures_that_have_gone_are_looked_for_once_and_not_for_each(trained: tuple[Path, Path], monkeypatch) -> None:
    """A look goes through the whole folder: a page of pictures would ask for a hundred."""
    looks = []

    def gone(*_, **__):
        looks.append(time.monotonic())
        raise InputError("It has gone.")

    monkeypatch.setattr(run_job, "reopen", gone)
    found = Collection(trained[1])
    for _ in range(5):
        with pytest.raises(InputError, match="It has gone"):
            found.training_source()
    assert len(looks) == 1
    monkeypatch.setattr(run_job, "_LOOK_AGAIN_SECONDS", 0.0)
    with pytest.raises(InputError, match="It has gone"):
        found.training_source()
    assert len(looks) == 2
