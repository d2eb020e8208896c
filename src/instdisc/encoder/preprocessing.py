"""From a raw picture to what the encoder was trained to see: central square, resized, normalised.

The same rule stands in the run's config and travels with the encoder, so that a search next year prepares its pictures
exactly as the training did:

    preprocessing = Preprocessing(size=224, crop_fraction=0.875)
    preprocessing(content)              # a file's bytes, an array or a PIL picture -> float (3, 224, 224)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image

from instdisc.data.augment import IMAGENET_MEAN, IMAGENET_STD
from instdisc.data.decoding.decode import Encoded, decode
from instdisc.errors import InputError
from instdisc.shapes import Float, Tensor, UInt8
from instdisc.transfer import constant


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation view of a picture.

    size: side of the square the encoder takes, pixels.
    crop_fraction: the side of the central square that is kept, as a share of the picture's shorter side. This equals
        "resize the shorter side to size / crop_fraction, then crop the centre", in one step and in the picture's true
        geometry.
    mean, std: of the red, green and blue channels on the scale 0..1.

    Examples:
        >>> import numpy as np
        >>> from instdisc.encoder import Preprocessing
        >>> view = Preprocessing(size=32, crop_fraction=0.875, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> picture = view.fit(np.full((40, 60, 3), 255, np.uint8))
        >>> picture.shape, view.normalise(picture[None]).max().item()  # (1 - 0.5) / 0.25
        (torch.Size([3, 32, 32]), 2.0)
    """

    size: int
    crop_fraction: float = 1.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"The picture size must be at least 1 pixel, not {self.size}.")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"crop_fraction must be above 0 and at most 1, not {self.crop_fraction}.")
        if min(self.std) <= 0:
            raise InputError(f"std must be above 0 for each of red, green and blue, not {self.std}.")

    def __call__(self, picture: Encoded) -> Float[Tensor, "3 size size"]:
        """One raw picture, ready for the encoder. Raises data.decode.UnreadableError if it is not a picture."""
        return self.normalise(self.fit(self.decode(picture))[None])[0]

    def decode(self, picture: Encoded) -> UInt8[np.ndarray, "height width 3"]:
        """RGB pixels, at a reduced scale where the file allows it (JPEG) and nothing the encoder sees is lost."""
        return decode(picture, at_least=math.ceil(self.size / self.crop_fraction))

    def keeps(self, height: int, width: int) -> bool:
        """Whether a picture of this size is taken as it is."""
        return height == width == self.size and self.crop_fraction == 1

    def fit(self, picture: Shaped[np.ndarray, "height width 3"]) -> Shaped[Tensor, "3 size size"]:
        """The central square at the encoder's size; uint8 stays uint8, float32 stays float32.

        Pillow's bilinear filter widens as it shrinks (antialiasing). Cropping and resizing in one step matters for
        strips: resizing the shorter side of a 2 × 1,000,000 picture first would need gigabytes.
        """
        height, width = picture.shape[:2]
        if not self.keeps(height, width):
            side = min(height, width) * self.crop_fraction
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            target = (self.size, self.size)
            if picture.dtype == np.uint8:
                picture = np.array(Image.fromarray(picture).resize(target, Image.Resampling.BILINEAR, box=box))
            else:  # Pillow has no float RGB picture; it resizes one float plane as well as any
                planes = (Image.fromarray(np.ascontiguousarray(picture[..., channel])) for channel in range(3))
                fitted = [np.array(plane.resize(target, Image.Resampling.BILINEAR, box=box)) for plane in planes]
                picture = np.stack(fitted, axis=-1)
        # A copy: torch refuses to share memory that Pillow or a memory map holds read-only.
        return torch.from_numpy(np.array(picture.transpose(2, 0, 1), order="C"))

    def normalise(self, images: Shaped[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """uint8 0..255 or float 0..1 pixels to the scale the encoder was trained on, on the pixels' own device."""
        values = images.to(torch.float32, copy=True)
        mean, std = (constant(tuple(each), values.device) for each in (self.mean, self.std))
        if images.dtype == torch.uint8:
            mean, std = mean * 255, std * 255
        # Where colours lie side by side, torch would go through each pixel's three by themselves: four times as long.
        if values.is_contiguous(memory_format=torch.channels_last):
            lines = values.permute(0, 2, 3, 1).flatten(2)
            lines.sub_(mean.repeat(values.shape[3])).div_(std.repeat(values.shape[3]))
        else:
            values.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
        return values
