"""log Z over rows of a bank, exact, in blocks, with its gradient: what `MemoryBank.log_partition` asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from instdisc import ranks
from instdisc.bank.rows import Rows, own_part
from instdisc.shapes import Tensor

_LOG2_E = math.log2(math.e)
# 2^-90 is a normal float32, and 2^38 times 2^90 is still finite: scores within it need no reference to be summed
_SAFE_EXPONENT = 90.0
_LOWEST = -1e30  # where the running maximum starts: not -inf, as the difference of two infinities is no number
# hide(scores, first) sets scores of a block to -inf; its rows are those from `first` on, and one more for no use
Hide = Callable[[Tensor, int], None]


class Known(torch.autograd.Function):
    """log Z with its gradient in the features, which were found together: backward is one multiplication."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, log_z: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return log_z.clone()  # an answer may be given to several

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradients[0][:, None] * slope, None, None


@torch.no_grad()
def sums_over_all(
    features: Tensor, rows: Rows, start: int, temperature: float, without: Tensor | None, products: torch.dtype
) -> tuple[Tensor, Tensor]:
    """log Z (batch,) over the rows of all ranks, and its gradient (batch, dim), for this rank's part of the batch.

    rows: this rank's, those of the instances from `start` on.
    """
    counts = ranks.sizes(len(features))
    queries = ranks.gather(features, counts).float() * (_LOG2_E / temperature)
    hide = None
    if without is not None:
        positions = ranks.gather(without, counts) - start
        hide = hide_pairs(positions, torch.arange(len(positions), device=positions.device), products)
    reference, sums, weighted = _sums_over_rows(queries, rows.values, hide, products, rows.scales)
    if ranks.world() > 1:
        common = ranks.largest(reference)
        rescale = (reference - common).exp2()
        sums, weighted = ranks.total(sums * rescale), ranks.total(weighted * rescale)
        reference = common
    mine = own_part(counts)
    return _log_and_slope(reference[mine], sums[mine], weighted[mine], temperature)


class SumsOverSome:
    """The same over rows that every rank has at hand.

    The latest answer is kept for who asks for the same: the terms of one loss do. It is compared by value, so it can't
    be out of date; that takes a hundredth of the sum. Not on a GPU, where the host would have to wait.
    """

    def __init__(self) -> None:
        self._latest: tuple[list[Tensor], tuple[Any, ...], tuple[Tensor, Tensor]] | None = None

    @torch.no_grad()
    def __call__(
        self,
        features: Tensor,
        rows: Tensor,
        drawn: Tensor,
        temperature: float,
        without: Tensor | None,
        products: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """(batch,) and (batch, dim); rows (m, dim) are those of the instances `drawn` (m,)."""
        host, latest = features.device.type == "cpu", self._latest
        given = [features, rows, drawn] if without is None else [features, rows, drawn, without]
        how = (temperature, products, features.dtype, len(given))
        if host and latest is not None and how == latest[1] and all(map(torch.equal, given, latest[0])):
            return latest[2]
        hide = None if without is None else hide_equal(drawn, without, products)
        queries = features.float() * (_LOG2_E / temperature)
        answer = _log_and_slope(*_sums_over_rows(queries, rows, hide, products), temperature)
        if host:
            self._latest = [tensor.detach().clone() for tensor in given], how, answer
        return answer


def hide_pairs(positions: Tensor, pictures: Tensor, dtype: torch.dtype) -> Hide:
    """Leave row positions[k] out of the sum of picture pictures[k], if it is one of the rows; scores are in `dtype`."""
    nothing = torch.full((), -torch.inf, dtype=dtype, device=positions.device)

    def hide(scores: Tensor, first: int) -> None:
        count, position = len(scores) - 1, positions - first
        scores[torch.where((position < 0) | (position >= count), count, position), pictures] = nothing

    return hide


def hide_equal(drawn: Tensor, own: Tensor, dtype: torch.dtype) -> Hide:
    """Leave out where the instances of the rows, `drawn`, are those of the pictures, `own`; either may repeat."""
    if drawn.device.type != "cpu":
        return hide_compared(drawn, own)
    hit = torch.isin(drawn, own).nonzero()[:, 0]  # few are, which saves to compare all with all
    which, pictures = torch.eq(drawn[hit, None], own).nonzero(as_tuple=True)
    return hide_pairs(hit[which], pictures, dtype)


def hide_compared(drawn: Tensor, own: Tensor) -> Hide:
    """The same for a GPU, which would have to wait for the host to count the pairs."""

    def hide(scores: Tensor, first: int) -> None:
        count = len(scores) - 1
        scores[:count].masked_fill_(torch.eq(drawn[first : first + count, None], own), -torch.inf)

    return hide


def _log_and_slope(reference: Tensor, sums: Tensor, weighted: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log Z (batch,) and its gradient (batch, dim); -inf and zeros where no row is left."""
    expected = weighted / sums.clamp_min(torch.finfo(sums.dtype).tiny)
    return ((reference + sums.log2()) / _LOG2_E).squeeze(1), expected / temperature


def _sums_over_rows(
    queries: Tensor,
    rows: Tensor,
    hide: Hide | None,
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
        if hide is not None:
            hide(buffer[: count + 1], first)
        if not fixed:
            raised = torch.maximum(reference, scores.amax((0, 1)))
            rescale = (reference - raised).exp2()
            sums, weighted, reference = sums * rescale, weighted * rescale.T, raised
            scores.sub_(reference)
        torch.exp2(scores, out=scores)
        sums += _sum_of(buffer[:count], host)
        if partial is None:
            weighted[:chunk].baddbmm_(scores.transpose(1, 2), keys)
        else:
            weighted[:chunk] += torch.bmm(scores.transpose(1, 2), keys, out=partial[:chunk])
    return reference.T, sums.T, weighted.sum(0)


def _sum_of(powers: Tensor, host: bool) -> Tensor:
    """(batch,) float32, over all rows of powers (rows, batch).

    On a CPU first by 64 rows: torch would convert all of bfloat16 beforehand (three times as slow), and divides the
    work over threads badly (float32, twice). Inside of a sum it counts in float32 in any case, so that what bfloat16
    rounds is one number in 64, by less than each of these was rounded before.
    """
    if host and len(powers) % 64 == 0:
        powers = powers.view(-1, 64, powers.shape[1]).sum(1)
    return powers.sum(0, dtype=torch.float32)


def _rows_at_once(wide: int, chunks: int, host: bool) -> int:
    """How many rows a chunk has where a row brings `wide` numbers: 1 MB a thread on a CPU; on a GPU, few blocks."""
    if not host:
        return max(2048, min(65_536, (1 << 24) // wide))
    return max(256, min(2048, (1 << 18) // wide, 16_384 // chunks))
