"""The figure of the demo over seeds: leave-one-out kNN on the handwritten digits, beside the baselines.

python benchmarks/digits.py --out results/digits.json          # some minutes on two cores
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from record import record

from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.train import train


def main() -> None:
    """Train and evaluate the preset `digits` with each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--seeds", type=int, default=3)
    settings = parser.parse_args()
    reports, seconds = [], []
    for seed in range(settings.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = train("digits", Path(folder) / "run", "digits", seed=seed, say=None)
            reports.append(evaluate(run.path, say=None))
            seconds.append(round(run.seconds, 1))
    record(
        settings.out,
        name="digits",
        command=f"python benchmarks/digits.py --seeds {settings.seeds}",
        unit="kNN top-1, %, leave-one-out over all 1,797 digits, k 200, temperature 0.07, by search vectors",
        values=[100 * report["knn_search"]["top1"] for report in reports],
        embedding=[100 * report["knn"]["top1"] for report in reports],
        seeds=list(range(settings.seeds)),
        baselines={name: 100 * result["top1"] for name, result in reports[0]["baselines"].items()},
        training_seconds=seconds,
    )


if __name__ == "__main__":
    main()
