"""Ctrl-C at any moment, and a thread that memory was too short for.

A Ctrl-C ends in a KeyboardInterrupt, as before; where C code met it and gave back some other error, `came` tells; where
no exception may leave (a finalizer, a callback of C code) Python throws it away, and it is sent once more.

A thread that dies for want of memory before it has begun leaves `Thread.start` waiting for ever: that wait is ended.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType


class Interrupts:
    """Listens from the moment it is made. came: whether there was a Ctrl-C."""

    def __init__(self) -> None:
        self.came = False
        self._starved = False
        self._others = sys.unraisablehook
        sys.unraisablehook = self._ignored
        if callable(signal.getsignal(signal.SIGINT)):  # not where it is ignored, as by nohup
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._starved:
            self._starved = False
            raise MemoryError("can't start new thread")
        self.came = True
        signal.default_int_handler(number, frame)

    def _ignored(self, ignored: sys.UnraisableHookArgs) -> None:
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            again = threading.Timer(0.05, _press)  # a moment later: outside of where it can't leave
            again.daemon = True
            with suppress(RuntimeError):  # Python ends, and starts no thread any more
                again.start()
        elif isinstance(ignored.exc_value, MemoryError) and "thread started by" in (ignored.err_msg or ""):
            self._starved = True
            _press()
        else:
            self._others(ignored)


def _press() -> None:
    """Ctrl-C from another thread."""
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:  # a signal, which also ends a wait
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
