"""The collection in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Path, Query
from fastapi.responses import Response

from instdisc.serve.models import Colours, MapState, Regions
from instdisc.serve.regions import called, regions
from instdisc.serve.routes import Text, TheSession
from instdisc.serve.session import CLUSTERS, Session
from instdisc.serve.sets import suggested
from instdisc.serve.sheets import DEEPEST, MOST_CELLS, Cut

router = APIRouter()
By = Literal["label", "suggestion", "agreement", "folder", "cluster", "outlier", "compare"]
COLOURINGS: dict[By, str] = {
    "label": "label",
    "suggestion": "suggestion",
    "agreement": "agreement",
    "folder": "folder",
    "cluster": "cluster",
    "outlier": "outlier score",
    "compare": "right run",  # where a second run is served
}
# On light and on dark ground: twelve that can be told apart, also by who does not see red and green as others do.
_SHADES = [
    ["#0072b2", "#4ba3e3"], ["#d55e00", "#ff8a50"], ["#009e73", "#35c795"], ["#cc79a7", "#e79ac6"],
    ["#b98100", "#f0b429"], ["#3aa0dc", "#8fd6f7"], ["#882255", "#d9679f"], ["#44aa99", "#62d6c3"],
    ["#8a8a1f", "#cfcf5e"], ["#aa4499", "#c884dc"], ["#7a3b12", "#c99a78"], ["#5b7fc7", "#a5b8f0"],
]  # fmt: skip
_HEAT = [["#96b2cd", "#3e5c80"], ["#a27d87", "#6e6874"], ["#ae4841", "#b57861"], ["#c82800", "#ff8a50"]]
_GRADES, _UNUSUAL = ("typical", "less typical", "unusual", "most unusual"), (0.04, 0.12, 0.3)  # shares, from the top


@router.get("/api/map")
def map_state(session: TheSession) -> MapState:
    """Whether there is a map."""
    return session.map_state()


@router.post("/api/map")
def start_map(session: TheSession) -> MapState:
    """Compute the map in the background, if there is none."""
    return session.start_map()


@router.get(
    "/api/map/points",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def map_points(session: TheSession) -> Response:
    """Rows as int32, then points (n, 2) as float32, both little-endian. The ETag is the map's version.

    The points fill 0..1 in each direction. Their order is made at random, so that no label is drawn over the others; of
    more than a million the first stand for all.
    """
    rows, points, version, _ = session.drawn()
    content = rows.astype("<i4").tobytes() + points.astype("<f4").tobytes()
    return Response(content, media_type="application/octet-stream", headers={"etag": f'"{version}"'})


@router.get("/api/map/sheet/{level}/{part}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def map_sheet(
    session: TheSession,
    level: Annotated[int, Path(ge=0, le=DEEPEST)],
    part: Annotated[int, Path(ge=0, lt=4**DEEPEST)],
    columns: Annotated[int, Query(ge=1, le=MOST_CELLS)] = 36,
    rows: Annotated[int, Query(ge=1, le=MOST_CELLS)] = 18,
    version: Text = None,
) -> Response:
    """A JPEG of small pictures, 32 a line: of each cell that has any, in their order, the one next to its centre.

    Level L cuts the map into 2**L x 2**L parts, row by row; a part is cut into columns x rows cells (at most 2,048),
    row by row. Behind the JPEG stand numbers (int32, little-endian): these cells, the positions of their pictures in
    `/api/map/points`, how many. version: as told there; then a browser may keep the answer for a day.
    """
    if part >= 4**level or columns * rows > MOST_CELLS:
        raise HTTPException(400, f"Level {level} has {4**level:,} parts, and a part at most {MOST_CELLS:,} cells.")
    known, points, present, _ = session.drawn()
    if version not in (None, present):
        raise HTTPException(404, "The map is another one now: load the page again.")
    content = session.sheets.sheet(known, points, Cut(columns, rows, level, part))
    headers = {"cache-control": "private, max-age=86400, immutable"} if version else {}
    return Response(content, media_type="image/jpeg", headers=headers)


@router.get("/api/map/names")
def map_names(session: TheSession) -> Regions:
    """Names of regions: of the labels by hand, else of suggestions, else of the folders; none where that is unsure."""
    rows, points, _, _ = session.drawn()
    names, codes = called(session.opened, session.folders())
    return Regions(regions=regions(points, codes[rows], names))


@router.get("/api/map/colours")
def map_colours(
    session: TheSession,
    by: By = "label",
) -> Colours:
    """What to colour the points by: labels, suggestions, folders, clusters, or outlier scores.

    agreement: whether the label that a picture has from its folder is the class that is suggested. compare: which of
    two served runs names a picture as its label does.
    """
    rows, _, version, part = session.drawn()
    found = _coloured(session, by, rows, version)
    if part and by != "outlier":  # whose note asks for the scores to be made
        found.note = f"{found.note} {part}".strip()
    return found


def _coloured(session: Session, by: By, rows: np.ndarray, version: str) -> Colours:
    index = session.opened.index
    if by == "label":
        return _colours(index.label_names, index.labels[rows], "label", "")
    if by == "folder":
        folders, inside = session.folders()
        return _colours(folders, inside[rows], "folder", "All pictures are in one folder.")
    if by == "cluster":
        clusters = session.clusters(version)
        return _colours(session.cluster_names(clusters), clusters[rows], "cluster", "")
    if by == "outlier":
        known = session.opened.known_outliers()
        codes = np.full(len(index), -1)
        for position, (row, _) in enumerate(known):
            codes[row] = 3 - np.searchsorted(_UNUSUAL, position / len(known), side="right")
        note = "" if known else "There are no outlier scores yet."
        return Colours(names=list(_GRADES) if known else [], codes=codes[rows].tolist(), note=note, shades=_HEAT)
    if by == "compare":
        return _by_run(session, rows)
    found, note = session.opened.suggestions(), "Nothing is suggested yet: label a few pictures."
    if found is None:
        return _shaded([], np.full(len(rows), -1), note=note)
    if by == "suggestion":
        shown = np.where(found.hand | suggested(found), found.codes, -1)
        return _colours(found.names, shown[rows], "suggestion", note)
    names = np.array([*(index.label_names.index(name) for name in found.names)])
    differ = (names[found.codes] != index.labels) & suggested(found)
    codes = np.where(found.hand, 0, np.where(differ, 2, 1))
    codes[(index.labels < 0) | ~(found.hand | suggested(found))] = -1
    codes = codes[rows]
    none = "no suggestion" if (codes < 0).any() else ""
    return _shaded(["by you", "as suggested", "suggested otherwise"], codes, none=none)


def _by_run(session: Session, rows: np.ndarray) -> Colours:
    if session.beside is None:
        raise HTTPException(404, "One run is served: `instdisc serve A B` compares two.")
    codes = session.beside.agreement()[rows]
    if (codes < 0).all():
        return _shaded([], codes, note="Labels of two classes are needed to tell which run is right.")
    none = "no label, or in one run" if (codes < 0).any() else ""
    return _shaded(list(session.beside.words().values()), codes, none=none)


def _shaded(names: list[str], codes: np.ndarray, *, others: int = 0, none: str = "", note: str = "") -> Colours:
    shades = _SHADES[: len(names)]
    return Colours(names=names, codes=codes.tolist(), others=others, none=none, note=note, shades=shades)


def _colours(names: Sequence[str], codes: np.ndarray, what: str, note: str) -> Colours:
    """As many as can be told apart: where there are more, the largest alone, and the others as one."""
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    used = np.flatnonzero(sizes)
    told = used if len(used) <= CLUSTERS else np.sort(np.argsort(-sizes, kind="stable")[: CLUSTERS - 1])
    others = len(used) - len(told)
    new = np.full(len(names) + 1, len(told) if others else -1)
    new[-1] = -1
    new[told] = np.arange(len(told))
    shown = [*(names[code] for code in told), *([f"{others:,} other {what}s"] if others else [])]
    none = f"no {what}" if len(used) and (codes < 0).any() else ""
    return _shaded(shown, new[codes], others=others, none=none, note="" if len(used) else note)
