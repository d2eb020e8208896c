"""Tar shards: every picture under a key of its own, labels wherever they stand, and nothing dropped unsaid."""

from __future__ import annotations

import io
import os
import random
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from instdisc.data import Source, open_source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # many indexes that no power cut will meet


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 9, 7)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> Source:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return open_source(path)


def keys(source: Source) -> list[str]:
    return [source.identifier(row).partition("#")[2] for row in range(len(source))]


def labels(source: Source) -> dict[str, str]:
    found = source.labels
    return {key: "" if found is None else source.class_name(int(found[row])) for row, key in enumerate(keys(source))}


@pytest.mark.fault("of twenty pictures in a tar one is left, since their names have dots")
def test_dotted_names_are_names_where_every_member_is_a_picture(tmp_path: Path) -> None:
    members = [(f"day/IMG_2023.05.{day:02d}.png", picture(day)) for day in range(1, 21)]
    source = shard(tmp_path / "x.tar", members)
    assert keys(source) == [name.removesuffix(".png") for name, _ in members] and not source.notes
    assert [source.read(row) for row in range(20)] == [content for _, content in members]


def test_dotted_names_with_a_label_each(tmp_path: Path) -> None:
    members = [(f"IMG.{day}.png", picture(day)) for day in range(6)]
    members += [(f"IMG.{day}.cls", b"%d" % (day % 2)) for day in range(6)]
    for name, order in (("after", members), ("sorted", sorted(members)), ("before", members[::-1])):
        source = shard(tmp_path / f"{name}.tar", order)
        assert labels(source) == {f"IMG.{day}": str(day % 2) for day in range(6)} and not source.notes


def test_samples_in_the_sense_of_webdataset_stay_samples_and_what_is_dropped_is_said(tmp_path: Path) -> None:
    members = [(f"{key}.{ending}", picture(1)) for key in "ab" for ending in ("seg.png", "png")]
    members = [*members, ("a.txt", b"a caption"), ("a.json", b'{"label": "cow"}'), ("c.cls", b"5"), ("d.json", b"{}")]
    source = shard(tmp_path / "x.tar", members)
    assert labels(source) == {"a": "cow", "b": ""}
    assert source.skipped.counts == {"sample": 2, "label": 1, "other": 2}
    assert source.notes[0].startswith("2 further pictures of samples were skipped: ")
    assert source.notes[1] == "1 label (.cls, .json) fits no picture by its name (x.tar#c.cls)."


@pytest.mark.fault("labels that stand apart from their pictures in a tar are lost without a word")
@pytest.mark.parametrize("ending", ["cls", "json"])
def test_labels_find_their_pictures_wherever_they_stand(tmp_path: Path, ending: str) -> None:
    def told(number: int) -> bytes:
        return b"%d" % (number % 2) if ending == "cls" else b'{"label": %d}' % (number % 2)

    pictures = [(f"p/{number}.png", picture(number)) for number in range(12)]
    members = [(f"p/{number}.{ending}", told(number)) for number in range(12) if number != 3]
    wanted = {f"p/{number}": "" if number == 3 else str(number % 2) for number in range(12)}
    for number, order in enumerate([pictures + members, members + pictures, sorted(pictures + members)]):
        source = shard(tmp_path / f"{number}.tar", order)
        assert labels(source) == wanted and not source.notes
    mixed = pictures + members
    random.Random(1).shuffle(mixed)
    source = shard(tmp_path / "mixed.tar", [*mixed, ("p/extra.cls", b"1")])
    assert labels(source) == {key: wanted[key] for key in keys(source)} and source.skipped.counts == {"label": 1}


def test_a_cls_goes_before_a_json_and_a_neighbour_before_what_stands_apart(tmp_path: Path) -> None:
    members = [("a.png", picture(1)), ("b.txt", b""), ("a.json", b'{"label": "json"}'), ("a.cls", b"cls")]
    assert labels(shard(tmp_path / "x.tar", members)) == {"a": "cls"}
    twice = [("a.png", picture(1)), ("a.cls", b"1"), ("b.txt", b""), ("a.png", picture(2)), ("a.cls", b"2")]
    assert labels(shard(tmp_path / "y.tar", twice)) == {"a": "1", "a~2": "2"}


KEYS = st.text("ab.1", min_size=1, max_size=5).filter(lambda text: not text.startswith(".") and text.strip("."))


@settings(max_examples=20, deadline=None)
@given(names=st.lists(KEYS, min_size=1, max_size=10, unique=True), seed=st.integers(0, 9))
def test_a_shard_of_pictures_alone_keeps_all_in_their_order(names: list[str], seed: int) -> None:
    """With a label each as well, in any order; and the ids are the names without their endings."""
    with tempfile.TemporaryDirectory() as place:
        members = [(f"{name}.png", picture(number)) for number, name in enumerate(names)]
        source = shard(Path(place) / "x.tar", members)
        assert keys(source) == names and not source.skipped
        assert [source.read(row) for row in range(len(names))] == [content for _, content in members]
        told = {name: str(number % 3) for number, name in enumerate(names)}
        both = members + [(f"{name}.cls", value.encode()) for name, value in told.items()]
        random.Random(seed).shuffle(both)
        source = shard(Path(place) / "y.tar", both)
        assert labels(source) == {key: told[key] for key in keys(source)} and not source.skipped
        assert sorted(keys(source)) == sorted(names)


def test_a_shard_that_is_read_again_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first = shard(tmp_path / "in/a.tar", [("1.png", picture(1)), ("1.mov", b"x"), ("@eaDir/1.png", picture(1))])
    shard(tmp_path / "in/b.tar", [("2.png", picture(1)), ("2.mov", b"x")])
    assert open_source(tmp_path / "in/a.tar").notes == first.notes
    both = open_source(tmp_path / "in")
    assert both.skipped.counts == {"video": 2, "system": 1} and len(both) == 2
