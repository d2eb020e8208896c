"""`instdisc map`: the whole collection as points in the plane, so that neighbours stand together (t-SNE by openTSNE).

RUN/map/map.safetensors    rows (n,) int64, points (n, 2) float32; metadata: their checkpoint
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from instdisc import ranks
from instdisc.errors import InputError, counted
from instdisc.files import replacing, save_tensors
from instdisc.jobs import index as index_job
from instdisc.jobs.collection import AnyRun, Collection
from instdisc.jobs.duplicates import graph_of
from instdisc.jobs.tsne import embed_in_plane
from instdisc.search.pairs import Vectors, neighbours_of_all
from instdisc.shapes import Float, Int

_PERPLEXITY = 30
_BLOCK = 65_536
_NEIGHBOURS_SHARE = 0.02  # of the work, for the progress
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
    Pictures that are all alike are a heap of points. Raises InputError where openTSNE is missing, where the collection
    is too small, and where vectors are no numbers.
    """
    collection = index_job.without_augmentation(run, bank=bank, train_source=train_source, device=device, say=say)
    rows, vectors = collection.index.present(ranks.device(device))
    if len(rows) < 8:
        raise InputError(f"{counted(len(rows), 'picture is', 'pictures are')} too few for a map.")
    _check_finite(vectors, collection.folder.path)
    perplexity = min(_PERPLEXITY, (len(rows) - 1) // 3)
    found = graph_of(collection, vectors, say).neighbours_of_all if approximate else partial(neighbours_of_all, vectors)
    scores, positions = found(min(3 * perplexity, len(rows) - 1), show=say is not None)
    if progress is not None:
        progress(_NEIGHBOURS_SHARE)
    sample = vectors.read(0, min(len(rows), 20_000)).cpu()
    axes = torch.pca_lowrank(sample - sample.mean(0), q=2)[2]
    start = np.concatenate(
        [(vectors.read(a, min(a + _BLOCK, len(rows))).cpu() @ axes).numpy() for a in range(0, len(rows), _BLOCK)]
    )

    def tell(share: float) -> None:
        if progress is not None:
            progress(_NEIGHBOURS_SHARE + (1 - _NEIGHBOURS_SHARE) * share)

    points = embed_in_plane(scores, positions, start, perplexity=perplexity, tell=tell, show=say is not None)
    file = collection.folder.map
    tensors = {"rows": torch.from_numpy(rows), "points": torch.from_numpy(np.ascontiguousarray(points, np.float32))}
    with replacing(file) as temporary:
        save_tensors(tensors, temporary, {"step": str(collection.saved.step)})
    if say is not None:
        say(f"The map of {len(rows):,} pictures is in {file}: `instdisc serve {collection.folder.path}` shows it.")
    return file


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
