"""What the API of two runs side by side gives, as types (the others are in models.py)."""

from __future__ import annotations

from pydantic import BaseModel

from instdisc.serve.models import Found, Name, Picture


class Side(BaseModel):
    """A run. vectors: "search" or "embedding", of `dim` numbers; pictures: in its collection."""

    name: Name
    vectors: str
    dim: int
    pictures: int


class Measured(BaseModel):
    """A line of the table: what `evaluate` measured of both, in words; "" where that was not measured."""

    name: str
    first: str
    second: str


class Compared(BaseModel):
    """Two runs. matched: pictures that both have, by their ids. note: what stands against comparing the measures."""

    first: Side
    second: Side
    matched: int
    measured: list[Measured]
    note: str


class Agreement(BaseModel):
    """Of `labelled` pictures: how many both runs' neighbours name as their labels do, one run's, neither's."""

    labelled: int
    both: int
    first: int
    second: int
    neither: int


class Strips(BaseModel):
    """A picture, and the nearest of it in both runs among the pictures that both have, the best first.

    shared: of how many of the ten nearest both say so.
    """

    picture: Picture
    first: list[Found]
    second: list[Found]
    shared: int


class Changed(BaseModel):
    """The most changed first: those with the fewest shared neighbours among the ten nearest."""

    total: int
    pictures: list[Strips]
