"""Two runs side by side, where a second one is served: neighbours, what has changed most, which run is right."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Query

from instdisc.errors import InputError
from instdisc.files import read_json
from instdisc.runs import RunFolder
from instdisc.serve.beside import VERDICTS, Beside
from instdisc.serve.compared import Agreement, Changed, Compared, Measured, Side, Strips
from instdisc.serve.models import Found, Picture, Row
from instdisc.serve.routes import Start, TheSession
from instdisc.serve.session import Session

router = APIRouter()


def _beside(session: Session) -> Beside:
    if session.beside is None:
        raise HTTPException(404, "One run is served: `instdisc serve A B` compares two.")
    return session.beside


@router.get("/api/compare")
def compare(session: TheSession) -> Compared:
    """Which runs, how many pictures both have, and what `evaluate` measured of each."""
    beside, opened = _beside(session), session.opened
    both = (session.opening.name, opened), (beside.name, beside.other)
    sides = [
        Side(name=name, vectors=one.vectors, dim=one.dim, pictures=int((~one.index.removed).sum()))
        for name, one in both
    ]
    measured, note = _measured(*(one.folder for _, one in both))
    return Compared(first=sides[0], second=sides[1], matched=len(beside.matched()[0]), measured=measured, note=note)


@router.get("/api/compare/agreement")
def agreement(session: TheSession) -> Agreement:
    """Which run's neighbours name pictures as their labels do. The first time all are compared with all."""
    codes = _beside(session).agreement()
    counts = np.bincount(codes[codes >= 0], minlength=len(VERDICTS)).tolist()
    return Agreement(labelled=sum(counts), **dict(zip(VERDICTS, counts, strict=True)))


@router.get("/api/compare/changed")
def changed(
    session: TheSession,
    start: Start = 0,
    count: Annotated[int, Query(ge=1, le=50)] = 12,
    neighbours: Annotated[int, Query(ge=1, le=50)] = 8,
) -> Changed:
    """The pictures whose neighbours have changed most. The first time all are compared with all."""
    beside = _beside(session)
    rows = beside.matched()[0]
    chosen = rows[beside.order(rows)][start : start + count].tolist()
    return Changed(total=len(rows), pictures=[_strips(session, row, neighbours) for row in chosen])


@router.get("/api/compare/{row}")
def strips(session: TheSession, row: Row, count: Annotated[int, Query(ge=1, le=500)] = 12) -> Strips:
    """One picture."""
    return _strips(session, session.row(row), count)


def _strips(session: Session, row: int, count: int) -> Strips:
    beside = _beside(session)
    first, second = (_found(session, hits) for hits in beside.nearest(row, max(count, 10)))
    both = {one.row for one in first[:10]} & {one.row for one in second[:10]}
    return Strips(
        picture=Picture(**session.pictures([row])[0]),
        first=first[:count],
        second=second[:count],
        shared=len(both),
    )


def _found(session: Session, hits: list[tuple[int, float]]) -> list[Found]:
    entries = session.pictures([row for row, _ in hits])
    return [Found(**one, score=score) for one, (_, score) in zip(entries, hits, strict=True)]


def _measured(first: RunFolder, second: RunFolder) -> tuple[list[Measured], str]:
    reports = [_report(folder) for folder in (first, second)]
    tables = [_lines(report) for report in reports]
    names = list(dict.fromkeys(name for table in tables for name in table))
    told = ("neighbours", "temperature", "mode")
    how = [[report.get("settings", {}).get(name) for name in told] for report in reports if report.get("knn")]
    note = ""
    if len(how) < 2:
        note = "Not evaluated: `instdisc evaluate RUN` measures a run." if names else "Neither run was evaluated."
    elif how[0] != how[1]:
        note = "They were not measured in the same way: see evaluation.json of both."
    return [Measured(name=name, first=tables[0].get(name, ""), second=tables[1].get(name, "")) for name in names], note


def _report(folder: RunFolder) -> dict[str, Any]:
    try:
        return read_json(folder.evaluation) if folder.evaluation.is_file() else {}
    except InputError:
        return {}


def _lines(report: dict[str, Any]) -> dict[str, str]:
    """Name -> words. A file of an older version, or a damaged one, has what can be read of it."""
    from instdisc.jobs.measures import knn_rows

    lines = {}
    try:
        for name, result in knn_rows(report) if "knn" in report else ():
            low, high = (100 * one for one in result["interval"])
            words = f"{100 * result['top1']:.2f}_% ({low:.1f}–{high:.1f})"
            lines[f"kNN, {name}"] = words.replace("_", "\N{NO-BREAK SPACE}")  # a line is broken before the interval
        for name in ("effective_rank", "uniformity", "alignment"):
            if isinstance(value := report.get("quality", {}).get(name), float):
                lines[name.replace("_", " ").capitalize()] = f"{value:.2f}"
    except (KeyError, TypeError, ValueError, AttributeError):
        return lines
    return lines
