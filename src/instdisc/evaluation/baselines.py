"""What kNN reaches without any learning: on raw pixels, and on an encoder that was never trained.

    raw_pixels(train_images, train_labels, test_images, test_labels)      # plain cosine, and after centring
    untrained(embed, seeds, train_labels, test_labels)                    # same architecture, fresh weights

A figure for a trained encoder means little without these two beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d

from instdisc.errors import InputError
from instdisc.evaluation.knn import KNN, KNNResult
from instdisc.shapes import Tensor, UInt8

_CHUNK = 1024


@dataclass(frozen=True)
class RawPixels:
    """kNN by cosine on flattened pixels."""

    plain: KNNResult
    centred: KNNResult  # the mean training picture removed: brightness no longer drowns everything


@dataclass(frozen=True)
class Untrained:
    """kNN on encoders with fresh random weights, one result a seed."""

    top1: float  # mean over seeds
    std: float  # sample standard deviation over seeds; 0 for a single one
    seeds: tuple[int, ...]
    results: tuple[KNNResult, ...]


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


def raw_pixels(
    train_images: UInt8[Tensor, "train channels height width"],
    train_labels: Any,
    test_images: UInt8[Tensor, "test channels height width"] | None = None,
    test_labels: Any = None,
    **settings: Any,
) -> RawPixels:
    """kNN on the pixels themselves, leave-one-out without test pictures. settings: as for `knn_accuracy`.

    The pictures stay 8-bit and are widened a block at a time. `shrink` large ones first: cost grows with area.
    """
    rows = train_images.flatten(1)
    tests = None if test_images is None else test_images.flatten(1)
    plain = knn_accuracy(rows, train_labels, tests, test_labels, **settings)
    centred = knn_accuracy(rows, train_labels, tests, test_labels, centre=True, **settings)
    return RawPixels(plain, centred)


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


def untrained(
    embed: Callable[[int], tuple[Any, Any]],
    seeds: Sequence[int],
    train_labels: Any,
    test_labels: Any = None,
    **settings: Any,
) -> Untrained:
    """kNN on untrained encoders. embed(seed) -> (train vectors, test vectors or None) of a fresh one.

    settings: as for `knn_accuracy`. Only one seed's vectors are held at a time.
    """
    if not seeds:
        raise InputError("An untrained baseline needs at least one seed.")
    results = []
    for seed in seeds:
        train_vectors, test_vectors = embed(seed)
        results.append(knn_accuracy(train_vectors, train_labels, test_vectors, test_labels, **settings))
        del train_vectors, test_vectors
    figures = [result.top1 for result in results]
    mean = math.fsum(figures) / len(figures)
    variance = math.fsum((figure - mean) ** 2 for figure in figures) / max(1, len(figures) - 1)
    return Untrained(mean, math.sqrt(variance), tuple(seeds), tuple(results))
