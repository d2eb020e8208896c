"""A collection of pictures as rows, wherever it stands: `open_source` makes one out of what a person typed.

    source = open_source("pictures/")                    # a folder, several, Parquet, tar shards, an array, "cifar10"
    len(source), source.identifier(0), source.read(0)    # encoded bytes, an array or a PIL image

Rows keep their ids from scan to scan. A source pickles as paths: a worker maps the index anew. The labels are a column
apart, read when somebody asks for them; whoever trains never does.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from instdisc.data.decode import UnreadableError
from instdisc.data.groups import Groups
from instdisc.data.index import chunks, digest_of
from instdisc.data.labels import Encoded, encode, read_labels
from instdisc.data.listing import has_picture_name, is_picture
from instdisc.data.places import exists, expand, is_url
from instdisc.errors import InputError

Content = Any  # bytes | np.ndarray (h, w[, c]) | PIL.Image.Image: what `decode` takes


class Source(ABC):
    """A collection of pictures as rows.

    name: what the person typed, for messages. notes: sentences on what the scan left out or chose, for a person.
    """

    def __init__(self, name: str, count: int, *, limit: int | None = None, notes: Sequence[str] = ()) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"limit is {limit}: give the number of pictures to keep, at least 1.")
        self.name = name
        self.notes = tuple(notes)
        self._count = count if limit is None else min(count, limit)
        self._given_labels: Any = None
        self._encoded: Encoded | None = None
        self._labels_known = False
        self._fingerprint: str | None = None
        self._keeps_groups = False

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} pictures)"

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs: no labels that can be read again."""
        return {**self.__dict__, "_encoded": None, "_labels_known": False}

    @abstractmethod
    def identifiers(self, start: int, stop: int) -> list[bytes]:
        """The ids of some consecutive rows, as the bytes that the file system or the archive holds."""

    @abstractmethod
    def locations(self, start: int, stop: int) -> list[bytes]:
        """Where those rows stand: a path or URL for a person, and for a table that is read later."""

    @abstractmethod
    def read(self, row: int) -> Content:
        """A picture: encoded bytes, an array (h, w[, c]) of uint8, uint16 or float, or a PIL image.

        Raises UnreadableError when its bytes cannot be had.
        """

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
        """Labels from outside: a CSV file (path or id, label), or one value a row. Raises InputError if they misfit."""
        given = isinstance(labels, str | os.PathLike)
        if not given and len(labels) != len(self):
            raise InputError(f"There are {len(labels)} labels for {len(self)} pictures: give one for each.")
        self._given_labels = Path(labels) if given else encode(_plain(labels))
        self._labels_known = False
        self._find_labels()

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
            if isinstance(given, Path):
                self._encoded = read_labels(given, len(self), self.identifiers, self.locations)
            else:
                self._encoded = given if given is not None else self._own_labels()
            if self._encoded is not None and not (self._encoded[0] >= 0).any():
                self._encoded = None
            self._labels_known = True
        return self._encoded

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


def open_source(
    source: Any,
    *,
    labels: Any = None,
    split: str | None = None,
    index_folder: Path | None = None,
    limit: int | None = None,
) -> Source:
    """Open a collection.

    source: a folder, Parquet file, tar shard, pattern of these or a picture file (path or URL), a list of them, an
        array or tensor (n, h, w[, c]), a sequence of PIL images, arrays, bytes or paths, or one of the names digits,
        cifar10, cifar100, stl10 (`./digits` is the folder).
    labels: a CSV file with the columns path (or id) and label, or one label a picture; instead of those found inside.
    split: the part to open where there are several: a folder inside, files named for it, or a split of a known name.
    index_folder: where the index is written; the user's cache folder without it.
    limit: keep the first rows only.
    Raises InputError with a sentence for a person when there are no pictures there.
    """
    opened = _open(source, split, None if index_folder is None else Path(index_folder), limit)
    if len(opened) == 0:
        raise InputError(f"{opened.name} holds no pictures: give a folder, Parquet file, tar shard or array with some.")
    if labels is not None:
        opened.set_labels(labels)
    return opened


