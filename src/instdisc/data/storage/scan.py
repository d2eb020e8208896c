"""The index: what a scan learnt about a collection, written once as a memory-mapped Arrow file.

A table of Arrow columns costs the bytes of its content and nothing a row; mapped from disk it is shared by every
worker process, so a source travels to a worker as a path of a hundred bytes, whatever the number of pictures.
Indexes stand in `cache_folder`/index, one file for each collection ever opened.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from instdisc.errors import InputError, is_shortage
from instdisc.files import write_arrow

_log = logging.getLogger(__name__)
LAYOUT = 2  # of the columns below; an index of another layout is made again
CHUNK = 16_384  # rows that stand in Python objects at a time, and rows of one Arrow batch
_FACTS = b"instdisc"


def cache_folder() -> Path:
    """Where instdisc keeps what it can make again: indexes, downloads, data sets.

    $XDG_CACHE_HOME/instdisc, else ~/.cache/instdisc, else, where that can't be written or nobody is at home, a folder
    that goes when this process ends. Raises InputError where several processes would each make one of their own.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "instdisc"
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home folder is known
        folder = Path.home() / ".cache" / "instdisc"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return _folder_for_now()


@functools.cache
def _folder_for_now() -> Path:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise InputError("No home folder can be written here: set XDG_CACHE_HOME to a folder that all processes see.")
    folder, owner = tempfile.mkdtemp(prefix="instdisc-cache-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a fork that ends leaves it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    _log.warning("No home folder can be written here: caches go to %s and are deleted in the end.", folder)
    return Path(folder)


def index_file(folder: Path | None, kind: str, spec: Iterable[str]) -> Path:
    """The index of a collection: its name is a hash of the kind and of everything that says which collection it is."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in spec:
        digest.update(b"\0" + os.fsencode(part))
    return (folder or cache_folder() / "index") / f"{kind}-{digest.hexdigest()}.arrow"


class Columns:
    """Rows gathered into Arrow columns; at most `CHUNK` of them stand in Python lists."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *values: Any) -> None:
        """One row, its values in the order of the schema."""
        self._rows.append(values)
        if len(self._rows) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def table(self) -> pa.Table:
        """All rows so far."""
        if self._rows:
            self._flush()
        return pa.Table.from_batches(self._batches, self._schema)


def chunks(count: int, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces of `count` rows."""
    return ((start, min(start + size, count)) for start in range(0, count, size))


def digest_of(batches: Iterable[Sequence[bytes]]) -> str:
    """A hash of a sequence of ids, order included, independent of how it is cut into batches."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in batches:
        digest.update(b"".join(len(entry).to_bytes(4, "little") + entry for entry in ids))
    return digest.hexdigest()


def digest_of_numbered(names: Iterable[tuple[bytes, int]]) -> str:
    """`digest_of` the ids name#0, name#1, ... of each name and its count: a fiftieth of the time for millions."""
    digest = hashlib.blake2b(digest_size=16)
    for name, count in names:
        start, digits = 0, 1
        while start < count:
            longest = min(count, 10**digits)  # as many digits up to here
            head = (len(name) + 1 + digits).to_bytes(4, "little") + name + b"#"
            for first, stop in chunks(longest - start):
                numbers = np.arange(start + first, start + stop)
                lines = np.empty((len(numbers), len(head) + digits), np.uint8)
                lines[:, : len(head)] = np.frombuffer(head, np.uint8)
                for place in range(digits):
                    lines[:, -1 - place] = ord("0") + numbers // 10**place % 10
                digest.update(lines.tobytes())
            start, digits = longest, digits + 1
    return digest.hexdigest()


def write_index(path: Path, table: pa.Table, facts: dict[str, Any]) -> None:
    """Write the table with its facts, whole or not at all.

    Raises InputError where the folder cannot be written.
    """
    described = json.dumps({"layout": LAYOUT, **facts}).encode()  # ASCII: surrogate escapes survive
    described_table = table.replace_schema_metadata({_FACTS: described})
    write_arrow(path, described_table, chunk=CHUNK, remedy="set XDG_CACHE_HOME to another folder")


def read_index(path: Path) -> pa.Table | None:
    """The table, memory-mapped; None where there is none yet, or one that is damaged or of another layout."""
    try:
        table = pa.ipc.open_file(pa.memory_map(os.fsencode(path))).read_all()
        return table if facts_of(table).get("layout") == LAYOUT else None
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:  # also of its facts
        if is_shortage(error):
            raise
        return None


def facts_of(table: pa.Table) -> dict[str, Any]:
    """What `write_index` was told beside the columns."""
    metadata = table.schema.metadata or {}
    return dict(json.loads(metadata.get(_FACTS, b"{}")))


class OpenIndex:
    """The index that a source was made with: its table, mapped into memory, and mapped again in another process.

    Raises InputError where it can't be read; and later, in another process, where it is gone or another scan has since
    found other rows: going on would mix up pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = read_index(path)
        if self._table is None:
            raise InputError(f"The index {path} cannot be read: delete it and start again.")
        self.facts = facts_of(self._table)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    @property
    def table(self) -> pa.Table:
        """The rows."""
        if self._table is None:
            table = read_index(self.path)
            if table is None or facts_of(table).get("fingerprint") != self.facts["fingerprint"]:
                raise InputError(
                    f"The index {self.path} was changed by another scan while it was in use: start the command again."
                )
            self._table = table
        return self._table
