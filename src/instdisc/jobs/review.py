"""What was decided in a review: RUN/review/journal.jsonl, a line an act and a line an undo.

    act = decide(folder, "copies", {"a.jpg": "keep", "b.jpg": "remove"}, text="Kept 1 of 2 copies")
    undo(folder, act.name)                     # the decisions are those of before
    decided(folder)["copies"]                  # path -> choice, as it is now

A decision changes no picture and no file of a picture. To hide pictures is an act, too (jobs/hiding.py). All that
writes stands inside `index.changing`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from instdisc.errors import InputError
from instdisc.files import append_json, read_json_lines
from instdisc.jobs.journal import now
from instdisc.runs import RunFolder

KEEP, REMOVE = "keep", "remove"
GOING = ("copies", "look-alikes", "outliers", "unreadable")  # kinds in which a picture is kept, or marked for removal
KINDS = (*GOING, "labels")  # "labels": the choice is the label that stays
HIDDEN = "hidden"  # the kind of an act that hides pictures


@dataclass(frozen=True)
class Act:
    """What was decided at once. name: to undo it by; text: for people; choices: path -> choice, "" for none."""

    name: str
    text: str
    time: str
    kind: str
    choices: dict[str, str]


def decide(folder: RunFolder, kind: str, choices: Mapping[str, str], *, text: str) -> Act | None:
    """Write decisions down; None where they are so already. Only inside `index.changing`."""
    before = decided(folder).get(kind, {})
    new = {path: choice for path, choice in choices.items() if before.get(path, "") != choice}
    if not new:
        return None
    act = Act(secrets.token_hex(6), text, now(), kind, new)
    append_json(folder.review, asdict(act))
    return act


def undo(folder: RunFolder, name: str) -> Act:
    """Take an act back; decisions that were made since stay. Raises InputError where it was taken back before.

    Pictures that it hid are still hidden: `hiding.undo` shows them again first. Only inside `index.changing`.
    """
    found = next((act for act in still_done(folder) if act.name == name), None)
    if found is None:
        raise InputError("This was undone already.")
    append_json(folder.review, {"undo": name})
    return found


def still_done(folder: RunFolder) -> list[Act]:
    """The acts that were not undone, the last first."""
    acts: dict[str, Act] = {}
    for line in read_json_lines(folder.review):
        if "undo" in line:
            acts.pop(line["undo"], None)
        elif {"name", "text", "time", "kind", "choices"} <= line.keys():
            acts[line["name"]] = Act(*(line[name] for name in ("name", "text", "time", "kind", "choices")))
    return list(reversed(acts.values()))


def decided(folder: RunFolder) -> dict[str, dict[str, str]]:
    """kind -> path -> choice, for what is decided now."""
    found: dict[str, dict[str, str]] = {}
    for act in reversed(still_done(folder)):
        found.setdefault(act.kind, {}).update(act.choices)
    return {kind: {path: one for path, one in choices.items() if one} for kind, choices in found.items()}


def going(folder: RunFolder) -> dict[str, bool]:
    """path -> whether it is an unreadable file, of all that is marked for removal: the last decision counts."""
    last: dict[str, tuple[str, str]] = {}
    for act in reversed(still_done(folder)):
        if act.kind in GOING:
            last.update({path: (act.kind, choice) for path, choice in act.choices.items()})
    return {path: kind == "unreadable" for path, (kind, choice) in last.items() if choice == REMOVE}


def rewritten(folder: RunFolder, path_of: Callable[[str], str | None]) -> tuple[bytes, int] | None:
    """The journal with other paths, and how many decisions that leaves out; None where nothing becomes different.

    path_of: of each path the one that takes its place, None where its picture goes.
    """
    lines, gone, different = [], 0, False
    for line in read_json_lines(folder.review):
        before = line.get("choices", {})
        after = {new: choice for path, choice in before.items() if (new := path_of(path)) is not None}
        if after != before:
            gone, different = gone + len(before) - len(after), True
            line = line | {"choices": after}
        lines.append(json.dumps(line).encode("ascii") + b"\n")
    return (b"".join(lines), gone) if different else None
