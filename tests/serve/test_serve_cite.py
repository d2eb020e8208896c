"""Pictures by their ids, and sets by a name that the run keeps, by the API."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pyarrow as pa
import pytest
from serving import Client, Told, made_collection, served

from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.jobs.grow import grow
from instdisc.runs import RunFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("cite"))


def row_of(client: Client, name: str, status: int = 200) -> dict[str, object]:
    found: dict[str, object] = client.json(f"/api/row?{urlencode({'id': name})}", status=status)
    return found


def rows(client: Client, **asked: str) -> list[int]:
    return np.frombuffer(client.send("GET", f"/api/rows?{urlencode(asked)}")[2], "<i4").tolist()


def kept(client: Client, name: str, chosen: list[int], status: int = 200, **more: object) -> dict[str, object]:
    found: dict[str, object] = client.json("/api/sets", {"name": name, "rows": chosen, **more}, status=status)
    return found


def test_a_picture_is_found_by_its_id(run: Path) -> None:
    with served(run) as client:
        for row in (0, 7, 39):
            one = client.json(f"/api/pictures/{row}")
            assert row_of(client, one["id"]) == one
        assert "has the id green/none.png" in str(row_of(client, "green/none.png", 400)["detail"])
        assert client.send("GET", "/api/row?id=")[0] == 422
        gone = client.json("/api/pictures/3")["id"]
    index.remove(run, where=gone, say=None)
    with served(run) as client:
        assert "was removed or renamed" in str(row_of(client, gone, 400)["detail"])


def test_ids_that_read_the_same_are_told(run: Path) -> None:
    """Bytes that are no UTF-8 read as U+FFFD: one such id is found, of two none is."""
    opened = Told(run)
    ids = [os.fsencode(one.id) for one in opened.index.entries(range(len(opened.index)))]
    ids[4], ids[5], ids[6] = b"a/\xff.png", b"b/\xfe.png", b"b/\xff.png"
    table = opened.index.pictures
    opened.index.pictures = pa.table({"id": pa.array(ids, pa.large_binary()), "location": table["location"]})
    with served(opened) as client:
        assert row_of(client, "a/\ufffd.png")["row"] == 4
        assert "2 pictures have an id that reads as" in str(row_of(client, "b/\ufffd.png", 400)["detail"])


def test_a_set_is_kept_shown_as_any_other_and_deleted(run: Path) -> None:
    with served(Told(run)) as client:
        assert client.json("/api/sets") == {"names": []}
        made = kept(client, "sky-2", [8, 3, 21], origin="Map · 40 pictures")
        assert (made["pictures"], made["gone"], made["origin"]) == (3, 0, "Map · 40 pictures")
        assert rows(client, set="sky-2") == [3, 8, 21]
        labels = {row: client.json(f"/api/pictures/{row}")["label"] for row in (3, 8, 21)}
        listing = client.json("/api/pictures?" + urlencode({"set": "sky-2", "label": labels[21]}))
        assert [one["row"] for one in listing["pictures"]] == [row for row in labels if labels[row] == labels[21]]
        assert 0 < listing["total"] < 3
        facts = client.json("/api/facts/8?set=sky-2")
        assert (facts["before"], facts["after"], facts["place"], facts["total"]) == (3, 21, 1, 3)
    with served(run) as client:  # after a restart
        assert client.json("/api/sets") == {"names": ["sky-2"]}
        assert "already, of 3 pictures" in str(kept(client, "sky-2", [1], 409)["detail"])
        assert rows(client, set="sky-2") == [3, 8, 21]
        assert kept(client, "sky-2", [1], replace=True)["pictures"] == 1
        assert rows(client, set="sky-2") == [1], "what was computed for the former one is not shown"
        assert client.send("DELETE", "/api/sets/sky-2")[0] == 200
        assert client.json("/api/sets") == {"names": []}
        assert "There is no set" in client.json("/api/pictures?set=sky-2", status=400)["detail"]
        assert client.send("DELETE", "/api/sets/sky-2")[0] == 400


@pytest.mark.parametrize("name", ["", "a b", "../up", "é", "x" * 61, "a/b", ".", "a.json", "a\n"])
def test_a_name_that_is_none_is_refused(run: Path, name: str) -> None:
    before = {path for path in run.rglob("*") if path.is_file()}
    with served(run) as client:
        status, _, content = client.send("POST", "/api/sets", {"name": name, "rows": [1]})
        assert status == (422 if not name else 400), content
        assert not name or b"at most 60 letters" in content
        assert client.send("GET", f"/api/pictures?set={quote(name or ' ')}")[0] == 400
    left = {path for path in run.rglob("*") if path.is_file()} - before
    assert not {path for path in left if path.suffix == ".json"}


def test_pictures_that_are_gone_are_passed_over_and_counted(run: Path) -> None:
    with served(run) as client:
        kept(client, "some", [2, 4, 6])
        gone = client.json("/api/pictures/4")["id"]
    index.remove(run, where=gone, say=None)
    with served(run) as client:
        found = client.json("/api/sets/some")
        assert (found["pictures"], found["gone"]) == (2, 1) and rows(client, set="some") == [2, 6]


@pytest.mark.slow
def test_a_set_outlives_an_addition(run: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    from tiny_runs import picture_folder

    with served(run) as client:
        kept(client, "some", [2, 4, 6])
        ids = [client.json(f"/api/pictures/{row}")["id"] for row in (2, 4, 6)]
    grow(run, [picture_folder(tmp_path / "new", 9, seed=5)], epochs=1, say=None)
    with served(run) as client:
        assert [client.json(f"/api/pictures/{row}")["id"] for row in rows(client, set="some")] == ids


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 need a file system of Linux")
def test_an_id_that_is_no_utf8_stays_itself_in_a_set(run: Path) -> None:
    from instdisc.jobs import sets

    folder = RunFolder(run)
    name = os.fsdecode(b"a/\xff.png")
    sets.keep(folder, "odd", [name], "")
    assert sets.load(folder, "odd").ids == [name]
    assert Collection(run).index.rows_with([name]).tolist() == [-1]


def test_a_damaged_set_is_told(run: Path) -> None:
    with served(run) as client:
        kept(client, "some", [2])
        (run / "sets" / "some.json").write_text('{"ids": 3}')
        assert "is damaged" in client.json("/api/pictures?set=some", status=400)["detail"]
        assert client.json("/api/pictures")["total"] == 40
