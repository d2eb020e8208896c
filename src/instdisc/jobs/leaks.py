"""`instdisc duplicates --against`: the pictures of another source, as of a test set, that the collection holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import ranks
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.data.sources.subset import Subset
from instdisc.files import csv_text, write_text
from instdisc.jobs import index as index_job
from instdisc.jobs.copies import Looked, look_at_collection, look_at_source
from instdisc.jobs.duplicates import Say, comparing, folder_of, opened, usual_threshold
from instdisc.jobs.embed import embedded, forget
from instdisc.jobs.search import Neighbour, pixels_or_grey
from instdisc.jobs.sources import findable
from instdisc.report import neighbour_sheet
from instdisc.search.copies import PROPOSED, Finder, Proof
from instdisc.search.pairs import Pairs, Vectors

LOOK_ALIKE = "look-alike"
_DRAWN = 40
_COLUMNS = ("path", "id", "kind", "changes", "agreement", "nearest_path", "nearest_id", "nearest_label", "cosine")


@dataclass(frozen=True)
class Leak:
    """A picture of another source, and the one of the collection that it is a copy of, or is most like.

    kind: same file, same picture or look-alike; changes and agreement as of `Copy`, none of a look-alike. The score of
    `nearest` is the cosine of their vectors, NaN where there are none.
    """

    path: str
    id: str
    kind: str
    changes: tuple[str, ...]
    agreement: float
    nearest: Neighbour


def leaks(
    run: str | Path,
    against: Any,
    *,
    look_alikes: bool = False,
    threshold: float | None = None,
    out: str | Path | None = None,
    bank: bool = False,
    approximate: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Say = print,
) -> list[Leak]:
    """The pictures of another source that are copies of a picture of the collection: each once, by the surest proof.

    The most certain first; leaks.csv, remove.txt (of the other source) and leaks.png are written. look_alikes: those
    with a picture of the collection at a cosine of `threshold` come after them, and stand in look_alikes.csv alone. The
    rest as in `duplicates`.
    """
    with ranks.distributed():
        collection, say = opened(run, bank, approximate, train_source, device, say)
        other = open_source(findable(against))
        with index_job.changing(run, by_ranks=True) as folder:
            found, values, _ = embedded(collection, Subset(other, np.arange(len(other))), "against", device, say)
            ranks.on_main(lambda: forget(folder, "against"))
        torch_device = ranks.device(device)
        rows, vectors = collection.index.present(torch_device)
        others = Vectors.of(values.to(torch_device))
        pairs = None
        if look_alikes:
            compared = comparing(collection, rows, vectors, approximate, say)
            pairs = compared.similar_pairs(
                usual_threshold(threshold, collection, say), against=others, show=say is not None
            )
        _, nearest = collection.index.search(values, min(PROPOSED, len(rows)))
        if not ranks.is_main():
            return []
    show, target = say is not None, folder_of(collection, out)
    here, there = look_at_collection(collection, show=show), look_at_source(other, target / "against.npy", show=show)
    (target / "against.npy").unlink(missing_ok=True)
    at = {int(row): torch_device for torch_device, row in enumerate(found)}
    positions = np.searchsorted(rows, nearest.numpy())
    proposed = np.stack([positions.ravel(), np.repeat(found, positions.shape[1])], axis=1)

    def cosine(one: int, theirs: int) -> float:
        if theirs not in at:
            return float("nan")
        return float(vectors.pick(np.array([one]))[0] @ others.pick(np.array([at[theirs]]))[0])

    answer = _proven(here, there, proposed, cosine, show)
    if pairs is not None:
        answer += _alike(here, there, pairs, found, {theirs for theirs, _ in answer})
    _write(answer, target, look_alikes, other, collection.content)
    return [leak for _, leak in answer]


def leaks_of_sources(source: Any, against: Any, *, out: str | Path = "duplicates", say: Say = print) -> list[Leak]:
    """`leaks` of two sources, without a run or an encoder: by their bytes and thumbnails alone."""
    own, other = open_source(findable(source)), open_source(findable(against))
    files = Path(out) / "thumbnails.npy", Path(out) / "against.npy"
    show = say is not None
    here, there = look_at_source(own, files[0], show=show), look_at_source(other, files[1], show=show)
    files[1].unlink(missing_ok=True)
    answer = _proven(here, there, None, lambda *_: float("nan"), show)
    _write(answer, Path(out), False, other, own.read)
    return [leak for _, leak in answer]


_Numbered = list[tuple[int, Leak]]  # with the row in the other source


def _proven(
    here: Looked, there: Looked, proposed: np.ndarray | None, cosine: Callable[[int, int], float], show: bool
) -> _Numbered:
    """Each picture of the other source that is a copy, with the one that is most surely its like."""
    proofs = Finder(here.stored, here.contents, there.stored, there.contents, show=show).across(proposed)
    best: dict[int, tuple[int, Proof]] = {}
    for (one, theirs), proof in sorted(proofs.items()):
        if theirs not in best or proof.certainty > best[theirs][1].certainty:
            best[theirs] = one, proof
    order = sorted(best, key=lambda theirs: (-best[theirs][1].certainty, theirs))
    return [
        (theirs, _leak(here, there, best[theirs][0], theirs, cosine(best[theirs][0], theirs), best[theirs][1]))
        for theirs in order
    ]


def _alike(here: Looked, there: Looked, pairs: Pairs, found: np.ndarray, known: set[int]) -> _Numbered:
    """Of each other picture that is no copy the one in the collection that is most like it."""
    _, first = np.unique(pairs.second, return_index=True)  # of each other picture the most alike, which comes first
    proof = Proof(LOOK_ALIKE, (), float("nan"))
    answer = []
    for number in np.sort(first).tolist():
        one, theirs = int(pairs.first[number]), int(found[pairs.second[number]])
        if theirs not in known:
            answer.append((theirs, _leak(here, there, one, theirs, float(pairs.scores[number]), proof)))
    return answer


def _leak(here: Looked, there: Looked, one: int, theirs: int, score: float, proof: Proof) -> Leak:
    picture = there.entries([theirs])[0]
    nearest = Neighbour(**vars(here.entries([one])[0]), score=score)
    return Leak(picture.path, picture.id, proof.kind, proof.changes, proof.agreement, nearest)


def _write(answer: _Numbered, folder: Path, look_alikes: bool, other: Source, read: Callable[[int], Any]) -> None:
    copies = [one for one in answer if one[1].kind != LOOK_ALIKE]
    write_text(folder / "leaks.csv", csv_text(_COLUMNS, _lines(copies)))
    if look_alikes:
        write_text(folder / "look_alikes.csv", csv_text(_COLUMNS, _lines([one for one in answer if one not in copies])))
    listed = [leak.path for _, leak in copies if "\n" not in leak.path]
    write_text(folder / "remove.txt", "".join(f"{path}\n" for path in listed))
    (folder / "leaks.png").unlink(missing_ok=True)
    if drawn := copies[:_DRAWN]:
        neighbour_sheet(
            [pixels_or_grey(other.read, row) for row, _ in drawn],
            [[pixels_or_grey(read, leak.nearest.row)] for _, leak in drawn],
            [[leak.agreement] for _, leak in drawn],
            folder / "leaks.png",
            heading="There",
            title="In the collection, with the agreement of their pixels",
        )


def _lines(leaks: Sequence[tuple[int, Leak]]) -> Iterator[Sequence[Any]]:
    for _, leak in leaks:
        agreement = "" if leak.kind == LOOK_ALIKE else f"{leak.agreement:.4f}"
        cosine = "" if leak.nearest.score != leak.nearest.score else f"{leak.nearest.score:.6f}"
        near = (leak.nearest.path, leak.nearest.id, leak.nearest.label)
        yield leak.path, leak.id, leak.kind, " ".join(leak.changes), agreement, *near, cosine
