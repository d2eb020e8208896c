"""What the system refuses is told from what is our own fault, and said in one sentence."""

from __future__ import annotations

import errno
import os
import pickle
import re

import pytest

from instdisc.errors import InputError, counted, is_shortage, refusal


def test_an_error_is_one_line_that_does_nothing_to_a_terminal() -> None:
    """Found by fuzzing: a name in a file's content brought a line break."""
    error = InputError("There is no a\nb\r\x1b[31m\x9b\u2028 in \udce9, é.")
    assert str(error) == r"There is no a\nb\r\x1b[31m\x9b\u2028 in " + "\udce9, é."
    assert pickle.loads(pickle.dumps(error)).args == error.args  # noqa: S301 - our own: ranks send it to each other


def test_a_number_stands_with_the_words_for_so_many() -> None:
    assert [counted(n, "picture was", "pictures were") for n in (0, 1, 2)] == [
        "0 pictures were",
        "1 picture was",
        "2 pictures were",
    ]
    assert counted(1, "vector") == "1 vector" and counted(12_345, "vector") == "12,345 vectors"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/x"), "/run/x .*No space left.*make room"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/run/x"), "/run/x .*Read-only.*give the right"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files.*ulimit -n"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error: Exception, words: str) -> None:
    sentence = refusal(error)
    assert sentence is not None and "\n" not in sentence
    assert re.search(words, sentence)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), KeyError("memory"), OSError("odd")])
def test_a_fault_of_our_own_is_not_taken_for_a_refusal(error: Exception) -> None:
    assert not is_shortage(error)
    assert refusal(error) is None
