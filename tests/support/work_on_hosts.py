"""What a process does on each host of test_hosts.py: torchrun starts this file with a function's name and a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from instdisc import ranks
from instdisc.bank import MemoryBank
from instdisc.jobs.duplicates import duplicates, look_alikes
from instdisc.jobs.embed import embed
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.leaks import leaks
from instdisc.jobs.outliers import outliers
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.objectives import NonParametricSoftmax, SampledSoftmax

# A network without batch statistics, which are each rank's own: then three hosts train as one.
RECIPE: dict[str, Any] = {
    "backbone": "test_convnext",
    "width": None,
    "size": 32,
    "batch": 16,
    "epochs": 3,
    "lr": 0.05,
    "precision": "float32",
    "storage": "memory",
    "monitor_epochs": 1000,
}
ROWS = (1_000, 100_000)
BATCH, STEPS = 32, 20


def whole_life(folder: Path) -> None:
    """Train, evaluate and embed `folder`/pictures, into the same folder."""
    pictures, run = folder / "pictures", folder / "run"
    train(pictures, run, "paper_cifar10", device="cpu", say=None, **RECIPE)
    report = evaluate(run, device="cpu", neighbours=5, say=None)
    embed(run, pictures, folder / "vectors.parquet", device="cpu")
    if ranks.is_main():
        (folder / "report.json").write_text(json.dumps(report["knn"]))


def look_through(folder: Path) -> None:
    """Duplicates, outliers and a search in the collection of `folder`/run, whose vectors are computed anew first."""
    run = folder / "run"
    found = search(run, [folder / "query.png"], neighbours=7, device="cpu")
    duplicates(run, device="cpu", say=None)
    look_alikes(run, threshold=0.9, device="cpu", say=None)
    outliers(run, neighbours=5, device="cpu", say=None)
    leaks(run, folder / "pictures", device="cpu", out=folder / "leaks", say=None)
    if ranks.is_main():
        (folder / "search.json").write_text(json.dumps([[one.id, one.score] for one in found[0]]))


def traffic(folder: Path) -> None:
    """Bytes that this host sends in a step of bank and objective, for banks of ROWS rows: to `folder`/bytes.json."""
    sent = {}
    for name, objective in (("softmax", NonParametricSoftmax(0.1)), ("sampled", SampledSoftmax(0.1, 256))):
        for count in ROWS:
            bank = MemoryBank(count)
            before = _sent()
            for step in range(STEPS):
                draw = torch.Generator().manual_seed(step * ranks.world() + ranks.rank())
                indices = torch.randperm(count // ranks.world(), generator=draw)[:BATCH] * ranks.world() + ranks.rank()
                features = normalize(torch.randn(BATCH, bank.dim, generator=draw), dim=1).requires_grad_()
                objective(features, indices, bank).backward()
                bank.update(indices, features.detach())
            ranks.barrier()
            sent[f"{name} {count}"] = (_sent() - before) / STEPS
    if ranks.is_main():
        (folder / "bytes.json").write_text(json.dumps(sent))


def _sent() -> int:
    """Bytes that have left this host over its link."""
    counters = Path("/proc/net/dev").read_text().splitlines()
    (line,) = (line for line in counters if line.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[8])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.distributed():
        {"whole_life": whole_life, "look_through": look_through, "traffic": traffic}[sys.argv[1]](Path(sys.argv[2]))
