"""`instdisc duplicates`: near-duplicates in a collection, which of them to keep, and leaks between two sources.

Nothing is deleted: a CSV file, a list of what could go, and a sheet to look at are written.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from instdisc import ranks
from instdisc.data.decode import UnreadableError, decode
from instdisc.data.source import open_source
from instdisc.data.subset import Subset
from instdisc.errors import InputError
from instdisc.jobs import index as index_job
from instdisc.jobs.collection import Collection
from instdisc.jobs.search import Neighbour, picture_or_grey
from instdisc.jobs.sources import findable
from instdisc.progress import Bar
from instdisc.report import neighbour_sheet
from instdisc.runs import RunFolder, write_whole
from instdisc.search.approximate import Graph
from instdisc.search.groups import Group, linked
from instdisc.search.index import Entry
from instdisc.search.pairs import Vectors, similar_pairs
from instdisc.serve.models import THRESHOLDS

KEEP = ("largest", "sharpest", "oldest")
_DRAWN, _COPIES = 40, 7  # groups on the sheet, copies of each
_GREY_SIDE = 256  # pixels: sharpness is compared at this longer side


@dataclass(frozen=True)
class Copy(Entry):
    """A picture of a group. score: cosine with the one that is kept; size: of the file in bytes, if it is one.

    sharpness: variance of the Laplacian of the grey picture, at most 256 pixels long; modified: seconds since 1970.
    """

    score: float
    width: int
    height: int
    size: int | None
    sharpness: float
    modified: float | None


@dataclass(frozen=True)
class Duplicates:
    """copies: those that could go, most like the kept one first. worst: the two least alike; score: their cosine."""

    kept: Copy
    copies: list[Copy]
    worst: tuple[str, str]
    score: float


@dataclass(frozen=True)
class Leak:
    """A picture of another source, and the picture of the collection that is most like it."""

    path: str
    id: str
    nearest: Neighbour


def duplicates(
    run: str | Path,
    *,
    threshold: float | None = None,
    keep: str = "largest",
    out: str | Path | None = None,
    bank: bool = False,
    approximate: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] | None = print,
) -> list[Duplicates]:
    """Groups of pictures of which every two have at least the cosine `threshold`; the largest groups first.

    threshold: 0.85 of search vectors and 0.95 of embeddings and rows of the bank, where none is given.
    keep: which of a group stays: largest (pixels, then bytes), sharpest, oldest (by the file's date). out: the folder
    of duplicates.csv, remove.txt and duplicates.png; RUN/duplicates without. bank: compare the rows of the bank, which
    come from augmented views, in place of vectors of the pictures as they are. approximate: let an HNSW graph answer
    (the extra `ann`), sooner for a million pictures; a few pairs are missed. The processes of torchrun share the work;
    the main one writes and returns what was found, the others nothing. Raises InputError for what can't be.
    """
    if keep not in KEEP:
        raise InputError(f'One of {", ".join(KEEP)} can be kept, not "{keep}".')
    with ranks.together():
        say = say if ranks.is_main() else None
        refuse_graph(approximate)
        collection = index_job.without_augmentation(
            run, bank=bank, train_source=train_source, device=device, say=say, by_ranks=True
        )
        rows, vectors = collection.index.present(ranks.device(device))
        compared = graph_of(vectors, say).similar_pairs if approximate else partial(similar_pairs, vectors)
        pairs = compared(_known(threshold, collection, say), show=say is not None)
        if not ranks.is_main():
            return []
    groups = linked(pairs)
    with Bar(sum(len(group.members) for group in groups), "Looking at copies", "pictures", say is not None) as bar:
        found = [_chosen(collection, group, rows, keep, bar) for group in groups]
    folder = _folder(run, out)
    write_text(folder / "duplicates.csv", _table(found))
    listed = [copy.path for group in found for copy in group.copies if "\n" not in copy.path]
    write_text(folder / "remove.txt", "".join(f"{path}\n" for path in listed))
    drawn = found[:_DRAWN]
    (folder / "duplicates.png").unlink(missing_ok=True)
    if drawn:
        neighbour_sheet(
            [picture_or_grey(collection, group.kept.row) for group in drawn],
            [[picture_or_grey(collection, copy.row) for copy in group.copies[:_COPIES]] for group in drawn],
            [[copy.score for copy in group.copies[:_COPIES]] for group in drawn],
            folder / "duplicates.png",
            heading="Kept",
            title="Copies, with their cosine to it",
        )
    return found


def _known(threshold: float | None, collection: Collection, say: Callable[[str], None] | None) -> float:
    """The threshold that was given, or what is usual for the collection's vectors, which is said."""
    if threshold is not None:
        return threshold
    usual = THRESHOLDS[collection.vectors]
    if say is not None:
        kind = "search vectors" if collection.vectors == "search" else "embeddings"
        say(f"Pictures whose {kind} have a cosine of {usual:g} are taken for duplicates; --threshold sets another.")
    return usual


def leaks(
    run: str | Path,
    against: Any,
    *,
    threshold: float | None = None,
    out: str | Path | None = None,
    bank: bool = False,
    approximate: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] | None = print,
) -> list[Leak]:
    """The pictures of another source, as of a test set, that a picture of the collection equals at this cosine.

    The most alike first; leaks.csv, remove.txt (of the other source) and leaks.png are written. The rest as in
    `duplicates`.
    """
    with ranks.together():
        say = say if ranks.is_main() else None
        refuse_graph(approximate)
        collection = index_job.without_augmentation(
            run, bank=bank, train_source=train_source, device=device, say=say, by_ranks=True
        )
        other = open_source(findable(against))
        with index_job.changing(run, by_ranks=True) as folder:
            all_of_it = Subset(other, np.arange(len(other)))
            found, values, _ = index_job.embedded(collection, all_of_it, "against", device, say)
            ranks.on_main(lambda: index_job.forget(folder, "against"))
        place = ranks.device(device)
        rows, vectors = collection.index.present(place)
        compared = graph_of(vectors, say).similar_pairs if approximate else partial(similar_pairs, vectors)
        usual, others = _known(threshold, collection, say), Vectors.of(values.to(place))
        pairs = compared(usual, against=others, show=say is not None)
        if not ranks.is_main():
            return []
    _, best = np.unique(pairs.second, return_index=True)  # of each other picture the first, which is the most alike
    best.sort()
    table = other.fetch_table()
    names, paths = (table[column].to_pylist() for column in ("id", "location"))
    answer = []
    for entry, place_there, score in zip(
        collection.index.entries(rows[pairs.first[best]]), pairs.second[best], pairs.scores[best].tolist(), strict=True
    ):
        row = int(found[place_there])
        answer.append(Leak(os.fsdecode(paths[row]), os.fsdecode(names[row]), Neighbour(**vars(entry), score=score)))
    target = _folder(run, out)
    lines = [
        (leak.path, leak.id, leak.nearest.path, leak.nearest.id, leak.nearest.label, f"{leak.nearest.score:.6f}")
        for leak in answer
    ]
    write_text(
        target / "leaks.csv", csv_text(["path", "id", "nearest_path", "nearest_id", "nearest_label", "cosine"], lines)
    )
    write_text(target / "remove.txt", "".join(f"{leak.path}\n" for leak in answer if "\n" not in leak.path))
    (target / "leaks.png").unlink(missing_ok=True)
    if answer:
        drawn = answer[:_DRAWN]
        there = [int(found[one]) for one in pairs.second[best][:_DRAWN]]
        neighbour_sheet(
            [decode(other.read(row)) for row in there],
            [[picture_or_grey(collection, leak.nearest.row)] for leak in drawn],
            [[leak.nearest.score] for leak in drawn],
            target / "leaks.png",
            heading="There",
            title="In the collection, with the cosine",
        )
    return answer


