"""A store that is slow or fails is asked again, later and later, and the person is told.

    content = retried(lambda: system.cat_file(path), "s3://bucket/000.tar", LONG)

A file that is not there, or not ours, is not asked for again. A store that stays silent ends the work with a sentence:
what it holds is neither damaged nor lost, so no picture may be given up for it. This file must not import torch.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from instdisc.data.background import ending
from instdisc.data.storage.urls import reason, without_secrets
from instdisc.errors import InputError, is_shortage

Answer = TypeVar("Answer")

SHORT = 2.5  # seconds for one picture or a listing: most faults of a network pass
LONG = 120.0  # for a shard, without which a run can't go on
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_TELL_SECONDS = 10.0
_FOR_GOOD = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
_NOT_FOR_GOOD = (408, 425, 429)  # of HTTP's 4xx: took too long, too early, too many requests


class Trouble:
    """What stores refused since this process began: counted, and told at most every ten seconds."""

    def __init__(self) -> None:
        self.tries = 0
        self._told_tries, self._told_at = 0, -math.inf
        self._silent_since: float | None = None
        self._lock = threading.Lock()
        self.pass_to: Callable[[str, str], None] | None = None  # instead of telling: in a process others speak for

    def note(self, location: str, why: str) -> None:
        """A location gave no answer and is asked again."""
        if self.pass_to is not None:
            self.pass_to(location, why)
        with self._lock:
            self.tries += 1
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            if self.pass_to is not None or now - self._told_at < _TELL_SECONDS:
                return
            count, self._told_tries, self._told_at = self.tries - self._told_tries, self.tries, now
        times = "" if count == 1 else f" ({count} times since this was said last)"
        print(f"Warning: {location} did not answer ({why}): asked again{times}.", file=sys.stderr, flush=True)

    def answered(self) -> None:
        """Some location gave an answer."""
        self._silent_since = None

    @property
    def silent_seconds(self) -> float:
        """For how long stores were asked and none has answered."""
        since = self._silent_since
        return 0.0 if since is None else time.monotonic() - since


trouble = Trouble()


def retried(ask: Callable[[], Answer], location: str, limit: float = SHORT) -> Answer:
    """The answer of a remote location, asked again after growing waits until `limit` seconds are over.

    Raises the location's own error when it says no for good or, after SHORT, at the end; InputError where
    LONG is over, or where no location at all has answered for so long.
    """
    started = time.monotonic()
    wait = _FIRST_WAIT
    while True:
        try:
            answer = ask()
        except Exception as error:  # each driver has errors of its own
            if _is_for_good(error):
                trouble.answered()
                raise
            waited = time.monotonic() - started
            location, why = without_secrets(location), reason(error)
            if waited + wait > limit:
                if limit >= LONG or trouble.silent_seconds > LONG:
                    raise InputError(
                        f"{location} has not answered for {max(waited, trouble.silent_seconds):.0f} seconds ({why}), "
                        "though it was asked again and again: see whether the network and the store are well, then "
                        "start again (a run goes on with --resume)."
                    ) from error
                raise
            trouble.note(location, why)
            # Not all at once, so that many ranks do not ask in step. A thread that was stopped in this wait as the
            # interpreter ends would abort it, where Arrow's C++ stands between the two.
            if ending.wait(wait * random.uniform(0.75, 1.25)):
                raise
            wait = min(2 * wait, _LONGEST_WAIT)
        else:
            trouble.answered()
            return answer


def _is_for_good(error: Exception) -> bool:
    status: Any = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _NOT_FOR_GOOD
    return isinstance(error, (*_FOR_GOOD, InputError, NotImplementedError)) or is_shortage(error)
