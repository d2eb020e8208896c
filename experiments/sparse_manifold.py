"""A linear map of sparse codes of patches, solved exactly: every picture, or window of one, is a class of its own.

The method is the sparse manifold transform (Chen, Yun, Ma, Olshausen and LeCun 2022, arXiv 2209.15261), written from
its mathematics; closed_form.py runs it and says what it reaches.

1. Patches of 6 x 6 pixels at every position; the picture's channel means are taken off; whitened; unit length.
2. A dictionary of whitened patches, no two with a cosine above 0.5. The code a of a patch has a 1 for every one of
   them whose cosine with it is at least 0.3, and a 0 elsewhere.
3. V is the second moment of the codes, D that of the difference between two codes of one class. The map P minimises
   tr(P D Pᵀ) where P V Pᵀ = 1: Fisher's discriminant. The first directions are dropped.
4. P a, of unit length, at every position.

What is our own: mirrored pictures cost nothing. The whitening, the dictionary and the moments are closed under the
mirror, so everything splits into an even part, which a mirrored picture shares, and an odd part, which changes its
sign. The products with the dictionary halve, and the eigenproblem becomes two of half the size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, normalize

from instdisc.errors import InputError

BLOCK = 64  # pictures that are in work at once
ROOT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Settings:
    """What decides the map. `atoms` counts the dictionary with the mirror image of every patch in it."""

    atoms: int = 2048
    patch: int = 6  # pixels of a side
    means: str = "picture"  # whose channel means are taken off: "picture" or "patch"
    whitening: float = 3e-3  # added to the variances, of pixels in [0, 1]
    apart: float = 0.5  # the largest cosine between two patches of the dictionary
    cosine: float = 0.3  # from which on a patch's code has a 1
    window: int = 5  # patches of one class lie in a window of so many positions a side; 0: anywhere in the picture
    group: int = 16  # patches drawn for one class
    classes: int = 30_000  # so many groups are drawn
    ridge: float = 1e-3  # added to V, as a share of its mean diagonal
    dims: int = 384
    dropped: int = 16  # of the first directions
    seed: int = 0

    def __post_init__(self) -> None:
        if self.atoms < 2 or self.atoms % 2:
            raise InputError(f"atoms is {self.atoms}: choose an even number, for every patch has its mirror image.")
        if self.group < 2 or (self.window and self.group > self.window**2):
            raise InputError(
                f"A window of {self.window} x {self.window} positions has no group of {self.group} patches."
            )
        if self.dims < 1 or self.dims + self.dropped > self.atoms:
            raise InputError(f"{self.atoms} atoms have no {self.dims + self.dropped} directions: choose fewer dims.")
        if self.means not in ("picture", "patch"):
            raise InputError(f"means is {self.means!r}: choose picture or patch.")


# --------------------------------------------------------------------------------------------------------------------
# Patches: even and odd parts under the mirror, whitened


def mirror_basis(channels: int, side: int) -> tuple[Tensor, Tensor]:
    """Orthonormal even and odd combinations of a patch's pixels: each (n, channels * side * side); n differs if odd."""
    pixels = torch.eye(channels * side * side, dtype=torch.float64).reshape(-1, channels, side, side)
    mirrored = pixels.flip(-1)
    left = torch.arange(side).lt(side // 2).expand(channels, side, side).reshape(-1)
    middle = torch.arange(side).eq((side - 1) / 2).expand(channels, side, side).reshape(-1)
    even = torch.cat([((pixels + mirrored) * ROOT_HALF)[left], pixels[middle]])
    odd = ((pixels - mirrored) * ROOT_HALF)[left]
    return even.flatten(1), odd.flatten(1)


@dataclass(frozen=True)
class Patches:
    """Whitened patches of unit length, as even and odd parts: filters (even + odd, channels, side, side)."""

    filters: Tensor
    even: int  # so many of the filters are even
    means: str

    @classmethod
    def fit(cls, images: np.ndarray, settings: Settings, pictures: int = 2_000) -> Patches:
        """Whitening from the patches of some pictures and of their mirror images.

        images: uint8 (n, height, width, channels).
        """
        chosen = np.random.default_rng([settings.seed, 1]).permutation(len(images))[:pictures]
        channels, side = images.shape[3], settings.patch
        parts = mirror_basis(channels, side)
        if settings.means == "patch":
            onto = torch.eye(channels, dtype=torch.float64).repeat_interleave(side * side, 0) / side
            parts = tuple(part - part @ onto @ onto.T for part in parts)  # type: ignore[assignment]
        plain = cls(torch.cat(parts).float().reshape(-1, channels, side, side), len(parts[0]), settings.means)
        moments = [torch.zeros(len(part), len(part), dtype=torch.float64) for part in parts]
        count = 0
        for start in range(0, len(chosen), BLOCK):
            found = plain._filtered(images[np.sort(chosen[start : start + BLOCK])]).flatten(0, 2)
            count += len(found)
            for moment, part in zip(moments, (found[:, : plain.even], found[:, plain.even :]), strict=True):
                moment += (part.T @ part).double()
        whitened = []
        for moment, part in zip(moments, parts, strict=True):
            variances, axes = torch.linalg.eigh(moment / count)
            keep = variances > 1e-6 * variances.max()  # without its means a patch has fewer dimensions than numbers
            scaled = axes[:, keep] * (variances[keep] + settings.whitening).rsqrt()
            whitened.append(scaled.T @ part)
        filters = torch.cat(whitened).float().reshape(-1, channels, side, side)
        return cls(filters, len(whitened[0]), settings.means)

    def of(self, images: np.ndarray) -> Tensor:
        """(n, rows, columns, numbers): a patch at every position."""
        return normalize(self._filtered(images), dim=3, eps=1e-6)

    def _filtered(self, images: np.ndarray) -> Tensor:
        values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        if self.means == "picture":
            values = values - values.mean((2, 3), keepdim=True)
        return conv2d(values, self.filters).permute(0, 2, 3, 1).contiguous()


def dictionary(patches: Patches, images: np.ndarray, settings: Settings) -> Tensor:
    """(atoms / 2, numbers): patches drawn at random; none is near another, near a mirror image, or near its own."""
    half, even = settings.atoms // 2, patches.even
    found = torch.empty(0, len(patches.filters))
    rng = np.random.default_rng([settings.seed, 2])
    for _ in range(200):
        rows = np.sort(rng.choice(len(images), min(len(images), 256), replace=False))
        all_patches = patches.of(images[rows]).flatten(1, 2)
        drawn = torch.from_numpy(rng.integers(all_patches.shape[1], size=(len(rows), 4)))
        offered = all_patches.gather(1, drawn[:, :, None].expand(-1, -1, all_patches.shape[2])).flatten(0, 1)
        offered = offered[offered.norm(dim=1) > 0.5]  # a patch of one colour has no direction
        offered = offered[torch.from_numpy(rng.permutation(len(offered)))]
        own = 2 * offered[:, :even].square().sum(1) - 1  # cosine with its own mirror image
        offered = offered[(own <= settings.apart) & (nearest(offered, found, even) <= settings.apart)]
        alone = nearest_before(offered, even, settings.apart)
        found = torch.cat([found, offered[alone]])
        if len(found) >= half:
            return found[:half].contiguous()
    raise InputError(f"Only {2 * len(found)} patches are as far apart as {settings.apart}: choose fewer atoms.")


def nearest(rows: Tensor, found: Tensor, even: int) -> Tensor:
    """The largest cosine of every row with those found and with their mirror images."""
    if len(found) == 0:
        return torch.full((len(rows),), -1.0)
    return (rows[:, :even] @ found[:, :even].T + (rows[:, even:] @ found[:, even:].T).abs()).amax(1)


def nearest_before(rows: Tensor, even: int, apart: float) -> Tensor:
    """Which rows stay where each is dropped that is nearer than `apart` to one before it that stays."""
    cosines = rows[:, :even] @ rows[:, :even].T + (rows[:, even:] @ rows[:, even:].T).abs()
    near = (cosines > apart).numpy()
    stays = np.ones(len(rows), bool)
    for row in range(1, len(rows)):
        stays[row] = not (near[row, :row] & stays[:row]).any()
    return torch.from_numpy(stays)


# --------------------------------------------------------------------------------------------------------------------
# Codes. A code is never written out: the ones of a row are used where they are found.


@numba.njit(fastmath=True, cache=True)
def ones_of(even, odd, least, found, plus, minus):  # type: ignore[no-untyped-def]
    """Which atoms, or their mirror images, reach the cosine `least`: their numbers, ascending, in `found`; the count.

    even, odd: (atoms / 2,) the two parts of the cosines of one patch; their sum is that with the atom, their difference
    that with its mirror image. plus, minus: a + a′ and a − a′ for each, where a and a′ are 0 or 1.
    """
    count = 0
    for atom in range(len(even)):
        if even[atom] + abs(odd[atom]) >= least:
            own, mirrored = even[atom] + odd[atom] >= least, even[atom] - odd[atom] >= least
            found[count] = atom
            plus[count], minus[count] = np.float32(own) + mirrored, np.float32(own) - mirrored
            count += 1
    return count


@numba.njit(fastmath=True, cache=True)
def add_moments(even, odd, least, group, second, sums):  # type: ignore[no-untyped-def]
    """Add codes to twice the second moments (2, half, half; upper triangles) and to √2 times the groups' sums.

    even, odd: (groups * group, half) parts of the cosines. sums: (2, groups, half). All numbers added are whole, so
    float32 is exact up to 2^24. The number of ones is returned.
    """
    rows, half = even.shape
    found = np.empty(half, np.int32)
    plus, minus = np.empty(half, np.float32), np.empty(half, np.float32)
    ones = 0.0
    for row in range(rows):
        count = ones_of(even[row], odd[row], least, found, plus, minus)
        for place in range(count):
            atom = found[place]
            ones += plus[place]
            sums[0, row // group, atom] += plus[place]
            sums[1, row // group, atom] += minus[place]
            for other in range(place, count):
                second[0, atom, found[other]] += plus[place] * plus[other]
                second[1, atom, found[other]] += minus[place] * minus[other]
    return ones


@numba.njit(fastmath=True, cache=True)
def project(even, odd, least, table, evens, out):  # type: ignore[no-untyped-def]
    """out (rows, dims) = the map of the codes, of unit length. table: (half, dims), its first `evens` columns even.

    Four ones at a time: half the time of one by one.
    """
    rows, half = even.shape
    dims = table.shape[1]
    found = np.zeros(half + 4, np.int32)
    signs = np.zeros((2, half + 4), np.float32)
    for row in range(rows):
        count = ones_of(even[row], odd[row], least, found, signs[0], signs[1])
        found[count : count + 4] = 0
        signs[:, count : count + 4] = 0
        total = out[row]
        total[:] = 0
        for at in range(0, count, 4):
            a, b, c, d = table[found[at]], table[found[at + 1]], table[found[at + 2]], table[found[at + 3]]
            for part in range(2):
                first, last = (0, evens) if part == 0 else (evens, dims)
                w, x, y, z = signs[part, at], signs[part, at + 1], signs[part, at + 2], signs[part, at + 3]
                for column in range(first, last):
                    total[column] += w * a[column] + x * b[column] + y * c[column] + z * d[column]
        length = np.float32(0)
        for column in range(dims):
            length += total[column] * total[column]
        if length > 0:
            total *= 1 / np.sqrt(length)


class Cosines:
    """Even and odd parts of the cosines of patches with a dictionary: two products of half the size."""

    def __init__(self, atoms: Tensor, even: int) -> None:
        self.split = even
        self.even, self.odd = atoms[:, :even].T.contiguous(), atoms[:, even:].T.contiguous()

    def of(self, patches: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """patches: (rows, numbers). Two arrays (rows, atoms / 2)."""
        return (patches[:, : self.split] @ self.even).numpy(), (patches[:, self.split :] @ self.odd).numpy()


# --------------------------------------------------------------------------------------------------------------------
# The map


class Moments:
    """Second moments of the codes, of all and within the classes, each as an even and an odd block.

    In the coordinates (a + a′)/√2 and (a − a′)/√2, where a′ is the code of the mirrored patch, the moments over all
    patches and their mirror images have no terms between the blocks.
    """

    def __init__(self, half: int, group: int) -> None:
        self.group, self.rows, self.ones = group, 0, 0.0
        self.second = np.zeros((2, half, half), np.float32)
        self.between = np.zeros((2, half, half), np.float64)

    def add(self, cosines: tuple[np.ndarray, np.ndarray], least: float) -> None:
        """Cosines of whole groups, each `group` rows one after another."""
        rows, half = cosines[0].shape
        sums = np.zeros((2, rows // self.group, half), np.float32)
        self.ones += add_moments(*cosines, np.float32(least), self.group, self.second, sums)
        self.rows += rows
        for part in range(2):
            own = torch.from_numpy(sums[part])
            self.between[part] += (own.T @ own).numpy()

    def matrices(self) -> tuple[Tensor, Tensor]:
        """V and D: (2, half, half) float64."""
        upper = torch.from_numpy(self.second).double()
        second = (upper + upper.triu(1).mT) / 2
        between = torch.from_numpy(self.between) / 2
        groups = self.rows // self.group
        # The differences of all pairs of a group: 2 / (g − 1) times the scatter about its mean.
        within = 2 * (second - between / self.group) / (self.group - 1)
        return second / self.rows, within / groups


def solve(second: Tensor, within: Tensor, dims: int, dropped: int, ridge: float) -> tuple[Tensor, int, np.ndarray]:
    """The directions where patches of a picture differ least, as `project` takes them: table (half, dims), even ones.

    second, within: (2, half, half), V and D. The first `dropped` directions, even or odd, are left out; the third value
    has the quotients D/V of all that were found, ascending.
    """
    half = second.shape[1]
    found = []
    for part in range(2):
        v = second[part] + ridge * second[part].diagonal().mean() * torch.eye(half, dtype=torch.float64)
        low = torch.linalg.cholesky(v)
        whole = torch.linalg.solve_triangular(low, within[part], upper=False)
        whole = torch.linalg.solve_triangular(low, whole.mT, upper=False)
        quotients, axes = torch.linalg.eigh((whole + whole.mT) / 2)
        keep = min(half, dims + dropped)
        found.append((quotients[:keep], torch.linalg.solve_triangular(low.mT, axes[:, :keep], upper=True)))
    order = torch.cat([quotients for quotients, _ in found]).argsort(stable=True)[: dims + dropped]
    split = len(found[0][0])
    chosen = order[dropped:]
    even, odd = chosen[chosen < split], chosen[chosen >= split] - split
    table = torch.cat([found[0][1][:, even], found[1][1][:, odd]], 1) * ROOT_HALF
    quotients = torch.cat([quotients for quotients, _ in found])[order]
    return table.float().contiguous(), len(even), quotients.numpy()


def groups_of(patches: Tensor, settings: Settings, rng: np.random.Generator) -> Tensor:
    """patches: (n, rows, columns, numbers), a map of each picture. One group of each: (n * group, numbers)."""
    count, height, width, numbers = patches.shape
    tall, wide = (min(settings.window or size, size) for size in (height, width))
    places = rng.random((count, tall * wide)).argpartition(settings.group - 1, 1)[:, : settings.group]
    rows = places // wide + rng.integers(height - tall + 1, size=(count, 1))
    columns = places % wide + rng.integers(width - wide + 1, size=(count, 1))
    chosen = torch.from_numpy(rows * width + columns)[:, :, None].expand(-1, -1, numbers)
    return patches.flatten(1, 2).gather(1, chosen).flatten(0, 1)


@dataclass(frozen=True)
class ClosedForm:
    """Patches, dictionary and map: what turns pictures into vectors."""

    patches: Patches
    atoms: Tensor
    table: Tensor
    evens: int
    cosine: float

    def maps(self, images: np.ndarray) -> Tensor:
        """(n, dims, rows, columns): the vector of unit length at every position.

        images: uint8 (n, height, width, channels).
        """
        patches = self.patches.of(images)
        count, height, width, numbers = patches.shape
        cosines = Cosines(self.atoms, self.patches.even)
        out = np.empty((count * height * width, self.table.shape[1]), np.float32)
        table, least = self.table.numpy(), np.float32(self.cosine)
        flat = patches.reshape(-1, numbers)
        step = 256  # rows whose cosines stay in the cache
        for first in range(0, len(flat), step):
            block = slice(first, first + step)
            project(*cosines.of(flat[block]), least, table, self.evens, out[block])
        return torch.from_numpy(out).reshape(count, height, width, -1).permute(0, 3, 1, 2)
