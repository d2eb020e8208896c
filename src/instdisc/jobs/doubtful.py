"""`instdisc label RUN --doubtful N`: labels that the nearest labelled pictures contradict, the most doubtful first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import ranks
from instdisc.errors import InputError
from instdisc.files import csv_text, write_text
from instdisc.jobs import index as index_job
from instdisc.runs import RunFolder
from instdisc.search.catalogue import Catalogue, Entry
from instdisc.search.doubtful import NEIGHBOURS, doubts
from instdisc.search.index import Index
from instdisc.search.pairs import Vectors, neighbours_of_all
from instdisc.shapes import Float, Int

_COLUMNS = ("path", "given", "by", "voted", "doubt")
Nearest = tuple[Float[np.ndarray, "labelled k"], Int[np.ndarray, "labelled k"]]  # cosines, places


@dataclass(frozen=True)
class Doubtful(Entry):
    """A label in doubt. hand: whether it was given by hand; else it is the source's. voted: what the neighbours say.

    doubt: the share of their votes for `voted` minus that for the label, up to 1.
    """

    hand: bool
    voted: str
    doubt: float


def doubtful(
    run: str | Path,
    count: int = 50,
    *,
    bank: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] | None = print,
) -> list[Doubtful]:
    """The `count` labels most in doubt; RUN/labels/doubtful.csv has all whose neighbours vote for another class.

    A picture's label is that by hand, else that of its source. Each is named by its 20 nearest others that are
    labelled. Nothing is changed. Raises InputError where there are no labels of two classes. Examples:

        for one in doubtful("runs/mine", 20):
            print(one.path, one.label, one.voted)
    """
    if count < 1:
        raise InputError(f"{count} doubtful labels were asked for: ask for at least one.")
    collection = index_job.without_augmentation(run, bank=bank, train_source=train_source, device=device, say=say)
    index = collection.index
    rows = labelled_rows(index)
    if len(np.unique(index.labels[rows])) < 2 or len(rows) < 3:
        why = "" if index.labels_problem is None else f" {index.labels_problem}"
        raise InputError(f"Labels of at least two classes are needed to doubt any.{why}")
    nearest = nearest_labelled(index, rows, device=device, show=say is not None)
    found, voted, doubt = in_doubt(index, rows, nearest)
    hand = set(collection.run.hand_labels())
    answer = [
        Doubtful(**vars(entry), hand=entry.path in hand, voted=vote, doubt=score)
        for entry, vote, score in zip(index.entries(found), voted, doubt.tolist(), strict=True)
    ]
    lines = ((one.path, one.label, "hand" if one.hand else "source", one.voted, f"{one.doubt:.4f}") for one in answer)
    write_text(RunFolder(run).labels / "doubtful.csv", csv_text(_COLUMNS, lines))
    return answer[:count]


def labelled_rows(index: Catalogue) -> Int[np.ndarray, " labelled"]:
    """The rows that are there and have a label, ascending."""
    return np.flatnonzero(~index.removed & (index.labels >= 0))


def nearest_labelled(index: Index, rows: np.ndarray, *, device: str = "auto", show: bool = False) -> Nearest:
    """Of each of these rows the nearest others among them. Of two or more rows."""
    place = ranks.device(device)
    vectors = Vectors(len(rows), lambda places: index.vectors(rows[places]).to(place))
    return neighbours_of_all(vectors, min(NEIGHBOURS, len(rows) - 1), show=show)


def in_doubt(
    index: Catalogue, rows: Int[np.ndarray, " labelled"], nearest: Nearest
) -> tuple[Int[np.ndarray, " doubted"], list[str], Float[np.ndarray, " doubted"]]:
    """(rows, names of the classes that are voted for, doubts) where that is not the label; the most doubtful first.

    rows: of labels of at least two classes.
    """
    used, codes = np.unique(index.labels[rows], return_inverse=True)
    voted, doubt = doubts(*nearest, codes)
    chosen = np.flatnonzero(doubt > 0)
    chosen = chosen[np.argsort(-doubt[chosen], kind="stable")]
    return rows[chosen], [index.label_names[used[code]] for code in voted[chosen].tolist()], doubt[chosen]
