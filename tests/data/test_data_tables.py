"""Tables and lists that people write: the same labels whatever saved them; what fits no picture is said."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import TINY

import instdisc
from instdisc.data.sources.open import open_source
from instdisc.data.sources.spelling import match
from instdisc.data.sources.tables import read_columns, read_lines
from instdisc.errors import InputError
from instdisc.jobs.label import assign, read_table

NAMES = [f"Café, été {number}.png" for number in range(8)]
LABELS = [["chat", "œuf"][number % 2] for number in range(8)]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures whose names have accents as a Mac writes them, in tmp_path/pics."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, name in enumerate(NAMES):
        place = tmp_path / "pics" / unicodedata.normalize("NFD", name)
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 9 * number, np.uint8)).save(place)
    return tmp_path / "pics"


def labels_of(source: instdisc.data.Source) -> dict[str, str]:
    codes = source.need_labels()
    names = [unicodedata.normalize("NFC", source.identifier(row)) for row in range(len(source))]
    return {name: source.class_name(code) for name, code in zip(names, codes.tolist(), strict=True)}


def table(head: list[str], rows: list[list[str]], separator: str, end: str = "\r\n") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=end).writerows([head, *rows])
    return out.getvalue()


@pytest.mark.fault("a table that a spreadsheet saved is not read")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "sep=;", "sep=\t"])
def test_every_separator_and_encoding(pictures: Path, encoding: str, separator: str) -> None:
    rows = [[f"pics/{name}", label] for name, label in zip(NAMES, LABELS, strict=True)]
    text = table(["Path", " Label "], rows, separator[-1])
    text = f"{separator}\r\n{text}" if separator.startswith("sep=") else text
    file = pictures.parent / "labels.csv"
    file.write_bytes(text.encode(encoding))
    source = open_source(pictures, labels=file)
    assert labels_of(source) == dict(zip(NAMES, LABELS, strict=True)) and source.label_notes == ()


SPELLINGS: dict[str, Callable[[str, Path], str]] = {
    "id": lambda name, folder: name,
    "from the table": lambda name, folder: f"pics/{name}",
    "dot": lambda name, folder: f"./pics/{name}",
    "dots": lambda name, folder: f"other/..//pics/./{name}",
    "windows": lambda name, folder: f"pics\\{name}",
    "windows dot": lambda name, folder: f".\\pics\\{name}",
    "absolute": lambda name, folder: str(folder / name),
    "capitals": lambda name, folder: f"PICS/{name.upper()}",
    "capitals of windows": lambda name, folder: f"Pics\\{name.upper()}",
    "spaces around": lambda name, folder: f" pics/{name} ",
}


@pytest.mark.fault("labels are lost for the spelling of a path")
@pytest.mark.parametrize("accents", ["NFC", "NFD"])
@pytest.mark.parametrize("way", SPELLINGS)
def test_every_spelling_of_a_path(pictures: Path, way: str, accents: str) -> None:
    spelled = [unicodedata.normalize(accents, SPELLINGS[way](name, pictures)) for name in NAMES]
    file = pictures.parent / "labels.csv"
    file.write_text(table(["path", "label"], [list(row) for row in zip(spelled, LABELS, strict=True)], ","))
    assert labels_of(open_source(pictures, labels=file)) == dict(zip(NAMES, LABELS, strict=True))


def test_relative_to_where_the_person_stands(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = pictures.parent / "tables" / "deep"
    away.mkdir(parents=True)
    (away / "labels.csv").write_text(table(["path", "label"], [[f"pics/{name}", "x"] for name in NAMES], ","))
    with pytest.raises(InputError, match="No line of"):
        open_source(pictures, labels=away / "labels.csv")
    monkeypatch.chdir(pictures.parent)
    assert set(labels_of(open_source("pics", labels="tables/deep/labels.csv")).values()) == {"x"}
    monkeypatch.setenv("HOME", str(pictures.parent))
    (away / "home.csv").write_text(table(["path", "label"], [[f"~/pics/{name}", "x"] for name in NAMES], ","))
    assert set(labels_of(open_source("pics", labels="tables/deep/home.csv")).values()) == {"x"}


@pytest.mark.fault("lines of a table count for nothing, without a word")
def test_lines_that_count_for_nothing_are_counted_and_said(pictures: Path) -> None:
    file = pictures.parent / "labels.csv"
    lines = [f'"{NAMES[0]}",a', "gone.jpg,b", f'"{NAMES[1]}",', "", f'"{NAMES[0]}",b', f'"{NAMES[0]}",a', "lost.jpg,a"]
    file.write_text("\n".join(["id,label", *lines]))
    source = open_source(pictures, labels=file)
    assert labels_of(source) == dict.fromkeys(NAMES, "") | {NAMES[0]: "a"}
    assert source.label_notes == (
        f"2 of the 5 lines of {file} fit no picture, or several, and count for nothing: the first is gone.jpg.",
        f"1 line of {file} gives a picture another label than a line before it, and counts for nothing: the first is "
        f"{NAMES[0]}.",
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"name,kind\na,b\n", 'separated by commas, semicolons or tabs; it begins with "name,kind"'),
        (b"path label\na b\n", 'it begins with "path label"'),
        (b"", "needs a first line with the columns id .or path. and label .or class."),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "needs a first line"),
        (b"path,label\n\0,a\n", "can't be read|No line of"),
        ("path,label\na,b\n".encode("utf-16")[:-1], "can't be read"),
        (b'path,label\n"' + b"x" * 200_000 + b'",a\n', "can't be read"),
    ],
)
def test_what_is_no_table_is_one_sentence(pictures: Path, content: bytes, sentence: str) -> None:
    file = pictures.parent / "labels.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        open_source(pictures, labels=file)


WORDS = st.text("aAeé/\\.,;\"' x1", min_size=1, max_size=8).filter(lambda text: text.strip(" ."))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_a_spreadsheet_writes_comes_back(
    tmp_path: Path, rows: list[tuple[str, str]], separator: str, encoding: str, end: str
) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(table(["path", "label"], [list(row) for row in rows], separator, end).encode(encoding))
    read = read_columns(file, path=("path",), label=("label",)).to_pylist()
    assert [(os.fsdecode(row["path"]), os.fsdecode(row["label"])) for row in read] == rows


@settings(max_examples=200, deadline=None)
@given(
    stored=st.lists(WORDS, min_size=1, max_size=6, unique=True),
    asked=st.lists(WORDS, min_size=1, max_size=6),
)
def test_a_name_means_the_picture_that_reads_so_or_none(stored: list[str], asked: list[str]) -> None:
    """Beside a slow search: itself, else the one that reads the same, else the one that does so in other capitals."""

    def reads(text: str) -> str:
        return os.path.normpath(unicodedata.normalize("NFC", text.strip()).replace("\\", "/"))

    names = [name.encode() for name in stored]
    found = match([name.encode() for name in asked], lambda a, b: names[a:b], lambda a, b: [b""] * (b - a), len(names))
    expected = [stored.index(one) if one in stored else -1 for one in asked]
    for same in (reads, lambda text: reads(text).casefold()):
        taken = set(expected) if same is not reads else set()
        before = list(expected)
        for place, one in enumerate(asked):
            if before[place] < 0:
                meant = [row for row, name in enumerate(stored) if same(name) == same(one) and row not in taken]
                expected[place] = meant[0] if len(meant) == 1 else -1
    assert found.tolist() == expected


def test_a_name_that_begins_like_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """~/x is at home, and what only looks like it is as it stands: nobody's name is é, and none has a NUL."""
    monkeypatch.setenv("HOME", "/me")
    stored = [b"/me/a.jpg", "/p/~é.jpg".encode(), b"/p/~\xcc.jpg", b"/p/~\x00.jpg", b"/p/~.jpg"]
    asked = [b"~/A.jpg", "~E\u0301.jpg".encode(), b"~\xcc.JPG", b"~\x00.JPG", b"~nobody/~.jpg", b"~.jpg"]
    found = match(asked, lambda a, b: [], lambda a, b: stored[a:b], len(stored), folders=["/p"])
    assert found.tolist() == [0, 1, 2, 3, -1, 4]


