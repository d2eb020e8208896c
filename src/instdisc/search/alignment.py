"""Pairs of thumbnails laid over each other: turned, mirrored, cropped and resized as fits best, then compared.

    aligned = guessed(patches(first), patches(second))   # each of 8 turns, 28 windows of either picture: a quick look
    aligned = refined(first, second, aligned, 32, 4)     # by least squares on the brightness
    agreement(first, second, aligned, 64)                # 1: the same detail everywhere
    recoloured(red_green_blue, others, aligned)          # how far one change of all colours goes, and what it leaves

Thumbnails are squares, float32 (pairs, side, side) of 0..255. All is worked out for many pairs at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn.functional import grid_sample

from instdisc.shapes import Float, Int, Tensor

_COARSE, _PATCH = 16, 6  # pixels: of a picture at the first look, and of each window
_NOISE = 6.0  # grey levels: detail below this may come from compression
_TRIMMED = 0.15  # of the detail that may differ: a text, a stamp
_BLOCK = 8  # pixels: of the squares that are compared, every four pixels
_AROUND = 9  # pixels: whose mean is taken off for the second look
_SQUARES = 16  # along a side, whose mean colours are compared
_APART, _TIMES = 24.0, 2.0  # grey levels, and times the median difference, from which a square has another colour
_DRAWN, _FEWEST = 8.0, 8  # grey levels beside the commonest colour, squares: what is drawn on it
_STIFF = 100.0  # grey levels squared: how little colours vary where no change of them is believed


@dataclass(frozen=True)
class Aligned:
    """Where the second picture of each pair lies in the first.

    symmetry: it is mirrored for 4..7, then turned by a quarter as many times as the number modulo 4 says. window: left,
    top, width and height of what is then its frame, in the first's frame, which is 1 wide and high. score: how well
    they agree there, at most 1.
    """

    symmetry: Int[Tensor, " pairs"]
    window: Float[Tensor, "pairs 4"]
    score: Float[Tensor, " pairs"]

    def at(self, positions: Tensor) -> Aligned:
        """Those of some pairs."""
        return Aligned(self.symmetry[positions], self.window[positions], self.score[positions])

    def overlap(self) -> Float[Tensor, " pairs"]:
        """The share of the smaller picture that both show."""
        start, size = self.window[:, :2], self.window[:, 2:].abs()
        shared = (torch.minimum(start + size, torch.ones(1)) - start.clamp_min(0)).clamp_min(0).prod(1)
        return shared / size.prod(1).clamp(1e-6, 1)

    def stretch(self) -> Float[Tensor, " pairs"]:
        """How many times as large one picture is in the other, along the axis where that is most; never below 1."""
        size = self.window[:, 2:].clamp_min(1e-6)
        return torch.maximum(size, 1 / size).amax(1)


def oriented(pictures: Tensor, symmetry: int) -> Tensor:
    """Mirrored, then turned, as `Aligned.symmetry` says."""
    mirrored = pictures.flip(-1) if symmetry >= 4 else pictures
    return torch.rot90(mirrored, symmetry % 4, (-2, -1))


def _oriented_each(pictures: Tensor, symmetry: Tensor) -> Tensor:
    answer = pictures.clone()
    for one in range(1, 8):
        here = (symmetry == one).nonzero().squeeze(1)
        if len(here):
            answer[here] = oriented(pictures[here], one)
    return answer


def _intervals() -> list[tuple[float, float]]:
    """(start, length): the whole, and three positions each of nine, eight and seven tenths of it."""
    return [(0.0, 1.0)] + [(position * (1 - size) / 2, size) for size in (0.9, 0.8, 0.7) for position in range(3)]


_INTERVALS = _intervals()
_WINDOWS = [(0, 0)] + [(first + i, first + j) for first in (1, 4, 7) for i in range(3) for j in range(3)]
_RECTANGLES = torch.tensor(
    [[*(_INTERVALS[x][0], _INTERVALS[y][0], _INTERVALS[x][1], _INTERVALS[y][1])] for y, x in _WINDOWS]
)


def _averaging() -> Float[Tensor, "cells coarse"]:
    """Means of the cells that each interval is divided into."""
    rows = []
    for start, size in _INTERVALS:
        edges = [(start + size * number / _PATCH) * _COARSE for number in range(_PATCH + 1)]
        for low, high in pairwise(edges):
            rows.append([max(0.0, min(high, pixel + 1) - max(low, pixel)) / (high - low) for pixel in range(_COARSE)])
    return torch.tensor(rows)


_MEANS = _averaging()
_PIXELS = torch.stack([oriented(torch.arange(_PATCH**2).reshape(1, _PATCH, _PATCH), one).flatten() for one in range(8)])


def _window_before() -> Int[Tensor, "8 windows"]:
    """For each symmetry and window of an oriented picture the window of the picture itself that ends there."""
    masks = torch.zeros(len(_WINDOWS), 40, 40)
    for mask, (left, top, wide, high) in zip(masks, (40 * _RECTANGLES).round().int().tolist(), strict=True):
        mask[top : top + high, left : left + wide] = 1
    moved = torch.stack([oriented(masks, symmetry) for symmetry in range(8)])
    return (moved[:, None] == masks[None, :, None]).flatten(3).all(3).int().argmax(2)


_BEFORE = _window_before()


def patches(grey: Float[Tensor, "pictures side side"]) -> Int[Tensor, "pictures windows pixels"]:
    """Each window of a picture, shrunk, less its mean, of length 127, as int8."""
    coarse = shrunk(grey, _COARSE)
    cells = (_MEANS @ coarse @ _MEANS.T).reshape(len(grey), len(_INTERVALS), _PATCH, len(_INTERVALS), _PATCH)
    rows, columns = (torch.tensor(axis) for axis in zip(*_WINDOWS, strict=True))
    found = cells[:, rows, :, columns].transpose(0, 1).flatten(2)
    found = found - found.mean(2, keepdim=True)
    return (127 * found / (found.norm(dim=2, keepdim=True) + 1)).round().to(torch.int8)


def shrunk(pictures: Float[Tensor, "... side side"], side: int) -> Float[Tensor, "... small small"]:
    """Means of squares; the side must be the smaller one times a power of two."""
    step = pictures.shape[-1] // side
    while pictures.shape[-1] > side:  # three to nine times as fast as pooling
        pictures = pictures[..., ::2, :] + pictures[..., 1::2, :]
        pictures = pictures[..., ::2] + pictures[..., 1::2]
    return pictures if step == 1 else pictures / step**2


def guessed(first: Tensor, second: Tensor) -> Aligned:
    """The best of all symmetries with all windows of either picture, by `patches` of both; score: their correlation."""
    first, second = first.float(), second.float()
    inside = first @ second[:, 0][:, _PIXELS].transpose(1, 2)  # the second, oriented, in windows of the first
    around = second @ first[:, 0][:, torch.argsort(_PIXELS, dim=1)].transpose(1, 2)  # the first in windows of it
    (one, at), (other, there) = (scores.flatten(1).max(1) for scores in (inside, around))
    larger = other > one
    position = torch.where(larger, there, at)
    symmetry, window = position % 8, position // 8
    window = torch.where(larger, torch.argsort(_BEFORE, dim=1)[symmetry, window], window)
    rectangle = _RECTANGLES[window]
    inverse = torch.cat([-rectangle[:, :2] / rectangle[:, 2:], 1 / rectangle[:, 2:]], dim=1)
    return Aligned(symmetry, torch.where(larger[:, None], inverse, rectangle), torch.maximum(one, other) / 127**2)


def refined(first: Tensor, second: Tensor, aligned: Aligned, side: int, steps: int) -> Aligned:
    """The window moved and scaled so that brightness agrees best, apart from its level and contrast (Gauss and Newton).

    side: of the pictures that this is done on. Few pixels that differ much have little weight. score: correlation.
    """
    base, over = shrunk(first, side), _oriented_each(shrunk(second, side), aligned.symmetry)
    centre = (torch.arange(side) + 0.5) / side
    slopes = over.new_zeros(len(over), 4, side, side)
    across, down = slopes[:, 0], slopes[:, 1]
    across[:, :, 1:-1] = (over[:, :, 2:] - over[:, :, :-2]) * (side / 2)
    down[:, 1:-1] = (over[:, 2:] - over[:, :-2]) * (side / 2)
    torch.mul(across, centre, out=slopes[:, 2])
    torch.mul(down, centre[:, None], out=slopes[:, 3])
    slopes = slopes.flatten(2)
    window = aligned.window
    for _ in range(steps):
        under, shown = _under(base, window, side)
        own, spread = _standard(over, shown)
        rest = own - _standard(under, shown)[0]
        bent = slopes * (shown / (1 + (2 * rest).square())).flatten(1)[:, None]
        matrix = bent @ slopes.transpose(1, 2) / spread.square()
        firm = 1e-5 * side**2 + 1e-6 * matrix.diagonal(dim1=1, dim2=2).mean(1)  # lines alone do not tell where they lie
        matrix = matrix + firm[:, None, None] * torch.eye(4)
        step = torch.linalg.solve_ex(matrix, -(bent @ rest.flatten(1)[..., None]) / spread)[0][..., 0]
        step = step.nan_to_num(0, 0, 0).clamp(-0.2, 0.2)
        size = window[:, 2:] / (1 + step[:, 2:])
        window = torch.cat([window[:, :2] - size * step[:, :2], size], dim=1)
    under, shown = _under(base, window, side)
    count = shown.sum((1, 2)).clamp_min(1)
    score = (_standard(under, shown)[0] * _standard(over, shown)[0] * shown).sum((1, 2)) / count
    return Aligned(aligned.symmetry, window, score)


def _under(base: Tensor, window: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The first pictures where the second ones lie, and which pixels of these they cover (0 or 1)."""
    centre = (torch.arange(side) + 0.5) / side
    across, down = (window[:, axis, None] + window[:, axis + 2, None] * centre for axis in range(2))
    shape = (len(base), side, side)
    positions = torch.stack([across[:, None].expand(shape), down[:, :, None].expand(shape)], dim=-1) * 2 - 1
    inside = [((axis > 0) & (axis < 1)).float() for axis in (across, down)]
    found = grid_sample(base[:, None], positions, padding_mode="border", align_corners=False)
    return found[:, 0], inside[1][:, :, None] * inside[0][:, None]


