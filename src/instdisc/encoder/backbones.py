"""Backbones: any of timm's by name, the small ones of our own, and the CIFAR stem for ResNets.

A backbone takes normalised pictures (batch, 3, size, size) and gives their globally averaged features
(batch, channels), before any head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from instdisc.encoder.config import SMALL_PICTURES, EncoderConfig, did_you_mean
from instdisc.encoder.preprocessing import Preprocessing
from instdisc.encoder.small import SMALL_ENCODERS
from instdisc.errors import InputError, is_shortage
from instdisc.shapes import Float, Tensor


def make_backbone(config: EncoderConfig) -> nn.Module:
    """The backbone that `config` names, on the CPU, drawing its weights from torch's global generator.

    Raises InputError for an unknown name, for choices the backbone does not have, and where timm's weights are missing.
    """
    if config.backbone in SMALL_ENCODERS:
        if config.pretrained is True:
            raise InputError(f"There are no published weights for {config.backbone}: use a path, or leave them out.")
        if config.small_stem is True:
            raise InputError(f"{config.backbone} has no other stem: leave small_stem at auto.")
        make = SMALL_ENCODERS[config.backbone]
        return make() if config.width is None else make(config.width)
    backbone = _make_timm(config)
    for module in backbone.modules():
        if type(module) is nn.Conv2d and _Subsampling.wanted(module):
            module.__class__ = _Subsampling  # it holds nothing more: weights, names and hooks stay
    return backbone


class _Subsampling(nn.Conv2d):
    """A 1 × 1 convolution with a stride, of few channels: every second place is taken first, which gives the same.

    On CPUs with AVX2 and channels_last, oneDNN writes past its workspace in the weights' gradient of such a one with
    fewer input channels than its block (8, or 16 with AVX-512): the process dies (its issue 6035).
    """

    @staticmethod
    def wanted(convolution: nn.Conv2d) -> bool:
        return (
            convolution.kernel_size == (1, 1)
            and convolution.stride != (1, 1)
            and convolution.padding == (0, 0)
            and convolution.in_channels < 16
        )

    def forward(self, input: Tensor) -> Tensor:
        down, across = self.stride
        return nn.functional.conv2d(input[..., ::down, ::across], self.weight, self.bias, groups=self.groups)


def output_channels(backbone: nn.Module, config: EncoderConfig) -> int:
    """Channels of the pooled features, by trying it: timm's own figure leaves out the layers that some nets add last.

    Raises InputError if the backbone can't take pictures of this size.
    """
    images = torch.zeros(2, 3, config.image_size, config.image_size)
    try:
        with evaluating(backbone):
            features = backbone(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_shortage(error):
            raise
        raise InputError(
            f"The backbone {config.backbone} can't take pictures of {config.image_size} × {config.image_size} px "
            f"({_first_line(error)}): choose another size or backbone."
        ) from error
    if features.ndim != 2:
        raise InputError(f"The backbone {config.backbone} gives no single vector a picture: choose another.")
    return int(features.shape[1])


def published_view(name: str) -> Preprocessing:
    """The size, crop, mean and std that timm's weights of this backbone are used with; else those of ImageNet."""
    import timm

    if name in SMALL_ENCODERS:
        return Preprocessing(_IMAGENET_SIDE, 0.875)
    _require_known(name)
    published = timm.get_pretrained_cfg(name)
    if published is None:
        return Preprocessing(_IMAGENET_SIDE, 0.875)
    (red, green, blue), (red_std, green_std, blue_std) = published.mean, published.std
    return Preprocessing(
        int(published.input_size[1]),
        min(1.0, float(published.crop_pct)),
        (red, green, blue),
        (red_std, green_std, blue_std),
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in the mode it was in, whatever happened.

    `no_grad` and not `inference_mode`: some backbones keep position tables they computed in a forward pass, and an
    inference tensor kept that way would break the next training step.

    Examples:
        >>> import torch
        >>> from instdisc.encoder import EncoderConfig, build_encoder, evaluating
        >>> encoder = build_encoder(EncoderConfig("conv6", dim=8, width=4, image_size=16)).train()
        >>> with evaluating(encoder):
        ...     vectors = encoder(torch.zeros(2, 3, 16, 16))
        >>> vectors.shape, vectors.requires_grad, encoder.training
        (torch.Size([2, 8]), False, True)
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


_IMAGENET_SIDE = 224
DEVIATION = " std"  # behind a stage's name: the level of its standard deviations; no module's name has a space


@dataclass(frozen=True)
class Stage:
    """A place in the backbone whose output is a level of features: its name, module, channels, and where they lie."""

    name: str
    module: nn.Module
    channels: int
    channels_last: bool

    @property
    def pooled(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Its levels of features by name, and how each is made of the output: the mean, and the deviation."""
        return {self.name: self.pool, self.name + DEVIATION: self.deviation}

    def pool(self, output: Tensor) -> Float[Tensor, "batch channels"]:
        """The mean over places (maps) or tokens, in float32."""
        values = output.float()
        return values.mean(self._places(values)) if values.ndim > 2 else values

    def deviation(self, output: Tensor) -> Float[Tensor, "batch channels"]:
        """The standard deviation over places (maps) or tokens, in float32; zero where there is but one."""
        values = output.float()
        if values.ndim == 2:
            return torch.zeros_like(values)
        places = self._places(values)
        return (values - values.mean(places, keepdim=True)).square().mean(places).sqrt()

    def _places(self, values: Tensor) -> tuple[int, ...]:
        if values.ndim == 3:  # (batch, tokens, channels)
            return (1,)
        return (1, 2) if self.channels_last else (2, 3)


def stages(backbone: nn.Module) -> list[Stage]:
    """The backbone's stages in order, as its `feature_info` lists them; empty if it lists none."""
    modules = dict(backbone.named_modules())
    channels_last = str(getattr(backbone, "output_fmt", "NCHW")).upper().endswith("NHWC")
    listed = cast("list[dict[str, Any]]", list(getattr(backbone, "feature_info", [])))
    return [
        Stage(entry["module"], modules[entry["module"]], entry["num_chs"], channels_last)
        for entry in listed
        if entry.get("module") in modules
    ]


UNFREEZE = ("none", "last", "all")  # what learns of a backbone


def frozen_modules(backbone: nn.Module, unfreeze: str) -> list[nn.Module]:
    """The modules that stay as they are: all of them ("none" learns), all before the last stage ("last"), or no one.

    The last stage is the last that the backbone lists; what the backbone defines behind it learns too. Raises
    InputError where it lists no stages.
    """
    every = list(backbone.modules())
    if unfreeze == "none":
        return every
    if unfreeze == "all":
        return []
    found = stages(backbone)
    if not found:
        raise InputError("This backbone lists no stages, so none is its last: set unfreeze to none or all.")
    return every[: next(place for place, module in enumerate(every) if module is found[-1].module)]


def _make_timm(config: EncoderConfig) -> nn.Module:
    import timm
    from timm.models.resnet import ResNet

    name = config.backbone
    _require_known(name)
    if config.pretrained is True and config.width is not None:
        raise InputError("timm's weights fit the backbone's own width: leave out either width or pretrained.")
    # How maps become one vector is left to timm: the average for all convolutional networks.
    options: dict[str, Any] = {"num_classes": 0}
    published = timm.get_pretrained_cfg(name)
    if published is not None and published.fixed_input_size:  # transformers have a position for each patch
        options["img_size"] = config.image_size
    if config.width is not None:
        options |= _width_options(name, config.width)
    try:
        backbone: Any = timm.create_model(name, pretrained=config.pretrained is True, **options)
    except Exception as error:  # a name server, a proxy, a hub, a disk: each has its own family of errors
        if config.pretrained is not True:
            raise
        raise InputError(
            f"timm's weights for {name} could not be fetched ({_first_line(error)}): "
            "connect to the network, or give the path of a safetensors file."
        ) from error

    if not isinstance(backbone, ResNet):
        if config.small_stem is True:
            raise InputError(f"{name} is not one of timm's ResNets, which alone have a small stem: leave it at auto.")
        return backbone
    _set_stem(backbone, config)
    return backbone


def _set_stem(resnet: Any, config: EncoderConfig) -> None:
    """The small stem where it is wanted; or timm's own again, at the width asked for (see `_width_options`)."""
    channels = resnet.bn1.num_features
    if config.small_stem is True or (config.small_stem == "auto" and config.image_size <= SMALL_PICTURES):
        resnet.conv1 = _first_convolution(channels, kernel=3, stride=1)
        resnet.maxpool = nn.Identity()
    elif config.width is not None and not _has_deep_stem(config.backbone):
        resnet.conv1 = _first_convolution(channels, kernel=7, stride=2)


def _require_known(name: str) -> None:
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise InputError(
            f'There is no backbone "{name}".{did_you_mean(name, [*SMALL_ENCODERS, *timm.list_models()])} '
            f"Names are timm's (timm.list_models() lists them), or {', '.join(SMALL_ENCODERS)}."
        )
    tagged = timm.list_pretrained(base)
    if tag and name not in tagged:
        raise InputError(f'timm has no weights "{tag}" for {base}.{did_you_mean(name, tagged)}')


def has_width(name: str) -> bool:
    """Whether the width of a backbone can be chosen; also of one that is not known, which is refused elsewhere."""
    import timm

    base = name.partition(".")[0]
    if name in SMALL_ENCODERS or not timm.is_model(base):
        return True
    return str(timm.model_entrypoint(base).__module__) == "timm.models.resnet"


def _width_options(name: str, width: int) -> dict[str, Any]:
    """Options that make one of timm's ResNets as wide as asked, its stem included.

    timm fixes a plain stem at 64 channels; a deep stem ends in 2 · stem_width. So a deep one is asked for, which sets
    the width that the first stage expects, and a plain convolution then takes its place.
    """
    if not has_width(name):
        raise InputError(
            f"The width of {name} can't be changed, only that of timm's ResNets and {', '.join(SMALL_ENCODERS)}: "
            "leave it out, or give --set width=none."
        )
    if width % 2:
        raise InputError(f"The width of a ResNet must be even, not {width}.")
    options = {"channels": tuple(width * 2**stage for stage in range(4)), "stem_width": width // 2}
    return options if _has_deep_stem(name) else options | {"stem_type": "deep"}


def _has_deep_stem(name: str) -> bool:
    import timm

    with torch.device("meta"):  # no memory, no random numbers
        return isinstance(timm.create_model(name).conv1, nn.Sequential)


def _first_convolution(channels: int, *, kernel: int, stride: int) -> nn.Conv2d:
    convolution = nn.Conv2d(3, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
