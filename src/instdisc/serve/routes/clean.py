"""Copies, look-alikes and outliers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from instdisc.search import THRESHOLDS
from instdisc.serve.models import Copies, Copy, Duplicates, Found, Group, Groups, Outliers, Picture, WorkState
from instdisc.serve.routes import Count, Start, TheSession

router = APIRouter()


@router.get("/api/duplicates")
def duplicates(session: TheSession, start: Start = 0, count: Count = 50) -> Duplicates:
    """Groups of copies: the same file, or the same picture by its pixels. The first time every picture is read."""
    groups = session.copies()
    return Duplicates(
        total=len(groups),
        copies=sum(len(group) - 1 for group in groups),
        groups=[
            Copies(pictures=[Copy(**one) for one in session.copy_facts(group)])
            for group in groups[start : start + count]
        ],
    )


@router.get("/api/look-alikes")
def look_alikes(
    session: TheSession,
    threshold: Annotated[float | None, Query(gt=0.5, le=1)] = None,
    start: Start = 0,
    count: Count = 50,
) -> Groups:
    """Groups, every two pictures with at least this cosine; the collection's usual one if not said.

    They are not proven to be copies; what is, is not among them.
    """
    groups = session.look_alikes(round(threshold or THRESHOLDS[session.opened.vectors], 4))
    return Groups(
        total=len(groups),
        groups=[
            Group(pictures=[Picture(**one) for one in session.pictures(rows)], least=least, worst=worst)
            for rows, least, worst in groups[start : start + count]
        ],
    )


@router.get("/api/outliers")
def outliers(session: TheSession, start: Start = 0, count: Count = 100) -> Outliers:
    """The pictures that are least like any other."""
    known, found = session.outliers()
    chosen = found[start : start + count]
    entries = session.pictures([row for row, _ in chosen])
    return Outliers(
        by="outlier_score" if known else "similarity",
        pictures=[Found(**one, score=score) for one, (_, score) in zip(entries, chosen, strict=True)],
    )


@router.get("/api/work")
def work(session: TheSession) -> WorkState:
    """How far the comparison is that somebody waits for; answers at once."""
    return session.work.state()


@router.post("/api/work/stop")
def stop_work(session: TheSession) -> WorkState:
    """End it; those who wait for it are told."""
    session.work.stop()
    return session.work.state()
