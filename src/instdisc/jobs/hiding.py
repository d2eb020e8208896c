"""Pictures taken out of an open collection and put back, as `index --remove-list` does: no file is touched.

hide(collection, rows)             # grid, map, search and counts pass them over
show(collection, rows)

Only inside `index.changing`, which the caller holds: what is journaled beside it belongs to the same change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.jobs.index import write_marks
from instdisc.search.store import Changes, read_changes


def hide(collection: Collection, rows: Sequence[int] | np.ndarray) -> None:
    """Take rows out of the collection. Raises InputError where none would be left, or another command changed it."""
    now = _now(collection)
    _set(collection, now, np.union1d(now.removed, np.asarray(rows, np.int64)))


def show(collection: Collection, rows: Sequence[int] | np.ndarray) -> None:
    """Put rows back. Raises InputError where another command changed the collection meanwhile."""
    now = _now(collection)
    _set(collection, now, np.setdiff1d(now.removed, np.asarray(rows, np.int64)))


def hidden_rows(collection: Collection, paths: Sequence[str]) -> np.ndarray:
    """Those rows at these paths, as the index has them, that are out of the collection; ascending."""
    wanted = pa.array([path.encode("utf-8", "surrogateescape") for path in paths], pa.large_binary())
    found = pc.is_in(pc.cast(collection.index.pictures["location"], pa.large_binary()), value_set=wanted)
    return np.flatnonzero(found.to_numpy(zero_copy_only=False) & collection.index.removed)


def _now(collection: Collection) -> Changes:
    """What the disk has; InputError where it is not what was opened, but for hidden pictures and tags."""
    opened, now = collection.changes, read_changes(collection.folder.index)
    if now is None:
        now = Changes(collection.saved.step)
    if opened.vectors != now.vectors:
        raise InputError(
            "Another command has changed the collection since it was opened: start the server of the page again."
        )
    return now


def _set(collection: Collection, now: Changes, removed: np.ndarray) -> None:
    if len(removed) == len(collection.index):
        raise InputError("That is every picture of the collection: at least one has to stay.")
    written = write_marks(collection.folder, collection, replace(now, removed=removed))
    collection.changes = replace(collection.changes, removed=written.removed, tags=written.tags)
    gone = np.zeros(len(collection.index), dtype=bool)
    gone[removed] = True
    collection.index.removed[:] = gone
