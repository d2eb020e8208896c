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

from instdisc.data.decode import UnreadableError
from instdisc.data.groups import FEWEST_KEPT, Groups, KeptGroups
from instdisc.data.index import Columns, OpenIndex, digest_of, facts_of, index_file, read_index, write_index
from instdisc.data.labels import Encoded, encode
from instdisc.data.places import describe, is_url, names_below, open_file, reason, seekable
from instdisc.data.source import Content, Source
from instdisc.errors import InputError, is_shortage
from instdisc.progress import track

_SCHEMA = pa.schema([("file", pa.int32()), ("group", pa.int32()), ("rows", pa.int64())])
_KEPT_FILES = 16
_BATCH = 128  # rows decoded at a time when streaming


def open_parquet(name: str, places: Sequence[str], index_folder: Path | None, limit: int | None) -> ParquetSource:
    """Read the footers of the files, unless all are as the index knows them, and open the rows.

    Raises InputError for a file that is no Parquet, has no picture column, or has other columns than the first.
    """
    places = [place if is_url(place) else os.path.abspath(place) for place in places]
    path = index_file(index_folder, "parquet", places)
    before = read_index(path)
    known = facts_of(before)["files"] if before is not None else []
    stamps = [list(describe(place)) for place in places]
    if before is None or [file["stamp"] for file in known] != stamps:
        groups, files, columns = Columns(_SCHEMA), [], None
        for number, (place, stamp) in enumerate(
            track(list(zip(places, stamps, strict=True)), description="Opening files")
        ):
            with _open(place, (stamp[0], stamp[1])) as file:
                found, footer = _columns(file.schema_arrow, place), file.metadata
            columns = columns or found
            if found != columns:
                raise InputError(f"{place} has other columns than {places[0]}: give files of one data set.")
            files.append({"stamp": stamp, "rows": footer.num_rows})
            for group in range(footer.num_row_groups):
                groups.add(number, group, footer.row_group(group).num_rows)
        fingerprint = digest_of([[json.dumps([places, files]).encode()]])
        write_index(path, groups.table(), {**(columns or {}), "files": files, "fingerprint": fingerprint})
    return ParquetSource(name, path, places, limit)


class ParquetSource(Source):
    """One picture a row. Ids: `train-00000.parquet#17`, the file's name below the folder of all, and the row in it."""

    def __init__(self, name: str, index: Path, places: Sequence[str], limit: int | None = None) -> None:
        self._index = OpenIndex(index)
        facts = self._index.facts
        super().__init__(name, sum(int(file["rows"]) for file in facts["files"]), limit=limit)
        self._places = list(places)
        self._names = [os.fsencode(entry) for entry in names_below(places)]
        self._stamps = [(int(file["stamp"][0]), int(file["stamp"][1])) for file in facts["files"]]
        self._file_starts = np.cumsum([0] + [int(file["rows"]) for file in facts["files"]])
        self._image, self._label = str(facts["image"]), facts["label"]
        self._label_classes: list[str] | None = facts["label_names"]
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

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        files = np.searchsorted(self._file_starts, np.arange(start, stop), side="right") - 1
        inside = np.arange(start, stop) - self._file_starts[files]
        return [b"%s#%d" % (self._names[file], row) for file, row in zip(files, inside, strict=True)]

    def locations(self, start: int, stop: int) -> list[bytes]:
        files = np.searchsorted(self._file_starts, np.arange(start, stop), side="right") - 1
        inside = np.arange(start, stop) - self._file_starts[files]
        return [b"%s#%d" % (os.fsencode(self._places[file]), row) for file, row in zip(files, inside, strict=True)]

    def read(self, row: int) -> Content:
        group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        try:
            with self._lock:
                pictures = self._group(group)
        except Exception as error:  # Arrow's, the system's, and each remote driver has errors of its own
            if is_shortage(error) or isinstance(error, InputError):
                raise
            raise UnreadableError(f"its part of the Parquet file cannot be read: {reason(error)}") from error
        return _bytes(pictures[row - int(self._group_starts[group])])

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
                with self._open_file(int(self._group_files[group])) as file:
                    number = int(self._group_numbers[group])
                    for batch in file.iter_batches(_BATCH, [number], [self._image], use_threads=False):
                        inside = asked[(asked >= first) & (asked < first + len(batch))]
                        for row in inside:
                            yield int(row), _bytes_or_error(batch.column(0)[int(row) - first])
                        done += len(inside)
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
        return self._groups.get(
            group, size, lambda: file.read_row_group(inside, [self._image], use_threads=False).column(0)
        )

    def _own_labels(self) -> Encoded | None:
        if self._label is None:
            return None
        columns: list[pa.Array] = []
        missing = len(self)
        for number in range(len(self._places)):
            if missing <= 0:
                break
            with self._open_file(number) as file:
                column = file.read([self._label], use_threads=False).column(0)
            columns += column.slice(0, missing).chunks
            missing -= len(column)
        return encode(pa.chunked_array(columns), self._label_classes)


def _open(place: str, stamp: tuple[int, int]) -> pq.ParquetFile:
    try:
        place = seekable(place, *stamp)
        return pq.ParquetFile(open_file(place, stamp[0]) if is_url(place) else pa.OSFile(os.fsencode(place)))
    except InputError:
        raise
    except Exception as error:  # Arrow's, the system's, and each remote driver has errors of its own
        if is_shortage(error):
            raise
        raise InputError(f"{place} cannot be read as a Parquet file ({reason(error)}): replace it.") from error


def _columns(schema: pa.Schema, place: str) -> dict[str, Any]:
    """Which column holds the pictures, which the labels, and the classes' names if the file tells them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):  # not from the hub
        features = {}
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    fit = [field.name for field in schema if _holds_pictures(field.type)]
    told = [name for name in fit if kinds.get(name) == "Image"]
    image = next((name for name in ("image", *told, "img", "picture", "jpg", "png") if name in fit), None)
    if image is None and len(fit) == 1:
        image = fit[0]
    if image is None:
        raise InputError(
            f"{place} has no column of pictures (its columns: {', '.join(schema.names)}): name a binary column image."
        )
    classes = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    label = next((name for name in ("label", *classes[:1], "labels", "fine_label") if name in schema.names), None)
    names = features.get(label, {}).get("names") if kinds.get(label) == "ClassLabel" else None
    inside = "" if not pa.types.is_struct(schema.field(image).type) else ".bytes"
    return {"image": image + inside, "label": label, "label_names": names}


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_pictures(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _bytes(value: pa.Scalar) -> bytes:
    content = value.as_py()
    if isinstance(content, dict):
        content = content["bytes"]
    if content is None:
        raise UnreadableError("the row holds no bytes: the picture was not put into the Parquet file")
    return bytes(content)


def _bytes_or_error(value: pa.Scalar) -> bytes | UnreadableError:
    try:
        return _bytes(value)
    except UnreadableError as error:
        return error
