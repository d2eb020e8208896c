"""What instdisc keeps under the user's cache folder. It can make or fetch all of it again: list it and clear it.

    for entry in kept():
        print(entry.kind, entry.name, entry.bytes, entry.used)
    freed = clear(older_days=30)

Clearing a store that a run reads is safe where files in use live on until they are closed (Linux, macOS); one that is
being filled is left alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instdisc.data.storage.scan import cache_folder
from instdisc.errors import InputError
from instdisc.files import is_locked

KINDS = {
    "pixels": "decoded pictures, made again by the next run",
    "index": "lists of files, made again by the next scan",
    "downloads": "files from URLs, fetched again when needed",
    "datasets": "cifar10 and others, fetched again when needed",
    "trials": "what torch.compile gave on this device, tried again when needed",
}


@dataclass(frozen=True)
class Kept:
    """One store. bytes: on the disk; used: seconds since 1970 of the last writing or, if the disk notes it, reading."""

    kind: str
    name: str
    path: Path
    bytes: int
    used: float


def kept(kinds: Sequence[str] = (), folder: Path | None = None) -> list[Kept]:
    """The stores of these kinds (all without) in the cache folder, the largest first; InputError for no such kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f'There is no kind of store "{kind}": choose from {", ".join(KINDS)}.')
    top = folder or cache_folder()
    found = []
    for kind in kinds or KINDS:
        for path in sorted((top / kind).iterdir()) if (top / kind).is_dir() else []:
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            facts = [file.stat() for file in files]
            used = max((max(fact.st_mtime, fact.st_atime) for fact in facts), default=path.stat().st_mtime)
            found.append(Kept(kind, path.name, path, sum(fact.st_size for fact in facts), used))
    return sorted(found, key=lambda entry: -entry.bytes)


def clear(kinds: Sequence[str] = (), older_days: float = 0.0, folder: Path | None = None) -> list[Kept]:
    """Delete the stores of these kinds (all without) that were not used for so many days; returns what was deleted."""
    if older_days < 0:
        raise InputError(f"A store was used {older_days:g} days ago or more: give a number of at least 0.")
    before = time.time() - 86_400 * older_days
    deleted = []
    for entry in kept(kinds, folder):
        if entry.used > before or being_filled(entry.path):
            continue
        try:
            shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink()
        except OSError as error:
            raise InputError(f"{entry.path} can't be deleted ({error.strerror}): delete it by hand.") from None
        deleted.append(entry)
    return deleted


def being_filled(path: Path) -> bool:
    """Whether a process holds the lock of the cache in this folder; no for a folder that is no cache."""
    return (path / "lock").is_file() and is_locked(path / "lock")
