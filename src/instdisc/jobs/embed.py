"""`instdisc embed`: the vectors of a whole collection, in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from instdisc import checkpoint, ranks
from instdisc.allocator import keep_freed_memory
from instdisc.data.source import Source, open_source
from instdisc.embeddings import Embedded, Written, write_embeddings
from instdisc.encoder import Encoder
from instdisc.encoder.embed import autocast


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
    Raises InputError for what can't be.
    """
    with ranks.together():
        place = ranks.device(device)
        encoder = checkpoint.load_encoder(run)
        pictures = open_source(source, labels=labels, limit=limit)
        if vectors == "search" and encoder.whitening is None and say is not None and ranks.is_main():
            say(f"{run} has no search vectors yet, as at the end of a run: the embedding takes their place.")
        return embed_to(
            out, encoder, pictures, place, batch=batch, vectors=vectors, precision=precision, restart=restart, say=say
        )


def embed_to(
    out: str | Path,
    encoder: Encoder,
    pictures: Source,
    place: torch.device,
    *,
    batch: int = 256,
    vectors: str = "search",
    precision: str = "auto",
    restart: bool | Literal["other"] = False,
    say: Callable[[str], None] | None = None,
) -> Written:
    """The same with an encoder, which is moved to `place`, and a source that are open already. Every rank calls it.

    restart: "other" throws away only the work of another job.
    """
    autocast(place, precision)  # a name that is none is refused before anything is read
    dim = encoder.dimensions(vectors)
    digest = hashlib.sha256(repr(encoder.describe()).encode())
    for name, values in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + values.contiguous().cpu().numpy().tobytes())
    if precision != "auto":  # vectors of two precisions never stand in one file
        digest.update(precision.encode())
    if vectors == "search" and encoder.whitening is not None:  # nor those of two kinds
        digest.update(encoder.whitening.digest.encode())
    encoder.to(place)
    keep_freed_memory(place.type)
    if say is not None and ranks.is_main():
        say(f"Embedding {len(pictures):,} pictures of {pictures.name}.")

    def embed_rows(rows: np.ndarray) -> Embedded:
        unreadable: list[tuple[int, str]] = []
        numbers, parts = [], []
        chunks = encoder.embed_stream(
            pictures,
            batch,
            vectors=vectors,
            precision=precision,
            on_unreadable=lambda row, name, reason: unreadable.append((row, reason)),
            rows=rows,
        )
        for chunk, values in chunks:
            numbers.append(chunk)
            parts.append(values.numpy())
        found = np.concatenate(numbers) if numbers else np.zeros(0, np.int64)
        order = np.argsort(found)
        stacked = np.concatenate(parts) if parts else np.zeros((0, dim), np.float32)
        return Embedded(stacked[order], found[order], sorted(unreadable))

    written = write_embeddings(pictures, embed_rows, out, run_fingerprint=digest.hexdigest(), restart=restart)
    if say is not None and ranks.is_main():
        say(f"{written.count:,} vectors of {written.dim} dimensions are in {written.path}.")
        if written.unreadable:
            say(f"{written.unreadable} pictures could not be read: see {written.path}.quarantine.csv.")
    return written
