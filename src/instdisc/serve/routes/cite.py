"""What can be cited: a picture by its id, and sets of pictures by a name that the run keeps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query

from instdisc.jobs import sets
from instdisc.serve.models import Keeping, KeptSet, Picture, Refusal, SetNames
from instdisc.serve.routes import TheSession
from instdisc.serve.session import Session

router = APIRouter()


@router.get("/api/row")
def row(session: TheSession, name: Annotated[str, Query(alias="id", min_length=1, max_length=4_096)]) -> Picture:
    """The picture that has this id, as the other answers write it."""
    return Picture(**session.pictures([session.cited(name)])[0])


@router.get("/api/sets")
def set_names(session: TheSession) -> SetNames:
    """Which sets there are."""
    return SetNames(names=sets.names(session.shown.folder))


@router.get("/api/sets/{name}")
def named_set(session: TheSession, name: str) -> KeptSet:
    """What is known of a set."""
    return _described(session, name)


@router.post("/api/sets", responses={409: {"model": Refusal}})
def keep_set(session: TheSession, given: Keeping) -> KeptSet:
    """Keep pictures as a set. 409 where one of that name is there and is not to be replaced."""
    rows = list(dict.fromkeys(session.row(one) for one in given.rows))
    opened = session.opened
    with opened.reviewing() as folder:
        if not given.replace and sets.path_of(folder, given.name).exists():
            there = _described(session, given.name).pictures
            raise HTTPException(409, f"There is a set “{given.name}” already, of {there:,} pictures: replace it?")
        sets.keep(folder, given.name, [one.id for one in opened.index.entries(rows)], given.origin)
    return _described(session, given.name)


@router.delete("/api/sets/{name}")
def delete_set(session: TheSession, name: str) -> SetNames:
    """Delete a set. Its pictures and their files stay."""
    with session.opened.reviewing() as folder:
        sets.forget(folder, name)
    return set_names(session)


def _described(session: Session, name: str) -> KeptSet:
    opened = session.opened
    kept = sets.load(opened.folder, name)
    there = int((opened.index.rows_with(kept.ids) >= 0).sum())
    return KeptSet(name=name, pictures=there, gone=len(kept.ids) - there, origin=kept.origin, made=kept.made)
