"""What is a picture and what is skipped: in folders, tar shards and lists of files the same, all of it counted."""

from __future__ import annotations

import csv
import io
import itertools
import os
import struct
import sys
import tarfile
import tempfile
import types
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import put
from PIL import Image

from instdisc.data import Source, open_source
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.storage import kinds
from instdisc.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own; and no decoder for HEIC, as in an installation without the extra."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of indexes that no power cut will meet
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    kinds.read_anew()
    yield
    monkeypatch.undo()
    kinds.read_anew()


def saved(kind: str, number: int = 1) -> bytes:
    """A small picture as Pillow writes it."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, 9, 7)).save(file, kind)
    return file.getvalue()


def box(brand: bytes) -> bytes:
    """The beginning of a file in boxes (HEIC, MP4, ...), which is all of it that a scan looks at."""
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + brand + b"isom" + bytes(400)


JPEG, TIFF = saved("JPEG"), saved("TIFF")


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def opened(way: str, folder: Path, files: dict[str, bytes]) -> Source:
    """The files as a folder, as members of a tar shard, one by one, and at a URL."""
    if way == "tar":
        return open_source(tar_of(folder / "x.tar", files))
    put(folder / "in", files)
    if way == "list":
        return open_source([folder / "in" / name for name in files])
    if way == "pattern":
        return open_source(str(folder / "in" / "*"))
    if way == "URL":
        system = fsspec.filesystem("memory")
        root = f"/kinds{folder.name}"
        for name, content in files.items():
            system.pipe(f"{root}/{name}", content)
        return open_source(f"memory:/{root}")
    return open_source(folder / "in")


def ids(source: Source) -> list[str]:
    return [source.identifier(row) for row in range(len(source))]


WAYS = ["folder", "tar", "list", "pattern", "URL"]
FEW = {"a.HEIC", "a.MOV", "a.nef"}  # in every way
NOT_READ: list[tuple[str, bytes, str, str]] = [  # a name, a content, the words for two of them, and the remedy
    ("a.HEIC", box(b"heic"), "2 HEIC pictures are not read", "or convert them to JPEG"),
    ("a.heif", box(b"mif1"), "2 HEIC pictures are not read", "convert them to JPEG"),
    ("a.jxl", b"\xff\x0a" + bytes(90), "2 JPEG XL pictures are not read", "convert them"),
    ("a.jp2", saved("JPEG2000"), "2 JPEG 2000 pictures", "convert"),
    ("a.psd", b"8BPS\0\1" + bytes(90), "2 Photoshop pictures are not read", "convert"),
    ("a.xcf", b"gimp xcf v011" + bytes(90), "2 GIMP or Krita pictures are not read", "convert"),
    ("a.exr", b"\x76\x2f\x31\x01" + bytes(90), "2 EXR or HDR pictures are not read", "convert"),
    ("a.svg", b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "2 SVG drawings are not read", "render them"),
    ("a.eps", saved("EPS"), "2 EPS drawings are not read", "render them"),
    ("a.pdf", saved("PDF"), "2 PDF documents are not read", "render the pages"),
    ("a.tga", saved("TGA"), "2 pictures of rare formats are not read", "convert"),
    ("a.ico", saved("ICO"), "2 pictures of rare formats are not read", "convert"),
    ("a.ppm", saved("PPM"), "2 pictures of rare formats are not read", "convert"),
    ("a.dcm", bytes(128) + b"DICM" + bytes(300), "2 DICOM pictures are not read", "export them"),
    ("a.nd2", b"\xda\xce\xbe\x0a" + bytes(90), "2 files of microscopes, scanners or telescopes", "export them"),
    ("a.mp4", box(b"isom"), "2 videos are not read", "take stills out of them"),
    ("a.MOV", box(b"qt  "), "2 videos are not read", "take stills out of them"),
    ("a.mkv", b"\x1aE\xdf\xa3" + bytes(90), "2 videos are not read", "take stills"),
    ("a.zip", b"PK\3\4" + bytes(90), "2 compressed archives are not read", "unpack them"),
    ("a.nef", TIFF, "2 RAW pictures are not read", "develop them to JPEG or TIFF"),
    ("a.CR3", box(b"crx "), "2 RAW pictures are not read", "develop them to JPEG or TIFF"),
]


@pytest.mark.parametrize(
    ("way", "name", "content", "words", "remedy"),
    [(way, *one) for one in NOT_READ for way in (WAYS if one[0] in FEW else WAYS[:2])],
    ids=[f"{one[0]}-{way}" for one in NOT_READ for way in (WAYS if one[0] in FEW else WAYS[:2])],
)
@pytest.mark.fault("a folder of iPhone HEIC, videos or other formats is said to hold no pictures")
def test_pictures_that_are_not_read_are_named_and_counted(
    tmp_path: Path, way: str, name: str, content: bytes, words: str, remedy: str
) -> None:
    others = {name: content, name.replace("a", "b", 1): content}
    source = opened(way, tmp_path, {"1.jpg": JPEG, "2.jpg": JPEG} | others)
    assert len(source) == 2 and sum(source.skipped.counts.values()) == 2
    (note,) = source.notes
    assert note.startswith(words) and remedy in note
    if way in ("folder", "tar"):
        (tmp_path / "only").mkdir()
        with pytest.raises(InputError) as error:
            opened(way, tmp_path / "only", others)
        assert words in str(error.value) and remedy in str(error.value) and "not a picture" not in str(error.value)


@pytest.mark.parametrize(("name", "content", "words", "remedy"), NOT_READ, ids=[one[0] for one in NOT_READ])
def test_a_single_file_that_is_not_read(tmp_path: Path, name: str, content: bytes, words: str, remedy: str) -> None:
    put(tmp_path, {name: content})
    with pytest.raises(InputError, match=r"^[^\n]*, which is not read: [^\n]*\.$") as error:
        open_source(tmp_path / name)
    assert remedy.replace("them", "it") in str(error.value)


def test_bytes_go_before_names_except_for_raw(tmp_path: Path) -> None:
    """Phones and sites rename: a JPEG called HEIC is a JPEG. What begins like a TIFF and is called raw is raw."""
    files = {
        "a.heic": JPEG,
        "b.mp4": saved("PNG"),
        "c": box(b"crx "),
        "d": b"8BPS" + bytes(90),
        "e.dng": TIFF,
        "f": TIFF,
    }
    source = open_source(put(tmp_path / "in", files))
    assert ids(source) == ["a.heic", "b.mp4", "f"]
    assert source.skipped.counts == {"raw": 2, "Photoshop": 1}


@pytest.mark.fault("a camera's raw file trains as its thumbnail")
@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_raw_files_are_known_by_their_names(tmp_path: Path, change: Any) -> None:
    names = "3fr arw cr2 cr3 dng erf iiq kdc mef nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
    endings = names.split(" ")
    files = {f"{number}.{change(ending)}": TIFF for number, ending in enumerate(endings)}
    files |= {f"{number}.jpg": JPEG for number in range(0, len(endings), 2)}
    source = open_source(put(tmp_path / "in", files))
    assert len(source) == len(files) - len(endings)
    assert source.notes == (
        f"{len(endings)} RAW pictures are not read: develop them to JPEG or TIFF "
        f"({len(source)} beside a picture of the same name, which is taken).",
    )


def test_pairs_of_one_name(tmp_path: Path) -> None:
    """Each pair by its own folder: the name counts with the path."""
    heic = {f"a/{number}.HEIC": b"8BPS" for number in range(4)}
    files = {name.replace("HEIC", "psd"): content for name, content in heic.items()}
    source = open_source(put(tmp_path / "in", files | {"a/0.JPG": JPEG, "a/3.jpg": JPEG, "b/2.jpg": JPEG}))
    assert "4 Photoshop pictures" in source.notes[0] and "(2 beside a picture of the same name" in source.notes[0]


def test_what_becomes_readable_is_a_picture_at_the_next_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier scan's word does not stand against a decoder that was installed meanwhile; pairs are told then too."""
    files = {"1.jpg": JPEG, "1.heic": box(b"heic"), "x": box(b"mif1"), "2.avif": saved("AVIF")}
    root = put(tmp_path / "in", files)
    before = open_source(root)
    assert ids(before) == ["1.jpg", "2.avif"] and before.skipped.counts == {"HEIC": 2}
    assert "pip install 'instdisc[heif]', or convert them to JPEG (1 beside a picture" in before.notes[0]
    module = types.ModuleType("pillow_heif")
    module.__spec__ = ModuleSpec("pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    kinds.read_anew()
    source = open_source(root)
    assert ids(source) == ["1.heic", "1.jpg", "2.avif", "x"] and not source.skipped
    assert source.notes == (
        "1 picture stands beside another of the same name (HEIC, AVIF and others): both are taken.",
    )
    assert len(open_source(root / "x")) == 1


# --- what belongs to a system, to a program, to us -------------------------------------------------------------------

FOLDERS = ["@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
FOLDERS += ["__MACOSX", ".thumbnails", ".Trash-1000", ".ipynb_checkpoints", ".@__thumb", "LOST.DIR", "found.000"]
FILES = ["Thumbs.db", "desktop.ini", ".DS_Store", "._1.jpg", "ehthumbs.db", ".directory", "Icon\r", ".nomedia"]
BACKUPS = ["1.jpg_original", "1.jpg~", "1.JPG.bak", "1.png.orig", "1.jpg.part", "1.jpeg.crdownload", "1.heic_original"]


@pytest.mark.fault("a NAS's thumbnails are pictures, and the class folders no labels any more")
@pytest.mark.parametrize("way", ["folder", "tar", "URL"])
def test_folders_of_systems_are_left_out(tmp_path: Path, way: str) -> None:
    files = {f"{label}/{number}.jpg": JPEG for label in ("cat", "dog") for number in range(3)}
    left_out = {
        f"cat/{folder}/1.jpg/SYNOPHOTO_THUMB_M.jpg": JPEG for folder in FOLDERS if way != "URL" or folder[0] != "#"
    }
    source = opened(way, tmp_path, files | left_out | {"Catalog Previews.lrdata/A/1.jpg": JPEG})
    assert len(source) == 6 and source.skipped.counts == {"system": len(left_out), "software": 1}
    assert way == "tar" or source.label_names == ["cat", "dog"]


@pytest.mark.parametrize("way", ["folder", "tar", "list", "URL"])
@pytest.mark.fault("what a program keeps beside the pictures is taken for pictures")
def test_files_of_systems_and_programs_are_left_out(tmp_path: Path, way: str) -> None:
    files = dict.fromkeys(FILES + BACKUPS, JPEG)
    source = opened(way, tmp_path, {"1.jpg": JPEG, "2.jpg": JPEG} | files)
    assert len(source) == 2 and source.skipped.counts == {"system": len(FILES), "software": len(BACKUPS)}
    assert any("a system's own were left out (" in note for note in source.notes)
    assert any("that programs keep were left out (" in note for note in source.notes)


@pytest.mark.fault("pictures are lost for a name that only looks like a system's")
def test_names_that_are_nobodys(tmp_path: Path) -> None:
    names = ["thumbs/1.jpg", "eaDir/1.jpg", "recycle/1.jpg", "previews/1.jpg", "original/1_original.jpg", "1~.jpg"]
    names += ["backup.bak.jpg", "@home/1.jpg", "$5.jpg", "#1.jpg", "Folder.jpg", "x.photo/1.jpg", "a_original", "b~"]
    source = open_source(put(tmp_path / "in", dict.fromkeys(names, JPEG)))
    assert sorted(ids(source)) == sorted(names) and not source.skipped


def test_what_a_person_names_alone_is_taken(tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg_original": JPEG, ".hidden.jpg": JPEG, "@eaDir/1.jpg": JPEG, ".photos/2.jpg": JPEG})
    for name in ("a.jpg_original", ".hidden.jpg", "@eaDir", ".photos"):
        assert len(open_source(tmp_path / name)) == 1


@pytest.mark.fault("evaluate writes a picture into a run folder within the source, and the collection has changed")
def test_run_folders_are_left_out(tmp_path: Path) -> None:
    ours = b'{"format": 1, "instdisc": "0.1", "settings": {}, "source": {}}'
    files = {"1.jpg": JPEG, "2.jpg": JPEG, "runs/mine/config.json": ours, "runs/mine/neighbours.png": JPEG}
    files |= {"runs/mine/duplicates/groups.png": JPEG}
    source = open_source(put(tmp_path / "in", files))
    assert ids(source) == ["1.jpg", "2.jpg"]
    assert source.notes == ("1 run folder or file of instdisc's own was left out (mine).",)
    # Other programs have such a file too, and their pictures are the person's.
    for number, config in enumerate([b"{}", b"", b'{"format": 1}', b'["instdisc"]', b'{"instdisc": 1'] * 1):
        put(tmp_path / "other", {f"m{number}/config.json": config, f"m{number}/1.jpg": JPEG})
    assert len(open_source(tmp_path / "other")) == 5


# --- links -----------------------------------------------------------------------------------------------------------


def linked(root: Path) -> Path:
    """Three pictures, and three links to two of them, of both kinds, some in a folder that comes first by name."""
    put(root, {"real/1.jpg": JPEG, "real/2.jpg": saved("JPEG", 2), "real/3.jpg": saved("JPEG", 3)})
    (root / "favourites").mkdir()
    (root / "favourites/1.jpg").symlink_to("../real/1.jpg")
    (root / "favourites/again.jpg").symlink_to("1.jpg")
    os.link(root / "real/2.jpg", root / "real/also 2.jpg")
    return root


@pytest.mark.fault("a picture counts as often as there are links to it")
def test_links_are_one_picture_in_a_folder_and_in_a_tar(tmp_path: Path) -> None:
    root = linked(tmp_path / "in")
    folder = open_source(root)
    assert ids(folder) == ["real/1.jpg", "real/2.jpg", "real/3.jpg"] and folder.skipped.counts == {"link": 3}
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in (
            "real/1.jpg",
            "real/2.jpg",
            "real/also 2.jpg",
            "real/3.jpg",
            "favourites/1.jpg",
            "favourites/again.jpg",
        ):
            archive.add(root / name, name)
    shard = open_source(tmp_path / "x.tar")
    assert ids(shard) == ["x.tar#real/1", "x.tar#real/2", "x.tar#real/3"] and shard.skipped.counts == {"link": 3}
    assert shard.notes == folder.notes == ("3 links to pictures that are there already were left out.",)


def test_a_link_takes_the_place_of_what_has_gone(tmp_path: Path) -> None:
    root = linked(tmp_path / "in")
    assert len(open_source(root)) == 3
    (root / "real/2.jpg").unlink()
    assert ids(open_source(root)) == ["real/1.jpg", "real/3.jpg", "real/also 2.jpg"]


def test_links_to_elsewhere_are_pictures_once(tmp_path: Path) -> None:
    """git-annex and DVC keep pictures in hidden folders under names that say nothing; the links are the collection."""
    root, store = tmp_path / "in", tmp_path / "in/.annex"
    put(store, {"abc": JPEG, "def": JPEG})
    for name, target in (("cat/1.jpg", "abc"), ("cat/2.jpg", "def"), ("dog/1.jpg", "abc")):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(store / target)
    source = open_source(root)
    assert ids(source) == ["cat/1.jpg", "cat/2.jpg"] and source.skipped.counts == {"link": 1, "hidden": 1}
    put(root, {"blobs/123": JPEG})  # a name that says nothing beside one that does
    (root / "dog/3.jpg").symlink_to(root / "blobs/123")
    assert "dog/3.jpg" in ids(open_source(root)) and "blobs/123" not in ids(open_source(root))


def test_links_in_a_tar_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(JPEG)
        archive.addfile(member, io.BytesIO(JPEG))
        for name, target in (("b.jpg", "/elsewhere/b.jpg"), ("c.txt", "a.jpg"), ("d.txt", "gone")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    assert open_source(tmp_path / "x.tar").skipped.counts == {"dangling": 1, "link": 1, "other": 1}


# --- nothing is lost -------------------------------------------------------------------------------------------------

STEMS = ["a", "b", "IMG_2023.05", "x.y.z", ".h", "Thumbs", "c d", "é"]
ENDINGS = ["", ".jpg", ".JPG", ".png", ".heic", ".dng", ".mov", ".txt", ".cls", ".json", ".jpg~", ".db", ".svg"]
CONTENTS = [JPEG, TIFF, b"", b"text", b"3", b'{"label": "cat"}', box(b"heic"), b"8BPS" + bytes(90)]
NAMES = st.builds(lambda folder, stem, ending: folder + stem + ending, st.sampled_from(["", "p/", "q.r/", "p/q/"]),
                  st.sampled_from(STEMS), st.sampled_from(ENDINGS))  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(files=st.dictionaries(NAMES, st.sampled_from(CONTENTS), min_size=1, max_size=24))
@pytest.mark.fault("files are lost without a word")
def test_every_file_is_a_row_or_counted(files: dict[str, bytes]) -> None:
    """In a folder, a tar shard and a list: rows and what was skipped add up to what was put there.

    In a tar the label of a picture is neither: one for each sample that has a label, which its pictures show.
    """
    files = {"first.jpg": JPEG} | {name: content for name, content in files.items() if f"{name}/" not in "p/ p/q/ q.r/"}
    with tempfile.TemporaryDirectory() as place:
        put(Path(place) / "in", files)
        for source in (open_source(Path(place) / "in"), open_source([Path(place) / "in" / name for name in files])):
            assert len(source) + sum(source.skipped.counts.values()) == len(files), source.skipped.counts
        shard = open_source(tar_of(Path(place) / "x.tar", files))
        counts = shard.skipped.counts
        told = len(shard) + sum(counts.values())
        possible = sum(name.endswith((".cls", ".json")) for name in files)
        labelled = 0 if shard.labels is None else int((shard.labels >= 0).sum())
        assert len(files) - possible <= told <= len(files)
        assert labelled == 0 or told < len(files)
        hidden = sum(os.path.basename(name).startswith(".") for name in files)
        assert counts["hidden"] == hidden == open_source(Path(place) / "in").skipped.counts["hidden"]
        assert Counter(ids(shard)).most_common(1)[0][1] == 1


# --- where it is told ------------------------------------------------------------------------------------------------


def test_the_list_names_what_was_skipped_and_counts_only_pictures(tmp_path: Path) -> None:
    source = open_source(put(tmp_path / "in", {"1.jpg": JPEG, "notes.txt": b"hello", "0.mov": box(b"qt  ")}))
    source.skipped.add("video", (f"{tmp_path}/in/{number}.mov" for number in range(1, 1100)), 1099)
    quarantine = Quarantine(tmp_path / "list.csv")
    quarantine.add("1.jpg", "in/1.jpg", "the JPEG is cut short")
    for _ in range(2):  # the second as in a run that is resumed
        quarantine.skip(source.skipped.lines(source.name))
        assert quarantine.count == 1
        quarantine = Quarantine(tmp_path / "list.csv")
    with open(tmp_path / "list.csv", newline="") as file:
        header, first, *rest = csv.reader(file)
    assert header == ["id", "path", "reason"] and first[0] == "1.jpg"
    videos = [line for line in rest if "video" in line[2]]
    assert len(videos) == 1001, "a thousand by name, and a line for the others"
    assert videos[0][1].startswith(f"{tmp_path}/in/") and videos[0][1].endswith(".mov")
    assert videos[0][2] == "skipped: a video is not read: take stills out of it, as with ffmpeg"
    assert videos[-1][1] == source.name and videos[-1][2].startswith("skipped: 100 videos are not read")
    assert [line[2] for line in rest if line not in videos] == ["skipped: a file that is not a picture was skipped"]


def test_a_second_scan_says_the_same_and_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "1.jpg": JPEG,
        "a.heic": box(b"heic"),
        "b.mov": box(b"qt  "),
        "c.txt": b"",
        "d": JPEG,
        "@eaDir/1.jpg": JPEG,
    }
    root = put(tmp_path / "in", files)
    first = open_source(root)
    real = open

    def refuse(path: Any, *rest: Any, **more: Any) -> Any:
        assert not os.fsdecode(path).startswith(str(root)) or os.fsdecode(path).endswith("config.json"), path
        return real(path, *rest, **more)

    monkeypatch.setattr("builtins.open", refuse)
    second = open_source(root)
    assert second.notes == first.notes and ids(second) == ids(first)


def test_names_in_notes_are_printable(tmp_path: Path) -> None:
    root = tmp_path / "in"
    put(root, {"1.jpg": JPEG, "a\nb\x1b[31m.txt": b"x"})
    (Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9.txt"))).write_bytes(b"x")
    for note in open_source(root).notes:
        assert note.isprintable() and note.encode()


def test_pairs_of_kinds_do_not_hide_each_other(tmp_path: Path) -> None:
    """Two kinds beside one picture are two sentences, in one order, whatever the order of the files."""
    for number, order in enumerate(itertools.permutations(["1.mov", "1.dng", "1.jpg"])):
        source = open_source(put(tmp_path / str(number), {name: JPEG if "jpg" in name else TIFF[:4] for name in order}))
        assert [note.split()[1] for note in source.notes] == ["RAW"], "TIFF bytes in a .mov are a picture's"
