"""The draws of the augmentation: reproducible, one picture at a time, and distributed as torchvision's samplers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop

from instdisc.data.augment import Augmentation, colour
from instdisc.data.augment.parameters import ATTEMPTS, BOX_COLUMNS, draw_boxes
from instdisc.draws import uniforms

# Chance of a false alarm in each test of a distribution; the draws are fixed, so a test that passes stays passed.
ALARM = 1e-3
# float32 operations in another sequence: a few roundings of 2⁻²⁴ each.
ROUNDING = 2e-6


def noise(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_a_pictures_view_depends_on_nothing_else_in_the_batch() -> None:
    settings = Augmentation(32, flip=0.5, jitter=0.8, blur=0.5)
    images, indices, aspects = noise(30, 32, 32), torch.arange(30) * 7, torch.linspace(0.6, 1.7, 30)
    whole = settings(images, indices, aspects, seed=5, step=11)
    chosen = torch.tensor([17, 3, 3, 28])
    part = settings(images[chosen], indices[chosen], aspects[chosen], seed=5, step=11)
    torch.testing.assert_close(part, whole[chosen], atol=ROUNDING, rtol=0)


def test_size_of_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Augmentation(16, flip=0.5, jitter=0.8, blur=0.5)
    arguments = (noise(23, 16, 16), torch.arange(23), torch.ones(23))
    whole = settings(*arguments, seed=0, step=0)
    monkeypatch.setattr("instdisc.data.augment.CPU_CHUNK", 12 * 16 * 16 * 9)
    torch.testing.assert_close(settings(*arguments, seed=0, step=0), whole, atol=ROUNDING, rtol=0)


def test_seed_step_and_view_all_change_the_draws() -> None:
    settings = Augmentation(32, flip=0.5)

    def boxes(**key: int) -> torch.Tensor:
        return settings.draw(torch.arange(50), torch.ones(50), 64, 64, **key).boxes

    first = boxes(seed=0, step=0)
    assert torch.equal(first, boxes(seed=0, step=0, view=0))
    for key in ({"seed": 1, "step": 0}, {"seed": 0, "step": 1}, {"seed": 0, "step": 0, "view": 1}):
        assert (first != boxes(**key)).any(1).float().mean() > 0.9


def test_one_setting_does_not_move_the_draws_of_another() -> None:
    key = {"seed": 0, "step": 0}
    plain = Augmentation(32).draw(torch.arange(50), torch.ones(50), 64, 64, **key)
    other = Augmentation(32, flip=0.5, grey=0.0, blur=0.5, hue=0.1).draw(
        torch.arange(50), torch.ones(50), 64, 64, **key
    )
    assert torch.equal(plain.boxes, other.boxes)
    assert torch.equal(plain.factors[:, :3], other.factors[:, :3])
    torch.testing.assert_close(plain.factors[:, 3] / 4, other.factors[:, 3])


def slow_box(numbers: np.ndarray, height: int, width: int, scale, ratio) -> list[int]:
    """torchvision's algorithm in plain Python, fed with the given uniform numbers."""
    for attempt in range(ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[attempt])
        shape = math.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * numbers[ATTEMPTS + attempt])
        wide, tall = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = (
                int(u * (room + 1)) for u, room in zip(numbers[-2:], (height - tall, width - wide), strict=True)
            )
            return [top, left, tall, wide]
    wide, tall = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return [(height - tall) // 2, (width - wide) // 2, tall, wide]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (100, 30), (16, 160)])
def test_boxes_equal_the_slow_algorithm(height: int, width: int) -> None:
    """Where the picture is stored as it is. Float32 may round a side the other way at a tie: allowed once in 500."""
    numbers = uniforms(torch.arange(2000), BOX_COLUMNS, seed=0, step=0)
    aspects = torch.full((2000,), width / height)
    limits = {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3)}
    ours = draw_boxes(numbers, aspects, height=height, width=width, **limits)
    slow = torch.tensor([slow_box(row, height, width, **limits) for row in numbers.double().numpy()])
    assert (ours != slow).any(1).sum() <= 4
    assert (ours - slow).abs().max() <= 1


def torchvision_boxes(count: int, height: int, width: int, scale, ratio) -> np.ndarray:
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    return np.array([RandomResizedCrop.get_params(picture, list(scale), list(ratio)) for _ in range(count)])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (320, 480)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    limits = {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3)}
    theirs = torchvision_boxes(4000, height, width, **limits)
    numbers = uniforms(torch.arange(4000), BOX_COLUMNS, seed=0, step=0)
    ours = draw_boxes(numbers, torch.full((4000,), width / height), height=height, width=width, **limits).numpy()
    for one, other in zip(ours.T, theirs.T, strict=True):
        assert stats.ks_2samp(one, other).pvalue > ALARM
    area, other_area = ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]
    assert stats.ks_2samp(area, other_area).pvalue > ALARM
    assert stats.ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > ALARM


