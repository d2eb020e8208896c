"""PNG without what has nothing to do with its pixels: text of any length, time stamps, frames of an animation.

Generators of pictures write megabytes of text into a PNG, at which Pillow refuses the whole picture; and a wrong
checksum in such a chunk harms no pixel. libpng and browsers skip both.
"""

from __future__ import annotations

import zlib

_KEPT = (b"tRNS", b"eXIf", b"iCCP")  # of the chunks that a decoder may leave out
_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keywords under which older programs say what is up
_MOST_TEXT = 1_000_000  # bytes, unpacked: under Pillow's own limit


def pixels_alone(png: bytes) -> bytes:
    """The file without its other chunks; from where it is cut or damaged on, as it is."""
    kept, at = [png[:8]], 8
    while at + 12 <= len(png):
        name = png[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(png[at : at + 4])
        if end > len(png):
            break
        if _matters(name, png, at + 8, end - 4):
            kept.append(png[at:end])
        at = end
        if name == b"IEND":
            return b"".join(kept) if sum(map(len, kept)) < len(png) else png
    return b"".join([*kept, png[at:]])


def _matters(name: bytes, png: bytes, start: int, end: int) -> bool:
    if name[:1].isupper() or name == b"tRNS":  # of these a decoder must know all, and refuse those that are damaged
        return True
    text = name in (b"tEXt", b"zTXt", b"iTXt") and png.startswith(_TEXTS, start, end)
    if not text and name not in _KEPT:
        return False
    if zlib.crc32(png[start - 4 : end]) != int.from_bytes(png[end : end + 4]) or end - start > _MOST_TEXT:
        return False
    return _unpacked(name, png[start:end]) < _MOST_TEXT


def _unpacked(name: bytes, body: bytes) -> int:
    """Bytes that a decoder would make of a chunk, counted to one beyond the limit."""
    packed = body.partition(b"\0")[2]
    if name == b"iTXt" and packed[:1] == b"\1":
        packed = packed[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif name in (b"zTXt", b"iCCP"):
        packed = packed[1:]
    else:
        return len(body)
    try:
        return len(zlib.decompressobj().decompress(packed, _MOST_TEXT))
    except zlib.error:
        return 0  # not worth more than its words; Pillow reads over it
