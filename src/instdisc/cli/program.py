"""The command `instdisc` as a program: `main`, and an end that threads of torch can't turn into an abort.

While Python ends, a thread of torch (autograd's, gloo's) that releases a tensor asks for the interpreter once more, and
is ended inside C++: the whole process then aborts, with status -6 and without a reason (pytorch issues 38230 and
190489; one of some sixty processes on a busy machine). All that a command does is written by then. So where torch was
loaded the process ends before that, once Python has waited for its own threads and has called what was registered.
"""

from __future__ import annotations

import atexit
import os
import sys

from instdisc.cli import main


def run() -> None:
    """Run the command line, and end the process with its status."""
    status: list[int] = []
    atexit.register(_leave, status)  # first registered, last called
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status.append(end.code or 0)
        raise
    status.append(0)


def _leave(status: list[int]) -> None:
    if not status or "torch" not in sys.modules:
        return  # of a fault Python tells itself
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # the reader has gone: Python tells that too
    os._exit(status[0])
