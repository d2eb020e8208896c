"""What the API takes and gives, as types: they make its OpenAPI description, and check every request."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

# The cosine of two duplicates, by the kind of vectors: whitened ones of different pictures lie farther apart.
THRESHOLDS = {"search": 0.85, "embedding": 0.95}
MOST_ROWS = 2**53  # what JavaScript can count to

Row = Annotated[int, Field(ge=0, le=MOST_ROWS)]


def readable(name: str) -> str:
    """A file name as JSON can carry it: bytes that are no UTF-8 (lone surrogates in Python) become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


Name = Annotated[str, BeforeValidator(readable)]


class Picture(BaseModel):
    """A picture of the collection. hand: whether its label was given by hand."""

    row: int
    id: Name
    path: Name
    label: Name
    hand: bool


class Found(Picture):
    """score: cosine with the query."""

    score: float


class Status(BaseModel):
    """state: opening, listed (the grid can be shown), open or failed (`error` says why). name: of the collection."""

    state: Literal["opening", "listed", "open", "failed"]
    name: Name
    error: str = ""


class About(BaseModel):
    """The collection as a whole. recomputed: whether its vectors come from the pictures as they are.

    vectors: "search" or "embedding"; threshold: the cosine from which two pictures are usually taken for duplicates.
    start: of the server, to ask for pictures with (`&start=`), as a browser keeps what an earlier server showed.
    """

    name: Name
    pictures: int
    dim: int
    labels: list[Name]
    tags: list[Name]
    recomputed: bool
    vectors: str
    threshold: float
    start: str


class Listing(BaseModel):
    """Some of the pictures that match, in order, and how many match in all."""

    total: int
    pictures: list[Picture]


class Hits(BaseModel):
    """The best first."""

    results: list[Found]


class Uploaded(BaseModel):
    """The name of a query picture, for as long as the server runs and no 64 newer ones have come."""

    id: str


class Group(BaseModel):
    """Near-duplicates. least: the lowest cosine between two of them; worst: these two rows."""

    pictures: list[Picture]
    least: float
    worst: tuple[int, int]


class Groups(BaseModel):
    """The largest groups first."""

    total: int
    groups: list[Group]


class Outliers(BaseModel):
    """The least like any other first.

    by: strangeness (score: higher is stranger), where `instdisc outliers` has computed it, else similarity (score: mean
    cosine with the ten nearest others, lower is stranger).
    """

    by: Literal["strangeness", "similarity"]
    pictures: list[Found]


class Labelling(BaseModel):
    """rows get `label` by hand, or lose theirs where it is null."""

    rows: list[Row] = Field(min_length=1, max_length=10_000)
    label: Annotated[str, Field(min_length=1, max_length=200)] | None


class ClassCount(BaseModel):
    """Pictures of a class by hand and by vote."""

    label: Name
    hand: int
    vote: int


class Labels(BaseModel):
    """accuracy: of the votes on pictures labelled by hand, leave-one-out, with its 95 % interval; null if unknown."""

    classes: list[ClassCount]
    accuracy: float | None
    interval: tuple[float, float] | None


class Proposal(Picture):
    """guess: what the votes say, with their share; "" where nothing is labelled yet."""

    guess: Name
    confidence: float


class Proposals(BaseModel):
    """The most useful first."""

    pictures: list[Proposal]


class MapState(BaseModel):
    """state: none, computing (progress in 0..1, and about how long yet), ready, or failed (then `error` says why)."""

    state: Literal["none", "computing", "ready", "failed"]
    progress: float = 0.0
    seconds_left: float | None = None
    error: str = ""


class Colours(BaseModel):
    """A code for each point of the map, in its order: the place in `names`, or a shade 0..255; -1 for none."""

    names: list[Name]
    codes: list[int]


class Refusal(BaseModel):
    """Why not, in a sentence."""

    detail: str
