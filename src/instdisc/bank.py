"""The memory bank: one unit row an instance, on one process or sharded over many, and the sums over it.

    bank = MemoryBank(50_000)                        # random unit rows, drawn from a seed
    scores = bank.scores(features, indices)          # cosines with some rows
    log_z = bank.log_partition(features, 0.07)       # log of the sum over all rows, exact, in blocks
    bank.update(indices, features.detach())          # the only write

Row i belongs to instance i. Each rank holds a contiguous share of the rows (`ranks.share`); every method takes this
rank's part of the batch and answers for it, whichever rank holds the rows; one process is the same code with nothing to
send. Gradients reach `features` and never the rows. They are derived by hand, so no collective stands in a graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import normalize

from instdisc import draws, ranks
from instdisc.errors import InputError
from instdisc.shapes import Float, Int, Tensor

_ROWS_STREAM = 1  # of draws: the random rows at the start
_EPSILON = 1e-12
# exp(-80) is still a normal float32; past it the fixed maximum would lose small terms, and the running one takes over
_SAFE_SPREAD = 80.0


class MemoryBank:
    """One unit row for each instance, of shape (instances, dim); `rows` is this rank's part.

    momentum: a row is renewed as normalise(momentum * row + (1 - momentum) * feature). The published runs use 0.5; the
        text of the paper replaces the row, which is 0.
    seed: the rows at the start are random directions, functions of (seed, row) alone, the same for any number of ranks.
    dtype: float32, or float16/bfloat16 for half the memory; arithmetic is in float32 either way.
    """

    def __init__(
        self,
        instances: int,
        dim: int = 128,
        *,
        momentum: float = 0.5,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if instances < 1 or dim < 1:
            raise InputError(f"A bank needs at least one instance and one dimension, not {instances} and {dim}.")
        if not 0 <= momentum < 1:
            raise InputError(f"The bank's momentum must be in [0, 1), not {momentum}: with 1 no row would ever change.")
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"A bank's rows are float32, float16 or bfloat16, not {dtype}.")
        self.instances, self.dim, self.momentum, self.seed = instances, dim, momentum, seed
        self.updates = 0  # how often `update` was called: the step that the objectives' noise is drawn for
        self.start, self.stop = ranks.share(instances)
        self.rows: Float[Tensor, "local dim"] = torch.empty(self.stop - self.start, dim, dtype=dtype, device=device)
        for first in range(self.start, self.stop, 65_536):
            last = min(first + 65_536, self.stop)
            part = self.rows[first - self.start : last - self.start]
            part.copy_(_random_directions(first, last, dim, seed, self.device))

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.rows.device

    def lookup(self, indices: Int[Tensor, "*any"], *, common: bool = False) -> Float[Tensor, "*any dim"]:
        """The rows of these instances as float32, a copy. `common`: every rank asks for the same (saves traffic)."""
        flat = indices.reshape(-1)
        if ranks.world() == 1:
            found = self.rows[flat].float()
        else:
            counts = None if common else ranks.sizes(len(flat))
            asked = flat if counts is None else ranks.gather(flat, counts)
            mine, here = self._here(asked)
            # each row comes from the one rank that has it: the others add exact zeros
            found = ranks.total(torch.where(here[:, None], self.rows[mine].float(), 0.0))
            if counts is not None:
                first = sum(counts[: ranks.rank()])
                found = found[first : first + len(flat)]
        return found.reshape(*indices.shape, self.dim)

    def scores(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " shared"] | Int[Tensor, "batch private"]
    ) -> Float[Tensor, "batch scores"]:
        """Inner products of features with rows (cosines, as both are unit vectors), differentiable in `features`.

        indices: (m,) rows shared by the whole batch, the same on every rank: one matrix product; or (batch, m) rows of
            each picture's own, gathered piece by piece and gathered again in backward, so that no (batch, m, dim) copy
            is kept.
        """
        if indices.dim() == 1:
            with full_precision(features):
                return features.float() @ self.lookup(indices, common=True).T
        return _PrivateScores.apply(features, indices, self)

    def positives(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The inner product of each feature with the row of its own instance, differentiable in `features`."""
        return (features * self.lookup(indices)).sum(1)

    def log_partition(
        self, features: Float[Tensor, "batch dim"], temperature: float, *, without: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """log Z = log of the sum over all rows j of exp(v_j . f / temperature): the denominator of eq 2, exact.

        Computed in blocks of rows: the memory needed does not depend on the number of rows, and there is no
        (batch, instances) matrix. The gradient is (expected row) / temperature, the softmax-weighted mean of the rows,
        which the same pass accumulates.
        without: leave one row out of each picture's sum (its own, for masking).
        """
        with full_precision(features):
            return _LogPartition.apply(features, temperature, without, self)

    @torch.no_grad()
    def update(self, indices: Int[Tensor, " batch"], features: Float[Tensor, "batch dim"]) -> None:
        """Renew the rows of these instances from their features: normalise(momentum * row + (1 - momentum) * feature).

        The batch is the global one: all ranks call this together, each with its part. Where an instance comes more than
        once (two views, or a picture drawn twice) its row is renewed once, from the mean of its features, so the order
        within the batch plays no role. Where that leaves no direction (a zero feature, the row's exact opposite, a NaN)
        the row stays as it was: rows are unit vectors always.
        """
        if ranks.world() > 1:
            counts = ranks.sizes(len(indices))
            indices, features = ranks.gather(indices, counts), ranks.gather(features.float(), counts)
        ordered, order = indices.sort(stable=True)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        # Sums of equal instances, without a data-dependent shape (which would make a GPU wait for the host). Two
        # addends give the same sum in either order, so two views stay deterministic on a GPU too.
        group = fresh.cumsum(0) - 1
        sums = torch.zeros(len(ordered), self.dim, device=self.device).index_add_(0, group, features.float()[order])
        counts_of = torch.zeros(len(ordered), device=self.device).index_add_(0, group, torch.ones_like(group).float())
        means = (sums / counts_of.clamp_min(1)[:, None])[group]
        if ranks.world() > 1:
            mine, here = self._here(ordered)
            ordered, means = mine[here], means[here]
        rows = self.rows[ordered].float()
        renewed = self.momentum * rows + (1 - self.momentum) * means
        lengths = renewed.norm(dim=1, keepdim=True)
        # equal instances write equal values, so it does not matter which of them is written last
        renewed = torch.where(lengths > _EPSILON, renewed / lengths.clamp_min(_EPSILON), rows)
        self.rows[ordered] = renewed.to(self.rows.dtype)
        self.updates += 1

    def to(self, device: torch.device | str) -> MemoryBank:
        """Move the rows to a device, in place."""
        self.rows = self.rows.to(device)
        return self

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the rows themselves."""
        return {
            "instances": self.instances,
            "dim": self.dim,
            "momentum": self.momentum,
            "seed": self.seed,
            "updates": self.updates,
            "dtype": str(self.rows.dtype).removeprefix("torch."),
        }

    def __repr__(self) -> str:
        kind = str(self.rows.dtype).removeprefix("torch.")
        return f"MemoryBank({self.instances}, {self.dim}, momentum={self.momentum}, dtype={kind}, device={self.device})"

    def _here(self, indices: Int[Tensor, "*any"]) -> tuple[Tensor, Tensor]:
        """Positions in `rows` (0 for what another rank holds) and whether this rank holds each."""
        here = (indices >= self.start) & (indices < self.stop)
        return torch.where(here, indices - self.start, 0), here


def full_precision(features: Tensor) -> torch.autocast:
    """Products in float32, also inside a caller's autocast: at a temperature of 0.07 a score rounded to bfloat16 is
    off by up to 0.03."""
    return torch.autocast(features.device.type, enabled=False)


def _random_directions(first: int, last: int, dim: int, seed: int, device: torch.device) -> Float[Tensor, "rows dim"]:
    """Uniform points on the sphere: Gaussian vectors by Box and Muller's transform, scaled to unit length."""
    pairs = (dim + 1) // 2
    indices = torch.arange(first, last, device=device)
    uniform = draws.uniforms(indices, 2 * pairs, seed=seed, step=0, stream=_ROWS_STREAM)
    radius = (-2 * torch.log1p(-uniform[:, :pairs])).sqrt()
    angle = 2 * math.pi * uniform[:, pairs:]
    return normalize(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :dim], dim=1, eps=_EPSILON)


