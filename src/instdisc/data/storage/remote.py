"""Where files stand: a local path or any fsspec URL (s3://, gs://, hf://, https://, memory://).

The sources ask four things of a location: does it match a pattern, how large and how new is it, give its bytes, give a
range of its bytes. Local paths never go through fsspec: the operating system answers in a tenth of the time.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from instdisc.data.storage.retries import LONG, retried
from instdisc.data.storage.scan import cache_folder
from instdisc.data.storage.urls import is_url, reason, without_query, without_secrets
from instdisc.errors import InputError, refusal

# Protocols whose fsspec driver is inside fsspec itself but stands on a package of another name.
_DRIVERS = {"http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko"}
_BUFFER = 4 << 20  # bytes fetched at once where a remote file is walked through
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path inside it. Raises InputError when its driver is not installed."""
    import fsspec
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _DRIVERS.get(protocol)
        if package is None:
            package = str(known_implementations.get(protocol, {}).get("class", protocol)).partition(".")[0]
        raise InputError(f"{url} needs a package that is not installed: pip install {package}.") from error
    except ValueError as error:
        raise InputError(f"{url}: {protocol}:// is not a protocol that fsspec knows; check how it is spelt.") from error
    return system, str(path)


def exists(location: str) -> bool:
    """Whether something stands there. One on the web that can't be asked (no network, no rights) counts as absent."""
    if not is_url(location):
        return os.path.lexists(location)
    system, path = filesystem(location)
    try:
        return bool(system.exists(path))
    except Exception:
        return False


def describe(location: str) -> tuple[int, int]:
    """Size in bytes (-1 where unknown) and a number that changes with the content (mtime in ns, or a hash of ETag).

    Raises InputError for a location that does not exist or cannot be reached.
    """
    if not is_url(location):
        try:
            status = os.stat(location)
        except OSError as error:
            sentence = f"{location} cannot be opened ({error.strerror}): check the path."
            raise InputError(refusal(error) or sentence) from error
        return status.st_size, status.st_mtime_ns
    system, path = filesystem(location)
    try:
        facts = retried(lambda: system.info(path), location)
    except Exception as error:
        raise InputError(
            f"{without_secrets(location)} cannot be reached ({reason(error)}): "
            "check the URL, your rights and the network."
        ) from error
    return size_of(facts), version_of(facts)


def size_of(facts: dict[str, Any]) -> int:
    """Bytes according to an fsspec listing, -1 where it does not say."""
    return -1 if facts.get("size") is None else int(facts["size"])


def version_of(facts: dict[str, Any]) -> int:
    """One number out of whatever an fsspec listing says about the age of a file; 0 where it says nothing."""
    keys = ("ETag", "etag", "blob_id", "oid", "md5", "Content-MD5", "mtime", "LastModified", "last_modified")
    told = [str(facts[key]) for key in (*keys, "Last-Modified", "updated", "created") if facts.get(key) is not None]
    digest = hashlib.blake2b("\n".join(told).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) if told else 0


def read_bytes(location: str) -> bytes:
    """The whole content. Raises OSError, or the driver's own error, when it cannot be had."""
    if not is_url(location):
        with open(location, "rb") as file:
            return file.read()
    system, path = filesystem(location)
    return cast(bytes, retried(lambda: system.cat_file(path), location))


def read_range(location: str, start: int, size: int) -> bytes:
    """`size` bytes from `start`; fewer only where the file ends earlier."""
    if not is_url(location):
        with open(
            location, "rb"
        ) as file:  # opened again each time: 15 µs, and nothing to share between forks and threads
            file.seek(start)
            return file.read(size)
    system, path = filesystem(location)
    return cast(bytes, retried(lambda: system.cat_file(path, start=start, end=start + size), location, LONG))


def open_file(location: str, size: int) -> io.BufferedIOBase:
    """A seekable file for reading, local or remote; a read that fails is retried.

    size: its bytes; -1 = unknown. Ask `seekable` first for a location on the web.
    """
    if not is_url(location):
        return open(location, "rb")
    if size < 0:
        system, path = filesystem(location)
        return cast(io.BufferedIOBase, system.open(path, "rb"))
    return io.BufferedReader(_Remote(location, size), _BUFFER)


