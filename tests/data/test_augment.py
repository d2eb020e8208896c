"""The augmentation for fixed draws, and the evaluation view, against torchvision's functional operations and Pillow."""

from __future__ import annotations

import colorsys
import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference
from torchvision.transforms.v2 import functional as reference_v2  # resizes uint8 without a detour over floats

from instdisc.data import augment
from instdisc.data.augment import Augmentation, centre, colour
from instdisc.data.augment.blur import gaussian_blur, kernel_length
from instdisc.data.augment.parameters import BOX_COLUMNS, ORDERS, Draws, draw_boxes
from instdisc.data.augment.resample import resized_crop
from instdisc.draws import uniforms
from instdisc.errors import InputError

# float32 operations in another sequence: a few roundings of 2⁻²⁴ each.
ROUNDING = 2e-6
# A position among 64 pixels is known to 2⁻²⁴ · 64 = 4e-6, on two axes, and neighbouring pixels differ by at most 1.
POSITION = 1e-5


def noise(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Pictures of independent pixels: the hardest ones to resample."""
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def planes_of(images: torch.Tensor) -> torch.Tensor:
    return (images / 255).transpose(0, 1).contiguous()


def crops(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    numbers = uniforms(torch.arange(count), BOX_COLUMNS, seed=seed, step=0)
    aspects = torch.full((count,), width / height)
    return draw_boxes(numbers, aspects, height=height, width=width, scale=(0.1, 1.0), ratio=(0.5, 2.0))


# --- operations, for fixed draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (40, 40, 32), (64, 64, 24), (48, 60, 20), (9, 7, 16)]
)
def test_crop_equals_torchvision_in_float(height: int, width: int, size: int) -> None:
    images = noise(12, height, width)
    boxes = crops(12, height, width)
    flip = torch.arange(12) % 2 == 0
    ours = resized_crop(images, boxes, flip, size)
    for place in range(12):
        theirs = reference.resized_crop(images[place] / 255, *boxes[place].tolist(), [size, size], antialias=True)
        theirs = reference.hflip(theirs) if flip[place] else theirs
        assert (ours[:, place] - theirs).abs().max() < POSITION


def test_large_crops_are_torchvisions_uint8_ones() -> None:
    images = noise(6, 160, 160).contiguous(memory_format=torch.channels_last)
    boxes = crops(6, 160, 160)
    flip = torch.arange(6) % 2 == 0
    ours = resized_crop(images, boxes, flip, 112)
    for place in range(6):
        theirs = reference_v2.resized_crop(images[place], *boxes[place].tolist(), [112, 112], antialias=True)
        theirs = reference.hflip(theirs) if flip[place] else theirs
        assert torch.equal((ours[:, place] * 255).round().byte(), theirs)


def test_both_ways_of_resampling_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    images, boxes, flip = noise(8, 40, 40), crops(8, 40, 40), torch.arange(8) % 2 == 0
    products = resized_crop(images, boxes, flip, 32)
    monkeypatch.setattr("instdisc.data.augment.resample.MATRIX_WORK", 0)
    kernel = resized_crop(images, boxes, flip, 32)
    assert (
        0 < (products - kernel).abs().max() <= 1.5 / 255
    )  # half a level after each axis, and half for the fixed point


@pytest.mark.parametrize("shrink", [1.1, 1.3, 2.0, 3.7])
def test_shrinking_is_antialiased_as_in_pillow(shrink: float) -> None:
    length = round(24 * shrink)
    image = noise(1, length, length)
    ours = resized_crop(image, torch.tensor([[0, 0, length, length]]), torch.tensor([False]), 24)
    for channel in range(3):
        source = Image.fromarray(image[0, channel].numpy().astype(np.float32) / 255)  # mode F: Pillow in float
        theirs = np.asarray(source.resize((24, 24), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(ours[channel, 0].numpy(), theirs, atol=POSITION)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (colour.brightness, reference.adjust_brightness, 0.0, 2.0),
        (colour.contrast, reference.adjust_contrast, 0.0, 2.0),
        (colour.saturation, reference.adjust_saturation, 0.0, 2.0),
        (colour.hue, reference.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_operation_equals_torchvision(ours, theirs, low: float, high: float) -> None:
    images = noise(10, 17, 19)
    images[1] = 0
    images[2] = 255
    images[3] = images[3, :1]  # grey, so that there is no hue
    images[4] = images[4] // 128 * 255  # pure colours
    images[5] = images[5] // 64 + 100  # nearly grey: many ties for the largest channel
    factors = torch.linspace(low, high, 10)
    planes = planes_of(images)
    ours(planes, factors)
    for place in range(10):
        expected = theirs(images[place] / 255, factors[place].item())
        assert (planes[:, place] - expected).abs().max() < ROUNDING


def test_hue_is_the_hue_of_hsv() -> None:
    """A second opinion from the standard library, on the corners and edges of the colour cube."""
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels)
    for turn in (-0.5, -0.3, -1 / 6, 0.0, 0.1, 1 / 3, 0.5):
        planes = colours.T.reshape(3, 1, 8, 8).clone()
        colour.hue(planes, torch.tensor([turn]))
        for before, after in zip(colours.tolist(), planes.reshape(3, -1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            assert after == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=ROUNDING)


def test_hue_of_faint_colours_does_not_blow_up() -> None:
    faint = 0.5 + torch.rand(3, 1, 64, 64, generator=torch.manual_seed(0)) * 1e-6
    planes = faint.clone()
    colour.hue(planes, torch.tensor([0.37]))
    assert (planes - 0.5).abs().max() < 1.2e-6


def test_grey_equals_torchvision() -> None:
    images = noise(4, 8, 8)
    planes = planes_of(images)
    colour.grey(planes, torch.tensor([True, False, True, False]))
    for place in (0, 2):
        expected = reference.rgb_to_grayscale(images[place] / 255, num_output_channels=3)
        assert (planes[:, place] - expected).abs().max() < ROUNDING
    assert torch.equal(planes[:, 1::2], planes_of(images)[:, 1::2])


@pytest.mark.parametrize("size", [7, 32, 96])
def test_blur_equals_torchvision(size: int) -> None:
    images = noise(5, size, size)
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.7, 2.0])
    taps = kernel_length(size)
    ours = gaussian_blur(planes_of(images), sigma, taps)
    for place in range(5):
        expected = reference.gaussian_blur(images[place] / 255, [taps, taps], [sigma[place].item()] * 2)
        assert (ours[:, place] - expected).abs().max() < ROUNDING


def test_blur_length_is_simclrs() -> None:
    assert [kernel_length(size) for size in (32, 64, 96, 128, 224)] == [3, 7, 9, 13, 23]


@pytest.mark.parametrize("jitter", [colour.jitter, colour._jitter_all], ids=["in groups", "all alike, as on a GPU"])
def test_jitter_keeps_each_pictures_own_order(jitter: Callable[..., torch.Tensor]) -> None:
    """All 24 orders and a picture without jitter in one batch, shuffled, against torchvision one by one."""
    orders = torch.tensor([*ORDERS, (colour.NOTHING,) * 4])[torch.randperm(25, generator=torch.manual_seed(3))]
    images = noise(25, 12, 12)
    low, high = torch.tensor([0.4, 0.4, 0.4, -0.5]), torch.tensor([1.6, 1.6, 1.6, 0.5])
    factors = low + (high - low) * torch.rand(25, 4, generator=torch.manual_seed(4))
    ours = jitter(planes_of(images), factors, orders)
    for place in range(25):
        expected = jittered(images[place] / 255, factors[place].tolist(), orders[place].tolist())
        assert (ours[:, place] - expected).abs().max() < ROUNDING


def jittered(image: torch.Tensor, factors: list[float], order: list[int]) -> torch.Tensor:
    operations = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )
    for number in order:
        if number != colour.NOTHING:
            image = operations[number](image, factors[number])
    return image


def by_torchvision(settings: Augmentation, image: torch.Tensor, draws: Draws, place: int) -> torch.Tensor:
    """The whole augmentation of one picture, by torchvision's functional operations."""
    box = draws.boxes[place].tolist()
    size = [settings.size, settings.size]
    if settings.size > 48:
        result = reference_v2.resized_crop(image, *box, size, antialias=True) / 255
    else:
        result = reference.resized_crop(image / 255, *box, size, antialias=True)
    if draws.flip[place]:
        result = reference.hflip(result)
    result = jittered(result, draws.factors[place].tolist(), draws.order[place].tolist())
    if draws.grey[place]:
        result = reference.rgb_to_grayscale(result, num_output_channels=3)
    if draws.blur[place] > 0:
        taps = kernel_length(settings.size)
        result = reference.gaussian_blur(result, [taps, taps], [draws.blur[place].item()] * 2)
    return reference.normalize(result, list(settings.mean), list(settings.std))


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways on a CPU: by Numba, and by torch where that is not installed."""
    if request.param == "torch":
        monkeypatch.setattr(augment, "_fused", lambda: None)
    else:
        assert augment._fused() is not None
    return str(request.param)


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (40, 32), (128, 112)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_whole_augmentation_equals_torchvision(stored: int, size: int, shuffle: bool, way: str) -> None:
    settings = Augmentation(size, flip=0.5, jitter=0.8, blur=0.5, shuffle=shuffle)
    images = noise(40, stored, stored)
    draws = settings.draw(torch.arange(40), torch.linspace(0.5, 2, 40), stored, stored, seed=1, step=2)
    ours = settings.apply(images, draws)
    # Contrast and the normalisation enlarge a difference, by at most 1.4 · 1.4 · 1.4 / 0.224 = 12.
    tolerance = 12 * (POSITION if size <= 48 else ROUNDING)
    for place in range(40):
        assert (ours[place] - by_torchvision(settings, images[place], draws, place)).abs().max() < tolerance


def test_uint8_all_the_way_differs_by_its_rounding(way: str) -> None:
    """torchvision cuts off to whole levels after each operation, half a level on average; ours never does."""
    settings = Augmentation(32, mean=(0.0,) * 3, std=(1.0,) * 3, grey=0.0)
    images = noise(60, 32, 32)
    draws = settings.draw(torch.arange(60), torch.ones(60), 32, 32, seed=1, step=0)
    ours = settings.apply(images, draws)
    theirs = []
    for image, box, factors, order in zip(images, draws.boxes, draws.factors, draws.order, strict=True):
        cut = reference_v2.resized_crop(image, *box.tolist(), [32, 32], antialias=True)
        theirs.append(jittered(cut, factors.tolist(), order.tolist()))
    difference = (ours * 255 - torch.stack(theirs)).abs()
    assert difference.mean() < 2 and difference.max() <= 10


def test_result_is_float32_and_channels_last(way: str) -> None:
    settings = Augmentation(16)
    result = settings(noise(5, 20, 20), torch.arange(5), torch.ones(5), seed=0, step=0)
    assert result.shape == (5, 3, 16, 16) and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_memory_layout_of_the_pictures_changes_nothing(way: str) -> None:
    for stored, size in ((32, 32), (96, 80)):
        images, indices, aspects = noise(6, stored, stored), torch.arange(6), torch.ones(6)
        other = images.contiguous(memory_format=torch.channels_last)
        settings = Augmentation(size)
        first = settings(images, indices, aspects, seed=0, step=0)
        assert torch.equal(first, settings(other, indices, aspects, seed=0, step=0))


def test_empty_batch(way: str) -> None:
    nothing = torch.empty(0, dtype=torch.long)
    assert Augmentation(16)(noise(0, 20, 20), nothing, torch.ones(0), seed=0, step=0).shape == (0, 3, 16, 16)
    assert centre(noise(0, 20, 20), torch.ones(0), size=16).shape == (0, 3, 16, 16)


# --- evaluation view ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 53), (61, 40)])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
def test_centre_equals_resize_and_central_crop(height: int, width: int, crop_fraction: float) -> None:
    images = noise(3, height, width)
    aspects = torch.full((3,), width / height)
    ours = centre(images, aspects, size=24, crop_fraction=crop_fraction, mean=(0.0,) * 3, std=(1.0,) * 3)
    shorter = round(24 / crop_fraction)
    theirs = reference.center_crop(reference.resize(images / 255, [shorter], antialias=True), [24, 24])
    assert (ours - theirs).abs().max() < POSITION


def test_centre_of_a_squashed_picture_is_the_true_centre() -> None:
    """A smooth picture twice as wide as high, seen through its square store, against the same picture uncut."""
    across = torch.linspace(0, 1, 128)[None, :].expand(64, 128)
    along = torch.linspace(0, 1, 64)[:, None].expand(64, 128)
    picture = torch.stack([across, along, across * along])
    squashed = reference.resize(picture, [64, 64], antialias=True)
    stored = (squashed * 255).round().byte()[None]
    ours = centre(stored, torch.tensor([2.0]), size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    theirs = reference.center_crop(reference.resize(picture, [32], antialias=True), [32, 32])
    assert (ours[0] - theirs).abs().max() < 1 / 255


def test_identity_centre_is_the_picture() -> None:
    images = noise(4, 32, 32)
    ours = centre(images, torch.ones(4), size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expected = reference.normalize(images / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    assert (ours - expected).abs().max() < POSITION
    assert ours.is_contiguous(memory_format=torch.channels_last)


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_survive_json() -> None:
    settings = Augmentation(32, flip=0.5, hue=0.1, shuffle=False)
    assert Augmentation(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": 0}, "at least 1 pixel"),
        ({"flip": 1.5}, "`flip` is a probability"),
        ({"grey": -0.1}, "`grey` is a probability"),
        ({"contrast": -1.0}, "`contrast` is the reach"),
        ({"hue": 0.6}, "`hue` is a share"),
        ({"scale": (0.5, 0.2)}, "`scale` is a range"),
        ({"scale": (0.5, 1.2)}, "cannot be larger"),
        ({"ratio": (0.0, 1.0)}, "`ratio` is a range"),
        ({"blur_sigma": (1.0,)}, "`blur_sigma` is a range"),
        ({"size": 1, "blur": 0.5}, "too small to blur"),
        ({"std": (0.2, 0.0, 0.2)}, "each of red, green, blue"),
        ({"mean": (0.2, math.nan, 0.2)}, "each of red, green, blue"),
    ],
)
def test_wrong_settings_are_told(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Augmentation(**{"size": 32, **wrong})


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 8, "crop_fraction": 1.1}, {"size": 8, "std": (0.0, 1.0, 1.0)}])
def test_wrong_settings_of_the_centre_are_told(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        centre(noise(1, 8, 8), torch.ones(1), **wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_views() -> None:
    settings = Augmentation(32, flip=0.5, jitter=0.8, blur=0.5)
    arguments = (noise(64, 40, 40), torch.arange(64), torch.linspace(0.6, 1.7, 64))
    here = settings(*arguments, seed=0, step=0)
    there = settings(*(argument.cuda() for argument in arguments), seed=0, step=0).cpu()
    torch.testing.assert_close(there, here, atol=12 * POSITION, rtol=0)
