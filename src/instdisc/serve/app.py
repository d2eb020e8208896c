"""The API of the page. Every picture is named by its row: no path ever comes from a request.

    app = make_app(Opening("photos", open_it), hosts=["127.0.0.1:8765"])

Answers are JSON (OpenAPI at /api/openapi.json), pictures are JPEG made anew from pixels. While the collection is being
opened, /api/status says so, and other requests wait for it for a while. This file must not import torch, nor what
imports it, before it is needed: the page answers while torch is being loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import Field

from instdisc.errors import InputError
from instdisc.serve.desk import FULL, THUMB, Desk
from instdisc.serve.guard import Guard
from instdisc.serve.handed import Opening
from instdisc.serve.intake import UPLOADS, Intake
from instdisc.serve.models import (
    MOST_ROWS,
    THRESHOLDS,
    About,
    ClassCount,
    Colours,
    Found,
    Group,
    Groups,
    Hits,
    Labelling,
    Labels,
    Listing,
    MapState,
    Outliers,
    Picture,
    Proposal,
    Proposals,
    Refusal,
    Row,
    Status,
    Uploaded,
    readable,
)
from instdisc.serve.upload import decode_aside

PAGE = Path(__file__).parent / "page"
_FAULTS = 10  # of a request, that its refusal names

Count = Annotated[int, Query(ge=1, le=500)]
Start = Annotated[int, Query(ge=0, le=MOST_ROWS)]
Text = Annotated[str | None, Query(max_length=500)]
Rows = Annotated[str, Query(pattern=r"^(\d{1,15}(,\d{1,15}){0,99})?$")]


def make_app(opening: Opening, hosts: Iterable[str], token: str | None = None) -> Guard:
    """The whole server, an ASGI application. hosts: `name:port` that it answers to; token: asked of every request."""
    app = FastAPI(
        title="instdisc",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        responses={code: {"model": Refusal} for code in (400, 404, 408, 413, 503)},
    )
    desk = Desk(opening)

    @app.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": readable(str(error))}, 400)

    @app.exception_handler(TimeoutError)
    async def opening_still(_: Request, __: TimeoutError) -> JSONResponse:
        return JSONResponse({"detail": "The collection is still being opened: try again."}, 503, {"retry-after": "5"})

    @app.exception_handler(RequestValidationError)
    async def not_as_described(_: Request, error: RequestValidationError) -> JSONResponse:
        """Without what was given, as FastAPI would have it: that may be what JSON can't carry, or very long."""
        faults = [{name: one[name] for name in ("loc", "msg", "type")} for one in error.errors()[:_FAULTS]]
        return JSONResponse({"detail": faults}, 422)

    @app.get("/api/status")
    def status() -> Status:
        """Whether the collection is open yet; answers at once."""
        try:
            opening.wait(0)
        except TimeoutError:
            return Status(state="listed" if opening.has_first_look() else "opening", name=opening.name)
        except InputError as error:
            return Status(state="failed", name=opening.name, error=str(error))
        return Status(state="open", name=opening.name)

    @app.get("/api/collection")
    def collection() -> About:
        """What there is."""
        first = opening.first_look()
        if first is not None:
            return About(
                name=opening.name,
                pictures=len(first.rows),
                dim=first.dim,
                labels=sorted(first.label_names),
                tags=sorted(first.tags),
                recomputed=first.recomputed,
                vectors=first.vectors,
                threshold=THRESHOLDS[first.vectors],
                start=desk.start,
            )
        handed = desk.handed
        index = handed.index
        return About(
            name=handed.name,
            pictures=int(len(index) - index.removed.sum()),
            dim=index.dim,
            labels=sorted(index.label_names),
            tags=sorted(index.tags),
            recomputed=handed.recomputed,
            vectors=handed.vectors,
            threshold=THRESHOLDS[handed.vectors],
            start=desk.start,
        )

    @app.get("/api/pictures")
    def pictures(
        start: Start = 0,
        count: Count = 100,
        label: Text = None,
        tag: Text = None,
        where: Text = None,
        rows: Rows = "",
    ) -> Listing:
        """Pictures from `start` on; where: a pattern of their ids, with * and ?. rows: these alone, in their order."""
        if rows:
            chosen = desk.rows(rows)
            return Listing(total=len(chosen), pictures=[Picture(**one) for one in desk.pictures(chosen)])
        found = desk.matching(label or None, tag or None, where or None)
        return Listing(
            total=len(found), pictures=[Picture(**one) for one in desk.pictures(found[start : start + count])]
        )

    @app.get("/api/pictures/{row}")
    def picture(row: Row) -> Picture:
        """One picture."""
        return Picture(**desk.pictures([desk.row(row)])[0])

    @app.get("/pictures/{row}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    def image(row: Row, size: Literal["thumb", "full"] = "thumb") -> Response:
        """A picture's pixels: at most 224 pixels long, or 1,024. A browser may keep them for an hour."""
        opening.picture_asked()
        try:
            content = desk.thumb(desk.row(row), THUMB) if size == "thumb" else desk.jpeg(desk.row(row), FULL)
        except HTTPException:
            raise
        except Exception as error:  # of whatever a decoder or a disk comes up with
            raise HTTPException(404, f"The picture can't be read: {str(error).rstrip('.')}.") from None
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    @app.get("/api/neighbours/{row}")
    def neighbours(row: Row, count: Count = 40) -> Hits:
        """The pictures most like one of the collection; it is not among them."""
        return search(like=str(desk.row(row)), count=count)

    @app.get("/api/search")
    def search(
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
        index = desk.handed.index
        import torch
        from torch.nn.functional import normalize

        near, far = desk.rows(like), desk.rows(unlike)
        vectors = [*index.vectors(np.array(near, np.int64))]
        if upload:
            vectors.append(desk.upload(upload)[0])
        if not vectors:
            raise HTTPException(400, "Name at least one picture to search for.")
        query = torch.stack(vectors).mean(0)
        if far:
            query = query - 0.5 * index.vectors(np.array(far, np.int64)).mean(0)
        among = np.zeros(len(index), dtype=bool)
        among[desk.matching(label or None, tag or None, where or None)] = True
        among[near + far] = False
        most = int(among.sum())
        if not most:
            return Hits(results=[])
        scores, rows = index.search(normalize(query[None], dim=1), min(count, most), among=among)
        entries = desk.pictures(rows[0].tolist())
        return Hits(results=[Found(**one, score=score) for one, score in zip(entries, scores[0].tolist(), strict=True)])

    @app.post(
        UPLOADS,
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
    )
    async def upload_picture(request: Request) -> Uploaded:
        """A picture file to search with: its bytes are the body, 20 MB at most."""
        content = await request.body()

        def embedded() -> str:
            pixels = decode_aside(content)
            return desk.keep(desk.handed.embed([pixels])[0], pixels)

        return Uploaded(id=await asyncio.to_thread(embedded))

    @app.get("/api/uploads/{name}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    def uploaded(name: Annotated[str, Field(max_length=40)]) -> Response:
        """The query picture itself."""
        return Response(desk.upload(name)[1], media_type="image/jpeg")

    @app.get("/api/duplicates")
    def duplicates(
        threshold: Annotated[float | None, Query(gt=0.5, le=1)] = None, start: Start = 0, count: Count = 50
    ) -> Groups:
        """Groups of which every two pictures have at least this cosine; the collection's usual one if not said."""
        groups = desk.groups(round(threshold or THRESHOLDS[desk.handed.vectors], 4))
        return Groups(
            total=len(groups),
            groups=[
                Group(pictures=[Picture(**one) for one in desk.pictures(rows)], least=least, worst=worst)
                for rows, least, worst in groups[start : start + count]
            ],
        )

    @app.get("/api/outliers")
    def outliers(start: Start = 0, count: Count = 100) -> Outliers:
        """The pictures that are least like any other."""
        index = desk.handed.index
        known = [(row, score) for row, score in desk.handed.known_outliers() if not index.removed[row]]
        chosen = (known or desk.lonely())[start : start + count]
        entries = desk.pictures([row for row, _ in chosen])
        return Outliers(
            by="strangeness" if known else "similarity",
            pictures=[Found(**one, score=score) for one, (_, score) in zip(entries, chosen, strict=True)],
        )

    @app.get("/api/map")
    def map_state() -> MapState:
        """Whether there is a map."""
        return desk.map_state()

    @app.post("/api/map")
    def start_map() -> MapState:
        """Compute the map in the background, if there is none."""
        return desk.start_map()

    @app.get(
        "/api/map/points",
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    def map_points() -> Response:
        """Rows as int32, then points (n, 2) as float32 in 0..1, both little-endian."""
        rows, points = desk.points()
        low, span = points.min(0), np.ptp(points, axis=0).max() or 1.0
        middle = (1 - np.ptp(points, axis=0) / span) / 2
        content = rows.astype("<i4").tobytes() + ((points - low) / span + middle).astype("<f4").tobytes()
        return Response(content, media_type="application/octet-stream")

    @app.get("/api/map/colours")
    def map_colours(by: Literal["label", "cluster", "outlier"] = "label") -> Colours:
        """What to colour the points by: labels, clusters, or how strange a picture is (0 the least, 255 the most)."""
        rows, _ = desk.points()
        index = desk.handed.index
        if by == "label":
            return Colours(names=list(index.label_names), codes=index.labels[rows].tolist())
        if by == "cluster":
            clusters = desk.clusters()[rows]
            sizes = np.bincount(clusters[clusters >= 0])
            return Colours(names=[f"{size:,} pictures" for size in sizes.tolist()], codes=clusters.tolist())
        known = desk.handed.known_outliers()
        codes = np.full(len(index), -1)
        for place, (row, _) in enumerate(known):
            codes[row] = 255 - place * 255 // max(len(known) - 1, 1)
        return Colours(names=["strangeness"] if known else [], codes=codes[rows].tolist())

    @app.get("/api/labels")
    def labels() -> Labels:
        """How labelling stands."""
        state = desk.handed.label_state()
        return Labels(
            classes=[ClassCount(label=name, hand=hand, vote=vote) for name, (hand, vote) in state.counts.items()],
            accuracy=state.accuracy,
            interval=state.interval,
        )

    @app.get("/api/labels.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
    def labels_csv() -> Response:
        """Every picture's label, by hand or by vote: id, path, label, by, confidence."""
        content = desk.handed.labels_csv().encode("utf-8", "surrogateescape")
        headers = {"content-disposition": 'attachment; filename="labels.csv"'}
        return Response(content, media_type="text/csv; charset=utf-8", headers=headers)

    @app.post("/api/labels")
    def set_labels(labelling: Labelling) -> Labels:
        """Label pictures by hand; saved when this answers."""
        rows = [desk.row(row) for row in labelling.rows]
        given = None if labelling.label is None else labelling.label.strip()
        if given == "":
            raise HTTPException(400, "A label needs a letter.")
        desk.handed.set_labels(rows, given)
        return labels()

    @app.get("/api/proposals")
    def proposals(
        count: Annotated[int, Query(ge=1, le=100)] = 12, by: Literal["mixed", "covered", "uncertain"] = "mixed"
    ) -> Proposals:
        """What to label next."""
        rows = desk.proposals(count, by)
        votes = desk.handed.votes(rows)
        return Proposals(
            pictures=[
                Proposal(**one, guess=guess, confidence=share)
                for one, (guess, share) in zip(desk.pictures(rows), votes, strict=True)
            ]
        )

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return Guard(Intake(app), hosts, token)
