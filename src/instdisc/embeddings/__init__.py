"""The vectors of a whole collection on disk: written part by part, carried on after a kill, by one process or many.

    write_embeddings(source, embed_rows, "vectors.parquet", run_fingerprint=...)
    vectors = open_embeddings("vectors.parquet").vectors        # (n, dim) float32; row i is `.identifier(i)`

    vectors.parquet    columns id, location, label (if there are any), vector: fixed_size_list<float>
    vectors.npy        the vectors alone, float32, to be memory-mapped; vectors.ids.parquet has the other columns
    OUT.quarantine.csv what could not be read (id, path, reason); those pictures have no row
    OUT.parts/         finished parts while the work goes on: one file each, written whole, so a file is a finished part

Every process of torchrun writes parts of its own; the main one puts them together in source order and renames the
result into place. Memory holds one part, whatever the size of the collection.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instdisc import ranks
from instdisc.data.loading.pixel_cache import fingerprint_of
from instdisc.data.sources.source import Source
from instdisc.embeddings.parts import Embedded, Parts
from instdisc.errors import InputError, advice, is_shortage
from instdisc.files import sync_folder, write_whole
from instdisc.progress import Bar

__all__ = ["Embedded", "Embeddings", "NothingReadableError", "Written", "open_embeddings", "write_embeddings"]

_METADATA = b"instdisc"  # key in the Parquet schema: whose vectors these are, and the names of the labels


class NothingReadableError(InputError):
    """No picture of a source could be read.

    Examples:
        >>> import numpy as np
        >>> from instdisc import data, embeddings
        >>> def embed_rows(rows):
        ...     reasons = [(row, "the JPEG is cut short") for row in rows.tolist()]
        ...     return embeddings.Embedded(np.zeros((0, 4), np.float32), rows[:0], reasons)
        >>> source = data.open_source(np.zeros((3, 8, 8, 3), np.uint8))
        >>> try:
        ...     embeddings.write_embeddings(source, embed_rows, "vectors.npy", run_fingerprint="none")
        ... except embeddings.NothingReadableError as error:
        ...     print(error)
        None of the 3 pictures could be read: vectors.npy.quarantine.csv says why.
    """


@dataclass(frozen=True)
class Written:
    """What `write_embeddings` did.

    Examples:
        >>> import numpy as np
        >>> from instdisc import data, embeddings
        >>> def embed_rows(rows):  # the second picture is damaged
        ...     return embeddings.Embedded(np.eye(2, 4, dtype=np.float32), rows[[0, 2]], [(1, "the JPEG is cut short")])
        >>> source = data.open_source(np.zeros((3, 8, 8, 3), np.uint8))
        >>> written = embeddings.write_embeddings(source, embed_rows, "vectors.npy", run_fingerprint="eye")
        >>> written.count, written.dim, written.unreadable, written.reused
        (2, 4, 1, 0)
    """

    path: Path
    count: int  # vectors written
    dim: int
    unreadable: int
    reused: int  # pictures that an earlier, interrupted start had done


@dataclass(frozen=True)
class Embeddings:
    """The vectors of a collection and which picture each belongs to.

    Examples:
        >>> import numpy as np, pyarrow as pa
        >>> from instdisc.embeddings import Embeddings
        >>> ids = pa.chunked_array([["cats/1.jpg", "dogs/7.jpg"]])
        >>> found = Embeddings(np.eye(2, 4, dtype=np.float32), ids, ids, np.array([0, 1]), ["cats", "dogs"])
        >>> found.vectors.shape, found.identifier(1), found.label_names[found.labels[1]]
        ((2, 4), 'dogs/7.jpg', 'dogs')
    """

    vectors: np.ndarray  # (n, dim) float32; a read-only memory map for .npy
    ids: pa.ChunkedArray  # text, or binary where an id is not UTF-8
    locations: pa.ChunkedArray
    labels: np.ndarray | None  # (n,) int64, -1 where a picture has none
    label_names: list[str] | None

    def identifier(self, row: int) -> str:
        """The id of the picture that a row belongs to."""
        return os.fsdecode(self.ids[row].as_py())

    def location(self, row: int) -> str:
        """The path or URL of that picture."""
        return os.fsdecode(self.locations[row].as_py())


def check_ending(out: Path) -> None:
    """Raise InputError for a file whose name does not say how vectors are to be written."""
    if out.suffix not in (".parquet", ".npy"):
        raise InputError(f"{out} should end in .parquet or .npy: that says how the vectors are written.")


def write_embeddings(
    source: Source,
    embed_rows: Callable[[np.ndarray], Embedded],
    out: Path | str,
    *,
    run_fingerprint: str,
    chunk: int = 4096,
    restart: bool | Literal["other"] = False,
) -> Written:
    """Embed all pictures of `source` into `out` (.parquet or .npy), and go on where an interrupted start ended.

    embed_rows: given source rows (ascending), their vectors, and the reasons for those that cannot be read.
    run_fingerprint: anything that differs whenever the vectors would (encoder, weights, preprocessing).
    chunk: pictures a part, the most work that a kill can lose for each process.
    restart: throw away unfinished parts; "other": only those of another encoder or source.
    Every process of a run must call it; the parts must be in a folder that all of them see.
    Raises InputError if the unfinished parts belong to another encoder or source, and NothingReadableError if nothing
    could be read.

    Examples:
        >>> import numpy as np
        >>> from instdisc import data, embeddings
        >>> source = data.open_source(np.zeros((5, 8, 8, 3), np.uint8))
        >>> def embed_rows(rows):  # rows of a table here, and an encoder's vectors in earnest
        ...     return embeddings.Embedded(np.eye(8, dtype=np.float32)[rows], rows, unreadable=[])
        >>> written = embeddings.write_embeddings(source, embed_rows, "vectors.npy", run_fingerprint="eye")
        >>> written.count, written.dim, np.load("vectors.npy").shape
        (5, 8, (5, 8))
    """
    out = Path(out)
    check_ending(out)
    parts = Parts(out.with_name(out.name + ".parts"), len(source), chunk)
    missing = ranks.on_main(lambda: parts.prepare(_job(source, run_fingerprint, chunk), restart))
    todo = sum(stop - start for start, stop in map(parts.bounds, missing))
    first, last = ranks.share(len(missing))
    own = sum(stop - start for start, stop in map(parts.bounds, missing[first:last]))
    with ranks.fail_together(), Bar(own, "Embedding", "pictures", enabled=ranks.is_main()) as bar:
        for number in missing[first:last]:
            start, stop = parts.bounds(number)
            with bar.parts():
                embedded = embed_rows(np.arange(start, stop))
            parts.write(number, embedded)
            bar.advance(stop - start)
    ranks.barrier()
    count, dim, unreadable = ranks.on_main(lambda: _put_together(source, parts, out, run_fingerprint))
    return Written(out, count, dim, unreadable, len(source) - todo)


def open_embeddings(path: Path | str) -> Embeddings:
    """Open what `write_embeddings` wrote: .npy is mapped, .parquet is read. Raises InputError if damaged.

    Examples:
        >>> import numpy as np
        >>> from instdisc import data, embeddings
        >>> source = data.open_source(np.zeros((3, 8, 8, 3), np.uint8), labels=["cat", "dog", "cat"])
        >>> def embed_rows(rows):
        ...     return embeddings.Embedded(np.eye(8, dtype=np.float32)[rows], rows, unreadable=[])
        >>> written = embeddings.write_embeddings(source, embed_rows, "vectors.parquet", run_fingerprint="eye")
        >>> found = embeddings.open_embeddings(written.path)
        >>> found.vectors.shape, found.identifier(2), found.labels, found.label_names
        ((3, 8), 'array#2', array([0, 1, 0]), ['cat', 'dog'])
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There are no vectors at {path}: make them with `instdisc embed RUN SOURCE -o {path.name}`.")
    table_path = path.with_suffix(".ids.parquet") if path.suffix == ".npy" else path
    if not table_path.is_file():
        raise InputError(f"{table_path} is missing: it says which picture each row of {path.name} belongs to.")
    try:
        with pq.ParquetFile(pa.OSFile(os.fsencode(table_path))) as file:
            table = file.read([name for name in file.schema_arrow.names if name != "vector"])
            vectors = np.load(path, mmap_mode="r") if path.suffix == ".npy" else _matrix(file)
        ids, locations = table["id"], table["location"]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if is_shortage(error):
            raise
        raise InputError(f"{path} can't be read as vectors ({error}): embed the pictures again.") from None
    if vectors.ndim != 2 or len(vectors) != len(table):
        raise InputError(f"{path.name} and {table_path.name} do not belong together: embed the pictures again.")
    names = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}")).get("label_names")
    labels = None
    if "label" in table.column_names:
        labels = table["label"].fill_null(-1).to_numpy()
    return Embeddings(vectors, ids, locations, labels, names)


