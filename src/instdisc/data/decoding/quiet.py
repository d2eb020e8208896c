"""Decoders that speak up only by their results: neither warnings nor lines of a C library while a picture is read."""

from __future__ import annotations

import ctypes
import re
import threading
import warnings

from PIL import _imaging


def _library() -> ctypes.CDLL | None:
    """The libtiff that Pillow is linked with, where its names can be found from outside (Linux, macOS)."""
    try:
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return library


_libtiff = _library()


class _Quiet:
    """Silences Pillow's warnings, and what libtiff prints, while any thread is decoding; and no other module's.

    `warnings.catch_warnings` swaps the process-wide list of filters: two threads that leave it in another order than
    they entered keep each other's filters for good. One entry, counted under a lock, has no order to get wrong; and
    inserting it by hand leaves the registry of warnings that were shown once as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._told: int | None = None  # the handler of before
        self._entry = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1 and _libtiff is not None:
                self._told = _libtiff.TIFFSetErrorHandler(None)
            if self._entry not in warnings.filters:
                warnings.filters.insert(0, self._entry)  # type: ignore[attr-defined]  # declared as a Sequence

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and _libtiff is not None:
                _libtiff.TIFFSetErrorHandler(self._told)
            if not self._inside and self._entry in warnings.filters:
                warnings.filters.remove(self._entry)  # type: ignore[attr-defined]


quiet = _Quiet()
