"""Every change of the labels by hand with its inverse: RUN/labels/journal.jsonl, a line an act and a line an undo.

    act = write(folder, known | {path: ("cat", time)}, text="Labelled 1 picture “cat”")
    undo(folder, act.name)                     # RUN/labels/hand.csv is what it was, to the byte

The line is written before hand.csv is: no change is without its inverse. All of it only inside `index.changing`.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instdisc.errors import InputError, is_shortage
from instdisc.files import append_json, csv_text, read_json_lines, write_json, write_text
from instdisc.runs import RunFolder

COLUMNS = ("path", "label", "time")
Known = dict[str, tuple[str, str]]  # path -> (label, time), in the order of the file


@dataclass(frozen=True)
class Change:
    """Of one picture. before: (position among the lines, label, time), None: no label; after: (label, time) or None."""

    path: str
    before: tuple[int, str, str] | None
    after: tuple[str, str] | None


@dataclass(frozen=True)
class Act:
    """What was done at once. name: to undo it by. text: for people.

    bulk: whether its pictures were labelled together, without a look at each. file: hand.csv as it was, where
    that can't be told from the changes: "" for no file. classes: classes.json as it was, of a rename. time: when, in
    UTC; "" in journals of before.
    """

    name: str
    text: str
    bulk: bool
    changes: tuple[Change, ...]
    file: str | None = None
    classes: dict[str, Any] | None = None
    time: str = ""


@dataclass(frozen=True)
class Undone:
    """paths: whose label is what it was. kept: pictures that were labelled again since, and keep their label."""

    act: Act
    paths: tuple[str, ...]
    kept: int


def now() -> str:
    """The time in UTC, to the microsecond, so that acts of several journals have an order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def read(folder: RunFolder) -> Known:
    """hand.csv as it is now; empty where there is none. `Run.hand_labels` gives it to all others."""
    return parsed(_raw(folder.hand_labels), folder.hand_labels)


def parsed(text: str, path: Path) -> Known:
    """The lines of hand.csv; InputError where it is none."""
    try:
        return {line["path"]: (line["label"], line["time"]) for line in csv.DictReader(io.StringIO(text, newline=""))}
    except (KeyError, csv.Error) as error:
        raise InputError(f"{path} can't be read ({error}): restore the file, or delete it.") from None


def write(
    folder: RunFolder,
    after: Mapping[str, tuple[str, str]],
    *,
    text: str,
    bulk: bool = False,
    classes: dict[str, Any] | None = None,
) -> Act | None:
    """Write hand.csv with these lines; the act by which that can be undone, None where nothing changes."""
    file = folder.hand_labels
    raw = _raw(file)
    before = parsed(raw, file)
    positions = {path: position for position, path in enumerate(before)}
    changes = tuple(
        Change(path, (positions[path], *before[path]) if path in before else None, after.get(path))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    )
    if not changes and classes is None:
        return None
    plain = _text(before)
    act = Act(secrets.token_hex(6), text, bulk, changes, None if raw == plain else raw, classes, now())
    append_json(folder.journal, asdict(act))
    if changes:
        write_text(file, _text(after))
    return act


def undo(folder: RunFolder, name: str | None = None) -> Undone:
    """Take back an act, the last without a name: labels that were changed since stay.

    Raises InputError where there is none, or it was taken back before.
    """
    acts = still_done(folder)
    if not acts:
        raise InputError("There is nothing to undo.")
    found = next((act for act in acts if name is None or act.name == name), None)
    if found is None:
        raise InputError("This was undone already.")
    file = folder.hand_labels
    known = parsed(_raw(file), file)
    ours = [change for change in found.changes if known.get(change.path) == change.after]
    for change in ours:
        if change.before is None:
            del known[change.path]
        elif change.after is not None:
            known[change.path] = change.before[1:]
    lines = list(known.items())
    back = [(change.before, change.path) for change in ours if change.before is not None and change.after is None]
    for before, path in sorted(back):
        lines.insert(before[0], (path, before[1:]))
    if found.file is not None and list(parsed(found.file, file).items()) == lines:
        if found.file:
            write_text(file, found.file)
        else:
            file.unlink(missing_ok=True)
    elif ours:
        write_text(file, _text(dict(lines)))
    if found.classes is not None:
        write_json(folder.classes, found.classes)
    append_json(folder.journal, {"undo": found.name})  # the last: after a crash it can be undone again
    return Undone(found, tuple(change.path for change in ours), len(found.changes) - len(ours))


def still_done(folder: RunFolder) -> list[Act]:
    """The acts that were not undone, the last first."""
    acts: dict[str, Act] = {}
    for line in _lines(folder):
        if "undo" in line:
            acts.pop(line["undo"], None)
        else:
            acts[line["name"]] = _act(line)
    return list(reversed(acts.values()))


def labelled_together(folder: RunFolder, known: Known) -> set[str]:
    """The paths of the labels that were given to many pictures at once: they say little of the votes' accuracy."""
    given: dict[str, tuple[str, bool]] = {}
    for act in reversed(still_done(folder)):
        for change in act.changes:
            if change.after is None:
                given.pop(change.path, None)
            elif act.classes is None:  # where a class is renamed its pictures stay as they were labelled
                given[change.path] = change.after[1], act.bulk
    return {path for path, (time, bulk) in given.items() if bulk and path in known and known[path][1] == time}


def rewritten(folder: RunFolder, path_of: Callable[[str], str | None]) -> tuple[bytes, int] | None:
    """The journal with other paths, and how many changes that leaves out; None where nothing becomes different.

    path_of: of each path the one that takes its place, None where its picture goes. An act that knew hand.csv to the
    byte, with a path that is another now, no longer does: it is undone change by change.
    """
    lines, gone, different = [], 0, False
    for line in _lines(folder):
        before = line.get("changes", [])
        paths = [path_of(change["path"]) for change in before]
        changes = [change | {"path": path} for change, path in zip(before, paths, strict=True) if path is not None]
        if changes != before or _names_others(line.get("file"), path_of):
            gone, different = gone + len(before) - len(changes), True
            line = line | {"changes": changes, "file": None}
        lines.append(json.dumps(line).encode("ascii") + b"\n")
    return (b"".join(lines), gone) if different else None


def _names_others(file: str | None, path_of: Callable[[str], str | None]) -> bool:
    """Whether a hand.csv as it was has a path in it that is another now; or can't be read, so that nobody knows."""
    try:
        return any(path_of(cell) != cell for line in csv.reader(io.StringIO(file or "", newline="")) for cell in line)
    except csv.Error:
        return True


def _raw(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        if is_shortage(error):
            raise
        raise InputError(f"{file} can't be read ({error}): restore the file, or delete it.") from None


def _text(known: Mapping[str, tuple[str, str]]) -> str:
    return csv_text(COLUMNS, [(path, label, time) for path, (label, time) in known.items()])


def _lines(folder: RunFolder) -> list[dict[str, Any]]:
    needed = {"name", "text", "bulk", "changes"}
    return [line for line in read_json_lines(folder.journal) if "undo" in line or needed <= line.keys()]


def _act(line: dict[str, Any]) -> Act:
    def change(given: dict[str, Any]) -> Change:
        before, after = (given[name] and tuple(given[name]) for name in ("before", "after"))
        return Change(given["path"], before, after)

    changes: Sequence[Any] = line["changes"]
    more = (line.get("file"), line.get("classes"), line.get("time", ""))
    return Act(line["name"], line["text"], line["bulk"], tuple(map(change, changes)), *more)
