"""The one-file report: what it shows of a run, that it loads nothing, and that data can not become markup."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc.checkpoint import latest
from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.evaluation.knn import KNN
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.report import report
from instdisc.jobs.train import train
from instdisc.neighbours import top_k
from instdisc.runs import RunFolder

NASTY = '</script><b onload="x">'  # a label may be so
COUNT = 60


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self._inside = "", [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data

    def classes(self, name: str) -> int:
        return sum(name in (attributes.get("class") or "").split() for _, attributes in self.tags)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A folder of pictures and two runs on it, the first evaluated."""
    folder = tmp_path_factory.mktemp("report")
    pictures = picture_folder(folder / "pictures", COUNT)
    names = {"red": NASTY, "green": "green", "blue": "blue"}
    with (folder / "labels.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "label"])
        lines.writerows([path, names[path.parent.name]] for path in sorted(pictures.rglob("*.png")))
    runs = [
        train(pictures, folder / f"run{seed}", tiny(seed=seed), labels=folder / "labels.csv", say=None).path
        for seed in (1, 2)
    ]
    evaluate(runs[0], neighbours=5, measures=["svm"], say=None)
    return pictures, runs


def test_a_report_shows_the_run(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    _, (run, _) = made
    said: list[str] = []
    page = Page(report([run], tmp_path / "report.html", say=said.append))
    for words in ("In short", "Nearest neighbours", "Most confused", "Map of the vectors", "Training", "All settings"):
        assert words in page.text
    evaluation = json.loads(RunFolder(run).evaluation.read_text())
    assert all(f"{100 * evaluation[kind]['top1']:.2f}" in page.text for kind in ("knn", "knn_search"))
    assert f"{100 * evaluation['svm']['levels']['embedding']['top1']:.2f}" in page.text and "linear SVM" in page.text
    assert page.classes("query") == 10 and page.classes("right") + page.classes("wrong") == 100
    assert page.text.count("✓") == page.classes("right") + 1  # the note explains it
    assert any("60 pictures" in line for line in said)


def test_neighbours_and_their_cosines_are_those_of_the_vectors(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    pictures, (run, _) = made
    text = report([run], tmp_path / "report.html", say=None).read_text()
    source = open_source(pictures)
    vectors = instdisc.load(run).embed(pictures)
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB")).astype(int)
        for found in re.findall(r'<figure[^>]*><img src="data:image/jpeg;base64,([^"]+)"', text)
    ]
    thumbnails = [np.asarray(Image.fromarray(decode(source.read(row))).resize((96, 96), 0)) for row in range(COUNT)]
    which = [int(np.argmin([np.abs(picture - one).mean() for one in thumbnails])) for picture in shown]
    lines = [which[first : first + 11] for first in range(0, len(which), 11)]
    cosines = [float(found) for found in re.findall(r"<figcaption>[✓✗] (-?\d\.\d\d)", text)]
    for number, line in enumerate(lines):
        scores, found = top_k(vectors[[line[0]]], vectors, 10, exclude=torch.tensor([line[0]]))
        assert line[1:] == found[0].tolist()
        np.testing.assert_allclose(cosines[10 * number : 10 * number + 10], scores[0], atol=0.0051)


def test_the_map_has_the_pictures_and_their_classes(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    pictures, (run, _) = made
    page = Page(report([run], tmp_path / "report.html", say=None))
    (found,) = json.loads(page.scripts[0])
    source = open_source(pictures, labels=pictures.parent / "labels.csv")
    assert source.labels is not None and source.label_names is not None
    points = np.array(found["points"])
    assert points.shape == (COUNT, 2) and points.min() == 0 and points.max() == 1
    assert [found["names"][code] for code in found["classes"]] == [source.label_names[code] for code in source.labels]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["sheet"].partition(",")[2]))))
    side, columns = found["side"], found["columns"]
    for row in (0, 17, COUNT - 1):
        y, x = row // columns * side, row % columns * side
        there = sheet[y : y + side, x : x + side].mean((0, 1))
        assert np.abs(there - decode(source.read(row)).mean((0, 1))).max() < 6


