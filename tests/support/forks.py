"""Commands of the tool in forks of one process that has everything imported: tenths of a second each.

ended = live(["info", "pictures"], folder, said)       # its status, and what it said
answer = told(lambda: 1 + 1)                           # what a function answers in a fork
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instdisc import cli

_LONGEST = 500.0  # seconds; a life takes about one
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
Prepare = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """How a process ended. status: as the shell has it, negative for a signal, None if it hung."""

    status: int | None
    out: str
    errors: str


class Lost(Exception):
    """Something was lost or damaged, or ended with neither status 0 nor one sentence."""


def told(act: Callable[[], Any]) -> Any:
    """What a function answers (JSON) in a fork, so that its threads and its files are not ours. Raises Lost."""
    incoming, outgoing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(incoming)
        try:
            answer = {"answer": act()}
        except BaseException as error:
            answer = {"error": "".join(traceback.format_exception(error))}
        with os.fdopen(outgoing, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(outgoing)
    with os.fdopen(incoming) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text or '{"error": "it ended without a word"}')
    if "error" in answer:
        raise Lost(answer["error"])
    return answer["answer"]


def live(
    words: list[Any], folder: Path, said: Path, prepare: Prepare | None = None, after: float | None = None, by: int = 0
) -> Ended:
    """Run a command in a fork. prepare: called there before. after: seconds, then it gets the signal `by`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # `_be` lets it in: before, the fork is not yet itself
    child = os.fork()
    if child == 0:
        _be(words, folder, said, prepare)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if after is not None:
        time.sleep(after)
        os.kill(child, by)
    until = time.monotonic() + _LONGEST
    hung = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > until:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    out, errors = (
        said.with_suffix(ending).read_text("utf-8", "surrogateescape") if said.with_suffix(ending).is_file() else ""
        for ending in (".out", ".err")
    )
    return Ended(None if hung else code, out, errors)


def _be(words: list[Any], folder: Path, said: Path, prepare: Prepare | None) -> None:
    """What the fork does; it never returns."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        for ending, handle in ((".out", 1), (".err", 2)):
            os.dup2(os.open(said.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
        if prepare is not None:
            prepare()
        sys.argv = ["instdisc", *map(str, words)]
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:  # before or behind `main`, where Python's own start and end would be
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def at_changes(folder: Path, count: Callable[[int], None]) -> Prepare:
    """Before each change of a file below the folder, call count(how many that makes)."""

    def prepare() -> None:
        inside, changes = str(folder), 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal changes
            if event == "open":
                if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                    return
            elif event not in _CHANGES:
                return
            if not isinstance(arguments[0], int) and os.fsdecode(arguments[0]).startswith(inside):
                changes += 1
                count(changes)

        sys.addaudithook(hook)

    return prepare


def at_end(act: Prepare) -> None:
    """Call it when this fork ends."""
    leave = os._exit
    os._exit = lambda code: (act(), leave(code))  # type: ignore[assignment, return-value]


def limit(what: int, value: int) -> Prepare:
    return lambda: resource.setrlimit(what, (value, resource.getrlimit(what)[1]))
