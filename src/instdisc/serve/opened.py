"""A run's collection, open: pictures, an index, the encoder, labels by hand and by vote."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from instdisc.data.decoding.decode import format_and_size
from instdisc.data.sources.gathered import rows_by_id
from instdisc.encoder import Encoder
from instdisc.jobs import classes as classes_job
from instdisc.jobs import hiding, journal
from instdisc.jobs import label as label_job
from instdisc.jobs import votes as votes_job
from instdisc.jobs.collection import Collection
from instdisc.jobs.copies import grouped, look_at_collection
from instdisc.jobs.duplicates import comparing, proposed_pairs
from instdisc.jobs.identity import unreadable_before
from instdisc.jobs.index import changing, recompute_meanwhile
from instdisc.jobs.map import make_map, read_map
from instdisc.jobs.outliers import known_outliers, outliers
from instdisc.jobs.run import Run
from instdisc.jobs.sources import stamps_of
from instdisc.runs import RunFolder
from instdisc.search.approximate import Graph
from instdisc.search.cells import MANY
from instdisc.search.index import Index
from instdisc.search.joins import Join
from instdisc.search.pairs import Exact, Vectors
from instdisc.serve.facts import CopyFacts, Done, FileFacts, LabelState, Suggestions, Undone
from instdisc.shapes import Float, Tensor

_MOST_LINKED = 100_000  # pictures whose neighbours are computed while the page waits: some seconds


class Opened:
    """A run's collection, as the page works with it. All of it may be called from several threads at once.

    vectors: what the index holds, "search" vectors or the "embedding". recomputed: whether they come from the pictures
    as they are, and not from augmented views. version: grows when labels change, or which pictures are there; returned:
    when hidden pictures are shown again.
    """

    def __init__(self, run: str | Path | Run, *, train_source: Any = None, device: str = "auto") -> None:
        self.collection = Collection(run, train_source=train_source)
        self.index: Index = self.collection.index
        self.vectors = self.collection.vectors
        self.recomputed = self.collection.given or self.collection.changes.recomputed is not None
        self.version = self.returned = 0
        self._device = device
        self._lock = threading.RLock()  # of the labels: every view needs it, so nothing long is computed under it
        self._embedding, self._voting, self._linking = threading.Lock(), threading.Lock(), threading.Lock()
        self._own_names = [name for name in self.index.label_names if name in self._named_by_source()]
        self._read = self.stamp(self.collection.folder.hand_labels)
        self._hand = self._read_hand()
        self._known: tuple[np.ndarray, Tensor] | None = None
        self._voted: votes_job.Labelled | None = None
        self._graph: tuple[Tensor, Any] | None = None  # the vectors that it links; None: not looked for yet
        self._stored_graph: tuple[Any, bool] = None, False  # vectors and file; whether it is their graph
        self._outliers: tuple[tuple[int, int], list[tuple[int, float]]] = (-1, -1), []
        self._told: Callable[[str], None] | None = None  # who wants searches by a graph

    @property
    def folder(self) -> RunFolder:
        """The run's."""
        return self.collection.folder

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.index.dim

    def picture(self, row: int, at_least: int | None = None) -> np.ndarray:
        """Pixels (height, width, 3) uint8; raises UnreadableError where it is unreadable.

        at_least: a JPEG may be decoded smaller, as long as its shorter side keeps so many pixels.
        """
        return self.collection.picture(row, at_least)

    def approximate(self, say: Callable[[str], None]) -> None:
        """Map the graph to search by, or build and store it; until it is there, search is exact."""
        self._told = say
        recall = self.index.approximate(stored=(self.collection.folder.links, self.collection.made_of))
        say(f"Search is approximate from now on: {100 * recall:.1f} % of the ten nearest are found.")

    def known_outliers(self) -> list[tuple[int, float]]:
        """(row, outlier score), the highest first; empty where that was never computed."""
        stamp = self.stamp(self.collection.folder.outliers / "outliers.csv")
        if self._outliers[0] != stamp:
            self._outliers = stamp, known_outliers(self.collection)
        return self._outliers[1]

    def make_outliers(self) -> None:
        """Compute and keep the outlier scores: every picture is read."""
        many = int((~self.index.removed).sum()) > MANY
        outliers(self.collection, bank=True, approximate=many, device=self._device, say=None)

    def make_graph(self) -> None:
        """Compute and keep the neighbour graph, whatever time it takes."""
        with self._lock:
            _, vectors = self._vectors()
        graph = votes_job.spreading_graph(self.collection.folder, vectors, device=self._device)
        with self._linking:
            self._graph = vectors, graph
        self._relabel(())  # the next question is answered by it

    def with_new_vectors(self) -> Opened:
        """The collection opened again, with search vectors of its pictures as they are, computed now and kept."""
        folder, moved = self.collection.folder.path, self.collection.moved_to
        recompute_meanwhile(folder, train_source=moved, device=self._device)
        with self.reviewing():
            opened = Opened(folder, train_source=moved, device=self._device)
        opened.version, opened.returned = self.version + 1, self.returned + 1
        if self._told is not None:
            opened.approximate(self._told)
        return opened

    def has(self, what: Literal["vectors", "graph", "outliers"]) -> bool:
        """Whether it is there, of these pictures and this encoder."""
        if what == "vectors":
            return self.collection.up_to_date
        if what == "outliers":
            return bool(self.known_outliers())
        linked, known = self._graph, self._known
        if linked is not None and known is not None and linked[0] is known[1] and linked[1] is not None:
            return True
        gone = self.returned, int(self.index.removed.sum())
        key = gone, self.stamp(self.collection.folder.neighbour_graph)
        if self._stored_graph[0] != key:
            self._stored_graph = key, votes_job.has_graph(self.collection.folder, self.index.present()[1])
        return self._stored_graph[1]

    def copies(self) -> list[list[CopyFacts]]:
        """Groups of copies that are proven by their pixels, the one to keep first, the most certain groups first.

        The first time it decodes every picture, to keep a small one.
        """
        _, vectors = self.index.present()
        proposed = proposed_pairs(vectors, None, kept=self.collection.folder.neighbour_graph)
        found = grouped(look_at_collection(self.collection, show=True), "largest", proposed=proposed)
        names = [field.name for field in fields(CopyFacts)]
        return [
            [CopyFacts(**{name: getattr(one, name) for name in names}) for one in (group.kept, *group.copies)]
            for group in found
        ]

    def compared(self, rows: np.ndarray, vectors: Vectors) -> Exact | Graph | Join:
        """What compares the vectors of these rows: exactly, but of more than two million nearly."""
        return comparing(self.collection, rows, vectors, len(rows) > MANY, None)

    def location(self, row: int) -> str:
        """Where a picture's file is now."""
        return self.collection.location(row)

    def map_points(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows, points (n, 2)) of the map; None where there is none yet."""
        return read_map(self.collection)

    def make_map(self, progress: Callable[[float], None]) -> None:
        """Compute and keep the map, which takes a while; progress is given the share that is done."""
        make_map(self.collection.folder.path, bank=True, device=self._device, progress=progress, say=None)

    @cached_property
    def _encoder(self) -> Encoder:
        return self.collection.encoder(self._device)

    def embed(self, pictures: Sequence[np.ndarray]) -> Float[Tensor, "pictures dim"]:
        """Unit vectors of other pictures, on the CPU."""
        with self._embedding:
            return self._encoder.embed(list(pictures), vectors=self.collection.vectors).cpu()

    def hand_labels(self) -> dict[int, str]:
        """row -> label given by hand, as it is now."""
        with self._lock:
            stamp = self.stamp(self.collection.folder.hand_labels)
            if stamp != self._read:  # `instdisc label` has changed them meanwhile
                self._read = stamp
                before, self._hand = self._hand, self._read_hand()
                rows = before.keys() | self._hand.keys()
                self._relabel(row for row in rows if before.get(row) != self._hand.get(row))
            return self._hand

    def set_labels(self, rows: Sequence[int], label: str | None, *, keep: bool = False, bulk: bool = False) -> Done:
        """Label pictures by hand, or take their label away; saved when it returns.

        keep: pictures that have another label by hand keep it. bulk: they are labelled together, so that they count not
        where the accuracy of votes is measured.
        """
        folder = self.collection.folder
        with self._lock, changing(folder.path):
            names, before = self.classes(), self.hand_labels()
            changed = [row for row in rows if before.get(row) != label and not (keep and row in before)]
            given = dict.fromkeys((entry.path for entry in self.index.entries(changed)), label)
            _, _, act = label_job.change_hand_labels(folder, given, replace=True, bulk=bulk)
            if label is not None:
                classes_job.keep(folder, [*names, label])
            self._read = self.stamp(folder.hand_labels)
            gone = set(changed)
            self._hand = {row: text for row, text in before.items() if row not in gone}
            if label is not None:
                self._hand |= dict.fromkeys(changed, label)
            self._relabel(changed)
        return _done(act) or Done("", "")

    def undo(self, act: str) -> Undone:
        """Take an act on labels back. Raises InputError for one that was taken back already."""
        with self._lock, changing(self.collection.folder.path) as folder:
            found = journal.undo(folder, act)
            self.hand_labels()
            rows = self.index.rows_of(list(found.paths))
        return Undone(found.act.text, rows[rows >= 0].tolist(), found.kept)

    @contextmanager
    def reviewing(self) -> Iterator[RunFolder]:
        """Alone with the run's decisions, and with which of its pictures are there."""
        with self._lock, changing(self.collection.folder.path) as folder:
            yield folder

    def show_again(self, paths: Sequence[str]) -> None:
        """Put hidden pictures back, by their paths as the index has them. Only inside `reviewing`."""
        self.set_hidden(hiding.hidden_rows(self.collection, paths), False)

    def unreadable(self) -> list[tuple[str, str, str, str]]:
        """(id, path, where it is now, why) of the files that could not be read as pictures when the run was trained."""
        known = unreadable_before(self.collection.folder)
        if self.collection.moved_to is None or not known:
            return [(own, path, path, why) for own, path, why in known]
        source = self.collection.training_source()
        rows = rows_by_id(source, pa.chunked_array([[os.fsencode(own) for own, _, _ in known]], pa.large_binary()))
        places = [source.location(row) if row >= 0 else "" for row in rows.tolist()]
        return [(own, path, now or path, why) for (own, path, why), now in zip(known, places, strict=True)]

    def folders_of_sources(self) -> list[str]:
        """The folders that the pictures come from, where they are now."""
        described = [part.source for part in self.collection.changes.added if part.source is not None]
        own, moved = self.collection.facts["source"], self.collection.moved_to
        given = [moved] if moved is not None else [one["given"] for one in (own, *own.get("more", ()))]
        given += [one["given"] for one in described]
        return [str(one) for one in given if isinstance(one, str | Path) and Path(one).is_dir()]

    def set_hidden(self, rows: Sequence[int] | np.ndarray, hidden: bool) -> None:
        """Take pictures out of the collection, or put them back. Only inside `reviewing`."""
        (hiding.hide if hidden else hiding.show)(self.collection, rows)
        self._hand = self._read_hand()
        self._relabel(self._hand)
        self._known, self.returned = None, self.returned + (not hidden)

    def classes(self) -> list[str]:
        """The classes of the folders and of the labels by hand, in the order that gives each its key."""
        return classes_job.listed(self.collection.folder, self._own_names, self.hand_labels().values())

    def rename(self, old: str, new: str) -> Done:
        """Give a class another name, or that of another, which merges them. Raises InputError for an unknown class."""
        with self._lock, changing(self.collection.folder.path) as folder:
            act = classes_job.rename(folder, old, new, self.classes())
            self.hand_labels()
        return Done(act.name, act.text)

    def suggestions(self) -> Suggestions | None:
        """What is suggested for every picture; None where nothing is labelled by hand."""
        voted = self._votes()
        if voted is None:
            return None
        codes, confidence, hand = (np.full(len(self.index), none) for none in (-1, 0.0, False))
        codes[voted.rows], confidence[voted.rows], hand[voted.rows] = voted.codes, voted.confidence, voted.hand
        return Suggestions(voted.names, codes, confidence, hand)

    def file_facts(self, row: int) -> FileFacts:
        """Of a picture's file, as it is now; raises an error where it is unreadable."""
        content = self.collection.content(row)
        form, width, height = format_and_size(content)
        size, modified = None, None
        with suppress(OSError, ValueError):
            found = Path(self.location(row)).stat()
            size, modified = found.st_size, found.st_mtime
        if size is None and isinstance(content, bytes | bytearray | memoryview):
            size = len(content)
        return FileFacts(width, height, form, size, modified)

    def stamps(self) -> np.ndarray | None:
        """(rows, 2) int64: size in bytes and date (ns) of each picture's file, -1 where unknown; None without files."""
        found = np.full((len(self.index), 2), -1)
        for source, theirs, ours in self.collection.sources():
            stamps = stamps_of(source, theirs)
            if stamps is not None and not any("://" in self.location(row) for row in ours[:1].tolist()):
                found[ours] = stamps
        return None if (found < 0).all() else found

    def label_state(self) -> LabelState:
        """How labelling stands: votes for all that are not labelled."""
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
        """A CSV file of every picture's label with its provenance; the heading alone where nothing is labelled."""
        voted = self._votes()
        return "id,path,label,by,confidence\n" if voted is None else label_job.labels_csv(self.index, voted)

    def proposals(self, count: int, by: str) -> list[int]:
        """Rows to label next, the most useful first."""
        with self._lock:
            rows, vectors = self._vectors()
            codes, _ = self._codes(rows)
        graph = self._spreading_graph(vectors)
        return rows[votes_job.proposals(vectors, codes, count, graph=graph, by=by, device=self._device)].tolist()

    def _spreading_graph(self, vectors: Tensor) -> Any:
        """The graph that labels spread over; None, once for all, where computing it would keep the page waiting."""
        with self._linking:
            if self._graph is None or self._graph[0] is not vectors:
                folder, most = self.collection.folder, _MOST_LINKED
                self._graph = vectors, votes_job.spreading_graph(folder, vectors, device=self._device, most=most)
            return self._graph[1]

    @staticmethod
    def stamp(file: Path) -> tuple[int, int]:
        """Another one after every change of a file that is replaced as a whole; (0, 0) where there is none."""
        try:
            found = file.stat()
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
        given = self.collection.run.hand_labels()
        rows = self.index.rows_of(list(given))
        return {row: label for row, (label, _) in zip(rows.tolist(), given.values(), strict=True) if row >= 0}

    def _named_by_source(self) -> set[str]:
        codes = np.unique(self.collection.source_labels)
        return {self.index.label_names[code] for code in codes[codes >= 0].tolist()}

    def _vectors(self) -> tuple[np.ndarray, Tensor]:
        if self._known is None:
            self._known = self.index.whole()
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
                known = self.collection.run.hand_labels()
                together = self.index.rows_of(list(journal.labelled_together(self.collection.folder, known)))
            graph, alone = self._spreading_graph(vectors), ~np.isin(rows, together)
            voted = votes_job.vote(rows, vectors, *given, graph=graph, asked=alone, device=self._device)
            with self._lock:
                if version == self.version:
                    self._voted = voted
            return voted


def _done(act: journal.Act | None) -> Done | None:
    return None if act is None else Done(act.name, act.text)
