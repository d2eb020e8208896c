"""Some rows of a source, as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.arrow import LabelsError
from instdisc.data.sources.labels import Encoded
from instdisc.data.sources.row_groups import Groups
from instdisc.data.sources.source import Content, Source


class Subset(Source):
    """The rows `rows` (ascending) of another source, with their ids; row i here is row rows[i] there."""

    def __init__(self, whole: Source, rows: np.ndarray) -> None:
        super().__init__(whole.name, len(rows), choices=whole.choices)
        self.whole, self.rows, self.skipped = whole, rows, whole.skipped

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        return _picked(self.whole.identifiers, self.rows[start:stop])

    def locations(self, start: int, stop: int) -> list[bytes]:
        return _picked(self.whole.locations, self.rows[start:stop])

    def stamps(self) -> Int64[np.ndarray, "rows 2"] | None:
        found = self.whole.stamps()
        return None if found is None else found[self.rows]

    def read(self, row: int) -> Content:
        return self.whole.read(int(self.rows[row]))

    def iterate(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, Content | UnreadableError]]:
        wanted = self.rows if rows is None else self.rows[rows]
        for row, content in self.whole.iterate(wanted):
            yield int(np.searchsorted(self.rows, row)), content

    def groups(self) -> Groups | None:
        found = self.whole.groups()
        if found is None:
            return None
        starts = np.unique(np.searchsorted(self.rows, found.starts))
        return replace(found, starts=starts[starts < len(self)], bytes=found.bytes * len(self) // len(self.whole))

    def keep_groups(self) -> None:
        self.whole.keep_groups()

    def _own_labels(self) -> Encoded | None:
        if self.whole.labels is None or self.whole.label_names is None:
            if self.whole.labels_problem is not None:
                raise LabelsError(self.whole.labels_problem)
            return None
        return self.whole.labels[self.rows], self.whole.label_names


def _picked(names: Callable[[int, int], list[bytes]], rows: np.ndarray) -> list[bytes]:
    """The names of some rows, from one stretch of names: a caller asks for consecutive rows, piece by piece."""
    if not len(rows):
        return []
    first = int(rows[0])
    stretch = names(first, int(rows[-1]) + 1)
    return [stretch[row - first] for row in rows.tolist()]
