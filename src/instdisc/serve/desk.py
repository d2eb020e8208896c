"""The state behind the API: the collection, pictures made small, uploads, and what takes long to compute, kept.

This file must not import torch, nor what imports it, before it is needed: the page answers while torch is being loaded.
"""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from fastapi import HTTPException
from PIL import Image

from instdisc.errors import InputError
from instdisc.serve.handed import Handed, Opening
from instdisc.serve.models import MapState, readable

THUMB, FULL = 224, 1_024  # pixels of the longer side; screens have up to two for one of the page
CLUSTERS, _CLUSTERED = 12, 50_000  # colours that can be told apart; vectors at once
_OPENING_SECONDS = 60.0
_IN_LINE = 3  # different comparisons of all with all that are computed or wait for it
_SMALL = 128  # pixels of the longer side of a picture that must not lose any more
_UPLOADS = 64  # of which vector and small picture are kept
Kept = TypeVar("Kept")


class Desk:
    """The state behind the API."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.start = secrets.token_hex(4)
        self._uploads: OrderedDict[str, tuple[Any, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._heavy = threading.Lock()  # one comparison of all with all at a time
        self._mapping: threading.Thread | None = None
        self._map = MapState(state="none")
        self.thumb = lru_cache(maxsize=4_096)(self.jpeg)
        self._found = lru_cache(maxsize=16)(self._matching)
        self.groups = self._once(self._groups, 4)
        self.clusters = self._once(self._clusters, 1)
        self.lonely = self._once(self._lonely, 1)
        self._proposed = self._once(lambda count, by, version: self.handed.proposals(count, by), 2)

    @property
    def handed(self) -> Handed:
        return self.opening.wait(_OPENING_SECONDS)

    def _once(self, compute: Callable[..., Kept], most: int) -> Callable[..., Kept]:
        """The last `most` answers are kept. Who asks for what is being computed waits: it is not computed twice.

        What is kept is answered meanwhile; who asks for one thing more than can wait in line is told to come again.
        """

        kept: OrderedDict[tuple[Any, ...], Future[Kept]] = OrderedDict()
        lock = threading.Lock()

        def ask(*what: Any) -> Kept:
            with lock:
                known = what in kept
                if not known:
                    if sum(not one.done() for one in kept.values()) >= _IN_LINE:
                        raise HTTPException(503, "Others have asked for much: try again.", {"retry-after": "2"})
                    kept[what] = Future()
                    done = [old for old, one in kept.items() if one.done()]
                    for old in done[: max(0, len(kept) - most)]:
                        del kept[old]
                kept.move_to_end(what)
                answer = kept[what]
            if not known:
                try:
                    with self._heavy:
                        answer.set_result(compute(*what))
                except BaseException as error:
                    with lock:
                        kept.pop(what, None)
                    answer.set_exception(error)
            return answer.result()

        return ask

    def pictures(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        chosen = [int(row) for row in rows]
        first = self.opening.first_look()
        if first is not None and np.isin(chosen, first.rows).all():
            return first.entries(chosen)
        hand = self.handed.hand_labels()
        return [vars(entry) | {"hand": entry.row in hand} for entry in self.handed.index.entries(chosen)]

    def row(self, row: int) -> int:
        first = self.opening.first_look()
        if first is not None and np.isin(row, first.rows):
            return row
        index = self.handed.index
        if row >= len(index) or index.removed[row]:
            raise HTTPException(404, "No picture of the collection has this number.")
        return row

    def rows(self, text: str) -> list[int]:
        return [self.row(int(one)) for one in text.split(",") if one]

    def matching(self, label: str | None, tag: str | None, where: str | None) -> np.ndarray:
        """The rows that match."""
        first = self.opening.first_look()
        if first is not None and label is tag is where is None:
            return first.rows
        self.handed.hand_labels()  # looks whether they have changed
        return self._found(label, tag, where, self.handed.version)

    def _matching(self, label: str | None, tag: str | None, where: str | None, version: int) -> np.ndarray:
        """`version` makes old answers be forgotten when labels change."""
        index = self.handed.index
        label = next((name for name in index.label_names if readable(name) == label), label)
        tag = next((name for name in index.tags if readable(name) == tag), tag)
        return np.flatnonzero(index.matching(label=label, tag=tag, where=where))

    def jpeg(self, row: int, side: int) -> bytes:
        """A picture, at most `side` pixels long."""
        return as_jpeg((self.opening.first_look() or self.handed).picture(row), side)

    def keep(self, vector: Any, pixels: np.ndarray) -> str:
        name = secrets.token_urlsafe(9)
        with self._lock:
            self._uploads[name] = vector, as_jpeg(pixels, FULL)
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

    def proposals(self, count: int, by: str) -> list[int]:
        """What to label next."""
        self.handed.hand_labels()  # looks whether they have changed
        return self._proposed(count, by, self.handed.version)

    def _groups(self, threshold: float) -> list[tuple[list[int], float, tuple[int, int]]]:
        from instdisc.search.groups import linked
        from instdisc.search.pairs import similar_pairs

        rows, vectors = self.handed.index.present()
        return [
            (
                rows[list(group.members)].tolist(),
                group.score,
                (int(rows[group.worst[0]]), int(rows[group.worst[1]])),
            )
            for group in linked(similar_pairs(vectors, threshold, most=1_000_000))
        ]

    def _clusters(self) -> np.ndarray:
        """For each row the number of its cluster, the largest 0, by k-means on the vectors; -1 where there is none."""
        from sklearn.cluster import MiniBatchKMeans

        rows, vectors = self.handed.index.present()
        some = np.random.default_rng(0).permutation(len(rows))[:_CLUSTERED]
        means = MiniBatchKMeans(min(CLUSTERS, len(rows)), random_state=0, n_init=3, batch_size=4_096)
        means.fit(vectors.pick(np.sort(some)).numpy())
        found = [
            means.predict(vectors.read(start, min(start + _CLUSTERED, len(rows))).numpy())
            for start in range(0, len(rows), _CLUSTERED)
        ]
        codes = np.full(len(self.handed.index), -1)
        codes[rows] = np.concatenate(found)
        sizes = np.bincount(codes[rows], minlength=means.n_clusters)
        codes[rows] = np.argsort(np.argsort(-sizes, kind="stable"))[codes[rows]]
        return codes

    def _lonely(self) -> list[tuple[int, float]]:
        """Rows and their mean similarity, the most unlike first."""
        from instdisc.search.pairs import neighbours_of_all

        rows, vectors = self.handed.index.present()
        scores, _ = neighbours_of_all(vectors, min(10, len(rows) - 1))
        similarity = scores.mean(axis=1)
        order = np.argsort(similarity, kind="stable")
        return list(zip(rows[order].tolist(), similarity[order].tolist(), strict=True))


def as_jpeg(pixels: np.ndarray, side: int) -> bytes:
    """A JPEG at most `side` pixels long; a picture of few pixels, which is shown large, is of high quality."""
    picture = Image.fromarray(pixels)
    small = max(picture.size) <= _SMALL
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95 if small else 86, subsampling=0 if small else 2)
    return out.getvalue()
