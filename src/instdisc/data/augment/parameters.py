"""What happens to each picture of a batch, drawn before it happens: boxes, mirroring, colour factors, blur.

Every number is a function of (seed, step, picture, view) alone (see `instdisc.draws`), and each use has columns of its
own, so neither the other pictures of the batch nor other settings move a picture's draws. The distributions are
torchvision's: `RandomResizedCrop`, `ColorJitter`, `RandomHorizontalFlip`, `RandomGrayscale`, `GaussianBlur`.

How boxes are mapped. A picture is stored squashed to `height × width` pixels, usually a square, and its true ratio
`aspect` = width / height is remembered. Areas and ratios are drawn in the true geometry, that is in a rectangle of
ratio `aspect` with as many pixels as are stored. The sides of a true box are then stretched to the stored geometry and
rounded to whole stored pixels (half to even), and whether it fits, and where it may lie, is decided there. At
`aspect = width / height`, where the picture is stored as it is, this is torchvision's algorithm to the letter;
elsewhere a side is off by at most half a stored pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from instdisc.data.augment.colour import NOTHING
from instdisc.shapes import Bool, Float, Int, Tensor
from instdisc.transfer import constant

# Tries at a box that fits before the central box is taken: torchvision's number.
ATTEMPTS = 10
# Columns of uniform numbers: an area and a ratio for each attempt, then the box's position.
BOX_COLUMNS = 2 * ATTEMPTS + 2
ORDERS = tuple(itertools.permutations(range(NOTHING)))


@dataclass(frozen=True)
class Draws:
    """One entry a picture of everything that was drawn for it."""

    boxes: Int[Tensor, "batch 4"]
    """Top, left, height, width, in stored pixels."""
    flip: Bool[Tensor, " batch"]
    factors: Float[Tensor, "batch 4"]
    """Factors of brightness, contrast and saturation (1 leaves the picture alone); the turn of the hue (0 does)."""
    order: Int[Tensor, "batch 4"]
    """`order[i, k]`: the number of the colour operation that picture i undergoes k-th; `colour.NOTHING` for none."""
    grey: Bool[Tensor, " batch"]
    blur: Float[Tensor, " batch"]
    """Standard deviation of the blur in pixels of the result; 0 for none."""

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def part(self, start: int, stop: int) -> Draws:
        """The draws of the pictures from `start` up to `stop`."""
        return Draws(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


def draw_boxes(
    numbers: Float[Tensor, "batch columns"],
    aspects: Float[Tensor, " batch"],
    *,
    height: int,
    width: int,
    scale: Sequence[float],
    ratio: Sequence[float],
) -> Int[Tensor, "batch 4"]:
    """Boxes of a random resized crop (top, left, height, width) from `BOX_COLUMNS` uniform numbers a picture.

    The share of the area is uniform in `scale`, the ratio log-uniform in `ratio`. The first of ten attempts that fits
    is placed uniformly; if none fits, the largest central box whose ratio is allowed is taken.
    """
    true_width = torch.sqrt(height * width * aspects)[:, None]
    true_height = torch.sqrt(height * width / aspects)[:, None]
    stretch = width / true_width  # stored pixels a true pixel, across; along, height / true_height

    areas = (scale[0] + (scale[1] - scale[0]) * numbers[:, :ATTEMPTS]) * (height * width)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * numbers[:, ATTEMPTS : 2 * ATTEMPTS])
    wide = torch.round(torch.sqrt(areas * ratios) * stretch)
    tall = torch.round(torch.sqrt(areas / ratios) * (height / true_height))
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)

    # The fallback: the whole picture, narrowed along one side until its ratio is allowed.
    fallback_wide = torch.round(true_height * ratio[1] * stretch).clamp(1, width)
    fallback_tall = torch.round(true_width / ratio[0] * (height / true_height)).clamp(1, height)
    wide = torch.cat([wide, fallback_wide], 1)
    tall = torch.cat([tall, fallback_tall], 1)
    earlier = torch.arange(ATTEMPTS, 0, -1, device=numbers.device)
    best, chosen = (fits * earlier).max(1, keepdim=True)  # scores differ, so that the first that fits wins
    central = best == 0
    chosen = torch.where(central, ATTEMPTS, chosen)
    wide, tall = wide.gather(1, chosen).long(), tall.gather(1, chosen).long()

    position = numbers[:, 2 * ATTEMPTS : BOX_COLUMNS]
    room = torch.cat([height - tall, width - wide], 1)
    drawn = torch.minimum((position * (room + 1)).long(), room)  # the product can round up to room + 1
    return torch.cat([torch.where(central, room // 2, drawn), tall, wide], 1)


def draw_order(
    numbers: Float[Tensor, " batch"],
    jittered: Bool[Tensor, " batch"],
    used: tuple[bool, bool, bool, bool],
    *,
    shuffle: bool,
) -> Int[Tensor, "batch 4"]:
    """The sequence of colour operations of each picture: one of the 24 at random, or 0, 1, 2, 3 if not `shuffle`.

    Operations that are not `used`, and all those of a picture that is not `jittered`, become `NOTHING`.
    """
    rows = tuple(tuple(number if used[number] else NOTHING for number in order) for order in ORDERS)
    orders = constant(rows, numbers.device)
    choice = (numbers * len(ORDERS)).long() if shuffle else torch.zeros_like(numbers, dtype=torch.long)
    return torch.where(jittered[:, None], orders[choice], NOTHING)
