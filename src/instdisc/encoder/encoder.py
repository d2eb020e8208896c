"""The encoder: pictures to unit vectors, with its preprocessing.

    encoder = instdisc.load("runs/mine")                            # or build_encoder({"backbone": "resnet18"}, seed=0)
    vectors = encoder.embed(["cat.jpg", "dog.png"])                 # (2, at most 256) float32, unit rows: to search by
    embedding = encoder.embed(["cat.jpg"], vectors="embedding")     # (1, 128): f_θ of the paper, the head's output
    levels = encoder.features(["cat.jpg", "dog.png"])               # {"layer1": (2, 64), ...}

While training, the module itself is called: normalised pictures in, unit vectors with gradients out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from instdisc.encoder.backbones import (
    DEVIATION,
    evaluating,
    frozen_modules,
    make_backbone,
    output_channels,
    published_view,
    stages,
)
from instdisc.encoder.config import EncoderConfig
from instdisc.encoder.embed import Compute, autocast, collect, stream
from instdisc.encoder.weights import start_from_file
from instdisc.encoder.whitening import WIDTH, Whitening
from instdisc.errors import InputError
from instdisc.shapes import Float, Int, Tensor
from instdisc.transfer import send

# Vectors shorter than this are divided by it and not by their length: a zero vector stays zero (no NaN), and its
# gradient is at most a million times the incoming one.
SHORTEST = 1e-6
VECTORS = ("search", "embedding")
FEATURES = "features"  # both are made from them: what `frozen_levels` names, side by side; for the commands alone
BACKBONE = "backbone"  # the name of its end among the levels
Ways = dict[str, Callable[[Tensor], Tensor]]


class Encoder(nn.Module):
    """f_θ of the paper: a backbone, a head to `dim` dimensions, and unit length.

    config: the choices it was built from, resolved (`describe()` gives them as plain facts).
    preprocessing: the evaluation view, from raw picture to input.
    channels: dimensions of what the backbone hands to the head.
    whitening: the map to search vectors, fitted at the end of a run; None before that.
    origin: where the weights came from, in a sentence.

    Examples:
        >>> import numpy as np
        >>> from instdisc.encoder import EncoderConfig, build_encoder
        >>> encoder = build_encoder(EncoderConfig("conv6", dim=8, width=4, image_size=16), seed=0)
        >>> vectors = encoder.embed(np.zeros((2, 20, 30, 3), np.uint8))  # raw pictures, of any size
        >>> vectors.shape, vectors.norm(dim=1).round(decimals=4).tolist()
        (torch.Size([2, 8]), [1.0, 1.0])
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.preprocessing = config.preprocessing
        self.origin = "random weights"
        self.whitening: Whitening | None = None
        self.backbone = make_backbone(config)
        self.channels = output_channels(self.backbone, config)
        self.config = replace(config, dim=self.channels) if config.head == "none" else config
        self.head = _make_head(config.head, self.channels, config.hidden or self.channels, config.dim)
        self._frozen: list[nn.Module] = []

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"] | Float[Tensor, "batch channels"],
        *,
        with_pooled: bool = False,
    ) -> Float[Tensor, "batch dim"] | tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch channels"]]:
        """Unit vectors in float32 of normalised pictures. Head and length are float32 under autocast too.

        images: or what the backbone gave of them, (batch, channels), which goes to the head. with_pooled: and beside
        them the backbone's features that they come from, in the precision they have.
        """
        pooled = images if images.ndim == 2 else self.backbone(images)
        return (self._project(pooled), pooled) if with_pooled else self._project(pooled)

    def freeze(self, unfreeze: str = "none") -> None:
        """Keep the backbone as it is, its statistics too. unfreeze: what learns of it all the same: "last", its last
        stage and what is behind; "all". Raises InputError where it lists no stages and its last is to learn.
        """
        self._frozen = frozen_modules(self.backbone, unfreeze)
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Training or evaluation mode of all that is not frozen."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def describe(self) -> dict[str, Any]:
        """The encoder's choices as plain JSON values; `build_encoder` takes them back."""
        return self.config.to_dict()

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Raise InputError if the backbone can't take pictures of one of these sides, in pixels."""
        for size in set(sizes) - {self.config.image_size}:
            output_channels(self.backbone, replace(self.config, image_size=size))

    def dimensions(self, vectors: str = "search") -> int:
        """Dimensions of the vectors that `embed` gives."""
        if vectors == FEATURES:
            return sum(self.frozen_levels().values())
        whitening = self._whitening_for(vectors)
        return self.config.dim if whitening is None else whitening.dim

    def embed(
        self,
        images: Any,
        batch: int = 256,
        *,
        vectors: str = "search",
        device: torch.device | str | None = None,
        precision: str = "auto",
        progress: bool = False,
    ) -> Float[Tensor, "pictures dim"]:
        """One unit vector a picture, float32 on the CPU, in the order given.

        images: paths, bytes, PIL pictures, arrays (height, width[, 3]), a tensor (n, 3, height, width) of uint8 or of
            floats in 0..1, any iterable of these, a folder's path, a table with a column of pictures or paths, or a
            Source.
        batch: pictures a forward pass; it changes speed and memory only.
        vectors: "search" = whitened features of the stages, the best to find like pictures by, at most 256 dimensions;
            an encoder without them, which is not at the end of a run, gives its embedding. "embedding" = the head's
            output, the paper's 128 dimensions.
        device: where to compute; the encoder moves there and stays. None = where it is.
        precision: "auto" = bfloat16 autocast on CUDA devices that have it, float32 elsewhere.
        Raises InputError naming the first picture that can't be read.
        """
        compute = self._compute(vectors)
        chunks = self._stream(images, batch, device, precision, None, progress, None, compute)
        return collect(chunks, {"vectors": self.dimensions(vectors)})["vectors"]

    def features(
        self,
        images: Any,
        batch: int = 256,
        *,
        device: torch.device | str | None = None,
        precision: str = "auto",
        progress: bool = False,
        deviations: bool = False,
    ) -> dict[str, Float[Tensor, "pictures channels"]]:
        """The pooled features of every stage, of the backbone's end ("backbone"), and the unit vectors ("embedding").

        Stages have timm's names ("layer1", "blocks.3", ...). deviations: beside the mean over a stage's places their
        standard deviation too ("layer1 std"). Other arguments and errors as in `embed`.
        """
        also = {stage.name + DEVIATION: stage.channels for stage in stages(self.backbone) if deviations}
        widths = self.level_channels() | also | {"embedding": self.config.dim}
        compute = partial(self.levels, also=tuple(also))
        return collect(self._stream(images, batch, device, precision, None, progress, None, compute), widths)

    def level_channels(self) -> dict[str, int]:
        """Channels of every stage and of the backbone's end, in order."""
        return {stage.name: stage.channels for stage in stages(self.backbone)} | {BACKBONE: self.channels}

    def embed_stream(
        self,
        images: Any,
        batch: int = 256,
        *,
        vectors: str = "search",
        device: torch.device | str | None = None,
        precision: str = "auto",
        on_unreadable: Callable[[int, str, str], None] | None = None,
        rows: np.ndarray | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[Int[np.ndarray, " chunk"], Float[Tensor, "chunk dim"]]]:
        """`embed` in fixed memory: (row numbers, vectors) a batch at a time, rows in the order the source reads them.

        on_unreadable(row, name, reason) is told of each picture that can't be read, and the row is left out; without
        it the first one raises InputError. rows: only these rows of a Source, ascending.
        """
        compute = self._compute(vectors)
        for numbers, values in self._stream(images, batch, device, precision, on_unreadable, progress, rows, compute):
            yield numbers, values["vectors"]

    def _stream(
        self,
        images: Any,
        batch: int,
        device: torch.device | str | None,
        precision: str,
        on_unreadable: Callable[[int, str, str], None] | None,
        progress: bool,
        rows: np.ndarray | None,
        forward: Compute,
    ) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        if device is not None:
            self.to(device)
        torch_device = next(self.parameters()).device

        def compute(pixels: Tensor) -> dict[str, Tensor]:
            with evaluating(self), autocast(torch_device, precision):
                normalised = self.preprocessing.normalise(send(pixels, torch_device))
                if torch_device.type != "mps":  # convolutions follow this layout, 1.4 times as fast on a CPU
                    normalised = normalised.contiguous(memory_format=torch.channels_last)
                return forward(normalised)

        return stream(
            images, self.preprocessing, compute, batch=batch, on_unreadable=on_unreadable, rows=rows, progress=progress
        )

    def levels(
        self, images: Float[Tensor, "batch 3 height width"], also: Sequence[str] = ()
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Of normalised pictures: the pooled features of every stage, of the backbone's end, and the unit vectors.

        also: further levels, those of `search_stages`.
        """
        levels, pooled = self._pooled(images, [*self.level_channels(), *also])
        return levels | {BACKBONE: pooled.float(), "embedding": self._project(pooled)}

    def search_stages(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, int]:
        """The levels that search vectors are made of, and their channels: found by trying these pictures.

        All stages, the mean and the standard deviation over the places of each. Of networks that are too wide for both,
        the means alone; of very wide ones those of the last stages that have 4,096 channels together, the very last one
        at least. The backbone's end takes their place where it lists no stages.
        """
        channels = self._stage_widths(images) or {BACKBONE: self.channels}
        if sum(channels.values()) > WIDTH:
            channels = {name: width for name, width in channels.items() if not name.endswith(DEVIATION)}
        while len(channels) > 1 and sum(channels.values()) > WIDTH:
            del channels[next(iter(channels))]
        return channels

    def _stage_widths(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, int]:
        """Channels of mean and deviation of each stage that has them, in order: found by trying these pictures."""
        names = [stage.name for stage in stages(self.backbone)]
        levels, _ = self._pooled(images, [*names, *(name + DEVIATION for name in names)])
        return {name: int(values.shape[1]) for name, values in levels.items()}

    def search_levels(self) -> dict[str, int]:
        """`search_stages` of pictures of the encoder's own size."""
        side = self.config.image_size
        with evaluating(self):
            return self.search_stages(torch.zeros(2, 3, side, side, device=next(self.parameters()).device))

    def frozen_levels(self) -> dict[str, int]:
        """The levels that search vectors of a published network are made of, frozen: the backbone's end, as the last.

        Before it stand mean and standard deviation over the places of the last two stages, the later before the
        earlier, as far as 4,096 numbers together go. Chosen by runs/published.py.
        """
        side = self.config.image_size
        with evaluating(self):
            found = self._stage_widths(torch.zeros(2, 3, side, side, device=next(self.parameters()).device))
        names = [name for name in found if not name.endswith(DEVIATION)][-2:]
        levels = {BACKBONE: self.channels}
        for name in (level for stage in reversed(names) for level in (stage + DEVIATION, stage)):
            if sum(levels.values()) + found[name] <= WIDTH:
                levels = {name: found[name], **levels}
        return levels

    def stage_features(
        self, images: Float[Tensor, "batch 3 height width"], names: Sequence[str]
    ) -> Float[Tensor, "batch channels"]:
        """Of normalised pictures: these levels side by side, float32. The head is left out."""
        levels, pooled = self._pooled(images, names)
        levels[BACKBONE] = pooled.float()
        return torch.cat([levels[name] for name in names], dim=1)

    def _pooled(self, images: Tensor, wanted: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """The stages' levels that are wanted, and what the backbone hands to the head."""
        levels: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for stage in stages(self.backbone):
                ways = {name: way for name, way in stage.pooled.items() if name in wanted}

                def keep(module: nn.Module, entering: Any, leaving: Any, ways: Ways = ways) -> None:
                    if isinstance(leaving, Tensor):  # HRNet's stages give lists of maps, which have no one mean
                        for name, way in ways.items():
                            levels[name] = way(leaving)  # at once: a later layer may work in place

                hooks.callback(stage.module.register_forward_hook(keep).remove)
            return levels, self.backbone(images)

    def _whitening_for(self, vectors: str) -> Whitening | None:
        """The map behind this kind of vectors; None for the embedding. Raises InputError for a kind that is none."""
        if vectors not in VECTORS:
            raise InputError(f'The vectors are "search" or "embedding", not "{vectors}".')
        return self.whitening if vectors == "search" else None

    def _compute(self, vectors: str) -> Compute:
        """What a batch of normalised pictures goes through for vectors of this kind."""
        if vectors == FEATURES:
            names = tuple(self.frozen_levels())
            return lambda images: {"vectors": self.stage_features(images, names)}
        return self._embedding if self._whitening_for(vectors) is None else self._search_vectors

    def _embedding(self, images: Tensor) -> dict[str, Tensor]:
        return {"vectors": self(images)}

    def _search_vectors(self, images: Tensor) -> dict[str, Tensor]:
        assert self.whitening is not None
        return {"vectors": self.whitening(self.stage_features(images, self.whitening.facts.stages))}

    def _project(self, pooled: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch dim"]:
        with torch.autocast(pooled.device.type, enabled=False):
            return unit_length(self.head(pooled.float()))


def unit_length(vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Rows divided by their Euclidean length; a zero row stays zero.

    Examples:
        >>> import torch
        >>> from instdisc.encoder import unit_length
        >>> unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return nn.functional.normalize(vectors, dim=1, eps=SHORTEST)


def build_encoder(config: EncoderConfig | Mapping[str, Any], seed: int = 0, *, whole: bool = False) -> Encoder:
    """An encoder on the CPU with weights drawn from `seed`, and then from the file or hub that `config` names.

    whole: refuse a file that lacks any of the backbone's tensors. The same config and seed give the same weights; the
    global random state is left as it was. Raises InputError for choices that don't exist or don't go together, and for
    unavailable weights.

    Examples:
        >>> import torch
        >>> from instdisc.encoder import EncoderConfig, build_encoder
        >>> config = EncoderConfig("conv6", dim=8, width=4, image_size=16)
        >>> one, two = build_encoder(config, seed=3), build_encoder(config, seed=3)
        >>> all(torch.equal(mine, other) for mine, other in zip(one.parameters(), two.parameters()))
        True
    """
    if not isinstance(config, EncoderConfig):
        config = EncoderConfig.from_dict(config)
    config = _resolved(config)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed every accelerator as well.
        torch.default_generator.manual_seed(seed)
        encoder = Encoder(config)
    if config.pretrained is True:
        encoder.origin = f"timm's weights for {config.backbone}"
    elif config.pretrained:
        encoder.origin = start_from_file(encoder, Path(config.pretrained), whole=whole)
    return encoder


def _resolved(config: EncoderConfig) -> EncoderConfig:
    """The same choices with nothing left open in the evaluation view: what is saved is what will be used."""
    if config.pretrained is True:
        own = published_view(config.backbone)
        config = replace(config, mean=config.mean or own.mean, std=config.std or own.std)
    view = config.preprocessing
    return replace(config, crop_fraction=view.crop_fraction, mean=view.mean, std=view.std)


def _make_head(kind: str, channels: int, hidden: int, dim: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(channels, dim)
    return nn.Sequential(
        nn.Linear(channels, hidden, bias=False),  # the normalisation has the bias
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, dim),
    )
