"""The preset `laptop_cifar10` on two CPU cores: kNN on the test pictures after an hour, and the curve on the way.

    python runs/laptop_cifar10.py --train cifar10-train.parquet --test cifar10-test.parquet    # without: torchvision

Keep the machine quiet, or give --processor: then one thread trains for twice the minutes of its own processor time,
whatever else the machine does. An interrupted run goes on where it stopped. Measuring counts as time too. The result
goes to results/NAME.json, the curve to results/NAME.png; --set tries the preset with other settings.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.cli.train import parse_settings
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.train import train
from instdisc.report import training_curves
from instdisc.runs import RunFolder
from instdisc.training import loop


def main() -> None:
    """Train, evaluate, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--test", default=None, help="labelled test pictures; without: CIFAR-10's test split")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processor", action="store_true", help="one thread, twice the minutes of its own time")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as in `instdisc train`")
    parser.add_argument("--name", default="laptop_cifar10", help="of the result")
    parser.add_argument("--out", type=Path, default=Path("runs/out/laptop_cifar10"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    minutes = settings.minutes
    if settings.processor:
        minutes *= 2
        torch.set_num_threads(1)
        loop.time = SimpleNamespace(monotonic=time.process_time)
    test = settings.test
    if test is None:
        from instdisc.data.sources.open import open_source

        test = open_source("cifar10", split="test")
    run = train(
        settings.train,
        settings.out,
        "laptop_cifar10",
        resume=RunFolder(settings.out).exists(),
        test=test,
        minutes=minutes,
        seed=settings.seed,
        **parse_settings(settings.set),
    )
    if not run.finished:
        print(f"{settings.out} is not finished: start again to go on.")
        return
    lines = run.metrics()
    curve = [
        {"minutes": round(line["seconds"] / 60, 2), "epoch": line["epoch"], "knn_test": line["measured"]["knn_test"]}
        for line in lines
        if "measured" in line
    ]
    report = evaluate(settings.out, test)
    config = RunFolder(settings.out).read_config()
    record(
        settings.results / f"{settings.name}.json",
        name=settings.name,
        command=f"python runs/laptop_cifar10.py --minutes {settings.minutes:g} --seed {settings.seed}"
        + " --processor" * settings.processor
        + "".join(f" --set {text}" for text in settings.set),
        unit="kNN top-1 on the 10,000 test pictures, %, k 200, temperature 0.07, at the end of the run",
        values=[100 * report["knn"]["top1"]],
        seeds=[settings.seed],
        interval=[100 * bound for bound in report["knn"]["interval"]],
        top5=100 * report["knn"]["top5"],
        search_vectors={"top1": 100 * report["knn_search"]["top1"], "interval": report["knn_search"]["interval"]},
        baselines={name: 100 * result["top1"] for name, result in report["baselines"].items()},
        minutes=round(run.seconds / 60, 2),
        minutes_of="one core's own time, one thread" if settings.processor else "the clock, two threads",
        epochs=run.epochs,
        curve_note="on the way: test pictures classified by the bank's rows; at the end: by recomputed vectors",
        curve=curve,
        settings=config["settings"],
        precision=config["chosen"]["precision"],
    )
    training_curves(RunFolder(settings.out).metrics, settings.results / f"{settings.name}.png", title=settings.name)


if __name__ == "__main__":
    main()
