"""Every setting of a run, in one frozen dataclass: this is the `settings` section of a run's config.json.

A preset is a function that returns one (presets.py); overrides replace single fields by name; what was used is saved.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from instdisc import objectives
from instdisc.data.augment import Augmentation
from instdisc.encoder import EncoderConfig
from instdisc.encoder.config import SMALL_PICTURES
from instdisc.errors import InputError
from instdisc.schedule import Growth, Schedule

Objective = Literal["softmax", "sampled", "nce", "parametric"]
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
    """A run, described. A field's symbol in the paper, where it has one, stands in brackets.

    Encoder: backbone, width, head, hidden, dim, size, pretrained: see EncoderConfig (`size` is its image_size).
    stored: side at which whole pictures are kept, for crops to be cut from; None = `size` up to 64 px, 8/7 of it above.
    Objective: the bank term and its temperature [τ], negatives [m], noise, mask_own; partition: how NCE knows Z,
        "first_batch" as published; proximal: the weight [λ] of that term, 0 = without; view_share: the share in
        [0, 1) of the loss that ViewSoftmax takes.
    groups: how many k-means finds in each view of a batch, for the other view to tell (BatchGroups); 0 = without that
        term. group_weight: its weight; group_from: the fraction of the run at which it begins.
    views: random views of each picture in a step. fill_epochs: until then rows of the bank only fill, and the bank's
        terms wait (ViewSoftmax does not): a row that is still random teaches nothing. bank_momentum: 0 replaces a
        row, 0.5 is published. bank_dtype, bank_storage: see MemoryBank; "auto" goes by size and what is free.
    batch: pictures of a step over all ranks; accumulate: forward passes a rank makes of it. They equal one large batch,
        but NCE's estimates of Z and ViewSoftmax see the pictures of one pass.
    Optimiser: "sgd" as published, or "muon" (orthogonalised momentum for matrices; SGD with vector_lr for the rest).
    warmup: epochs over which the learning rate rises; drops: fractions of the run where a step schedule falls.
    epochs, or minutes of wall clock for the whole run (then the schedule follows the clock).
    Augmentation: crop_scale, flip, jitter, brightness, contrast, saturation, hue, grey, blur: see Augmentation.
    early_sizes: sides of the views, as shares of `size`, before they are whole: each until its fraction of the run in
        grow_at (progressive resizing). A step costs about as many pixels as it has. A run by epochs is counted in
        work then, for its learning rate and warm-up too, so that it goes as one by minutes.
    precision: "auto" tries float32 and bfloat16 on the device for a moment and takes the faster.
    order: "pictures" draws every batch from all of them, "shards" goes through the files of the source in parts, each
        rank its own (see data/order.py); "auto" takes shards where single pictures are dear to read.
    monitor_epochs: epochs between measurements of quality. checkpoint_minutes: between saves; 0 = every step.
    """

    preset: str = "custom"
    backbone: str = "resnet18"
    width: int | None = None
    head: Literal["linear", "mlp"] = "linear"
    hidden: int | None = None
    dim: int = 128
    size: int = 32
    stored: int | None = None
    pretrained: bool | str = False
    objective: Objective = "softmax"
    temperature: float = 0.1
    negatives: int = 4096
    noise: Literal["shared", "private"] = "shared"
    partition: Literal["first_batch", "moving_average", "exact"] = "moving_average"
    mask_own: bool = False
    proximal: float = 0.0
    view_share: float = 0.0
    groups: int = 0
    group_weight: float = 0.5
    group_from: float = 0.2
    views: int = 1
    fill_epochs: float = 0.0
    bank_momentum: float = 0.5
    bank_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "float32"
    bank_storage: Literal["auto", "memory", "host", "disk"] = "auto"
    batch: int = 128
    accumulate: int = 1
    optimizer: Literal["sgd", "muon"] = "sgd"
    lr: float = 0.03
    vector_lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["step", "cosine", "constant"] = "step"
    drops: tuple[float, ...] = (0.6, 0.8)
    warmup: float = 0.0
    epochs: float = 200.0
    minutes: float | None = None
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.0
    jitter: float = 1.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    grey: float = 0.2
    blur: float = 0.0
    early_sizes: tuple[float, ...] = ()
    grow_at: tuple[float, ...] = ()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool | Literal["auto"] = False
    sync_batchnorm: bool = False
    seed: int = 0
    order: Literal["auto", "pictures", "shards"] = "auto"
    storage: Literal["auto", "memory", "cache", "workers"] = "auto"
    workers: int | None = None
    strict: bool = False
    monitor_epochs: int = 5
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("drops", "crop_scale", "early_sizes", "grow_at"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, hint in get_type_hints(Settings).items():
            if get_origin(hint) is Literal:
                _convert(name, getattr(self, name), hint)
        self._check(0 <= self.view_share < 1, "view_share is a share of the loss in [0, 1)")
        self._check(self.size >= 1, "size must be at least 1 pixel")
        self._check(self.stored is None or self.stored >= 1, "stored must be at least 1 pixel")
        self._check(self.views >= 1, "views must be at least 1")
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
            raise InputError(f"These settings can't be: {rule}.")

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
        bank_term: objectives.Term
        if self.objective == "softmax":
            bank_term = objectives.NonParametricSoftmax(self.temperature, mask_own=self.mask_own)
        elif self.objective == "sampled":
            # Own rows among the drawn ones never count; without its own row the positive leaves the denominator too.
            bank_term = objectives.SampledSoftmax(
                self.temperature, self.negatives, self.noise, decoupled=self.mask_own, seed=self.seed
            )
        elif self.objective == "nce":
            bank_term = objectives.NCE(
                self.temperature,
                self.negatives,
                self.noise,
                self.partition,
                mask_own=self.mask_own,
                seed=self.seed,
            )
        else:
            bank_term = objectives.ParametricSoftmax(instances, self.dim, seed=self.seed)
        terms: dict[str, objectives.Term] = {self.objective: bank_term}
        if self.view_share > 0:
            terms["views"] = objectives.ViewSoftmax(self.temperature, self.negatives, seed=self.seed)
        if self.groups:
            terms["groups"] = objectives.BatchGroups(channels, self.groups, begins=self.group_from, seed=self.seed)
        if self.proximal > 0:
            terms["proximal"] = objectives.Proximal(self.proximal)
        return terms

    def weights(self) -> dict[str, float]:
        """The factor of each term in the loss."""
        own = 1 - self.view_share
        return {self.objective: own, "views": self.view_share, "groups": self.group_weight, "proximal": 1.0}

    def with_overrides(self, overrides: Mapping[str, Any]) -> Settings:
        """The same with some fields replaced by name. Raises InputError for a name or a value that can't be."""
        known = [field.name for field in fields(self)]
        hints = get_type_hints(Settings)
        values: dict[str, Any] = {}
        for name, value in overrides.items():
            if name not in known or name == "preset":
                close = difflib.get_close_matches(name, known, n=3)
                hint = f" Did you mean {' or '.join(close)}?" if close else f" There are: {', '.join(known[1:])}."
                raise InputError(f'"{name}" is no setting of a run.{hint}')
            values[name] = _convert(name, value, hints[name])
        if "epochs" in values and "warmup" not in values:  # the schedule keeps its shape, as its drops do
            values["warmup"] = self.warmup * values["epochs"] / self.epochs
        if "epochs" in values and "fill_epochs" not in values:  # a short run must not end before its bank has its say
            values["fill_epochs"] = min(self.fill_epochs, values["epochs"] / 4)
        if "epochs" in values and "minutes" not in values:  # who counts in epochs does not go by a preset's clock
            values["minutes"] = None
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


