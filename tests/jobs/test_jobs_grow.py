"""A run that grows: kept rows stay to the bit, new ones start as the encoder sees them, and what has gone leaves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import picture_folder, saved_state, tiny

import instdisc
from instdisc.checkpoint import latest, open_checkpoint
from instdisc.data.decoding.decode import decode
from instdisc.errors import InputError
from instdisc.jobs import index, journal
from instdisc.jobs.collection import Collection
from instdisc.jobs.grow import grow
from instdisc.jobs.label import assign, hand_labels
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

COUNT = 40
LENGTH = {"epochs": 2, "say": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("grow")
    pictures = picture_folder(folder / "pictures", COUNT)
    (pictures / "red" / "broken.png").write_bytes(b"no picture")
    run = train(pictures, folder / "run", tiny(epochs=2), say=None).path
    index.recompute(run, say=None)
    index.tag(run, "few", where="*/000?.png")
    index.remove(run, where="blue/0002.png", say=None)
    shutil.copytree(folder, folder.with_name("as it was"))
    return pictures, run


@pytest.fixture
def mine(trained: tuple[Path, Path]) -> tuple[Path, Path]:
    """Pictures and run, for a test to change: all stands again as it was."""
    folder = trained[0].parent
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("as it was"), folder)
    return trained


def changed(pictures: Path) -> dict[str, list[str]]:
    """Five new pictures, two gone, one edited, one written again around the same pixels: their ids."""
    new = picture_folder(pictures.with_name("new"), 5, seed=7)
    for number, file in enumerate(sorted(new.rglob("*.png"))):
        shutil.copy(file, pictures / file.parent.name / f"a{number}.png")  # sorted before the others
    gone = ["green/0001.png", "red/0003.png"]
    for name in gone:
        (pictures / name).unlink()
    Image.new("RGB", (16, 16), (9, 9, 200)).save(pictures / "green/0004.png")
    with Image.open(pictures / "red/0006.png") as picture:
        picture.load()
    picture.save(pictures / "red/0006.png", compress_level=0)
    came = [path.relative_to(pictures).as_posix() for path in pictures.glob("*/a*.png")]
    return {"new": came, "gone": gone, "edited": ["green/0004.png"], "again": ["red/0006.png"]}


def bank_of(run: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """id -> row of the bank, from the checkpoint's own files."""
    folder = RunFolder(run)
    saved = latest(folder.checkpoints) if step is None else open_checkpoint(folder.checkpoints / f"step-{step:09d}")
    assert saved is not None
    collection = Collection(run)
    count = len(collection.rows)
    names = [entry.id for entry in collection.index.entries(np.arange(count))]
    return dict(zip(names, saved.rows("bank", 0, count)["rows"], strict=True))


def test_new_and_gone_pictures_are_told_and_lock_nobody_out(mine: tuple[Path, Path]) -> None:
    pictures, run = mine
    changed(pictures)
    told: list[str] = []
    (found,) = search(run, [pictures / "red/0000.png"], neighbours=37, say=told.append)
    text = " ".join(told)
    assert f"5 new pictures in {pictures}" in text and f"`instdisc train {run} --add`" in text
    assert f"`instdisc index {run} --add {pictures}`" in text
    assert "2 pictures have gone, the first is " + str(pictures / "green/0001.png") in text
    assert "2 of the 40 pictures have another size or date" in text
    assert len(found) == 37
    collection = Collection(run)
    for row in np.flatnonzero(~collection.index.removed).tolist():
        path = Path(collection.index.entries([row])[0].path)
        if path.is_file():
            assert np.array_equal(collection.picture(row), decode(path.read_bytes())), "a row is its picture's still"
    assert index.add(run, pictures, say=None) == 6, "what is new, and what was removed"
    assert not any("new picture" in line for line in Collection(run).changed_pictures())


def test_a_run_grows_and_shrinks(mine: tuple[Path, Path]) -> None:
    pictures, run = mine
    assign(run, {str(pictures / "red/0000.png"): "tom", str(pictures / "green/0001.png"): "lost"}, say=None)
    encoder, before, old = instdisc.load(run), bank_of(run), Collection(run)
    metrics = (run / "metrics.jsonl").read_bytes()
    labels = hand_labels(run)
    tagged = {one.id for one in old.index.entries(old.index.tags["few"])}
    what = changed(pictures)
    told: list[str] = []
    done = grow(run, **{**LENGTH, "say": told.append})
    assert "Adding: 5 new pictures, 2 gone, 2 edited, 38 kept." in told
    assert done.finished and done.path == run and done.instances == COUNT + 3
    assert not (run / "growing").exists() and not (run / "replacing.json").exists()

    start = bank_of(run, 0)
    assert set(start) == (set(before) - set(what["gone"])) | set(what["new"])
    fresh = [*what["new"], *what["edited"], *what["again"]]
    for name in set(before) & set(start) - set(fresh):
        assert torch.equal(start[name], before[name])
    seen = encoder.embed([str(pictures / name) for name in fresh], vectors="embedding")
    torch.testing.assert_close(torch.stack([start[name] for name in fresh]), seen, atol=1e-5, rtol=0)
    end = bank_of(run)
    assert any(not torch.equal(end[name], start[name]) for name in before if name in start), "the old take part"
    assert all(not torch.equal(end[name], start[name]) for name in what["new"]), "the new take part"

    now = Collection(run)
    rows = np.arange(len(now.index))
    entries = now.index.entries(rows)
    paths = [entry.path for entry in entries]
    assert [entry.id for entry in entries[-5:]] == sorted(
        what["new"], key=lambda name: paths.index(str(pictures / name))
    )
    assert now.up_to_date and now.vectors == "search"
    expected = instdisc.load(run).embed(paths)
    torch.testing.assert_close(now.index.vectors(rows), expected, atol=1e-5, rtol=0)
    assert {one.id for one in now.index.entries(now.index.tags["few"])} == tagged - set(what["gone"])
    assert [one.id for one in now.index.entries(np.flatnonzero(now.index.removed))] == ["blue/0002.png"]
    assert hand_labels(run) == labels
    assert now.index.labels[now.index.rows_of([str(pictures / "red/0000.png")])[0]] == now.index.label_names.index(
        "tom"
    )
    assert (run / "metrics-1.jsonl").read_bytes() == metrics
    assert now.changed_pictures() == []
    again = grow(run, **LENGTH)
    assert again.instances == COUNT + 3 and len(Collection(run).facts["grown"]) == 1, "nothing is new any more"


