"""What we tell the person: the one exception whose text is meant to be read without a traceback."""

from __future__ import annotations


class InputError(Exception):
    """Something the person can put right: one clear sentence that says what is wrong and what to do.

    The command line prints the sentence and exits with status 1; a program may catch it.
    """
