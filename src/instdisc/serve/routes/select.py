"""A set of pictures as a whole, a selection as a list of files, and the file behind a picture."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response

from instdisc.serve.models import MOST_ROWS, Facts, Row, Selection
from instdisc.serve.routes import Start, TheSession, TheSet

router = APIRouter()


@router.get("/api/rows", response_class=Response, responses={200: {"content": {"application/octet-stream": {}}}})
def rows(
    session: TheSession, wanted: TheSet, start: Start = 0, count: Annotated[int, Query(ge=1, le=MOST_ROWS)] = MOST_ROWS
) -> Response:
    """The rows of a set from `start` on, in its order, as little-endian int32."""
    found = session.matching(wanted)[start : start + count]
    return Response(found.astype("<i4").tobytes(), media_type="application/octet-stream")


@router.post("/api/list", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def list_of_files(session: TheSession, selection: Selection) -> Response:
    """Where the files of these pictures are now, a line each, in the bytes of their names."""
    chosen = [session.row(row) for row in selection.rows]
    paths = [session.opened.location(row) for row in chosen]
    broken = [path for path in paths if "\n" in path]
    if broken:
        some = f"{len(broken):,} of the names hold a line break" if len(broken) > 1 else "A name holds a line break"
        raise HTTPException(400, f"{some}, which a list can't: leave {broken[0]!r} out of the selection, or rename it.")
    content = "".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape")
    headers = {"content-disposition": 'attachment; filename="pictures.txt"'}
    return Response(content, media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/api/facts/{row}")
def facts(session: TheSession, wanted: TheSet, row: Row) -> Facts:
    """A picture's file, and which pictures of a set stand before and after it."""
    session.row(row)
    found = session.matching(wanted)
    positions = np.flatnonzero(found == row)
    position = int(positions[0]) if len(positions) else -1
    before = int(found[position - 1]) if position > 0 else -1
    after = int(found[position + 1]) if 0 <= position < len(found) - 1 else -1
    file, problem = None, ""
    try:
        file = session.opened.file_facts(row)
    except Exception as error:  # of whatever a decoder or a disk comes up with
        problem = f"The file can't be read: {str(error).rstrip('.')}."
    return Facts(
        width=file.width if file else 0,
        height=file.height if file else 0,
        format=file.format if file else "",
        size=file.size if file else None,
        modified=file.modified if file else None,
        problem=problem,
        before=before,
        after=after,
        place=position,
        total=len(found),
    )
