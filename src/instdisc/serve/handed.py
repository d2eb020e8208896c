"""What the page is handed: it knows pictures by their rows, and neither runs nor encoders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from instdisc.errors import InputError

if TYPE_CHECKING:  # the page answers before torch is loaded
    from instdisc.search.index import Index
    from instdisc.shapes import Float, Tensor


@dataclass(frozen=True)
class LabelState:
    """How labelling stands: counts is class -> (by hand, by vote); accuracy and its 95 % interval by leave-one-out."""

    counts: dict[str, tuple[int, int]]
    accuracy: float | None
    interval: tuple[float, float] | None


@runtime_checkable
class Handed(Protocol):
    """A collection. All of it may be called from several threads at once."""

    name: str
    index: Index
    version: int  # grows when labels change
    recomputed: bool  # whether the vectors come from the pictures as they are, and not from augmented views

    def picture(self, row: int) -> np.ndarray:
        """Pixels (height, width, 3) uint8; raises an error where they can't be had."""
        ...

    def known_outliers(self) -> list[tuple[int, float]]:
        """(row, strangeness), the strangest first; empty where that was never computed."""
        ...

    def map_points(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows, points (n, 2)) of the map; None where there is none yet."""
        ...

    def make_map(self, progress: Callable[[float], None]) -> None:
        """Compute and keep the map, which takes a while; progress is told the share that is done."""
        ...

    def embed(self, pictures: Sequence[np.ndarray]) -> Float[Tensor, "pictures dim"]:
        """Unit vectors of other pictures, on the CPU."""
        ...

    def hand_labels(self) -> dict[int, str]:
        """row -> label given by hand."""
        ...

    def set_labels(self, rows: Sequence[int], label: str | None) -> None:
        """Label pictures by hand, or take their label away; saved when it returns."""
        ...

    def label_state(self) -> LabelState:
        """Votes for all that are not labelled."""
        ...

    def labels_csv(self) -> str:
        """A CSV file of every picture's label with its provenance; the heading alone where nothing is labelled."""
        ...

    def votes(self, rows: Sequence[int]) -> list[tuple[str, float]]:
        """For each row its label and the share of the votes (1 by hand); ("", 0) where nothing is labelled."""
        ...

    def proposals(self, count: int, by: str) -> list[int]:
        """Rows to label next, the most useful first."""
        ...


class Opening:
    """A collection that is being opened in the background, so that the page itself answers at once."""

    def __init__(self, name: str, opener: Callable[[], Handed]) -> None:
        self.name = name
        self._opened: Handed | None = None
        self._failed: str | None = None
        self._done = threading.Event()
        threading.Thread(target=self._open, args=(opener,), name="opening", daemon=True).start()

    def _open(self, opener: Callable[[], Handed]) -> None:
        try:
            self._opened = opener()
        except InputError as error:
            self._failed = str(error)
        except Exception as error:
            self._failed = f"The collection could not be opened ({type(error).__name__}: {error})."
        self._done.set()

    def wait(self, seconds: float | None = None) -> Handed:
        """The collection, when it is open. Raises InputError where it can't be opened, TimeoutError after `seconds`."""
        if not self._done.wait(seconds):
            raise TimeoutError
        if self._opened is None:
            raise InputError(self._failed or "The collection could not be opened.")
        return self._opened
