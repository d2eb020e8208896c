"""Opening what a person named, remembering it in a run so that a later command finds it again, and looking at it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.builtin import NAMES
from instdisc.data.sources.frames import Frame, frame_of
from instdisc.data.sources.gathered import Gathered
from instdisc.data.sources.open import names_in
from instdisc.data.sources.source import Source
from instdisc.data.sources.tables import read_lines
from instdisc.data.storage.urls import without_secrets
from instdisc.errors import InputError, is_shortage
from instdisc.files import write_arrow
from instdisc.runs import GIVEN_LABELS, RunFolder

_LOOKED_AT = 32  # pictures decoded to learn their usual size
_NONE = type(None)
_KINDS: tuple[tuple[str, str, tuple[type, ...]], ...] = (  # section of config.json, name, what it may be
    ("source", "given", (str, list, _NONE)),
    ("source", "labels", (str, _NONE)),
    ("source", "split", (str, _NONE)),
    ("source", "limit", (int, _NONE)),
    ("data", "rows", (int,)),
    ("data", "readable", (int,)),
    ("data", "fingerprint", (str,)),
    ("encoder", "dim", (int,)),
    ("chosen", "device", (str,)),
    ("chosen", "device_name", (str,)),
    ("chosen", "precision", (str,)),
    ("chosen", "storage", (str,)),
)


@dataclass(frozen=True)
class Look:
    """What a few pictures show. side: median shorter side in pixels; unreadable: how many of `looked` are so."""

    side: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    looked: int
    unreadable: int

    @property
    def sizes(self) -> str:
        """The smallest and the largest, width × height, in words."""
        low, high = (f"{width}×{height}" for width, height in (self.smallest, self.largest))
        return f"{low} px" if low == high else f"{low} to {high} px"


def look_at(source: Source) -> Look:
    """Decode a few pictures, spread evenly over the source."""
    rows = np.unique(np.linspace(0, len(source) - 1, _LOOKED_AT).astype(int))
    sizes: list[tuple[int, int]] = []
    reasons: list[str] = []
    for row, content in source.iterate(rows):
        try:
            if isinstance(content, UnreadableError):
                raise content
            height, width = decode(content).shape[:2]
        except UnreadableError as error:
            reasons.append(f"{source.location(row)}: {error.reason}")
            continue
        sizes.append((width, height))
    if not sizes:
        raise InputError(
            f"None of the {len(rows)} pictures tried in {source.name} can be read: is it the right place? The first, "
            f"{reasons[0]}."
            if len(rows) > 1
            else f"The only picture can't be read: {reasons[0]}."
        )
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    side = int(np.median([min(size) for size in sizes]))
    return Look(side, by_area[0], by_area[-1], len(rows), len(rows) - len(sizes))


def read_facts(run: RunFolder) -> dict[str, Any]:
    """The run's config.json with all the sections that `train` writes; InputError where one is missing."""
    facts = run.read_config()
    sections = ("source", "data", "settings", "encoder", "chosen")
    missing = [name for name in sections if not isinstance(facts.get(name), dict)]
    if missing:
        raise InputError(f"{run.config} lacks {', '.join(missing)}: the run folder is damaged, or of something else.")
    for section, name, kinds in _KINDS:
        held = facts[section].get(name, ...)
        if not isinstance(held, kinds) or isinstance(held, bool):
            raise InputError(f"{run.config} has no {name} of {section} that could be: the run folder is damaged.")
    return facts


def describe_source(
    source: Any, labels: Any, split: str | None, limit: int | None, *, beginning: bool = False
) -> dict[str, Any]:
    """What config.json keeps of a source, so that `reopen` finds it; arrays can't be found again: `given` is null.

    beginning: of a run that begins, which keeps labels that are no file in one of its own, GIVEN_LABELS.
    """
    location = findable(source)
    if isinstance(location, Frame):
        labels, location = location.labels if labels is None else labels, location.paths
    by_name = isinstance(location, str) or (
        isinstance(location, list) and all(isinstance(part, str) for part in location)
    )
    given = None
    if by_name:
        given = without_secrets(location) if isinstance(location, str) else [without_secrets(part) for part in location]
    kept_labels = _absolute(labels) if isinstance(labels, str | os.PathLike) else None
    if beginning and by_name and labels is not None and kept_labels is None:
        kept_labels = GIVEN_LABELS
    return {"given": given, "labels": kept_labels, "split": split, "limit": limit}


def has_no_encoder(facts: Mapping[str, Any]) -> bool:
    """Whether the vectors of a run were made elsewhere, of its config.json."""
    return facts["encoder"].get("backbone", "") is None


def stamps_of(source: Source, rows: np.ndarray) -> Int[np.ndarray, "rows 2"] | None:
    """`Source.stamps` of some rows; -1 for a row that is -1, as of a picture that has gone."""
    found = source.stamps()
    return None if found is None else np.where(rows[:, None] < 0, -1, found[rows])


