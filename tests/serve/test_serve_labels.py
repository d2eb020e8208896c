"""Labels by the API: every deed can be undone to the byte; classes get other names; votes are suggestions."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import COUNT, Client, Told, made_collection, served
from tiny_runs import picture_folder

from instdisc.jobs import journal, votes
from instdisc.jobs.collection import Collection
from instdisc.jobs.index import changing
from instdisc.jobs.label import assign, hand_labels, label
from instdisc.runs import RunFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("labels"))


@pytest.fixture
def client(run: Path) -> Iterator[Client]:
    with served(run) as client:
        yield client


def file_of(run: Path) -> bytes | None:
    file = run / "labels" / "hand.csv"
    return file.read_bytes() if file.exists() else None


def give(client: Client, rows: list[int], text: str | None, **more: bool) -> str:
    act: str = client.json("/api/labels", {"rows": rows, "label": text, **more})["act"]
    return act


@pytest.mark.fault("a label for many pictures overwrites others and can't be taken back")
def test_every_deed_is_undone_to_the_byte_after_a_restart_too(run: Path) -> None:
    states, acts = [file_of(run)], []
    with served(run) as client:
        for rows, text in (
            ([3], "one"),
            ([7, 5], "two"),
            (list(range(12)), "many"),
            ([5, 3, 30], None),
            ([3], 'a "quoted", é'),
        ):
            acts.append(give(client, rows, text))
            states.append(file_of(run))
        acts.append(client.json("/api/classes", {"label": "many", "to": "all"})["act"])
        states.append(file_of(run))
        acts.append(client.json("/api/classes", {"label": "all", "to": 'a "quoted", é'})["act"])
        states.append(file_of(run))
    assert len(set(states)) == len(states) and all(acts) and states[0] is None
    with served(run) as client:
        for before in reversed(states[:-1]):
            last = client.json("/api/journal")
            assert last["act"] == acts.pop()
            assert client.json("/api/undo", last)["text"] == last["text"]
            assert file_of(run) == before
        assert client.json("/api/journal") == {"act": "", "text": ""}
        assert client.json("/api/labels")["classes"] == []


def test_a_file_that_somebody_wrote_by_hand_comes_back_as_it_was(run: Path, client: Client) -> None:
    path = client.json("/api/pictures/4")["path"]
    file = run / "labels" / "hand.csv"
    file.parent.mkdir()
    file.write_bytes(f'"path","label","time"\r\n"{path}","mine","2020-01-01"\r\n'.encode())
    before = file.read_bytes()
    act = give(client, [4, 6], "other")
    assert file_of(run) != before and hand_labels(run)[path] == "other"
    client.json("/api/undo", {"act": act})
    assert file_of(run) == before


def test_undo_of_one_tab_leaves_what_another_did_since(run: Path, client: Client) -> None:
    first = give(client, [1, 2, 3], "ours")
    second = give(client, [3, 4], "theirs")
    paths = {row: client.json(f"/api/pictures/{row}")["path"] for row in range(6)}
    assign(run, {paths[5]: "typed"}, say=None)  # by the command, in another process perhaps
    found = client.json("/api/undo", {"act": first})
    assert (sorted(found["rows"]), found["kept"]) == ([1, 2], 1)
    assert hand_labels(run) == {paths[3]: "theirs", paths[4]: "theirs", paths[5]: "typed"}
    assert client.json("/api/undo", {"act": first}, status=400)["detail"] == "This was undone already."
    assert found["next"]["text"] == "Labelled 1 picture “typed”"
    client.json("/api/undo", {"act": second})
    assert hand_labels(run) == {paths[3]: "ours", paths[5]: "typed"}
    for act in ("", "0" * 11, "../../etc/x", None):
        assert client.send("POST", "/api/undo", {"act": act})[0] == 422


def test_half_a_line_of_a_crash_harms_no_other(run: Path) -> None:
    folder = RunFolder(run)
    with served(run) as client:
        give(client, [1], "one")
        with open(folder.journal, "ab") as file:
            file.write(b'{"name": "0123456789ab", "text": "Labe')
        act = give(client, [2], "two")
        assert client.json("/api/journal")["act"] == act
    with changing(run):
        assert [one.text for one in journal.still_done(folder)] == [
            "Labelled 1 picture “two”",
            "Labelled 1 picture “one”",
        ]
        journal.undo(folder)
        journal.undo(folder)
    assert file_of(run) is None


def test_what_would_be_overwritten_is_told_and_can_be_kept(run: Path, client: Client) -> None:
    give(client, [1, 2], "cat")
    give(client, [3], "dog")
    asked = {"rows": [1, 2, 3, 4], "label": "dog"}
    before = file_of(run)
    assert client.json("/api/labels/overwriting", asked) == {"other": 2, "none": 1}
    assert file_of(run) == before
    text = client.json("/api/labels", asked | {"keep": True})["text"]
    assert text == "Labelled 1 picture “dog”"
    assert Counter(hand_labels(run).values()) == {"cat": 2, "dog": 2}
    assert client.json("/api/labels", asked | {"keep": True})["act"] == ""
    assert client.json("/api/labels", asked)["text"] == "Labelled 2 pictures “dog”"


@pytest.mark.fault("labels given to many at once raise the accuracy that is told")
@pytest.mark.parametrize("graph", [True, False])
def test_labels_given_together_are_left_out_of_the_accuracy(
    run: Path, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against leave-one-out with these pictures alone, done by hand with the votes themselves."""
    if not graph:
        monkeypatch.setattr(votes, "spreading_graph", lambda *_, **__: None)
    with served(run) as client:
        for row in range(12):
            give(client, [row], "odd" if row % 2 else "even")
        state = client.json("/api/labels", {"rows": list(range(12, 30)), "label": "even", "together": True})
        assert client.json("/api/labels")["accuracy"] == state["accuracy"]
    collection = Collection(run)
    rows = np.arange(COUNT)
    vectors = collection.index.vectors(rows)
    codes = np.array([row % 2 if row < 12 else 0 if row < 30 else -1 for row in rows])
    used = votes.spreading_graph(RunFolder(run), vectors) if graph else None
    right = 0
    for row in range(12):
        without = np.where(rows == row, -1, codes)
        right += int(votes.vote(rows, vectors, without, ["even", "odd"], graph=used).codes[row] == row % 2)
    assert state["accuracy"] == pytest.approx(right / 12)
    if graph:
        told = label(run, bank=True, say=None).accuracy
        assert told is not None and (told.count, told.top1) == (12, pytest.approx(right / 12))


