"""Images a second of a whole training step, beside lightly's SimCLR and MoCo in plain PyTorch with the same network.

    python benchmarks/step.py --out results/step.json          # some minutes; keep the machine quiet

Ours: the training loop as `instdisc train --preset paper_cifar10` runs it: ResNet-18 with the small stem at 32 px,
batch 128, one view, augmentation, exact softmax over a bank of 50,000 rows, SGD, bank update. Theirs: that backbone,
lightly's SimCLR transform (without blur, as for CIFAR), projection head and NT-Xent loss, float32, batch 128 with two
views, a DataLoader of two workers. Or its MoCo: the second view through an encoder that follows the first by momentum,
without a gradient, and 4,096 keys. Pictures through the encoder are counted alike: 128 with two views are 256, and a
view that goes forward only, a third of the work, is a third of a picture.

Beside them the limits of this machine: the encoder alone, forward and backward, and its convolutions alone, each
through the same library in the same precision and layout: what a step can't exceed while these kernels do the work.

They take turns, some steps each; theirs in a process of its own, once as it is and once with the allocator settings
that ours makes (glibc's, see allocator.py), and without the steps that its workers had prepared beforehand. Needs the
extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record
from torch import nn

from instdisc.allocator import keep_freed_memory
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.open import open_source
from instdisc.encoder import build_encoder
from instdisc.runs import RunFolder
from instdisc.training import Training, choose_precision
from instdisc.training.presets import paper_cifar10

INSTANCES, BATCH = 50_000, 128
WARM, PREFETCHED = 2, 5
PEERS = ("lightly", "lightly, our allocator settings", "lightly's MoCo")


def ours(images: np.ndarray, folder: Path, batch: int, precision: str, compiled: bool) -> tuple[Iterator[float], str]:
    """Seconds of each step of the real loop, without its reports; and the precision it runs in."""
    settings = replace(paper_cifar10(), batch=batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = open_pictures(open_source(images), settings.size, device, storage="memory")
    encoder = build_encoder(settings.encoder)
    chosen = choose_precision(encoder, device, precision, batch)
    training = Training(RunFolder(folder), settings, pictures, encoder, device, chosen.precision, compiled=compiled)

    def steps() -> Iterator[float]:
        epoch = 0
        while True:
            for parts, planned in training._steps_of(epoch, 0):
                started = time.perf_counter()
                training.encoder.train()
                losses = training.step(parts, planned)
                sum(float(loss) for loss in losses.values())  # waits for the device
                yield time.perf_counter() - started
            epoch += 1

    return steps(), chosen.precision


def limits(precision: str, batch: int) -> dict[str, float]:
    """Images a second of the encoder alone, and of its convolutions one by one, forward and backward."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = build_encoder(paper_cifar10().encoder).to(device, memory_format=torch.channels_last).train()
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = encoder.preprocessing.size
    images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)

    def whole() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            features = encoder(images)
        features.sum().backward()

    met: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        part.register_forward_hook(lambda part, entering, _: met.append((part, entering[0].shape)))
        for part in encoder.modules()
        if isinstance(part, nn.Conv2d)
    ]
    whole()
    for hook in hooks:
        hook.remove()
    seconds = 0.0
    for number, (part, shape) in enumerate(met):
        entering = torch.randn(shape, dtype=kind, device=device).contiguous(memory_format=torch.channels_last)
        entering.requires_grad_(number > 0)  # nobody asks for the gradient of the pictures
        weight = part.weight.detach().to(kind).requires_grad_()
        slope: list[torch.Tensor] = []

        def alone(
            entering: torch.Tensor = entering,
            weight: torch.Tensor = weight,
            part: nn.Conv2d = part,
            slope: list[torch.Tensor] = slope,
        ) -> None:
            leaving = nn.functional.conv2d(entering, weight, None, part.stride, part.padding)
            if not slope:
                slope.append(torch.randn_like(leaving))
            leaving.backward(slope[0])
            entering.grad = weight.grad = None

        seconds += typical_seconds(alone)
    return {"encoder alone": batch / typical_seconds(whole), "its convolutions alone": batch / seconds}


