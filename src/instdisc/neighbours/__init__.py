"""Exact nearest neighbours by inner product (cosine, for unit rows), in blocks, with memory that does not grow with n.

    scores, indices = top_k(queries, rows, 10)          # best first; equal scores: the lower index first

A block of rows is scored against a tile of queries by one matrix product. Its best k stand in the k groups of columns
with the highest maxima, so that `torch.topk` sees the maxima and those groups, and not all scores (on two cores of a
Xeon, 2,000 queries x 50,000 rows, k 200: product 0.50 s, this 0.87 s, `torch.topk` of all scores 1.06 s).

Once few rows of a block beat a query's k-th best, a CPU with bfloat16 products takes those that could within the error
bound of such a product, and scores them alone in float32: the same answers, sooner.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor

from instdisc.errors import InputError
from instdisc.neighbours.selection import MISSING, best_columns, merge
from instdisc.shapes import Float, Int
from instdisc.system import beside_others
from instdisc.transfer import send

__all__ = ["Nearest", "top_k"]

Answer = TypeVar("Answer")

_SEGMENTS = 64  # how many columns of a tile of coarse scores are looked at by their maximum
_FEW = 8  # queries, whose product with many rows is bound by memory
_TILE, _TILE_GPU = 128, 2048  # queries at once: the scores of a CPU's tile fit in 32 MB, a GPU wants more work
_PASSED = 2_000  # rows seen for each neighbour that is kept: after them few pass the k-th best
_SCORES, _BLOCK = 1 << 23, 1 << 14  # scores at once on a CPU; rows of a block elsewhere
_MANY = 100  # candidates a query and block: from here on the float32 product costs less than scoring them singly
_KEYED_TILE, _LAST_ROW = 1024, 0xFFFF_FFFF
_NOT_FINITE = "A vector holds NaN or infinity, so that it has no nearest neighbours: leave it out or embed it again."
_AT_ONCE = 1 << 16  # pairs scored at once: 64 MB of vectors of 128 dimensions


class Nearest:
    """The k best rows for each query among the blocks seen so far.

    `scores` (queries, k) float32, best first, and `indices` (queries, k) int64 live on the device of the queries.
    Blocks must come in ascending order of their first index: that is what makes ties go to the lower index.
    Places that no row has filled hold the score -inf and the index -1. `expected`: how many rows will come, about:
    where they are many, a CPU may look at them in half precision first.

    Examples:
        >>> import torch
        >>> from instdisc.neighbours import Nearest
        >>> nearest = Nearest(torch.tensor([[1.0, 0.0]]), k=2)
        >>> for first, block in enumerate(torch.tensor([[[0.6, 0.8]], [[1.0, 0.0]], [[0.0, 1.0]]])):
        ...     nearest.add(block, first)
        >>> nearest.scores, nearest.indices
        (tensor([[1.0000, 0.6000]]), tensor([[1, 0]]))
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
        self._keyed: Keyed | None = None
        if queries.device.type not in ("cpu", "mps"):
            self._keyed = Keyed(self.queries, k, exclude)
            return
        require_finite(self.queries)
        self.exclude = None if exclude is None else exclude.to(queries.device)
        self._tile = _TILE if queries.device.type == "cpu" else _TILE_GPU
        self._scores = torch.full((len(queries), k), -torch.inf, device=queries.device)
        self._indices = torch.full((len(queries), k), MISSING, dtype=torch.int64, device=queries.device)
        self._seen, self._coarse_from = 0, _PASSED * k
        many = len(queries) >= self._tile and expected >= 5 * self._coarse_from
        self._coarse = Coarse(self.queries) if many and fp16_is_faster(queries.device) else None

    @property
    def scores(self) -> Float[Tensor, "queries k"]:
        """Of the best rows, best first."""
        return self._scores if self._keyed is None else self._keyed.answer()[0]

    @property
    def indices(self) -> Int[Tensor, "queries k"]:
        """Of the best rows, best first."""
        return self._indices if self._keyed is None else self._keyed.answer()[1]

    def add(self, rows: Float[Tensor, "rows dim"], first: int) -> None:
        """Show the rows whose indices are `first`, `first + 1`, ...; half precision is widened to float32 here."""
        if not len(rows):
            return
        rows = send(rows.detach(), self.queries.device).to(torch.float32)
        if self._keyed is not None:
            self._keyed.add(rows, first)
            return
        with torch.no_grad(), full_precision(self.queries.device):
            coarse = Coarse(rows) if self._coarse is not None and self._seen >= self._coarse_from else None
            starts = range(0, len(self.queries), self._tile)
            threads = torch.get_num_threads() if self.queries.device.type == "cpu" else 1
            if threads > 1 and len(starts) >= 4 * threads:
                for _ in shared(partial(self._add_to, rows, first, coarse), starts, threads):
                    pass
            else:
                with beside_others() if len(self.queries) <= _FEW else nullcontext():
                    for start in starts:
                        self._add_to(rows, first, coarse, start)
        self._seen += len(rows)

    @torch.no_grad()
    def _add_to(self, rows: Tensor, first: int, coarse: Coarse | None, start: int) -> None:
        """Show the rows to the tile of queries from `start` on."""
        tile = slice(start, min(start + self._tile, len(self.queries)))
        if coarse is not None and self._seen >= self._coarse_from:
            self._rescore(tile, *self._few(tile, coarse), rows, first)
            return
        scores, columns = self._best(tile, rows, first)
        if self._coarse is None:
            self._merge(tile, scores, columns + first)
        else:
            query = torch.arange(len(columns)).repeat_interleave(columns.shape[1])
            self._rescore(tile, query, columns.sort(dim=1).values.flatten(), rows, first)

    def _few(self, tile: slice, rows: Coarse) -> tuple[Tensor, Tensor]:
        """(query, column) of all rows that may pass the floors, by a product in half precision."""
        assert self._coarse is not None
        query, column = self._coarse.candidates(tile, rows, self._scores[tile, -1])
        if len(query) > _MANY * (tile.stop - tile.start):
            self._coarse_from = 2 * self._seen  # it does not pay yet
        return query, column

    def _best(self, tile: slice, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """(scores, columns) of the block's best rows for each query of the tile, in their order."""
        scores = _products(self.queries[tile], rows)
        require_finite(scores[0])  # finite queries and a row that is not: every score of the row shows it
        if self.exclude is not None:
            own = self.exclude[tile] - first
            here = ((own >= 0) & (own < len(rows))).nonzero().squeeze(1)
            scores[here, own[here]] = -torch.inf
        return best_columns(scores, self._scores.shape[1])

    def _rescore(self, tile: slice, query: Tensor, column: Tensor, rows: Tensor, first: int) -> None:
        """Keep some pairs, in order of their query and then of their row.

        One way for all scores, so that equal rows have equal scores, wherever they stand.
        """
        if not len(query):
            return
        found = pair_scores(self.queries[tile], rows, query, column)
        if self.exclude is not None:
            found[self.exclude[tile][query] == column + first] = -torch.inf
        counts = torch.bincount(query, minlength=tile.stop - tile.start)
        position = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        scores = found.new_full((len(counts), int(counts.max())), -torch.inf)
        indices = torch.zeros(scores.shape, dtype=torch.int64, device=query.device)
        scores[query, position] = found
        indices[query, position] = column + first
        self._merge(tile, scores, indices)

    def _merge(self, tile: slice, scores: Tensor, indices: Tensor) -> None:
        """Join candidates with the best so far, which come from earlier rows: of equal scores they stay in front."""
        k = self._scores.shape[1]
        if self._seen or scores.shape[1] < k:
            scores = torch.cat([self._scores[tile], scores], dim=1)
            indices = torch.cat([self._indices[tile], indices], dim=1)
        self._scores[tile], self._indices[tile] = merge(scores, indices, k)


class Keyed:
    """What `Nearest` does on a GPU, without the host waiting: no shape depends on a value.

    A candidate is one whole number: above the bits of its score, so turned that they have the order of the scores, and
    below them its row counted from the end. The largest are the best, and of equal scores the lowest rows.
    """

    def __init__(self, queries: Float[Tensor, "queries dim"], k: int, exclude: Int[Tensor, "queries"] | None) -> None:
        self.queries, self.exclude = queries, None if exclude is None else send(exclude, queries.device)
        self._keys = _keys_of(torch.full((len(queries), k), -torch.inf, device=queries.device), 0)
        self._finite = torch.isfinite(queries).all()
        self._answer: tuple[Tensor, Tensor] | None = None

    def add(self, rows: Float[Tensor, "rows dim"], first: int) -> None:
        """Show the rows whose indices are `first`, `first + 1`, ..."""
        self._answer = None
        with torch.no_grad(), full_precision(self.queries.device):
            for start in range(0, len(self.queries), _KEYED_TILE):
                tile = slice(start, start + _KEYED_TILE)
                scores = self.queries[tile] @ rows.T
                self._finite &= torch.isfinite(scores[0]).all()  # of a row that is not, every score shows it
                if self.exclude is not None:
                    own = (self.exclude[tile] - first)[:, None]
                    position = own.clamp(0, len(rows) - 1)
                    scores.scatter_(1, position, scores.gather(1, position).masked_fill(own == position, -torch.inf))
                best = _keys_of(scores, first).topk(min(self._keys.shape[1], len(rows)), dim=1, sorted=False).values
                self._keys[tile] = torch.cat([self._keys[tile], best], 1).topk(self._keys.shape[1], dim=1).values

    def answer(self) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
        """Scores and indices, after the one wait for whether all was finite."""
        if self._answer is None:
            if not bool(self._finite):
                raise InputError(_NOT_FINITE)
            scores = _turned((self._keys >> 32).to(torch.int32)).view(torch.float32)
            indices = (_LAST_ROW - (self._keys & _LAST_ROW)).where(scores > -torch.inf, MISSING)
            self._answer = scores, indices
        return self._answer


def _keys_of(scores: Float[Tensor, "queries rows"], first: int) -> Int[Tensor, "queries rows"]:
    """Whole numbers in the order of the scores (-0 is 0), of equal ones the first the largest."""
    ordered = _turned((scores + 0.0).view(torch.int32)).to(torch.int64)
    return (ordered << 32) | (_LAST_ROW - first - torch.arange(scores.shape[1], device=scores.device))


def _turned(bits: Int[Tensor, "queries any"]) -> Int[Tensor, "queries any"]:
    """The bits of float32 numbers as whole numbers that have the numbers' order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFF_FFFF)


def _products(queries: Float[Tensor, "queries dim"], rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "queries rows"]:
    """Every query with every row. With few queries some CPUs are up to five times quicker at `rows @ queries.T`."""
    if queries.device.type != "cpu" or len(queries) > _FEW:
        return queries @ rows.T
    if len(queries) > 1 or not len(rows):
        return (rows @ queries.T).T
    return _in_parts(queries, rows) if parts_pay() else torch.mv(rows, queries[0])[None]


def _in_parts(query: Float[Tensor, "1 dim"], rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "1 rows"]:
    parts = next(parts for parts in (16, 8, 4, 2, 1) if len(rows) % parts == 0)
    return torch.bmm(rows.unflatten(0, (parts, -1)), query.T.expand(parts, -1, -1)).view(1, -1)


def block_rows(queries: int, device: torch.device) -> int:
    """How many rows to show `Nearest` at a time: on a CPU the more, the fewer the queries."""
    return max(_BLOCK, _SCORES // max(1, min(queries, _TILE))) if device.type == "cpu" else _BLOCK


def top_k(
    queries: Float[Tensor, "queries dim"],
    rows: Float[Tensor, "rows dim"],
    k: int,
    *,
    exclude: Int[Tensor, "queries"] | None = None,
    block: int | None = None,
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k rows with the largest inner product for each query: scores (float32) and row numbers, best first.

    Exact in float32, whatever the dtype of the rows, autocast or the TF32 setting. Equal scores: the lower row number
    first. `exclude` names one row a query that is never returned (its own, for leave-one-out; -1: none). `rows` may
    stand on another device than the queries and is then sent over block by block (`block` rows; None: as many as suit
    the device). Scratch memory is O(block * (dim + tile)) beside the result, on a CPU some 40 MB.

    Raises InputError if there are fewer than k rows to choose from, or if a vector holds NaN or infinity.

    Examples:
        >>> import torch
        >>> from instdisc.neighbours import top_k
        >>> top_k(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]), 2)
        (tensor([[1.0000, 0.6000]]), tensor([[1, 0]]))
    """
    available = len(rows) - (1 if exclude is not None and bool((exclude >= 0).any()) else 0)
    if k > available:
        raise InputError(f"{k} neighbours were asked for but there are only {available} rows to choose from.")
    nearest = Nearest(queries, k, exclude, expected=len(rows))
    block = block_rows(len(queries), queries.device) if block is None else block
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
        """(position in the tile, row of `others`) of every pair whose float32 product may reach its floor; sorted.

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
        hit, position = (scores[query, :, segment] >= bits[query, None]).nonzero(as_tuple=True)
        query, column = query[hit], position * scores.shape[2] + segment[hit]
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


def shared(work: Callable[[int], Answer], starts: Iterable[int], threads: int) -> Iterator[Answer]:
    """Do each piece in one of some threads that compute alone, as they come free; what they answer, in order.

    Beside a busy program the slower thread gets fewer pieces, where torch's own threads would wait for each other.
    """
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, starts)
    finally:
        torch.set_num_threads(threads)  # which a new thread of anybody begins with


@cache
def fp16_is_faster(device: torch.device) -> bool:
    """Whether products in bfloat16 are far faster than in float32: tried once, on a CPU (a GPU is left as it is)."""
    if device.type != "cpu":
        return False
    rows = torch.ones(4096, 128)
    halves = rows.to(torch.bfloat16)
    with torch.no_grad(), full_precision(device):
        return _seconds(lambda: rows[:256] @ rows.T) > 2 * _seconds(lambda: halves[:256] @ halves.T)


@cache
def parts_pay() -> bool:
    """Whether a CPU is far faster at one query in parts: on some AMD a product with one vector takes one thread.

    Tried once: a million rows took 18 ms in parts and 70 in one there, 106 and 64 on an Intel Xeon.
    """
    rows, query = torch.ones(65_536, 128), torch.ones(1, 128)
    with torch.no_grad():
        return _seconds(lambda: torch.mv(rows, query[0])) > 1.5 * _seconds(lambda: _in_parts(query, rows))


def _seconds(act: Callable[[], object]) -> float:
    """The least time of six."""
    taken = []
    for _ in range(6):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return min(taken)


def require_finite(vectors: Tensor) -> None:
    """InputError where a number is not finite."""
    # A sum is finite where all numbers are, unless it overflows; it costs a fifth of looking at each.
    if not math.isfinite(vectors.sum()) and not bool(torch.isfinite(vectors).all()):
        raise InputError(_NOT_FINITE)


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
