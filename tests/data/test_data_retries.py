"""A store that fails is asked again and the person told; one that stays silent ends the work and costs no picture."""

from __future__ import annotations

import contextlib
import http.server
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_order import parquet_files
from test_data_sources import RangeHandler, sample, tar_bytes

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.sources.open import open_source
from instdisc.data.storage import remote as places
from instdisc.data.storage import retries
from instdisc.data.storage.retries import LONG, SHORT, Trouble, retried
from instdisc.errors import InputError


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.slept.append(seconds)
        self.now += seconds
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    monkeypatch.setattr(retries, "ending", clock)
    monkeypatch.setattr(retries, "trouble", Trouble())
    return clock


class Failing:
    """A place that answers after so many failures."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error, self.asked = failures, error, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.left > 0:
            self.left -= 1
            raise self.error
        return "content"


def test_asked_again_after_growing_waits_and_told(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert retried(Failing(6, ConnectionError("reset")), "s3://b/0.tar", LONG) == "content"
    assert len(clock.slept) == 6
    for number, slept in enumerate(clock.slept):
        expected = min(0.5 * 2**number, 15)
        assert 0.75 * expected <= slept <= 1.25 * expected
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Warning: s3://b/0.tar did not answer (reset): asked again."
    assert 2 <= len(said) <= 4 and "times since" in said[1]  # in half a minute


class Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("x"), Refused(403)])
def test_what_says_no_for_good_is_asked_once(clock: Clock, error: Exception) -> None:
    place = Failing(9, error)
    with pytest.raises(type(error)):
        retried(place, "s3://b/0.tar", LONG)
    assert place.asked == 1 and not clock.slept


@pytest.mark.parametrize("error", [Refused(429), Refused(503), TimeoutError()])
def test_what_is_busy_is_asked_again(clock: Clock, error: Exception) -> None:
    assert retried(Failing(2, error), "s3://b/0.tar", SHORT) == "content"


def test_a_shard_that_stays_away_ends_with_a_sentence(clock: Clock) -> None:
    with pytest.raises(InputError, match=r"s3://b/0.tar has not answered for .* --resume"):
        retried(Failing(999, ConnectionError("reset")), "s3://b/0.tar", LONG)
    assert LONG / 2 < sum(clock.slept) <= LONG * 1.25


def test_no_warning_shows_a_password_or_a_signature(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    url = "https://me:secret@host/x.tar?Signature=a/b"
    with pytest.raises(InputError, match="https://me@host/x.tar has not answered") as found:
        retried(Failing(999, ConnectionError(f"cannot reach {url}")), url, LONG)
    said = capsys.readouterr().err + str(found.value)
    assert "did not answer (cannot reach https://me@host/x.tar)" in said
    assert "secret" not in said and "Signature" not in said


def test_pictures_fail_alone_until_all_stores_are_silent(clock: Clock) -> None:
    """A dead host in a list costs its pictures; a network that is down costs none after two minutes."""
    for _ in range(100):  # with others that answer in between
        with pytest.raises(ConnectionError):
            retried(Failing(9, ConnectionError("reset")), "https://dead/1.jpg")
        assert retried(Failing(0, ConnectionError()), "https://alive/1.jpg") == "content"
    clock.now += 9999  # work that asks no store
    tried = 0
    with pytest.raises(InputError, match="has not answered for"):  # noqa: PT012  # the last of many tries
        for tried in range(999):  # noqa: B007
            with contextlib.suppress(ConnectionError):
                retried(Failing(9, ConnectionError("reset")), "https://alive/1.jpg")
    assert 20 < tried < 100


class Moody(RangeHandler):
    """Every third request fails; none is answered while the store is `down`."""

    down = False
    falls_at = ""  # the address with which it goes down
    requests = 0

    def do_GET(self) -> None:
        if self.path == self.falls_at:
            type(self).down = True
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        type(self).requests += 1
        if self.down or self.requests % 3 == 0:
            self.send_error(503)
            return
        super().do_GET()


@pytest.fixture
def moody(tmp_path: Path) -> Iterator[tuple[str, type[Moody], Path]]:
    class Own(Moody):
        pass

    folder = tmp_path / "web"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Own, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Own, folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_moody_store_loses_no_picture(
    moody: tuple[str, type[Moody], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    workers: int,
) -> None:
    address, _, folder = moody
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.05)
    monkeypatch.setattr(retries, "trouble", fresh := Trouble())
    monkeypatch.setattr("instdisc.data.loading.workers.trouble", fresh)
    if kind == "parquet":
        parquet_files(folder / "set", files=2, groups=3)
        given = f"{address}/set/train-{{0..1}}.parquet"
    else:
        members = [member for number in range(30) for member in sample(number)]
        (folder / "0.tar").write_bytes(tar_bytes(members))
        given = f"{address}/0.tar"
    source = open_source(given, index_folder=tmp_path / "index")
    quarantine = Quarantine(tmp_path / "list.csv")
    with open_pictures(
        source, 8, torch.device("cpu"), storage="workers", workers=workers, quarantine=quarantine
    ) as all:
        read = sum(len(batch.indices) for batch in all.batches(np.array_split(np.arange(len(source)), 6)))
    assert read == len(source) and quarantine.count == 0
    assert fresh.tries > 0 and "did not answer" in capsys.readouterr().err


def test_a_store_that_went_down_ends_the_work_and_lists_no_picture(
    moody: tuple[str, type[Moody], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, handler, folder = moody
    parquet_files(folder / "set", files=2, groups=3)
    source = open_source(f"{address}/set/train-{{0..1}}.parquet", index_folder=tmp_path / "index")
    quarantine = Quarantine(tmp_path / "list.csv")
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.05)
    monkeypatch.setattr(places, "LONG", 0.5)
    monkeypatch.setattr(retries, "LONG", 0.5)
    with open_pictures(source, 8, torch.device("cpu"), storage="workers", workers=0, quarantine=quarantine) as all:
        handler.down = True
        started = time.monotonic()
        with pytest.raises(InputError, match="has not answered for"):
            list(all.batches(np.array_split(np.arange(20, len(source)), 6)))
    assert time.monotonic() - started < 120 and quarantine.count == 0


# A request is under way in a thread of Background, which the program does not wait for.
LEAVING = """
import sys, time, urllib.request, numpy, torch
from instdisc.data import open_pictures, open_source
source = open_source(sys.argv[1], index_folder=sys.argv[2])
pictures = open_pictures(source, 8, torch.device("cpu"), storage="workers", workers=0)
urllib.request.urlopen(sys.argv[1].rpartition("/")[0] + "/down")
pictures._request(numpy.arange(40, 60))
time.sleep(3)
"""


def test_a_program_ends_while_a_thread_waits_for_a_store(moody: tuple[str, type[Moody], Path], tmp_path: Path) -> None:
    """With its own status: a thread below Arrow that was stopped in its wait would abort the interpreter."""
    address, handler, folder = moody
    parquet_files(folder / "set", files=1, groups=3)
    handler.falls_at = "/set/down"
    words = [sys.executable, "-c", LEAVING, f"{address}/set/train-0.parquet", str(tmp_path / "index")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "did not answer" in done.stderr


def test_a_scan_of_a_moody_store_is_whole(moody: tuple[str, type[Moody], Path], tmp_path: Path) -> None:
    """A fault of the network in the middle of a shard is not taken for its end."""
    address, _, folder = moody
    members = [member for number in range(40) for member in sample(number)]
    (folder / "0.tar").write_bytes(tar_bytes(members))
    source = open_source(f"{address}/0.tar", index_folder=tmp_path / "index")
    assert len(source) == 40 and not source.notes
    assert not any(isinstance(content, UnreadableError) for _, content in source.iterate())


def test_a_remote_file_reads_like_a_local_one(tmp_path: Path) -> None:
    import fsspec

    content = np.random.default_rng(0).integers(0, 256, 10_000, dtype=np.uint8).tobytes()
    fsspec.filesystem("memory").pipe("/far/file", content)
    draw = np.random.default_rng(1)
    with places.open_file("memory://far/file", len(content)) as file, io.BytesIO(content) as local:
        for _ in range(200):
            place, count = int(draw.integers(0, 11_000)), int(draw.integers(0, 3_000))
            way: Any = int(draw.integers(0, 3))
            offset = {0: place, 1: place - local.tell(), 2: place - len(content)}[way]
            assert file.seek(offset, way) == local.seek(offset, way)
            assert file.read(count) == local.read(count)
    fsspec.filesystem("memory").rm("/far", recursive=True)