def _open(source: Any, split: str | None, index_folder: Path | None, limit: int | None) -> Source:
    # These files import Source from this one, and no command needs them all.
    from instdisc.data.arrays import open_array, open_sequence
    from instdisc.data.named import NAMES, open_named

    if isinstance(source, str) and source in NAMES:
        return open_named(source, split, limit)
    if isinstance(source, str | os.PathLike):
        return _open_places([os.fspath(source)], split, index_folder, limit)
    if split is not None:
        raise InputError("split is for folders, files and known names: give the array or list of that part itself.")
    if isinstance(source, Source):
        raise InputError("That is an opened source already: use it as it is.")
    if hasattr(source, "__array__") and hasattr(source, "ndim") and hasattr(source, "shape"):
        return open_array(source, limit)
    if isinstance(source, Sequence) and source and all(isinstance(item, str | os.PathLike) for item in source):
        return _open_places([os.fspath(item) for item in source], split, index_folder, limit)
    return open_sequence(source, limit)


def _open_places(given: Sequence[str], split: str | None, index_folder: Path | None, limit: int | None) -> Source:
    """Files, folders and patterns: one kind of source for all of them together."""
    from instdisc.data.folder import open_files, open_folders
    from instdisc.data.parquet import open_parquet
    from instdisc.data.tar import open_tar

    name = given[0] if len(given) == 1 else f"{given[0]} and {len(given) - 1} more"
    places = [place for text in given for place in expand(_local(os.fsdecode(text)))]
    kinds = {_kind(place) for place in places}
    if len(kinds) > 1:
        raise InputError(f"{name} mixes {' and '.join(sorted(kinds))}: give one kind at a time.")
    kind = kinds.pop()
    if kind == "folders":
        chosen = [_split_folder(place, split) for place in places]
        folder = open_folders(name, chosen, index_folder, limit)
        held = folder.archives()
        if held is None:
            if split is not None and chosen == places:
                raise InputError(f"{name} has no folder {split} in it: leave split out, or name one that is there.")
            return folder
        kind, files = held
        split = split if chosen == places else None  # the folder has made the choice
        places = files
    if split is not None:
        places = [place for place in places if split in _words(place)]
        if not places or kind == "picture files":
            raise InputError(f"{name} has no file named for the split {split}: leave split out, or name one it has.")
    if kind == "Parquet files":
        return open_parquet(name, places, index_folder, limit)
    if kind == "tar shards":
        return open_tar(name, places, index_folder, limit)
    return open_files(name, places, index_folder, limit)


def _kind(place: str) -> str:
    """What a place is: folders, Parquet files, tar shards or picture files (plural: for messages)."""
    name = place.partition("?")[0].lower() if is_url(place) else place.lower()
    local = not is_url(place)
    if local and os.path.isdir(place):
        return "folders"
    if local and not os.path.lexists(place) and not has_picture_name(os.fsencode(place)):
        raise InputError(f"{place} does not exist: check the path.")
    if name.endswith((".parquet", ".pq")):
        return "Parquet files"
    if name.endswith(".tar"):
        return "tar shards"
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")):
        raise InputError(f"{place} is a compressed archive: unpack it, and give the folder or the .tar in it.")
    if has_picture_name(os.fsencode(place)):
        return "picture files"
    if not local:
        return "folders"
    with open(place, "rb") as file:
        start = file.read(512)
    if start.startswith(b"PAR1"):
        return "Parquet files"
    if start[257:262] == b"ustar":
        return "tar shards"
    if is_picture(start):
        return "picture files"
    raise InputError(f"{place} is no picture, Parquet file or tar shard: give one of these, or a folder of pictures.")


def _split_folder(place: str, split: str | None) -> str:
    """The folder of a split inside, if there is one."""
    if split is None:
        return place
    inside = place.rstrip("/") + "/" + split
    if is_url(place):
        return inside if exists(inside) else place
    return inside if os.path.isdir(inside) else place


def _words(place: str) -> list[str]:
    """The words of a file's name: `train-00001-of-00004.parquet` -> train, 00001, ..."""
    name = place.rstrip("/").rpartition("/")[2]
    for mark in "-.":
        name = name.replace(mark, "_")
    return name.split("_")


def _local(text: str) -> str:
    """`file:///x` and `~/x` as plain paths."""
    return os.path.expanduser(text.removeprefix("file://")) if "::" not in text else text


def _plain(labels: Any) -> Any:
    """A tensor of labels as an array; other things as they are."""
    return labels.detach().cpu().numpy() if hasattr(labels, "detach") else labels
