"""The neighbour graph of a collection: each picture's ten nearest, kept on disk, and the affinities made of them.

    graph = stored_graph(file, Vectors.of(vectors))       # read, or computed once and written
    affinity = graph.affinity()                           # sparse, symmetric, for search/spreading.py

The file holds the SHA-256 of the vectors that it belongs to: after pictures were added, removed or embedded again it is
computed again, as it is where the file is damaged. Up to 200,000 pictures the neighbours are exact; of more, some nine
of ten (search/joins.py), over which labels spread as well.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from instdisc.errors import InputError, is_shortage
from instdisc.files import write_whole
from instdisc.search.cells import Cells, made
from instdisc.search.joins import Join
from instdisc.search.pairs import Vectors, neighbours_of_all
from instdisc.shapes import Float, Int

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NEIGHBOURS, TEMPERATURE = 10, 0.1
EXACT_UP_TO = 200_000  # pictures: about a minute on two cores
_FORMAT = "1"
_BLOCK = 65_536  # vectors read at once
_TOLERANCE = 1e-2  # by which the cosine of rounded unit vectors may exceed 1


@dataclass(frozen=True)
class NeighbourGraph:
    """scores: float32 (pictures, k), cosines, best first; places: int32 (pictures, k), the pictures they are with."""

    scores: Float[np.ndarray, "pictures k"]
    places: Int[np.ndarray, "pictures k"]

    def __len__(self) -> int:
        """Pictures."""
        return len(self.places)

    def affinity(self, temperature: float = TEMPERATURE) -> csr_array:
        """S = D^-1/2 W D^-1/2, float32 (pictures, pictures), symmetric, eigenvalues in [-1, 1].

        W_ij = exp((s_ij - 1) / temperature) where i is among j's neighbours or j among i's, else 0; D: its row sums.
        """
        from scipy.sparse import csr_array

        count, k = self.places.shape
        if not k:
            return csr_array((count, count), dtype=np.float32)
        weights = np.exp((self.scores.reshape(-1) - 1) / np.float32(temperature)).astype(np.float32)
        starts = np.arange(0, count * k + 1, k, dtype=np.int64 if count * k >= 2**31 else np.int32)
        one_way = csr_array((weights, self.places.reshape(-1), starts), shape=(count, count))
        both = one_way.maximum(one_way.T.tocsr()).tocsr()
        scale = 1 / np.sqrt(np.maximum(both.sum(axis=1, dtype=np.float64), np.finfo(np.float64).tiny))
        both.data *= np.repeat(scale, np.diff(both.indptr)).astype(np.float32)
        both.data *= scale.astype(np.float32)[both.indices]
        return both


def nearest_graph(vectors: Vectors, neighbours: int = NEIGHBOURS, *, show: bool = False) -> NeighbourGraph:
    """Compute the graph; of fewer pictures than neighbours, each has all others. show: a progress bar.

    Raises InputError where a vector is not finite.
    """
    k = min(neighbours, vectors.count - 1)
    if k < 1:
        nothing = np.zeros((vectors.count, 0))
        return NeighbourGraph(nothing.astype(np.float32), nothing.astype(np.int32))
    if vectors.count > EXACT_UP_TO:
        rows = np.arange(vectors.count)
        scores, positions = Join(Cells(vectors, rows, made(vectors, rows, show=show))).neighbours_of_all(k, show=show)
    else:
        scores, positions = neighbours_of_all(vectors, k, show=show)
    return NeighbourGraph(scores, positions.astype(np.int32, copy=False))


def stored_graph(file: Path, vectors: Vectors, *, show: bool = False, most: int | None = None) -> NeighbourGraph | None:
    """The graph of these vectors: from the file where it holds theirs, else computed and written there.

    most: None where the graph of more vectors than these would have to be computed. Where it can't be written, as on a
    read-only disk, it is computed each time. Examples:

        graph = stored_graph(Path("runs/mine/index/graph.safetensors"), Vectors.of(torch.eye(20)))
        graph.positions.shape                                     # (20, 10)
    """
    digest = digest_of(vectors)
    graph = read_graph(file, digest, vectors.count)
    if graph is None and (most is None or vectors.count <= most):
        graph = nearest_graph(vectors, show=show)
        with suppress(InputError):
            write_graph(file, graph, digest)
    return graph


def digest_of(vectors: Vectors) -> str:
    """SHA-256 of the vectors as float32."""
    found = hashlib.sha256(f"{_FORMAT} {NEIGHBOURS} {vectors.count}".encode())
    for start in range(0, vectors.count, _BLOCK):
        block = vectors.read(start, min(start + _BLOCK, vectors.count)).detach().cpu().contiguous()
        found.update(block.numpy().data)
    return found.hexdigest()


def read_graph(file: Path, digest: str, count: int) -> NeighbourGraph | None:
    """What `write_graph` wrote for the vectors of this digest, `count` of them; None where there is none."""
    try:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            if said.get("vectors") != digest:
                return None
            graph = NeighbourGraph(opened.get_tensor("scores").numpy(), opened.get_tensor("places").numpy())
    except (OSError, SafetensorError, ValueError) as error:
        if is_shortage(error):
            raise
        return None
    shape = (count, min(NEIGHBOURS, max(count - 1, 0)))
    whole = (
        graph.places.shape == graph.scores.shape == shape
        and graph.places.dtype == np.int32
        and graph.scores.dtype == np.float32
        and said.get("content") == _content(graph)
        and bool((graph.places >= 0).all() and (graph.places < count).all())
        and bool((np.abs(graph.scores) <= 1 + _TOLERANCE).all())
    )
    return graph if whole else None


def write_graph(file: Path, graph: NeighbourGraph, digest: str) -> None:
    """Keep a graph as a whole or not at all. Raises InputError where the disk can't be written."""
    tensors = {"scores": torch.from_numpy(graph.scores), "places": torch.from_numpy(graph.places)}
    write_whole(file, save(tensors, metadata={"vectors": digest, "content": _content(graph)}))


def _content(graph: NeighbourGraph) -> str:
    found = hashlib.sha256(np.ascontiguousarray(graph.scores).data)
    found.update(np.ascontiguousarray(graph.places).data)
    return found.hexdigest()
