"""The last look at pairs that may be copies: more pixels than thumbnails have, and all colours.

    larger = Larger(contents)
    left, aligned, score = closer_look(larger(here), larger(there), aligned, shorter, Limits())

Thumbnails have passed before: `copies.Finder` asks this of few pairs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from instdisc.data.decoding.decode import UnreadableError, decode_stored
from instdisc.search.alignment import Aligned, agreement, recoloured, refined
from instdisc.search.fingerprints import GREY
from instdisc.shapes import Float, Int, Tensor, UInt8

SIDES = (256, 128)  # pixels: a last look, where both pictures have three quarters of that on their shorter side
_KEPT = 512  # pictures, 200 kB each
_MOST_THREADS = 8


@dataclass(frozen=True)
class Limits:
    """What two pictures need for a proof. Chosen on one half of 3,925 photographs; runs/copies.py measures the other.

    agreement: of thumbnails; closer: at 128 or 256 pixels, where both have nearly as many; small: of pictures below 32
    pixels, as they are. detail: the share of a thumbnail that has any. tint: grey levels by which tints may differ.
    parts: the share of what is drawn that may have other colours than one change of all gives; small_parts: below 96
    pixels, where no part is small enough for a text. change: grey levels by which that one may change them. overlap:
    the share of the smaller one that both show; stretch: how many times as large one may be in the other.
    """

    agreement: float = 0.85
    closer: float = 0.8
    small: float = 0.995
    detail: float = 0.1
    tint: float = 25.0
    parts: float = 0.06
    small_parts: float = 0.02
    change: float = 32.0
    overlap: float = 0.6
    stretch: float = 1.6

    def plausible(self, aligned: Aligned) -> Tensor:
        """Whether enough of both is shown, and no picture much larger in the other."""
        return (aligned.overlap() >= self.overlap) & (aligned.stretch() <= self.stretch)


class Larger:
    """Pictures of a collection at 256 pixels, read one after the other, decoded by threads; the last ones are kept.

    contents(position): what a source gives; UnreadableError where it can't. Several threads may ask at once.
    """

    def __init__(self, contents: Callable[[int], Any]) -> None:
        self._contents = contents
        self._kept: dict[int, UInt8[Tensor, "3 side side"] | None] = {}
        self._lock = threading.Lock()

    def __call__(self, positions: Sequence[int]) -> list[UInt8[Tensor, "3 side side"] | None]:
        """The pictures at these positions, in their order; None for an unreadable one."""
        with self._lock:
            asked = dict.fromkeys(positions)
            known = {position: self._kept.pop(position) for position in asked if position in self._kept}
            new = [position for position in asked if position not in known]
            contents = [self._read(position) for position in new]
            if len(new) > 1:
                with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
                    known |= zip(new, pool.map(_decoded, contents), strict=True)
            else:
                known |= zip(new, map(_decoded, contents), strict=True)
            self._kept |= known
            for position in list(self._kept)[: max(0, len(self._kept) - _KEPT)]:
                del self._kept[position]
        return [known[position] for position in positions]

    def _read(self, position: int) -> Any:
        try:
            return self._contents(position)
        except UnreadableError as error:
            return error


def _decoded(content: Any) -> UInt8[Tensor, "3 side side"] | None:
    try:
        if isinstance(content, UnreadableError):
            raise content
        return torch.tensor(decode_stored(content, SIDES[0])[0]).permute(2, 0, 1)
    except UnreadableError:
        return None


def closer_look(
    first: Sequence[UInt8[Tensor, "3 side side"] | None],
    second: Sequence[UInt8[Tensor, "3 side side"] | None],
    aligned: Aligned,
    shorter: Int[Tensor, " pairs"],
    limits: Limits,
) -> tuple[Int[Tensor, " left"], Aligned, Float[Tensor, " left"]]:
    """Which pairs stay the same picture, how they lie over each other, and how far they agree, at most 1.

    Pages of text differ in what thumbnails do not show, variants of a drawing in the colours of a part. shorter: pixels
    of the shorter side of the smaller picture; where it has few, thumbnails have shown all there is: the score stays.
    """
    readable = [one is not None and other is not None for one, other in zip(first, second, strict=True)]
    left = torch.tensor(readable, dtype=torch.bool).nonzero().squeeze(1)
    aligned, shorter, score = aligned.at(left), shorter[left], aligned.score[left].clone()
    if not len(left):
        return left, aligned, score
    planes = [torch.stack([one[at] for at in left.tolist()]).float() for one in (first, second)]
    greys = [torch.einsum("pcyx,c->pyx", colours, torch.tensor(GREY)) for colours in planes]
    aligned = refined(greys[0], greys[1], aligned, SIDES[-1], 1)
    parts, change = recoloured(planes[0], planes[1], aligned)
    few = shorter < 3 * SIDES[-1] // 4
    most = torch.where(few, limits.small_parts, limits.parts)
    good = limits.plausible(aligned) & (parts <= most) & (change <= limits.change)
    for side, among in ((SIDES[0], shorter >= 3 * SIDES[0] // 4), (SIDES[1], shorter < 3 * SIDES[0] // 4)):
        here = (good & among & ~few).nonzero().squeeze(1)
        if len(here):
            score[here] = agreement(greys[0][here], greys[1][here], aligned.at(here), side)[0]
            good[here] = score[here] >= limits.closer
    return left[good], aligned.at(good.nonzero().squeeze(1)), score[good].clamp(max=1)
