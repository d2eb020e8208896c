"""Pictures that stand as files: folders, recursively, or files named one by one; local or at a URL.

A scan lists names, sizes and dates, and opens only files whose name does not say what they are and that it has not
judged before. Names are bytes from end to end: what is not UTF-8 survives. Rows are sorted by id, so that files added
or removed leave the ids of the others, and their order, as they were. What is no row is kept behind the rows, with its
kind: it is counted from there, and no later scan opens it again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.classes import find_classes
from instdisc.data.sources.labels import Encoded
from instdisc.data.sources.source import Content, Source
from instdisc.data.storage.kinds import (
    HEAD,
    NOT_READ,
    PICTURE,
    has_picture_name,
    is_sure,
    kind_of_content,
    kinds_read,
    unusual_endings,
)
from instdisc.data.storage.listing import Entry, list_local, list_remote, short_names
from instdisc.data.storage.remote import describe, read_bytes
from instdisc.data.storage.scan import (
    Columns,
    OpenIndex,
    chunks,
    digest_of,
    facts_of,
    index_file,
    read_index,
    write_index,
)
from instdisc.data.storage.skipped import MOST_NAMED, Skipped
from instdisc.data.storage.urls import is_url, reason, without_secrets
from instdisc.errors import InputError, is_shortage
from instdisc.progress import track

_SCHEMA = pa.schema(
    [
        ("id", pa.large_binary()),
        ("size", pa.int64()),
        ("version", pa.int64()),
        ("root", pa.int16()),
        ("label", pa.int32()),
        ("kind", pa.string()),  # PICTURE for the rows; null while a scan has not told it
    ]
)
_LISTED = _SCHEMA.append(pa.field("node", pa.int64())).append(pa.field("link", pa.bool_()))  # while a scan goes on
_LABEL, _KIND = _SCHEMA.get_field_index("label"), _SCHEMA.get_field_index("kind")
_ARCHIVES = {"parquet": "Parquet files", "tar": "tar shards"}
_LARGEST = 2**30  # bytes; what is larger is no picture, and would only fill the memory
_AT_ONCE = 16  # requests under way to a remote location


def open_folders(name: str, folders: Sequence[str], index_folder: Path | None, limit: int | None) -> FileSource:
    """Scan one folder or several (again), and open what they hold. Raises InputError for a folder that is not there."""
    roots = [location.rstrip("/") or "/" if is_url(location) else os.path.abspath(location) for location in folders]
    names = [b""] if len(roots) == 1 else [os.fsencode(root) + b"/" for root in short_names(roots)]
    path = index_file(index_folder, "folder", roots)
    found = Columns(_LISTED)

    def listed() -> Iterator[tuple[int, Entry]]:
        for number, root in enumerate(roots):
            for entry in list_remote(root) if is_url(root) else list_local(os.fsencode(root)):
                yield number, entry

    for number, entry in track(listed(), description=f"Listing {name}"):
        below, size, version, kind, node, link = entry
        found.add(names[number] + below, size, version, number, -1, kind, node, link)
    table = found.table()
    table = table.take(pc.sort_indices(table["id"]))
    before = read_index(path)
    kinds = _without_links(table, _judge(table, roots, names, before))
    table = table.drop_columns(["node", "link"]).set_column(_KIND, _SCHEMA.field("kind"), kinds)
    pictures = pc.equal(kinds, PICTURE).to_numpy(zero_copy_only=False)
    table = table.take(np.concatenate([np.flatnonzero(pictures), np.flatnonzero(~pictures)]))
    count = int(pictures.sum())
    classes = find_classes(table["id"].slice(0, count), names)
    column = np.full(len(table), -1, dtype=np.int32)
    if classes.labels is not None:
        column[:count] = classes.labels[0]
    table = table.set_column(_LABEL, _SCHEMA.field("label"), pa.array(column))
    facts = {
        "pictures": count,
        "label_names": None if classes.labels is None else classes.labels[1],
        "choices": classes.choices + _twins(table["id"].slice(0, count)),
        "skipped": _skipped(table, count, roots, names).to_facts(),
        "reads": list(kinds_read()),
        "fingerprint": digest_of(table["id"].slice(start, stop - start).to_pylist() for start, stop in chunks(count)),
    }
    if before is None or not before.equals(table) or facts_of(before) != {**facts_of(before), **facts}:
        write_index(path, table, facts)
    return FileSource(name, path, roots, names, limit)


def open_files(name: str, locations: Sequence[str], index_folder: Path | None, limit: int | None) -> FileSource:
    """Picture files named one by one, in the order given; the id is the path as given.

    Raises InputError when none is there, or one is given twice.
    """
    if not any(is_url(location) or os.path.exists(location) for location in locations):
        raise InputError(f"{name} does not exist: check the path.")
    found = Columns(_SCHEMA)
    for location in locations:
        found.add(os.fsencode(location), -1, 0, 0, -1, PICTURE)
    table = found.table()
    if pc.count_distinct(table["id"]).as_py() < len(table):
        raise InputError(f"{name} names a file twice: give each picture once.")
    fingerprint = digest_of(table["id"].slice(start, stop - start).to_pylist() for start, stop in chunks(len(table)))
    path = index_file(index_folder, "files", [os.getcwd(), fingerprint])
    if read_index(path) is None:
        facts: dict[str, Any] = {"pictures": len(table), "label_names": None, "choices": [], "fingerprint": fingerprint}
        write_index(path, table, facts)
    return FileSource(name, path, [os.getcwd()], [b""], limit)


class FileSource(Source):
    """One picture a file. Ids: the path below the folder, with the folder's name in front when there are several."""

    def __init__(
        self, name: str, index: Path, roots: Sequence[str], names: Sequence[bytes], limit: int | None = None
    ) -> None:
        self._index = OpenIndex(index)
        facts = self._index.facts
        super().__init__(name, int(facts["pictures"]), limit=limit, choices=facts["choices"])
        self.skipped = Skipped.from_facts(facts.get("skipped"))
        self._roots, self._names = list(roots), list(names)

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        return list(self._index.table["id"].slice(start, stop - start).to_pylist())

    def locations(self, start: int, stop: int) -> list[bytes]:
        return [
            os.fsencode(without_secrets(os.fsdecode(location))) if b"://" in location else location
            for location in self._addresses(start, stop)
        ]

    def _addresses(self, start: int, stop: int) -> list[bytes]:
        """Where rows are read from: a URL with its password."""
        ids = self.identifiers(start, stop)
        roots = self._index.table["root"].slice(start, stop - start).to_pylist()
        return [_place(entry, self._roots[root], self._names[root]) for entry, root in zip(ids, roots, strict=True)]

    def stamps(self) -> Int64[np.ndarray, "rows 2"]:
        table = self._index.table.slice(0, len(self))
        found = np.stack([table["size"].to_numpy(), table["version"].to_numpy()], axis=1)
        for row in np.flatnonzero(found[:, 0] < 0):  # a file that was named by itself, which no scan has looked at
            location = os.fsdecode(self._addresses(int(row), int(row) + 1)[0])
            if not is_url(location) and os.path.exists(location):
                found[row] = describe(location)
        return found

    def read(self, row: int) -> Content:
        location = os.fsdecode(self._addresses(row, row + 1)[0])
        try:
            if not is_url(location):
                return _read_local(location)
            return read_bytes(location)
        except FileNotFoundError as error:
            raise UnreadableError("the file is not there any more") from error
        except OSError as error:
            if is_shortage(error):
                raise
            raise UnreadableError(f"the file cannot be read: {error.strerror or reason(error)}") from error
        except UnreadableError:
            raise
        except Exception as error:  # each remote driver has errors of its own
            if is_shortage(error):
                raise
            raise UnreadableError(f"the file cannot be fetched: {reason(error)}") from error

    def iterate(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, Content | UnreadableError]]:
        if not any(is_url(root) for root in self._roots) and not is_url(self.location(0)):
            yield from super().iterate(rows)
            return
        wanted = np.arange(len(self)) if rows is None else rows
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # the time goes into waiting for answers
            for start, stop in chunks(len(wanted), 4 * _AT_ONCE):
                batch = [int(row) for row in wanted[start:stop]]
                yield from zip(batch, pool.map(self.read_or_error, batch), strict=True)

    def _own_labels(self) -> Encoded | None:
        names = self._index.facts["label_names"]
        if names is None:
            return None
        return self._index.table["label"].slice(0, len(self)).to_numpy().astype(np.int64), list(names)

    def archives(self) -> tuple[str, list[str]] | None:
        """What the folder is really about, when more bytes lie in Parquet files or tar shards than in pictures.

        A data set on a hub is a folder of Parquet files with perhaps a logo beside them; a folder of pictures may hold
        a small table of facts. Returns the kind and the files, None for a folder of pictures.
        """
        pictures = int(self._index.facts["pictures"])
        weights = {PICTURE: _weight(self._index.table["size"].slice(0, pictures))}
        others = self._index.table.slice(pictures)
        held = {kind: others.filter(pc.equal(others["kind"], kind)) for kind in _ARCHIVES}
        weights |= {kind: _weight(found["size"]) for kind, found in held.items()}
        heaviest = max(weights, key=lambda kind: weights[kind])
        if heaviest == PICTURE:
            return None
        return _ARCHIVES[heaviest], list(map(os.fsdecode, _places(held[heaviest], self._roots, self._names)))

    def skipped_for(self, archives: str) -> Skipped:
        """What is skipped where the folder is opened as its `archives`: pictures too, and those archives not."""
        found = Skipped.from_facts(self.skipped.to_facts())
        taken = next(kind for kind, name in _ARCHIVES.items() if name == archives)
        found.counts.pop(taken)
        beside = self._index.table.slice(0, min(MOST_NAMED, int(self._index.facts["pictures"])))
        locations = map(os.fsdecode, _places(beside, self._roots, self._names))
        found.add("beside", locations, int(self._index.facts["pictures"]))
        return found


