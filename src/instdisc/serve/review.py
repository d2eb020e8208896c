"""A review of the collection, case by case: copies, look-alikes, outliers, doubtful labels, unreadable files.

    review = Review(session)
    cases = review.cases("copies", which="open")
    review.decide("copies", {row: "keep"})     # written to the run; nothing happens to a picture or its file

This file must not import torch, nor what imports it: the page answers while torch is being loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from fastapi import HTTPException

from instdisc.data.sources.spelling import match
from instdisc.errors import InputError, counted
from instdisc.jobs import journal
from instdisc.jobs import review as decisions
from instdisc.jobs.moving import beside, moving_script
from instdisc.search import THRESHOLDS
from instdisc.serve.facts import CopyFacts, Done

if TYPE_CHECKING:
    from instdisc.serve.opened import Opened
    from instdisc.serve.session import Session

Kind = Literal["copies", "look-alikes", "outliers", "labels", "unreadable"]
# kind: (its name in words, what one case is, what they are), in the order of the page
KINDS: dict[Kind, tuple[str, str, str]] = {
    "copies": (
        "Copies",
        "group",
        "Proven by the files' bytes, or by the pixels of both pictures laid over each other. Suggested: keep the one "
        "with most pixels, then the largest file, then the oldest.",
    ),
    "outliers": ("Outliers", "picture", "The highest outlier score first."),
    "labels": ("Labels", "label", "Labels that the nearest labelled pictures contradict, the most doubtful first."),
    "unreadable": (
        "Unreadable",
        "file",
        "Files that could not be read as pictures when the collection was trained.",
    ),
    "look-alikes": (
        "Look-alikes",
        "group",
        "Alike to the encoder, and not proven to be copies: nothing is marked before you mark it.",
    ),
}
Which = Literal["open", "decided", "certain"]
CERTAIN = 0.9  # agreement of pixels from which all copies of a group are accepted at once; equal bytes always are
OUTLIERS = 40  # cases at first
_SMALL_SHARE = 20  # one picture of so many may be an outlier


@dataclass(frozen=True)
class Case:
    """What is decided at once. rows: of its pictures; -1 for a file that is no picture. choices: keep, remove, "" each.

    certain: proven so well that it may be accepted without a look. facts: of copies. score: how alike, strange or
    doubtful. given, voted: labels. note: why a file is unreadable. paths: as decisions name them.
    """

    rows: list[int]
    choices: list[str]
    paths: list[str]
    certain: bool = False
    facts: list[CopyFacts] | None = None
    score: float | None = None
    given: str = ""
    voted: str = ""
    note: str = ""

    @property
    def open(self) -> bool:
        """Whether something is still to be decided."""
        return not all(self.choices)


class Review:
    """What a session shows to be decided on, and the run's decisions."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._looked: set[str] = set()  # kinds whose cases were found already
        self._neighbours = session.once(lambda rows: self._nearest(np.frombuffer(rows, np.int64)), 1)

    @property
    def _opened(self) -> Opened:
        return self._session.opened

    def cases(
        self, kind: Kind, which: Which | None = None, *, threshold: float | None = None, most: int = OUTLIERS
    ) -> list[Case]:
        """The cases of a kind, the surest first; `which` of them, all without. What takes long is computed once.

        threshold: of look-alikes. most: outliers.
        """
        if kind == "unreadable":
            found = self._unreadable()
        elif kind == "labels":
            found = self._doubtful()
        else:
            found = self._groups(kind, threshold, most)
        self._looked.add(kind)
        if which == "decided":
            return [case for case in found if not case.open]
        if which is not None:
            return [case for case in found if case.open and (case.certain or which == "open")]
        return found

    def counts(self, kind: Kind) -> tuple[int, int, int] | None:
        """(open, decided, certain) cases of a kind; None where finding them would take long."""
        if kind not in self._looked and kind != "unreadable":
            return None
        found = self.cases(kind)
        waiting = [case for case in found if case.open]
        return len(waiting), len(found) - len(waiting), sum(case.certain for case in waiting)

    def decide(self, kind: Kind, choices: Mapping[int, str], text: str = "") -> Done:
        """Write down what was chosen for rows (for places in the list of unreadable files): keep, remove, or "".

        Of a label that stays, keep. Raises InputError where nothing of a group would be kept.
        """
        if kind == "unreadable":
            listed = self._opened.unreadable()
            if max(choices) >= len(listed):
                raise HTTPException(404, "No such file is listed any more: load the page again.")
            given = {listed[place][1]: choice for place, choice in choices.items()}
        else:
            rows = [self._session.row(row) for row in choices]
            entries = self._opened.index.entries(rows)
            given = {one.path: choice for one, choice in zip(entries, choices.values(), strict=True)}
            if kind == "labels":
                given = {one.path: choice and one.label for one, choice in zip(entries, choices.values(), strict=True)}
        with self._opened.reviewing() as folder:
            return _done(decisions.decide(folder, kind, given, text=text or _said(kind, list(choices.values()))))

    def accept_certain(self, expected: int) -> Done:
        """Accept every group of copies that is certain and not decided: the first of each stays.

        Raises InputError where there are not as many as were looked over.
        """
        found = self.cases("copies", "certain")
        if len(found) != expected:
            raise InputError(f"{counted(len(found), 'group is', 'groups are')} certain now: look them over again.")
        choices = {
            path: decisions.REMOVE if place else decisions.KEEP
            for case in found
            for place, path in enumerate(case.paths)
        }
        with self._opened.reviewing() as folder:
            text = f"Accepted {counted(len(found), 'certain group')} of copies"
            return _done(decisions.decide(folder, "copies", choices, text=text))

    def going(self) -> tuple[list[int], list[int], list[str]]:
        """(rows marked for removal, those of them that are hidden already, paths of unreadable files so marked)."""
        chosen = decisions.going(self._opened.collection.folder)
        index = self._opened.index
        paths = [path for path, unreadable in chosen.items() if not unreadable]
        rows = match([os.fsencode(path) for path in paths], *index.names, len(index)) if paths else np.zeros(0, int)
        rows = rows[rows >= 0]
        broken = {path: now for _, path, now, _ in self._opened.unreadable()}
        return (
            rows[~index.removed[rows]].tolist(),
            rows[index.removed[rows]].tolist(),
            [broken[path] for path, unreadable in chosen.items() if unreadable and path in broken],
        )

    def files(self) -> list[str]:
        """Where the files that are marked for removal are now, hidden ones too."""
        present, hidden, broken = self.going()
        return [*(self._opened.location(row) for row in (*present, *hidden)), *broken]

    def script(self, shell: str) -> bytes:
        """A script that moves these files beside the collection's folders (jobs/moving.py)."""
        files = self.files()
        there = [file for file in files if os.path.isfile(file)]
        return moving_script(beside(there, self._opened.folders_of_sources()), shell, others=len(files) - len(there))

    def hide(self) -> Done:
        """Take what is marked for removal out of the collection."""
        present, _, _ = self.going()
        if not present:
            return Done("", "")
        paths = [one.path for one in self._opened.index.entries(present)]
        with self._opened.reviewing() as folder:
            text = f"Hid {counted(len(present), 'picture')} from the collection"
            act = decisions.decide(folder, decisions.HIDDEN, dict.fromkeys(paths, decisions.HIDDEN), text=text)
            self._opened.set_hidden(present, True)
        return _done(act)

    def last_act(self) -> Done | None:
        """What would be undone next, of labels and of decisions, by whichever tab; None for nothing."""
        folder = self._opened.collection.folder
        acts: list[journal.Act | decisions.Act] = [*journal.still_done(folder)[:1], *decisions.still_done(folder)[:1]]
        return _done(max(acts, key=lambda act: act.time)) if acts else None

    def undo(self, name: str) -> tuple[Done, bool] | None:
        """Take an act back: (it, whether pictures are shown again). None where it is none of a review."""
        folder = self._opened.collection.folder
        found = next((act for act in decisions.still_done(folder) if act.name == name), None)
        if found is None:
            return None
        with self._opened.reviewing() as folder:
            if found.kind == decisions.HIDDEN:
                self._opened.show_again(list(found.choices))
            decisions.undo(folder, name)
        return _done(found), found.kind == decisions.HIDDEN

    def _decided(self, kind: str, paths: Sequence[Sequence[str]]) -> list[list[str]]:
        known = decisions.decided(self._opened.collection.folder).get(kind, {})
        return [[known.get(path, "") for path in some] for some in paths]

    def _paths(self, groups: Sequence[Sequence[int]]) -> list[list[str]]:
        names = iter([one.path for one in self._opened.index.entries([row for group in groups for row in group])])
        return [[next(names) for _ in group] for group in groups]

    def _groups(self, kind: str, threshold: float | None, most: int) -> list[Case]:
        session, opened = self._session, self._opened
        copies: Sequence[Sequence[CopyFacts] | None]
        scores: Sequence[float | None]
        if kind == "copies":
            copies = session.copies()
            groups, scores = [[one.row for one in group] for group in copies], [None] * len(copies)
        elif kind == "look-alikes":
            least = round(threshold or THRESHOLDS[opened.vectors], 4)
            found = session.look_alikes(least)
            groups, scores = [group[0] for group in found], [group[1] for group in found]
            copies = [None] * len(groups)
        else:
            there = len(opened.index) - int(opened.index.removed.sum())
            ranked = session.outliers()[1][: min(most, max(1, there // _SMALL_SHARE))]
            groups, scores = [[row] for row, _ in ranked], [score for _, score in ranked]
            copies = [None] * len(groups)
        paths = self._paths(groups)
        lines = zip(groups, self._decided(kind, paths), paths, copies, scores, strict=True)
        return [
            Case(rows, choices, names, _certain(facts), None if facts is None else [*facts], score)
            for rows, choices, names, facts, score in lines
        ]

    def _doubtful(self) -> list[Case]:
        from instdisc.jobs.doubtful import in_doubt, labelled_rows

        index = self._opened.index
        self._opened.hand_labels()  # looks whether they have changed
        rows = labelled_rows(index)
        if len(np.unique(index.labels[rows])) < 2 or len(rows) < 3:
            return []
        found, voted, doubt = in_doubt(index, rows, self._neighbours(rows.tobytes()))
        entries = index.entries(found)
        lines = zip(
            entries, voted, doubt.tolist(), self._decided("labels", [[one.path] for one in entries]), strict=True
        )
        return [
            Case(
                [one.row],
                [decisions.KEEP if known == one.label else ""],
                [one.path],
                score=score,
                given=one.label,
                voted=vote,
            )
            for one, vote, score, (known,) in lines
        ]

    def _nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from instdisc.jobs.doubtful import nearest_labelled

        return nearest_labelled(self._opened.index, rows, device="cpu")

    def _unreadable(self) -> list[Case]:
        listed = self._opened.unreadable()
        decided = self._decided("unreadable", [[path] for _, path, _, _ in listed])
        return [
            Case([place], choices, [now], note=reason)
            for place, ((_, _, now, reason), choices) in enumerate(zip(listed, decided, strict=True))
        ]


def _certain(facts: Sequence[CopyFacts] | None) -> bool:
    return facts is not None and all(one.kind == "same file" or one.agreement >= CERTAIN for one in facts[1:])


def _said(kind: Kind, choices: Sequence[str]) -> str:
    gone = sum(choice == decisions.REMOVE for choice in choices)
    what = {"unreadable": "unreadable file", "labels": "doubtful label"}.get(kind, "picture")
    if not any(choices):
        return f"Opened {counted(len(choices), what)} again"
    return (
        f"Marked {gone:,} of {counted(len(choices), what)} for removal"
        if gone
        else f"Kept {counted(len(choices), what)}"
    )


def _done(act: journal.Act | decisions.Act | None) -> Done:
    return Done("", "") if act is None else Done(act.name, act.text)
