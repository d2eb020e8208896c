"""`instdisc embed`: the vectors of a whole collection, in a file."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from instdisc import ranks
from instdisc.allocator import keep_freed_memory
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.sources.gathered import GONE
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.embeddings import Embedded, Written, check_ending, open_embeddings, write_embeddings
from instdisc.encoder import Encoder
from instdisc.encoder.embed import autocast, gathered
from instdisc.errors import counted
from instdisc.jobs.collection import Collection
from instdisc.jobs.run import Run
from instdisc.jobs.sources import log_lines
from instdisc.runs import RunFolder
from instdisc.shapes import Float, Int, Tensor


def embed(
    run: str | Path,
    source: Any,
    out: str | Path,
    *,
    labels: Any = None,
    limit: int | None = None,
    device: str = "auto",
    batch: int = 256,
    vectors: str = "search",
    precision: str = "auto",
    restart: bool = False,
    say: Callable[[str], None] | None = print,
) -> Written:
    """Embed every picture of `source` with a run's encoder into `out` (.parquet or .npy); an interrupted job goes on.

    vectors, precision: as `Encoder.embed` takes it. restart: throw away what an interrupted job had done.
    Raises InputError for an invalid argument.
    """
    check_ending(Path(out))
    with ranks.distributed():
        torch_device = ranks.device(device)
        encoder = Run(run).encoder(device)
        pictures = open_source(source, labels=labels, limit=limit)
        log_lines(say if ranks.is_main() else None, pictures.label_notes)
        if vectors == "search" and encoder.whitening is None and say is not None and ranks.is_main():
            say(f"{run} has no search vectors yet, as at the end of a run: the embedding takes their place.")
        written = embed_to(
            out,
            encoder,
            pictures,
            torch_device,
            batch=batch,
            vectors=vectors,
            precision=precision,
            restart=restart,
            say=say,
        )
        if pictures.skipped and ranks.is_main():
            listed = written.path.with_name(f"{written.path.name}.quarantine.csv")
            Quarantine(listed).skip(pictures.skipped.lines(pictures.name))
            if say is not None:
                for note in pictures.notes:
                    say(f"  {note}")
                say(f"  {listed} names what was skipped.")
        return written


def embed_to(
    out: str | Path,
    encoder: Encoder,
    pictures: Source,
    device: torch.device,
    *,
    batch: int = 256,
    vectors: str = "search",
    precision: str = "auto",
    restart: bool | Literal["other"] = False,
    say: Callable[[str], None] | None = None,
) -> Written:
    """The same with an encoder, which is moved to `device`, and a source that are open already. Every rank calls it.

    restart: "other" throws away only the work of another job.
    """
    autocast(device, precision)  # a name that is none is refused before anything is read
    dim = encoder.dimensions(vectors)
    digest = digest_of(encoder, encoder.describe())
    if precision != "auto":  # vectors of two precisions never stand in one file
        digest.update(precision.encode())
    if vectors == "search" and encoder.whitening is not None:  # nor those of two kinds
        digest.update(encoder.whitening.digest.encode())
    encoder.to(device)
    keep_freed_memory(device.type)
    if say is not None and ranks.is_main():
        say(f"Embedding {counted(len(pictures), 'picture')} of {pictures.name}.")

    def embed_rows(rows: np.ndarray) -> Embedded:
        unreadable: list[tuple[int, str]] = []
        chunks = encoder.embed_stream(
            pictures,
            batch,
            vectors=vectors,
            precision=precision,
            on_unreadable=lambda row, name, reason: unreadable.append((row, reason)),
            rows=rows,
        )
        found, vectors_found = gathered(chunks, len(rows), dim)
        return Embedded(vectors_found, found, sorted(unreadable))

    written = write_embeddings(pictures, embed_rows, out, run_fingerprint=digest.hexdigest(), restart=restart)
    if say is not None and ranks.is_main():
        stand = counted(
            written.count, f"vector of {written.dim} dimensions is", f"vectors of {written.dim} dimensions are"
        )
        say(f"{stand} in {written.path}.")
        if written.unreadable:
            say(f"{counted(written.unreadable, 'picture')} could not be read: see {written.path}.quarantine.csv.")
    return written


def digest_of(module: nn.Module, facts: Any) -> hashlib._Hash:
    """A hash of all tensors of a module, and of facts beside them."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, values in sorted(module.state_dict().items()):
        digest.update(name.encode() + values.contiguous().cpu().numpy().tobytes())
    return digest


