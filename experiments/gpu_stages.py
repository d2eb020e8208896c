"""The stages of experiments/gpu.py, each a function from what it is given to a result; one process runs one of them."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import numpy as np
import torch
from gpu import STAGES, read, write
from gpu_equality import equality
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import instdisc
from instdisc import KNN
from instdisc.bank import MemoryBank
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.open import open_source
from instdisc.encoder import build_encoder
from instdisc.errors import InputError
from instdisc.objectives import NCE, NonParametricSoftmax, SampledSoftmax
from instdisc.runs import RunFolder
from instdisc.training import DataFacts, Settings, Training, preset

RECIPES = {
    "paper_cifar10": ("paper_cifar10", {}),
    "best_cifar10": ("best_cifar10", {}),
    "paper_cifar10, NCE": ("paper_cifar10", {"objective": "nce"}),
}
AIMS = {"best_20": 80.8, "best_200": 90.6, "paper_softmax": 80.8, "paper_nce": 80.4}
# In a dry run: a network that a CPU runs in a moment, and one epoch.
_SMALL: dict[str, Any] = {"backbone": "conv6", "width": 4, "batch": 64, "negatives": 64, "hidden": None}
_WAYS = ("eager", "compiled", "CUDA graphs")


@dataclass(frozen=True)
class Given:
    """What a stage works with. dry: in small. train, test: Parquet files or .npz; None: made pictures."""

    work: Path
    device: torch.device
    dry: bool = False
    train: Path | None = None
    test: Path | None = None

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def settings(self, recipe: str, count: int, **changes: Any) -> Settings:
        """A recipe as it is run here: in bfloat16 on a GPU, measured at its end only."""
        name, own = RECIPES[recipe]
        settings = preset(name, DataFacts(count, 32, self.device.type))
        how = {"precision": "float32" if self.dry else "bfloat16", "storage": "memory", "workers": 0}
        return settings.with_overrides({**own, **how, **(_SMALL if self.dry else {}), **changes})


def arrays(given: Given, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, 32, 32, 3) uint8 and labels, as the stage `pictures` left them; memory maps."""
    return tuple(np.load(given.work / f"{part}_{kind}.npy", mmap_mode="r") for kind in ("images", "labels"))


def pictures(given: Given) -> dict[str, Any]:
    """Read or make both parts, once."""
    if given.device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no GPU here: try --dry-run first.")
    given.work.mkdir(parents=True, exist_ok=True)
    counts = {}
    for part, file, made in (("train", given.train, 512), ("test", given.test, 128)):
        if file is None:
            random = np.random.default_rng(made)
            labels = random.integers(0, 4, made)
            images = random.integers(0, 120, (made, 32, 32, 3)) + 30 * labels[:, None, None, None]
        elif file.suffix == ".npz":
            with np.load(file) as both:
                images, labels = both["images"], both["labels"]
        else:
            source = open_source(file)
            if source.labels is None:
                raise InputError(f"{file} has no labels, and accuracy needs them.")
            read_in = open_pictures(source, 32, "cpu", storage="memory")
            order = [np.arange(read_in.count)]
            (batch,) = read_in.batches(order)
            images, labels = batch.images.permute(0, 2, 3, 1).numpy(), source.labels[read_in.rows]
        np.save(given.work / f"{part}_images.npy", np.ascontiguousarray(images, dtype=np.uint8))
        np.save(given.work / f"{part}_labels.npy", np.asarray(labels, dtype=np.int64))
        counts[part] = len(images)
    return {"pictures": counts}


# --------------------------------------------------------------------------------------------------------------- steps


def steps(given: Given) -> dict[str, Any]:
    """ms of a step of each recipe in each way, floors, and where the time goes."""
    limits = ceilings(given)
    images, _ = arrays(given, "train")
    found: dict[str, Any] = {}
    for recipe in RECIPES:
        settings = given.settings(recipe, len(images), fill_epochs=0.0)
        encoder = build_encoder(settings.encoder).to(given.device)
        ways = {}
        for way in _WAYS[: 3 if given.device.type == "cuda" else 1]:
            try:
                ways[way] = timed(given, settings, images, way)
            except Exception as error:  # of a compiler: the other ways still count
                if way == "eager":
                    raise
                print(f"{recipe}, {way}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
        pictures_a_step = settings.batch * settings.views
        best = min(way["ms"] for way in ways.values())
        floor = floors(encoder, settings, given, len(images), limits)
        found[recipe] = {
            "ways": ways,
            "images_per_second": round(1e3 * pictures_a_step / best, 1),
            "steps_an_epoch": -(-len(images) // settings.batch),
            "floor": floor,
            "times_the_floor": round(best / max(floor["operations_ms"], floor["bytes_ms"], 1e-9), 2),
        }
        print(f"{recipe}: { ({way: round(one['ms'], 2) for way, one in ways.items()}) } ms", flush=True)
    return {"ceilings": limits, "recipes": found}


def timed(given: Given, settings: Settings, images: np.ndarray, way: str) -> dict[str, Any]:
    """ms of a step of the real loop, what came before the first, its last losses; eager: the longest operators too."""
    warm, count = (2, 2) if given.dry else (12, 60)
    store = open_pictures(open_source(np.asarray(images)), 32, given.device, storage="memory", workers=0)
    torch.manual_seed(0)
    with graphs(way == "CUDA graphs"):
        folder = RunFolder(given.work / "steps")
        encoder = build_encoder(settings.encoder)
        training = Training(folder, settings, store, encoder, given.device, settings.precision, compiled=way != "eager")
        stream = losses_of(training)
        began = time.perf_counter()
        for _ in range(warm):
            next(stream)
        given.wait()
        started = time.perf_counter()
        for _ in range(count):
            losses = next(stream)
        given.wait()
        ms = 1e3 * (time.perf_counter() - started) / count
        found = {"ms": ms, "warm_up_seconds": started - began, "losses": {k: float(v) for k, v in losses.items()}}
        if way == "eager":
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if given.device.type == "cuda" else [])]
            with profile(activities=kinds) as seen:
                next(stream)
                given.wait()
            own = [(e.key, e.self_device_time_total or e.self_cpu_time_total) for e in seen.key_averages()]
            found["device_ms"] = sum(e.self_device_time_total for e in seen.key_averages()) / 1e3
            found["operators_ms"] = {key: round(us / 1e3, 3) for key, us in sorted(own, key=lambda x: -x[1])[:12]}
    return found


