"""What an encoder is made of, as plain facts: this is the `encoder` section of a run's config.json."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from instdisc.data.augment import IMAGENET_MEAN, IMAGENET_STD
from instdisc.encoder.preprocessing import Preprocessing
from instdisc.errors import InputError

HEADS = ("linear", "mlp", "none")
SMALL_PICTURES = 64  # pixels: up to here a ResNet gets the small stem, and the evaluation view keeps the whole square


@dataclass(frozen=True)
class EncoderConfig:
    """The choices that make an encoder; everything else follows from them and a seed.

    backbone: a timm name ("resnet18", "convnext_tiny", "vit_tiny_patch16_224", ...) or a small encoder's ("conv6").
    dim: dimensions of a vector; of head "none", as many as the backbone's channels, whatever is asked for.
    head: "linear" is the paper's Linear(channels, dim) with bias; "mlp" is Linear, BatchNorm, ReLU, Linear; "none"
        hands the backbone's pooled features on, as of a published network that is not trained further.
    hidden: width of the MLP head's hidden layer; None = as many as the backbone's channels.
    width: channels of the first stage, for ResNets (width, 2·width, 4·width, 8·width) and small encoders; None = the
        backbone's own.
    image_size: side of the square pictures, pixels.
    small_stem: a 3×3 convolution of stride 1 without max-pooling in place of a ResNet's stem; "auto" = up to 64 px.
    pretrained: False = random weights; True = timm's published weights; a path = a safetensors file.
    crop_fraction, mean, std: see Preprocessing. None: the whole square up to 64 px and 0.875 above; timm's numbers
        for the backbone if its weights are used, and those of ImageNet otherwise.
    Raises InputError for sizes below 1 and choices that do not exist.

    Examples:
        >>> from instdisc.encoder import EncoderConfig
        >>> config = EncoderConfig("conv6", dim=8, image_size=16)
        >>> config.preprocessing.size, EncoderConfig.from_dict(config.to_dict()) == config
        (16, True)
    """

    backbone: str = "resnet18"
    dim: int = 128
    head: str = "linear"
    hidden: int | None = None
    width: int | None = None
    image_size: int = 32
    small_stem: str | bool = "auto"
    pretrained: bool | str = False
    crop_fraction: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise InputError(f'The head is "linear", "mlp" or "none", not "{self.head}".')
        if self.small_stem not in ("auto", True, False):
            raise InputError(f'small_stem is "auto", true or false, not "{self.small_stem}".')
        for name in ("mean", "std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 3:
                raise InputError(f"{name} must be three numbers (red, green, blue), not {getattr(self, name)}.")
        for name in ("dim", "hidden", "width", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")

    @property
    def preprocessing(self) -> Preprocessing:
        """The evaluation view that these choices mean."""
        crop = self.crop_fraction
        if crop is None:
            crop = 1.0 if self.image_size <= SMALL_PICTURES else 0.875
        return Preprocessing(self.image_size, crop, self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; `from_dict` takes them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> EncoderConfig:
        """The config that `to_dict` wrote. Raises InputError for a setting that does not exist."""
        known = [field.name for field in fields(cls)]
        for name in facts:
            if name not in known:
                raise InputError(f'"{name}" is no setting of an encoder.{did_you_mean(name, known)}')
        values: dict[str, Any] = {}
        for name, value in facts.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence to append to an error, with up to five names that look alike; empty if none does."""
    matches = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""
