"""Many pictures through an encoder, in fixed memory: read and decoded by threads while the last batch is computed.

Every picture carries its row number from the moment it is taken until its result is stored, so that batches may be cut
anywhere and unreadable pictures left out without a row landing in another's place.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from instdisc.data.decoding.decode import Encoded, UnreadableError
from instdisc.data.sources.frames import frame_of, open_frame
from instdisc.data.sources.open import names_in, open_source
from instdisc.data.sources.source import Source
from instdisc.encoder.preprocessing import Preprocessing
from instdisc.errors import InputError, is_shortage
from instdisc.progress import Bar
from instdisc.shapes import Float, Int, Tensor, UInt8
from instdisc.transfer import fetch

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
Compute = Callable[[Tensor], dict[str, Tensor]]
_Shares = list[tuple[list[tuple[int, Any]], Future[list[Tensor | str]]]]  # parts of a batch, each being fitted
Chunk = tuple[np.ndarray, dict[str, Tensor]]  # row numbers (n,), and what was computed: name -> (n, ...)

# Decoding a photograph takes milliseconds without the interpreter's lock; more threads than this only wait for memory.
_MOST_THREADS = 8


@dataclass(frozen=True)
class _Pictures:
    """What a caller handed over, as numbered raw pictures; `count` is None where only the end will tell."""

    items: Iterator[tuple[int, Any]]
    count: int | None
    name: Callable[[int, Any], str]


def stream(
    images: Any,
    preprocessing: Preprocessing,
    compute: Compute,
    *,
    batch: int,
    on_unreadable: Callable[[int, str, str], None] | None = None,
    rows: np.ndarray | None = None,
    progress: bool = False,
) -> Iterator[Chunk]:
    """`compute` on batches of at most `batch` fitted pictures, pixels (n, 3, size, size) of uint8 or floats in 0..1.

    Yields the pictures' row numbers and the results, as float32 on the CPU. Unreadable pictures go to
    on_unreadable(row, name, reason); without it the first raises InputError. Where memory is too short for a batch, it
    is computed in halves, and so are those after it.
    """
    if batch < 1:
        raise InputError(f"The batch must hold at least 1 picture, not {batch}.")
    pictures = _pictures(images, rows)
    if isinstance(images, Tensor) and images.ndim == 4 and preprocessing.keeps(*images.shape[-2:]):
        batches = _slices(_checked(images), batch)
    elif isinstance(images, np.ndarray) and _ready(images) and preprocessing.keeps(*images.shape[1:3]):
        batches = _copied_slices(images, batch)
    else:
        batches = _prepared(pictures, preprocessing, batch, on_unreadable)
    compute = _AsManyAsFit(compute)
    with Bar(pictures.count, "Embedding", "pictures", enabled=progress) as bar:
        for numbers, pixels in batches:
            found = compute(pixels)
            values = fetch(*(each.float() for each in found.values()))
            yield numbers, dict(zip(found, values, strict=True))
            bar.advance(len(numbers))


class _AsManyAsFit:
    """`compute` on a batch in as many pieces as memory asks for: halves after each refusal, and from then on."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._most: int | None = None

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        done: list[dict[str, Tensor]] = []
        start = 0
        while start < len(pixels):
            most = self._most or len(pixels)
            found = self._tried(pixels[start : start + most])
            if found is None:
                self._most = -(-min(most, len(pixels) - start) // 2)
            else:
                done.append(found)
                start += most
        return done[0] if len(done) == 1 else {name: torch.cat([part[name] for part in done]) for name in done[0]}

    def _tried(self, pixels: Tensor) -> dict[str, Tensor] | None:
        """None where memory was too short, once all that the attempt held is free again."""
        try:
            return self._compute(pixels)
        except (RuntimeError, MemoryError) as error:
            if len(pixels) == 1 or not is_shortage(error):
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what lies free in blocks of other sizes
        return None


def collect(chunks: Iterable[Chunk], widths: Mapping[str, int]) -> dict[str, Float[Tensor, "pictures width"]]:
    """The streamed results as whole tensors in the order of their row numbers.

    widths: the results' names and columns, for when nothing was streamed. No chunk is kept: many small blocks between
    the large ones of an encoder's passes had the process grow by all of them (18 GB before 50,000 were done).
    """
    whole = {name: torch.zeros(0, width) for name, width in widths.items()}
    end = 0
    for numbers, values in chunks:
        positions = torch.from_numpy(numbers)
        end = max(end, int(numbers.max()) + 1) if len(numbers) else end
        for name in list(values):
            part = values.pop(name)
            if name not in whole or len(whole[name]) < end:
                kept = whole.get(name, part[:0])
                whole[name] = torch.empty(max(end, 2 * len(kept)), *part.shape[1:])
                whole[name][: len(kept)] = kept
            whole[name][positions] = part
    return {name: kept if len(kept) == end else kept[:end].clone() for name, kept in whole.items()}


def gathered(
    chunks: Iterable[tuple[np.ndarray, Tensor]], most: int, dim: int
) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows dim"]]:
    """The row numbers of streamed vectors, ascending, and the vectors; at most so many. No chunk is kept: `collect`."""
    numbers, vectors, count = np.empty(most, np.int64), np.empty((most, dim), np.float32), 0
    for chunk, values in chunks:
        here = slice(count, count + len(chunk))
        numbers[here], vectors[here] = chunk, values.numpy()
        count += len(chunk)
    order = np.argsort(numbers[:count])
    return numbers[order], vectors[order]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The autocast context that `precision` means on this device. Raises InputError for a name that is none."""
    if precision not in PRECISIONS:
        raise InputError(f'The precision is one of {", ".join(PRECISIONS)}, not "{precision}".')
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if precision == "float32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def _slices(images: Tensor, batch: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Batches of a tensor that needs no fitting: views, wherever it lies."""
    for start in range(0, len(images), batch):
        stop = min(start + batch, len(images))
        yield np.arange(start, stop), images[start:stop]


def _ready(images: np.ndarray) -> bool:
    """Whether these are colour pictures of bytes, so that nothing is to be done but to look at their size."""
    return images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3


def _copied_slices(images: UInt8[np.ndarray, "n size size 3"], batch: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Batches of an array that needs no fitting: copies, for it may be read-only or turned round."""
    for start in range(0, len(images), batch):
        some = images[start : start + batch].copy()
        yield np.arange(start, start + len(some)), torch.from_numpy(some).permute(0, 3, 1, 2)


def _prepared(
    pictures: _Pictures,
    preprocessing: Preprocessing,
    batch: int,
    on_unreadable: Callable[[int, str, str], None] | None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    share = -(-batch // threads)  # a batch is split among all threads, so that the first one is ready soon
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:

        def submitted() -> Iterator[_Shares]:
            while items := list(islice(pictures.items, batch)):
                parts = [items[start : start + share] for start in range(0, len(items), share)]
                yield [(part, pool.submit(_fit_all, part, preprocessing)) for part in parts]

        batches = submitted()
        current = next(batches, None)
        try:
            while current is not None:
                following = next(batches, None)  # decoded while the caller computes this one
                yield from _assembled(current, pictures, on_unreadable)
                current = following
        finally:
            pool.shutdown(cancel_futures=True)


def _fit_all(items: list[tuple[int, Any]], preprocessing: Preprocessing) -> list[Tensor | str]:
    """The fitted pictures; in place of an unreadable one, the reason."""
    fitted: list[Tensor | str] = []
    for _, raw in items:
        try:
            fitted.append(_fit(raw, preprocessing))
        except UnreadableError as error:
            fitted.append(error.reason)
    return fitted


def _fit(raw: Any, preprocessing: Preprocessing) -> Tensor:
    if isinstance(raw, UnreadableError):  # a Source hands over what it could not read
        raise raw
    if isinstance(raw, str | os.PathLike):
        raw = _file_content(raw)
    if isinstance(raw, Tensor):
        pixels = _checked(raw)
        if pixels.dtype != torch.uint8:
            pixels = pixels.float()
        return preprocessing.fit(pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
    if isinstance(raw, Encoded):
        return preprocessing.fit(preprocessing.decode(raw))
    raise InputError(
        f"A picture is a path, bytes, a PIL picture, an array or a tensor, not a {type(raw).__name__}: "
        "hand over the pictures alone, without their labels."
    )


def _assembled(
    shares: _Shares,
    pictures: _Pictures,
    on_unreadable: Callable[[int, str, str], None] | None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """One batch from its shares; nothing if none of its pictures can be read."""
    numbers: list[int] = []
    pixels: list[Tensor] = []
    for items, future in shares:
        for (row, raw), fitted in zip(items, future.result(), strict=True):
            if isinstance(fitted, Tensor):
                numbers.append(row)
                pixels.append(fitted)
                continue
            name = pictures.name(row, raw)
            if on_unreadable is None:
                raise InputError(f"{name} can't be used as a picture: {fitted}.")
            on_unreadable(row, name, fitted)
    if pixels:
        if not all(picture.dtype == torch.uint8 for picture in pixels):
            pixels = [picture / 255 if picture.dtype == torch.uint8 else picture for picture in pixels]
        yield np.array(numbers), torch.stack(pixels)


def _pictures(images: Any, rows: np.ndarray | None) -> _Pictures:
    if isinstance(images, str | os.PathLike) and Path(images).is_dir():
        images = open_source(images)
    if not isinstance(images, Source):
        frame = frame_of(images)
        images = names_in(images) or images if frame is None else frame.paths or open_frame(frame)
    if isinstance(images, Source):
        source = images
        chosen = len(source) if rows is None else len(rows)
        return _Pictures(source.iterate(rows), chosen, lambda row, raw: source.location(row))
    if rows is not None:
        raise InputError("rows chooses rows of a Source; slice other collections of pictures yourself.")
    if _is_one_picture(images):
        images = [images]
    if not isinstance(images, Iterable) or isinstance(images, Mapping):
        raise InputError(
            "Pictures are paths, bytes, PIL pictures, arrays or tensors, or an iterable of them, "
            f"not a {type(images).__name__}."
        )
    stacked = isinstance(images, list | tuple) and any(getattr(item, "ndim", 0) == 4 for item in images)
    count = len(images) if isinstance(images, list | tuple | np.ndarray | Tensor) and not stacked else None
    return _Pictures(enumerate(_flat(images)), count, _name_of)


def _flat(images: Iterable[Any]) -> Iterator[Any]:
    """Single pictures, with stacks (n, ...) of them taken apart."""
    for item in images:
        if isinstance(item, Tensor | np.ndarray) and item.ndim == 4:
            yield from item
        else:
            yield item


def _is_one_picture(images: Any) -> bool:
    """Whether this is a picture and not a collection; a 3-d array is one if its last axis can be colours."""
    if isinstance(images, Tensor):
        return images.ndim <= 3
    if isinstance(images, np.ndarray):
        return images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4))
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)


def _name_of(row: int, raw: Any) -> str:
    return os.fspath(raw) if isinstance(raw, str | os.PathLike) else f"Picture number {row}"


def _file_content(path: str | os.PathLike[str]) -> bytes:
    location = os.fspath(path)
    try:
        if "://" in location:
            import fsspec

            with fsspec.open(location, "rb") as file:
                return bytes(file.read())
        return Path(location).read_bytes()
    except (OSError, ValueError, ImportError) as error:  # ValueError: an unknown protocol, a zero byte in a name
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(f"the file can't be opened ({reason})") from error


def _checked(pixels: Tensor) -> Tensor:
    """The same tensor, if it holds pixels: channels before places, and uint8 or floats in 0..1."""
    if pixels.ndim < 3 or pixels.shape[-3] not in (1, 3):
        raise InputError(f"A tensor of pictures is (n, 3, height, width), not {tuple(pixels.shape)}.")
    if pixels.dtype == torch.uint8:
        return pixels
    # A slack for the overshoot of resizing filters; normalised pictures lie far outside.
    if not pixels.is_floating_point() or (pixels.numel() and not (pixels.min() >= -0.1 and pixels.max() <= 1.1)):
        raise InputError("Pixels in a tensor are uint8, or floats in 0..1: the encoder normalises them itself.")
    return pixels
