"""Nearly all neighbours, much sooner: an HNSW graph (usearch, the extra `ann`), and exact ranking of what it finds.

    graph = Graph(vectors)
    graph.recall                                          # of the ten nearest, against exact search
    scores, positions = graph.search(queries, 20)
    pairs = graph.similar_pairs(0.95)

The graph holds the vectors in float16. Building it costs more than an exact search for thousands of queries: it pays
for all of a collection, or for a server of millions, where search/stored.py keeps it on disk.
Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using HNSW graphs", 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from instdisc.errors import InputError
from instdisc.neighbours import Nearest, require_finite
from instdisc.progress import Bar
from instdisc.search.pairs import MOST_PAIRS, Pairs, Vectors, check_threshold, in_order
from instdisc.shapes import Float, Int, Tensor

RECALL = 0.99
_AT_ONCE, _BLOCK = 2_048, 65_536  # queries; vectors of an exact search
_SAMPLE, _NEAREST = 1_000, 10  # of queries and neighbours, to measure the recall by
_MOST_BREADTH = 1_024
_MOST_MORE = 64  # asked for where vectors are gone; who still finds too few is answered exactly
OPTIONS = {"metric": "ip", "dtype": "f16", "connectivity": 16, "expansion_add": 128}


def check_neighbours(neighbours: int, most: int) -> None:
    """Raises InputError where there are fewer than that among `most` pictures, or none is asked for."""
    if not 1 <= neighbours <= most:
        raise InputError(
            f"{neighbours} neighbours were asked for, and {most:,} pictures are there to choose from: "
            f"{'ask for at least one' if neighbours < 1 else 'ask for fewer'}."
        )


def own_positions(queries: int, neighbours: int, exclude: np.ndarray | None, count: int) -> Int[np.ndarray, " queries"]:
    """`exclude`, or -1 for each query. Raises InputError where too few of `count` vectors are left to choose from."""
    own = np.full(queries, -1) if exclude is None else np.asarray(exclude)
    check_neighbours(neighbours, count - bool((own >= 0).any()))
    return own


@dataclass(frozen=True)
class Sample:
    """What exact search says of some vectors, to measure a graph by: whose own (m,), and their nearest (m, k), by key.

    scores: (m, k), cosines, best first.
    """

    own: Int[np.ndarray, " m"]
    nearest: Int[np.ndarray, "m k"]
    scores: Float[np.ndarray, "m k"]


class Graph:
    """vectors: what is searched. recall: of the ten nearest that is wanted.

    The breadth of the search is doubled, from 64 to 1,024, until recall@10 of 1,000 of the vectors among the others is
    as wanted. `recall` is what was measured then: where 1,024 do not reach it, it is lower. Raises InputError where
    usearch is missing.

    For a graph that was stored: links, usearch's own object, whose keys need not be places; keys: (count,), ascending,
    the key of each place; lost: how many keys it has beyond these; sample: what it is measured by.
    """

    def __init__(
        self,
        vectors: Vectors,
        *,
        recall: float = RECALL,
        show: bool = False,
        links: Any = None,
        keys: Int[np.ndarray, " count"] | None = None,
        lost: int = 0,
        sample: Sample | None = None,
    ) -> None:
        self._vectors, self.lost = vectors, lost
        self._device = vectors.read(0, 1).device
        self.keys = np.arange(vectors.count) if keys is None else keys
        self.links = linked(vectors, self.keys, show=show) if links is None else links
        self.sample = self._sampled() if sample is None else sample
        self.breadth = 64
        while (measured := self._measured()) < recall and self.breadth < _MOST_BREADTH:
            self.breadth *= 2
        self.recall = measured

    def _sampled(self) -> Sample:
        """Some of the vectors with their nearest, exactly."""
        neighbours = min(_NEAREST, self._vectors.count - 1)
        asked = np.sort(np.random.default_rng(0).choice(self._vectors.count, min(_SAMPLE, self._vectors.count), False))
        if not neighbours:
            return Sample(self.keys[asked], np.zeros((len(asked), 0), np.int64), np.zeros((len(asked), 0), np.float32))
        scores, places = self._exact(self._vectors.pick(asked), neighbours, asked)
        return Sample(self.keys[asked], self.keys[places.numpy()], scores.numpy())

    def _measured(self) -> float:
        """The share of the sample's nearest that the graph finds; among equals any will do."""
        if not self.sample.scores.size:
            return 1.0
        asked = np.searchsorted(self.keys, self.sample.own)
        scores, _ = self.search(self._vectors.pick(asked), self.sample.scores.shape[1], exclude=asked)
        return float((scores.numpy() >= self.sample.scores[:, -1:] - 1e-6).mean())

    def search(
        self, queries: Float[Tensor, "queries dim"], neighbours: int, *, exclude: np.ndarray | None = None
    ) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
        """For each query the positions of `neighbours` vectors with a high cosine, and it in float32; best first.

        exclude: one position a query that is never an answer, -1 for none. Where the graph finds too few, exactly.
        Raises InputError where fewer than `neighbours` vectors are to choose from.
        """
        own = own_positions(len(queries), neighbours, exclude, self._vectors.count)
        wanted = min(neighbours + max(neighbours // 2, 16) + min(self.lost, _MOST_MORE), len(self.links))
        self.links.expansion_search = max(self.breadth, wanted)
        scores = torch.empty(len(queries), neighbours)
        positions = torch.empty(len(queries), neighbours, dtype=torch.int64)
        for start in range(0, len(queries), _AT_ONCE):
            part = queries[start : start + _AT_ONCE].cpu().float()
            here = slice(start, start + len(part))
            require_finite(part)
            # At least two rows: one alone would be answered in another form.
            found = self.links.search(torch.cat([part, part[-1:]]).numpy(), wanted, threads=torch.get_num_threads())
            counts = torch.from_numpy(np.asarray(found.counts)[:-1].astype(np.int64))
            keys = np.asarray(found.keys)[:-1].astype(np.int64)
            near = np.minimum(np.searchsorted(self.keys, keys), self._vectors.count - 1)
            none = (torch.arange(wanted) >= counts[:, None]) | torch.from_numpy(self.keys[near] != keys)
            rows = self._vectors.pick(near.reshape(-1)).cpu().view(len(part), wanted, -1)
            exact = torch.einsum("qd,qkd->qk", part, rows)
            exact[none | torch.from_numpy(near == own[here, None])] = -torch.inf
            scores[here], order = exact.topk(neighbours, dim=1)
            positions[here] = torch.from_numpy(near).gather(1, order)
        short = torch.isneginf(scores[:, -1]).nonzero().squeeze(1)
        if len(short):
            scores[short], positions[short] = self._exact(queries[short], neighbours, own[short.numpy()])
        return scores, positions

    def neighbours_of_all(
        self, neighbours: int, *, show: bool = False
    ) -> tuple[Float[np.ndarray, "count k"], Int[np.ndarray, "count k"]]:
        """As `pairs.neighbours_of_all`."""
        scores = np.empty((self._vectors.count, neighbours), np.float32)
        positions = np.empty((self._vectors.count, neighbours), np.int64)
        with Bar(self._vectors.count, "Asking for neighbours", "pictures", enabled=show) as bar:
            for start in range(0, self._vectors.count, _AT_ONCE):
                own = np.arange(start, min(start + _AT_ONCE, self._vectors.count))
                found = self.search(self._vectors.pick(own), neighbours, exclude=own)
                scores[own], positions[own] = found[0].numpy(), found[1].numpy()
                bar.advance(len(own))
        return scores, positions

    def similar_pairs(
        self, threshold: float, *, against: Vectors | None = None, most: int = MOST_PAIRS, show: bool = False
    ) -> Pairs:
        """As `pairs.similar_pairs`: of each picture as many neighbours are asked for as are above the threshold."""
        check_threshold(threshold)
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
                    scores, positions = (one.numpy() for one in self.search(others.pick(left), neighbours, exclude=own))
                    more = scores[:, -1] >= threshold if neighbours < limit else np.zeros(len(left), bool)
                    query, position = np.nonzero((scores >= threshold) & ~more[:, None])
                    firsts.append(positions[query, position])
                    seconds.append(left[query])
                    values.append(scores[query, position])
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


def linked(vectors: Vectors, keys: Int[np.ndarray, " count"], *, onto: Any = None, show: bool = False) -> Any:
    """usearch's graph over the vectors, by these keys; onto: a graph in memory that they are added to.

    Raises InputError where usearch is missing, or a vector is not finite.
    """
    graph = usearch().index.Index(ndim=vectors.read(0, 1).shape[1], **OPTIONS) if onto is None else onto
    with Bar(vectors.count, "Linking neighbours", "pictures", enabled=show) as bar:
        for start in range(0, vectors.count, _AT_ONCE):
            part = vectors.read(start, min(start + _AT_ONCE, vectors.count)).cpu()
            require_finite(part)
            graph.add(keys[start : start + len(part)], part.numpy(), threads=torch.get_num_threads())
            bar.advance(len(part))
    return graph


def usearch() -> Any:
    """The library; InputError where it is missing."""
    try:
        import usearch.index
    except ImportError:
        raise InputError("Approximate search needs usearch: pip install 'instdisc[ann]'.") from None
    return usearch
