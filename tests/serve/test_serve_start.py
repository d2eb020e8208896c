"""Starting `instdisc serve`: the page answers before the collection is open, and what can go wrong is a sentence."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from serving import COUNT, Client, made_collection, served
from tiny_runs import picture_folder

from instdisc.errors import InputError
from instdisc.jobs import index
from instdisc.jobs.catalogue import Listed
from instdisc.jobs.collection import Collection
from instdisc.jobs.label import assign
from instdisc.jobs.run import Run
from instdisc.serve.access import Reach
from instdisc.serve.opened import Opened
from instdisc.serve.opening import Opening
from instdisc.serve.serve import serve
from instdisc.serve.session import Session


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("serve"))


def test_the_page_answers_while_the_collection_is_opened() -> None:
    released = threading.Event()

    def slow():
        released.wait(20)
        raise InputError("It is broken: mend it.")

    opening = Opening("slow", slow)
    with pytest.raises(TimeoutError):
        opening.wait(0.01)
    released.set()
    with pytest.raises(InputError, match="mend it"):
        opening.wait(10)
    with pytest.raises(InputError, match="could not be opened"):
        Opening("odd", lambda: 1 / 0).wait(10)


def test_the_server_needs_no_torch_to_start_and_for_the_grid(trained: tuple[Path, Path]) -> None:
    program = (
        "import sys, instdisc.serve.app\n"
        "from instdisc.jobs.catalogue import Listed\nfrom instdisc.jobs.run import Run\n"
        "look = Listed(Run(sys.argv[1])); "
        "print(len(look.index.entries([1, 2])), look.picture(3).shape, 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", program, str(trained[1])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 (16, 16, 3) False"


def test_what_is_listed_first_is_the_whole(run: Path, tmp_path: Path) -> None:
    """Whatever was removed, tagged and labelled by hand: what the grid shows first is what it shows later."""
    index.remove(run, where="red/*1*", say=None)
    index.tag(run, "some", where="*2.png")
    whole = Collection(run).index
    paths = [entry.path for entry in whole.entries(np.flatnonzero(~whole.removed)[[0, 5]])]
    assign(run, {paths[0]: "mine", paths[1]: "blue"}, say=None)
    look, opened = Listed(Run(run)), Opened(run, device="cpu")
    there = np.flatnonzero(~opened.index.removed).tolist()
    assert np.flatnonzero(~look.index.removed).tolist() == there and len(there) < COUNT
    assert (look.dim, look.recomputed, list(look.index.tags)) == (opened.index.dim, opened.recomputed, ["some"])
    assert sorted(look.index.label_names) == sorted(opened.index.label_names)
    released = threading.Event()

    def slow() -> Opened:
        released.wait(20)
        return opened

    with served(Opening("made", slow, lambda: look)) as client:
        first, about = client.json(f"/api/pictures?count={COUNT}")["pictures"], client.json("/api/collection")
        gone = client.json(f"/api/pictures/{(set(range(COUNT)) - set(there)).pop()}", status=404)
        assert client.json("/api/status")["state"] == "listed" and "No picture" in gone["detail"]
        released.set()
        client.json("/api/labels")  # waits for the whole
        assert client.json("/api/status")["state"] == "open"
        assert client.json(f"/api/pictures?count={COUNT}")["pictures"] == first
        assert client.json("/api/collection") == about
    assert {one["label"] for one in first if one["hand"]} == {"mine", "blue"}
    for row in there:
        assert np.array_equal(look.picture(row), opened.picture(row))
    index.add(run, str(picture_folder(tmp_path / "more", 3)), say=None)
    with pytest.raises(InputError):  # then all of it is waited for
        Listed(Run(run))


def test_the_grid_is_shown_while_the_rest_is_opened(trained: tuple[Path, Path]) -> None:
    released = threading.Event()

    def slow() -> Opened:
        released.wait(20)
        return Opened(trained[1], device="cpu")

    with served(Opening("made", slow, lambda: Listed(Run(trained[1])))) as client:
        try:
            about, listing = client.json("/api/collection"), client.json("/api/pictures?start=2&count=5")
            assert client.json("/api/status")["state"] == "listed"
            shown = client.send("GET", "/pictures/4")
            chosen = client.json("/api/pictures?rows=7,3")
        finally:
            released.set()
        assert client.json("/api/neighbours/4?count=3")["results"]  # waits for the vectors
        assert client.json("/api/status")["state"] == "open"
        assert client.json("/api/collection") == about
        assert client.json("/api/pictures?start=2&count=5") == listing and listing["total"] == COUNT
        assert [one["row"] for one in chosen["pictures"]] == [7, 3] and client.json("/api/pictures?rows=7,3") == chosen
        assert client.send("GET", "/pictures/4")[2] == shown[2]


def test_who_asks_for_what_is_being_computed_waits_for_it() -> None:
    asked: list[float] = []

    def slow(threshold: float) -> list[float]:
        asked.append(threshold)
        time.sleep(0.2)
        return [threshold]

    ask = Session(Opening("made", lambda: None)).once(slow, 2)
    threads = [threading.Thread(target=ask, args=(one,)) for one in (0.9, 0.9, 0.8, 0.9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == [0.8, 0.9] and ask(0.9) == [0.9] and sorted(asked) == [0.8, 0.9]


def test_the_command_serves_until_it_is_interrupted(trained: tuple[Path, Path]) -> None:
    command = [Path(sys.executable).with_name("instdisc"), "serve", trained[1], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            client = Client(int(address.rsplit(":", 1)[1].strip("/")))
            assert client.send("GET", "/")[0] == 200
            for _ in range(3_000):
                if client.json("/api/status")["state"] == "open":
                    break
                time.sleep(0.1)
            assert client.json("/api/pictures")["total"] == COUNT
            process.send_signal(signal.SIGTERM)
            process.wait(120)
        finally:
            process.kill()


def test_what_a_person_can_get_wrong(trained: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no run folder at"):
        serve(tmp_path / "none")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"can't be listened on \(.*\): choose another --port"):
            serve(trained[1], Reach(port=taken.getsockname()[1]))
    with pytest.raises(InputError, match="can't be listened on"):
        serve(trained[1], Reach(host="203.0.113.7", port=0))


def test_small_answers_are_sent_at_once(trained: tuple[Path, Path], monkeypatch) -> None:
    """asyncio sets TCP_NODELAY only on sockets that name their protocol; without it each answer waits 40 ms."""
    import uvicorn

    seen: list[int] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: seen.extend(one.proto for one in sockets))
    serve(trained[1], Reach(port=0), say=lambda words: None)
    assert seen == [socket.IPPROTO_TCP]
