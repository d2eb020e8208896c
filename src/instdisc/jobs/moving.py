"""A script that moves picture files into a folder beside their own. It deletes nothing and overwrites nothing.

    targets = beside(files, roots)
    write(moving_script(targets, "sh"))        # or "powershell"; bytes, to be run by whoever wants it

The library itself never moves a file: people read the script, and run it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath

from instdisc.errors import InputError, counted

SHELLS = {"sh": "move-pictures.sh", "powershell": "move-pictures.ps1"}
_QUOTES = "'\u2018\u2019\u201a\u201b"  # PowerShell ends a string at any of them

_SH = """#!/bin/sh
# {what}: run it by   sh move-pictures.sh
# Each is moved into a folder beside its own. Nothing is deleted, and nothing is overwritten.
moved=0
left=0
move() {{ # from, folder, to
  if [ ! -f "$1" ]; then
    printf 'Not there: %s\\n' "$1"
    left=$((left + 1))
  elif [ -e "$3" ] || [ -L "$3" ]; then
    printf 'Another file has this name: %s\\n' "$3"
    left=$((left + 1))
  elif mkdir -p -- "$2" && mv -- "$1" "$3"; then
    moved=$((moved + 1))
  else
    left=$((left + 1))
  fi
}}
{lines}
printf '%s moved, %s left where they are.\\n' "$moved" "$left"
"""
_POWERSHELL = """# {what}: run it by   powershell -ExecutionPolicy Bypass -File move-pictures.ps1
# Each is moved into a folder beside its own. Nothing is deleted, and nothing is overwritten.
$script:moved = 0
$script:left = 0
function Move-Picture($from, $folder, $to) {{
  try {{
    [void][IO.Directory]::CreateDirectory($folder)
    [IO.File]::Move($from, $to)  # refuses where a file is there already
    $script:moved += 1
  }} catch {{
    Write-Output ("Left: " + $from + ": " + $_.Exception.GetBaseException().Message)
    $script:left += 1
  }}
}}
{lines}
Write-Output ("{{0}} moved, {{1}} left where they are." -f $script:moved, $script:left)
"""


def beside(files: Sequence[str], roots: Sequence[str]) -> list[tuple[str, str]]:
    """(file, where it goes): below the folder of `roots` that it is in, renamed to NAME-removed; else its own folder.

    So what is moved leaves the collection's folders, and files of equal names stay apart. Paths become absolute.
    Examples:

        beside(["/photos/a/1.jpg"], ["/photos"])             # [("/photos/a/1.jpg", "/photos-removed/a/1.jpg")]
    """
    known = sorted({os.path.abspath(root) for root in roots}, key=len)
    found = []
    for file in map(os.path.abspath, files):
        inside = [root for root in known if PurePath(file).is_relative_to(root) and root != file]
        root = inside[0] if inside else os.path.dirname(file)
        held = root if os.path.basename(root) else os.path.join(root, "pictures")  # of a whole disk
        found.append((file, os.path.join(f"{held}-removed", os.path.relpath(file, root))))
    return found


def moving_script(targets: Sequence[tuple[str, str]], shell: str, *, others: int = 0) -> bytes:
    """The script for `sh` (POSIX) or `powershell`. others: pictures that are no files of their own, for a comment.

    Raises InputError where there is no file to move.
    """
    if not targets:
        raise InputError(
            "None of the chosen pictures is a file of its own, as those of a table: hide them from the collection."
        )
    what = f"Moves {counted(len(targets), 'picture')}"
    if others:
        what += f" (and leaves {others:,} that are no files of their own)"
    if shell == "sh":
        lines = (" ".join(["move", *map(_quoted, (one, os.path.dirname(to), to))]) for one, to in targets)
        return _SH.format(what=what, lines="\n".join(lines)).encode("utf-8", "surrogateescape")
    for file, _ in targets:
        try:
            file.encode()
        except UnicodeEncodeError:
            raise InputError(f"{file!r} is no name that PowerShell can be told: keep it, or rename it.") from None
    lines = (" ".join(["Move-Picture", *map(_doubled, (one, os.path.dirname(to), to))]) for one, to in targets)
    return b"\xef\xbb\xbf" + _POWERSHELL.format(what=what, lines="\n".join(lines)).encode()


def _quoted(text: str) -> str:
    """For sh: within single quotes nothing means anything but their end."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _doubled(text: str) -> str:
    """For PowerShell: within single quotes a doubled one stands for itself."""
    return "'" + "".join(2 * letter if letter in _QUOTES else letter for letter in text) + "'"
