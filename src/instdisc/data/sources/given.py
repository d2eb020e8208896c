"""Vectors that were made elsewhere: read from a file, with what the file says of each, and the pictures behind them.

    given = read_vectors(Path("vectors.parquet"))          # .vectors (n, dim), .table id, location, label and the rest
    source = GivenSource("vectors.parquet", given.table)   # a Source, whose pictures are there where they were named

Parquet: the vectors are a column of lists, of a fixed size or not, of floats of any width, as FiftyOne, LightlyStudio,
embedding-atlas and Lance write them. NumPy: an array (n, dim), and X.ids.parquet beside X.npy for the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.arrow import LabelsError
from instdisc.data.sources.labels import Encoded, encode
from instdisc.data.sources.source import Content, Source
from instdisc.data.sources.spelling import match
from instdisc.errors import InputError, is_shortage

MOST_DIMENSIONS = 4096
_IDS = ("id", "_id", "sample_id", "uuid", "image_id")
_PATHS = (
    "location",
    "path",
    "filepath",
    "file_path",
    "file_path_abs",
    "image_path",
    "file_name",
    "filename",
    "uri",
    "url",
)
_LABELS = ("label", "ground_truth", "class", "category")
_VECTORS = ("vector", "embedding", "embeddings", "vectors", "features")


@dataclass(frozen=True)
class Given:
    """vectors: (n, dim) float16 or float32. table: id, location (large_string), label (string) if it has any, others.

    unusable: (id, location, reason) of the rows that were left out: no vector, NaN, only zeros.
    """

    vectors: np.ndarray
    table: pa.Table
    unusable: list[tuple[str, str, str]]


def read_vectors(path: Path, column: str | None = None) -> Given:
    """Read a .npy or .parquet file of vectors. column: which one holds them, where there are several.

    Raises InputError, with what to do, for a file that holds none, for vectors of several lengths or of more than 4,096
    numbers, and for an id that stands twice.
    """
    if not path.exists():
        raise InputError(f"There is no file {path}: check the path.")
    try:
        if path.suffix.lower() == ".npy":
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
            beside = path.with_suffix(".ids.parquet")
            table = pq.read_table(beside) if beside.is_file() else pa.table({"id": _numbers(len(vectors))})
            missing = np.zeros(len(vectors), dtype=bool)
        else:
            whole = pq.read_table(path)
            name = _vector_column(path, whole.schema, column)
            vectors, missing = _matrix(path, whole[name])
            table = whole.drop_columns([name])
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        if is_shortage(error):
            raise
        raise InputError(f"{path} can't be read as vectors ({error}): give a .npy or .parquet file of them.") from None
    _check_shape(path, vectors, len(table))
    table = _with_names(path, table)
    vectors = np.asarray(vectors, np.float16 if vectors.dtype == np.float16 else np.float32)
    usable, unusable = _usable(vectors, missing, table)
    if not usable.any():
        raise InputError(f"No vector of {path} can be used: the first, {unusable[0][2]}.")
    return Given(vectors[usable], table.filter(pa.array(usable)), unusable)


class GivenSource(Source):
    """The rows of a table of vectors. pictures: where their pictures are, matched by path or id; None = nowhere."""

    def __init__(self, name: str, table: pa.Table, pictures: Source | None = None) -> None:
        super().__init__(name, len(table))
        self._table, self._pictures = table, pictures
        self._rows = np.full(len(table), -1)
        if pictures is not None:
            for column in ("location", "id"):
                still = np.flatnonzero(self._rows < 0)
                names = [os.fsencode(one) for one in table[column].take(pa.array(still)).to_pylist()]
                self._rows[still] = match(names, pictures.identifiers, pictures.locations, len(pictures))

    @property
    def with_picture(self) -> Int[np.ndarray, " rows"]:
        """The rows whose picture is there."""
        return np.flatnonzero(self._rows >= 0)

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        return self._names("id", start, stop)

    def locations(self, start: int, stop: int) -> list[bytes]:
        named = self._names("location", start, stop)
        if self._pictures is None:
            return named
        positions = self._rows[start:stop].tolist()
        return [
            name if row < 0 else self._pictures.locations(row, row + 1)[0]
            for name, row in zip(named, positions, strict=True)
        ]

    def read(self, row: int) -> Content:
        if self._pictures is None or self._rows[row] < 0:
            raise UnreadableError("there is no picture to this vector")
        return self._pictures.read(int(self._rows[row]))

    def _own_labels(self) -> Encoded | None:
        return encode(self._table["label"]) if "label" in self._table.column_names else None

    def _names(self, column: str, start: int, stop: int) -> list[bytes]:
        return [os.fsencode(one) for one in self._table[column].slice(start, stop - start).to_pylist()]


def _vector_column(path: Path, schema: pa.Schema, column: str | None) -> str:
    """The name of the column that holds the vectors."""
    found = [field.name for field in schema if _is_vectors(field.type)]
    if column is not None and column in found:
        return column
    likely = [name for name in found if name.lower() in _VECTORS] if column is None else []
    if len(likely) == 1 or (len(found) == 1 and column is None):
        return (likely or found)[0]
    held = (
        f"its columns of lists of numbers are {', '.join(found)}" if found else "it has no column of lists of numbers"
    )
    raise InputError(f"{path}: {held}. Name the column of the vectors with --column.")


def _is_vectors(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _matrix(path: Path, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(n, dim), zeros where there is no vector, and which those are, bool (n,)."""
    missing = pc.is_null(column).to_numpy().astype(bool)
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy()
    found, counts = np.unique(lengths[~missing], return_counts=True)
    if not len(found):
        raise InputError(f"{path} has no vector: every row is empty.")
    dim = int(found[counts.argmax()])
    if len(found) > 1:
        row = int(np.flatnonzero((lengths != dim) & ~missing)[0])
        raise InputError(
            f"The vectors of {path} have several lengths: row {row} has {lengths[row]} dimensions, most have {dim}. "
            "Give vectors of one encoder."
        )
    if dim > MOST_DIMENSIONS:
        raise InputError(_too_long(path, dim))
    half = pa.types.is_float16(column.type.value_type)
    vectors = np.zeros((len(column), dim), np.float16 if half else np.float32)
    start = 0
    for chunk in column.chunks:
        there = np.flatnonzero(~missing[start : start + len(chunk)])
        values = chunk.drop_null().flatten()
        vectors[start + there] = values.to_numpy(zero_copy_only=False).reshape(-1, dim)
        start += len(chunk)
    return vectors, missing