def stamps_in(instances: pa.Table) -> Int[np.ndarray, "rows 2"] | None:
    """The stamps that instances.arrow has of its pictures; None in a run of a version that noted none."""
    if not {"size", "date"} <= set(instances.column_names):
        return None
    return np.stack([instances["size"].to_numpy(), instances["date"].to_numpy()], axis=1)


def changed_rows(
    before: Int[np.ndarray, "rows 2"] | None, now: Int[np.ndarray, "rows 2"] | None
) -> Int[np.ndarray, " changed"]:
    """The locations where files have another size or date; sizes alone count where all dates differ, as in a copy."""
    if before is None or now is None or before.shape != now.shape:
        return np.zeros(0, np.int64)
    known = (before[:, 0] >= 0) & (now[:, 0] >= 0)
    sizes, dates = (before != now).T & known
    return np.flatnonzero(sizes if dates[known].all() else sizes | dates)


def read_instances(run: RunFolder) -> pa.Table:
    """instances.arrow: id, location and source row (int64) of the picture that each bank row belongs to, mapped.

    Of a run that grew, part (int64) is the number of the source, own_id the id there, and row a number of its own.
    All that it says is checked before it is used: Arrow follows offsets out of a file into a crash.
    """
    try:
        with pa.memory_map(os.fsencode(run.instances)) as file:
            table = pa.ipc.open_file(file).read_all()
        table.validate(full=True)
        rows = table["row"]
        if rows.type != pa.int64() or rows.null_count or (len(rows) and pc.min(rows).as_py() < 0):
            raise ValueError("its rows are no numbers of pictures")
        return table
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        if is_shortage(error):
            raise
        raise InputError(f"{run.instances} can't be read ({error}): the run folder is damaged.") from None


def write_instances(run: RunFolder, source: Source, rows: np.ndarray) -> None:
    """instances.arrow, for these rows of the source; InputError where it can't be written."""
    table = source.fetch_table().take(pa.array(rows)).append_column("row", pa.array(rows))
    if isinstance(source, Gathered):
        table = table.append_column("part", pa.array(source.part[rows]))
        table = table.append_column("own_id", source.known.own.take(pa.array(rows)))
    stamps = stamps_of(source, rows)
    if stamps is not None:
        for name, values in zip(("size", "date"), stamps.T, strict=True):
            table = table.append_column(name, pa.array(values))
    write_arrow(run.instances, table)


def changed_since(instances: pa.Table, source: Source, rows: np.ndarray) -> list[str]:
    """A sentence on the pictures whose files have changed since a run began; none where nothing is known to have."""
    changed = changed_rows(stamps_in(instances), stamps_of(source, rows))
    if not len(changed):
        return []
    return [
        f"Changed: {len(changed):,} of the {len(rows):,} pictures {'has' if len(changed) == 1 else 'have'} another "
        f"size or date than when the run began, the first is {source.location(int(rows[changed[0]]))}. "
        "The run goes on with what is there now."
    ]


def log_lines(say: Callable[[str], None] | None, sentences: Iterable[str]) -> None:
    """Log each, unless nobody listens."""
    if say is not None:
        for sentence in sentences:
            say(sentence)


def check_instances(run: RunFolder, before: np.ndarray, rows: np.ndarray) -> None:
    """Bank row i is picture i of instances.arrow: a picture more or less that can be read would move all after it.

    before, rows: the rows of the source that instances.arrow names, and those that can be read now.
    """
    if not np.array_equal(before, rows):
        raise InputError(
            f"{len(rows):,} pictures can be read now and {len(before):,} when {run.path} was started, or others: "
            f"restore them, or start a new run. `instdisc train {run.path} --add --epochs 5` goes on without them."
        )


def findable(source: Any) -> Any:
    """Paths and patterns as a later command finds them from any folder; names of data sets, URLs, arrays as they are.

    A source must be opened so the first time too: the id of a picture file that is named by itself is its path.
    """
    if isinstance(source, str | os.PathLike):
        return _absolute(source)
    frame = frame_of(source)
    if frame is not None:
        return frame if frame.paths is None else replace(frame, paths=[_absolute(path) for path in frame.paths])
    names = names_in(source)
    return source if names is None else [_absolute(name) for name in names]


def _absolute(location: Any) -> str:
    text = os.fspath(location)
    return text if text in NAMES or "://" in text else os.path.abspath(os.path.expanduser(text))


def read_paths(file: str | os.PathLike[str]) -> list[str]:
    """The paths that a text file lists, one a line, or in a table's column path; InputError where it can't be read."""
    return [os.fsdecode(line) for line in read_lines(Path(file))]
