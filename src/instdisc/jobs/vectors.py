"""The vectors that an evaluation needs of a collection, from one pass over its pictures, in files of this rank's share.

Every picture is decoded once, and from it come the vectors of the encoder, of a fresh encoder of the same build, and
the pixels themselves; and the encoder's pooled features at every stage, where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import ranks
from instdisc.data.sources.source import Source
from instdisc.encoder import Encoder
from instdisc.encoder.backbones import evaluating
from instdisc.encoder.embed import autocast, stream
from instdisc.encoder.whitening import Moments, NoSearchVectorsError, Whitening, fit_whitening
from instdisc.errors import counted
from instdisc.evaluation.baselines import shrink
from instdisc.shapes import Tensor

_BLOCK = 16_384
# Kinds of vectors; stages are kinds too, under their own names, which have no space.
_TRAINED, _UNTRAINED, _PIXELS = "trained embedding", "untrained embedding", "raw pixels"
_SEARCH, _FEATURES = "search vectors", "untrained features"
PIXEL_SIDE = 32  # raw pixels are compared at this side at most


@dataclass(frozen=True)
class Vectors:
    """This rank's share of a collection: rows [start, stop) less what can't be read, in several kinds of vectors."""

    rows: np.ndarray  # source rows, ascending
    trained: np.ndarray  # (n, dim) float32, the embedding
    untrained: np.ndarray  # (n, dim) float32
    pixels: np.ndarray  # (n, 3 * side * side) uint8
    labels: np.ndarray | None
    unreadable: int
    levels: dict[str, np.ndarray] = field(default_factory=dict)  # stage -> (n, channels) float32, if asked for
    search: np.ndarray | None = None  # (n, at most 256) float32, where the encoder has a map to them
    untrained_features: np.ndarray | None = None  # (n, width) float32, of the stages search vectors are made of

    def some(self, which: np.ndarray) -> Vectors:
        """A choice of these rows, by their positions here."""
        return replace(
            self,
            rows=self.rows[which],
            trained=self.trained[which],
            untrained=self.untrained[which],
            pixels=self.pixels[which],
            labels=None if self.labels is None else self.labels[which],
            levels={name: values[which] for name, values in self.levels.items()},
            search=None if self.search is None else self.search[which],
            untrained_features=None if self.untrained_features is None else self.untrained_features[which],
        )


def collect_vectors(
    source: Source,
    encoder: Encoder,
    fresh: Encoder,
    side: int,
    scratch: Path,
    batch: int,
    log: Callable[[str], None] | None,
    *,
    with_levels: bool = False,
) -> Vectors:
    """This rank's share of the vectors, in files of the new folder `scratch`, which are mapped into memory."""
    first, last = ranks.share(len(source))
    scratch = scratch.with_name(f"{scratch.name}-{ranks.rank()}")
    scratch.mkdir()
    stages = fresh.search_levels()
    kinds = _kinds(encoder, sum(stages.values()), side, with_levels)
    files = {
        name: _file(scratch / f"{number}.npy", np.uint8 if name == _PIXELS else np.float32, (last - first, width))
        for number, (name, width) in enumerate(kinds.items())
    }
    seen = np.zeros(last - first, dtype=bool)
    failures: list[str] = []

    def note(row: int, name: str, reason: str) -> None:
        failures.append(f"{name}: {reason}")

    if log is not None:
        log(f"Embedding {counted(len(source), 'picture')} of {source.name}.")
    rows = np.arange(first, last)
    chunks = stream(
        source,
        encoder.preprocessing,
        partial(_computed, encoder, fresh, tuple(stages), side),
        batch=batch,
        on_unreadable=note,
        rows=rows,
        progress=ranks.is_main(),
    )
    for numbers, values in chunks:
        at = numbers - first
        for name, file in files.items():
            file[at] = values[name].flatten(1).numpy()
        seen[at] = True
    view = encoder.preprocessing
    if side < min(PIXEL_SIDE, view.size):  # the encoder sees them enlarged, which is no longer the raw pixels
        own_size = replace(view, size=side)
        raw = stream(source, own_size, lambda images: {"pixels": images}, batch=batch, on_unreadable=_skip, rows=rows)
        for numbers, values in raw:
            files[_PIXELS][numbers - first] = values["pixels"].to(torch.uint8).flatten(1).numpy()
    if failures and log is not None:
        left_out = counted(len(failures), "picture could not be read and is", "pictures could not be read and are")
        log(f"  {left_out} left out, the first is {failures[0]}.")
    labels = None if source.labels is None else source.labels[first:last]
    trained, untrained, pixels, features = (files.pop(name) for name in (_TRAINED, _UNTRAINED, _PIXELS, _FEATURES))
    searched, unreadable = files.pop(_SEARCH, None), int((~seen).sum())
    vectors = Vectors(rows, trained, untrained, pixels, labels, unreadable, files, searched, features)
    return vectors if seen.all() else vectors.some(np.flatnonzero(seen))