def _standard(pictures: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Less the mean, and over the deviation, of what is shown; and that deviation, with a little added."""
    count = shown.sum((1, 2), keepdim=True).clamp_min(1)
    centred = pictures - (pictures * shown).sum((1, 2), keepdim=True) / count
    spread = ((centred.square() * shown).sum((1, 2), keepdim=True) / count).sqrt() + 0.1
    return centred / spread, spread


def agreement(
    first: Tensor, second: Tensor, aligned: Aligned, side: int
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """How far the detail of both agrees, at most 1, and the share of the squares that have any, apart from a gradient.

    Squares of 8 pixels are compared by the structural similarity, but for the contrast of the whole. Each counts by how
    much detail one of both has there; of all that, the 15 % that agree least are left out. The same again less the mean
    of the pixels around each: two skies that darken to one side agree in that alone. The lower of both counts.
    """
    over = _oriented_each(shrunk(second, side), aligned.symmetry)
    under, shown = _under(shrunk(first, side), aligned.window, side)
    score, detail = _similarity(under, over, shown)
    finer = _similarity(_less_around(under), _less_around(over), shown)
    return torch.minimum(score, finer[0]), torch.minimum(detail, finer[1])


def _less_around(pictures: Tensor) -> Tensor:
    position = torch.arange(pictures.shape[-1])
    near = ((position[:, None] - position).abs() <= _AROUND // 2).float()
    mean = near / near.sum(1, keepdim=True)  # a product of two: twelve times as fast as pooling
    return pictures - mean @ pictures @ mean.T


def _similarity(under: Tensor, over: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """`agreement` of pictures that lie over each other; shown: 1 where the first has pixels."""

    def means(values: Tensor) -> Tensor:
        halves = shrunk(values, values.shape[-1] * 2 // _BLOCK)
        halves = halves[:, :-1] + halves[:, 1:]
        return (halves[:, :, :-1] + halves[:, :, 1:]).flatten(1) / 4

    full = (means(shown) > 0.99).float()
    own, other = means(under), means(over)
    varied, others = ((means(one.square()) - mean.square()).clamp_min(0) for one, mean in ((under, own), (over, other)))
    shared = means(under * over) - own * other
    gain = (((varied * full).sum(1) + 1) / ((others * full).sum(1) + 1)).sqrt()[:, None].clamp(0.5, 2)
    varied, others, shared = varied, others * gain.square(), shared * gain
    similar = (2 * shared + _NOISE**2) / (varied + others + _NOISE**2)
    detail = torch.maximum(varied, others)
    weight = detail / (detail + _NOISE**2) * full
    order = similar.argsort(1)
    similar, weight = similar.gather(1, order), weight.gather(1, order)
    whole = weight.sum(1, keepdim=True)
    weight = (weight.cumsum(1) - _TRIMMED * whole).clamp_min(0).minimum(weight)
    return (similar * weight).sum(1) / weight.sum(1).clamp_min(1e-6), whole[:, 0] / full.sum(1).clamp_min(1)


def colour_change(
    first: Tensor, second: Tensor, aligned: Aligned
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """How far colour thumbnails (pairs, 3, side, side) differ, in grey levels: their tints, pixel by pixel; the whole.

    A tint is a colour less its brightness: the root mean square of the differences, and half of what all pixels have
    in common. The whole: the largest difference of brightness, contrast, tint and saturation on average.
    """
    side = first.shape[-1]
    count = _under(first[:, 0], aligned.window, side)[1].flatten(1)
    parts = []
    for colours, below in ((first, True), (second, False)):
        planes = [
            _under(plane, aligned.window, side)[0] if below else _oriented_each(plane, aligned.symmetry)
            for plane in colours.unbind(1)
        ]
        parts.append(torch.stack(planes, 1).flatten(2))
    count = (count / count.sum(1, keepdim=True).clamp_min(1))[:, None]
    greys = [part.mean(1, keepdim=True) for part in parts]
    tints = [part - grey for part, grey in zip(parts, greys, strict=True)]
    levels, casts = ([(one * count).sum(2) for one in both] for both in (greys, tints))
    rest = tints[0] - tints[1] - (casts[0] - casts[1])[..., None]
    differ = (rest.square() * count).sum((1, 2)) + (casts[0] - casts[1]).square().sum(1) / 4
    contrasts, strengths = (
        [((one - mean[..., None]).square() * count).sum((1, 2)).sqrt() for one, mean in zip(both, means, strict=True)]
        for both, means in ((greys, levels), (tints, casts))
    )
    whole = [(levels[0] - levels[1]).abs()[:, 0], (casts[0] - casts[1]).abs().amax(1)]
    whole += [(one[0] - one[1]).abs() for one in (contrasts, strengths)]
    return differ.sqrt(), torch.stack(whole).amax(0)


def recoloured(
    first: Float[Tensor, "pairs 3 side side"], second: Float[Tensor, "pairs 3 side side"], aligned: Aligned
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """The share of what is drawn whose colour differs, though one change of all is allowed; how far that goes.

    The change is a mean over what is drawn, in grey levels of the worst channel. Colours of a copy may all be changed
    alike: by a linear map and an offset, fitted so that few parts that differ have little weight. A variant of a
    drawing differs in a part, and that in colour alone perhaps, where `agreement` does not look. What has the commonest
    colour of its picture in both, and no detail, is not drawn: it is the ground.
    """
    side = first.shape[-1]
    over = torch.stack([_oriented_each(plane, aligned.symmetry) for plane in second.unbind(1)], 1)
    parts = [_under(plane, aligned.window, side) for plane in first.unbind(1)]
    under = torch.stack([plane for plane, _ in parts], 1)
    full = shrunk(parts[0][1], _SQUARES).flatten(1) > 0.99
    means = [shrunk(planes, _SQUARES).flatten(2).double() for planes in (under, over)]
    drawn = torch.zeros_like(full)
    for planes, mean in zip((under, over), means, strict=True):
        grey = planes.mean(1)
        varied = (shrunk(grey.square(), _SQUARES) - shrunk(grey, _SQUARES).square()).flatten(1)
        drawn |= (mean - _commonest(mean, full)).abs().amax(1) > _DRAWN
        drawn |= varied > _NOISE**2
    drawn &= full
    drawn = torch.where((drawn.sum(1) < _FEWEST)[:, None], full, drawn)
    explained = _explained(means[0], means[1], full)
    rest = (means[1] - explained).abs().amax(1)
    apart = (rest > (_TIMES * _median(rest, drawn)).clamp_min(_APART)[:, None]) & drawn
    count = drawn.sum(1).clamp_min(1)
    far = ((explained - means[0]).abs().amax(1) * drawn).sum(1) / count
    enough = full.sum(1) >= _FEWEST
    return torch.where(enough, apart.sum(1) / count, 0.0).float(), torch.where(enough, far, 0.0).float()


def _median(values: Float[Tensor, "... squares"], among: Tensor) -> Float[Tensor, "..."]:
    """The lower median of those among them; infinite where there are none."""
    among = among.expand_as(values)
    ordered = torch.where(among, values, torch.inf).sort(-1).values
    return ordered.gather(-1, ((among.sum(-1, keepdim=True) - 1) // 2).clamp_min(0))[..., 0]


def _commonest(colours: Float[Tensor, "pairs 3 squares"], full: Tensor) -> Float[Tensor, "pairs 3 1"]:
    """The median of the colours that share the fullest of 16 x 16 x 16 bins."""
    bins = (colours // 16).long().clamp(0, 15)
    number = (bins[:, 0] * 16 + bins[:, 1]) * 16 + bins[:, 2]
    count = torch.zeros(len(colours), 16**3).scatter_add_(1, number, full.float())
    return _median(colours, ((number == count.argmax(1, keepdim=True)) & full)[:, None])[..., None]


def _explained(
    first: Float[Tensor, "pairs 3 squares"], second: Float[Tensor, "pairs 3 squares"], full: Tensor
) -> Float[Tensor, "pairs 3 squares"]:
    """The first colours after the linear map and offset by which most of them are nearest to the second."""
    weight, found, stiff = full.to(first.dtype), first, _STIFF * torch.eye(3, dtype=first.dtype)
    for _ in range(8):
        share = (weight / weight.sum(1, keepdim=True).clamp_min(1e-12))[:, None]
        means = [(one * share).sum(2, keepdim=True) for one in (first, second)]
        own, other = (one - mean for one, mean in zip((first, second), means, strict=True))
        spread = (own * share) @ own.transpose(1, 2) + stiff
        moved = torch.linalg.solve(spread, (own * share) @ (other - own).transpose(1, 2))
        found = means[1] + own + moved.transpose(1, 2) @ own
        rest = (second - found).abs().amax(1)
        scale = 2 * _median(rest, full).clamp(1.5, 1e6)[:, None]
        weight = full / (1 + (rest / scale).square())
    return found
