"""JPEG files through libjpeg-turbo's own interface: a quarter to two fifths less time than through Pillow, and the same
pixels, as it is the same library. Whatever it would have to guess about is left to Pillow, whose word counts; so is
all where simplejpeg is not installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

try:
    import simplejpeg
except ImportError:  # a borrowed machine, onto which nothing can be installed
    simplejpeg = None

_MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd8])")
_END, _SCAN = 0xD9, 0xDA
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # tables and an extension are none
_COEFFICIENTS = 64  # of a block


def decode_whole(
    data: bytes, size: tuple[int, int], wanted: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"] | None:
    """The RGB pixels of a file that is sound to the last byte, else None; never for CMYK.

    size: width and height that the caller read in the header and agreed to. wanted: width and height of the result,
    the whole or as it is rounded up at a half, a quarter or an eighth.
    """
    if simplejpeg is None:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != size or colours not in ("YCbCr", "RGB", "Gray"):
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=wanted[0], min_height=wanted[1], strict=True)
    except MemoryError:
        raise
    except Exception:  # warnings of the library too: damage that it can read over
        return None
    return pixels if pixels.shape == (wanted[1], wanted[0], 3) else None


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment; the compressed data are skipped. One that is cut ends them as (0, b"")."""
    position = 2
    while found := _MARKER.search(jpeg, position):
        code, start = found[1][0], found.end()
        if code == _END:
            yield code, b""
            return
        length = int.from_bytes(jpeg[start : start + 2])
        position = start + length
        if length < 2 or position > len(jpeg):
            yield 0, b""
            return
        yield code, jpeg[start + 2 : position]


def with_end(jpeg: bytes) -> bytes | None:
    """The file with the end marker that it lacks, where every value of every colour was listed before; else None.

    Whether the last scan is whole is for the decoder to say: a marker that comes too early is a warning.
    """
    final: dict[int, set[int]] = {}
    for code, body in _segments(jpeg):
        if code in (0, _END):
            return None
        if code in _FRAMES:
            final |= {body[6 + 3 * position]: set() for position in range(body[5])}
        if code == _SCAN:
            colours = [body[1 + 2 * position] for position in range(body[0])]
            first, last, bits = body[1 + 2 * len(colours) :][:3]
            for colour in colours:
                if not bits & 15:  # no bits of these values are left for a later scan
                    final.setdefault(colour, set()).update(range(first, last + 1))
    whole = final and all(len(positions) == _COEFFICIENTS for positions in final.values())
    return jpeg + b"\xff\xd9" if whole else None


def kind(jpeg: bytes) -> str:
    """What is not read of a whole file, for a person; empty where it is of a kind that is read."""
    for code, body in _segments(jpeg):
        if code in _FRAMES and len(body) >= 6:
            if body[0] != 8:
                return f"{'lossless, ' if code & 3 == 3 else ''}{body[0]} bits a value"
            if code & 3 == 3:
                return "lossless"
            if body[5] not in (1, 3, 4):
                return f"{body[5]} colours"
            return "arithmetic coding" if code > 0xC8 else "hierarchical" if code > 0xC4 else ""
    return ""
