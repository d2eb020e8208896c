"""What the API takes and gives, as types: they make its OpenAPI description, and check every request."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

MOST_ROWS = 2**53  # what JavaScript can count to

Row = Annotated[int, Field(ge=0, le=MOST_ROWS)]


def readable(name: str) -> str:
    """A file name as JSON can carry it: bytes that are no UTF-8 (lone surrogates in Python) become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _once(rows: list[int]) -> list[int]:
    if len(set(rows)) < len(rows):
        raise ValueError("each row once")
    return rows


Name = Annotated[str, BeforeValidator(readable)]
Chosen = Annotated[list[Row], Field(min_length=1, max_length=100_000), AfterValidator(_once)]
Step = Literal["vectors", "graph", "outliers", "copies", "map"]
Pair = Annotated[list[Name], Field(min_length=2, max_length=2)]  # checkers stumble over tuples in lists (prefixItems)
Given = Annotated[str, Field(min_length=1, max_length=200)]


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

    vectors: "search" or "embedding"; threshold: the cosine from which two pictures are usually taken for look-alikes.
    labels: those that a picture has; labelled: whether any is given by hand. start: of the server, to ask for pictures
    with (`&start=`), as a browser keeps what an earlier server showed. beside: the name of a second run that is served,
    "" for none. orders of a set, colourings of the map, verdicts: what can be chosen, each with words for it.
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
    labelled: bool
    beside: Name
    orders: list[Pair]
    colourings: list[Pair]
    verdicts: list[Pair]


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


class Copy(Picture):
    """A picture of a group of copies. kind: same file or same picture as the first, "" for that itself.

    changes: as resized, cropped, mirrored; agreement: of its pixels with the first one's, at most 1. width, height: in
    pixels; size: in bytes, format and modified (seconds since 1970): of its file, as far as they are known.
    """

    kind: Literal["", "same file", "same picture"]
    changes: list[str]
    agreement: float
    width: int
    height: int
    size: int | None
    format: str
    modified: float | None


class Copies(BaseModel):
    """Pictures that are proven to be one, the one to keep first."""

    pictures: list[Copy]


class Duplicates(BaseModel):
    """The most certain groups first. copies: pictures to remove, of all groups."""

    total: int
    copies: int
    groups: list[Copies]


class Group(BaseModel):
    """Look-alikes. least: the lowest cosine between two of them; worst: these two rows."""

    pictures: list[Picture]
    least: float
    worst: tuple[int, int]


class Groups(BaseModel):
    """The most alike first."""

    total: int
    groups: list[Group]


class Outliers(BaseModel):
    """The least like any other first.

    by: outlier_score (higher is more unusual), where `instdisc outliers` has computed it, else similarity (score: mean
    cosine with the ten nearest others, lower is more unusual).
    """

    by: Literal["outlier_score", "similarity"]
    pictures: list[Found]


class LastAct(BaseModel):
    """What would be undone next; "" for nothing."""

    act: str
    text: Name


class Labelling(BaseModel):
    """rows get `label` by hand, or lose theirs where it is null. keep: pictures with another label by hand keep it.

    together: whether they are labelled without a look at each: they count not where the accuracy is measured.
    """

    rows: Chosen
    label: Given | None
    keep: bool = False
    together: bool = False


class ClassCount(BaseModel):
    """Pictures of a class: by hand, by vote, and of these the suggested ones (of at least 50 %)."""

    label: Name
    hand: int
    vote: int
    suggested: int


class Labels(BaseModel):
    """accuracy: of the votes on pictures labelled one by one, leave-one-out, with its 95 % interval; null if unknown.

    order: all classes, those of the folders too, in the order that gives each its key. none: pictures without a
    label by hand and without a suggestion. act, text: what was done just now, to undo it by; "" for nothing.
    """

    classes: list[ClassCount]
    order: list[Name]
    none: int
    accuracy: float | None
    interval: tuple[float, float] | None
    act: str = ""
    text: Name = ""


class Overwriting(BaseModel):
    """Of pictures to be labelled: how many have another label by hand, and have no label by hand yet."""

    other: int
    none: int


class Renaming(BaseModel):
    """The class `label` gets another name; the name of another class merges them."""

    label: Given
    to: Given


