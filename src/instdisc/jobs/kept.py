"""`train` on a frozen backbone: the features of every picture, computed once and kept while the run lasts.

    pictures = kept_views(start, source, pictures, encoder, settings, quarantine)       # a KeptViews

Of each picture the levels that search vectors are made of, as it is, and the backbone's end of `kept_views` random
views: RUN/features/NAME.npy, whose name says what it is of. An interrupted start goes on there, and so does a resumed
run. Every rank computes a part. `forget_features` removes them once the run has ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import ranks
from instdisc.data.augment import centre
from instdisc.data.loading.batches import Pictures
from instdisc.data.loading.kept import KeptViews
from instdisc.data.loading.pixel_cache import fingerprint_of
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.sources.source import Source
from instdisc.data.sources.subset import Subset
from instdisc.embeddings import Embedded, write_embeddings
from instdisc.encoder import Encoder, evaluating
from instdisc.encoder.embed import autocast
from instdisc.errors import counted
from instdisc.jobs.embed import digest_of, note_unreadable, read_vectors
from instdisc.jobs.frozen import check_room
from instdisc.jobs.run import Run
from instdisc.jobs.search_vectors import has_map
from instdisc.runs import RunFolder
from instdisc.system import readable_bytes
from instdisc.training import Settings

_BATCH = 64
_PART_BYTES = 16 << 20  # of features, the most work that a kill can lose for each process
_APART = (1 << 40) + 2  # as the step of a draw: no step of a run, not the monitor's, not the search vectors'


class Noted(Quarantine):
    """A list of what can't be read that is kept in memory, with the reasons; what is in the end written is another."""

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__(None, strict=strict)
        self.reasons: dict[str, str] = {}

    def add(self, identifier: str, location: str, reason: str) -> None:
        """Notes a picture. Raises InputError under `strict`."""
        super().add(identifier, location, reason)
        self.reasons[identifier] = reason


@dataclass(frozen=True)
class Features:
    """What is computed of a source. pictures: its pixels, to be asked once. encoder: on its device already."""

    source: Source
    pictures: Pictures
    encoder: Encoder
    settings: Settings

    @cached_property
    def levels(self) -> dict[str, int]:
        """What the features of a picture as it is are made of: names and widths, the backbone's end last."""
        return self.encoder.frozen_levels()

    @property
    def width(self) -> int:
        """Numbers of a picture."""
        return sum(self.levels.values()) + self.settings.kept_views * self.encoder.channels

    def fingerprint(self) -> str:
        """Another one wherever the features would be others."""
        settings, view = self.settings, self.encoder.preprocessing
        made = [settings.augmentation(view.mean, view.std), settings.kept_views, settings.seed, settings.stored_side]
        of = [self.encoder.config.backbone, view, made, fingerprint_of(self.source), self.source.location(0)]
        return digest_of(self.encoder.backbone, of).hexdigest()

    def of(self, rows: np.ndarray) -> Embedded:
        """The features of these rows of the source, and the reasons for those that can't be read."""
        instances = np.flatnonzero(np.isin(self.pictures.rows, rows))
        values = np.empty((len(instances), self.width), np.float32)
        seen = np.zeros(len(instances), dtype=bool)
        pieces = [instances[start : start + _BATCH] for start in range(0, len(instances), _BATCH)]
        view = self.encoder.preprocessing
        augment = self.settings.augmentation(view.mean, view.std)
        with evaluating(self.encoder), autocast(self.pictures.device, "auto"):
            for batch in self.pictures.batches(pieces):
                aspects = self.pictures.aspects[batch.indices]
                how: dict[str, Any] = {
                    "size": view.size,
                    "crop_fraction": view.crop_fraction,
                    "mean": view.mean,
                    "std": view.std,
                }
                found = [self.encoder.stage_features(centre(batch.images, aspects, **how), tuple(self.levels))]
                for number in range(self.settings.kept_views):
                    shown = augment(
                        batch.images, batch.indices, aspects, seed=self.settings.seed, step=_APART, view=number
                    )
                    found.append(self.encoder.backbone(shown).float())
                at = np.searchsorted(instances, batch.indices.cpu().numpy())
                values[at] = torch.cat(found, dim=1).cpu().numpy()
                seen[at] = True
        read = self.pictures.rows[instances[seen]]
        reasons = self.pictures.quarantine.reasons if isinstance(self.pictures.quarantine, Noted) else {}
        lost = np.setdiff1d(rows, read).tolist()
        unknown = "it could not be read"
        return Embedded(values[seen], read, [(row, reasons.get(self.source.identifier(row), unknown)) for row in lost])


def kept_views(
    run: RunFolder, wanted: Features, quarantine: Quarantine, before: Run | None, say: Callable[[str], None]
) -> KeptViews:
    """The features of all pictures that can be read: those in RUN/features, computed now as far as they are not there.

    before: the run that goes on; of one that has ended nothing is computed. Every rank calls it. The pixels are closed.
    Raises InputError where the disk is too small, and what reading the pictures raises.
    """
    views, levels = wanted.settings.kept_views, wanted.levels
    device = wanted.pictures.device
    out = run.features / f"{wanted.fingerprint()[:32]}.npy"
    if before is not None and ranks.on_main(lambda: not out.is_file() and _has_ended(before)):
        rows = np.arange(len(wanted.source)) if isinstance(wanted.source, Subset) else before.rows
        features, why = np.empty((len(rows), 0), np.float32), "nothing is computed, as the run has ended."
    else:
        if not ranks.on_main(out.is_file):
            _compute(run, out, wanted, say)
        ranks.on_main(lambda: note_unreadable(out, quarantine))
        rows, features = read_vectors(out, wanted.source)
        size, count = readable_bytes(features.nbytes), counted(len(rows), "picture")
        why = f"the features of {count} and of {views} random views of each, {size} in {out.parent}."
    wanted.pictures.close()
    ranks.barrier()
    return KeptViews(wanted.source, quarantine, why, device, rows, features, levels=levels, views=views)


def _has_ended(run: Run) -> bool:
    """Whether nothing is left to do for a run that goes on."""
    found = run.last_checkpoint
    return found is not None and float(found.facts.get("progress", 0)) >= 1 and has_map(run.folder, found.step)


def _compute(run: RunFolder, out: Path, wanted: Features, say: Callable[[str], None]) -> None:
    count, settings = len(wanted.source), wanted.settings

    def prepare() -> int:
        run.features.mkdir(exist_ok=True)
        for other in run.features.iterdir():  # of other pictures or settings
            if not other.name.startswith(out.stem):
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        return check_room(run.features, count, wanted.width)

    needed = readable_bytes(ranks.on_main(prepare))
    say(
        f"Features: {counted(count, 'picture')} and {settings.kept_views} random views of each go through "
        f"{settings.backbone} once, at {settings.size} px. They take {needed} of the disk for a while, then half of "
        "that until the run ends. An interrupted start goes on there."
    )
    chunk = int(np.clip(_PART_BYTES // (4 * wanted.width), 16, 4096))
    write_embeddings(wanted.source, wanted.of, out, run_fingerprint=out.stem, chunk=chunk, restart="other")


def forget_features(run: RunFolder) -> None:
    """Remove RUN/features. Every rank calls it."""
    ranks.barrier()  # all have what they need
    ranks.on_main(lambda: shutil.rmtree(run.features, ignore_errors=True))
