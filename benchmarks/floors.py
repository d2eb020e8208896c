"""Beside the simplest library call that gives the same answer: quiet, and with one core kept busy by another process.

    python benchmarks/floors.py --out results/floors.json        # 6 minutes; keep the machine quiet otherwise
    python benchmarks/floors.py --only embedding augmentation    # comparisons whose names have one of these words

Nearest neighbours (many queries and one) beside `matmul`, or `mv`, and `topk`; all pairs above a similarity beside
`matmul` and `nonzero`; the linear SVM beside scikit-learn's; the exact softmax over a bank, with its gradient, beside
the (batch, n) matrix with autograd; augmentation beside torchvision's transforms, a picture after the other; JPEG files
to crops of 224 pixels beside a DataLoader of two workers with torchvision's `decode_jpeg`; embedding beside the network
alone on batches that lie ready. Both take turns. What the file has of other processors, and of other comparisons on
this one, stays. `times`: how many times as fast as the floor, in each turn; `slower_when_busy`: our busy time by our
quiet one.
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

import numpy as np
import torch
from all_pairs import made
from augment import TorchvisionPictures
from augment import ours as augmented
from decode import by_torchvision, loader_epoch, our_epoch, photographs
from loss_head import BATCH, TEMPERATURE, bank_of
from record import device_name, record
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from instdisc.encoder import build_encoder
from instdisc.encoder.backbones import evaluating
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


def _augmentations(count: int, size: int) -> tuple[Way, Way]:
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    views = augmented(images, size)
    theirs = TorchvisionPictures(images.permute(0, 2, 3, 1).contiguous().numpy(), size, "tensors")
    return lambda: views(0), lambda: torch.stack([theirs[number] for number in range(count)])


def _decoding(size: int) -> tuple[Way, Way]:
    contents = photographs(512)
    return our_epoch(contents, size), loader_epoch(by_torchvision, contents, size)


def _embedding(count: int, backbone: str, size: int) -> tuple[Way, Way]:
    encoder = build_encoder({"backbone": backbone, "image_size": size}, seed=0).eval()
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    batches = [
        encoder.preprocessing.normalise(torch.from_numpy(part).permute(0, 3, 1, 2)).contiguous(
            memory_format=torch.channels_last
        )
        for part in np.array_split(images, count // 128)
    ]

    def alone() -> None:
        with torch.inference_mode(), evaluating(encoder):
            for batch in batches:
                encoder(batch)

    return lambda: encoder.embed(images, 128, precision="float32", vectors="embedding"), alone


def comparisons(count: int, many: int) -> Iterator[tuple[str, Callable[[], tuple[Way, Way]]]]:
    """(what, a function that makes ours and the floor)."""
    yield from _of_vectors(count, many)
    yield "augmentation of 256 pictures of 32 px", lambda: _augmentations(256, 32)
    yield "augmentation of 32 pictures of 224 px", lambda: _augmentations(32, 224)
    yield "512 JPEG files to crops of 224 px", lambda: _decoding(224)
    yield "embedding of 2,048 pictures of 32 px", lambda: _embedding(2_048, "conv6", 32)
    yield "embedding of 256 pictures of 224 px", lambda: _embedding(256, "resnet18", 224)


def _of_vectors(count: int, many: int) -> Iterator[tuple[str, Callable[[], tuple[Way, Way]]]]:
    rows = made(count)
    queries = normalize(rows[torch.randperm(count)[: count // 5]] + 0.03 * torch.randn(count // 5, 128), dim=1)
    for k in (200, 10):
        yield (
            f"kNN of {len(queries):,} among {count:,}, k {k}",
            lambda k=k: (lambda: top_k(queries, rows, k), _matrix(queries, rows, k)),
        )
    one = queries[:1]
    yield f"one query among {count:,}", lambda: (lambda: top_k(one, rows, 10), _matrix(one, rows, 10))
    part = rows[: count // 2]
    yield (
        f"all pairs of {len(part):,} above 0.9",
        lambda: (lambda: similar_pairs(Vectors.of(part), 0.9, most=10**9), _all_pairs(part)),
    )
    yield f"exact softmax over {count:,}, with gradient", lambda: _losses(count)
    yield f"linear SVM of {count:,}", lambda: _machines(count)

    def among_many() -> tuple[Way, Way]:
        large = made(many)
        return lambda: top_k(one, large, 10), _matrix(one, large, 10)

    yield f"one query among {many:,}", among_many


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
    parser.add_argument("--only", nargs="+", default=[""], help="words of the comparisons to make")
    settings = parser.parse_args()
    torch.manual_seed(0)
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("A busy core beside a quiet one needs two.")
    rows = {}
    for what, made_ways in comparisons(settings.count, settings.many):
        if not any(word in what for word in settings.only):
            continue
        rows[what] = row = compared(*made_ways(), settings.seconds)
        print(
            f"{what:45s} {row['quiet']['ms']:9.1f} ms, {statistics.median(row['quiet']['times']):.2f} times as fast; "
            f"busy {row['busy']['ms']:9.1f} ms, {statistics.median(row['busy']['times']):.2f}",
            flush=True,
        )
    known = json.loads(settings.out.read_text("utf-8"))["processors"] if settings.out and settings.out.is_file() else {}
    rows = known.get(device_name(), {}) | rows
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
