"""Which files a folder holds: their names, sizes and dates, one at a time; a local folder or one at a URL.

Names are bytes throughout: on most systems a file name is any bytes without / and NUL, and one that is not UTF-8 must
come out of the index as it went in.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator, Sequence

from instdisc.data.patience import patiently
from instdisc.data.places import filesystem, is_url, reason, size_of, version_of
from instdisc.errors import InputError, is_shortage, refusal

Listed = Iterator[tuple[bytes, int, int]]  # path below the root, size in bytes, version (mtime in ns)

_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
_PICTURE_NAMES = tuple(ending.encode() for ending in _ENDINGS)


def has_picture_name(name: bytes) -> bool:
    """Whether a name ends as those of pictures do."""
    return name.lower().endswith(_PICTURE_NAMES)


def is_picture(head: bytes) -> bool:
    """Whether the first 32 bytes are those of a JPEG, PNG, WebP, GIF, BMP or TIFF."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")):
        return True
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    # "BM" begins many a text; the length of the second header of a bitmap is one of few.
    return head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124)


def short_names(roots: Sequence[str]) -> list[str]:
    """The last part of each root, with as many parts before it as make all of them different.

    Raises InputError when one root lies inside another: its pictures would count twice.
    """
    real = [root if is_url(root) else os.path.realpath(root) for root in roots]
    for place, inner in enumerate(real):
        for other, outer in enumerate(real):
            if place != other and (inner + "/").startswith(outer.rstrip("/") + "/"):
                raise InputError(f"{roots[place]} is in {roots[other]}, or the same: give each folder once.")
    parts = [root.strip("/").split("/") for root in roots]
    depth = 1
    while len({tuple(part[-depth:]) for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def list_local(root: bytes, unopened: list[bytes]) -> Listed:
    """Every regular file below a folder whose name does not begin with a dot, hidden folders left out.

    Real folders first. Then linked ones, each real folder at most once, so that no loop of links can be walked and a
    picture has one id: the real path if there is one, else that through the first link by name.
    """
    walked: list[bytes] = []  # real paths of the tops of what was walked
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
        if any(real_top == seen or real_top.startswith(seen.rstrip(b"/") + b"/") for seen in walked):
            continue
        skip = set(walked)
        folders = [below_top]
        while folders:
            below = folders.pop()
            here = os.path.join(root, below) if below else root
            if skip and real_top + here[len(top) :] in skip:
                continue
            try:
                entries = os.scandir(here)
            except OSError as error:
                if is_shortage(error):
                    raise
                unopened.append(below)
                continue
            with entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        continue
                    path = below + b"/" + entry.name if below else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif entry.is_symlink() and os.path.isdir(entry.path):  # is_dir() raises on a link to itself
                        links.append(path)
                    elif (facts := _stat(entry)) is not None:
                        yield path, *facts
        walked.append(real_top)
        if not waiting:
            links.sort(reverse=True)
            waiting = [(os.path.join(root, link), link) for link in links]
            links = []


def _stat(entry: os.DirEntry[bytes]) -> tuple[int, int] | None:
    """Size and mtime of a regular file; None for what is no file (a pipe would block whoever opens it)."""
    try:
        status = entry.stat()
    except OSError:  # a link into nothing: if it is called a picture, it is one that cannot be read
        return (-1, 0) if has_picture_name(entry.name) else None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def list_remote(root: str, unopened: list[bytes]) -> Listed:
    """Every file below a URL whose name does not begin with a dot. One request a folder."""
    system, top = filesystem(root)
    system.invalidate_cache()
    top = top.rstrip("/")
    folders, seen = [top], {top}
    while folders:
        folder = folders.pop()
        try:
            # A web server lists a folder under the name with the slash, and some know no other.
            asked = folder + "/" if root.startswith(("http://", "https://")) else folder
            listing = patiently(functools.partial(system.ls, asked, detail=True), root)
        except Exception as error:
            if folder == top:
                raise InputError(
                    f"{root} cannot be listed ({reason(error)}): check the URL and the network."
                ) from error
            unopened.append(folder.encode())
            continue
        for facts in listing:
            path = str(facts["name"]).rstrip("/")
            name = path.rpartition("/")[2]
            if not path.startswith(top + "/") or name.startswith((".", "?", "#")) or path == folder:
                continue  # links to elsewhere, and the sorting links of a web server's listing
            if facts["type"] == "directory":
                if path not in seen:
                    seen.add(path)
                    folders.append(path)
            else:
                yield os.fsencode(path[len(top) + 1 :]), size_of(facts), version_of(facts)
