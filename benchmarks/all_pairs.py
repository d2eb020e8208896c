"""All pairs of a collection: near-duplicate pairs and the ten neighbours of every picture, exactly and by the graph.

    python benchmarks/all_pairs.py                           # 50,000, 200,000 and 1,000,000 vectors; 20 to 50 minutes
    python benchmarks/all_pairs.py --pairs-alone-above 200000          # of a million the near-duplicates alone

Vectors are made: unit rows of 128 numbers around one centre for every hundred of them, with a few exact copies. Results
go to results/all_pairs.json.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
from record import record

from instdisc.neighbours import fp16_is_faster
from instdisc.search.approximate import Graph
from instdisc.search.pairs import Vectors, neighbours_of_all, similar_pairs

DIM, NEIGHBOURS, THRESHOLD, COPIES = 128, 10, 0.95, 1_000


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[50_000, 200_000, 1_000_000])
    parser.add_argument("--pairs-alone-above", type=int, metavar="COUNT", help="no neighbours and no graph above it")
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    alone_above = settings.pairs_alone_above
    limit = "" if alone_above is None else f" --pairs-alone-above {alone_above}"
    rows = []
    for count in settings.counts:
        rows.append(measured(count, alone_above is not None and count > alone_above))
        print(rows[-1], flush=True)
        done = " ".join(map(str, settings.counts[: len(rows)]))
        record(
            settings.results / "all_pairs.json",
            name="all_pairs",
            command=f"python benchmarks/all_pairs.py --counts {done}{limit}",
            unit="seconds for the ten neighbours of every vector, exactly, one value a count; `rows` has all",
            values=[row["neighbours_seconds"] for row in rows if "neighbours_seconds" in row],
            seeds=[0],
            rows=rows,
            half_precision_first=fp16_is_faster(torch.device("cpu")),
        )


def measured(count: int, pairs_alone: bool) -> dict[str, Any]:
    """Both for one collection; the memory is what was taken above the vectors, at most."""
    vectors = Vectors.of(made(count))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    pairs = similar_pairs(vectors, THRESHOLD, show=True)
    paired = time.perf_counter()
    if pairs_alone:
        return {"vectors": count, "pairs_seconds": round(paired - started, 2), "pairs_found": len(pairs)}
    scores, _ = neighbours_of_all(vectors, NEIGHBOURS, show=True)
    ended = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    graph = Graph(vectors, show=True)
    built = time.perf_counter()
    near = graph.neighbours_of_all(NEIGHBOURS, show=True)[0]
    asked = time.perf_counter()
    approximate = graph.similar_pairs(THRESHOLD, show=True)
    answered = time.perf_counter()
    exact, found = (set(zip(one.first.tolist(), one.second.tolist(), strict=True)) for one in (pairs, approximate))
    return {
        "vectors": count,
        "pairs_seconds": round(paired - started, 2),
        "pairs_found": len(pairs),
        "neighbours_seconds": round(ended - paired, 2),
        "mean_cosine_of_the_tenth": round(float(scores[:, -1].mean()), 4),
        "memory_mb": round(memory / 1024),
        "graph": {
            "build_seconds": round(built - ended, 2),
            "breadth": graph.breadth,
            "recall_it_says": round(graph.recall, 4),
            "recall": round(float((near >= scores[:, -1:] - 1e-6).mean()), 4),
            "neighbours_seconds": round(asked - built, 2),
            "pairs_seconds": round(answered - asked, 2),
            "pairs_recall": round(len(exact & found) / max(len(exact), 1), 4),
        },
    }


def made(count: int) -> torch.Tensor:
    """(count, 128) unit rows; the last COPIES equal the first."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(count // 100, DIM, generator=generator)
    rows = torch.empty(count, DIM)
    for start in range(0, count, 50_000):
        part = rows[start : start + 50_000]
        part[:] = centres[torch.randint(len(centres), (len(part),), generator=generator)]
        part += 0.6 * torch.randn(part.shape, generator=generator)
    rows[-COPIES:] = rows[:COPIES]
    return torch.nn.functional.normalize(rows, dim=1, out=rows)


if __name__ == "__main__":
    main()
