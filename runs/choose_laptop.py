"""How the recipe of `laptop_cifar10` was chosen: candidates beside it, for some minutes each, on a part of train.

    python runs/choose_laptop.py --train cifar10-train.parquet --minutes 5        # without --train: torchvision

Every candidate trains on 45,000 of the 50,000 training pictures for the same minutes; the other 5,000 are classified
by kNN. No test picture is seen. Keep the machine quiet: candidates are compared by what they reach in the same time.
A finished candidate is not run again. The result goes to results/choose_laptop.json.
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
PRESET = "the preset"
CANDIDATES: dict[str, dict[str, Any]] = {
    PRESET: {},
    "SGD, lr 0.1": {"optimizer": "sgd", "lr": 0.1},
    "SGD, lr 0.25": {"optimizer": "sgd", "lr": 0.25},
    "SGD, lr 0.5": {"optimizer": "sgd", "lr": 0.5},
    "Muon, lr 0.01": {"lr": 0.01},
    "Muon, lr 0.05": {"lr": 0.05},
    "conv6, width 48": {"backbone": "conv6", "width": 48},
    "conv8, width 24": {"backbone": "conv8", "width": 24},
    "conv8, width 32": {"backbone": "conv8", "width": 32},
    "temperature 0.2": {"temperature": 0.2},
    "bank's share 0.25": {"view_share": 0.75},
    "crops from 0.35": {"crop_scale": (0.35, 1.0)},
    "linear head": {"head": "linear"},
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
    done: dict[str, dict[str, Any]] = {}
    wanted = settings.only.split(";") if settings.only else list(CANDIDATES)
    for name, overrides in CANDIDATES.items():
        folder = settings.runs / name.replace(" ", "_").replace(",", "")
        result = folder / "held_out.json"
        if not result.is_file() and name in wanted:
            shutil.rmtree(folder, ignore_errors=True)
            run = train(
                images[rest], folder, "laptop_cifar10", minutes=settings.minutes, monitor_epochs=1000, **overrides
            )
            encoder = run.encoder()
            knn = KNN().fit(encoder.embed(images[rest]), labels[rest])
            top1 = 100 * knn.score(encoder.embed(images[out]), labels[out])
            facts = {"top1": top1, "epochs": round(run.epochs, 2), "minutes": run.seconds / 60, "overrides": overrides}
            result.write_text(json.dumps(facts), encoding="utf-8")
            print(f"{name}: {top1:.2f} % after {run.epochs:.1f} epochs", flush=True)
        if result.is_file():
            done[name] = json.loads(result.read_text(encoding="utf-8"))
    record(
        settings.results / "choose_laptop.json",
        name="choose_laptop",
        command=f"python runs/choose_laptop.py --minutes {settings.minutes:g}",
        unit=f"kNN top-1 on {HELD_OUT:,} held-out training pictures, %, k 200, temperature 0.07, one seed",
        values=[facts["top1"] for facts in done.values()],
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
