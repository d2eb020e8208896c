"""Open a collection of pictures from what a person typed.

source = open_source("pictures/")                    # a folder, several, Parquet, tar shards, an array, "cifar10"
len(source), source.identifier(0), source.read(0)    # encoded bytes, an array or a PIL image
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instdisc.data.sources.arrow import LabelsError
from instdisc.data.sources.source import Source
from instdisc.data.storage.kinds import NOT_READ
from instdisc.errors import InputError


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
        array or tensor (n, h, w[, c]), a sequence of PIL images, arrays, bytes or paths, an array or column of paths,
        a table (pandas, polars, Arrow, a Hugging Face Dataset) with a column of pictures or paths, as `frame_of` finds
        them, or one of the names digits, cifar10, cifar100, stl10 (`./digits` is the folder).
    labels: a table (CSV or the like) with the columns path (or id) and label, or one label a picture; instead of those
        found inside.
    split: the part to open where there are several: a folder inside, files named for it, or a split of a known name.
    index_folder: where the index is written; the user's cache folder without it.
    limit: keep the first rows only.
    Raises InputError with a sentence for a person when there are no pictures there.

    Examples:
        >>> import numpy as np
        >>> from instdisc.data import open_source
        >>> source = open_source(np.zeros((3, 8, 8, 3), np.uint8), labels=["cat", "dog", "cat"])
        >>> len(source), source.identifier(2), source.label_names, source.labels
        (3, 'array#2', ['cat', 'dog'], array([0, 1, 0]))
    """
    from instdisc.data.sources.frames import frame_of  # which needs Arrow's forms; no command does

    frame = frame_of(source)
    place = source if frame is None else frame if frame.paths is None else frame.paths
    opened = _open(place, split, None if index_folder is None else Path(index_folder), limit)
    if len(opened) == 0:
        raise InputError(_nothing(opened))
    if labels is not None:
        opened.set_labels(labels)
    elif frame is not None and frame.paths is not None:
        try:
            lines = frame.label_lines(limit)
            if lines is not None:
                opened.set_labels(lines)
        except LabelsError as error:
            opened.choices = (*opened.choices, f"The labels of the {frame.name} are not used: {error}")
    return opened


def _nothing(opened: Source) -> str:
    """Why there are no pictures: the kinds that are not read say what to do about them."""
    notes = opened.skipped.notes(examples=False)
    if opened.skipped.counts.keys() & NOT_READ.keys():
        return f"{opened.name} holds no pictures that are read. {' '.join(notes)}"
    why = "; ".join(note.rstrip(".") for note in notes)
    words = f"{opened.name} holds no pictures ({why})" if why else f"{opened.name} holds no pictures"
    return f"{words}: give a folder, Parquet file, tar shard or array with some."


def _open(source: Any, split: str | None, index_folder: Path | None, limit: int | None) -> Source:
    # Imported here: no command needs them all.
    from instdisc.data.sources.arrays import open_array, open_sequence
    from instdisc.data.sources.builtin import NAMES, open_named
    from instdisc.data.sources.frames import Frame, open_frame
    from instdisc.data.sources.locations import open_places

    if isinstance(source, str) and source in NAMES:
        return open_named(source, split, limit)
    if isinstance(source, str | os.PathLike):
        return open_places([os.fspath(source)], split, index_folder, limit)
    if split is not None:
        raise InputError("split is for folders, files and known names: give the array or list of that part itself.")
    if isinstance(source, Frame):
        return open_frame(source, limit)
    names = names_in(source)
    if isinstance(source, Source):
        raise InputError("That is an opened source already: use it as it is.")
    if names:
        return open_places(names, split, index_folder, limit)
    if hasattr(source, "__array__") and hasattr(source, "ndim") and hasattr(source, "shape"):
        return open_array(source, limit)
    return open_sequence(source, limit)


def names_in(given: Any) -> list[str] | None:
    """The paths or URLs in a list, a NumPy array, a pandas or an Arrow column of them; None for anything else."""
    if isinstance(given, str | bytes | os.PathLike | Source):
        return None
    if hasattr(given, "to_pylist"):  # Arrow's
        given = given.to_pylist()
    elif hasattr(given, "__array__") and hasattr(given, "ndim") and getattr(given, "ndim", 0) == 1:
        values = np.asarray(given)
        given = values.tolist() if values.dtype.kind in "UO" else given
    if not isinstance(given, Sequence) or not given or not all(isinstance(one, str | os.PathLike) for one in given):
        return None
    return [os.fspath(one) for one in given]
