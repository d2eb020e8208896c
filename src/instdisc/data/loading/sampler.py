"""The order of an epoch: every picture once, in batches whose sizes differ by one at most.

    order = choose_order(pictures, "auto")        # by pictures: one permutation of all
    print(order.why)
    for batch in order.batches(pictures.count, 1172, seed=0, epoch=3): ...

By shards the pictures come as the storage gives them up: the groups of rows (`Groups`) are put in random order
and cut into lanes of equal length; along a lane each picture is moved forward by a random part of a window, so that
neighbours part. A batch takes the same number from every lane and lists them lane after lane: whatever the number of
ranks, the part of a rank comes from few lanes, and it reads no more of the storage than those. Lanes and window are
chosen when a run begins and kept, so the order is the same for any number of ranks that it is resumed with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from instdisc import draws, ranks
from instdisc.data.loading.batches import Pictures
from instdisc.data.sources.row_groups import Groups
from instdisc.errors import InputError

_WINDOW_BYTES = 64 * 2**20  # of encoded pictures that are mixed, a lane
_PICTURE_BYTES = 100_000  # where the storage does not say
_GROUPS, _MOVES = 101, 102  # streams of random numbers


@dataclass(frozen=True)
class Order:
    """by: "pictures" or "shards". lanes, window (pictures): see above. starts: first instance of each group."""

    by: str = "pictures"
    lanes: int = 1
    window: int = 0
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    why: str = ""

    def facts(self) -> dict[str, Any]:
        """What a run keeps of it."""
        return {"by": self.by, "lanes": self.lanes, "window": self.window}

    def batches(self, count: int, number: int, *, seed: int, epoch: int) -> list[np.ndarray]:
        """`number` arrays of instances that hold each of range(count) once."""
        if self.by == "pictures":
            return np.array_split(draws.permutation(count, seed=seed, step=epoch), number)
        groups = draws.permutation(len(self.starts), seed=seed, step=epoch, stream=_GROUPS)
        stops = np.append(self.starts[1:], count)
        small = np.int32 if count < 2**31 else np.int64  # each rank holds all: 8 GB in all for a billion pictures
        # One long row of instances, group after group.
        lengths = (stops - self.starts)[groups]
        before = np.cumsum(lengths) - lengths
        line = np.repeat((self.starts[groups] - before).astype(small), lengths)
        line += np.arange(count, dtype=small)
        order = np.empty(count, small)
        for lane, part in enumerate(np.array_split(line, self.lanes)):
            moves = draws.uniforms(torch.from_numpy(part), 1, seed=seed, step=epoch, stream=_MOVES)[:, 0].numpy()
            keys = np.arange(len(part)) + self.window * moves.astype(np.float64)
            order[lane :: self.lanes] = part[np.argsort(keys, kind="stable")]
        batches, begin = [], 0
        for batch in np.array_split(order, number):
            lanes = np.arange(begin, begin + len(batch)) % self.lanes
            batches.append(batch[np.argsort(lanes, kind="stable")])
            begin += len(batch)
        return batches


def choose_order(pictures: Pictures, asked: str = "auto", kept: Any = None) -> Order:
    """The order that is asked for, the same on all ranks. "auto": what the storage is quick at.

    kept: the facts of the order of a run that is resumed. Raises InputError where shards are asked for and there are
    none, and for invalid facts.
    """
    groups = pictures.groups()
    if kept is not None:
        return _kept_order(pictures, groups, kept)
    if asked == "auto":
        asked = "shards" if groups is not None and groups.dear and pictures.storage == "workers" else "pictures"
    check_order(asked, groups, pictures.name)
    if groups is None or asked == "pictures":
        return Order()
    each = groups.bytes / pictures.count if groups.bytes > 0 else _PICTURE_BYTES
    lanes = min(max(1, pictures.processes) * ranks.world(), pictures.count)
    largest = int(np.diff(groups.starts, append=pictures.count).max())  # whole groups are kept: mix all of one
    lanes, window = ranks.broadcast_object((lanes, max(largest, int(_WINDOW_BYTES / each))))
    return _by_shards(pictures, groups, lanes, window)


def check_order(asked: str, groups: Groups | None, name: str) -> None:
    """InputError where shards are asked for and the source of this name has none."""
    if asked == "shards" and groups is None:
        raise InputError(f"order is shards, but {name} is neither Parquet files nor tar shards: take order=pictures.")


def _kept_order(pictures: Pictures, groups: Groups | None, kept: Any) -> Order:
    try:
        by, lanes, window = kept["by"], int(kept["lanes"]), int(kept["window"])
    except (LookupError, TypeError, ValueError):
        by, lanes, window = "", 0, 0
    if by == "pictures":
        return Order()
    if by != "shards" or groups is None or not 1 <= lanes <= pictures.count or window < 1:
        raise InputError("The run's config.json says nothing possible of its order: the run folder is damaged.")
    return _by_shards(pictures, groups, lanes, window)


def _by_shards(pictures: Pictures, groups: Groups, lanes: int, window: int) -> Order:
    pictures.keep_groups()
    why = (
        f"by shards: {len(groups.starts):,} of them or of their parts, in random order, in {lanes} "
        f"lane{'s' * (lanes > 1)}; along a lane pictures are mixed over {min(window, pictures.count):,}."
    )
    return Order("shards", lanes, window, groups.starts, why)
