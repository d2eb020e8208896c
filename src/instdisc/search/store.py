"""What was done to a run's collection after the training, on disk: pictures added and removed, new vectors, tags.

    RUN/index/index.json               what counts: names, lengths and SHA-256 of the files below; written last, whole
    RUN/index/part-000001.safetensors  "vectors" (rows, dim): memory-mapped when it is opened; "stamps" (rows, 2)
    RUN/index/part-000001.arrow        the pictures of these rows: id, location, label
    RUN/index/marks-000002.arrow       row, tag: the tags; a picture that was removed has the tag ""

A kill at any moment leaves what index.json named before. Files that it does not name are removed at the next change.
The bank's rows are not copied: they stay in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from instdisc.errors import InputError, advice, is_shortage
from instdisc.files import file_digest, read_json, replacing, save_tensors, write_arrow, write_json
from instdisc.runs import FORMAT
from instdisc.search.catalogue import split_marks
from instdisc.shapes import Float, Int

_INDEX = "index.json"
_OURS = re.compile(r"(part|marks)-(\d{6,})\.(safetensors|arrow)")
# What a kill leaves of safetensors' own writing, and of ours.
_LEFT = re.compile(rf"\.tmp\w{{6}}|\.({re.escape(_INDEX)}|{_OURS.pattern})(\.\w+)?\.tmp")


@dataclass(frozen=True)
class Part:
    """Vectors that came together, and the pictures they belong to.

    pictures: columns id, location, label (text, "" = none); None for the run's own pictures.
    source: how to open where they stand, as config.json has it. name: of its files; "" = not saved yet.
    stamps: `Source.stamps` of the pictures when the vectors were made; None where that is not known.
    digest: SHA-256 of the file of vectors; "" = not saved yet.
    """

    vectors: Float[Tensor, "rows dim"]
    pictures: pa.Table | None = None
    source: Mapping[str, Any] | None = None
    name: str = ""
    stamps: Int[np.ndarray, "rows 2"] | None = None
    digest: str = ""


@dataclass(frozen=True)
class Changes:
    """All that was changed. step: of the checkpoint whose encoder made the vectors.

    recomputed: vectors in the place of the bank's rows. removed: rows, ascending. tags: name -> rows, ascending.
    whitening: the digest of the map that made all of them search vectors; "" where they are embeddings.
    """

    step: int
    recomputed: Part | None = None
    added: tuple[Part, ...] = ()
    removed: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    tags: Mapping[str, np.ndarray] = field(default_factory=dict)
    whitening: str = ""

    @property
    def vectors(self) -> tuple[str | None, list[str], str]:
        """What names its vectors: the same where only hidden pictures and tags differ."""
        return self.recomputed.name if self.recomputed else None, [part.name for part in self.added], self.whitening


def read_changes(folder: Path) -> Changes | None:
    """What `write_changes` wrote in this folder; None where nothing was. Every file is checked against its SHA-256.

    Raises InputError for a damaged or newer index.
    """
    index = folder / _INDEX
    while index.is_file():
        named = read_json(index)
        try:
            return _read(folder, dict(named))
        except InputError:
            if read_json(index) == named:
                raise  # otherwise another process has just changed it: look again
    return None


def write_changes(folder: Path, changes: Changes) -> Changes:
    """Save the changes: what is new is written first, then the index as a whole, then what it names no more goes.

    Only inside `files.locked`, from the reading to the writing. Raises InputError where the disk can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(found[2]) for found in map(_OURS.fullmatch, os.listdir(folder)) if found), default=0)
        parts = []
        for part in ([changes.recomputed] if changes.recomputed else []) + list(changes.added):
            if not part.name:
                part = replace(part, name=f"part-{number:06d}")
                _save_vectors(part, folder / f"{part.name}.safetensors")
                if part.pictures is not None:
                    write_arrow(folder / f"{part.name}.arrow", part.pictures)
                number += 1
            parts.append(part)
        marks = f"marks-{number:06d}.arrow"
        write_arrow(folder / marks, _marks(changes))
        files = {name: file_digest(folder / name) for name in _files(parts, marks)}
        named = {
            "format": FORMAT,
            "step": changes.step,
            "whitening": changes.whitening,
            "recomputed": parts[0].name if changes.recomputed else None,
            "parts": [{"name": part.name, "source": part.source} for part in parts],
            "marks": marks,
            "files": files,
        }
        write_json(folder / _INDEX, named | {"sha256": _digest(named)})
        parts = [replace(part, digest=files[f"{part.name}.safetensors"]["sha256"]) for part in parts]
    except OSError as error:
        raise InputError(f"{folder} could not be written ({error.strerror or error}): {advice(error)}.") from None
    for file in folder.iterdir():
        if (_OURS.fullmatch(file.name) and file.name not in files) or _LEFT.fullmatch(file.name):
            file.unlink(missing_ok=True)
    if changes.recomputed:
        return replace(changes, recomputed=parts[0], added=tuple(parts[1:]))
    return replace(changes, added=tuple(parts))


