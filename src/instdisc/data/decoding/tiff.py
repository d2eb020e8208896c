"""TIFF: which of its many kinds are read, and the values of those that Pillow would give wrongly without a word.

Pillow knows a TIFF by a table of kinds. What is not in the table it calls broken; some of what is in it comes out
inverted, wrapped round or with its bytes swapped. So every file is judged by its tags first: it is read and right, or
refused by the name of its kind. tests/data/test_data_tiff.py holds the kinds against another reader.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from instdisc.data.decoding.refusals import UnreadableError, not_read

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS, _PLANES, _COLOURS = 273, 277, 278, 284, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _INKS, _EXTRA, _FORMAT, _SUBSAMPLING = 322, 323, 324, 332, 338, 339, 530
_DNG = 50706

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_PHOTOMETRICS = {_WHITE_IS_ZERO: "grey", _BLACK_IS_ZERO: "grey", _RGB: "RGB", _PALETTE: "a palette", 4: "a mask"}
_PHOTOMETRICS |= {_CMYK: "CMYK", _YCBCR: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32844: "LogL"}
_PHOTOMETRICS |= {32845: "LogLuv", 51177: "depth"}
_RAW = (32803, 34892)  # colour filter array, linear raw
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_FORMATS = {_UNSIGNED: "values", _SIGNED: "signed values", _FLOAT: "floats", 5: "complex numbers", 6: "complex numbers"}
_PLAIN, _OLD_JPEG, _JPEG = 1, 6, 7
# Those that every Pillow's libtiff undoes: none, fax, LZW, JPEG, Deflate, PackBits, ThunderScan, LZMA, Zstandard.
_COMPRESSIONS = (_PLAIN, 2, 3, 4, 5, _OLD_JPEG, _JPEG, 8, 32773, 32809, 32946, 34925, 50000)
_OTHER_COMPRESSIONS = {9: "JBIG", 10: "JBIG", 34661: "JBIG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}
_OTHER_COMPRESSIONS |= {34887: "LERC", 34676: "SGILog", 34677: "SGILog", 32909: "PixarLog", 32766: "NeXT"}
_OTHER_COMPRESSIONS |= {
    34927: "WebP",
    50001: "WebP",
    22610: "JPEG XR",
    34934: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}


class TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's reader, for what it reads rightly. Raises UnreadableError for other kinds.

    white_is_zero: the caller has still to invert what comes out. stored: the type of the values behind the mode.
    """

    white_is_zero = False
    stored: np.dtype | None = None

    def _setup(self) -> None:
        tags = self.tag_v2
        kind = _Kind(tags)
        kind.refuse()
        tags[_PLANES] = kind.planes
        if kind.photometric == _WHITE_IS_ZERO and (kind.bits > 8 or kind.format != _UNSIGNED):
            self.white_is_zero = True
            tags[_PHOTOMETRIC] = _BLACK_IS_ZERO
        else:
            tags[_PHOTOMETRIC] = kind.photometric
        if kind.format == _SIGNED and kind.bits == 8:
            self.stored = np.dtype(np.int8)
        elif kind.format == _UNSIGNED and kind.bits == 32:
            self.stored = np.dtype(np.uint32)
            tags[_FORMAT] = (_SIGNED,)
        else:
            tags[_FORMAT] = (kind.format,)
        if kind.photometric == _PALETTE and max(tags.get(_COLOURS, (0,))) < 256:  # by writers that took bytes
            tags[_COLOURS] = tuple(257 * value for value in tags[_COLOURS])
        try:
            super()._setup()
        except (SyntaxError, LookupError) as error:
            raise not_read("TIFF", kind.words()) from error
        if self.use_load_libtiff:
            self._rename(_native)
        elif kind.planes == 2 and kind.bits == 16:  # Pillow names the bands without their width
            order = ";16L" if tags.prefix == b"II" else ";16B"
            self._rename(lambda raw: raw + order)

    def _rename(self, change: Callable[[str], str]) -> None:
        """Change what Pillow's decoders are told of the values as they are stored."""
        tiles = []
        for tile in self.tile:
            assert isinstance(tile.args, tuple)
            tiles.append(tile._replace(args=(change(tile.args[0]), *tile.args[1:])))
        self.tile = tiles

    def values(self) -> np.ndarray:
        """What is stored, as its own type, of a picture of one wide band."""
        values = np.asarray(self)
        return values if self.stored is None else values.view(self.stored)


def refuse_loaded(picture: TiffImagePlugin.TiffImageFile) -> None:
    """Raise UnreadableError for a TIFF that somebody else has opened and loaded by Pillow, and that came out wrong."""
    kind = _Kind(picture.tag_v2)
    kind.refuse()
    wide = kind.bits > 8 or kind.format != _UNSIGNED
    if wide and (kind.photometric == _WHITE_IS_ZERO or kind.format != _UNSIGNED or kind.bits == 32 or kind.planes == 2):
        raise UnreadableError(f"the TIFF ({kind.words()}) may be loaded wrongly by Pillow: give the file instead")


def _native(raw: str) -> str:
    """libtiff has turned the bytes of wide values round; Pillow's names for some of them forget it."""
    names = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F", "I;16B": "I;16N"}
    if sys.byteorder == "big":
        names = {"I;16S": "I;16BS", "I;32S": "I;32BS", "F;32F": "F;32BF", "I;16B": "I;16N"}
    return names.get(raw, raw)


