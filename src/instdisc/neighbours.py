"""Exact nearest neighbours by inner product (cosine, for unit rows), in blocks, with memory that does not grow with n.

    scores, indices = top_k(queries, rows, 10)          # best first; equal scores: the lower index first

A block of rows is scored against a tile of queries by one matrix product. After the first block a score can only matter
if it beats the query's present k-th best, so later blocks are filtered by that floor and few numbers are ever sorted
(on one CPU thread, 256 queries x 16,384 rows, k 200: product 13 ms, filter 5 ms, `torch.topk` 21 ms).

Once few rows pass the floor, a CPU with bfloat16 products takes those that could pass within the error bound of such a
product, and scores them alone in float32: the same answers, sooner.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from instdisc.errors import InputError
from instdisc.shapes import Float, Int

_MISSING = -1  # the index of a place that no row has filled yet; its score is -inf
_SEGMENTS = 64  # how many columns of a tile of coarse scores are looked at by their maximum
_FEW = 8  # queries, whose product with many rows is bound by memory
_MANY = 100  # candidates a query and block: from here on the float32 product costs less than scoring them singly
_AT_ONCE = 1 << 16  # pairs scored at once: 64 MB of vectors of 128 numbers


class Nearest:
    """The k best rows for each query among the blocks seen so far.

    `scores` (queries, k) float32, best first, and `indices` (queries, k) int64 live on the device of the queries.
    Blocks must come in ascending order of their first index: that is what makes ties go to the lower index.
    Places that no row has filled hold the score -inf and the index -1. `expected`: how many rows will come, about:
    where they are many, a CPU may look at them in half precision first.
    """

    def __init__(
        self,
        queries: Float[Tensor, "queries dim"],
        k: int,
        exclude: Int[Tensor, "queries"] | None = None,
        expected: int = 0,
    ) -> None:
        if k < 1:
            raise InputError(f"The number of neighbours must be at least 1, not {k}.")
        self.queries = queries.detach().to(torch.float32)
        require_finite(self.queries)
        self.exclude = None if exclude is None else exclude.to(queries.device)
        # The tile of scores stays in a CPU's cache; a GPU wants more work in one launch.
        self._tile = 256 if queries.device.type == "cpu" else 2048
        self.scores = torch.full((len(queries), k), -torch.inf, device=queries.device)
        self.indices = torch.full((len(queries), k), _MISSING, dtype=torch.int64, device=queries.device)
        self._seen, self._coarse_from = 0, 200 * k
        many = len(queries) >= self._tile and expected >= 2 * self._coarse_from
        self._coarse = Coarse(self.queries) if many and halves_pay(queries.device) else None

    def add(self, rows: Float[Tensor, "rows dim"], first: int) -> None:
        """Show the rows whose indices are `first`, `first + 1`, ...; half precision is widened to float32 here."""
        if not len(rows):
            return
        rows = rows.detach().to(self.queries.device, torch.float32)
        with torch.no_grad(), full_precision(self.queries.device):
            coarse = Coarse(rows) if self._coarse is not None and self._seen >= self._coarse_from else None
            for start in range(0, len(self.queries), self._tile):
                tile = slice(start, min(start + self._tile, len(self.queries)))
                if coarse is not None and self._seen >= self._coarse_from:
                    query, column = self._few(tile, coarse)
                    scores = None
                else:
                    query, column, scores = self._above(tile, rows, first)
                if scores is None or self._coarse is not None:
                    # One way for all scores, so that equal rows have equal scores, wherever they stand.
                    scores = pair_scores(self.queries[tile], rows, query, column)
                    if self.exclude is not None:
                        scores[self.exclude[tile][query] == column + first] = -torch.inf
                self._keep(tile, query, column + first, scores)
        self._seen += len(rows)

    def _few(self, tile: slice, rows: Coarse) -> tuple[Tensor, Tensor]:
        """(query, column) of all rows that may pass the floors, by a product in half precision."""
        assert self._coarse is not None
        query, column = self._coarse.candidates(tile, rows, self.scores[tile, -1])
        if len(query) > _MANY * (tile.stop - tile.start):
            self._coarse_from = 2 * self._seen  # it does not pay yet
        return query, column

    def _above(self, tile: slice, rows: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """(query, column, score) of the scores above each query's floor, by query and then by column.

        Where far more than k pass (the first block, or rows that happen to come best last) the block's own k-th best
        thins them out. Scores equal to that one all stay, so the choice among ties is left to the merge.
        """
        scores = _products(self.queries[tile], rows)
        require_finite(scores[0])  # finite queries and a row that is not: every score of the row shows it
        if self.exclude is not None:
            own = self.exclude[tile] - first
            here = ((own >= 0) & (own < len(rows))).nonzero().squeeze(1)
            scores[here, own[here]] = -torch.inf
        k = self.scores.shape[1]
        passed = scores > self.scores[tile, -1:]
        if torch.count_nonzero(passed) > 4 * k * len(scores):
            passed &= scores >= scores.topk(k, dim=1).values[:, -1:]
        query, column = passed.nonzero(as_tuple=True)
        return query, column, scores[query, column]

    def _keep(self, tile: slice, query: Tensor, index: Tensor, found: Tensor) -> None:
        """Merge some rows, in order of their query and then of their index, with the best so far."""
        if not len(query):
            return
        best_scores, best_indices = self.scores[tile], self.indices[tile]
        counts = torch.bincount(query, minlength=len(best_scores))
        place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        found_scores = found.new_full((len(best_scores), int(counts.max())), -torch.inf)
        found_indices = torch.zeros(found_scores.shape, dtype=torch.int64, device=query.device)
        found_scores[query, place] = found
        found_indices[query, place] = index
        # Both parts list equal scores by rising index and the best so far come from earlier rows, so that a stable sort
        # by score alone settles ties in favour of the lower index.
        both_scores = torch.cat([best_scores, found_scores], dim=1)
        both_indices = torch.cat([best_indices, found_indices], dim=1)
        kept_scores, kept_indices = merge(both_scores, both_indices, best_scores.shape[1])
        self.scores[tile], self.indices[tile] = kept_scores, kept_indices


def _products(queries: Float[Tensor, "queries dim"], rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "queries rows"]:
    """Every query with every row. With few queries a CPU is up to five times quicker at `rows @ queries.T`.

    One query alone is quick only in parts (a million rows of 128 on two cores: 18 ms, in one part 70).
    """
    if queries.device.type != "cpu" or len(queries) > _FEW:
        return queries @ rows.T
    if len(queries) > 1 or not len(rows):
        return (rows @ queries.T).T
    parts = next(parts for parts in (16, 8, 4, 2, 1) if len(rows) % parts == 0)
    return torch.bmm(rows.unflatten(0, (parts, -1)), queries.T.expand(parts, -1, -1)).view(1, -1)


def merge(
    scores: Float[Tensor, "queries many"], indices: Int[Tensor, "queries many"], k: int
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k best of a list of candidates a query; equal scores keep the order in which they stand."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)[:, :k]
    scores = scores[:, :k]
    return scores, indices.where(scores > -torch.inf, _MISSING)


def top_k(
    queries: Float[Tensor, "queries dim"],
    rows: Float[Tensor, "rows dim"],
    k: int,
    *,
    exclude: Int[Tensor, "queries"] | None = None,
    block: int = 16384,
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k rows with the largest inner product for each query: scores (float32) and row numbers, best first.

    Exact in float32, whatever the dtype of the rows, autocast or the TF32 setting. Equal scores: the lower row number
    first. `exclude` names one row a query that is never returned (its own, for leave-one-out; -1: none). `rows` may
    stand on another device than the queries and is then sent over block by block. Scratch memory is
    O(block * (dim + tile)) beside the result.

    Raises InputError if there are fewer than k rows to choose from, or if a vector holds NaN or infinity.
    """
    available = len(rows) - (1 if exclude is not None and bool((exclude >= 0).any()) else 0)
    if k > available:
        raise InputError(f"{k} neighbours were asked for but there are only {available} rows to choose from.")
    nearest = Nearest(queries, k, exclude, expected=len(rows))
    for first in range(0, len(rows), block):
        nearest.add(rows[first : first + block], first)
    return nearest.scores, nearest.indices


