"""What views that grow over the run give at equal minutes: the same preset with and without, one after the other.

    python runs/growing.py photos.parquet --minutes 6         # labelled pictures; keep the machine quiet

The pictures that are trained on are classified by kNN, leave-one-out. An interrupted run goes on where it stopped, and
what is finished is not run again. The result goes to results/growing.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

WAYS: dict[str, dict[str, Any]] = {"growing": {}, "one size": {"early_sizes": (), "grow_at": ()}}


def main() -> None:
    """Both ways, then the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--minutes", type=float, default=6.0, help="for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/out/growing"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    rows = []
    for name, changes in WAYS.items():
        folder = settings.out / f"{settings.preset}_{name}_{settings.minutes:g}_min_{settings.seed}".replace(" ", "_")
        length = {"minutes": settings.minutes, "seed": settings.seed, "monitor_epochs": 1000}
        run = train(settings.source, folder, settings.preset, resume=RunFolder(folder).exists(), **(length | changes))
        if not run.finished:
            print(f"{folder} is not finished: start again to go on.")
            return
        report = evaluate(folder)
        rows.append(
            {
                "name": name,
                "top1": 100 * report["knn"]["top1"],
                "interval": [100 * bound for bound in report["knn"]["interval"]],
                "epochs": round(run.epochs, 2),
            }
        )
    chosen = RunFolder(folder).read_config()
    record(
        settings.results / "growing.json",
        name="growing",
        command=f"python runs/growing.py {Path(settings.source).name} --preset {settings.preset} "
        f"--minutes {settings.minutes:g} --seed {settings.seed}",
        unit="kNN top-1, %, leave-one-out on the training pictures, growing views; `rows` has both",
        values=[rows[0]["top1"]],
        seeds=[settings.seed],
        rows=rows,
        pictures=run.instances,
        precision=chosen["chosen"]["precision"],
    )


if __name__ == "__main__":
    main()
