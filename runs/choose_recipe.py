"""Networks and optimizers for an hour on two cores, compared at equal work on held-out training pictures.

    python runs/choose_recipe.py --train cifar10-train.parquet --cost          # seconds a step of each, in turns
    python runs/choose_recipe.py --train cifar10-train.parquet --epochs 4      # as long as the base takes for 4

Every candidate trains on 45,000 of the 50,000 training pictures for as many epochs as cost what the base's do, by the
measured seconds of its steps at each side, so that another job on the machine does not matter. The other 5,000 are
classified by kNN in two spaces: the embedding, and pooled features of the last two stages, whitened by what they
are over the gallery. No test picture is seen. What was interrupted goes on where it stopped; what is finished is not
run again, and all of it goes to results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import recipe_candidates  # noqa: F401  (makes their names known)
from held_out import RESULT, UNIT, Divided
from record import record

from instdisc import KNN, load
from instdisc.data.pictures import open_pictures
from instdisc.data.source import open_source
from instdisc.encoder import Encoder, build_encoder
from instdisc.jobs.sources import read_facts
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.training import Settings, Training
from instdisc.training.presets import laptop_cifar10

BASE = "conv6/32"
CANDIDATES: dict[str, dict[str, Any]] = {
    BASE: {"backbone": "conv6", "width": 32},
    "conv8/32": {"backbone": "conv8", "width": 32},
    "conv6s/32": {"backbone": "conv6s", "width": 32},
    "conv7/48": {"backbone": "conv7", "width": 48},
    "conv7/64": {"backbone": "conv7", "width": 64},
}
WORDS: dict[str, dict[str, Any]] = {  # added to a candidate's name: "conv7/64 dirac"
    "dirac": {"dirac": True},
    "t.07": {"temperature": 0.07},
    "crop.3": {"crop_scale": (0.3, 1.0)},
    "lr.1": {"lr": 0.1},
    "lr.03": {"lr": 0.03},
}
PHASES = (0.1, 0.6, 0.9)  # fractions of the run at which its views have their three sides
COST_PICTURES = 8_192


def overrides_of(name: str) -> dict[str, Any]:
    """The settings that a candidate's name means."""
    network, *words = name.split()
    found = dict(CANDIDATES[network])
    for word in words:
        found |= WORDS[word]
    if found.pop("dirac", False):
        found["backbone"] += "d"
    return found


def settings_of(name: str) -> Settings:
    """The preset with a candidate's settings."""
    return laptop_cifar10().with_overrides(overrides_of(name))


def measure_costs(pictures: Divided, names: list[str], rounds: int) -> dict[str, list[float]]:
    """The least seconds of a whole training step at the three sides, the candidates in turns."""
    opened = open_pictures(open_source(pictures.images[:COST_PICTURES]), 32, torch.device("cpu"), storage="memory")
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for name in names:
            settings = settings_of(name).with_overrides({"fill_epochs": 0.0})
            encoder = build_encoder(settings.encoder, seed=0)
            runs[name] = Training(RunFolder(folder), settings, opened, encoder, torch.device("cpu"))
            runs[name].encoder.train()
        (batch,) = islice(opened.batches([np.arange(settings.batch)]), 1)
        least = {name: [float("inf")] * len(PHASES) for name in names}
        for number in range(rounds + 1):
            for place, progress in enumerate(PHASES):
                for name, training in runs.items():
                    training.progress = progress
                    started = time.perf_counter()
                    training.step(iter([batch]), len(batch.indices))
                    if number:  # the first pays for allocations and compiling
                        least[name][place] = min(least[name][place], time.perf_counter() - started)
    return least


def mean_cost(settings: Settings, seconds: list[float]) -> float:
    """Seconds of a step in the mean over a run, whose phases are shares of its work and not of its steps."""
    growth = settings.growth
    ends = (0.0, *growth.until, 1.0)
    steps = [
        (end - start) / share**2 for share, (start, end) in zip((*growth.shares, 1.0), pairwise(ends), strict=True)
    ]
    return float(np.dot(steps, seconds) / sum(steps))


