"""What there is, and the job that makes the rest: against the commands, with stops in between, without the pictures."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import planted
from serving import COUNT, Client, Told, made_collection, served

from instdisc.files import write_json
from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.jobs.outliers import outliers
from instdisc.progress import Bar
from instdisc.serve.opened import Opened

STEPS = ["vectors", "graph", "outliers", "copies", "map"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("overview"))


def ready(client: Client) -> list[str]:
    return [part["name"] for part in client.json("/api/prepare")["parts"] if part["ready"]]


def ended(client: Client) -> dict[str, Any]:
    until = time.monotonic() + 120
    while (state := client.json("/api/prepare"))["state"] == "computing":
        assert time.monotonic() < until, state
        time.sleep(0.05)
    return state


def words(client: Client, part: str) -> dict[str, str]:
    return {line["title"]: line["text"] for line in client.json("/api/overview")[part]}


def test_the_overview_counts_what_the_files_are(tmp_path: Path) -> None:
    pictures, run, names = planted(tmp_path, 18, 3)
    with served(run) as client:
        found = words(client, "collection")
        assert found == {
            "Pictures": str(18 + len(names)),
            "Classes": "3",
            "Labels by you": "0",
            "Unreadable files": "2",
            "Removed": "0",
        }
        client.json("/api/labels", {"rows": [0, 1, 2], "label": "new"})
        client.json("/api/review/outliers", {"choices": [{"row": 4, "choice": "remove"}]})
        client.json("/api/review/hide", {})
        found = words(client, "collection")
        assert found["Labels by you"] == "3" and found["Classes"] == "4"
        assert found["Removed"] == "1, hidden from every view" and found["Pictures"] == str(17 + len(names))
        shown = client.json("/api/overview")["pictures"]
        assert len(shown) == 8 and 4 not in [one["row"] for one in shown]
        encoder = words(client, "encoder")
        assert encoder["Encoder"].startswith("conv6, 16 px") and "epoch 1.0" in encoder["Trained"]
        assert encoder["Measured in training"].startswith("knn ")
        knn = {"top1": 0.5, "top5": 1.0, "interval": [0.2, 0.8], "count": 11}
        write_json(run / "evaluation.json", {"knn": knn, "baselines": {"raw_pixels": knn}})
        assert words(client, "encoder")["Measured"] == "kNN: embedding 50.00 %, raw pixels 50.00 %"
    assert len(list(pictures.rglob("*.*"))) == 18 + len(names) + 2, "no file was touched"


def test_all_of_it_is_made_as_by_the_commands_and_kept(run: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(run, tmp_path / "plain"))
    with served(run) as client:
        before = client.json("/api/collection")
        assert ready(client) == [] and not before["recomputed"]
        first = client.json("/api/prepare", {})
        assert first["state"] == "computing"
        client.json("/api/labels", {"rows": [3], "label": "meanwhile"})  # other views work
        state = ended(client)
        assert state["error"] == "" and ready(client) == STEPS
        after = client.json("/api/collection")
        assert after["recomputed"] and after["vectors"] == "search" and after["dim"] != before["dim"]
        assert client.json("/api/pictures/3")["label"] == "meanwhile"
        assert client.json("/api/map")["state"] == "ready"
        grades = client.json("/api/map/colours?by=outlier")
        assert "most unusual" in grades["names"] and max(grades["codes"]) == 3
        hits = client.json("/api/neighbours/0?count=5")["results"]
        assert client.json("/api/prepare", {})["state"] == "idle", "nothing is missing"
    index.recompute(plain, device="cpu", say=None)
    found, expected = Collection(run), Collection(plain)
    rows = np.arange(COUNT)
    np.testing.assert_array_equal(found.index.vectors(rows).numpy(), expected.index.vectors(rows).numpy())
    _, order = expected.index.search(expected.index.vectors(np.array([0])), 6)
    assert [one["row"] for one in hits] == order[0, 1:].tolist()
    outliers(plain, device="cpu", say=None)
    made, command = ((one / "outliers" / "outliers.csv").read_text() for one in (run, plain))
    assert re.sub(",meanwhile,", ",blue,", made) == command
    with served(run) as client:
        assert ready(client) == [step for step in STEPS if step != "copies"], "those are compared once a start"


class Steps(Told):
    """Vectors are there; graph, scores and copies take a while, and note when they were begun."""

    seconds = 0.0

    def __init__(self, run: Path) -> None:
        self.begun: list[str] = []
        self.made: set[str] = {"vectors", "map"}
        super().__init__(run)

    def has(self, what: Any) -> bool:
        return what in self.made

    def _slowly(self, what: str) -> None:
        self.begun.append(what)
        with Bar(100, f"Working on {what}", "pictures", enabled=False) as bar:
            for _ in range(100):
                time.sleep(self.seconds / 100)
                bar.advance()
        self.made.add(what)

    def make_graph(self) -> None:
        self._slowly("graph")

    def make_outliers(self) -> None:
        self._slowly("outliers")

    def copies(self) -> Any:
        self._slowly("copies")
        return []


@pytest.mark.slow
def test_a_stopped_job_goes_on_with_what_is_missing(run: Path) -> None:
    opened = Steps(run)
    with served(opened) as client:
        opened.seconds = 3.0
        state = client.json("/api/prepare", {"steps": ["graph"]})
        assert client.json("/api/prepare", {"steps": ["map"]})["then"] == "", "one job at a time"
        assert state["state"] == "computing" and state["then"] == ""
        seen = []
        while (state := client.json("/api/prepare"))["state"] == "computing":
            seen.append((time.monotonic(), state["progress"], state["seconds_left"]))
            time.sleep(0.1)
        end = time.monotonic()
        assert [share for _, share, _ in seen] == sorted(share for _, share, _ in seen), "never back"
        told = [(at, left) for at, _, left in seen if left is not None]
        assert len(told) > 5 and all(abs(end - at - left) < 1.0 for at, left in told)

        state = client.json("/api/prepare", {})
        assert state["then"] == "copies" and state["what"].startswith("Outlier scores")
        opened.seconds = 0.1
        until = time.monotonic() + 60
        while "copies" not in opened.begun:
            assert time.monotonic() < until
            opened.seconds = 30.0
            time.sleep(0.02)
        state = client.json("/api/prepare")
        assert state["what"] == "Copies: working on copies" and state["progress"] >= 0.5
        client.json("/api/prepare/stop", {})
        state = ended(client)
        assert state["error"].startswith("Stopped.")
        assert ready(client) == ["vectors", "graph", "outliers", "map"]
        opened.seconds = 0.0
        client.json("/api/prepare", {})
        assert ended(client)["error"] == "" and ready(client) == STEPS
    assert opened.begun == ["graph", "outliers", "copies", "copies"]


def test_who_waits_for_a_comparison_sees_the_job_and_may_stop_it(run: Path) -> None:
    opened = Steps(run)
    opened.made |= {"graph", "outliers"}
    with served(opened) as client:
        opened.seconds = 30.0
        client.json("/api/prepare", {})
        until = time.monotonic() + 60
        while client.json("/api/work")["what"] != "Working on copies":
            assert time.monotonic() < until
            time.sleep(0.02)
        client.json("/api/work/stop", {})
        assert ended(client)["error"].startswith("Stopped.")


def test_what_can_not_be_made_is_told_and_the_rest_is_made(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The pictures have gone: no vectors, scores or copies of them; graph and map need none."""
    pictures = Path(shutil.copytree(trained[0], tmp_path / "pictures"))
    run = Path(shutil.copytree(trained[1], tmp_path / "run"))
    opened = Opened(run, train_source=pictures, device="cpu")
    with served(opened) as client:
        shutil.rmtree(pictures)
        client.json("/api/prepare", {})
        state = ended(client)
        parts = {part["name"]: part for part in state["parts"]}
        assert [name for name in STEPS if parts[name]["ready"]] == ["graph", "map"]
        for name in ("vectors", "outliers", "copies"):
            assert parts[name]["text"] in state["error"] and len(parts[name]["text"]) > 30
        assert str(pictures) in parts["vectors"]["text"]


def test_steps_that_are_none_are_refused(run: Path) -> None:
    with served(Steps(run)) as client:
        for steps in (["maps"], [], ["map"] * 6, "map"):
            client.json("/api/prepare", {"steps": steps}, status=422)
        assert client.json("/api/prepare")["state"] == "idle"
