"""Where the time of a training step goes, and how near each part is to what this machine can do.

    python benchmarks/step_parts.py --out results/step_parts.json     # some minutes; keep the machine quiet
    python benchmarks/step_parts.py --only paper_cifar10 --steps 30

The real loop, with a clock around what it calls: augmentation, encoder forward, objective, the backward pass of both,
optimizer, update of the bank, and the wait for pictures. On a GPU every clock waits for the device, so that the parts
are right and their sum is above the time of an undisturbed step, which stands beside it. The recipes: the paper's on
CIFAR-10; the laptop's, also while its views have half of the side; `default` on photographs of 500 x 375, held as
pixels, and decoded anew by two processes on the same cores; held as pixels also as it goes without Numba.

In the same run, the machine: products of large matrices and copies of memory. The encoder's arithmetic (counted by
torch, forward and backward) over its time is set against the rate of such products in its precision. The operators that
took longest in one step are torch's profiler's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from decode import photographs
from record import record
from step import typical_seconds
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from instdisc.allocator import keep_freed_memory
from instdisc.data import augment
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.open import open_source
from instdisc.encoder import build_encoder
from instdisc.runs import RunFolder
from instdisc.training import DataFacts, Settings, Training, choose_precision, preset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM = 3
WITHOUT = ", without Numba"
PARTS = (
    "waiting for pictures",
    "augmentation",
    "encoder forward",
    "objective",
    "backward",
    "optimizer",
    "bank",
    "rest",
)


def recipes(count: int, photos: int) -> dict[str, tuple[Settings, Any, str]]:
    """name -> settings, pictures, and how they are held."""
    small = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    facts, large = DataFacts(count, 32, DEVICE.type), DataFacts(photos, 375, DEVICE.type)
    whole = {"fill_epochs": 0.0, "early_sizes": (), "grow_at": ()}  # a step as it is at the end of a run
    laptop = replace(preset("laptop_cifar10", facts), minutes=None, **whole)
    photo, encoded = replace(preset("default", large), **whole), photographs(photos)
    return {
        "paper_cifar10": (preset("paper_cifar10", facts), small, "memory"),
        "laptop_cifar10": (laptop, small, "memory"),
        "laptop_cifar10, views of 16 px": (replace(laptop, size=16, stored=32), small, "memory"),
        "default, photographs": (photo, encoded, "memory"),
        f"default, photographs{WITHOUT}": (photo, encoded, "memory"),
        "default, photographs decoded in each epoch": (photo, encoded, "workers"),
    }


class Clock:
    """Seconds by part, of what passes through `around`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.running = False

    def now(self) -> float:
        """The time, when the device has done all that it was given."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted."""

        def timed(*words: Any, **named: Any) -> Any:
            if not self.running:
                return call(*words, **named)
            started = self.now()
            answer = call(*words, **named)
            self.seconds[part] += self.now() - started
            return answer

        return timed


@contextmanager
def clocked(training: Training, clock: Clock) -> Iterator[None]:
    """The training with clocks around its parts; backward is what `Tensor.backward` takes."""
    backward = torch.Tensor.backward
    training.augmentations = {
        size: clock.around("augmentation", augment) for size, augment in training.augmentations.items()
    }
    training._forward = clock.around("encoder forward", training._forward)
    training._parallel_terms = {
        name: clock.around("objective", term) for name, term in training._parallel_terms.items()
    }
    training.optimizer.step = clock.around("optimizer", training.optimizer.step)
    training.bank.update = clock.around("bank", training.bank.update)
    training._next = clock.around("waiting for pictures", training._next)
    torch.Tensor.backward = clock.around("backward", backward)
    try:
        yield
    finally:
        clock.running = False  # the clocks stay around the training's parts: later steps count for nothing
        torch.Tensor.backward = backward


def steps_of(training: Training) -> Iterator[float]:
    """Seconds of each step of the real loop, without its reports."""
    epoch = 0
    while True:
        before = time.perf_counter()
        for parts, planned in training._steps_of(epoch, 0):
            training.encoder.train()
            losses = training.step(parts, planned)
            sum(float(loss) for loss in losses.values())  # waits for the device
            now = time.perf_counter()
            yield now - before
            before = now
        epoch += 1


