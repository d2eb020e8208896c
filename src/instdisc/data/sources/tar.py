"""Pictures in tar shards, in the WebDataset form or as plain archives of files.

`0017.jpg` with `0017.cls` (or a `label` in `0017.json`) is one labelled picture. One pass over each shard (shards.py)
notes where every picture begins; from then on any picture is one read, in any order, also over a network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.labels import Encoded, encode
from instdisc.data.sources.row_groups import FEWEST_KEPT, Groups, KeptGroups
from instdisc.data.sources.shards import scan
from instdisc.data.sources.source import Content, Source
from instdisc.data.storage.remote import describe, names_below, read_range, seekable
from instdisc.data.storage.scan import OpenIndex, chunks, digest_of, facts_of, index_file, read_index, write_index
from instdisc.data.storage.skipped import Skipped
from instdisc.data.storage.urls import is_url, reason, without_secrets
from instdisc.errors import InputError, is_shortage
from instdisc.progress import Bar

_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("key", pa.large_binary()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.string()),
    ]
)
_SPAN = 8 * 2**20  # bytes fetched at once when rows are walked in order
_GAP = 2**20  # bytes between two pictures that are fetched and thrown away rather than asked around


def open_tar(name: str, locations: Sequence[str], index_folder: Path | None, limit: int | None) -> TarSource:
    """Note where each picture stands, in the shards that are new or changed, and open all.

    Raises InputError for a shard that is missing or is no tar.
    """
    locations = [location if is_url(location) else os.path.abspath(location) for location in locations]
    path = index_file(index_folder, "tar", locations)
    before = read_index(path)
    known = facts_of(before)["shards"] if before is not None else []
    stamps = [list(describe(location)) for location in locations]
    if before is None or [shard["stamp"] for shard in known] != stamps:
        tables, shards, row = [], [], 0
        with Bar(description="Reading shards", unit="pictures") as bar:
            for number, (location, stamp) in enumerate(zip(locations, stamps, strict=True)):
                if before is not None and known[number]["stamp"] == stamp:
                    shard = known[number]
                    table = before.slice(row, shard["rows"]).replace_schema_metadata(None)
                else:
                    found = scan(location, (stamp[0], stamp[1]), bar)
                    numbers = pa.repeat(pa.scalar(number, pa.int32()), len(found.rows))
                    table = found.rows.add_column(0, _SCHEMA.field("shard"), numbers)
                    shard = {"stamp": stamp, **found.facts()}
                row += known[number]["rows"] if before is not None else 0
                tables.append(table)
                shards.append(shard)
        table = pa.concat_tables(tables)
        keys = (
            table[column].slice(start, stop - start)
            for column in ("shard", "key")
            for start, stop in chunks(len(table))
        )
        fingerprint = digest_of([str(entry).encode() for entry in batch.to_pylist()] for batch in keys)
        write_index(path, table, {"shards": shards, "fingerprint": fingerprint})
    return TarSource(name, path, locations, limit)


class TarSource(Source):
    """One picture a sample, in the order of the shards. Ids: `shard-000.tar#0017`."""

    def __init__(self, name: str, index: Path, locations: Sequence[str], limit: int | None = None) -> None:
        self._index = OpenIndex(index)
        facts = self._index.facts
        super().__init__(name, len(self._index.table), limit=limit)
        for shard in facts["shards"]:
            self.skipped.merge(Skipped.from_facts(shard["skipped"]))
        self._places, self._names = list(locations), [os.fsencode(entry) for entry in names_below(locations)]
        self._stamps = [(int(shard["stamp"][0]), int(shard["stamp"][1])) for shard in facts["shards"]]
        self._prepare()

    def _prepare(self) -> None:
        """What is not pickled: the stretches that were read last."""
        self._lock = threading.Lock()
        self._kept: KeptGroups[bytes] = KeptGroups(FEWEST_KEPT)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_lock", "_kept", "_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        return self._join(self._names, start, stop)

    def locations(self, start: int, stop: int) -> list[bytes]:
        return self._join([os.fsencode(without_secrets(location)) for location in self._places], start, stop)

    def _join(self, shards: Sequence[bytes], start: int, stop: int) -> list[bytes]:
        rows = self._index.table.slice(start, stop - start)
        keys, numbers = rows["key"].to_pylist(), rows["shard"].to_pylist()
        return [shards[number] + b"#" + key for number, key in zip(numbers, keys, strict=True)]

    def stamps(self) -> Int64[np.ndarray, "rows 2"]:
        return np.array(self._stamps, np.int64)[self._index.table["shard"].slice(0, len(self)).to_numpy()]

    def read(self, row: int) -> Content:
        shard, offset, size = self._spot(row)
        return _exactly(self._fetch(shard, offset, size), size)

    @cached_property
    def _starts(self) -> np.ndarray:
        """First row of each stretch of a shard that is read at once."""
        shards = self._index.table["shard"].to_numpy().astype(np.int64)
        stretches = self._index.table["offset"].to_numpy() // _SPAN
        new = (np.diff(shards) != 0) | (np.diff(stretches) != 0)
        return np.concatenate([[0], np.flatnonzero(new) + 1])

    def groups(self) -> Groups | None:
        sizes = [size for size, _ in self._stamps]
        remote = any(is_url(location) for location in self._places)
        return Groups(self._starts[self._starts < len(self)], sum(sizes) if min(sizes) >= 0 else -1, dear=remote)

    def _read_of_group(self, row: int) -> Content | UnreadableError:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        last = int(self._starts[group + 1] if group + 1 < len(self._starts) else len(self._index.table)) - 1
        shard, begin, _ = self._spot(int(self._starts[group]))
        _, offset, size = self._spot(last)
        length = offset + size - begin
        try:
            with self._lock:
                content = self._kept.get(group, length, lambda: self._fetch(shard, begin, length))
            _, offset, size = self._spot(row)
            return _exactly(content[offset - begin : offset - begin + size], size)
        except UnreadableError as error:
            return error

    def iterate(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, Content | UnreadableError]]:
        if self._keeps_groups:
            for row in range(len(self)) if rows is None else rows:
                yield int(row), self._read_of_group(int(row))
            return
        span: list[tuple[int, int, int]] = []  # row, offset, size: neighbours in one shard, fetched together
        span_shard = -1
        for row in range(len(self)) if rows is None else rows:
            shard, offset, size = self._spot(int(row))
            end = span[-1][1] + span[-1][2] if span else 0
            if span and (shard != span_shard or not 0 <= offset - end <= _GAP or offset + size - span[0][1] > _SPAN):
                yield from self._read_span(span_shard, span)
                span = []
            span_shard = shard
            span.append((int(row), offset, size))
        if span:
            yield from self._read_span(span_shard, span)

    def _read_span(
        self, shard: int, span: Sequence[tuple[int, int, int]]
    ) -> Iterator[tuple[int, Content | UnreadableError]]:
        begin = span[0][1]
        try:
            content = self._fetch(shard, begin, span[-1][1] + span[-1][2] - begin)
        except UnreadableError as error:
            yield from ((row, error) for row, _, _ in span)
            return
        for row, offset, size in span:
            try:
                yield row, _exactly(content[offset - begin : offset - begin + size], size)
            except UnreadableError as error:
                yield row, error

    def _spot(self, row: int) -> tuple[int, int, int]:
        table = self._index.table
        return table["shard"][row].as_py(), table["offset"][row].as_py(), table["size"][row].as_py()

    def _fetch(self, shard: int, offset: int, size: int) -> bytes:
        try:
            return read_range(seekable(self._places[shard], *self._stamps[shard]), offset, size)
        except Exception as error:  # each remote driver has errors of its own
            if is_shortage(error) or isinstance(error, InputError):
                raise
            raise UnreadableError(f"its shard cannot be read: {reason(error)}") from error

    def _own_labels(self) -> Encoded | None:
        return encode(self._index.table["label"].slice(0, len(self)))


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise UnreadableError("its shard ends in the middle of it")
    return content
