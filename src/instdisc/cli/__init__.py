"""The command line: one short file a command; each parses words and calls a function of `jobs`.

`main` turns an InputError, and what the system refuses, into one sentence on standard error and exit status 1, and a
Ctrl-C into status 130.
"""

from __future__ import annotations

import codecs
import functools
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from instdisc.cli import (
    cache,
    compare,
    demo,
    duplicates,
    embed,
    evaluate,
    export,
    index,
    info,
    label,
    map,
    open,
    outliers,
    report,
    reproduce,
    search,
    serve,
    train,
)
from instdisc.cli.interrupts import Interrupts
from instdisc.errors import InputError, refusal

app = typer.Typer(
    name="instdisc",
    help="Learn to see from pictures alone: train an encoder on unlabelled pictures, and measure and use it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    *(train, open, evaluate, compare, report),
    *(serve, search, index, duplicates, outliers, label, map),
    *(embed, export, info, cache, reproduce, demo),
)
# What several processes do together:
SHARED = ("train", "evaluate", "embed", "index", "search", "duplicates", "outliers")


class _Interrupted(Exception):
    """A KeyboardInterrupt that left a command: typer would end without a word."""


def _given(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer gets it: what is one process's work refuses torchrun, under which each of the processes
    would do all of it and write the same files."""

    @functools.wraps(command)
    def called(*words: Any, **options: Any) -> None:
        if name not in SHARED and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            raise InputError(
                f"{name} is one process's work: start it without torchrun, which is for {', '.join(SHARED)}."
            )
        try:
            command(*words, **options)
        except KeyboardInterrupt:
            raise _Interrupted from None

    return called


for module in COMMANDS:
    name = module.__name__.rpartition(".")[2]
    app.command(name, epilog=module.EXAMPLES)(_given(name, module.command))


def _show_version(asked: bool) -> bool:
    if asked:
        from instdisc.version import __version__

        print(f"instdisc {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def _tell_of_thread(ended: threading.ExceptHookArgs) -> None:
    """A thread of a library that was refused something: whoever waits for it hears of that, and `main` says it."""
    if ended.exc_value is None or refusal(ended.exc_value) is None:
        threading.__excepthook__(ended)


def main() -> None:
    """Run the command line."""
    threading.excepthook = _tell_of_thread
    interrupts = Interrupts()
    codecs.register_error("readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="readable")
    try:
        app(prog_name="instdisc")
    except (KeyboardInterrupt, _Interrupted):
        _end(130, "stopped.")
    except BrokenPipeError:  # the reader of our output has gone, as in `instdisc info RUN | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if interrupts.came:  # which a library's C code, met by it, gave back as some other error
            _end(130, "stopped.")
        sentence = str(error) if isinstance(error, InputError) else refusal(error)
        if sentence is None:
            raise
        _end(1, sentence)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """What a terminal's encoding lacks: a name on disk keeps its bytes, any other letter is written as its number."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


def _end(status: int, sentence: str) -> NoReturn:
    print(f"instdisc: {sentence}", file=sys.stderr)
    sys.exit(status)
