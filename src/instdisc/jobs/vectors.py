"""The vectors that an evaluation needs of a collection, from one pass over its pictures, in files of this rank's share.

Every picture is decoded once, and from it come the vectors of the encoder, of a fresh encoder of the same build, and
the pixels themselves; and the encoder's pooled features at every stage, where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import ranks
from instdisc.data.source import Source
from instdisc.encoder import Encoder
from instdisc.encoder.backbones import evaluating
from instdisc.encoder.embed import autocast, stream
from instdisc.encoder.whitening import Moments, NoSearchVectorsError, Whitening, fit_whitening
from instdisc.evaluation.baselines import shrink
from instdisc.shapes import Tensor

_BLOCK = 16_384
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
        """A choice of these rows, by their places here."""
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
    aside: Path,
    batch: int,
    tell: Callable[[str], None] | None,
    *,
    with_levels: bool = False,
) -> Vectors:
    """This rank's share of the vectors, in files of the new folder `aside`, which are mapped into memory."""
    first, last = ranks.share(len(source))
    count = last - first
    dim = encoder.config.dim
    place = next(encoder.parameters()).device
    aside = aside.with_name(f"{aside.name}-{ranks.rank()}")
    aside.mkdir()
    trained = _file(aside / "trained.npy", np.float32, (count, dim))
    untrained = _file(aside / "untrained.npy", np.float32, (count, dim))
    pixels = _file(aside / "pixels.npy", np.uint8, (count, 3 * side * side))
    stages = stages_of(fresh)
    untrained_features = _file(aside / "untrained_features.npy", np.float32, (count, sum(stages.values())))
    searched = None
    if encoder.whitening is not None:
        searched = _file(aside / "search.npy", np.float32, (count, encoder.whitening.dim))
    channels = encoder.level_channels() if with_levels else {}
    levels = {
        name: _file(aside / f"level-{number}.npy", np.float32, (count, width))
        for number, (name, width) in enumerate(channels.items())
    }
    seen = np.zeros(count, dtype=bool)
    failures: list[str] = []

    def compute(images: Tensor) -> dict[str, Tensor]:
        images = images.to(place)
        normalised = encoder.preprocessing.normalise(images)
        bytes_ = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
        with evaluating(encoder), evaluating(fresh), autocast(place, "auto"):
            found = encoder.levels(normalised)
            if encoder.whitening is not None:
                found["search vectors"] = encoder.whitening.of(found)
            # A stage's name has no such words.
            found = {"trained": found.pop("embedding"), **found}
            untrained = fresh.levels(normalised)
            found["untrained features"] = torch.cat([untrained[name] for name in stages], dim=1)
            return found | {"untrained": untrained["embedding"], "pixels": shrink(bytes_, side)}

    def note(row: int, name: str, reason: str) -> None:
        failures.append(f"{name}: {reason}")

    if tell is not None:
        tell(f"Embedding {len(source):,} pictures of {source.name}.")
    rows = np.arange(first, last)
    chunks = stream(
        source,
        encoder.preprocessing,
        compute,
        batch=batch,
        on_unreadable=note,
        rows=rows,
        progress=ranks.is_main(),
    )
    for numbers, values in chunks:
        at = numbers - first
        trained[at], untrained[at] = values["trained"].numpy(), values["untrained"].numpy()
        pixels[at] = values["pixels"].to(torch.uint8).flatten(1).numpy()
        untrained_features[at] = values["untrained features"].numpy()
        if searched is not None:
            searched[at] = values["search vectors"].numpy()
        for name, level in levels.items():
            level[at] = values[name].numpy()
        seen[at] = True
    view = encoder.preprocessing
    if side < min(PIXEL_SIDE, view.size):  # the encoder sees them enlarged, which is no longer the raw pixels
        own_size = replace(view, size=side)
        raw = stream(source, own_size, lambda images: {"pixels": images}, batch=batch, on_unreadable=_skip, rows=rows)
        for numbers, values in raw:
            pixels[numbers - first] = values["pixels"].to(torch.uint8).flatten(1).numpy()
    if failures and tell is not None:
        tell(f"  {len(failures)} pictures could not be read and are left out, the first is {failures[0]}.")
    labels = None if source.labels is None else source.labels[first:last]
    unreadable = int((~seen).sum())
    vectors = Vectors(rows, trained, untrained, pixels, labels, unreadable, levels, searched, untrained_features)
    return vectors if seen.all() else vectors.some(np.flatnonzero(seen))


def stages_of(encoder: Encoder) -> dict[str, int]:
    """The stages that search vectors of this encoder are made of, and their channels, in order."""
    side = encoder.config.image_size
    with evaluating(encoder):
        return encoder.search_stages(torch.zeros(2, 3, side, side, device=next(encoder.parameters()).device))


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
    return [None if one is None else _by_blocks(whitening, one) for one in (train, test)]


def _by_blocks(whitening: Whitening, features: np.ndarray) -> np.ndarray:
    answer = np.empty((len(features), whitening.dim), np.float32)
    for start in range(0, len(features), _BLOCK):
        answer[start : start + _BLOCK] = whitening(torch.from_numpy(features[start : start + _BLOCK])).numpy()
    return answer


def with_bank_rows(train: Vectors, rows: np.ndarray, bank: np.ndarray) -> Vectors:
    """The same with the bank's rows in place of recomputed vectors, for the pictures that have a row."""
    _, kept, places = np.intersect1d(train.rows, rows, assume_unique=True, return_indices=True)
    return replace(train.some(kept), trained=bank[places])