def _kinds(encoder: Encoder, features: int, side: int, with_levels: bool) -> dict[str, int]:
    """The dimensions of each kind of vectors. features: of the untrained encoder's stages."""
    dim = encoder.config.dim
    kinds = {_TRAINED: dim, _UNTRAINED: dim, _PIXELS: 3 * side * side, _FEATURES: features}
    if encoder.whitening is not None:
        kinds[_SEARCH] = encoder.whitening.dim
    return kinds | (encoder.level_channels() if with_levels else {})


def _computed(
    encoder: Encoder, fresh: Encoder, stages: tuple[str, ...], side: int, images: Tensor
) -> dict[str, Tensor]:
    """All kinds of vectors of some pictures, which stand at the encoder's size."""
    device = next(encoder.parameters()).device
    images = images.to(device)
    normalised = encoder.preprocessing.normalise(images)
    bytes_ = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    with evaluating(encoder), evaluating(fresh), autocast(device, "auto"):
        found = encoder.levels(normalised, () if encoder.whitening is None else encoder.whitening.facts.stages)
        if encoder.whitening is not None:
            found[_SEARCH] = encoder.whitening.of(found)
        found[_TRAINED] = found.pop("embedding")
        untrained = fresh.levels(normalised, stages)
        found[_FEATURES] = torch.cat([untrained[name] for name in stages], dim=1)
        return found | {_UNTRAINED: untrained["embedding"], _PIXELS: shrink(bytes_, side)}


def _skip(row: int, name: str, reason: str) -> None:
    """A picture that can't be read was noted the first time."""


def _file(path: Path, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape) if shape[0] else np.zeros(shape, kind)


def whitened(train: np.ndarray, test: np.ndarray | None, channels: Sequence[int]) -> list[np.ndarray | None]:
    """Features of both, whitened as search vectors are, by a map that is fitted on those of `train` on all ranks.

    channels: of each stage, whose features stand side by side. None where there is no test, or no map can be made.
    """
    moments = Moments(channels)
    for start in range(0, len(train), _BLOCK):
        moments.add(torch.from_numpy(train[start : start + _BLOCK]))
    try:
        whitening = fit_whitening(moments.total(), [str(number) for number in range(len(channels))])
    except NoSearchVectorsError:
        return [None, None]
    return [None if one is None else by_blocks(whitening, one) for one in (train, test)]


def by_blocks(whitening: Whitening, features: np.ndarray) -> np.ndarray:
    """`whitening` of many features, mapped perhaps, (n, dim) float32."""
    answer = np.empty((len(features), whitening.dim), np.float32)
    for start in range(0, len(features), _BLOCK):
        answer[start : start + _BLOCK] = whitening(torch.from_numpy(np.array(features[start : start + _BLOCK]))).numpy()
    return answer


def with_bank_rows(train: Vectors, rows: np.ndarray, bank: np.ndarray) -> Vectors:
    """The same with the bank's rows in place of recomputed vectors, for the pictures that have a row."""
    _, kept, positions = np.intersect1d(train.rows, rows, assume_unique=True, return_indices=True)
    return replace(train.some(kept), trained=bank[positions])
