"""Do vectors alone (`look_alikes`) and `outliers` find what was planted? Precision and recall, without labels.

    python runs/cleaning.py --photos photos.parquet              # a Parquet file or folder of photographs; 6 minutes

1,500 photographs become files; of 300 of them a copy is planted (re-encoded, resized, cropped a little, mirrored: 75
of each), and twenty drawings that are no photographs at all. The preset `default` trains on all of them. Two that
belong together are an original and its copy; photographs that were alike before count as errors. The result goes to
results/cleaning.json.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.jobs.duplicates import look_alikes
from instdisc.jobs.outliers import WAYS, Outlier, outliers
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

PHOTOGRAPHS, EACH = 1_500, 75
THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


def main() -> None:
    """Plant, train, look, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/out/cleaning"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    pictures, run = settings.out / "pictures", settings.out / "run"
    if not pictures.is_dir():
        plant(settings.photos, pictures, np.random.default_rng(settings.seed))
    resume = RunFolder(run).exists()
    if not train(pictures, run, resume=resume, minutes=settings.minutes, seed=settings.seed).finished:
        print(f"{run} is not finished: start again to go on.")
        return
    rows = [at(run, threshold, settings.out / "found") for threshold in THRESHOLDS]
    for row in rows:
        print(row)
    strangers = sorted(pictures.glob("stranger-*"))
    everyone = PHOTOGRAPHS + len(COPIES) * EACH + len(strangers)
    told = {
        by: at_finding(outliers(run, by=by, count=everyone, out=settings.out / "found"), len(strangers)) for by in WAYS
    }
    print(told)
    best = max(rows, key=lambda row: 0 if not row["recall"] else 2 / (1 / row["precision"] + 1 / row["recall"]))
    record(
        settings.results / "cleaning.json",
        name="cleaning",
        command=f"python runs/cleaning.py --photos PHOTOS --minutes {settings.minutes:g} --seed {settings.seed}",
        unit=f"recall, as a share of 1, of the planted copies at a cosine of {best['threshold']:g} (the best F1)",
        values=[best["recall"]],
        seeds=[settings.seed],
        planted={"photographs": PHOTOGRAPHS, "copies_of_each_kind": EACH, "strangers": len(strangers)},
        duplicates=rows,
        outliers=told,
    )


def at_finding(ranked: list[Outlier], planted: int) -> dict[str, float]:
    """How early the strangers come."""
    right = np.array([Path(one.path).name.startswith("stranger-") for one in ranked])
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    return {
        "average_precision": float(precision[right].mean()),
        "precision_among_as_many_as_planted": float(right[:planted].mean()),
        "recall_in_twice_as_many": float(right[: 2 * planted].sum() / planted),
    }


def plant(photos: str, folder: Path, random: np.random.Generator) -> None:
    """Files NUMBER.jpg, NUMBER-KIND.jpg for a copy, and stranger-NAME.png."""
    source = open_source(photos, limit=PHOTOGRAPHS)
    folder.mkdir(parents=True)
    kinds = list(COPIES)
    for row in range(PHOTOGRAPHS):
        picture = Image.fromarray(decode(source.read(row)))
        picture.save(folder / f"{row:04d}.jpg", quality=92)
        if row < len(kinds) * EACH:
            kind = kinds[row % len(kinds)]
            COPIES[kind](picture).convert("RGB").save(folder / f"{row:04d}-{kind}.jpg", quality=92)
    for name, drawing in drawings(random).items():
        drawing.save(folder / f"stranger-{name}.png")


def at(run: Path, threshold: float, out: Path) -> dict[str, float | dict[str, float]]:
    """Precision and recall of the pairs that stand in one group."""
    found = set()
    for group in look_alikes(run, threshold=threshold, out=out, say=None):
        names = sorted(Path(one.path).stem for one in group.pictures)
        found.update(combinations(names, 2))
    planted = {(name[:4], name) for name in (f"{row:04d}-{kind}" for row, kind in _planted())}
    right = found & planted
    recall = {kind: sum(pair[1].endswith(kind) for pair in right) / EACH for kind in COPIES}
    return {
        "threshold": threshold,
        "precision": len(right) / len(found) if found else 1.0,
        "recall": len(right) / len(planted),
        "pairs": len(found),
        "recall_by_kind": recall,
    }


