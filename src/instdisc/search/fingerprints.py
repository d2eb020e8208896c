"""What tells copies apart without an encoder: of each picture a hash of its bytes and two small thumbnails, on disk.

    stored = stored_fingerprints(RUN/index/thumbnails.npy, marks, read)      # made once, again where a file changed
    stored.signatures()                                                       # unit vectors: copies lie close together

The file is one array of records, memory-mapped, 5 kB a picture. It is written beside and renamed, also where it is
interrupted, so that the next time goes on from there.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.fft import dct

from instdisc.data.decoding.decode import UnreadableError, decode, decode_stored, format_and_size
from instdisc.errors import InputError, advice
from instdisc.progress import Bar
from instdisc.shapes import Bool, Float, Int, Tensor, UInt8
from instdisc.system import readable_bytes

SIDE, COLOUR_SIDE = 64, 16  # pixels of the thumbnails, which are square: the whole picture, squashed
GREY = (0.299, 0.587, 0.114)
MISSING, READ, UNREADABLE = 0, 1, 2
RECORD = np.dtype(
    [
        ("mark", "u1", 16),
        ("state", "u1"),
        ("digest", "u1", 32),
        ("format", "S4"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("bytes", "<i8"),
        ("grey", "u1", (SIDE, SIDE)),
        ("colour", "u1", (COLOUR_SIDE, COLOUR_SIDE, 3)),
    ]
)
Contents = Iterator[tuple[int, Any]]  # (position, what a source gives, or an UnreadableError)
_CHUNK = 4_096
_MOST_THREADS = 8
_MOST_IN_MEMORY = 1 << 30  # bytes
_SAMPLED = 20_000  # pictures by which signatures are scaled
_LOW = 8  # frequencies along each axis
_LEVELS = 5  # of brightness


@dataclass(frozen=True)
class Fingerprints:
    """records: (pictures,) of RECORD, in the order of the marks that they were asked for by."""

    records: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def read(self) -> Bool[np.ndarray, " pictures"]:
        """Which pictures could be read."""
        return np.asarray(self.records["state"] == READ)

    @cached_property
    def digests(self) -> np.ndarray:
        """(pictures,) of 32 bytes: what the files hold."""
        return np.ascontiguousarray(self.records["digest"]).view("V32").ravel()

    @cached_property
    def shorter(self) -> Int[np.ndarray, " pictures"]:
        """Pixels of the shorter side."""
        return np.minimum(self.records["width"], self.records["height"])

    def readable(self) -> Int[np.ndarray, " readable"]:
        """The positions of the pictures that could be read."""
        return np.flatnonzero(self.read)

    def scratch(self, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
        """Room for numbers of each picture: where that is large, in a nameless file beside the thumbnails.

        Raises InputError where the disk has no room for it.
        """
        size = math.prod(shape) * np.dtype(kind).itemsize
        if size <= _MOST_IN_MEMORY:
            return np.empty(shape, kind)
        name = getattr(self.records, "filename", None)
        folder = Path(tempfile.gettempdir()) if name is None else Path(name).parent
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):  # a full disk is met here, and not as a signal that ends all
                    os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, kind, "w+", shape=shape)
        except OSError as error:
            raise InputError(
                f"{readable_bytes(size)} for a while could not be had in {folder} ({error.strerror or error}): "
                f"{advice(error)}."
            ) from None

    def grey(self, positions: Int[np.ndarray, " pictures"]) -> Float[Tensor, "pictures side side"]:
        """Thumbnails, 0..255."""
        return torch.from_numpy(self.records["grey"][positions]).float()

    def colour(self, positions: Int[np.ndarray, " pictures"]) -> Float[Tensor, "pictures 3 small small"]:
        """Colour thumbnails, 0..255."""
        return torch.from_numpy(self.records["colour"][positions]).float().permute(0, 3, 1, 2)


def stored_fingerprints(
    file: Path, marks: UInt8[np.ndarray, "pictures 16"], read: Callable[[np.ndarray], Contents], *, show: bool = False
) -> Fingerprints:
    """The fingerprints of the pictures with these marks: from `file` where they stand there, else made and kept.

    read(positions): the contents of the pictures at these positions, ascending. Raises InputError where the file
    can't be written.
    """
    old = _open(file)
    if old is not None and np.array_equal(old["mark"], marks) and (old["state"] == READ).all():
        return Fingerprints(old)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            new = np.lib.format.open_memmap(temporary, mode="w+", dtype=RECORD, shape=(len(marks),))
            todo = _taken_over(new, old, marks)
            try:
                with Bar(len(todo), "Making thumbnails", "pictures", enabled=show) as bar:
                    for position, record in _computed(read(todo), marks):
                        new[position] = record
                        bar.advance()
            finally:
                new.flush()
                del old
                os.replace(temporary, file)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{file} could not be written ({error.strerror or error}): {advice(error)}.") from None
    return Fingerprints(new)


def marks_of(
    ids: Sequence[bytes], locations: Sequence[bytes], stats: dict[bytes, bytes] | None = None
) -> UInt8[np.ndarray, "pictures 16"]:
    """A mark for each picture, another one once its file has another size or date.

    stats: what is known of files that hold many, for who asks for a part of them at a time.
    """
    stats = {} if stats is None else stats
    marks = np.empty((len(ids), 16), np.uint8)
    for position, (identifier, location) in enumerate(zip(ids, locations, strict=True)):
        found = _stamp(location)
        if found is None:  # it stands in another file: shard.tar#0017
            holder = location.rpartition(b"#")[0]
            found = stats[holder] if holder in stats else stats.setdefault(holder, _stamp(holder) or b"")
        digest = hashlib.blake2b(b"\0".join((identifier, location, found)), digest_size=16).digest()
        marks[position] = np.frombuffer(digest, np.uint8)
    return marks


def _stamp(path: bytes) -> bytes | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return b"%d %d" % (found.st_size, found.st_mtime_ns)


def _open(file: Path) -> np.ndarray | None:
    """The stored records; None where there are none, or of another version."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == RECORD and found.ndim == 1 else None


