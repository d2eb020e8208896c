"""Every setting of a run, in one frozen dataclass: this is the `settings` section of a run's config.json.

A preset is a function that returns one (presets.py); overrides replace single fields by name; what was used is saved.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_origin, get_type_hints

from instdisc import objectives
from instdisc.data.augment import Augmentation
from instdisc.encoder import EncoderConfig
from instdisc.encoder.backbones import has_width, published_view
from instdisc.encoder.config import SMALL_PICTURES
from instdisc.errors import InputError
from instdisc.schedule import Growth, Schedule
from instdisc.training.converting import convert

# They change what a run costs or shows and not its numbers, so a run may be resumed with others.
OPERATIONAL = (
    "bank_storage",
    "storage",
    "workers",
    "strict",
    "monitor_epochs",
    "checkpoint_minutes",
    "keep_checkpoints",
)


@dataclass(frozen=True)
class Settings:
    """A run, described. Each field says what it is; a Greek letter is the paper's. `training.described` lists them.

    Examples:
        >>> from instdisc.training import Settings
        >>> settings = Settings(objective="nce", negatives=512).with_overrides({"lr": "0.1", "epochs": "20"})
        >>> settings.objective, settings.lr, settings.epochs
        ('nce', 0.1, 20.0)
    """

    preset: str = "custom"
    """What the other settings were taken from."""
    backbone: str = "resnet18"
    """A timm name, or one of our small networks: conv6, conv7, conv8."""
    width: int | None = None
    """Channels of its first stage; none: the backbone's own."""
    head: Literal["linear", "mlp", "none"] = "linear"
    """From pooled features to the embedding: linear as published, an MLP of one hidden layer, or none."""
    hidden: int | None = None
    """Width of the MLP's hidden layer; none: as many as the features."""
    dim: int = 128
    """Dimensions of an embedding, and of a row of the bank."""
    size: int = 32
    """Side of a picture as the network sees it, pixels."""
    stored: int | None = None
    """Side at which whole pictures are kept, for crops to be cut from, pixels; none: `size` to 64, 8/7 of it above."""
    pretrained: bool | str = False
    """Start from timm's weights, or from a safetensors file."""
    unfreeze: Literal["none", "last", "all"] = "all"
    """What learns below the head: none of the backbone, so that its features are computed once; its last stage; all."""
    backbone_rate: float = 1.0
    """The backbone's learning rates, as a share of the head's."""
    kept_views: int = 8
    """Random views of each picture whose features are computed, where none of the backbone learns; a step draws some.
    """
    objective: str = "softmax"
    """What the bank teaches: softmax (eq 2, exact over all rows), sampled, nce (eq 4 to 8), parametric (eq 1)."""
    temperature: float = 0.1
    """τ: cosines are divided by it."""
    negatives: int = 4096
    """m: rows of the bank drawn in a step, for sampled and nce, and in the views' term."""
    noise: Literal["shared", "private"] = "shared"
    """One draw for the whole batch, or one for each picture as published."""
    partition: Literal["first_batch", "moving_average", "exact"] = "moving_average"
    """How nce knows Z: by a moving average, exactly, or by its first batch as published, which collapses under SGD."""
    mask_own: bool = False
    """Leave a picture's own row out of the denominator (the decoupled form)."""
    proximal: float = 0.0
    """λ, the weight of the proximal term (eq 9); 0: without."""
    view_share: float = 0.0
    """Share of the loss, in [0, 1), that compares views of one picture."""
    groups: int = 0
    """Groups that k-means finds in each view of a batch, for the other view to tell; 0: without."""
    group_weight: float = 0.5
    """Weight of the groups' term."""
    group_from: float = 0.2
    """Fraction of the run at which the groups' term begins."""
    views: int = 1
    """Random views of each picture in a step."""
    fill_epochs: float = 0.0
    """Epochs in which rows of the bank only fill, and its terms wait: a random row teaches nothing."""
    bank_momentum: float = 0.5
    """How much of a row stays when it is updated; 0: replaced, 0.5: published."""
    bank_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "float32"
    """Of the rows; int8 takes a quarter of the memory; auto: by what is free."""
    bank_storage: Literal["auto", "memory", "host", "disk"] = "auto"
    """Where the rows are: on the device, in the host's memory, in a mapped file; auto: by what is free."""
    batch: int = 128
    """Pictures of a step, over all processes."""
    accumulate: int = 1
    """Forward passes that a process makes of its part of a batch; the sum equals one large batch."""
    optimizer: Literal["sgd", "muon"] = "sgd"
    """sgd as published, or muon: orthogonalised momentum for matrices, SGD with vector_lr for the rest."""
    lr: float = 0.03
    """The learning rate at its height."""
    vector_lr: float = 0.05
    """The same of muon's SGD."""
    momentum: float = 0.9
    """Of the optimizer."""
    nesterov: bool = False
    """Look ahead along the momentum."""
    weight_decay: float = 5e-4
    """Pull of the weights towards 0."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rate falls: in steps, as a cosine, or not."""
    drops: tuple[float, ...] = (0.6, 0.8)
    """Fractions of the run at which a step schedule falls to a tenth."""
    warmup: float = 0.0
    """Epochs over which the learning rate rises."""
    epochs: float = 200.0
    """Passes over the pictures."""
    minutes: float | None = None
    """Length of the whole run by the clock; the schedule then follows the clock. None: by epochs."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and greatest share of a picture's area that a view shows."""
    flip: float = 0.0
    """Probability of mirroring."""
    jitter: float = 1.0
    """Probability of changing the colours, by the four that follow."""
    brightness: float = 0.4
    """How far brightness changes."""
    contrast: float = 0.4
    """How far contrast changes."""
    saturation: float = 0.4
    """How far saturation changes."""
    hue: float = 0.4
    """How far the hue turns, as a part of the circle."""
    grey: float = 0.2
    """Probability of a grey view."""
    blur: float = 0.0
    """Probability of a blurred view."""
    early_sizes: tuple[float, ...] = ()
    """Sides of the views before they are whole, as shares of `size` (progressive resizing)."""
    grow_at: tuple[float, ...] = ()
    """Fractions of the run until which each of the early sizes holds."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder's arithmetic; auto tries both for a moment and takes the faster."""
    compile: bool | Literal["auto"] = False
    """Whether the encoder goes through torch.compile; auto: if a trial pays."""
    sync_batchnorm: bool = False
    """Batch statistics over all processes instead of each one's own."""
    seed: int = 0
    """Of all random numbers."""
    order: Literal["auto", "pictures", "shards"] = "auto"
    """Batches from all pictures, or file by file, each process its own part; auto: files where single pictures are
    dear to read.
    """
    storage: Literal["auto", "memory", "cache", "workers"] = "auto"
    """Decoded pictures in memory, in a cache on disk, or decoded again in each epoch by workers; auto: by what is
    free.
    """
    workers: int | None = None
    """Processes that decode; none: by the cores."""
    strict: bool = False
    """Stop at the first picture that can't be read."""
    monitor_epochs: int = 5
    """Epochs between measurements of quality."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; 0: at every step."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept."""

    def __post_init__(self) -> None:
        for name in ("drops", "crop_scale", "early_sizes", "grow_at"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, hint in get_type_hints(Settings).items():
            if get_origin(hint) is Literal:
                convert(name, getattr(self, name), hint)
        if self.objective not in objectives.OBJECTIVES:
            raise InputError(f'objective is one of {", ".join(objectives.OBJECTIVES)}, not "{self.objective}".')
        self._check(0 <= self.view_share < 1, "view_share is a share of the loss in [0, 1)")
        self._check(self.size >= 1, "size must be at least 1 pixel")
        self._check(self.stored is None or self.stored >= 1, "stored must be at least 1 pixel")
        self._check(self.views >= 1, "views must be at least 1")
        self._check(0 < self.backbone_rate <= 1, "backbone_rate is a share in (0, 1]")
        self._check(self.kept_views >= 1, "kept_views must be at least 1")
        if self.features_are_kept:
            self._check(self.head != "none", "without a head and with unfreeze=none nothing learns")
            self._check(self.kept_views >= self.views, f"a step draws {self.views} views: set kept_views to as many")
            self._check(not self.early_sizes, "kept features are of whole views: set early_sizes and grow_at empty")
            self._check(self.order != "shards", "kept features lie in no shards: leave order at auto")
        self._check(self.fill_epochs >= 0, "fill_epochs must not be negative")
        self._check(
            self.fill_epochs == 0 or self.view_share > 0, "fill_epochs needs view_share, which teaches meanwhile"
        )
        self._check(self.views >= 2 or self.view_share == 0, "view_share needs two views or more: set views to 2")
        self._check(self.groups == 0 or self.groups >= 2, "groups are 2 or more, or 0 for none")
        self._check(self.views >= 2 or self.groups == 0, "groups need two views or more: set views to 2")
        self._check(0 <= self.group_weight < math.inf, "group_weight must not be negative")
        self._check(0 <= self.group_from < 1, "group_from is a fraction of the run in [0, 1)")
        self._check(self.batch >= 1, "batch must be at least 1")
        self._check(1 <= self.accumulate <= self.batch, "accumulate must be at least 1 and at most batch")
        self._check(0 < self.lr < math.inf, "lr must be positive")
        self._check(0 < self.vector_lr < math.inf, "vector_lr must be positive")
        self._check(0 <= self.momentum < 1, "momentum must be in [0, 1)")
        self._check(self.weight_decay >= 0, "weight_decay must not be negative")
        self._check(self.epochs > 0, "epochs must be positive")
        self._check(self.minutes is None or self.minutes > 0, "minutes must be positive")
        self._check(self.monitor_epochs >= 1, "monitor_epochs must be at least 1")
        self._check(self.keep_checkpoints >= 1, "keep_checkpoints must be at least 1")
        self._check(
            0 <= self.warmup < self.epochs, f"warmup must be shorter than the {self.epochs:g} epochs of the run"
        )
        self._check(self.temperature > 0, "temperature must be positive")
        self._check(self.negatives >= 1, "negatives must be at least 1")
        self._check(self.proximal >= 0, "proximal must not be negative")
        self._check(0 <= self.bank_momentum < 1, "bank_momentum must be in [0, 1)")
        self._check(all(0 <= drop <= 1 for drop in self.drops), "drops are fractions of the run in [0, 1]")
        self._check(self.workers is None or self.workers >= 0, "workers must not be negative")
        self._check(self.checkpoint_minutes >= 0, "checkpoint_minutes must not be negative")
        # The parts refuse what they can't do, and here: before the pictures are read, which can take hours.
        augment = self.augmentation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        _ = self.encoder, [replace(augment, size=size) for size in self.view_sizes]

    def _check(self, holds: bool, rule: str) -> None:
        if not holds:
            raise InputError(f"Invalid settings: {rule}.")

    @property
    def features_are_kept(self) -> bool:
        """Whether nothing of the backbone learns, so that its features are computed once."""
        return self.unfreeze == "none"

    @property
    def goes_on(self) -> bool:
        """Whether the backbone is a published one that stays as it is, or near it."""
        return self.pretrained is not False and (self.unfreeze != "all" or self.backbone_rate < 1)

    @property
    def stored_side(self) -> int:
        """Side at which pictures are kept for training, pixels: crops of large ones need something to be cut from."""
        if self.stored is not None:
            return self.stored
        return self.size if self.size <= SMALL_PICTURES else round(self.size * 8 / 7)

    @property
    def growth(self) -> Growth:
        """How the views grow over the run."""
        return Growth(self.early_sizes, self.grow_at)

    def view_size(self, progress: float) -> int:
        """Side of the views at this fraction of the run, pixels: in steps of 4, as strides and memory like them."""
        share = self.growth.share(progress)
        return self.size if share == 1 else min(self.size, max(4, 4 * round(share * self.size / 4)))

    @property
    def view_sizes(self) -> list[int]:
        """The sides that views have, in their order."""
        sizes = [self.view_size(progress) for progress in (0.0, *self.grow_at)]
        return list(dict.fromkeys(sizes))

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder's part."""
        return EncoderConfig(
            backbone=self.backbone,
            dim=self.dim,
            head=self.head,
            hidden=self.hidden,
            width=self.width,
            image_size=self.size,
            pretrained=self.pretrained,
        )

    def augmentation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Augmentation:
        """The augmentation's part, to whole views, normalising with the encoder's numbers."""
        return Augmentation(
            size=self.size,
            scale=(self.crop_scale[0], self.crop_scale[1]),
            flip=self.flip,
            jitter=self.jitter,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            grey=self.grey,
            blur=self.blur,
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
        )

    def learning_rate(self) -> Schedule:
        """The schedule, over the fraction of the run."""
        return Schedule(kind=self.schedule, warmup=self.warmup / self.epochs, drops=self.drops)

    def terms(self, instances: int, channels: int) -> dict[str, objectives.Term]:
        """The named terms of the loss; `weights` has their factors. channels: of the encoder's pooled features."""
        terms: dict[str, objectives.Term] = {}
        terms[self.objective] = objectives.OBJECTIVES[self.objective].from_settings(self, instances)
        if self.view_share > 0:
            terms["views"] = objectives.NTXent(self.temperature, self.negatives, seed=self.seed)
        if self.groups:
            terms["groups"] = objectives.BatchGroups(channels, self.groups, begins=self.group_from, seed=self.seed)
        if self.proximal > 0:
            terms["proximal"] = objectives.Proximal(self.proximal)
        return terms

    def weights(self) -> dict[str, float]:
        """The factor of each term in the loss."""
        own = 1 - self.view_share
        return {self.objective: own, "views": self.view_share, "groups": self.group_weight, "proximal": 1.0}

    @classmethod
    def converted(cls, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Values by name, each as its field has it. Raises InputError for an unknown name or an invalid value."""
        known = [field.name for field in fields(cls)]
        hints = get_type_hints(Settings)
        values: dict[str, Any] = {}
        for name, value in overrides.items():
            if name not in known or name == "preset":
                close = difflib.get_close_matches(name, known, n=3)
                hint = f" Did you mean {' or '.join(close)}?" if close else f" There are: {', '.join(known[1:])}."
                raise InputError(f'"{name}" is no setting of a run.{hint}')
            values[name] = convert(name, value, hints[name])
        return values

    def with_overrides(self, overrides: Mapping[str, Any]) -> Settings:
        """The same with some fields replaced by name. Raises InputError for an unknown name or an invalid value."""
        values = self.converted(overrides)
        if "epochs" in values and "warmup" not in values:  # the schedule keeps its shape, as its drops do
            values["warmup"] = self.warmup * values["epochs"] / self.epochs
        if "epochs" in values and "fill_epochs" not in values:  # a short run must not end before its bank has its say
            values["fill_epochs"] = min(self.fill_epochs, values["epochs"] / 4)
        if "epochs" in values and "minutes" not in values:  # who counts in epochs does not go by a preset's clock
            values["minutes"] = None
        if "backbone" in values and "width" not in values and not has_width(values["backbone"]):
            values["width"] = None  # a preset's is for its own backbone
        if "backbone" in values and "size" not in values and self.goes_on:
            values["size"] = published_view(values["backbone"]).size  # as its weights were made for
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Settings:
        """The settings that `to_dict` wrote; InputError for one that does not exist.

        Where there is no partition, it is the one that was the default when such facts were written.
        """
        preset = facts.get("preset", "custom")
        values = {"partition": "first_batch", **facts}
        return replace(cls().with_overrides({k: v for k, v in values.items() if k != "preset"}), preset=preset)

    def differences(self, other: Settings) -> list[str]:
        """What would change the numbers: "lr: 0.03 there, 0.1 here", one entry a field."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name}: {mine[name]} there, {theirs[name]} here"
            for name in mine
            if name not in OPERATIONAL and mine[name] != theirs[name]
        ]
