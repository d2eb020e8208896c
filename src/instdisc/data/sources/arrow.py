"""The many Arrow forms of the same values: what is a picture in a column, and what is a label.

holds_pictures(field.type)           # binary of any form, list<uint8>, struct {bytes, path}, a list of one of these
picture_of(column[17])               # its encoded bytes
plain(column)                        # a column of labels as int64 (or another integer) or large_binary
"""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc.data.decoding.decode import UnreadableError
from instdisc.errors import InputError

_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_DATA_URL = re.compile(rb"data:image/[\w.+-]+;base64,")


class LabelsError(InputError):
    """Labels that are there and can't be used: it stops only what needs labels."""


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings, in any form."""
    kind = _inner(kind)
    return any(test(kind) for test in _TEXT)


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, in any form."""
    return any(test(kind) for test in _LISTS)


def holds_binary(kind: pa.DataType) -> bool:
    """Whether values are the bytes of pictures beyond doubt: binary of variable length, or a struct that has them."""
    kind = _inner(kind)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and holds_binary(field.type) for field in kind)
    return any(test(kind) for test in _BINARY)


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether values may be the bytes of pictures: also of fixed length, list<uint8>, a list of pictures."""
    kind = _inner(kind)
    if is_list(kind):
        return pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type) or holds_binary(kind.value_type)
    return holds_binary(kind) or pa.types.is_fixed_size_binary(kind)


def picture_of(value: Any) -> bytes:
    """The encoded picture in a cell (an Arrow scalar). Raises UnreadableError for a cell without one, or with several.

    Text is taken for base64, with or without `data:image/...;base64,` before it.
    """
    if isinstance(value, pa.DictionaryScalar | pa.ExtensionScalar):
        value = value.value
    if value is None or not value.is_valid:
        raise UnreadableError("the row holds no bytes: the picture was not put into the Parquet file")
    kind = value.type
    if pa.types.is_struct(kind):
        return picture_of(value["bytes"])
    if is_list(kind):
        if pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type):
            return value.values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint8).tobytes()
        if len(value.values) > 1:
            raise UnreadableError(f"the row holds {len(value.values)} pictures: write one a row")
        return picture_of(value.values[0] if len(value.values) else None)
    content = value.as_py()
    if isinstance(content, bytes):
        return content
    try:
        return base64.b64decode(_DATA_URL.sub(b"", content[:64].encode()) + content[64:].encode(), validate=True)
    except ValueError:
        raise UnreadableError("the row holds text, not the bytes of a picture") from None


def plain(column: Any) -> pa.Array:
    """A column of labels in one of three forms: whole numbers, large_binary for names, null.

    Floats that are whole become numbers, NaN and infinity -1; a list of one counts as that one, an empty one as none.
    Raises LabelsError for values that are neither names nor whole numbers, or several a row.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(column.dictionary).take(column.indices)
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(column))
    if is_list(kind):
        if len(column) and (pc.max(pc.list_value_length(column)).as_py() or 0) > 1:
            raise LabelsError(
                f"Pictures have several labels each ({kind}): give one a picture, as in a table with --labels."
            )
        return plain(pa.array([cell[0] if cell else None for cell in column.to_pylist()], kind.value_type))
    if pa.types.is_boolean(kind):
        return column.cast(pa.int64())
    if pa.types.is_decimal(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise _fractions() from None
    if pa.types.is_floating(kind):
        numbers = column.to_numpy(zero_copy_only=False)
        known = np.isfinite(numbers)
        if (numbers[known] % 1).any():
            raise _fractions()
        return pa.array(np.where(known, numbers, -1).astype(np.int64))
    if is_text(kind) or pa.types.is_fixed_size_binary(kind) or any(test(kind) for test in _BINARY):
        return column.cast(pa.large_binary())
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return column
    raise LabelsError(f"The labels are of type {kind}: give whole numbers or names, one a picture.")


def _fractions() -> LabelsError:
    return LabelsError("The labels are fractions, not classes: give whole numbers or names.")


def _inner(kind: pa.DataType) -> pa.DataType:
    """Without what only says how values are written."""
    if isinstance(kind, pa.BaseExtensionType):
        return _inner(kind.storage_type)
    return _inner(kind.value_type) if pa.types.is_dictionary(kind) else kind
