"""Runs that take a second: made pictures, some thousand weights, and what came of them as plain tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from instdisc import ranks
from instdisc.checkpoint import latest
from instdisc.data.loading.dataset import Pictures, open_pictures
from instdisc.data.sources.open import open_source
from instdisc.encoder import Encoder, build_encoder
from instdisc.runs import RunFolder
from instdisc.training import Settings, Training, read_metrics

CLASSES = 3
SIDE = 16
# As few numbers as will still show a fault; the learning rate is large enough that a wrong gradient shows at once.
TINY: dict[str, Any] = {
    "backbone": "conv6",
    "width": 4,
    "dim": 8,
    "size": SIDE,
    "batch": 16,
    "epochs": 2,
    "lr": 0.1,
    "negatives": 24,
    "precision": "float32",
    "storage": "memory",
    "checkpoint_minutes": 60,
    "monitor_epochs": 1000,
    "seed": 3,
}


def tiny(**changes: Any) -> Settings:
    """TINY with some fields changed."""
    return Settings().with_overrides(TINY | changes)


def made_pictures(count: int, seed: int = 0) -> np.ndarray:
    """(count, 16, 16, 3) uint8: a colour for each class (row modulo CLASSES), a gradient and noise for each picture."""
    random = np.random.default_rng(seed)
    colour = np.eye(3)[np.arange(count) % CLASSES][:, None, None, :] * 120
    slope = random.uniform(-60, 60, (count, 1, 1, 3)) * np.linspace(-1, 1, SIDE)[None, :, None, None]
    noise = random.normal(0, 12, (count, SIDE, SIDE, 3))
    return np.clip(80 + colour + slope + noise, 0, 255).astype(np.uint8)


def picture_folder(folder: Path, count: int, seed: int = 0) -> Path:
    """The same pictures as PNG files in class folders red, green, blue."""
    for row, picture in enumerate(made_pictures(count, seed)):
        place = folder / ("red", "green", "blue")[row % CLASSES] / f"{row:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place)
    return folder


def without_batch_statistics(encoder: Encoder) -> Encoder:
    """Every batch normalisation replaced by a group normalisation: a picture's vector is then its own affair."""
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(2, child.num_features))
    return encoder


def opened(count: int, seed: int = 0) -> Pictures:
    """Made pictures, ready for training on the CPU."""
    return open_pictures(open_source(made_pictures(count, seed)), SIDE, "cpu", storage="memory")


def training_in(
    folder: Path, settings: Settings, count: int = 67, *, batch_statistics: bool = False, **more: Any
) -> Training:
    """A run in memory on made pictures; several ranks may call it together."""
    encoder = build_encoder(settings.encoder, seed=settings.seed)
    if not batch_statistics:
        without_batch_statistics(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    return Training(RunFolder(folder), settings, opened(count), encoder, torch.device("cpu"), **more)


def outcome(training: Training) -> dict[str, torch.Tensor]:
    """What must not depend on how the work was cut: all weights in a row, all bank rows, the loss of every step."""
    weights = [*training.encoder.parameters(), *training.terms.parameters()]
    lines = [line for line in read_metrics(training.run) if "loss" in line]
    return {
        "weights": torch.cat([weight.detach().flatten() for weight in weights]),
        "bank": ranks.gather(training.bank.rows).clone(),
        "losses": torch.tensor([[line["step"], *line["losses"].values()] for line in lines], dtype=torch.float64),
    }


def saved_state(run: Path) -> dict[str, bytes]:
    """The bits of the last checkpoint's encoder, optimizer and bank, and the losses in metrics.jsonl."""
    found = latest(RunFolder(run).checkpoints)
    assert found is not None
    instances = found.facts["bank"]["instances"]
    tensors = {**found.tensors("encoder"), **found.tensors("optimizer"), **found.rows("bank", 0, instances)}
    state = {name: values.contiguous().numpy().tobytes() for name, values in tensors.items()}
    updates = json.dumps([found.step, found.facts["bank"]["updates"]])
    return state | {"updates": updates.encode(), "metrics": json.dumps(losses_of(run)).encode()}


def losses_of(run: Path) -> list[tuple[Any, ...]]:
    """(step, what was logged or measured) for each line of metrics.jsonl, without what a clock decides."""
    lines = read_metrics(RunFolder(run))
    return [(line["step"], line.get("losses"), line.get("lr"), line.get("measured")) for line in lines]
