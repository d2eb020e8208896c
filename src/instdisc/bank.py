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
from torch.nn.functional import embedding_bag, normalize

from instdisc import draws, ranks
from instdisc.errors import InputError
from instdisc.shapes import Float, Int, Tensor

_ROWS_STREAM = 1  # of draws: the random rows at the start
_EPSILON = 1e-12
_LOG2_E = math.log2(math.e)
# 2^-90 is a normal float32, and 2^38 times 2^90 is still finite: scores within it need no reference to be summed
_SAFE_EXPONENT = 90.0
_LOWEST = -1e30  # where the running maximum starts: not -inf, as the difference of two infinities is no number


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
        at_once = 4_096 if self.device.type == "cpu" else 65_536  # on a CPU the draws of a part stay in its cache
        for first in range(self.start, self.stop, at_once):
            last = min(first + at_once, self.stop)
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
        self,
        features: Float[Tensor, "batch dim"],
        temperature: float,
        *,
        without: Int[Tensor, " batch"] | None = None,
        products: torch.dtype = torch.float32,
    ) -> Float[Tensor, " batch"]:
        """log Z = log of the sum over all rows j of exp(v_j . f / temperature): the denominator of eq 2, exact.

        Computed in blocks of rows: the memory needed does not depend on the number of rows, and there is no
        (batch, instances) matrix. The gradient is (expected row) / temperature, the softmax-weighted mean of the rows,
        which the same pass accumulates.
        without: leave one row out of each picture's sum (its own, for masking).
        products: float32, or bfloat16 in two thirds of the time where the CPU has such products, with sums in
            float32. What that costs grows as few rows take most of the weight, for a score s is then off by up to
            |s| / 500: at temperature 0.07 the gradient of the softmax is off by 2e-4 of its length over a random bank,
            1e-3 to 1e-2 over a trained one, and 3e-2 where a picture's own row has 0.9 of the weight (in float32: 5e-8,
            1e-6 and 4e-6), and log Z by 1e-3, 2e-2 and 5e-2. So it is never chosen but by this argument: not by
            autocast.
        """
        if products not in (torch.float32, torch.bfloat16):
            raise InputError(f"The products over a bank are in float32 or bfloat16, not {products}.")
        with full_precision(features):
            return _LogPartition.apply(features, temperature, without, products, self)

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
    def forward(
        ctx: Any,
        features: Tensor,
        temperature: float,
        without: Tensor | None,
        products: torch.dtype,
        bank: MemoryBank,
    ) -> Tensor:
        counts = ranks.sizes(len(features))
        queries = ranks.gather(features, counts).float() * (_LOG2_E / temperature)
        left_out = None if without is None else ranks.gather(without, counts) - bank.start
        reference, sums, weighted = _sums_over_rows(queries, bank.rows, left_out, products)
        if ranks.world() > 1:
            common = ranks.largest(reference)
            rescale = (reference - common).exp2()
            sums, weighted = ranks.total(sums * rescale), ranks.total(weighted * rescale)
            reference = common
        mine = _own(counts)
        ctx.save_for_backward((weighted[mine] / sums[mine]) / temperature)
        return ((reference[mine] + sums[mine].log2()) / _LOG2_E).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradients[0][:, None] * slope, None, None, None, None


