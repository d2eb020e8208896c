"""Choosing without the test pictures: runs on a part of the training pictures, measured on the rest of them.

Used by choose_laptop.py and recipe.py; no program of its own.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import KNN, draws
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.open import open_source
from instdisc.jobs.train import train

HELD_OUT = 5_000
RESULT = "held_out.json"
UNIT = "kNN top-1 on held-out training pictures, %, k 200, temperature 0.07"


@dataclass(frozen=True)
class Divided:
    """Labelled 32-pixel pictures (n, 32, 32, 3) in two parts: to train on, and to be classified."""

    images: np.ndarray
    labels: np.ndarray
    out_images: np.ndarray
    out_labels: np.ndarray

    @classmethod
    def of(cls, source: Any, held_out: int = HELD_OUT, pictures: int | None = None) -> Divided:
        """The readable pictures of a source: some, drawn once for all, put aside, and `pictures` of the rest."""
        opened = open_source(source)
        stored = open_pictures(opened, 32, torch.device("cpu"), storage="memory")
        (batch,) = stored.batches([np.arange(stored.count)])
        images, labels = batch.images.permute(0, 2, 3, 1).numpy(), opened.labels[stored.rows]
        order = draws.permutation(len(images), seed=0, step=0)
        out, rest = order[:held_out], order[held_out:][:pictures]
        return cls(images[rest], labels[rest], images[out], labels[out])

    def reach(self, folder: Path, name: str, preset: str, **overrides: Any) -> dict[str, Any] | None:
        """What a run of these settings reaches, from its folder if it was made before; None if it was interrupted."""
        result = folder / RESULT
        if result.is_file():
            return json.loads(result.read_text(encoding="utf-8"))
        shutil.rmtree(folder, ignore_errors=True)
        run = train(self.images, folder, preset, **({"monitor_epochs": 1000} | overrides))
        if not run.finished:
            return None
        encoder = run.encoder()
        top1 = {}
        for vectors in ("search", "embedding"):
            knn = KNN().fit(encoder.embed(self.images, vectors=vectors), self.labels)
            top1[vectors] = 100 * knn.score(encoder.embed(self.out_images, vectors=vectors), self.out_labels)
        facts = {
            "candidate": name,
            "minutes": overrides.get("minutes"),  # None: by epochs, whatever else the machine did meanwhile
            "top1": top1["embedding"],
            "top1_search": top1["search"],
            "epochs": round(run.epochs, 2),
            "overrides": {name: value for name, value in overrides.items() if name not in ("minutes", "epochs")},
        }
        result.write_text(json.dumps(facts), encoding="utf-8")
        both = ", ".join(f"{value:.2f} % by {vectors}" for vectors, value in top1.items())
        print(f"{name}: {both}, after {run.epochs:.1f} epochs", flush=True)
        return facts
