"""How long spreading labels takes, and how much memory: a neighbour graph of a million pictures is given.

    python benchmarks/spreading.py --pictures 1000000 --threads 1 --out results/spreading.json
    python benchmarks/spreading.py --pictures 10000000 --threads 1 --repeats 1 --out results/spreading_large.json

The graph is synthetic: points of a hundred clusters in which each has ten neighbours nearby in a random order, with
cosines drawn between 0.5 and 1, as exact neighbours of a million vectors take half an hour on two cores and
are computed once. Each measurement is a process of its own; the peak of memory is the operating system's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from record import record

CLUSTERS = 100


def main() -> None:
    """Measure in a process of its own, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", action="store_true", help="one measurement, as a line of JSON")
    settings = parser.parse_args()
    if settings.once:
        print(json.dumps(once(settings.pictures, settings.classes, settings.labels)))
        return
    environment = dict(os.environ, OMP_NUM_THREADS=str(settings.threads), MKL_NUM_THREADS=str(settings.threads))
    sizes = ["--pictures", str(settings.pictures), "--classes", str(settings.classes), "--labels", str(settings.labels)]
    words = [sys.executable, __file__, "--once", *sizes]
    found = [
        json.loads(subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout)
        for _ in range(settings.repeats)
    ]
    record(
        settings.out,
        name=settings.out.stem if settings.out else "spreading",
        command=f"python benchmarks/spreading.py {' '.join(sizes)} --threads {settings.threads}",
        unit="seconds from the graph to the calibrated votes of all pictures",
        values=[round(one["seconds"], 2) for one in found],
        seeds=[0] * len(found),
        peak_mb=[round(one["peak_mb"]) for one in found],
        parts={name: [round(one[name], 2) for one in found] for name in ("affinity", "spread", "calibrate")},
        edges=found[0]["edges"],
        right=found[0]["right"],
    )


def once(count: int, classes: int, labels: int) -> dict[str, float]:
    """Seconds and memory."""
    from instdisc.search.spreading import calibrated, spread_labels

    graph, truth = clustered(count, classes)
    random = np.random.default_rng(1)
    codes = np.full(count, -1)
    codes[random.choice(count, labels, replace=False)] = 0
    codes[codes == 0] = truth[codes == 0]
    started = time.perf_counter()
    affinity = graph.affinity()
    linked = time.perf_counter()
    spread = spread_labels(affinity, codes)
    solved = time.perf_counter()
    names = calibrated(spread, codes).argmax(axis=1)
    ended = time.perf_counter()
    return {
        "seconds": ended - started,
        "affinity": linked - started,
        "spread": solved - linked,
        "calibrate": ended - solved,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "edges": int(affinity.nnz),
        "right": float((names == truth).mean()),
    }


def clustered(count: int, classes: int) -> tuple[object, np.ndarray]:
    """A graph of clusters, one edge in a hundred between two of them; and the class of each picture."""
    from instdisc.search.graph import NEIGHBOURS, NeighbourGraph

    random = np.random.default_rng(0)
    order = random.permutation(count).astype(np.int32)  # neighbours lie anywhere in memory
    place = np.empty(count, np.int32)
    place[order] = np.arange(count, dtype=np.int32)
    steps = random.integers(1, 51, (count, NEIGHBOURS), dtype=np.int32) * random.choice(
        np.array([-1, 1], np.int32), (count, NEIGHBOURS)
    )
    near = (place[:, None] + steps) % count
    far = random.random((count, NEIGHBOURS), dtype=np.float32) < 0.01
    near[far] = random.integers(0, count, int(far.sum()), dtype=np.int32)
    scores = -np.sort(-random.uniform(0.5, 1, (count, NEIGHBOURS)).astype(np.float32), axis=1)
    return NeighbourGraph(scores, order[near]), (place.astype(np.int64) * CLUSTERS // count) % classes


if __name__ == "__main__":
    main()
