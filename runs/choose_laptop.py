"""How the recipe of `laptop_cifar10` was chosen: candidates beside it, for some minutes each, on a part of train.

    python runs/choose_laptop.py --train cifar10-train.parquet --minutes 5        # without --train: torchvision

Every candidate trains on 45,000 of the 50,000 training pictures for the same minutes; the other 5,000 are classified
by kNN. No test picture is seen. Keep the machine quiet: candidates are compared by what they reach in the same time.
What is finished is not run again, and all of it, of any length, goes to results/choose_laptop.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc import KNN, draws
from instdisc.data.pictures import open_pictures
from instdisc.data.source import Source, open_source
from instdisc.jobs.train import train

HELD_OUT = 5_000
RESULT = "held_out.json"
CANDIDATES: dict[str, dict[str, Any]] = {
    "conv6, Muon, lr 0.02": {"backbone": "conv6", "lr": 0.02},
    "conv6, SGD, lr 0.25": {"backbone": "conv6", "optimizer": "sgd", "lr": 0.25},
    "conv6, Muon, lr 0.05": {"backbone": "conv6", "lr": 0.05},
    "conv8, Muon, lr 0.05": {"backbone": "conv8", "lr": 0.05},
}


def main() -> None:
    """Train and measure every candidate asked for, and record all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each candidate")
    parser.add_argument("--only", help="names of candidates, separated by semicolons")
    parser.add_argument("--runs", type=Path, default=Path("runs/out/choose_laptop"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    images, labels = _arrays(open_source(settings.train))
    order = draws.permutation(len(images), seed=0, step=0)
    out, rest = order[:HELD_OUT], order[HELD_OUT:]
    wanted = settings.only.split(";") if settings.only else list(CANDIDATES)
    for name in wanted:
        folder = settings.runs / f"{name}, {settings.minutes:g} min".replace(", ", "_").replace(" ", "_")
        result = folder / RESULT
        if result.is_file():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        given = {"minutes": settings.minutes, "monitor_epochs": 1000, **CANDIDATES[name]}
        run = train(images[rest], folder, "laptop_cifar10", **given)
        if not run.finished:
            print(f"{name} was interrupted: start again to go on with the others.")
            return
        encoder = run.encoder()
        knn = KNN().fit(encoder.embed(images[rest]), labels[rest])
        top1 = 100 * knn.score(encoder.embed(images[out]), labels[out])
        facts = {"candidate": name, "minutes": settings.minutes, "top1": top1, "epochs": round(run.epochs, 2)}
        result.write_text(json.dumps({**facts, "overrides": CANDIDATES[name]}), encoding="utf-8")
        print(f"{name}: {top1:.2f} % after {run.epochs:.1f} epochs", flush=True)
    done = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(settings.runs.glob(f"*/{RESULT}"))]
    done.sort(key=lambda facts: (facts["minutes"], -facts["top1"]))
    record(
        settings.results / "choose_laptop.json",
        name="choose_laptop",
        command="python runs/choose_laptop.py --minutes MINUTES --only CANDIDATE",
        unit=f"kNN top-1 on {HELD_OUT:,} held-out training pictures, %, k 200, temperature 0.07, one seed each",
        values=[facts["top1"] for facts in done],
        seeds=[0] * len(done),
        candidates=done,
    )


def _arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """All pictures (n, 32, 32, 3) uint8, and their labels (n,)."""
    pictures = open_pictures(source, 32, torch.device("cpu"), storage="memory")
    (batch,) = pictures.batches([np.arange(pictures.count)])
    return batch.images.permute(0, 2, 3, 1).numpy(), source.labels[pictures.rows]


if __name__ == "__main__":
    main()
