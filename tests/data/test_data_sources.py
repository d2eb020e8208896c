"""Sources: every kind of collection gives the same pictures, ids and labels that were put into it."""

from __future__ import annotations

import errno
import functools
import http.server
import io
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_files import put
from PIL import Image

from instdisc import progress
from instdisc.data import Source, UnreadableError, open_source
from instdisc.data.storage.remote import expand_braces, names_below
from instdisc.errors import InputError


def picture(number: int, kind: str = "PNG") -> bytes:
    """An encoded 4 x 4 picture of one colour of its own."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(file, kind)
    return file.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ids(source: Source) -> list[str]:
    return [source.identifier(row) for row in range(len(source))]


def check(source: Source, contents: list[bytes]) -> None:
    """Reading one by one, walking all, walking some, and a pickled copy all give the same bytes."""
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert [source.read(row) for row in range(len(source))] == contents
    assert [copy.read(row) for row in reversed(range(len(source)))] == contents[::-1]
    assert list(source.iterate()) == list(enumerate(contents))
    some = np.arange(len(source))[1::3]
    assert list(copy.iterate(some)) == [(int(row), contents[row]) for row in some]
    assert list(source.iterate(np.array([], dtype=np.int64))) == []
    assert ids(copy) == ids(source) and copy.fingerprint == source.fingerprint
    table = source.fetch_table()
    assert table.column_names == ["id", "location"] and table["id"].to_pylist() == ids(source)
    assert table["location"].to_pylist() == [source.location(row) for row in range(len(source))]
    assert len(set(ids(source))) == len(source)
    if source.labels is None:
        assert copy.labels is None and source.label_names is None
    else:
        assert source.labels.dtype == np.int64 and len(source.labels) == len(source)
        assert np.array_equal(copy.labels, source.labels) and copy.label_names == source.label_names


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folder_of_class_folders(tmp_path: Path) -> None:
    files = {"dog/b.jpg": picture(1, "JPEG"), "cat/z.png": picture(2), "cat/a.webp": picture(3, "WEBP")}
    source = open_source(put(tmp_path / "pets", files), index_folder=tmp_path / "index")
    assert ids(source) == ["cat/a.webp", "cat/z.png", "dog/b.jpg"]
    assert source.labels is not None and source.labels.tolist() == [0, 0, 1]
    assert source.label_names == ["cat", "dog"]
    assert source.location(2) == str(tmp_path / "pets/dog/b.jpg")
    check(source, [files[name] for name in ids(source)])
    assert len(list((tmp_path / "index").iterdir())) == 1


@pytest.mark.fault("a folder without class folders")
@pytest.mark.parametrize("names", [["a.png", "b.png"], ["x/a.png", "b.png"], ["x/a.png", "y/z/b.png"], ["x/a.png"]])
def test_folders_that_are_not_classes_give_no_labels(tmp_path: Path, names: list[str]) -> None:
    source = open_source(put(tmp_path / "in", {name: picture(number) for number, name in enumerate(names)}))
    assert len(source) == len(names) and source.labels is None and source.label_names is None


def test_what_is_no_picture_is_skipped_and_counted(tmp_path: Path) -> None:
    gif = io.BytesIO()
    Image.new("P", (2, 2)).save(gif, "GIF")
    files = {
        "no_ending": picture(1),
        "named.txt": picture(2, "BMP"),
        "gif_named.jpg": gif.getvalue(),
        "tiff": picture(3, "TIFF"),
        "broken.JPG": b"no picture at all",
        "empty.png": b"",
        "notes.txt": b"BMW and others: text that begins like a bitmap",
        "empty": b"",
        "labels.csv": b"path,label\n",
        ".hidden.png": picture(4),
        ".git/x.png": picture(5),
    }
    source = open_source(put(tmp_path / "in", files))
    assert ids(source) == ["broken.JPG", "empty.png", "gif_named.jpg", "named.txt", "no_ending", "tiff"]
    assert source.skipped.counts == {"other": 3, "hidden": 2}
    assert source.notes == (
        "2 hidden files and folders (their names begin with a dot) were left out (.git, .hidden.png).",
        "3 files that are not pictures were skipped (empty, labels.csv, notes.txt).",
    )


@pytest.mark.fault("hours before the first step, with no progress shown")
def test_a_scan_shows_how_far_it_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    root = put(tmp_path / "in", {f"{number}{'.png' * (number % 2)}": picture(number) for number in range(8)})
    open_source(root)
    shown = capsys.readouterr().err
    assert f"Listing {root}: 8" in shown and "Looking into files: 1 of 1" in shown


@pytest.mark.fault("names with spaces")
@pytest.mark.fault("names with newlines")
@pytest.mark.fault("names with non-UTF-8 bytes")
def test_strange_names(tmp_path: Path) -> None:
    root = tmp_path / "in"
    names = [b"a b.png", b"line\nbreak.png", b"latin-\xe9.png", "日本.png".encode(), b'comma,"quote".png', b"%41.png"]
    for number, name in enumerate(names):
        put(root, {os.fsdecode(name): picture(number)})
    source = open_source(root)
    assert [os.fsencode(entry) for entry in ids(source)] == sorted(names)
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert [copy.read(row) for row in range(len(names))] == [picture(names.index(name)) for name in sorted(names)]
    table = source.fetch_table()
    assert table["id"].to_pylist() == sorted(names)  # binary, because one name is not UTF-8


@pytest.mark.fault("a symlink loop")
def test_links(tmp_path: Path) -> None:
    root = put(tmp_path / "in", {"real/a.png": picture(1), "real/deep/b.png": picture(2)})
    put(tmp_path / "outside", {"c.png": picture(3), "sub/d.png": picture(4)})
    (root / "real/deep/up").symlink_to(root, target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    (root / "again").symlink_to(root / "real", target_is_directory=True)
    (root / "linked").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "later").symlink_to(tmp_path / "outside", target_is_directory=True)
    (tmp_path / "outside/back").symlink_to(tmp_path, target_is_directory=True)
    (root / "file.png").symlink_to(tmp_path / "outside/c.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(root)
    expected = ["gone.png", "later/c.png", "later/sub/d.png", "real/a.png", "real/deep/b.png"]
    assert ids(source) == expected
    with pytest.raises(UnreadableError, match="not there"):
        source.read(0)
    walked = dict(source.iterate())
    assert isinstance(walked[0], UnreadableError) and walked[1] == picture(3)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    root = put(tmp_path / "in", {"a.png": picture(1)})
    os.mkfifo(root / "pipe.png")
    assert ids(open_source(root)) == ["a.png"]


def test_several_folders(tmp_path: Path) -> None:
    put(tmp_path, {"x/train/cat/1.png": picture(1), "y/train/dog/1.png": picture(2), "y/train/cat/2.png": picture(3)})
    source = open_source([tmp_path / "x/train", tmp_path / "y/train"])
    assert ids(source) == ["x/train/cat/1.png", "y/train/cat/2.png", "y/train/dog/1.png"]
    assert source.labels is not None and source.labels.tolist() == [0, 0, 1]
    check(source, [picture(1), picture(3), picture(2)])
    assert source.location(2) == str(tmp_path / "y/train/dog/1.png")
    with pytest.raises(InputError, match="give each folder once"):
        open_source([tmp_path / "x", tmp_path / "x/train"])


@pytest.mark.fault("an empty folder")
@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: put(path, {"notes.txt": b"hello"})])
def test_nothing_there(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "in")
    with pytest.raises(InputError, match=r"^[^\n]*holds no pictures( \([^\n.]*\))?: give [^\n.]*\.$"):
        open_source(tmp_path / "in")


def test_clear_sentences_for_what_cannot_be_opened(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"text.txt": b"hello", "x.zip": b"PK\3\4", "a.png": picture(1), "bad.parquet": b"x", "bad.tar": b"x" * 600},
    )
    put(tmp_path, {"folder/a.png": picture(1)})
    cases = [
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "missing.png", "does not exist"),
        (tmp_path / "text.txt", "is no picture, Parquet file or tar shard"),
        (tmp_path / "x.zip", "unpack it"),
        (tmp_path / "*.jpeg", "Nothing matches"),
        (tmp_path / "bad.parquet", "cannot be read as a Parquet file"),
        (tmp_path / "bad.tar", "no plain tar file"),
        ([tmp_path / "folder", tmp_path / "a.png"], "mixes"),
        ({"a": 1}, "is no collection of pictures"),
        (iter([1]), "is no collection of pictures"),
        ([3, 4], "The first item is a int"),
        (np.zeros((4, 3, 8, 8), np.uint8), "moveaxis"),
        (np.zeros((48, 64, 3), np.uint8), r"x\[None\]"),
        (np.zeros((4, 8, 8), np.int64), "uint8, uint16 or float"),
        ("nothing://x", "not a protocol"),
    ]
    for given, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            open_source(given)
    with pytest.raises(InputError, match="at least 1"):
        open_source(tmp_path / "folder", limit=0)
    with pytest.raises(InputError, match="no folder test"):
        open_source(tmp_path / "folder", split="test")


def test_a_folder_where_no_more_files_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by stress/kill.py: people were told to check the path."""

    def refuse(folder: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"with .*Too many open files.*ulimit -n") as error:
        open_source(tmp_path)
    assert "check the path" not in str(error.value)


