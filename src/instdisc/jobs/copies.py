"""Copies among the pictures of a collection or of a source alone: their thumbnails, the proofs, and which to keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.source import Source
from instdisc.data.sources.subset import Subset
from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.progress import Bar
from instdisc.search.catalogue import Entry
from instdisc.search.copies import Finder, Group
from instdisc.search.fingerprints import Fingerprints, marks_of, stored_fingerprints
from instdisc.shapes import UInt8

Part = tuple[Source, np.ndarray, np.ndarray]  # a source, rows there, the collection's rows of these
KEEP = ("largest", "sharpest", "oldest")
_FORMATS = ("TIFF", "JPEG", "PNG", "BMP", "WebP", "GIF")  # as cameras and scanners write them, then as copies are saved
_BLOCK = 65_536  # pictures whose names are read at once
_GREY_SIDE = 256  # pixels: sharpness is compared at this longer side


@dataclass(frozen=True)
class Copy(Entry):
    """A picture of a group. kind: "same file" or "same picture" as the kept one, "" for that itself.

    changes: re-encoded, resized, cropped, mirrored, turned, recoloured; agreement: of the detail of both, at most 1.
    score: the cosine of their vectors, if there are any. size: of the file in bytes, if it is one. sharpness: variance
    of the Laplacian of the grey picture, at most 256 pixels long; modified: seconds since 1970.
    """

    kind: str
    changes: tuple[str, ...]
    agreement: float
    score: float | None
    width: int
    height: int
    size: int | None
    format: str
    sharpness: float | None
    modified: float | None


@dataclass(frozen=True)
class Duplicates:
    """copies: those to remove, the most certain first."""

    kept: Copy
    copies: list[Copy]


@dataclass(frozen=True)
class Looked:
    """Pictures that were looked at. Places count those in `stored`; entries: what is known of some, with today's paths.

    contents(position): as a source gives it; UnreadableError where it can't.
    """

    stored: Fingerprints
    entries: Callable[[Sequence[int]], list[Entry]]
    contents: Callable[[int], Any]


def look_at_collection(collection: Collection, *, show: bool = False) -> Looked:
    """The pictures of a collection that were not removed, in the order of its vectors. Thumbnails stay in the run.

    Where the source has changed since it was trained on, as by deleted copies, files are read by their paths. Raises
    InputError where no picture can be read any more.
    """
    rows = np.flatnonzero(~collection.index.removed)
    parts: list[Part] = []
    refused: InputError | None = None
    try:
        parts = list(collection.sources())
    except InputError as error:
        refused = error
    names = _Names(collection, rows, parts)

    def read(wanted: np.ndarray) -> Iterator[tuple[int, Any]]:
        asked = np.zeros(len(rows), dtype=bool)
        asked[wanted] = True
        for number, (source, _, _) in enumerate(parts):
            here = np.flatnonzero((names.part == number) & asked)
            here = here[np.argsort(names.theirs[here], kind="stable")]
            position = np.full(len(source), -1, np.int64)
            position[names.theirs[here]] = here
            asked[here] = False
            for row, content in source.iterate(names.theirs[here]):
                yield int(position[row]), content
        for left in np.flatnonzero(asked).tolist():
            yield left, _file_or_error(names.location(left))

    def contents(position: int) -> Any:
        try:
            return collection.content(int(rows[position]))
        except UnreadableError:
            found = _file_or_error(names.location(position))
            if isinstance(found, UnreadableError):
                raise found from None
            return found

    def entries(positions: Sequence[int]) -> list[Entry]:
        known = collection.index.entries(rows[list(positions)])
        return [
            replace(entry, path=os.fsdecode(names.location(position)))
            for entry, position in zip(known, positions, strict=True)
        ]

    stored = stored_fingerprints(collection.folder.thumbnails, names.marks(), read, show=show)
    if refused is not None and not len(stored.readable()):
        raise refused
    return Looked(_some_readable(stored), entries, contents)


def marks_now(collection: Collection, rows: np.ndarray) -> UInt8[np.ndarray, "rows 16"]:
    """The marks by which thumbnails of these pictures stand in the run, as their files are now."""
    try:
        parts = list(collection.sources())
    except InputError:
        parts = []
    return _Names(collection, rows, parts).marks()


class _Names:
    """What pictures of a collection are called now, looked up when they are asked for. rows: of these, ascending.

    part, theirs: (pictures,), which of the parts of its sources each stands in, -1 for none, and the row there.
    """

    def __init__(self, collection: Collection, rows: np.ndarray, parts: Sequence[Part]) -> None:
        self._rows, self._sources = rows, [source for source, _, _ in parts]
        self._known = collection.index.names
        self.part, self.theirs = np.full(len(rows), -1, np.int32), np.full(len(rows), -1)
        place_of = np.full(len(collection.index), -1)
        place_of[rows] = np.arange(len(rows))
        for number, (_, theirs, ours) in enumerate(parts):
            here = place_of[ours] >= 0
            self.part[place_of[ours[here]]] = number
            self.theirs[place_of[ours[here]]] = theirs[here]

    def read(self, start: int, stop: int) -> tuple[list[bytes], list[bytes]]:
        """The ids and the locations of the pictures at these positions."""
        rows = self._rows[start:stop]
        ids, locations = (
            [found[row] for row in (rows - rows[0]).tolist()]
            for found in (read(int(rows[0]), int(rows[-1]) + 1) for read in self._known)
        )
        for number, source in enumerate(self._sources):
            here = np.flatnonzero(self.part[start:stop] == number)
            now = Subset(source, self.theirs[start:stop][here])
            for position, location in zip(here.tolist(), now.locations(0, len(now)), strict=True):
                ids[position] = b"%d " % number + ids[position]  # parts that were added may have the ids of others
                locations[position] = location
        return ids, locations

    def location(self, position: int) -> bytes:
        """Where a picture stands now."""
        return self.read(position, position + 1)[1][0]

    def marks(self) -> UInt8[np.ndarray, "pictures 16"]:
        """The marks of all."""
        return _marks(len(self._rows), self.read)


def _marks(
    count: int, read: Callable[[int, int], tuple[Sequence[bytes], Sequence[bytes]]]
) -> UInt8[np.ndarray, "pictures 16"]:
    """`marks_of`, by blocks. read(start, stop): ids and locations."""
    answer, stats = np.empty((count, 16), np.uint8), dict[bytes, bytes]()
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        answer[start:stop] = marks_of(*read(start, stop), stats)
    return answer


def _file_or_error(location: bytes) -> bytes | UnreadableError:
    try:
        return Path(os.fsdecode(location)).read_bytes()
    except (OSError, ValueError):
        return UnreadableError("it is not there any more")


def look_at_source(source: Source, file: Path, *, show: bool = False) -> Looked:
    """The pictures of a source; their thumbnails stay in `file`. Raises InputError where none can be read."""

    def entries(positions: Sequence[int]) -> list[Entry]:
        labels = source.labels
        return [
            Entry(
                position,
                source.identifier(position),
                source.location(position),
                "" if labels is None else source.class_name(int(labels[position])),
            )
            for position in positions
        ]

    marks = _marks(len(source), lambda start, stop: (source.identifiers(start, stop), source.locations(start, stop)))
    return Looked(_some_readable(stored_fingerprints(file, marks, source.iterate, show=show)), entries, source.read)


def _some_readable(stored: Fingerprints) -> Fingerprints:
    if not len(stored.readable()):
        raise InputError("None of the pictures can be read any more: are they where they were?")
    return stored


def grouped(
    looked: Looked,
    keep: str,
    *,
    proposed: np.ndarray | None = None,
    cosine: Callable[[int, int], float] | None = None,
    sharp: bool = False,
    show: bool = False,
) -> list[Duplicates]:
    """All copies, each with the one that is kept in its place; the most certain first.

    proposed: pairs of positions to look at beside those that look alike. cosine: of two positions, for `Copy.score`.
    sharp: work out the sharpness of every picture that is named, which decodes it.
    """
    finder = Finder(looked.stored, looked.contents, show=show)
    facts = _Facts(looked, sharp or keep == "sharpest")
    proven = finder.within(proposed)
    with Bar(len({position for pair in proven for position in pair}), "Looking at copies", "pictures", show) as bar:
        groups = finder.groups(proven, partial(_best_first, facts, keep, bar))
    return [_duplicates(group, facts, cosine) for group in groups]


def _duplicates(group: Group, facts: _Facts, cosine: Callable[[int, int], float] | None) -> Duplicates:
    def named(position: int, kind: str, changes: tuple[str, ...], agreement: float) -> Copy:
        score = None if cosine is None else cosine(group.best, position)
        return Copy(
            **vars(facts.entry(position)),
            kind=kind,
            changes=changes,
            agreement=agreement,
            score=score,
            **facts.of(position),
        )

    copies = [named(position, proof.kind, proof.changes, proof.agreement) for position, proof in group.copies]
    return Duplicates(named(group.best, "", (), 1.0), copies)


def _best_first(facts: _Facts, keep: str, bar: Bar, positions: Sequence[int]) -> list[int]:
    """The one to keep first: most pixels, most bytes, the oldest date, the likelier original format."""
    known = {}
    for position in positions:
        known[position] = facts.of(position)
        bar.advance()
    if keep == "oldest" and all(one["modified"] is None for one in known.values()):
        raise InputError(
            f"{facts.entry(positions[0]).path} is no file of its own, so that its age is not known: keep the "
            "largest or the sharpest."
        )

    def order(position: int) -> tuple[Any, ...]:
        one = known[position]
        age = np.inf if one["modified"] is None else one["modified"]
        kind = _FORMATS.index(one["format"]) if one["format"] in _FORMATS else len(_FORMATS)
        usual = (-one["width"] * one["height"], -(one["size"] or 0), age, kind, position)
        return {"largest": usual, "oldest": (age, *usual), "sharpest": (-(one["sharpness"] or 0), *usual)}[keep]

    return sorted(positions, key=order)


class _Facts:
    """What tells which copy to keep, looked up once."""

    def __init__(self, looked: Looked, sharp: bool) -> None:
        self._looked, self._sharp = looked, sharp
        self._entries: dict[int, Entry] = {}
        self._known: dict[int, dict[str, Any]] = {}

    def entry(self, position: int) -> Entry:
        if position not in self._entries:
            self._entries[position] = self._looked.entries([position])[0]
        return self._entries[position]

    def of(self, position: int) -> dict[str, Any]:
        if position not in self._known:
            record = self._looked.stored.records[position]
            self._known[position] = {
                "width": int(record["width"]),
                "height": int(record["height"]),
                "size": int(record["bytes"]) or None,
                "format": record["format"].decode(),
                "sharpness": self._sharpness(position) if self._sharp else None,
                "modified": _modified(self.entry(position).path),
            }
        return self._known[position]

    def _sharpness(self, position: int) -> float:
        try:
            return sharpness(decode(self._looked.contents(position)))
        except UnreadableError:
            return 0.0


def _modified(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except (OSError, ValueError):
        return None


def sharpness(pixels: np.ndarray) -> float:
    """The variance of the Laplacian of the grey picture, shrunk to at most 256 pixels: higher is sharper."""
    picture = Image.fromarray(pixels).convert("L")
    picture.thumbnail((_GREY_SIDE, _GREY_SIDE), Image.Resampling.BOX)
    grey = np.pad(np.asarray(picture, np.float64), 1, mode="edge")
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var())
