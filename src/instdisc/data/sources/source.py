"""A collection of pictures as rows, wherever it is.

Rows keep their ids from scan to scan. A source pickles as paths: a worker maps the index again. The labels are a column
apart, read when somebody asks for them; training never does.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.arrow import LabelsError
from instdisc.data.sources.labels import Encoded, LabelLines, encode, labels_of_lines, read_label_lines
from instdisc.data.sources.row_groups import Groups
from instdisc.data.storage.scan import chunks, digest_of
from instdisc.data.storage.skipped import Skipped
from instdisc.errors import InputError

Content = Any  # bytes | np.ndarray (h, w[, c]) | PIL.Image.Image: what `decode` takes


class Source(ABC):
    """A collection of pictures as rows.

    name: what the person typed, for messages. choices: sentences on what was made of what is there. skipped: what
    is no row, counted by its reason. notes: both in sentences, for a person.

    Examples:
        >>> import numpy as np
        >>> from instdisc.data import open_source
        >>> source = open_source(np.zeros((3, 20, 30, 3), np.uint8))
        >>> source.identifier(1), source.read(1).shape, source.labels
        ('array#1', (20, 30, 3), None)
        >>> source.set_labels(["cat", "dog", "cat"])
        >>> source.labels, source.label_names
        (array([0, 1, 0]), ['cat', 'dog'])
    """

    def __init__(self, name: str, count: int, *, limit: int | None = None, choices: Sequence[str] = ()) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"limit is {limit}: give the number of pictures to keep, at least 1.")
        self.name = name
        self.choices = tuple(choices)
        self.skipped = Skipped()
        self._count = count if limit is None else min(count, limit)
        self._given_labels: Any = None
        self._encoded: Encoded | None = None
        self._labels_known = False
        self._labels_problem: str | None = None
        self._label_notes: tuple[str, ...] = ()
        self._fingerprint: str | None = None
        self._keeps_groups = False

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} pictures)"

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs: no labels that can be read again, and nothing of what is no row."""
        return {**self.__dict__, "_encoded": None, "_labels_known": False, "skipped": Skipped()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the scan: what was chosen, and what was skipped with its reason."""
        return (*self.choices, *self.skipped.notes())

    @abstractmethod
    def identifiers(self, start: int, stop: int) -> list[bytes]:
        """The ids of some consecutive rows, as the bytes that the file system or the archive holds."""

    @abstractmethod
    def locations(self, start: int, stop: int) -> list[bytes]:
        """Where those rows stand: a path or URL for a person, and for a table that is read later."""

    @abstractmethod
    def read(self, row: int) -> Content:
        """A picture: encoded bytes, an array (h, w[, c]) of uint8, uint16 or float, or a PIL image.

        Raises UnreadableError when its bytes are unavailable.
        """

    def stamps(self) -> Int64[np.ndarray, "rows 2"] | None:
        """Size (-1 where unknown) and date (ns, or a hash of what a store says) of the file that each row stands in.

        A row whose picture was edited has another stamp; so may one whose picture was not. None without files.
        """
        return None

    def groups(self) -> Groups | None:
        """The rows that the storage gives up together; None where every picture stands alone."""
        return None

    def keep_groups(self) -> None:
        """From now on read whole groups and keep the last few: for rows that are asked for in an order by groups."""
        self._keeps_groups = True

    @abstractmethod
    def _own_labels(self) -> Encoded | None:
        """The labels that the storage itself holds for these rows."""

    def identifier(self, row: int) -> str:
        """The stable id of a row: `cats/1.jpg`, `train.parquet#17`, `shard-000.tar#0017`, `array#17`."""
        return os.fsdecode(self.identifiers(row, row + 1)[0])

    def location(self, row: int) -> str:
        """Path or URL of a row, for a person."""
        return os.fsdecode(self.locations(row, row + 1)[0])

    def iterate(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, Content | UnreadableError]]:
        """(row, content) of the given rows (ascending; all without), in the cheapest order for this storage.

        Where a row cannot be read its content is the UnreadableError itself: one lost file does not end the walk.
        """
        for row in range(len(self)) if rows is None else rows:
            yield int(row), self.read_or_error(int(row))

    def read_or_error(self, row: int) -> Content | UnreadableError:
        """`read`, with the error as the answer."""
        try:
            return self.read(row)
        except UnreadableError as error:
            return error

    def set_labels(self, labels: Any) -> None:
        """Labels from outside: a table (path or id, label), or one value a row. Raises InputError if they misfit."""
        given, lines = isinstance(labels, str | os.PathLike), isinstance(labels, LabelLines)
        if not given and not lines and len(labels) != len(self):
            raise InputError(f"There are {len(labels)} labels for {len(self)} pictures: give one for each.")
        self._given_labels = Path(labels) if given else labels if lines else encode(_plain(labels))
        self._labels_known = False
        self._find_labels()
        if self._labels_problem is not None:
            raise LabelsError(self._labels_problem)

    def number_like(self, other: Source) -> None:
        """Give a class the number that it has in `other`, by its name; classes that `other` lacks come after its own.

        Each source numbers the classes that it finds: test pictures of a few classes only would otherwise be judged by
        other numbers than the training pictures have. Raises InputError where no class is common to both.
        """
        own, theirs = self._find_labels(), other._find_labels()
        if own is None or theirs is None:
            return
        (codes, names), known = own, theirs[1]
        present = {names[code] for code in np.unique(codes[codes >= 0])}
        if not present & set(known):
            raise InputError(
                f"The labels of {self.name} ({_few(names)}) are none of those of {other.name} ({_few(known)}): "
                "call the classes the same in both."
            )
        numbers = {name: number for number, name in enumerate([*known, *(name for name in names if name not in known)])}
        lookup = np.array([*(numbers[name] for name in names), -1])  # the last entry: no label
        self._encoded = lookup[codes], list(numbers)

    def _find_labels(self) -> Encoded | None:
        if not self._labels_known:
            given = self._given_labels
            self._encoded = self._labels_problem = None
            self._label_notes = ()
            try:
                if isinstance(given, Path | LabelLines):
                    lines = given if isinstance(given, LabelLines) else read_label_lines(given)
                    found = labels_of_lines(lines, len(self), self.identifiers, self.locations)
                    self._encoded, self._label_notes = found[0], tuple(found[1])
                else:
                    self._encoded = given if given is not None else self._own_labels()
            except LabelsError as error:  # only who needs labels is stopped by it
                self._labels_problem = str(error)
            if self._encoded is not None and not (self._encoded[0] >= 0).any():
                self._encoded = None
            self._labels_known = True
        return self._encoded

    @property
    def labels_problem(self) -> str | None:
        """Why the labels that are there can't be used: a sentence; None where they can, or there are none."""
        self._find_labels()
        return self._labels_problem

    @property
    def label_notes(self) -> tuple[str, ...]:
        """Sentences on the lines of a table of labels that count for nothing."""
        self._find_labels()
        return self._label_notes

    def need_labels(self) -> np.ndarray:
        """`labels`. Raises InputError, with the reason, where there are no valid ones."""
        labels = self.labels
        if labels is None:
            why = self._labels_problem or "Name a table of them with --labels, or give a folder of class folders."
            raise InputError(f"{self.name} has no valid labels, and accuracy needs them. {why}")
        return labels

    @property
    def labels(self) -> np.ndarray | None:
        """int64 (n,): class 0..C-1 of each row, -1 where it has none; None without labels. For evaluation only."""
        encoded = self._find_labels()
        return None if encoded is None else encoded[0]

    @property
    def label_names(self) -> list[str] | None:
        """The name of each class."""
        encoded = self._find_labels()
        return None if encoded is None else encoded[1]

    def class_name(self, code: int) -> str:
        """The name of a class by its number; "" for the number of a picture that has none."""
        names = self.label_names
        return "" if names is None or code < 0 else names[code]

    @property
    def fingerprint(self) -> str:
        """A hash of all ids, order included: two sources with the same one have the same rows."""
        if self._fingerprint is None:
            self._fingerprint = digest_of(self.identifiers(*piece) for piece in chunks(len(self)))
        return self._fingerprint

    def fetch_table(self) -> pa.Table:
        """Columns id and location, one line a row: text, or binary where a name is not UTF-8."""
        columns = {}
        for name, fetch in (("id", self.identifiers), ("location", self.locations)):
            pieces = [pa.array(fetch(*piece), pa.large_binary()) for piece in chunks(len(self))]
            column = pa.chunked_array(pieces, pa.large_binary())
            try:
                columns[name] = column.cast(pa.large_string())
            except pa.ArrowInvalid:
                columns[name] = column
        return pa.table(columns)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _plain(labels: Any) -> Any:
    """A tensor of labels as an array; other things as they are."""
    return labels.detach().cpu().numpy() if hasattr(labels, "detach") else labels
