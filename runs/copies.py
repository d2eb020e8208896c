"""Are planted copies found, and only they? By pixels, by vectors alone, and by perceptual hashes alone.

    python runs/copies.py --photos photos.parquet --pictures cifar10-test.parquet --drawings emoji/emoji

Of 900 photographs forty get a copy: the same file, re-encoded (JPEG at 90, 60, 30), halved, enlarged by half, cropped
(80 to 90 % of each side stay), mirrored, recoloured, with a text, with a border. The limits were chosen by the `sweep`,
on the even rows of the photographs; the rest is measured on the odd rows, with other draws: without an encoder, with an
untrained one and with one of two epochs. Beside it: pairs by the cosine of their vectors, the rule of `--look-alikes`,
and pairs whose 64-bit perceptual hashes differ in at most 10 bits (DCT by scipy, as imagededup's default has it). Then
collections without planted copies: how many of their pictures are called copies, and how long that takes; drawings
both ways, 220 of 900 with a copy. The result goes to results/copies.json.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.fft import dct

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.jobs.copies import grouped, look_at_source
from instdisc.jobs.duplicates import duplicates, duplicates_of_source, look_alikes
from instdisc.jobs.train import train
from instdisc.search.copies import Finder, Limits

PHOTOGRAPHS, COPIES = 900, 40
HASH_BITS = 10
SWEEP = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
TINY: dict[str, Any] = {"backbone": "conv6", "width": 16, "dim": 64, "size": 64, "batch": 128, "precision": "float32"}
Picture = Image.Image


def _jpeg(picture: Picture, quality: int = 90) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()


def _cropped(picture: Picture, random: np.random.Generator) -> Picture:
    size = random.uniform(0.8, 0.9, 2)
    start = random.uniform(0, 1 - size)
    box = np.concatenate([start, start + size]) * [*picture.size, *picture.size]
    return picture.crop(tuple(box.round().astype(int).tolist()))


def _recoloured(picture: Picture, random: np.random.Generator) -> Picture:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = change(picture).enhance(random.uniform(0.8, 1.25))
    return picture


def _written_on(picture: Picture, random: np.random.Generator) -> Picture:
    picture = picture.copy()
    place = random.uniform(0.05, 0.4) * picture.width, random.uniform(0.1, 0.85) * picture.height
    ImageDraw.Draw(picture).text(place, "(c) somebody 2024", fill="white", font_size=max(10, picture.height // 14))
    return picture


def _framed(picture: Picture, random: np.random.Generator) -> Picture:
    wide = max(2, round(min(picture.size) * random.uniform(0.02, 0.05)))
    return ImageOps.expand(picture, wide, "white" if random.random() < 0.5 else "black")


def _scaled(picture: Picture, by: float) -> Picture:
    return picture.resize((round(picture.width * by), round(picture.height * by)), Image.Resampling.LANCZOS)


KINDS: dict[str, Callable[[Picture, np.random.Generator], bytes]] = {
    "q90": lambda picture, _: _jpeg(picture, 90),
    "q60": lambda picture, _: _jpeg(picture, 60),
    "q30": lambda picture, _: _jpeg(picture, 30),
    "halved": lambda picture, _: _jpeg(_scaled(picture, 0.5)),
    "enlarged": lambda picture, _: _jpeg(_scaled(picture, 1.5)),
    "cropped": lambda picture, random: _jpeg(_cropped(picture, random)),
    "mirrored": lambda picture, _: _jpeg(ImageOps.mirror(picture)),
    "recoloured": lambda picture, random: _jpeg(_recoloured(picture, random)),
    "text": lambda picture, random: _jpeg(_written_on(picture, random)),
    "border": lambda picture, random: _jpeg(_framed(picture, random)),
}


def plant(photos: str, half: int, seed: int, folder: Path, copies: int = COPIES) -> Path:
    """Files NUMBER.jpg, and NUMBER-KIND.jpg for a copy. half: 0 for the even rows of the photographs, 1 for the odd."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source, random = open_source(photos), np.random.default_rng(seed)
    rows = random.permutation(np.arange(half, len(source), 2))[:PHOTOGRAPHS]
    kinds = ["same", *KINDS]
    for number, row in enumerate(rows.tolist()):
        content = source.read(row)
        assert isinstance(content, bytes)
        (folder / f"{row:04d}.jpg").write_bytes(content)
        if number < copies:
            kind = kinds[(number + seed) % len(kinds)]
            changed = content if kind == "same" else KINDS[kind](Image.fromarray(decode(content)), random)
            (folder / f"{row:04d}-{kind}.jpg").write_bytes(changed)
    return folder


