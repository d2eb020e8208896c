"""A published encoder, taken as it is: made by its name, and the vectors that it gives of a source, from one pass.

    encoder = published_encoder("resnet50", weights="resnet50.safetensors")
    found = frozen_vectors(Path("features.npy"), encoder, source)
    found.embedding(), found.search(whitening)             # (n, channels), (n, at most 256), unit rows

The embedding is the network's pooled features to unit length. Search vectors are whitened (encoder/whitening.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import ranks
from instdisc.data.sources.source import Source
from instdisc.encoder import SMALL_ENCODERS, Encoder, EncoderConfig, build_encoder, unit_length
from instdisc.encoder.backbones import frozen_modules, published_view
from instdisc.encoder.encoder import FEATURES
from instdisc.encoder.whitening import Moments, NoSearchVectorsError, Whitening, fit_whitening
from instdisc.errors import InputError
from instdisc.evaluation.baselines import knn_accuracy
from instdisc.jobs.embed import vectors_of
from instdisc.jobs.measures import plain
from instdisc.jobs.search_vectors import sample_of
from instdisc.jobs.vectors import by_blocks
from instdisc.shapes import Float, Int, Tensor
from instdisc.system import free_disk, readable_bytes
from instdisc.training import Settings

_BLOCK = 16_384


def published_encoder(
    name: str,
    weights: str | Path | None = None,
    *,
    size: int | None = None,
    shown: int | None = None,
    seed: int = 0,
    **more: Any,
) -> Encoder:
    """The network of this name without a head, on the CPU, with its own preprocessing.

    name: timm's, or one of our small ones. weights: a safetensors file; None = timm's own, fetched where a network is.
    size: side of the pictures it sees, pixels; None = its own. shown: usual side of the pictures that it is given:
    smaller ones than it sees keep the margin that it was made to cut off. more: further fields of EncoderConfig, as for
    a head, which is drawn from the seed.
    Raises InputError for an unknown name, and for weights that are unavailable or incomplete.
    """
    if name in SMALL_ENCODERS and size is None:
        raise InputError(
            f"{name} has no size of its own: give the side that its weights were trained at, as --size 32."
        )
    if weights is not None and not Path(weights).is_file():
        raise InputError(f"There is no file {weights}: give the path of a safetensors file.")
    view = published_view(name)
    size = size or view.size
    whole = name in SMALL_ENCODERS or (shown is not None and shown < size)
    facts: dict[str, Any] = {
        "backbone": name,
        "head": "none",
        "image_size": size,
        "small_stem": False,  # which a network that learnt at 224 px does not have, whatever it is shown
        "pretrained": True if weights is None else str(Path(weights).absolute()),
        "crop_fraction": 1.0 if whole else view.crop_fraction,
        "mean": view.mean,
        "std": view.std,
    }
    return build_encoder(EncoderConfig(**(facts | more)), seed, whole=True)


def encoder_of(settings: Settings, shown: int) -> Encoder:
    """The encoder that a run begins with: a published network and a head, where it goes on with such a one.

    shown: usual side of the pictures. Raises InputError where it can't take the sizes of the views, and what
    `published_encoder` raises.
    """
    if settings.pretrained is False and settings.unfreeze != "all":
        raise InputError(
            f"unfreeze={settings.unfreeze} would keep random weights: set pretrained to true or to a safetensors file."
        )
    if settings.goes_on:
        own = settings.encoder
        weights = None if own.pretrained is True else str(own.pretrained)
        more = {"head": own.head, "hidden": own.hidden, "dim": own.dim, "width": own.width}
        encoder = published_encoder(own.backbone, weights, size=own.image_size, shown=shown, seed=settings.seed, **more)
        frozen_modules(encoder.backbone, settings.unfreeze)  # refused now where it has no last stage
    else:
        encoder = build_encoder(settings.encoder, seed=settings.seed)
    if encoder.config.dim != settings.dim:  # of head=none
        dim = encoder.config.dim
        raise InputError(
            f"Without a head {settings.backbone} gives {dim} dimensions, not {settings.dim}: set dim to {dim}."
        )
    try:
        encoder.check_sizes(settings.view_sizes)
    except InputError as error:  # of a preset perhaps, and the backbone of the person
        raise InputError(f"{error} Or add --set early_sizes= --set grow_at= for views of one size.") from None
    return encoder


def check_room(folder: Path, pictures: int, width: int) -> int:
    """The bytes that the features take for a while: parts, and the file put together of them.

    width: float32 numbers of a picture. InputError where they would fill the disk.
    """
    needed, free = 2 * 4 * pictures * width, free_disk(folder)
    if needed > free:
        raise InputError(
            f"The features of {pictures:,} pictures need {readable_bytes(needed)} for a while, and {folder} has "
            f"{readable_bytes(free)}: choose a folder on a larger disk, or take a part with --limit."
        )
    return needed


@dataclass(frozen=True)
class Frozen:
    """What one pass gave. rows: of the source, that could be read. levels: their names and widths, side by side."""

    rows: Int[np.ndarray, " read"]
    features: Float[np.ndarray, "read width"]
    levels: dict[str, int]
    channels: int

    def fit(self, *, step: int = 0) -> Whitening:
        """The map to search vectors, of at most 5,000 of the pictures. Raises NoSearchVectorsError where none is."""
        moments = Moments(tuple(self.levels.values()))
        sample = sample_of(np.arange(len(self.rows)), seed=0)
        for start in range(0, len(sample), _BLOCK):
            moments.add(torch.from_numpy(self.features[sample[start : start + _BLOCK]]))
        return fit_whitening(moments, tuple(self.levels), step=step)

    def search(self, whitening: Whitening) -> Float[Tensor, "read dim"]:
        """Search vectors by this map."""
        return torch.from_numpy(by_blocks(whitening, self.features))

    def embedding(self) -> Float[Tensor, "read channels"]:
        """The pooled features to unit length."""
        blocks = range(0, len(self.features), _BLOCK)
        parts = [self.features[start : start + _BLOCK, -self.channels :].copy() for start in blocks]
        return torch.cat([unit_length(torch.from_numpy(part)) for part in parts])


def compared_with(
    name: str | None,
    weights: str | Path | None,
    shown: int,
    device: torch.device,
    log: Callable[[str], None] | None,
) -> Encoder | None:
    """The published encoder to compare with; None where none was named. Refused before everything is embedded."""
    if name is None:
        if weights is not None:
            raise InputError("The weights are of a network: name it with --published.")
        return None
    if ranks.world() > 1:
        raise InputError("A published encoder is measured by one process: evaluate without torchrun.")
    encoder = published_encoder(name, weights, shown=shown).to(device)
    if log is not None:
        log(f"Published encoder: {name}, {encoder.origin}, at {encoder.config.image_size} px.")
    return encoder


def published_knn(
    encoder: Encoder, train: Source, test: Source | None, folder: Path, **votes: Any
) -> dict[str, dict[str, Any]]:
    """Weighted kNN by a frozen encoder's vectors, pooled ("published") and whitened ("published_whitened").

    The map is fitted on the training pictures; the features lie in `folder` meanwhile. votes: as `knn_accuracy` takes
    them. Without test pictures each training picture is left out in turn.
    """
    known = frozen_vectors(folder / "published-train.npy", encoder, train)
    asked = None if test is None else frozen_vectors(folder / "published-test.npy", encoder, test)
    assert train.labels is not None
    theirs = None if asked is None or test is None or test.labels is None else test.labels[asked.rows]
    ways: dict[str, Callable[[Frozen], Tensor]] = {"published": Frozen.embedding}
    with suppress(NoSearchVectorsError):
        ways["published_whitened"] = partial(Frozen.search, whitening=known.fit())
    found = {}
    for name, way in ways.items():
        queries = None if asked is None else way(asked)
        found[name] = plain(knn_accuracy(way(known), train.labels[known.rows], queries, theirs, **votes))
    return found


def frozen_vectors(
    out: Path, encoder: Encoder, source: Source, *, batch: int = 64, say: Callable[[str], None] | None = None
) -> Frozen:
    """One pass over a source, its features kept in `out` (.npy); an interrupted one goes on (jobs/embed.py)."""
    rows, features = vectors_of(out, encoder, source, vectors=FEATURES, batch=batch, say=say)
    return Frozen(rows, features, encoder.frozen_levels(), encoder.channels)
