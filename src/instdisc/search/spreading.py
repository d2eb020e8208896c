"""A few labels spread over the neighbour graph to all pictures, and how far to trust what arrives.

    spread = spread_labels(graph.affinity(), codes)       # codes: -1 where a picture has no label
    trust = calibrated(spread, codes)                     # probabilities, one row a picture

Every label is a source that flows along the graph's edges: F = (I - alpha S)^-1 Y, as in Zhou et al., "Learning with
local and global consistency", 2004. The classes' scores are divided by their totals (class mass normalisation, Zhu et
al. 2003, with equal classes), so that the class with most labels, or the best connected ones, doesn't take all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from instdisc.errors import InputError
from instdisc.shapes import Bool, Float, Int

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ALPHA = 0.99
TOLERANCE = 1e-4  # of the residual, as a share of the sources' norm
_MOST_STEPS = 1_000
_AT_ONCE = 2**25  # numbers in a block of columns: 128 MB, five times
_ROWS = 2**18  # pictures whose shares are turned into probabilities at once
_COLUMNS_OF = 2_000_000  # pictures x columns that leaving labels out may cost
_FLOOR = 1e-4  # share that a class has everywhere: a logarithm needs one
_USUAL, _SPREAD = 3.0, 0.4  # power that was best on the collections measured, and its deviation in logarithms
_DOUBT, _WORTH = 0.1, 5.0  # the usual doubt, and how many labels that is worth
_DOUBTS = (0.002, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_BY_FLOW = 0.5  # with which power of what arrives at a picture the power of its shares grows


@dataclass(frozen=True)
class Spread:
    """shares: float32 (pictures, classes), rows sum to 1, or are 0 where no label arrives (`reached` tells).

    held_out: float64 (labelled, classes), the same for the labelled pictures in their order, each without its own label
    (and, where labels are many, without those of its group); rows of 0 where nothing else arrives. flow, held_out_flow:
    how much arrives in all, as a multiple of what a picture gets on average.
    """

    shares: Float[np.ndarray, "pictures classes"]
    held_out: Float[np.ndarray, "labelled classes"]
    flow: Float[np.ndarray, " pictures"]
    held_out_flow: Float[np.ndarray, " labelled"]

    @property
    def reached(self) -> Bool[np.ndarray, " pictures"]:
        """The pictures that some label arrives at."""
        return np.greater(self.shares.max(axis=1), 0)


def spread_labels(
    affinity: csr_array, codes: Int[np.ndarray, " pictures"], *, alpha: float = ALPHA, tolerance: float = TOLERANCE
) -> Spread:
    """Spread labels over a symmetric graph.

    affinity: as `NeighbourGraph.affinity`. codes: class of each picture, from 0; negative = no label. alpha: how far a
    label flows, above 0 and below 1: a step along an edge keeps this share. Leaving a label out is exact, since F is a
    sum over labels; of more than 2,000,000 / pictures labels some of one class are left out together, at least two
    groups a class. Deterministic. Raises InputError where there is no label.
    """
    labelled = np.flatnonzero(codes >= 0)
    if not len(labelled):
        raise InputError("No picture is labelled yet: label one, and its label can be spread.")
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}: choose a number above 0 and below 1.")
    count, classes = len(codes), int(codes.max()) + 1
    own = codes[labelled]
    groups = _groups(own, max(_COLUMNS_OF // count, 1))
    class_of = np.zeros(groups.max() + 1, np.int64)
    class_of[groups] = own
    scores = np.zeros((count, classes), np.float32)
    totals, at_labels, mass = np.zeros(classes), np.zeros((len(labelled), classes)), np.zeros(len(class_of))
    from_own = np.zeros(len(labelled))  # what a labelled picture gets from its own group
    width = max(1, _AT_ONCE // count)
    for first in range(0, len(class_of), width):
        columns = np.arange(first, min(first + width, len(class_of)))
        inside = np.isin(groups, columns)
        sources = np.zeros((count, len(columns)), np.float32)
        sources[labelled[inside], groups[inside] - first] = 1
        flow = solve(affinity, sources, alpha=alpha, tolerance=tolerance)
        mass[columns] = flow.sum(axis=0, dtype=np.float64)
        from_own[inside] = flow[labelled[inside], groups[inside] - first]
        for position, code in enumerate(class_of[columns]):
            scores[:, code] += flow[:, position]
    np.add.at(totals, class_of, mass)
    at_labels[:] = scores[labelled]
    rows = np.arange(len(labelled))
    left = np.tile(totals, (len(labelled), 1))
    left[rows, own] -= mass[groups]
    at_labels[rows, own] -= from_own
    alone = np.bincount(class_of, minlength=classes)[own] == 1  # nothing is left of the class
    at_labels[rows[alone], own[alone]] = 0
    scores /= np.maximum(totals, np.finfo(np.float32).tiny).astype(np.float32)
    at_labels = np.maximum(at_labels, 0) / np.maximum(left, np.finfo(np.float32).tiny)
    mean = len(np.unique(own)) / count  # the scores of a class add up to 1
    flows = (scores.sum(axis=1) / np.float32(mean), at_labels.sum(axis=1) / mean)
    return Spread(_shares(scores), _shares(at_labels), *flows)


def solve(
    affinity: csr_array,
    sources: Float[np.ndarray, "pictures columns"],
    *,
    alpha: float = ALPHA,
    tolerance: float = TOLERANCE,
) -> Float[np.ndarray, "pictures columns"]:
    """F of (I - alpha S) F = sources, by SciPy's conjugate gradients; float32, none negative.

    tolerance: the residual's norm as a share of the column's norm. The matrix is positive definite with eigenvalues in
    [1 - alpha, 1 + alpha]: at alpha 0.99 some 50 steps are enough.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    share = np.float32(alpha)
    # Not as a matrix: that would take the memory of two more graphs.
    matrix = LinearOperator(affinity.shape, lambda flow: flow - share * (affinity @ flow), dtype=np.float32)
    answer = np.empty(sources.shape, np.float32)
    for column, source in enumerate(sources.T):
        answer[:, column] = cg(matrix, source, rtol=tolerance, maxiter=_MOST_STEPS)[0]
    return np.maximum(answer, 0, out=answer)


