"""What a scan skips is told by `info`, `train` and quarantine.csv; runs that stand amid their pictures."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import picture_folder, tiny

from instdisc.errors import InputError
from instdisc.jobs.embed import embed
from instdisc.jobs.info import info
from instdisc.jobs.train import train


def listed(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]


def with_others(folder: Path) -> Path:
    """40 pictures; a video, a system's folder, a backup and a text beside them."""
    picture_folder(folder, 40)
    (folder / "clip.mov").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(99))
    (folder / "red/@eaDir").mkdir()
    (folder / "red/@eaDir/1.png").write_bytes(b"a thumbnail")
    (folder / "red/0000.png_original").write_bytes((folder / "red/0000.png").read_bytes())
    (folder / "notes.txt").write_text("notes")
    return folder


REASONS = [
    "a video is not read",
    "a file or folder of a system's own",
    "a backup or preview",
    "a file that is not a picture",
]


def as_folder(pictures: Path) -> Any:
    return pictures


def as_list(pictures: Path) -> Any:
    return [str(path) for path in sorted(pictures.rglob("*")) if path.is_file() and "@eaDir" not in str(path)]


def as_tar(pictures: Path) -> Any:
    with tarfile.open(pictures.with_suffix(".tar"), "w") as archive:
        archive.add(pictures, "in")
    return pictures.with_suffix(".tar")


def as_parquet(pictures: Path) -> Any:
    """The pictures in a Parquet file, and the others beside it."""
    paths = sorted(pictures.rglob("*/0*.png"))
    pq.write_table(pa.table({"image": [path.read_bytes() for path in paths]}), pictures / "all.parquet")
    for path in paths:
        path.unlink()
    return pictures


@pytest.mark.fault("files are lost without a word")
@pytest.mark.parametrize("form", [as_folder, as_list, as_tar, as_parquet])
def test_what_is_skipped_is_told_everywhere(tmp_path: Path, form: Any) -> None:
    source = form(with_others(tmp_path / "in"))
    said: list[str] = []
    run = train(source, tmp_path / "run", tiny(epochs=1), say=said.append)
    assert run.instances == 40 and run.quarantined == 0
    lines = listed(tmp_path / "run/quarantine.csv")
    reasons = REASONS if form is not as_list else [REASONS[0], *REASONS[2:]]
    assert len(lines) == len(reasons)
    for reason in reasons:
        (line,) = [line for line in lines if line[2].startswith(f"skipped: {reason}")]
        assert line[0] == line[1] and str(tmp_path) in line[1]
    start = next(number for number, line in enumerate(said) if line.startswith("Recipe"))
    told = [line.strip() for line in said[:start] if line.startswith("  1 ")]
    assert len(told) == len(reasons)
    assert [line for name, line in info(source).items() if name.startswith("note")] == told
    if form is as_folder:
        resumed = train(source, tmp_path / "run", tiny(epochs=1), resume=True, say=None)
        assert resumed.quarantined == 0 and listed(tmp_path / "run/quarantine.csv") == lines
        embed(tmp_path / "run", source, tmp_path / "v.npy", device="cpu", say=None)
        assert listed(tmp_path / "v.npy.quarantine.csv") == lines


@pytest.mark.fault("evaluate writes a picture into a run folder within the source, and the collection has changed")
def test_a_run_within_its_own_pictures_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = picture_folder(tmp_path / "in", 40)
    monkeypatch.chdir(pictures)
    train(".", "runs/mine", tiny(epochs=1), say=None)
    (pictures / "runs/mine/neighbours.png").write_bytes((pictures / "red/0000.png").read_bytes())
    run = train(".", "runs/mine", tiny(epochs=1), resume=True, say=None)
    assert run.finished and run.instances == 40
    facts = info(".")
    assert facts["pictures"] == "40" and "3 classes" in facts["labels"]
    assert facts["note 1"] == "1 run folder or file of instdisc's own was left out (mine)."


