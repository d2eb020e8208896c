"""Labels by hand, by vote and proposed; what a person said is never lost or overwritten."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc import cli
from instdisc.errors import InputError
from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.jobs.label import assign, hand_labels, label, propose, read_table, save
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

COUNT = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("label")
    pictures = picture_folder(folder / "pictures", COUNT)
    flat = folder / "flat"
    flat.mkdir()
    for file in pictures.glob("*/*.png"):
        shutil.copy(file, flat / f"{file.parent.name} {file.name}")
    return flat, train(flat, folder / "run", tiny(epochs=2), say=None).path


@pytest.fixture
def files(trained: tuple[Path, Path]) -> list[str]:
    return sorted(str(file) for file in trained[0].iterdir())


def truth(path: str) -> str:
    return Path(path).name.split()[0]


def test_votes_are_those_of_the_weighted_knn_by_hand(run: Path, files: list[str]) -> None:
    given = {path: truth(path) for path in files[::4]}
    assert assign(run, given, say=None) == (len(given), [])
    found = label(run, votes="neighbours", neighbours=5, temperature=0.1, say=None)
    vectors = instdisc.load(run).embed(files).double().numpy()
    known = [files.index(path) for path in given]
    scores = vectors @ vectors[known].T
    paths = [entry.path for entry in Collection(run).index.entries(found.rows)]
    for place, path in enumerate(paths):
        row = files.index(path)
        if path in given:
            assert found.hand[place] and found.names[found.codes[place]] == given[path] and found.confidence[place] == 1
            continue
        nearest = np.argsort(-scores[row], kind="stable")[:5]
        weights = np.exp(scores[row, nearest] / 0.1)
        shares = {
            name: weights[[truth(files[known[one]]) == name for one in nearest]].sum() / weights.sum()
            for name in found.names
        }
        assert not found.hand[place]
        assert found.confidence[place] == pytest.approx(max(shares.values()), abs=1e-3)
        assert shares[found.names[found.codes[place]]] == pytest.approx(max(shares.values()), abs=1e-3)
    assert found.accuracy is not None and found.accuracy.count == len(given)


def test_a_label_by_hand_is_never_overwritten(run: Path, files: list[str], tmp_path: Path) -> None:
    assign(run, {files[0]: "cat", files[1]: "dog"}, say=None)
    said: list[str] = []
    assert assign(run, {files[0]: "cow", files[1]: "dog", files[2]: "dog"}, say=said.append) == (1, [files[0]])
    assert said == [f"1 picture keeps its label of before, the first is {files[0]}: --replace changes that."]
    assert hand_labels(run) == {files[0]: "cat", files[1]: "dog", files[2]: "dog"}
    # What a vote said, read back, stays a vote.
    for name in ("all.csv", "all.parquet"):
        save(run, label(run, say=None), tmp_path / name)
    read = read_table(tmp_path / "all.csv")
    assert dict(zip(map(os.fsdecode, read.names), read.labels, strict=True)) == hand_labels(run)
    assert assign(run, read_table(tmp_path / "all.csv"), say=None) == (0, [])
    table = pq.read_table(tmp_path / "all.parquet").to_pylist()
    with open(tmp_path / "all.csv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(table) == len(rows) == COUNT
    for one, other in zip(table, rows, strict=True):
        assert (one["id"], one["path"], one["label"], one["by"]) == tuple(list(other.values())[:4])
        assert one["confidence"] == pytest.approx(float(other["confidence"]), abs=1e-4)
    assert {line["path"] for line in rows if line["by"] == "hand"} == set(files[:3])
    assert assign(run, {files[0]: "cow"}, replace=True, say=None) == (1, [])
    assert hand_labels(run)[files[0]] == "cow"


def test_search_and_removal_know_the_labels(run: Path, files: list[str]) -> None:
    assign(run, {files[3]: "striped cat", files[4]: "striped cat"}, say=None)
    (found,) = search(run, [files[3]], neighbours=1, label="striped cat")
    assert found[0].path == files[4] and found[0].label == "striped cat"
    index.remove(run, paths=[files[4]], say=None)
    assert int(label(run, say=None).hand.sum()) == 1
    index.recompute(run, say=None)
    assert hand_labels(run)[files[4]] == "striped cat"  # kept for when it comes back


def test_proposals_can_be_filled_in(run: Path, files: list[str]) -> None:
    entries = propose(run, 12, say=None)
    folder = RunFolder(run).labels
    with open(folder / "next.csv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["path"] for row in rows] == [entry.path for entry in entries]
    assert len(read_table(folder / "next.csv")) == 0
    with Image.open(folder / "next.png") as sheet:
        assert sheet.height > 12 * 100
    text = (folder / "next.csv").read_text()
    for row in rows:
        text = text.replace(f"{row['path']},", f"{row['path']},{truth(row['path'])}")
    (folder / "next.csv").write_text(text)
    assert assign(run, read_table(folder / "next.csv"), say=None)[0] == 12
    again = {entry.path for entry in propose(run, 12, say=None)}
    assert again.isdisjoint(hand_labels(run))
    assign(run, {path: truth(path) for path in files}, say=None)
    with pytest.raises(InputError, match="Every picture of the collection is labelled by hand"):
        propose(run, 3, say=None)


def test_the_command(run: Path, files: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    def told(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["instdisc", "label", str(run), *words])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, error = capsys.readouterr()
        assert status == (1 if error else 0)
        return out, error

    assert (
        told()[1]
        == f"instdisc: No picture is labelled yet: see what to start with by instdisc label {run} --propose 20\n"
    )
    assert "next.png" in told("--propose", "5")[0]
    assert "holds no label yet" in told("--propose", "5", "--from", str(run / "labels" / "next.csv"))[0]
    out, _ = told(
        *[word for path in files[:12] for word in ("--set", f"{path}={truth(path)}")], "-o", str(tmp_path / "l.csv")
    )
    assert "12 pictures were labelled by hand." in out and "Right on the 12 labelled by hand" in out
    assert len((tmp_path / "l.csv").read_text().splitlines()) == COUNT + 1
    for words, error in (
        (("--set", "nothing"), 'instdisc: "nothing" is no PICTURE=LABEL.\n'),
        (
            ("--set", "gone.jpg=cat"),
            f"instdisc: 1 name is not in the collection of {run}, the first is gone.jpg: ",
        ),
        (
            ("--propose", "5", "--by", "chance"),
            'instdisc: Pictures are proposed as mixed, covered, uncertain, not as "chance".',
        ),
        (("--propose", "0"), "instdisc: 0 proposals were asked for: ask for at least one.\n"),
        (("-o", "labels.txt"), "instdisc: Labels are written as .csv or .parquet, not as labels.txt.\n"),
        (("--from", str(tmp_path / "none.csv")), f"instdisc: {tmp_path / 'none.csv'} can't be read"),
        (
            ("--from", str(Path(__file__))),
            f"instdisc: {__file__} needs a first line with the columns path (or location) and label",
        ),
    ):
        assert told(*words)[1].startswith(error)
    (run / "labels" / "hand.csv").write_bytes(b"what,is\nthis,then\n")
    assert "can't be read" in told()[1]


def test_spread_labels_name_the_rest_and_keep_the_graph(run: Path, files: list[str], monkeypatch) -> None:
    assign(run, {path: truth(path) for path in files[::4]}, say=None)
    found = label(run, say=None)
    file = RunFolder(run).neighbour_graph
    written = file.stat().st_mtime_ns
    again = label(run, say=None)
    assert file.stat().st_mtime_ns == written
    assert np.array_equal(found.codes, again.codes) and np.array_equal(found.confidence, again.confidence)
    assert found.accuracy is not None and found.accuracy.count == len(files[::4])
    assert (found.confidence[found.hand] == 1).all() and (found.confidence[~found.hand] <= 1).all()
    index.remove(run, paths=[files[1]], say=None)
    fewer = label(run, say=None)
    assert len(fewer.rows) == COUNT - 1 and file.stat().st_mtime_ns != written
    with pytest.raises(InputError, match='Votes come by spread or neighbours, not by "chance".'):
        label(run, votes="chance", say=None)
