"""The paper's CIFAR-10 rows in full, for one GPU: exact softmax (kNN 80.8) and NCE with 4096 negatives (80.4).

    python runs/paper_cifar10.py --train cifar10-train.parquet --test cifar10-test.parquet     # without: torchvision
    python runs/paper_cifar10.py --objectives softmax --seeds 0 --epochs 200 --minutes-each 9     # one piece at a time
    python runs/paper_cifar10.py --objectives nce --partition first_batch                         # Z as published
    python runs/paper_cifar10.py --preset best_cifar10 --objectives softmax                       # our own recipe

Everything is on the device, in bfloat16, compiled. Each run is an ordinary run folder under --runs: a run that is there
is resumed, a finished one is only evaluated, so the script may be stopped and started at will (--minutes-each stops
by itself). The result goes to results/PRESET_OBJECTIVE.json. NCE's Z is a moving average: with the published constant
NCE collapsed in short runs (runs/nce_partition.py).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.train import RunResult, train
from instdisc.runs import RunFolder

PARTITIONS = ("moving_average", "first_batch", "exact")
PUBLISHED = {"paper_cifar10": {"softmax": 80.8, "nce": 80.4}, "best_cifar10": {}}


def main() -> None:
    """Train, evaluate and record every objective and seed asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--test", default=None, help="labelled test pictures; without: CIFAR-10's test split")
    parser.add_argument("--runs", type=Path, default=Path("runs/out"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--preset", choices=list(PUBLISHED), default="paper_cifar10")
    parser.add_argument("--objectives", default="softmax,nce")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--partition", choices=PARTITIONS, default=PARTITIONS[0], help="how NCE knows Z")
    parser.add_argument("--epochs", type=float, default=200)
    parser.add_argument("--limit", type=int, help="train on the first pictures only, to try the script")
    parser.add_argument("--minutes-each", type=float, help="stop (and save) a run after so long; start again to go on")
    parser.add_argument("--no-compile", action="store_true")
    settings = parser.parse_args()
    test = settings.test
    if test is None:
        from instdisc.data.sources.open import open_source

        test = open_source("cifar10", split="test")
    seeds = [int(seed) for seed in settings.seeds.split(",")]
    for objective in settings.objectives.split(","):
        constant = objective == "nce" and settings.partition != PARTITIONS[0]
        name = f"{settings.preset}_{objective}" + (f"_{settings.partition}" if constant else "")
        name += f"_{settings.limit}" if settings.limit else ""
        reports = []
        for seed in seeds:
            out = settings.runs / f"{name}_{seed}"
            run = trained(settings, out, objective, seed)
            if not run.finished:
                print(f"{out} is not finished: start again to go on.")
                return
            losses = [round(line["loss"], 3) for line in run.metrics() if "loss" in line]
            reports.append({"trained": run.seconds, "losses": [losses[0], losses[-1]], **evaluate(out, test)})
        record(
            settings.results / f"{name}.json",
            name=name,
            command="python runs/paper_cifar10.py"
            + (f" --preset {settings.preset}" if settings.preset != "paper_cifar10" else "")
            + f" --objectives {objective} --seeds {settings.seeds}"
            + (f" --partition {settings.partition}" if constant else "")
            + f" --epochs {settings.epochs:g}"
            + (f" --limit {settings.limit}" if settings.limit else "")
            + (" --no-compile" if settings.no_compile else ""),
            unit="kNN top-1 on the 10,000 test pictures, %, k 200, temperature 0.07, last epoch",
            values=[100 * report["knn"]["top1"] for report in reports],
            seeds=seeds,
            published=None if settings.limit else PUBLISHED[settings.preset].get(objective),
            pictures=run.instances,
            epochs=settings.epochs,
            training_seconds=[report["trained"] for report in reports],
            first_and_last_loss=[report["losses"] for report in reports],
            baselines=reports[0]["baselines"],
        )


def trained(settings: argparse.Namespace, out: Path, objective: str, seed: int) -> RunResult:
    """One run, gone on with where it stands; ended as Ctrl-C ends it where its minutes are over."""
    timer = threading.Timer(60 * (settings.minutes_each or 0), os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    if settings.minutes_each:
        timer.start()
    try:
        return train(
            settings.train,
            out,
            settings.preset,
            resume=RunFolder(out).exists(),
            limit=settings.limit,
            objective=objective,
            seed=seed,
            epochs=settings.epochs,
            compile=not settings.no_compile,
            precision="bfloat16",
            **({"partition": settings.partition} if objective == "nce" else {}),
        )
    finally:
        timer.cancel()


if __name__ == "__main__":
    main()