class _LogPartition(torch.autograd.Function):
    """Forward gives log Z and keeps the expected row of each query; backward is one multiplication."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, temperature: float, without: Tensor | None, bank: MemoryBank) -> Tensor:
        counts = ranks.sizes(len(features))
        queries = ranks.gather(features, counts).float() / temperature
        left_out = None if without is None else ranks.gather(without, counts) - bank.start
        reference, sums, weighted = _sums_over_rows(queries, bank.rows, left_out)
        if ranks.world() > 1:
            common = ranks.largest(reference)
            rescale = (reference - common).exp()
            sums, weighted = ranks.total(sums * rescale), ranks.total(weighted * rescale)
            reference = common
        mine = slice(sum(counts[: ranks.rank()]), sum(counts[: ranks.rank() + 1]))
        ctx.save_for_backward((weighted[mine] / sums[mine]) / temperature)
        return (reference[mine] + sums[mine].log()).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradients[0][:, None] * slope, None, None, None


def _sums_over_rows(queries: Tensor, rows: Tensor, left_out: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """For each query q: a reference r (batch, 1), sum_j exp(q . v_j - r) and sum_j exp(q . v_j - r) v_j, over the rows.

    As rows are unit vectors no score exceeds |q|: a fixed reference replaces the running maximum, and saves a pass over
    every block. Where |q| is so large that the smallest terms could underflow, the running maximum is used.
    """
    batch, dim = queries.shape
    reference = queries.norm(dim=1, keepdim=True)
    fixed = bool(2 * reference.max() < _SAFE_SPREAD) if batch else True
    if not fixed:
        reference = torch.full_like(reference, -torch.inf)
    sums, weighted = queries.new_zeros(batch, 1), queries.new_zeros(batch, dim)
    # on a CPU a block of scores should stay in the cache of a core; on a GPU blocks should be few
    block = 2048 if queries.device.type == "cpu" else 65_536
    picture = torch.arange(batch, device=queries.device)
    for first in range(0, len(rows), block):
        part = rows[first : first + block].float()
        scores = torch.addmm(-reference, queries, part.T) if fixed else queries @ part.T
        if left_out is not None:
            column = left_out - first
            inside = (column >= 0) & (column < len(part))
            column = column.clamp(0, len(part) - 1)
            scores[picture, column] = scores[picture, column].masked_fill(inside, -torch.inf)
        if not fixed:
            raised = torch.maximum(reference, scores.amax(1, keepdim=True))
            rescale = (reference - raised).exp().nan_to_num(0.0)  # -inf - -inf: nothing summed yet
            sums, weighted, reference = sums * rescale, weighted * rescale, raised
            scores = (scores - reference).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        scores.exp_()
        sums += scores.sum(1, keepdim=True)
        weighted.addmm_(scores, part)
    return reference, sums, weighted


class _PrivateScores(torch.autograd.Function):
    """Scores with rows of each picture's own; the rows are gathered a few pictures at a time, in both directions."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, indices: Tensor, bank: MemoryBank) -> Tensor:
        counts = ranks.sizes(len(features))
        queries, wanted = ranks.gather(features.float(), counts), ranks.gather(indices, counts)
        result = queries.new_zeros(wanted.shape)
        for piece, rows in _pieces(wanted, bank):
            torch.bmm(rows, queries[piece, :, None], out=result[piece, :, None])
        ctx.bank, ctx.counts = bank, counts
        ctx.save_for_backward(wanted)
        return ranks.total(result)[_own(counts)]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (wanted,) = ctx.saved_tensors
        weights = ranks.gather(gradients[0], ctx.counts)
        result = weights.new_zeros(len(wanted), ctx.bank.dim)
        for piece, rows in _pieces(wanted, ctx.bank):
            torch.bmm(weights[piece, None, :], rows, out=result[piece, None, :])
        return ranks.total(result)[_own(ctx.counts)], None, None


def _own(counts: list[int]) -> slice:
    """Where this rank's part stands in what was gathered."""
    first = sum(counts[: ranks.rank()])
    return slice(first, first + counts[ranks.rank()])


def _pieces(wanted: Tensor, bank: MemoryBank) -> Iterator[tuple[slice, Tensor]]:
    """Slices of pictures with their rows: (pictures, m, dim) float32, 32 MB, zeros for what another rank holds."""
    size = max(1, (1 << 23) // max(1, wanted.shape[1] * bank.dim))
    for first in range(0, len(wanted), size):
        piece = slice(first, min(first + size, len(wanted)))
        mine, here = bank._here(wanted[piece])
        rows = bank.rows[mine].float()
        if ranks.world() > 1:
            rows = torch.where(here[..., None], rows, 0.0)
        yield piece, rows
