"""Duplicates, leaks and outliers of small collections, where what is right is known: they were put there."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from by_hand import are_the_best
from PIL import Image, ImageFilter
from sklearn.covariance import EmpiricalCovariance
from tiny_runs import tiny

import instdisc
from instdisc import cli
from instdisc.errors import InputError
from instdisc.jobs import duplicates as duplicates_module
from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.jobs.copies import sharpness
from instdisc.jobs.duplicates import duplicates, duplicates_of_source, look_alikes
from instdisc.jobs.leaks import LOOK_ALIKE, leaks, leaks_of_sources
from instdisc.jobs.outliers import known_outliers, outliers
from instdisc.jobs.sources import read_paths
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

COUNT = 40
SEPARATING = {"epochs": 10, "width": 16, "dim": 64, "optimizer": "muon", "lr": 0.05}


def blocks(count: int, seed: int) -> list[Image.Image]:
    """Pictures of 4 x 4 coloured squares, 16 pixels wide, far from each other."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((16, 16), Image.Resampling.NEAREST) for one in small]


def block_folder(folder: Path, count: int, seed: int) -> Path:
    for number, picture in enumerate(blocks(count, seed)):
        place = folder / ("even", "odd")[number % 2] / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.save(place)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Forty pictures, and exact copies of some, five in all: 0000 three times, with larger and older ones.

    The thresholds below are of their embedding: the collection has that, as somebody may choose."""
    folder = tmp_path_factory.mktemp("cleaning")
    pictures = block_folder(folder / "pictures", COUNT, 0)
    files = sorted(pictures.glob("*/*.png"))
    for number in range(4):
        shutil.copy(files[number], pictures / f"copy {number}.png")
    with Image.open(files[0]) as picture:
        picture.resize((32, 32), Image.Resampling.NEAREST).save(pictures / "large.png")
    os.utime(pictures / "copy 0.png", (1e9, 1e9))
    run = train(pictures, folder / "run", tiny(**SEPARATING), say=None).path
    index.recompute(run, vectors="embedding", say=None)
    return pictures, run


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.fault("results cannot be exported")
def test_copies_are_found_and_the_largest_is_kept(run: Path, trained: tuple[Path, Path]) -> None:
    groups = duplicates(run, say=None)
    files = sorted(trained[0].glob("*/*.png"))
    found = {group.kept.path: {copy.path for copy in group.copies} for group in groups}
    for number in range(1, 4):
        pair = {str(files[number]), str(trained[0] / f"copy {number}.png")}
        assert any({kept, *copies} == pair for kept, copies in found.items())
    assert found[str(trained[0] / "large.png")] == {str(files[0]), str(trained[0] / "copy 0.png")}
    assert len(groups) == 4 and [len(group.copies) for group in groups] == [1, 1, 1, 2], "the most certain first"
    assert {copy.kind for group in groups[:3] for copy in group.copies} == {"same file"}
    large = groups[3]
    assert large.kept.width == large.kept.height == 32 and large.copies[0].width == 16
    assert large.kept.size == (trained[0] / "large.png").stat().st_size and large.kept.format == "PNG"
    assert {(copy.kind, copy.changes) for copy in large.copies} == {("same picture", ("resized",))}
    vectors = instdisc.load(run).embed([large.kept.path, large.copies[0].path], vectors="embedding")
    assert large.copies[0].score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-4)
    # The vectors of the pictures as they are, and not the rows of the bank, in which copies differ.
    assert Collection(run).changes.recomputed is not None
    before = Collection(run).changes.step
    graph = RunFolder(run).neighbour_graph
    content = (
        graph.read_bytes()
    )  # of the pictures' vectors, for the votes too: rows of the bank must not take its place
    duplicates(run, bank=True, say=None)
    assert Collection(run).changes.step == before and graph.read_bytes() == content

    lines = read_csv(RunFolder(run).duplicates / "duplicates.csv")
    assert [line["keep"] for line in lines].count("yes") == len(groups)
    assert lines[0]["path"] == groups[0].kept.path and float(lines[0]["cosine"]) == pytest.approx(1, abs=1e-5)
    assert [line["kind"] for line in lines].count("same file") == 3 and lines[-1]["changes"] == "resized"
    with Image.open(RunFolder(run).duplicates / "duplicates.png") as sheet:
        assert sheet.height > 100 * len(groups)


def test_of_many_pictures_no_graph_is_made_for_this_and_copies_are_found_all_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = duplicates(run, say=None)
    graph = RunFolder(run).neighbour_graph
    kept, said = graph.read_bytes(), []
    monkeypatch.setattr(duplicates_module, "_MOST_LINKED", 10)
    assert duplicates(run, say=said.append) == before and graph.read_bytes() == kept
    assert not any("Thumbnails alone" in one for one in said), "the graph is there"
    graph.unlink()
    assert duplicates(run, say=said.append) == before and not graph.exists()
    assert any("Thumbnails alone propose what is compared" in one for one in said)


@pytest.mark.fault("approximate duplicate clusters chain to pairs far below the threshold")
@pytest.mark.fault("a group of duplicates does not show its worst pair")
def test_every_two_look_alikes_are_as_alike_as_asked_and_no_copies(run: Path) -> None:
    copies = duplicates(run, say=None)
    before = (RunFolder(run).duplicates / "remove.txt").read_text()
    groups = look_alikes(run, threshold=0.5, copies=copies, say=None)
    assert (RunFolder(run).duplicates / "remove.txt").read_text() == before, "look-alikes are not to be removed"
    collection = Collection(run)
    assert sum(len(group.pictures) for group in groups) > 5
    gone = {copy.row for group in copies for copy in group.copies}
    assert not gone & {one.row for group in groups for one in group.pictures}
    assert gone & {one.row for group in look_alikes(run, threshold=0.5, say=None) for one in group.pictures}
    look_alikes(run, threshold=0.5, copies=copies, say=None)
    assert [group.score for group in groups] == sorted((group.score for group in groups), reverse=True)
    for group in groups:
        vectors = collection.index.vectors(np.array([one.row for one in group.pictures]))
        scores = vectors @ vectors.T
        assert float(scores.min()) == pytest.approx(group.score, abs=1e-5) and group.score >= 0.5
        rows = read_csv(RunFolder(run).duplicates / "look_alikes.csv")
        listed = [line["path"] for line in rows if line["least_alike"] == "yes"]
        assert set(group.worst) <= set(listed) and len(listed) == 2 * len(groups)
        own = collection.index.rows_of(group.worst)
        assert float(np.prod(collection.index.vectors(own).numpy(), axis=0).sum()) == pytest.approx(
            group.score, abs=1e-5
        )


def test_the_list_of_what_could_go_is_taken_by_the_index(run: Path, trained: tuple[Path, Path]) -> None:
    before = sorted(trained[0].rglob("*"))
    groups = duplicates(run, keep="oldest", out=run / "found", say=None)
    assert str(trained[0] / "copy 0.png") in {group.kept.path for group in groups}
    paths = read_paths(run / "found" / "remove.txt")
    assert len(paths) == sum(len(group.copies) for group in groups)
    assert index.remove(run, paths=paths, say=None) == len(paths)
    assert duplicates(run, say=None) == []
    assert read_csv(RunFolder(run).duplicates / "duplicates.csv") == []
    assert not (RunFolder(run).duplicates / "duplicates.png").exists()
    assert sorted(trained[0].rglob("*")) == before  # nothing is deleted


def test_the_sharpest_is_kept(run: Path, tmp_path: Path, trained: tuple[Path, Path]) -> None:
    random = np.random.default_rng(0)
    sharp = Image.fromarray(random.integers(0, 255, (48, 48, 3), dtype=np.uint8))
    blurred = sharp.filter(ImageFilter.GaussianBlur(2))
    assert sharpness(np.asarray(sharp)) > 4 * sharpness(np.asarray(blurred)) > 0
    grey = np.asarray(sharp.convert("L"), np.float64)
    inner = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    assert sharpness(np.asarray(sharp)) == pytest.approx(inner.var(), rel=0.2)  # but for the border
    groups = duplicates(run, keep="sharpest", say=None)
    assert groups and all(group.kept.sharpness >= copy.sharpness for group in groups for copy in group.copies)


def test_leaks_are_the_pictures_of_another_source_that_are_here(run: Path, trained, tmp_path: Path) -> None:
    other = block_folder(tmp_path / "test", 10, 9)
    files = sorted(trained[0].glob("*/*.png"))
    shutil.copy(files[7], other / "leaked.png")
    (other / "broken.png").write_bytes(b"nothing")
    found = leaks(run, other, say=None)
    assert [(leak.path, leak.nearest.path) for leak in found] == [(str(other / "leaked.png"), str(files[7]))]
    vectors = instdisc.load(run).embed([str(other / "leaked.png"), str(files[7])], vectors="embedding")
    assert found[0].kind == "same file"
    assert found[0].nearest.score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    folder = RunFolder(run).duplicates
    assert read_csv(folder / "leaks.csv")[0]["path"] == str(other / "leaked.png")
    assert read_paths(folder / "remove.txt") == [str(other / "leaked.png")]
    assert (folder / "leaks.png").is_file()
    alike = leaks(run, other, look_alikes=True, threshold=0.2, say=None)
    assert len(alike) == 11 and alike[0] == found[0]  # each picture once, by its nearest
    assert {leak.kind for leak in alike[1:]} == {LOOK_ALIKE}
    assert read_paths(folder / "remove.txt") == [str(other / "leaked.png")], "look-alikes are not to be removed"
    assert len(read_csv(folder / "look_alikes.csv")) == 10 and len(read_csv(folder / "leaks.csv")) == 1
    assert not list(folder.glob("*.npy"))


def test_without_a_run_copies_are_found_by_bytes_and_pixels(trained: tuple[Path, Path], tmp_path: Path) -> None:
    expected = [
        {copy.path for copy in (group.kept, *group.copies)} for group in duplicates(trained[1], out=tmp_path, say=None)
    ]
    groups = duplicates_of_source(trained[0], out=tmp_path / "found", say=None)
    assert [{copy.path for copy in (group.kept, *group.copies)} for group in groups] == expected
    assert all(copy.score is None for group in groups for copy in group.copies)
    assert read_paths(tmp_path / "found" / "remove.txt") == [copy.path for group in groups for copy in group.copies]
    other = tmp_path / "other"
    other.mkdir()
    files = sorted(trained[0].glob("*/*.png"))
    shutil.copy(files[7], other / "leaked.png")
    Image.new("RGB", (16, 16), "red").save(other / "another.png")
    found = leaks_of_sources(trained[0], other, out=tmp_path / "found", say=None)
    assert [(leak.path, leak.nearest.path, leak.kind) for leak in found] == [
        (str(other / "leaked.png"), str(files[7]), "same file")
    ]
    assert read_csv(tmp_path / "found" / "leaks.csv")[0]["cosine"] == ""


def test_lists_name_the_files_where_they_are_now(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = (Path(shutil.copytree(place, tmp_path / place.name)) for place in trained)
    moved = pictures.rename(tmp_path / "moved")
    config = json.loads(RunFolder(run).config.read_text())
    config["source"]["given"] = str(pictures)
    RunFolder(run).config.write_text(json.dumps(config))
    groups = duplicates(run, train_source=moved, say=None)
    paths = read_paths(RunFolder(run).duplicates / "remove.txt")
    assert paths == [copy.path for group in groups for copy in group.copies] and len(paths) == 5
    assert all(Path(path).is_file() and path.startswith(str(moved)) for path in paths)
    assert index.remove(run, paths=paths, train_source=moved, say=None) == 5, "the list is understood"


def test_where_the_source_has_gone_or_changed_files_are_read_by_their_paths(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[1], tmp_path / "run"))
    config = json.loads(RunFolder(run).config.read_text())
    config["source"]["given"] = str(tmp_path / "gone")
    RunFolder(run).config.write_text(json.dumps(config))
    assert len(duplicates(run, bank=True, say=None)) == 4


def test_outliers_are_those_of_the_full_matrix(run: Path) -> None:
    found = outliers(run, by="similarity", neighbours=4, count=6, say=None)
    collection = Collection(run)
    vectors = collection.index.vectors(np.arange(len(collection.index))).double().numpy()
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    best = -np.sort(-scores, axis=1)
    similarity = best[:, :4].mean(axis=1)
    assert len(found) == 6
    are_the_best([one.row for one in found], -similarity)
    for one in found:
        assert one.similarity == pytest.approx(similarity[one.row], abs=1e-5)
        assert one.uniqueness == pytest.approx(1 - best[one.row, 0], abs=1e-5)
        are_the_best([one.nearest.row], scores[one.row])
    lines = read_csv(RunFolder(run).outliers / "outliers.csv")
    assert len(lines) == len(collection.index) and lines[0]["path"] == found[0].path
    assert (RunFolder(run).outliers / "outliers.png").is_file()


def test_outlier_scores_are_the_mahalanobis_distance_by_scikit_learn(run: Path, trained: tuple[Path, Path]) -> None:
    found = outliers(run, count=COUNT + 5, say=None)
    features = instdisc.load(run).features([one.path for one in found])
    expected = np.zeros(len(found))
    for name, values in features.items():
        if name not in ("backbone", "embedding"):
            numbers = values.double().numpy()
            covariance = EmpiricalCovariance().fit(numbers).covariance_
            shrunk = covariance + 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
            centred = numbers - numbers.mean(0)
            expected += np.log(np.einsum("ij,jk,ik->i", centred, np.linalg.inv(shrunk), centred))
    assert len(features) > 3
    np.testing.assert_allclose([one.outlier_score for one in found], expected, atol=0.02)
    assert [one.outlier_score for one in found] == sorted((one.outlier_score for one in found), reverse=True)


def test_a_stranger_is_told_and_the_unreadable_come_last(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(trained[0], tmp_path / "pictures"))
    Image.new("RGB", (16, 16), (255, 255, 255)).save(pictures / "stranger.png")
    run = train(pictures, tmp_path / "run", tiny(**SEPARATING), say=None).path
    assert Path(outliers(run, count=1, say=None)[0].path).name == "stranger.png"
    gone = sorted(pictures.glob("*/*.png"))[3]
    gone.write_bytes(b"")
    found = outliers(run, count=100, say=None)
    assert found[-1].path == str(gone) and np.isnan(found[-1].outlier_score)
    in_order = [one.row for one in found[:-1]]
    assert [row for row, _ in known_outliers(Collection(run))] == in_order
    written = RunFolder(run).outliers / "outliers.csv"
    written.write_text(written.read_text().replace(",outlier_score,", ",strangeness,", 1))  # as versions before 0.2 did
    assert [row for row, _ in known_outliers(Collection(run))] == in_order
    renamed = outliers(run, by="strangeness", count=100, say=None)
    assert [one.row for one in renamed] == [one.row for one in found] and renamed[0].strangeness == found[0].strangeness


def test_removed_pictures_take_no_part(run: Path) -> None:
    first = outliers(run, count=1, say=None)[0]
    index.remove(run, paths=[first.path], say=None)
    assert first.row not in {one.row for one in outliers(run, count=COUNT, say=None)}


@pytest.mark.fault("a group of duplicates does not show its worst pair")
@pytest.mark.fault("no score shown")
def test_the_commands(run: Path, trained, monkeypatch, capsys) -> None:
    def told(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["instdisc", *words])
        with contextlib.suppress(SystemExit):
            cli.main()
        return capsys.readouterr()

    out, _ = told("duplicates", str(run))
    assert "5 copies in 4 groups" in out and "large.png" in out and "remove.txt" in out
    assert "same file" in out and "same picture, resized" in out
    found = json.loads(told("duplicates", str(run), "--json")[0])
    assert found[3]["kept"]["path"].endswith("large.png") and found[3]["copies"][0]["kind"] == "same picture"
    monkeypatch.setenv("COLUMNS", "1000")  # no path is folded
    out, _ = told("duplicates", str(run), "--threshold", "0.5")
    groups = json.loads(told("duplicates", str(run), "--threshold", "0.5", "--json")[0])["look_alikes"]
    assert "of look-alikes, which are not proven to be copies" in out and "look_alikes.csv" in out
    assert groups and all(path in out for one in groups[:12] for path in one["worst"])
    assert all(f"{one['score']:.3f}" in out for one in groups[:12])
    out, _ = told("duplicates", str(run), "--against", str(trained[0]))
    assert f"{COUNT + 5} pictures of" in out
    out, _ = told("duplicates", str(trained[0]), "-o", str(run / "alone"))
    assert "5 copies in 4 groups" in out and (run / "alone" / "remove.txt").is_file()
    for words in (["--bank"], ["--look-alikes"], ["--threshold", "0.9"], ["--approximate"]):
        _, error = told("duplicates", str(trained[0]), *words)
        assert error.startswith(f"instdisc: {trained[0]} is not a run folder")
    _, error = told("duplicates", str(run / "nowhere"))
    assert error.startswith(f"instdisc: There is no run folder at {run / 'nowhere'}")
    out, _ = told("outliers", str(run), "--count", "3")
    assert "outlier score" in out and "outliers.csv" in out
    assert len(json.loads(told("outliers", str(run), "--count", "3", "--json")[0])) == 3
    _, error = told("duplicates", str(run), "--keep", "best")
    assert error == 'instdisc: One of largest, sharpest, oldest can be kept, not "best".\n'
    _, error = told("outliers", str(run), "--by", "looks")
    assert error == (
        'instdisc: Invalid order of outliers: "looks". Choose from outlier_score, similarity, uniqueness.\n'
    )
    _, error = told("outliers", str(run), "-k", "400")
    assert error.startswith("instdisc: 400 neighbours were asked for, and a picture has 44 others")
    other = block_folder(run / "other", 6, 11)
    out, _ = told("duplicates", str(other), "-o", str(run / "none"), "--keep", "largest")
    assert "No copies: no two pictures are the same file" in out
    assert (run / "none" / "remove.txt").read_text() == ""


def test_age_needs_files(tmp_path: Path) -> None:
    pictures = np.stack([np.asarray(picture) for picture in blocks(20, 0) * 2])
    run = train(pictures, tmp_path / "run", tiny(**SEPARATING), say=None).path
    with pytest.raises(InputError, match="is no file of its own, so that its age is not known"):
        duplicates(run, keep="oldest", train_source=pictures, say=None)
    assert len(duplicates(run, train_source=pictures, say=None)) == 20
    RunFolder(run).thumbnails.unlink()
    with pytest.raises(InputError, match="was trained on pictures in memory"):
        duplicates(run, bank=True, say=None)
