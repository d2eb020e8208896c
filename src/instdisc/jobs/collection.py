"""A run's pictures as they are now: those it was trained on, with what was added, removed and recomputed since.

collection = Collection(run)
collection.index.search(collection.embed(["cat.jpg"]), 20)
collection.picture(17)                                          # decoded, from wherever it stands
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc import ranks
from instdisc.bank import Rows
from instdisc.checkpoint import STATE
from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.gathered import GONE, Gathered, rows_by_id
from instdisc.data.sources.given import GivenSource
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.encoder import Encoder
from instdisc.encoder.whitening import load_whitening
from instdisc.errors import InputError
from instdisc.files import read_json
from instdisc.jobs.catalogue import described_pictures
from instdisc.jobs.identity import news
from instdisc.jobs.run import Run
from instdisc.jobs.sources import changed_rows, log_lines, stamps_in, stamps_of
from instdisc.search.index import Index
from instdisc.search.store import Changes, Part, read_changes
from instdisc.shapes import Float, Tensor


class Collection:
    """The pictures of a run. Nothing is read before it is needed; sources and vectors stay mapped.

    run: its folder, or the run as it was opened. train_source: where the training pictures are now, if they were moved.
    by_ranks: several processes look through it together, each with a Collection of its own.
    Raises InputError for a folder that is no run, or was trained on after pictures were added.
    """

    def __init__(self, run: str | Path | Run, *, train_source: Any = None, by_ranks: bool = False) -> None:
        if ranks.world() > 1 and not by_ranks:
            raise InputError("Looking through a collection is one process's work: start it without torchrun.")
        self.run = run if isinstance(run, Run) else Run(run, train_source=train_source)
        self.folder, self.facts, self.moved_to = self.run.folder, self.run.facts, self.run.moved_to
        self.saved = self.run.checkpoint
        self.changes = read_changes(self.folder.index) or Changes(self.saved.step)
        self.source_labels = np.zeros(
            0, np.int64
        )  # code of each row's label but for those by hand, once `index` was read
        self._added: dict[str, tuple[Source, np.ndarray]] = {}

    @property
    def rows(self) -> np.ndarray:
        """`Run.rows`: which row of the training source each bank row is."""
        return self.run.rows

    @cached_property
    def index(self) -> Index:
        """The pictures and their vectors. Labels: by hand, else those of the sources, where they can be opened."""
        self.check_vectors()
        changes = self.changes
        own = self.saved.bank_rows()
        parts: list[Tensor | Rows] = [*own] if changes.recomputed is None else [changes.recomputed.vectors]
        parts += [part.vectors for part in changes.added]
        pictures, labels, names = described_pictures(self.run, [part.pictures for part in changes.added])
        removed = np.zeros(len(pictures), dtype=bool)
        removed[changes.removed] = True
        index = Index(parts, pictures, labels=labels, label_names=names, removed=removed, tags=changes.tags)
        self.source_labels = index.labels.copy()
        index.labels_problem = self.training_source().labels_problem if self.has_pictures() else None
        index.set_labels({path: label for path, (label, _) in self.run.hand_labels().items()})
        return index

    @property
    def made_of(self) -> list[tuple[str, int]]:
        """What the index's vectors are, part by part: the digest of each one's file, and its rows."""
        changes = self.changes
        parts = [*changes.added] if changes.recomputed is None else [changes.recomputed, *changes.added]
        saved = [(part.digest, len(part.vectors)) for part in parts]
        if changes.recomputed is not None:
            return saved
        files = read_json(self.saved.path / STATE)["files"]
        digests = [files[name]["sha256"] for name in sorted(files) if name.startswith("bank-")]
        return [*zip(digests, map(len, self.saved.bank_rows()), strict=True), *saved]

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
    def given(self) -> bool:
        """`Run.given`: whether the vectors were made elsewhere, so that nothing can be embedded."""
        return self.run.given

    @property
    def without_pictures(self) -> bool:
        """Whether the vectors were made elsewhere, and the picture of none of them is there."""
        source = self.training_source() if self.given else None
        return isinstance(source, GivenSource) and not len(source.with_picture)

    @property
    def vectors(self) -> str:
        """What the index holds: "search" vectors, or the "embedding": the bank's rows are a kind of it."""
        return "search" if self.changes.whitening else "embedding"

    @property
    def up_to_date(self) -> bool:
        """Whether all vectors are the pictures' own, of the run's last checkpoint and of its map."""
        if self.given:
            return True
        changed = self.changes
        if changed.recomputed is None or changed.step != self.saved.step:
            return False
        return not changed.whitening or changed.whitening == self.map_digest

    def embed(self, pictures: Any, device: str = "auto") -> Float[Tensor, "pictures dim"]:
        """Vectors of pictures from elsewhere, which can be compared with those of the index."""
        return self.encoder(device).embed(pictures, vectors=self.vectors)

    def encoder(self, device: str = "auto") -> Encoder:
        """The run's encoder, on this device."""
        return self.run.encoder(device)

    def training_source(self) -> Source:
        """`Run.source`: the pictures that the run was trained on; InputError where they have gone or changed."""
        return self.run.source()

    def has_pictures(self) -> bool:
        """Whether the training pictures are where they were."""
        return self.run.has_pictures()

    def content(self, row: int) -> Any:
        """A picture as its source has it (`decode` makes pixels of it); UnreadableError where it is unavailable."""
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
                    raise UnreadableError(GONE)
                return source.read(int(rows[row]))
            row -= len(part.pictures)
        raise IndexError(row)

    def picture(self, row: int, at_least: int | None = None) -> np.ndarray:
        """A picture's pixels (height, width, 3) uint8; UnreadableError where they are unavailable.

        at_least: a JPEG may be decoded smaller, as long as its shorter side keeps so many pixels.
        """
        return decode(self.content(row), at_least=at_least)

    def location(self, row: int) -> str:
        """Where a picture stands now: another path than the index has, if the training pictures were moved."""
        if row < len(self.rows) and self.has_pictures():
            return self.training_source().location(int(self.rows[row]))
        return self.index.entries([row])[0].path

    def rows_of(self, paths: Sequence[str], folders: Sequence[str | Path] = (".",)) -> np.ndarray:
        """The row that each path or id means, as the index has it or where it stands now; -1 where none is left.

        folders: where relative paths may begin.
        """
        index = self.index
        known = index.rows_named(paths, folders)
        if self.moved_to is not None and (known < 0).any():
            now = {self.location(row): row for row in np.flatnonzero(~index.removed).tolist()}
            known = np.array([now.get(path, row) for path, row in zip(paths, known.tolist(), strict=True)])
        return known

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
            own = part.pictures["own_id" if "own_id" in part.pictures.column_names else "id"]
            self._added[part.name] = source, rows_by_id(source, pc.cast(own, pa.large_binary()))
        return self._added[part.name]

    def changed_pictures(self) -> list[str]:
        """Sentences on pictures that came, went, or whose files changed after their vectors were made."""
        made = self.changes.recomputed
        table = self.run.instances
        before = stamps_in(table) if made is None else made.stamps
        changed, all_of_them = [], len(self.rows)
        if before is not None and self.has_pictures():
            source = self.training_source()
            found = changed_rows(before, stamps_of(source, self.rows))
            changed = [source.location(row) for row in self.rows[found].tolist()]
        for part in self.changes.added:
            assert part.pictures is not None
            all_of_them += len(part.pictures)
            with suppress(InputError):  # what has gone is told when it is asked for
                source, rows = self.added_source(part)
                if part.stamps is not None:
                    found = changed_rows(part.stamps[rows >= 0], stamps_of(source, rows[rows >= 0]))
                    changed += [source.location(row) for row in rows[rows >= 0][found].tolist()]
        sentences = self._news()
        if not changed:
            return sentences
        have = "has" if len(changed) == 1 else "have"
        return [
            *sentences,
            f"{len(changed):,} of the {all_of_them:,} pictures {have} another size or date than when the vectors were "
            f"made, the first is {changed[0]}: these may be vectors of other pictures. "
            f"`instdisc index {self.folder.path} --recompute` computes them again.",
        ]

    def log_changes(self, say: Callable[[str], None] | None) -> None:
        """Log `changed_pictures`, which are not looked for where nobody listens."""
        if say is not None:
            log_lines(say, self.changed_pictures())

    def _news(self) -> list[str]:
        """Sentences on pictures of the training source that came and went since."""
        if not self.has_pictures() or not isinstance(source := self.training_source(), Gathered):
            return []
        tables = [part.pictures["location"] for part in self.changes.added if part.pictures is not None]
        there = [name for table in tables for name in pc.cast(table, pa.large_binary()).to_pylist()]
        return news(self.folder, source, there)


AnyRun = str | Path | Run | Collection  # a run folder, or what was opened of it


def opened_collection(run: AnyRun, *, train_source: Any = None, by_ranks: bool = False) -> Collection:
    """The collection of a run; itself where it is open already."""
    return run if isinstance(run, Collection) else Collection(run, train_source=train_source, by_ranks=by_ranks)