def test_pictures_from_elsewhere_and_from_the_index_come_in(mine: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = mine
    others = picture_folder(tmp_path / "others", 6, seed=5)  # the same ids as some of the run's
    index.add(run, others, say=None)
    index.tag(run, "other", where="others/*")
    third = picture_folder(tmp_path / "third", 4, seed=6)
    before = {one.path: one.id for one in Collection(run).index.entries(np.arange(COUNT + 6))}
    grow(run, third, **LENGTH)
    collection = Collection(run)
    entries = collection.index.entries(np.arange(COUNT + 10))
    assert len({one.id for one in entries}) == COUNT + 10
    assert {one.path: one.id for one in entries if one.path in before} == before
    assert {one.id for one in entries if one.path.startswith(str(third))} == {
        f"third/{file.relative_to(third).as_posix()}" for file in third.rglob("*.png")
    }
    assert len(collection.rows) == COUNT + 10 and collection.changes.added == ()
    assert {one.id for one in collection.index.entries(collection.index.tags["other"])} == {
        one for one in before.values() if one.startswith("others/")
    }
    for row in (0, COUNT - 1, COUNT, COUNT + 5, COUNT + 6, COUNT + 9):
        assert np.array_equal(collection.picture(row), decode(Path(entries[row].path).read_bytes()))
        assert entries[row].label == Path(entries[row].path).parent.name
    shutil.rmtree(third)
    assert len(search(run, [pictures / "red/0000.png"], neighbours=3, say=None)[0]) == 3
    with pytest.raises(InputError, match="from where pictures were added, can't be opened: put it back"):
        grow(run, **LENGTH)


def test_an_addition_goes_on_where_it_stopped(mine: tuple[Path, Path], tmp_path: Path) -> None:
    run = mine[1]
    new = picture_folder(tmp_path / "new", 8, seed=8)
    through = Path(shutil.copytree(run, tmp_path / "through"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "train.lock"}
    how = {**LENGTH, "checkpoint_minutes": 0}
    grow(through, new, **how)

    class Stopped(Exception):
        pass

    with pytest.MonkeyPatch.context() as patched:
        kept, calls = instdisc.training.Training.step, [0]

        def step(training: object, *words: object) -> object:
            calls[0] += 1
            if calls[0] == 4:
                raise Stopped
            return kept(training, *words)

        patched.setattr(instdisc.training.Training, "step", step)
        with pytest.raises(Stopped):
            grow(run, new, **how)
    assert {path: path.read_bytes() for path in before} == before, "the run is as it was"
    with pytest.raises(InputError, match="go on with it by --resume"):
        grow(run, new, **how)
    grow(run, new, resume=True, **how)
    assert saved_state(run) == saved_state(through)


def test_what_cannot_be_is_refused(mine: tuple[Path, Path], tmp_path: Path, said: Callable[..., str]) -> None:
    pictures, run = mine
    with pytest.raises(InputError, match="Pictures in memory"):
        grow(run, np.zeros((4, 16, 16, 3), np.uint8), say=None)
    assert "--out runs/mine" in said("train", pictures, code=1)
    assert "leave out --out" in said("train", run, "--add", "--out", tmp_path / "other", code=1)
    moved = pictures.rename(tmp_path / "moved")
    assert "name the new location with --train-source" in said("train", run, "--add", code=1)
    assert "name the new location with --train-source" in said("train", pictures, "--out", run, "--resume", code=1)
    told = said("train", run, "--add", "--train-source", moved, "--device", "cpu")
    assert "Nothing has changed" in told
    for file in moved.rglob("*.png"):
        file.unlink()
    picture_folder(moved, COUNT, seed=3)  # others, of the same names
    with pytest.raises(InputError, match="has other pictures now"):
        grow(run, train_source=moved, **LENGTH)
    assert not (run / "growing").exists()


def test_a_moved_folder_that_grew_takes_labels_along(mine: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = mine
    first, second = (str(pictures / name) for name in ("red/0000.png", "red/0003.png"))
    assign(run, {first: "cat", second: "cat"}, say=None)
    assign(run, {first: "tom"}, replace=True, say=None)
    before = hand_labels(run)
    moved = pictures.rename(tmp_path / "moved")
    shutil.copy(picture_folder(tmp_path / "new", 3, seed=8) / "red" / "0000.png", moved / "red" / "x.png")
    grow(run, train_source=moved, **LENGTH)
    now = {path: str(moved / Path(path).relative_to(pictures)) for path in before}
    assert hand_labels(run) == {now[path]: label for path, label in before.items()}
    undone = journal.undo(RunFolder(run))  # the journal came along: what was labelled before the move can be undone
    assert undone.paths == (now[first],) and not undone.kept
    assert hand_labels(run) == {now[first]: "cat", now[second]: "cat"}
    journal.undo(RunFolder(run))
    assert hand_labels(run) == {}
    assert all(os.path.isfile(one.path) for one in Collection(run).index.entries(np.arange(COUNT + 1)))