def _check_shape(path: Path, vectors: np.ndarray, rows: int) -> None:
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or vectors.shape[1] < 1:
        raise InputError(
            f"{path} holds an array {vectors.shape} of {vectors.dtype}: give numbers (pictures, dimensions)."
        )
    if not len(vectors):
        raise InputError(f"{path} has no vector: it has no rows.")
    if vectors.shape[1] > MOST_DIMENSIONS:
        raise InputError(_too_long(path, vectors.shape[1]))
    if len(vectors) != rows:
        beside = path.with_suffix(".ids.parquet")
        raise InputError(f"{path} has {len(vectors):,} vectors and {beside.name} {rows:,} rows: give one row a vector.")


def _too_long(path: Path, dim: int) -> str:
    return f"The vectors of {path} have {dim:,} dimensions, and at most {MOST_DIMENSIONS:,} are taken: cut them."


def _with_names(path: Path, table: pa.Table) -> pa.Table:
    """The table with id and location in front, label as text if there are any, and its other columns as they are."""
    own = {name.lower(): name for name in reversed(table.column_names)}
    identifier, location, label = (next((own[n] for n in ns if n in own), None) for ns in (_IDS, _PATHS, _LABELS))
    ids = _text(table, identifier or location) or pa.chunked_array([_numbers(len(table))])
    locations = _text(table, location) or ids
    counted = pc.value_counts(ids.combine_chunks())
    twice = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(twice):
        name = twice[0].as_py()["values"]
        first, second = np.flatnonzero(pc.equal(ids, name).to_numpy())[:2]
        raise InputError(f'The id "{name}" stands twice in {path}, in rows {first} and {second}: give each its own.')
    columns = {"id": ids, "location": locations}
    if label is not None and (labels := _labels(table, label)) is not None:
        columns["label"] = labels
        table = table.drop_columns([label])
    columns |= {name: table[name] for name in table.column_names if name not in (identifier, location, *columns)}
    return pa.table(columns)


def _labels(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """A column of labels as text; a number has the name that `instdisc embed` gave it. None for what is no label."""
    column = table[name]
    if pa.types.is_struct(column.type) and column.type.get_field_index("label") >= 0:  # as FiftyOne writes a class
        column = pc.struct_field(column, "label")
    names = json.loads((table.schema.metadata or {}).get(b"instdisc", b"{}")).get("label_names")
    try:
        codes, known = encode(column, names if pa.types.is_integer(column.type) else None)
    except LabelsError:
        return None
    return pa.chunked_array([pa.array([known[code] if code >= 0 else "" for code in codes.tolist()], pa.string())])


def _text(table: pa.Table, name: str | None) -> pa.ChunkedArray | None:
    """A column as text; None where there is none, or rows lack it."""
    if name is None or table[name].null_count:
        return None
    kind = table[name].type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = [os.fsdecode(one) for one in table[name].to_pylist()]
        return pa.chunked_array(
            [pa.array([one.encode("utf-8", "replace").decode() for one in values], pa.large_string())]
        )
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_nested(kind) or pa.types.is_fixed_size_binary(kind):
        # a UUID, as DuckDB writes it; MongoDB's ids
        values = [one.hex() if isinstance(one, bytes) else str(one) for one in table[name].to_pylist()]
        return pa.chunked_array([pa.array(values, pa.large_string())])
    return table[name].cast(pa.large_string())


def _numbers(count: int) -> pa.Array:
    return pa.array([str(row) for row in range(count)], pa.large_string())


def _usable(
    vectors: np.ndarray, missing: np.ndarray, table: pa.Table, block: int = 65_536
) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """Which rows can be used, bool (n,), and (id, location, reason) of the others."""
    blocks: Sequence[range] = [
        range(start, min(start + block, len(vectors))) for start in range(0, len(vectors), block)
    ]
    finite = np.concatenate([np.isfinite(vectors[one.start : one.stop]).all(1) for one in blocks]).astype(bool)
    zero = np.concatenate([~vectors[one.start : one.stop].any(1) for one in blocks]).astype(bool)
    reasons = {"it holds NaN or infinity": ~finite, "it holds only zeros": zero & ~missing, "there is none": missing}
    usable = finite & ~zero & ~missing
    positions = np.flatnonzero(~usable)
    names = table.select(["id", "location"]).take(pa.array(positions)).to_pylist()
    why = {row: f"the vector can't be used: {words}" for words, rows in reasons.items() for row in np.flatnonzero(rows)}
    return usable, [(one["id"], one["location"], why[row]) for row, one in zip(positions, names, strict=True)]