def calibrated(spread: Spread, codes: Int[np.ndarray, " pictures"]) -> Float[np.ndarray, "pictures classes"]:
    """Probabilities of the classes, float32, rows sum to 1: two powers of the shares, mixed as the labels by hand say.

    A mixture of the shares to a high power and, with a small weight, the doubt, of the shares as they are: then few
    votes are nearly certain, and those that are not sure are not too timid. Both powers grow with the root of what
    arrives at the picture: of equal shares those of much flow are right more often, and proposals lie where much flows.
    Power and doubt are those under which the labelled pictures, each named by the others, have their labels with the
    highest likelihood, with priors around what is usual. The best class of a picture stays the best. What it aims at:
    of the votes that are 90 % sure about nine in ten are right. Measured (docs/collection.md), that is nearly so on
    photographs, drawings and digits, and where vectors are weak it promises too much. What it can't: know a class that
    has no label yet; a class with one label tells nothing here, and with fewer than some thirty labels what is usual is
    most of the answer. A picture that no label arrives at has equal shares.
    """
    own = codes[codes >= 0]
    again = np.bincount(own)[own] > 1  # without a second label of the class the right name can't be found
    trust = fit_trust(spread.held_out[again], spread.held_out_flow[again], own[again])
    answer = np.empty_like(spread.shares)
    for start in range(0, len(answer), _ROWS):
        some = slice(start, start + _ROWS)
        answer[some] = trust(spread.shares[some], spread.flow[some])
    return answer


@dataclass(frozen=True)
class Trust:
    """Probabilities of shares, by a power of them and a doubt: see `calibrated`."""

    power: float
    doubt: float

    def __call__(
        self, shares: Float[np.ndarray, "rows classes"], flow: Float[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows classes"]:
        """Rows sum to 1."""
        sharp, as_they_are = (sharpened(shares, flow, power) for power in (self.power, 1.0))
        return (1 - self.doubt) * sharp + self.doubt * as_they_are


def fit_trust(
    shares: Float[np.ndarray, "asked classes"], flow: Float[np.ndarray, " asked"], codes: Int[np.ndarray, " asked"]
) -> Trust:
    """What tells these classes best by these shares: maximum a posteriori; what is usual of no picture."""
    rows = np.arange(len(codes))
    doubts = np.array(_DOUBTS)
    likely = sharpened(shares, flow, 1.0)[rows, codes]
    prior = -_WORTH * (_DOUBT * np.log(doubts) + (1 - _DOUBT) * np.log(1 - doubts))
    best = (np.inf, _USUAL, _DOUBT)
    for power in np.exp(np.linspace(np.log(0.1), np.log(20), 80)):
        sharp = sharpened(shares, flow, power)[rows, codes]
        mixed = np.outer(1 - doubts, sharp) + np.outer(doubts, likely)
        losses = prior - np.log(np.maximum(mixed, 1e-9)).sum(axis=1) + 0.5 * (np.log(power / _USUAL) / _SPREAD) ** 2
        best = min(best, (float(losses.min()), float(power), float(doubts[losses.argmin()])))
    return Trust(*best[1:])


def sharpened(
    shares: Float[np.ndarray, "rows classes"], flow: Float[np.ndarray, " rows"], power: float
) -> Float[np.ndarray, "rows classes"]:
    """Shares to a power, which is less for pictures that little arrives at; rows sum to 1."""
    powers = (power * flow**_BY_FLOW).astype(shares.dtype)[:, None]
    logs = powers * np.log(shares + shares.dtype.type(_FLOOR))
    raised = np.exp(logs - logs.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _groups(own: Int[np.ndarray, " labelled"], most: int) -> Int[np.ndarray, " labelled"]:
    """A group for each label, from 0: all of a group are of one class; every label its own where `most` allows it."""
    if len(own) <= most:
        return np.arange(len(own))
    classes, sizes = np.unique(own, return_counts=True)
    each = np.minimum(sizes, max(2, most // len(classes)))  # groups of each class
    firsts = np.cumsum(each) - each
    groups = np.zeros(len(own), np.int64)
    for code, first, parts in zip(classes, firsts, each, strict=True):
        members = np.flatnonzero(own == code)
        groups[members] = first + np.random.default_rng(int(code)).permutation(len(members)) % parts
    return groups


def _shares(scores: np.ndarray) -> np.ndarray:
    sums = scores.sum(axis=1, keepdims=True)
    return np.divide(scores, sums, out=np.zeros_like(scores), where=sums > 0)