def refuse_graph(asked: bool) -> None:
    """InputError where a graph is asked for that several processes would each build."""
    if asked and ranks.world() > 1:
        raise InputError("A graph is one process's work: leave out --approximate, or start without torchrun.")


def graph_of(vectors: Vectors, say: Callable[[str], None] | None) -> Graph:
    """A graph over them, and a word on how good it is."""
    graph = Graph(vectors, show=say is not None)
    if say is not None:
        say(f"Approximate: {100 * graph.recall:.1f} % of the ten nearest are found, as measured against exact search.")
    return graph


def _chosen(collection: Collection, group: Group, rows: np.ndarray, keep: str, bar: Bar) -> Duplicates:
    """A group with the facts of its pictures, the one to keep first."""
    members = []
    for entry in collection.index.entries(rows[list(group.members)]):
        members.append(_facts(collection, entry))
        bar.advance()
    if keep == "oldest" and all(copy.modified is None for copy in members):
        raise InputError(
            f"{members[0].path} is no file of its own, so that its age is not known: keep the largest or the sharpest."
        )
    order = {
        "largest": lambda copy: (-copy.width * copy.height, -(copy.size or 0), copy.row),
        "sharpest": lambda copy: (-copy.sharpness, copy.row),
        "oldest": lambda copy: (np.inf if copy.modified is None else copy.modified, copy.row),
    }[keep]
    members.sort(key=order)
    vectors = collection.index.vectors(np.array([copy.row for copy in members]))
    scores = (vectors @ vectors[0]).tolist()
    members = [replace(copy, score=score) for copy, score in zip(members, scores, strict=True)]
    copies = sorted(members[1:], key=lambda copy: (-copy.score, copy.row))
    worst = [entry.path for entry in collection.index.entries(rows[list(group.worst)])]
    return Duplicates(members[0], copies, (worst[0], worst[1]), group.score)


