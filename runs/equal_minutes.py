"""Equal minutes on the same cores: instdisc beside lightly's SimCLR and VICReg, in turns; kNN on features for all.

    python runs/equal_minutes.py --train cifar10-train.parquet --test cifar10-test.parquet --minutes 5 20 60
    python runs/equal_minutes.py --processor --minutes 20      # beside other work: minutes of one core's own time

Every contestant trains anew for each number of minutes, with its whole schedule within them. They take turns of five
minutes, each in a process of its own that goes on from its last checkpoint, so that a slow hour of the machine meets
all; only the minutes in which it trains count. With --processor everyone has one thread and its minutes are those of
that thread, so that another job on the machine does not matter. Start the same command again to go on; a subset of the
contestants with --only. Results go to results/equal_minutes.json beside those of earlier calls, the plot to
results/equal_minutes.png; what is measured is not trained again.

lightly trains as its own CIFAR-10 benchmark does (SimCLR: batch 128, SGD 0.06, cosine; VICReg as in its Imagenette
one: batch 256, LARS 0.3, a tenth of warm-up, then cosine), in bfloat16 where ours does and in channels_last memory as
ours, with a DataLoader of two workers (none with --processor); once with ResNet-18 and once with the network of
`laptop_cifar10`. Everyone's pooled features are classified by weighted kNN (k 200, temperature 0.07), as they are and
whitened by the rule of our search vectors; and our embedding. The closed form is shown beside them from
results/closed_form.json. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc import KNN, load
from instdisc.allocator import keep_freed_memory
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.open import open_source
from instdisc.encoder import Encoder, EncoderConfig, build_encoder
from instdisc.encoder.backbones import evaluating
from instdisc.evaluation.intervals import wilson
from instdisc.jobs.search_vectors import SAMPLE, fitted
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.training import choose_precision, loop, read_metrics

TURN = 5.0  # minutes
RESULT = "reached.json"
OURS = "instdisc, laptop_cifar10"
NETWORKS = {"conv7": ("conv7", 64), "ResNet-18": ("resnet18", None)}
METHODS = {"SimCLR": 128, "VICReg": 256}  # and their batches
THEIRS = {f"lightly's {method}, {network}": (method, network) for network in NETWORKS for method in METHODS}


@dataclass(frozen=True)
class Clock:
    """What a minute is: one of the wall's, or of this process's own work on one core."""

    processor: bool

    def start(self) -> None:
        """Let this process, and our training in it, go by this clock."""
        if self.processor:
            torch.set_num_threads(1)
            loop.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[attr-defined]

    def now(self) -> float:
        """Seconds since some moment."""
        return time.process_time() if self.processor else time.perf_counter()

    @property
    def workers(self) -> int:
        """Processes that may prepare the pictures: none whose work would not be counted."""
        return 0 if self.processor else 2


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures (n, 32, 32, 3)."""

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, path: str | None, split: str) -> Pictures:
        source = open_source(path) if path else open_source("cifar10", split=split)
        stored = open_pictures(source, 32, torch.device("cpu"), storage="memory")
        (batch,) = stored.batches([np.arange(stored.count)])
        return cls(batch.images.permute(0, 2, 3, 1).contiguous().numpy(), source.labels[stored.rows])


