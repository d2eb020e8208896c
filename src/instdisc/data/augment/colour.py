"""Colour operations on a batch, each picture with its own factor: torchvision's functional ones, in few passes.

All of them work in place on planes, `(3, batch, height, width)` float32 in [0, 1], red, green, blue. At 32 pixels the
planes of a few dozen pictures stay in a core's cache, and then it is the number of passes that costs.

For the same factors the results equal `torchvision.transforms.functional` on float tensors up to float32 rounding: a
few 2⁻²⁴ an operation, below 2e-6 for all of them in a row (tested). Against its uint8 path they differ by that path's
own rounding, which cuts off to whole grey levels after every operation: for all of them in a row one and a half levels
on average, and up to ten at faint pixels, where one level is another hue (tested as well).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from instdisc.shapes import Bool, Float, Int, Tensor

# Rec. 601 luma with torchvision's four digits; they sum to 0.9999, so that grey is not quite a projection.
LUMA = (0.2989, 0.587, 0.114)
# Stands for a chroma of zero in a quotient whose numerator is then exactly zero as well.
NO_CHROMA = 1e-30


def luma(planes: Float[Tensor, "3 batch height width"]) -> Float[Tensor, "batch height width"]:
    """The grey picture."""
    red, green, blue = planes
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def brightness(planes: Float[Tensor, "3 batch height width"], factor: Float[Tensor, " batch"]) -> None:
    """x ← clamp(f·x)."""
    planes.mul_(factor.view(-1, 1, 1)).clamp_(max=1)


def contrast(planes: Float[Tensor, "3 batch height width"], factor: Float[Tensor, " batch"]) -> None:
    """x ← clamp(f·x + (1 − f)·mean of the picture's grey)."""
    mean = sum(weight * channel for weight, channel in zip(LUMA, planes.mean((2, 3)), strict=True))
    planes.mul_(factor.view(-1, 1, 1)).add_(((1 - factor) * mean).view(-1, 1, 1)).clamp_(0, 1)


def saturation(planes: Float[Tensor, "3 batch height width"], factor: Float[Tensor, " batch"]) -> None:
    """x ← clamp(f·x + (1 − f)·grey of the pixel)."""
    pull = luma(planes).mul_((1 - factor).view(-1, 1, 1))
    planes.mul_(factor.view(-1, 1, 1)).add_(pull).clamp_(0, 1)


def hue(planes: Float[Tensor, "3 batch height width"], shift: Float[Tensor, " batch"]) -> None:
    """Turn the hue of HSV by `shift` turns, keeping value and saturation.

    Write hue as an angle u in sixths of a turn, in [−3, 3], red at 0; let v and w be the largest and smallest channel
    and c = v − w the chroma. On the colour hexagon, in all six sectors at once,

        |u|·c = r + g + b − 2r + v − 2w,   with the sign of g − b,

    and back from the turned angle, wrapped into [−3, 3]:

        r = v − c·clamp(|u| − 1, 0, 1),   g = v − c·clamp(2 − |u + 1|, 0, 1),   b = v − c·clamp(2 − |u − 1|, 0, 1).

    No branches, and saturation is never formed. The angle's rounding error grows as 1/c, but it is multiplied by c on
    the way back, so the error in the colour stays at a few 2⁻²⁴ even for nearly grey pixels.
    """
    red, green, blue = planes
    value = torch.maximum(green, blue)
    torch.maximum(value, red, out=value)
    least = torch.minimum(green, blue)
    torch.minimum(least, red, out=least)
    chroma = value - least
    angle = (green + blue).sub_(red).add_(value).sub_(least, alpha=2).div_(chroma.clamp_min(NO_CHROMA))
    angle.copysign_(green - blue).add_((6 * shift).view(-1, 1, 1))
    angle.sub_((angle * (1 / 6)).round_(), alpha=6)
    # clamp(|u| − 1, 0, 1) = clamp(|u|, 1, 2) − 1 and clamp(2 − |u|, 0, 1) = 2 − clamp(|u|, 1, 2): the constants go into
    # the planes v + c and v − 2c = w − c, which saves a pass a channel.
    torch.addcmul(value.add_(chroma), chroma, angle.abs().clamp_(1, 2), value=-1, out=red)
    least.sub_(chroma)
    torch.addcmul(least, chroma, (angle + 1).abs_().clamp_(1, 2), out=green)
    torch.addcmul(least, chroma, angle.sub_(1).abs_().clamp_(1, 2), out=blue)


def grey(planes: Float[Tensor, "3 batch height width"], wanted: Bool[Tensor, " batch"]) -> None:
    """Replace the pictures that are `wanted` by their grey in all three channels."""
    torch.lerp(planes, luma(planes), wanted[:, None, None].to(planes.dtype), out=planes)


# An operation's number is its position here, as in torchvision's ColorJitter; the number past the end means "nothing".
OPERATIONS: tuple[Callable[[Tensor, Tensor], None], ...] = (brightness, contrast, saturation, hue)
NOTHING = len(OPERATIONS)


def jitter(
    planes: Float[Tensor, "3 batch height width"],
    factors: Float[Tensor, "batch 4"],
    order: Int[Tensor, "batch 4"],
) -> Float[Tensor, "3 batch height width"]:
    """Apply the four operations, each picture in its own order: `order[i, k]` is what picture i undergoes k-th.

    There are 24 orders, so grouping pictures by order would leave groups of a few. Grouping again at each of the four
    stages leaves groups of a quarter of the batch for the price of a copy a stage.
    The sizes of the groups must be known to the host, so this is the way on a CPU; elsewhere see `_jitter_all`.

    Returns:
        The planes in the given sequence of pictures: the argument itself, changed, or new ones.
    """
    if planes.device.type != "cpu":
        return _jitter_all(planes, factors, order)
    counts = (order[:, :, None] == torch.arange(NOTHING + 1, device=order.device)).sum(0).tolist()
    positions = None
    for stage, groups in enumerate(counts):
        if sum(count > 0 for count in groups) > 1:
            sorting = torch.argsort(order[:, stage])
            planes, factors, order = planes.index_select(1, sorting), factors[sorting], order[sorting]
            positions = sorting if positions is None else positions[sorting]
        stop = 0
        for number, count in enumerate(groups):
            start, stop = stop, stop + count
            if count and number != NOTHING:
                OPERATIONS[number](planes[:, start:stop], factors[start:stop, number])
    return planes if positions is None else planes.index_select(1, torch.argsort(positions))


def _jitter_all(
    planes: Float[Tensor, "3 batch height width"],
    factors: Float[Tensor, "batch 4"],
    order: Int[Tensor, "batch 4"],
) -> Float[Tensor, "3 batch height width"]:
    """The same on a device, where the host would have to wait for the sizes of groups.

    At each stage all pictures undergo the same work. Brightness, contrast and saturation are one formula in three
    factors, x ← clamp(f·x + a·mean of the grey + b·grey): (1, 0, 0) leaves a picture alone; the hue of all is
    turned, and taken where it is wanted.
    """
    for stage in range(order.shape[1]):
        bright, contrasted, saturated, turned = (order[:, stage] == number for number in range(NOTHING))
        factor = factors[:, 0].where(bright, 1.0)
        factor = factors[:, 1].where(contrasted, factors[:, 2].where(saturated, factor))
        pull = 1 - factor
        greys = luma(planes)
        added = greys.mean((1, 2)).mul_(pull.where(contrasted, 0.0)).view(-1, 1, 1)
        greys.mul_(pull.where(saturated, 0.0).view(-1, 1, 1)).add_(added)
        planes.mul_(factor.view(-1, 1, 1)).add_(greys).clamp_(0, 1)
        shifted = planes.clone()
        hue(shifted, factors[:, 3])
        planes = torch.where(turned.view(-1, 1, 1), shifted, planes)
    return planes
