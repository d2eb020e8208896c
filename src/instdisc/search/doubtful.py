"""Labels that a picture's neighbours contradict: each is named by the other labelled pictures, itself left out.

places, scores = ...                                # of the nearest labelled others (search/pairs.py)
voted, doubt = doubts(scores, places, codes)
np.argsort(-doubt)                                  # the most doubtful labels first
"""

from __future__ import annotations

import numpy as np

from instdisc.errors import InputError
from instdisc.shapes import Float, Int

NEIGHBOURS, TEMPERATURE = 20, 0.1  # chosen on digits with 3 % of the labels flipped: runs/doubtful.py
_BLOCK = 16_777_216  # numbers of votes at once


def doubts(
    scores: Float[np.ndarray, "pictures k"],
    places: Int[np.ndarray, "pictures k"],
    codes: Int[np.ndarray, " pictures"],
    *,
    temperature: float = TEMPERATURE,
) -> tuple[Int[np.ndarray, " pictures"], Float[np.ndarray, " pictures"]]:
    """Of each picture (the class that its neighbours vote for in the place of the given one, how doubtful that is).

    scores, places: of each picture's nearest others, their cosines and places among the pictures. codes: class of each
    picture, from 0. Each neighbour votes for its class with weight exp(cosine / temperature). The doubt is the share of
    the best other class minus that of the given one, from -1 to 1. Raises InputError where there is only one class.
    """
    classes = int(codes.max()) + 1 if len(codes) else 0
    if classes < 2 or (codes < 0).any() or len(np.unique(codes)) < 2:
        raise InputError("Labels of at least two classes are needed to doubt any.")
    voted, doubt = np.empty(len(codes), np.int64), np.empty(len(codes), np.float32)
    step = max(1, _BLOCK // classes)
    for start in range(0, len(codes), step):
        part = slice(start, min(start + step, len(codes)))
        count = part.stop - start
        weights = np.exp((scores[part] - scores[part, :1]) / temperature)
        weights /= weights.sum(axis=1, keepdims=True)
        shares = np.zeros((count, classes))
        np.add.at(shares, (np.arange(count)[:, None], codes[places[part]]), weights)
        rows, own = np.arange(count), codes[part]
        given = shares[rows, own].copy()
        shares[rows, own] = -1
        voted[part] = shares.argmax(axis=1)
        doubt[part] = shares.max(axis=1) - given
    return voted, doubt
