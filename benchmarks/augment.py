"""Images a second of the augmentation: ours, kornia with a draw a picture, and a torchvision DataLoader of two workers.

    python benchmarks/augment.py --out results/augment.json            # a quarter of an hour; keep the machine quiet

All do the same: random resized crop of 20 to 100 %, flip, colour jitter 0.4 / 0.4 / 0.4 / hue 0.4 in random order,
grey 0.2, normalise; from uint8 pictures in memory to float32 batches. Sizes: 32 pixels from 32, 224 from 256. Crops are
antialiased, save kornia's (at these sizes it matters little: few crops shrink, none by more than 1.15). Kornia draws
one order of the jitter a batch, the others one a picture. "By torch" is ours where Numba is not installed. The
contestants take turns within each repeat, so that a slow spell of the machine meets all of them; torchvision is
measured on tensors and on PIL images, kornia on both of its ways to crop. Needs the extras `fast` and `benchmarks`.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from record import record_contestants
from torch.utils.data import DataLoader, Dataset

from instdisc.allocator import keep_freed_memory
from instdisc.data import augment
from instdisc.data.augment import Augmentation

WORKERS = 2
# size -> (stored size, batch, pictures of one DataLoader epoch)
CASES = {32: (32, 128, 5120), 224: (256, 32, 512)}


class TorchvisionPictures(Dataset[torch.Tensor]):
    """The pictures one by one through torchvision's v2 transforms, on tensors or on PIL images."""

    def __init__(self, images: np.ndarray, size: int, kind: str) -> None:
        from torchvision.transforms import v2

        settings = Augmentation(size, flip=0.5)
        self.images = images  # (n, h, w, 3) uint8
        self.kind = kind
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=settings.scale, antialias=True),
                v2.RandomHorizontalFlip(settings.flip),
                v2.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue),
                v2.RandomGrayscale(settings.grey),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(settings.mean, settings.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        pixels = self.images[index]
        image = Image.fromarray(pixels) if self.kind == "PIL" else torch.from_numpy(pixels).permute(2, 0, 1)
        return self.transform(image)


def loader_pass(images: np.ndarray, size: int, batch: int, kind: str) -> Callable[[], float]:
    """A function that runs one epoch of the loader and answers images a second; its workers stay alive."""
    loader = DataLoader(
        TorchvisionPictures(images, size, kind), batch, num_workers=WORKERS, persistent_workers=True, drop_last=True
    )

    def run() -> float:
        start = time.perf_counter()
        count = sum(len(images) for images in loader)
        return count / (time.perf_counter() - start)

    return run


def batch_pass(views: Callable[[int], torch.Tensor], batch: int, threads: int, seconds: float) -> Callable[[], float]:
    """A function that augments batches for `seconds` with `threads` threads and answers images a second."""

    def run() -> float:
        torch.set_num_threads(threads)
        finish()
        start = time.perf_counter()
        steps = 0
        while time.perf_counter() - start < seconds:
            views(steps)
            steps += 1
        finish()
        return steps * batch / (time.perf_counter() - start)

    return run


def finish() -> None:
    """Wait until the device has done what it was given, so that a clock can be read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(images: torch.Tensor, size: int) -> Callable[[int], torch.Tensor]:
    """This project's augmentation of the given batch, as a function of the step."""
    settings = Augmentation(size, flip=0.5)
    indices = torch.arange(len(images), device=images.device)
    aspects = torch.ones(len(images), device=images.device)
    return lambda step: settings(images, indices, aspects, seed=0, step=step)


def by_torch(call: Callable[[int], torch.Tensor]) -> Callable[[int], torch.Tensor]:
    """The same as it goes where Numba is not installed."""

    def run(step: int) -> torch.Tensor:
        with patch.object(augment, "_fused", lambda: None):
            return call(step)

    return run


def kornia(images: torch.Tensor, size: int, cropping: str) -> Callable[[int], torch.Tensor]:
    """Kornia's, with a draw a picture (its default); `cropping` picks one of its two ways to crop."""
    import kornia.augmentation as augmentation

    settings = Augmentation(size, flip=0.5)
    sequence = torch.nn.Sequential(
        augmentation.RandomResizedCrop((size, size), scale=settings.scale, cropping_mode=cropping),
        augmentation.RandomHorizontalFlip(settings.flip),
        augmentation.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue, p=1.0),
        augmentation.RandomGrayscale(p=settings.grey),
        augmentation.Normalize(torch.tensor(settings.mean), torch.tensor(settings.std)),
    ).to(images.device)
    return lambda _: sequence(images.float().div_(255))


def contestants(size: int, device: str, seconds: float, count: int | None) -> dict[str, Callable[[], float]]:
    """Name -> a function that measures once, for pictures of `size`."""
    stored, batch, epoch = CASES[size]
    epoch = count or epoch
    pixels = np.random.default_rng(0).integers(0, 256, (epoch, stored, stored, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels[:batch]).permute(0, 3, 1, 2).to(device)
    planar = images.contiguous()
    thread_counts = (1, 2) if device == "cpu" else (1,)
    runs: dict[str, Callable[[], float]] = {}
    for threads in thread_counts:
        named = f"{threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else device
        mine = ours(images if size > 48 else planar, size)
        runs[f"ours, {named}"] = batch_pass(mine, batch, threads, seconds)
        if device == "cpu":
            runs[f"ours by torch, {named}"] = batch_pass(by_torch(mine), batch, threads, seconds)
        for cropping in ("slice", "resample"):
            runs[f"kornia {cropping}, {named}"] = batch_pass(kornia(planar, size, cropping), batch, threads, seconds)
    for kind in ("tensors", "PIL"):
        runs[f"torchvision {kind}, {WORKERS} workers"] = loader_pass(pixels, size, batch, kind)
    return {f"{size} px: {name}": run for name, run in runs.items()}


def main() -> None:
    """Measure all contestants in turn, write the JSON file, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of a batched contestant")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of the batched contestants")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--count", type=int, help="pictures of torchvision's epoch; without: 5,120 and 512")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    keep_freed_memory()  # as `instdisc train` does
    values: dict[str, list[float]] = {}
    for size in arguments.sizes:
        runs = contestants(size, arguments.device, arguments.seconds, arguments.count)
        for run in runs.values():  # warm up: workers start, buffers are allocated
            run()
        for repeat in range(arguments.repeats):
            for name, run in runs.items():
                values.setdefault(name, []).append(run())
            print(f"{size} px, repeat {repeat + 1} of {arguments.repeats}", file=sys.stderr)

    import kornia as kornia_package
    import torchvision

    record_contestants(
        arguments.out,
        name="augment",
        command=f"python benchmarks/augment.py --repeats {arguments.repeats} --seconds {arguments.seconds:g}",
        unit="images/s",
        rates=values,
        versions={
            "python": platform.python_version(),
            "torchvision": torchvision.__version__,
            "kornia": kornia_package.__version__,
        },
    )


if __name__ == "__main__":
    main()