def test_driver_that_is_not_installed() -> None:
    for url, package in (("s3://bucket/pictures", "s3fs"), ("gs://bucket/x.parquet", "gcsfs")):
        with pytest.raises(InputError, match=f"pip install {package}"):
            open_source(url)


def test_limit_and_split(tmp_path: Path) -> None:
    put(tmp_path, {f"train/{number}.png": picture(number) for number in range(5)} | {"test/9.png": picture(9)})
    assert ids(open_source(tmp_path, split="test")) == ["9.png"]
    few = open_source(tmp_path, split="train", limit=2)
    check(few, [picture(0), picture(1)])
    assert few.fingerprint != open_source(tmp_path, split="train").fingerprint
    assert len(open_source(tmp_path, split="train", limit=100)) == 5


def test_files_one_by_one_and_patterns(tmp_path: Path) -> None:
    put(tmp_path, {f"{number}.png": picture(number) for number in range(3)})
    given = [tmp_path / "2.png", tmp_path / "0.png"]
    source = open_source(given)
    assert ids(source) == [str(path) for path in given]  # in the order given
    check(source, [picture(2), picture(0)])
    assert len(open_source(tmp_path / "*.png")) == 3
    assert len(open_source(str(tmp_path / "{0,2}.png"))) == 2
    assert open_source(tmp_path / "1.png").read(0) == picture(1)
    with pytest.raises(InputError, match="twice"):
        open_source([given[0], given[0]])
    lost = open_source([*given, tmp_path / "9.png"])
    assert isinstance(dict(lost.iterate())[2], UnreadableError)