def _convert(name: str, value: Any, hint: Any) -> Any:
    """A value as the field has it; text (from a command line) is read as the field's type."""
    options = get_args(hint) or (hint,)
    if isinstance(options[0], str):  # a Literal
        if value not in options:
            raise InputError(f'{name} is one of {", ".join(map(str, options))}, not "{value}".')
        return value
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        if type(None) in options:
            return None
        raise InputError(f"{name} needs a value.")
    if hint == tuple[float, ...] or hint == tuple[float, float]:
        parts = value.replace(",", " ").split() if isinstance(value, str) else value
        try:
            numbers = tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            raise InputError(f'{name} is a list of numbers like 0.2,1.0, not "{value}".') from None
        if hint == tuple[float, float] and len(numbers) != 2:
            raise InputError(f'{name} is two numbers like 0.2,1.0, not "{value}".')
        return numbers
    if bool in options:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "yes", "1", "on", "false", "no", "0", "off"):
            return str(value).lower() in ("true", "yes", "1", "on")
        if str in options:
            return str(value)
        words = [word for option in options for word in get_args(option)]  # of a Literal beside bool
        if value in words:
            return value
        allowed = ["true", "false", *words]
        raise InputError(f'{name} is {", ".join(allowed[:-1])} or {allowed[-1]}, not "{value}".')
    kind = int if int in options else float if float in options else str
    if kind is str:
        return str(value)
    try:
        number = kind(value)
        if isinstance(value, float) and number != value:
            raise ValueError
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(f'{name} is {"a whole number" if kind is int else "a number"}, not "{value}".') from None
    return number
