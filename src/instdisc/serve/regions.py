"""Names of regions of the map: what nearly all pictures of a position are called; none where they are called otherwise.

This file must not import torch, nor what imports it: the page answers while torch is being loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from instdisc.serve.models import Region
from instdisc.serve.sets import suggested

if TYPE_CHECKING:
    from instdisc.serve.opened import Opened

_SIDE = 24  # cells of the grid that is looked at, a side
_SURE = 0.7  # share of the pictures of a cell and its neighbours
_LEAST, _SHARE = 5, 0.005  # pictures of a region; of all
_TWICE, _MOST = 2, 40  # regions of one name; in all
_NAMES = 64  # the most frequent names are looked at


def called(opened: Opened, folders: tuple[list[str], np.ndarray]) -> tuple[list[str], np.ndarray]:
    """(names, codes): what each row is called by hand, else by suggestion, else by its folder; -1: by none."""
    names, codes = list(opened.index.label_names), opened.index.labels.copy()
    found = opened.suggestions()
    if found is not None and len(found.names) > 1:  # with one name, it would be suggested for all
        theirs = np.array([names.index(name) for name in found.names])
        sure = suggested(found)
        codes[sure] = theirs[found.codes[sure]]
    without = (codes < 0) & (folders[1] >= 0)
    codes[without] = folders[1][without] + len(names)
    return [*names, *(folder.rpartition("/")[2] for folder in folders[0])], codes


def regions(points: np.ndarray, codes: np.ndarray, names: Sequence[str]) -> list[Region]:
    """The regions, the largest first. points: (n, 2) in 0..1; codes (n,): positions in names, -1 for none.

    A region is connected cells of a grid where at least 70 % of the pictures, those of the cells around included, have
    one name. There is none where all pictures have the same.
    """
    from scipy.ndimage import label, uniform_filter

    used = np.bincount(codes[codes >= 0], minlength=len(names))
    if np.count_nonzero(used) + bool((codes < 0).any()) < 2:
        return []
    cells = np.minimum((points * _SIDE).astype(np.int64), _SIDE - 1)

    def count(chosen: np.ndarray) -> np.ndarray:
        flat = np.bincount(cells[chosen, 1] * _SIDE + cells[chosen, 0], minlength=_SIDE * _SIDE)
        return flat.reshape(_SIDE, _SIDE).astype(np.float64)

    def around(counts: np.ndarray) -> np.ndarray:
        return 9 * uniform_filter(counts, 3, mode="constant")

    everything = count(np.arange(len(codes)))
    near, found = np.maximum(around(everything), 1e-9), []
    for code in np.argsort(-used, kind="stable")[:_NAMES]:
        own = count(np.flatnonzero(codes == code))
        parts, many = label((everything > 0) & (around(own) >= _SURE * near), np.ones((3, 3)))
        sizes = sorted(((own[parts == part].sum(), part) for part in range(1, many + 1)), reverse=True)
        for size, part in sizes[:_TWICE]:
            if size >= max(_LEAST, _SHARE * len(codes)):
                y, x = np.unravel_index(np.argmax(np.where(parts == part, around(own), -1)), own.shape)
                position = {"x": (x + 0.5) / _SIDE, "y": (y + 0.5) / _SIDE}
                found.append(Region(name=names[code], count=int(size), **position))
    return sorted(found, key=lambda region: -region.count)[:_MOST]