def test_braces() -> None:
    assert list(expand_braces("s-{008..010}.tar")) == ["s-008.tar", "s-009.tar", "s-010.tar"]
    assert list(expand_braces("{a,b}/{1..2}{x}")) == ["a/1{x}", "a/2{x}", "b/1{x}", "b/2{x}"]
    assert names_below(["/a/b/c.tar", "/a/bd/c.tar"]) == ["b/c.tar", "bd/c.tar"]


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_file(tmp_path: Path) -> None:
    root = put(tmp_path / "in", {f"x/{number}.png": picture(number) for number in range(4)})
    table = tmp_path / "labels.csv"
    by_path = [f"in/x/0.png,10\n{root}/x/3.png,9\n", "in/x/1.png,\nnot/there.png,7\n"]
    table.write_text("path,label\n" + "".join(by_path))
    source = open_source(root, labels=table)
    assert source.labels is not None and source.labels.tolist() == [2, -1, -1, 1]
    assert source.label_names == ["7", "9", "10"]  # numeric order
    table.write_text('label,id\n"zebra, striped",x/1.png\nant,x/2.png\n')
    source = open_source(root, labels=str(table))
    assert source.labels is not None and source.labels.tolist() == [-1, 1, 0, -1]
    assert source.label_names == ["ant", "zebra, striped"]
    assert pickle.loads(pickle.dumps(source)).labels.tolist() == source.labels.tolist()  # noqa: S301
    for content, sentence in (("a,b\n1,2\n", "columns"), ("id,label\nnone,1\n", "No line of")):
        table.write_text(content)
        with pytest.raises(InputError, match=sentence):
            open_source(root, labels=table)
    with pytest.raises(InputError, match="can.t be read"):
        open_source(root, labels=tmp_path / "missing.csv")


