"""Nearly all neighbours, much sooner: an HNSW graph (usearch, the extra `ann`), and exact ranking of what it finds.

    graph = Graph(vectors)
    graph.recall                                          # of the ten nearest, against exact search
    scores, places = graph.search(queries, 20)
    pairs = graph.similar_pairs(0.95)

The graph holds the vectors in float16; it is built again from them in memory, and neither written nor read. Building
costs more than an exact search for thousands of queries: it pays for all of a collection, or for a server of millions.
Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using HNSW graphs", 2016.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from instdisc.errors import InputError
from instdisc.neighbours import Nearest, require_finite
from instdisc.progress import Bar
from instdisc.search.pairs import Pairs, Vectors, in_order
from instdisc.shapes import Float, Int, Tensor

RECALL = 0.99
_AT_ONCE, _BLOCK = 2_048, 65_536  # queries; vectors of an exact search
_SAMPLE, _NEAREST = 1_000, 10  # of queries and neighbours, to measure the recall by
_LINKS, _BREADTH, _MOST_BREADTH = 16, 128, 1_024


class Graph:
    """vectors: what is searched. recall: of the ten nearest that is wanted.

    The breadth of the search is doubled, from 64 to 1,024, until recall@10 of 1,000 of the vectors among the others is
    as wanted. `recall` is what was measured then: where 1,024 do not reach it, it is lower. Raises InputError where
    usearch is missing.
    """

    def __init__(self, vectors: Vectors, *, recall: float = RECALL, show: bool = False) -> None:
        self._vectors = vectors
        self._device = vectors.read(0, 1).device
        self._graph = _built(vectors, show)
        asked = np.sort(np.random.default_rng(0).choice(vectors.count, min(_SAMPLE, vectors.count), replace=False))
        neighbours = min(_NEAREST, vectors.count - 1)
        self.breadth, self.recall = 64, 1.0
        if neighbours:
            queries = vectors.pick(asked)
            least = self._exact(queries, neighbours, asked)[0][:, -1:]
            while True:
                scores, _ = self.search(queries, neighbours, exclude=asked)
                self.recall = float((scores >= least - 1e-6).float().mean())  # among equals any will do
                if self.recall >= recall or self.breadth >= _MOST_BREADTH:
                    break
                self.breadth *= 2

    def search(
        self, queries: Float[Tensor, "queries dim"], neighbours: int, *, exclude: np.ndarray | None = None
    ) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
        """For each query the places of `neighbours` vectors with a high cosine, and it in float32; best first.

        exclude: one place a query that is never an answer, -1 for none. Where the graph finds too few, exactly.
        Raises InputError where fewer than `neighbours` vectors are to choose from.
        """
        own = np.full(len(queries), -1) if exclude is None else np.asarray(exclude)
        most = self._vectors.count - bool((own >= 0).any())
        if not 1 <= neighbours <= most:
            raise InputError(
                f"{neighbours} neighbours were asked for, and {most:,} pictures are there to choose from: "
                f"{'ask for at least one' if neighbours < 1 else 'ask for fewer'}."
            )
        wanted = min(neighbours + max(neighbours // 2, 16), self._vectors.count)
        self._graph.expansion_search = max(self.breadth, wanted)
        scores = torch.empty(len(queries), neighbours)
        places = torch.empty(len(queries), neighbours, dtype=torch.int64)
        for start in range(0, len(queries), _AT_ONCE):
            part = queries[start : start + _AT_ONCE].cpu().float()
            here = slice(start, start + len(part))
            require_finite(part)
            # At least two rows: one alone would be answered in another form.
            found = self._graph.search(torch.cat([part, part[-1:]]).numpy(), wanted, threads=torch.get_num_threads())
            counts = torch.from_numpy(np.asarray(found.counts)[:-1].astype(np.int64))
            keys = torch.from_numpy(np.asarray(found.keys)[:-1].astype(np.int64))
            none = torch.arange(wanted) >= counts[:, None]
            keys[none] = 0
            rows = self._vectors.pick(keys.reshape(-1).numpy()).cpu().view(len(part), wanted, -1)
            exact = torch.einsum("qd,qkd->qk", part, rows)
            exact[none | (keys == torch.from_numpy(own[here])[:, None])] = -torch.inf
            scores[here], order = exact.topk(neighbours, dim=1)
            places[here] = keys.gather(1, order)
        short = torch.isneginf(scores[:, -1]).nonzero().squeeze(1)
        if len(short):
            scores[short], places[short] = self._exact(queries[short], neighbours, own[short.numpy()])
        return scores, places

    def neighbours_of_all(
        self, neighbours: int, *, show: bool = False
    ) -> tuple[Float[np.ndarray, "count k"], Int[np.ndarray, "count k"]]:
        """As `pairs.neighbours_of_all`."""
        scores = np.empty((self._vectors.count, neighbours), np.float32)
        places = np.empty((self._vectors.count, neighbours), np.int64)
        with Bar(self._vectors.count, "Asking for neighbours", "pictures", enabled=show) as bar:
            for start in range(0, self._vectors.count, _AT_ONCE):
                own = np.arange(start, min(start + _AT_ONCE, self._vectors.count))
                found = self.search(self._vectors.pick(own), neighbours, exclude=own)
                scores[own], places[own] = found[0].numpy(), found[1].numpy()
                bar.advance(len(own))
        return scores, places

    def similar_pairs(
        self, threshold: float, *, against: Vectors | None = None, most: int = 5_000_000, show: bool = False
    ) -> Pairs:
        """As `pairs.similar_pairs`: of each picture as many neighbours are asked for as are above the threshold."""
        if not 0 < threshold <= 1:
            raise InputError(f"The similarity must be above 0 and at most 1, not {threshold:g}.")
        others = self._vectors if against is None else against
        firsts, seconds, values = [], [], []
        kept = 0
        with Bar(others.count, "Asking for neighbours", "pictures", enabled=show) as bar:
            for start in range(0, others.count, _AT_ONCE):
                asked = np.arange(start, min(start + _AT_ONCE, others.count))
                left, limit = asked, self._vectors.count - (against is None)
                neighbours = min(16, limit)
                while len(left) and neighbours:
                    own = left if against is None else None
                    scores, places = (one.numpy() for one in self.search(others.pick(left), neighbours, exclude=own))
                    more = scores[:, -1] >= threshold if neighbours < limit else np.zeros(len(left), bool)
                    query, place = np.nonzero((scores >= threshold) & ~more[:, None])
                    firsts.append(places[query, place])
                    seconds.append(left[query])
                    values.append(scores[query, place])
                    kept += len(query)
                    if kept + int(more.sum()) * neighbours > 2 * most:
                        raise InputError(
                            f"More than {most:,} pairs are at least {threshold:g} similar: ask for a higher similarity."
                        )
                    left, neighbours = left[more], min(4 * neighbours, limit)
                bar.advance(len(asked))
        if not kept:
            return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        first, second, found = (np.concatenate(parts) for parts in (firsts, seconds, values))
        if against is None:  # most pairs were found from both sides
            first, second = np.minimum(first, second), np.maximum(first, second)
            once = np.unique(first * self._vectors.count + second, return_index=True)[1]
            first, second, found = first[once], second[once], found[once]
        return in_order(first, second, found)

    def _exact(self, queries: Tensor, neighbours: int, own: np.ndarray) -> tuple[Tensor, Tensor]:
        nearest = Nearest(queries.to(self._device), neighbours, torch.from_numpy(own), expected=self._vectors.count)
        for start in range(0, self._vectors.count, _BLOCK):
            nearest.add(self._vectors.read(start, min(start + _BLOCK, self._vectors.count)), start)
        return nearest.scores.cpu(), nearest.indices.cpu()


def _built(vectors: Vectors, show: bool) -> Any:
    try:
        from usearch.index import Index as Usearch
    except ImportError:
        raise InputError("Approximate search needs usearch: pip install 'instdisc[ann]'.") from None
    graph = Usearch(
        ndim=vectors.read(0, 1).shape[1], metric="ip", dtype="f16", connectivity=_LINKS, expansion_add=_BREADTH
    )
    with Bar(vectors.count, "Linking neighbours", "pictures", enabled=show) as bar:
        for start in range(0, vectors.count, _AT_ONCE):
            part = vectors.read(start, min(start + _AT_ONCE, vectors.count)).cpu()
            require_finite(part)
            graph.add(np.arange(start, start + len(part)), part.numpy(), threads=torch.get_num_threads())
            bar.advance(len(part))
    return graph