def _planted() -> list[tuple[int, str]]:
    kinds = list(COPIES)
    return [(row, kinds[row % len(kinds)]) for row in range(len(kinds) * EACH)]


def _encoded_anew(picture: Image.Image) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=40)
    return Image.open(content)


def _cropped(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    return picture.crop((width // 20, height // 20, width - width // 20, height - height // 20))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded": _encoded_anew,
    "resized": lambda picture: picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS),
    "cropped": _cropped,
    "mirrored": ImageOps.mirror,
}


def drawings(random: np.random.Generator) -> dict[str, Image.Image]:
    """Twenty pictures that are no photographs, no two of a kind."""
    side = 224
    y, x = np.mgrid[0:side, 0:side]
    noise = random.integers(0, 256, (side, side, 3))
    coarse = np.kron(random.integers(0, 2, (28, 28)), np.ones((8, 8)))
    walk = np.cumsum(random.normal(0, 4, side)) + side / 2
    grey = {
        "checkers": 255 * ((x // 16 + y // 16) % 2),
        "stripes": 255 * (x // 7 % 2),
        "diagonals": 127 + 127 * np.sin((x + y) / 5),
        "rings": 127 + 127 * np.sin(np.hypot(x - 112, y - 112) / 4),
        "ramp": x * 255 / side,
        "code": 255 * coarse,
        "bars": 255 * (np.repeat(random.integers(0, 2, side // 2), 2)[x] > 0),
        "black": 0 * x,
        "white": 0 * x + 255,
        "curve": 255 * (np.abs(y - walk[x]) > 2),
        "moire": 127 + 127 * np.sin(x * y / 60),
        "speckle": 255 * (noise[..., 0] > 250),
    }
    made = {name: Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)) for name, values in grey.items()}
    made["noise"] = Image.fromarray(noise.astype(np.uint8))
    made["hues"] = Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))
    made["text"] = _drawn(
        lambda draw: [draw.text((8, 8 + 14 * line), "lorem ipsum dolor sit " * 2, 0) for line in range(15)]
    )
    made["chart"] = _drawn(
        lambda draw: [
            draw.rectangle((20 + 25 * bar, 200 - 20 * bar, 38 + 25 * bar, 200), (40, 90, 200)) for bar in range(8)
        ]
    )
    made["discs"] = _drawn(
        lambda draw: [
            draw.ellipse((12 * i, 9 * i, 12 * i + 60, 9 * i + 60), (255 - 16 * i, 16 * i, 90)) for i in range(14)
        ]
    )
    made["plan"] = _drawn(
        lambda draw: [
            draw.rectangle((a, b, a + 70, b + 60), outline=(0, 0, 0), width=3) for a in (10, 80) for b in (20, 80, 140)
        ]
    )
    made["star"] = _drawn(
        lambda draw: draw.polygon(
            [(112 + 90 * np.cos(2.513 * i), 112 + 90 * np.sin(2.513 * i)) for i in range(5)], (200, 0, 0)
        )
    )
    made["rays"] = _drawn(
        lambda draw: [
            draw.line((112, 112, 112 + 150 * np.cos(i / 5), 112 + 150 * np.sin(i / 5)), (0, 120, 60), 3)
            for i in range(32)
        ]
    )
    return {name: picture.convert("RGB") for name, picture in made.items()}


def _drawn(act: Callable[[ImageDraw.ImageDraw], object]) -> Image.Image:
    picture = Image.new("RGB", (224, 224), (255, 255, 255))
    act(ImageDraw.Draw(picture))
    return picture


if __name__ == "__main__":
    main()
