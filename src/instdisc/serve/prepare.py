"""What the views are made with, as one job: search vectors, neighbour graph, outlier scores, copies, map.

    preparation = Preparation(session)
    preparation.start(None)             # whatever is missing, one after another, in a thread
    preparation.state(); preparation.stop()

What is made is kept, so that another start goes on where it was stopped. This file must not import torch, nor what
imports it: the page answers while torch is being loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastapi import HTTPException

from instdisc.errors import InputError
from instdisc.serve.models import Prepared, Preparing, Step, WorkState
from instdisc.serve.work import Work

if TYPE_CHECKING:  # the page answers before torch is loaded
    from instdisc.serve.session import Session

# step: (its name in words, the view that shows it, what it is for, the bar that lasts longest)
STEPS: dict[Step, tuple[str, str, str, str]] = {
    "vectors": ("Search vectors", "search", "find similar pictures", "Embedding"),
    "graph": ("Neighbour graph", "label", "carry a few labels over to all pictures", "Comparing pictures"),
    "outliers": ("Outlier scores", "review/outliers", "put the most unusual pictures first", "Embedding"),
    "copies": ("Copies", "review/copies", "find what is there twice, by its pixels", "Making thumbnails"),
    "map": ("Map", "map", "place similar pictures close together", "Drawing"),
}
_SHORT = 0.1  # of a step: what comes before its longest bar, and after


class Preparation:
    """One job at a time, for whoever asks."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._work = Work()
        self._steps: list[Step] = []  # of the job that is under way
        self._at, self._share = 0, 0.0  # which of them, and how much of it is done
        self._problems: dict[Step, str] = {}
        self._error = ""
        self._make: dict[Step, Callable[[], object]] = {
            "vectors": session.make_vectors,
            "graph": lambda: session.opened.make_graph(),
            "outliers": lambda: session.opened.make_outliers(),
        }

    def start(self, steps: Sequence[Step] | None) -> None:
        """Make these, or whatever is missing, in the background; nothing where a job is under way."""
        with self._lock:
            if self._steps:
                return
            wanted = [step for step in STEPS if step in steps] if steps else self._missing()
            if not wanted:
                return
            self._steps, self._at, self._share, self._error = wanted, 0, 0.0, ""
            self._problems = {}
            begun = threading.Event()
            threading.Thread(target=self._run, args=(wanted, begun), name="prepare", daemon=True).start()
            begun.wait()  # from now on it can be stopped

    def stop(self) -> None:
        """End it at its next step."""
        self._work.stop()

    def state(self) -> Preparing:
        """What is there, and how far the job is."""
        parts = [
            Prepared(name=step, title=title, view=view, text=self._problems.get(step, text), ready=self._ready(step))
            for step, (title, view, text, _) in STEPS.items()
        ]
        with self._lock:
            if not self._steps:
                return Preparing(state="idle", parts=parts, error=self._error)
            step, at = self._steps[self._at], self._at
            told = self._work.state()
            drawn = self._session.map_state()
            if step == "map" and drawn.progress:
                told = WorkState(what="Drawing", progress=drawn.progress, seconds_left=drawn.seconds_left)
            elif not told.what:  # another's comparison comes first
                told = self._session.work.state()
            doing = told.what
            if doing == STEPS[step][3]:
                share = _SHORT + (1 - 2 * _SHORT) * told.progress
            else:
                share = _SHORT * told.progress + (1 - _SHORT if self._share > _SHORT else 0)
            self._share = max(self._share, share)
            return Preparing(
                state="computing",
                parts=parts,
                what=f"{STEPS[step][0]}: {doing[:1].lower()}{doing[1:]}" if doing else STEPS[step][0],
                progress=(at + self._share) / len(self._steps),
                seconds_left=told.seconds_left,
                then=", ".join(STEPS[later][0].lower() for later in self._steps[at + 1 :]),
            )

    def _ready(self, step: Step) -> bool:
        session = self._session
        if step == "copies":
            return session.copies_known
        if step == "map":
            return session.map_state().state == "ready"
        return session.opened.has(step)

    def _missing(self) -> list[Step]:
        return [step for step in STEPS if not self._ready(step)]

    def _run(self, steps: Sequence[Step], begun: threading.Event) -> None:
        error = ""
        try:
            with self._work.doing():
                begun.set()
                for at, step in enumerate(steps):
                    self._at, self._share = at, 0.0
                    self._work.check()
                    self._one(step)
        except HTTPException as stopped:
            error = str(stopped.detail)
        finally:
            with self._lock:
                self._steps, self._error = [], error or " ".join(self._problems.values())

    def _one(self, step: Step) -> None:
        """Make it. Where that fails the reason is kept, and the other steps go on."""
        session = self._session
        try:
            if step == "copies":
                session.copies()
            elif step == "map":
                session.map_now(self._work.check)
            else:
                with session.alone(self._work.check):
                    self._make[step]()
        except InputError as error:
            self._problems[step] = str(error)
        except HTTPException:
            raise
        except Exception as error:
            self._problems[step] = f"{STEPS[step][0]} could not be made ({type(error).__name__}: {error})."
