"""Photographs a second and core, from JPEG bytes in memory to training crops: ours, Pillow's and torchvision's way.

    python benchmarks/decode.py --out results/decode.json              # a few minutes; keep the machine quiet
    python benchmarks/decode.py --pictures photos/ --limit 500         # any source that `instdisc train` takes

For each size of the crop: one picture after the other on one core (ours to the stored side, which later crops are cut
from; the others to a random resized crop), and from end to end on two: our two decoding processes with the crops cut
from whole batches in this one, beside a torchvision DataLoader of two workers; both end with what a network takes,
normalised float32 batches in channels_last. torchvision decodes by Pillow or by its own `decode_jpeg`; both decode in
full, crop and resize antialiased. Then a whole first epoch with storage=cache and with storage=workers, from opening to
the last batch. The contestants take turns within each repeat. Without --pictures: photographs of 500 x 375 pixels cut
from scikit-learn's two, JPEG quality 90.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from record import record_contestants
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from instdisc.data import open_pictures, open_source
from instdisc.data.augment import Augmentation
from instdisc.data.decoding.decode import decode_stored

CORES = 2
BATCH = 64
SCALE = (0.2, 1.0)
STORED = {96: 110, 128: 146, 224: 256}  # side of the crop -> side at which the whole picture is stored


def photographs(count: int) -> list[bytes]:
    """Cuts of scikit-learn's two photographs, each 500 x 375, as JPEG of quality 90."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    wholes = [Image.fromarray(whole) for whole in load_sample_images().images]
    encoded = []
    for number in range(count):
        whole = wholes[number % len(wholes)]
        width = whole.height / 0.75 * random.uniform(0.6, 1)
        left, top = random.uniform(0, whole.width - width), random.uniform(0, whole.height - 0.75 * width)
        cut = whole.resize((500, 375), Image.Resampling.BICUBIC, (left, top, left + width, top + 0.75 * width))
        file = io.BytesIO()
        cut.save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def by_pillow(size: int) -> Callable[[bytes], torch.Tensor]:
    """Pillow decodes in full, torchvision crops the PIL image."""
    crop = v2.RandomResizedCrop(size, scale=SCALE)
    to_tensor = v2.PILToTensor()
    return lambda content: to_tensor(crop(Image.open(io.BytesIO(content)).convert("RGB")))


def by_torchvision(size: int) -> Callable[[bytes], torch.Tensor]:
    """torchvision decodes in full and crops the tensor."""
    crop = v2.RandomResizedCrop(size, scale=SCALE, antialias=True)
    return lambda content: crop(
        decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    )


class Crops(Dataset[torch.Tensor]):
    """Every picture decoded and cropped when it is asked for."""

    def __init__(self, contents: Sequence[bytes], decode: Callable[[int], Callable[[bytes], torch.Tensor]], size: int):
        self.contents, self.decode = contents, decode(size)

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.decode(self.contents[index])


def one_core(decode: Callable[[bytes], Any], contents: Sequence[bytes]) -> Callable[[], float]:
    """A function that decodes a part of the pictures here and answers pictures a second."""
    few = contents[:128]

    def run() -> float:
        started = time.perf_counter()
        for content in few:
            decode(content)
        return len(few) / (time.perf_counter() - started)

    return run


def loader_epoch(decode: Callable[[int], Callable[[bytes], torch.Tensor]], contents: Sequence[bytes], size: int) -> Any:
    """A function that runs one epoch of a DataLoader, whose workers stay alive; pictures a second and core."""
    loader = DataLoader(Crops(contents, decode, size), BATCH, shuffle=True, num_workers=CORES, persistent_workers=True)
    ready = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))])

    def run() -> float:
        started = time.perf_counter()
        count = sum(len(ready(images).contiguous(memory_format=torch.channels_last)) for images in loader)
        return count / (time.perf_counter() - started) / CORES

    return run


def our_epoch(contents: Sequence[bytes], size: int) -> Callable[[], float]:
    """The same with our processes, which stay alive too, and our crops."""
    source = open_source(list(contents))
    pictures = open_pictures(source, STORED[size], "cpu", storage="workers", workers=CORES)
    crop = Augmentation(size, scale=SCALE, jitter=0, grey=0, mean=(0, 0, 0), std=(1, 1, 1))

    def run() -> float:
        started = time.perf_counter()
        count = 0
        for batch in pictures.batches(batches_of(len(source))):
            count += len(crop(batch.images, batch.indices, pictures.aspects[batch.indices], seed=0, step=0))
        return count / (time.perf_counter() - started) / CORES

    return run


def batches_of(count: int) -> list[np.ndarray]:
    """All pictures in random order."""
    return np.array_split(np.random.default_rng(0).permutation(count), max(1, count // BATCH))


def first_epoch(contents: Sequence[bytes], storage: str, folder: Path | None) -> Callable[[], float]:
    """A function that opens the pictures with nothing stored yet and reads all of them once; pictures a second."""

    def run() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            started = time.perf_counter()
            with open_pictures(
                open_source(list(contents)), 256, "cpu", storage=storage, workers=CORES, cache_folder=cache
            ) as pictures:
                count = sum(len(batch.indices) for batch in pictures.batches(batches_of(len(contents))))
            return count / (time.perf_counter() - started)

    return run


def main() -> None:
    """Measure all contestants in turn, write the JSON file, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--pictures", help="a source of JPEG photographs; without it, made from scikit-learn's")
    parser.add_argument("--limit", type=int, default=1024, help="pictures of an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(STORED), choices=list(STORED))
    parser.add_argument("--folder", type=Path, help="where the decoded cache is written for a moment")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    if arguments.pictures:
        source = open_source(arguments.pictures, limit=arguments.limit)
        contents = [source.read(row) for row in range(len(source))]
    else:
        contents = photographs(arguments.limit)
    runs: dict[str, Callable[[], float]] = {}
    for size in arguments.sizes:
        stored = STORED[size]
        runs[f"{size} px, one core: ours"] = one_core(
            lambda content, side=stored: decode_stored(content, side), contents
        )
        runs[f"{size} px, one core: Pillow"] = one_core(by_pillow(size), contents)
        runs[f"{size} px, one core: torchvision"] = one_core(by_torchvision(size), contents)
        runs[f"{size} px, a core of two: ours"] = our_epoch(contents, size)
        runs[f"{size} px, a core of two: DataLoader, Pillow"] = loader_epoch(by_pillow, contents, size)
        runs[f"{size} px, a core of two: DataLoader, torchvision"] = loader_epoch(by_torchvision, contents, size)
    for storage in ("workers", "cache"):
        runs[f"first epoch at 256 px: storage={storage}"] = first_epoch(contents, storage, arguments.folder)
    values: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # warm up: workers start, buffers are allocated
        run()
    for repeat in range(arguments.repeats):
        for name, run in runs.items():
            values[name].append(run())
        print(f"repeat {repeat + 1} of {arguments.repeats}", file=sys.stderr)

    record_contestants(
        arguments.out,
        name="decode",
        command=f"python benchmarks/decode.py --repeats {arguments.repeats} --limit {arguments.limit}",
        unit="pictures/s (of a core; first epochs: of both)",
        rates=values,
        pictures={"count": len(contents), "mean_bytes": round(statistics.fmean(map(len, contents)))},
        versions={"pillow": PIL.__version__, "torchvision": torchvision.__version__},
    )


if __name__ == "__main__":
    main()