def _job(source: Source, run_fingerprint: str, chunk: int) -> dict[str, Any]:
    """What unfinished parts are of. By content and location too: other folders are often named alike inside."""
    pictures = hashlib.sha256(f"{fingerprint_of(source)} {source.location(0)}".encode("utf-8", "surrogateescape"))
    return {"source": pictures.hexdigest(), "run": run_fingerprint, "pictures": len(source), "chunk": chunk}


def _put_together(source: Source, parts: Parts, out: Path, run_fingerprint: str) -> tuple[int, int, int]:
    """The output files from the parts: vectors written, their dimension, pictures that could not be read."""
    count, unreadable = 0, 0
    dims = set()
    for number in range(parts.count):
        rows, bad_rows, dim_here = parts.read(number, "rows", "bad_rows", "dim")
        count, unreadable = count + len(rows), unreadable + len(bad_rows)
        if len(rows):
            dims.add(int(dim_here))
    quarantine = out.with_name(out.name + ".quarantine.csv")
    quarantine.unlink(missing_ok=True)
    if unreadable:
        _write_quarantine(source, parts, quarantine)
    if not count:
        raise NothingReadableError(f"None of the {len(source)} pictures could be read: {quarantine} says why.")
    if len(dims) > 1:
        raise InputError(
            f"{parts.folder} holds vectors of different lengths {sorted(dims)}: pass --restart to begin again."
        )
    (dim,) = dims
    schema = _schema(source, run_fingerprint, dim)
    try:
        if out.suffix == ".npy":
            table = out.with_suffix(".ids.parquet")
            written = [
                _write_table(source, parts, table, schema.remove(schema.get_field_index("vector"))),
                _write_array(parts, out, (count, dim)),
            ]
            # The old vectors go first and the new ones come last, so that no kill leaves vectors beside foreign ids;
            # and not before the disk has taken all of it.
            out.unlink(missing_ok=True)
            for temporary, path in zip(written, (table, out), strict=True):
                os.replace(temporary, path)
                sync_folder(path.parent)
        else:
            os.replace(_write_table(source, parts, out, schema), out)
            sync_folder(out.parent)
    except OSError as error:
        for path in (out, out.with_suffix(".ids.parquet")):
            with suppress(OSError):
                _temporary(path).unlink(missing_ok=True)
        raise InputError(f"{out} could not be written ({error.strerror or error}): {advice(error)}.") from None
    parts.remove()
    return count, dim, unreadable


