"""The lives of the tool that must survive anything: a command each, and what anybody who opens its files finds.

Small enough to be lived thousands of times: tests/support/killing.py does, and cuts them short.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny_runs import TINY, picture_folder

from instdisc import checkpoint, cli, embeddings
from instdisc.data.loading import dataset as pictures_room
from instdisc.data.loading import pixel_cache as cache
from instdisc.data.storage.scan import read_index
from instdisc.files import read_json
from instdisc.jobs.collection import Collection
from instdisc.jobs.label import hand_labels
from instdisc.jobs.run import Run
from instdisc.runs import RunFolder
from instdisc.training import read_metrics

COUNT = 48
RECIPE = TINY | {"objective": "nce", "partition": "moving_average", "temperature": 0.3, "proximal": 1, "views": 2}
RECIPE |= {"epochs": 3, "checkpoint_minutes": 0, "monitor_epochs": 1}


@dataclass(frozen=True)
class Found:
    """What stands in a folder now. pieces: name -> digest of what a reader can get, each whole or not there.

    end: digest of the result, where the work is done. progress: what a kill may never make smaller.
    """

    pieces: dict[str, str]
    end: str | None
    progress: int


@dataclass(frozen=True)
class Life:
    """One command. words: of its command line, in a folder with a copy of what `made` left; the same words go on with
    it. look: what is found in such a folder. history: more words, with which it keeps all that it passes through; keep:
    called for the same. done: what it says, in the place of going through, where all of it was done before the kill.
    """

    words: Callable[[Path, Path], list[Any]]
    look: Callable[[Path], Found]
    history: tuple[str, ...] = ()
    keep: Callable[[], None] = lambda: None
    done: str = ""


def made(place: Path) -> None:
    """Pictures, two of them broken, and in PLACE/before a trained run with some labels."""
    for name, count, seed in (("pictures", COUNT, 0), ("others", 20, 5), ("known", 36, 7), ("asked", 18, 9)):
        picture_folder(place / name, count, seed)
    for broken in ("pictures/red/broken.png", "others/green/broken.png"):
        (place / broken).write_bytes(b"no picture")
    (place / "many").mkdir()
    for number in range(500):
        os.link(place / "pictures" / "red" / "0000.png", place / "many" / f"a picture with a name, {number:04d}.png")
    files = sorted(str(file) for file in (place / "pictures").glob("*/0*.png"))
    for name, chosen in (("few", files[::6]), ("more", files[::2])):
        lines = [f"{file},{name} {Path(file).parent.name}\n" for file in chosen]
        (place / f"{name}.csv").write_text("path,label\n" + "".join(lines))
    (place / "gone.txt").write_text("".join(f"{file}\n" for file in files[::12]))
    (place / "before").mkdir()
    cli.app([str(word) for word in _train(place, place / "before")], standalone_mode=False)
    cli.app(["label", str(place / "before" / "run"), "--from", str(place / "few.csv"), "--bank"], standalone_mode=False)


def hurried() -> None:
    """Parts, pieces and syncs so small that even these lives have many."""
    assert embeddings.write_embeddings.__kwdefaults__ is not None
    embeddings.write_embeddings.__kwdefaults__["chunk"] = 6
    pictures_room._PIECE_ROWS, cache._SYNC_SECONDS = 4, 0.0


def _keep_parts() -> None:
    embeddings.Parts.remove = lambda parts: None  # type: ignore[method-assign]


def _set(**settings: Any) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def _train(place: Path, folder: Path) -> list[Any]:
    return ["train", place / "pictures", "--out", folder / "run", "--auto-resume", "--device", "cpu", *_set(**RECIPE)]


def _fill(place: Path, folder: Path) -> list[Any]:
    more = _set(storage="cache", workers=0, epochs=0.3)
    return ["train", place / "known", *_train(place, folder)[2:], *more]


def _embed(place: Path, folder: Path) -> list[Any]:
    return ["embed", folder / "run", place / "pictures", "-o", folder / "vectors.npy", "--device", "cpu"]


def _add(place: Path, folder: Path) -> list[Any]:
    return ["index", folder / "run", "--add", place / "others", "--bank", "--device", "cpu"]


def _grow(place: Path, folder: Path) -> list[Any]:
    length = ["--epochs", "1", "--set", "checkpoint_minutes=0"]
    return ["train", folder / "run", place / "others", "--add", "--resume", "--device", "cpu", *length]


def _purge(place: Path, folder: Path) -> list[Any]:
    return ["index", folder / "run", "--purge", place / "gone.txt", "--device", "cpu"]


def _label(place: Path, folder: Path) -> list[Any]:
    out = ["-o", folder / "labels.parquet", "--device", "cpu"]
    return ["label", folder / "run", "--from", place / "more.csv", "--replace", *out]


def _table(place: Path, folder: Path) -> list[Any]:
    words = ["reproduce", "partition", "--scale", "tiny", "--seeds", "1", "--out", folder / "table", "--device", "cpu"]
    settings = {"width": 4, "dim": 8, "batch": 16, "epochs": 1, "precision": "float32", "checkpoint_minutes": 0}
    return [*words, "--train", place / "known", "--test", place / "asked", *_set(**settings)]


# ---------------------------------------------------------------------------------------------------------------------
# What is found


def digest(*parts: Any) -> str:
    """A short hash of arrays, tensors and what JSON can hold."""
    found = hashlib.sha256()
    for part in parts:
        array = part if isinstance(part, np.ndarray) else None
        found.update(array.tobytes() if array is not None else json.dumps(part, default=str).encode())
    return found.hexdigest()[:16]


def _of_run(folder: RunFolder) -> Found:
    """Every checkpoint and every line of the metrics. Any damage raises: nothing half-written has a name."""
    pieces: dict[str, str] = {}
    step = 0
    if folder.exists():
        folder.read_config()
        pieces["instances"] = digest(folder.instances.read_bytes())
    for path in sorted(folder.checkpoints.glob("step-*")):
        saved = checkpoint.open_checkpoint(path)
        groups = [saved.tensors(name) for name in ("encoder", "objective", "optimizer")]
        groups.append(saved.rows("bank", 0, saved.facts["bank"]["instances"]))
        tensors = [[name, values.numpy().tobytes().hex()] for group in groups for name, values in sorted(group.items())]
        pieces[path.name] = digest(tensors, saved.facts["bank"], saved.facts["metrics"])
        step = saved.step
    if step:
        checkpoint.load_encoder(folder.path)
    lines = read_metrics(folder)
    for line in lines:
        kind = "losses" if "losses" in line else "measured"
        name = f"{kind} {line['step']}"
        if name in pieces:
            raise AssertionError(f"{name} stands twice in {folder.metrics}")
        pieces[name] = digest(line[kind], line.get("lr"))
    last = max((line["step"] for line in lines), default=0)
    if last > step + 1:
        raise AssertionError(f"metrics of step {last}, and no checkpoint after step {step}")
    return Found(pieces, digest(pieces[f"step-{step:09d}"]) if step else None, step)


def _trained(folder: Path) -> Found:
    run = RunFolder(folder / "run")
    found = _of_run(run)
    total = RECIPE["epochs"] * (COUNT // RECIPE["batch"])
    lines = sorted(name for name in found.pieces if not name.startswith("step-"))
    whole = digest(found.end, [[name, found.pieces[name]] for name in lines])
    return Found(found.pieces, whole if found.progress == total else None, found.progress)


def _filled(folder: Path) -> Found:
    """Pixels whose row is marked as stored, and the run that was made of them."""
    pieces = {}
    for store in (folder / "cache" / "instdisc" / "pixels").glob("*"):
        if not (store / "header.json").is_file():
            continue
        header = read_json(store / "header.json")
        count, size = header["count"], header["size"]
        pixels = np.fromfile(store / "pixels.u8", np.uint8).reshape(count, 3, size, size)
        aspects, state = np.fromfile(store / "aspects.f32", np.float32), np.fromfile(store / "state.u8", np.uint8)
        for row in np.flatnonzero(state).tolist():
            pieces[f"row {row}"] = digest(state[row], *([pixels[row], aspects[row]] if state[row] == 1 else []))
    run = _of_run(RunFolder(folder / "run"))
    return Found(pieces | run.pieces, run.end, len(pieces) + run.progress)


def _scanned(folder: Path) -> Found:
    pieces = {}
    for file in (folder / "cache" / "instdisc" / "index").glob("*.arrow"):
        table = read_index(file)
        if table is None:
            raise AssertionError(f"{file} can't be read")
        pieces["index"] = digest(
            table.to_pydict(), {str(key): str(value) for key, value in table.schema.metadata.items()}
        )
    return Found(pieces, pieces.get("index"), len(pieces))


def _embedded(folder: Path) -> Found:
    pieces = {}
    for part in sorted((folder / "vectors.npy.parts").glob("part-*.npz")):
        with np.load(part) as arrays:
            pieces[part.name] = digest(arrays["rows"], arrays["vectors"], arrays["reasons"].tolist())
    parts, out = len(pieces), folder / "vectors.npy"
    if out.is_file():
        opened = embeddings.open_embeddings(out)
        pieces["vectors"] = digest(np.asarray(opened.vectors), opened.ids.to_pylist(), opened.labels)
    return Found(pieces, pieces.get("vectors"), 1000 if out.is_file() else parts)


def _collection(folder: Path) -> tuple[str, int]:
    collection = Collection(folder / "run")
    rows = np.arange(len(collection.index))
    entries = [(entry.id, entry.path) for entry in collection.index.entries(rows)]
    return digest(collection.index.vectors(rows).numpy(), entries), len(rows)


def _added(folder: Path) -> Found:
    found, count = _collection(folder)
    return Found({"collection": found}, found if count > COUNT else None, count)


def _whole(folder: Path) -> tuple[str, int]:
    """The collection, its labels, and every checkpoint: together, as they belong to each other."""
    run = RunFolder(folder / "run")
    found, count = _collection(folder)  # an interrupted change is ended by whoever opens the folder
    saved = [checkpoint.open_checkpoint(path) for path in sorted(run.checkpoints.glob("step-*"))]
    rows = [
        [one.step, one.rows("bank", 0, one.facts["bank"]["instances"])["rows"].numpy().tobytes().hex()] for one in saved
    ]
    if any(one.facts["bank"]["instances"] != len(Run(run.path).rows) for one in saved):
        raise AssertionError("a checkpoint has other rows than instances.arrow")
    return digest(found, rows, sorted(hand_labels(folder / "run").items())), count


def _grown(folder: Path) -> Found:
    found, count = _whole(folder)
    return Found({"run": found}, found if count > COUNT else None, count)


def _purged(folder: Path) -> Found:
    found, count = _whole(folder)
    return Found({"run": found}, found if count < COUNT else None, COUNT - count)


def _labelled(folder: Path) -> Found:
    labels = hand_labels(folder / "run")
    pieces = {"labels": digest(sorted(labels.items())), "collection": _collection(folder)[0]}
    saved = folder / "labels.parquet"
    if saved.is_file():
        import pyarrow.parquet as pq

        pieces["saved"] = digest(pq.read_table(saved).to_pydict())
    return Found(pieces, digest(pieces) if saved.is_file() else None, len(labels))


def _reproduced(folder: Path) -> Found:
    pieces, progress = {}, 0
    for run in sorted((folder / "table" / "runs").glob("*")):
        found = _of_run(RunFolder(run))
        pieces |= {f"{run.name} {name}": value for name, value in found.pieces.items()}
        progress += found.progress
        if (run / "measured.json").is_file():
            measured = read_json(run / "measured.json")
            pieces[f"{run.name} measured"] = digest([measured[name] for name in ("knn", "svm", "svm_cost")])
            progress += 1
    table = folder / "table" / "table.json"
    if table.is_file():
        pieces["table"] = digest([[row[name] for name in ("name", "knn", "svm")] for row in read_json(table)["rows"]])
        done = [folder / "table" / f"table.{ending}" for ending in ("md", "png", "svg")]
        return Found(pieces, pieces["table"] if all(file.is_file() for file in done) else None, progress)
    return Found(pieces, None, progress)


_ALL = ("--set", "keep_checkpoints=99")
LIVES = {
    "training": Life(_train, _trained, _ALL),
    "embed": Life(_embed, _embedded, keep=_keep_parts),
    "scan": Life(lambda place, folder: ["info", place / "many"], _scanned),
    "cache": Life(_fill, _filled, _ALL),
    "index add": Life(_add, _added),
    "growing": Life(_grow, _grown),
    "purge": Life(_purge, _purged, done="unless it was erased before"),
    "labels": Life(_label, _labelled),
    "table": Life(_table, _reproduced, _ALL),
}
FROM_A_RUN = ("embed", "index add", "growing", "purge", "labels")  # the others start from nothing