def _read(folder: Path, named: dict[str, Any]) -> Changes:
    found = named.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise InputError(f"{folder} was made by a newer version of instdisc (format {found}): upgrade instdisc.")
    try:
        if named.pop("sha256") != _digest(named):
            raise InputError(_damaged(folder, f"{_INDEX} was changed"))
        for name, expected in named["files"].items():
            if not _OURS.fullmatch(name) or file_digest(folder / name) != expected:
                raise InputError(_damaged(folder, f"{name} was changed"))
        parts = [_open(folder, one["name"], one["source"], named["files"]) for one in named["parts"]]
        marks = _load_table(folder / named["marks"])
        removed, tags = split_marks(marks)
        recomputed = parts.pop(0) if named["recomputed"] else None
        return Changes(
            step=int(named["step"]),
            recomputed=recomputed,
            added=tuple(parts),
            removed=removed,
            tags=tags,
            whitening=str(named.get("whitening", "")),  # versions without search vectors did not say
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError, pa.ArrowException) as error:
        if is_shortage(error):
            raise
        raise InputError(_damaged(folder, error)) from error


def _damaged(folder: Path, reason: object) -> str:
    return (
        f"{folder} is damaged ({reason}): restore it, or delete that folder to look through the run's own pictures "
        "by the rows of its bank again."
    )


def _open(folder: Path, name: str, source: Any, files: Mapping[str, Any]) -> Part:
    with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
        vectors = file.get_tensor("vectors")
        stamps = file.get_tensor("stamps").numpy() if "stamps" in file.keys() else None  # noqa: SIM118
    pictures = None if source is None else _load_table(folder / f"{name}.arrow")
    return Part(vectors, pictures, source, name, stamps, files[f"{name}.safetensors"]["sha256"])


def _files(parts: Iterable[Part], marks: str) -> list[str]:
    tables = [f"{part.name}.arrow" for part in parts if part.source is not None]
    return [*(f"{part.name}.safetensors" for part in parts), *tables, marks]


def _marks(changes: Changes) -> pa.Table:
    kinds = {"": changes.removed, **changes.tags}
    rows = np.concatenate([np.asarray(rows, np.int64) for rows in kinds.values()])
    names = [name for name, marked in kinds.items() for _ in range(len(marked))]
    return pa.table({"row": rows, "tag": pa.array(names, pa.string()).dictionary_encode()})


def _save_vectors(part: Part, path: Path) -> None:
    stamps = {} if part.stamps is None else {"stamps": torch.from_numpy(np.ascontiguousarray(part.stamps))}
    with replacing(path) as temporary:
        save_tensors({"vectors": part.vectors, **stamps}, temporary)


def _load_table(path: Path) -> pa.Table:
    with pa.memory_map(os.fsencode(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    table.validate(full=True)  # Arrow follows offsets out of a stranger's file into a crash
    return table


def _digest(named: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
