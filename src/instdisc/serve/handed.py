"""What the page is handed: it knows pictures by their rows, and neither runs nor encoders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from instdisc.errors import InputError

if TYPE_CHECKING:  # the page answers before torch is loaded
    from instdisc.search.index import Index
    from instdisc.shapes import Float, Tensor


_SEEN_SECONDS, _CALM_SECONDS = 3.0, 0.25


@dataclass(frozen=True)
class LabelState:
    """How labelling stands: counts is class -> (by hand, by vote); accuracy and its 95 % interval by leave-one-out."""

    counts: dict[str, tuple[int, int]]
    accuracy: float | None
    interval: tuple[float, float] | None


@runtime_checkable
class FirstLook(Protocol):
    """What is known of a collection before all of it is open, without torch: enough for the grid."""

    rows: np.ndarray  # of the pictures that are there, ascending
    dim: int
    recomputed: bool
    vectors: str
    label_names: list[str]
    tags: list[str]

    def entries(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """row, id, path, label and hand (whether that was given by hand) of pictures that are there."""
        ...

    def picture(self, row: int) -> np.ndarray:
        """Pixels, as `Handed.picture`."""
        ...


@runtime_checkable
class Handed(Protocol):
    """A collection. All of it may be called from several threads at once."""

    name: str
    index: Index
    version: int  # grows when labels change
    vectors: str  # what the index holds: "search" vectors, or the "embedding"
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
    """A collection that is being opened in the background, so that the page itself answers at once.

    look: makes a first look, or None where there is none. Loading torch holds all else up for a second, so the first
    screen of pictures is sent before that begins.
    """

    def __init__(
        self, name: str, opener: Callable[[], Handed], look: Callable[[], FirstLook | None] | None = None
    ) -> None:
        self.name = name
        self._opened: Handed | None = None
        self._first: FirstLook | None = None
        self._failed: str | None = None
        self._asked = 0.0  # when a picture was last asked for
        self._looked, self._needed, self._done = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._open, args=(opener, look), name="opening", daemon=True).start()

    def _open(self, opener: Callable[[], Handed], look: Callable[[], FirstLook | None] | None) -> None:
        if look is not None:
            with suppress(Exception):  # the opening itself will say what is wrong
                self._first = look()
        self._looked.set()
        if self._first is not None:
            self._let_it_be_seen()
        try:
            self._opened = opener()
        except InputError as error:
            self._failed = str(error)
        except Exception as error:
            self._failed = f"The collection could not be opened ({type(error).__name__}: {error})."
        self._done.set()

    def _let_it_be_seen(self) -> None:
        """Until pictures have been asked for and no more are, or somebody needs the whole; a few seconds at most."""
        end = time.monotonic() + _SEEN_SECONDS
        while time.monotonic() < end and not self._needed.wait(0.05):
            if self._asked and time.monotonic() > self._asked + _CALM_SECONDS:
                return

    def first_look(self) -> FirstLook | None:
        """What can be shown at once, while the whole is not open yet; None where there is no such thing."""
        self._looked.wait()
        return None if self._done.is_set() else self._first

    def picture_asked(self) -> None:
        """To be told of every picture that is asked for."""
        self._asked = time.monotonic()

    def has_first_look(self) -> bool:
        """Whether there is a first look already; answers at once."""
        return self._looked.is_set() and self._first is not None

    def wait(self, seconds: float | None = None) -> Handed:
        """The collection, when it is open. Raises InputError where it can't be opened, TimeoutError after `seconds`."""
        if seconds != 0:
            self._needed.set()
        if not self._done.wait(seconds):
            raise TimeoutError
        if self._opened is None:
            raise InputError(self._failed or "The collection could not be opened.")
        return self._opened
