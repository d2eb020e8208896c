"""t-SNE (openTSNE) in a process of its own: its C++ can't take the one that asks along, whatever it meets.

    points = embed_in_plane(scores, positions, start, perplexity=30, tell=print)    # share done, 0 to 1

This file must not import torch: the other process has no need of it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from instdisc.errors import InputError
from instdisc.progress import Bar

_STEPS, _EVERY = 750, 10
_EVEN, _SLOW, _TIMES = 350, 600, 3  # steps that take as long as each other; from then on each takes three times as long
_FEW = 1_000  # points that one thread is done with at once, by Barnes and Hut's tree
_SMALL = 1e-4  # spread of the start, as t-SNE's authors have it


def embed_in_plane(
    scores: Float[np.ndarray, "pictures k"],
    positions: Int[np.ndarray, "pictures k"],
    start: Float[np.ndarray, "pictures 2"],
    *,
    perplexity: int,
    tell: Callable[[float], None] | None = None,
    show: bool = False,
) -> Float[np.ndarray, "pictures 2"]:
    """Points whose neighbours are neighbours among the pictures.

    scores: cosines with each picture's neighbours, who are `positions`. start: where the points begin, in any scale;
    all in one position will do. tell: is told the share of the time that is over.
    Raises InputError where openTSNE is missing, or its process ends without an answer.
    """
    if importlib.util.find_spec("openTSNE") is None:
        raise InputError("The map needs openTSNE: pip install 'instdisc[map]'.")
    with tempfile.TemporaryDirectory(prefix="instdisc-map-") as name:
        folder = Path(name)
        for file, values in (("scores", scores), ("places", positions), ("start", start)):
            np.save(folder / f"{file}.npy", values)
        # The same search path as here, set by the process itself: PYTHONPATH would come before the standard library.
        program = f"import sys; sys.path[:] = {sys.path!r}; from instdisc.jobs.tsne import main; main({perplexity})"
        with (
            open(folder / "errors", "wb") as errors,
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as process,
            Bar(_STEPS, "Drawing the map", "steps", enabled=show) as bar,
        ):
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.strip() != b"step":  # whatever a library has to say
                        continue
                    bar.advance(_EVERY)
                    if tell is not None:
                        tell(share_of_time(bar.done))
                code = process.wait()
            finally:
                process.kill()
        if code != 0:
            raise InputError(f"The map could not be computed: {_why(code, folder / 'errors')}.")
        return np.load(folder / "points.npy")


def share_of_time(step: int) -> float:
    """The share of the time that so many steps take, 0 to 1: as the points spread, a step takes longer.

    Fitted to the times of 1,797 and 9,000 points, whose last steps took 3 to 4 times as long as the first.
    """

    def time(steps: int) -> float:
        rising, slow = min(max(steps - _EVEN, 0), _SLOW - _EVEN), max(steps - _SLOW, 0)
        return min(steps, _EVEN) + rising * (1 + (_TIMES - 1) * rising / (2 * (_SLOW - _EVEN))) + _TIMES * slow

    return min(1.0, time(step) / time(_STEPS))


def _why(code: int, errors: Path) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, for lack of memory perhaps: end other programs, or try again"
    said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"openTSNE ended with {code}" + (f" ({said[-1][:200]})" if said else "")


def main(perplexity: int) -> None:
    """The other process, in the folder of the files: writes points.npy, and a line after every few steps."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    scores, positions = np.load("scores.npy"), np.load("places.npy")
    distances = np.sqrt(np.maximum(2 - 2 * scores.astype(np.float64), 0))
    few = len(scores) < _FEW
    threads = 1 if few else os.cpu_count() or 1
    affinities = PerplexityBasedNN(
        knn_index=PrecomputedNeighbors(positions, distances), perplexity=perplexity, n_jobs=threads
    )
    embedding = TSNEEmbedding(
        _spread(np.load("start.npy")),
        affinities,
        negative_gradient_method="bh" if few else "fft",
        random_state=0,
        n_jobs=threads,
    )

    def after(*_: object) -> bool:
        print("step", flush=True)
        return False

    options = {"inplace": True, "callbacks": [after], "callbacks_every_iters": _EVERY}
    embedding.optimize(_STEPS // 3, exaggeration=12, momentum=0.5, **options)
    embedding.optimize(_STEPS - _STEPS // 3, momentum=0.8, **options)
    points = np.asarray(embedding, dtype=np.float32)
    # All in one place: points that can't be told apart would lie under one another.
    np.save("points.npy", points if np.ptp(points) > _SMALL else _spread(np.zeros_like(points)).astype(np.float32))


def _spread(start: np.ndarray) -> np.ndarray:
    """The start in the usual scale: points that all stand in one place, or nowhere, are strewn by chance."""
    start = np.nan_to_num(start.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    spread = float(start[:, 0].std())
    if spread > 1e-9 * max(1.0, float(np.abs(start).max())):
        return start * (_SMALL / spread)
    return np.random.default_rng(0).normal(0, _SMALL, start.shape)


def _end_with_parent() -> None:
    while os.read(0, 1):  # nothing comes but the end, when the one that asked has gone; unbuffered: it ends at any time
        pass
    os._exit(1)