def test_labels_from_python() -> None:
    array = np.zeros((4, 8, 8), np.uint8)
    source = open_source(array, labels=[30, 5, -1, 5])
    assert source.labels is not None and source.labels.tolist() == [1, 0, -1, 0] and source.label_names == ["5", "30"]
    assert open_source(array, labels=torch.tensor([1, 1, 0, 1])).label_names == ["0", "1"]
    assert open_source(array, labels=["b", "a", None, "b"]).label_names == ["a", "b"]
    for labels, sentence in (([1, 2], "2 labels for 4"), ([0.5, 1, 2, 3], "fractions")):
        with pytest.raises(InputError, match=sentence):
            open_source(array, labels=labels)


def test_classes_have_the_numbers_of_another_source(tmp_path: Path) -> None:
    training = open_source(put(tmp_path / "a", {f"{name}/1.png": picture(1) for name in ("cat", "dog", "emu")}))
    testing = open_source(put(tmp_path / "b", {f"{name}/1.png": picture(2) for name in ("emu", "bee", "dog")}))
    before = [testing.label_names[code] for code in testing.labels]
    assert testing.labels.tolist() == [0, 1, 2], "bee, dog, emu: numbers of its own"
    testing.number_like(training)
    assert testing.labels.tolist() == [3, 1, 2] and testing.label_names == ["cat", "dog", "emu", "bee"]
    assert [testing.label_names[code] for code in testing.labels] == before
    assert training.labels.tolist() == [0, 1, 2]
    testing.set_labels(["emu", "", "cat"])
    testing.number_like(training)
    assert testing.labels.tolist() == [2, -1, 0], "without a label it stays"
    testing.set_labels([3, 7, 3])
    with pytest.raises(InputError, match=r"\(3, 7\) are none of those of .*/a \(cat, dog, emu\)"):
        testing.number_like(training)
    unlabelled = open_source(np.zeros((3, 4, 4, 3), np.uint8))
    unlabelled.number_like(training)
    testing.number_like(unlabelled)
    assert unlabelled.labels is None and testing.labels.tolist() == [0, 1, 0]


def test_labels_are_not_read_for_a_worker(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", range(2000)))
    before = len(pickle.dumps(source))
    assert source.labels is not None
    assert len(pickle.dumps(source)) == before < 2000


# --- Parquet ---------------------------------------------------------------------------------------------------------


def write_parquet(
    path: Path | io.BytesIO, numbers: Any, *, names: list[str] | None = None, plain: bool = False, label: Any = None
) -> Any:
    numbers = list(numbers)
    pictures = [picture(number) for number in numbers]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array(pictures, pa.binary()) if plain else pa.array([{"bytes": p, "path": None} for p in pictures], kind)
    labels = pa.array([number % 3 for number in numbers]) if label is None else label
    table = pa.table({"image": image, "label": labels})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)
    return path


@pytest.mark.parametrize("plain", [False, True])
def test_parquet(tmp_path: Path, plain: bool) -> None:
    names = ["ant", "bee", "cow"]
    source = open_source(write_parquet(tmp_path / "all.parquet", range(11), names=names, plain=plain))
    assert ids(source)[10] == "all.parquet#10"
    check(source, [picture(number) for number in range(11)])
    assert source.labels is not None and source.labels.tolist() == [number % 3 for number in range(11)]
    assert source.label_names == names
    few = open_source(tmp_path / "all.parquet", limit=6)
    check(few, [picture(number) for number in range(6)])
    assert few.label_names == names


