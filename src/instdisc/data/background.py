"""Functions run by daemon threads, with a Future for each answer.

`concurrent.futures.ThreadPoolExecutor` makes the interpreter wait for its threads when it ends. A thread here may be
stuck in a slow network or in a process that hangs, and Ctrl-C must still end the program: hence daemon threads. One
that is only busy gets a second to end: a return from torch's C++ while the interpreter ends would abort the process.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")
_SECONDS_TO_END = 1.0
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
ending = threading.Event()  # set when the interpreter is about to end: whoever waits for long in a thread stops waiting
_Jobs = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


class Background:
    """A few threads that work through what is submitted, first come, first served."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._jobs: _Jobs = queue.SimpleQueue()
        for _ in range(threads):
            # The threads know the queue and not this object, so that it can be collected while they wait.
            thread = threading.Thread(target=_work, args=(self._jobs,), daemon=True, name="instdisc-background")
            thread.start()
            _threads.add(thread)
        self._end = weakref.finalize(self, _end, self._jobs, threads)

    def submit(
        self, function: Callable[Parameters, Answer], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Future[Answer]:
        """Run `function` when a thread is free."""
        future: Future[Answer] = Future()
        self._jobs.put((future, lambda: function(*args, **kwargs)))
        return future

    def close(self) -> None:
        """Cancel what has not begun; the threads end after what they are doing. Nobody waits for them."""
        self._end()


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        future, function = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:  # it belongs to whoever waits for this future
                future.set_exception(error)
        del job, future, function  # or an idle thread would hold the last answer's memory


def _end(jobs: _Jobs, threads: int) -> None:
    try:
        while (job := jobs.get_nowait()) is not None:
            job[0].cancel()
    except queue.Empty:
        pass
    for _ in range(threads):
        jobs.put(None)


@atexit.register  # before any Background is made, and so called after their finalizers, which tell the threads to end
def _let_end() -> None:
    ending.set()
    until = time.monotonic() + _SECONDS_TO_END
    for thread in list(_threads):
        thread.join(max(0.0, until - time.monotonic()))
