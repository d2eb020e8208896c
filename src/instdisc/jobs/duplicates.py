"""`instdisc duplicates`: copies in a collection, proven by their pixels, which of them to keep, and look-alikes.

Nothing is deleted: CSV files, a list of what to remove, and a sheet to look at are written. Only what is proven to be a
copy stands in the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import ranks
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.errors import InputError
from instdisc.files import csv_text, write_text
from instdisc.jobs import index as index_job
from instdisc.jobs.collection import AnyRun, Collection
from instdisc.jobs.copies import KEEP, Duplicates, grouped, look_at_collection, look_at_source
from instdisc.jobs.copies import sharpness as sharpness  # its position until the copies had a file of their own
from instdisc.jobs.search import picture_or_grey, pixels_or_grey
from instdisc.jobs.sources import findable, log_lines
from instdisc.report import neighbour_sheet
from instdisc.search import THRESHOLDS
from instdisc.search.approximate import Graph
from instdisc.search.catalogue import Entry
from instdisc.search.cells import CELLS, MANY, stored_cells
from instdisc.search.copies import PROPOSED
from instdisc.search.graph import stored_graph
from instdisc.search.groups import linked
from instdisc.search.joins import Join
from instdisc.search.pairs import Exact, Vectors
from instdisc.search.stored import stored_links

_MOST_LINKED = 100_000  # pictures whose neighbour graph is made for this
_DRAWN, _COPIES = 40, 7  # groups on the sheet, copies of each
Say = Callable[[str], None] | None


@dataclass(frozen=True)
class LookAlikes:
    """Pictures whose vectors are alike, and which are not proven to be copies. worst: the two least alike, by path.

    score: their cosine. Nothing marks one of them for removal.
    """

    pictures: list[Entry]
    worst: tuple[str, str]
    score: float


def duplicates(
    run: AnyRun,
    *,
    keep: str = "largest",
    out: str | Path | None = None,
    bank: bool = False,
    approximate: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Say = print,
) -> list[Duplicates]:
    """Groups of copies in a run's collection: the same file, or the same picture. The most certain first.

    A copy may be re-encoded, resized, cropped by up to a third, mirrored, turned by quarters, or recoloured a little.
    Vectors, and signatures of thumbnails, only propose pairs: the pixels of both, laid over each other, decide.
    keep: which of a group stays: largest (most pixels, then bytes, the oldest date, the likelier original format),
    sharpest, or oldest (by the file's date). out: the folder of duplicates.csv, remove.txt and duplicates.png;
    RUN/duplicates without. bank: let the rows of the bank propose, in place of vectors of the pictures as they are.
    approximate: let an HNSW graph find the neighbours (the extra `ann`), sooner for a million pictures. The processes
    of torchrun share that; the main one does the rest and returns what was found, the others nothing. Raises InputError
    for an invalid argument.
    """
    _check_keep(keep)
    with ranks.distributed():
        collection, say = opened(run, bank, approximate, train_source, device, say)
        rows, vectors = collection.index.present(ranks.device(device))
        near = comparing(collection, rows, vectors, True, say).neighbours_of_all if approximate else None
        proposed = proposed_pairs(vectors, say, near, kept=None if bank else collection.folder.neighbour_graph)
        if not ranks.is_main():
            return []
    found: list[Duplicates] = []
    if collection.without_pictures:
        log_lines(
            say, ["There are no pictures, so no copies can be proven: --look-alikes lists what is alike by vectors."]
        )
    else:
        looked, show = look_at_collection(collection, show=say is not None), say is not None
        found = grouped(looked, keep, proposed=proposed, cosine=cosines(vectors), sharp=True, show=show)
    write_found(found, partial(picture_or_grey, collection), folder_of(collection, out))
    return found


def duplicates_of_source(
    source: Any, *, keep: str = "largest", out: str | Path = "duplicates", say: Say = print
) -> list[Duplicates]:
    """The copies among some pictures, without a run or an encoder: by their bytes and thumbnails alone.

    source: what `open_source` takes. Thumbnails are kept in `out`. The rest as in `duplicates`.
    """
    _check_keep(keep)
    pictures = source if isinstance(source, Source) else open_source(findable(source))
    looked = look_at_source(pictures, Path(out) / "thumbnails.npy", show=say is not None)
    found = grouped(looked, keep, sharp=True, show=say is not None)
    write_found(found, partial(pixels_or_grey, pictures.read), Path(out))
    return found


def look_alikes(
    run: AnyRun,
    *,
    threshold: float | None = None,
    copies: Sequence[Duplicates] = (),
    out: str | Path | None = None,
    bank: bool = False,
    approximate: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Say = print,
) -> list[LookAlikes]:
    """Groups of pictures, every two with at least the cosine `threshold`; the most alike first.

    threshold: 0.85 of search vectors and 0.95 of embeddings and rows of the bank, where none is given. copies: what
    `duplicates` found: of each such group only the kept one takes part. look_alikes.csv is written; the rest as there.
    """
    with ranks.distributed():
        collection, say = opened(run, bank, approximate, train_source, device, say)
        rows, vectors = collection.index.present(ranks.device(device))
        listed = ranks.broadcast_object([copy.row for group in copies for copy in group.copies])
        if listed:  # the main process alone knows them
            left = np.flatnonzero(~np.isin(rows, listed))
            rows, vectors = rows[left], vectors.some(left)
        compared = comparing(collection, rows, vectors, approximate, say)
        pairs = compared.similar_pairs(usual_threshold(threshold, collection, say), show=say is not None)
        if not ranks.is_main():
            return []
    found = []
    for group in sorted(linked(pairs), key=lambda group: (-group.score, group.members)):
        members = entries_now(collection, rows[list(group.members)])
        worst = tuple(members[group.members.index(position)].path for position in group.worst)
        found.append(LookAlikes(members, (worst[0], worst[1]), group.score))
    lines = (
        (number, one.path, one.id, one.label, f"{group.score:.6f}", "yes" if one.path in group.worst else "no")
        for number, group in enumerate(found, 1)
        for one in group.pictures
    )
    columns = ("group", "path", "id", "label", "least_cosine", "least_alike")
    write_text(folder_of(collection, out) / "look_alikes.csv", csv_text(columns, lines))
    return found


def opened(
    run: AnyRun, bank: bool, approximate: bool, train_source: Any, device: str, say: Say
) -> tuple[Collection, Say]:
    """The collection with the vectors to compare by, and who is told: of several processes the main one alone."""
    say = say if ranks.is_main() else None
    refuse_graph(approximate)
    return index_job.without_augmentation(
        run, bank=bank, train_source=train_source, device=device, say=say, by_ranks=True
    ), say


def _check_keep(keep: str) -> None:
    if keep not in KEEP:
        raise InputError(f'One of {", ".join(KEEP)} can be kept, not "{keep}".')


def proposed_pairs(
    vectors: Vectors, say: Say, near: Callable[..., Any] | None = None, kept: Path | None = None
) -> np.ndarray:
    """int64 (pairs, 2): each position with those of its nearest neighbours.

    near: who finds them; exactly without. kept: the file of the neighbour graph, which is read, or made for all who
    ask for it later; several processes share the work and keep nothing. Of more than 100,000 pictures a graph that is
    not there is not made, which takes longer than all the rest: signatures of thumbnails then propose alone, and find
    99 of 100 that are found with vectors (`runs/many_copies.py`).
    """
    neighbours = min(PROPOSED, vectors.count - 1)
    if neighbours < 1:
        return np.zeros((0, 2), np.int64)
    if near is None and kept is not None and ranks.world() == 1:
        graph = stored_graph(kept, vectors, show=say is not None, most=_MOST_LINKED)
        if graph is None:
            words = f"Thumbnails alone propose what is compared: the neighbour graph of {vectors.count:,} pictures is"
            log_lines(say, [f"{words} not made yet. With it a few more are: *Prepare* on the page makes it."])
            return np.zeros((0, 2), np.int64)
        positions = graph.places[:, :neighbours].astype(np.int64)
    else:
        _, positions = (near or Exact(vectors).neighbours_of_all)(neighbours, show=say is not None)
    return np.stack([np.repeat(np.arange(vectors.count), neighbours), positions.ravel()], axis=1)


def cosines(vectors: Vectors) -> Callable[[int, int], float]:
    """The cosine of two positions."""

    def cosine(one: int, other: int) -> float:
        first, second = vectors.pick(np.array([one, other]))
        return float(first @ second)

    return cosine


def entries_now(collection: Collection, rows: Sequence[int] | np.ndarray) -> list[Entry]:
    """What is known of some rows, with the paths where they are now."""
    known = collection.index.entries(rows)
    return [Entry(one.row, one.id, collection.location(one.row), one.label) for one in known]


def write_found(found: Sequence[Duplicates], picture: Callable[[int], np.ndarray], folder: Path) -> None:
    """duplicates.csv, remove.txt, and duplicates.png where there are copies. picture: the pixels of a row."""
    write_text(folder / "duplicates.csv", _table(found))
    listed = [copy.path for group in found for copy in group.copies if "\n" not in copy.path]
    write_text(folder / "remove.txt", "".join(f"{path}\n" for path in listed))
    (folder / "duplicates.png").unlink(missing_ok=True)
    drawn = found[:_DRAWN]
    if drawn:
        neighbour_sheet(
            [picture(group.kept.row) for group in drawn],
            [[picture(copy.row) for copy in group.copies[:_COPIES]] for group in drawn],
            [[copy.agreement for copy in group.copies[:_COPIES]] for group in drawn],
            folder / "duplicates.png",
            heading="Kept",
            title="Copies, with the agreement of their pixels",
        )


def usual_threshold(threshold: float | None, collection: Collection, say: Say) -> float:
    """The threshold that was given, or what is usual for the collection's vectors, which is said."""
    if threshold is not None:
        return threshold
    usual = THRESHOLDS[collection.vectors]
    if say is not None:
        kind = "search vectors" if collection.vectors == "search" else "embeddings"
        say(f"Pictures whose {kind} have a cosine of {usual:g} are taken for look-alikes; --threshold sets another.")
    return usual


def refuse_graph(asked: bool) -> None:
    """InputError where a graph is asked for that several processes would each build."""
    if asked and ranks.world() > 1:
        raise InputError("A graph is one process's work: leave out --approximate, or start without torchrun.")


def comparing(
    collection: Collection, rows: np.ndarray, vectors: Vectors, approximate: bool, say: Say
) -> Exact | Graph | Join:
    """What compares the vectors of these rows of the collection: exactly, or, with a word on how good it is, nearly.

    By a graph that is kept in RUN/index/; of more than two million, where it takes hours to build, by cells.
    """
    file, show = collection.folder.links, say is not None
    if not approximate:
        return Exact(vectors)
    found: Graph | Join
    if len(rows) > MANY:
        cells = file.with_name(CELLS)
        found = Join(stored_cells(cells, vectors, rows=rows, made_of=collection.made_of, beside=0, show=show))
    else:
        found = stored_links(file, vectors, rows=rows, made_of=collection.made_of, show=show)
    if say is not None:
        say(f"Approximate: {100 * found.recall:.1f} % of the ten nearest are found, as measured against exact search.")
    return found


_COLUMNS = (
    *("group", "keep", "kind", "changes", "agreement", "path", "id", "label", "cosine"),
    *("width", "height", "bytes", "format", "sharpness"),
)


def _table(found: Sequence[Duplicates]) -> str:
    lines = (
        (
            number,
            "yes" if copy is group.kept else "no",
            copy.kind,
            " ".join(copy.changes),
            f"{copy.agreement:.4f}",
            copy.path,
            copy.id,
            copy.label,
            "" if copy.score is None else f"{copy.score:.6f}",
            copy.width,
            copy.height,
            "" if copy.size is None else copy.size,
            copy.format,
            "" if copy.sharpness is None else f"{copy.sharpness:.1f}",
        )
        for number, group in enumerate(found, 1)
        for copy in (group.kept, *group.copies)
    )
    return csv_text(_COLUMNS, lines)


def folder_of(collection: Collection, out: str | Path | None) -> Path:
    """Where what is found is written."""
    return collection.folder.duplicates if out is None else Path(out)
