"""The API, a file a view: make_app includes the `router` of each. What their endpoints share stands here.

Every picture is named by its row: no path ever comes from a request. No file of this room imports torch, nor what
imports it, before it is needed: the page answers while torch is being loaded.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from instdisc.serve.beside import Verdict
from instdisc.serve.models import MOST_ROWS
from instdisc.serve.session import Session
from instdisc.serve.sets import By, Sort, Wanted

Count = Annotated[int, Query(ge=1, le=500)]
Start = Annotated[int, Query(ge=0, le=MOST_ROWS)]
Text = Annotated[str | None, Query(max_length=500)]
SetName = Annotated[str | None, Query(alias="set", max_length=500)]
Rows = Annotated[str, Query(pattern=r"^(\d{1,15}(,\d{1,15}){0,99})?$")]


async def _session_of(request: Request) -> Session:  # async: a plain function would take a thread of the pool each time
    session: Session = request.app.state.session
    return session


TheSession = Annotated[Session, Depends(_session_of)]


async def _wanted(
    label: Text = None,
    tag: Text = None,
    where: Text = None,
    by: By = "",
    sort: Sort = "",
    named: SetName = None,
    verdict: Verdict = "",
) -> Wanted:
    """A set of pictures (serve/sets.py)."""
    return Wanted(label or "", tag or "", where or "", by, sort, named or "", verdict)


TheSet = Annotated[Wanted, Depends(_wanted)]
