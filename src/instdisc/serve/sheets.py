"""The map as pictures: which one stands for a cell of it, and sheets of small tiles to draw the cells with.

Level L cuts the map, a square of side 1, into 2**L x 2**L parts, and each part into columns x rows cells:
so part 0 of level 0 is the whole map. A cell is drawn as the picture next to its centre. The sheet of a part is a JPEG
with a tile for each cell that has pictures, in the order of the cells, 32 a line. Behind the JPEG, where no decoder
looks, int32 numbers tell which cells these are, which points they show, and how many.

This file must not import torch, nor what imports it: the page answers while torch is being loaded.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps

DEEPEST = 8  # levels below the first
MOST_CELLS = 2_048  # of a part
ACROSS = 32  # tiles in a line of a sheet
_SMALL, _LARGE = 64, 96  # pixels of a tile's side: whole blocks of a JPEG, so that no tile runs into the next
_FEW = 256  # cells: a part of no more has large tiles
_BLANK = 128  # grey of a picture that can't be read
_KEPT = 12_000  # tiles: 150 MB


@dataclass(frozen=True)
class Cut:
    """A part of a level, and in how many cells it is cut."""

    columns: int
    rows: int
    level: int
    part: int


def stretched(points: np.ndarray) -> np.ndarray:
    """Points (n, 2), moved and stretched so that they fill 0..1 in each direction; float32."""
    given = points.astype(np.float64)
    low, span = given.min(0), np.ptp(given, axis=0)
    return ((given - np.where(span > 0, low, low - 0.5)) / np.where(span > 0, span, 1)).astype(np.float32)


def standing(points: np.ndarray, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
    """(cells, positions): the cells of a part that have points, in order, and the position in `points` of each.

    points: stretched. Of points as near to a centre as each other the first stands for the cell.

    Example:
        standing(stretched(points), Cut(columns=36, rows=18, level=0, part=0))  # at most 648 cells
    """
    across = 1 << cut.level
    counts = np.array([cut.columns * across, cut.rows * across])
    at = points.astype(np.float64) * counts
    inside = np.minimum(np.floor(at), counts - 1).astype(np.int64)
    down, right = divmod(cut.part, across)
    here = np.flatnonzero((inside[:, 0] // cut.columns == right) & (inside[:, 1] // cut.rows == down))
    cells = (inside[here, 1] - down * cut.rows) * cut.columns + inside[here, 0] - right * cut.columns
    away = ((at[here] - (inside[here] + 0.5)) ** 2).sum(axis=1)
    order = np.lexsort((here, away, cells))
    found, first = np.unique(cells[order], return_index=True)
    return found, here[order[first]]


class Sheets:
    """Sheets of the tiles of a collection; tiles that were made once are kept.

    picture(row, at_least): pixels (height, width, 3) uint8, the shorter side `at_least` pixels if the picture has them.
    """

    def __init__(self, picture: Callable[[int, int], np.ndarray]) -> None:
        self._picture = picture
        self._tile = lru_cache(maxsize=_KEPT)(self._make_tile)
        self._workers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="tiles")

    def sheet(self, rows: np.ndarray, points: np.ndarray, cut: Cut) -> bytes:
        """The tiles of a part, 32 a line, as JPEG; then int32: its cells, their positions in `points`, how many.

        rows: of the pictures at `points` (n, 2), which are stretched.
        """
        side = _LARGE if cut.columns * cut.rows <= _FEW else _SMALL
        cells, positions = standing(points, cut)
        pixels = np.full((max(1, -(-len(cells) // ACROSS)) * side, ACROSS * side, 3), _BLANK, np.uint8)
        tiles = self._workers.map(self._tile, rows[positions].tolist(), [side] * len(cells))
        for number, tile in enumerate(tiles):
            y, x = (side * one for one in divmod(number, ACROSS))
            pixels[y : y + side, x : x + side] = tile
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=82, subsampling=0)  # no colour runs into the next tile
        return out.getvalue() + np.concatenate([cells, positions, [len(cells)]]).astype("<i4").tobytes()

    def _make_tile(self, row: int, side: int) -> np.ndarray:
        """The middle of a picture, as the grid shows it; grey where the picture can't be read."""
        try:
            picture = Image.fromarray(self._picture(row, side))
        except Exception:  # of whatever a decoder or a disk comes up with: the grid says what is wrong
            return np.full((side, side, 3), _BLANK, np.uint8)
        few = min(picture.size) < side  # pixels shown larger look like pixels
        return np.asarray(
            ImageOps.fit(picture, (side, side), Image.Resampling.NEAREST if few else Image.Resampling.BOX)
        )


def version_of(rows: np.ndarray, points: np.ndarray) -> str:
    """Another one for other pictures, or other positions of them."""
    return f"{zlib.crc32(points.tobytes(), zlib.crc32(rows.astype('<i8').tobytes())):08x}"
