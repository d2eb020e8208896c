"""Pictures in Parquet files, in the form of the Hugging Face hub: `image` a struct {bytes, path} or plain binary.

A Parquet file gives up whole row groups, not rows. `iterate` streams them in order; `read` keeps the last few groups in
memory, so it is fast for rows that lie near each other, and reads a group a row for rows in random order.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.arrow import LabelsError, holds_binary, holds_pictures, is_text, picture_of
from instdisc.data.sources.labels import Encoded, encode_all
from instdisc.data.sources.row_groups import FEWEST_KEPT, Groups, KeptGroups
from instdisc.data.sources.source import Content, Source
from instdisc.data.storage.remote import describe, names_below, open_file, seekable
from instdisc.data.storage.scan import (
    Columns,
    OpenIndex,
    digest_of,
    digest_of_numbered,
    facts_of,
    index_file,
    read_index,
    write_index,
)
from instdisc.data.storage.urls import is_url, reason, without_secrets
from instdisc.errors import InputError, is_shortage
from instdisc.progress import track

_SCHEMA = pa.schema([("file", pa.int32()), ("group", pa.int32()), ("rows", pa.int64())])
_KEPT_FILES = 16
_BATCH = 128  # rows decoded at a time when streaming


def open_parquet(name: str, locations: Sequence[str], index_folder: Path | None, limit: int | None) -> ParquetSource:
    """Read the footers of the files, unless all are as the index knows them, and open the rows.

    Raises InputError for a file that is no Parquet, has no picture column, or has other columns than the first.
    """
    locations = [location if is_url(location) else os.path.abspath(location) for location in locations]
    path = index_file(index_folder, "parquet", locations)
    before = read_index(path)
    known = facts_of(before)["files"] if before is not None else []
    stamps = [list(describe(location)) for location in locations]
    if before is None or [file["stamp"] for file in known] != stamps:
        groups, files = Columns(_SCHEMA), []
        kinds: list[dict[str, Any]] = []  # what a file says of its columns, each kind once
        for number, (location, stamp) in enumerate(
            track(list(zip(locations, stamps, strict=True)), description="Opening files")
        ):
            with _open(location, (stamp[0], stamp[1])) as file:
                found, footer = _columns(file.schema_arrow, location), file.metadata
            if found not in kinds:
                kinds.append(found)
            if _column(found["image"]) != _column(kinds[0]["image"]):
                raise InputError(
                    f"The pictures of {location} are its column {_column(found['image'])}, and those of {locations[0]} "
                    f"its column {_column(kinds[0]['image'])}: give files of one data set."
                )
            files.append({"stamp": stamp, "rows": footer.num_rows, "columns": kinds.index(found)})
            for group in range(footer.num_row_groups):
                groups.add(number, group, footer.row_group(group).num_rows)
        fingerprint = digest_of([[json.dumps([locations, files]).encode()]])
        write_index(path, groups.table(), {"columns": kinds, "files": files, "fingerprint": fingerprint})
    return ParquetSource(name, path, locations, limit)


class ParquetSource(Source):
    """One picture a row. Ids: `train-00000.parquet#17`, the file's name below the folder of all, and the row in it."""

    def __init__(self, name: str, index: Path, locations: Sequence[str], limit: int | None = None) -> None:
        self._index = OpenIndex(index)
        facts = self._index.facts
        super().__init__(name, sum(int(file["rows"]) for file in facts["files"]), limit=limit)
        self._places = list(locations)
        self._names = [os.fsencode(entry) for entry in names_below(locations)]
        self._stamps = [(int(file["stamp"][0]), int(file["stamp"][1])) for file in facts["files"]]
        self._file_starts = np.cumsum([0] + [int(file["rows"]) for file in facts["files"]])
        kinds = facts.get("columns", [facts])  # an older index: the same of all files
        self._columns: list[dict[str, Any]] = [kinds[file.get("columns", 0)] for file in facts["files"]]
        self._prepare()

    def _prepare(self) -> None:
        """What is not pickled: the row groups, open files, and the groups read last."""
        table = self._index.table
        self._group_files, self._group_numbers = table["file"].to_numpy(), table["group"].to_numpy()
        self._group_starts = np.concatenate([[0], np.cumsum(table["rows"].to_numpy())])
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: KeptGroups[pa.ChunkedArray] = KeptGroups(FEWEST_KEPT if self._keeps_groups else 1)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for name in ("_group_files", "_group_numbers", "_group_starts", "_process", "_lock", "_files", "_groups"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def groups(self) -> Groups | None:
        sizes = [size for size, _ in self._stamps]
        starts = self._group_starts[:-1][np.diff(self._group_starts) > 0]
        return Groups(starts[starts < len(self)], sum(sizes) if min(sizes) >= 0 else -1, dear=True)

    def keep_groups(self) -> None:
        super().keep_groups()
        self._groups.fewest = FEWEST_KEPT

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            counts = np.diff(np.minimum(self._file_starts, len(self))).tolist()
            self._fingerprint = digest_of_numbered(zip(self._names, counts, strict=True))
        return self._fingerprint

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        files = np.searchsorted(self._file_starts, np.arange(start, stop), side="right") - 1
        inside = np.arange(start, stop) - self._file_starts[files]
        return [b"%s#%d" % (self._names[file], row) for file, row in zip(files, inside, strict=True)]

    def locations(self, start: int, stop: int) -> list[bytes]:
        files = np.searchsorted(self._file_starts, np.arange(start, stop), side="right") - 1
        inside = np.arange(start, stop) - self._file_starts[files]
        locations = [os.fsencode(without_secrets(location)) for location in self._places]
        return [b"%s#%d" % (locations[file], row) for file, row in zip(files, inside, strict=True)]

    def stamps(self) -> Int64[np.ndarray, "rows 2"]:
        return np.repeat(np.array(self._stamps, np.int64), np.diff(self._file_starts), axis=0)[: len(self)]

    def read(self, row: int) -> Content:
        group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        try:
            with self._lock:
                pictures = self._group(group)
        except Exception as error:  # Arrow's, the system's, and each remote driver has errors of its own
            if is_shortage(error) or isinstance(error, InputError):
                raise
            raise UnreadableError(f"its part of the Parquet file cannot be read: {reason(error)}") from error
        return picture_of(pictures[row - int(self._group_starts[group])])

    def iterate(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, Content | UnreadableError]]:
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows)
        if self._keeps_groups:
            yield from super().iterate(wanted)
            return
        groups = np.searchsorted(self._group_starts, wanted, side="right") - 1
        for group in np.unique(groups):
            first = int(self._group_starts[group])
            asked = wanted[groups == group]
            done = 0
            try:
                # Its own file handle: `read` may be called between two rows of this walk.
                number = int(self._group_files[group])
                with self._open_file(number) as file:
                    inside, image = int(self._group_numbers[group]), self._columns[number]["image"]
                    for batch in file.iter_batches(_BATCH, [inside], [image], use_threads=False):
                        here = asked[(asked >= first) & (asked < first + len(batch))]
                        for row in here:
                            yield int(row), _bytes_or_error(batch.column(0)[int(row) - first])
                        done += len(here)
                        first += len(batch)
                        if done == len(asked):
                            break
            except Exception as error:  # as in read
                if is_shortage(error) or isinstance(error, InputError):
                    raise
                for row in asked[done:]:
                    yield int(row), UnreadableError(f"its part of the Parquet file cannot be read: {reason(error)}")

    def _open_file(self, number: int) -> pq.ParquetFile:
        return _open(self._places[number], self._stamps[number])

    def _group(self, group: int) -> pa.ChunkedArray:
        """The pictures of a row group, from the few kept or from its file."""
        if self._process != os.getpid():  # a fork shares neither positions in files nor connections with its parent
            self._process, self._files = os.getpid(), OrderedDict()
        number, inside = int(self._group_files[group]), int(self._group_numbers[group])
        if number not in self._files:
            self._files[number] = self._open_file(number)
            if len(self._files) > _KEPT_FILES:
                self._files.popitem(last=False)
        file = self._files[number]
        size = file.metadata.row_group(inside).total_byte_size
        image = self._columns[number]["image"]
        return self._groups.get(group, size, lambda: file.read_row_group(inside, [image], use_threads=False).column(0))

    def _own_labels(self) -> Encoded | None:
        if all(columns["label"] is None for columns in self._columns):
            return None
        found: list[pa.ChunkedArray] = []
        missing = len(self)
        for number, columns in enumerate(self._columns):
            rows = min(missing, int(self._file_starts[number + 1] - self._file_starts[number]))
            missing -= rows
            found.append(self._label_column(number, columns["label"]).slice(0, rows) if rows else pa.nulls(0))
        return encode_all(found, [columns["label_names"] for columns in self._columns])

    def _label_column(self, number: int, label: str | None) -> Any:
        if label is None:
            return pa.nulls(int(self._file_starts[number + 1] - self._file_starts[number]))
        try:
            with self._open_file(number) as file:
                return file.read([label], use_threads=False).column(0)
        except Exception as error:  # as in read
            if is_shortage(error) or isinstance(error, InputError):
                raise
            raise LabelsError(f"The labels in {self._places[number]} can't be read ({reason(error)}).") from error


