"""Gradients of convolutions' weights by one matrix product, on processors where the library's kernel is slow at them.

On a Xeon with AMX the oneDNN of torch 2.15 takes two to ten times as long for the weights of a 3×3 convolution over
maps of 2 to 6 pixels a side, in bfloat16, as one product of the gradient with the maps' patches does. From 7 pixels on,
with fewer than 128 channels, and for everything but the weights the library is faster and is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from instdisc.shapes import Float, Tensor

_MOST_PIXELS, _FEWEST_CHANNELS = 36, 128
_AROUND = ([0], (1, 1), (1, 1), (1, 1), False, (0, 0), 1)  # bias, stride, padding, dilation, transposed, ..., groups


def pays(device: torch.device, precision: str) -> bool:
    """Whether matrix products are the faster way here: bfloat16 on a CPU with AMX."""
    return device.type == "cpu" and precision == "bfloat16" and bool(torch.cpu._is_amx_tile_supported())


def by_products(encoder: nn.Module) -> int:
    """Let the 3×3 convolutions have small maps' weight gradients from matrix products; how many there are.

    Weights, their names and what is computed stay as they are; only the order of sums differs.
    """
    found = [module for module in encoder.modules() if type(module) is nn.Conv2d and _is_plain(module)]
    for module in found:
        module.__class__ = ConvolutionByProducts
    return len(found)


def _is_plain(module: nn.Conv2d) -> bool:
    shape = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    wide = module.in_channels >= _FEWEST_CHANNELS
    return wide and module.bias is None and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


class ConvolutionByProducts(nn.Conv2d):
    """A 3×3 convolution whose weights learn by a matrix product where the map is small."""

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        small = images.shape[-1] * images.shape[-2] <= _MOST_PIXELS
        if not (small and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
            return super()._conv_forward(images, weight, bias)
        lowered = torch.get_autocast_dtype("cpu")
        return _Convolution.apply(images.to(lowered), weight.to(lowered))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(images, weight)
        return nn.functional.conv2d(images, weight, padding=1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weight = context.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        to_images = to_weight = None
        if context.needs_input_grad[0]:
            mask = [True, False, False]
            to_images = torch.ops.aten.convolution_backward(gradient, images, weight, *_AROUND, mask)[0]
        if context.needs_input_grad[1]:
            leaving, entering = weight.shape[:2]
            to_weight = gradient.permute(0, 2, 3, 1).reshape(-1, leaving).T @ patches(images)
            to_weight = to_weight.view(leaving, 3, 3, entering).permute(0, 3, 1, 2)
        return to_images, to_weight


def patches(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "places patch"]:
    """The 3×3 patches around every pixel, zero beyond the border; rows, columns, channels of a patch in this order."""
    batch, channels, height, width = images.shape
    padded = pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    per_picture, per_row, per_pixel, _ = padded.stride()
    window = (batch, height, width, 3, 3, channels)
    strides = (per_picture, per_row, per_pixel, per_row, per_pixel, 1)
    return padded.as_strided(window, strides).reshape(batch * height * width, 9 * channels)
