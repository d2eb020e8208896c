"""Rows as they are kept: float32, half precision, or int8 with a scale a row; and the random ones of the start.

A row in int8 is its direction rounded to a grid: q = round(127 v / max|v|), and the row is q / |q|, a unit vector
again. Its scale 1 / |q| is kept beside it, which saves its computing; rounding such a row again gives the same q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from instdisc import draws, ranks
from instdisc.shapes import Float, Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
EPSILON = 1e-12
_ROWS_STREAM = 1  # of draws: the random rows at the start
_LARGEST = 127


@dataclass(frozen=True)
class Rows:
    """Rows and, where they are in int8, their scales. What is picked comes as float32; a slice of float32 as a view.

    Examples:
        >>> import torch
        >>> from instdisc.bank import Rows
        >>> rows = Rows(torch.eye(3, dtype=torch.float16))
        >>> rows[torch.tensor([2, 0])], rows.shape, rows.nbytes
        (tensor([[0., 0., 1.],
                [1., 0., 0.]]), torch.Size([3, 3]), 18)
    """

    values: Tensor
    scales: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        """(rows, dim)."""
        return self.values.shape

    @property
    def dtype(self) -> torch.dtype:
        """What the rows are kept in."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Memory that they take, scales included."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __getitem__(self, which: Any) -> Float[Tensor, "*any dim"]:
        return self.picked(which, self.values.device)

    def picked(self, which: Any, device: torch.device) -> Float[Tensor, "*any dim"]:
        """The same, on another device."""
        values = _taken(self.values, which).to(device).float()
        return values if self.scales is None else values.mul_(_taken(self.scales, which).to(device)[..., None])


def _taken(values: Tensor, which: Any) -> Tensor:
    """values[which]; by numbers, whole rows are copied, on a CPU in a third of the time (int8: a tenth)."""
    if not isinstance(which, Tensor) or which.dtype not in (torch.int32, torch.int64):
        return values[which]
    return values.index_select(0, which.reshape(-1)).view(*which.shape, *values.shape[1:])


def rounded(rows: Float[Tensor, "rows dim"], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Unit rows as they are kept in this dtype, and their scales where it is int8."""
    if dtype != torch.int8:
        return rows.to(dtype), None
    steps = rows.abs().amax(dim=1, keepdim=True).clamp_min(EPSILON) / _LARGEST
    whole = (rows / steps).round().clamp(-_LARGEST, _LARGEST)
    return whole.to(torch.int8), 1 / whole.norm(dim=1).clamp_min(1)


def full_precision(features: Tensor) -> torch.autocast:
    """Products in float32, also inside a caller's autocast: at a temperature of 0.07 a score rounded to bfloat16 is
    off by up to 0.03.

    Examples:
        >>> import torch
        >>> from instdisc.bank import full_precision
        >>> features = torch.eye(2)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     rounded = features @ features.T
        ...     with full_precision(features):
        ...         exact = features @ features.T
        >>> rounded.dtype, exact.dtype
        (torch.bfloat16, torch.float32)
    """
    return torch.autocast(features.device.type, enabled=False)


def own_part(counts: list[int]) -> slice:
    """Where this rank's part stands in what was gathered."""
    first = sum(counts[: ranks.rank()])
    return slice(first, first + counts[ranks.rank()])


def random_directions(first: int, last: int, dim: int, seed: int, device: torch.device) -> Float[Tensor, "rows dim"]:
    """Uniform points on the sphere: Gaussian vectors by Box and Muller's transform, scaled to unit length."""
    pairs = (dim + 1) // 2
    indices = torch.arange(first, last, device=device)
    uniform = draws.uniforms(indices, 2 * pairs, seed=seed, step=0, stream=_ROWS_STREAM)
    radius = (-2 * torch.log1p(-uniform[:, :pairs])).sqrt()
    angle = 2 * math.pi * uniform[:, pairs:]
    return normalize(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :dim], dim=1, eps=EPSILON)
