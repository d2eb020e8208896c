"""How long copies among 200,000 pictures take, without an encoder and with one, and what of the planted ones is found.

    python runs/many_copies.py photos.parquet --pictures 196000       # keep the machine quiet: 15 minutes on two cores

The pictures are the squares of a seven by seven grid on each photograph, and the photograph, resized to 224 pixels and
encoded as JPEG in tar files. One in 200 stands there again, changed as in copies.py. They are harder than whole
photographs: skies, walls and frames of one photograph look alike. An encoder's vectors propose five pairs a picture
more; here those of small colour pictures do, in as many dimensions as search vectors have at most. Their neighbour
graph, which is kept in a run for votes too, is timed apart. The result goes to results/many_copies.json.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from copies import KINDS
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.jobs.copies import grouped, look_at_source
from instdisc.search.copies import PROPOSED
from instdisc.search.graph import nearest_graph
from instdisc.search.pairs import Vectors

ALONG, SIDE, EVERY, IN_A_FILE, DIM = 7, 224, 200, 2_000, 256
PARTS = ALONG**2 + 1  # the squares, and the whole


def chosen(count: int, photographs: int) -> list[tuple[int, int, str]]:
    """(photograph, part of it, kind of change or "") of each picture, in random order."""
    random, kinds = np.random.default_rng(7), list(KINDS)
    planted = count // EVERY
    numbers = random.permutation(photographs * PARTS)[: count - planted]
    every = [(number // PARTS, number % PARTS, "") for number in numbers.tolist()]
    again = random.permutation(len(every))[:planted]
    every += [(*every[position][:2], kinds[number % len(kinds)]) for number, position in enumerate(again.tolist())]
    return [every[position] for position in random.permutation(len(every)).tolist()]


def tar_file(photos: str, file: Path, wanted: list[tuple[int, int, str]], first: int) -> None:
    """Some of the pictures; a name says which one it is, and what was done to it."""
    source, random = open_source(photos), np.random.default_rng([9, first])
    part = file.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        for number, (photograph, which, kind) in enumerate(wanted, first):
            pixels = decode(source.read(photograph))
            if which < ALONG**2:
                down, right = divmod(which, ALONG)
                (top, bottom), (left, end) = (
                    (length * at // ALONG, length * (at + 1) // ALONG)
                    for length, at in zip(pixels.shape, (down, right), strict=False)
                )
                pixels = pixels[top:bottom, left:end]
            picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            content = KINDS[kind or "q90"](picture, random)
            member = tarfile.TarInfo(f"{photograph:05d}_{which:02d}-{kind}-{number:07d}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    part.rename(file)


def pictures(photos: str, folder: Path, count: int) -> Path:
    """The folder with all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    every = chosen(count, len(open_source(photos)))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made_files = []
        for first in range(0, len(every), IN_A_FILE):
            file = folder / f"part-{first // IN_A_FILE:04d}.tar"
            if not file.exists():
                made_files.append(pool.submit(tar_file, photos, file, every[first : first + IN_A_FILE], first))
        for one in made_files:
            one.result()
    return folder


def measured(source: Any, thumbnails: Path) -> dict[str, Any]:
    """Seconds of each step, what is found of what was planted, and what else is called a copy; both ways."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = work()
        seconds[name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {seconds[name]} s", flush=True)
        return found

    looked = timed("thumbnails", lambda: look_at_source(source, thumbnails))
    without = timed("copies, without an encoder", lambda: grouped(looked, "largest"))
    small = torch.from_numpy(looked.stored.records["colour"].astype(np.float32)).permute(0, 3, 1, 2)
    vectors = torch.nn.functional.adaptive_avg_pool2d(small, (9, 9)).flatten(1)[:, :DIM]  # 243 numbers
    vectors = Vectors.of(torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1))
    graph = timed("neighbour graph", lambda: nearest_graph(vectors))
    places = graph.places[:, :PROPOSED].astype(np.int64)
    pairs = np.stack([np.repeat(np.arange(len(places)), places.shape[1]), places.ravel()], axis=1)
    proposed = timed("copies, with vectors", lambda: grouped(looked, "largest", proposed=pairs))
    names = [one.id.rpartition("#")[2].split("-") for one in looked.entries(range(len(source)))]
    planted = Counter(kind for _, kind, _ in names if kind)
    return {
        "pictures": len(source),
        "seconds": seconds,
        "planted": sum(planted.values()),
        "without_an_encoder": scored(without, planted),
        "with_vectors": scored(proposed, planted),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def scored(found: list[Any], planted: Counter[str]) -> dict[str, Any]:
    """What of the planted copies is found, by kind what is missed, and what else is called one."""
    right: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for group in found:
        for copy in group.copies:
            one, other = (each.id.rpartition("#")[2].split("-") for each in (group.kept, copy))
            if one[0] == other[0]:
                right[one[1] or other[1]] += 1
            else:
                others[copy.kind] += 1
    return {"found": sum(right.values()), "missed": planted - right, "others": others}


def main() -> None:
    """Make them, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="photographs that open_source takes")
    parser.add_argument("--pictures", type=int, default=196_000)
    parser.add_argument("--out", type=Path, default=Path("runs/out/many_copies"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    folder = pictures(settings.photos, settings.out / f"pictures-{settings.pictures}", settings.pictures)
    thumbnails = settings.out / "thumbnails.npy"
    thumbnails.unlink(missing_ok=True)
    row = measured(open_source(folder), thumbnails)
    shutil.rmtree(folder)
    record(
        settings.results / "many_copies.json",
        name="many_copies",
        command=f"python runs/many_copies.py PHOTOS --pictures {settings.pictures}",
        unit="seconds from the files to the groups of copies, without an encoder",
        values=[round(row["seconds"]["thumbnails"] + row["seconds"]["copies, without an encoder"], 1)],
        seeds=[7],
        **row,
    )


if __name__ == "__main__":
    main()
