"""Opening what a person named, remembering it in a run so that a later command finds it again, and looking at it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc.data.cache import fingerprint_of
from instdisc.data.decode import UnreadableError, decode
from instdisc.data.named import NAMES
from instdisc.data.source import Source, open_source
from instdisc.errors import InputError, is_shortage
from instdisc.runs import RunFolder

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


def describe_source(source: Any, labels: Any, split: str | None, limit: int | None) -> dict[str, Any]:
    """What config.json keeps of a source, so that `reopen` finds it; arrays can't be found again: `given` is null."""
    place = findable(source)
    by_name = isinstance(place, str) or (isinstance(place, list) and all(isinstance(part, str) for part in place))
    given = place if by_name else None
    kept_labels = _absolute(labels) if isinstance(labels, str | os.PathLike) else None
    return {"given": given, "labels": kept_labels, "split": split, "limit": limit}


def reopen(run: RunFolder, facts: Mapping[str, Any], moved_to: Any = None) -> Source:
    """The source that a run was trained on; InputError when it has changed or was never on disk.

    moved_to: where it is now, if it was moved, or the arrays in memory.
    """
    described = facts["source"]
    place = described["given"] if moved_to is None else findable(moved_to)
    if place is None:
        raise InputError(
            f"{run.path} was trained on arrays in memory, which can't be opened again: give them as train_source."
        )
    source = open_source(place, labels=described["labels"], split=described["split"], limit=described["limit"])
    check_unchanged(run, facts, source)
    return source


def check_unchanged(run: RunFolder, facts: Mapping[str, Any], source: Source) -> None:
    """Bank rows belong to pictures: InputError where the source has other pictures now than when it was trained on."""
    if fingerprint_of(source) != facts["data"]["fingerprint"]:
        raise InputError(
            f"{source.name} has other pictures now ({len(source):,}) than when {run.path} was trained on it "
            f"({facts['data']['rows']:,}): restore them, or start a new run."
        )


def read_instances(run: RunFolder) -> pa.Table:
    """instances.arrow: id, location and source row (int64) of the picture that each bank row belongs to, mapped.

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


def read_rows(run: RunFolder) -> np.ndarray:
    """instance -> row of the source, int64 (instances,): which picture each bank row belongs to."""
    return np.array(read_instances(run)["row"])


def findable(source: Any) -> Any:
    """Paths and patterns as a later command finds them from any folder; names of data sets, URLs, arrays as they are.

    A source must be opened so the first time too: the id of a picture file that is named by itself is its path.
    """
    if isinstance(source, str | os.PathLike):
        return _absolute(source)
    if isinstance(source, list | tuple) and source and all(isinstance(part, str | os.PathLike) for part in source):
        return [_absolute(part) for part in source]
    return source


def _absolute(place: Any) -> str:
    text = os.fspath(place)
    return text if text in NAMES or "://" in text else os.path.abspath(os.path.expanduser(text))


def read_paths(file: str | os.PathLike[str]) -> list[str]:
    """The paths that a text file lists, one a line; InputError where it can't be read."""
    try:
        lines = Path(file).read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{file} can't be read ({error.strerror}): give a text file with one path a line.") from None
    return [os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip()]
