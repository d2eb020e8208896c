"""Small encoders of our own, for machines with a few CPU cores and pictures of 28 to 64 pixels.

A new one is a module with `feature_info` (as timm's backbones have) and one line in SMALL_ENCODERS.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
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


class Stem(nn.Module):
    """A fixed first layer: 2×2 patches in the basis that all photographs nearly share, each number and its negative.

    The basis is Haar's (mean, two edges, a checkerboard) times opponent colours (grey, red − blue, green − both). On
    CIFAR-10 no two of its 12 numbers correlate by more than 0.16, so normalising them all but whitens the patches.
    Nothing is learned here, and no gradient goes through.
    """

    def __init__(self) -> None:
        super().__init__()
        haar = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2
        colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])
        colours = nn.functional.normalize(colours, dim=1)
        filters = torch.einsum("kc,fhw->kfchw", colours, haar).reshape(12, 3, 2, 2)
        self.register_buffer("filters", filters)
        self.normalise = nn.BatchNorm2d(12, eps=5e-4, affine=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 24 rows columns"]:
        white = self.normalise(nn.functional.conv2d(images, self.get_buffer("filters")))
        return torch.cat([white, -white], dim=1).relu_()


class PoolFirst(nn.Sequential):
    """The fixed stem, then three pairs of 3×3 convolutions of widths w, 2w, 4w; global average.

    In each pair max-pooling follows the first convolution at once, so that normalisation, ReLU and the second one work
    on a quarter of the numbers: more multiplications a second than `Pairs`. The first filters of every convolution hand
    on what enters, and the others begin random (Dirac start: Zagoruyko and Komodakis 2017).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = Stem()
        self.feature_info: list[dict[str, object]] = []
        for number, (entering, leaving) in enumerate(pairwise((24, width, 2 * width, 4 * width)), start=1):
            pool = nn.MaxPool2d(2, ceil_mode=True)  # the stem leaves odd sides
            stage = nn.Sequential(*_from_identity(entering, leaving, pool), *_from_identity(leaving, leaving))
            self.add_module(f"stage{number}", stage)
            self.feature_info.append({"module": f"stage{number}", "num_chs": leaving, "reduction": 2**number})

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels"]:
        return super().forward(images).mean(dim=(2, 3))


def _from_identity(entering: int, leaving: int, *between: nn.Module) -> list[nn.Module]:
    layers = _convolution(entering, leaving, *between)
    nn.init.dirac_(layers[0].get_parameter("weight")[:entering])
    return layers


def _convolution(entering: int, leaving: int, *between: nn.Module) -> list[nn.Module]:
    convolution = nn.Conv2d(entering, leaving, 3, padding=1, bias=False)  # the normalisation has the bias
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, *between, nn.BatchNorm2d(leaving), nn.ReLU(inplace=True)]


def _pair(entering: int, leaving: int, *, halve: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if halve else []
    for channels in (entering, leaving):
        layers += _convolution(channels, leaving)
    return nn.Sequential(*layers)


def conv6(width: int = 32) -> Pairs:
    """Three pairs: widths w, 2w, 4w."""
    return Pairs(3, width)


def conv8(width: int = 32) -> Pairs:
    """Four pairs: widths w, 2w, 4w, 8w."""
    return Pairs(4, width)


def conv7(width: int = 64) -> PoolFirst:
    """A fixed stem and three pairs that pool first: widths w, 2w, 4w. 65 million multiplications at w = 64, 32 px."""
    return PoolFirst(width)


SMALL_ENCODERS: dict[str, Callable[..., nn.Module]] = {"conv6": conv6, "conv7": conv7, "conv8": conv8}