def _open(location: str, stamp: tuple[int, int]) -> pq.ParquetFile:
    try:
        location = seekable(location, *stamp)
        return pq.ParquetFile(open_file(location, stamp[0]) if is_url(location) else pa.OSFile(os.fsencode(location)))
    except InputError:
        raise
    except Exception as error:  # Arrow's, the system's, and each remote driver has errors of its own
        if is_shortage(error):
            raise
        raise InputError(f"{location} cannot be read as a Parquet file ({reason(error)}): replace it.") from error


def _columns(schema: pa.Schema, location: str) -> dict[str, Any]:
    """Which column holds the pictures, which the labels, and the classes' names if the file tells them."""
    features = hub_features(schema)
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    classes = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    label = _first(("label", *classes[:1], "labels", "fine_label"), schema.names)
    names = features[label].get("names") if label is not None and kinds.get(label) == "ClassLabel" else None
    told = [name for name in schema.names if kinds.get(name) == "Image"]
    known = ("image", *told, "images", "img", "picture", "pictures", "photo", "jpg", "jpeg", "png")
    others = [field for field in schema if field.name != label]
    image = None
    for test, alone in ((holds_binary, True), (holds_pictures, True), (is_text, False)):  # the surest first
        fit = [field.name for field in others if test(field.type)]
        image = image or _first(known, fit) or (fit[0] if alone and len(fit) == 1 else None)
    if image is None:
        raise InputError(
            f"{location} has no column that is known to hold pictures (its columns: {', '.join(schema.names)}): "
            "call the one with the bytes of picture files image."
        )
    inside = ".bytes" if pa.types.is_struct(schema.field(image).type) else ""
    return {"image": image + inside, "label": label, "label_names": names}


def hub_features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face says of the columns in a schema; empty where it is not from there."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """The first wanted name that is there, as it is spelled there; capitals count only between names that differ so."""
    for one in wanted:
        found = [name for name in names if name == one] or [name for name in names if name.lower() == one.lower()]
        if found:
            return found[0]
    return None


def _column(image: str) -> str:
    """The column of what is read: `image` of `image.bytes`."""
    return image.removesuffix(".bytes")


def _bytes_or_error(value: pa.Scalar) -> bytes | UnreadableError:
    try:
        return picture_of(value)
    except UnreadableError as error:
        return error
