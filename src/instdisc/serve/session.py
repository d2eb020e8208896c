"""The state behind the API: the collection, pictures made small, uploads, and what takes long to compute, kept.

This file must not import torch, nor what imports it, before it is needed: the page answers while torch is being loaded.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import HTTPException

from instdisc.errors import InputError
from instdisc.jobs import sets
from instdisc.progress import Pace
from instdisc.report.thumbnails import as_jpeg
from instdisc.serve.beside import Beside
from instdisc.serve.facts import CopyFacts
from instdisc.serve.models import MapState, Proposal, readable
from instdisc.serve.prepare import Preparation
from instdisc.serve.regions import called
from instdisc.serve.review import Review
from instdisc.serve.sets import Wanted, chosen, folders_of
from instdisc.serve.sheets import Sheets, stretched, version_of
from instdisc.serve.work import Work

if TYPE_CHECKING:  # the page answers before torch is loaded
    from instdisc.jobs.catalogue import Listed
    from instdisc.serve.opened import Opened
    from instdisc.serve.opening import Opening

# Pixels of the longer side; screens have up to two for one of the page, and who zooms wants all.
THUMB, FULL, LARGE = 224, 1_024, 4_096
CLUSTERS, _CLUSTERED = 12, 50_000  # colours that can be told apart; vectors at once
MOST_DRAWN = 1_000_000  # points of the map: a browser holds and draws them
_OPENING_SECONDS = 60.0
_IN_LINE = 3  # different comparisons of all with all that are computed or wait for it
_UPLOADS = 64  # the latest: their vectors and small pictures are stored
Kept = TypeVar("Kept")


class Session:
    """The state behind the API."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.start = secrets.token_hex(4)
        self._uploads: OrderedDict[str, tuple[Any, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._heavy = threading.Lock()  # one comparison of all with all at a time
        self.work = Work()
        self._mapping: threading.Thread | None = None
        self._map = MapState(state="none")
        self.thumb = lru_cache(maxsize=4_096)(self.jpeg)
        self.sheets = Sheets(lambda row, at_least: self.opened.picture(row, at_least))
        self._turn = 0  # of the search for copies
        self._looked = np.zeros(0, dtype=bool)  # rows that it has looked at
        self._forget()
        self.preparation = Preparation(self)

    def _forget(self) -> None:
        """Nothing is computed yet, or not by these vectors."""
        self._found = lru_cache(maxsize=16)(lambda wanted, version, kept: chosen(self.opened, wanted, self.beside))
        self._copies = self.once(lambda turn: self._all_copies(), 1)
        self._look_alikes = self.once(self._compared, 4)
        self.folders = lru_cache(maxsize=1)(lambda: folders_of(self.opened.index))
        self.clusters = self.once(self._clusters, 1)
        self._least_like = self.once(lambda returned: self._isolated(), 1)
        self._proposed = self.once(lambda count, by, version: self.opened.proposals(count, by), 2)
        self.review = Review(self)
        second = self.opening.beside
        self.beside = None if second is None else Beside(self, second[1], second[0])

    @property
    def opened(self) -> Opened:
        """The collection; waits until it is open."""
        return self.opening.wait(_OPENING_SECONDS)

    @property
    def shown(self) -> Listed | Opened:
        """What can be shown now: the pictures as they are listed, until the whole is open."""
        return self.opening.listed() or self.opened

    def once(self, compute: Callable[..., Kept], most: int) -> Callable[..., Kept]:
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
                    with self._heavy, self.work.doing():
                        answer.set_result(compute(*what))
                except BaseException as error:
                    with lock:
                        kept.pop(what, None)
                    answer.set_exception(error)
            return answer.result()

        return ask

    @contextmanager
    def alone(self, check: Callable[[], None]) -> Iterator[None]:
        """In turn with the comparisons, and told as they are. check: is called while others are waited for."""
        while not self._heavy.acquire(timeout=0.2):
            check()
        try:
            with self.work.doing():
                yield
        finally:
            self._heavy.release()

    def make_vectors(self) -> None:
        """Compute search vectors, and go by them from then on."""
        self.opening.renew(self.opened.with_new_vectors())
        with self._lock:
            self._uploads.clear()  # their vectors are of the former kind
        self._forget()

    def pictures(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        shown = self.shown
        hand = shown.hand_labels()
        return [
            vars(entry) | {"hand": entry.row in hand, "path": shown.location(entry.row)}
            for entry in shown.index.entries([int(row) for row in rows])
        ]

    def copy_facts(self, group: Sequence[CopyFacts]) -> list[dict[str, Any]]:
        """What is shown of each picture of a group of copies."""
        pictures = self.pictures([one.row for one in group])
        return [picture | vars(one) for picture, one in zip(pictures, group, strict=True)]

    def row(self, row: int) -> int:
        index = self.shown.index
        if row >= len(index) or index.removed[row]:
            raise HTTPException(404, "No picture of the collection has this number.")
        return row

    def rows(self, text: str) -> list[int]:
        return [self.row(int(one)) for one in text.split(",") if one]

    def matching(self, wanted: Wanted) -> np.ndarray:
        """The rows that match, in their order."""
        if wanted.everything:
            return np.flatnonzero(~self.shown.index.removed)
        self.opened.hand_labels()  # looks whether they have changed
        kept = self.opened.stamp(sets.path_of(self.opened.folder, wanted.name)) if wanted.name else None
        return self._found(wanted, self.opened.version, kept)

    def cited(self, name: str) -> int:
        """The row of the picture whose id reads so as JSON carries it. Raises InputError for none, and for several."""
        index = self.shown.index
        rows = [int(index.rows_with([name])[0])]
        if "\ufffd" in name:  # what stands for bytes that are no UTF-8
            entries = index.entries(np.flatnonzero(~index.removed))
            rows = [one.row for one in entries if readable(one.id) == name]
        if len(rows) > 1:
            raise InputError(f"{len(rows):,} pictures have an id that reads as {name}: open them from the grid.")
        if not rows or rows[0] < 0:
            raise InputError(
                f"No picture of the collection has the id {name}: it was removed or renamed, or never in it."
            )
        return rows[0]

    def told(self, given: str) -> str:
        """The label that the page means, which it knows only as far as JSON can carry it."""
        names = self.opened.index.label_names
        return next((name for name in names if readable(name) == given), given)

    def proposed(self, rows: Sequence[int]) -> list[Proposal]:
        """What is known of some pictures, with what is suggested for them."""
        found = self.opened.suggestions()
        guesses = [("", 0.0)] * len(rows)
        if found is not None:
            guesses = [(found.names[found.codes[row]], float(found.confidence[row])) for row in rows]
        pictures = zip(self.pictures(rows), guesses, strict=True)
        return [Proposal(**one, guess=guess, confidence=share) for one, (guess, share) in pictures]

    def jpeg(self, row: int, side: int) -> bytes:
        """A picture, at most `side` pixels long."""
        return as_jpeg(self.shown.picture(row), side)

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
                raise HTTPException(404, "This search picture has expired: choose it again.")
            self._uploads.move_to_end(name)
            return self._uploads[name]

    def map_state(self) -> MapState:
        if self._map.state == "none" and self.opened.map_points() is not None:
            self._map = MapState(state="ready")
        return self._map

    def start_map(self) -> MapState:
        with self._lock:
            if self.map_state().state in ("none", "failed"):
                self._map = MapState(state="computing")
                self._mapping = threading.Thread(target=self._make_map, name="map", daemon=True)
                self._mapping.start()
            return self._map

    def map_now(self, check: Callable[[], None]) -> None:
        """Compute the map, if there is none, and wait for it. Raises InputError where that fails.

        check: is called while another is waited for.
        """
        with self._lock:
            other = self._mapping if self._map.state == "computing" else None
            if other is None:
                if self.map_state().state == "ready":
                    return
                self._map = MapState(state="computing")
        if other is None:
            self._make_map()
        while other is not None and other.is_alive():
            check()
            other.join(0.2)
        if self._map.state == "failed":
            raise InputError(self._map.error)

    def _make_map(self) -> None:
        pace = Pace()

        def tell(share: float) -> None:
            self._map = MapState(state="computing", progress=share, seconds_left=pace.left(share))

        try:
            self.opened.make_map(tell)
            self._map = MapState(state="ready")
        except HTTPException:  # it was stopped
            self._map = MapState(state="none")
            raise
        except InputError as error:
            self._map = MapState(state="failed", error=str(error))
        except Exception as error:
            self._map = MapState(
                state="failed", error=f"The map could not be computed ({type(error).__name__}: {error})."
            )

    def points(self) -> tuple[np.ndarray, np.ndarray, str]:
        """(rows, points, version) of the pictures of the map that are still there.

        points: float32 (n, 2), which fill 0..1 in each direction; in an order made at random, always the same.
        """
        found = self.opened.map_points()
        if found is None:
            raise HTTPException(404, "There is no map yet.")
        kept = np.flatnonzero(~self.opened.index.removed[found[0]])
        kept = np.random.default_rng(0).permutation(kept)
        rows, points = found[0][kept], stretched(found[1][kept])
        return rows, points, f"{version_of(rows, points)}-{self.start}"

    def drawn(self) -> tuple[np.ndarray, np.ndarray, str, str]:
        """The first million of these, which a browser can draw; and a sentence where that is not all."""
        rows, points, version = self.points()
        said = f"A random {MOST_DRAWN:,} of {len(rows):,} pictures are drawn." if len(rows) > MOST_DRAWN else ""
        return rows[:MOST_DRAWN], points[:MOST_DRAWN], version, said

    def proposals(self, count: int, by: str) -> list[int]:
        """What to label next."""
        self.opened.hand_labels()  # looks whether they have changed
        return self._proposed(count, by, self.opened.version)

    def copies(self) -> list[list[CopyFacts]]:
        """Groups of copies of the pictures that are there, the one to keep first, the most certain groups first.

        Where some have been hidden since the search, it holds without them; where others came back, it begins again.
        """
        turn, removed = self._turn, self.opened.index.removed
        groups, looked = self._copies(turn)
        if (~removed & ~looked).any():
            with self._lock:
                self._turn = max(self._turn, turn + 1)
            groups, looked = self._copies(self._turn)
        left = ([one for one in group if not removed[one.row]] for group in groups)
        return [group for group in left if len(group) > 1]

    @property
    def copies_known(self) -> bool:
        """Whether all pictures that are there were compared since the server started."""
        removed = self.opened.index.removed
        return len(self._looked) == len(removed) and bool((removed | self._looked).all())

    def _all_copies(self) -> tuple[list[list[CopyFacts]], np.ndarray]:
        looked = ~self.opened.index.removed
        copies = self.opened.copies()
        self._looked = looked
        return copies, looked

    def look_alikes(self, threshold: float) -> list[tuple[list[int], float, tuple[int, int]]]:
        """Groups by their vectors alone, the most alike first, of pictures that are no copies: rows, least, worst."""
        removed = self.opened.index.removed
        found = self._look_alikes(threshold, self._gone(), self.opened.returned)
        left = (([row for row in rows if not removed[row]], least, worst) for rows, least, worst in found)
        return [group for group in left if len(group[0]) > 1]

    def _gone(self) -> frozenset[int]:
        """Rows of the copies to remove; none where nothing can be proven, as where the pictures are not there."""
        try:
            self.copies()
            return frozenset(one.row for group in self._copies(self._turn)[0] for one in group[1:])
        except InputError:
            return frozenset()

    def outliers(self) -> tuple[bool, list[tuple[int, float]]]:
        """Rows and scores, the least like any other first. Whether the scores are computed by the network's stages.

        Else they are the mean cosines with the ten nearest others.
        """
        removed = self.opened.index.removed
        known = self.opened.known_outliers()
        found = known or self._least_like(self.opened.returned)
        return bool(known), [(row, score) for row, score in found if not removed[row]]

    def _compared(
        self, threshold: float, gone: frozenset[int], returned: int
    ) -> list[tuple[list[int], float, tuple[int, int]]]:
        from instdisc.search.groups import linked

        there, vectors = self.opened.index.present()
        left = np.flatnonzero(~np.isin(there, list(gone)))
        rows = there[left]
        groups = linked(self.opened.compared(rows, vectors.some(left)).similar_pairs(threshold, most=1_000_000))
        return [
            (
                rows[list(group.members)].tolist(),
                group.score,
                (int(rows[group.worst[0]]), int(rows[group.worst[1]])),
            )
            for group in sorted(groups, key=lambda group: (-group.score, group.members))
        ]

    def _clusters(self, version: str) -> np.ndarray:
        """For each row the number of its cluster, the largest 0, by k-means on the map; -1 where there is none.

        On the map and not on the vectors: a cluster is then one place that can be looked at. version: of the map.
        """
        from sklearn.cluster import MiniBatchKMeans

        rows, points, _ = self.points()
        means = MiniBatchKMeans(min(CLUSTERS, len(rows)), random_state=0, n_init=3, batch_size=4_096)
        means.fit(points[:_CLUSTERED])  # in an order made at random
        codes = np.full(len(self.opened.index), -1)
        codes[rows] = means.predict(points)
        sizes = np.bincount(codes[rows], minlength=means.n_clusters)
        codes[rows] = np.argsort(np.argsort(-sizes, kind="stable"))[codes[rows]]
        return codes

    def cluster_names(self, codes: np.ndarray) -> list[str]:
        """What most pictures of each cluster are called, by hand, suggestion or folder, and how many they are."""
        names, known = called(self.opened, self.folders())
        said: list[str] = []
        for code in range(int(codes.max(initial=-1)) + 1):
            inside = known[codes == code]
            sizes = np.bincount(inside[inside >= 0], minlength=1)
            share = sizes.max() / max(1, len(inside))
            name = names[int(sizes.argmax())] if share >= 0.5 else "mixed" if len(np.flatnonzero(sizes)) else "no name"
            text = f"{'mostly ' if 0.5 <= share < 0.95 else ''}{name}, {len(inside):,}"
            said.append(text if text not in said else f"{text} ({sum(one.startswith(text) for one in said) + 1})")
        return said

    def _isolated(self) -> list[tuple[int, float]]:
        """Rows and their mean similarity, the most unlike first."""
        rows, vectors = self.opened.index.present()
        scores, _ = self.opened.compared(rows, vectors).neighbours_of_all(min(10, len(rows) - 1))
        similarity = scores.mean(axis=1)
        order = np.argsort(similarity, kind="stable")
        return list(zip(rows[order].tolist(), similarity[order].tolist(), strict=True))
