"""An HNSW graph that is kept on disk, mapped when it is opened, and made again only for what changed.

    graph = stored_links(file, vectors, rows=rows, made_of=[("sha256 of a file of vectors", 50_000)])

Two files: usearch's own, and beside it a header (safetensors) with the sample that its recall is measured by at every
start, which rows it lacks, what it was made of, and its length and SHA-256, all signed with a key of this user's, in
the cache folder. One that is not what its header says, is of another version of usearch, or was made by anybody else is
made again: nothing follows links out of a damaged file or a stranger's.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from instdisc.data.storage.scan import cache_folder
from instdisc.errors import InputError, is_shortage
from instdisc.files import file_digest, replacing, save_tensors
from instdisc.search.approximate import OPTIONS, RECALL, Graph, Sample, linked, usearch
from instdisc.search.pairs import Vectors
from instdisc.shapes import Float, Int

_FORMAT = "1"
_TENSORS = ("absent", "own", "nearest", "scores")
_MOST_LOST = 1_000  # rows that went since: as many more are asked for at every search
_FEWEST = 100  # vectors that a recall is measured by; of fewer pictures all
_BLOCK = 65_536

MadeOf = Sequence[tuple[str, int]]  # digest and rows of each part of a collection's vectors, in order


def stored_links(
    file: Path,
    vectors: Vectors,
    *,
    rows: Int[np.ndarray, " count"],
    made_of: MadeOf,
    recall: float = RECALL,
    show: bool = False,
) -> Graph:
    """The graph of these vectors: mapped from the file where it holds theirs, else made or added to, and written there.

    rows: (count,) ascending, the collection's row of each vector. made_of: of all the collection's rows, so that a
    graph of its first parts is known to be one. Rows that are gone are passed over; of more than 1,000, or other
    parts, the graph is made again. Where it can't be written, as on a read-only disk, it stays in memory.
    Raises InputError where usearch is missing. Examples:

        graph = stored_links(Path("links.usearch"), Vectors.of(rows), rows=np.arange(len(rows)), made_of=[("a", 9)])
        graph.search(queries, 20)                              # as `Graph`
    """
    found = _Stored.read(file, made_of, rows)
    holds = np.zeros(sum(count for _, count in made_of), bool)
    holds[rows] = True
    if found is None:
        graph = Graph(vectors, recall=recall, show=show, keys=rows)
        return _written(file, graph, vectors, holds, made_of, recall)
    new = np.flatnonzero(~np.isin(rows, found.rows, assume_unique=True))
    sample = found.sample_without(rows)
    if not len(new):
        links = usearch().index.Index.restore(str(file), view=True)
        return Graph(vectors, recall=recall, links=links, keys=rows, lost=found.lost, sample=sample)
    links = linked(vectors.some(new), rows[new], onto=usearch().index.Index.restore(str(file)), show=show)
    if sample is not None:
        sample = _with_new(sample, vectors, rows, new)
    graph = Graph(vectors, recall=recall, links=links, keys=rows, lost=found.lost, sample=sample)
    holds[found.rows] = True
    return _written(file, graph, vectors, holds, made_of, recall)


@dataclass(frozen=True)
class _Stored:
    """What a header says. rows: ascending, that the graph has; lost: how many of them are gone."""

    rows: Int[np.ndarray, " held"]
    lost: int
    sample: Sample

    @classmethod
    def read(cls, file: Path, made_of: MadeOf, rows: np.ndarray) -> _Stored | None:
        """None where there is no graph, or none of use: of other vectors, damaged, of too many rows that are gone."""
        try:
            with safe_open(header_of(file), framework="numpy") as opened:
                said = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in _TENSORS}
            if said != _said(tensors, said["made_of"], json.loads(said["file"])):
                return None
            before = json.loads(said["made_of"])
            if before != [*map(list, made_of)][: len(before)] or json.loads(said["file"]) != file_digest(file):
                return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            if is_shortage(error):
                raise
            return None
        there = np.ones(sum(count for _, count in before), bool)
        there[tensors.pop("absent")] = False
        held = np.flatnonzero(there)
        lost = int((~np.isin(held, rows, assume_unique=True)).sum())
        return None if lost > _MOST_LOST else cls(held, lost, Sample(**tensors))

    def sample_without(self, rows: np.ndarray) -> Sample | None:
        """Of the sample what is told of rows that are all there; None where that is too little to measure by."""
        one = self.sample
        whole = np.isin(np.column_stack([one.own, one.nearest]), rows).all(axis=1)
        if whole.sum() < min(_FEWEST, len(rows)):
            return None
        return Sample(one.own[whole], one.nearest[whole], one.scores[whole])


def header_of(file: Path) -> Path:
    """The file that says what a graph's file holds."""
    return file.with_suffix(".safetensors")


def _said(tensors: Mapping[str, np.ndarray], made_of: str, file: Mapping[str, Any]) -> dict[str, str]:
    """The words of a header: what a graph must be of to be read, and the signature of all."""
    kind = json.dumps([_FORMAT, usearch().__version__, OPTIONS])
    content = hmac.new(_key(), json.dumps([kind, made_of, file]).encode(), "sha256")
    for name in _TENSORS:
        content.update(np.ascontiguousarray(tensors[name]).data)
    return {"kind": kind, "made_of": made_of, "file": json.dumps(file), "content": content.hexdigest()}


def _key() -> bytes:
    """What this user signs with: who writes into a run folder can't know it."""
    file = cache_folder() / "key"
    with suppress(FileExistsError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(secrets.token_bytes(32))
    return file.read_bytes()


def _with_new(sample: Sample, vectors: Vectors, rows: np.ndarray, new: np.ndarray) -> Sample:
    """The sample after vectors have come: its nearest among the old and the new."""
    queries: Float[torch.Tensor, "m dim"] = vectors.pick(np.searchsorted(rows, sample.own)).cpu()
    scores, nearest = torch.from_numpy(sample.scores), torch.from_numpy(sample.nearest)
    k = scores.shape[1]
    for start in range(0, len(new), _BLOCK):
        block = new[start : start + _BLOCK]
        found = queries @ vectors.pick(block).cpu().T
        both = torch.cat([nearest, torch.from_numpy(rows[block]).expand(len(queries), -1)], dim=1)
        scores, order = torch.cat([scores, found], dim=1).topk(k, dim=1)
        nearest = both.gather(1, order)
    return Sample(sample.own, nearest.numpy(), scores.numpy())


def _written(file: Path, graph: Graph, vectors: Vectors, holds: np.ndarray, made_of: MadeOf, recall: float) -> Graph:
    """The graph, written and then mapped; as it is in memory where that is refused. holds: bool, the rows it has."""
    with suppress(InputError, OSError):
        header_of(file).unlink(missing_ok=True)  # a kill leaves no header, or one that is right
        with replacing(file) as temporary:
            _save(graph.links, temporary)
        tensors = {"absent": np.flatnonzero(~holds), **vars(graph.sample)}
        said = _said(tensors, json.dumps([*map(list, made_of)]), file_digest(file))
        with replacing(header_of(file)) as temporary:
            save_tensors({name: torch.from_numpy(one) for name, one in tensors.items()}, temporary, said)
        links = usearch().index.Index.restore(str(file), view=True)
        return Graph(vectors, recall=recall, links=links, keys=graph.keys, lost=graph.lost, sample=graph.sample)
    return graph


def _save(links: Any, path: Path) -> None:
    try:
        links.save(str(path))
    except RuntimeError as error:  # the disk is full, or refuses
        raise OSError(str(error)) from None