class Undoing(BaseModel):
    """act: as the answer to the deed named it."""

    act: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class Undone(BaseModel):
    """text: of the act. rows: that have their label of before. kept: pictures that were labelled again since.

    pictures: whether hidden pictures are shown again. review: whether the act was a decision of a review.
    """

    text: Name
    rows: list[int]
    kept: int
    next: LastAct
    pictures: bool = False
    review: bool = False


class Proposal(Picture):
    """guess: the suggested label, with its share of the votes; "" where nothing is labelled yet."""

    guess: Name
    confidence: float


class Proposals(BaseModel):
    """The most useful first."""

    pictures: list[Proposal]


class Suggested(BaseModel):
    """total: how many there are in all."""

    total: int
    pictures: list[Proposal]


class Selection(BaseModel):
    """Rows, in the order in which a list should name them."""

    rows: Chosen


class SetNames(BaseModel):
    """The names of the sets that the run keeps."""

    names: list[Name]


class KeptSet(BaseModel):
    """A set. pictures: that are still in the collection; gone: others of its list; origin: where they were picked."""

    name: Name
    pictures: int
    gone: int
    origin: Name
    made: str


class Keeping(BaseModel):
    """Keep these rows as the set `name`. replace: in the place of one of that name."""

    name: Given
    rows: Chosen
    origin: Annotated[str, Field(max_length=500)] = ""
    replace: bool = False


class Facts(BaseModel):
    """A picture's file as it is now, and its neighbours in a set: -1 for none. place: in the set, from 0; -1 outside.

    width, height: pixels. size: bytes; modified: seconds since 1970; null where it is no file, or unknown. problem: why
    the file can't be read, "" where it can.
    """

    width: int
    height: int
    format: str
    size: int | None
    modified: float | None
    problem: str
    before: int
    after: int
    place: int
    total: int


class MapState(BaseModel):
    """state: none, computing (progress in 0..1, and about how long yet), ready, or failed (then `error` says why)."""

    state: Literal["none", "computing", "ready", "failed"]
    progress: float = 0.0
    seconds_left: float | None = None
    error: str = ""


class WorkState(BaseModel):
    """What is computed at the moment (empty: nothing that takes long), its share done and about how long yet."""

    what: str = ""
    progress: float = 0.0
    seconds_left: float | None = None


class Line(BaseModel):
    """A fact in words. view: where more is shown, as the page's addresses name it."""

    title: str
    text: Name
    view: str | None = None


class Overview(BaseModel):
    """What there is: pictures from all over the collection, and words on it and on the encoder of its vectors."""

    pictures: list[Picture]

    collection: list[Line]
    encoder: list[Line]


class Prepared(Line):
    """What the views are made with. ready: whether it is there; text: what it is for, or why it could not be made."""

    name: Step
    ready: bool


class Preparing(BaseModel):
    """state: idle or computing; then what is done (share of all, seconds left of `what` alone), and what comes then.

    error: how it ended, "" where all was made.
    """

    state: Literal["idle", "computing"]
    parts: list[Prepared]
    what: str = ""
    progress: float = 0.0
    seconds_left: float | None = None
    then: str = ""
    error: Name = ""


class Preparation(BaseModel):
    """steps: to be made; null: whatever is missing."""

    steps: Annotated[list[Step], Field(min_length=1, max_length=5)] | None = None


class Colours(BaseModel):
    """A code for each point of the map, in its order: the position in `names`; -1 for none.

    others: how many names the last one stands for, where there are too many to tell apart; 0: for itself. none: what
    -1 means, "" where no point has it. note: why there are no names. shades: of the names, on light and on dark ground.
    """

    names: list[Name]
    codes: list[int]
    shades: list[Pair]
    others: int = 0
    none: str = ""
    note: str = ""


class Region(BaseModel):
    """A position of the map (x and y in 0..1, as its points are) where nearly all pictures, `count`, have this name."""

    name: Name
    x: float
    y: float
    count: int


class Regions(BaseModel):
    """The largest first."""

    regions: list[Region]


class Refusal(BaseModel):
    """Why not, in a sentence."""

    detail: str
