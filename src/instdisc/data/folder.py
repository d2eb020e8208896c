"""Pictures that stand as files: folders, recursively, or files named one by one; local or at a URL.

A scan lists names, sizes and dates, and opens only files whose name does not say that they are pictures and that it has
not judged before. Names are bytes from end to end: what is not UTF-8 survives. Rows are sorted by id, so that files
added or removed leave the ids of the others, and their order, as they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc.data.decode import UnreadableError
from instdisc.data.index import Columns, OpenIndex, chunks, digest_of, facts_of, index_file, read_index, write_index
from instdisc.data.labels import Encoded, encode
from instdisc.data.listing import has_picture_name, is_picture, list_local, list_remote, short_names
from instdisc.data.places import is_url, read_bytes, reason
from instdisc.data.source import Content, Source
from instdisc.errors import InputError, is_shortage
from instdisc.progress import track

_SCHEMA = pa.schema(
    [
        ("id", pa.large_binary()),
        ("size", pa.int64()),
        ("version", pa.int64()),
        ("root", pa.int16()),
        ("label", pa.int32()),
    ]
)
_ARCHIVES = {"Parquet files": (".parquet", ".pq"), "tar shards": (".tar",)}
_HEAD = 32  # bytes that tell a picture
_LARGEST = 2**30  # bytes; what is larger is no picture, and would only fill the memory
_AT_ONCE = 16  # requests under way to a remote place


def open_folders(name: str, folders: Sequence[str], index_folder: Path | None, limit: int | None) -> FileSource:
    """Scan one folder or several (again), and open what they hold. Raises InputError for a folder that is not there."""
    roots = [place.rstrip("/") or "/" if is_url(place) else os.path.abspath(place) for place in folders]
    names = [b""] if len(roots) == 1 else [os.fsencode(root) + b"/" for root in short_names(roots)]
    path = index_file(index_folder, "folder", roots)
    unopened: list[bytes] = []
    found = Columns(_SCHEMA)

    def listed() -> Iterator[tuple[int, tuple[bytes, int, int]]]:
        for number, root in enumerate(roots):
            files = list_remote(root, unopened) if is_url(root) else list_local(os.fsencode(root), unopened)
            for entry in files:
                yield number, entry

    for number, (below, size, version) in track(listed(), description=f"Listing {name}"):
        found.add(names[number] + below, size, version, number, -1)
    table = found.table()
    table = table.take(pc.sort_indices(table["id"]))
    before = read_index(path)
    pictures = _judge(table, roots, names, before)
    # Pictures first, the others behind them: these are remembered only so that no scan opens them again.
    table = table.take(np.concatenate([np.flatnonzero(pictures), np.flatnonzero(~pictures)]))
    count = int(pictures.sum())
    labels = _class_folders(table["id"].slice(0, count), names)
    column = np.full(len(table), -1, dtype=np.int32)
    if labels is not None:
        column[:count] = labels[0]
    table = table.set_column(table.schema.get_field_index("label"), _SCHEMA.field("label"), pa.array(column))
    facts = {
        "pictures": count,
        "unopened": len(unopened),
        "label_names": None if labels is None else labels[1],
        "fingerprint": digest_of(table["id"].slice(start, stop - start).to_pylist() for start, stop in chunks(count)),
    }
    if before is None or not before.equals(table) or facts_of(before) != {**facts_of(before), **facts}:
        write_index(path, table, facts)
    return FileSource(name, path, roots, names, limit)


def open_files(name: str, places: Sequence[str], index_folder: Path | None, limit: int | None) -> FileSource:
    """Picture files named one by one, in the order given; the id is the path as given.

    Raises InputError when none is there, or one is given twice.
    """
    if not any(is_url(place) or os.path.exists(place) for place in places):
        raise InputError(f"{name} does not exist: check the path.")
    found = Columns(_SCHEMA)
    for place in places:
        found.add(os.fsencode(place), -1, 0, 0, -1)
    table = found.table()
    if pc.count_distinct(table["id"]).as_py() < len(table):
        raise InputError(f"{name} names a file twice: give each picture once.")
    fingerprint = digest_of(table["id"].slice(start, stop - start).to_pylist() for start, stop in chunks(len(table)))
    path = index_file(index_folder, "files", [os.getcwd(), fingerprint])
    if read_index(path) is None:
        facts = {"pictures": len(table), "unopened": 0, "label_names": None, "fingerprint": fingerprint}
        write_index(path, table, facts)
    return FileSource(name, path, [os.getcwd()], [b""], limit)


class FileSource(Source):
    """One picture a file. Ids: the path below the folder, with the folder's name in front when there are several."""

    def __init__(
        self, name: str, index: Path, roots: Sequence[str], names: Sequence[bytes], limit: int | None = None
    ) -> None:
        self._index = OpenIndex(index)
        facts = self._index.facts
        count = int(facts["pictures"])
        notes = []
        passed_over = len(self._index.table) - count
        if passed_over:
            notes.append(f"{passed_over:,} files that are not pictures were passed over.")
        if facts["unopened"]:
            notes.append(f"{facts['unopened']:,} folders could not be opened and were passed over.")
        super().__init__(name, count, limit=limit, notes=notes)
        self._roots, self._names = list(roots), list(names)

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        return list(self._index.table["id"].slice(start, stop - start).to_pylist())

    def locations(self, start: int, stop: int) -> list[bytes]:
        ids = self.identifiers(start, stop)
        roots = self._index.table["root"].slice(start, stop - start).to_pylist()
        return [_place(entry, self._roots[root], self._names[root]) for entry, root in zip(ids, roots, strict=True)]

    def read(self, row: int) -> Content:
        place = self.location(row)
        try:
            if not is_url(place):
                return _read_local(place)
            return read_bytes(place)
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
        weights = {"": _weight(self._index.table["size"].slice(0, pictures))}
        others = self._index.table.slice(pictures)
        held: dict[str, list[str]] = {}
        for kind, endings in _ARCHIVES.items():
            matches = [pc.ends_with(others["id"], ending.encode(), ignore_case=True) for ending in endings]
            found = others.filter(matches[0] if len(matches) == 1 else pc.or_(*matches))
            weights[kind] = _weight(found["size"])
            held[kind] = [
                os.fsdecode(_place(entry, self._roots[root], self._names[root]))
                for entry, root in zip(found["id"].to_pylist(), found["root"].to_pylist(), strict=True)
            ]
        heaviest = max(weights, key=lambda kind: weights[kind])
        return (heaviest, held[heaviest]) if heaviest else None


