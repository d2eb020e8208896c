"""What is computed for the page at the moment and takes long: how far it is, and the way to end it.

work = Work()
with work.doing():
    compute()                   # every bar in it (progress.py) is followed
work.state(); work.stop()       # meanwhile, by other threads
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException

from instdisc.progress import Pace, watched
from instdisc.serve.models import WorkState


class Work:
    """One computation at a time; whoever asks for it waits."""

    def __init__(self) -> None:
        self._state = WorkState()
        self._pace, self._stopped = Pace(), False

    @contextmanager
    def doing(self) -> Iterator[None]:
        """Around the computation."""
        self._stopped = False
        try:
            with watched(self._told):
                yield
        finally:
            self._state = WorkState()

    def state(self) -> WorkState:
        """How far it is."""
        return self._state

    def stop(self) -> None:
        """End it at its next step; those who wait for it are told."""
        self._stopped = True

    def check(self) -> None:
        """Raise HTTPException where it was stopped."""
        if self._stopped:
            raise HTTPException(503, "Stopped. What was done of it is kept where that is possible.")

    def _told(self, what: str, done: int, total: int | None) -> None:
        self.check()
        share = min(1.0, done / total) if total else 0.0
        if what != self._state.what or done == 0:
            self._pace = Pace()
        left = self._pace.left(share)
        self._state = WorkState(what=what, progress=share, seconds_left=left)
