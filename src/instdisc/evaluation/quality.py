"""Label-free health of a set of vectors: do views of a picture agree, do pictures spread out, has everything collapsed?

    health(vectors, first_views, second_views)   # alignment, uniformity, effective rank, and one plain sentence
    drift(bank_rows, vectors)                    # how stale the bank is
    neighbour_stability(earlier_rows, rows)      # whether the run is still changing its mind

Whatever n is, `health` looks at 4,096 rows at most, chosen by a seed; sums run in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from instdisc.errors import InputError
from instdisc.neighbours import top_k
from instdisc.shapes import Float

__all__ = [
    "Health",
    "alignment",
    "drift",
    "effective_rank",
    "health",
    "neighbour_stability",
    "sample_rows",
    "uniformity",
]

_MOST_ROWS = 4096
_BLOCK = 512  # rows whose distances to all others are held at once: 16 MB in float64
# Different pictures whose mean cosine is above this are one picture to the encoder. Fresh encoders start near it too.
_COLLAPSED_COSINE = 0.95
# Fewer directions than this in use (of 128, say) and the vectors lie on a line or a plane.
_COLLAPSED_RANK = 2.5


@dataclass(frozen=True)
class Health:
    """Label-free figures of a set of unit vectors.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.quality import health
        >>> found = health(torch.ones(10, 8))
        >>> found.collapsed, round(found.mean_cosine, 4), found.alignment
        (True, 1.0, None)
    """

    alignment: float | None  # 0: views of a picture are equal; 2: unrelated. None without views
    uniformity: float  # 0: all vectors equal; about -4: spread evenly over a sphere of many dimensions
    effective_rank: float  # directions in use: 1 to min(rows, dim)
    mean_cosine: float  # of two different pictures: 1 when all are equal, about 0 when they are spread out
    rows: int  # how many were looked at
    collapsed: bool
    sentence: str  # what the figures say, for a person


def sample_rows(
    vectors: Float[Tensor, "rows dim"], most: int = _MOST_ROWS, seed: int = 0
) -> Float[Tensor, "sample dim"]:
    """At most `most` different rows, in their order, chosen by the seed alone.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.quality import sample_rows
        >>> sample_rows(torch.randn(10_000, 8)).shape, sample_rows(torch.randn(10_000, 8), most=100).shape
        (torch.Size([4096, 8]), torch.Size([100, 8]))
    """
    if len(vectors) <= most:
        return vectors
    chosen = np.sort(np.random.default_rng(seed).choice(len(vectors), most, replace=False, shuffle=False))
    return vectors[torch.from_numpy(chosen).to(vectors.device)]


def alignment(first: Float[Tensor, "rows dim"], second: Float[Tensor, "rows dim"]) -> float:
    """The mean squared distance of the unit vectors of two views of the same picture: 0 when they agree.

    Wang & Isola, Understanding Contrastive Representation Learning (ICML 2020), eq for alignment with exponent 2.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.quality import alignment
        >>> alignment(torch.eye(4), 3 * torch.eye(4)), alignment(torch.eye(4), torch.eye(4).flip(0))
        (0.0, 2.0)
    """
    if len(first) == 0:
        raise InputError("Alignment needs at least one picture in two views.")
    return float((_units(first) - _units(second)).square().sum(dim=1).mean())


def uniformity(vectors: Float[Tensor, "rows dim"], *, most: int = _MOST_ROWS, seed: int = 0) -> float:
    """log of the mean of exp(-2·d²) over all pairs of different rows, d the distance of their unit vectors.

    Wang & Isola (ICML 2020), eq for uniformity with t = 2: 0 when all are equal, lower the more evenly they spread.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.quality import uniformity
        >>> round(uniformity(torch.ones(8, 4)), 4) + 0.0, round(uniformity(torch.eye(8)), 4)
        (0.0, -4.0)
    """
    rows = _units(sample_rows(vectors, most, seed))
    _require_pairs(rows)
    logs = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        # Unit rows: d² = 2 - 2·cos. A zero vector has no direction: its d² to a unit row is 1, as it should be.
        lengths = block.square().sum(1, keepdim=True) + rows.square().sum(1)
        exponents = -2 * (lengths - 2 * block @ rows.T).clamp_min(0)
        exponents[torch.arange(len(block)), torch.arange(start, start + len(block))] = -math.inf
        logs.append(exponents.flatten().logsumexp(0))
    return float(torch.stack(logs).logsumexp(0)) - math.log(len(rows) * (len(rows) - 1))


def effective_rank(vectors: Float[Tensor, "rows dim"], *, most: int = _MOST_ROWS, seed: int = 0) -> float:
    """How many directions the vectors use: exp of the entropy of their singular values, scaled to sum 1.

    Roy & Vetterli, The Effective Rank (EUSIPCO 2007). 1 when all vectors lie on one line, at most min(rows, dim).
    The vectors are taken as they are, neither centred nor scaled.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.quality import effective_rank
        >>> round(effective_rank(torch.ones(8, 4)), 3), round(effective_rank(torch.eye(8)), 3)
        (1.0, 8.0)
    """
    rows = sample_rows(vectors, most, seed).detach().to("cpu", torch.float64)
    _require_finite(rows)
    values = torch.linalg.svdvals(rows)
    if len(values) == 0 or float(values.sum()) == 0:
        raise InputError("The effective rank of no vectors, or of zero vectors only, is not defined.")
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def health(
    vectors: Float[Tensor, "rows dim"],
    first: Float[Tensor, "views dim"] | None = None,
    second: Float[Tensor, "views dim"] | None = None,
    *,
    most: int = _MOST_ROWS,
    seed: int = 0,
) -> Health:
    """All figures of one set of vectors, with two views of some pictures for the alignment.

    vectors: at least two rows of different pictures, any lengths. first, second: row i of each shows one picture.
    Raises InputError for fewer rows, or for NaN and infinity.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.quality import health
        >>> health(torch.eye(8)).sentence
        'The vectors are spread out: mean cosine 0.00, 8.0 of 8 directions in use.'
    """
    rows = _units(sample_rows(vectors, most, seed))
    _require_pairs(rows)
    agreed = (
        None
        if first is None or second is None
        else alignment(sample_rows(first, most, seed), sample_rows(second, most, seed))
    )
    spread = uniformity(rows, most=most)
    # The sum over pairs i ≠ j of cosines is |Σ v|² - Σ |v|².
    count = len(rows)
    cosine = float((rows.sum(dim=0).square().sum() - rows.square().sum()) / (count * (count - 1)))
    zero = bool((rows == 0).all())
    directions = 0.0 if zero else effective_rank(rows, most=most)
    limit = min(_COLLAPSED_RANK, min(rows.shape) / 2)
    collapsed, sentence = _verdict(cosine, directions, limit, rows.shape[1], zero)
    return Health(agreed, spread, directions, cosine, count, collapsed, sentence)


def drift(rows: Float[Tensor, "rows dim"], vectors: Float[Tensor, "as_many as_wide"]) -> float:
    """How far the bank's rows are from the vectors of the same pictures now: the mean of 1 - cosine, 0 when equal.

    A row is as old as the last step that saw its picture, and was made from a random view.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.quality import drift
        >>> drift(torch.eye(2), torch.eye(2)), drift(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        (0.0, 0.5)
    """
    if rows.shape != vectors.shape or len(rows) == 0:
        raise InputError(f"Drift compares a row with its vector, not {tuple(rows.shape)} with {tuple(vectors.shape)}.")
    total = 0.0
    for first in range(0, len(rows), _MOST_ROWS):
        part = slice(first, first + _MOST_ROWS)
        total += float((1 - (_units(rows[part]) * _units(vectors[part])).sum(1)).sum())
    return total / len(rows)


def neighbour_stability(
    first: Float[Tensor, "rows dim"],
    second: Float[Tensor, "as_many as_wide"],
    *,
    neighbours: int = 10,
    most: int = 1000,
) -> float:
    """The share of a picture's nearest neighbours that are the same in two banks of one run, in [0, 1].

    Of at most `most` pictures, evenly spread, the `neighbours` nearest among all others are compared.

    Examples:
        >>> import torch
        >>> from instdisc.evaluation.quality import neighbour_stability
        >>> earlier = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> turned, swapped = earlier.flip(1), earlier[[0, 2, 1, 3]]
        >>> neighbour_stability(earlier, turned, neighbours=1), neighbour_stability(earlier, swapped, neighbours=1)
        (1.0, 0.0)
    """
    if first.shape != second.shape or len(first) < 2:
        raise InputError(f"Two banks of the same run are compared, not {tuple(first.shape)} and {tuple(second.shape)}.")
    asked = torch.from_numpy(np.unique(np.linspace(0, len(first) - 1, min(most, len(first))).astype(int)))
    k = min(neighbours, len(first) - 1)
    found = []
    for bank in (first, second):
        rows = normalize(bank.float(), dim=1, eps=1e-12)
        found.append(top_k(rows[asked], rows, k, exclude=asked)[1])
    shared = (found[0][:, :, None] == found[1][:, None, :]).any(2)
    return float(shared.float().mean())


def _verdict(cosine: float, directions: float, limit: float, dim: int, zero: bool) -> tuple[bool, str]:
    """Whether the vectors have collapsed, and the sentence that says so."""
    if zero:
        return True, "The vectors have collapsed: all of them are zero. Lower the learning rate or start again."
    if cosine > _COLLAPSED_COSINE:
        return True, (
            f"The vectors have collapsed: two different pictures have a mean cosine of {cosine:.3f}, so the "
            "encoder gives nearly the same vector to all. Lower the learning rate, or raise the number of negatives."
        )
    if directions < limit:
        return True, (
            f"The vectors have collapsed: they use only {directions:.1f} of {dim} directions. "
            "Lower the learning rate, or raise the number of negatives."
        )
    return False, f"The vectors are spread out: mean cosine {cosine:.2f}, {directions:.1f} of {dim} directions in use."


def _units(vectors: Tensor) -> Tensor:
    """Unit rows in float64 on the CPU (some devices have no float64); a zero vector stays zero."""
    rows = vectors.detach().to("cpu", torch.float64)
    _require_finite(rows)
    return normalize(rows, dim=1, eps=1e-12)


def _require_finite(rows: Tensor) -> None:
    if not bool(torch.isfinite(rows).all()):
        raise InputError("A vector holds NaN or infinity: its quality can't be measured. Embed the pictures again.")


def _require_pairs(rows: Tensor) -> None:
    if len(rows) < 2:
        raise InputError(f"Uniformity needs at least two pictures, and there is {len(rows)}.")