def test_boxes_of_squashed_pictures_keep_the_true_geometry() -> None:
    """480 × 320 pixels stored as 256 × 256: shares of the sides are distributed as on the true picture."""
    limits = {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3)}
    theirs = torchvision_boxes(4000, 320, 480, **limits) / [320, 480, 320, 480]
    numbers = uniforms(torch.arange(4000), BOX_COLUMNS, seed=0, step=0)
    ours = draw_boxes(numbers, torch.full((4000,), 1.5), height=256, width=256, **limits).numpy() / 256
    # Jitter of half a stored pixel hides the two different roundings from the test.
    generator = np.random.default_rng(0)
    for one, other in zip(ours.T, theirs.T, strict=True):
        blurred, reference_blurred = (values + generator.uniform(-1, 1, 4000) / 256 for values in (one, other))
        assert stats.ks_2samp(blurred, reference_blurred).pvalue > ALARM
    true_ratios = 1.5 * ours[:, 3] / ours[:, 2]
    assert true_ratios.min() > 0.74 and true_ratios.max() < 1.35


@pytest.mark.parametrize(("height", "width"), [(20, 200), (200, 20)])
def test_central_fallback_is_torchvisions(height: int, width: int) -> None:
    limits = {"scale": (0.9, 1.0), "ratio": (3 / 4, 4 / 3)}
    numbers = uniforms(torch.arange(50), BOX_COLUMNS, seed=0, step=0)
    ours = draw_boxes(numbers, torch.full((50,), width / height), height=height, width=width, **limits)
    assert ours.unique(dim=0).tolist() == np.unique(torchvision_boxes(50, height, width, **limits), axis=0).tolist()


def test_boxes_lie_inside_the_picture() -> None:
    aspects = torch.exp(torch.linspace(-5, 5, 3000))
    numbers = uniforms(torch.arange(3000), BOX_COLUMNS, seed=0, step=0)
    top, left, tall, wide = draw_boxes(
        numbers, aspects, height=24, width=24, scale=(0.01, 1.0), ratio=(0.1, 10.0)
    ).unbind(1)
    assert min(top.min(), left.min()) >= 0 and min(tall.min(), wide.min()) >= 1
    assert max((top + tall).max(), (left + wide).max()) <= 24
    almost_one = torch.full((1, BOX_COLUMNS), 1 - 2.0**-24)
    top, left, tall, wide = draw_boxes(
        almost_one, torch.ones(1), height=255, width=255, scale=(0.01, 0.02), ratio=(1.0, 1.0)
    ).unbind(1)
    assert (top + tall).item() == 255 and (left + wide).item() == 255


def test_colour_factors_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    settings = Augmentation(8, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    sampler = ColorJitter(0.4, 1.5, 0.2, 0.1)
    theirs = [
        ColorJitter.get_params(sampler.brightness, sampler.contrast, sampler.saturation, sampler.hue)
        for _ in range(3000)
    ]
    ours = settings.draw(torch.arange(3000), torch.ones(3000), 8, 8, seed=0, step=0)
    for number in range(4):
        expected = np.array([values[1 + number] for values in theirs])
        assert stats.ks_2samp(ours.factors[:, number].numpy(), expected).pvalue > ALARM
    # Every pair of columns is uncorrelated: five standard deviations of a correlation of 3000 pairs are 0.09.
    correlations = np.corrcoef(ours.factors.numpy().T)
    assert np.abs(correlations - np.eye(4)).max() < 0.09


def test_all_orders_are_equally_frequent() -> None:
    draws = Augmentation(8).draw(torch.arange(12_000), torch.ones(12_000), 8, 8, seed=0, step=0)
    _, counts = draws.order.unique(dim=0, return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > ALARM


def test_probabilities_and_blur_widths() -> None:
    count = 10_000
    settings = Augmentation(32, flip=0.5, jitter=0.8, grey=0.2, blur=0.3, blur_sigma=(0.5, 1.5))
    draws = settings.draw(torch.arange(count), torch.ones(count), 8, 8, seed=0, step=0)
    for happened, probability in (
        (draws.flip, 0.5),
        (draws.order[:, 0] != colour.NOTHING, 0.8),
        (draws.grey, 0.2),
        (draws.blur > 0, 0.3),
    ):
        assert stats.binomtest(int(happened.sum()), count, probability).pvalue > ALARM
    widths = draws.blur[draws.blur > 0].numpy()
    assert stats.kstest(widths, stats.uniform(0.5, 1.0).cdf).pvalue > ALARM


def test_unused_operations_are_left_out() -> None:
    draws = Augmentation(8, contrast=0.0, hue=0.0).draw(torch.arange(20), torch.ones(20), 8, 8, seed=0, step=0)
    assert set(draws.order.flatten().tolist()) == {0, 2, colour.NOTHING}
