"""A second run beside the one that is served: pictures are matched by their ids, and both runs' neighbours compared.

    beside = Beside(session, Opened("runs/other"), "other")
    rows, theirs = beside.matched()              # the same pictures, by their rows here and there
    beside.shared()[rows]                        # how many of the ten nearest both runs agree on
    beside.agreement()[rows]                     # which run's neighbours name a picture as its label does

All that compares goes by the matched pictures alone. This file must not import torch, nor what imports it, before it is
needed: the page answers while torch is being loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from instdisc.errors import InputError

if TYPE_CHECKING:
    from instdisc.search.pairs import Vectors
    from instdisc.serve.opened import Opened
    from instdisc.serve.session import Session

Verdict = Literal["", "both", "first", "second", "neither"]
VERDICTS: tuple[Verdict, ...] = ("both", "first", "second", "neither")  # in the order of the codes of `agreement`
NEAREST = 10  # neighbours, among which those that both runs share are counted
_AT_ONCE = 100_000  # pictures whose neighbours are held against each other


class Beside:
    """name: of the second run. Nothing is computed before it is needed; what takes long is computed once."""

    def __init__(self, session: Session, other: Opened, name: str) -> None:
        self._session, self.other, self.name = session, other, name
        self._known: tuple[Any, np.ndarray, np.ndarray] | None = None
        self._changed = session.once(lambda rows: self._compared(), 1)
        self._voted = session.once(lambda rows: self._nearest_labelled(np.frombuffer(rows, np.int64)), 1)

    @property
    def _opened(self) -> Opened:
        return self._session.opened

    def words(self) -> dict[Verdict, str]:
        """What is said of whose neighbours are right, in the order of VERDICTS."""
        first, second = f"only {self._session.opening.name} right", f"only {self.name} right"
        return dict(zip(VERDICTS, ("both right", first, second, "neither right"), strict=True))

    def matched(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows here, ascending; rows there) of the pictures that are in both collections by their ids."""
        index = self._opened.index
        key = id(index), self._opened.returned, int(index.removed.sum())
        if self._known is None or self._known[0] != key:
            self._known = key, *matched(self._opened, self.other)
        return self._known[1:]

    def nearest(self, row: int, count: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """(row, cosine) of a picture's nearest in both runs, best first. Raises InputError where it is in one."""
        rows, theirs = self.matched()
        position = int(np.searchsorted(rows, row))
        if position == len(rows) or rows[position] != row:
            raise InputError(f"This picture is not in {self.name}.")
        count = min(count, len(rows) - 1)
        if not count:
            return [], []
        there = int(theirs[position])
        back = np.full(len(self.other.index), -1)
        back[theirs] = rows
        here = _search(self._opened, row, count, rows)
        return here, [(int(back[found]), score) for found, score in _search(self.other, there, count, theirs)]

    def shared(self) -> np.ndarray:
        """int (rows,): how many of a picture's ten nearest both runs share; -1 for a picture that is in one alone."""
        return self._changes()[0]

    def order(self, chosen: np.ndarray) -> np.ndarray:
        """Positions of these rows, the most changed first; of equal ones first those with the nearest neighbours."""
        shared, closeness = (values[chosen] for values in self._changes())
        return np.lexsort((-closeness, np.where(shared < 0, NEAREST + 1, shared)))

    def agreement(self) -> np.ndarray:
        """int (rows,): the position in VERDICTS of who names a picture as its label does; -1 for no label, or in one.

        A picture is named by its 20 nearest others that have labels, by hand or of the source, as doubtful labels are.
        All -1 where there are no labels of two classes.
        """
        from instdisc.search.doubtful import doubts

        self._opened.hand_labels()  # looks whether they have changed
        index, answer = self._opened.index, np.full(len(self._opened.index), -1)
        rows = self.matched()[0]
        rows = rows[index.labels[rows] >= 0]
        used, codes = np.unique(index.labels[rows], return_inverse=True)
        if len(used) < 2 or len(rows) < 3:
            return answer
        first, second = (doubts(*nearest, codes)[1] <= 0 for nearest in self._voted(rows.tobytes()))
        answer[rows] = np.where(first, np.where(second, 0, 1), np.where(second, 2, 3))
        return answer

    def _changes(self) -> tuple[np.ndarray, np.ndarray]:
        return self._changed(self.matched()[0].tobytes())

    def _compared(self) -> tuple[np.ndarray, np.ndarray]:
        from instdisc.search.pairs import neighbours_of_all

        rows, theirs = self.matched()
        shared, closeness = np.full(len(self._opened.index), -1), np.zeros(len(self._opened.index))
        if len(rows) > 1:
            most = min(NEAREST, len(rows) - 1)
            (one, mine), (two, other) = (
                neighbours_of_all(vectors, most)
                for vectors in (_vectors(self._opened, rows), _vectors(self.other, theirs))
            )
            closeness[rows] = one.mean(axis=1) + two.mean(axis=1)
            for start in range(0, len(rows), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                shared[rows[part]] = (mine[part, :, None] == other[part, None, :]).any(axis=2).sum(axis=1)
        return shared, closeness

    def _nearest_labelled(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        from instdisc.jobs.doubtful import nearest_labelled

        matched, theirs = self.matched()
        there = theirs[np.searchsorted(matched, rows)]
        pairs = (self._opened.index, rows), (self.other.index, there)
        return [nearest_labelled(index, chosen, device="cpu") for index, chosen in pairs]


def matched(first: Opened, second: Opened) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the first, ascending; rows of the second) of the pictures that are in both by their ids."""
    rows = np.flatnonzero(~first.index.removed)
    theirs = second.index.rows_with([one.id for one in first.index.entries(rows)])
    return rows[theirs >= 0], theirs[theirs >= 0]


def _vectors(opened: Opened, rows: np.ndarray) -> Vectors:
    from instdisc.search.pairs import Vectors

    return Vectors(len(rows), lambda positions: opened.index.vectors(rows[positions]))


def _search(opened: Opened, row: int, count: int, among: np.ndarray) -> list[tuple[int, float]]:
    index, allowed = opened.index, np.zeros(len(opened.index), dtype=bool)
    allowed[among] = True
    query = index.vectors(np.array([row]))
    scores, rows = index.search(query, count, among=allowed, exclude=np.array([row]))
    return list(zip(rows[0].tolist(), scores[0].tolist(), strict=True))