def test_renamed_classes_stay_what_they_were_for_the_accuracy(run: Path, client: Client) -> None:
    for row in range(8):
        give(client, [row], "odd" if row % 2 else "even")
    before = client.json("/api/labels", {"rows": [20, 22, 24], "label": "even", "together": True})
    after = client.json("/api/classes", {"label": "even", "to": "straight"})
    assert after["text"] == "Renamed “even” to “straight” (7 pictures)"
    assert (after["accuracy"], after["interval"]) == (before["accuracy"], before["interval"])
    folder = RunFolder(run)
    together = journal.labelled_together(folder, journal.parsed(folder.hand_labels.read_text(), folder.hand_labels))
    assert together == {client.json(f"/api/pictures/{row}")["path"] for row in (20, 22, 24)}


def test_the_order_of_classes_is_kept_and_the_same_for_all(run: Path) -> None:
    with served(run) as client:
        assert client.json("/api/labels")["order"] == ["blue", "green", "red"]  # of the folders
        give(client, [1], "zebra")
        give(client, [2], "ant")
        wanted = ["blue", "green", "red", "zebra", "ant"]
        assert client.json("/api/labels")["order"] == wanted
        assert client.json("/api/labels", {"rows": [1], "label": None})["order"] == wanted, "no key moves"
        client.json("/api/classes", {"label": "ant", "to": "bee"})
        give(client, [4, 5], "red")
        wanted[-1] = "bee"
    with served(run) as client:
        assert client.json("/api/labels")["order"] == wanted
        merged = client.json("/api/classes", {"label": "red", "to": "bee"})
        assert merged["order"] == ["blue", "green", "zebra", "bee"], "a name that is no more is not offered again"
        assert [(one["label"], one["hand"]) for one in merged["classes"]] == [("bee", 3)]
        client.json("/api/undo", {"act": merged["act"]})
        assert client.json("/api/labels")["order"] == wanted
        for body, words in (
            ({"label": "nobody", "to": "x"}, 'No picture is labelled "nobody" by hand'),
            ({"label": "bee", "to": "bee"}, "choose another name"),
            ({"label": "bee", "to": " "}, "A label needs a letter."),
        ):
            assert words in client.json("/api/classes", body, status=400)["detail"]
    (run / "labels" / "classes.json").write_text('{"order": 3}')
    with served(run) as client:
        assert "classes.json is damaged: delete it" in client.json("/api/labels", status=400)["detail"]


def test_sets_are_those_of_the_votes_by_the_csv(run: Path) -> None:
    with served(Told(run)) as client:
        _sets(client)


def _sets(client: Client) -> None:
    for row in (0, 1, 2, 3, 4, 20, 21, 22, 38):
        give(client, [row], "warm" if row < 20 else "cold")
    state = client.json("/api/labels")
    lines = list(csv.DictReader(io.StringIO(client.send("GET", "/api/labels.csv")[2].decode())))
    row_of = {line["id"]: row for row, line in enumerate(lines)}
    sure = [line for line in lines if line["by"] == "vote" and float(line["confidence"]) >= 0.5]
    assert {one["label"] for one in sure} == {"warm", "cold"} and len(sure) > 9
    for name in ("warm", "cold"):
        wanted = sorted((one for one in sure if one["label"] == name), key=lambda one: -float(one["confidence"]))
        found = client.json(f"/api/suggestions?label={name}&count=100")
        assert (
            found["total"] == len(wanted) == next(one["suggested"] for one in state["classes"] if one["label"] == name)
        )
        shares = [one["confidence"] for one in found["pictures"]]
        assert {one["id"] for one in found["pictures"]} == {one["id"] for one in wanted}
        assert shares == sorted(shares, reverse=True)
        assert client.json(f"/api/pictures?by=suggested&label={name}&count=500")["total"] == len(wanted)
    assert client.json("/api/pictures?by=you&count=500")["total"] == 9
    assert client.json("/api/pictures?by=none")["total"] == state["none"] == COUNT - 9 - len(sure)
    told = client.json("/api/votes?rows=10,3")["pictures"]
    assert [one["row"] for one in told] == [10, 3] and told[1]["guess"] == "warm" and told[1]["hand"]
    assert told[0]["guess"] == lines[10]["label"] and row_of[told[0]["id"]] == 10
    rows = np.frombuffer(client.send("GET", "/api/rows?sort=unsure&start=2&count=5")[2], "<i4")
    least = sorted(range(COUNT), key=lambda row: float(lines[row]["confidence"]))
    assert [lines[row]["confidence"] for row in rows] == [lines[row]["confidence"] for row in least[2:7]]


