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
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instdisc import ranks
from instdisc.data.loading.pixel_cache import fingerprint_of
from instdisc.data.sources.source import Source
from instdisc.errors import InputError, advice, is_shortage
from instdisc.files import sync_folder, write_json, write_whole
from instdisc.progress import Bar

_METADATA = b"instdisc"  # key in the Parquet schema: whose vectors these are, and the names of the labels


class NothingReadableError(InputError):
    """No picture of a source could be read."""


class Embedded(NamedTuple):
    """What became of a part's pictures: a vector or a reason for each."""

    vectors: np.ndarray  # (read, dim) float32
    rows: np.ndarray  # (read,) source rows, ascending
    unreadable: list[tuple[int, str]]  # source row, reason


@dataclass(frozen=True)
class Written:
    """What `write_embeddings` did."""

    path: Path
    count: int  # vectors written
    dim: int
    unreadable: int
    reused: int  # pictures that an earlier, interrupted start had done


@dataclass(frozen=True)
class Embeddings:
    """The vectors of a collection and which picture each belongs to."""

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
    """
    out = Path(out)
    check_ending(out)
    parts = _Parts(out.with_name(out.name + ".parts"), len(source), chunk)
    missing = ranks.on_main(lambda: parts.prepare(_job(source, run_fingerprint, chunk), restart))
    todo = sum(stop - start for start, stop in map(parts.bounds, missing))
    first, last = ranks.share(len(missing))
    own = sum(stop - start for start, stop in map(parts.bounds, missing[first:last]))
    with ranks.fail_together(), Bar(own, "Embedding", "pictures", enabled=ranks.is_main()) as bar:
        for number in missing[first:last]:
            start, stop = parts.bounds(number)
            parts.write(number, embed_rows(np.arange(start, stop)))
            bar.advance(stop - start)
    ranks.barrier()
    count, dim, unreadable = ranks.on_main(lambda: _put_together(source, parts, out, run_fingerprint))
    return Written(out, count, dim, unreadable, len(source) - todo)


def open_embeddings(path: Path | str) -> Embeddings:
    """Open what `write_embeddings` wrote: .npy is mapped, .parquet is read. Raises InputError if damaged."""
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


class _Parts:
    """The folder of finished parts: part `number` holds the source rows `bounds(number)`."""

    def __init__(self, folder: Path, pictures: int, chunk: int) -> None:
        self.folder, self.pictures, self.chunk = folder, pictures, chunk
        self.count = -(-pictures // chunk)

    def bounds(self, number: int) -> tuple[int, int]:
        """The source rows [start, stop) of a part."""
        return number * self.chunk, min((number + 1) * self.chunk, self.pictures)

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.npz"

    def prepare(self, job: dict[str, Any], restart: bool | str) -> list[int]:
        """The numbers of the parts that are still to do. Refuses the parts of another job."""
        journal = self.folder / "job.json"
        if self.folder.exists() and (restart is True or not journal.exists()):
            # Without its journal the folder is what was left of a job that had just ended.
            shutil.rmtree(self.folder)
        if journal.exists():
            try:
                before = json.loads(journal.read_text(encoding="utf-8"))
            except ValueError:
                before = {}
            # The chunk may differ from the one asked for only at the price of other bounds: that is another job too.
            names = {"run": "encoder", "source": "source", "pictures": "number of pictures", "chunk": "chunk size"}
            other = [names[key] for key in names if before.get(key) != job[key]]
            if other and restart:
                return self.prepare(job, restart=True)
            if other:
                raise InputError(
                    f"{self.folder} holds the unfinished work of another job (another {' and '.join(other)}): "
                    "choose another output file, or pass --restart to throw that work away."
                )
        else:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"{self.folder} can't be made ({error.strerror}): choose another output file."
                ) from None
            write_json(journal, job)
        return [number for number in range(self.count) if not self.path(number).exists()]

    def write(self, number: int, embedded: Embedded) -> None:
        """One part, whole or not at all."""
        vectors = np.asarray(embedded.vectors, dtype=np.float32)
        rows = np.asarray(embedded.rows, dtype=np.int64)
        bad_rows = np.array([row for row, _ in embedded.unreadable], dtype=np.int64)
        start, stop = self.bounds(number)
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise ValueError(f"vectors of shape {vectors.shape} for {len(rows)} rows")
        if (np.diff(rows) <= 0).any() or not np.array_equal(np.sort(np.r_[rows, bad_rows]), np.arange(start, stop)):
            raise ValueError(f"each of the rows {start} to {stop - 1} needs a vector or a reason, in order")
        if not np.isfinite(vectors).all():
            raise InputError(
                "The encoder gave NaN or infinity for a picture: its weights are damaged, use another checkpoint."
            )
        reasons = np.array([reason for _, reason in embedded.unreadable], dtype=np.str_)
        content = io.BytesIO()
        dim = np.array(vectors.shape[1])
        np.savez(content, vectors=vectors, dim=dim, rows=rows, bad_rows=bad_rows, reasons=reasons)
        write_whole(self.path(number), content.getvalue())

    def read(self, number: int, *names: str) -> list[np.ndarray]:
        """Arrays of one part. A damaged part is removed, so that the next start makes it again."""
        path = self.path(number)
        if not path.exists():
            raise InputError(
                f"{path} is missing: all processes must see the folder {self.folder}. Start again to go on."
            )
        try:
            # Opened here: np.load leaves a damaged file open.
            with open(path, "rb") as file, np.load(file) as arrays:
                return [arrays[name] for name in names]
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
            if is_shortage(error):
                raise
            path.unlink(missing_ok=True)
            raise InputError(f"{path} was damaged and is removed: run the same command to make it again.") from None

    def remove(self) -> None:
        """Remove the folder, its journal first: what a kill leaves here is then known to be of no use."""
        (self.folder / "job.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _put_together(source: Source, parts: _Parts, out: Path, run_fingerprint: str) -> tuple[int, int, int]:
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


def _write_table(source: Source, parts: _Parts, path: Path, schema: pa.Schema) -> Path:
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


def _write_array(parts: _Parts, path: Path, shape: tuple[int, int]) -> Path:
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


def _write_quarantine(source: Source, parts: _Parts, path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "path", "reason"))
    for row, reason in _unreadable(parts):
        writer.writerow((source.identifier(row), source.location(row), reason))
    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _unreadable(parts: _Parts) -> Iterator[tuple[int, str]]:
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
