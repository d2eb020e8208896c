"""Which files a folder holds: their names, sizes and dates, one at a time; a local folder or one at a URL.

Folders that belong to a system, to a program or to a run of ours are not looked into; they are told like files.

Names are bytes throughout: on most systems a file name is any bytes without / and NUL, and one that is not UTF-8 must
come out of the index as it went in.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from instdisc.data.storage.kinds import kind_of_folder, kind_of_name
from instdisc.data.storage.remote import filesystem, size_of, version_of
from instdisc.data.storage.retries import retried
from instdisc.data.storage.urls import is_url, reason
from instdisc.errors import InputError, is_shortage, refusal

_MOST_CONFIG = 2**20  # bytes of a config.json that may be a run's


class Entry(NamedTuple):
    """A file, or a folder that is not looked into. path: below the root. kind: see `kinds.py`; None: not told yet."""

    path: bytes
    size: int  # bytes; -1 where nobody says
    version: int  # mtime in ns, or a hash of what a server tells
    kind: str | None
    node: int = 0  # the same for all names of one file
    link: bool = False  # one of several names of a file, or a symbolic link to it


Listed = Iterator[Entry]


def short_names(roots: Sequence[str]) -> list[str]:
    """The last part of each root, with as many parts before it as make all of them different.

    Raises InputError when one root lies inside another: its pictures would count twice.
    """
    real = [root if is_url(root) else os.path.realpath(root) for root in roots]
    for own, inner in enumerate(real):
        for other, outer in enumerate(real):
            if own != other and (inner + "/").startswith(outer.rstrip("/") + "/"):
                raise InputError(f"{roots[own]} is in {roots[other]}, or the same: give each folder once.")
    parts = [root.strip("/").split("/") for root in roots]
    depth = 1
    while len({tuple(part[-depth:]) for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def list_local(root: bytes) -> Listed:
    """Every regular file below a folder, and the folders that are left out: hidden ones, a system's, run folders.

    Real folders first. Then linked ones, each real folder at most once, so that no loop of links can be walked and a
    picture has one id: the real path if there is one, else that through the first link by name.
    """
    walked: list[bytes] = []  # real paths of the tops of what was walked
    pruned: list[bytes] = []  # and of the folders in them that were left out by name: a link may lead there
    links: list[bytes] = []
    waiting = [(root, b"")]
    try:
        os.scandir(root).close()
    except OSError as error:
        sentence = f"{os.fsdecode(root)} cannot be opened ({error.strerror}): check the path."
        raise InputError(refusal(error) or sentence) from error
    while waiting:
        top, below_top = waiting.pop()
        real_top = os.path.realpath(top)
        if _is_below(real_top, walked) and not _is_below(real_top, pruned):
            yield Entry(below_top, -1, 0, "link")
            continue
        skip = set(walked)
        folders = [below_top]
        while folders:
            below = folders.pop()
            here = os.path.join(root, below) if below else root
            if skip and real_top + here[len(top) :] in skip:
                yield Entry(below, -1, 0, "link")
                continue
            if below and (kind := _left_out(here)) is not None:
                pruned.append(real_top + here[len(top) :])
                yield Entry(below, -1, 0, kind)
                continue
            yield from _list_folder(here, below, folders, links)
        walked.append(real_top)
        if not waiting:
            links.sort(reverse=True)
            waiting = [(os.path.join(root, link), link) for link in links]
            links = []


def _is_below(path: bytes, folders: Sequence[bytes]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip(b"/") + b"/") for folder in folders)


def _left_out(folder: bytes) -> str | None:
    """Why a folder is not looked into: by its name, or since a run stands in it; None for one that is."""
    kind = kind_of_folder(os.path.basename(folder))
    config = os.path.join(folder, b"config.json")
    if kind is None and os.path.isfile(config):
        try:
            with open(config, "rb") as file:
                return "ours" if is_run(file.read(_MOST_CONFIG)) else None
        except OSError as error:
            if is_shortage(error):
                raise
    return kind


def is_run(config: bytes) -> bool:
    """Whether that is the content of a run folder's config.json, and not that of some other program."""
    if b'"instdisc"' not in config:
        return False
    try:
        facts = json.loads(config)
    except ValueError:
        return False
    return isinstance(facts, dict) and {"format", "instdisc", "settings"} <= facts.keys()


def _list_folder(here: bytes, below: bytes, folders: list[bytes], links: list[bytes]) -> Listed:
    """The files of one folder; its folders and links to folders are put into the lists."""
    try:
        entries = os.scandir(here)
    except OSError as error:
        if is_shortage(error):
            raise
        yield Entry(below, -1, 0, "unopened")
        return
    with entries:
        for entry in entries:
            path = below + b"/" + entry.name if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # is_dir() raises on a link to itself
                links.append(path)
            else:
                yield _described(entry, path)


def _described(entry: os.DirEntry[bytes], path: bytes) -> Entry:
    """A file with its facts; what is no file (a pipe would block whoever opens it) is of the kind "other"."""
    kind = kind_of_name(entry.name)
    try:
        status = entry.stat()
    except OSError:  # a link into nothing: if it is called a picture, it is one that cannot be read
        return Entry(path, -1, 0, "other" if kind is None else kind)
    if not stat.S_ISREG(status.st_mode):
        return Entry(path, -1, 0, "other")
    link = status.st_nlink > 1 or entry.is_symlink()
    return Entry(path, status.st_size, status.st_mtime_ns, kind, hash((status.st_dev, status.st_ino)), link)


def list_remote(root: str) -> Listed:
    """The same below a URL, by names alone: a request a file would take hours. One request a folder."""
    system, top = filesystem(root)
    system.invalidate_cache()
    top = top.rstrip("/")
    folders, seen = [top], {top}
    while folders:
        folder = folders.pop()
        try:
            # A web server lists a folder under the name with the slash, and some know no other.
            asked = folder + "/" if root.startswith(("http://", "https://")) else folder
            listing = retried(functools.partial(system.ls, asked, detail=True), root)
        except Exception as error:
            if folder == top:
                raise InputError(
                    f"{root} cannot be listed ({reason(error)}): check the URL and the network."
                ) from error
            yield Entry(os.fsencode(folder[len(top) + 1 :]), -1, 0, "unopened")
            continue
        if folder != top and _holds_run(system, listing, root):
            yield Entry(os.fsencode(folder[len(top) + 1 :]), -1, 0, "ours")
            continue
        for facts in listing:
            path = str(facts["name"]).rstrip("/")
            name = os.fsencode(path.rpartition("/")[2])
            if not path.startswith(top + "/") or name.startswith((b"?", b"#")) or path == folder:
                continue  # links to elsewhere, and the sorting links of a web server's listing
            below = os.fsencode(path[len(top) + 1 :])
            if facts["type"] != "directory":
                by_name = kind_of_name(name)
                yield Entry(below, size_of(facts), version_of(facts), "other" if by_name is None else by_name)
            elif (kind := kind_of_folder(name)) is not None:
                yield Entry(below, -1, 0, kind)
            elif path not in seen:
                seen.add(path)
                folders.append(path)


def _holds_run(system: Any, listing: Sequence[dict[str, Any]], root: str) -> bool:
    paths = (str(facts["name"]) for facts in listing if size_of(facts) < _MOST_CONFIG)
    config = next((path for path in paths if path.rpartition("/")[2] == "config.json"), None)
    if config is None:
        return False
    try:
        return is_run(retried(lambda: system.cat_file(config), root))
    except Exception:  # each driver has errors of its own: then it is not known to be one
        return False
