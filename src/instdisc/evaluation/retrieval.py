"""Retrieval: when a picture asks for others, how many of its own class come, and how early?

    result = retrieval(vectors, labels)                               # each picture asks among all the others
    result = retrieval(vectors, labels, test_vectors, test_labels)    # test pictures ask among the training pictures

The whole ranking of each query counts, so this costs a sort of n scores a query. Queries are taken a few at a time;
beside their scores, memory holds the labelled vectors once, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from instdisc.errors import InputError
from instdisc.evaluation.rows import integers, require_matrix, widened
from instdisc.progress import Bar
from instdisc.shapes import Bool, Float, Tensor

__all__ = ["RetrievalResult", "average_precision", "retrieval"]

_SCORES = 2**24  # of a piece of queries: 64 MB in float32
_MOST_QUERIES = 2_000


@dataclass(frozen=True)
class RetrievalResult:
    """mean_average_precision: over queries, the mean precision at each picture of the query's class, in [0, 1].

    precision: k -> the mean share of the query's class among the k nearest: what people see. recall: k -> the share of
    queries that find a picture of their class among the k nearest. queries: how many asked.

    Examples:
        >>> import numpy as np
        >>> from instdisc.evaluation.retrieval import retrieval
        >>> rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.5], [0.0, 1.0]])
        >>> found = retrieval(rows, np.array([0, 0, 1, 1]), at=(1, 2))
        >>> found.queries, found.precision, found.recall
        (4, {1: 0.75, 2: 0.375}, {1: 0.75, 2: 0.75})
    """

    mean_average_precision: float
    precision: dict[int, float]
    recall: dict[int, float]
    queries: int


def retrieval(
    vectors: Any,
    labels: Any,
    test_vectors: Any = None,
    test_labels: Any = None,
    *,
    at: Sequence[int] = (1, 5, 10),
    most_queries: int = _MOST_QUERIES,
    device: torch.device | str = "cpu",
) -> RetrievalResult:
    """Mean average precision, precision and recall at k by cosine.

    Test pictures ask among the others; without test pictures each asks among all others.

    vectors: (n, dim); labels: n whole numbers, negative = no label: such pictures neither ask nor are found. Queries of
    a class that nobody else has are left out. most_queries: as many, evenly spread, ask at most.
    Raises InputError if shapes misfit or nobody can ask.

    Examples:
        >>> import numpy as np
        >>> from instdisc.evaluation.retrieval import retrieval
        >>> rows, labels = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), np.array([0, 1, 0])
        >>> round(retrieval(rows, labels, np.array([[0.9, 0.1]]), np.array([0])).mean_average_precision, 3)
        0.833
    """
    require_matrix(vectors)
    torch_device = torch.device(device)
    values = integers(labels, len(vectors))
    found = np.flatnonzero(values >= 0)
    among = test_vectors is None
    asking, wanted = (vectors, values) if among else (test_vectors, integers(test_labels, len(test_vectors)))
    classes, counts = np.unique(values[found], return_counts=True)
    enough = classes[counts > int(among)]
    able = np.flatnonzero((wanted >= 0) & np.isin(wanted, enough))
    if not len(able):
        raise InputError("No picture shares its class with another, so that none can be looked for.")
    queries = able[np.unique(np.linspace(0, len(able) - 1, min(most_queries, len(able))).astype(int))]
    rows = normalize(widened(vectors, found, torch_device), dim=1, eps=1e-12)
    codes = torch.from_numpy(values[found]).to(torch_device)
    precisions, recalls, shares = 0.0, dict.fromkeys(at, 0), dict.fromkeys(at, 0)
    size = max(1, _SCORES // len(found))
    with Bar(len(queries), "Measuring retrieval", "queries") as bar, torch.no_grad():
        for first in range(0, len(queries), size):
            part = queries[first : first + size]
            scores = normalize(widened(asking, part, torch_device), dim=1, eps=1e-12) @ rows.T
            if among:
                scores[torch.arange(len(part)), torch.from_numpy(np.searchsorted(found, part))] = -torch.inf
            order = scores.argsort(dim=1, descending=True, stable=True)
            right = codes[order] == torch.from_numpy(wanted[part]).to(torch_device)[:, None]
            if among:
                right = right[:, :-1]  # the query itself comes last
            precisions += float(average_precision(right).sum(dtype=torch.float64))
            for k in at:
                recalls[k] += int(right[:, :k].any(1).sum())
                shares[k] += int(right[:, :k].sum())
            bar.advance(len(part))
    count = len(queries)
    precision = {k: hits / (count * min(k, len(found) - int(among))) for k, hits in shares.items()}
    return RetrievalResult(precisions / count, precision, {k: hits / count for k, hits in recalls.items()}, count)


def average_precision(right: Bool[Tensor, "queries ranked"]) -> Float[Tensor, " queries"]:
    """The mean, over the right answers of a ranking, of the share of right ones up to there; 0 without any.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.retrieval import average_precision
        >>> average_precision(torch.tensor([[True, False, True], [False, True, False]]))
        tensor([0.8333, 0.5000])
    """
    so_far = right.cumsum(1)
    precision = so_far / torch.arange(1, right.shape[1] + 1, device=right.device)
    return (precision * right).sum(1) / so_far[:, -1].clamp_min(1)
