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
    """A line of the table: shares in [0, 1].

    Examples:
        >>> from instdisc.report import Accuracy, PageRun, page
        >>> found = Accuracy("kNN", top1=0.8123, interval=(0.8045, 0.8198), top5=0.97)
        >>> "80.45 to 81.98" in page([PageRun("mine", {}, {}, accuracies=[found])], title="mine")
        True
    """

    name: str
    top1: float
    interval: tuple[float, float]
    top5: float


@dataclass(frozen=True)
class Gallery:
    """A query and its neighbours, best first: (JPEG, label or "", cosine); the query's own cosine is not there.

    Examples:
        >>> import numpy as np
        >>> from instdisc.report import Gallery, PageRun, page
        >>> from instdisc.report.thumbnails import as_jpeg
        >>> picture = as_jpeg(np.zeros((32, 32, 3), np.uint8), side=64)
        >>> query = Gallery(picture, "cat", [(picture, "cat", 0.98), (picture, "dog", 0.71)])
        >>> page([PageRun("mine", {}, {}, gallery=[query])], title="mine").count("data:image/jpeg")
        3
    """

    picture: bytes
    label: str
    neighbours: Sequence[tuple[bytes, str, float]]


@dataclass(frozen=True)
class Confusion:
    """Pictures of one class that were taken for another: how many of those tried, and some of them (JPEG).

    Examples:
        >>> import numpy as np
        >>> from instdisc.report import Confusion, PageRun, page
        >>> from instdisc.report.thumbnails import as_jpeg
        >>> picture = as_jpeg(np.zeros((32, 32, 3), np.uint8), side=64)
        >>> confusion = Confusion("cat", taken_for="dog", count=104, pictures=[picture, picture])
        >>> page([PageRun("mine", {}, {}, confusions=[confusion])], title="mine").count("data:image/jpeg")
        2
    """

    label: str
    taken_for: str
    count: int
    pictures: Sequence[bytes]


@dataclass(frozen=True)
class Map:
    """points: (n, 2). classes: n numbers of `names`, -1 = no label. sheet: a JPEG with the pictures in rows of
    `columns` squares of `side` pixels, in the order of the points.

    Examples:
        >>> import numpy as np
        >>> from instdisc.report import Map, PageRun, page
        >>> from instdisc.report.thumbnails import as_jpeg
        >>> sheet = as_jpeg(np.zeros((16, 48, 3), np.uint8), side=48)  # three squares of 16 pixels
        >>> points = np.array([[0.0, 0.0], [5.0, 10.0], [10.0, 5.0]])
        >>> found = Map(points, np.array([0, 1, -1]), ["cat", "dog"], sheet, columns=3, side=16)
        >>> '"points": [[0.0, 0.0], [0.5, 1.0], [1.0, 0.5]]' in page([PageRun("mine", {}, {}, map=found)], title="mine")
        True
    """

    points: np.ndarray
    classes: np.ndarray
    names: Sequence[str]
    sheet: bytes
    columns: int
    side: int
    about: str = ""


@dataclass(frozen=True)
class PageRun:
    """What a report shows of a run; what is missing is left out.

    Examples:
        >>> from instdisc.report import PageRun, page
        >>> run = PageRun("mine", facts={"pictures": "50,000"}, settings={"epochs": 60}, sentences=["It is <new>."])
        >>> "<p>It is &lt;new&gt;.</p>" in page([run], title="mine")  # what comes from data is escaped
        True
    """

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
    """The whole file. Several runs stand side by side where there is room, section by section.

    Examples:
        >>> from pathlib import Path
        >>> from instdisc.report import PageRun, page
        >>> runs = [PageRun(name, {"objective": name}, {"epochs": 60}) for name in ("softmax", "nce")]
        >>> written = Path("report.html").write_text(page(runs, title="Two objectives"), encoding="utf-8")
        >>> Path("report.html").read_text(encoding="utf-8").count("<td>epochs</td><td>60</td>")
        2
    """
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
