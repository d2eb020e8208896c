"""Labels: any column of names or numbers becomes classes 0..C-1 with names; -1 means none. For evaluation only."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc.data.sources.arrow import LabelsError, plain
from instdisc.data.sources.spelling import Names, match
from instdisc.data.sources.tables import read_columns, words
from instdisc.errors import InputError, counted

Encoded = tuple[np.ndarray, list[str]]  # int64 (n,), -1 = none; the name of each class
KEYS = ("id", "path", "location", "file_name", "filename", "file")  # columns that say which picture a line is of
_WHOLE = re.compile(r"-?\d+")


def encode(values: Any, names: Sequence[str] | None = None) -> Encoded:
    """Classes of a column (Arrow, NumPy or sequence) of names or numbers.

    Numbers with given `names` stay as they are. Other numbers, and texts that are all whole numbers, become classes in
    numeric order; other texts in sorted order. Missing values, empty texts and the number -1 are no label.
    Raises LabelsError for a number without a name, and for values that are neither names nor whole numbers.
    """
    try:
        column = plain(values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise LabelsError(f"The labels are no column of names or of whole numbers ({error}).") from None
    if pa.types.is_integer(column.type) and names is not None:
        return _named(column, list(names))

    coded = pc.dictionary_encode(column)
    present = [os.fsdecode(value) if isinstance(value, bytes) else value for value in coded.dictionary.to_pylist()]
    classes = [value for value in present if value not in (None, "", -1)]
    whole = all(isinstance(value, int) or _WHOLE.fullmatch(value) for value in classes)
    classes = sorted((value for value in classes if value != "-1"), key=int) if whole else sorted(classes)
    code_of = {value: code for code, value in enumerate(classes)}
    lookup = np.array([code_of.get(value, -1) for value in present] + [-1], dtype=np.int64)  # the last entry: missing
    codes = pc.fill_null(coded.indices, len(present)).to_numpy(zero_copy_only=False)
    return lookup[codes], [str(value) for value in classes]


def encode_all(columns: Sequence[Any], names: Sequence[Sequence[str] | None]) -> Encoded:
    """`encode` for the columns of several files: names[i] are those that file i gives its numbers, None for none.

    A file that names no classes goes by the names of the first that does; where names differ, classes go by name.
    """
    told = next((list(one) for one in names if one is not None), None)
    used = [told if one is None else list(one) for one in names]
    try:
        parts = [plain(column) for column in columns]
        kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
        mixed = any(pa.types.is_integer(kind) for kind in kinds) and pa.large_binary() in kinds
        if mixed or len({tuple(one) for one in used if one is not None}) > 1:
            parts = [_in_words(*encode(part, given)) for part, given in zip(parts, used, strict=True)]
            kinds, told = {pa.large_binary()}, None
        kind = kinds.pop() if len(kinds) == 1 else pa.int64()
        return encode(pa.chunked_array([part.cast(kind) for part in parts], kind), told)
    except pa.ArrowException as error:
        raise LabelsError(f"The labels of the files do not go together ({error}).") from None


def _in_words(codes: np.ndarray, names: list[str]) -> pa.Array:
    words = pa.array([*(os.fsencode(name) for name in names), None], pa.large_binary())
    return words.take(pa.array(np.where(codes < 0, len(names), codes)))


def _named(column: pa.Array, names: list[str]) -> Encoded:
    codes = pc.fill_null(column.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    wrong = codes[(codes < -1) | (codes >= len(names))]
    if len(wrong):
        raise LabelsError(f"A label is {wrong[0]}, but the file names only {len(names)} classes: repair the file.")
    return codes, names


@dataclass(frozen=True)
class LabelLines:
    """The lines of a table that name a picture and its label. names: ids or paths, as they stand there."""

    path: Path
    names: list[bytes]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def match(
        self, ids: Names, locations: Names, count: int, usable: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[str]]:
        """The row of each line, -1 for none (as `spelling.match`), and sentences on the lines that count for nothing.

        Of lines that give one picture several labels the first counts: the others are -1 too. Raises LabelsError where
        no line fits.
        """
        rows = match(self.names, ids, locations, count, folders=[self.path.parent, "."], usable=usable)
        lost = np.flatnonzero(rows < 0)
        if len(lost) == len(rows):
            raise LabelsError(
                f"No line of {self.path} fits a picture"
                + (f", the first is {os.fsdecode(self.names[0])}" if self.names else "")
                + ": write ids as `instdisc embed` does, or paths."
            )
        sentences = []
        if len(lost):
            first = os.fsdecode(self.names[int(lost[0])])
            lines = f"{len(lost):,} of the {len(rows):,} lines of {self.path}"
            fit, mean = ("fits", "counts") if len(lost) == 1 else ("fit", "count")
            sentences.append(f"{lines} {fit} no picture, or several, and {mean} for nothing: the first is {first}.")
        labelled: dict[int, str] = {}
        for line in np.flatnonzero(rows >= 0).tolist():
            if labelled.setdefault(int(rows[line]), self.labels[line]) != self.labels[line]:
                rows[line] = -2
        if (rows == -2).any():
            again = int(np.flatnonzero(rows == -2)[0])
            count = int((rows == -2).sum())
            give, them, mean = ("gives", "it", "counts") if count == 1 else ("give", "them", "count")
            sentences.append(
                f"{counted(count, 'line')} of {self.path} {give} a picture another label than a line before {them}, "
                f"and {mean} for nothing: the first is {os.fsdecode(self.names[again])}."
            )
        return np.maximum(rows, -1), sentences


def read_label_lines(path: Path | str, *, by: tuple[str, ...] = KEYS, votes: bool = True) -> LabelLines:
    """The lines of a table that have a label: CSV or the like (sources/tables.py) with a column of `by`, and label.

    votes: those too that `instdisc label` wrote of pictures that were labelled by vote.
    Raises LabelsError for a file that can't be read or lacks the columns.
    """
    try:
        table = read_columns(path, key=by, label=("label", "class"), optional_by=("by",))
    except InputError as error:
        raise LabelsError(str(error)) from None
    labels = [words(cell).strip() for cell in table["label"].to_pylist()]
    keys = table["key"].to_pylist()
    ways = table["by"].to_pylist() if "by" in table.column_names else [b""] * len(keys)
    kept = [
        line for line, label in enumerate(labels) if label and keys[line] and (votes or ways[line].strip() != b"vote")
    ]
    return LabelLines(Path(path), [keys[line] for line in kept], [labels[line] for line in kept])


def labels_of_lines(lines: LabelLines, count: int, identifiers: Names, locations: Names) -> tuple[Encoded, list[str]]:
    """The labels that lines of a table give to `count` rows, and sentences on the lines that count for nothing.

    Pictures that none names have no label. Raises LabelsError where no line fits.
    """
    rows, sentences = lines.match(identifiers, locations, count)
    codes, names = encode(pa.array([os.fsencode(label) for label in lines.labels], pa.large_binary()))
    answer = np.full(count, -1, dtype=np.int64)
    answer[rows[rows >= 0]] = codes[rows >= 0]
    return (answer, names), sentences
