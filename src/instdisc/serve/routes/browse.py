"""The grid, one picture, and what is most like pictures."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from pydantic import Field

from instdisc.errors import InputError
from instdisc.search import THRESHOLDS
from instdisc.serve.limits import UPLOADS
from instdisc.serve.models import About, Found, Hits, Listing, Picture, Row, Status, Uploaded
from instdisc.serve.routes import Count, Rows, Start, Text, TheSession, TheSet
from instdisc.serve.routes.map import COLOURINGS
from instdisc.serve.session import FULL, LARGE, THUMB
from instdisc.serve.sets import ORDERS, Wanted
from instdisc.serve.upload import decode_aside

router = APIRouter()


@router.get("/api/status")
def status(session: TheSession) -> Status:
    """Whether the collection is open yet; answers at once."""
    try:
        session.opening.wait(0)
    except TimeoutError:
        return Status(state="listed" if session.opening.is_listed() else "opening", name=session.opening.name)
    except InputError as error:
        return Status(state="failed", name=session.opening.name, error=str(error))
    return Status(state="open", name=session.opening.name)


@router.get("/api/collection")
def collection(session: TheSession) -> About:
    """What there is."""
    shown = session.shown
    index = shown.index
    used = np.unique(index.labels[~index.removed])
    return About(
        name=session.opening.name,
        pictures=int(len(index) - index.removed.sum()),
        dim=shown.dim,
        labels=sorted(index.label_names[code] for code in used[used >= 0].tolist()),
        tags=sorted(index.tags),
        recomputed=shown.recomputed,
        vectors=shown.vectors,
        threshold=THRESHOLDS[shown.vectors],
        start=session.start,
        labelled=bool(shown.hand_labels()),
        beside=session.beside.name if session.beside else "",
        orders=[[value, text] for value, text in ORDERS.items() if session.beside or value != "changed"],
        colourings=[[value, text] for value, text in COLOURINGS.items() if session.beside or value != "compare"],
        verdicts=[[value, text] for value, text in session.beside.words().items()] if session.beside else [],
    )


@router.get("/api/pictures")
def pictures(session: TheSession, wanted: TheSet, start: Start = 0, count: Count = 100, rows: Rows = "") -> Listing:
    """Pictures of a set from `start` on. rows: these alone, in their order."""
    if rows:
        chosen = session.rows(rows)
        return Listing(total=len(chosen), pictures=[Picture(**one) for one in session.pictures(chosen)])
    found = session.matching(wanted)
    return Listing(
        total=len(found), pictures=[Picture(**one) for one in session.pictures(found[start : start + count])]
    )


@router.get("/api/pictures/{row}")
def picture(session: TheSession, row: Row) -> Picture:
    """One picture."""
    return Picture(**session.pictures([session.row(row)])[0])


@router.get("/pictures/{row}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def image(session: TheSession, row: Row, size: Literal["thumb", "full", "large"] = "thumb") -> Response:
    """A picture's pixels: at most 224 pixels long, 1,024, or 4,096. A browser may keep them for an hour."""
    session.opening.picture_asked()
    try:
        row, side = session.row(row), {"thumb": THUMB, "full": FULL, "large": LARGE}[size]
        content = session.thumb(row, side) if size == "thumb" else session.jpeg(row, side)
    except HTTPException:
        raise
    except Exception as error:  # of whatever a decoder or a disk comes up with
        raise HTTPException(404, f"The picture can't be read: {str(error).rstrip('.')}.") from None
    return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


@router.get("/api/neighbours/{row}")
def neighbours(session: TheSession, row: Row, count: Count = 40) -> Hits:
    """The pictures most like one of the collection; it is not among them."""
    return search(session, like=str(session.row(row)), count=count)


@router.get("/api/search")
def search(
    session: TheSession,
    like: Rows = "",
    unlike: Rows = "",
    upload: Text = None,
    count: Count = 40,
    label: Text = None,
    tag: Text = None,
    where: Text = None,
) -> Hits:
    """The pictures most like some rows (their mean), an uploaded picture, or all of these; less like others.

    like, unlike: rows with commas between. The rows themselves are not among the answers.
    """
    index = session.opened.index
    import torch
    from torch.nn.functional import normalize

    near, far = session.rows(like), session.rows(unlike)
    vectors = [*index.vectors(np.array(near, np.int64))]
    if upload:
        vectors.append(session.upload(upload)[0])
    if not vectors:
        raise HTTPException(400, "Name at least one picture to search for.")
    query = torch.stack(vectors).mean(0)
    if far:
        query = query - 0.5 * index.vectors(np.array(far, np.int64)).mean(0)
    among = None
    if label or tag or where:
        among = np.zeros(len(index), dtype=bool)
        among[session.matching(Wanted(label or "", tag or "", where or ""))] = True
    there = ~index.removed if among is None else among & ~index.removed
    most = int(there.sum()) - int(there[list({*near, *far})].sum())
    if not most:
        return Hits(results=[])
    scores, rows = index.search(normalize(query[None], dim=1), min(count, most), among=among, without=near + far)
    entries = session.pictures(rows[0].tolist())
    return Hits(results=[Found(**one, score=score) for one, score in zip(entries, scores[0].tolist(), strict=True)])


@router.post(
    UPLOADS,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
)
async def upload_picture(session: TheSession, request: Request) -> Uploaded:
    """A picture file to search with: its bytes are the body, 20 MB at most."""
    content = await request.body()

    def embedded() -> str:
        pixels = decode_aside(content)
        return session.keep(session.opened.embed([pixels])[0], pixels)

    return Uploaded(id=await asyncio.to_thread(embedded))


@router.get("/api/uploads/{name}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def uploaded(session: TheSession, name: Annotated[str, Field(max_length=40)]) -> Response:
    """The query picture itself."""
    return Response(session.upload(name)[1], media_type="image/jpeg")
