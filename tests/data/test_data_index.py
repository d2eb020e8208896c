"""The index: rescans keep ids and open nothing again, damage is repaired, and a big tree fits into time and memory."""

from __future__ import annotations

import builtins
import gc
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdisc.data import Source, open_source
from instdisc.data.sources.labels import encode
from instdisc.data.storage.scan import (
    CHUNK,
    Columns,
    digest_of,
    digest_of_numbered,
    index_file,
    read_index,
    write_index,
)
from instdisc.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(40):
        path = tmp_path / f"in/{number % 4}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG if number % 2 else b"text")
    return tmp_path / "in"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened from now on, indexes left out."""
    files: list[str] = []
    real = builtins.open

    def watch(file: Any, *arguments: Any, **settings: Any) -> Any:
        if isinstance(file, str | bytes | os.PathLike) and not os.fsdecode(file).endswith(".arrow"):
            files.append(os.fsdecode(file))
        return real(file, *arguments, **settings)

    monkeypatch.setattr(builtins, "open", watch)
    return files


def ids(source: Source) -> list[str]:
    return [source.identifier(row) for row in range(len(source))]


@pytest.mark.fault("ids that change when the folder is scanned again, so that bank rows belong to other pictures")
def test_a_rescan_keeps_ids_and_opens_only_what_is_new(tree: Path, tmp_path: Path, opened: list[str]) -> None:
    index = tmp_path / "index"
    first = open_source(tree, index_folder=index)
    assert ids(first) == sorted(
        path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file() and int(path.name) % 2
    )
    assert len([path for path in opened if path.startswith(f"{tree}/")]) == 40  # without endings each is looked into
    file = next(index.iterdir())
    written = file.stat().st_mtime_ns
    opened.clear()
    again = open_source(tree, index_folder=index)
    assert not [path for path in opened if path.startswith(f"{tree}/")]
    assert ids(again) == ids(first) and again.fingerprint == first.fingerprint
    assert file.stat().st_mtime_ns == written  # nothing changed: nothing written

    (tree / "1/new").write_bytes(PNG)
    (tree / "0/0").write_bytes(PNG)  # was text
    (tree / "3/3").write_bytes(b"now it is text")
    (tree / "1/1").unlink()
    opened.clear()
    changed = open_source(tree, index_folder=index)
    assert sorted(Path(path).name for path in opened if path.startswith(f"{tree}/")) == ["0", "3", "new"]
    assert set(ids(changed)) ^ set(ids(first)) == {"1/new", "0/0", "3/3", "1/1"}
    assert ids(changed) == sorted(ids(changed)) and changed.fingerprint != first.fingerprint
    assert ids(first)[0] == "1/1"  # the open source keeps what it was opened with


def test_a_copy_of_a_source_refuses_an_index_that_has_changed(tree: Path, tmp_path: Path) -> None:
    source = open_source(tree, index_folder=tmp_path / "index")
    sent = pickle.dumps(source)
    assert ids(pickle.loads(sent)) == ids(source)  # noqa: S301
    (tree / "0/new.png").write_bytes(PNG)
    open_source(tree, index_folder=tmp_path / "index")
    with pytest.raises(InputError, match="start the command again"):
        pickle.loads(sent).identifier(0)  # noqa: S301


@pytest.mark.parametrize("damage", [b"", b"ARROW1\0\0 and no more", b"nothing at all"])
def test_a_damaged_index_is_made_anew(tree: Path, tmp_path: Path, damage: bytes) -> None:
    first = open_source(tree, index_folder=tmp_path / "index")
    file = next((tmp_path / "index").iterdir())
    expected = ids(first)
    file.unlink()
    file.write_bytes(damage)
    assert ids(open_source(tree, index_folder=tmp_path / "index")) == expected


def test_an_index_that_cannot_be_written(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="could not be written"):
        open_source(tree, index_folder=tmp_path / "file")


def test_the_default_folder(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    open_source(tree)
    assert [path.suffix for path in (tmp_path / "xdg/instdisc/index").iterdir()] == [".arrow"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert index_file(None, "folder", ["/x"]).parent == tmp_path / "home/.cache/instdisc/index"


def test_files_of_rows_are_scanned_again_only_when_they_change(tmp_path: Path, opened: list[str]) -> None:
    index = tmp_path / "index"
    table = pa.table({"image": pa.array([PNG, PNG + b"1"])})
    for name in "ab":
        pq.write_table(table, tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}1.png").write_bytes(PNG)
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            archive.add(tmp_path / f"{name}1.png", "x.png")
    for ending, count in (("parquet", 4), ("tar", 2)):
        places = str(tmp_path / f"*.{ending}")
        first = open_source(places, index_folder=index)
        assert len(first) == count
        opened.clear()
        assert ids(open_source(places, index_folder=index)) == ids(first) and not opened
    (tmp_path / "b2.png").write_bytes(PNG + b"longer")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("b1", "b2"):
            archive.add(tmp_path / f"{name}.png", f"{name}.png")
    opened.clear()
    again = open_source(tmp_path / "*.tar", index_folder=index)
    assert ids(again) == ["a.tar#b1", "a.tar#b2", "b.tar#x"] and again.read(1) == PNG + b"longer"
    assert again.read(2) == PNG
    assert next(Path(path).name for path in opened if path.endswith(".tar")) == "a.tar"
    assert [Path(path).name for path in opened].count("b.tar") == 1  # only to read its picture


def test_columns_and_index_hold_what_was_added(tmp_path: Path) -> None:
    columns = Columns(pa.schema([("a", pa.int64()), ("b", pa.large_binary())]))
    for number in range(CHUNK * 2 + 7):
        columns.add(number, b"%d" % number)
    write_index(tmp_path / "x.arrow", columns.table(), {"name": "latin-\udce9"})
    table = read_index(tmp_path / "x.arrow")
    assert table is not None and table["a"].to_pylist() == list(range(CHUNK * 2 + 7))
    assert table["b"][CHUNK + 3].as_py() == b"%d" % (CHUNK + 3)
    assert read_index(tmp_path / "none.arrow") is None
    assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]


@pytest.mark.parametrize("counts", [[], [0], [1], [9, 10, 11], [0, 101, 2], [CHUNK + 1_012]])
def test_a_digest_of_numbered_ids_is_that_of_the_ids(counts: list[int]) -> None:
    names = [b"a.parquet", b"\xff #", b"train/\xc3\xa9.parquet"][: len(counts)]
    ids = [b"%s#%d" % (name, row) for name, count in zip(names, counts, strict=True) for row in range(count)]
    assert digest_of_numbered(zip(names, counts, strict=True)) == digest_of([ids])


@given(st.lists(st.binary(max_size=5), max_size=9), st.integers(1, 4))
def test_a_digest_depends_on_the_ids_and_not_on_the_batches(entries: list[bytes], size: int) -> None:
    batches = [entries[start : start + size] for start in range(0, len(entries), size)]
    assert digest_of(batches) == digest_of([entries])
    if len(set(entries)) > 1:
        assert digest_of([entries]) != digest_of([sorted(entries)]) or entries == sorted(entries)


@given(st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers(-5, 5).map(str)), min_size=1))
def test_labels_against_plain_python(values: list[str | None]) -> None:
    codes, names = encode(pa.array(values, pa.string()))
    assert len(names) == len(set(names))
    for value, code in zip(values, codes, strict=True):
        assert code == -1 or names[code] == value
        assert (code == -1) == (value in (None, "") or (value == "-1" and "-1" not in names))


@given(st.lists(st.integers(-3, 9), min_size=1))
def test_numbers_become_dense_classes(values: list[int]) -> None:
    codes, names = encode(np.array(values))
    kept = [value for value in values if value != -1]
    assert names == [str(value) for value in sorted(set(kept))]
    if kept:
        assert np.array_equal(codes[np.array(values) != -1], np.unique(kept, return_inverse=True)[1])


@pytest.mark.fault("a million paths held in Python lists")
def test_an_open_source_holds_nothing_in_python_for_a_path(tmp_path: Path) -> None:
    """8,000 paths as Python's bytes would be 450 kB. What Arrow maps is not counted here, and is no copy."""
    for number in range(8_000):
        folder = tmp_path / f"in/{number % 8}"
        if number < 8:
            folder.mkdir(parents=True)
        (folder / f"{number:06d}.jpg").touch()
    open_source(tmp_path / "in", index_folder=tmp_path / "index")  # what only a first call makes is made
    tracemalloc.start()
    try:
        source = open_source(tmp_path / "in", index_folder=tmp_path / "index")
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source) == 8_000 and held < 100_000


@pytest.mark.fault("a million paths copied to every worker")
def test_a_big_tree_in_little_memory() -> None:
    """How long it takes is measured, by the same script."""
    script = Path(__file__).parents[2] / "benchmarks/scan.py"
    finished = subprocess.run(
        [sys.executable, script, "--files", "4000", "--repeats", "1"],
        check=True,
        capture_output=True,
        text=True,
        timeout=500,
    )
    result = json.loads(finished.stdout)
    for found in (result["named_as_pictures"], result["known_by_content_only"]):
        for (scan,) in found.values():
            assert scan["pictures"] == 4_000 and scan["peak_mb"] < 200
            assert scan["pickled_bytes"] < 1000
        assert found["first"][0]["fingerprint"] == found["again"][0]["fingerprint"]
        assert found["first"][0]["fingerprint"] != found["after_100_renamed"][0]["fingerprint"]
