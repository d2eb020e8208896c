"""What is known of the pictures of a collection without their vectors: ids, positions, labels, tags, what was removed.

    catalogue = Catalogue(pictures, labels=codes, label_names=names)
    catalogue.entries(np.flatnonzero(catalogue.matching(where="2024/*")))

This file must not import torch, nor what imports it: the page shows pictures while torch is being loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from instdisc.data.sources.spelling import Names, match
from instdisc.errors import InputError

_FEW = 200  # rows that are looked up one by one


@dataclass(frozen=True)
class Entry:
    """What is known of a picture. row: its number; id, path: as its source calls it; label: "" = none."""

    row: int
    id: str
    path: str
    label: str


class Catalogue:
    """pictures: columns id and location, one line a row. `Index` is one with vectors.

    labels: int64 (rows,), the position in `label_names`, -1 for none. removed: bool (rows,). tags: name -> its rows.
    """

    def __init__(
        self,
        pictures: pa.Table,
        *,
        labels: np.ndarray | None = None,
        label_names: Sequence[str] = (),
        removed: np.ndarray | None = None,
        tags: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.pictures = pictures
        self.labels = np.full(len(pictures), -1) if labels is None else labels
        self.label_names = list(label_names)
        self.labels_problem: str | None = None  # why the labels of the pictures can't be used
        self.removed = np.zeros(len(pictures), dtype=bool) if removed is None else removed
        self.tags = dict(tags or {})

    def __len__(self) -> int:
        """Rows, those of removed pictures included."""
        return len(self.pictures)

    def set_labels(self, labels: Mapping[str, str]) -> None:
        """Put labels by hand, path -> label, over those that the pictures have; a path that is none is passed over."""
        self.label_names += sorted(set(labels.values()) - set(self.label_names))
        for row, label in zip(self.rows_of(list(labels)).tolist(), labels.values(), strict=True):
            if row >= 0:
                self.labels[row] = self.label_names.index(label)

    def entries(self, rows: Sequence[int] | np.ndarray) -> list[Entry]:
        """What is known of some rows, in their order."""
        if (
            0 < len(rows) <= _FEW
        ):  # `take` first joins all chunks of a column: for ten million rows, a fifth of a second
            chosen = pa.concat_tables([self.pictures.slice(int(row), 1) for row in rows])
        else:
            chosen = self.pictures.take(pa.array(np.asarray(rows, dtype=np.int64)))
        names = [*self.label_names, ""]  # the last for -1
        return [
            Entry(int(row), os.fsdecode(identifier), os.fsdecode(location), names[self.labels[row]])
            for row, identifier, location in zip(
                rows, chosen["id"].to_pylist(), chosen["location"].to_pylist(), strict=True
            )
        ]

    def rows_of(self, locations: Sequence[str]) -> Int[np.ndarray, " asked"]:
        """The row of the picture at each path or URL, the last where there are several; -1 where none is left."""
        return self._rows("location", locations)

    def rows_with(self, ids: Sequence[str]) -> Int[np.ndarray, " asked"]:
        """The row of the picture that has each id; -1 where none is left."""
        return self._rows("id", ids)

    def _rows(self, column: str, names: Sequence[str]) -> Int[np.ndarray, " asked"]:
        if not len(names):
            return np.zeros(0, np.int64)
        positions = {name: position for position, name in enumerate(dict.fromkeys(names))}
        wanted = pa.array([os.fsencode(one) for one in positions], pa.large_binary())
        found = pc.index_in(pc.cast(self.pictures[column], pa.large_binary()), value_set=wanted)
        rows = np.flatnonzero(pc.is_valid(found).to_numpy(zero_copy_only=False) & ~self.removed)
        last = np.full(len(positions), -1)
        last[found.take(pa.array(rows)).to_numpy().astype(np.int64)] = rows  # ascending: a later row wins
        return last[[positions[name] for name in names]]

    def rows_named(
        self, names: Sequence[str], folders: Sequence[str | os.PathLike[str]] = (".",)
    ) -> Int[np.ndarray, " asked"]:
        """The row of the picture that each path or id means, -1 for none that is left, or several.

        folders: where relative paths may begin.
        """
        asked = [os.fsencode(name) for name in names]
        return match(asked, *self.names, len(self), folders=folders, usable=~self.removed)

    @property
    def names(self) -> tuple[Names, Names]:
        """The ids and the locations of consecutive rows."""

        def read(column: str) -> Names:
            names = self.pictures[column]
            return lambda start, stop: pc.cast(names.slice(start, stop - start), pa.large_binary()).to_pylist()

        return read("id"), read("location")

    def matching(
        self, *, where: str | None = None, label: str | None = None, tag: str | None = None, any_case: bool = False
    ) -> Bool[np.ndarray, " rows"]:
        """bool (rows,): the pictures that are there and whose id matches a pattern, that have a label, a tag.

        where: `*` stands for any text and `?` for one letter; any_case: A is a there.
        Raises InputError for a label or tag that no picture has.
        """
        found = ~self.removed
        if where is not None:
            pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in where)
            column = pc.match_substring_regex(self.pictures["id"], rf"\A(?s:{pattern})\z", ignore_case=any_case)
            found &= column.to_numpy(zero_copy_only=False).astype(bool)
        if label is not None:
            if label not in self.label_names:
                present = ", ".join(sorted(self.label_names)) or "none at all"
                why = "" if self.labels_problem is None else f" {self.labels_problem}"
                raise InputError(f'No picture has the label "{label}"; there are: {present}.{why}')
            found &= self.labels == self.label_names.index(label)
        if tag is not None:
            if tag not in self.tags:
                present = ", ".join(sorted(self.tags)) or "none at all"
                raise InputError(f'No picture has the tag "{tag}"; there are: {present}.')
            found &= np.isin(np.arange(len(self)), self.tags[tag])
        return found


def split_marks(marks: pa.Table) -> tuple[Int[np.ndarray, " removed"], dict[str, np.ndarray]]:
    """(rows of removed pictures, tag -> its rows) of the marks that `write_changes` keeps, where a removed one has the
    tag "".
    """
    rows, tags = marks["row"].to_numpy(), np.array(marks["tag"].to_pylist(), dtype=object)
    return rows[tags == ""], {name: rows[tags == name] for name in sorted(set(tags) - {""})}