def _weight(sizes: pa.ChunkedArray) -> tuple[int, int]:
    """Bytes, then files: a listing on the web gives no sizes."""
    return int(pc.sum(pc.max_element_wise(sizes, 0)).as_py() or 0), len(sizes)


def _place(entry: bytes, root: str, name: bytes) -> bytes:
    """Path or URL of an id."""
    if is_url(os.fsdecode(entry)):
        return entry
    below = entry[len(name) :]
    return os.path.join(os.fsencode(root), below) if not is_url(root) else os.fsencode(root) + b"/" + below


def _read_local(location: str) -> bytes:
    with open(location, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size > _LARGEST:
            raise UnreadableError(f"the file has {status.st_size:,} bytes, and more than {_LARGEST:,} are not read")
        return file.read()


def _places(rows: pa.Table, roots: Sequence[str], names: Sequence[bytes]) -> Iterator[bytes]:
    """Paths or URLs of some lines of an index."""
    for start, stop in chunks(len(rows)):
        piece = rows.slice(start, stop - start)
        for entry, root in zip(piece["id"].to_pylist(), piece["root"].to_pylist(), strict=True):
            yield _place(entry, roots[root], names[root])


def _judge(table: pa.Table, roots: Sequence[str], names: Sequence[bytes], before: pa.Table | None) -> pa.ChunkedArray:
    """The kind of every file: by name if the name says it, else as an earlier scan saw, else by content.

    A file that is called a picture and is none is a row all the same: it belongs on the quarantine list, with a reason.
    """
    by_name = table["kind"]
    remote = np.array([is_url(root) for root in roots])[table["root"].to_numpy()]
    doubtful = [kind for kind in pc.unique(by_name).to_pylist() if not is_sure(kind)]
    asked = np.flatnonzero(pc.is_in(by_name, pa.array(doubtful, pa.string())).to_numpy() & ~remote)
    if not len(asked):
        return by_name
    told: list[str | None] = [None] * len(asked)
    if before is not None and facts_of(before).get("reads") == list(kinds_read()):
        told = _as_before(table.take(pa.array(asked)), before)
    unknown = [position for position, kind in enumerate(told) if kind is None]
    pieces = list(chunks(len(unknown), 256))
    with ThreadPoolExecutor(8) as pool:  # on a network disk the time goes into waiting

        def look(piece: tuple[int, int]) -> None:
            positions = unknown[piece[0] : piece[1]]
            rows = table.take(pa.array(asked[positions]))
            for position, path, kind in zip(
                positions, _places(rows, roots, names), rows["kind"].to_pylist(), strict=True
            ):
                told[position] = kind_of_content(kind, _head(path))

        for _ in track(pool.map(look, pieces), total=len(pieces), description="Looking into files"):
            pass
    mask = np.zeros(len(table), dtype=bool)
    mask[asked] = True
    return pa.chunked_array([pc.replace_with_mask(by_name.combine_chunks(), mask, pa.array(told, pa.string()))])


def _as_before(files: pa.Table, before: pa.Table) -> list[str | None]:
    """The kinds that an earlier scan saw in files that have not changed since; None for the others."""
    old = pc.index_in(files["id"], value_set=before["id"])
    known = before.take(pc.fill_null(old, 0)) if len(before) else before
    if not len(known):
        return [None] * len(files)
    kinds = pc.if_else(pc.equal(known["kind"], "link"), PICTURE, known["kind"])  # what it is a link to may have gone
    same = pc.is_valid(old)
    for column in ("size", "version"):
        same = pc.and_(same, pc.equal(known[column], files[column]))
    found: list[str | None] = pc.if_else(same, kinds, pa.scalar(None, pa.string())).to_pylist()
    return found


def _without_links(table: pa.Table, kinds: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each picture once: of several names of one file, hard or symbolic links, one stays a picture.

    That is the first by name of those that are called a picture, and a file rather than a link to it. Linked files are
    few, as a rule, and all others are left alone here.
    """
    linked = pc.and_(table["link"], pc.equal(kinds, PICTURE))
    if not pc.any(linked).as_py():
        return kinds
    nodes = pc.unique(table["node"].filter(linked))
    rows = np.flatnonzero(pc.and_(pc.is_in(table["node"], nodes), pc.equal(kinds, PICTURE)).to_numpy())
    few = table.take(pa.array(rows))
    best: dict[int, tuple[bool, bool, int]] = {}
    ranks = [
        (not has_picture_name(name), link, int(row))
        for name, link, row in zip(few["id"].to_pylist(), few["link"].to_pylist(), rows, strict=True)
    ]
    nodes_of_rows = few["node"].to_pylist()
    for node, rank in zip(nodes_of_rows, ranks, strict=True):
        best[node] = min(rank, best.get(node, rank))
    mask = np.zeros(len(table), dtype=bool)
    mask[[rank[2] for node, rank in zip(nodes_of_rows, ranks, strict=True) if best[node] != rank]] = True
    return pc.if_else(pa.array(mask), "link", kinds)


def _skipped(table: pa.Table, count: int, roots: Sequence[str], names: Sequence[bytes]) -> Skipped:
    """The lines of an index behind its pictures, by their kind."""
    found = Skipped()
    others = table.slice(count)
    for counted in pc.value_counts(others["kind"]).to_pylist():
        kind = counted["values"]
        rows = others.filter(pc.equal(others["kind"], kind)).slice(0, MOST_NAMED)
        found.add(kind, map(os.fsdecode, _places(rows, roots, names)), counted["counts"])
    unread = others.filter(pc.is_in(others["kind"], pa.array(list(NOT_READ))))
    if len(unread):
        stems = _stems(table["id"].slice(0, count))
        paired = pc.is_in(_stems(unread["id"]), value_set=stems)
        found.paired.update(unread["kind"].filter(paired).to_pylist())
    return found


def _twins(pictures: pa.ChunkedArray) -> list[str]:
    """A sentence on pictures that a camera wrote twice, where both are read."""
    endings = [pc.ends_with(pictures, b"." + ending, ignore_case=True) for ending in unusual_endings()]
    if not endings or not len(pictures):
        return []
    unusual = functools.reduce(pc.or_, endings)
    if not pc.any(unusual).as_py():
        return []
    stems = _stems(pictures)
    count = pc.sum(pc.is_in(stems.filter(unusual), value_set=stems.filter(pc.invert(unusual)))).as_py()
    if not count:
        return []
    stand = "1 picture stands" if count == 1 else f"{count:,} pictures stand"
    return [f"{stand} beside another of the same name ({', '.join(kinds_read())} and others): both are taken."]


def _stems(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids without their last ending."""
    return pc.replace_substring_regex(ids, rb"\.[^./]*$", b"")


def _head(path: bytes) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(HEAD)
    except OSError as error:
        if is_shortage(error):
            raise
        return b""
