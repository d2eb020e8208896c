"""What the system refuses is told from what is our own fault, and said in one sentence."""

from __future__ import annotations

import errno
import os
import re

import pytest

from instdisc.errors import is_shortage, refusal


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
