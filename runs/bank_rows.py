"""What it costs to keep the rows of the bank in fewer bits: kNN after runs that differ in bank_dtype alone.

    python runs/bank_rows.py digits          # preset digits; minutes
    python runs/bank_rows.py cifar10-train.parquet --preset laptop_cifar10 --limit 10000 --precision bfloat16

Leave-one-out kNN over the training pictures, by the encoder and by the rows of the bank themselves, for three seeds.
Each run is an ordinary run folder under --runs: one that is there is taken, one that was stopped is resumed. The result
goes to results/bank_rows_SOURCE.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

KINDS = ("float32", "float16", "int8")


def main() -> None:
    """Train and evaluate every kind with every seed, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="labelled pictures, as `instdisc train` takes them")
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--limit", type=int, help="only so many pictures")
    parser.add_argument("--epochs", type=float, help="without: the preset's")
    # named, since a trial of the device might choose otherwise for one run than for another
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of the encoder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/out/bank_rows"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    more: dict[str, Any] = {"precision": settings.precision}
    if settings.epochs is not None:
        more["epochs"] = settings.epochs
    name = Path(settings.source).stem
    found: dict[str, dict[str, list[float]]] = {kind: {"encoder": [], "bank": []} for kind in KINDS}
    facts: dict[str, Any] = {}
    for seed in range(settings.seeds):
        for kind in KINDS:
            out = settings.runs / f"{name}-{kind}-{seed}"
            resume = RunFolder(out).exists()
            own = more | {"bank_dtype": kind, "seed": seed}
            run = train(settings.source, out, settings.preset, resume=resume, limit=settings.limit, say=None, **own)
            if not run.finished:
                print(f"{out} is not finished: start again to go on.")
                return
            for which, values in found[kind].items():
                values.append(100 * evaluate(out, say=None, bank=which == "bank")["knn"]["top1"])
            facts = {"pictures": run.instances, "epochs": run.epochs}
            print(
                f"{kind:8s} seed {seed}: encoder {found[kind]['encoder'][-1]:.2f}, bank {found[kind]['bank'][-1]:.2f}"
            )
    record(
        settings.results / f"bank_rows_{name}.json",
        name=f"bank_rows_{name}",
        command=f"python runs/bank_rows.py {Path(settings.source).name} --preset {settings.preset}"
        f" --precision {settings.precision}"
        + "".join(
            f" --{option} {value:g}"
            for option, value in (("limit", settings.limit), ("epochs", settings.epochs), ("seeds", settings.seeds))
            if value is not None
        ),
        unit="kNN top-1 by the encoder, %, leave-one-out, k 200, temperature 0.07; float32 rows; `kinds` has all",
        values=found["float32"]["encoder"],
        seeds=list(range(settings.seeds)),
        kinds={
            kind: {
                which: {"values": values, "mean": statistics.fmean(values), "std": deviation(values)}
                for which, values in both.items()
            }
            for kind, both in found.items()
        },
        **facts,
    )


def deviation(values: list[float]) -> float | None:
    """The standard deviation over seeds, where there are two or more."""
    return statistics.stdev(values) if len(values) > 1 else None


if __name__ == "__main__":
    main()