class _Kind:
    """The tags that say how a TIFF's values are to be understood."""

    def __init__(self, tags: Any) -> None:
        self.tags = tags
        self.compression = int(tags.get(_COMPRESSION, _PLAIN))
        self.extra = tuple(tags.get(_EXTRA, ()))
        jpeg = self.compression in (_OLD_JPEG, _JPEG)
        photometric = tags.get(_PHOTOMETRIC)
        self.count = int(tags.get(_SAMPLES, 3 if jpeg and photometric in (_RGB, _YCBCR) else 1))
        if photometric is None:  # required, and left out by some: what libtiff takes it for
            fax = self.compression in (2, 3, 4)
            photometric = (_WHITE_IS_ZERO if fax else _BLACK_IS_ZERO) if self.count < 3 else _RGB
        self.photometric = int(_YCBCR if self.compression == _OLD_JPEG else photometric)
        bits = tuple(tags.get(_BITS, (1,)))
        self.bits, self.even = int(bits[0]), len(set(bits)) == 1
        formats = {_UNSIGNED if one == 4 else one for one in tags.get(_FORMAT, (_UNSIGNED,))}  # 4: of no stated type
        self.even &= len(formats) == 1
        self.format = min(formats)
        self.planes = int(tags.get(_PLANES, 1)) if self.count > 1 else 1

    def words(self) -> str:
        """The kind, for a person."""
        if self.compression not in _COMPRESSIONS:
            return f"compression by {_OTHER_COMPRESSIONS.get(self.compression, f'method {self.compression}')}"
        colours = _PHOTOMETRICS.get(self.photometric, f"colours of type {self.photometric}")
        usual = {_RGB: 3, _YCBCR: 3, _CMYK: 4, 8: 3, 9: 3, 10: 3, 32845: 3}.get(self.photometric, 1)
        bands = f", {self.count} bands" if self.count != usual else ""
        values = f"{self.bits}-bit {_FORMATS.get(self.format, 'values')}" if self.even else "values of unequal widths"
        apart = ", each band apart" if self.planes == 2 else ""
        return f"{colours} of {values}{bands}{apart}"

    def refuse(self) -> None:
        """Raise UnreadableError for what is no picture of its own, damaged, or not read rightly."""
        if _DNG in self.tags or self.photometric in _RAW:
            raise UnreadableError("the TIFF is a camera's raw file, which is not read: develop it to JPEG or TIFF")
        if self.tags.get(_SUBFILE, 0) & 1:
            raise UnreadableError(
                "the TIFF begins with a preview, as a camera's raw file does: develop it to JPEG or TIFF"
            )
        self._refuse_damaged()
        if self.compression not in _COMPRESSIONS or not self.even or not self._is_read():
            raise not_read("TIFF", self.words())

    def _refuse_damaged(self) -> None:
        tags = self.tags
        width, height, rows = tags.get(_WIDTH), tags.get(_HEIGHT), tags.get(_ROWS, 2**32 - 1)
        known = self.photometric in _PHOTOMETRICS and self.format in _FORMATS and 1 <= self.bits <= 128
        positions = tags.get(_STRIPS, tags.get(_TILES, ()))
        high, wide = (rows, width) if _STRIPS in tags else (tags.get(_TILE_HEIGHT), tags.get(_TILE_WIDTH))
        numbers = (width, height, high, wide)
        if not known or not positions or not all(isinstance(one, int) and one > 0 for one in numbers):
            raise UnreadableError("the TIFF is damaged or cut short")
        needed = -(-height // high) * -(-width // wide) * (self.count if self.planes == 2 else 1)
        if len(positions) < needed:
            raise UnreadableError("the TIFF is damaged or cut short: parts of it are not listed")
        if not all(positions[:needed]):
            raise not_read("TIFF", "parts of it were never written (sparse)", "a whole one")

    def _is_read(self) -> bool:
        kind = (self.format, self.bits)
        if self.compression in (_OLD_JPEG, _JPEG) and (self.bits != 8 or self.planes == 2):
            return False
        if self.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
            if not self.extra:
                wide = ((_UNSIGNED, 12), (_UNSIGNED, 16), (_UNSIGNED, 32), (_FLOAT, 32))
                return self.count == 1 and (self.format == _SIGNED or kind in wide or self.bits <= 8)
            return kind == (_UNSIGNED, 8) and self.count == 2 and self.planes == 1
        if self.format != _UNSIGNED:
            return False
        if self.photometric == _PALETTE:
            return self.bits <= 8 and self.planes == 1
        if self.photometric == _RGB:
            together = self.planes == 1 or self.count == 3 or (self.bits == 8 and self.extra == (2,))
            return self.bits in (8, 16) and together
        if self.photometric == _CMYK:
            together = self.bits in (8, 16) if self.planes == 1 else self.bits == 8 and self.count == 4
            return together and self.tags.get(_INKS, 1) == 1  # else inks of its own
        if self.photometric == _YCBCR:
            return self.bits == 8 and self.compression in (_OLD_JPEG, _JPEG)  # others by a formula of their own
        return False
