"""Networks and ways of training for an hour on two cores, at equal work on held-out training pictures.

    python runs/choose_recipe.py --train cifar10-train.parquet --minutes 15 --only "conv6/32;conv7/64"

Every candidate trains on 45,000 of the 50,000 training pictures with one thread for as many minutes of its own
processor time, so that another job on the machine does not matter, and two can run beside one another. The other 5,000
are classified by kNN, by search vectors and by the embedding. No test picture is seen. What is finished is not run
again, and all of it goes to results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import recipe_candidates  # noqa: F401  (makes their names known)
from held_out import RESULT, UNIT, Divided
from recipe_terms import WAYS
from record import record

from instdisc import KNN
from instdisc.encoder import Encoder
from instdisc.jobs import train as jobs
from instdisc.training import Training, loop

CANDIDATES: dict[str, dict[str, Any]] = {
    "conv6/32": {"backbone": "conv6", "width": 32},
    "conv6d/32": {"backbone": "conv6d", "width": 32},
    "conv8/32": {"backbone": "conv8", "width": 32},
    "conv7/48": {"backbone": "conv7", "width": 48},
    "conv7/64": {"backbone": "conv7", "width": 64},
    "conv7/96": {"backbone": "conv7", "width": 96},
}
WORDS: dict[str, dict[str, Any]] = {  # added to a candidate's name: "conv7/64 groups"
    "groups": {"groups": 64},
    "grow.25-.7": {"grow_at": (0.25, 0.7)},
    "grow.25-1": {"grow_at": (0.25, 0.9999)},
    "t.07": {"temperature": 0.07},
    "t.2": {"temperature": 0.2},
    "crop.3": {"crop_scale": (0.3, 1.0)},
    "lr.1": {"lr": 0.1},
    "lr.03": {"lr": 0.03},
    **{way: {} for way in WAYS},
}


def overrides_of(name: str) -> dict[str, Any]:
    """The settings that a candidate's name means."""
    network, *words = name.split()
    found = dict(CANDIDATES[network])
    for word in words:
        found |= WORDS[word]
    return found


def measure(encoder: Encoder, pictures: Divided) -> dict[str, float]:
    """kNN, %, of the held-out pictures among those trained on: by both vectors, k 200 and the nearest alone."""
    reached: dict[str, float] = {}
    for vectors in ("search", "embedding"):
        known, asked = (encoder.embed(part, vectors=vectors) for part in (pictures.images, pictures.out_images))
        for k, suffix in ((200, ""), (1, ", k 1")):
            score = KNN(k).fit(known, pictures.labels).score(asked, pictures.out_labels)
            reached[vectors + suffix] = round(100 * score, 2)
    return reached


def reach(pictures: Divided, folder: Path, name: str, minutes: float) -> dict[str, Any]:
    """What a candidate reaches, from its folder if it was made before."""
    result = folder / RESULT
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    overrides = overrides_of(name)
    jobs.Training = WAYS.get(name.split()[-1], Training)
    loop.time = SimpleNamespace(monotonic=time.process_time)  # the run's clock: its own work
    run = jobs.train(pictures.images, folder, "laptop_cifar10", minutes=minutes, monitor_epochs=1000, **overrides)
    facts = {"candidate": name, "minutes": minutes, "epochs": round(run.epochs, 2)}
    facts |= measure(run.encoder(), pictures) | {"overrides": overrides}
    result.write_text(json.dumps(facts), encoding="utf-8")
    print(facts, flush=True)
    return facts


def main() -> None:
    """Train and measure the candidates asked for; record all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--minutes", type=float, default=15.0, help="of one core's time, each")
    parser.add_argument("--only", default=";".join(CANDIDATES), help="names of candidates, separated by semicolons")
    parser.add_argument("--name", default="choose_recipe", help="of the result")
    parser.add_argument("--runs", type=Path, default=Path("runs/out/choose_recipe"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    pictures = Divided.of(settings.train)
    for name in settings.only.split(";"):
        reach(
            pictures,
            settings.runs / f"{name} {settings.minutes:g}".replace(" ", "_").replace("/", "-"),
            name,
            settings.minutes,
        )
    done = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(settings.runs.glob(f"*/{RESULT}"))]
    record(
        settings.results / f"{settings.name}.json",
        name=settings.name,
        command="python runs/choose_recipe.py --minutes MINUTES --only CANDIDATE",
        unit=f"{UNIT}, one seed each; `values` are of the search vectors",
        values=[facts["search"] for facts in done],
        seeds=[0] * len(done),
        candidates=done,
    )


if __name__ == "__main__":
    main()