def embedded(
    collection: Collection,
    source: Source,
    name: str,
    device: str,
    say: Callable[[str], None] | None,
    kind: str | None = None,
) -> tuple[Int[np.ndarray, " read"], Float[Tensor, "read dim"], list[str]]:
    """The rows of `source` that could be read, their vectors, and their labels in words. Only inside `changing`.

    name: of the files that it works with, so that it goes on where it was interrupted; `forget` removes them.
    kind: "search" or "embedding"; what the collection has, if not said.
    """
    out = collection.folder.index / f"{name}.npy"
    rows, vectors = vectors_of(out, collection.encoder(device), source, vectors=kind or collection.vectors, say=say)
    codes = np.full(len(rows), -1) if source.labels is None else source.labels[rows]
    whole = torch.from_numpy(np.array(vectors))
    ranks.barrier()  # nobody removes the file before all have read it
    return rows, whole, [source.class_name(code) for code in codes.tolist()]


def vectors_of(
    out: Path,
    encoder: Encoder,
    source: Source,
    *,
    vectors: str,
    batch: int = 256,
    say: Callable[[str], None] | None = None,
) -> tuple[Int[np.ndarray, " read"], Float[np.ndarray, "read dim"]]:
    """The rows of `source` that could be read, and their vectors, mapped from `out` (.npy), where the encoder is.

    The one way from a source to vectors: OUT.quarantine.csv says what could not be read; an interrupted start goes on,
    and the work of another encoder or source is thrown away. vectors: as `Encoder.embed_stream` takes it.
    """
    device = next(encoder.parameters()).device
    written = embed_to(out, encoder, source, device, vectors=vectors, batch=batch, restart="other")
    if say is not None:
        be = "was" if written.count == 1 else "were"
        say(f"{written.count:,} of {counted(len(source), 'picture')} of {source.name} {be} embedded.")
        gone = _gone(out) if written.unreadable else []
        if gone:
            say(f"{counted(len(gone), 'picture has', 'pictures have')} gone, the first is {gone[0]}.")
        if written.unreadable > len(gone):
            say(f"{written.unreadable - len(gone):,} could not be read: see {out}.quarantine.csv.")
    return read_vectors(out, source)


def read_vectors(out: Path, source: Source) -> tuple[Int[np.ndarray, " read"], Float[np.ndarray, "read dim"]]:
    """The rows of `source` that `write_embeddings` could read, and their vectors, mapped from `out` (.npy)."""
    opened = open_embeddings(out)
    numbers = {identifier: row for row, identifier in enumerate(_bytes(source.fetch_table()["id"]))}
    return np.array([numbers[identifier] for identifier in _bytes(opened.ids)]), opened.vectors


def note_unreadable(out: Path, quarantine: Quarantine) -> None:
    """Put what OUT.quarantine.csv lists on the list of a run."""
    listed = out.with_name(f"{out.name}.quarantine.csv")
    if listed.is_file():
        with open(listed, newline="", encoding="utf-8", errors="surrogateescape") as lines:
            for line in csv.DictReader(lines):
                quarantine.add(line["id"], line["path"], line["reason"])


def _gone(out: Path) -> list[str]:
    """Where the pictures stood that are not there any more, of those that could not be embedded."""
    with open(f"{out}.quarantine.csv", newline="", encoding="utf-8", errors="surrogateescape") as lines:
        return [line["path"] for line in csv.DictReader(lines) if line["reason"] == GONE]


def _bytes(column: pa.ChunkedArray) -> list[bytes]:
    """Names as bytes: one table has them as text, and another not, where one of them is not UTF-8."""
    return pc.cast(column, pa.large_binary()).to_pylist()


def forget(folder: RunFolder, *names: str) -> None:
    """Remove the files that `embedded` left, once its vectors are kept or not needed any more."""
    for name in names:
        for ending in (".npy", ".ids.parquet"):
            with suppress(OSError):
                (folder.index / f"{name}{ending}").unlink(missing_ok=True)