Pair = tuple[str, str]


def scored(folder: Path, pairs: Iterable[Pair]) -> dict[str, Any]:
    """How many of the planted pairs are among these, by kind, and how many of these are none."""
    planted = {(path.name[:4], path.stem) for path in folder.glob("*-*.jpg")}
    found = {(one, other) for one, other in (sorted(pair) for pair in pairs)}
    right = found & planted
    kinds, there = (Counter(name.partition("-")[2] for _, name in some) for some in (planted, right))
    return {
        "planted": len(planted),
        "found": len(right),
        "wrong": len(found - planted),
        "recall": round(len(right) / len(planted), 4),
        "precision": round(len(right) / len(found), 4) if found else 1.0,
        "missed": {kind: kinds[kind] - there[kind] for kind in kinds if kinds[kind] > there[kind]},
    }


def by_pixels(found: Iterable[Any]) -> Iterator[Pair]:
    """Each copy with the one that is kept in its place."""
    for group in found:
        yield from ((Path(group.kept.path).stem, Path(copy.path).stem) for copy in group.copies)


def by_vectors(run: Path, out: Path) -> Iterator[Pair]:
    """All pairs that stand in one group of look-alikes."""
    for group in look_alikes(run, out=out, say=None):
        yield from combinations([Path(one.path).stem for one in group.pictures], 2)


def by_hashes(folder: Path) -> Iterator[Pair]:
    """All pairs whose perceptual hashes differ in few bits."""
    files = sorted(folder.glob("*.jpg"))
    greys = []
    for file in files:
        with Image.open(file) as picture:
            greys.append(np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64))
    low = dct(dct(np.stack(greys), axis=1), axis=2)[:, :8, :8].reshape(len(files), 64)
    bits = (low >= np.median(low[:, 1:], axis=1, keepdims=True)).astype(np.float32)
    differ = bits @ (1 - bits).T
    one, other = np.nonzero(np.triu(differ + differ.T <= HASH_BITS, 1))
    yield from ((files[first].stem, files[second].stem) for first, second in zip(one, other, strict=True))


def sweep(folder: Path, file: Path) -> list[dict[str, Any]]:
    """Found and wrong at each limit of the agreement, the last look's alike."""
    looked = look_at_source(open_source(folder), file)
    proven = Finder(looked.stored, looked.contents, limits=Limits(agreement=SWEEP[0], closer=SWEEP[0])).within()
    names = [Path(one.path).stem for one in looked.entries(range(len(looked.stored)))]
    rows = []
    for limit in SWEEP:
        pairs = [(names[one], names[other]) for (one, other), proof in proven.items() if proof.agreement >= limit]
        rows.append({"limit": limit} | scored(folder, pairs))
    return rows


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Several draws together."""
    whole = {name: sum(row[name] for row in rows) for name in ("planted", "found", "wrong")}
    missed: Counter[str] = sum((Counter(row["missed"]) for row in rows), Counter())
    called = whole["found"] + whole["wrong"]
    precision = round(whole["found"] / called, 4) if called else 1.0
    return whole | {"recall": round(whole["found"] / whole["planted"], 4), "precision": precision, "missed": missed}


def measured(folder: Path, work: Path, seed: int) -> dict[str, dict[str, Any]]:
    """All ways on one folder."""
    answer = {
        "pixels, no encoder": scored(folder, by_pixels(duplicates_of_source(folder, out=work / "found", say=None))),
        "perceptual hashes": scored(folder, by_hashes(folder)),
    }
    for name, changes in (("untrained", {"epochs": 1, "lr": 1e-12}), ("two epochs", {"epochs": 2})):
        run = work / name.replace(" ", "_")
        shutil.rmtree(run, ignore_errors=True)
        train(folder, run, seed=seed, say=None, **TINY, **changes)
        answer[f"pixels, {name}"] = scored(folder, by_pixels(duplicates(run, say=None)))
        answer[f"vectors, {name}"] = scored(folder, by_vectors(run, work / "alike"))
    return answer


def without_copies(name: str, source: Any, work: Path, limit: int | None) -> dict[str, Any]:
    """Pictures among which none was planted: those that are called copies, and the processor's time for each step."""
    opened, file = open_source(source, limit=limit), work / f"{name}.npy"
    file.unlink(missing_ok=True)
    times = [(time.perf_counter(), time.process_time())]
    looked = look_at_source(opened, file)
    times.append((time.perf_counter(), time.process_time()))
    found = grouped(looked, "largest")
    times.append((time.perf_counter(), time.process_time()))
    kinds = Counter(f"{copy.kind} {' '.join(copy.changes)}".strip() for group in found for copy in group.copies)
    seconds = {
        step: {"wall": round(after[0] - before[0], 1), "processor": round(after[1] - before[1], 1)}
        for step, before, after in zip(("thumbnails", "copies"), times, times[1:], strict=False)
    }
    named = [[group.kept.id, copy.id, copy.agreement] for group in found for copy in group.copies]
    return {"pictures": len(opened), "called_copies": kinds, "seconds": seconds, "pairs": named[:50]}


