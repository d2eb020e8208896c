"""Nearly all neighbours among many millions, from a file that stays on the disk: an inverted file, ranked exactly.

    cells = stored_cells(file, vectors, rows=rows, made_of=[("sha256 of a file of vectors", 10_000_000)])
    scores, positions = cells.search(queries, 20)
    cells.recall                                          # of the ten nearest, against exact search

Each vector stands in the cell of the mean direction that is nearest to it (spherical k-means), as int8 with a scale. A
query looks through the cells nearest to it; the best by int8 are then scored exactly. It is made in minutes where a
graph (search/approximate.py) takes hours, and opened at once, as nothing of it is followed: it is plain numbers.
Jégou, Douze & Schmid, "Product quantization for nearest neighbor search", 2011, section IV: the inverted file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from instdisc.errors import InputError, is_shortage
from instdisc.files import replacing, save_tensors
from instdisc.neighbours import Nearest, require_finite
from instdisc.progress import Bar
from instdisc.search.approximate import RECALL, own_positions
from instdisc.search.pairs import Vectors
from instdisc.search.stored import MadeOf
from instdisc.shapes import Float, Int, Tensor

CELLS = "cells.safetensors"  # the file's name in RUN/index/
MANY = 2_000_000  # pictures, beyond which a graph takes hours to build on two cores
_FORMAT = "1"
_ROUNDS, _OF_A_CELL = 8, 64  # of k-means; vectors a cell that it sees
_BLOCK, _TILE, _GROUP = 65_536, 1_024, 64  # vectors read at once; compared with all centres at once; centres
_SAMPLE, _NEAREST, _TRIED = 500, 10, 100  # queries and neighbours to choose by; queries that recall is measured by
_AT_ONCE = 16_384  # int8 rows that are widened at once: they stay in the cache
_MORE = 64  # candidates by int8 beyond those asked for
_MOST_BESIDE = 0.02  # of all: rows that came since, which are looked through exactly; beyond, cells are made again
_TENSORS = {
    **dict.fromkeys(("centres", "scales"), torch.float32),
    **dict.fromkeys(("starts", "rows", "asked", "nearest", "homes"), torch.int64),
    "codes": torch.int8,
}
_USED = ("centres", "starts", "rows", "codes", "scales", "asked", "nearest", "homes")


class Cells:
    """What `stored_cells` gives. keys: int64 (count,), ascending: the row of each vector that is there.

    tensors: centres (cells, dim) float32, starts (cells + 1), and in the order of cells rows, codes int8 (held, dim)
    and scales (held); of a sample asked (m), nearest (m, k): rows, and homes (m, k): the cells these stand in.
    """

    def __init__(self, vectors: Vectors, keys: Int[np.ndarray, " count"], tensors: dict[str, Tensor]) -> None:
        self.vectors, self.keys = vectors, keys
        self.centres, self._starts, self._rows, self._codes, self._scales, self._asked, self._nearest, self._homes = (
            tensors[name] for name in _USED
        )
        held = np.zeros(max(int(keys[-1]) + 1, int(self._rows.max()) + 1), bool)
        held[self._rows.numpy()] = True
        self._beside = np.flatnonzero(~held[keys])
        self._probes = self._enough()
        self.recall = self._measured(self._asked, self._nearest)

    def __len__(self) -> int:
        """Cells."""
        return len(self.centres)

    @property
    def beside(self) -> int:
        """Vectors that are looked through exactly, as they are in no cell."""
        return len(self._beside)

    def inside(self, cell: int) -> tuple[Int[Tensor, " there"], Float[Tensor, "there dim"]]:
        """The positions of a cell's vectors, ascending, and these in float32 as int8 has them; no one who is gone."""
        entries = slice(int(self._starts[cell]), int(self._starts[cell + 1]))
        rows = self._rows[entries].numpy()
        position = np.minimum(np.searchsorted(self.keys, rows), len(self.keys) - 1)
        there = torch.from_numpy(self.keys[position] == rows)
        rough = self._codes[entries][there].float() * self._scales[entries][there, None]
        return torch.from_numpy(position)[there], rough

    def ranks(self) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " judged"]]:
        """How many cells are nearer to a vector than that of one of its ten nearest, of those who are there.

        Of one half of the sample, by which the number of cells to look through is chosen, and of the other.
        """
        own = torch.from_numpy(np.isin(self._asked.numpy(), self.keys))
        known = torch.from_numpy(np.isin(self._nearest[own].numpy(), self.keys))
        queries = self.vectors.pick(self._positions(self._asked[own].numpy())).cpu()
        order = (queries @ self.centres.T).argsort(dim=1, descending=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        found = rank.gather(1, self._homes[own])
        split = len(found) // 2 if len(found) > 2 * _TRIED else 0
        return found[split:][known[split:]], found[:split][known[:split]] if split else found[known]

    def search(
        self, queries: Float[Tensor, "queries dim"], neighbours: int, *, exclude: np.ndarray | None = None
    ) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
        """For each query the positions of `neighbours` vectors with a high cosine, and it in float32; best first.

        exclude: one position a query that is never an answer, -1 for none. Where the cells hold too few, exactly.
        Raises InputError where fewer than `neighbours` vectors are to choose from.
        """
        own = own_positions(len(queries), neighbours, exclude, self.vectors.count)
        queries = queries.detach().cpu().float()
        require_finite(queries)
        found = [self._of_one(query, neighbours, one) for query, one in zip(queries, own.tolist(), strict=True)]
        scores, positions = (torch.stack([one[what] for one in found]) for what in (0, 1))
        return scores, positions

    @torch.no_grad()
    def _of_one(self, query: Float[Tensor, " dim"], neighbours: int, own: int) -> tuple[Tensor, Tensor]:
        near = (self.centres @ query).topk(self._probes).indices.sort().values  # in the order of the file
        rough, places = [], []
        for scores, first in self._looked_through(query, near):
            best = scores.topk(min(neighbours + _MORE, len(scores)))
            rough.append(best.values)
            places.append(self._rows[first][best.indices])
        if not rough:  # all of these cells are empty
            return self._exactly(query, neighbours, own)
        rows = torch.cat(places)[torch.cat(rough).topk(min(neighbours + _MORE, sum(map(len, rough)))).indices]
        position = np.sort(np.concatenate([self._positions(rows.numpy()), self._beside]))
        position = position[position != own]
        if len(position) < neighbours:
            return self._exactly(query, neighbours, own)
        exact = self.vectors.pick(position).cpu() @ query
        order = torch.sort(exact, descending=True, stable=True).indices[:neighbours]
        return exact[order], torch.from_numpy(position)[order]

    def _looked_through(
        self, query: Float[Tensor, " dim"], cells: Int[Tensor, " near"]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(rough scores, entries) of some thousand vectors at a time."""
        buffer = torch.empty(_AT_ONCE, len(query))
        filled, entries = 0, list[Tensor]()
        for cell in cells.tolist():
            start, stop = int(self._starts[cell]), int(self._starts[cell + 1])
            while start < stop:
                count = min(stop - start, _AT_ONCE - filled)
                buffer[filled : filled + count].copy_(self._codes[start : start + count])
                entries.append(torch.arange(start, start + count))
                filled, start = filled + count, start + count
                if filled == _AT_ONCE:
                    yield self._rough(buffer, query, entries)
                    filled, entries = 0, []
        if filled:
            yield self._rough(buffer[:filled], query, entries)

    def _rough(self, codes: Tensor, query: Tensor, entries: list[Tensor]) -> tuple[Tensor, Tensor]:
        places = torch.cat(entries)
        return torch.mv(codes, query) * self._scales[places], places

    def _exactly(self, query: Float[Tensor, " dim"], neighbours: int, own: int) -> tuple[Tensor, Tensor]:
        nearest = Nearest(query[None], neighbours, torch.tensor([own]), expected=self.vectors.count)
        for start, block in _blocks(self.vectors):
            nearest.add(block.cpu(), start)
        return nearest.scores[0], nearest.indices[0]

    def _enough(self) -> int:
        """The fewest cells with which the sample's neighbours are found often enough, and a quarter more."""
        needed = self.ranks()[0].float()
        if not len(needed):
            return len(self)
        return min(len(self), math.ceil(1.25 * (float(needed.quantile(RECALL)) + 1)))

    def _measured(self, asked: Int[Tensor, " m"], nearest: Int[Tensor, "m k"]) -> float:
        """The share of some of the sample's nearest that are found, or others as near; who is gone does not count."""
        found = total = 0
        for row, known in zip(asked[:_TRIED].numpy(), nearest[:_TRIED].numpy(), strict=True):
            own, left = self._positions(row[None]), self._positions(known)
            left = left[left != own] if len(own) else left[:0]
            if len(left):
                query = self.vectors.pick(own)
                least = (self.vectors.pick(left) @ query[0]).min().cpu()
                scores, _ = self.search(query, len(left), exclude=own)
                found += int((scores >= least - 1e-6).sum())
                total += len(left)
        return found / total if total else 1.0

    def _positions(self, rows: Int[np.ndarray, " asked"]) -> Int[np.ndarray, " there"]:
        """Where those of the rows stand that are there."""
        position = np.minimum(np.searchsorted(self.keys, rows), len(self.keys) - 1)
        return position[self.keys[position] == rows]


def stored_cells(
    file: Path,
    vectors: Vectors,
    *,
    rows: Int[np.ndarray, " count"],
    made_of: MadeOf,
    beside: float = _MOST_BESIDE,
    show: bool = False,
) -> Cells:
    """The cells of these vectors: mapped from the file where it holds theirs, else made and written there.

    rows: (count,) ascending, the collection's row of each vector. made_of: as in `stored_links`. Rows that are gone are
    passed over, and up to 2 % that came since (`beside`) are looked through exactly; beyond, the cells are made again.
    Where writing the file is refused they stay in memory.
    """
    known = _read(file, made_of, vectors)
    if known is not None:
        cells = Cells(vectors, rows, known)
        if cells.beside <= beside * len(rows):
            return cells
    tensors = made(vectors, rows, show=show)
    with suppress(InputError, OSError):
        with replacing(file) as temporary:
            save_tensors(tensors, temporary, {"format": _FORMAT, "made_of": json.dumps([*map(list, made_of)])})
        del tensors["codes"]
        tensors = _read(file, made_of, vectors) or made(vectors, rows, show=show)
    return Cells(vectors, rows, tensors)


def _read(file: Path, made_of: MadeOf, vectors: Vectors) -> dict[str, Tensor] | None:
    """What a file holds, mapped; None where there is none, or none of these vectors or that fits together."""
    try:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            found = {name: opened.get_tensor(name) for name in _TENSORS}
        before = json.loads(said["made_of"])
        if said["format"] != _FORMAT or before != [*map(list, made_of)][: len(before)]:
            return None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        if is_shortage(error):
            raise
        return None
    starts, homes = found["starts"], found["homes"]
    held, dim = len(found["codes"]), found["codes"].shape[-1]
    fits = (
        all(found[name].dtype == kind for name, kind in _TENSORS.items())
        and dim == vectors.read(0, 1).shape[1] == found["centres"].shape[1]
        and len(found["rows"]) == len(found["scales"]) == held > 0
        and len(starts) == len(found["centres"]) + 1
        and int(starts[0]) == 0
        and int(starts[-1]) == held
        and bool((starts.diff() >= 0).all())
        and int(found["rows"].min()) >= 0
        and int(found["rows"].max()) < sum(count for _, count in before)
        and int(homes.min()) >= 0
        and int(homes.max()) < len(found["centres"])
        and len(found["asked"]) == len(found["nearest"]) == len(homes)
    )
    return found if fits else None


@torch.no_grad()
def made(vectors: Vectors, rows: Int[np.ndarray, " count"], *, show: bool = False) -> dict[str, Tensor]:
    """Cells of these vectors, as `Cells` takes them; memory: a byte a number, twice. Raises InputError for NaN."""
    random, count = np.random.default_rng(0), vectors.count
    cells = max(1, 2 ** round(math.log2(math.sqrt(count))))
    asked = np.sort(random.choice(count, min(_SAMPLE, count), replace=False))
    nearest = Nearest(
        vectors.pick(asked).cpu(), max(1, min(_NEAREST, count - 1)), torch.from_numpy(asked), expected=count
    )
    codes = torch.empty(count, vectors.read(0, 1).shape[1], dtype=torch.int8)
    scales, homes = torch.empty(count), torch.empty(count, dtype=torch.int64)
    with Bar(count, "Sorting into cells", "pictures", enabled=show) as bar:
        centres = _centres(vectors, cells, random)
        for start, block in _blocks(vectors):
            block = block.cpu()
            here = slice(start, start + len(block))
            nearest.add(block, start)
            homes[here] = _nearest_centre(block, centres)
            scales[here] = block.abs().amax(1).clamp_min(1e-12) / 127
            codes[here] = (block / scales[here, None]).round().to(torch.int8)
            bar.advance(len(block))
    order = homes.argsort(stable=True)
    own = torch.from_numpy(rows)
    return {
        "centres": centres,
        "starts": torch.cat([torch.zeros(1, dtype=torch.int64), homes.bincount(minlength=cells).cumsum(0)]),
        "rows": own[order],
        "codes": codes[order],
        "scales": scales[order],
        "asked": own[torch.from_numpy(asked)],
        "nearest": own[nearest.indices],
        "homes": homes[nearest.indices],
    }


def _centres(vectors: Vectors, cells: int, random: np.random.Generator) -> Float[Tensor, "cells dim"]:
    """Mean directions of a sample: spherical k-means. A cell that is empty begins again at some vector."""
    seen = np.sort(random.choice(vectors.count, min(vectors.count, _OF_A_CELL * cells), replace=False))
    sample = torch.cat([vectors.pick(part).cpu() for part in np.array_split(seen, -(-len(seen) // _BLOCK))])
    centres = sample[torch.from_numpy(random.choice(len(sample), cells, replace=False))]
    for _ in range(_ROUNDS):
        homes = _nearest_centre(sample, centres)
        sums = torch.zeros_like(centres).index_add_(0, homes, sample)
        empty = (homes.bincount(minlength=cells) == 0).nonzero()[:, 0]
        sums[empty] = sample[torch.from_numpy(random.choice(len(sample), len(empty)))]
        centres = torch.nn.functional.normalize(sums, dim=1)
    return centres


def _nearest_centre(vectors: Float[Tensor, "some dim"], centres: Float[Tensor, "cells dim"]) -> Int[Tensor, " some"]:
    """The number of the nearest centre. Of groups of scores first the maxima: torch is slow at argmax."""
    homes = torch.empty(len(vectors), dtype=torch.int64)
    scores = torch.empty(_TILE, len(centres))  # one for all tiles: fresh memory would cost as much as the product
    group = math.gcd(len(centres), _GROUP)
    for part, own in zip(vectors.split(_TILE), homes.split(_TILE), strict=True):
        groups = torch.mm(part, centres.T, out=scores[: len(part)]).unflatten(1, (-1, group))
        best = groups.amax(2).argmax(1)
        within = groups[torch.arange(len(part)), best].argmax(1)
        torch.add(within, best, alpha=group, out=own)
    return homes


def _blocks(vectors: Vectors) -> Iterator[tuple[int, Float[Tensor, "block dim"]]]:
    for start in range(0, vectors.count, _BLOCK):
        yield start, vectors.read(start, min(start + _BLOCK, vectors.count))
