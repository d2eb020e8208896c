"""Augmentation on batches: each picture with its own draw, from stored uint8 to normalised float32, on their device.

    augment = Augmentation(size=32, flip=0.5)
    images = augment(batch.images, batch.indices, aspects, seed=0, step=17)     # (batch, 3, 32, 32), channels_last

Drawing and doing are apart: `draw` says what happens to each picture, `apply` does it, equal to torchvision's
functional operations one after the other (see `resample`, `colour` and `augment_blur` for how equal). On a CPU
`augment_fused` does it where Numba is installed. The evaluation view is `centre`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from instdisc.data.augment import colour
from instdisc.data.augment.blur import gaussian_blur, kernel_length
from instdisc.data.augment.parameters import BOX_COLUMNS, Draws, draw_boxes, draw_order
from instdisc.data.augment.resample import by_kernel, resized_centre, resized_crop
from instdisc.draws import uniforms
from instdisc.errors import InputError
from instdisc.shapes import Float, Int, Tensor, UInt8
from instdisc.transfer import constant

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Keeps these draws apart from all others made with the same seed and step; view k uses STREAM + k.
STREAM = 0xA06_000
# Columns of uniform numbers after those of the box.
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GREY, BLUR, BLUR_SIGMA, COLUMNS = range(
    BOX_COLUMNS, BOX_COLUMNS + 11
)
# Bytes of float planes worked on at a time. On a CPU a longer chunk hides the cost of calling torch's operations, and
# lets two threads share them; a shorter one stays in the cache. At 32 pixels on two cores this one is 1.75 times as
# fast as a quarter of it, at 96 pixels 1.5 times (by torch, where freed memory is kept, see `allocator`). On a GPU it
# bounds the memory.
CPU_CHUNK = 3_200_000
GPU_CHUNK = 256_000_000


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation, and the augmentation itself.

    `dataclasses.asdict` makes JSON of it, and `Augmentation(**settings)` reads that again.

    Attributes:
        size: Side of the result in pixels.
        scale: Range of the crop's share of the picture's area.
        ratio: Range of the crop's width / height in the picture's true geometry.
        flip: Probability of mirroring left and right.
        jitter: Probability of the colour jitter.
        brightness, contrast, saturation: Factors are uniform in [max(0, 1 − x), 1 + x].
        hue: The turn is uniform in [−hue, hue], in whole turns: at most 0.5.
        shuffle: Each picture undergoes the four colour operations in a random order of its own, as in torchvision's
            `ColorJitter`; costs about a sixth. Otherwise brightness, contrast, saturation, hue.
        grey: Probability of losing colour.
        blur: Probability of a Gaussian blur.
        blur_sigma: Range of its standard deviation in pixels of the result.
        mean, std: Of the normalisation, for values in [0, 1].

    Examples:
        >>> import torch
        >>> from instdisc import Augmentation
        >>> pictures, aspects = torch.randint(0, 256, (4, 3, 36, 36), dtype=torch.uint8), torch.ones(4)
        >>> views = Augmentation(size=32)(pictures, torch.arange(4), aspects, seed=0, step=7)
        >>> views.shape, views.dtype
        (torch.Size([4, 3, 32, 32]), torch.float32)
        >>> again = Augmentation(size=32)(pictures, torch.arange(4), aspects, seed=0, step=7)
        >>> torch.equal(views, again)  # a function of seed, step and picture
        True
    """

    size: int
    scale: Sequence[float] = (0.2, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: float = 1.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    shuffle: bool = True
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: Sequence[float] = (0.1, 2.0)
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "blur_sigma", "mean", "std"):  # JSON has lists only, and lists have no hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.size < 1:
            raise InputError(f"The size of an augmented picture must be at least 1 pixel, not {self.size}.")
        for name in ("flip", "jitter", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` is a probability: give a number from 0 to 1, not {getattr(self, name)}.")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"`{name}` is the reach of a factor around 1: give 0 or more, not {getattr(self, name)}."
                )
        if not 0 <= self.hue <= 0.5:
            raise InputError(
                f"`hue` is a share of the whole colour circle: give a number from 0 to 0.5, not {self.hue}."
            )
        for name in ("scale", "ratio", "blur_sigma"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
                raise InputError(f"`{name}` is a range: give two positive numbers, the smaller first, not {bounds}.")
        if self.scale[1] > 1:
            raise InputError(f"A crop cannot be larger than its picture: let `scale` end at 1, not at {self.scale[1]}.")
        if self.blur > 0 and self.size <= kernel_length(self.size) // 2:
            raise InputError(f"Pictures of {self.size} pixels are too small to blur: set `blur` to 0.")
        _check_normalisation(self.mean, self.std)

    def __call__(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        indices: Int[Tensor, " batch"],
        aspects: Float[Tensor, " batch"],
        *,
        seed: int,
        step: int,
        view: int = 0,
    ) -> Float[Tensor, "batch 3 size size"]:
        """Draw for these pictures and apply: one random view of each, normalised, in channels_last memory.

        Args:
            images: Stored pictures, whole, squashed to one size; channels_last memory is fastest above 48 pixels.
            indices: The pictures' numbers in the collection, on the same device: with `seed`, `step` and `view` they
                decide the draws, wherever in whichever batch a picture stands.
            aspects: True width / height of each picture, on the same device.
            view: Number of the view, where a step uses several of the same picture.
        """
        height, width = images.shape[2:]
        return self.apply(images, self.draw(indices, aspects, height, width, seed=seed, step=step, view=view))

    def prepare(self, side: int) -> None:
        """Have compiled what the first batch of pictures stored at `side` pixels on the CPU would wait for."""
        blank = torch.zeros(2, 3, side, side, dtype=torch.uint8)
        self(blank, torch.arange(2), torch.ones(2), seed=0, step=0)

    def draw(
        self,
        indices: Int[Tensor, " batch"],
        aspects: Float[Tensor, " batch"],
        height: int,
        width: int,
        *,
        seed: int,
        step: int,
        view: int = 0,
    ) -> Draws:
        """What is to happen to these pictures, stored at `height × width` pixels."""
        numbers = uniforms(indices, COLUMNS, seed=seed, step=step, stream=STREAM + view)
        reach = constant((self.brightness, self.contrast, self.saturation, self.hue), numbers.device)
        least = (max(0.0, 1 - self.brightness), max(0.0, 1 - self.contrast), max(0.0, 1 - self.saturation), -self.hue)
        low, high = constant(least, numbers.device), torch.cat([1 + reach[:3], reach[3:]])
        used = (self.brightness > 0, self.contrast > 0, self.saturation > 0, self.hue > 0)
        sigma = self.blur_sigma[0] + (self.blur_sigma[1] - self.blur_sigma[0]) * numbers[:, BLUR_SIGMA]
        return Draws(
            boxes=draw_boxes(
                numbers[:, :BOX_COLUMNS], aspects, height=height, width=width, scale=self.scale, ratio=self.ratio
            ),
            flip=numbers[:, FLIP] < self.flip,
            factors=low + (high - low) * numbers[:, BRIGHTNESS : HUE + 1],
            order=draw_order(numbers[:, ORDER], numbers[:, JITTER] < self.jitter, used, shuffle=self.shuffle),
            grey=numbers[:, GREY] < self.grey,
            blur=torch.where(numbers[:, BLUR] < self.blur, sigma, 0.0),
        )

    def apply(self, images: UInt8[Tensor, "batch 3 height width"], draws: Draws) -> Float[Tensor, "batch 3 size size"]:
        """Crop and resize, mirror, jitter, grey, blur, normalise: with the given draws nothing is random."""
        result = _empty_result(images, self.size)
        host = images.device.type == "cpu"  # may look at what was drawn; a device is given work for all pictures
        fused = _fused() if host else None
        whole = fused is not None and by_kernel(images, self.size)
        for start, stop in [(0, len(images))] if whole else _chunks(images, self.size):
            mine = draws.part(start, stop)
            if fused is not None:
                words = (kernel_length(self.size), self.mean, self.std, result[start:stop])
                fused.augmented(images[start:stop], mine, *words)
                continue
            planes = resized_crop(images[start:stop], mine.boxes, mine.flip, self.size)
            if self.jitter > 0:
                planes = colour.jitter(planes, mine.factors, mine.order)
            if self.grey > 0 and not (host and not mine.grey.any()):
                colour.grey(planes, mine.grey)
            if self.blur > 0 and not host:
                planes = gaussian_blur(planes, mine.blur, kernel_length(self.size))
            elif self.blur > 0:
                blurred = mine.blur.nonzero()[:, 0]
                if len(blurred) > 0:
                    planes[:, blurred] = gaussian_blur(planes[:, blurred], mine.blur[blurred], kernel_length(self.size))
            _normalise(planes, self.mean, self.std, result[start:stop])
        return result


def centre(
    images: UInt8[Tensor, "batch 3 height width"],
    aspects: Float[Tensor, " batch"],
    *,
    size: int,
    crop_fraction: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float[Tensor, "batch 3 {size} {size}"]:
    """The evaluation view: shorter side to `size / crop_fraction` pixels, then the central square of `size`.

    Equal to torchvision's `Resize` and `CenterCrop` on the true picture, as far as the stored one still holds it;
    resampled once, in float32. Normalised, in channels_last memory.
    """
    if size < 1:
        raise InputError(f"The size of the evaluation view must be at least 1 pixel, not {size}.")
    if not 0 < crop_fraction <= 1:
        raise InputError(
            f"The central crop takes a share of the picture: give a number above 0, up to 1, not {crop_fraction}."
        )
    _check_normalisation(mean, std)
    shorter = round(size / crop_fraction)
    # Cut off to whole pixels as Resize does; the margin keeps a ratio rounded to float32 from losing a whole pixel.
    longer = (shorter * torch.maximum(aspects, 1 / aspects) + 1e-3).long()
    upright = aspects < 1
    resized = torch.stack([torch.where(upright, longer, shorter), torch.where(upright, shorter, longer)], 1)
    result = _empty_result(images, size)
    for start, stop in _chunks(images, size):
        _normalise(resized_centre(images[start:stop], resized[start:stop], size), mean, std, result[start:stop])
    return result


def way_on_cpu() -> str:
    """How pictures are augmented on a CPU here: a sentence for a person."""
    if _fused() is None:
        return "by torch; a CPU needs half of the time for it with Numba (pip install 'instdisc[fast]')."
    return "compiled for this processor by Numba, which takes some ten seconds the first time."


@cache
def _fused() -> ModuleType | None:
    """The compiled way on CPUs, `augment_fused`, where Numba is installed and works with the other packages."""
    try:
        from instdisc.data.augment import fused as augment_fused
    except (ImportError, OSError):
        return None
    return augment_fused


def _empty_result(images: Tensor, size: int) -> Tensor:
    return torch.empty(
        (images.shape[0], 3, size, size), device=images.device, memory_format=torch.channels_last, dtype=torch.float32
    )


def _chunks(images: Tensor, size: int) -> list[tuple[int, int]]:
    """Ranges of pictures to work on together."""
    count = images.shape[0]
    room = CPU_CHUNK if images.device.type == "cpu" else GPU_CHUNK
    length = room // (12 * size * size)
    # With hardly more pictures than the jitter has groups, grouping them only costs copies: each for itself then.
    chunks = math.ceil(count / (length if length >= 2 * colour.NOTHING else 1))
    return [(count * chunk // chunks, count * (chunk + 1) // chunks) for chunk in range(chunks)]


def _normalise(planes: Tensor, mean: Sequence[float], std: Sequence[float], result: Tensor) -> None:
    """(x − mean) / std, written into `result`; the planes are used up."""
    scale = 1 / constant(tuple(std), planes.device)
    planes.mul_(scale[:, None, None, None]).sub_((constant(tuple(mean), planes.device) * scale)[:, None, None, None])
    result.permute(1, 0, 2, 3).copy_(planes)


def _check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or not all(math.isfinite(value) for value in mean) or min(std) <= 0:
        raise InputError(
            f"Give the normalisation a mean and a positive std for each of red, green, blue, not {mean} and {std}."
        )