def losses_of(training: Training) -> Iterator[dict[str, torch.Tensor]]:
    """The losses of step after step of the real loop, without its reports."""
    training.encoder.train()
    while True:
        for parts, planned in training._steps_of(training.epoch, 0):
            yield training.step(parts, planned)


class graphs:
    """torch.compile records CUDA graphs inside."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def __enter__(self) -> None:
        if self.wanted:
            import torch._inductor.config as inductor

            torch._dynamo.reset()
            self.before, inductor.triton.cudagraphs = inductor.triton.cudagraphs, True

    def __exit__(self, *_: object) -> None:
        if self.wanted:
            import torch._inductor.config as inductor

            inductor.triton.cudagraphs = self.before


def ceilings(given: Given) -> dict[str, float]:
    """What this device does in large products and in copies: what a floor is counted by."""
    found = {}
    side = 256 if given.device.type != "cuda" else 8192
    for kind in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(side, side, device=given.device).to(kind) for _ in range(2))
        found[f"{str(kind).removeprefix('torch.')}_flop_per_second"] = (
            2 * side**3 / typical(given, partial(torch.matmul, left, right))
        )
    source = torch.ones(1 << (16 if given.dry else 30), device=given.device)
    target = torch.empty_like(source)
    found["bytes_per_second"] = 2 * source.nbytes / typical(given, lambda: target.copy_(source))
    return found


def typical(given: Given, run: Callable[[], Any], repeats: int = 7) -> float:
    """The median of some runs, after one that is not counted; seconds."""
    seconds = []
    for _ in range(repeats + 1):
        given.wait()
        started = time.perf_counter()
        run()
        given.wait()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[repeats // 2]


def floors(encoder: nn.Module, settings: Settings, given: Given, rows: int, limits: dict[str, float]) -> dict[str, Any]:
    """ms that no step can beat: its arithmetic, and the bytes of convolutions, bank and optimizer, each moved once.

    A convolution reads what enters and writes what leaves; backward it reads both and writes the slope of what entered.
    """
    moved = 0
    count = settings.batch * settings.views

    def seen(module: nn.Module, entering: Any, leaving: Any) -> None:
        nonlocal moved
        moved += 3 * entering[0].numel() + 2 * leaving.numel()

    hooks = [part.register_forward_hook(seen) for part in encoder.modules() if isinstance(part, nn.Conv2d)]
    images = torch.zeros(count, 3, 32, 32, device=given.device)
    with FlopCounterMode(display=False) as counter:
        encoder(images).sum().backward()
    for hook in hooks:
        hook.remove()
    encoder.zero_grad()
    size = 4 if settings.precision == "float32" else 2
    weights = sum(weight.numel() for weight in encoder.parameters())
    exact = settings.objective == "softmax"
    bank = 4 * settings.dim * (rows if exact else settings.negatives)
    operations = float(counter.get_total_flops())
    head = 4.0 * count * settings.dim * (rows if exact else settings.negatives)
    seconds = operations / limits[f"{settings.precision}_flop_per_second"] + head / limits["float32_flop_per_second"]
    # An optimizer reads weight, gradient and momentum, and writes weight and momentum.
    everything = moved * size + bank + 5 * 4 * weights
    return {
        "operations": operations + head,
        "bytes": everything,
        "operations_ms": 1e3 * seconds,
        "bytes_ms": 1e3 * everything / limits["bytes_per_second"],
    }


# ---------------------------------------------------------------------------------------------------- rows of the paper


def row(given: Given, name: str) -> dict[str, Any]:
    """A whole training, from where it was stopped if it was, and kNN on the test pictures."""
    stage = STAGES[name]
    images, labels = arrays(given, "train")
    measured = read(given.work / "results" / "steps.json").get("recipes", {}).get(stage.recipe, {}).get("ways", {})
    way = min(measured, key=lambda one: measured[one]["ms"], default="eager")
    epochs = 1 if given.dry else stage.epochs
    settings = given.settings(stage.recipe, len(images), epochs=epochs, monitor_epochs=epochs, compile=way != "eager")
    with graphs(way == "CUDA graphs"):
        run = instdisc.train(
            np.asarray(images), given.work / name, settings, resume="auto", device=str(given.device), say=print
        )
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    rates = [line["images_per_second"] for line in run.metrics() if "loss" in line]
    found: dict[str, Any] = {
        "epochs": run.epochs,
        "way": way,
        "training_seconds": run.seconds,
        "first_and_last_loss": [losses[0], losses[-1]] if losses else None,
        "images_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        "aim_percent": AIMS[name],
    }
    if not run.finished:
        return {**found, "state": "cut off: its time was over, and the next call goes on"}
    return found | accuracy(given, run.encoder(), labels)


def accuracy(given: Given, encoder: Any, labels: np.ndarray) -> dict[str, float]:
    """kNN on the test pictures by both kinds of vectors, %; k 200, temperature 0.07."""
    test, wanted = arrays(given, "test")
    train, _ = arrays(given, "train")
    found = {}
    for kind in ("embedding", "search"):
        known, asked = (
            encoder.embed(torch.from_numpy(np.array(part)).permute(0, 3, 1, 2), 1024, vectors=kind, device=given.device)
            for part in (train, test)
        )
        knn = KNN(min(200, len(known)), 0.07, device=given.device).fit(known, labels)
        found[f"knn_{kind}_percent"] = round(100 * knn.score(asked, wanted), 2)
    return found


# ----------------------------------------------------------------------------------------------------------- loss head


def loss_head(given: Given) -> dict[str, Any]:
    """ms of the loss and its gradient over many rows, beside the floor, and the memory that it takes."""
    batch, dim = 128, 128
    limits = ceilings(given)
    found: dict[str, Any] = {}
    for rows in (2_000, 5_000) if given.dry else (1_280_000, 10_000_000):
        bank = MemoryBank(rows, dim, device=given.device)
        own = torch.arange(0, rows, rows // batch, device=given.device)[:batch]
        features = torch.nn.functional.normalize(torch.randn(batch, dim, device=given.device), dim=1)
        ways: dict[str, Any] = {
            "exact, float32": NonParametricSoftmax(0.07),
            "exact, bfloat16": NonParametricSoftmax(0.07, products=torch.bfloat16),
            "sampled 4,096": SampledSoftmax(0.07, min(4096, rows // 2)),
            "NCE 4,096": NCE(0.07, min(4096, rows // 2)).to(given.device),
        }
        found[str(rows)] = {}
        for name, objective in ways.items():

            def once(objective: nn.Module = objective, features: torch.Tensor = features) -> None:
                asked = features.detach().requires_grad_()
                objective(asked, own, bank).backward()  # noqa: B023  # called before the next bank is made

            held = 0
            if given.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(given.device)
                held = torch.cuda.memory_allocated(given.device)
            found[str(rows)][name] = {"ms": 1e3 * typical(given, once)}
            if given.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(given.device)
                found[str(rows)][name]["memory_mb"] = round((peak - held) / 1e6, 1)
        # Both products over all rows: the scores, and the expected row.
        floor = 4.0 * batch * dim * rows / limits["float32_flop_per_second"]
        found[str(rows)]["floor_ms, float32"] = 1e3 * max(floor, 4 * dim * rows / limits["bytes_per_second"])
        del bank
    return {"ceilings": limits, "rows": found}


def stage(given: Given, name: str) -> dict[str, Any]:
    """The result of one stage, with what a reader needs beside it."""
    ways: dict[str, Callable[[Given], dict[str, Any]]] = {
        "pictures": pictures,
        "equality": lambda given: equality(given.device),
        "steps": steps,
        "loss_head": loss_head,
    }
    found = ways[name](given) if name in ways else row(given, name)
    facts: dict[str, Any] = {"torch": torch.__version__, "device": str(given.device)}
    with suppress(ImportError, OSError):
        from record import commit, device_name

        facts |= {"device": device_name(), "commit": commit()}
    return {"state": "done", **facts, **found}


def main() -> None:
    """Run one stage, and write its result whatever came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=list(STAGES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    file = asked.work / "results" / f"{asked.stage}.json"
    given = Given(asked.work, torch.device(asked.device), asked.dry_run, asked.train, asked.test)
    try:
        found = stage(given, asked.stage)
    except KeyboardInterrupt:
        write(file, {**read(file), "state": "cut off: its time was over"})
        raise SystemExit(130) from None
    except Exception as error:  # the other stages go on, and somebody reads this one's reason later
        traceback.print_exc()
        write(file, {**read(file), "state": "failed", "error": f"{type(error).__name__}: {str(error)[:1000]}"})
        raise SystemExit(1) from None
    write(file, found)


if __name__ == "__main__":
    main()
