"""Small encoders of our own, for machines with a few CPU cores and pictures of 28 to 64 pixels.

A new one is a class with `feature_info` (as timm's backbones have) and one line in SMALL_ENCODERS.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from instdisc.shapes import Float, Tensor


class Conv6(nn.Module):
    """Six 3×3 convolutions of widths w, w, 2w, 2w, 4w, 4w, each with batch normalisation and ReLU; global average.

    Pictures are halved by max-pooling after the first and the second pair; the third pair works at a quarter of the
    picture's side (at least 4 pixels are needed). At w = 32 and 32 px this is 39 million multiplications a picture,
    a fourteenth of the CIFAR ResNet-18, and a plain chain of large convolutions is what CPU kernels do best.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        self.stage1, self.stage2, self.stage3 = (
            _pair(widths[stage], widths[stage + 1], halve=stage > 0) for stage in range(3)
        )
        self.feature_info = [
            {"module": f"stage{stage}", "num_chs": widths[stage], "reduction": 2 ** (stage - 1)} for stage in (1, 2, 3)
        ]

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels"]:
        return self.stage3(self.stage2(self.stage1(images))).mean(dim=(2, 3))


def _pair(entering: int, leaving: int, *, halve: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if halve else []
    for channels in (entering, leaving):
        convolution = nn.Conv2d(channels, leaving, 3, padding=1, bias=False)  # the normalisation has the bias
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(leaving), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


SMALL_ENCODERS: dict[str, Callable[..., nn.Module]] = {"conv6": Conv6}
