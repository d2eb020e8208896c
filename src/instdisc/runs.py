"""The names of the files in a run folder, and how one is written whole.

    RUN/config.json        every setting, as it was used          RUN/metrics.jsonl     one line for each logged step
    RUN/instances.arrow    which picture each bank row belongs to RUN/quarantine.csv    pictures that could not be read
    RUN/checkpoints/       the last whole states of the run       RUN/evaluation.json   what `evaluate` measured
    RUN/search_vectors.safetensors    the map from the encoder's features to the vectors that people search by
    RUN/tensorboard/       the metrics for TensorBoard            RUN/diagnosis/        what was saved at a NaN loss
    RUN/index/             pictures added and removed, recomputed vectors, tags: what `index` did; each one's neighbours
    RUN/duplicates/        what `duplicates` found              RUN/outliers/         what `outliers` found
    RUN/labels/            labels given by hand; what `label` proposes    RUN/map/    the collection in the plane
    RUN/train.lock         who trains here, while it is held

Training and everything after it meet in these files only.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from instdisc.errors import InputError, advice, is_shortage

FORMAT = 1  # of the whole folder: a newer one is refused, an older one is brought up to date when it is opened


class RunFolder:
    """Paths inside one run folder. Nothing is made or read until it is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.instances = self.path / "instances.arrow"
        self.lock = self.path / "train.lock"
        self.metrics = self.path / "metrics.jsonl"
        self.quarantine = self.path / "quarantine.csv"
        self.checkpoints = self.path / "checkpoints"
        self.search_vectors = self.path / "search_vectors.safetensors"
        self.evaluation = self.path / "evaluation.json"
        self.tensorboard = self.path / "tensorboard"
        self.diagnosis = self.path / "diagnosis"
        self.index = self.path / "index"
        self.duplicates = self.path / "duplicates"
        self.outliers = self.path / "outliers"
        self.map = self.path / "map" / "map.safetensors"
        self.labels = self.path / "labels"
        self.hand_labels = self.labels / "hand.csv"
        self.neighbour_graph = self.index / "graph.safetensors"
        self.neighbours_sheet = self.path / "neighbours.png"
        self.curves = self.path / "curves.png"
        self.few_labels_plot = self.path / "semi.png"
        self.few_labels_draws = self.path / "semi.json"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    def read_config(self) -> dict[str, Any]:
        """config.json as a dict; InputError when the folder is no run, is damaged, or is newer than this version."""
        if not self.path.is_dir():
            raise InputError(
                f"There is no run folder at {self.path}: give the folder that `instdisc train --out` made."
            )
        if not self.config.is_file():
            raise InputError(f"{self.path} is not a run folder: it has no config.json.")
        require_utf8(self.path)
        config = read_json(self.config)
        found = config.get("format")
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise InputError(f"{self.config} does not say its format: the run folder is damaged, or of something else.")
        if found > FORMAT:
            raise InputError(
                f"{self.path} was made by a newer version of instdisc (format {found}, this version reads up to "
                f"{FORMAT}): upgrade instdisc to open it."
            )
        return config


def require_utf8(path: Path) -> None:
    """InputError for a path that is not UTF-8, which safetensors and ONNX can't open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path} is not UTF-8, as this folder's name must be: choose another, or rename it.") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError with the file's name when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if is_shortage(error):
            raise
        raise InputError(
            f"{path} can't be read ({error}): the file is damaged, restore it or start a new run."
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: a JSON object was expected.")
    return value


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: after a rename, a power cut can't undo it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def measured(path: Path) -> dict[str, Any]:
    """The length of a file in bytes and its SHA-256, to know later that it is the same."""
    with open(path, "rb") as content:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with what this lock file stands for: other processes wait here. A file system without locks has none.

    The system lets go of the lock when the process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        _lock(file, wait=True)
        yield


@contextmanager
def held(path: Path, doing: str) -> Iterator[None]:
    """`locked` that does not wait: InputError, which says who is there, where another process is."""
    who = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with path.open("a+", encoding="utf-8") as file:
        if not _lock(file, wait=False):
            file.seek(0)
            other = file.read().strip() or "another process"
            raise InputError(f"{path.parent} is held by {other}, which is {doing}: wait for its end, or end it.")
        file.truncate(0)
        file.write(who)
        file.flush()
        yield


def _lock(file: IO[Any], *, wait: bool) -> bool:
    """Whether nobody else has the lock; true on a file system without locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**30)  # far behind what is written there: Windows lets nobody read a locked byte
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return wait
    except OSError:
        pass
    return True


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part: aside, synced, renamed."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise InputError(f"{path} could not be written ({error.strerror or error}): {advice(error)}.") from None
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # of a name on disk that is not UTF-8: JSON's escapes