def _schema(source: Source, run_fingerprint: str, dim: int) -> pa.Schema:
    text = pa.large_string() if _all_utf8(source) else pa.large_binary()
    fields = [pa.field("id", text), pa.field("location", text)]
    if source.labels is not None:
        fields.append(pa.field("label", pa.int64()))
    fields.append(pa.field("vector", pa.list_(pa.float32(), dim)))
    facts = {"source": source.fingerprint, "run": run_fingerprint, "label_names": source.label_names}
    return pa.schema(fields, metadata={_METADATA: json.dumps(facts).encode()})


def _all_utf8(source: Source, step: int = 65536) -> bool:
    """Whether all ids and locations are text: names on disk are bytes, and one that is not UTF-8 makes them binary."""
    try:
        for start in range(0, len(source), step):
            stop = min(start + step, len(source))
            for name in (*source.identifiers(start, stop), *source.locations(start, stop)):
                name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _write_table(source: Source, parts: Parts, path: Path, schema: pa.Schema) -> Path:
    """Written beside its location; where."""
    temporary = _temporary(path)
    labels = source.labels
    with open(temporary, "wb") as file:
        with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
            for number in range(parts.count):
                start, stop = parts.bounds(number)
                vectors, rows = parts.read(number, "vectors", "rows")
                ids, locations = source.identifiers(start, stop), source.locations(start, stop)
                columns: dict[str, Any] = {
                    "id": _texts([ids[row - start] for row in rows], schema.field("id").type),
                    "location": _texts([locations[row - start] for row in rows], schema.field("location").type),
                }
                if labels is not None:
                    columns["label"] = pa.array(labels[rows], mask=labels[rows] < 0)
                if "vector" in schema.names:
                    dim = schema.field("vector").type.list_size
                    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
                if len(rows):
                    writer.write_table(pa.table(columns, schema=schema))
        _sync(file)
    return temporary


def _texts(names: list[bytes], kind: pa.DataType) -> pa.Array:
    return pa.array(names, pa.large_binary()).cast(kind)


def _write_array(parts: Parts, path: Path, shape: tuple[int, int]) -> Path:
    """The same of the vectors alone."""
    temporary = _temporary(path)
    # Written as a stream: a full disk is then an error and not, as in a memory map, a bus error that ends the process.
    with open(temporary, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(parts.count):
            file.write(parts.read(number, "vectors")[0].astype("<f4", copy=False).tobytes())
        _sync(file)
    return temporary


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_quarantine(source: Source, parts: Parts, path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "path", "reason"))
    for row, reason in _unreadable(parts):
        writer.writerow((source.identifier(row), source.location(row), reason))
    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _unreadable(parts: Parts) -> Iterator[tuple[int, str]]:
    for number in range(parts.count):
        bad_rows, reasons = parts.read(number, "bad_rows", "reasons")
        yield from zip(bad_rows.tolist(), reasons.tolist(), strict=True)


def _matrix(file: pq.ParquetFile) -> np.ndarray:
    """The column `vector` as one array (n, dim), filled one row group at a time: it is held in memory once."""
    kind = file.schema_arrow.field("vector").type
    if not pa.types.is_fixed_size_list(kind):
        raise ValueError("its column vector is no list of a fixed size")
    vectors = np.empty((file.metadata.num_rows, kind.list_size), np.float32)
    start = 0
    for batch in file.iter_batches(columns=["vector"]):
        vectors[start : start + len(batch)] = batch.column(0).flatten().to_numpy().reshape(-1, kind.list_size)
        start += len(batch)
    return vectors
