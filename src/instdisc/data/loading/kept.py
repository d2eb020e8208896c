"""Features of a frozen network in the place of pixels: of each picture as it is, and of some random views of it.

    kept = KeptViews(source, quarantine, "why", device, rows, features, levels={"backbone": 512}, views=8)
    for batch in kept.batches(order):
        kept.random_view(batch, seed=0, step=17, view=0)        # (batch, 512): what the head is given

A row of `features` holds the levels of the picture as it is, side by side, the network's end last; then the network's
end of each view.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np
import torch

from instdisc import draws
from instdisc.data.background import Background
from instdisc.data.loading.batches import Batch, Loaded, Pictures
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.sources.row_groups import Groups
from instdisc.data.sources.source import Source
from instdisc.shapes import Float, Tensor

_WHICH = 0xFEA_000  # stream of random numbers: which of its views a picture shows


class KeptViews(Pictures):
    """Pictures whose `Batch.images` are rows of features, (batch, width) float32.

    rows: of the source, ascending. features: (len(rows), width) float32, mapped perhaps. levels: names and widths of
    what stands first in a row. views: how many random views follow, each as wide as the last level.
    """

    storage = "features"

    def __init__(
        self,
        source: Source,
        quarantine: Quarantine,
        why: str,
        device: torch.device,
        rows: np.ndarray,
        features: Float[np.ndarray, "count width"],
        *,
        levels: Mapping[str, int],
        views: int,
    ) -> None:
        super().__init__(source, 0, device, quarantine, why)
        self.rows, self.aspects = rows, torch.ones(len(rows), device=device)
        self.levels, self.views = dict(levels), views
        self._features = features
        self._background = Background(threads=2)

    def close(self) -> None:
        self._background.close()

    def groups(self) -> Groups | None:
        """None: every row is as near as another."""
        return None

    def whole(self, batch: Batch) -> Float[Tensor, "batch channels"]:
        """The network's end of the pictures as they are."""
        return self.whole_levels(batch)[:, -self._channels :]

    def whole_levels(self, batch: Batch) -> Float[Tensor, "batch width"]:
        """All levels of the pictures as they are, side by side."""
        return batch.images[:, : self._width]

    def random_view(self, batch: Batch, *, seed: int, step: int, view: int) -> Float[Tensor, "batch channels"]:
        """The network's end of one of the views of each picture, drawn for this step; another for each `view`."""
        numbers = draws.uniforms(batch.indices, self.views, seed=seed, step=step, stream=_WHICH)
        chosen = numbers.argsort(dim=1, stable=True)[:, view]
        whole = batch.images[:, self._width :].unflatten(1, (self.views, self._channels))
        return whole[torch.arange(len(chosen), device=chosen.device), chosen]

    @property
    def _width(self) -> int:
        return sum(self.levels.values())

    @property
    def _channels(self) -> int:
        return list(self.levels.values())[-1]

    def _request(self, instances: np.ndarray) -> Future[Loaded]:
        return self._background.submit(self._gather, instances)

    def _gather(self, instances: np.ndarray) -> Loaded:
        return Loaded(instances, torch.from_numpy(np.take(self._features, instances, axis=0)))
