"""Labels: any column of names or numbers becomes classes 0..C-1 with names; -1 means none. For evaluation only."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc.data.index import Columns
from instdisc.errors import InputError

Encoded = tuple[np.ndarray, list[str]]  # int64 (n,), -1 = none; the name of each class
_WHOLE = re.compile(r"-?\d+")


def encode(values: Any, names: Sequence[str] | None = None) -> Encoded:
    """Classes of a column (Arrow, NumPy or sequence) of names or numbers.

    Numbers with given `names` stay as they are. Other numbers, and texts that are all whole numbers, become classes in
    numeric order; other texts in sorted order. Missing values, empty texts and the number -1 are no label.
    Raises InputError for a number without a name, and for values that are neither names nor whole numbers.
    """
    column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_floating(kind):
        numbers = column.to_numpy(zero_copy_only=False)
        known = np.isfinite(numbers)
        if (numbers[known] % 1).any():
            raise InputError("The labels are fractions, not classes: give whole numbers or names.")
        column = pa.array(np.where(known, numbers, -1).astype(np.int64))
    elif not (pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_null(kind)):
        raise InputError(f"The labels are of type {kind}: give whole numbers or names, one a picture.")
    if pa.types.is_integer(column.type) and names is not None:
        return _named(column, list(names))

    coded = pc.dictionary_encode(column)
    present = [os.fsdecode(value) if isinstance(value, bytes) else value for value in coded.dictionary.to_pylist()]
    classes = [value for value in present if value not in (None, "", -1)]
    whole = all(isinstance(value, int) or _WHOLE.fullmatch(value) for value in classes)
    classes = sorted((value for value in classes if value != "-1"), key=int) if whole else sorted(classes)
    place = {value: number for number, value in enumerate(classes)}
    lookup = np.array([place.get(value, -1) for value in present] + [-1], dtype=np.int64)  # the last entry: missing
    codes = pc.fill_null(coded.indices, len(present)).to_numpy(zero_copy_only=False)
    return lookup[codes], [str(value) for value in classes]


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _named(column: pa.Array, names: list[str]) -> Encoded:
    codes = pc.fill_null(column.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    if len(codes) and (codes.max() >= len(names) or codes.min() < -1):
        raise InputError(f"A label is {codes.max()}, but the file names only {len(names)} classes: repair the file.")
    return codes, names


def read_labels(
    path: Path, count: int, identifiers: Callable[[int, int], list[bytes]], locations: Callable[[int, int], list[bytes]]
) -> Encoded:
    """The labels that a CSV file gives to `count` rows, matched by id, by location, or by path below the file's folder.

    The file has a header with a column `label` and a column `id` or `path`; rows of it that match no picture are passed
    over (a limit leaves such), pictures it does not name have no label.
    Raises InputError for a file that is missing, of another form, or matches nothing.
    """
    rows = Columns(pa.schema([("key", pa.large_binary()), ("label", pa.string())]))
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            key = next((name for name in ("id", "path") if name in header), None)
            if key is None or "label" not in header:
                raise InputError(f"{path} needs a first line with the columns path (or id) and label.")
            for record in reader:
                label = (record["label"] or "").strip()
                rows.add(os.fsencode(record[key] or ""), label.encode(errors="replace").decode())
    except (OSError, csv.Error) as error:
        raise InputError(f"The labels file {path} cannot be read ({error}): check the path.") from error
    table = rows.table()
    found = np.full(count, -1, dtype=np.int64)  # row of the CSV file for each picture
    folder = os.fsencode(path.absolute().parent) + b"/"
    keys = table["key"]
    for start in range(0, count, 65_536):
        stop = min(start + 65_536, count)
        places = locations(start, stop)
        below = [os.path.abspath(place).removeprefix(folder) for place in places]
        for candidates in (identifiers(start, stop), places, below):
            matches = pc.fill_null(pc.index_in(pa.array(candidates, pa.large_binary()), value_set=keys), -1)
            open_rows = found[start:stop] < 0
            found[start:stop][open_rows] = matches.to_numpy(zero_copy_only=False)[open_rows]
    if not (found >= 0).any():
        raise InputError(f"No {key} in {path} is that of a picture: write ids as `instdisc embed` does, or paths.")
    codes, names = encode(table["label"])
    return np.where(found >= 0, codes[found], -1), names
