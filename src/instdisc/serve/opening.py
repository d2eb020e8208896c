"""A collection opened in the background, so that the page answers at once.

This file must not import torch, nor what imports it: the page answers while torch is being loaded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from instdisc.errors import InputError

if TYPE_CHECKING:
    from instdisc.jobs.catalogue import Listed
    from instdisc.serve.opened import Opened

_SEEN_SECONDS, _CALM_SECONDS = 3.0, 0.25


class Opening:
    """A collection that is being opened in the background, so that the page itself answers at once.

    look: lists the pictures alone; an error where that is not all of the collection. Loading torch holds all else up
    for a second, so the first screen of pictures is sent before that begins. beside: the name of a second run, and what
    is open of it, to compare with.
    """

    def __init__(
        self,
        name: str,
        opener: Callable[[], Opened],
        look: Callable[[], Listed | None] | None = None,
        *,
        beside: tuple[str, Opened] | None = None,
    ) -> None:
        self.name, self.beside = name, beside
        self._opened: Opened | None = None
        self._listed: Listed | None = None
        self._failed: str | None = None
        self._asked = 0.0  # when a picture was last asked for
        self._looked, self._needed, self._done = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._open, args=(opener, look), name="opening", daemon=True).start()

    def _open(self, opener: Callable[[], Opened], look: Callable[[], Listed | None] | None) -> None:
        if look is not None:
            with suppress(Exception):  # the opening itself will say what is wrong
                self._listed = look()
        self._looked.set()
        if self._listed is not None:
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

    def listed(self) -> Listed | None:
        """What can be shown while the whole is not open yet; None once it is, and where there is no such thing."""
        self._looked.wait()
        return None if self._done.is_set() else self._listed

    def picture_asked(self) -> None:
        """To be told of every picture that is asked for."""
        self._asked = time.monotonic()

    def is_listed(self) -> bool:
        """Whether the pictures are listed already; answers at once."""
        return self._looked.is_set() and self._listed is not None

    def renew(self, opened: Opened) -> None:
        """Show this from now on, in the place of what was opened before."""
        self._opened = opened

    def wait(self, seconds: float | None = None) -> Opened:
        """The collection, when it is open. Raises InputError where it can't be opened, TimeoutError after `seconds`."""
        if seconds != 0:
            self._needed.set()
        if not self._done.wait(seconds):
            raise TimeoutError
        if self._opened is None:
            raise InputError(self._failed or "The collection could not be opened.")
        return self._opened
