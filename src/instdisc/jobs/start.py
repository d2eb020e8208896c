"""What a run starts from, and what its folder says of that: instances.arrow and config.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from instdisc import ranks
from instdisc.data.loading.pixel_cache import fingerprint_of
from instdisc.data.sources.gathered import Gathered
from instdisc.data.sources.source import Source
from instdisc.files import csv_text, write_json, write_text
from instdisc.jobs.identity import pixel_hashes
from instdisc.jobs.sources import write_instances
from instdisc.jobs.train_log import device_name
from instdisc.runs import FORMAT, GIVEN_LABELS, RunFolder
from instdisc.training import Settings, Training
from instdisc.version import __version__


@dataclass(frozen=True)
class Start:
    """What a training begins with. source: the pictures, open; described: where they stand, as config.json keeps it.

    recipe, overrides: a preset or whole Settings, and fields of them by name. grown: what a run that grew keeps of its
    past. warm: is given the training before anything is written, to put weights and rows in the place of random ones.
    on_log: takes each line of the metrics.
    """

    source: Source
    described: Mapping[str, Any]
    recipe: str | Settings = "default"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    grown: Sequence[Mapping[str, Any]] = ()
    warm: Callable[[Training], None] | None = None
    on_log: Callable[[dict[str, Any]], None] | None = None


def write_start(
    run: RunFolder,
    source: Source,
    described: Mapping[str, Any],
    rows: np.ndarray,
    *,
    settings: Mapping[str, Any],
    encoder: Mapping[str, Any],
    chosen: Mapping[str, Any],
    grown: Sequence[Mapping[str, Any]] = (),
) -> None:
    """instances.arrow, for these rows of the source, and config.json: the last makes the folder a run."""
    write_instances(run, source, rows)
    if described["labels"] == GIVEN_LABELS and not grown:
        _write_labels(run, source)
    data = {
        "rows": len(source),
        "readable": len(rows),
        "fingerprint": fingerprint_of(source),
        "ids": source.fingerprint,
        "pixels": pixel_hashes(source),
        **({"gathered": True} if isinstance(source, Gathered) else {}),
    }
    facts = {
        "format": FORMAT,
        "instdisc": __version__,
        "torch": torch.__version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "source": {"name": source.name, **described},
        "data": data,
        **({"grown": list(grown)} if grown else {}),
    }
    write_json(run.config, facts | {"settings": settings, "encoder": encoder, "chosen": chosen})


def _write_labels(run: RunFolder, source: Source) -> None:
    """The labels that were given as values, by the pictures' ids."""
    codes = source.labels
    lines = (
        (source.identifier(row), source.class_name(int(codes[row])))
        for row in (() if codes is None else np.flatnonzero(codes >= 0).tolist())
        if codes is not None
    )
    write_text(run.path / GIVEN_LABELS, csv_text(("id", "label"), lines))


def write_training(training: Training, source: Source, start: Start) -> None:
    """`write_start` of a training."""
    pictures = training.pictures
    write_start(
        training.run,
        source,
        start.described,
        pictures.rows,
        settings=training.settings.to_dict(),
        encoder=training.encoder.describe(),
        chosen={
            "device": str(training.device),
            "device_name": device_name(training.device),
            "precision": training.precision,
            "compile": training.compiled,
            "storage": pictures.storage,
            "order": training.order.facts(),
            "bank_dtype": str(training.rows.dtype).removeprefix("torch."),
            "bank_storage": training.rows.storage,
            "ranks": ranks.world(),
        },
        grown=start.grown,
    )
