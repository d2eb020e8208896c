"""The augmentation on a CPU, picture by picture in one compiled loop: the way that is taken where Numba is installed.

torch goes over the planes of some dozens of pictures once for every operation, thirty times and more, and two threads
share one such pass badly. Here each thread takes pictures of its own, and a picture stays in its core's cache from the
crop to the normalised result. The operations are those of `colour`, `augment_blur` and `augment`, in the same sequence
and in float32: the results agree to a few 2⁻²⁴. They depend on the picture and its draws alone, not on the threads.

Compiling takes some seconds, once: the machine code is kept beside this file, or in the person's cache folder.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from threading import Barrier
from typing import Any, TypeAlias

import numba
import numpy as np
import torch

from instdisc.data.augment.colour import LUMA, NO_CHROMA
from instdisc.data.augment.parameters import Draws
from instdisc.data.augment.resample import by_kernel, cut, resized_crop
from instdisc.shapes import Float, Tensor, UInt8

_F = np.float32
_Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
_Three: TypeAlias = tuple[np.float32, np.float32, np.float32]
_RED, _GREEN, _BLUE = (_F(weight) for weight in LUMA)
_NO_CHROMA, _SIXTH = _F(NO_CHROMA), _F(1 / 6)
_ZERO, _HALF, _ONE, _TWO, _SIX, _LEVEL = _F(0), _F(0.5), _F(1), _F(2), _F(6), _F(1 / 255)
_PIXELS = 100_000  # that a thread is woken for: a millisecond's work, about
# Sums may be taken in another sequence, so that they run over vectors; no number here is infinite or none.
_FAST = {"reassoc", "contract", "nnan", "ninf", "nsz"}


def _compiled(function: Callable[..., Any]) -> Any:
    """Machine code that lets other threads run; kept on the disk where there is a place for it."""
    function = inspect.unwrap(function)  # under test, a function comes with a check of its arguments around it
    with suppress(RuntimeError):  # Numba finds no folder that it may write to
        return numba.njit(function, nogil=True, fastmath=_FAST, cache=True)
    return numba.njit(function, nogil=True, fastmath=_FAST)


@_compiled
def _brightness(red: _Floats, green: _Floats, blue: _Floats, factor: np.float32) -> None:
    for i in range(red.size):
        red[i] = min(red[i] * factor, _ONE)
        green[i] = min(green[i] * factor, _ONE)
        blue[i] = min(blue[i] * factor, _ONE)


@_compiled
def _contrast(red: _Floats, green: _Floats, blue: _Floats, factor: np.float32) -> None:
    total = 0.0  # in float32 over a thousand pixels, in float64 over those sums
    for start in range(0, red.size, 1024):
        reds, greens, blues = _ZERO, _ZERO, _ZERO
        for i in range(start, min(start + 1024, red.size)):
            reds += red[i]
            greens += green[i]
            blues += blue[i]
        total += float(reds * _RED + greens * _GREEN + blues * _BLUE)
    pull = (_ONE - factor) * _F(total / red.size)
    for i in range(red.size):
        red[i] = min(max(red[i] * factor + pull, _ZERO), _ONE)
        green[i] = min(max(green[i] * factor + pull, _ZERO), _ONE)
        blue[i] = min(max(blue[i] * factor + pull, _ZERO), _ONE)


@_compiled
def _saturation(red: _Floats, green: _Floats, blue: _Floats, factor: np.float32) -> None:
    rest = _ONE - factor
    for i in range(red.size):
        pull = (red[i] * _RED + green[i] * _GREEN + blue[i] * _BLUE) * rest
        red[i] = min(max(red[i] * factor + pull, _ZERO), _ONE)
        green[i] = min(max(green[i] * factor + pull, _ZERO), _ONE)
        blue[i] = min(max(blue[i] * factor + pull, _ZERO), _ONE)


@_compiled
def _hue(red: _Floats, green: _Floats, blue: _Floats, shift: np.float32) -> None:
    turn = shift * _SIX
    for i in range(red.size):  # the formulas of `colour.hue`
        r, g, b = red[i], green[i], blue[i]
        value, least = max(r, max(g, b)), min(r, min(g, b))
        chroma = value - least
        angle = (g + b - r + value - _TWO * least) / max(chroma, _NO_CHROMA)
        angle = (-angle if g < b else angle) + turn
        angle -= _SIX * np.floor(angle * _SIXTH + _HALF)
        low = least - chroma
        red[i] = value + chroma - chroma * min(max(abs(angle), _ONE), _TWO)
        green[i] = low + chroma * min(max(abs(angle + _ONE), _ONE), _TWO)
        blue[i] = low + chroma * min(max(abs(angle - _ONE), _ONE), _TWO)


@_compiled
def _grey(red: _Floats, green: _Floats, blue: _Floats) -> None:
    for i in range(red.size):
        luma = red[i] * _RED + green[i] * _GREEN + blue[i] * _BLUE
        red[i], green[i], blue[i] = luma, luma, luma


@_compiled
def _blur(plane: _Floats, spare: _Floats, line: _Floats, kernel: _Floats) -> None:
    """Along the rows into `spare`, then along the columns back; `line` is a row with its reflected margins.

    The taps are odd in number: the first alone, then two at a time. Rows are taken out before they are walked along:
    an index that Numba cannot see to be positive is asked whether it counts from the end, four times as slow.
    """
    height, width = plane.shape
    reach = kernel.size // 2
    for row in range(height):
        source, out, weight = plane[row], spare[row], kernel[0]
        line[reach : reach + width] = source
        for j in range(reach):
            line[j], line[reach + width + j] = source[reach - j], source[width - 2 - j]
        for j in range(width):
            out[j] = weight * line[j]
        for tap in range(1, kernel.size, 2):
            _add_two(out, kernel[tap], line[tap : tap + width], kernel[tap + 1], line[tap + 1 : tap + 1 + width])
    for row in range(height):
        source, out, weight = spare[_reflected(row - reach, height)], plane[row], kernel[0]
        for j in range(width):
            out[j] = weight * source[j]
        for tap in range(1, kernel.size, 2):
            above, below = _reflected(row + tap - reach, height), _reflected(row + tap + 1 - reach, height)
            _add_two(out, kernel[tap], spare[above], kernel[tap + 1], spare[below])


@_compiled
def _add_two(out: _Floats, weight: np.float32, one: _Floats, other_weight: np.float32, other: _Floats) -> None:
    for j in range(out.size):
        out[j] += weight * one[j] + other_weight * other[j]


@_compiled
def _reflected(row: int, height: int) -> int:
    row = abs(row)
    return row if row < height else 2 * height - 2 - row


@_compiled
def _finish(
    planes: _Floats,
    factors: _Floats,
    order: Any,
    grey: bool,
    sigma: np.float32,
    taps: int,
    scale: _Three,
    offset: _Three,
    out: _Floats,
) -> None:
    """Jitter, grey, blur of one picture's planes (3, size, size), which are used up; normalised into (pixels, 3)."""
    size = planes.shape[1]
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    for number in order:
        if number == 0:
            _brightness(red, green, blue, factors[0])
        elif number == 1:
            _contrast(red, green, blue, factors[1])
        elif number == 2:
            _saturation(red, green, blue, factors[2])
        elif number == 3:
            _hue(red, green, blue, factors[3])
    if grey:
        _grey(red, green, blue)
    if sigma > _ZERO:
        kernel = np.empty(taps, np.float32)
        for tap in range(taps):
            away = _F(tap - taps // 2) / sigma
            kernel[tap] = math.exp(-_HALF * away * away)
        kernel /= kernel.sum()
        spare, line = np.empty((size, size), np.float32), np.empty(size + taps, np.float32)
        for channel in range(3):
            _blur(planes[channel], spare, line, kernel)
    red_scale, green_scale, blue_scale = scale
    red_offset, green_offset, blue_offset = offset
    for i in range(red.size):
        out[i, 0] = red[i] * red_scale - red_offset
        out[i, 1] = green[i] * green_scale - green_offset
        out[i, 2] = blue[i] * blue_scale - blue_offset


@_compiled
def _from_bytes(
    pixels: Any,
    mirrored: bool,
    planes: _Floats,
    factors: _Floats,
    order: Any,
    grey: bool,
    sigma: np.float32,
    taps: int,
    scale: _Three,
    offset: _Three,
    out: _Floats,
) -> None:
    """One picture of bytes (size, size, 3), mirrored or not, through `planes` into `out`."""
    size = planes.shape[1]
    for row in range(size):
        line, red, green, blue = pixels[row], planes[0, row], planes[1, row], planes[2, row]
        if mirrored:
            line = line[::-1]
        for j in range(size):
            red[j], green[j], blue[j] = line[j, 0] * _LEVEL, line[j, 1] * _LEVEL, line[j, 2] * _LEVEL
    _finish(planes, factors, order, grey, sigma, taps, scale, offset, out)


@_compiled
def _from_planes(
    pictures: _Floats,
    start: int,
    stop: int,
    planes: _Floats,
    factors: _Floats,
    order: Any,
    grey: Any,
    sigma: _Floats,
    taps: int,
    scale: _Three,
    offset: _Three,
    out: _Floats,
) -> None:
    """Pictures `start` to `stop` of (3, batch, size, size) through `planes` into `out` (batch, pixels, 3)."""
    for position in range(start, stop):
        for channel in range(3):
            planes[channel] = pictures[channel, position]
        _finish(
            planes,
            factors[position],
            order[position],
            grey[position],
            sigma[position],
            taps,
            scale,
            offset,
            out[position],
        )


def augmented(
    images: UInt8[Tensor, "batch 3 height width"],
    draws: Draws,
    taps: int,
    mean: Sequence[float],
    std: Sequence[float],
    result: Float[Tensor, "batch 3 size size"],
) -> None:
    """Write into `result`, in channels_last memory, what `Augmentation.apply` gives; blur by `taps` taps."""
    count, size = len(images), result.shape[2]
    scales = 1 / torch.tensor(std)
    scale, offset = (tuple(row.numpy()) for row in (scales, torch.tensor(mean) * scales))
    out = result.permute(0, 2, 3, 1).numpy().reshape(count, size * size, 3)
    factors, order, grey, sigma = (part.numpy() for part in (draws.factors, draws.order, draws.grey, draws.blur))

    def whole(start: int, stop: int) -> None:
        planes = np.empty((3, size, size), np.float32)
        _from_planes(pictures, start, stop, planes, factors, order, grey, sigma, taps, scale, offset, out)

    def one_by_one(start: int, stop: int) -> None:
        planes = np.empty((3, size, size), np.float32)
        for position in range(start, stop):
            pixels = cut(images[position], boxes[position], size).permute(1, 2, 0).contiguous().numpy()
            words = (
                factors[position],
                order[position],
                grey[position],
                sigma[position],
                taps,
                scale,
                offset,
                out[position],
            )
            _from_bytes(pixels, mirrored[position], planes, *words)

    if by_kernel(images, size):
        boxes, mirrored = draws.boxes.tolist(), draws.flip.numpy()
        _shared(one_by_one, count, size)
    else:
        pictures = resized_crop(images, draws.boxes, draws.flip, size).numpy()
        _shared(whole, count, size)


def _shared(work: Callable[[int, int], None], count: int, size: int) -> None:
    """Let threads do `work(start, stop)` on equal parts of so many pictures of `size` pixels.

    Not this one, in which each of torch's operations on one picture would call all of torch's threads: beside processes
    that decode, these wait for each other longer than they work.
    """
    threads = min(torch.get_num_threads(), count, count * size * size // _PIXELS)
    if threads <= 1:
        work(0, count)
        return
    edges = [count * thread // threads for thread in range(threads + 1)]
    pool = _pool(torch.get_num_threads())
    parts = [pool.submit(work, *part) for part in pairwise(edges)]
    wait(parts)  # nobody writes into a batch that is given up
    for part in parts:
        part.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: where they were made again for each batch, two of them were no faster than one.

    In them torch's operations use no further threads: OpenMP, with more threads than cores, lets all of them sleep
    between two operations, and the encoder's then took one and a half times as long.
    """
    wanted, started = torch.get_num_threads(), Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, "augment", initializer=_alone)
    try:
        for _ in range(threads):
            pool.submit(started.wait)
    except BaseException:  # the system gives no more threads
        started.abort()
        raise
    started.wait()
    torch.set_num_threads(wanted)  # what a thread sets counts for itself, and for those that ask later
    return pool


def _alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first operation of a thread takes over the number that was set last, anywhere


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
