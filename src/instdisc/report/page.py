"""A report of one or several runs as one HTML file, which opens without a network: nothing is loaded from elsewhere.

    Path("report.html").write_text(page([PageRun(...)], title="runs/mine"))

Pictures are inside as data URLs; the map is drawn on a canvas from numbers, and the pictures that appear under the
mouse are cut from one sheet. report.html is the template: it escapes all that it is given.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """A line of the table: shares in [0, 1]."""

    name: str
    top1: float
    interval: tuple[float, float]
    top5: float


@dataclass(frozen=True)
class Gallery:
    """A query and its neighbours, best first: (JPEG, label or "", cosine); the query's own cosine is not there."""

    picture: bytes
    label: str
    neighbours: Sequence[tuple[bytes, str, float]]


@dataclass(frozen=True)
class Confusion:
    """Pictures of one class that were taken for another: how many of those tried, and some of them (JPEG)."""

    label: str
    taken_for: str
    count: int
    pictures: Sequence[bytes]


@dataclass(frozen=True)
class Map:
    """points: (n, 2). classes: n numbers of `names`, -1 = no label. sheet: a JPEG with the pictures in rows of
    `columns` squares of `side` pixels, in the order of the points."""

    points: np.ndarray
    classes: np.ndarray
    names: Sequence[str]
    sheet: bytes
    columns: int
    side: int
    about: str = ""


@dataclass(frozen=True)
class PageRun:
    """What a report shows of a run; what is missing is left out."""

    name: str
    facts: Mapping[str, str]
    settings: Mapping[str, Any]
    curves: bytes | None = None  # PNG
    few_labels: bytes | None = None  # PNG
    accuracies: Sequence[Accuracy] = ()
    about_accuracies: str = ""
    sentences: Sequence[str] = ()
    gallery: Sequence[Gallery] = ()
    confusions: Sequence[Confusion] = ()
    map: Map | None = None
    different: frozenset[str] = field(default_factory=frozenset)  # names of settings to mark


def page(runs: Sequence[PageRun], title: str) -> str:
    """The whole file. Several runs stand side by side where there is room, section by section."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters["data"] = _data_url
    maps = [_map_data(run.map) for run in runs if run.map is not None]  # in the order of their canvases
    return templates.get_template("report.html").render(runs=runs, title=title, maps=maps, colours=_COLOURS)


def _map_data(found: Map) -> dict[str, Any]:
    low, high = found.points.min(0), found.points.max(0)
    scaled = (found.points - low) / np.maximum(high - low, 1e-9)
    return {
        "points": np.round(scaled, 4).tolist(),
        "classes": found.classes.tolist(),
        "names": list(found.names),
        "sheet": _data_url(found.sheet),
        "columns": found.columns,
        "side": found.side,
        "colours": list(_COLOURS),
    }


def _data_url(content: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# Okabe and Ito's, then darker ones
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D00", "#5B2A86", "#B8B000", "#7A7A7A",
    "#004D40", "#8B1E3F",
)  # fmt: skip