def whitening(features: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and matrix (d, d) that give centred features unit covariance.

    shrinkage: a share of the largest eigenvalue that is added to all, so that directions of little variance stay small.
    """
    mean = features.mean(axis=0)
    values, directions = np.linalg.eigh(np.cov(features.T))
    return mean, directions / np.sqrt(np.maximum(values, 1e-10 * values[-1]) + shrinkage * values[-1])


def pooled_of(levels: dict[str, torch.Tensor]) -> np.ndarray:
    """Pooled features of the last two stages beside one another, float64."""
    stages = [name for name in levels if name.startswith(("stage", "layer"))][-2:]
    return torch.cat([levels[name] for name in stages], dim=1).double().numpy()


def score(
    known: dict[str, np.ndarray], labels: np.ndarray, asked: dict[str, np.ndarray], out_labels: np.ndarray
) -> dict[str, float]:
    """kNN, %: of each space, with k 200, and with the nearest neighbour alone. Whitening is fitted on `known`."""
    found = {"embedding": (known["embedding"], asked["embedding"])}
    for name, shrinkage in (("whitened", 1e-3), ("whitened, no shrinkage", 0.0)):
        mean, matrix = whitening(known["pooled"], shrinkage)
        first, second = (((part["pooled"] - mean) @ matrix).astype(np.float32) for part in (known, asked))
        found[name] = first, second
    reached: dict[str, float] = {"gallery": len(labels)}
    for name, (vectors, queries) in found.items():
        for k, suffix in ((200, ""), (1, ", k 1")):
            reached[name + suffix] = round(100 * KNN(k).fit(vectors, labels).score(queries, out_labels), 2)
    return reached


def measure(encoder: Encoder, pictures: Divided, gallery: int) -> dict[str, float]:
    """`score` of the held-out pictures among the first of those trained on."""
    known, asked = (encoder.features(images) for images in (pictures.images[:gallery], pictures.out_images))
    first, second = (
        {"embedding": levels["embedding"].numpy(), "pooled": pooled_of(levels)} for levels in (known, asked)
    )
    return score(first, pictures.labels[:gallery], second, pictures.out_labels)


def reach(pictures: Divided, folder: Path, name: str, epochs: float, gallery: int) -> dict[str, Any] | None:
    """What a candidate reaches, from its folder if it was made before; None if it was interrupted."""
    result = folder / RESULT
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    overrides = overrides_of(name) | {"epochs": epochs, "monitor_epochs": 1000}
    run = train(pictures.images, folder, "laptop_cifar10", resume="auto", **overrides)
    if not run.finished:
        return None
    facts = {"candidate": name, "epochs": round(run.epochs, 2), "minutes": round(run.seconds / 60, 1)}
    facts |= measure(run.encoder(), pictures, gallery) | {"overrides": overrides_of(name)}
    result.write_text(json.dumps(facts), encoding="utf-8")
    print(facts, flush=True)
    return facts


def main() -> None:
    """Measure the costs, or train and measure the candidates asked for; record all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--cost", action="store_true", help="measure seconds a step, and train nothing")
    parser.add_argument("--rounds", type=int, default=3, help="of --cost")
    parser.add_argument("--epochs", type=float, default=4.0, help="of the base; a candidate gets those of equal work")
    parser.add_argument("--gallery", type=int, default=45_000, help="pictures that the held-out ones are looked for in")
    parser.add_argument("--only", default=";".join(CANDIDATES), help="names of candidates, separated by semicolons")
    parser.add_argument(
        "--measure", type=Path, help="a finished run of the base, on the same 45,000: measure it, and train nothing"
    )
    parser.add_argument("--name", default="choose_recipe", help="of the result")
    parser.add_argument("--runs", type=Path, default=Path("runs/out/choose_recipe"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    pictures, names, costs = Divided.of(settings.train), settings.only.split(";"), settings.runs / "cost.json"
    known: dict[str, list[float]] = json.loads(costs.read_text(encoding="utf-8")) if costs.is_file() else {}
    if settings.cost:
        settings.runs.mkdir(parents=True, exist_ok=True)
        found = measure_costs(pictures, names, settings.rounds)
        if BASE in known and BASE in found:  # another moment of the machine: what counts is how a cost is to the base's
            quiet = [then / now for then, now in zip(known[BASE], found[BASE], strict=True)]
            found = {name: [a * b for a, b in zip(cost, quiet, strict=True)] for name, cost in found.items()}
        known |= found
        costs.write_text(json.dumps(known), encoding="utf-8")
        print(known)
        return
    if settings.measure is not None:
        run = read_facts(RunFolder(settings.measure))["settings"]
        facts = {"candidate": BASE, "epochs": run["epochs"], "overrides": overrides_of(BASE)}
        facts |= measure(load(settings.measure), pictures, settings.gallery)
        folder = settings.runs / f"base {run['epochs']:g}".replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).write_text(json.dumps(facts), encoding="utf-8")
        print(facts)
        return
    if not known:
        parser.error("measure the costs first: --cost")
    base = settings.epochs * mean_cost(settings_of(BASE), known[BASE])
    for name in names:
        epochs = round(base / mean_cost(settings_of(name), known[name.split()[0]]), 2)
        folder = settings.runs / f"{name} {settings.epochs:g}".replace(" ", "_").replace("/", "-")
        if reach(pictures, folder, name, epochs, settings.gallery) is None:
            print(f"{name} was interrupted: start again to go on.")
            return
    done = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(settings.runs.glob(f"*/{RESULT}"))]
    record(
        settings.results / f"{settings.name}.json",
        name=settings.name,
        command="python runs/choose_recipe.py --epochs EPOCHS --only CANDIDATE",
        unit=f"{UNIT}, one seed each; `values` are of the embedding",
        values=[facts["embedding"] for facts in done],
        seeds=[0] * len(done),
        seconds_a_step={name: dict(zip(("16 px", "24 px", "32 px"), known[name], strict=True)) for name in known},
        candidates=done,
    )


if __name__ == "__main__":
    main()
