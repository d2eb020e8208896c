"""From stored uint8 pictures to float planes of the wanted size: boxes, mirroring, antialiased bilinear resampling.

Every function answers in *planes*, `(3, batch, size, size)` float32 in [0, 1]: one contiguous block a colour, so that
the colour operations that follow run over long unbroken rows. The result is what torchvision's
`resized_crop(..., antialias=True)` gives: each output pixel is a mean of the input under a triangle whose half width is
the step between output pixels (one input pixel at the least, which is plain bilinear), cut off at the box's edges.

Two ways to the same numbers:

* two batched matrix products with the triangles as weights, in float32. The work grows with the cube of the size, so
  this is for small pictures on a CPU and for everything on a GPU. It differs from torchvision's float path by the
  rounding of a pixel position on each axis, 2⁻²⁴ × the stored size, times the difference of neighbouring pixels: at
  most 1e-5 for 64 stored pixels and 4e-5, a hundredth of a grey level, for 256. Where TF32 products are allowed
  numbers keep 11 bits: up to 1e-3, a quarter of a grey level.
* picture by picture through torch's own uint8 kernel on a CPU, for large pictures. This *is* the uint8 result of
  torchvision's v2 functions, rounded to a grey level after each axis: within 1.5/255 of the float path.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

from instdisc.shapes import Bool, Float, Int, Tensor, UInt8

# Multiply-adds a picture and colour above which torch's uint8 kernel beats the matrix products on one CPU core:
# they meet at 48 pixels out of 54.
MATRIX_WORK = 300_000


def resized_crop(
    images: UInt8[Tensor, "batch 3 height width"],
    boxes: Int[Tensor, "batch 4"],
    flip: Bool[Tensor, " batch"],
    size: int,
) -> Float[Tensor, "3 batch {size} {size}"]:
    """Cut `boxes` (top, left, height, width in whole stored pixels), resize them to a square, mirror where `flip`."""
    height, width = images.shape[2:]
    if by_kernel(images, size):
        return _one_by_one(images, boxes, flip, size)
    top, left, tall, wide = boxes.to(torch.float32).unbind(1)
    step = wide / size
    rows = triangles(top, tall / size, top, top + tall, count=size, length=height)
    columns = triangles(
        torch.where(flip, left + wide, left),
        torch.where(flip, -step, step),
        left,
        left + wide,
        count=size,
        length=width,
    )
    return _product(images, rows, columns)


def by_kernel(images: UInt8[Tensor, "batch 3 height width"], size: int) -> bool:
    """Whether these pictures are cut and resized one by one, by torch's uint8 kernel."""
    height, width = images.shape[2:]
    return images.device.type == "cpu" and size * height * (width + size) > MATRIX_WORK


def cut(image: UInt8[Tensor, "3 height width"], box: Sequence[int], size: int) -> UInt8[Tensor, "3 {size} {size}"]:
    """One picture's box (top, left, height, width), resized to a square by torch's uint8 kernel, in channels_last.

    The box is brought into that layout first: a planar box then takes 1.4 to 2.6 times less, copy included.
    """
    top, left, tall, wide = box
    part = image[None, :, top : top + tall, left : left + wide].contiguous(memory_format=torch.channels_last)
    return interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0]


def resized_centre(
    images: UInt8[Tensor, "batch 3 height width"], resized: Int[Tensor, "batch 2"], size: int
) -> Float[Tensor, "3 batch {size} {size}"]:
    """Resize whole pictures to `resized` (height, width) and keep the central square, in one pass, always in float32.

    Unlike a crop that is resized afterwards, pixels outside the square still weigh in at its edges; this is what
    torchvision's `Resize` and `CenterCrop` do one after the other.
    """
    axes = []
    for length, target in zip(images.shape[2:], resized.to(torch.float32).unbind(1), strict=True):
        step = length / target
        start = torch.round((target - size) / 2) * step  # half to even, as Python's round in CenterCrop
        low = torch.zeros_like(step)
        axes.append(triangles(start, step, low, low + length, count=size, length=length))
    return _product(images, *axes)


def triangles(
    start: Float[Tensor, " batch"],
    step: Float[Tensor, " batch"],
    low: Float[Tensor, " batch"],
    high: Float[Tensor, " batch"],
    *,
    count: int,
    length: int,
) -> Float[Tensor, "batch {count} {length}"]:
    """Weights of `length` input pixels for `count` output pixels along one axis; each row sums to 1.

    Output pixel i is centred on `start + (i + 1/2)·step` in input pixels (a negative step reads backwards) and weighs
    input pixel j by `max(0, 1 − |j + 1/2 − centre| / max(|step|, 1))` for `low <= j < high`.
    """
    ramp = torch.arange(max(count, length), device=start.device, dtype=torch.float32) + 0.5
    pixel = ramp[:length]
    centre = torch.addcmul(start[:, None], step[:, None], ramp[:count])
    weights = (
        (pixel - centre[:, :, None]).abs_().mul_(-1 / step.abs().clamp_min(1)[:, None, None]).add_(1).clamp_(min=0)
    )
    inside = (pixel > low[:, None]) & (pixel < high[:, None])
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))


def _product(
    images: UInt8[Tensor, "batch 3 height width"],
    rows: Float[Tensor, "batch size height"],
    columns: Float[Tensor, "batch size width"],
) -> Float[Tensor, "3 batch size size"]:
    """rows · picture · columnsᵀ for each colour, scaled to [0, 1]."""
    batch, _, height, width = images.shape
    size = rows.shape[1]
    pixels = torch.empty(images.shape, dtype=torch.float32, device=images.device).copy_(images)
    narrowed = torch.bmm(pixels.view(batch, 3 * height, width), columns.transpose(1, 2)).view(batch, 3, height, size)
    planes = pixels.new_empty(3, batch, size, size)
    for colour in range(3):
        torch.bmm(rows, narrowed[:, colour], out=planes[colour])
    return planes.mul_(1 / 255)


def _one_by_one(
    images: UInt8[Tensor, "batch 3 height width"],
    boxes: Int[Tensor, "batch 4"],
    flip: Bool[Tensor, " batch"],
    size: int,
) -> Float[Tensor, "3 batch {size} {size}"]:
    """Picture by picture through torch's uint8 kernel, which is fastest on channels_last pictures."""
    planes = torch.empty(3, images.shape[0], size, size)
    for position, (box, mirrored) in enumerate(zip(boxes.tolist(), flip.tolist(), strict=True)):
        pixels = cut(images[position], box, size)
        planes[:, position].copy_(pixels.flip(2) if mirrored else pixels)
    return planes.mul_(1 / 255)