def test_lists(tmp_path: Path) -> None:
    file = tmp_path / "remove.txt"
    for content in (
        "été 1.jpg\r\n\r\nb.jpg\n",
        "path,score\nété 1.jpg,0.9\nb.jpg,0.8\n",
        "id;location\nx;été 1.jpg\ny;b.jpg\n",
    ):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            file.write_bytes(content.encode(encoding))
            assert [line.decode() for line in read_lines(file)] == ["été 1.jpg", "b.jpg"]
    file.write_bytes(b"a\xff.jpg\nb, c.jpg")  # a name that is not UTF-8; a comma
    assert read_lines(file) == [b"a\xff.jpg", b"b, c.jpg"]
    with pytest.raises(InputError, match=r"can't be read \(No such file"):
        read_lines(tmp_path / "none")


def test_the_commands_take_them(pictures: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The list that `label --propose` asks to fill in, saved by a European Excel; labels by Windows' paths."""
    for number in range(8, 20):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)).save(
            pictures / f"{number}.png"
        )
    run = pictures.parent / "run"
    instdisc.train(pictures, run, say=None, **TINY)
    said("label", run, "--propose", 6)
    filled_in = run / "labels" / "next.csv"
    with open(filled_in, newline="", encoding="utf-8") as lines:
        paths = [line["path"] for line in csv.DictReader(lines)]
    rows = [[unicodedata.normalize("NFC", path), "cat"] for path in paths] + [["gone.jpg", "cat"]]
    filled_in.write_text(table(["path", "label"], rows, ";"), encoding="utf-16")
    told = said("label", run, "--from", filled_in)
    assert "1 of the 7 lines of" in told and "gone.jpg" in told and "6 pictures were labelled by hand." in told
    file = pictures.parent / "windows.csv"
    file.write_text(table(["path", "label"], [[f"pics\\{name}", "x"] for name in NAMES] + [["pics\\no", "y"]], ";"))
    told = said("embed", run, pictures, "-o", pictures.parent / "v.parquet", "--labels", file)
    assert "1 of the 9 lines of" in told and "pics\\no" in told
    names = instdisc.embeddings.open_embeddings(pictures.parent / "v.parquet")
    assert names.labels is not None and (names.labels >= 0).sum() == 8
    listed = pictures.parent / "remove.txt"
    listed.write_text("".join(f".\\pics\\{name}\r\n" for name in NAMES[:3]), encoding="utf-16")
    assert "3 pictures were removed" in said("index", run, "--remove-list", listed)
    assert "2 pictures were removed" in said("index", run, "--remove-list", _written(listed, "8.png\n9.png\nno.png\n"))
    strange = read_table(_written(file, "path,label\nno.png,a\n"))
    with pytest.raises(InputError, match=r"No line of .* the first is no\.png"):
        assign(run, strange, say=None)


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file
