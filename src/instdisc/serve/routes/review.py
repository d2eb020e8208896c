"""The review of the collection: cases to decide on, decisions, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response

from instdisc.jobs.moving import SHELLS
from instdisc.serve.cases import Accepting, Case, Cases, Choices, Counted, Decided, Reviewing
from instdisc.serve.facts import Done
from instdisc.serve.review import KINDS, OUTLIERS, Kind, Which
from instdisc.serve.review import Case as Found
from instdisc.serve.routes import Start, TheSession
from instdisc.serve.session import Session

router = APIRouter()
_NOTHING = Done("", "")


@router.get("/api/review")
def review(session: TheSession) -> Reviewing:
    """How the review stands. Cases that take long to find are not counted before they have been asked for."""
    return _state(session, _NOTHING)


@router.get("/api/review/list", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def list_of_files(session: TheSession) -> Response:
    """Where the files are now that are marked for removal, a line each, in the bytes of their names."""
    files = session.review.files()
    broken = next((file for file in files if "\n" in file), None)
    if broken is not None:
        raise HTTPException(400, f"The name {broken!r} holds a line break, which a list can't: take the script.")
    return _attached("".join(f"{file}\n" for file in files).encode("utf-8", "surrogateescape"), "remove.txt")


@router.get("/api/review/script", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def script(session: TheSession, shell: Literal["sh", "powershell"] = "sh") -> Response:
    """A script that moves these files into a folder beside their own. It deletes nothing and overwrites nothing."""
    return _attached(session.review.script(shell), SHELLS[shell])


@router.post("/api/review/hide")
def hide(session: TheSession) -> Reviewing:
    """Take what is marked for removal out of the collection; no file is touched. `/api/undo` shows it again."""
    return _state(session, session.review.hide())


@router.post("/api/review/certain")
def accept_certain(session: TheSession, accepting: Accepting) -> Reviewing:
    """Accept all certain groups of copies at once: the first of each is kept."""
    return _state(session, session.review.accept_certain(accepting.expected))


@router.get("/api/review/{kind}")
def cases(
    session: TheSession,
    kind: Kind,
    which: Which = "open",
    start: Start = 0,
    count: Annotated[int, Query(ge=1, le=100)] = 12,
    threshold: Annotated[float | None, Query(gt=0.5, le=1)] = None,
    most: Annotated[int, Query(ge=1, le=10_000)] = OUTLIERS,
) -> Cases:
    """Cases of a kind, the surest first: open or decided ones, or certain ones of these still open."""
    every = session.review.cases(kind, threshold=threshold, most=most)
    waiting = [case for case in every if case.open]
    certain = [case for case in waiting if case.certain]
    chosen = {"open": waiting, "certain": certain, "decided": [case for case in every if not case.open]}[which]
    return Cases(
        total=len(chosen),
        open=len(waiting),
        decided=len(every) - len(waiting),
        certain=len(certain),
        cases=[_described(session, kind, case) for case in chosen[start : start + count]],
    )


@router.post("/api/review/{kind}")
def decide(session: TheSession, kind: Kind, given: Choices) -> Reviewing:
    """Write decisions down. Nothing happens to a picture or to its file."""
    return _state(session, session.review.decide(kind, {one.row: one.choice for one in given.choices}))


def _state(session: Session, done: Done) -> Reviewing:
    present, hidden, broken = session.review.going()
    kinds = []
    for kind, (title, noun, text) in KINDS.items():
        counts = session.review.counts(kind)
        known = {} if counts is None else dict(zip(("open", "decided", "certain"), counts, strict=True))
        kinds.append(Counted(kind=kind, title=title, noun=noun, text=text, **known))
    return Reviewing(
        kinds=kinds,
        going=len(present) + len(hidden) + len(broken),
        hidden=len(hidden),
        act=done.act,
        text=done.text,
    )


def _described(session: Session, kind: Kind, case: Found) -> Case:
    if kind == "unreadable":
        pictures = [
            Decided(row=row, id=path, path=path, choice=choice)
            for row, path, choice in zip(case.rows, case.paths, case.choices, strict=True)
        ]
    else:
        known: Sequence[dict[str, Any]]
        known = session.copy_facts(case.facts) if case.facts is not None else _with_file(session, case.rows)
        names = Decided.model_fields
        lines = zip(known, case.choices, strict=True)
        pictures = [
            Decided(choice=choice, **{name: value for name, value in one.items() if name in names})
            for one, choice in lines
        ]
    return Case(
        pictures=pictures,
        certain=case.certain,
        score=case.score,
        given=case.given,
        voted=case.voted,
        note=case.note,
    )


def _with_file(session: Session, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Pictures with what is known of their files; those of a file that is unreadable alone."""
    found = session.pictures(rows)
    for one in found:
        try:
            one |= vars(session.opened.file_facts(one["row"]))
        except Exception:  # of whatever a decoder or a disk comes up with: the picture itself says so
            continue
    return found


def _attached(content: bytes, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type="text/plain; charset=utf-8", headers=headers)
