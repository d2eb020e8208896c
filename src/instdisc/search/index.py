"""The pictures of a collection and their unit vectors, looked through exactly, by blocks, whatever their number.

    index = Index([bank_rows, added_rows], pictures, labels=codes, label_names=names)
    scores, rows = index.search(queries, 20, among=index.matching(where="2024/*"))

A row is a number that a picture keeps: rows of pictures that were removed stay, and are never an answer. Vectors may be
memory-mapped, of any floating type or rows of a bank; a block of them is widened to float32 when it is looked through.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from instdisc import ranks
from instdisc.bank import Rows
from instdisc.errors import InputError
from instdisc.neighbours import Nearest, merge
from instdisc.search.approximate import RECALL, Graph
from instdisc.search.pairs import Vectors
from instdisc.shapes import Bool, Float, Int

_BLOCK = 16_384
_FEW = 8  # queries: their scores are small, so that a block can be four times as large
_LEFT_OUT = 1_000  # pictures; where a filter leaves out more, exact search is the surer way


@dataclass(frozen=True)
class Entry:
    """What is known of a picture. row: its number; id, path: as its source calls it; label: "" = none."""

    row: int
    id: str
    path: str
    label: str


class Index:
    """vectors: parts (rows, dim) in order, unit rows. pictures: columns id and location, one line a row.

    labels: int64 (rows,), the place in `label_names`, -1 for none. removed: bool (rows,). tags: name -> its rows.
    """

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
        self.parts, self.pictures = list(vectors), pictures
        count = sum(len(part) for part in self.parts)
        if len(pictures) != count or len({part.shape[1] for part in self.parts}) != 1:
            raise InputError(
                f"{count:,} vectors and {len(pictures):,} pictures do not belong together: "
                "make the index again with --recompute."
            )
        self.labels = np.full(count, -1) if labels is None else labels
        self.label_names = list(label_names)
        self.removed = np.zeros(count, dtype=bool) if removed is None else removed
        self.tags = dict(tags or {})
        self._graph: tuple[np.ndarray, Graph] | None = None

    def __len__(self) -> int:
        """Rows, those of removed pictures included."""
        return len(self.pictures)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.parts[0].shape[1]

    def entries(self, rows: Sequence[int] | np.ndarray) -> list[Entry]:
        """What is known of some rows, in their order."""
        chosen = self.pictures.take(pa.array(np.asarray(rows, dtype=np.int64)))
        names = [*self.label_names, ""]  # the last for -1
        return [
            Entry(int(row), os.fsdecode(identifier), os.fsdecode(location), names[self.labels[row]])
            for row, identifier, location in zip(
                rows, chosen["id"].to_pylist(), chosen["location"].to_pylist(), strict=True
            )
        ]

    def rows_of(self, locations: Sequence[str]) -> Int[np.ndarray, " asked"]:
        """The row of the picture at each path or URL, the last where there are several; -1 where none is left."""
        places = {location: place for place, location in enumerate(dict.fromkeys(locations))}
        wanted = pa.array([os.fsencode(one) for one in places], pa.large_binary())
        found = pc.index_in(pc.cast(self.pictures["location"], pa.large_binary()), value_set=wanted)
        rows = np.flatnonzero(pc.is_valid(found).to_numpy(zero_copy_only=False) & ~self.removed)
        last = np.full(len(places), -1)
        last[found.take(pa.array(rows)).to_numpy().astype(np.int64)] = rows  # ascending: a later row wins
        return last[[places[location] for location in locations]]

    def matching(
        self, *, where: str | None = None, label: str | None = None, tag: str | None = None
    ) -> Bool[np.ndarray, " rows"]:
        """bool (rows,): the pictures that are there and whose id matches a pattern, that have a label, a tag.

        where: `*` stands for any text and `?` for one letter. Raises InputError for a label or tag that no picture has.
        """
        found = ~self.removed
        if where is not None:
            pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in where)
            column = pc.match_substring_regex(self.pictures["id"], rf"\A(?s:{pattern})\z")
            found &= column.to_numpy(zero_copy_only=False).astype(bool)
        if label is not None:
            if label not in self.label_names:
                present = ", ".join(sorted(self.label_names)) or "none at all"
                raise InputError(f'No picture has the label "{label}"; there are: {present}.')
            found &= self.labels == self.label_names.index(label)
        if tag is not None:
            if tag not in self.tags:
                present = ", ".join(sorted(self.tags)) or "none at all"
                raise InputError(f'No picture has the tag "{tag}"; there are: {present}.')
            found &= np.isin(np.arange(len(self)), self.tags[tag])
        return found

    def vectors(self, rows: np.ndarray) -> Float[Tensor, "rows dim"]:
        """The vectors of some rows, float32 on the CPU."""
        answer = torch.empty(len(rows), self.dim)
        first = 0
        for part in self.parts:
            here = np.flatnonzero((rows >= first) & (rows < first + len(part)))
            answer[torch.from_numpy(here)] = part[torch.from_numpy(rows[here] - first)].float()
            first += len(part)
        return answer

    def present(self, device: torch.device | str = "cpu") -> tuple[Int[np.ndarray, " there"], Vectors]:
        """The rows that are there, and their vectors, read to this device."""
        rows = np.flatnonzero(~self.removed)
        return rows, Vectors(len(rows), lambda places: self.vectors(rows[places]).to(device))

    def search(
        self,
        queries: Float[Tensor, "queries dim"],
        neighbours: int,
        *,
        among: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
    ) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
        """For each query the rows with the highest cosine: scores (float32) and rows, best first, on the CPU.

        among: bool (rows,), which may be answers; all that are there without. exclude: one row a query that is never
        an answer, -1 for none. Exact in float32; equal scores: the lower row first. Computed where the queries are.
        After `approximate`, unless `among` leaves out more than 1,000 pictures, the graph answers in its place.
        Ranks that hold the same index and queries share its rows; each has the whole answer.
        Raises InputError where fewer than `neighbours` are to choose from.
        """
        among = ~self.removed if among is None else among & ~self.removed
        most = int(among.sum())
        own = np.full(len(queries), -1)
        if exclude is not None:
            asked = np.flatnonzero(exclude >= 0)
            here = asked[among[exclude[asked]]]
            own[here] = (np.cumsum(among) - 1)[exclude[here]]  # its place among the rows that are looked through
            most -= bool(len(here))
        if not 1 <= neighbours <= most:
            raise InputError(
                f"{neighbours} neighbours were asked for, and {most:,} pictures are there to choose from: "
                f"{'ask for at least one' if neighbours < 1 else 'ask for fewer'}."
            )
        if self._graph is not None and int((~self.removed & ~among).sum()) <= _LEFT_OUT:
            return self._by_graph(queries, neighbours, among, exclude)
        begin, end = ranks.share(len(self))
        mine = among.copy()
        mine[:begin] = mine[end:] = False
        first = int(among[:begin].sum())
        with ranks.one_fate():
            nearest = Nearest(queries, neighbours, torch.from_numpy(own), expected=most)
            for block in self._blocks(mine, _BLOCK if len(queries) > _FEW else 4 * _BLOCK):
                nearest.add(block, first)
                first += len(block)
        scores, places = nearest.scores.cpu(), nearest.indices.cpu()
        if ranks.world() > 1:
            # Ranks hold ascending rows, so that candidates that stand rank after rank keep the rule for ties.
            counts = [len(queries)] * ranks.world()
            scores, places = (torch.cat(ranks.gather(one, counts).split(counts), dim=1) for one in (scores, places))
            scores, places = merge(scores, places, neighbours)
        return scores, torch.from_numpy(np.flatnonzero(among))[places]

    def approximate(self, recall: float = RECALL, *, show: bool = False) -> float:
        """From now on, let an HNSW graph (search/approximate.py) answer; the recall@10 that was measured."""
        rows, vectors = self.present()
        graph = Graph(vectors, recall=recall, show=show)
        self._graph = rows, graph
        return graph.recall

    def _by_graph(
        self, queries: Tensor, neighbours: int, among: np.ndarray, exclude: np.ndarray | None
    ) -> tuple[Tensor, Tensor]:
        """As many more are asked for as can be left out."""
        assert self._graph is not None
        rows, graph = self._graph
        allowed = torch.from_numpy(among[rows])
        wanted = min(neighbours + int((~allowed).sum()) + (exclude is not None), len(rows))
        scores, places = graph.search(queries, wanted)
        scores[~allowed[places]] = -torch.inf
        found = torch.from_numpy(rows)[places]
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
