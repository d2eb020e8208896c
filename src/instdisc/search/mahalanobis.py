"""How unlike all others a picture is, by what the network's stages see in it.

    scores = outlier_scores({"layer1": features1, "layer2": features2})     # (n,): higher is more unusual

Not by the embedding: instance discrimination spreads all pictures evenly over the sphere, outliers too, so that a
drawing among photographs is no farther from its neighbours there than a photograph is. The stages before it keep what
is common and what is rare: the distance is Mahalanobis' at every stage, as Lee et al. (2018) use it to detect outliers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from instdisc import ranks
from instdisc.shapes import Float

_BLOCK = 8_192
_SHRINK = 0.01  # of the mean variance, added to all: directions that hardly vary would count without bound


def outlier_scores(stages: Mapping[str, Float[np.ndarray, "pictures _"]]) -> Float[np.ndarray, " pictures"]:
    """The sum over the stages of log d², d being the Mahalanobis distance from the mean of the collection.

    Features may be memory-mapped; memory beside the result is one block and one covariance matrix. Each rank of a run
    brings the features of its own pictures and gets their scores; the collection is that of all ranks.
    """
    counts = {len(features) for features in stages.values()}
    assert len(counts) == 1
    own = counts.pop()
    scores = np.zeros(own, np.float32)
    everyone = sum(ranks.sizes(own))
    for features in stages.values():
        blocks = range(0, own, _BLOCK)
        none = np.zeros(features.shape[1])
        mean = _total(sum((features[at : at + _BLOCK].sum(0, dtype=np.float64) for at in blocks), none)) / everyone
        spread = np.zeros((len(mean), len(mean)))
        for start in blocks:
            centred = features[start : start + _BLOCK] - mean
            spread += centred.T @ centred
        variances, axes = np.linalg.eigh(_total(spread) / everyone)
        floor = max(_SHRINK * float(variances.mean()), 1e-30)
        scale = 1 / np.sqrt(variances.clip(0) + floor)
        for start in blocks:
            along = ((features[start : start + _BLOCK] - mean) @ axes) * scale
            scores[start : start + _BLOCK] += np.log((along**2).sum(1) + 1e-12)
    return scores


def _total(values: np.ndarray) -> np.ndarray:
    """The sum over ranks."""
    return ranks.total(torch.from_numpy(values)).numpy()