def _sums_over_rows(
    queries: Tensor, rows: Tensor, left_out: Tensor | None, products: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """For each query q: a reference r (batch, 1), sum_j 2^(q . v_j - r) and sum_j 2^(q . v_j - r) v_j, over the rows.

    It is attention over the rows without the division, in one pass and in buffers that all blocks share. Powers of two,
    because torch takes them on a CPU in 0.4 of the time of exp. As rows are unit vectors no score exceeds |q|: while
    that is small no power leaves float32's range, and r is 0, which saves two passes over every block. Beyond it r is
    the running maximum, and always on a GPU, which would have to wait for the host to look at the lengths.
    """
    (batch, dim), device = queries.shape, queries.device
    host = device.type == "cpu"
    fixed = host and bool((queries.norm(dim=1) < _SAFE_EXPONENT).all())
    # On a CPU the rows of a block stand in one chunk for each thread: each then finds its own scores in its own cache
    # again, where a single product over the block would split the second time along another axis. They are copied
    # there first, which streams; a product that fetches them from memory itself waits longer (3 to 6 % of the whole).
    chunks = torch.get_num_threads() if host else 1
    size = _rows_at_once(max(batch, dim), chunks, host)
    columns = queries.T.to(products).contiguous()
    block = min(chunks * size, len(rows))
    buffer = torch.empty(block + 1, batch, dtype=products, device=device)  # the last row: where nothing is left out
    near = torch.empty(block, dim, dtype=products, device=device) if host or rows.dtype != products else None
    partial = None if products == torch.float32 else torch.empty(chunks, batch, dim, dtype=products, device=device)
    reference = torch.full((1, batch), 0.0 if fixed else _LOWEST, device=device)
    sums, weighted = queries.new_zeros(1, batch), queries.new_zeros(chunks, batch, dim)
    picture, nothing = torch.arange(batch, device=device), buffer.new_full((), -torch.inf)
    for first in range(0, len(rows), max(1, block)):
        part = rows[first : first + block]
        count = len(part)
        if near is not None:
            part = near[:count].copy_(part)
        chunk = chunks if count == chunks * size else 1
        keys = part.view(chunk, count // chunk, dim)
        scores = buffer[:count].view(chunk, count // chunk, batch)
        torch.bmm(keys, columns.expand(chunk, dim, batch), out=scores)
        if left_out is not None:
            place = left_out - first
            buffer[torch.where((place < 0) | (place >= count), count, place), picture] = nothing
        if not fixed:
            raised = torch.maximum(reference, scores.amax((0, 1)))
            rescale = (reference - raised).exp2()
            sums, weighted, reference = sums * rescale, weighted * rescale.T, raised
            scores.sub_(reference)
        torch.exp2(scores, out=scores)
        sums += scores.sum((0, 1), dtype=torch.float32)
        if partial is None:
            weighted[:chunk].baddbmm_(scores.transpose(1, 2), keys)
        else:
            weighted[:chunk] += torch.bmm(scores.transpose(1, 2), keys, out=partial[:chunk])
    return reference.T, sums.T, weighted.sum(0)


def _rows_at_once(wide: int, chunks: int, host: bool) -> int:
    """How many rows a chunk has where a row brings `wide` numbers: 1 MB a thread on a CPU; on a GPU, few blocks."""
    if not host:
        return max(2048, min(65_536, (1 << 24) // wide))
    return max(256, min(2048, (1 << 18) // wide, 16_384 // chunks))


class _PrivateScores(torch.autograd.Function):
    """Scores with rows of each picture's own; the rows are gathered a few pictures at a time, in both directions."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, indices: Tensor, bank: MemoryBank) -> Tensor:
        counts = ranks.sizes(len(features))
        queries, wanted = ranks.gather(features.float(), counts), ranks.gather(indices, counts)
        result = queries.new_zeros(wanted.shape)
        with full_precision(features):
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
        bank: MemoryBank = ctx.bank
        if bank.device.type == "cpu" and bank.rows.dtype == torch.float32 and wanted.numel() and len(bank.rows):
            # sums weighted rows where they stand: a fifth of the time of gathering them first
            mine, here = bank._here(wanted)
            result = embedding_bag(mine, bank.rows, per_sample_weights=weights * here, mode="sum")
        else:
            result = weights.new_zeros(len(wanted), bank.dim)
            with full_precision(weights):
                for piece, rows in _pieces(wanted, bank):
                    torch.bmm(weights[piece, None, :], rows, out=result[piece, None, :])
        return ranks.total(result)[_own(ctx.counts)], None, None


def _own(counts: list[int]) -> slice:
    """Where this rank's part stands in what was gathered."""
    first = sum(counts[: ranks.rank()])
    return slice(first, first + counts[ranks.rank()])


def _pieces(wanted: Tensor, bank: MemoryBank) -> Iterator[tuple[slice, Tensor]]:
    """Slices of pictures with their rows: (pictures, m, dim) float32, zeros for what another rank holds.

    2 MB on a CPU, which stay in its cache until they are used (twice as fast as 16 MB); 32 MB on a GPU. At least one
    picture's. The rows of one slice are overwritten by the next.
    """
    numbers = 1 << (19 if bank.device.type == "cpu" else 23)
    size = max(1, numbers // max(1, wanted.shape[1] * bank.dim))
    flat = torch.empty(min(size, len(wanted)) * wanted.shape[1], bank.dim, dtype=bank.rows.dtype, device=bank.device)
    for first in range(0, len(wanted), size):
        piece = slice(first, min(first + size, len(wanted)))
        mine, here = bank._here(wanted[piece])
        rows = flat[: mine.numel()]
        torch.index_select(bank.rows, 0, mine.reshape(-1), out=rows)
        rows = rows.view(*mine.shape, bank.dim).float()
        if ranks.world() > 1:
            rows = torch.where(here[..., None], rows, 0.0)
        yield piece, rows