def test_names_are_found_by_a_part_in_any_case_and_sorted(client: Client, trained: tuple[Path, Path]) -> None:
    ids = [one["id"] for one in client.json("/api/pictures?count=500")["pictures"]]
    found = client.json("/api/pictures?where=RED&count=500&sort=name")["pictures"]
    assert [one["id"] for one in found] == sorted(one for one in ids if "red" in one)
    largest = client.json("/api/pictures?sort=largest&count=500")["pictures"]
    sizes = [Path(one["path"]).stat().st_size for one in largest]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == COUNT


def test_a_list_names_the_files_where_they_are_now(trained: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    from instdisc.serve.opened import Opened

    moved = Path(shutil.copytree(trained[0], tmp_path / "moved"))
    with served(Opened(run, train_source=moved, device="cpu")) as client:
        status, headers, content = client.send("POST", "/api/list", {"rows": [7, 3, 39]})
        assert status == 200 and headers["content-type"].startswith("text/plain")
        lines = content.decode().splitlines()
        assert lines == [client.json(f"/api/pictures/{row}")["path"] for row in (7, 3, 39)]
        assert all(line.startswith(str(moved)) and Path(line).is_file() for line in lines)
        assert client.send("POST", "/api/list", {"rows": [COUNT]})[0] == 404


def test_facts_of_a_file_and_its_neighbours_in_a_set(client: Client) -> None:
    red = [one["row"] for one in client.json("/api/pictures?label=red&count=500")["pictures"]]
    facts = client.json(f"/api/facts/{red[3]}?label=red")
    path = Path(client.json(f"/api/pictures/{red[3]}")["path"])
    assert (facts["width"], facts["height"], facts["format"]) == (16, 16, "PNG")
    assert (facts["size"], facts["problem"]) == (path.stat().st_size, "")
    assert facts["modified"] == pytest.approx(path.stat().st_mtime)
    assert [facts[name] for name in ("before", "after", "place", "total")] == [red[2], red[4], 3, len(red)]
    assert client.json(f"/api/facts/{red[0]}?label=red")["before"] == -1
    assert client.json(f"/api/facts/{red[0]}?label=blue")["place"] == -1


def test_the_map_is_coloured_by_suggestion_and_agreement(run: Path) -> None:
    with served(Told(run)) as client:
        assert client.json("/api/map/colours?by=suggestion")["codes"] == [-1] * COUNT
        for row in (0, 1, 15, 16, 30, 31):
            give(client, [row], client.json(f"/api/pictures/{row}")["label"])
        give(client, [2], "red")  # it is blue, and so are those that follow it
        seen = client.json(f"/api/votes?rows={','.join(map(str, range(COUNT)))}")["pictures"]
        by_vote, agreeing = (client.json(f"/api/map/colours?by={by}") for by in ("suggestion", "agreement"))
        rows = np.frombuffer(client.send("GET", "/api/map/points")[2], "<i4", COUNT)
    seen = [seen[row] for row in rows]
    for one, code, agrees in zip(seen, by_vote["codes"], agreeing["codes"], strict=True):
        shown = one["hand"] or one["confidence"] >= 0.5
        assert (by_vote["names"][code] if code >= 0 else "") == (one["guess"] if shown else "")
        expected = (
            "by you" if one["hand"] else "as suggested" if one["guess"] == one["label"] else "suggested otherwise"
        )
        assert (agreeing["names"][agrees] if agrees >= 0 else "") == (expected if shown else "")


def test_a_line_break_in_a_name_is_refused_with_a_sentence(tmp_path: Path) -> None:
    from tiny_runs import tiny

    from instdisc.jobs.train import train

    pictures = picture_folder(tmp_path / "pictures", 20)
    odd = pictures / "red" / "two\nlines.png"
    shutil.copy(pictures / "red" / "0000.png", odd)
    with served(train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path) as client:
        row = next(one["row"] for one in client.json("/api/pictures?count=100")["pictures"] if "lines" in one["id"])
        answer = client.send("POST", "/api/list", {"rows": [row]})
        assert answer[0] == 400 and "A name holds a line break" in json.loads(answer[2])["detail"]