class _Remote(io.RawIOBase):
    """A file somewhere else, in ranges. Only reading; a position of its own."""

    def __init__(self, location: str, size: int) -> None:
        self._place, self._size, self._at = location, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        content = read_range(self._place, self._at, count)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


@functools.lru_cache(maxsize=4096)  # asking a server costs a request
def seekable(location: str, size: int, version: int) -> str:
    """A location with the same bytes from which any range can be read: mostly the location itself.

    Some web servers (Python's own http.server is one) only send whole files. Such a file is copied once into the
    cache folder, and the copy's path is returned.
    """
    if not location.startswith(("http://", "https://")) or size == 0:
        return location
    name = hashlib.blake2b(f"{location}\n{size}\n{version}".encode(), digest_size=16).hexdigest()
    copy = cache_folder() / "downloads" / name
    if copy.exists():
        return str(copy)
    system, path = filesystem(location)

    def has_ranges() -> bool:
        with system.open(path, "rb", block_size=1 << 16) as file:
            if size < 0 or not hasattr(file, "seek"):
                return False
            file.seek(size - 1)  # from the end: a server without ranges refuses at once instead of sending it all
            file.read(1)
            return True

    with contextlib.suppress(ValueError, OSError):
        if retried(has_ranges, location, LONG):
            return location
    temporary = copy.with_name(f".{name}.{os.urandom(6).hex()}")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        retried(lambda: system.get_file(path, str(temporary)), location)
        os.replace(temporary, copy)
    except Exception as error:
        raise InputError(
            f"{location} could not be copied to {copy.parent} ({reason(error)}): download it first."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return str(copy)


def expand(pattern: str) -> list[str]:
    """The locations that a pattern stands for, sorted within each brace: `a-{000..009}.tar`, `{train,test}/*.parquet`.

    A text that names an existing local file is never a pattern. Raises InputError for a glob that matches nothing.
    """
    if not is_url(pattern) and os.path.lexists(pattern):
        return [pattern]
    found: list[str] = []
    for text in expand_braces(pattern):
        if not any(mark in text.partition("://")[2] if is_url(text) else mark in text for mark in "*[") and not (
            "?" in text and not text.startswith(("http://", "https://"))  # on the web a ? opens the query
        ):
            found.append(text)
            continue
        if is_url(text):
            system, path = filesystem(text)
            matches = sorted(str(system.unstrip_protocol(match)) for match in system.glob(path))
        else:
            matches = sorted(glob.glob(text, recursive=True))
        if not matches:
            raise InputError(f"Nothing matches {text}: check the folder and the pattern.")
        found += matches
    return found


def expand_braces(text: str) -> Iterator[str]:
    """Every text that `{a,b}` and `{000..009}` stand for, leftmost brace slowest; leading zeros are kept."""
    pieces = _BRACES.split(text)  # text, inside, text, inside, ..., text
    choices: list[list[str]] = []
    for position, piece in enumerate(pieces):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", piece) if position % 2 else None
        if numbers:
            first, last = numbers.groups()
            width = len(first) if first.startswith("0") else 0
            choices.append([f"{number:0{width}d}" for number in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(",") if position % 2 else [piece])
    return ("".join(parts) for parts in itertools.product(*choices))


def names_below(locations: Sequence[str]) -> list[str]:
    """The names of files below the deepest folder that holds all of them: `train/0.tar`, `test/0.tar`.

    Of a URL its path alone: a query (a signature, say) changes from day to day. It stays, less what is secret, where it
    tells files apart.
    """
    paths = [without_query(location) if is_url(location) else location for location in locations]
    locations = paths if len(set(paths)) == len(paths) else [without_secrets(location) for location in locations]
    levels = zip(*(location.split("/")[:-1] for location in locations), strict=False)
    shared = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))
    return ["/".join(location.split("/")[shared:]) for location in locations]
