"""ICC profiles from their definition (version 2, three primaries and a gamma), and what they make of colours."""

from __future__ import annotations

import struct

import numpy as np

SRGB, DISPLAY_P3, ADOBE_RGB = (  # x and y of red, green and blue
    ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
)
_D65, _D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
_WORDS = (b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + bytes(82)).ljust(100, b"\0")
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """(3, 3): linear RGB under D65 to XYZ under D50, the white of profiles."""
    points = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([_D65[0] / _D65[1], 1, (1 - sum(_D65)) / _D65[1]])
    cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    return np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ (points * np.linalg.solve(points, white))


def made(primaries: tuple[tuple[float, float], ...], gamma: float, space: bytes = b"RGB ") -> bytes:
    """The profile's bytes; for grey (`GRAY`) the curve alone counts."""

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": _WORDS, b"wtpt": xyz(_D50)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), to_xyz(primaries).T, strict=True):
            tags |= {name + b"XYZ": xyz(column), name + b"TRC": curve}
    return _laid_out(tags, b"mntr", space, b"XYZ ")


def made_cmyk(corners: dict[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """Of a press: the L*, a* and b* of each corner of the cube of inks, each (0 or 1); between them straight lines."""
    lattice = [corners[c, m, y, k] for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    cube = b"".join(bytes([round(light * 2.55), round(a + 128), round(b + 128)]) for light, a, b in lattice)
    matrix = b"".join(struct.pack(">i", 65536 * (place % 4 == 0)) for place in range(9))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + bytes(range(256)) * 4 + cube + bytes(range(256)) * 3
    table += bytes(-len(table) % 4)
    white = b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in _D50)
    return _laid_out({b"desc": _WORDS, b"wtpt": white, b"A2B0": table}, b"prtr", b"CMYK", b"Lab ")


def _laid_out(tags: dict[bytes, bytes], kind: bytes, space: bytes, between: bytes) -> bytes:
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table, body = table + struct.pack(">4sII", name, start + len(body), len(data)), body + data
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, kind, space, between)
    head = (head.ljust(36, b"\0") + b"acsp").ljust(68, b"\0")
    head += b"".join(struct.pack(">i", round(value * 65536)) for value in _D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def shown(levels: np.ndarray, primaries: tuple[tuple[float, float], ...], gamma: float) -> np.ndarray:
    """The same colours in sRGB, by its definition."""
    linear = (levels / 255.0) ** gamma @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
