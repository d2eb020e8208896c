"""A run's collection as the page is handed it: pictures, an index, the encoder, labels by hand and by vote."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from instdisc.encoder import Encoder
from instdisc.jobs import label as label_job
from instdisc.jobs import votes as votes_job
from instdisc.jobs.collection import Collection
from instdisc.jobs.index import changing
from instdisc.jobs.map import make_map, read_map
from instdisc.jobs.outliers import known_outliers
from instdisc.search.index import Index
from instdisc.serve.handed import LabelState
from instdisc.shapes import Float, Tensor

_MOST_LINKED = 100_000  # pictures whose neighbours are computed while the page waits: some seconds


class ServedRun:
    """A run's collection, as the page is handed it (serve/handed.py)."""

    def __init__(self, run: str | Path, *, train_source: Any = None, device: str = "auto") -> None:
        self.collection = Collection(run, train_source=train_source)
        self.name = Path(run).resolve().name
        self.index: Index = self.collection.index
        self.vectors = self.collection.vectors
        self.recomputed = self.collection.changes.recomputed is not None
        self.version = 0
        self._device = device
        self._lock = threading.RLock()  # of the labels: every view needs it, so nothing long is computed under it
        self._embedding, self._voting, self._linking = threading.Lock(), threading.Lock(), threading.Lock()
        self._read = self._stamp()
        self._hand = self._read_hand()
        self._known: tuple[np.ndarray, Tensor] | None = None
        self._voted: votes_job.Labelled | None = None
        self._graph: tuple[Any] | None = None  # None: not looked for yet

    def picture(self, row: int) -> np.ndarray:
        return self.collection.picture(row)

    def approximate(self, say: Callable[[str], None]) -> None:
        """Build a graph to search by; until it is there, search is exact."""
        recall = self.index.approximate()
        say(f"Search is approximate from now on: {100 * recall:.1f} % of the ten nearest are found.")

    def known_outliers(self) -> list[tuple[int, float]]:
        return known_outliers(self.collection)

    def map_points(self) -> tuple[np.ndarray, np.ndarray] | None:
        return read_map(self.collection)

    def make_map(self, progress: Callable[[float], None]) -> None:
        make_map(self.collection.folder.path, bank=True, device=self._device, progress=progress, say=None)

    @cached_property
    def _encoder(self) -> Encoder:
        return self.collection.encoder(self._device)

    def embed(self, pictures: Sequence[np.ndarray]) -> Float[Tensor, "pictures dim"]:
        with self._embedding:
            return self._encoder.embed(list(pictures), vectors=self.collection.vectors).cpu()

    def hand_labels(self) -> dict[int, str]:
        with self._lock:
            if self._stamp() != self._read:  # `instdisc label` has changed them meanwhile
                self._read = self._stamp()
                before, self._hand = self._hand, self._read_hand()
                self._relabel(before.keys() | self._hand.keys())
            return self._hand

    def set_labels(self, rows: Sequence[int], label: str | None) -> None:
        folder = self.collection.folder
        with self._lock, changing(folder.path):
            self.hand_labels()
            paths = [entry.path for entry in self.index.entries(rows)]
            label_job.change_hand_labels(folder, dict.fromkeys(paths, label), replace=True)
            self._read = self._stamp()
            self._hand = {row: given for row, given in self._hand.items() if row not in set(rows)}
            if label is not None:
                self._hand |= dict.fromkeys(rows, label)
            self._relabel(rows)

    def label_state(self) -> LabelState:
        voted = self._votes()
        if voted is None:
            return LabelState({}, None, None)
        result = voted.accuracy
        return LabelState(
            {name: (hand, vote) for name, hand, vote in label_job.counts(voted)},
            None if result is None else result.top1,
            None if result is None else result.interval,
        )

    def labels_csv(self) -> str:
        voted = self._votes()
        return "id,path,label,by,confidence\n" if voted is None else label_job.labels_csv(self.index, voted)

    def votes(self, rows: Sequence[int]) -> list[tuple[str, float]]:
        voted = self._votes()
        if voted is None:
            return [("", 0.0)] * len(rows)
        places = np.searchsorted(voted.rows, np.asarray(rows, np.int64))
        return [(voted.names[voted.codes[place]], float(voted.confidence[place])) for place in places.tolist()]

    def proposals(self, count: int, by: str) -> list[int]:
        with self._lock:
            rows, vectors = self._vectors()
            codes, _ = self._codes(rows)
        graph = self._spreading_graph(vectors)
        return rows[votes_job.proposals(vectors, codes, count, graph=graph, by=by, device=self._device)].tolist()

    def _spreading_graph(self, vectors: Tensor) -> Any:
        """The graph that labels spread over; None, once for all, where computing it would keep the page waiting."""
        with self._linking:
            if self._graph is None:
                folder, most = self.collection.folder, _MOST_LINKED
                self._graph = (votes_job.spreading_graph(folder, vectors, device=self._device, most=most),)
            return self._graph[0]

    def _stamp(self) -> tuple[int, int]:
        """Another one after every change of the file, which is replaced as a whole."""
        try:
            found = self.collection.folder.hand_labels.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def _relabel(self, rows: Iterable[int]) -> None:
        """What the index says of these rows, from their labels by hand."""
        index = self.index
        for row in rows:
            given = self._hand.get(row)
            if given is not None and given not in index.label_names:
                index.label_names.append(given)
            index.labels[row] = self.collection.source_labels[row] if given is None else index.label_names.index(given)
        self._voted = None
        self.version += 1

    def _read_hand(self) -> dict[int, str]:
        given = label_job.hand_labels(self.collection.folder.path)
        rows = self.index.rows_of(list(given))
        return {row: label for row, label in zip(rows.tolist(), given.values(), strict=True) if row >= 0}

    def _vectors(self) -> tuple[np.ndarray, Tensor]:
        if self._known is None:
            rows = np.flatnonzero(~self.index.removed)
            self._known = rows, self.index.vectors(rows)
        return self._known

    def _codes(self, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        names = sorted(set(self.hand_labels().values()))
        numbers = {name: number for number, name in enumerate(names)}
        codes = np.full(len(self.index), -1)
        for row, given in self._hand.items():
            codes[row] = numbers[given]
        return codes[rows], names

    def _votes(self) -> votes_job.Labelled | None:
        with self._voting:
            with self._lock:
                if not self.hand_labels() or self._voted is not None:
                    return self._voted
                rows, vectors = self._vectors()
                given, version = self._codes(rows), self.version
            graph = self._spreading_graph(vectors)
            voted = votes_job.vote(rows, vectors, *given, graph=graph, device=self._device)
            with self._lock:
                if version == self.version:
                    self._voted = voted
            return voted
