"""The review by its API: cases, decisions that stay in the run, what they end in, and the way back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import planted
from serving import Client, served

from instdisc.jobs import review
from instdisc.jobs.collection import Collection
from instdisc.jobs.grow import grow
from instdisc.jobs.index import remove
from instdisc.jobs.label import hand_labels
from instdisc.jobs.purge import purge
from instdisc.runs import RunFolder
from instdisc.serve.opened import Opened

SCENES, COPIES = 24, 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], Path]:
    pictures, run, names = planted(tmp_path_factory.mktemp("review"), SCENES, COPIES)
    return pictures, names, run


@pytest.fixture
def client(run: Path) -> Iterator[Client]:
    with served(run) as client:
        yield client


def counted(client: Client, kind: str) -> dict[str, Any]:
    return next(one for one in client.json("/api/review")["kinds"] if one["kind"] == kind)


def text(client: Client, path: str) -> str:
    status, headers, content = client.send("GET", path)
    assert status == 200 and headers["content-disposition"].startswith("attachment; "), content
    return content.decode("utf-8", "surrogateescape")


def test_all_planted_copies_are_cases_and_nothing_goes_before_it_is_decided(
    client: Client, trained: tuple[Path, dict[str, str], Path]
) -> None:
    names = trained[1]
    assert counted(client, "copies")["open"] is None, "nobody has looked for copies yet"
    found = client.json("/api/review/copies?count=100")
    assert found["total"] == found["open"] == COPIES and found["decided"] == 0
    for case in found["cases"]:
        kept, copy = (one["path"] for one in case["pictures"])
        assert {names.get(kept, kept), names.get(copy, copy)} == {names.get(kept, kept)}
        assert [one["choice"] for one in case["pictures"]] == ["", ""]
    assert found["cases"][0]["pictures"][1]["kind"] == "same file" and found["cases"][0]["certain"]
    assert text(client, "/api/review/list") == "" and client.json("/api/review")["going"] == 0
    assert client.send("GET", "/api/review/script")[0] == 400


def test_decisions_stay_in_the_run_and_each_can_be_taken_back(run: Path, client: Client) -> None:
    first, second = client.json("/api/review/copies")["cases"][:2]
    rows = [one["row"] for one in first["pictures"]]
    paths = [one["path"] for one in first["pictures"]]
    done = client.json(
        "/api/review/copies", {"choices": [{"row": rows[0], "choice": "remove"}, {"row": rows[1], "choice": "keep"}]}
    )
    assert done["text"] == "Marked 1 of 2 pictures for removal" and counted(client, "copies")["decided"] == 1
    client.json(
        "/api/review/copies", {"choices": [{"row": one["row"], "choice": "keep"} for one in second["pictures"]]}
    )
    with served(run) as other:  # another start of the server
        assert [one["choice"] for one in other.json("/api/review/copies?which=decided")["cases"][0]["pictures"]] == [
            "remove",
            "keep",
        ]
        assert text(other, "/api/review/list") == f"{paths[0]}\n"
        last = other.json("/api/journal")
        assert last["text"] == "Kept 2 pictures"
        undone = other.json("/api/undo", {"act": last["act"]})
        assert undone["review"] and not undone["pictures"] and undone["next"]["act"] == done["act"]
        other.json("/api/undo", {"act": last["act"]}, status=400)
        other.json("/api/undo", {"act": done["act"]})
    assert client.json("/api/review/copies")["open"] == COPIES and client.json("/api/journal")["act"] == ""
    assert len(RunFolder(run).review.read_bytes().splitlines()) == 4, "nothing is ever taken out of the journal"


def test_undo_goes_back_through_labels_and_decisions_in_their_order(client: Client) -> None:
    label = client.json("/api/labels", {"rows": [3], "label": "cat"})
    decision = client.json("/api/review/outliers", {"choices": [{"row": 3, "choice": "remove"}]})
    again = client.json("/api/labels", {"rows": [4], "label": "cat"})
    for act in (again, decision, label):
        last = client.json("/api/journal")
        assert last["act"] == act["act"]
        client.json("/api/undo", {"act": last["act"]})
    assert client.json("/api/journal") == {"act": "", "text": ""}


def test_all_certain_ones_at_once_as_many_as_were_looked_over(client: Client) -> None:
    certain = client.json("/api/review/copies?which=certain&count=100")["total"]
    assert 0 < certain <= COPIES
    assert "look them over" in client.json("/api/review/certain", {"expected": certain + 1}, status=400)["detail"]
    done = client.json("/api/review/certain", {"expected": certain})
    assert done["going"] == certain and done["text"] == f"Accepted {certain} certain groups of copies"
    assert client.json("/api/review/copies?which=certain")["total"] == 0
    assert len(text(client, "/api/review/list").splitlines()) == certain


@pytest.mark.fault("a removed picture is still searched, counted or drawn by the open page")
def test_what_is_hidden_is_gone_everywhere_at_once_and_comes_back(run: Path, client: Client) -> None:
    certain = client.json("/api/review/copies?which=certain&count=100")
    client.json("/api/review/certain", {"expected": certain["total"]})
    gone = [one["path"] for case in certain["cases"] for one in case["pictures"][1:]]
    rows = [one["row"] for case in certain["cases"] for one in case["pictures"][1:]]
    before = client.json("/api/pictures?count=500")
    neighbours = client.json(f"/api/neighbours/{certain['cases'][0]['pictures'][0]['row']}?count=5")["results"]
    kept = certain["cases"][0]["pictures"][0]["row"]
    done = client.json("/api/review/hide", {})
    assert done["hidden"] == len(gone) and done["text"] == f"Hid {len(gone)} pictures from the collection"
    after = client.json("/api/pictures?count=500")
    assert after["total"] == client.json("/api/collection")["pictures"] == before["total"] - len(gone)
    assert not {one["path"] for one in after["pictures"]} & set(gone)
    assert client.send("GET", f"/pictures/{rows[0]}")[0] == 404
    assert not {one["row"] for one in client.json(f"/api/neighbours/{kept}?count=20")["results"]} & set(rows)
    assert counted(client, "copies")["decided"] == 0 and client.json("/api/review/hide", {})["act"] == ""
    assert set(text(client, "/api/review/list").split()) == set(gone), "the list is of files, and these are still there"
    assert Collection(run).index.removed.nonzero()[0].tolist() == sorted(rows), "as index --remove-list would have it"
    assert all(Path(path).is_file() for path in gone)
    with served(run) as other:  # after a restart
        assert other.json("/api/collection")["pictures"] == after["total"]
        last = other.json("/api/journal")
        assert other.json("/api/undo", {"act": last["act"]})["pictures"]
        assert other.json("/api/pictures?count=500") == before
        assert other.json("/api/review/copies")["decided"] == certain["total"]
        found = other.json(f"/api/neighbours/{certain['cases'][0]['pictures'][0]['row']}?count=5")["results"]
        assert found == neighbours
    assert not Collection(run).index.removed.any()


def test_labels_follow_what_is_hidden_and_shown_again(client: Client) -> None:
    """Votes and their graph are of the pictures that are there."""
    rows = [one["row"] for one in client.json("/api/pictures?count=500")["pictures"]]
    for row in rows[:4]:
        client.json("/api/labels", {"rows": [row], "label": "ab"[row % 2]})
    everywhere = client.json("/api/labels")
    client.json("/api/review/outliers", {"choices": [{"row": row, "choice": "remove"} for row in rows[:2]]})
    done = client.json("/api/review/hide", {})
    hidden = client.json("/api/labels")
    assert sum(one["hand"] + one["vote"] for one in hidden["classes"]) == len(rows) - 2
    assert sum(one["hand"] for one in hidden["classes"]) == 2
    client.json("/api/undo", {"act": done["act"]})
    assert client.json("/api/labels") == everywhere


def test_the_last_picture_can_not_be_hidden(client: Client) -> None:
    rows = [one["row"] for one in client.json("/api/pictures?count=500")["pictures"]]
    client.json("/api/review/outliers", {"choices": [{"row": row, "choice": "remove"} for row in rows]})
    assert "at least one has to stay" in client.json("/api/review/hide", {}, status=400)["detail"]
    assert client.json("/api/collection")["pictures"] == len(rows)


def test_another_command_that_changed_the_collection_is_not_overwritten(run: Path, client: Client) -> None:
    found = client.json("/api/review/outliers")["cases"]
    client.json("/api/review/outliers", {"choices": [{"row": found[0]["pictures"][0]["row"], "choice": "remove"}]})
    path = client.json("/api/pictures?count=500")["pictures"][5]["path"]
    remove(run, paths=[path], say=None)
    client.json("/api/review/hide", {})
    assert Collection(run).index.removed.sum() == 2, "what the command removed stays removed"


def test_doubtful_labels_are_those_of_the_neighbours(run: Path, client: Client, said: Any) -> None:
    found = client.json("/api/review/labels?count=100")
    assert found["total"] > 3 and [one["score"] for one in found["cases"]] == sorted(
        (one["score"] for one in found["cases"]), reverse=True
    )
    first, second = found["cases"][:2]
    assert first["given"] != first["voted"] and first["given"] == first["pictures"][0]["label"]
    client.json("/api/labels", {"rows": [first["pictures"][0]["row"]], "label": first["voted"]})
    client.json("/api/review/labels", {"choices": [{"row": second["pictures"][0]["row"], "choice": "keep"}]})
    left = client.json("/api/review/labels?count=100")
    rows = {one["pictures"][0]["row"] for one in left["cases"]}
    assert second["pictures"][0]["row"] not in rows and left["decided"] == 1
    assert hand_labels(run) == {first["pictures"][0]["path"]: first["voted"]}
    client.json("/api/labels", {"rows": [second["pictures"][0]["row"]], "label": "another"})
    again = client.json("/api/review/labels?which=decided")
    assert not again["total"], "another label is another question"
    words = said("label", run, "--doubtful", "3", "--bank")
    assert "neighbours say" in words and "doubtful.csv" in words
    lines = (run / "labels" / "doubtful.csv").read_text().splitlines()
    assert lines[0] == "path,given,by,voted,doubt" and len(lines) - 1 == client.json("/api/review/labels")["total"]


def test_unreadable_files_are_listed_and_can_be_moved(
    client: Client, trained: tuple[Path, dict[str, str], Path], tmp_path: Path
) -> None:
    found = client.json("/api/review/unreadable")
    assert {Path(one["pictures"][0]["path"]).name for one in found["cases"]} == {"broken.jpg", "empty.png"}
    assert all(len(one["note"]) > 5 for one in found["cases"])
    row = next(one["pictures"][0]["row"] for one in found["cases"] if "broken" in one["pictures"][0]["path"])
    assert client.json("/api/review/unreadable", {"choices": [{"row": row, "choice": "remove"}]})["going"] == 1
    assert text(client, "/api/review/list") == f"{trained[0] / 'day' / 'broken.jpg'}\n"
    assert "move " in text(client, "/api/review/script") and "Move-Picture " in text(
        client, "/api/review/script?shell=powershell"
    )
    client.json("/api/review/unreadable", {"choices": [{"row": 99, "choice": "keep"}]}, status=404)


def test_the_list_and_the_script_name_files_where_they_are_now(
    run: Path, trained: tuple[Path, dict[str, str], Path], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(trained[0], tmp_path / "moved"))
    with served(Opened(run, train_source=moved, device="cpu")) as client:
        certain = client.json("/api/review/copies?which=certain&count=100")
        client.json("/api/review/certain", {"expected": certain["total"]})
        place = next(one["pictures"][0]["row"] for one in client.json("/api/review/unreadable")["cases"])
        client.json("/api/review/unreadable", {"choices": [{"row": place, "choice": "remove"}]})
        files = text(client, "/api/review/list").splitlines()
        assert len(files) == certain["total"] + 1 and all(
            Path(one).is_file() and one.startswith(str(moved)) for one in files
        )
        (tmp_path / "move.sh").write_text(text(client, "/api/review/script"))
    subprocess.run(["sh", str(tmp_path / "move.sh")], check=True, capture_output=True)
    assert not any(Path(one).exists() for one in files)
    assert all(Path(one.replace(str(moved), f"{moved}-removed")).is_file() for one in files)


def test_the_later_decision_on_a_picture_counts(client: Client) -> None:
    """Kept as the best of copies, and then marked for removal as an outlier; then looked at again."""
    row = client.json("/api/review/copies")["cases"][0]["pictures"][0]["row"]
    for kind, choice, going in (
        ("copies", "keep", 0),
        ("outliers", "remove", 1),
        ("look-alikes", "keep", 0),
        ("outliers", "", 0),
    ):
        assert client.json(f"/api/review/{kind}", {"choices": [{"row": row, "choice": choice}]})["going"] == going


def test_purged_pictures_leave_no_decision_and_grown_runs_keep_the_others(tmp_path: Path) -> None:
    _, run, names = planted(tmp_path, 16, 4)
    copy, other = list(names)[:2]
    with served(run) as client:
        certain = client.json("/api/review/copies?which=certain")
        client.json("/api/review/certain", {"expected": certain["total"]})
        client.json("/api/review/hide", {})
    folder = RunFolder(run)
    purge(run, [copy], say=None)
    content = folder.review.read_bytes()
    assert copy.encode() not in content and other.encode() in content
    assert set(review.going(folder)) <= set(names) - {copy}
    Path(copy).unlink()
    before = review.decided(folder)
    grow(run, epochs=1, say=None)
    assert review.decided(folder) == before
    with served(run) as client:
        shown = client.json("/api/collection")["pictures"]
        last = client.json("/api/journal")
        assert last["text"].startswith("Hid")
        client.json("/api/undo", {"act": last["act"]})
        assert client.json("/api/collection")["pictures"] == shown + len(before["hidden"])


def test_half_a_line_that_a_crash_left_is_passed_over(run: Path) -> None:
    folder = RunFolder(run)
    review.decide(folder, "copies", {"a": "keep"}, text="Kept 1 picture")
    with open(folder.review, "ab") as file:
        file.write(b'{"name": "half')
    act = review.decide(folder, "copies", {"b": "remove"}, text="Chose 1")
    assert act is not None and review.decided(folder) == {"copies": {"a": "keep", "b": "remove"}}
    assert review.decide(folder, "copies", {"b": "remove"}, text="again") is None
    assert np.array_equal([one.name for one in review.still_done(folder)][:1], [act.name])
