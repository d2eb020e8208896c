"""Tables in memory: a pandas, polars or Arrow table, or a Hugging Face data set, with a column of pictures or of paths.

frame = frame_of(table)                  # None for what is no table
frame.paths or frame.cells               # the paths, or the pictures: bytes, PIL images, arrays
open_frame(frame)

None of these libraries is needed: a table is known by what it can do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.arrays import SequenceSource, is_picture_like
from instdisc.data.sources.arrow import holds_binary, holds_pictures, is_text, picture_of
from instdisc.data.sources.labels import Encoded, LabelLines, encode
from instdisc.errors import InputError, counted

_PICTURES = ("image", "images", "img", "picture", "pictures", "photo", "jpg", "jpeg", "png", "bytes")
_PATHS = ("path", "location", "filepath", "file_path", "image_path", "file_name", "filename", "file", "uri", "url")
_LABELS = ("label", "labels", "class", "category", "fine_label", "ground_truth")


@dataclass(frozen=True)
class Frame:
    """What a table holds. name: of its kind, as Dataset. paths: of the pictures; None where it holds them itself.

    cells: the pictures themselves, a sequence. labels: a column of names or numbers, if any; label_names: of numbers.
    """

    name: str
    paths: list[str] | None
    cells: Sequence[Any]
    labels: Any = None
    label_names: list[str] | None = None

    def encoded(self) -> Encoded | None:
        """The classes of its rows; LabelsError where its labels can't be used."""
        return None if self.labels is None else encode(self.labels, self.label_names)

    def label_lines(self, count: int | None = None) -> LabelLines | None:
        """The label of each of its (first) paths."""
        found = self.encoded()
        if found is None or self.paths is None:
            return None
        lines = [(path, found[1][code]) for path, code in zip(self.paths, found[0].tolist(), strict=True) if code >= 0]
        names = set(self.paths[:count])
        lines = [line for line in lines if line[0] in names]
        return LabelLines(Path(self.name), [os.fsencode(path) for path, _ in lines], [label for _, label in lines])


def frame_of(given: Any) -> Frame | None:
    """What a table holds: one column of pictures or paths, and one of labels, known by their names and contents.

    Pictures: a column named image (or the like), or the only one of bytes, PIL images or arrays. Otherwise paths: a
    column named path (or the like), or the only one of text. Labels: a column named label (or the like).
    Raises InputError for a table without such a column, and for a set of several splits.
    """
    if isinstance(given, Frame):
        return given
    if isinstance(given, Mapping) and given and all(_is_dataset(part) for part in given.values()):
        first = next(iter(given))
        raise InputError(f'That holds {", ".join(map(str, given))}: give one of them, as in data["{first}"].')
    if _is_dataset(given):
        return _of_dataset(given)
    if isinstance(given, pa.RecordBatch):
        given = pa.Table.from_batches([given])
    elif hasattr(given, "iloc") and hasattr(given, "columns"):
        return _of_columns("DataFrame", {str(name): given[name] for name in given.columns})
    elif hasattr(given, "__arrow_c_stream__") and hasattr(given, "columns") and not isinstance(given, pa.Table):
        given = pa.table(given)
    if isinstance(given, pa.Table):
        return _of_columns("Table", {name: given[name] for name in given.column_names}, _class_names(given.schema))
    return None


def open_frame(frame: Frame, limit: int | None = None) -> SequenceSource:
    """The pictures that a table holds itself."""
    return SequenceSource(frame.cells, limit=limit, name=frame.name, labels=frame.encoded)


def _is_dataset(given: Any) -> bool:
    """A `datasets.Dataset`: with a length, columns, and rows in Arrow's form."""
    return all(hasattr(given, name) for name in ("features", "with_format", "select_columns", "__len__"))