def measured(settings: Settings, images: Any, storage: str, steps: int) -> dict[str, Any]:
    """One recipe: seconds of a step, the parts, the encoder's arithmetic, the operators that take longest."""
    encoder = build_encoder(settings.encoder)
    precision = choose_precision(encoder, DEVICE, settings.precision, settings.batch).precision
    with (
        tempfile.TemporaryDirectory() as folder,
        open_pictures(open_source(images), settings.stored_side, DEVICE, storage=storage) as pictures,
    ):
        training = Training(RunFolder(folder), settings, pictures, encoder, DEVICE, precision)
        stream = steps_of(training)
        undisturbed = [next(stream) for _ in range(WARM + steps)][WARM:]
        clock = Clock()
        with clocked(training, clock):
            next(stream)
            clock.running = True
            whole = sum(next(stream) for _ in range(steps))
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (DEVICE.type == "cuda")]) as seen:
            next(stream)
        stream.close()
    clock.seconds["rest"] = whole - sum(clock.seconds.values())
    arithmetic = flops(training, settings)
    in_encoder = (clock.seconds["encoder forward"] + clock.seconds["backward"]) / steps
    own = [(event.key, event.self_device_time_total or event.self_cpu_time_total) for event in seen.key_averages()]
    operators = sorted(own, key=lambda pair: -pair[1])
    total = sum(seconds for _, seconds in operators)
    return {
        "images_per_second": round(settings.batch * settings.views / statistics.median(undisturbed), 1),
        "step_ms": {
            "median": round(1e3 * statistics.median(undisturbed), 1),
            "std": round(1e3 * statistics.stdev(undisturbed), 1),
        },
        "precision": precision,
        "batch": settings.batch,
        "views": settings.views,
        "share_percent": {part: round(100 * seconds / whole, 1) for part, seconds in clock.seconds.items()},
        "encoder_gflop_a_step": round(arithmetic / 1e9, 1),
        "encoder_gflop_per_second": round(arithmetic / 1e9 / in_encoder, 1),
        "operators_percent": {key: round(100 * seconds / total, 1) for key, seconds in operators[:10]},
    }


def flops(training: Training, settings: Settings) -> float:
    """Multiplications and additions of the encoder for one step, forward and backward."""
    images = torch.zeros(settings.batch * settings.views, 3, settings.size, settings.size, device=DEVICE)
    with FlopCounterMode(display=False) as counter:
        training.encoder(images).sum().backward()
    return float(counter.get_total_flops())


def limits() -> dict[str, float]:
    """What this machine does in large products and in copies."""
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        side, seconds, largest = 128, 0.0, 2048 if DEVICE.type == "cpu" else 8192
        while seconds < 0.05 and side < largest:  # no larger than it takes: without vectors for it, 2048 takes 20 s
            side *= 2
            left, right = torch.randn(2, side, side, device=DEVICE).to(kind)
            seconds = typical_seconds(lambda left=left, right=right: left @ right)  # type: ignore[misc]
        found[f"products_gflop_per_second_{str(kind).removeprefix('torch.')}"] = round(2e-9 * side**3 / seconds, 1)
    source = torch.ones(1 << 26, device=DEVICE)
    target = torch.empty_like(source)
    seconds = typical_seconds(lambda: target.copy_(source))
    found["copy_gb_per_second"] = round(2 * source.nbytes / 1e9 / seconds, 1)
    return found


def main() -> None:
    """Measure every recipe, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--count", type=int, default=50_000, help="small pictures, rows of their bank")
    parser.add_argument("--photographs", type=int, default=4_000)
    parser.add_argument("--only", nargs="+", help="some of the recipes")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `instdisc train` does
    machine = [limits()]
    found = {}
    for name, words in recipes(arguments.count, arguments.photographs).items():
        if arguments.only is None or name in arguments.only:
            with patch.object(augment, "_fused", lambda: None) if name.endswith(WITHOUT) else nullcontext():
                found[name] = measured(*words, arguments.steps)
            print(f"{name}: {found[name]['images_per_second']} images/s", file=sys.stderr)
    machine.append(limits())  # after: another job beside it would show
    first = next(iter(found.values()))
    only = ["--only", *(f'"{name}"' for name in arguments.only)] if arguments.only else []
    record(
        arguments.out,
        name=arguments.out.stem if arguments.out else "step_parts",
        command=f"python benchmarks/step_parts.py --steps {arguments.steps} --count {arguments.count} "
        + " ".join(["--photographs", str(arguments.photographs), *only]),
        unit="ms of a step of the first recipe; `recipes` has all",
        values=[first["step_ms"]["median"]],
        seeds=[0],
        machine_before_and_after=machine,
        recipes=found,
    )


if __name__ == "__main__":
    main()
