"""The API: its answers are those of the library; strangers get nothing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from serving import Client, served
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc.errors import InputError
from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.jobs.duplicates import duplicates
from instdisc.jobs.label import assign, hand_labels
from instdisc.jobs.outliers import outliers
from instdisc.jobs.serve import RunLook, hosts_of, serve
from instdisc.jobs.served import ServedRun
from instdisc.jobs.train import train
from instdisc.search.index import Index
from instdisc.serve.desk import Desk
from instdisc.serve.handed import Opening
from instdisc.serve.upload import MAX_BYTES, decode_aside

COUNT = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("serve")
    pictures = picture_folder(folder / "pictures", COUNT)
    (pictures / "red" / "secret.txt").write_text("nobody's business")
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


@pytest.fixture(scope="module")
def client(trained: tuple[Path, Path]) -> Iterator[Client]:
    """A server that no test changes."""
    with served(trained[1]) as client:
        yield client


def test_pictures_are_listed_filtered_and_shown(client: Client, trained: tuple[Path, Path]) -> None:
    about = client.json("/api/collection")
    assert (about["pictures"], about["dim"], about["labels"]) == (COUNT, 8, ["blue", "green", "red"])
    listing = client.json("/api/pictures?start=3&count=4")
    whole = Collection(trained[1]).index
    assert listing["total"] == COUNT
    assert [one["path"] for one in listing["pictures"]] == [entry.path for entry in whole.entries(range(3, 7))]
    assert client.json("/api/pictures?label=red&count=500")["total"] == int(whole.matching(label="red").sum())
    assert {one["id"] for one in client.json("/api/pictures?where=*1.png")["pictures"]} == {
        entry.id for entry in whole.entries(range(COUNT)) if entry.id.endswith("1.png")
    }
    status, headers, content = client.send("GET", "/pictures/5?size=full")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(content)) as shown, Image.open(whole.entries([5])[0].path) as true:
        assert shown.size == true.size
        error = np.abs(np.asarray(shown, float) - np.asarray(true.convert("RGB"), float)).mean()
        assert error < 5


def test_neighbours_are_those_of_the_full_matrix(client: Client, trained: tuple[Path, Path]) -> None:
    vectors = Collection(trained[1]).index.vectors(np.arange(COUNT)).double().numpy()
    scores = vectors @ vectors.T
    for row in (0, 17):
        found = client.json(f"/api/neighbours/{row}?count=9")["results"]
        own = scores[row].copy()
        own[row] = -2
        assert [one["score"] for one in found] == pytest.approx(np.sort(own)[::-1][:9].tolist(), abs=1e-5)
        assert row not in {one["row"] for one in found}
    # Several pictures as one query, less like others, and among some alone.
    query = vectors[[2, 9]].mean(0) - 0.5 * vectors[4]
    query /= np.linalg.norm(query)
    expected = vectors @ query
    expected[[2, 4, 9]] = -2
    found = client.json("/api/search?like=2,9&unlike=4&count=7")["results"]
    assert [one["score"] for one in found] == pytest.approx(np.sort(expected)[::-1][:7].tolist(), abs=1e-5)
    found = client.json("/api/search?like=2&count=500&label=red")["results"]
    assert {one["label"] for one in found} == {"red"} and 2 not in {one["row"] for one in found}
    assert client.json("/api/search", status=400)["detail"] == "Name at least one picture to search for."


@pytest.mark.fault("no search with an outside picture")
@pytest.mark.fault("no score shown")
def test_an_uploaded_picture_finds_itself(client: Client, trained: tuple[Path, Path]) -> None:
    path = sorted(trained[0].glob("*/*.png"))[11]
    status, _, content = client.send("POST", "/api/uploads", path.read_bytes())
    name = json.loads(content)["id"]
    assert status == 200
    found = client.json(f"/api/search?upload={name}&count=40")["results"]
    own = instdisc.load(trained[1]).embed([str(path)])
    vectors = Collection(trained[1]).index.vectors(np.arange(COUNT))
    expected = (own @ vectors.T)[0].sort(descending=True).values
    assert [one["score"] for one in found] == pytest.approx(expected.tolist(), abs=1e-4)
    status, headers, content = client.send("GET", f"/api/uploads/{name}")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    assert client.json("/api/uploads/none", status=404)["detail"].startswith("This query picture is not kept any more")


def test_clusters_are_those_of_the_vectors(tmp_path: Path) -> None:
    """Twelve heaps of different sizes far from one another, two pictures removed: each heap is a cluster."""
    heaps = np.repeat(np.arange(12), np.arange(10, 34, 2))
    order = np.random.default_rng(0).permutation(len(heaps))
    vectors = np.eye(16, dtype=np.float32)[heaps[order]] + 0.01 * np.random.default_rng(1).standard_normal(
        (len(heaps), 16)
    )
    names = pa.table({name: [f"{row}.png" for row in range(len(heaps))] for name in ("id", "location")})
    removed = np.arange(len(heaps)) < 2
    rows = torch.nn.functional.normalize(torch.from_numpy(vectors).float(), dim=1)
    made = {"handed": SimpleNamespace(index=Index([rows], names, removed=removed))}
    desk = type("Made", (Desk,), made)(Opening("made", lambda: None))
    codes = desk.clusters()
    assert (codes[:2] == -1).all() and set(codes[2:]) == set(range(12))
    assert len(set(zip(codes[2:], heaps[order][2:], strict=True))) == 12
    sizes = np.bincount(codes[2:])
    assert (np.diff(sizes) <= 0).all()


def test_duplicates_and_outliers_are_those_of_the_commands(client: Client, run: Path) -> None:
    found = client.json("/api/duplicates?threshold=0.9")
    groups = duplicates(run, threshold=0.9, bank=True, say=None)
    assert found["total"] == len(groups)
    for one, group in zip(found["groups"], groups, strict=True):
        assert {picture["row"] for picture in one["pictures"]} == {copy.row for copy in (group.kept, *group.copies)}
        assert one["least"] == pytest.approx(group.score)
    strange = client.json("/api/outliers?count=5")
    expected = outliers(run, by="similarity", bank=True, count=5, say=None)
    assert strange["by"] == "similarity" and [one["row"] for one in strange["pictures"]] == [
        one.row for one in expected
    ]
    expected = outliers(run, bank=True, count=5, say=None)
    with served(run) as other:
        strange = other.json("/api/outliers?count=5")
    assert strange["by"] == "strangeness" and [one["row"] for one in strange["pictures"]] == [
        one.row for one in expected
    ]


def test_labels_are_saved_at_once_and_taken_back(run: Path) -> None:
    with served(run) as client:
        first = [one["row"] for one in client.json("/api/proposals?count=12")["pictures"]]
        assert len(set(first)) == 12
        paths = {row: client.json(f"/api/pictures/{row}")["path"] for row in first}
        for row in first:
            state = client.json("/api/labels", {"rows": [row], "label": "odd" if row % 2 else "even"})
            assert hand_labels(run)[paths[row]] == ("odd" if row % 2 else "even")
        assert {one["label"]: one["hand"] for one in state["classes"]} == {
            "even": sum(row % 2 == 0 for row in first),
            "odd": sum(row % 2 for row in first),
        }
        assert sum(one["hand"] + one["vote"] for one in state["classes"]) == COUNT
        assert 0 <= state["interval"][0] <= state["accuracy"] <= state["interval"][1] <= 1
        again = client.json("/api/proposals?count=100")["pictures"]
        assert {one["row"] for one in again} == set(range(COUNT)) - set(first)
        assert all(one["guess"] in ("even", "odd") and 0 < one["confidence"] <= 1 for one in again)
        assert client.json("/api/pictures?label=odd")["total"] == sum(row % 2 for row in first)
        content = client.send("GET", "/api/labels.csv")[2].decode()
        lines = list(csv.DictReader(io.StringIO(content)))
        assert len(lines) == COUNT and sum(line["by"] == "hand" for line in lines) == 12
        client.json("/api/labels", {"rows": first, "label": None})
        assert hand_labels(run) == {}
        assert client.json(f"/api/pictures/{first[0]}")["label"] in ("red", "green", "blue")
        assert client.json("/api/labels") == {"classes": [], "accuracy": None, "interval": None}


def test_labels_from_the_command_are_seen_at_once(run: Path) -> None:
    with served(run) as client:
        client.json("/api/labels", {"rows": [1, 2], "label": "ours"})
        paths = [client.json(f"/api/pictures/{row}")["path"] for row in (2, 3, 4)]
        assert client.json("/api/pictures?label=ours")["total"] == 2
        assign(run, {paths[0]: "theirs", paths[1]: "theirs"}, replace=True, say=None)
        assert client.json("/api/pictures?label=theirs")["total"] == 2
        assert client.json("/api/pictures?label=ours")["total"] == 1
        shown = client.json("/api/pictures/3")
        assert (shown["label"], shown["hand"]) == ("theirs", True)
        assert {one["label"]: one["hand"] for one in client.json("/api/labels")["classes"]} == {"ours": 1, "theirs": 2}
        client.json("/api/labels", {"rows": [4], "label": "ours"})
        assert hand_labels(run)[paths[1]] == "theirs" and hand_labels(run)[paths[2]] == "ours"


def test_removed_pictures_are_nowhere(run: Path) -> None:
    index.remove(run, where="red/*", say=None)
    gone = Collection(run).changes.removed.tolist()
    with served(run) as client:
        assert client.json("/api/collection")["pictures"] == COUNT - len(gone)
        for row in gone[:2]:
            for path in (
                f"/api/pictures/{row}",
                f"/pictures/{row}",
                f"/api/neighbours/{row}",
                f"/api/search?like={row}",
            ):
                assert client.send("GET", path)[0] == 404
            assert client.send("POST", "/api/labels", {"rows": [row], "label": "x"})[0] == 404
        assert not {one["row"] for one in client.json("/api/neighbours/0?count=500")["results"]} & set(gone)


def test_a_picture_that_has_gone_is_a_404_and_the_rest_goes_on(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(trained[0], tmp_path / "pictures"))
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    with served(run) as client:
        path = Path(client.json("/api/pictures/3")["path"])
        assert client.send("GET", "/pictures/2")[0] == 200
        path.unlink()
        status, _, content = client.send("GET", "/pictures/3")
        assert status == 404 and b"can't be read" in content
        assert client.send("GET", "/pictures/4")[0] == 200
        assert client.json("/api/neighbours/3")["results"]


# ---------------------------------------------------------------------------------------------------------------------
# Strangers


def test_names_that_are_no_utf8_are_shown_and_asked_for(tmp_path: Path) -> None:
    """Old disks hold such names: every view answers, and what it calls a label can be asked for."""
    pictures = picture_folder(tmp_path / "pictures", COUNT)
    os.rename(pictures / "red", os.fsencode(pictures) + b"/r\xe9d")
    os.rename(pictures / "blue" / "0002.png", os.fsencode(pictures / "blue") + b"/\xff\xe9.png")
    folder = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    outliers(folder, say=None)
    with served(folder) as client:
        assert client.json("/api/collection")["labels"] == ["blue", "green", "r\ufffdd"]
        listing = client.json("/api/pictures?label=r%EF%BF%BDd")
        assert listing["total"] == sum(row % 3 == 0 for row in range(COUNT))
        assert client.json("/api/pictures?where=*.png&count=500")["total"] == COUNT
        for path in ("outliers", "duplicates?threshold=0.6", "neighbours/2?count=39", "labels", "proposals"):
            client.json(f"/api/{path}")
        assert "r\ufffdd" in client.json("/api/pictures?label=pink", status=400)["detail"]
        row = next(
            one["row"] for one in client.json("/api/pictures?count=500")["pictures"] if "\ufffd\ufffd" in one["id"]
        )
        assert client.send("GET", f"/pictures/{row}")[0] == 200


def test_every_start_of_the_server_has_its_own_pictures(trained: tuple[Path, Path]) -> None:
    """A browser keeps pictures by their address: `start` is part of it."""
    with served(trained[1]) as one, served(trained[1]) as other:
        assert one.json("/api/collection")["start"] != other.json("/api/collection")["start"]


def test_the_api_is_as_it_says_of_itself_whatever_is_asked(run: Path) -> None:
    """schemathesis asks what the description allows: no server error, and no answer that it does not describe."""
    program = Path(sys.executable).with_name("schemathesis")
    if not program.is_file():
        pytest.skip("schemathesis is not installed: pip install schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with served(run) as client:
        words = [program, "run", f"{client.address}/api/openapi.json", "--checks", checks, "--max-examples", "6"]
        words += ["--phases", "coverage,fuzzing", "--seed", "1", "--no-color"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=run)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.fault("no Host check")
@pytest.mark.fault("no Origin check")
def test_other_hosts_and_other_sites_are_refused(client: Client) -> None:
    port = client.port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1.evil.example:{port}",
        "",
        f"127.0.0.1:{port + 1}",
    ):
        assert client.send("GET", "/api/collection", host=host)[0] == 421
    assert client.send("GET", "/api/collection", host=f"localhost:{port}")[0] == 200
    body = {"rows": [0], "label": "stolen"}
    for origin in (
        "http://evil.example",
        "null",
        f"https://127.0.0.1:{port}",
        f"http://localhost:{port}",
        f"http://127.0.0.1:{port}, x",
    ):
        assert client.send("POST", "/api/labels", body, origin=origin)[0] == 403
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
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right"}, {"cookie": "instdisc=wrong"},
                        {"cookie": "instdisc=\xff; ;;=,"}, {"authorization": "Bearer " + "x" * 5000}):  # fmt: skip
            for path in ("/", "/api/collection", "/pictures/0", "/?token=wrong", "/api/collection?token=right"):
                assert client.send("GET", path, **headers)[0] == 401
        assert client.send("GET", "/api/collection", authorization="Bearer right")[0] == 200
        status, headers, _ = client.send("GET", "/?token=right")
        assert status == 303 and headers["location"] == "/"
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
        assert client.send("GET", "/pictures/0", cookie=headers["set-cookie"].split(";")[0])[0] == 200
    assert {host.rpartition(":")[0] for host in hosts_of("127.0.0.1", 8765)} == {"127.0.0.1", "localhost", "[::1]"}


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
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as line:
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


# ---------------------------------------------------------------------------------------------------------------------
# Starting


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
        "import sys, instdisc.serve.app; from instdisc.jobs.serve import RunLook; look = RunLook(sys.argv[1]); "
        "print(len(look.entries([1, 2])), look.picture(3).shape, 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", program, str(trained[1])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 (16, 16, 3) False"


def test_the_first_look_is_that_of_the_whole(run: Path, tmp_path: Path) -> None:
    """Whatever was removed, tagged and labelled by hand: what the grid shows first is what it shows later."""
    index.remove(run, where="red/*1*", say=None)
    index.tag(run, "some", where="*2.png")
    whole = Collection(run).index
    paths = [entry.path for entry in whole.entries(np.flatnonzero(~whole.removed)[[0, 5]])]
    assign(run, {paths[0]: "mine", paths[1]: "blue"}, say=None)
    look, opened = RunLook(run), ServedRun(run, device="cpu")
    assert look.rows.tolist() == np.flatnonzero(~opened.index.removed).tolist()
    assert len(look.rows) < COUNT
    assert (look.dim, look.recomputed, look.tags) == (opened.index.dim, opened.recomputed, ["some"])
    assert sorted(look.label_names) == sorted(opened.index.label_names)
    with served(opened) as client:
        later = client.json(f"/api/pictures?count={COUNT}")["pictures"]
    assert look.entries(look.rows.tolist()) == later
    assert {one["label"] for one in later if one["hand"]} == {"mine", "blue"}
    for row in look.rows.tolist():
        assert np.array_equal(look.picture(row), opened.picture(row))
    index.add(run, str(picture_folder(tmp_path / "more", 3)), say=None)
    with pytest.raises(InputError):  # then all of it is waited for
        RunLook(run)


def test_the_grid_is_shown_while_the_rest_is_opened(trained: tuple[Path, Path]) -> None:
    released = threading.Event()

    def slow() -> ServedRun:
        released.wait(20)
        return ServedRun(trained[1], device="cpu")

    with served(Opening("made", slow, lambda: RunLook(trained[1]))) as client:
        try:
            about, listing = client.json("/api/collection"), client.json("/api/pictures?start=2&count=5")
            assert client.json("/api/status")["state"] == "listed"
            shown = client.send("GET", "/pictures/4")
            chosen = client.json("/api/pictures?rows=7,3")
        finally:
            released.set()
        assert client.json("/api/neighbours/4?count=3")["results"]  # waits for the vectors
        assert client.json("/api/status")["state"] == "open"
        assert client.json("/api/collection") == about | {"name": trained[1].name}
        assert client.json("/api/pictures?start=2&count=5") == listing and listing["total"] == COUNT
        assert [one["row"] for one in chosen["pictures"]] == [7, 3] and client.json("/api/pictures?rows=7,3") == chosen
        assert client.send("GET", "/pictures/4")[2] == shown[2]


def test_who_asks_for_what_is_being_computed_waits_for_it() -> None:
    asked: list[float] = []

    class Slow(Desk):
        def _groups(self, threshold: float) -> list:
            asked.append(threshold)
            time.sleep(0.2)
            return [threshold]

    desk = Slow(Opening("made", lambda: None))
    threads = [threading.Thread(target=desk.groups, args=(one,)) for one in (0.9, 0.9, 0.8, 0.9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == [0.8, 0.9] and desk.groups(0.9) == [0.9]


def test_the_command_serves_until_it_is_interrupted(trained: tuple[Path, Path]) -> None:
    command = [Path(sys.executable).with_name("instdisc"), "serve", trained[1], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            client = Client(int(address.rsplit(":", 1)[1].strip("/")))
            assert client.send("GET", "/")[0] == 200
            for _ in range(300):
                if client.json("/api/status")["state"] == "open":
                    break
                time.sleep(0.1)
            assert client.json("/api/pictures")["total"] == COUNT
            process.send_signal(signal.SIGTERM)
            process.wait(20)
        finally:
            process.kill()


def test_what_a_person_can_get_wrong(trained: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no run folder at"):
        serve(tmp_path / "none")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"can't be listened on \(.*\): choose another --port"):
            serve(trained[1], port=taken.getsockname()[1])
    with pytest.raises(InputError, match="can't be listened on"):
        serve(trained[1], host="203.0.113.7", port=0)


def test_small_answers_are_sent_at_once(trained: tuple[Path, Path], monkeypatch) -> None:
    """asyncio sets TCP_NODELAY only on sockets that name their protocol; without it each answer waits 40 ms."""
    import uvicorn

    seen: list[int] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: seen.extend(one.proto for one in sockets))
    serve(trained[1], port=0, say=lambda words: None)
    assert seen == [socket.IPPROTO_TCP]
