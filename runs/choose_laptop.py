"""How the recipe of `laptop_cifar10` was chosen: candidates beside it, for some minutes each, on a part of train.

    python runs/choose_laptop.py --train cifar10-train.parquet --minutes 5        # without --train: torchvision

Every candidate trains on 45,000 of the 50,000 training pictures for the same minutes; the other 5,000 are classified
by kNN. No test picture is seen. Keep the machine quiet: candidates are compared by what they reach in the same time.
Those whose steps cost alike can be compared by --epochs instead, which another job on the machine does not disturb.
What is finished is not run again, and all of it, of any length, goes to results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from held_out import RESULT, UNIT, Divided
from record import record

ONE_SIZE: dict[str, Any] = {"early_sizes": (), "grow_at": ()}
CANDIDATES: dict[str, dict[str, Any]] = {
    "conv6, Muon, lr 0.02": {"backbone": "conv6", "lr": 0.02} | ONE_SIZE,
    "conv6, SGD, lr 0.25": {"backbone": "conv6", "optimizer": "sgd", "lr": 0.25} | ONE_SIZE,
    "conv6, Muon, lr 0.05": {"backbone": "conv6", "lr": 0.05} | ONE_SIZE,
    "conv8, Muon, lr 0.05": {"backbone": "conv8", "lr": 0.05} | ONE_SIZE,
    # What helped in the short runs of recipe.py, tried for longer with more pictures, at the rate of the preset.
    "rows move by half, no filling pass": {"bank_momentum": 0.5, "fill_epochs": 0.0} | ONE_SIZE,
    # Whether views should grow, and how.
    "views of 32 px": ONE_SIZE,
    "of 16, then 32 px": {"early_sizes": (0.5,), "grow_at": (0.7,)},
    "of 16, 24, then 32 px": {"early_sizes": (0.5, 0.75), "grow_at": (0.5, 0.8)},
    "of 16, 24, then 32 px, sooner": {"early_sizes": (0.5, 0.75), "grow_at": (0.3, 0.6)},
}


def main() -> None:
    """Train and measure every candidate asked for, and record all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each candidate")
    parser.add_argument("--epochs", type=float, help="for each candidate, in place of minutes")
    parser.add_argument("--only", help="names of candidates, separated by semicolons")
    parser.add_argument("--name", default="choose_laptop", help="of the result")
    parser.add_argument("--runs", type=Path, default=Path("runs/out/choose_laptop"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    pictures = Divided.of(settings.train)
    length = {"minutes": settings.minutes} if settings.epochs is None else {"epochs": settings.epochs}
    spelled = " ".join(f"{value:g} {name.removesuffix('utes')}" for name, value in length.items())
    for name in settings.only.split(";") if settings.only else list(CANDIDATES):
        folder = settings.runs / f"{name}, {spelled}".replace(", ", "_").replace(" ", "_")
        facts = pictures.reach(folder, name, "laptop_cifar10", **length, **CANDIDATES[name])
        if facts is None:
            print(f"{name} was interrupted: start again to go on with the others.")
            return
    done = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(settings.runs.glob(f"*/{RESULT}"))]
    done.sort(key=lambda facts: (facts["minutes"] or float("inf"), -facts["top1"]))
    record(
        settings.results / f"{settings.name}.json",
        name=settings.name,
        command="python runs/choose_laptop.py --minutes MINUTES (or --epochs EPOCHS) --only CANDIDATE",
        unit=f"{UNIT}, one seed each",
        values=[facts["top1"] for facts in done],
        seeds=[0] * len(done),
        candidates=done,
    )


if __name__ == "__main__":
    main()
