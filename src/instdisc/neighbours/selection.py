"""The best of many scores, in one order: best first, of equal scores the lower index first."""

from __future__ import annotations

import math

import torch

from instdisc.shapes import Float, Int, Tensor

MISSING = -1  # the index of a position that no row has filled yet; its score is -inf


def best_columns(
    scores: Float[Tensor, "queries rows"], k: int
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k best scores of each query, best first, and their columns; of equal scores the first columns, in order.

    All columns where there are no more than k.
    """
    if k >= scores.shape[1]:
        scores, columns = scores.sort(dim=1, descending=True, stable=True)
        return scores, columns
    best, columns = _leading(scores, k + 1)
    doubtful = (best[:, k - 1] == best[:, k]).nonzero().squeeze(1)  # the last one has equals that were left out
    best, columns = best[:, :k], columns[:, :k]
    if len(doubtful):
        columns[doubtful] = _first_of_equal(scores[doubtful], best[doubtful, -1:], k)
    if bool((best[:, 1:] == best[:, :-1]).any()) or len(doubtful):
        columns = columns.sort(dim=1).values
        best, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
        columns = columns.gather(1, order)
    return best, columns


def _leading(scores: Float[Tensor, "queries rows"], count: int) -> tuple[Tensor, Tensor]:
    """`torch.topk`, by way of the maxima of groups of columns."""
    columns = scores.shape[1]
    size = 1 << int(math.log2(columns / count) / 2)
    if size < 4:
        return scores.topk(count, dim=1)
    groups = columns // size
    maxima = scores[:, : groups * size].unflatten(1, (size, groups)).amax(dim=1)  # of columns that are `groups` apart
    chosen = maxima.topk(count, dim=1, sorted=False).indices
    steps = torch.arange(0, groups * size, groups, device=scores.device)
    candidates = (chosen[:, None, :] + steps[:, None]).flatten(1)
    rest = torch.arange(groups * size, columns, device=scores.device).expand(len(scores), -1)
    candidates = torch.cat([candidates, rest], dim=1)
    best, position = scores.gather(1, candidates).topk(count, dim=1)
    return best, candidates.gather(1, position)


def _first_of_equal(scores: Float[Tensor, "queries rows"], last: Tensor, k: int) -> Int[Tensor, "queries k"]:
    """The columns above `last`, the k-th best score, and the first of those equal to it: k, ascending."""
    above, equal = scores > last, scores == last
    equal &= equal.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)
    return (above | equal).nonzero()[:, 1].view(-1, k)


def merge(
    scores: Float[Tensor, "queries many"], indices: Int[Tensor, "queries many"], k: int
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k best of a list of candidates a query; equal scores keep the order in which they stand."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)[:, :k]
    scores = scores[:, :k]
    return scores, indices.where(scores > -torch.inf, MISSING)
