"""One opened run: what its folder says, read once and handed on to whoever works with it.

This file must not import torch, nor what imports it, before it is needed: the page answers while torch is being loaded.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from instdisc.data.sources.source import Source
from instdisc.errors import InputError
from instdisc.jobs import journal
from instdisc.jobs.identity import reopen
from instdisc.jobs.sources import has_no_encoder, read_facts, read_instances
from instdisc.runs import RunFolder

if TYPE_CHECKING:
    from instdisc.checkpoint import Checkpoint
    from instdisc.encoder import Encoder

_LOOK_AGAIN_SECONDS = 10.0  # after pictures were not there: a look at all files for each that is asked for takes long


class Run:
    """A run folder, opened. config.json is read at once; the rest when it is first asked for, and only then.

    train_source: where the training pictures are now, if they were moved, or the arrays in memory. verify: names of the
    groups of the checkpoint whose bytes are compared with their SHA-256; None = all.
    Raises InputError for a folder that is no run, is damaged, or is newer than this version.
    Whoever changes a run opens it under its lock: what was read before that may be out of date. Examples:

        run = Run("runs/mine")
        run.checkpoint.step, len(run.rows), run.source().name
        vectors = run.encoder().embed(["cat.jpg"])                 # (1, dim), unit rows
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        train_source: Any = None,
        verify: Collection[str] | None = ("encoder",),
    ) -> None:
        self.folder = RunFolder(folder)
        self.facts = read_facts(self.folder)
        self.moved_to = train_source
        self._verify = verify
        self._source: Source | None = None
        self._refused, self._refused_at = "", -math.inf

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def given(self) -> bool:
        """Whether the vectors were made elsewhere: there is no encoder, and nothing can be embedded."""
        return has_no_encoder(self.facts)

    @cached_property
    def last_checkpoint(self) -> Checkpoint | None:
        """The newest whole one; None where there is none yet. A run that still trains saves others meanwhile."""
        from instdisc import checkpoint

        return checkpoint.latest(self.folder.checkpoints, verify=self._verify)

    @property
    def checkpoint(self) -> Checkpoint:
        """The newest whole checkpoint; InputError where there is none yet."""
        if self.last_checkpoint is None:
            raise InputError(f"{self.path} holds no whole checkpoint yet: train it first, or resume it.")
        return self.last_checkpoint

    @cached_property
    def _encoder(self) -> Encoder:
        from instdisc.checkpoint import load_encoder

        return load_encoder(self.path, self.last_checkpoint, self.facts)

    def encoder(self, device: str = "auto") -> Encoder:
        """The encoder of the checkpoint, with its search vectors if the run has them, moved to this device.

        It is one object, whoever asks. Raises InputError where the vectors were made elsewhere.
        """
        from instdisc import ranks

        return self._encoder.to(ranks.device(device))

    @cached_property
    def instances(self) -> pa.Table:
        """instances.arrow, as `read_instances` gives it: the picture of each bank row."""
        return read_instances(self.folder)

    @cached_property
    def rows(self) -> Int[np.ndarray, " instances"]:
        """Which row of the training source each bank row is."""
        rows = np.array(self.instances["row"])
        if len(rows) and rows.max() >= self.facts["data"]["rows"]:
            raise InputError(f"{self.folder.instances} names pictures that never were: the run folder is damaged.")
        return rows

    def source(self) -> Source:
        """The pictures that the run was trained on; InputError where they have gone or changed."""
        if self._source is None:
            if time.monotonic() < self._refused_at + _LOOK_AGAIN_SECONDS:
                raise InputError(self._refused)
            try:
                self._source = reopen(self.folder, self.facts, self.moved_to)
            except InputError as error:
                self._refused, self._refused_at = str(error), time.monotonic()
                raise
        return self._source

    def has_pictures(self) -> bool:
        """Whether the training pictures are where they were."""
        try:
            self.source()
        except InputError:
            if self.moved_to is not None:
                raise
            return False
        return True

    def hand_labels(self) -> dict[str, tuple[str, str]]:
        """path -> (label, time) of the pictures labelled by hand, as hand.csv has them now, in its order."""
        return journal.read(self.folder)