def train_ours(images: np.ndarray, folder: Path, minutes: float, turn: float) -> bool:
    """A turn of our training, ended as Ctrl-C ends it; whether the run is finished."""
    timer = threading.Timer(60 * turn, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        run = train(images, folder, "laptop_cifar10", resume="auto", minutes=minutes, monitor_epochs=1000)
    finally:
        timer.cancel()
    return run.finished


class Theirs:
    """lightly's loss, head, transform and optimizer around a backbone of ours; what a checkpoint has to hold."""

    def __init__(self, method: str, network: str, clock: Clock) -> None:
        from lightly.loss import NTXentLoss, VICRegLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.models.modules.heads import VICRegProjectionHead
        from lightly.utils.lars import LARS

        self.clock = clock
        torch.manual_seed(0)
        name, width = NETWORKS[network]
        self.encoder = build_encoder(EncoderConfig(backbone=name, width=width, image_size=32), seed=0)
        channels = self.encoder.channels
        self.batch = METHODS[method]
        if method == "SimCLR":
            head, self.criterion = SimCLRProjectionHead(channels, channels, 128), NTXentLoss()
        else:
            head, self.criterion = VICRegProjectionHead(channels, 2048, 2048, num_layers=3), VICRegLoss()
        self.model = nn.Sequential(self.encoder.backbone, head).to(memory_format=torch.channels_last)
        parameters = self.model.parameters()
        if method == "SimCLR":
            self.rate, self.warmup = 0.06 * self.batch / 128, 0.0
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters, self.rate, momentum=0.9, weight_decay=5e-4
            )
        else:
            self.rate, self.warmup = 0.3 * self.batch / 256, 0.1
            self.optimizer = LARS(parameters, self.rate, momentum=0.9, weight_decay=1e-4)
        self.seconds, self.steps = 0.0, 0

    def pairs(self, images: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Two views of every picture of a batch, epoch after epoch."""
        from lightly.transforms import SimCLRTransform
        from PIL import Image
        from torch.utils.data import DataLoader, Dataset

        preprocessing = self.encoder.preprocessing
        normal = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
        transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0, normalize=normal)

        class Views(Dataset[Any]):
            def __len__(self) -> int:
                return len(images)

            def __getitem__(self, row: int) -> Any:
                return transform(Image.fromarray(images[row]))

        while True:
            yield from DataLoader(Views(), self.batch, shuffle=True, drop_last=True, num_workers=self.clock.workers)

    def train(self, images: np.ndarray, folder: Path, minutes: float, turn: float) -> bool:
        """A turn of plain training; whether the minutes are over."""
        saved = folder / "training.pt"
        if saved.is_file():
            state = torch.load(saved, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.seconds, self.steps = state["seconds"], state["steps"]
        torch.manual_seed(self.steps)  # other pictures after a checkpoint than after the start
        lowered = choose_precision(self.encoder, torch.device("cpu"), "auto", self.batch).precision == "bfloat16"
        self.model.train()
        pairs, begun = self.pairs(images), self.seconds
        batch, started = next(pairs), self.clock.now()  # the workers' start is not counted
        while self.seconds < 60 * minutes and self.seconds - begun < 60 * turn:
            progress = self.seconds / (60 * minutes)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * self._factor(progress)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
                first, second = (self.model(view.contiguous(memory_format=torch.channels_last)) for view in batch)
            self.criterion(first.float(), second.float()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
            batch = next(pairs)
            self.seconds = begun + self.clock.now() - started
        folder.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "seconds": self.seconds, "steps": self.steps}, folder / "training.new")
        (folder / "training.new").replace(saved)
        return self.seconds >= 60 * minutes

    def _factor(self, progress: float) -> float:
        if progress < self.warmup:
            return (progress + 1e-4) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (1 - self.warmup))))


def measure(encoder: Encoder, known: Pictures, asked: Pictures) -> dict[str, float]:
    """kNN, %, of pooled features as they are and as search vectors; all in the precision of the training."""
    precision = choose_precision(encoder, torch.device("cpu"), "auto", 256).precision
    sample = np.random.default_rng(0).permutation(len(known.images))[:SAMPLE]
    pixels = torch.from_numpy(known.images[sample]).permute(0, 3, 1, 2)
    with evaluating(encoder):
        whitening = fitted(encoder, map(encoder.preprocessing.normalise, pixels.split(256)), -1, len(pixels))
    first, second = (encoder.features(part.images, precision=precision, deviations=True) for part in (known, asked))
    spaces = {
        "features": [nn.functional.normalize(part["backbone"], dim=1) for part in (first, second)],
        "search": [whitening.of(part) for part in (first, second)],
    }
    return {
        name: round(100 * KNN().fit(gallery, known.labels).score(queries, asked.labels), 2)
        for name, (gallery, queries) in spaces.items()
    }


def take_turn(
    name: str, folder: Path, minutes: float, turn: float, clock: Clock, known: Pictures, asked: Pictures
) -> None:
    """Train one contestant for a turn, and measure it when its minutes are over."""
    keep_freed_memory()
    clock.start()
    if name == OURS:
        if not train_ours(known.images, folder, minutes, turn):
            return
        encoder, facts = load(folder), {"epochs": round(read_metrics(RunFolder(folder))[-1]["epoch"], 2)}
        embedding = [encoder.embed(part.images, vectors="embedding") for part in (known, asked)]
        facts["embedding"] = round(100 * KNN().fit(embedding[0], known.labels).score(embedding[1], asked.labels), 2)
    else:
        theirs = Theirs(*THEIRS[name], clock)
        if not theirs.train(known.images, folder, minutes, turn):
            return
        encoder = theirs.encoder
        facts = {"epochs": round(theirs.steps * theirs.batch / len(known.images), 2)}
    of = "one core's own time" if clock.processor else "the clock, two cores"
    facts = {"contestant": name, "minutes": minutes, "minutes of": of, "asked": len(asked.labels)} | facts
    facts |= measure(encoder, known, asked)
    (folder / RESULT).write_text(json.dumps(facts), encoding="utf-8")
    print(facts, flush=True)


def turns(settings: argparse.Namespace) -> None:
    """All contestants in turns, until each has had its minutes; every turn a process of its own."""
    heats = [(name, minutes) for minutes in sorted(settings.minutes) for name in settings.only.split(";")]
    left = [heat for heat in heats if not (folder_of(settings.work, *heat) / RESULT).is_file()]
    while left:
        for name, minutes in list(left):
            words = [
                sys.executable,
                __file__,
                "--take",
                name,
                "--minutes",
                f"{minutes:g}",
                "--turn",
                f"{settings.turn:g}",
            ]
            words += ["--work", str(settings.work)] + ["--processor"] * settings.processor
            for option in ("train", "test"):
                words += [f"--{option}", getattr(settings, option)] if getattr(settings, option) else []
            print(f"{name}, {minutes:g} minutes", flush=True)
            subprocess.run(words, check=True)
            if (folder_of(settings.work, name, minutes) / RESULT).is_file():
                left.remove((name, minutes))


def folder_of(work: Path, name: str, minutes: float) -> Path:
    """Where a contestant works for this many minutes."""
    return work / f"{name} {minutes:g}".replace("'", "").replace(",", "").replace(" ", "_")


def with_earlier(rows: list[dict[str, Any]], result: Path) -> list[dict[str, Any]]:
    """These rows, and those of earlier calls that measured something else."""
    earlier = json.loads(result.read_text(encoding="utf-8"))["rows"] if result.is_file() else []
    made = {(row["contestant"], row["minutes"], row["minutes of"]) for row in rows}
    return rows + [row for row in earlier if (row["contestant"], row["minutes"], row["minutes of"]) not in made]


def draw(rows: list[dict[str, Any]], closed: dict[str, Any] | None, out: Path) -> None:
    """Accuracy against minutes: a line a contestant, its best space; the closed form across."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate((OURS, *THEIRS)):
        mine = sorted((row["minutes"], row["search"], row["features"]) for row in rows if row["contestant"] == name)
        if mine:
            minutes, search, features = zip(*mine, strict=True)
            axes.plot(minutes, search, "o-", color=f"C{number}", label=name)
            axes.plot(minutes, features, "o:", color=f"C{number}", alpha=0.6, ms=3)
    if closed is not None:
        axes.axhline(closed["mean"], color="k", ls="--", lw=1, label="closed form, no network")
    of = sorted({row["minutes of"] for row in rows})
    axes.set_xlabel(f"minutes of training ({', '.join(of)})")
    axes.set_ylabel("kNN on CIFAR-10's test pictures, %")
    axes.set_title("Whitened features (lines) and features as they are (dotted)", fontsize=10)
    axes.set_xscale("log")
    ticks = sorted({row["minutes"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=130)


def main() -> None:
    """Let all have their turns and record what they reached, or take one turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="labelled 32-pixel pictures; without: CIFAR-10's training split")
    parser.add_argument("--test", help="without: CIFAR-10's test split")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 20.0, 60.0])
    parser.add_argument("--turn", type=float, default=TURN, help="minutes")
    parser.add_argument("--only", default=";".join((OURS, *THEIRS)), help="contestants, separated by semicolons")
    parser.add_argument("--processor", action="store_true", help="minutes of one core's own time")
    parser.add_argument("--take", choices=(OURS, *THEIRS), help="one turn of this contestant, in this process")
    parser.add_argument("--work", type=Path, default=Path("runs/out/equal_minutes"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    if settings.take:
        known, asked = Pictures.of(settings.train, "train"), Pictures.of(settings.test, "test")
        minutes = settings.minutes[0]
        folder = folder_of(settings.work, settings.take, minutes)
        take_turn(settings.take, folder, minutes, settings.turn, Clock(settings.processor), known, asked)
        return
    turns(settings)
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(settings.work.glob(f"*/{RESULT}"))]
    rows = with_earlier(rows, settings.results / "equal_minutes.json")
    rows.sort(key=lambda row: (row["minutes"], -row["search"]))
    for row in rows:
        hits = round(row["search"] / 100 * row["asked"])
        row["interval"] = [round(100 * bound, 2) for bound in wilson(hits, row["asked"])]
    record(
        settings.results / "equal_minutes.json",
        name="equal_minutes",
        command="python runs/equal_minutes.py [--processor] --minutes MINUTES",
        unit="kNN top-1 on the test pictures by whitened features, %, k 200, temperature 0.07, one seed each",
        values=[row["search"] for row in rows],
        seeds=[0] * len(rows),
        rows=rows,
    )
    closed = settings.results / "closed_form.json"
    found = json.loads(closed.read_text(encoding="utf-8")) if closed.is_file() else None
    draw(rows, found, settings.results / "equal_minutes.png")


if __name__ == "__main__":
    main()
