"""What the API of the review takes and gives, as types (the others are in models.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from instdisc.serve.models import LastAct, Name, Row


class Decided(BaseModel):
    """A picture, or an unreadable file, of a case. choice: keep, remove, or "" while it is not decided.

    row: for an unreadable file its place in the list of these. The rest as far as it is known: kind and changes (why it
    is a copy of the first), width and height (pixels), size (bytes), format, modified (seconds since 1970).
    """

    row: int
    id: Name
    path: Name
    label: Name = ""
    hand: bool = False
    choice: str
    kind: str = ""
    changes: list[str] = []
    width: int = 0
    height: int = 0
    size: int | None = None
    format: str = ""
    modified: float | None = None


class Case(BaseModel):
    """What is decided at once. certain: proven so well that it may be accepted with others, unseen.

    score: of look-alikes the lowest cosine, of an outlier how strange it is, of a label how doubtful (the share of
    the neighbours' votes for `voted` minus that for `given`). note: why a file is unreadable.
    """

    pictures: list[Decided]
    certain: bool
    score: float | None
    given: Name
    voted: Name
    note: Name


class Cases(BaseModel):
    """Some of the cases that were asked for, `total` in all. open, decided, certain: of the kind; certain ones open."""

    total: int
    open: int
    decided: int
    certain: int
    cases: list[Case]


class Counted(BaseModel):
    """Cases of a kind; null where finding them would take long and nobody has asked for them yet.

    title: its name in words; noun: what one case is; text: what they are.
    """

    kind: str
    title: str
    noun: str
    text: str
    open: int | None = None
    decided: int | None = None
    certain: int | None = None


class Reviewing(LastAct):
    """How the review stands. going: pictures and files marked for removal; hidden: those of them that are hidden.

    act, text: what was done just now, to undo it by; "" for nothing.
    """

    kinds: list[Counted]
    going: int
    hidden: int


class Choice(BaseModel):
    """row: of an unreadable file its place in the list. choice: keep, remove, or "" to leave it open again."""

    row: Row
    choice: Literal["keep", "remove", ""]


class Choices(BaseModel):
    """Of one case, or of several at once."""

    choices: Annotated[list[Choice], Field(min_length=1, max_length=10_000)]


class Accepting(BaseModel):
    """expected: how many certain groups were looked over; others than these are not accepted."""

    expected: Annotated[int, Field(ge=1)]
