"""The pictures of a collection and their unit vectors, looked through exactly, by blocks, whatever their number.

    index = Index([bank_rows, added_rows], pictures, labels=codes, label_names=names)
    scores, rows = index.search(queries, 20, among=index.matching(where="2024/*"))

A row is a number that a picture keeps: rows of pictures that were removed stay, and are never an answer. Vectors may be
memory-mapped, of any floating type or rows of a bank; a block of them is widened to float32 when it is looked through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from instdisc import ranks
from instdisc.bank import Rows
from instdisc.errors import InputError
from instdisc.neighbours import Nearest
from instdisc.neighbours.selection import merge
from instdisc.search.approximate import RECALL, Graph, check_neighbours
from instdisc.search.catalogue import Catalogue
from instdisc.search.cells import CELLS, MANY, Cells, stored_cells
from instdisc.search.pairs import Vectors
from instdisc.search.stored import MadeOf, stored_links
from instdisc.shapes import Bool, Float, Int

_BLOCK = 65_536
_LEFT_OUT = 1_000  # pictures; where a filter leaves out more, exact search is the surer way


@dataclass(frozen=True)
class _Linked:
    """graph: over the vectors of these rows, those that were not among `removed` then."""

    rows: Int[np.ndarray, " there"]
    graph: Graph | Cells
    removed: Bool[np.ndarray, " all"]


class Index(Catalogue):
    """A catalogue with vectors: parts (rows, dim) in order, unit rows. The rest as `Catalogue` takes it."""

    def __init__(
        self,
        vectors: Sequence[Float[Tensor, "_ dim"] | Rows],
        pictures: pa.Table,
        *,
        labels: np.ndarray | None = None,
        label_names: Sequence[str] = (),
        removed: np.ndarray | None = None,
        tags: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(pictures, labels=labels, label_names=label_names, removed=removed, tags=tags)
        self.parts = list(vectors)
        count = sum(len(part) for part in self.parts)
        if len(pictures) != count or len({part.shape[1] for part in self.parts}) != 1:
            raise InputError(
                f"{count:,} vectors and {len(pictures):,} pictures do not belong together: "
                "make the index again with --recompute."
            )
        self._graph: _Linked | None = None

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.parts[0].shape[1]

    def vectors(self, rows: np.ndarray) -> Float[Tensor, "rows dim"]:
        """The vectors of some rows, float32 on the CPU."""
        answer = torch.empty(len(rows), self.dim)
        first = 0
        for part in self.parts:
            here = np.flatnonzero((rows >= first) & (rows < first + len(part)))
            answer[torch.from_numpy(here)] = part[torch.from_numpy(rows[here] - first)].float()
            first += len(part)
        return answer

    def whole(self) -> tuple[Int[np.ndarray, " there"], Float[Tensor, "there dim"]]:
        """The rows that are there, and their vectors, to be read alone: those of one file of float32 stay in it."""
        rows, own = np.flatnonzero(~self.removed), self.parts[0]
        if isinstance(own, Tensor) and own.dtype == torch.float32 and len(rows) == len(own) == len(self):
            return rows, own
        return rows, self.vectors(rows)

    def present(self, device: torch.device | str = "cpu") -> tuple[Int[np.ndarray, " there"], Vectors]:
        """The rows that are there, and their vectors, read to this device."""
        rows = np.flatnonzero(~self.removed)
        return rows, Vectors(len(rows), lambda positions: self.vectors(rows[positions]).to(device))

    def search(
        self,
        queries: Float[Tensor, "queries dim"],
        neighbours: int,
        *,
        among: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
        without: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
        """For each query the rows with the highest cosine: scores (float32) and rows, best first, on the CPU.

        among: bool (rows,), which may be answers; all that are there without. exclude: one row a query that is never
        an answer, -1 for none. without: rows that are answers to none.
        Exact in float32; equal scores: the lower row first. Computed where the queries are.
        After `approximate`, unless `among` leaves out more than 1,000 pictures, the graph answers in its place.
        Ranks that hold the same index and queries share its rows; each has the whole answer.
        Raises InputError where fewer than `neighbours` are to choose from.
        """
        if among is None and self._graph is not None and np.array_equal(self.removed, self._graph.removed):
            return self._among_all(queries, neighbours, exclude, without)
        among = ~self.removed if among is None else among & ~self.removed
        among[list(without)] = False
        most = int(among.sum())
        own = np.full(len(queries), -1)
        if exclude is not None:
            asked = np.flatnonzero(exclude >= 0)
            here = asked[among[exclude[asked]]]
            own[here] = (np.cumsum(among) - 1)[exclude[here]]  # its position among the rows that are looked through
            most -= bool(len(here))
        check_neighbours(neighbours, most)
        if self._graph is not None and int((~self.removed & ~among).sum()) <= _LEFT_OUT:
            more, allowed = len(self._graph.rows) - int(among[self._graph.rows].sum()), torch.from_numpy(among)
            return self._by_graph(queries, neighbours, more, exclude, lambda found: ~allowed[found])
        begin, end = ranks.share(len(self))
        mine = among.copy()
        mine[:begin] = mine[end:] = False
        first = int(among[:begin].sum())
        with ranks.fail_together():
            nearest = Nearest(queries, neighbours, torch.from_numpy(own), expected=most)
            for block in self._blocks(mine, _BLOCK):
                nearest.add(block, first)
                first += len(block)
        scores, positions = nearest.scores.cpu(), nearest.indices.cpu()
        if ranks.world() > 1:
            # Ranks hold ascending rows, so that candidates that stand rank after rank keep the rule for ties.
            counts = [len(queries)] * ranks.world()
            scores, positions = (
                torch.cat(ranks.gather(one, counts).split(counts), dim=1) for one in (scores, positions)
            )
            scores, positions = merge(scores, positions, neighbours)
        return scores, torch.from_numpy(np.flatnonzero(among))[positions]

    def approximate(self, recall: float = RECALL, *, stored: tuple[Path, MadeOf] | None = None) -> float:
        """From now on, let an HNSW graph (search/approximate.py) answer; the recall@10 that was measured.

        stored: the file that keeps it (search/stored.py), and what the vectors are made of; without, it is built. Of
        more than two million pictures it takes hours to build: cells (search/cells.py) answer, in a file beside it.
        """
        rows, vectors = self.present()
        graph: Graph | Cells
        if stored is not None and len(rows) > MANY:
            graph = stored_cells(stored[0].with_name(CELLS), vectors, rows=rows, made_of=stored[1])
        elif stored is None:
            graph = Graph(vectors, recall=recall)
        else:
            graph = stored_links(stored[0], vectors, rows=rows, made_of=stored[1], recall=recall)
        self._graph = _Linked(rows, graph, self.removed.copy())
        return graph.recall

    def _among_all(
        self, queries: Tensor, neighbours: int, exclude: np.ndarray | None, without: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """By the graph, with nothing done that grows with the number of pictures."""
        assert self._graph is not None
        gone = {row for row in without if not self.removed[row]}
        check_neighbours(
            neighbours, len(self._graph.rows) - len(gone) - bool(exclude is not None and (exclude >= 0).any())
        )
        hidden = torch.tensor(sorted(gone), dtype=torch.int64)
        return self._by_graph(queries, neighbours, len(gone), exclude, lambda found: torch.isin(found, hidden))

    def _by_graph(
        self,
        queries: Tensor,
        neighbours: int,
        more: int,
        exclude: np.ndarray | None,
        hidden: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """hidden: of rows, which are no answers; `more` of them are there at most, and as many more are asked for."""
        assert self._graph is not None
        rows, graph = self._graph.rows, self._graph.graph
        scores, positions = graph.search(queries, min(neighbours + more + (exclude is not None), len(rows)))
        found = torch.from_numpy(rows[positions.numpy()])
        scores[hidden(found)] = -torch.inf
        if exclude is not None:
            scores[found == torch.from_numpy(exclude)[:, None]] = -torch.inf
        scores, order = torch.sort(scores, dim=1, descending=True, stable=True)
        return scores[:, :neighbours], found.gather(1, order[:, :neighbours])

    def _blocks(self, among: np.ndarray, size: int) -> Iterator[Float[Tensor, "block dim"]]:
        """The vectors that `among` marks, in order, a block at a time."""
        first = 0
        for part in self.parts:
            for start in range(0, len(part), size):
                block = part[start : start + size]
                wanted = among[first + start : first + start + len(block)]
                if wanted.any():
                    yield block if wanted.all() else block[torch.from_numpy(wanted)]
            first += len(part)