def test_parquet_folder_glob_and_split(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put(folder, {"README.md": b"hello", "logo.png": picture(1)})
    (folder / "data").mkdir()
    write_parquet(folder / "data/train-00000-of-00002.parquet", range(5))
    write_parquet(folder / "data/train-00001-of-00002.parquet", range(5, 9))
    write_parquet(folder / "data/test-00000-of-00001.parquet", range(9, 12))
    train = open_source(folder, split="train")
    assert ids(train)[5] == "train-00001-of-00002.parquet#0"
    check(train, [picture(number) for number in range(9)])
    assert train.label_names == ["0", "1", "2"]  # numbers without names
    assert len(open_source(folder, split="test")) == 3 and len(open_source(folder)) == 12
    assert ids(open_source(folder / "data/train-*.parquet")) == ids(train)
    with pytest.raises(InputError, match="no file named for the split val"):
        open_source(folder, split="val")


def test_parquet_labels_of_all_kinds(tmp_path: Path) -> None:
    for label, codes, names in [
        (pa.array(["b", None, "a"]), [1, -1, 0], ["a", "b"]),
        (pa.array(["b", "b", "a"]).dictionary_encode(), [1, 1, 0], ["a", "b"]),
        (pa.array([700, -1, 30]), [1, -1, 0], ["30", "700"]),
        (pa.array([1.0, None, 0.0]), [1, -1, 0], ["0", "1"]),
        (pa.array([True, False, True]), [1, 0, 1], ["0", "1"]),
    ]:
        source = open_source(write_parquet(tmp_path / "a.parquet", range(3), label=label))
        assert source.labels is not None and source.labels.tolist() == codes and source.label_names == names
    source = open_source(write_parquet(tmp_path / "a.parquet", range(3), label=pa.array([-1, -1, -1])))
    assert source.labels is None
    source = open_source(write_parquet(tmp_path / "a.parquet", range(3), label=pa.array([0, 1, 5]), names=["a", "b"]))
    assert source.labels is None and "names only 2 classes" in (source.labels_problem or "")
    with pytest.raises(InputError, match="names only 2 classes"):
        source.need_labels()


def test_parquet_that_does_not_fit(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column that is known to hold pictures .its columns: x, y"):
        open_source(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", range(3))
    write_parquet(tmp_path / "c.parquet", range(3), plain=True)
    check(open_source([tmp_path / "b.parquet", tmp_path / "c.parquet"]), [picture(number) for number in (0, 1, 2) * 2])
    pq.write_table(pa.table({"picture": [picture(1)]}), tmp_path / "e.parquet")
    with pytest.raises(InputError, match=r"column picture, .* its column image: give files of one data set"):
        open_source([tmp_path / "b.parquet", tmp_path / "e.parquet"])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": picture(1), "path": None}, {"bytes": None, "path": "/etc/passwd"}, None]
    pq.write_table(pa.table({"img": pa.array(rows, kind)}), tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet")
    walked = [content for _, content in source.iterate()]
    assert walked[0] == picture(1) and all(isinstance(content, UnreadableError) for content in walked[1:])
    with pytest.raises(UnreadableError, match="no bytes"):
        source.read(1)


def test_parquet_with_a_damaged_group_goes_on(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", range(12))
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    walked = dict(open_source(path).iterate())
    assert [row for row, found in walked.items() if isinstance(found, UnreadableError)] == [4, 5, 6, 7]
    assert walked[8] == picture(8)


# --- tar -------------------------------------------------------------------------------------------------------------


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.write_bytes(tar_bytes(members))
    return path


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            archive.addfile(facts, io.BytesIO(content))
    return file.getvalue()


def sample(number: int) -> list[tuple[str, bytes]]:
    return [(f"{number:04d}.cls", str(number % 3 + 5).encode()), (f"{number:04d}.png", picture(number))]


def test_tar_shards(tmp_path: Path) -> None:
    for shard in range(3):
        members = [member for number in range(shard * 4, shard * 4 + 4) for member in sample(number)]
        write_tar(tmp_path / f"shard-{shard:03d}.tar", members)
    source = open_source(str(tmp_path / "shard-{000..002}.tar"))
    assert ids(source)[5] == "shard-001.tar#0005"
    check(source, [picture(number) for number in range(12)])
    assert source.labels is not None and source.labels.tolist() == [number % 3 for number in range(12)]
    assert source.label_names == ["5", "6", "7"]
    assert ids(open_source(tmp_path / "*.tar")) == ids(open_source(tmp_path)) == ids(source)
    check(open_source(tmp_path / "*.tar", limit=5), [picture(number) for number in range(5)])


def test_tar_samples_of_all_kinds(tmp_path: Path) -> None:
    members = [
        ("./a/one.mask.png", picture(1)),
        ("./a/one.png", picture(2)),
        ("./a/one.json", b'{"label": "cow"}'),
        ("two.txt", b"a caption and no picture"),
        ("three.bin", picture(3)),
        ("three.json", b"not json"),
        ("._four.png", b"what a Mac leaves"),
        ("five.jpg", b"broken"),
        ("one.png", picture(4)),
        ("one2.png", picture(5)),
        ("one.png", picture(6)),
    ]
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert ids(source) == [f"x.tar#{key}" for key in ("a/one", "three", "five", "one", "one2", "one~2")]
    check(source, [picture(2), picture(3), b"broken", picture(4), picture(5), picture(6)])
    assert source.label_names == ["cow"]


def test_tar_cut_short(tmp_path: Path) -> None:
    content = tar_bytes([(f"{number}.bmp", picture(number, "BMP") * 20) for number in range(4)])
    (tmp_path / "x.tar").write_bytes(content[:6000])
    source = open_source(tmp_path / "x.tar")
    assert source.notes and "cut short" in source.notes[0]
    walked = dict(source.iterate())
    assert walked[0] == picture(0, "BMP") * 20
    assert isinstance(walked[len(source) - 1], UnreadableError)


# --- arrays and names ------------------------------------------------------------------------------------------------


def test_arrays_and_tensors() -> None:
    array = np.arange(5 * 6 * 7 * 3, dtype=np.uint16).reshape(5, 6, 7, 3)
    source = open_source(array, limit=4)
    assert ids(source) == [f"array#{row}" for row in range(4)] and source.labels is None
    assert all(np.array_equal(content, array[row]) for row, content in source.iterate())
    tensor = torch.rand(5, 3, 6, 7)
    assert np.array_equal(open_source(tensor).read(2), tensor[2].permute(1, 2, 0).numpy())
    assert np.array_equal(open_source(torch.rand(2, 6, 7)).read(0).shape, (6, 7))
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert len(copy) == 4 and np.array_equal(copy.read(3), array[3])


def test_sequences(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": picture(3)})
    image = Image.new("L", (3, 2))
    source = open_source(
        [image, np.zeros((2, 2, 3), np.uint8), picture(1), tmp_path / "a.png", torch.zeros(3, 4, 5), 7]
    )
    assert source.read(0) is image and source.read(2) == picture(1) and source.read(3) == picture(3)
    assert source.read(4).shape == (4, 5, 3) and ids(source)[5] == "sequence#5"
    assert isinstance(dict(source.iterate())[5], UnreadableError)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = open_source("digits")
    assert len(source) == 1797 and source.label_names == [str(number) for number in range(10)]
    assert np.array_equal(source.labels, digits.target)
    stack = np.stack([content for _, content in source.iterate()])
    assert stack.dtype == np.uint8 and stack.max() == 255 and np.abs(stack - digits.images * 255 / 16).max() <= 0.5
    assert len(pickle.dumps(source)) < 200  # the name, not the pictures
    few = open_source("digits", limit=10)
    assert pickle.loads(pickle.dumps(few)).fingerprint == few.fingerprint  # noqa: S301
    with pytest.raises(InputError, match="no splits|no split test"):
        open_source("digits", split="test")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_known_names_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(InputError, match="connect to the network"):
        open_source(name)
    with pytest.raises(InputError, match="its splits are train, test"):
        open_source(name, split="val")


def test_cifar10_and_stl10_through_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class Cifar:
        def __init__(self, folder: str, train: bool, download: bool) -> None:
            self.data = np.full((3, 32, 32, 3), 1 if train else 2, np.uint8)
            self.targets, self.classes = [2, 0, 1], ["a", "b", "c"]

    class Stl:
        def __init__(self, folder: str, split: str, download: bool) -> None:
            self.data = np.arange(2 * 3 * 96 * 96, dtype=np.uint8).reshape(2, 3, 96, 96)
            self.labels, self.classes = np.array([-1, -1]), ["a"]

    monkeypatch.setattr(datasets, "CIFAR10", Cifar)
    monkeypatch.setattr(datasets, "STL10", Stl)
    test = open_source("cifar10", split="test")
    assert ids(test)[0] == "cifar10-test#0" and test.read(0)[0, 0, 0] == 2
    assert test.labels is not None and test.labels.tolist() == [2, 0, 1]
    stl = open_source("stl10", split="unlabeled")
    assert stl.read(1).shape == (96, 96, 3) and stl.labels is None


# --- URLs ------------------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own file server, silent; `ranges` adds what most servers on the web can do."""

    ranges = False

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not (self.ranges and wanted and path.is_file()):
            return super().do_GET()
        content = path.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])


class RangeHandler(Handler):
    ranges = True


@pytest.fixture(params=[Handler, RangeHandler], ids=["whole-files", "ranges"])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(request.param, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()
        thread.join()


def test_web_folder(web: tuple[str, Path]) -> None:
    url, folder = web
    put(folder, {"p/cat/a b.png": picture(1), "p/dog/c.png": picture(2), "p/dog/x.txt": b"no", "q.png": picture(3)})
    source = open_source(f"{url}/p/")
    assert source.location(1) == f"{url}/p/dog/c.png" and source.label_names == ["cat", "dog"]
    check(source, [picture(1), picture(2)])
    (folder / "p/cat/a b.png").unlink()
    assert isinstance(dict(source.iterate())[0], UnreadableError)
    single = open_source([f"{url}/q.png", f"{url}/p/dog/c.png"])
    assert ids(single) == [f"{url}/q.png", f"{url}/p/dog/c.png"]
    check(single, [picture(3), picture(2)])
    with pytest.raises(InputError, match="cannot be listed"):
        open_source(f"{url}/missing")


def test_web_parquet_and_tar(web: tuple[str, Path], cache: Path) -> None:
    url, folder = web
    (folder / "set").mkdir()
    write_parquet(folder / "set/train-0.parquet", range(9), names=["a", "b", "c"])
    write_tar(folder / "x-0.tar", [member for number in range(9) for member in sample(number)])
    write_tar(folder / "x-1.tar", sample(9))
    source = open_source(f"{url}/set")
    assert ids(source)[3] == "train-0.parquet#3" and source.label_names == ["a", "b", "c"]
    check(source, [picture(number) for number in range(9)])
    shards = open_source(url + "/x-{0..1}.tar")
    check(shards, [picture(number) for number in range(10)])
    copied = (cache / "instdisc/downloads").exists()
    assert copied == (not Path(folder, "ranges").exists() and "whole" in os.environ["PYTEST_CURRENT_TEST"])
    with pytest.raises(InputError, match="cannot be reached"):
        open_source(f"{url}/missing.parquet")


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    for path in system.ls("/"):
        system.rm(path["name"] if isinstance(path, dict) else path, recursive=True)


def test_memory_urls(memory: Any) -> None:
    for number in range(3):
        memory.pipe(f"/in/c{number % 2}/{number}.png", picture(number))
    source = open_source("memory://in")
    assert ids(source) == ["c0/0.png", "c0/2.png", "c1/1.png"] and source.location(0) == "memory://in/c0/0.png"
    check(source, [picture(0), picture(2), picture(1)])
    assert len(open_source(["memory://in/c0", "memory://in/c1"])) == 3
    assert len(open_source("memory://in/*/*.png")) == 3
    assert len(open_source("memory://in", split="c0")) == 2
    file = io.BytesIO()
    write_parquet(file, range(6))
    memory.pipe("/set/data/train-0.parquet", file.getvalue())
    check(open_source("memory://set"), [picture(number) for number in range(6)])
    memory.pipe("/tars/a.tar", tar_bytes(sample(1) + sample(2)))
    check(open_source("memory://tars/*.tar"), [picture(1), picture(2)])
    memory.pipe("/tars/a.tar", tar_bytes(sample(3)))
    check(open_source("memory://tars/*.tar"), [picture(3)])