def of_drawings(source: str, work: Path) -> dict[str, Any]:
    """Copies planted among 900 of them, and the whole as it is, where one template has many variants."""
    folder = plant(source, 1, 100, work / "drawings", copies=220)
    planted = scored(folder, by_pixels(duplicates_of_source(folder, out=work / "found", say=None)))
    return {"planted": planted, "all": without_copies("drawings", source, work, None)}


def quarters(photos: str, folder: Path, most: int) -> Path:
    """Each photograph and its four quarters: many different pictures of a photograph's detail."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = open_source(photos)
    for row in range(min(len(source), most // 5)):
        content = source.read(row)
        assert isinstance(content, bytes)
        (folder / f"{row:05d}.jpg").write_bytes(content)
        pixels = decode(content)
        high, wide = pixels.shape[0] // 2, pixels.shape[1] // 2
        for number in range(4):
            down, right = number // 2 * high, number % 2 * wide
            part = Image.fromarray(pixels[down : down + high, right : right + wide])
            part.save(folder / f"{row:05d}-{number}.jpg", quality=90)
    return folder


def main() -> None:
    """Measure all, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--pictures", help="other pictures, as CIFAR-10's 10,000")
    parser.add_argument("--drawings", help="a folder of them, as docs/emoji.py makes one")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--parts", type=int, default=20_000, help="photographs and their quarters, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/out/copies"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    work = settings.out
    chosen = [
        sweep(plant(settings.photos, 0, seed, work / "choose"), work / "choose.npy") for seed in range(settings.draws)
    ]
    limits = [{"limit": rows[0]["limit"]} | summed(list(rows)) for rows in zip(*chosen, strict=True)]
    for row in limits:
        print(row, flush=True)
    draws = []
    for seed in range(100, 100 + settings.draws):
        draws.append(measured(plant(settings.photos, 1, seed, work / "report"), work, seed))
        print(draws[-1], flush=True)
    ways = {way: summed([draw[way] for draw in draws]) for way in draws[0]}
    others = {"digits": without_copies("digits", "digits", work, None)}
    if settings.pictures:
        others["pictures"] = without_copies("pictures", settings.pictures, work, 10_000)
    folder = quarters(settings.photos, work / "quarters", settings.parts)
    others["photographs and their quarters"] = without_copies("quarters", folder, work, None)
    record(
        settings.results / "copies.json",
        name="copies",
        command="python runs/copies.py --photos PHOTOS --pictures PICTURES --drawings DRAWINGS "
        f"--draws {settings.draws} --parts {settings.parts}",
        unit="share of 40 planted copies among 900 photographs found by pixels, with an encoder of two epochs",
        values=[draw["pixels, two epochs"]["recall"] for draw in draws],
        seeds=list(range(100, 100 + settings.draws)),
        ways=ways,
        limits=limits,
        without_planted_copies=others,
        drawings=of_drawings(settings.drawings, work) if settings.drawings else None,
    )


if __name__ == "__main__":
    main()
