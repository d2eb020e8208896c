"""`instdisc search`: the pictures of a run's collection that are most like a picture of one's own.

The first search embeds the collection, once; with `bank` the rows of the bank are the index, and nothing is built.
Search is exact, by blocks, whatever the size of the collection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import ranks
from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.jobs.index import searchable, store_key
from instdisc.jobs.sources import findable
from instdisc.report import neighbour_sheet
from instdisc.search.catalogue import Entry
from instdisc.search.index import Index
from instdisc.search.postgres import Postgres
from instdisc.shapes import Float, Int, Tensor

_GREY = np.full((64, 64, 3), 128, np.uint8)  # in the place of a picture that has gone


@dataclass(frozen=True)
class Neighbour(Entry):
    """score: cosine with the query."""

    score: float


def search(
    run: str | Path,
    pictures: Sequence[str | os.PathLike[str]],
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
    """For each picture the `neighbours` pictures of the collection with the highest cosine, best first.

    pictures: files, or paths and ids of the collection, where a picture is never its own neighbour. where: only ids
    that match this pattern (`*`, `?`); label: only pictures of this class; tag: only pictures that have it.
    sheet: a PNG to draw the answers to. store: ask the copy on this PostgreSQL server, nearly exactly, in place of the
    run's own vectors. bank: search by what is there at once, the rows of the bank perhaps; without it the search
    vectors of the collection are computed first, once, where the run can make them.
    train_source: where the training pictures are now, if they were moved: needed for labels and the sheet only.
    The processes of torchrun share the rows; each has the answers, and the main one draws the sheet.
    Raises InputError for pictures that can't be read, and where fewer than `neighbours` pictures are to choose from.
    """
    if not pictures:
        raise InputError("Name a picture to search for.")
    with ranks.distributed():
        if store is not None and ranks.world() > 1:
            raise InputError("A server is asked by one process: start it without torchrun.")
        collection = searchable(
            run, bank=bank or store is not None, train_source=train_source, device=device, say=say, by_ranks=True
        )
        if (label is not None and store is None) or sheet is not None:
            collection.training_source()  # refuses what has gone
        own = own_rows(collection, pictures)
        only: dict[str, Any] = {"where": where, "label": label, "tag": tag}
        if store is not None:
            answers = _asked(collection, store, pictures, own, neighbours, only, device)
        else:
            among = collection.index.matching(**only)
            answers = nearest(collection, pictures, own, neighbours, among=among, device=device)
        if not ranks.is_main():
            return answers
    if sheet is not None:
        entries = collection.index.entries(np.maximum(own, 0))
        neighbour_sheet(
            [
                picture_or_grey(collection, row) if _is_stored(collection, picture, row) else decode(_content(picture))
                for picture, row in zip(pictures, own.tolist(), strict=True)
            ],
            [[picture_or_grey(collection, one.row) for one in line] for line in answers],
            [[one.score for one in line] for line in answers],
            Path(sheet),
            query_labels=[entry.label if row >= 0 else "" for entry, row in zip(entries, own, strict=True)],
            neighbour_labels=[[one.label for one in line] for line in answers],
        )
    return answers


def own_rows(collection: Collection, pictures: Sequence[Any]) -> Int[np.ndarray, " pictures"]:
    """The row that each picture has in the collection; -1 for one from elsewhere.

    pictures: rows, paths, ids, or pixels, which are always from elsewhere. A file that is there is never taken for an
    id, unless the vectors were made elsewhere. Raises InputError for a row that is not in the collection.
    """
    index, rows = collection.index, np.full(len(pictures), -1)
    for place, picture in enumerate(pictures):
        if isinstance(picture, int | np.integer):
            rows[place] = _present(index, int(picture))
    for find in (_by_location, _by_name):
        left = [place for place in np.flatnonzero(rows < 0).tolist() if _is_name(pictures[place])]
        if left:
            rows[left] = find(collection, [os.fspath(pictures[place]) for place in left])
    return rows


def query_vectors(
    collection: Collection, pictures: Sequence[Any], own: np.ndarray, device: str = "auto"
) -> Float[Tensor, "pictures dim"]:
    """The vectors of pictures as `own_rows` takes them, which can be compared with those of the collection; on the CPU.

    own: their rows, or -1. Files and pixels are embedded as they are now; a picture that is named by its row or id has
    the vector that the collection has of it. Raises InputError for an unreadable picture, and for one from elsewhere
    where there is no encoder.
    """
    stored = np.array([_is_stored(collection, one, row) for one, row in zip(pictures, own.tolist(), strict=True)])
    others = [picture for picture, here in zip(pictures, stored, strict=True) if not here]
    if others and collection.given:
        named = f"{os.fspath(others[0])} is no picture" if _is_name(others[0]) else "The picture given is none"
        raise InputError(
            f"{named} of {collection.folder.path}, whose vectors were made elsewhere, and there is no encoder to "
            "search by others: name one of its pictures by row, path or id. `instdisc open PICTURES --encoder NAME` "
            "makes a run with an encoder."
        )
    if not others:
        return collection.index.vectors(own)
    embedded = collection.embed([os.fspath(one) if _is_name(one) else one for one in others], device).cpu()
    vectors = torch.empty(len(pictures), embedded.shape[1])
    vectors[torch.from_numpy(~stored)] = embedded
    vectors[torch.from_numpy(stored)] = collection.index.vectors(own[stored])
    return vectors


def nearest(
    collection: Collection,
    pictures: Sequence[Any],
    own: np.ndarray,
    neighbours: int,
    *,
    among: np.ndarray | None = None,
    device: str = "auto",
) -> list[list[Neighbour]]:
    """For each picture its neighbours in the collection, best first. own: of `own_rows`; among: of `Index.matching`."""
    index = collection.index
    queries = ranks.on_main(lambda: query_vectors(collection, pictures, own, device))
    scores, found = index.search(queries.to(ranks.device(device)), neighbours, among=among, exclude=own)
    return [
        [Neighbour(**vars(entry), score=score) for entry, score in zip(index.entries(rows), line, strict=True)]
        for line, rows in zip(scores.tolist(), found.numpy(), strict=True)
    ]


def _present(index: Index, row: int) -> int:
    if not 0 <= row < len(index):
        raise InputError(f"There is no picture {row}: rows are 0 to {len(index) - 1}.")
    if index.removed[row]:
        raise InputError(f"Picture {row} was removed from the collection: name another.")
    return row


def _by_location(collection: Collection, names: list[str]) -> np.ndarray:
    return collection.index.rows_of([findable(name) for name in names])


def _by_name(collection: Collection, names: list[str]) -> np.ndarray:
    """By ids and paths as people spell them, but for names of files that are there."""
    found = np.full(len(names), -1)
    asked = [place for place, name in enumerate(names) if collection.given or not _is_there(name)]
    if asked:
        found[asked] = collection.index.rows_named([names[place] for place in asked])
    return found


def _is_name(picture: Any) -> bool:
    return isinstance(picture, str | os.PathLike)


def _is_there(name: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(name) or os.path.exists(os.path.expanduser(name))


def _is_stored(collection: Collection, picture: Any, row: int) -> bool:
    """Whether a picture is taken as the collection has it: named by its row or id, or of a run without an encoder."""
    return row >= 0 and (collection.given or not _is_name(picture) or not _is_there(picture))


def _content(picture: str | os.PathLike[str]) -> Any:
    return open_source([os.fspath(picture)]).read(0)


def _asked(
    collection: Collection,
    url: str,
    pictures: Sequence[str | os.PathLike[str]],
    own: np.ndarray,
    neighbours: int,
    only: Mapping[str, Any],
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
        queries = query_vectors(collection, pictures, own, device)
        paths = [entry.path for entry in collection.index.entries(np.maximum(own, 0))]
        exclude = [path if row >= 0 else "" for path, row in zip(paths, own, strict=True)]
        found = server.search(key, queries, neighbours, **only, exclude=exclude)
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
