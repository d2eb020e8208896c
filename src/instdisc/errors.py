"""What we tell the person: the one exception whose text is meant to be read, and what the system refused, in words."""

from __future__ import annotations

import errno
import os
import re

_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


def visible(text: str, keep: str = "\n") -> str:
    """Control characters (but those of `keep`) as escapes: "\\x1b[31m" in the place of a colour."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def counted(count: int, one: str, many: str = "") -> str:
    """ "1 picture was", "2,000 pictures were": a number with the words for one, or for many (`one` with an s)."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


class InputError(Exception):
    """Something the person can put right: one clear sentence that says what is wrong and what to do.

    The command line prints the sentence and exits with status 1; a program may catch it. Control characters, which a
    file's name or content may bring into it, are written as escapes: a line stays a line, and a terminal its owner's.

    Examples:
        >>> import instdisc
        >>> try:
        ...     instdisc.load("no/such/run")
        ... except instdisc.InputError as error:
        ...     print(str(error)[:36])
        There is no run folder at no/such/ru
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(message, keep=""))


_ADVICE = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "make room there, then start again",
    (errno.EROFS, errno.EACCES, errno.EPERM): "give the right to read and write there, or choose another folder",
    (errno.EMFILE, errno.ENFILE): "raise the limit of open files (ulimit -n 4096), then start again",
    (errno.EIO, errno.ESTALE): "see whether the disk is well, then start again",
}
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
# What libraries say where memory, a thread or a file is refused: not all of it is a MemoryError or an OSError.
_MEMORY = re.compile(
    "allocate memory|out of memory|not enough memory|bad_alloc|start new thread|launch worker thread|create a primitive"
    "|error return without exception set"  # CPython's, where it is refused memory while it compiles
)
_FILES = "Too many open files"


def is_shortage(error: BaseException) -> bool:
    """Whether the machine ran short of memory, threads or open files: no fault of the file or picture in hand."""
    words = str(error)
    if isinstance(error, MemoryError) or _FILES in words or _MEMORY.search(words) is not None:
        return True
    return isinstance(error, OSError) and error.errno in _SHORT


def advice(error: OSError) -> str:
    """What to do about what the system refused."""
    return next((words for codes, words in _ADVICE.items() if error.errno in codes), "put that right, then start again")


def refusal(error: BaseException) -> str | None:
    """What the system refused, in one sentence, if that is what an error comes from: room, rights, files, memory."""
    words = (str(error).strip().splitlines() or ["it was refused"])[0]
    if isinstance(error, OSError) and any(error.errno in codes for codes in _ADVICE):
        name = error.filename
        place = "" if name is None else f" with {os.fsdecode(name) if isinstance(name, bytes) else name}"
        return f"The system refused to go on{place} ({error.strerror or words}): {advice(error)}."
    if is_shortage(error):
        if _FILES in words:
            return f"The system refused to go on ({words}): {advice(OSError(errno.EMFILE, _FILES))}."
        return (
            f"There is not enough memory ({words}): end other programs, or take a smaller batch or size; "
            "in training, --set accumulate=2 halves what a step takes."
        )
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None if cause is None else refusal(cause)
