"""A folder of pictures to vectors, images a second: `embed`, beside the loop that people write, and the encoder alone.

    python benchmarks/embedding.py --out results/embedding.json          # ten minutes; keep the machine quiet
    python benchmarks/embedding.py --sizes 32 --count 256 --repeats 1    # a look whether it works

For PNG pictures of 32 pixels and JPEG photographs of 500 x 375 at 224, one ResNet-18 in float32: `instdisc embed`'s way
from the folder to vectors; the same with INSTDISC_ALLOCATOR=system; torchvision's ImageFolder, DataLoader (two workers)
and transforms with the encoder in inference mode; and the encoder alone on pixels that lie ready, which is the limit.
Each contestant runs in a process of its own, in turns. The vectors of both ways are compared: photographs are decoded
at another scale and resized from there, so that they are near, and not equal.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import record

WAYS = ("instdisc", "instdisc, system allocator", "DataLoader loop", "encoder alone")
BATCH = 128


def make_pictures(folder: Path, size: int, count: int) -> None:
    """PNG of 32 pixels cut from photographs, or the photographs themselves."""
    from decode import photographs
    from PIL import Image

    place = folder / "pictures"
    place.mkdir(parents=True)
    for number, content in enumerate(photographs(count)):
        if size > 64:
            (place / f"{number:06}.jpg").write_bytes(content)
            continue
        with Image.open(io.BytesIO(content)) as whole:
            whole.resize((size, size), Image.Resampling.BILINEAR).save(place / f"{number:06}.png")


def embedded(way: str, folder: Path, size: int) -> tuple[Callable[[], np.ndarray], int]:
    """A function that gives all vectors in the order of the files' names, and how many there are."""
    import torch

    from instdisc.allocator import keep_freed_memory
    from instdisc.encoder import build_encoder

    count = len(list(folder.rglob("*.*g")))
    encoder = build_encoder({"backbone": "resnet18", "image_size": size}, seed=0).eval()
    if way.startswith("instdisc"):
        keep_freed_memory()  # as the command does; the environment variable forbids it
        return lambda: encoder.embed(folder, BATCH, precision="float32").numpy(), count
    if way == "encoder alone":
        keep_freed_memory()
        ready = torch.randint(0, 256, (min(count, BATCH), 3, size, size), dtype=torch.uint8)
        batches = [ready[: min(BATCH, count - start)] for start in range(0, count, BATCH)]

        def alone() -> np.ndarray:
            parts = [encoder.embed(batch, BATCH, precision="float32") for batch in batches]
            return torch.cat(parts).numpy()

        return alone, count

    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    view = encoder.preprocessing
    fitting = (
        []
        if view.crop_fraction == 1
        else [v2.Resize(round(size / view.crop_fraction), antialias=True), v2.CenterCrop(size)]
    )
    ready_made = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(view.mean, view.std)]
    files = ImageFolder(str(folder), v2.Compose([*fitting, *ready_made]))

    def loop() -> np.ndarray:
        loader = DataLoader(files, BATCH, num_workers=2)
        with torch.inference_mode():
            return torch.cat([encoder(images) for images, _ in loader]).numpy()

    return loop, count


def measure(way: str, folder: Path, size: int) -> dict[str, float]:
    """Images a second of one contestant, all files anew, after one pass that warms up; its vectors go to a file."""
    run, count = embedded(way, folder, size)
    run()
    started = time.perf_counter()
    vectors = run()
    seconds = time.perf_counter() - started
    np.save(vectors_of(folder, way), vectors)
    return {"images_per_second": count / seconds}


def vectors_of(folder: Path, way: str) -> Path:
    """The file of a contestant's vectors, beside the folder of pictures."""
    return folder.parent / f"{folder.name} {way}.npy"


def main() -> None:
    """Measure one contestant, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--count", type=int, default=768, help="pictures of 32 pixels; a fourth as many photographs")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--contestant", choices=WAYS, help="measure this one alone, in this process, of --folder")
    parser.add_argument("--folder", type=Path)
    settings = parser.parse_args()
    if settings.contestant and settings.folder:
        print(json.dumps(measure(settings.contestant, settings.folder, settings.sizes[0])))
        return
    rates: dict[str, list[float]] = {}
    nearness: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as away:
        folders = {size: Path(away, str(size)) for size in settings.sizes}
        for size, folder in folders.items():
            make_pictures(folder, size, settings.count if size <= 64 else max(1, settings.count // 4))
        for _ in range(settings.repeats):
            for size, folder in folders.items():
                for way in WAYS:
                    found = asked(way, folder, size)
                    rates.setdefault(f"{size} px: {way}", []).append(found)
                    print(f"{size} px: {way}: {found:.1f} images/s", flush=True)
        for size, folder in folders.items():
            ours, theirs = (np.load(vectors_of(folder, way)) for way in ("instdisc", "DataLoader loop"))
            cosines = cosines_about_the_mean(ours, theirs)
            nearness[f"{size} px"] = {"least": float(cosines.min()), "median": float(np.median(cosines))}
    ratios = {f"{size} px": ratio(rates, size, "DataLoader loop") for size in settings.sizes}
    record(
        settings.out,
        name="embedding",
        command=f"python benchmarks/embedding.py --sizes {' '.join(map(str, settings.sizes))} --count {settings.count} "
        f"--repeats {settings.repeats}",
        unit="times as fast as the DataLoader loop, one value a size and repeat; `images_per_second` has all",
        values=[round(value, 3) for found in ratios.values() for value in found],
        seeds=list(range(settings.repeats)),
        ratios={size: [round(value, 3) for value in found] for size, found in ratios.items()},
        share_of_the_limit={
            f"{size} px": round(statistics.median(ratio(rates, size, "encoder alone")), 3) for size in settings.sizes
        },
        images_per_second={name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        cosines_to_the_loop=nearness,
    )


def cosines_about_the_mean(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Of each picture's two vectors, less our mean: random weights give all pictures nearly one vector."""
    ours, theirs = ours - ours.mean(0), theirs - ours.mean(0)
    return (ours * theirs).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))


def ratio(rates: dict[str, list[float]], size: int, other: str) -> list[float]:
    """Our rate as a multiple of another's, a value a repeat."""
    pairs = zip(rates[f"{size} px: instdisc"], rates[f"{size} px: {other}"], strict=True)
    return [ours / theirs for ours, theirs in pairs]


def asked(way: str, folder: Path, size: int) -> float:
    """Images a second of a contestant in a process of its own."""
    words = [sys.executable, __file__, "--contestant", way, "--folder", str(folder), "--sizes", str(size)]
    allocator = {"INSTDISC_ALLOCATOR": "system"} if way.endswith("system allocator") else {}
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | allocator)
    if done.returncode:
        sys.exit(f"{way} failed: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return float(answer["images_per_second"])


if __name__ == "__main__":
    main()
