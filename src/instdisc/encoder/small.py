"""Small encoders of our own, for machines with a few CPU cores and pictures of 28 to 64 pixels.

A new one is a module with `feature_info` (as timm's backbones have) and one line in SMALL_ENCODERS.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from instdisc.shapes import Float, Tensor


class Pairs(nn.Sequential):
    """Pairs of 3×3 convolutions of widths w, 2w, 4w, ... with batch normalisation and ReLU; global average.

    Pictures are halved by max-pooling between the pairs, so they must have 2^(pairs − 1) pixels a side at least. At
    w = 32 and 32 px three pairs are 39 million multiplications a picture, a fourteenth of the CIFAR ResNet-18, and four
    are 53; a plain chain of large convolutions is what CPU kernels do best.
    """

    def __init__(self, pairs: int, width: int) -> None:
        super().__init__()
        widths = [3, *(width * 2**pair for pair in range(pairs))]
        self.feature_info: list[dict[str, object]] = []
        for number, (entering, leaving) in enumerate(pairwise(widths), start=1):
            self.add_module(f"stage{number}", _pair(entering, leaving, halve=number > 1))
            info = {"module": f"stage{number}", "num_chs": leaving, "reduction": 2 ** (number - 1)}
            self.feature_info.append(info)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels"]:
        return super().forward(images).mean(dim=(2, 3))


def _pair(entering: int, leaving: int, *, halve: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if halve else []
    for channels in (entering, leaving):
        convolution = nn.Conv2d(channels, leaving, 3, padding=1, bias=False)  # the normalisation has the bias
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(leaving), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def conv6(width: int = 32) -> Pairs:
    """Three pairs: widths w, 2w, 4w."""
    return Pairs(3, width)


def conv8(width: int = 32) -> Pairs:
    """Four pairs: widths w, 2w, 4w, 8w."""
    return Pairs(4, width)


SMALL_ENCODERS: dict[str, Callable[..., nn.Module]] = {"conv6": conv6, "conv8": conv8}
