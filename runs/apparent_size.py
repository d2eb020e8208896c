"""How large a finished encoder should be shown pictures: sides, batch statistics and mirrored views, without training.

    python runs/apparent_size.py RUN --train cifar10-train.parquet

RUN was trained on the 45,000 pictures of `Divided.of`. A random crop shown at 32 px enlarges what it shows by 1.38 on
average, so whole pictures may do better a little larger than 32 px, or with batch statistics taken from whole pictures.
kNN on the held-out pictures, of the first GALLERY of the 45,000.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from held_out import UNIT, Divided
from record import record

from instdisc import KNN, load
from instdisc.encoder import Encoder
from instdisc.encoder.backbones import evaluating
from instdisc.encoder.whitening import Moments, fit_whitening

SIDES = (32, 36, 40, 44)
BATCH = 250


def score(
    known: dict[str, Tensor],
    labels: np.ndarray,
    asked: dict[str, Tensor],
    out_labels: np.ndarray,
    encoder: Encoder,
) -> dict[str, float]:
    """kNN, %: of each space, with k 200, and with the nearest neighbour alone. Search vectors are fitted on `known`."""
    stages = encoder.search_levels()
    moments = Moments(tuple(stages.values()))
    moments.add(known["stages"])
    whitening = fit_whitening(moments, tuple(stages))
    reached: dict[str, float] = {"gallery": len(labels)}
    for name, vectors, queries in (
        ("embedding", known["embedding"], asked["embedding"]),
        ("search", whitening(known["stages"]), whitening(asked["stages"])),
    ):
        for k, suffix in ((200, ""), (1, ", k 1")):
            reached[name + suffix] = round(100 * KNN(k).fit(vectors, labels).score(queries, out_labels), 2)
    return reached


def shown(encoder: Encoder, images: np.ndarray, side: int, *, flipped: bool = False) -> Tensor:
    """Normalised pictures (n, 3, side, side), enlarged bilinearly."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    pixels = encoder.preprocessing.normalise(pixels.flip(-1) if flipped else pixels)
    if side != pixels.shape[-1]:
        pixels = nn.functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
    return pixels.contiguous(memory_format=torch.channels_last)


def spaces(encoder: Encoder, images: np.ndarray, side: int, *, flipped: bool = False) -> dict[str, Tensor]:
    """The embedding, and pooled features of all stages beside one another."""
    parts, stages = [], tuple(encoder.search_levels())
    with evaluating(encoder):
        for start in range(0, len(images), BATCH):
            parts.append(encoder.levels(shown(encoder, images[start : start + BATCH], side, flipped=flipped), stages))
    levels = {name: torch.cat([part[name].float() for part in parts]) for name in parts[0]}
    return {"embedding": levels["embedding"], "stages": torch.cat([levels[name] for name in stages], dim=1)}


def with_statistics_of(encoder: Encoder, images: np.ndarray, side: int) -> Encoder:
    """A copy whose batch normalisations have the plain mean of their statistics over these whole pictures."""
    encoder = copy.deepcopy(encoder)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the cumulative mean
    encoder.train()
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            encoder(shown(encoder, images[start : start + BATCH], side))
    return encoder.eval()


def main() -> None:
    """Measure every side with the statistics as they are and taken again, and the mean with mirrored pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--gallery", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("results/apparent_size.json"))
    settings = parser.parse_args()
    pictures = Divided.of(settings.train)
    gallery, labels = pictures.images[: settings.gallery], pictures.labels[: settings.gallery]
    encoder = load(settings.run)
    rows = []
    for side in SIDES:
        for again in (False, True):
            seen = with_statistics_of(encoder, pictures.images[:5_000], side) if again else encoder
            known, asked = (spaces(seen, images, side) for images in (gallery, pictures.out_images))
            row = {"side": side, "statistics": "whole pictures" if again else "as trained", "mirrored": False}
            rows.append(row | score(known, labels, asked, pictures.out_labels, encoder))
            print(rows[-1], flush=True)
            if side == SIDES[0] and not again:
                for part, images in ((known, gallery), (asked, pictures.out_images)):
                    for name, values in spaces(seen, images, side, flipped=True).items():
                        part[name] = (part[name] + values) / 2
                rows.append(row | {"mirrored": True} | score(known, labels, asked, pictures.out_labels, encoder))
                print(rows[-1], flush=True)
    record(
        settings.out,
        name="apparent_size",
        command=f"python runs/apparent_size.py RUN --gallery {settings.gallery}",
        unit=f"{UNIT}; `values` are of the embedding",
        values=[row["embedding"] for row in rows],
        seeds=[0] * len(rows),
        rows=rows,
    )


if __name__ == "__main__":
    main()
