"""Labels by hand and by vote, the classes, and what takes each deed back."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response

from instdisc.serve.facts import Done
from instdisc.serve.models import (
    ClassCount,
    Labelling,
    Labels,
    LastAct,
    Overwriting,
    Proposals,
    Renaming,
    Suggested,
    Undoing,
    Undone,
)
from instdisc.serve.routes import Rows, Start, TheSession
from instdisc.serve.session import Session
from instdisc.serve.sets import Wanted, suggested

router = APIRouter()
_NOTHING = Done("", "")


@router.get("/api/labels")
def labels(session: TheSession) -> Labels:
    """How labelling stands."""
    return _labels(session, _NOTHING)


def _labels(session: Session, done: Done) -> Labels:
    state, found = session.opened.label_state(), session.opened.suggestions()
    order, there = session.opened.classes(), ~session.opened.index.removed
    counts, none = dict.fromkeys(state.counts, 0), int(there.sum())
    if found is not None:
        shown = suggested(found)
        none = int((there & ~shown & ~found.hand).sum())
        sizes = np.bincount(found.codes[shown], minlength=len(found.names))
        counts = dict(zip(found.names, sizes.tolist(), strict=True))
    classes = []
    for name in (name for name in order if name in state.counts):
        hand, vote = state.counts[name]
        classes.append(ClassCount(label=name, hand=hand, vote=vote, suggested=counts.get(name, 0)))
    return Labels(
        classes=classes,
        order=order,
        none=none,
        accuracy=state.accuracy,
        interval=state.interval,
        act=done.act,
        text=done.text,
    )


@router.get("/api/labels.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def labels_csv(session: TheSession) -> Response:
    """Every picture's label, by hand or by vote: id, path, label, by, confidence."""
    content = session.opened.labels_csv().encode("utf-8", "surrogateescape")
    headers = {"content-disposition": 'attachment; filename="labels.csv"'}
    return Response(content, media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/api/labels")
def set_labels(session: TheSession, labelling: Labelling) -> Labels:
    """Label pictures by hand; saved when this answers."""
    rows, given = _asked(session, labelling)
    return _labels(session, session.opened.set_labels(rows, given, keep=labelling.keep, bulk=labelling.together))


@router.post("/api/labels/overwriting")
def overwriting(session: TheSession, labelling: Labelling) -> Overwriting:
    """How many labels by hand such a deed would overwrite. Nothing is changed."""
    rows, given = _asked(session, labelling)
    hand = session.opened.hand_labels()
    known = [hand.get(row) for row in rows]
    return Overwriting(other=sum(one not in (None, given) for one in known), none=sum(one is None for one in known))


def _asked(session: Session, labelling: Labelling) -> tuple[list[int], str | None]:
    """The rows, and the label."""
    rows = list(dict.fromkeys(session.row(row) for row in labelling.rows))
    return rows, None if labelling.label is None else _name(session, labelling.label)


def _name(session: Session, given: str) -> str:
    if not given.strip():
        raise HTTPException(400, "A label needs a letter.")
    return session.told(given.strip())


@router.post("/api/classes")
def rename_class(session: TheSession, renaming: Renaming) -> Labels:
    """Give a class another name; the name of another class merges them."""
    return _labels(session, session.opened.rename(session.told(renaming.label), _name(session, renaming.to)))


@router.get("/api/journal")
def last_act(session: TheSession) -> LastAct:
    """What would be undone next, whoever did it."""
    return _last(session.review.last_act())


@router.post("/api/undo")
def undo(session: TheSession, undoing: Undoing) -> Undone:
    """Take one act back, of labels or of a review. Pictures that were labelled again since stay as they are."""
    decided = session.review.undo(undoing.act)
    if decided is not None:
        done, shown = decided
        rest = _last(session.review.last_act())
        return Undone(text=done.text, rows=[], kept=0, next=rest, pictures=shown, review=True)
    found = session.opened.undo(undoing.act)
    return Undone(text=found.text, rows=found.rows, kept=found.kept, next=_last(session.review.last_act()))


def _last(done: Done | None) -> LastAct:
    return LastAct(act="", text="") if done is None else LastAct(act=done.act, text=done.text)


@router.get("/api/proposals")
def proposals(
    session: TheSession,
    count: Annotated[int, Query(ge=1, le=100)] = 12,
    by: Literal["mixed", "covered", "uncertain"] = "mixed",
) -> Proposals:
    """What to label next."""
    return Proposals(pictures=session.proposed(session.proposals(count, by)))


@router.get("/api/votes")
def votes(session: TheSession, rows: Rows) -> Proposals:
    """What is suggested for some pictures, in their order."""
    return Proposals(pictures=session.proposed(session.rows(rows)))


@router.get("/api/suggestions")
def suggestions(
    session: TheSession,
    label: Annotated[str, Query(max_length=500)],
    start: Start = 0,
    count: Annotated[int, Query(ge=1, le=100)] = 24,
) -> Suggested:
    """Pictures that are suggested to be of this class, the most certain first."""
    found = session.matching(Wanted(label=label, by="suggested", sort="sure"))
    return Suggested(total=len(found), pictures=session.proposed(found[start : start + count].tolist()))
