"""Rows that the storage gives up together: row groups of Parquet files, stretches of tar shards.

groups = source.groups()                      # None where every picture is a file of its own
source.keep_groups()                          # from now on whole groups are read, and the last few are kept
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int64

Content = TypeVar("Content")

KEPT_BYTES = 128 * 2**20  # of groups, a process
FEWEST_KEPT = 3  # whatever they take, where pictures come in an order that goes by them


@dataclass(frozen=True)
class Groups:
    """starts: first row of each group, ascending from 0. bytes: what they take together, -1 where that is unknown.

    dear: whether one row costs its whole group, or a request over a network.
    """

    starts: Int64[np.ndarray, "groups"]
    bytes: int
    dear: bool


class KeptGroups(Generic[Content]):
    """The groups that were used last, up to KEPT_BYTES; `fewest` are kept whatever their size."""

    def __init__(self, fewest: int) -> None:
        self.fewest = fewest
        self._held: OrderedDict[int, tuple[Content, int]] = OrderedDict()

    def get(self, group: int, size: int, load: Callable[[], Content]) -> Content:
        """A group from those that are kept, or loaded. size: its bytes, for which room is made first."""
        if group not in self._held:
            while len(self._held) >= self.fewest and sum(one for _, one in self._held.values()) + size > KEPT_BYTES:
                self._held.popitem(last=False)
            self._held[group] = load(), size
        self._held.move_to_end(group)
        return self._held[group][0]
