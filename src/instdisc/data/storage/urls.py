"""URLs as text: which location is one, what of it may be kept and shown, and why a server could not be asked."""

from __future__ import annotations

import errno
import http
import re
import socket

_PASSWORD = re.compile(r"(\w://[^/:@\s]*):[^@/\s]*@")  # me:secret@host
_QUERY = re.compile(r"\?.*?(?=::|$)")
_SECRET = re.compile(r"[?&][\w-]*(amz|goog|sig|token|key|credential|secret|passw|auth|expires|policy)", re.IGNORECASE)
_URL = re.compile(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(location: str) -> bool:
    """Whether fsspec has to be asked (`memory://x`, `simplecache::s3://b`), and not the local file system.

    `std::vector.jpg` and `a/b://c` are names on a disk: a URL begins with the name of a protocol, or of several.
    """
    return _URL.match(location) is not None


def without_query(url: str) -> str:
    """A URL's path alone: a query (a signature, say) changes from day to day."""
    return _QUERY.sub("", url)


def without_secrets(location: str) -> str:
    """A URL without its password, and without its query where that is a signature: what may be kept and shown."""
    return _redacted(location) if is_url(location) else location


def _redacted(text: str) -> str:
    text = _PASSWORD.sub(r"\1@", text)
    return _QUERY.sub(lambda query: "" if _SECRET.search(query[0]) else query[0], text)


def reason(error: Exception) -> str:
    """An error in a few words: what the server answered, if it did."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:  # fsspec's own text is but the URL
        causes.append(cause)
    for one in causes:
        status = getattr(one, "status", None)
        if isinstance(status, int) and status in set(http.HTTPStatus):
            return f"it answers {status}, {http.HTTPStatus(status).phrase}"
        if isinstance(one, OSError) and one.errno == errno.ECONNREFUSED:
            return "the connection is refused"
        if isinstance(one, socket.gaierror):
            return "no host of that name is found"
    if isinstance(error, FileNotFoundError) and error.errno is None:  # fsspec's, for a server's 404
        return "nothing is found there"
    return (_redacted(str(error).split("\n")[0]) or type(error).__name__)[:200]
