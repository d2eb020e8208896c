"""Progress with the time left: a bar on a terminal or in a notebook, else a plain line now and then on standard error.

Nothing is shown for work that ends within two seconds. `watched` lets a program follow the bars, shown or not.
"""

from __future__ import annotations

import html
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")

QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0
_CELL_SECONDS = 0.25

Tell = Callable[[str, int, int | None], None]
_watcher: ContextVar[Tell | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(tell: Tell) -> Iterator[None]:
    """Tell of every bar that this thread begins and moves: its description, how much is done, and of how much.

    Inside another `watched` both are told, the outer first. What `tell` raises ends the work.
    """
    outer = _watcher.get()

    def both(what: str, done: int, total: int | None) -> None:
        if outer is not None:
            outer(what, done, total)
        tell(what, done, total)

    before = _watcher.set(both)
    try:
        yield
    finally:
        _watcher.reset(before)


class Bar:
    """A progress bar that appears once the work has lasted two seconds.

    with Bar(total=1000, description="Reading pictures", unit="pictures") as bar:
        bar.advance(10)
    """

    def __init__(self, total: int | None = None, description: str = "", unit: str = "", enabled: bool = True) -> None:
        self.total, self.description, self.unit, self.enabled = total, description, unit, enabled
        self.done = self._before = 0
        self.note = ""
        self._started = self._last = time.monotonic()
        self._rich: Any = None
        self._task: Any = None
        self._cell: Any = None  # what a notebook shows, which is replaced in its place
        self._tell = _watcher.get()

    def __enter__(self) -> Bar:
        self._started = self._last = time.monotonic()
        if self._tell is not None:
            self._tell(self.description, self.done, self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        if self._cell is not None:
            took = f"{'done in' if error is None else 'stopped after'} {duration(time.monotonic() - self._started)}"
            self._cell.update({"text/plain": f"{self._counted()}, {took}"}, raw=True)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Say that `count` more items are done; `note` replaces the words at the end of the line."""
        self.done += count
        if note is not None:
            self.note = note
        if self._tell is not None:
            self._tell(self.description, self.done, self.total)
        now = time.monotonic()
        if not self.enabled or now - self._started < QUIET_SECONDS:
            return
        if _in_notebook():
            if now - self._last >= _CELL_SECONDS:
                self._last = now
                self._show_cell(self._line(now))
        elif sys.stderr.isatty():
            self._show_bar()
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            print(self._line(now), file=sys.stderr, flush=True)

    @contextmanager
    def parts(self) -> Iterator[None]:
        """Let bars that begin inside advance this one: `watched` hears of one bar, with fractions of its items."""
        tell = self._tell
        inner = None if tell is None else lambda _, done, __: tell(self.description, self.done + done, self.total)
        before = _watcher.set(inner)
        try:
            yield
        finally:
            _watcher.reset(before)

    def start_from(self, done: int) -> None:
        """Work that was done before, which does not count for the speed."""
        self.done = self._before = done

    def _line(self, now: float) -> str:
        rate = (self.done - self._before) / max(now - self._started, 1e-9)
        parts = [self._counted()]
        if self.unit not in ("s", "%"):  # seconds pass at one a second
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
        if self.total is not None and rate > 0:
            parts.append(f"{duration(max(0, self.total - self.done) / rate)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    def _counted(self) -> str:
        count = f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"
        return f"{self.description}: {count} {self.unit}".rstrip()

    def _show_cell(self, line: str) -> None:
        """A bar below the cell, in the place of the one before; without HTML its line."""
        share = "" if self.total is None else f' value="{self.done}" max="{self.total}"'
        bar = f'<div><progress{share} style="width:16em"></progress> {html.escape(line)}</div>'
        shown = {"text/plain": line, "text/html": bar}
        if self._cell is None:
            self._cell = importlib.import_module("IPython.display").display(shown, raw=True, display_id=True)
        else:
            self._cell.update(shown, raw=True)

    def _show_bar(self) -> None:
        if self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            # what is printed stands above the bar on a terminal, and goes where it belongs otherwise
            to_terminal = sys.stdout.isatty()
            self._rich = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=to_terminal)
            self._task = self._rich.add_task(self.description, total=self.total, unit=self.unit, note=self.note)
            self._rich.start()
        self._rich.update(self._task, completed=self.done, note=self.note)


class Pace:
    """The time left, by the pace since the first step: what comes before that, as loading, says nothing of the rest.

    pace = Pace()
    left = pace.left(0.25)    # seconds; None while that can't be known
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._begun = False

    def left(self, share: float) -> float | None:
        """The seconds left, once `share` of all is done. The first call is the begin, the next the first step."""
        now = time.monotonic()
        if not self._begun or self._first is None:
            self._first = (share, now) if self._begun else None
            self._begun = True
            return None
        before, since = self._first
        if share <= before or now - since < 1:
            return None
        return (now - since) / (share - before) * (1 - share)


def track(
    items: Iterable[Item], total: int | None = None, description: str = "", unit: str = "", enabled: bool = True
) -> Iterator[Item]:
    """The items themselves, with a bar that counts them."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(total, description, unit, enabled) as bar:
        for item in items:
            yield item
            bar.advance()


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook: IPython is there already, then, and has one."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def duration(seconds: float) -> str:
    """A length of time as a person says it: 40 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
