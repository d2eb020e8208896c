"""A run's pictures as they are now: those it was trained on, with what was added, removed and recomputed since.

collection = Collection(run)
collection.index.search(collection.embed(["cat.jpg"]), 20)
collection.picture(17)                                          # decoded, from wherever it stands
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc import checkpoint, ranks
from instdisc.bank import Rows
from instdisc.data.decode import UnreadableError, decode
from instdisc.data.source import Source, open_source
from instdisc.encoder import Encoder
from instdisc.encoder.whitening import load_whitening
from instdisc.errors import InputError, is_shortage
from instdisc.jobs.sources import read_facts, read_instances, read_rows, reopen
from instdisc.runs import RunFolder
from instdisc.search.index import Index
from instdisc.search.store import Changes, Part, read_changes
from instdisc.shapes import Float, Tensor

_LOOK_AGAIN_SECONDS = 10.0  # after pictures were not there: a look at all files for each that is asked for takes long


class Collection:
    """The pictures of a run folder. Nothing is read before it is needed; sources and vectors stay mapped.

    train_source: where the training pictures are now, if they were moved. by_ranks: several processes look through it
    together, each with a Collection of its own.
    Raises InputError for a folder that is no run, or was trained on after pictures were added.
    """

    def __init__(self, run: str | Path, *, train_source: Any = None, by_ranks: bool = False) -> None:
        if ranks.world() > 1 and not by_ranks:
            raise InputError("Looking through a collection is one process's work: start it without torchrun.")
        self.folder = RunFolder(run)
        self.facts = read_facts(self.folder)
        self._moved_to = train_source
        saved = checkpoint.latest(self.folder.checkpoints, verify=("encoder",))
        if saved is None:
            raise InputError(f"{self.folder.path} holds no whole checkpoint yet: train it first, or resume it.")
        self.saved = saved
        self.changes = read_changes(self.folder.index) or Changes(saved.step)
        self.source_labels = np.zeros(
            0, np.int64
        )  # code of each row's label but for those by hand, once `index` was read
        self._training: Source | None = None
        self._refused, self._refused_at = "", -math.inf
        self._added: dict[str, tuple[Source, np.ndarray]] = {}

    @cached_property
    def rows(self) -> np.ndarray:
        """Which row of the training source each bank row is."""
        rows = read_rows(self.folder)
        if len(rows) and rows.max() >= self.facts["data"]["rows"]:
            raise InputError(f"{self.folder.instances} names pictures that never were: the run folder is damaged.")
        return rows

    @cached_property
    def index(self) -> Index:
        """The pictures and their vectors. Labels: by hand, else those of the sources, where they can be opened."""
        self.check_vectors()
        changes = self.changes
        own = self.saved.bank_rows()
        parts: list[Tensor | Rows] = [*own] if changes.recomputed is None else [changes.recomputed.vectors]
        tables = [read_instances(self.folder).select(["id", "location"])]
        labels, names = [self._own_labels()], self._own_names()
        for part in changes.added:
            assert part.pictures is not None
            parts.append(part.vectors)
            tables.append(part.pictures.select(["id", "location"]))
            given = part.pictures["label"].to_pylist()
            names += [name for name in dict.fromkeys(given) if name and name not in names]
            numbers = {name: number for number, name in enumerate(names)} | {"": -1}
            labels.append(np.array([numbers[name] for name in given], dtype=np.int64))
        pictures = _together(tables)
        removed = np.zeros(len(pictures), dtype=bool)
        removed[changes.removed] = True
        index = Index(
            parts, pictures, labels=np.concatenate(labels), label_names=names, removed=removed, tags=changes.tags
        )
        self.source_labels = index.labels.copy()
        hand = read_hand_labels(self.folder)
        index.label_names += sorted({given for given, _ in hand.values()} - set(names))
        rows = index.rows_of(list(hand))
        for row, (given, _) in zip(rows.tolist(), hand.values(), strict=True):
            if row >= 0:
                index.labels[row] = index.label_names.index(given)
        return index

    def check_vectors(self) -> None:
        """InputError where vectors were made by another encoder or map than the run has now: they can't be compared."""
        changed, again = self.changes, f"make them again with `instdisc index {self.folder.path} --recompute`."
        if (changed.added or changed.recomputed) and changed.step != self.saved.step:
            raise InputError(
                f"{self.folder.path} was trained on (step {self.saved.step}) after vectors were made by it (step "
                f"{changed.step}): {again}"
            )
        if changed.whitening and changed.whitening != self.map_digest:
            raise InputError(f"The search vectors of {self.folder.path} come from another map than it has now: {again}")

    @cached_property
    def map_digest(self) -> str:
        """Of the run's map to search vectors; "" where it has none for its last checkpoint."""
        found = load_whitening(self.folder.search_vectors, self.saved.step)
        return "" if found is None else found.digest

    @property
    def vectors(self) -> str:
        """What the index holds: "search" vectors, or the "embedding", of which the bank's rows are a kind."""
        return "search" if self.changes.whitening else "embedding"

    @property
    def up_to_date(self) -> bool:
        """Whether all vectors are the pictures' own, of the run's last checkpoint and of its map."""
        changed = self.changes
        if changed.recomputed is None or changed.step != self.saved.step:
            return False
        return not changed.whitening or changed.whitening == self.map_digest

    def embed(self, pictures: Any, device: str = "auto") -> Float[Tensor, "pictures dim"]:
        """Vectors of pictures from elsewhere, which can be compared with those of the index."""
        return self.encoder(device).embed(pictures, vectors=self.vectors)

    def encoder(self, device: str = "auto") -> Encoder:
        """The run's encoder, on this device."""
        return self._encoder.to(ranks.device(device))

    @cached_property
    def _encoder(self) -> Encoder:
        return checkpoint.load_encoder(self.folder.path, self.saved)

    def training_source(self) -> Source:
        """The pictures that the run was trained on; InputError where they have gone or changed."""
        if self._training is None:
            if time.monotonic() < self._refused_at + _LOOK_AGAIN_SECONDS:
                raise InputError(self._refused)
            try:
                self._training = reopen(self.folder, self.facts, self._moved_to)
            except InputError as error:
                self._refused, self._refused_at = str(error), time.monotonic()
                raise
        return self._training

    def has_pictures(self) -> bool:
        """Whether the training pictures are where they were."""
        try:
            self.training_source()
        except InputError:
            if self._moved_to is not None:
                raise
            return False
        return True

    def content(self, row: int) -> Any:
        """A picture as its source has it, of which `decode` makes pixels; UnreadableError where it can't be had."""
        if row < len(self.rows):
            try:
                return self.training_source().read(int(self.rows[row]))
            except InputError as error:
                raise UnreadableError(str(error)) from None
        row -= len(self.rows)
        for part in self.changes.added:
            assert part.pictures is not None
            if row < len(part.pictures):
                try:
                    source, rows = self.added_source(part)
                except InputError as error:
                    raise UnreadableError(str(error)) from None
                if rows[row] < 0:
                    raise UnreadableError("it is not there any more")
                return source.read(int(rows[row]))
            row -= len(part.pictures)
        raise IndexError(row)

    def picture(self, row: int) -> np.ndarray:
        """A picture's pixels (height, width, 3) uint8; UnreadableError where they can't be had."""
        return decode(self.content(row))

    def sources(self) -> Iterator[tuple[Source, np.ndarray, np.ndarray]]:
        """(source, its rows ascending, the collection's row of each) of the pictures that are where they were."""
        yield self.training_source(), self.rows, np.arange(len(self.rows))
        first = len(self.rows)
        for part in self.changes.added:
            assert part.pictures is not None
            source, rows = self.added_source(part)
            order = np.argsort(rows)[int((rows < 0).sum()) :]
            yield source, rows[order], first + order
            first += len(rows)

    def added_source(self, part: Part) -> tuple[Source, np.ndarray]:
        """Where pictures that were added together stand now, and the row of each there by its id, -1 if it has gone.

        A folder may have grown since. Raises InputError where nothing is there any more.
        """
        if part.name not in self._added:
            assert part.source is not None and part.pictures is not None
            given, split, limit = (part.source[name] for name in ("given", "split", "limit"))
            source = open_source(given, split=split, limit=limit)
            ids, wanted = (pc.cast(ids, pa.large_binary()) for ids in (source.fetch_table()["id"], part.pictures["id"]))
            rows = pc.index_in(wanted, value_set=ids.combine_chunks())
            self._added[part.name] = source, rows.fill_null(-1).to_numpy().astype(np.int64)
        return self._added[part.name]

    def _own_labels(self) -> np.ndarray:
        if not self.has_pictures() or self.training_source().labels is None:
            return np.full(len(self.rows), -1)
        labels = self.training_source().labels
        assert labels is not None
        return labels[self.rows]

    def _own_names(self) -> list[str]:
        return list(self.training_source().label_names or []) if self.has_pictures() else []


def read_hand_labels(folder: RunFolder) -> dict[str, tuple[str, str]]:
    """path -> (label, time) of the pictures that were labelled by hand, in the order in which that was first done."""
    if not folder.hand_labels.is_file():
        return {}
    try:
        with open(folder.hand_labels, newline="", encoding="utf-8", errors="surrogateescape") as lines:
            return {line["path"]: (line["label"], line["time"]) for line in csv.DictReader(lines)}
    except (OSError, KeyError, csv.Error) as error:
        if is_shortage(error):
            raise
        raise InputError(f"{folder.hand_labels} can't be read ({error}): restore the file, or delete it.") from None


def _together(tables: list[pa.Table]) -> pa.Table:
    """One table; names that are not UTF-8 in any of them make the columns binary in all."""
    kind = pa.large_string()
    if any(not pa.types.is_large_string(column.type) for table in tables for column in table.itercolumns()):
        kind = pa.large_binary()
    schema = pa.schema([("id", kind), ("location", kind)])
    return pa.concat_tables([table.cast(schema) for table in tables])