def _taken_over(new: np.ndarray, old: np.ndarray | None, marks: np.ndarray) -> Int[np.ndarray, " todo"]:
    """Copy what is known already; the positions of the others."""
    if old is None or not len(old):
        return np.arange(len(marks))
    known, wanted = (np.ascontiguousarray(one).view("V16").ravel() for one in (old["mark"], marks))
    order = np.argsort(known)
    found = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    there = (known[found] == wanted) & (old["state"][found] == READ)
    positions = np.flatnonzero(there)
    for start in range(0, len(positions), _CHUNK):
        some = positions[start : start + _CHUNK]
        new[some] = old[found[some]]
    return np.flatnonzero(~there)


def _computed(contents: Contents, marks: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(position, its record): read here, decoded by threads."""
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for position, content in contents:
                waiting.append((position, pool.submit(_record, content, marks[position])))
                while len(waiting) > 8 * threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _record(content: Any, mark: np.ndarray) -> np.ndarray:
    record = np.zeros((), RECORD)
    record["mark"], record["state"] = mark, UNREADABLE
    try:
        if isinstance(content, UnreadableError):
            raise content
        pixels, aspect = decode_stored(content, 2 * SIDE)
        kind, width, height = format_and_size(content)
        if max(width, height) <= SIDE // 2:  # enlarged so that each pixel is a square: it is compared pixel by pixel
            shape = (2 * SIDE, 2 * SIDE)
            pixels = np.asarray(Image.fromarray(decode(content)).resize(shape, Image.Resampling.BOX))
    except UnreadableError:
        return record
    if (width > height) != (aspect > 1):
        width, height = height, width  # it was turned upright
    record["state"], record["format"], record["width"], record["height"] = READ, kind.encode(), width, height
    record["digest"] = np.frombuffer(_digest(content), np.uint8)
    record["bytes"] = len(content) if isinstance(content, bytes | bytearray | memoryview) else 0
    half = squeezed(pixels, SIDE)
    record["grey"], record["colour"] = np.rint(grey_of(half)), np.rint(squeezed(half, COLOUR_SIDE))
    return record


def grey_of(pixels: np.ndarray) -> Float[np.ndarray, "height width"]:
    """Brightness of (height, width, 3) colours, 0..255, float32."""
    return pixels.astype(np.float32) @ np.array(GREY, np.float32)


def squeezed(pixels: np.ndarray, side: int) -> Float[np.ndarray, "side side channels"]:
    """Means of squares of a square picture whose side is `side` times a power of two; exact, for whole numbers."""
    sums, step = pixels.astype(np.float32), len(pixels) // side
    while len(sums) > side:  # far quicker than one sum along two axes
        sums = sums[::2] + sums[1::2]
        sums = sums[:, ::2] + sums[:, 1::2]
    return sums / np.float32(step * step)


def _digest(content: Any) -> bytes:
    """SHA-256 of a file's bytes; of an array its shape, type and values."""
    if isinstance(content, bytes | bytearray | memoryview):
        return hashlib.sha256(content).digest()
    array = np.ascontiguousarray(np.asarray(content) if isinstance(content, Image.Image) else content)
    return hashlib.sha256(f"{array.shape} {array.dtype.str} ".encode() + array.tobytes()).digest()


class Signatures:
    """Unit vectors of thumbnails: those of copies lie close together, mirrored, turned and cropped ones too.

    Two parts: sizes of the lowest frequencies (a mirror changes only their signs, a turn their order), and how often
    which brightness goes with which tint, in the middle and around it. Each is scaled by what is usual in `sample`.
    """

    def __init__(self, *sample: Fingerprints) -> None:
        random = np.random.default_rng(0)
        parts = []
        for stored in sample:
            positions = stored.readable()
            some = np.sort(random.permutation(positions)[: _SAMPLED // len(sample)])
            parts += [_features(stored, some[start : start + _CHUNK]) for start in range(0, len(some), _CHUNK)]
        sizes, tints = (torch.cat(columns) for columns in zip(*parts, strict=True))
        self._sizes = sizes.mean(0), _floored(sizes.std(0, correction=0))
        self._tints = tints.mean(0)
        centred = (tints - self._tints).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        values, vectors = values[-64:], vectors[:, -64:]
        self._scaled = (vectors / _floored(values.clamp_min(0).sqrt(), 0.01)).float()

    def of(self, stored: Fingerprints, positions: Int[np.ndarray, " pictures"]) -> Float[Tensor, "pictures dim"]:
        """The signatures of some pictures."""
        width = len(self._sizes[0]) + self._scaled.shape[1]
        answer = torch.from_numpy(stored.scratch((len(positions), width), np.float32))
        for start in range(0, len(positions), _CHUNK):
            sizes, tints = _features(stored, positions[start : start + _CHUNK])
            halves = ((sizes - self._sizes[0]) / self._sizes[1], (tints - self._tints) @ self._scaled)
            both = torch.cat([torch.nn.functional.normalize(half, dim=1) for half in halves], dim=1)
            answer[start : start + len(both)] = torch.nn.functional.normalize(both, dim=1)
        return answer


def _floored(values: Tensor, share: float = 0.05) -> Tensor:
    """What hardly varies must not be blown up to noise."""
    return values.clamp_min(max(share * float(values.max()), 1e-6))


def _features(stored: Fingerprints, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    return _frequencies(stored.grey(positions)), _tints(stored.colour(positions))


_WAVES = torch.from_numpy(dct(np.eye(SIDE), axis=0, norm="ortho")[:_LOW].astype(np.float32))


def _frequencies(grey: Float[Tensor, "pictures side side"]) -> Float[Tensor, "pictures 63"]:
    found = (_WAVES @ grey @ _WAVES.T).abs()
    turned = found.transpose(1, 2)
    upper, above = (torch.triu_indices(_LOW, _LOW, offset).unbind() for offset in (0, 1))
    parts = [(found + turned)[:, upper[0], upper[1]][:, 1:] / 2, (found - turned).abs()[:, above[0], above[1]]]
    return torch.nn.functional.normalize(torch.cat(parts, dim=1), dim=1).sqrt()


def _tints(colour: Float[Tensor, "pictures 3 small small"]) -> Float[Tensor, "pictures tints"]:
    grey = torch.einsum("pcyx,c->pyx", colour, torch.tensor(GREY)).flatten(1)
    spread = grey.std(1, correction=0)[:, None] + 4
    far = (torch.arange(COLOUR_SIDE) - (COLOUR_SIDE - 1) / 2).abs()
    middle = (torch.maximum(far[:, None], far) < COLOUR_SIDE / 4).flatten()
    order, inside = (~middle).int().argsort(stable=True), int(middle.sum())
    kinds = [grey - grey.mean(1)[:, None], colour[:, 2].flatten(1) - grey, colour[:, 0].flatten(1) - grey]
    level, blue, red = ((kind / spread)[:, order] for kind in kinds)
    centres = torch.tensor([-1.0, -0.4, 0.0, 0.4, 1.0])
    soft = [
        _soft(level, torch.linspace(-1.6, 1.6, _LEVELS), 0.5),
        _soft(blue, centres, 0.25),
        _soft(red, centres, 0.25),
    ]
    parts = [
        (one[:, :, ring] @ other[:, :, ring].transpose(1, 2)).flatten(1) / one[0, 0, ring].numel()
        for ring in (slice(inside), slice(inside, None))
        for one, other in ((soft[0], soft[1]), (soft[0], soft[2]), (soft[1], soft[2]))
    ]
    return torch.cat(parts, dim=1).sqrt()


def _soft(
    values: Float[Tensor, "pictures pixels"], centres: Tensor, width: float
) -> Float[Tensor, "pictures bins pixels"]:
    """How much of each pixel falls into each bin; 1 in all."""
    values = values.clamp(float(centres[0]), float(centres[-1]))[:, None]
    near = torch.exp(-((values - centres[:, None]) / width).square() / 2)
    return near / near.sum(1, keepdim=True)
