"""Pictures found again by their ids, each in one of several sources: a collection that has grown or shrunk since.

pictures = Gathered("photos/", [open_source("photos/")], names, part, rows)
pictures.rows < 0                       # those that have gone: `read` raises UnreadableError for them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.arrow import LabelsError
from instdisc.data.sources.labels import Encoded
from instdisc.data.sources.row_groups import Groups
from instdisc.data.sources.source import Content, Source
from instdisc.data.sources.subset import Subset
from instdisc.data.storage.skipped import Skipped

GONE = "it is not there any more"  # as a reason why a picture can't be read
_AT_ONCE = 256  # pictures that are held, encoded


@dataclass(frozen=True)
class Known:
    """Names of pictures, one a row, as bytes. ids: unique; own: the ids in their part; locations: where they stood."""

    ids: pa.ChunkedArray
    own: pa.ChunkedArray
    locations: pa.ChunkedArray

    @classmethod
    def of(cls, table: pa.Table) -> Known:
        """Of columns id and location, and own_id where ids differ from those in the source."""
        own = "own_id" if "own_id" in table.column_names else "id"
        return cls(*(pc.cast(table[name], pa.large_binary()) for name in ("id", own, "location")))

    def take(self, rows: np.ndarray) -> Known:
        """Some rows; -1: a picture that nothing is known about."""
        chosen = pa.array(rows, mask=rows < 0)
        return Known(*(column.take(chosen).fill_null(b"") for column in (self.ids, self.own, self.locations)))


class Gathered(Source):
    """Row i is row rows[i] of parts[part[i]], or nowhere any more where that is -1; its id is kept.

    parts: None for one that can't be opened now, whose rows must all be -1.
    """

    def __init__(
        self, name: str, parts: Sequence[Source | None], known: Known, part: np.ndarray, rows: np.ndarray
    ) -> None:
        super().__init__(name, len(rows), choices=[note for one in parts if one is not None for note in one.choices])
        self.parts, self.known, self.part, self.rows = list(parts), known, part, rows
        self.skipped = Skipped()
        for one in parts:
            if one is not None:
                self.skipped.merge(one.skipped)

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        return self.known.ids.slice(start, stop - start).to_pylist()

    def locations(self, start: int, stop: int) -> list[bytes]:
        found = self.known.locations.slice(start, stop - start).to_pylist()
        for source, positions, rows in self._by_part(np.arange(start, stop)):
            for position, location in zip(positions.tolist(), _names(source.locations, rows), strict=True):
                found[position - start] = location
        return found

    def stamps(self) -> Int64[np.ndarray, "rows 2"] | None:
        answer, some = np.full((len(self), 2), -1, np.int64), False
        for source, positions, rows in self._by_part(np.arange(len(self))):
            found = source.stamps()
            if found is not None:
                answer[positions], some = found[rows], True
        return answer if some else None

    def read(self, row: int) -> Content:
        source = self.parts[self.part[row]]
        if source is None or self.rows[row] < 0:
            raise UnreadableError(GONE)
        return source.read(int(self.rows[row]))

    def iterate(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, Content | UnreadableError]]:
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows)
        for start in range(0, len(wanted), _AT_ONCE):  # in each part in its own order, and handed on in ours
            some, found = wanted[start : start + _AT_ONCE], dict[int, Content]()
            for source, positions, theirs in self._by_part(some):
                back = dict(zip(theirs.tolist(), positions.tolist(), strict=True))
                found |= {back[row]: content for row, content in source.iterate(theirs)}
            for row in some.tolist():
                yield row, found.pop(row, UnreadableError(GONE))

    def groups(self) -> Groups | None:
        source = self.parts[0]
        if len(self.parts) > 1 or source is None or self.rows[0] < 0 or (np.diff(self.rows) <= 0).any():
            return None  # in an order of their own
        return Subset(source, self.rows).groups()

    def keep_groups(self) -> None:
        for source in self.parts:
            if source is not None:
                source.keep_groups()

    def _by_part(self, wanted: np.ndarray) -> Iterator[tuple[Source, np.ndarray, np.ndarray]]:
        """(part, rows here, rows there, ascending) of those among `wanted` that are there."""
        for number, source in enumerate(self.parts):
            here = wanted[(self.part[wanted] == number) & (self.rows[wanted] >= 0)]
            if source is not None and len(here):
                here = here[np.argsort(self.rows[here], kind="stable")]
                yield source, here, self.rows[here]

    def _own_labels(self) -> Encoded | None:
        codes, names = np.full(len(self), -1), list[str]()
        for source, positions, rows in self._by_part(np.arange(len(self))):
            if source.labels is None or source.label_names is None:
                if source.labels_problem is not None:
                    raise LabelsError(source.labels_problem)
                continue
            names += [name for name in source.label_names if name not in names]
            numbers = np.array([*(names.index(name) for name in source.label_names), -1])  # the last: no label
            codes[positions] = numbers[source.labels[rows]]
        return (codes, names) if names else None


def rows_by_id(source: Source, own: pa.ChunkedArray) -> Int64[np.ndarray, " asked"]:
    """The row of the source that has each id (as bytes); -1 for none."""
    ids = pc.cast(source.fetch_table()["id"], pa.large_binary()).combine_chunks()
    return pc.index_in(own, value_set=ids).fill_null(-1).to_numpy().astype(np.int64)


def _names(fetch: Callable[[int, int], list[bytes]], rows: np.ndarray) -> list[bytes]:
    """The names of ascending rows, a stretch of consecutive ones at a time."""
    found: list[bytes] = []
    for stretch in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        if len(stretch):
            found += fetch(int(stretch[0]), int(stretch[-1]) + 1)
    return found
