"""`instdisc search`: the pictures of a run's collection that are most like a picture of one's own.

The first search embeds the collection, once; with `bank` the rows of the bank are the index, and nothing is built.
Search is exact, by blocks, whatever the size of the collection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import ranks
from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.jobs.index import searchable, store_key
from instdisc.report import neighbour_sheet
from instdisc.search.catalogue import Entry
from instdisc.search.postgres import Postgres
from instdisc.shapes import Float, Tensor

_GREY = np.full((64, 64, 3), 128, np.uint8)  # in the place of a picture that has gone


@dataclass(frozen=True)
class Neighbour(Entry):
    """score: cosine with the query."""

    score: float


def search(
    run: str | Path,
    pictures: Sequence[str | Path],
    *,
    neighbours: int = 20,
    where: str | None = None,
    label: str | None = None,
    tag: str | None = None,
    sheet: str | Path | None = None,
    store: str | None = None,
    bank: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] | None = print,
) -> list[list[Neighbour]]:
    """For each picture file the `neighbours` pictures of the collection with the highest cosine, best first.

    A picture of the collection itself is never its own neighbour; where the vectors were made elsewhere, only
    these can be asked for, by path or id. where: only ids that match this pattern (`*`, `?`);
    label: only pictures of this class; tag: only pictures that have it. sheet: a PNG to draw the answers to.
    store: ask the copy on this PostgreSQL server, nearly exactly, in place of the run's own vectors. bank: search by
    what is there at once, the rows of the bank perhaps; without it the search vectors of the collection are computed
    first, once, where the run can make them.
    train_source: where the training pictures are now, if they were moved: needed for labels and the sheet only.
    The processes of torchrun share the rows; each has the answers, and the main one draws the sheet.
    Raises InputError for pictures that can't be read, and where fewer than `neighbours` pictures are to choose from.
    """
    if not pictures:
        raise InputError("Name a picture to search for.")
    with ranks.together():
        if store is not None and ranks.world() > 1:
            raise InputError("A server is asked by one process: start it without torchrun.")
        collection = searchable(
            run, bank=bank or store is not None, train_source=train_source, device=device, say=say, by_ranks=True
        )
        if (label is not None and store is None) or sheet is not None:
            collection.training_source()  # refuses what has gone
        index = collection.index
        paths = [os.path.abspath(os.path.expanduser(picture)) for picture in pictures]
        own = index.rows_of(paths)
        if store is not None:
            answers = _asked(collection, store, pictures, neighbours, where, label, tag, paths, device)
        else:
            among = index.matching(where=where, label=label, tag=tag)
            if collection.given:
                own = index.rows_named([os.fspath(one) for one in pictures])
            queries = ranks.on_main(lambda: _queries(collection, pictures, own, device))
            scores, found = index.search(queries.to(ranks.device(device)), neighbours, among=among, exclude=own)
            answers = [
                [Neighbour(**vars(entry), score=score) for entry, score in zip(index.entries(rows), line, strict=True)]
                for line, rows in zip(scores.tolist(), found.numpy(), strict=True)
            ]
        if not ranks.is_main():
            return answers
    if sheet is not None:
        asked = open_source([os.fspath(picture) for picture in pictures])
        neighbour_sheet(
            [decode(asked.read(row)) for row in range(len(asked))],
            [[picture_or_grey(collection, one.row) for one in line] for line in answers],
            [[one.score for one in line] for line in answers],
            Path(sheet),
            query_labels=[index.entries([row])[0].label if row >= 0 else "" for row in own.tolist()],
            neighbour_labels=[[one.label for one in line] for line in answers],
        )
    return answers


def _queries(
    collection: Collection, pictures: Sequence[str | Path], own: np.ndarray, device: str
) -> Float[Tensor, "pictures dim"]:
    """Their vectors: embedded, or those that the collection has, where it has no encoder. own: their rows, or -1."""
    if collection.given and (own >= 0).all():
        return collection.index.vectors(own)
    return collection.embed([os.fspath(one) for one in pictures], device)


def _asked(
    collection: Collection,
    url: str,
    pictures: Sequence[str | Path],
    neighbours: int,
    where: str | None,
    label: str | None,
    tag: str | None,
    paths: Sequence[str],
    device: str,
) -> list[list[Neighbour]]:
    """The answers of a server, once it is known to hold this collection's vectors."""
    key, step = store_key(collection), collection.saved.step
    with Postgres(url) as server:
        held = server.made_by(key)
        if held != (step, collection.changes.whitening):
            state = "has never held this collection"
            if held is not None:
                same = f"holds vectors of another kind than {collection.folder.path} has now"
                state = same if held[0] == step else f"holds vectors of step {held[0]}, not {step}"
            raise InputError(
                f"The server {state}: bring it up to date with `instdisc index {collection.folder.path} --store URL`."
            )
        queries = collection.embed([os.fspath(picture) for picture in pictures], device)
        found = server.search(key, queries, neighbours, where=where, label=label, tag=tag, exclude=paths)
    return [[Neighbour(**vars(entry), score=score) for entry, score in line] for line in found]


def picture_or_grey(collection: Collection, row: int) -> np.ndarray:
    """A picture of the collection, or a grey square where it can't be read any more."""
    return pixels_or_grey(collection.content, row)


def pixels_or_grey(read: Callable[[int], Any], row: int) -> np.ndarray:
    """The pixels of what `read` gives for a row, or a grey square where it can't be read."""
    try:
        return decode(read(row))
    except UnreadableError:
        return _GREY