def _facts(collection: Collection, entry: Entry) -> Copy:
    """What tells which copy to keep; a picture that can't be read any more has no pixels."""
    try:
        content = collection.content(entry.row)
        pixels = decode(content)
    except UnreadableError:
        return Copy(**vars(entry), score=1.0, width=0, height=0, size=None, sharpness=0.0, modified=None)
    try:
        modified = os.stat(entry.path).st_mtime
    except (OSError, ValueError):
        modified = None
    return Copy(
        **vars(entry),
        score=1.0,
        width=pixels.shape[1],
        height=pixels.shape[0],
        size=len(content) if isinstance(content, bytes | bytearray | memoryview) else None,
        sharpness=sharpness(pixels),
        modified=modified,
    )


def sharpness(pixels: np.ndarray) -> float:
    """The variance of the Laplacian of the grey picture, shrunk to at most 256 pixels: higher is sharper."""
    picture = Image.fromarray(pixels).convert("L")
    picture.thumbnail((_GREY_SIDE, _GREY_SIDE), Image.Resampling.BOX)
    grey = np.pad(np.asarray(picture, np.float64), 1, mode="edge")
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var())


def _table(found: Sequence[Duplicates]) -> str:
    columns = [
        "group",
        "keep",
        "path",
        "id",
        "label",
        "cosine",
        "width",
        "height",
        "bytes",
        "sharpness",
        "least_cosine",
        "least_alike",
    ]
    lines = [
        (
            number,
            "yes" if copy is group.kept else "no",
            copy.path,
            copy.id,
            copy.label,
            f"{copy.score:.6f}",
            copy.width,
            copy.height,
            "" if copy.size is None else copy.size,
            f"{copy.sharpness:.1f}",
            f"{group.score:.6f}",
            "yes" if copy.path in group.worst else "no",
        )
        for number, group in enumerate(found, 1)
        for copy in (group.kept, *group.copies)
    ]
    return csv_text(columns, lines)


def csv_text(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A CSV file with a heading."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Names that are not UTF-8 keep their bytes."""
    write_whole(path, text.encode("utf-8", "surrogateescape"))


def _folder(run: str | Path, out: str | Path | None) -> Path:
    return RunFolder(run).duplicates if out is None else Path(out)
