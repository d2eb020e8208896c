"""The augmentation that Numba compiles: torchvision's operations, whatever the threads; and where there is no Numba."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from tiny_runs import made_pictures, tiny
from torchvision.transforms import functional as reference

from instdisc.data import augment
from instdisc.data.augment import Augmentation, colour, kernel_length
from instdisc.data.augment import fused as augment_fused
from instdisc.data.augment.parameters import Draws
from instdisc.jobs.train import train

# float32 operations in another sequence: a few roundings of 2⁻²⁴ each.
ROUNDING = 2e-6
NONE = colour.NOTHING


def pictures(size: int) -> torch.Tensor:
    """Independent pixels, and what is hard: black, white, grey, pure colours, faint ones."""
    images = torch.randint(0, 256, (10, 3, size, size), dtype=torch.uint8, generator=torch.manual_seed(0))
    images[1], images[2], images[3] = 0, 255, images[3, :1].clone()
    images[4] = images[4] // 128 * 255
    images[5] = images[5] // 64 + 100
    return images


def drawn(count: int, size: int, **changed: Any) -> Draws:
    """Nothing happens to whole pictures, save what is changed."""
    nothing = {
        "boxes": torch.tensor([[0, 0, size, size]]).repeat(count, 1),
        "flip": torch.zeros(count, dtype=torch.bool),
        "factors": torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(count, 1),
        "order": torch.full((count, 4), NONE),
        "grey": torch.zeros(count, dtype=torch.bool),
        "blur": torch.zeros(count),
    }
    return Draws(**(nothing | changed))


def plain(size: int, **changed: Any) -> Augmentation:
    return Augmentation(size, mean=(0.0,) * 3, std=(1.0,) * 3, **changed)


@pytest.mark.parametrize("size", [19, 64])  # through the products, and through the uint8 kernel
@pytest.mark.parametrize(
    ("number", "theirs", "low", "high"),
    [
        (0, reference.adjust_brightness, 0.0, 2.0),
        (1, reference.adjust_contrast, 0.0, 2.0),
        (2, reference.adjust_saturation, 0.0, 2.0),
        (3, reference.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_operation_equals_torchvision(size: int, number: int, theirs: Any, low: float, high: float) -> None:
    images, factors, order = pictures(size), torch.zeros(10, 4), torch.full((10, 4), NONE)
    factors[:, number] = torch.linspace(low, high, 10)
    order[:, 2] = number
    ours = plain(size).apply(images, drawn(10, size, factors=factors, order=order))
    for place in range(10):
        expected = theirs(images[place] / 255, factors[place, number].item())
        assert (ours[place] - expected).abs().max() < ROUNDING


def test_grey_and_mirrored_pictures() -> None:
    for size in (19, 64):
        images, wanted = pictures(size), torch.arange(10) % 2 == 0
        ours = plain(size).apply(images, drawn(10, size, grey=wanted, flip=wanted))
        for place in range(10):
            expected = images[place] / 255
            if wanted[place]:
                expected = reference.hflip(reference.rgb_to_grayscale(expected, num_output_channels=3))
            assert (ours[place] - expected).abs().max() < ROUNDING


@pytest.mark.parametrize("size", [7, 32, 96, 224])
def test_blur_equals_torchvision(size: int) -> None:
    sigma = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.8, 1.0, 1.3, 1.7, 1.9, 2.0])
    images, taps = pictures(size), kernel_length(size)
    ours = plain(size, blur=0.5).apply(images, drawn(10, size, blur=sigma))
    assert (ours[0] - images[0] / 255).abs().max() < ROUNDING
    for place in range(1, 10):
        expected = reference.gaussian_blur(images[place] / 255, [taps, taps], [sigma[place].item()] * 2)
        assert (ours[place] - expected).abs().max() < ROUNDING


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets torch's threads, and any part of the work is worth waking them; afterwards they are as before."""
    before = torch.get_num_threads()
    monkeypatch.setattr(augment_fused, "_PIXELS", 1)
    yield torch.set_num_threads
    augment_fused._pool.cache_clear()
    torch.set_num_threads(before)


@pytest.mark.parametrize(("stored", "size"), [(40, 32), (112, 96)])
def test_threads_change_nothing(stored: int, size: int, threads: Callable[[int], None]) -> None:
    images = torch.randint(0, 256, (23, 3, stored, stored), dtype=torch.uint8, generator=torch.manual_seed(1))
    settings = Augmentation(size, flip=0.5, blur=0.5)
    draws = settings.draw(torch.arange(23), torch.ones(23), stored, stored, seed=0, step=0)
    found = []
    for number in (1, 2, 5, 3):
        threads(number)
        found.append(settings.apply(images, draws))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_torch_has_no_further_threads_in_ours_and_elsewhere_as_many_as_before(threads: Callable[[int], None]) -> None:
    threads(3)
    seen = set()

    def work(start: int, stop: int) -> None:
        if start:
            seen.add(torch.get_num_threads())

    augment_fused._shared(work, 30, 1)
    assert seen == {1} and torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as another:
        assert another.submit(torch.get_num_threads).result() == 3


def test_what_goes_wrong_in_a_thread_is_heard(threads: Callable[[int], None]) -> None:
    threads(2)

    def fails(start: int, stop: int) -> None:
        if start:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        augment_fused._shared(fails, 10, 1000)


# 2026-11-26: Python 3.12 warns of every fork beside threads; that the threads are not taken over is what is tried here
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(threads: Callable[[int], None]) -> None:
    threads(3)
    done: list[int] = []

    def work(start: int, stop: int) -> None:
        done.extend(range(start, stop))

    augment_fused._shared(work, 10, 1)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # threads that are not there would be waited for without end
        augment_fused._shared(work, 10, 1)
        os._exit(0 if sorted(done) == sorted(2 * list(range(10))) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_numba_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "instdisc.data.augment.fused")
    monkeypatch.delattr("instdisc.data.augment.fused")
    augment._fused.cache_clear()
    try:
        assert "instdisc[fast]" in augment.way_on_cpu()
        images = pictures(19)
        assert (plain(19).apply(images, drawn(10, 19)) - images / 255).abs().max() < ROUNDING
    finally:
        augment._fused.cache_clear()


def test_without_a_place_for_machine_code_it_is_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = numba.njit

    def njit(function: Any, cache: bool = False, **words: Any) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **words)

    monkeypatch.setattr(numba, "njit", njit)
    assert augment_fused._compiled(lambda number: number + 1)(2) == 3
    assert asked[:2] == [True, False]  # more: Numba compiles parts of its own


def test_training_says_how_it_augments(tmp_path: Path) -> None:
    said: list[str] = []
    train(made_pictures(32), tmp_path / "run", tiny(), say=said.append)
    assert sum(line.startswith("Augmentation: compiled for this processor by Numba") for line in said) == 1
