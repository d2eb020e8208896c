"""Labels from folders: what is a class and what a split, strays, and that all of it is said at the start."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from instdisc.data import Source, open_source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # many indexes that no power cut will meet


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


PNG = picture()


def folder_of(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


def labels_of(source: Source) -> dict[str, str]:
    """id -> class, "" for none."""
    labels = source.labels
    ids = [source.identifier(row) for row in range(len(source))]
    return {name: "" if labels is None else source.class_name(int(labels[row])) for row, name in enumerate(ids)}


@pytest.mark.fault("train and test are taken for two classes, and the accuracy is that of telling them apart")
@pytest.mark.parametrize(
    "splits",
    [("train", "test"), ("train", "val"), ("Train", "Test"), ("training", "validation", "testing"), ("train",)],
)
def test_splits_are_no_classes(tmp_path: Path, splits: tuple[str, ...]) -> None:
    names = [f"{split}/{number}.png" for split in splits for number in range(3)]
    source = open_source(folder_of(tmp_path / "in", names))
    assert len(source) == len(names) and source.labels is None
    told = [note for note in source.notes if "splits, no classes" in note]
    if len(splits) == 1:
        assert not source.notes
    else:
        assert len(told) == 1 and all(f"{split} (3)" in told[0] for split in splits) and "--split" in told[0]
    for split in splits:
        assert len(open_source(tmp_path / "in", split=split)) == 3


def test_classes_below_splits_are_the_classes(tmp_path: Path) -> None:
    names = [f"{split}/{label}/{split}{number}.png" for split in ("train", "test") for label in "ab" for number in "12"]
    source = open_source(folder_of(tmp_path / "in", names))
    assert labels_of(source) == {name: name.split("/")[1] for name in names}
    assert "splits, no classes" in source.notes[0]
    part = open_source(tmp_path / "in", split="test")
    assert labels_of(part) == {name.removeprefix("test/"): name.split("/")[1] for name in names if "test/" in name}


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    """A train is a vehicle: where other folders stand beside it, it is no split."""
    names = [f"{label}/{number}.png" for label in ("bus", "car", "train") for number in "12"]
    source = open_source(folder_of(tmp_path / "in", names))
    assert labels_of(source) == {name: name.split("/")[0] for name in names} and not source.notes


@pytest.mark.fault("one stray picture beside the class folders takes all labels, without a word")
@pytest.mark.parametrize(
    ("strays", "words"),
    [
        (["x.png"], "2 folders are classes; 1 picture lies beside them and has no label."),
        (["a/old/x.png"], "2 folders are classes; 1 picture lies deeper and has no label."),
        (["x.png", "y.png"], "2 folders are classes; 2 pictures lie beside them and have no label."),
        (["x.png", "b/c/y.png"], "2 folders are classes; 2 pictures lie beside them or deeper and have no label."),
    ],
)
def test_a_stray_picture_takes_no_labels_away(tmp_path: Path, strays: list[str], words: str) -> None:
    names = [f"{label}/{number}.png" for label in "ab" for number in "123"]
    source = open_source(folder_of(tmp_path / "in", names + strays))
    assert labels_of(source) == {name: name.split("/")[0] for name in names} | dict.fromkeys(strays, "")
    assert source.notes == (words,)


def test_where_most_lie_beside_the_folders_there_are_no_labels_and_that_is_said(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "in", ["a/1.png", "b/2.png", "3.png", "4.png"]))
    assert source.labels is None
    assert source.notes == (
        "2 folders are not taken as classes, since 2 pictures lie beside them, half or more of all.",
    )
    album = open_source(folder_of(tmp_path / "album", ["2023/05/1.png", "2023/06/2.png", "2024/01/3.png"]))
    assert album.labels is None and album.notes == (), "nobody took an album for classes"


NAMES = st.lists(st.sampled_from(["train", "test", "val", "cat", "dog", "1", "x"]), max_size=3).map("/".join)


@settings(max_examples=25, deadline=None)
@given(places=st.lists(NAMES, min_size=1, max_size=12))
def test_classes_by_the_rule_in_the_docs(places: list[str]) -> None:
    """The rule again, said in another way: over lists of parts, in Python."""
    names = [os.path.join(place, f"{number}.png") for number, place in enumerate(places)]
    parts = {name: name.split("/")[:-1] for name in names}
    tops = {part[0] for part in parts.values() if part}
    if tops and tops <= {"train", "test", "val"}:
        parts = {name: part[1:] for name, part in parts.items()}
    wanted = {name: part[0] if len(part) == 1 else "" for name, part in parts.items()}
    classes = {label for label in wanted.values() if label}
    if len(classes) < 2 or 2 * sum(not label for label in wanted.values()) >= len(wanted):
        wanted = dict.fromkeys(wanted, "")
    with tempfile.TemporaryDirectory() as root:
        assert labels_of(open_source(folder_of(Path(root) / "in", names))) == wanted


def parquet(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array([PNG] * count)}), path)


@pytest.mark.fault("a folder of train and test files is trained on whole, without a word")
@pytest.mark.parametrize("names", [("train-00000-of-00001", "test-00000-of-00001"), ("train/0", "test/0")])
def test_a_folder_with_files_of_several_splits_says_so(tmp_path: Path, names: tuple[str, str]) -> None:
    root = tmp_path / "hub"
    parquet(root / f"data/{names[0]}.parquet", 5)
    parquet(root / f"data/{names[1]}.parquet", 3)
    (root / "README.md").write_text("about")
    (root / "logo.png").write_bytes(PNG)
    whole = open_source(root)
    assert len(whole) == 8
    assert whole.choices == (
        "Its files are of the splits test and train, and all are taken: --split train takes one alone.",
    )
    assert whole.skipped.counts == {"beside": 1, "other": 1}
    train = open_source(root, split="train")
    assert len(train) == 5 and train.choices == () and train.skipped.counts == {"beside": 1, "other": 1}
    named = open_source([root / f"data/{name}.parquet" for name in names])
    assert len(named) == 8 and named.notes == (), "who names the files has chosen"
    assert open_source(str(root / "data/**/*.parquet")).choices == whole.choices
