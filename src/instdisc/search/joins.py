"""The neighbours of all among many millions, nearly all of them: each vector beside those of the cells nearest to it.

    join = Join(stored_cells(file, vectors, rows=rows, made_of=made_of, beside=0))
    join.recall                                           # of the ten nearest, against exact search
    scores, positions = join.neighbours_of_all(10)
    pairs = join.similar_pairs(0.95)

The vectors for which a cell is near are compared with all of its own at once, by products of matrices: ten million take
an hour or two of a core, where an exact comparison takes days, and one query after another as long. Scores are exact;
who is found is not: some of the nearest stand in cells farther off. Copies, whose vectors are nearly equal, hardly do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from instdisc.neighbours import Nearest, require_finite, shared
from instdisc.neighbours.selection import best_columns
from instdisc.progress import Bar
from instdisc.search.cells import Cells
from instdisc.search.pairs import MOST_PAIRS, Pairs, Vectors, check_threshold, in_order, too_many
from instdisc.shapes import Float, Int, Tensor

RECALL, _MOST_LOOKED = 0.95, 8  # wanted of the ten nearest; cells that a vector is looked for in at most
_BLOCK, _TILE, _RANKED = 131_072, 512, 512  # vectors that are read, compared with a cell, and ranked exactly at once
_ROOM = 1 << 24  # candidates of a block
_MORE = 6  # candidates by int8 beyond those asked for
_ROUNDED = 0.01  # by which a cosine of int8 numbers is off at most
Met = tuple[Tensor, Tensor, Tensor, Tensor]  # vectors of a block, numbers of their slots; positions, vectors of a cell
Answer = TypeVar("Answer")


class Join:
    """cells: of all the vectors (`Cells.beside` is 0). looked: cells that each is looked for in, the nearest to it.

    As few as find 95 % of the ten nearest of half a sample, and eight at most; `recall` is what they find of the other
    half.
    """

    def __init__(self, cells: Cells) -> None:
        self._cells, self._vectors = cells, cells.vectors
        chosen, judged = cells.ranks()
        enough = float(chosen.float().quantile(RECALL)) + 1 if len(chosen) else 1
        self.looked = min(_MOST_LOOKED, len(cells), int(np.ceil(enough)))
        self.recall = float((judged < self.looked).float().mean()) if len(judged) else 1.0

    def neighbours_of_all(
        self, neighbours: int, *, show: bool = False
    ) -> tuple[Float[np.ndarray, "count k"], Int[np.ndarray, "count k"]]:
        """As `pairs.neighbours_of_all`, but for those that stand in cells farther off. Positions are int32."""
        return self.neighbours_of(np.arange(self._vectors.count), neighbours, show=show)

    @torch.no_grad()
    def neighbours_of(
        self, asked: Int[np.ndarray, " asked"], neighbours: int, *, show: bool = False
    ) -> tuple[Float[np.ndarray, "asked k"], Int[np.ndarray, "asked k"]]:
        """The same for the vectors at some positions alone."""
        scores = torch.empty(len(asked), neighbours)
        positions = torch.empty(len(asked), neighbours, dtype=torch.int32)
        size = max(_TILE, min(_BLOCK, _ROOM // (self.looked * (neighbours + _MORE))))
        with Bar(len(asked), "Comparing pictures", "pictures", enabled=show) as bar:
            for start in range(0, len(asked), size):
                own = asked[start : start + size]
                block, here = self._vectors.pick(own).cpu(), slice(start, start + len(own))
                scores[here], positions[here] = self._nearest(block, torch.from_numpy(own), neighbours)
                bar.advance(len(block))
        return scores.numpy(), positions.numpy()

    @torch.no_grad()
    def similar_pairs(
        self, threshold: float, *, against: Vectors | None = None, most: int = MOST_PAIRS, show: bool = False
    ) -> Pairs:
        """As `pairs.similar_pairs`, but for pairs whose cells lie farther apart."""
        check_threshold(threshold)
        others, within = (self._vectors, True) if against is None else (against, False)
        found = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))]
        kept = 0
        with Bar(others.count, "Comparing pictures", "pictures", enabled=show) as bar:
            for start in range(0, others.count, _BLOCK):
                block = others.read(start, min(start + _BLOCK, others.count)).cpu()
                require_finite(block)
                for pairs in self._meet(block, partial(self._alike, block, start, threshold, within)):
                    found.append(pairs)
                    kept += len(pairs[0])
                    if kept > (2 if within else 1) * most:  # a pair may be found from both sides
                        raise too_many(most, threshold)
                bar.advance(len(block))
        first, second, scores = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        if within:
            first, second = np.minimum(first, second), np.maximum(first, second)
            once = np.unique(first * others.count + second, return_index=True)[1]
            first, second, scores = first[once], second[once], scores[once]
        if len(first) > most:
            raise too_many(most, threshold)
        return in_order(first, second, scores)

    def _meet(self, block: Float[Tensor, "block dim"], look: Callable[[Met], Answer]) -> Iterator[Answer]:
        """What `look` says of each cell that is near to vectors of the block; by several threads."""
        near = torch.cat([best_columns(some @ self._cells.centres.T, self.looked)[1] for some in block.split(_TILE)])
        order = near.flatten().argsort(stable=True)
        counts = near.flatten().bincount(minlength=len(self._cells))
        ends = counts.cumsum(0).tolist()

        def one(cell: int) -> Answer:
            asked = order[ends[cell] - int(counts[cell]) : ends[cell]]
            return look((asked // self.looked, asked % self.looked, *self._cells.inside(cell)))

        cells, threads = counts.nonzero()[:, 0].tolist(), torch.get_num_threads()
        return shared(one, cells, threads) if min(threads, len(cells) - 1) > 1 else map(one, cells)

    def _nearest(
        self, block: Float[Tensor, "block dim"], own: Int[Tensor, " block"], neighbours: int
    ) -> tuple[Tensor, Tensor]:
        """(scores, positions) of the nearest of a block of the vectors, which stand at the positions `own`."""
        wanted = neighbours + _MORE
        rough = torch.full((len(block), self.looked, wanted), -torch.inf)
        found = torch.zeros(rough.shape, dtype=torch.int32)

        def look(met: Met) -> None:
            queries, slots, positions, vectors = met
            width = min(wanted, len(positions))
            if not width:
                return
            for some, slot in zip(queries.split(_TILE), slots.split(_TILE), strict=True):
                scores = block[some] @ vectors.T
                at = torch.searchsorted(positions, own[some]).clamp(max=len(positions) - 1)
                here = (positions[at] == own[some]).nonzero()[:, 0]
                scores[here, at[here]] = -torch.inf
                best, columns = best_columns(scores, width)
                rough[some, slot, :width], found[some, slot, :width] = best, positions[columns].to(torch.int32)

        for _ in self._meet(block, look):
            pass
        best, order = rough.flatten(1).topk(wanted, dim=1)
        candidates = found.flatten(1).gather(1, order).long().masked_fill(best == -torch.inf, -1)
        candidates = candidates.sort(dim=1).values  # of equal scores the lower position first
        answers = [
            self._ranked(query, some, neighbours)
            for query, some in zip(block.split(_RANKED), candidates.split(_RANKED), strict=True)
        ]
        scores, positions = (torch.cat(parts) for parts in zip(*answers, strict=True))
        short = (scores[:, -1] == -torch.inf).nonzero()[:, 0]
        if len(short):  # so few stand in these cells
            exact = Nearest(block[short], neighbours, own[short], expected=self._vectors.count)
            for first in range(0, self._vectors.count, _BLOCK):
                exact.add(self._vectors.read(first, min(first + _BLOCK, self._vectors.count)).cpu(), first)
            scores[short], positions[short] = exact.scores, exact.indices
        return scores, positions

    def _ranked(self, queries: Tensor, candidates: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
        """The best of the candidates of each query, -1 for none, by their exact cosines."""
        rows = self._vectors.pick(candidates.clamp_min(0).flatten().numpy()).cpu().view(*candidates.shape, -1)
        exact = torch.bmm(rows, queries[:, :, None])[:, :, 0].masked_fill_(candidates < 0, -torch.inf)
        scores, order = exact.sort(dim=1, descending=True, stable=True)
        return scores[:, :neighbours], candidates.gather(1, order[:, :neighbours])

    def _alike(
        self, block: Tensor, start: int, threshold: float, within: bool, met: Met
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(positions in the cell, positions of the block's vectors, cosines) of the pairs that are alike enough."""
        queries, _, positions, vectors = met
        pairs = [
            (some[query], positions[row])
            for some in queries.split(_TILE)
            for query, row in [(block[some] @ vectors.T >= threshold - _ROUNDED).nonzero(as_tuple=True)]
        ]
        query, row = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        if within:
            others = row != query + start
            query, row = query[others], row[others]
        scores = torch.cat(
            [
                (block[one] * self._vectors.pick(other.numpy()).cpu()).sum(1)
                for one, other in zip(query.split(_BLOCK), row.split(_BLOCK), strict=True)
            ]
        )
        good = scores >= threshold
        return row[good], query[good] + start, scores[good]
