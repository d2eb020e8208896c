"""What kNN reaches without any learning: on raw pixels, and on an encoder that was never trained.

    knn_accuracy(shrink(images, 32).flatten(1), labels, centre=True)      # pixels by cosine, the mean picture removed
    knn_accuracy(fresh_vectors, labels)                                   # same architecture, fresh weights

A figure for a trained encoder means little without these two beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d

from instdisc.evaluation.knn import KNN, KNNResult
from instdisc.shapes import Tensor, UInt8

_CHUNK = 1024


def knn_accuracy(
    train_vectors: Any,
    train_labels: Any,
    test_vectors: Any = None,
    test_labels: Any = None,
    *,
    neighbours: int = 200,
    temperature: float = 0.07,
    centre: bool = False,
    device: torch.device | str | None = None,
    sharded: bool = False,
) -> KNNResult:
    """kNN accuracy on the test vectors or, without any, on the training vectors with each one left out in turn."""
    knn = KNN(neighbours, temperature, centre=centre, device=device).fit(train_vectors, train_labels, sharded=sharded)
    return knn.leave_one_out() if test_vectors is None else knn.evaluate(test_vectors, test_labels)


def shrink(
    images: UInt8[Tensor, "batch channels height width"], side: int
) -> UInt8[Tensor, "batch channels small_height small_width"]:
    """Pictures no larger than `side` by `side`, a new pixel is the mean of those it covers; small ones stay."""
    height, width = images.shape[2:]
    if max(height, width) <= side:
        return images
    size = (min(height, side), min(width, side))
    parts = [adaptive_avg_pool2d(chunk.float(), size).round().to(torch.uint8) for chunk in images.split(_CHUNK)]
    return torch.cat(parts) if parts else images.new_zeros((0, images.shape[1], *size))
