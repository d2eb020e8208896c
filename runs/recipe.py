"""What each part of our recipe gives: one part taken away or changed, at equal minutes.

    python runs/recipe.py --train cifar10-train.parquet        # without --train: torchvision; about 100 minutes

Every row trains on 10,000 of the 50,000 training pictures, and 10,000 others are classified by kNN: no test picture is
seen. First each row's pace is measured, one short run after another, for which the machine should be quiet; then a row
runs for as many epochs as it makes in the minutes, so what else the machine does changes nothing. The last two rows
are the paper's recipe, with our network and with its own. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from held_out import RESULT, UNIT, Divided
from record import record

from instdisc.jobs.train import train

PICTURES = HELD_OUT = 10_000
PACE_MINUTES = 0.35
RECIPE = "laptop_cifar10"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "the recipe": (RECIPE, {}),
    "one view": (RECIPE, {"views": 1, "view_share": 0.0, "fill_epochs": 0.0}),
    "SGD in place of Muon": (RECIPE, {"optimizer": "sgd", "lr": 0.25}),
    "two views, the bank alone": (RECIPE, {"view_share": 0.0, "fill_epochs": 0.0}),
    "no filling pass": (RECIPE, {"fill_epochs": 0.0}),
    "linear head": (RECIPE, {"head": "linear"}),
    "no flip": (RECIPE, {"flip": 0.0}),
    "steps in place of the cosine": (RECIPE, {"schedule": "step", "warmup": 0.0}),
    "published colours": (RECIPE, {"jitter": 1.0, "hue": 0.4}),
    "exact softmax": (RECIPE, {"objective": "softmax"}),
    "own row not in the denominator": (RECIPE, {"mask_own": True}),
    "rows of the bank move by half": (RECIPE, {"bank_momentum": 0.5}),
    "temperature 0.2": (RECIPE, {"temperature": 0.2}),
    "temperature 0.07": (RECIPE, {"temperature": 0.07}),
    "small rate for biases": (RECIPE, {"vector_lr": 0.001}),
    "the paper's recipe, our network": ("paper_cifar10", {"backbone": "conv6", "width": 32}),
    "the paper's recipe": ("paper_cifar10", {}),
}


def main() -> None:
    """Make the rows asked for, seed by seed, and record all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--minutes", type=float, default=2.5, help="for each row and seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="names of rows, separated by semicolons")
    parser.add_argument("--runs", type=Path, default=Path("runs/out/recipe"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    wanted = settings.only.split(";") if settings.only else list(ROWS)
    pictures = Divided.of(settings.train, HELD_OUT, PICTURES)
    paces = {name: pace(pictures, settings.runs / f"pace_{_plain(name)}", name) for name in wanted}
    for seed in range(settings.seeds):
        for name in wanted:
            preset, overrides = ROWS[name]
            epochs = round(settings.minutes * paces[name], 2)
            length = {"minutes": None, "epochs": epochs, "seed": seed}
            if pictures.reach(folder_of(settings, name, seed), name, preset, **(length | overrides)) is None:
                print(f"{name} was interrupted: start again to go on.")
                return
            write(settings)


def folder_of(settings: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a row's run stands."""
    return Path(settings.runs) / f"{_plain(name)}_{settings.minutes:g}_min_{seed}"


def pace(pictures: Divided, folder: Path, name: str) -> float:
    """Epochs a minute of a row, from a short run of its own."""
    result = folder / "pace.json"
    if not result.is_file():
        preset, overrides = ROWS[name]
        shutil.rmtree(folder, ignore_errors=True)
        run = train(pictures.images, folder, preset, monitor_epochs=1000, minutes=PACE_MINUTES, **overrides)
        result.write_text(json.dumps(60 * run.epochs / run.seconds), encoding="utf-8")
    return float(json.loads(result.read_text(encoding="utf-8")))


def write(settings: argparse.Namespace) -> None:
    """Record all that is finished; differences are to the first row, seed by seed."""
    found = {}
    for name in ROWS:
        results = [folder_of(settings, name, seed) / RESULT for seed in range(settings.seeds)]
        if reached := [json.loads(file.read_text(encoding="utf-8")) for file in results if file.is_file()]:
            found[name] = reached
    first = next(iter(found.values()))
    rows = []
    for name, reached in found.items():
        values = [facts["top1"] for facts in reached]
        gains = [facts["top1"] - other["top1"] for facts, other in zip(reached, first, strict=False)]
        rows.append(
            {
                "name": name,
                "preset": ROWS[name][0],
                "overrides": ROWS[name][1],
                "values": values,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "difference": statistics.fmean(gains),
                "epochs": reached[0]["epochs"],
            }
        )
    record(
        settings.results / "recipe.json",
        name="recipe",
        command=f"python runs/recipe.py --minutes {settings.minutes:g} --seeds {settings.seeds}",
        unit=f"{UNIT}; `values` are those of {rows[0]['name']}, `rows` has all",
        values=rows[0]["values"],
        seeds=list(range(len(first))),
        pictures=PICTURES,
        held_out=HELD_OUT,
        minutes=settings.minutes,
        rows=rows,
    )


def _plain(name: str) -> str:
    return name.replace(",", "").replace("'", "").replace(" ", "_")


if __name__ == "__main__":
    main()
