"""What to label next: the pictures that cover the collection best, and those that the votes are least sure of.

    positions = least_covered(vectors, labelled, 20)                 # a choice from all over the collection
    positions = least_reached(affinity, labelled, 20)                # the same, along the edges of the neighbour graph
    positions = least_certain(votes, vectors, labelled, 20)          # where the classes meet

The first two want no label at all; the third needs votes of a classifier, as of weighted kNN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from instdisc.search.spreading import solve
from instdisc.shapes import Float, Int, Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SAMPLE, _CANDIDATES = 10_000, 2_000  # pictures that stand for the collection, and that can be proposed
_SHARPNESS = 0.07  # temperature of the similarity: near pictures count, far ones hardly, as in the votes
_AT_ONCE = 32  # pictures whose sums are made again together
_FLOWING, _NEARLY = 1_000, 1e-2  # pictures that can be proposed by their flow; how exactly it is computed
_REACH = 0.9  # alpha of that flow: some ten steps
_POOL = 10  # least certain pictures among which each proposal is chosen


def least_covered(
    vectors: Float[Tensor, "rows dim"],
    labelled: Int[np.ndarray, " labelled"],
    count: int,
    *,
    among: Int[np.ndarray, " candidates"] | None = None,
    seed: int = 0,
) -> Int[np.ndarray, " proposals"]:
    """Places of the next `count` pictures to label, the most useful first: greedy facility location.

    Each next picture is the one that adds most to the sum, over the collection, of exp((s - 1) / 0.07), s being the
    cosine with the nearest picture that is labelled or proposed already. Greedy is within 1 - 1/e of the best choice
    (Nemhauser, Wolsey, Fisher 1978), and outliers, which stand for themselves alone, come last. Of more than 10,000
    pictures a random choice of so many stands for all, and 2,000 can be proposed. vectors: unit rows. among:
    which can be proposed; without, all that are not labelled.
    """
    random = np.random.default_rng(seed)
    everyone = np.arange(len(vectors)) if among is None else among
    candidates = np.setdiff1d(everyone, labelled)
    if len(candidates) > _CANDIDATES:
        candidates = np.sort(random.choice(candidates, _CANDIDATES, replace=False))
    crowd = np.arange(len(vectors))
    if len(crowd) > _SAMPLE:
        crowd = np.sort(random.choice(crowd, _SAMPLE, replace=False))
    standing = vectors[torch.from_numpy(crowd)]
    covered = standing.new_zeros(len(crowd))
    for start in range(0, len(labelled), _CANDIDATES):
        known = vectors[torch.from_numpy(labelled[start : start + _CANDIDATES])]
        covered = torch.maximum(covered, _likeness(standing @ known.T).amax(1))
    gain = _likeness(vectors[torch.from_numpy(candidates)] @ standing.T)
    return candidates[_greedy(gain, covered, count)]


def least_reached(
    affinity: csr_array,
    labelled: Int[np.ndarray, " labelled"],
    count: int,
    *,
    seed: int = 0,
) -> Int[np.ndarray, " proposals"]:
    """As `least_covered`, for labels that will be spread: how well x covers i is what would flow from x to i.

    That is K_ix / K_xx, where K = (I - 0.9 S)^-1: a picture inside a dense part, which sends to many, comes first, and
    one that nothing is linked with comes last. affinity: S, of `NeighbourGraph.affinity`, of at most some 10,000
    pictures: of more, take a sample's. 1,000 drawn at random can be proposed. Deterministic.
    """
    random = np.random.default_rng(seed)
    candidates = np.setdiff1d(np.arange(affinity.shape[0]), labelled)
    if len(candidates) > _FLOWING:
        candidates = np.sort(random.choice(candidates, _FLOWING, replace=False))
    covered = torch.zeros(affinity.shape[0])
    for start in range(0, len(labelled), _FLOWING):
        covered = torch.maximum(covered, _flow(affinity, labelled[start : start + _FLOWING]).amax(0))
    return candidates[_greedy(_flow(affinity, candidates), covered, count)]


def _flow(affinity: csr_array, pictures: Int[np.ndarray, " sources"]) -> Float[Tensor, "sources pictures"]:
    """What flows from each of some pictures to all, as a share of what it keeps."""
    answer = torch.zeros(len(pictures), affinity.shape[0])
    for start in range(0, len(pictures), 256):
        some = np.arange(start, min(start + 256, len(pictures)))
        sources = np.zeros((affinity.shape[0], len(some)), np.float32)
        sources[pictures[some], some - start] = 1
        flow = solve(affinity, sources, alpha=_REACH, tolerance=_NEARLY)
        answer[start : start + len(some)] = torch.from_numpy(flow / flow[pictures[some], some - start]).T
    return answer


def _greedy(
    gain: Float[Tensor, "candidates crowd"], covered: Float[Tensor, " crowd"], count: int
) -> Int[np.ndarray, " chosen"]:
    """The candidates that add most to the sum of how well each of the crowd is covered, one after the other."""
    chosen: list[int] = []
    # What a picture adds only gets less as more is covered, so that an earlier sum is a bound: a sum is made again only
    # where the bound is among the highest, until the highest is such a sum (Minoux 1978). The choice is the same.
    added = gain.new_full((len(gain),), torch.inf)
    some = torch.arange(len(gain), device=gain.device)
    for _ in range(min(count, len(gain))):
        while True:
            for part in some.split(_AT_ONCE):
                added[part] = (gain[part] - covered).clamp_min_(0).sum(1)
            added[chosen] = -1
            best = int(added.argmax())
            if best in some:
                break
            some = added.topk(min(_AT_ONCE, len(added))).indices
        chosen.append(best)
        covered = torch.maximum(covered, gain[best])
        added[chosen] = -1
        some = added.topk(min(_AT_ONCE, len(added))).indices
    return np.array(chosen, dtype=np.int64)


def least_certain(
    votes: Float[Tensor, "rows classes"],
    vectors: Float[Tensor, "rows dim"],
    labelled: Int[np.ndarray, " labelled"],
    count: int,
    *,
    seed: int = 0,
) -> Int[np.ndarray, " proposals"]:
    """Places of the next `count` pictures to label, from where the two best classes have nearly as many votes.

    The ten times as many of the smallest margin are the pool, and among them those are taken that cover the collection
    best: the very least certain are often all alike. votes: shares, each row sums to 1.
    """
    best = votes.topk(min(2, votes.shape[1]), dim=1).values
    margin = best[:, 0] - best[:, 1:].sum(1)
    margin[torch.from_numpy(labelled)] = torch.inf
    pool = margin.argsort(stable=True)[: min(_POOL * count, len(vectors) - len(labelled))].cpu().numpy()
    return least_covered(vectors, labelled, count, among=np.sort(pool), seed=seed)


def _likeness(scores: Tensor) -> Tensor:
    return ((scores - 1) / _SHARPNESS).exp_()
