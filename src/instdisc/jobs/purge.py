"""`instdisc index RUN --purge`: erase pictures from a run for good: rows, vectors, thumbnails, labels, tags, names.

Every file of the run folder that holds something of them is written again in RUN/purging/, and all are put in their
places as one: a kill leaves the run as it was, or `settle` ends the change. A receipt in RUN/purged/ says where what
was erased; it names no picture. What many pictures made together stays: weights, optimizer, the map to search vectors.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import ranks
from instdisc.data.sources.spelling import match
from instdisc.errors import InputError, counted
from instdisc.files import held, replace_together, write_json
from instdisc.jobs.collection import Collection
from instdisc.jobs.erasing import Erasing, erase_cached_pixels
from instdisc.jobs.index import changing
from instdisc.runs import RunFolder

Say = Callable[[str], None] | None


def purge(
    run: str | Path,
    names: Sequence[str],
    *,
    folders: Sequence[str | Path] = (".",),
    train_source: Any = None,
    say: Say = print,
) -> int:
    """Erase pictures from all of a run folder, and from the cache of pixels; how many. No picture file is touched.

    names: paths or ids, as the run has them or, with train_source, where they stand now; relative paths may begin in
        any of `folders`. Pictures that were removed from the collection before are found too.
    Raises InputError where none is meant, and for every picture of the run. Examples:

        purge("runs/mine", ["pictures/cat/00.jpg"])
    """
    if ranks.world() > 1:
        raise InputError("A purge is one process's work: start it without torchrun.")
    folder = RunFolder(run)
    folder.read_config()
    with ExitStack() as stack:
        stack.enter_context(held(folder.lock, "training there, or erasing"))
        stack.enter_context(changing(folder.path))
        if folder.growing.exists():
            raise InputError(
                f"{folder.growing} holds an addition that was interrupted: end it by "
                f"`instdisc train {folder.path} --add --resume`, or delete it."
            )
        collection = Collection(folder.path, train_source=train_source)
        if collection.given:
            raise InputError(
                f"The vectors of {folder.path} were made elsewhere: leave the pictures out of their file, then "
                "`instdisc open` it again and delete this folder."
            )
        rows = _rows_of(collection, names, folders, say)
        if not len(rows):
            before = ", unless it was erased before" if folder.purged.is_dir() else ""
            raise InputError(
                f"No picture of the run has one of these names{before}: `instdisc search` shows how they are called, "
                "and a list holds one a line."
            )
        _erase(collection, rows, say)
    return len(rows)


def _erase(collection: Collection, rows: np.ndarray, say: Say) -> None:
    folder = collection.folder
    if len(rows) == len(collection.index):
        raise InputError(f"That is every picture of the run: delete the folder {folder.path} instead.")
    shutil.rmtree(folder.purging, ignore_errors=True)
    folder.purging.mkdir()
    cached = erase_cached_pixels(collection, rows)
    work = Erasing(collection, rows)
    work.instances()
    work.config()
    work.features()
    work.checkpoints()
    work.index()
    work.thumbnails()
    work.plane()
    work.journal()
    work.sets()
    work.tables()
    now = datetime.now(UTC)
    receipt = {
        "pictures": len(rows),
        "date": now.isoformat(timespec="seconds"),
        "erased": work.erased | cached,
        "removed": sorted(path.relative_to(folder.path).as_posix() for path in work.drop),
        "kept": "weights of the encoder and of the objective, optimizer, the map to search vectors, metrics: many "
        "pictures made them together",
    }
    name = f"{now:%Y%m%dT%H%M%S}.{now.microsecond:06d}.json"
    write_json(folder.purging / folder.purged.name / name, receipt)
    replace_together(folder.path, folder.purging, work.drop)
    _tell(say, f"What was erased where is in {folder.purged / name}.")
    left = [path for path in work.locations if os.path.lexists(path)]
    if left:
        be = "is" if len(left) == 1 else "are"
        _tell(
            say,
            f"{counted(len(left), 'picture file')} of them {be} still there, the first is {os.fsdecode(left[0])}: "
            "delete what shall not come back, as by the next --add.",
        )


def _rows_of(collection: Collection, names: Sequence[str], folders: Sequence[str | Path], say: Say) -> np.ndarray:
    """The rows that are meant, ascending, those of removed pictures too."""
    index = collection.index
    rows = match([os.fsencode(name) for name in names], *index.names, len(index), folders=folders)
    if collection.moved_to is not None and (rows < 0).any():
        now = {collection.location(row): row for row in range(len(index))}
        rows = np.array([now.get(name, row) for name, row in zip(names, rows.tolist(), strict=True)])
    if (rows < 0).any() and (rows >= 0).any():
        lost = names[int(np.flatnonzero(rows < 0)[0])]
        _tell(say, f"{(rows < 0).sum():,} of the {len(names):,} are not in the run, the first is {lost}.")
    return np.unique(rows[rows >= 0])


def _tell(say: Say, words: str) -> None:
    if say is not None:
        say(words)
