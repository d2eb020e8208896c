"""Networks tried by choose_recipe.py beside the small encoders of instdisc: importing this makes their names known.

Not part of the library: what wins moves there.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from instdisc.encoder.small import SMALL_ENCODERS, Pairs
from instdisc.shapes import Float, Tensor


class HaarStem(nn.Module):
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
    on a quarter of the numbers: 1.35 times as many multiplications a second as conv6 on AVX2.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = HaarStem()
        self.feature_info: list[dict[str, object]] = []
        for number, (entering, leaving) in enumerate(pairwise((24, width, 2 * width, 4 * width)), start=1):
            pool = nn.MaxPool2d(2, ceil_mode=True)  # the stem leaves odd sides
            stage = nn.Sequential(*_convolution(entering, leaving, pool), *_convolution(leaving, leaving))
            self.add_module(f"stage{number}", stage)
            self.feature_info.append({"module": f"stage{number}", "num_chs": leaving, "reduction": 2**number})

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels"]:
        return super().forward(images).mean(dim=(2, 3))


def _convolution(entering: int, leaving: int, *between: nn.Module) -> list[nn.Module]:
    convolution = nn.Conv2d(entering, leaving, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, *between, nn.BatchNorm2d(leaving), nn.ReLU(inplace=True)]


def with_stem(width: int = 32) -> Pairs:
    """conv6 whose first convolution is the fixed stem."""
    pairs = Pairs(3, width)
    pairs.stage1 = nn.Sequential(HaarStem(), *_convolution(24, width))
    for module in pairs.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    return pairs


def from_identity(module: nn.Module) -> nn.Module:
    """The same with the first filters of every convolution handing on what enters (Dirac start)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.dirac_(part.weight[: part.in_channels])
    return module


SMALL_ENCODERS.update(
    {
        "conv6d": lambda width=32: from_identity(Pairs(3, width)),
        "conv6s": with_stem,
        "conv7": PoolFirst,
        "conv7d": lambda width=64: from_identity(PoolFirst(width)),
    }
)