class Coarse:
    """Rows in bfloat16, for products that tell which pairs may reach a floor. rows: (rows, dim) float32."""

    def __init__(self, rows: Float[Tensor, "rows dim"]) -> None:
        require_finite(rows)
        self.count = len(rows)
        self.length = float(torch.linalg.vector_norm(rows, dim=1).max()) if len(rows) else 0.0
        padded = -(-len(rows) // _SEGMENTS) * _SEGMENTS
        self.rows = rows.new_zeros((padded, rows.shape[1]), dtype=torch.bfloat16)
        self.rows[: len(rows)] = rows

    def candidates(
        self, tile: slice, others: Coarse, floors: Float[Tensor, "tile"]
    ) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
        """(place in the tile, row of `others`) of every pair whose float32 product may reach its floor; sorted.

        None is missing: both factors and the product are each rounded by at most u = 2^-8 of themselves, so that a
        coarse product is off by at most 3.02 u |q| |r|.
        """
        queries = self.rows[tile]
        error = (3.03 * 2**-8 + queries.shape[1] * 2**-23) * self.length * others.length
        low = (floors - error - floors.abs() * 2**-7).to(torch.bfloat16)
        # The bits of positive bfloat16 numbers, read as whole numbers, have the numbers' order, and those of negative
        # numbers are below: whole numbers are compared far faster. A floor that is not positive lets everything pass.
        bits = low.view(torch.int16).where(low > 0, -(2**15))
        scores = (queries @ others.rows.T).view(torch.int16).unflatten(1, (_SEGMENTS, -1))
        query, segment = (scores.amax(1) >= bits[:, None]).nonzero(as_tuple=True)
        hit, place = (scores[query, :, segment] >= bits[query, None]).nonzero(as_tuple=True)
        query, column = query[hit], place * scores.shape[2] + segment[hit]
        order = (query * len(others.rows) + column).argsort()
        query, column = query[order], column[order]
        if others.count < len(others.rows):
            real = column < others.count
            query, column = query[real], column[real]
        return query, column


def pair_scores(
    queries: Float[Tensor, "queries dim"],
    rows: Float[Tensor, "rows dim"],
    query: Int[Tensor, "pairs"],
    row: Int[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """The products of some pairs, in float32, in fixed memory."""
    scores = queries.new_empty(len(query))
    for start in range(0, len(query), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        torch.sum(queries[query[some]] * rows[row[some]], dim=1, out=scores[some])
    return scores


@cache
def halves_pay(device: torch.device) -> bool:
    """Whether products in bfloat16 are far faster than in float32: tried once, on a CPU (a GPU is left as it is)."""
    if device.type != "cpu":
        return False
    rows = torch.ones(4096, 128)
    with torch.no_grad(), full_precision(device):
        return _seconds(rows) > 2 * _seconds(rows.to(torch.bfloat16))


def _seconds(rows: Tensor) -> float:
    """The least time of a product."""
    taken = []
    for _ in range(6):
        started = time.perf_counter()
        rows[:256] @ rows.T
        taken.append(time.perf_counter() - started)
    return min(taken)


def require_finite(vectors: Tensor) -> None:
    """InputError where a number is not finite."""
    # A sum is finite where all numbers are, unless it overflows; it costs a fifth of looking at each.
    if not math.isfinite(vectors.sum()) and not bool(torch.isfinite(vectors).all()):
        raise InputError(
            "A vector holds NaN or infinity, so that it has no nearest neighbours: leave it out or embed it again."
        )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in true float32: a training run may have switched on autocast, TF32 or bfloat16 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
