"""`instdisc map`: the whole collection as points in the plane, so that neighbours stand together (t-SNE by openTSNE).

RUN/map/map.safetensors    rows (n,) int64, points (n, 2) float32; of which checkpoint, as metadata
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from instdisc import ranks
from instdisc.errors import InputError
from instdisc.jobs import index as index_job
from instdisc.jobs.collection import Collection
from instdisc.jobs.duplicates import graph_of
from instdisc.progress import Bar
from instdisc.search.pairs import neighbours_of_all
from instdisc.shapes import Float, Int

_PERPLEXITY, _STEPS = 30, 750
_NEIGHBOURS_SHARE = 0.15  # of the work, for the progress
Progress = Callable[[float], None] | None


def make_map(
    run: str | Path,
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
    Raises InputError where openTSNE is missing or the collection is too small.
    """
    collection = index_job.without_augmentation(run, bank=bank, train_source=train_source, device=device, say=say)
    rows, vectors = collection.index.present(ranks.device(device))
    if len(rows) < 8:
        raise InputError(f"{len(rows)} pictures are too few for a map.")
    perplexity = min(_PERPLEXITY, (len(rows) - 1) // 3)
    found = graph_of(vectors, say).neighbours_of_all if approximate else partial(neighbours_of_all, vectors)
    scores, places = found(min(3 * perplexity, len(rows) - 1), show=say is not None)
    if progress is not None:
        progress(_NEIGHBOURS_SHARE)
    sample = vectors.read(0, min(len(rows), 20_000)).cpu()
    axes = torch.pca_lowrank(sample - sample.mean(0), q=2)[2]
    start = np.concatenate(
        [(vectors.read(a, min(a + 65_536, len(rows))).cpu() @ axes).numpy() for a in range(0, len(rows), 65_536)]
    )
    points = _points(scores, places, start, perplexity, progress, show=say is not None)
    file = collection.folder.map
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(exist_ok=True)
        tensors = {"rows": torch.from_numpy(rows), "points": torch.from_numpy(np.ascontiguousarray(points, np.float32))}
        save_file(tensors, aside, metadata={"step": str(collection.saved.step)})
        os.replace(aside, file)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise InputError(f"{file} could not be written ({error}): make room there, then try again.") from None
    if say is not None:
        say(f"The map of {len(rows):,} pictures is in {file}: `instdisc serve {run}` shows it.")
    return file


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


def _points(
    scores: np.ndarray, places: np.ndarray, start: np.ndarray, perplexity: int, progress: Progress, *, show: bool
) -> Float[np.ndarray, "pictures 2"]:
    try:
        from openTSNE import TSNEEmbedding
        from openTSNE.affinity import PerplexityBasedNN
        from openTSNE.initialization import rescale
        from openTSNE.nearest_neighbors import PrecomputedNeighbors
    except ImportError:
        raise InputError("The map needs openTSNE: pip install 'instdisc[map]'.") from None
    distances = np.sqrt(np.maximum(2 - 2 * scores.astype(np.float64), 0))
    affinities = PerplexityBasedNN(
        knn_index=PrecomputedNeighbors(places, distances), perplexity=perplexity, n_jobs=os.cpu_count() or 1
    )
    embedding = TSNEEmbedding(
        rescale(start.astype(np.float64)), affinities, negative_gradient_method="fft", random_state=0, n_jobs=-1
    )
    early = _STEPS // 3
    with Bar(_STEPS, "Drawing the map", "steps", enabled=show) as bar:

        def after(step: int, *_: Any) -> bool:
            bar.advance(10)
            if progress is not None:
                progress(_NEIGHBOURS_SHARE + (1 - _NEIGHBOURS_SHARE) * min(1.0, bar.done / _STEPS))
            return False

        options = {"inplace": True, "callbacks": [after], "callbacks_every_iters": 10}
        embedding.optimize(early, exaggeration=12, momentum=0.5, **options)
        embedding.optimize(_STEPS - early, momentum=0.8, **options)
    return np.asarray(embedding, dtype=np.float32)
