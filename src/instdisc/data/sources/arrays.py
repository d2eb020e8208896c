"""Pictures that are already in memory: one array or tensor of all, or a Python sequence of single ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import numpy as np

from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.labels import Encoded
from instdisc.data.sources.source import Content, Source
from instdisc.data.storage.remote import read_bytes
from instdisc.data.storage.urls import reason
from instdisc.errors import InputError, is_shortage

_CHANNELS = (1, 3, 4)


def open_array(array: Any, limit: int | None = None) -> ArraySource:
    """Rows of a NumPy array (n, h, w) or (n, h, w, c), or of a tensor, which may also be (n, c, h, w).

    Values: uint8 (0..255), uint16 (0..65535) or float (0..1). Raises InputError for another shape or type.
    """
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if array.ndim == 4 and array.shape[1] in _CHANNELS and array.shape[3] not in _CHANNELS:
            array = array.permute(0, 2, 3, 1)
        array = array.numpy()
    values = np.asarray(array)
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[3] not in _CHANNELS):
        channels_first = values.ndim == 4 and values.shape[1] in _CHANNELS
        remedy = (
            "move the channels with numpy.moveaxis(x, 1, -1)" if channels_first else "give (n, h, w) or (n, h, w, 3)"
        )
        raise InputError(f"An array of shape {values.shape} is no stack of pictures: {remedy}.")
    if values.ndim == 3 and values.shape[2] in _CHANNELS:
        raise InputError(f"An array of shape {values.shape} looks like one picture: give it as x[None], or in a list.")
    if values.dtype not in (np.uint8, np.uint16) and values.dtype.kind != "f":
        raise InputError(f"An array of {values.dtype} is no stack of pictures: make it uint8, uint16 or float in 0..1.")
    return ArraySource("array", values, limit=limit)


def open_sequence(pictures: Any, limit: int | None = None) -> SequenceSource:
    """Rows of anything with a length and items that are PIL images, arrays, encoded bytes or paths."""
    if not hasattr(pictures, "__len__") or not hasattr(pictures, "__getitem__") or isinstance(pictures, dict | bytes):
        raise InputError(f"A {type(pictures).__name__} is no collection of pictures: give a path, an array or a list.")
    if len(pictures) and not is_picture_like(pictures[0]):
        kind = type(pictures[0]).__name__
        raise InputError(f"The first item is a {kind}, not a picture: give PIL images, arrays, encoded bytes or paths.")
    return SequenceSource(pictures, limit=limit)


class ArraySource(Source):
    """One picture a row of an array. Ids: `array#17`.

    reopen: a function and its arguments that make this source again; what is pickled then, in place of the array.
    """

    def __init__(
        self,
        name: str,
        array: np.ndarray,
        labels: Encoded | None = None,
        *,
        limit: int | None = None,
        reopen: tuple[Callable[..., ArraySource], tuple[Any, ...]] | None = None,
    ) -> None:
        super().__init__(name, len(array), limit=limit)
        self._array, self._array_labels, self._reopen = array, labels, reopen

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        if self._reopen is not None and self._given_labels is None:
            return self._reopen
        return super().__reduce_ex__(protocol)

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        name = os.fsencode(self.name)
        return [b"%s#%d" % (name, row) for row in range(start, stop)]

    def locations(self, start: int, stop: int) -> list[bytes]:
        return self.identifiers(start, stop)

    def read(self, row: int) -> Content:
        return np.ascontiguousarray(self._array[row])

    def _own_labels(self) -> Encoded | None:
        if self._array_labels is None:
            return None
        return self._array_labels[0][: len(self)], self._array_labels[1]


class SequenceSource(Source):
    """One picture an item of a sequence. Ids: `sequence#17`. It pickles as the sequence does.

    labels: gives the class of each item, where they are known.
    """

    def __init__(
        self,
        pictures: Sequence[Any],
        *,
        limit: int | None = None,
        name: str = "sequence",
        labels: Callable[[], Encoded | None] | None = None,
    ) -> None:
        super().__init__(name, len(pictures), limit=limit)
        self._pictures, self._read_labels = pictures, labels

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        name = os.fsencode(self.name)
        return [b"%s#%d" % (name, row) for row in range(start, stop)]

    def locations(self, start: int, stop: int) -> list[bytes]:
        return self.identifiers(start, stop)

    def read(self, row: int) -> Content:
        picture = self._pictures[row]
        if not is_picture_like(picture):
            raise UnreadableError(f"the item is a {type(picture).__name__}, not a picture")
        if isinstance(picture, str | os.PathLike):
            try:
                return read_bytes(os.fspath(picture))
            except Exception as error:  # each remote driver has errors of its own
                if is_shortage(error):
                    raise
                raise UnreadableError(f"the file cannot be read: {reason(error)}") from error
        if hasattr(picture, "detach"):
            picture = picture.detach().cpu()
            if picture.ndim == 3 and picture.shape[0] in _CHANNELS and picture.shape[2] not in _CHANNELS:
                picture = picture.permute(1, 2, 0)
            picture = picture.numpy()
        return picture

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_read_labels": None}

    def _own_labels(self) -> Encoded | None:
        found = None if self._read_labels is None else self._read_labels()
        return None if found is None else (found[0][: len(self)], found[1])


def is_picture_like(item: Any) -> bool:
    """Whether an item is taken for a picture: bytes, a path, an array of two or three dimensions, a PIL image."""
    if isinstance(item, bytes | str | os.PathLike):
        return True
    if hasattr(item, "__array__") and hasattr(item, "ndim"):
        return int(item.ndim) in (2, 3)
    return hasattr(item, "getbands")  # a PIL image, known without importing PIL