def _of_dataset(given: Any) -> Frame:
    schema = given.features.arrow_schema
    column, label, is_path = _choose("Dataset", {name: _kind_of_type(schema.field(name).type) for name in schema.names})
    held = given.select_columns([column]).with_format("arrow")
    names = _class_names(schema).get(label or "")
    labels = None if label is None else given.select_columns([label]).with_format("arrow")[:][label]
    if not is_path:
        return Frame("Dataset", None, _Cells(held, column), labels, names)
    return Frame("Dataset", _paths("Dataset", column, held[:][column].to_pylist()), (), labels, names)


def _of_columns(name: str, columns: Mapping[str, Any], class_names: Mapping[str, list[str]] | None = None) -> Frame:
    column, label, is_path = _choose(name, {own: _kind(values) for own, values in columns.items()})
    values = columns[column]
    labels = None if label is None else columns[label]
    if labels is not None and not isinstance(labels, pa.ChunkedArray):
        labels = labels.tolist()
    names = (class_names or {}).get(label or "")
    cells = values if isinstance(values, pa.ChunkedArray) else values.tolist()
    if not is_path:
        return Frame(name, None, _Cells(cells), labels, names)
    values = cells.to_pylist() if isinstance(cells, pa.ChunkedArray) else cells
    return Frame(name, _paths(name, column, values), (), labels, names)


def _paths(name: str, column: str, values: list[Any]) -> list[str]:
    empty = [row for row, value in enumerate(values) if not (isinstance(value, str | os.PathLike) and os.fspath(value))]
    if empty:
        rows = counted(len(empty), "row has", "rows have")
        raise InputError(f'{rows} no path in the column "{column}" of the {name}, as row {empty[0]}: leave it out.')
    return [os.fspath(value) for value in values]


def _choose(name: str, kinds: Mapping[str, str]) -> tuple[str, str | None, bool]:
    """The column of pictures or paths, that of labels, and whether they are paths. kinds: picture, text or other."""
    label = _named(_LABELS, list(kinds))
    for kind, known in (("picture", _PICTURES), ("text", (*_PATHS, *_PICTURES))):
        fit = [column for column, its in kinds.items() if its == kind and column != label]
        chosen = _named(known, fit) or (fit[0] if len(fit) == 1 else None)
        if chosen is not None:
            return chosen, label, kind == "text"
    raise InputError(
        f"The {name} has no column that is known to hold pictures or their paths (its columns: {', '.join(kinds)}): "
        "call the one with paths path, or the one with pictures image."
    )


def _named(known: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[one] for one in known if one in lower), None)


def _kind(values: Any) -> str:
    """Of a column: an Arrow one by its type, another by its first value."""
    if isinstance(values, pa.ChunkedArray):
        return _kind_of_type(values.type)
    there = np.asarray(values.notna())
    first = values.iloc[int(there.argmax())] if there.any() else None
    if isinstance(first, str | os.PathLike):
        return "text"
    held = isinstance(first, bytes) or (isinstance(first, dict) and bool({"bytes", "path"} & first.keys()))
    return "picture" if held or (first is not None and is_picture_like(first)) else "other"


def _kind_of_type(kind: pa.DataType) -> str:
    if holds_binary(kind) or holds_pictures(kind):
        return "picture"
    return "text" if is_text(kind) else "other"


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """column -> the names of its classes, as Hugging Face keeps them in a schema."""
    from instdisc.data.sources.parquet import hub_features

    features = hub_features(schema)
    return {
        name: list(feature["names"])
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


class _Cells(Sequence[Any]):
    """The pictures of a column. name: of the column, where rows of a data set are asked for."""

    def __init__(self, column: Any, name: str | None = None) -> None:
        self._column, self._name = column, name

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        """Bytes, a path, a PIL image or an array; UnreadableError for an empty cell."""
        cell = self._column[row]
        if self._name is not None:
            cell = cell[self._name][0]
        if isinstance(cell, pa.StructScalar):
            inside = dict(cell.items())
            if not (held := inside.get("bytes")) or not held.is_valid:
                cell = {"path": inside["path"].as_py()} if "path" in inside else cell
        if isinstance(cell, pa.Scalar):
            return picture_of(cell)
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if cell is None:
            raise UnreadableError("the row holds no picture")
        return cell
