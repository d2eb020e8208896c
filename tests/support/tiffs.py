"""TIFF files of every kind, written from the format's own definition, and what a person should see of them.

tiff = Tiff(samples, bits=16, photometric=0)        # samples: (height, width, samples a pixel), as they are stored
tiff.file(), tiff.levels()
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
UNSIGNED, SIGNED, FLOAT, VOID, COMPLEX = 1, 2, 3, 4, 6
NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773


@dataclass(frozen=True)
class Tiff:
    """One picture. order: < or >. tile: side in pixels, 0 for strips. rows: in a strip, 0 for all. extra: what the
    samples beyond the colours mean (0 nothing, 1 premultiplied alpha, 2 alpha). more: further tags and their shorts."""

    samples: np.ndarray
    bits: int = 8
    photometric: int = BLACK_IS_ZERO
    format: int = UNSIGNED
    planes: int = 1
    rows: int = 0
    tile: int = 0
    compression: int = NONE
    order: str = "<"
    big: bool = False
    extra: tuple[int, ...] = ()
    more: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def file(self) -> bytes:
        height, width, count = self.samples.shape
        parts = [self._packed(part) for part in self._parts()]
        at, body = [], b""
        start = 16 if self.big else 8
        for part in parts:
            at.append(start + len(body))
            body += part + b"\0" * (len(part) % 2)
        short, long = 3, 16 if self.big else 4
        tags: dict[int, tuple[int, tuple[int, ...]]] = {
            256: (long, (width,)),
            257: (long, (height,)),
            258: (short, (self.bits,) * count),
            259: (short, (self.compression,)),
            262: (short, (self.photometric,)),
            277: (short, (count,)),
            284: (short, (self.planes,)),
            339: (short, (self.format,) * count),
        }
        if self.tile:
            tags |= {322: (long, (self.tile,)), 323: (long, (self.tile,))}
        else:
            tags[278] = (long, (self.rows or height,))
        tags[324 if self.tile else 273] = (long, tuple(at))
        tags[325 if self.tile else 279] = (long, tuple(map(len, parts)))
        if self.extra:
            tags[338] = (short, self.extra)
        if self.photometric == PALETTE:
            tags[320] = (short, tuple(self.palette().T.reshape(-1).tolist()))
        tags |= {tag: (short, values) for tag, values in self.more}
        return self._laid_out(tags, body)

    def _laid_out(self, tags: dict[int, tuple[int, tuple[int, ...]]], body: bytes) -> bytes:
        mark = {"<": b"II", ">": b"MM"}[self.order]
        place = "Q" if self.big else "L"
        header = struct.pack(self.order + ("HHHQ" if self.big else "HL"), *([43, 8, 0] if self.big else [42]), 0)
        start, entries, beyond = 2 + len(header) + len(body), b"", b""
        after = start + (8 if self.big else 2) + len(tags) * (20 if self.big else 12) + struct.calcsize("<" + place)
        for tag, (kind, values) in sorted(tags.items()):
            data = struct.pack(f"{self.order}{len(values)}{ {3: 'H', 4: 'L', 16: 'Q'}[kind] }", *values)
            if len(data) > struct.calcsize("<" + place):
                data, beyond = struct.pack(self.order + place, after + len(beyond)), beyond + data
            entries += struct.pack(f"{self.order}HH{place}", tag, kind, len(values))
            entries += data.ljust(struct.calcsize("<" + place), b"\0")
        where = struct.pack(self.order + place, start)
        count = struct.pack(self.order + ("Q" if self.big else "H"), len(tags))
        end = struct.pack(self.order + place, 0)
        return mark + header[: -len(where)] + where + body + count + entries + end + beyond

    def _parts(self) -> list[np.ndarray]:
        """Strips or tiles, planes one after another: each (rows, columns, samples)."""
        height, width, _ = self.samples.shape
        high, wide = (self.tile, self.tile) if self.tile else (self.rows or height, width)
        planes = np.split(self.samples, self.samples.shape[2], axis=2) if self.planes == 2 else [self.samples]
        parts = []
        for plane in planes:
            if self.tile:
                plane = np.pad(plane, [(0, -height % high), (0, -width % wide), (0, 0)])
            for top in range(0, height, high):
                parts += [plane[top : top + high, left : left + wide] for left in range(0, width, wide)]
        return parts

    def _packed(self, part: np.ndarray) -> bytes:
        rows = part.reshape(part.shape[0], -1)
        if self.bits % 8:
            ones = (rows[..., None].astype(np.int64) >> np.arange(self.bits)[::-1]) & 1
            data = np.packbits(ones.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()
        else:
            letter = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f", VOID: "u", COMPLEX: "c"}[self.format]
            data = rows.astype(f"{self.order}{letter}{self.bits // 8}").tobytes()
        if self.compression == DEFLATE:
            return zlib.compress(data)
        if self.compression == PACKBITS:
            return b"".join(bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128] for i in range(0, len(data), 128))
        return _lzw(data) if self.compression == LZW else data

    def palette(self) -> np.ndarray:
        """(colours, 3) uint16, each byte twice, as it should be."""
        return np.random.default_rng(self.bits).integers(0, 256, (2**self.bits, 3)) * 257

    def levels(self) -> np.ndarray:
        """(height, width, 3) of what is shown: 8 bits, transparency on white."""
        values = self.samples
        if self.photometric == PALETTE:
            eights = np.concatenate([self.palette()[values[..., 0]] // 257, values[..., 1:]], 2)
        elif self.format == FLOAT or self.bits == 32 or self.format == SIGNED:
            eights = wide_levels(values)
        else:
            eights = values >> (self.bits - 8) if self.bits > 8 else values * 255 // (2**self.bits - 1)
        colours = {RGB: 3, CMYK: 4, PALETTE: 3}.get(self.photometric, 1)
        shown, beyond = eights[..., :colours].astype(float), eights[..., colours:]
        if self.photometric == WHITE_IS_ZERO:
            shown = 255 - shown
        if self.photometric == CMYK:
            shown = (255 - shown[..., :3]) * (255 - shown[..., 3:]) / 255
        for alpha, meaning in zip(beyond.transpose(2, 0, 1)[..., None] / 255, self.extra, strict=True):
            if meaning:
                shown = (shown * alpha if meaning == 2 else np.minimum(shown, 255 * alpha)) + 255 * (1 - alpha)
        return np.broadcast_to(shown, (*values.shape[:2], 3))


def wide_levels(values: np.ndarray) -> np.ndarray:
    """Of values without a stated white: as 0..1 (floats), 0..255, 0..65535 where they fit, else from least to most."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(values * 255.0)
    if low >= 0 and high <= 255:
        return np.rint(values)
    if low >= 0 and high <= 65535:
        return values.astype(int) // 256
    return np.rint((values - low) * (255 / (high - low)))


def _lzw(data: bytes) -> bytes:
    """Codes of nine bits for the bytes themselves: the table is cleared before it would need longer ones."""
    codes: list[int] = []
    for start in range(0, len(data), 250):
        codes += [256, *data[start : start + 250]]
    ones = (np.array([*codes, 257])[:, None] >> np.arange(9)[::-1]) & 1
    return np.packbits(ones.astype(np.uint8)).tobytes()
