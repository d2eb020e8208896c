"""What each part of the recipe `laptop_cifar10` gives: one part taken away or changed, at equal minutes.

    python runs/recipe.py --train cifar10-train.parquet --minutes 4 --seeds 2        # without --train: torchvision

Every row trains on 45,000 of the 50,000 training pictures for the same minutes, and the other 5,000 are classified by
kNN: no test picture is seen. The last two rows are the paper's recipe, with its network and with ours. Keep the machine
quiet: rows are compared by what they reach in the same time. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from held_out import UNIT, Divided
from record import record

ONE_VIEW = {"views": 1, "view_share": 0.0, "fill_epochs": 0.0}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "the recipe": ("laptop_cifar10", {}),
    "SGD in place of Muon": ("laptop_cifar10", {"optimizer": "sgd", "lr": 0.25}),
    "one view": ("laptop_cifar10", ONE_VIEW),
    "two views, the bank alone": ("laptop_cifar10", {"view_share": 0.0, "fill_epochs": 0.0}),
    "no filling pass": ("laptop_cifar10", {"fill_epochs": 0.0}),
    "linear head": ("laptop_cifar10", {"head": "linear"}),
    "no flip": ("laptop_cifar10", {"flip": 0.0}),
    "steps in place of the cosine": ("laptop_cifar10", {"schedule": "step", "warmup": 0.0}),
    "published colours": ("laptop_cifar10", {"jitter": 1.0, "hue": 0.4}),
    "exact softmax": ("laptop_cifar10", {"objective": "softmax"}),
    "NCE": ("laptop_cifar10", {"objective": "nce"}),
    "own row masked": ("laptop_cifar10", {"mask_own": True}),
    "rows of the bank move by half": ("laptop_cifar10", {"bank_momentum": 0.5}),
    "temperature 0.07": ("laptop_cifar10", {"temperature": 0.07}),
    "temperature 0.2": ("laptop_cifar10", {"temperature": 0.2}),
    "the paper's recipe, our network": ("paper_cifar10", {"backbone": "conv6", "width": 32}),
    "the paper's recipe": ("paper_cifar10", {}),
}


def main() -> None:
    """Make the rows asked for, seed by seed, and record all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--minutes", type=float, default=4.0, help="for each row and seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="names of rows, separated by semicolons")
    parser.add_argument("--runs", type=Path, default=Path("runs/out/recipe"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    wanted = settings.only.split(";") if settings.only else list(ROWS)
    pictures = Divided.of(settings.train)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(settings.seeds):
        for name in wanted:
            preset, overrides = ROWS[name]
            folder = settings.runs / f"{name}, {settings.minutes:g} min, {seed}".replace(", ", "_").replace(" ", "_")
            facts = pictures.reach(folder, name, preset, minutes=settings.minutes, seed=seed, **overrides)
            if facts is None:
                print(f"{name} was interrupted: start again to go on.")
                return
            found.setdefault(name, []).append(facts)
    rows = []
    for name, reached in found.items():
        values = [facts["top1"] for facts in reached]
        rows.append(
            {
                "name": name,
                "preset": ROWS[name][0],
                "overrides": ROWS[name][1],
                "values": values,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "epochs": [facts["epochs"] for facts in reached],
            }
        )
    record(
        settings.results / "recipe.json",
        name="recipe",
        command=f"python runs/recipe.py --minutes {settings.minutes:g} --seeds {settings.seeds}",
        unit=f"{UNIT}; `values` are those of {rows[0]['name']}, `rows` has all",
        values=rows[0]["values"],
        seeds=list(range(settings.seeds)),
        minutes=settings.minutes,
        rows=rows,
    )


if __name__ == "__main__":
    main()
