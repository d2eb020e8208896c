"""Beside the simplest library call that gives the same answer: quiet, and with one core kept busy by another process.

    python benchmarks/floors.py --out results/floors.json        # 4 minutes; keep the machine quiet otherwise

Nearest neighbours (many queries and one) beside `matmul`, or `mv`, and `topk`; all pairs above a similarity beside
`matmul` and `nonzero`; the linear SVM beside scikit-learn's; the exact softmax over a bank, with its gradient, beside
the (batch, n) matrix with autograd. Both take turns. What the file has of other processors stays. `times`: how many
times as fast as the floor, in each turn; `slower_when_busy`: our busy time by our quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from all_pairs import made
from loss_head import BATCH, TEMPERATURE, bank_of
from record import device_name, record
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from instdisc.evaluation.svm import LinearSVM
from instdisc.neighbours import top_k
from instdisc.objectives import NonParametricSoftmax
from instdisc.search.pairs import Vectors, similar_pairs

Way = Callable[[], object]
_SPIN = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"


def _matrix(queries: Tensor, rows: Tensor, k: int) -> Way:
    if len(queries) == 1:
        return lambda: torch.mv(rows, queries[0]).topk(k)
    return lambda: [(part @ rows.T).topk(k, dim=1) for part in queries.split(500)]


def _all_pairs(rows: Tensor) -> Way:
    return lambda: [(part @ rows.T >= 0.9).nonzero() for part in rows.split(500)]


def _losses(instances: int) -> tuple[Way, Way]:
    bank = bank_of(instances)
    features = normalize(torch.randn(BATCH, 128), dim=1).requires_grad_()
    own, objective = torch.arange(BATCH), NonParametricSoftmax(TEMPERATURE)
    return (
        lambda: objective(features, own, bank).backward(),
        lambda: cross_entropy(features @ bank.rows.T / TEMPERATURE, own).backward(),
    )


def _machines(count: int) -> tuple[Way, Way]:
    from sklearn.svm import LinearSVC

    vectors = made(count)
    classes = (vectors[:, :10] + 0.1 * torch.randn(count, 10)).argmax(dim=1)
    theirs = LinearSVC(C=1.0, dual=False)
    return (
        lambda: LinearSVM(1.0).fit(vectors, classes),
        lambda: theirs.fit(vectors.numpy(), classes.numpy()),
    )


def comparisons(count: int, many: int) -> Iterator[tuple[str, Way, Way]]:
    """(what, ours, the floor)."""
    rows = made(count)
    queries = normalize(rows[torch.randperm(count)[: count // 5]] + 0.03 * torch.randn(count // 5, 128), dim=1)
    for k in (200, 10):
        yield (
            f"kNN of {len(queries):,} among {count:,}, k {k}",
            lambda k=k: top_k(queries, rows, k),
            _matrix(queries, rows, k),
        )
    one = queries[:1]
    yield f"one query among {count:,}", lambda: top_k(one, rows, 10), _matrix(one, rows, 10)
    part = rows[: count // 2]
    yield (
        f"all pairs of {len(part):,} above 0.9",
        lambda: similar_pairs(Vectors.of(part), 0.9, most=10**9),
        _all_pairs(part),
    )
    yield f"exact softmax over {count:,}, with gradient", *_losses(count)
    yield f"linear SVM of {count:,}", *_machines(count)
    large = made(many)
    yield f"one query among {many:,}", lambda: top_k(one, large, 10), _matrix(one, large, 10)


def in_turns(ours: Way, floor: Way, seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds of each, three turns at least; the first, which warms up, does not count."""
    taken: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while len(taken[0]) < 4 or (time.perf_counter() < until and len(taken[0]) < 200):
        for way, spent in zip((ours, floor), taken, strict=True):
            started = time.perf_counter()
            way()
            spent.append(1000 * (time.perf_counter() - started))
    return taken[0][1:], taken[1][1:]


@contextmanager
def a_busy_core() -> Iterator[None]:
    """Another process computes on one of the cores."""
    with subprocess.Popen([sys.executable, "-c", _SPIN]) as spinner:
        try:
            yield
        finally:
            spinner.kill()


def compared(ours: Way, floor: Way, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {}
    quiet = in_turns(ours, floor, seconds)
    with a_busy_core():
        busy = in_turns(ours, floor, seconds)
    for name, (own, other) in (("quiet", quiet), ("busy", busy)):
        row[name] = {
            "ms": round(statistics.median(own), 3),
            "floor_ms": round(statistics.median(other), 3),
            "times": [round(b / a, 3) for a, b in zip(own[:12], other[:12], strict=True)],
        }
    row["slower_when_busy"] = round(row["busy"]["ms"] / row["quiet"]["ms"], 2)
    row["floor_slower_when_busy"] = round(row["busy"]["floor_ms"] / row["quiet"]["floor_ms"], 2)
    return row


def main() -> None:
    """Measure, and add this kind of processor to those of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each comparison, quiet and busy")
    settings = parser.parse_args()
    torch.manual_seed(0)
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("A busy core beside a quiet one needs two.")
    rows = {}
    for what, ours, floor in comparisons(settings.count, settings.many):
        rows[what] = row = compared(ours, floor, settings.seconds)
        print(
            f"{what:45s} {row['quiet']['ms']:9.1f} ms, {statistics.median(row['quiet']['times']):.2f} times as fast; "
            f"busy {row['busy']['ms']:9.1f} ms, {statistics.median(row['busy']['times']):.2f}",
            flush=True,
        )
    known = json.loads(settings.out.read_text("utf-8"))["processors"] if settings.out and settings.out.is_file() else {}
    record(
        settings.out,
        name="floors",
        command=f"python benchmarks/floors.py --count {settings.count} --many {settings.many}",
        unit="times as fast as the floor when quiet, the median of each comparison on the processor measured last",
        values=[statistics.median(row["quiet"]["times"]) for row in rows.values()],
        seeds=[0],
        processors=known | {device_name(): rows},
    )


if __name__ == "__main__":
    main()
