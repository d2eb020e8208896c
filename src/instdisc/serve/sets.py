"""Which pictures, in which order: what a view shows is a set, and its address names it.

rows = chosen(opened, Wanted(label="cat", by="suggested", sort="sure"))

This file must not import torch, nor what imports it: the page answers while torch is being loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from instdisc.errors import InputError
from instdisc.jobs import sets
from instdisc.serve.beside import VERDICTS, Verdict
from instdisc.serve.models import readable

if TYPE_CHECKING:
    from instdisc.search.index import Index
    from instdisc.serve.beside import Beside
    from instdisc.serve.facts import Suggestions
    from instdisc.serve.opened import Opened

SURE = 0.5  # a suggestion is shown as one from here: it is more likely right than wrong
By = Literal["", "you", "suggested", "none"]
Sort = Literal["", "name", "newest", "largest", "sure", "unsure", "changed"]
ORDERS: dict[Sort, str] = {
    "": "Collection order",
    "name": "By name",
    "newest": "Newest first",
    "largest": "Largest file first",
    "sure": "Most certain first",
    "unsure": "Least certain first",
    "changed": "Most changed first",  # where a second run is served
}


@dataclass(frozen=True)
class Wanted:
    """where: a part of the id, in any case; or a pattern of it, with * and ?. sort: "" as they stand.

    by "suggested": pictures without a label by hand, whose suggestion is at least 50 % sure, and is `label` if one is
    given. "none": neither by hand nor suggested. sort "sure": the most certain suggestions first. name: of a set that
    the run keeps (jobs/sets.py). Where a second run is served (beside.py): verdict, whose neighbours name a picture as
    its label does; sort "changed": the pictures whose neighbours differ most first.
    """

    label: str = ""
    tag: str = ""
    where: str = ""
    by: By = ""
    sort: Sort = ""
    name: str = ""
    verdict: Verdict = ""

    @property
    def everything(self) -> bool:
        """Whether this is the collection as it stands."""
        return self == Wanted()


def suggested(found: Suggestions) -> np.ndarray:
    """bool (rows,): what is suggested for a picture that is not labelled by hand, and is sure enough."""
    return (found.codes >= 0) & ~found.hand & (found.confidence >= SURE)


def folders_of(index: Index) -> tuple[list[str], np.ndarray]:
    """The names of the folders, in order, and for each row the position of its own; -1 for a picture in none."""
    inside = [entry.id.rpartition("/")[0] for entry in index.entries(range(len(index)))]
    names, codes = np.unique(np.array(inside, dtype=object), return_inverse=True)
    without = int(len(names) > 0 and names[0] == "")
    return [str(name) for name in names[without:]], codes - without


def chosen(opened: Opened, wanted: Wanted, beside: Beside | None = None) -> np.ndarray:
    """The rows. Raises InputError for a label or tag that no picture has, a set that is none, an unavailable order."""
    index = opened.index
    label, tag = (
        next((name for name in names if readable(name) == given), given)
        for names, given in ((index.label_names, wanted.label), (index.tags, wanted.tag))
    )
    part = wanted.where
    where = None if not part else part if set(part) & set("*?") else f"*{part}*"
    guesses = opened.suggestions() if wanted.by or wanted.sort in ("sure", "unsure") else None
    own = label or None
    among = np.ones(len(index), dtype=bool)
    if wanted.by == "you":
        among = np.isin(np.arange(len(index)), list(opened.hand_labels()))
    elif wanted.by == "suggested":
        own = None
        among = np.zeros_like(among) if guesses is None else suggested(guesses)
        if label and guesses is not None:
            among &= guesses.codes == (guesses.names.index(label) if label in guesses.names else -2)
    elif wanted.by == "none" and guesses is not None:
        among = ~guesses.hand & ~suggested(guesses)
    if wanted.verdict:
        among &= _second(beside).agreement() == VERDICTS.index(wanted.verdict)
    if wanted.name:
        named = index.rows_with(sets.load(opened.folder, wanted.name).ids)
        among &= np.isin(np.arange(len(index)), named)
    rows = np.flatnonzero(among & index.matching(label=own, tag=tag or None, where=where, any_case=True))
    if wanted.sort == "changed":
        return rows[_second(beside).order(rows)]
    return rows[_order(opened, wanted.sort, rows, guesses)]


def _second(beside: Beside | None) -> Beside:
    if beside is None:
        raise InputError("One run is served: `instdisc serve A B` compares two.")
    return beside


def _order(opened: Opened, sort: Sort, rows: np.ndarray, guesses: Suggestions | None) -> np.ndarray | slice:
    if sort == "name":
        ids = [entry.id for entry in opened.index.entries(rows)]
        return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    if sort in ("newest", "largest"):
        stamps = opened.stamps()
        if stamps is None:
            raise InputError("The files' dates and sizes are not known here: choose another order.")
        return np.argsort(-stamps[rows, 1 if sort == "newest" else 0], kind="stable")
    if sort in ("sure", "unsure") and guesses is not None:
        sureness = guesses.confidence[rows]
        return np.argsort(-sureness if sort == "sure" else sureness, kind="stable")
    return slice(None)