def _weight(sizes: pa.ChunkedArray) -> tuple[int, int]:
    """Bytes, then files: a listing on the web gives no sizes."""
    return int(pc.sum(pc.max_element_wise(sizes, 0)).as_py() or 0), len(sizes)


def _place(entry: bytes, root: str, name: bytes) -> bytes:
    """Path or URL of an id."""
    if is_url(os.fsdecode(entry)):
        return entry
    below = entry[len(name) :]
    return os.path.join(os.fsencode(root), below) if not is_url(root) else os.fsencode(root) + b"/" + below


def _read_local(place: str) -> bytes:
    with open(place, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size > _LARGEST:
            raise UnreadableError(f"the file has {status.st_size:,} bytes, and more than {_LARGEST:,} are not read")
        return file.read()


def _judge(table: pa.Table, roots: Sequence[str], names: Sequence[bytes], before: pa.Table | None) -> np.ndarray:
    """bool (n,): which files are pictures. By name if the name says so, else as an earlier scan saw, else by content.

    A file that is called a picture and is none is a row all the same: it belongs on the quarantine list, with a reason.
    """
    pictures = np.zeros(len(table), dtype=bool)
    unknown = np.ones(len(table), dtype=bool)
    for start, stop in chunks(len(table)):
        ids = table["id"].slice(start, stop - start).to_pylist()
        pictures[start:stop] = [has_picture_name(entry) for entry in ids]
    unknown &= ~pictures
    if before is not None and unknown.any():
        asked = np.flatnonzero(unknown)
        old = pc.fill_null(pc.index_in(table["id"].take(pa.array(asked)), value_set=before["id"]), -1)
        place = (
            old.combine_chunks().to_numpy(zero_copy_only=False) if isinstance(old, pa.ChunkedArray) else old.to_numpy()
        )
        same = place >= 0
        for column in ("size", "version"):
            same &= before[column].to_numpy()[place] == table[column].to_numpy()[asked] if len(before) else False
        pictures[asked] = same & (place < int(facts_of(before)["pictures"]))
        unknown[asked] = ~same
    remote = np.array([is_url(root) for root in roots])
    unknown &= ~remote[
        table["root"].to_numpy()
    ]  # over the network, a request a file would take hours: the name decides
    asked = np.flatnonzero(unknown)
    pieces = list(chunks(len(asked), 256))
    with ThreadPoolExecutor(8) as pool:  # on a network disk the time goes into waiting

        def look(piece: tuple[int, int]) -> None:
            for row in asked[piece[0] : piece[1]]:
                root = table["root"][row].as_py()
                pictures[row] = is_picture(_head(_place(table["id"][row].as_py(), roots[root], names[root])))

        for _ in track(pool.map(look, pieces), total=len(pieces), description="Looking into files"):
            pass
    return pictures


def _head(path: bytes) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_HEAD)
    except OSError as error:
        if is_shortage(error):
            raise
        return b""


def _class_folders(ids: pa.ChunkedArray, names: Sequence[bytes]) -> Encoded | None:
    """Labels from folders: only if every picture lies in a folder right below its root, and there are two or more."""
    prefixes = tuple(names)
    heads = Columns(pa.schema([("head", pa.large_binary())]))
    for start, stop in chunks(len(ids)):
        for entry in ids.slice(start, stop - start).to_pylist():
            prefix = next(prefix for prefix in prefixes if entry.startswith(prefix))
            head, _, rest = entry[len(prefix) :].partition(b"/")
            if not rest or b"/" in rest:
                return None
            heads.add(head)
    codes, classes = encode(heads.table()["head"])
    return (codes, classes) if len(classes) > 1 else None
