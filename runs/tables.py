"""A table of the paper at CPU scale, made by `instdisc reproduce` and recorded under results/ with commit and command.

    python runs/tables.py objectives --train cifar10-train.parquet --test cifar10-test.parquet     # 40 minutes
    python runs/tables.py proximal                                                                  # from torchvision
    python runs/tables.py partition --published-optimizer --set width=16 --set epochs=12

A table that was stopped goes on. The result goes to results/TABLE-SCALE.json, .md, .png and .svg; with the published
optimizer to TABLE-SCALE-published.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.cli.train import parse_settings
from instdisc.jobs.reproduce import name_of, reproduce
from instdisc.jobs.tables import SCALES, TABLES


def main() -> None:
    """Make the table and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--scale", choices=list(SCALES), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--published-optimizer", action="store_true", help="the paper's SGD for the scale's own")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of all runs")
    parser.add_argument("--train")
    parser.add_argument("--test")
    parser.add_argument("--out", type=Path, default=Path("runs/out"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    folder = settings.out / name_of(settings.table, settings.scale, settings.published_optimizer)
    made = reproduce(
        settings.table,
        folder,
        scale=settings.scale,
        published_optimizer=settings.published_optimizer,
        seeds=settings.seeds,
        source=settings.train,
        test=settings.test,
        **parse_settings(settings.set),
    )
    best = max(made["rows"], key=lambda row: row["knn"]["mean"])
    record(
        settings.results / f"{made['name']}.json",
        name=made["name"],
        command=f"python runs/tables.py {settings.table} --scale {settings.scale} --seeds {settings.seeds}"
        + (" --published-optimizer" if settings.published_optimizer else "")
        + "".join(f" --set {words}" for words in settings.set),
        unit=f"kNN of the best row ({best['name']}); `rows` has all, {made['unit']}",
        values=best["knn"]["values"],
        seeds=made["seeds"],
        about=made["about"],
        rows=made["rows"],
        settings=made["settings"],
    )
    for ending in ("md", "png", "svg"):
        shutil.copy(folder / f"table.{ending}", settings.results / f"{made['name']}.{ending}")


if __name__ == "__main__":
    main()
