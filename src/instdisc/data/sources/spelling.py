"""Which picture a name means that a person, a spreadsheet or another system wrote: as it stands, else as it reads.

    found = match(names, ids, locations, count, folders=[table.parent])    # row of each name, -1 for none

A name is tried as an id, as a path, and as a path below each folder: letter by letter first; then with accents
composed, backslashes as slashes, and `./`, `//` and `..` worked out; then also without regard to capitals. A spelling
that would mean several pictures means none.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from instdisc.data.sources.tables import words
from instdisc.data.storage.scan import chunks

Names = Callable[[int, int], list[bytes]]  # (start, stop) -> what some consecutive pictures are called
_CHUNK = 65_536


def match(
    names: Sequence[bytes],
    ids: Names,
    locations: Names,
    count: int,
    *,
    folders: Sequence[str | os.PathLike[str]] = (),
    usable: Bool[np.ndarray, " count"] | None = None,
) -> Int64[np.ndarray, " names"]:
    """The row of the picture that each name means, of `count`; -1 where it means none, or several.

    folders: where relative names may begin. usable: the rows that may be meant, all without.
    """
    rows = np.full(len(names), -1, dtype=np.int64)
    below = [os.path.abspath(folder) for folder in folders]
    given = list(names)
    for read, roots in ((ids, []), (locations, below)):
        for root in ([None, *roots]) if read is locations else [None]:
            _exactly(rows, given, root, read, count, usable)
    for fold in (False, True):
        free = np.ones(count, dtype=bool) if usable is None else usable.copy()
        if fold:  # a picture that is named as it is spelled is not meant by other capitals too
            free[rows[rows >= 0]] = False
        for read, roots in ((ids, []), (locations, below)):
            _as_read(rows, given, roots, read, count, free, fold=fold)
    return rows


def spelled(name: bytes, *, fold: bool = False) -> str:
    """A name as it reads: composed accents, slashes, no `./`; without regard to capitals if `fold`."""
    text = words(name).strip()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = text.replace("\\", "/")
    if "//" in text or "./" in text or text.endswith(("/", "/.", "/..")):
        text = posixpath.normpath(text)
    return text.casefold() if fold else text


def _at_home(name: str) -> str:
    """~/x and ~someone/x as paths; a name that only begins so, as it is."""
    try:
        return os.path.expanduser(name)
    except ValueError:  # a NUL in the name of someone
        return name


def _exactly(
    rows: np.ndarray, names: list[bytes], root: str | None, read: Names, count: int, usable: np.ndarray | None
) -> None:
    """Fill in the rows of names that are open, by what stands there letter by letter."""
    still = np.flatnonzero(rows < 0)
    if not len(still):
        return
    asked = [
        names[position] if root is None else os.path.join(os.fsencode(root), names[position]) for position in still
    ]
    wanted = pa.array(asked, pa.large_binary())
    for start, stop in chunks(count, _CHUNK):
        found = pc.index_in(pa.array(read(start, stop), pa.large_binary()), value_set=wanted)
        here = np.flatnonzero(pc.is_valid(found).to_numpy(zero_copy_only=False))
        if usable is not None:
            here = here[usable[start + here]]
        rows[still[found.take(pa.array(here)).to_numpy().astype(np.int64)]] = start + here
    first: dict[bytes, int] = {}
    for position, name in zip(still.tolist(), asked, strict=True):  # a name that is given twice
        rows[position] = rows[first.setdefault(name, position)]


def _as_read(
    rows: np.ndarray, names: list[bytes], roots: Sequence[str], read: Names, count: int, free: np.ndarray, *, fold: bool
) -> None:
    """The same by how names read; what would be several rows is none."""
    wanted: dict[str, list[int]] = defaultdict(list)
    for position in np.flatnonzero(rows < 0).tolist():
        readings = {spelled(names[position], fold=fold)}
        for root in roots:
            inside = os.path.join(os.fsencode(root), spelled(names[position]).encode())
            readings.add(spelled(inside, fold=fold))
        if roots:
            readings.add(spelled(_at_home(spelled(names[position])).encode(errors="surrogateescape"), fold=fold))
        for reading in readings - {""}:
            wanted[reading].append(position)
    if not wanted:
        return
    found: dict[int, set[int]] = defaultdict(set)
    for start, stop in chunks(count, _CHUNK):
        for row, name in enumerate(read(start, stop), start):
            for position in wanted.get(spelled(name, fold=fold), ()) if free[row] else ():
                found[position].add(row)
    for position, meant in found.items():
        if len(meant) == 1:
            rows[position] = meant.pop()
