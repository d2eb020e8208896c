"""The vectors of a whole collection made again, from its pictures as they are: what `index --recompute` keeps.

made = embedded_again(collection, vectors="search", dtype="float32", device="cpu", say=print)
made.changes                                # with these vectors in the place of the former ones; nothing is written
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from instdisc.data.sources.source import Source
from instdisc.data.sources.subset import Subset
from instdisc.encoder.whitening import FORMAT, NoSearchVectorsError
from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.jobs.embed import embedded
from instdisc.jobs.search_vectors import fit_from_source
from instdisc.jobs.sources import stamps_of
from instdisc.search.store import Changes, Part

Say = Callable[[str], None] | None


@dataclass(frozen=True)
class Again:
    """count: of the pictures that were embedded. worked: names of files to be forgotten once the changes are kept."""

    changes: Changes
    worked: list[str]
    count: int


def embedded_again(collection: Collection, *, vectors: str, dtype: str, device: str, say: Say, work: str = "") -> Again:
    """Embed all pictures of a collection. vectors, dtype: as `recompute` takes them.

    work: the beginning of the names of files that it works with, for who is not alone with the index. Raises InputError
    where pictures have gone.
    """
    before, folder = collection.changes, collection.folder
    source = collection.training_source()
    digest = _map_for(collection, source, vectors, device, say)
    kind, worked = "search" if digest else "embedding", [f"{work}recomputed"]
    found, made, _ = embedded(collection, Subset(source, collection.rows), worked[0], device, say, kind)
    training = len(collection.rows)
    own = torch.zeros(training, made.shape[1]) if digest else collection.saved.bank(0, training)
    own[torch.from_numpy(found)] = made
    count, removed, first = len(found), [before.removed], len(own)
    added = []
    for part in before.added:
        assert part.pictures is not None and part.source is not None
        try:
            opened, rows = collection.added_source(part)
        except InputError as error:
            raise InputError(
                f"The pictures that were added from {part.source['given']} can't be embedded again ({error}): "
                f"put them back, or start afresh with `instdisc index {folder.path} --reset`."
            ) from None
        order = np.argsort(rows)[int((rows < 0).sum()) :]  # ascending rows of those that are there
        worked.append(f"{work}{part.name}")
        found, made, _ = embedded(collection, Subset(opened, rows[order]), worked[-1], device, say, kind)
        values = torch.zeros(len(rows), own.shape[1])
        values[torch.from_numpy(order[found])] = made
        removed.append(first + np.setdiff1d(np.arange(len(rows)), order[found]))
        values, stamps = values.to(getattr(torch, dtype)), stamps_of(opened, rows)
        added.append(replace(part, vectors=values, name="", stamps=stamps))
        count, first = count + len(found), first + len(rows)
    changes = replace(
        before,
        step=collection.saved.step,
        recomputed=Part(own.to(getattr(torch, dtype)), stamps=stamps_of(source, collection.rows)),
        added=tuple(added),
        removed=np.unique(np.concatenate(removed)),
        whitening=digest,
    )
    return Again(changes, worked, count)


def _map_for(collection: Collection, source: Source, vectors: str, device: str, say: Say) -> str:
    """The digest of the map to search vectors, fitted now where there is none of this version; "" for embeddings."""
    encoder = collection.encoder(device)
    if vectors == "embedding":
        return ""
    if vectors != "search":
        raise InputError(f'The vectors are "search" or "embedding", not "{vectors}".')
    if encoder.whitening is None or encoder.whitening.facts.format < FORMAT:
        if float(collection.saved.facts.get("epoch", 1)) < 1:
            if say is not None:
                say("No search vectors yet: the first epoch of the run has not ended. The embedding takes their place.")
            return ""
        try:
            step = collection.saved.step
            encoder.whitening = fit_from_source(collection.folder, encoder, source, collection.rows, step)
        except NoSearchVectorsError as error:
            if say is not None:
                say(f"No search vectors: {error} The embedding takes their place.")
            return ""
    return encoder.whitening.digest