def typical_seconds(run: Callable[[], None], repeats: int = 5) -> float:
    """The median of some runs, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def theirs(images: np.ndarray, batch: int, moco: bool) -> Iterator[float]:
    """Seconds of each step of a plain SimCLR or MoCo loop, loading included."""
    import copy

    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform, SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Pairs(Dataset[Any]):
        def __init__(self) -> None:
            self.transform = (MoCoV2Transform if moco else SimCLRTransform)(input_size=32, gaussian_blur=0.0)

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, row: int) -> Any:
            return self.transform(Image.fromarray(images[row]))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build_encoder(paper_cifar10().encoder).backbone
    head = (MoCoProjectionHead if moco else SimCLRProjectionHead)(512, 512, 128)
    model = nn.Sequential(backbone, head).to(device)
    follower = copy.deepcopy(model) if moco else model
    if moco:
        deactivate_requires_grad(follower)
    criterion = NTXentLoss(temperature=0.5, memory_bank_size=(4096, 128) if moco else 0).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    while True:
        loader = DataLoader(Pairs(), batch_size=batch, shuffle=True, drop_last=True, num_workers=2)
        before = time.perf_counter()
        for first, second in loader:
            model.train()
            if moco:
                update_momentum(model, follower, m=0.99)
                with torch.no_grad():
                    other = follower(second.to(device))
            else:
                other = model(second.to(device))
            loss = criterion(model(first.to(device)), other)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            float(loss.detach())
            now = time.perf_counter()
            yield now - before
            before = time.perf_counter()


def main() -> None:
    """Measure in turns, and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each in a round")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--peer", choices=PEERS, help="measure the peer alone, in this process")
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--instances", type=int, default=INSTANCES, help="pictures, and rows of the bank")
    parser.add_argument("--batch", type=int, default=BATCH)
    settings = parser.parse_args()
    warnings.simplefilter("ignore")
    images = np.random.default_rng(0).integers(0, 256, (settings.instances, 32, 32, 3), dtype=np.uint8)
    if settings.peer:
        if settings.peer == "lightly, our allocator settings":
            keep_freed_memory()
        moco = settings.peer == "lightly's MoCo"
        steps = theirs(images, settings.batch, moco)
        times = [next(steps) for _ in range(PREFETCHED + settings.steps)]
        print(json.dumps((4 / 3 if moco else 2) * settings.batch / statistics.median(times[PREFETCHED:])))
        return
    keep_freed_memory()  # as `instdisc train` does
    rates: dict[str, list[float]] = {"instdisc": [], **{name: [] for name in PEERS}}
    bounds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        mine, precision = ours(images, Path(folder), settings.batch, settings.precision, settings.compile)
        for _ in range(settings.rounds):
            times = [next(mine) for _ in range(WARM + settings.steps)][WARM:]
            rates["instdisc"].append(settings.batch / statistics.median(times))
            for name, rate in limits(precision, settings.batch).items():
                bounds.setdefault(name, []).append(rate)
            for name in PEERS:  # in processes of their own: plain PyTorch leaves the allocator as it is
                words = [sys.executable, __file__, "--peer", name, "--steps", str(settings.steps)]
                words += ["--batch", str(settings.batch), "--instances", str(settings.instances)]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                rates[name].append(float(json.loads(done.stdout.splitlines()[-1])))
            print({name: round(found[-1], 1) for name, found in (rates | bounds).items()}, flush=True)
    ratios = [a / b for a, b in zip(rates["instdisc"], rates["lightly"], strict=True)]
    import lightly

    record(
        settings.out,
        name="step",
        command=f"python benchmarks/step.py --rounds {settings.rounds} --steps {settings.steps}"
        + (" --compile" if settings.compile else ""),
        unit="pictures through the encoder a second, ours over lightly's",
        values=ratios,
        seeds=list(range(settings.rounds)),
        images_per_second=rates,
        limits_images_per_second=bounds,
        precision={"instdisc": precision, "lightly": "float32"},
        lightly=lightly.__version__,
    )


if __name__ == "__main__":
    main()
