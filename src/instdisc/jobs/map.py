"""`instdisc map`: the whole collection as points in the plane, so that neighbours stand together (t-SNE by openTSNE).

RUN/map/map.safetensors    rows (n,) int64, points (n, 2) float32; metadata: their checkpoint
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from scipy.spatial import cKDTree

from instdisc import ranks
from instdisc.errors import InputError, counted
from instdisc.files import replacing, save_tensors
from instdisc.jobs import index as index_job
from instdisc.jobs.collection import AnyRun, Collection
from instdisc.jobs.duplicates import comparing
from instdisc.jobs.tsne import embed_in_plane
from instdisc.neighbours import top_k
from instdisc.progress import Bar
from instdisc.search.approximate import Graph
from instdisc.search.joins import Join
from instdisc.search.pairs import Exact, Vectors
from instdisc.shapes import Float, Int

_PERPLEXITY = 30
_BLOCK = 65_536
_MOST_DRAWN = 200_000  # pictures: of more, some are drawn, and the others placed beside these
_SAMPLE, _FEWEST, _LIKE = 50_000, 20_000, 2 * 10**11  # pictures that are drawn then; pairs that are compared for it
_NEIGHBOURS_SHARE, _DRAWING_SHARE = 0.02, 0.5  # of the work, for the progress
Progress = Callable[[float], None] | None


def make_map(
    run: AnyRun,
    *,
    bank: bool = False,
    approximate: bool = False,
    train_source: Any = None,
    device: str = "auto",
    progress: Progress = None,
    say: Callable[[str], None] | None = print,
) -> Path:
    """Compute and keep the map; the file. progress: is told the share that is done.

    bank, approximate: as in `duplicates`. Places in the plane are not the truth: only which points stand together is.
    Of more than 200,000 pictures 20,000 to 50,000 are drawn at random, whose map is made, and each other one stands
    beside the one of them that it is most like. Pictures that are all alike are a heap of points.
    Raises InputError where openTSNE is missing, where the collection is too small, and where vectors are no numbers.
    """
    collection = index_job.without_augmentation(run, bank=bank, train_source=train_source, device=device, say=say)
    rows, vectors = collection.index.present(ranks.device(device))
    if len(rows) < 8:
        raise InputError(f"{counted(len(rows), 'picture is', 'pictures are')} too few for a map.")
    _check_finite(vectors, collection.folder.path)
    drawn = np.arange(len(rows))
    if len(rows) > _MOST_DRAWN:
        some = min(max(_LIKE // len(rows), _FEWEST), _SAMPLE)
        drawn = np.sort(np.random.default_rng(0).choice(len(rows), some, replace=False))
    whole = len(drawn) == len(rows)
    drawing = 1 if whole else _DRAWING_SHARE

    def tell(share: float) -> None:
        if progress is not None:
            progress(drawing * share)

    chosen = vectors.some(drawn)
    compared = comparing(collection, rows[drawn], chosen, approximate and whole, say)
    points = _drawn(chosen, compared, tell, show=say is not None)
    if not whole:
        points = _placed(vectors, drawn, points, progress, show=say is not None)
    file = collection.folder.map
    tensors = {"rows": torch.from_numpy(rows), "points": torch.from_numpy(np.ascontiguousarray(points, np.float32))}
    with replacing(file) as temporary:
        save_tensors(tensors, temporary, {"step": str(collection.saved.step)})
    if say is not None:
        say(f"The map of {len(rows):,} pictures is in {file}: `instdisc serve {collection.folder.path}` shows it.")
    return file


def _drawn(
    vectors: Vectors, compared: Exact | Graph | Join, tell: Callable[[float], None], *, show: bool
) -> Float[np.ndarray, "pictures 2"]:
    """The points of all of these, by t-SNE. compared: finds their neighbours."""
    count = vectors.count
    perplexity = min(_PERPLEXITY, (count - 1) // 3)
    scores, positions = compared.neighbours_of_all(min(3 * perplexity, count - 1), show=show)
    tell(_NEIGHBOURS_SHARE)
    sample = vectors.read(0, min(count, 20_000)).cpu()
    axes = torch.linalg.eigh((sample - sample.mean(0)).T.cov())[1][:, -2:]
    start = np.concatenate(
        [(vectors.read(a, min(a + _BLOCK, count)).cpu() @ axes).numpy() for a in range(0, count, _BLOCK)]
    )

    def later(share: float) -> None:
        tell(_NEIGHBOURS_SHARE + (1 - _NEIGHBOURS_SHARE) * share)

    return embed_in_plane(scores, positions, start, perplexity=perplexity, tell=later, show=show)


def _placed(
    vectors: Vectors,
    drawn: Int[np.ndarray, " drawn"],
    points: Float[np.ndarray, "drawn 2"],
    progress: Progress,
    *,
    show: bool,
) -> Float[np.ndarray, "pictures 2"]:
    """The points of all: one that is not drawn is strewn around the drawn one that it is most like.

    By chance, up to half the way to the next drawn one. (The mean of the nearest three keeps a third fewer neighbours.)
    """
    known, where = vectors.pick(drawn), points.astype(np.float64)
    reach = cKDTree(where).query(where, k=2)[0][:, 1] / 2
    answer, random = np.empty((vectors.count, 2), np.float32), np.random.default_rng(0)
    with Bar(vectors.count, "Placing pictures", "pictures", enabled=show) as bar:
        for start in range(0, vectors.count, _BLOCK):
            block = vectors.read(start, min(start + _BLOCK, vectors.count))
            near = top_k(block, known, 1)[1][:, 0].cpu().numpy()
            angle, away = 2 * np.pi * random.random(len(near)), reach[near] * np.sqrt(random.random(len(near)))
            around = np.stack([np.cos(angle), np.sin(angle)], axis=1) * away[:, None]
            answer[start : start + len(near)] = where[near] + around
            bar.advance(len(near))
            if progress is not None:
                progress(_DRAWING_SHARE + (1 - _DRAWING_SHARE) * (start + len(near)) / vectors.count)
    answer[drawn] = where
    return answer


def _check_finite(vectors: Vectors, run: Path) -> None:
    wrong = 0
    for start in range(0, vectors.count, _BLOCK):
        block = vectors.read(start, min(start + _BLOCK, vectors.count))
        wrong += int((~torch.isfinite(block).all(dim=1)).sum())
    if wrong:
        raise InputError(
            f"The vectors of {counted(wrong, 'picture')} are no numbers (NaN or infinity): compute them "
            f"again with `instdisc index {run} --recompute`. If they stay so, the training has failed: train again."
        )


def read_map(collection: Collection) -> tuple[Int[np.ndarray, " pictures"], Float[np.ndarray, "pictures 2"]] | None:
    """(rows, points) of the map; None where there is none, or it was made of another checkpoint or other pictures."""
    file = collection.folder.map
    try:
        with safe_open(file, framework="pt") as opened:
            if (opened.metadata() or {}).get("step") != str(collection.saved.step):
                return None
            rows, points = opened.get_tensor("rows").numpy(), opened.get_tensor("points").numpy()
    except (OSError, SafetensorError):
        return None
    if (
        rows.shape != points.shape[:1]
        or points.shape[1:] != (2,)
        or (len(rows) and rows.max() >= len(collection.index))
    ):
        return None
    return rows, points
