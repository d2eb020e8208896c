"""Sets of pictures with a name: RUN/sets/NAME.json, a frozen list of ids with where it came from.

    keep(folder, "parachutes", ids, "Search: similar to 3 pictures")
    kept = load(folder, "parachutes")          # kept.ids; kept.origin; kept.made
    names(folder); forget(folder, "parachutes")

Pictures that have gone since stay in the list; whoever shows it passes them over. This file must not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from instdisc.errors import InputError
from instdisc.files import read_json, sync_folder, write_json
from instdisc.jobs.journal import now
from instdisc.runs import RunFolder

_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")


@dataclass(frozen=True)
class Kept:
    """ids: of its pictures, as the collection calls them. origin: where they were picked; made: when, in UTC."""

    ids: list[str]
    origin: str
    made: str


def path_of(folder: RunFolder, name: str) -> Path:
    """The file of a set, whether it exists or not. Raises InputError where the name is invalid."""
    if not _NAME.fullmatch(name):
        raise InputError("Invalid name of a set: use at most 60 letters (a to z), digits, - and _.")
    return folder.sets / f"{name}.json"


def names(folder: RunFolder) -> list[str]:
    """The names of the sets, in order."""
    return sorted(file.stem for file in folder.sets.glob("*.json") if _NAME.fullmatch(file.stem))


def load(folder: RunFolder, name: str) -> Kept:
    """A set. Raises InputError where there is none of this name, or its file is damaged."""
    file = path_of(folder, name)
    if not file.is_file():
        there = ", ".join(names(folder)) or "none at all"
        raise InputError(f"There is no set “{name}”; there are: {there}.")
    found = read_json(file)
    ids, origin, made = (found.get(key) for key in ("ids", "origin", "made"))
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in [*ids, origin, made]):
        raise InputError(f"{file} is damaged: restore it, or delete it.")
    return Kept(ids, str(origin), str(made))


def keep(folder: RunFolder, name: str, ids: Sequence[str], origin: str) -> None:
    """Write a set, in the place of one that has this name. Only inside `index.changing`.

    Raises InputError where the name is invalid, or the disk can't be written. Examples:

        keep(RunFolder("runs/mine"), "parachutes", ["sky/01.jpg", "sky/07.jpg"], "Search")
    """
    write_json(path_of(folder, name), {"made": now(), "origin": origin, "ids": list(ids)})


def forget(folder: RunFolder, name: str) -> None:
    """Delete a set; its pictures stay. Only inside `index.changing`. Raises InputError where there is none."""
    load(folder, name)
    path_of(folder, name).unlink(missing_ok=True)
    sync_folder(folder.sets)


def rewritten(
    folder: RunFolder, gone: Callable[[str], bool], told: Callable[[str], bool]
) -> dict[str, tuple[Kept, int]]:
    """name -> (the set without the ids that are gone, how many went), of the sets that change.

    told: whether a text names one that is gone; such an origin becomes empty.
    """
    changed = {}
    for name in names(folder):
        kept = load(folder, name)
        ids = [one for one in kept.ids if not gone(one)]
        origin = "" if told(kept.origin) else kept.origin
        if (ids, origin) != (kept.ids, kept.origin):
            changed[name] = Kept(ids, origin, kept.made), len(kept.ids) - len(ids)
    return changed
