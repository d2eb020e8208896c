"""The classes that people label by: their order, which gives each its key, and other names for them.

RUN/labels/classes.json     {"order": [...], "renamed": [...]}; renamed: names that are not offered any more
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from instdisc.errors import InputError, counted
from instdisc.files import read_json, write_json
from instdisc.jobs import journal
from instdisc.runs import RunFolder


def listed(folder: RunFolder, of_folders: Iterable[str], given: Iterable[str]) -> list[str]:
    """The classes in their order: those that were kept, then the folders' own, then others that were given by hand."""
    stored, used = _read(folder), set(given)
    offered = [name for name in of_folders if name not in stored["renamed"]]
    return list(dict.fromkeys([*stored["order"], *offered, *sorted(used)]))


def keep(folder: RunFolder, names: Iterable[str]) -> None:
    """From now on the classes stand in this order. Only inside `index.changing`."""
    stored = _read(folder)
    order = list(dict.fromkeys(names))
    if order != stored["order"]:
        write_json(folder.classes, stored | {"order": order})


def rename(folder: RunFolder, old: str, new: str, names: Iterable[str]) -> journal.Act:
    """Give a class another name, or the name of another class, which merges them; the act to undo.

    names: the classes in their order. Labels keep their time. Raises InputError where no picture has the class by
    hand. Only inside `index.changing`.
    """
    known = journal.read(folder)
    own = [path for path, (label, _) in known.items() if label == old]
    if not own:
        raise InputError(f'No picture is labelled "{old}" by hand: only such classes can be renamed.')
    if old == new:
        raise InputError(f'The class is named "{new}" already: choose another name.')
    merged = any(label == new for label, _ in known.values())
    text = f"Merged “{old}” into “{new}”" if merged else f"Renamed “{old}” to “{new}”"
    stored = _read(folder)
    order = list(names)
    after = dict.fromkeys(name for name in (new if name == old and new not in order else name for name in order))
    after.pop(old, None)
    act = journal.write(
        folder,
        {path: (new if label == old else label, time) for path, (label, time) in known.items()},
        text=f"{text} ({counted(len(own), 'picture')})",
        classes=stored,
    )
    renamed = dict.fromkeys([*(name for name in stored["renamed"] if name != new), old])
    write_json(folder.classes, {"order": list(after), "renamed": list(renamed)})
    assert act is not None
    return act


def _read(folder: RunFolder) -> dict[str, Any]:
    found = read_json(folder.classes) if folder.classes.is_file() else {}
    stored = {name: found.get(name, []) for name in ("order", "renamed")}
    if not all(isinstance(names, list) and all(isinstance(one, str) for one in names) for names in stored.values()):
        raise InputError(f"{folder.classes} is damaged: delete it, and the classes stand in the order of their names.")
    return stored
