"""The API of the page. Every picture is named by its row: no path ever comes from a request.

    app = make_app(Opening("photos", open_it), hosts=["127.0.0.1:8765"])

Answers are JSON (OpenAPI at /api/openapi.json), pictures are JPEG made anew from pixels. While the collection is being
opened, /api/status says so, and other requests wait for it for a while. This file must not import torch, nor what
imports it, before it is needed: the page answers while torch is being loaded.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import BaseModel, Field

from instdisc.errors import InputError
from instdisc.serve.guard import Guard
from instdisc.serve.handed import Handed, Opening
from instdisc.serve.upload import MAX_BYTES, decode_aside

PAGE = Path(__file__).parent / "page"
_OPENING_SECONDS, _UPLOAD_SECONDS = 60.0, 30.0
_THUMB, _FULL = 160, 1_024  # pixels of the longer side
_UPLOADS = 64  # of which vector and small picture are kept
_MOST_ROWS = 2**53  # what JavaScript can count to

Row = Annotated[int, Field(ge=0, le=_MOST_ROWS)]


class Picture(BaseModel):
    """A picture of the collection. hand: whether its label was given by hand."""

    row: int
    id: str
    path: str
    label: str
    hand: bool


class Found(Picture):
    """score: cosine with the query."""

    score: float


class Status(BaseModel):
    """state: opening, open or failed (then `error` says why). name: of the collection."""

    state: Literal["opening", "open", "failed"]
    name: str
    error: str = ""


class About(BaseModel):
    """The collection as a whole. recomputed: whether its vectors come from the pictures as they are."""

    name: str
    pictures: int
    dim: int
    labels: list[str]
    tags: list[str]
    recomputed: bool


class Listing(BaseModel):
    """Some of the pictures that match, in order, and how many match in all."""

    total: int
    pictures: list[Picture]


class Hits(BaseModel):
    """The best first."""

    results: list[Found]


class Uploaded(BaseModel):
    """The name of a query picture, for as long as the server runs and no 64 newer ones have come."""

    id: str


class Group(BaseModel):
    """Near-duplicates. least: the lowest cosine between two of them; worst: these two rows."""

    pictures: list[Picture]
    least: float
    worst: tuple[int, int]


class Groups(BaseModel):
    """The largest groups first."""

    total: int
    groups: list[Group]


class Outliers(BaseModel):
    """The least like any other first.

    by: strangeness (score: higher is stranger), where `instdisc outliers` has computed it, else similarity (score: mean
    cosine with the ten nearest others, lower is stranger).
    """

    by: Literal["strangeness", "similarity"]
    pictures: list[Found]


class Labelling(BaseModel):
    """rows get `label` by hand, or lose theirs where it is null."""

    rows: list[Row] = Field(min_length=1, max_length=10_000)
    label: Annotated[str, Field(min_length=1, max_length=200)] | None


class ClassCount(BaseModel):
    """Pictures of a class by hand and by vote."""

    label: str
    hand: int
    vote: int


class Labels(BaseModel):
    """accuracy: of the votes on pictures labelled by hand, leave-one-out, with its 95 % interval; null if unknown."""

    classes: list[ClassCount]
    accuracy: float | None
    interval: tuple[float, float] | None


class Proposal(Picture):
    """guess: what the votes say, with their share; "" where nothing is labelled yet."""

    guess: str
    confidence: float


class Proposals(BaseModel):
    """The most useful first."""

    pictures: list[Proposal]


class MapState(BaseModel):
    """state: none, computing (progress in 0..1, and about how long yet), ready, or failed (then `error` says why)."""

    state: Literal["none", "computing", "ready", "failed"]
    progress: float = 0.0
    seconds_left: float | None = None
    error: str = ""


class Colours(BaseModel):
    """A code for each point of the map, in its order: the place in `names`, or a shade 0..255; -1 for none."""

    names: list[str]
    codes: list[int]


class Refusal(BaseModel):
    """Why not, in a sentence."""

    detail: str


Count = Annotated[int, Query(ge=1, le=500)]
Start = Annotated[int, Query(ge=0, le=_MOST_ROWS)]
Text = Annotated[str | None, Query(max_length=500)]
Rows = Annotated[str, Query(pattern=r"^(\d{1,15}(,\d{1,15}){0,99})?$")]


class _Desk:
    """The state behind the API."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self._uploads: OrderedDict[str, tuple[Any, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._heavy = threading.Lock()  # one comparison of all with all at a time
        self._mapping: threading.Thread | None = None
        self._map = MapState(state="none")
        self.thumb = lru_cache(maxsize=4_096)(self._thumb)
        self.matching = lru_cache(maxsize=16)(self._matching)
        self.groups = lru_cache(maxsize=4)(self._groups)
        self.lonely = lru_cache(maxsize=1)(self._lonely)

    @property
    def handed(self) -> Handed:
        return self.opening.wait(_OPENING_SECONDS)

    def pictures(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        chosen = [int(row) for row in rows]
        hand = self.handed.hand_labels()
        return [vars(entry) | {"hand": entry.row in hand} for entry in self.handed.index.entries(chosen)]

    def row(self, row: int) -> int:
        index = self.handed.index
        if row >= len(index) or index.removed[row]:
            raise HTTPException(404, "No picture of the collection has this number.")
        return row

    def rows(self, text: str) -> list[int]:
        return [self.row(int(one)) for one in text.split(",") if one]

    def _matching(self, label: str | None, tag: str | None, where: str | None, version: int) -> np.ndarray:
        """Rows; `version` makes old answers be forgotten when labels change."""
        return np.flatnonzero(self.handed.index.matching(label=label, tag=tag, where=where))

    def _thumb(self, row: int, side: int) -> bytes:
        return _jpeg(self.handed.picture(row), side)

    def keep(self, vector: Any, pixels: np.ndarray) -> str:
        name = secrets.token_urlsafe(9)
        with self._lock:
            self._uploads[name] = vector, _jpeg(pixels, _FULL)
            while len(self._uploads) > _UPLOADS:
                self._uploads.popitem(last=False)
        return name

    def upload(self, name: str) -> tuple[Any, bytes]:
        """The unit vector (a tensor) and the picture that go by this name."""
        with self._lock:
            if name not in self._uploads:
                raise HTTPException(404, "This query picture is not kept any more: drop it on the page again.")
            self._uploads.move_to_end(name)
            return self._uploads[name]

    def map_state(self) -> MapState:
        if self._map.state == "none" and self.handed.map_points() is not None:
            self._map = MapState(state="ready")
        return self._map

    def start_map(self) -> MapState:
        with self._lock:
            if self.map_state().state in ("none", "failed"):
                self._map = MapState(state="computing")
                self._mapping = threading.Thread(target=self._make_map, name="map", daemon=True)
                self._mapping.start()
            return self._map

    def _make_map(self) -> None:
        started = time.monotonic()

        def tell(share: float) -> None:
            spent = time.monotonic() - started
            self._map = MapState(state="computing", progress=share, seconds_left=spent / share * (1 - share))

        try:
            self.handed.make_map(tell)
            self._map = MapState(state="ready")
        except InputError as error:
            self._map = MapState(state="failed", error=str(error))
        except Exception as error:
            self._map = MapState(
                state="failed", error=f"The map could not be computed ({type(error).__name__}: {error})."
            )

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, points) of the pictures of the map that are still there."""
        found = self.handed.map_points()
        if found is None:
            raise HTTPException(404, "There is no map yet.")
        kept = ~self.handed.index.removed[found[0]]
        return found[0][kept], found[1][kept]

    def _all(self) -> tuple[np.ndarray, Any]:
        """The rows that are there, and their `Vectors`."""
        from instdisc.search.pairs import Vectors

        index = self.handed.index
        rows = np.flatnonzero(~index.removed)
        return rows, Vectors(len(rows), lambda start, stop: index.vectors(rows[start:stop]))

    def _groups(self, threshold: float) -> list[tuple[list[int], float, tuple[int, int]]]:
        from instdisc.search.groups import linked
        from instdisc.search.pairs import similar_pairs

        with self._heavy:
            rows, vectors = self._all()
            return [
                (
                    rows[list(group.members)].tolist(),
                    group.score,
                    (int(rows[group.worst[0]]), int(rows[group.worst[1]])),
                )
                for group in linked(similar_pairs(vectors, threshold, most=1_000_000))
            ]

    def _lonely(self) -> list[tuple[int, float]]:
        """Rows and their mean similarity, the most unlike first."""
        from instdisc.search.pairs import neighbours_of_all

        with self._heavy:
            rows, vectors = self._all()
            scores, _ = neighbours_of_all(vectors, min(10, len(rows) - 1))
        similarity = scores.mean(axis=1)
        order = np.argsort(similarity, kind="stable")
        return list(zip(rows[order].tolist(), similarity[order].tolist(), strict=True))


def make_app(opening: Opening, hosts: Iterable[str], token: str | None = None) -> Guard:
    """The whole server, an ASGI application. hosts: `name:port` that it answers to; token: asked of every request."""
    app = FastAPI(
        title="instdisc",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        responses={code: {"model": Refusal} for code in (400, 404, 503)},
    )
    desk = _Desk(opening)
    changes = [0]  # how often labels were changed

    @app.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(TimeoutError)
    async def opening_still(_: Request, __: TimeoutError) -> JSONResponse:
        return JSONResponse({"detail": "The collection is still being opened: try again."}, 503, {"retry-after": "5"})

    @app.get("/api/status")
    def status() -> Status:
        """Whether the collection is open yet; answers at once."""
        try:
            opening.wait(0)
        except TimeoutError:
            return Status(state="opening", name=opening.name)
        except InputError as error:
            return Status(state="failed", name=opening.name, error=str(error))
        return Status(state="open", name=opening.name)

    @app.get("/api/collection")
    def collection() -> About:
        """What there is."""
        handed = desk.handed
        index = handed.index
        return About(
            name=handed.name,
            pictures=int(len(index) - index.removed.sum()),
            dim=index.dim,
            labels=sorted(index.label_names),
            tags=sorted(index.tags),
            recomputed=handed.recomputed,
        )

    @app.get("/api/pictures")
    def pictures(
        start: Start = 0, count: Count = 100, label: Text = None, tag: Text = None, where: Text = None
    ) -> Listing:
        """Pictures from `start` on; where: a pattern of their ids, with * and ?."""
        rows = desk.matching(label or None, tag or None, where or None, changes[0])
        return Listing(total=len(rows), pictures=[Picture(**one) for one in desk.pictures(rows[start : start + count])])

    @app.get("/api/pictures/{row}")
    def picture(row: Annotated[int, Field(ge=0, le=_MOST_ROWS)]) -> Picture:
        """One picture."""
        return Picture(**desk.pictures([desk.row(row)])[0])

    @app.get("/pictures/{row}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    def image(row: Annotated[int, Field(ge=0, le=_MOST_ROWS)], size: Literal["thumb", "full"] = "thumb") -> Response:
        """A picture's pixels: at most 160 pixels long, or 1,024."""
        try:
            content = desk.thumb(desk.row(row), _THUMB) if size == "thumb" else desk._thumb(desk.row(row), _FULL)
        except HTTPException:
            raise
        except Exception as error:  # of whatever a decoder or a disk comes up with
            raise HTTPException(404, f"The picture can't be read: {error}.") from None
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    @app.get("/api/neighbours/{row}")
    def neighbours(row: Annotated[int, Field(ge=0, le=_MOST_ROWS)], count: Count = 40) -> Hits:
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
        among[desk.matching(label or None, tag or None, where or None, changes[0])] = True
        among[near + far] = False
        most = int(among.sum())
        if not most:
            return Hits(results=[])
        scores, rows = index.search(normalize(query[None], dim=1), min(count, most), among=among)
        entries = desk.pictures(rows[0].tolist())
        return Hits(results=[Found(**one, score=score) for one, score in zip(entries, scores[0].tolist(), strict=True)])

    @app.post(
        "/api/uploads",
        responses={code: {"model": Refusal} for code in (408, 413)},
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
    )
    async def upload_picture(request: Request) -> Uploaded:
        """A picture file to search with: its bytes are the body, 20 MB at most."""
        try:
            content = await asyncio.wait_for(_body(request), _UPLOAD_SECONDS)
        except TimeoutError:
            raise HTTPException(408, "The upload took too long.") from None

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
        threshold: Annotated[float, Query(gt=0.5, le=1)] = 0.95, start: Start = 0, count: Count = 50
    ) -> Groups:
        """Groups of which every two pictures have at least this cosine."""
        groups = desk.groups(round(threshold, 4))
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
    def map_colours(by: Literal["label", "outlier"] = "label") -> Colours:
        """What to colour the points by: labels, or how strange a picture is (0 the least, 255 the most)."""
        rows, _ = desk.points()
        index = desk.handed.index
        if by == "label":
            return Colours(names=list(index.label_names), codes=index.labels[rows].tolist())
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
        changes[0] += 1
        return labels()

    @app.get("/api/proposals")
    def proposals(
        count: Annotated[int, Query(ge=1, le=100)] = 12, by: Literal["mixed", "covered", "uncertain"] = "mixed"
    ) -> Proposals:
        """What to label next."""
        rows = desk.handed.proposals(count, by)
        votes = desk.handed.votes(rows)
        return Proposals(
            pictures=[
                Proposal(**one, guess=guess, confidence=share)
                for one, (guess, share) in zip(desk.pictures(rows), votes, strict=True)
            ]
        )

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return Guard(app, hosts, token)


async def _body(request: Request) -> bytes:
    """The whole body, refused as soon as it is too long."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"The file is larger than {MAX_BYTES // 1_000_000} MB.", {"connection": "close"})
    return bytes(content)


def _jpeg(pixels: np.ndarray, side: int) -> bytes:
    """A JPEG at most `side` pixels long; one of few pixels, which is shown large, is of high quality."""
    picture = Image.fromarray(pixels)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small = max(picture.size) <= _THUMB
    picture.save(out, "JPEG", quality=95 if small else 88, subsampling=0 if small else 2)
    return out.getvalue()