@pytest.mark.fault("a folder that looks empty is no place for a run")
def test_a_folder_with_nothing_but_a_systems_own_is_empty(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "in", 40)
    out = tmp_path / "out"
    (out / "lost+found").mkdir(parents=True)
    (out / ".ipynb_checkpoints").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._x"):
        (out / name).touch()
    assert train(pictures, out, tiny(epochs=0.2), say=None).finished
    (tmp_path / "other").mkdir()
    (tmp_path / "other/Thumbs.txt").touch()
    with pytest.raises(InputError, match="is not empty and holds no run"):
        train(pictures, tmp_path / "other", tiny(), say=None)


def test_info_takes_what_train_takes(tmp_path: Path) -> None:
    picture_folder(tmp_path / "in/train", 30)
    picture_folder(tmp_path / "in/test", 20, seed=1)
    assert info(tmp_path / "in", "test")["pictures"] == "20"
    assert info([tmp_path / "in/train", tmp_path / "in/test"])["pictures"] == "50"
    whole = info(tmp_path / "in")
    assert whole["pictures"] == "50" and "3 classes" in whole["labels"]
    assert (
        whole["note 1"]
        == "The folders test (20), train (30) are splits, no classes, and all are taken: --split train takes one alone."
    )


@pytest.mark.fault("a name with two colons is taken for a URL")
def test_a_name_on_disk_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `std::vector.jpg`: in a folder, by itself, in a list, and as a folder, a Parquet file, a tar shard."""
    from instdisc.data import open_source

    picture_folder(tmp_path / "x::y", 3)
    content = (tmp_path / "x::y/red/0000.png").read_bytes()
    names = ["std::vector.png", "a:b.png", "::.png", "http:.png", "zip::a.png", "C:\\x.png"]
    for name in names:
        (tmp_path / "x::y/red" / name).write_bytes(content)
    source = open_source(tmp_path / "x::y")
    assert len(source) == 3 + len(names) and all(isinstance(got, bytes) for _, got in source.iterate())
    monkeypatch.chdir(tmp_path / "x::y/red")
    for name in names:
        assert open_source(name).read(0) == content
    assert [got for _, got in open_source(names).iterate()] == [content] * len(names)
    pq.write_table(pa.table({"image": [content]}), tmp_path / "x::y/red/t::t.parquet")
    with tarfile.open("t::t.tar", "w") as archive:
        member = tarfile.TarInfo("1.png")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    assert open_source("t::t.parquet").read(0) == open_source("t::t.tar").read(0) == content


def test_a_stray_picture_does_not_stop_the_measuring(tmp_path: Path) -> None:
    """The few others of a small folder all vote; that one of them has no label was taken for too few labels."""
    pictures = picture_folder(tmp_path / "in", 24)
    (pictures / "red/0000.png").rename(pictures / "stray.png")
    run = train(pictures, tmp_path / "run", tiny(epochs=1, batch=8, monitor_epochs=1), say=None)
    measured = [line["measured"] for line in run.metrics() if "measured" in line]
    assert measured and all(0 <= one["knn"] <= 1 for one in measured)


def test_one_of_anything_is_told_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = picture_folder(tmp_path / "in", 20)
    (pictures / "red/0000.png").write_bytes(b"\x89PNG\r\n\x1a\nshort")
    train(pictures, tmp_path / "run", tiny(epochs=1, batch=8))
    said = capsys.readouterr().out
    assert ", 1 epoch.\n" in said and " 1 picture could not be read: see " in said
    with pytest.raises(
        InputError, match=r"^The only picture can't be read: .*0000\.png: the PNG is damaged or cut short"
    ):
        info(pictures / "red/0000.png")
    with pytest.raises(InputError, match=r"has 1 picture: at least 16 are needed"):
        train(pictures / "red/0003.png", tmp_path / "one", say=None)
    with pytest.raises(InputError, match=r"should end in \.parquet or \.npy"):
        embed(tmp_path / "run", pictures, tmp_path / "vectors.npz")
    assert capsys.readouterr().out == "", "a refusal comes before the work is announced"