@pytest.mark.fault("30 MB of JavaScript from a foreign host")
def test_nothing_is_loaded_and_nothing_is_markup(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    _, runs = made
    path = report(runs, tmp_path / "report.html", say=None)
    page = Page(path)
    for _, attributes in page.tags:
        assert not {"href", "onload", "action"} & set(attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    without_pictures = re.sub(r"base64,[^\"]+", "", path.read_text())
    assert "http" not in without_pictures and "@import" not in without_pictures and "url(" not in without_pictures
    assert len(page.scripts) == 2, "a class called </script> does not end it"
    assert sum(tag == "b" for tag, _ in page.tags) == 6 + 5, (
        "the table's own: kNN and baselines, four levels, search vectors"
    )


def test_two_runs_stand_side_by_side_with_their_differences(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    _, runs = made
    page = Page(report(runs, tmp_path / "report.html", say=None))
    assert page.classes("map") == 2 and len(json.loads(page.scripts[0])) == 2
    assert page.classes("different") == 2, "the seed, in both"
    assert page.text.count("It was not evaluated yet") == 1
    assert all(page.text.count(str(run)) > 3 for run in runs)


def test_few_labels_are_shown_where_the_last_evaluation_was_of_them(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    run = shutil.copytree(made[1][0], tmp_path / "run")
    Image.new("RGB", (8, 8)).save(RunFolder(run).few_labels_plot)
    heading = "With a few labels"
    assert heading not in Page(report([run], tmp_path / "report.html", say=None)).text, "an older evaluation's"
    measured = json.loads(RunFolder(run).evaluation.read_text())
    measured["semi"] = {"plot": "semi.png"}
    RunFolder(run).evaluation.write_text(json.dumps(measured))
    assert heading in Page(report([run], tmp_path / "report.html", say=None)).text


def test_confusions_are_those_of_the_vote(made: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: Any) -> None:
    from instdisc.jobs import report as jobs_report

    pictures, (run, _) = made
    monkeypatch.setattr(jobs_report, "MOST_POINTS", 40)
    monkeypatch.setattr(jobs_report, "_VOTERS", 7)
    source, saved = open_source(pictures, labels=pictures.parent / "labels.csv"), latest(RunFolder(run).checkpoints)
    assert saved is not None and source.labels is not None
    bank, rows = saved.rows("bank", 0, COUNT)["rows"].numpy(), np.arange(COUNT)
    sample = np.sort(np.random.default_rng(0).permutation(COUNT)[:40])
    found = jobs_report._confusions(source, rows, torch.from_numpy(bank), source.labels, sample)
    rest = np.setdiff1d(rows, sample)
    named = KNN(7).fit(bank[rest], source.labels[rest]).predict(bank[sample])
    wrong = named != source.labels[sample]
    assert sum(one.count for one in found) == wrong.sum()
    for one in found:
        true, taken = (source.label_names.index(name) for name in (one.label, one.taken_for))
        assert one.count == ((source.labels[sample] == true) & (named == taken)).sum() and one.pictures


def test_without_labels_and_with_pictures_that_have_gone(tmp_path: Path) -> None:
    pictures = tmp_path / "flat"
    pictures.mkdir()
    for number, path in enumerate(sorted(picture_folder(tmp_path / "made", 40).rglob("*.png"))):
        path.rename(pictures / f"{number}.png")
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    page = Page(report([run], tmp_path / "report.html", say=None))
    assert "Most confused" not in page.text and page.classes("right") + page.classes("wrong") == 0
    with pytest.raises(InputError, match="at least one run"):
        report([], tmp_path / "none.html")
    with pytest.raises(InputError, match="no run folder"):
        report([tmp_path / "nowhere"], tmp_path / "none.html")
