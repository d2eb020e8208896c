"""The catalogue of a run's collection, read without torch: what the page shows while the vectors are being opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import safe_open

from instdisc.data.decoding.decode import decode
from instdisc.errors import InputError
from instdisc.files import read_json
from instdisc.jobs.run import Run
from instdisc.search.catalogue import Catalogue, split_marks


def described_pictures(run: Run, added: Sequence[Any] = ()) -> tuple[pa.Table, np.ndarray, list[str]]:
    """(id and location, label as a position in the names or -1, names) of a run's pictures, then of those added.

    added: for each part a table with the columns id, location, label ("" for none). Labels of the run's own pictures
    are those of their source, where it can be opened.
    """
    tables = [run.instances.select(["id", "location"])]
    source = run.source() if run.has_pictures() else None
    names = list(source.label_names or []) if source is not None else []
    own = None if source is None else source.labels
    labels = [np.full(len(run.rows), -1) if own is None else own[run.rows]]
    for pictures in added:
        tables.append(pictures.select(["id", "location"]))
        given = pictures["label"].to_pylist()
        names += [name for name in dict.fromkeys(given) if name and name not in names]
        numbers = {name: number for number, name in enumerate(names)} | {"": -1}
        labels.append(np.array([numbers[name] for name in given], dtype=np.int64))
    return _together(tables), np.concatenate(labels), names


def _together(tables: list[pa.Table]) -> pa.Table:
    """One table; names that are not UTF-8 in any of them make the columns binary in all."""
    kind = pa.large_string()
    if any(not pa.types.is_large_string(column.type) for table in tables for column in table.itercolumns()):
        kind = pa.large_binary()
    schema = pa.schema([("id", kind), ("location", kind)])
    return pa.concat_tables([table.cast(schema) for table in tables])


class Listed:
    """A run's own pictures as the page shows them before torch is loaded: all of its collection, but for the vectors.

    dim, vectors, recomputed: of the vectors that it will have, as in `serve.opened.Opened`.
    Raises an error of some kind where pictures were added, or something can't be read: the whole is waited for then.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._source, self.folder = run, run.source(), run.folder
        pictures, labels, names = described_pictures(run)
        removed, tags = np.zeros(len(pictures), dtype=bool), dict[str, np.ndarray]()
        self.dim, self.vectors, self.recomputed = int(run.facts["encoder"]["dim"]), "embedding", run.given
        folder = run.folder.index
        if (folder / "index.json").is_file():
            changed = read_json(folder / "index.json")
            if any(part["source"] is not None for part in changed["parts"]):
                raise InputError("Pictures were added.")
            with pa.memory_map(os.fsencode(folder / changed["marks"])) as file:
                marks = pa.ipc.open_file(file).read_all()
            marks.validate(full=True)
            gone, tags = split_marks(marks)
            removed[gone] = True
            if changed["recomputed"] is not None:
                self.recomputed, self.vectors = True, "search" if changed.get("whitening") else "embedding"
                with safe_open(folder / f"{changed['recomputed']}.safetensors", framework="numpy") as file:
                    self.dim = int(file.get_slice("vectors").get_shape()[1])
        self.index = Catalogue(pictures, labels=labels, label_names=names, removed=removed, tags=tags)
        given = {path: label for path, (label, _) in run.hand_labels().items()}
        self.index.set_labels(given)
        rows = self.index.rows_of(list(given)).tolist()
        self._hand = {row: label for row, label in zip(rows, given.values(), strict=True) if row >= 0}

    def hand_labels(self) -> dict[int, str]:
        """row -> label given by hand."""
        return self._hand

    def location(self, row: int) -> str:
        """Where a picture's file is now."""
        return self._source.location(int(self._run.rows[row]))

    def picture(self, row: int) -> np.ndarray:
        """Pixels (height, width, 3) uint8; raises UnreadableError where it is unreadable."""
        return decode(self._source.read(int(self._run.rows[row])))
