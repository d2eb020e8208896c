"""Why a picture can't be used, in words for a person."""

from __future__ import annotations


class UnreadableError(Exception):
    """A picture that cannot be used. `reason` is one short sentence without a full stop, for a person.

    Examples:
        >>> from instdisc.data import UnreadableError
        >>> from instdisc.data.decoding.decode import decode
        >>> try:
        ...     decode(b"")
        ... except UnreadableError as error:
        ...     print(error.reason)
        the file is empty (0 bytes)
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def not_read(name: str, what: str, remedy: str = "8-bit RGB") -> UnreadableError:
    """The answer to a file that is whole, of a format that is read, and of a kind within it that is not."""
    return UnreadableError(f"the {name} is of a kind that is not read: {what}; convert it to {remedy}")
