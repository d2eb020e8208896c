"""log Z over all rows of a bank, exact, in blocks, with its gradient: what `MemoryBank.log_partition` asks for."""

from __future__ import annotations

import math
from typing import Any

import torch

from instdisc import ranks
from instdisc.bank.rows import Rows, own_part
from instdisc.shapes import Tensor

_LOG2_E = math.log2(math.e)
# 2^-90 is a normal float32, and 2^38 times 2^90 is still finite: scores within it need no reference to be summed
_SAFE_EXPONENT = 90.0
_LOWEST = -1e30  # where the running maximum starts: not -inf, as the difference of two infinities is no number


class LogPartition(torch.autograd.Function):
    """Forward gives log Z and keeps the expected row of each query; backward is one multiplication."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        temperature: float,
        without: Tensor | None,
        products: torch.dtype,
        rows: Rows,
        start: int,
    ) -> Tensor:
        counts = ranks.sizes(len(features))
        queries = ranks.gather(features, counts).float() * (_LOG2_E / temperature)
        left_out = None if without is None else ranks.gather(without, counts) - start
        reference, sums, weighted = _sums_over_rows(queries, rows.values, left_out, products, rows.scales)
        if ranks.world() > 1:
            common = ranks.largest(reference)
            rescale = (reference - common).exp2()
            sums, weighted = ranks.total(sums * rescale), ranks.total(weighted * rescale)
            reference = common
        mine = own_part(counts)
        ctx.save_for_backward((weighted[mine] / sums[mine]) / temperature)
        return ((reference[mine] + sums[mine].log2()) / _LOG2_E).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradients[0][:, None] * slope, None, None, None, None, None


def _sums_over_rows(
    queries: Tensor,
    rows: Tensor,
    left_out: Tensor | None,
    products: torch.dtype = torch.float32,
    scales: Tensor | None = None,
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
    stays = not host and rows.dtype == products and rows.device == device
    near = None if stays else torch.empty(block, dim, dtype=products, device=device)
    partial = None if products == torch.float32 else torch.empty(chunks, batch, dim, dtype=products, device=device)
    reference = torch.full((1, batch), 0.0 if fixed else _LOWEST, device=device)
    sums, weighted = queries.new_zeros(1, batch), queries.new_zeros(chunks, batch, dim)
    picture, nothing = torch.arange(batch, device=device), buffer.new_full((), -torch.inf)
    for first in range(0, len(rows), max(1, block)):
        part = rows[first : first + block]
        count = len(part)
        if near is not None:
            part = near[:count].copy_(part)
            if scales is not None:
                part.mul_(scales[first : first + count, None].to(device))
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
