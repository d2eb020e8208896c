"""A purged picture is nowhere in the run folder: its vectors, pixels, thumbnail, id, path, labels, by their bytes."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc.checkpoint import latest
from instdisc.data.storage.scan import cache_folder
from instdisc.errors import InputError
from instdisc.jobs import index, sets
from instdisc.jobs.collection import Collection
from instdisc.jobs.copies import look_at_collection
from instdisc.jobs.journal import undo
from instdisc.jobs.label import assign, hand_labels
from instdisc.jobs.purge import purge
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

COUNT, MORE = 40, 9
GONE, GONE_ADDED = "green/0013.png", "red/0003.png"  # one of the training, one that was added


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for these tests alone: others keep pixels of the same made pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> tuple[Path, Path, Path]:
    """Pictures, others that were added, and a run that holds all there can be of them."""
    folder = tmp_path_factory.mktemp("purge")
    pictures, others = picture_folder(folder / "pictures", COUNT), picture_folder(folder / "others", MORE, seed=5)
    settings = tiny(epochs=2, storage="cache", workers=0, keep_checkpoints=2, checkpoint_minutes=0)
    run = train(pictures, folder / "run", settings, say=None).path
    index.add(run, others, say=None)
    index.tag(run, "some", where="*/00?3.png")
    index.remove(run, where="blue/0002.png", say=None)
    paths = {str(pictures / GONE): "one", str(others / GONE_ADDED): "two", str(pictures / "red/0000.png"): "one"}
    assign(run, paths, say=None)
    look_at_collection(Collection(run))  # thumbnails
    place = RunFolder(run)
    place.map.parent.mkdir()
    rows = torch.arange(COUNT + MORE)
    step = latest(place.checkpoints)
    assert step is not None
    points = torch.rand(COUNT + MORE, 2)
    save_file({"rows": rows, "points": points}, place.map, metadata={"step": str(step.step)})
    place.duplicates.mkdir()
    (place.duplicates / "remove.txt").write_text(f"{pictures / GONE}\n{pictures / 'red/0000.png'}\n")
    (place.duplicates / "duplicates.png").write_bytes(b"a sheet with pictures")
    place.outliers.mkdir()
    (place.outliers / "outliers.csv").write_text(f"id,path\n{GONE},{pictures / GONE}\nred/0000.png,x\n")
    (place.index / "added.npy").write_bytes(b"unfinished")
    sets.keep(place, "some", [GONE, "red/0000.png", GONE_ADDED], f"{GONE} and what is like it")
    return pictures, others, run


def held(run: Path, needles: dict[str, bytes]) -> dict[str, list[str]]:
    """Which files of the run folder, and of the cache of pixels, hold each: by their bytes."""
    files = [path for folder in (run, cache_folder() / "pixels") for path in folder.rglob("*") if path.is_file()]
    contents = {path.name: path.read_bytes() for path in files}
    return {what: [name for name, content in contents.items() if needle in content] for what, needle in needles.items()}


def needles_of(run: Path, pictures: Path, others: Path) -> dict[str, bytes]:
    """All that a run knows of both pictures, as bytes."""
    collection, encoder = Collection(run), instdisc.load(run)
    paths = [pictures / GONE, others / GONE_ADDED]
    ids = [entry.id for entry in collection.index.entries(collection.index.rows_of([str(path) for path in paths]))]
    row = int(collection.index.rows_of([str(paths[0])])[0])
    found: dict[str, bytes] = {}
    saved = latest(RunFolder(run).checkpoints)
    assert saved is not None
    vectors = {"bank": saved.rows("bank", row, row + 1)["rows"][0]}
    for number, path in enumerate(paths):
        found[f"path {number}"], found[f"id {number}"] = str(path).encode(), ids[number].encode()
        mine = collection.index.rows_of([str(path)])
        vectors[f"search {number}"] = collection.index.vectors(mine)[0]
        vectors[f"embedding {number}"] = encoder.embed([str(path)], vectors="embedding")[0]
    for name, vector in vectors.items():
        found[name], found[f"{name} half"] = vector.numpy().tobytes(), vector.half().numpy().tobytes()
    from instdisc.data.decoding.decode import decode

    pixels = decode(paths[0].read_bytes())
    found["stored pixels"] = pixels.transpose(2, 0, 1).tobytes()
    looked = look_at_collection(collection).stored.records
    there = np.flatnonzero(~collection.index.removed)
    found["thumbnail"] = looked[int(np.flatnonzero(there == row)[0])]["grey"].tobytes()
    return found


def test_nothing_of_a_purged_picture_is_left(trained: tuple[Path, Path, Path], run: Path) -> None:
    pictures, others, _ = trained
    needles = needles_of(run, pictures, others)
    before = held(run, needles)
    known = [name for name in needles if not name.startswith("embedding") and not name.endswith("half")]
    assert all(before[name] for name in known), before
    files = {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (*pictures.rglob("*.png"), *others.rglob("*.png"))
    }
    earlier, old_labels = Collection(run), hand_labels(run)
    rows = earlier.index.rows_of([str(pictures / GONE), str(others / GONE_ADDED)])
    stay = np.setdiff1d(np.arange(COUNT + MORE), rows)
    vectors, ids = earlier.index.vectors(stay), [entry.id for entry in earlier.index.entries(stay)]
    tagged = {entry.id for entry in earlier.index.entries(earlier.index.tags["some"])}
    points = load_file(RunFolder(run).map)["points"]
    said: list[str] = []
    assert purge(run, [str(pictures / GONE), str(others / GONE_ADDED)], say=said.append) == 2
    after = held(run, needles)
    assert {name: places for name, places in after.items() if places} == {}
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == files, (
        "no picture file is touched"
    )
    assert "still there" in said[-1]
    left = sets.load(RunFolder(run), "some")
    assert set(left.ids) == {"red/0000.png", *ids} & {GONE, "red/0000.png", GONE_ADDED} and left.origin == ""

    now = Collection(run)
    assert len(now.index) == COUNT + MORE - 2
    assert torch.equal(now.index.vectors(np.arange(len(now.index))), vectors)
    assert [entry.id for entry in now.index.entries(np.arange(len(now.index)))] == ids
    assert {entry.id for entry in now.index.entries(now.index.tags["some"])} == tagged - {GONE, "others/" + GONE_ADDED}
    assert [entry.id for entry in now.index.entries(np.flatnonzero(now.index.removed))] == ["blue/0002.png"]
    assert hand_labels(run) == {path: name for path, name in old_labels.items() if path.endswith("red/0000.png")}
    plane = load_file(RunFolder(run).map)
    assert torch.equal(plane["points"], points[torch.from_numpy(stay)]) and plane["rows"].tolist() == list(
        range(len(stay))
    )
    assert (run / "duplicates" / "remove.txt").read_text() == f"{pictures / 'red/0000.png'}\n"
    lines = (run / "outliers" / "outliers.csv").read_text().splitlines()
    assert list(csv.reader(lines)) == [["id", "path"], ["red/0000.png", "x"]]
    (receipt,) = (run / "purged").iterdir()
    told = json.loads(receipt.read_text())
    assert (
        told["pictures"] == 2 and "instances.arrow" in told["erased"] and "duplicates/duplicates.png" in told["removed"]
    )
    # All goes on: search, resume, and picture after picture is the right one.
    (found,) = search(run, [pictures / "red/0000.png"], neighbours=5)
    assert len(found) == 5
    for row in (12, 13, 38, 39):
        path = Path(now.index.entries([row])[0].path)
        assert np.array_equal(now.picture(row), np.asarray(instdisc.data.decoding.decode.decode(path.read_bytes())))
    again = train(
        pictures, run, tiny(epochs=2, storage="cache", workers=0, checkpoint_minutes=0), resume=True, say=None
    )
    assert again.finished and again.instances == COUNT - 1


def test_every_checkpoint_is_rewritten_and_whole(trained: tuple[Path, Path, Path], run: Path) -> None:
    before = {path.name: load_file(next(path.glob("bank-*"))) for path in sorted((run / "checkpoints").iterdir())}
    weights = {path: path.read_bytes() for path in (run / "checkpoints").glob("*/encoder.safetensors")}
    assert len(before) == 2
    purge(run, ["red/0000.png", GONE], say=None)
    for path in sorted((run / "checkpoints").iterdir()):
        saved = instdisc.checkpoint.open_checkpoint(path)  # every length and SHA-256
        rows = [row for row in range(COUNT) if row not in _rows(trained, ["red/0000.png", GONE])]
        left = saved.rows("bank", 0, COUNT - 2)["rows"]
        assert torch.equal(left, before[path.name]["rows"][rows]) and saved.facts["bank"]["instances"] == COUNT - 2
    assert all(path.read_bytes() == content for path, content in weights.items())


def _rows(trained: tuple[Path, Path, Path], ids: list[str]) -> list[int]:
    names = sorted(path.relative_to(trained[0]).as_posix() for path in trained[0].rglob("*.png"))
    return [names.index(name) for name in ids]


def test_a_deleted_file_locks_nothing_out_afterwards(
    trained: tuple[Path, Path, Path], run: Path, tmp_path: Path
) -> None:
    pictures = Path(shutil.copytree(trained[0], tmp_path / "pictures"))
    purge(run, [str(pictures / GONE)], train_source=pictures, say=None)
    (pictures / GONE).unlink()
    said: list[str] = []
    (found,) = search(run, [pictures / "red/0000.png"], neighbours=3, train_source=pictures, say=said.append)
    assert len(found) == 3 and not any("gone" in line or "new" in line for line in said), said


def test_a_journal_that_knows_labels_to_the_byte_forgets_too(trained: tuple[Path, Path, Path], run: Path) -> None:
    """hand.csv was edited by hand: the next act keeps it whole in the journal, with the picture that goes."""
    file = run / "labels" / "hand.csv"
    file.write_bytes(file.read_bytes() + b"\n")
    kept = str(trained[0] / "red/0000.png")
    assign(run, {kept: "another"}, replace=True, say=None)
    journal = run / "labels" / "journal.jsonl"
    name = json.dumps(str(trained[0] / GONE))[1:-1]
    assert name in journal.read_text().splitlines()[-1]
    purge(run, [str(trained[0] / GONE)], say=None)
    assert name not in journal.read_text()
    assert undo(RunFolder(run)).paths == (kept,) and hand_labels(run)[kept] == "one"


def test_the_command_takes_lists_and_names(
    trained: tuple[Path, Path, Path],
    run: Path,
    tmp_path: Path,
    said: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "list.txt").write_text(f"{trained[0] / GONE}\nblue/0002.png\nnowhere.png\n")
    told = said("index", run, "--purge", tmp_path / "list.txt", "--purge", "red/0006.png")
    assert "3 pictures were erased" in told and "1 of the 4 are not in the run, the first is nowhere.png" in told
    again = said("index", run, "--purge", GONE, code=1)
    assert "has one of these names, unless it was erased before: `instdisc search`" in again, again
    fresh = Path(shutil.copytree(trained[2], tmp_path / "fresh"))
    assert "No picture of the run has one of these names" in said("index", fresh, "--purge", "nowhere.png", code=1)
    every = [entry.path for entry in Collection(fresh).index.entries(np.arange(COUNT + MORE))]
    with pytest.raises(InputError, match="delete the folder"):
        purge(fresh, every)
