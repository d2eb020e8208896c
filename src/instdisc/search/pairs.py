"""All pairs of pictures above a similarity, and the neighbours of all of them: in blocks, in fixed memory, exactly.

    pairs = similar_pairs(own, 0.95)                      # each pair once
    pairs = similar_pairs(own, 0.95, against=test)        # between two sets
    scores, positions = neighbours_of_all(own, 10)

Every pair is looked at once by a matrix product: n (n - 1) / 2 of them. Nothing is approximate. The ranks of a run that
hold the same vectors share the pairs evenly; every one of them has the whole answer, which is that of one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from instdisc import ranks
from instdisc.errors import InputError
from instdisc.neighbours import Coarse, Nearest, fp16_is_faster, full_precision, pair_scores
from instdisc.progress import Bar
from instdisc.shapes import Float, Int, Tensor
from instdisc.system import beside_others

MOST_PAIRS = 5_000_000
_QUERIES, _ROWS, _TILE = 65_536, 16_384, 256


@dataclass(frozen=True)
class Vectors:
    """count unit vectors; pick(positions): some of them, float32 (positions, dim), on the device that compares."""

    count: int
    pick: Callable[[np.ndarray], Tensor]

    @classmethod
    def of(cls, rows: Float[Tensor, "rows dim"]) -> Vectors:
        """Those of a tensor of any floating type."""
        return cls(len(rows), lambda positions: rows[torch.from_numpy(positions).to(rows.device)].to(torch.float32))

    def some(self, positions: Int[np.ndarray, " some"]) -> Vectors:
        """A choice of these, in the given order."""
        return Vectors(len(positions), lambda chosen: self.pick(positions[chosen]))

    def read(self, start: int, stop: int) -> Float[Tensor, "rows dim"]:
        """Those from `start` to before `stop`."""
        return self.pick(np.arange(start, stop))


@dataclass(frozen=True)
class Pairs:
    """first, second: int64 (pairs,), positions in their sets, first < second within one set; scores: float32 (pairs,).

    The most similar first; equal scores by `first`, then by `second`.
    """

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    scores: Float[np.ndarray, " pairs"]

    def __len__(self) -> int:
        return len(self.first)


def similar_pairs(
    own: Vectors, threshold: float, *, against: Vectors | None = None, most: int = MOST_PAIRS, show: bool = False
) -> Pairs:
    """Every pair whose cosine is at least `threshold`: within `own`, or between it and `against`.

    most: of pairs that are kept; more of them raise InputError. show: a progress bar. Memory beside the pairs: 65,536
    vectors twice, whatever the count.
    """
    check_threshold(threshold)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    kept = 0
    others, within = (own, True) if against is None else (against, False)
    begin, end = _share_of_triangle(own.count) if within else ranks.share(own.count)
    total = (end - begin) * (2 * own.count - begin - end + 1) // 2 if within else (end - begin) * others.count
    show = show and ranks.is_main()
    bar = Bar(total, "Comparing pictures", "pairs", enabled=show)
    with ranks.fail_together(), torch.no_grad(), beside_others(), bar:
        for start in range(begin, end, _QUERIES):
            stop = min(start + _QUERIES, end)
            queries = own.read(start, stop)
            coarse = Coarse(queries)  # refuses what is not finite
            fast = fp16_is_faster(queries.device)
            for first in range(start if within else 0, others.count, _ROWS):
                last = min(first + _ROWS, others.count)
                rows = others.read(first, last)
                halved = Coarse(rows)
                # Of the block on the diagonal only queries that stand before its last row.
                here = min(stop, last) if within else stop
                for low in range(start, here, _TILE):
                    tile = slice(low - start, min(low + _TILE, here) - start)
                    part = queries[tile]
                    if fast:
                        query, row = coarse.candidates(tile, halved, part.new_full((len(part),), threshold))
                    else:
                        with full_precision(part.device):
                            query, row = (part @ rows.T >= threshold - 1e-5).nonzero(as_tuple=True)
                    if within:
                        later = row + first > query + low
                        query, row = query[later], row[later]
                    if len(query):
                        scores = pair_scores(part, rows, query, row)
                        good = (scores >= threshold).nonzero().squeeze(1)
                        kept += len(good)
                        found.append(((query[good] + low).cpu(), (row[good] + first).cpu(), scores[good].cpu()))
                    if kept > most:
                        raise too_many(most, threshold)
                    bar.advance(min((tile.stop - tile.start) * (last - first), total - bar.done))
    counts = ranks.sizes(kept)
    if sum(counts) > most:
        raise too_many(most, threshold)
    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    columns = (torch.cat(parts) for parts in zip(nothing, *found, strict=True))
    return in_order(*(ranks.gather(column, counts).numpy() for column in columns))


def _share_of_triangle(count: int) -> tuple[int, int]:
    """The part of range(count) that this rank compares with all that come later: as many pairs on every rank."""
    begin, end = (
        count - math.isqrt(count**2 * (ranks.world() - rank) // ranks.world())
        for rank in (ranks.rank(), ranks.rank() + 1)
    )
    return begin, end


def check_threshold(threshold: float) -> None:
    """Raises InputError for one that no cosine can have."""
    if not 0 < threshold <= 1:
        raise InputError(f"The similarity must be above 0 and at most 1, not {threshold:g}.")


def too_many(most: int, threshold: float) -> InputError:
    """The error for more pairs than are kept."""
    return InputError(f"More than {most:,} pairs are at least {threshold:g} similar: ask for a higher similarity.")


def in_order(
    first: Int[np.ndarray, " pairs"], second: Int[np.ndarray, " pairs"], scores: Float[np.ndarray, " pairs"]
) -> Pairs:
    """Pairs in their order."""
    order = np.lexsort((second, first, -scores))
    return Pairs(first[order], second[order], scores[order])


def neighbours_of_all(
    own: Vectors, neighbours: int, *, show: bool = False
) -> tuple[Float[np.ndarray, "count k"], Int[np.ndarray, "count k"]]:
    """For every vector the `neighbours` others with the highest cosine: scores (float32) and positions, best first.

    Raises InputError where there are not so many others. Memory beside the result: 65,536 vectors twice.
    """
    if not 1 <= neighbours < own.count:
        raise InputError(
            f"{neighbours} neighbours were asked for, and a picture has {max(own.count - 1, 0):,} others: "
            f"{'ask for at least one' if neighbours < 1 else 'ask for fewer'}."
        )
    begin, end = ranks.share(own.count)
    scores, positions = torch.empty(end - begin, neighbours), torch.empty((end - begin, neighbours), dtype=torch.int64)
    show = show and ranks.is_main()
    with ranks.fail_together(), Bar((end - begin) * own.count, "Comparing pictures", "pairs", enabled=show) as bar:
        for start in range(begin, end, _QUERIES):
            stop = min(start + _QUERIES, end)
            nearest = Nearest(own.read(start, stop), neighbours, torch.arange(start, stop), expected=own.count)
            for first in range(0, own.count, _ROWS):
                last = min(first + _ROWS, own.count)
                nearest.add(own.read(first, last), first)
                bar.advance((stop - start) * (last - first))
            part = slice(start - begin, stop - begin)
            scores[part], positions[part] = nearest.scores.cpu(), nearest.indices.cpu()
    return ranks.gather(scores).numpy(), ranks.gather(positions).numpy()


@dataclass(frozen=True)
class Exact:
    """All of some vectors, compared as above; `approximate.Graph` and `joins.Join` do the same nearly, and sooner."""

    vectors: Vectors

    def neighbours_of_all(
        self, neighbours: int, *, show: bool = False
    ) -> tuple[Float[np.ndarray, "count k"], Int[np.ndarray, "count k"]]:
        """The function of this name."""
        return neighbours_of_all(self.vectors, neighbours, show=show)

    def similar_pairs(
        self, threshold: float, *, against: Vectors | None = None, most: int = MOST_PAIRS, show: bool = False
    ) -> Pairs:
        """The function of this name."""
        return similar_pairs(self.vectors, threshold, against=against, most=most, show=show)
