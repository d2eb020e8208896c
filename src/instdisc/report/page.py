"""A report of one or several runs as one HTML file, which opens without a network: nothing is loaded from elsewhere.

    Path("report.html").write_text(page([PageRun(...)], title="runs/mine"))

Pictures are inside as data URLs; the map is drawn on a canvas from numbers, and the pictures that appear under the
mouse are cut from one sheet. All text that comes from the data is escaped.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    sections = [
        ("In short", [_facts(run) for run in runs]),
        ("Accuracy", [_accuracies(run) for run in runs]),
        ("With a few labels", [_drawing(run.few_labels, "accuracy against labels") for run in runs]),
        ("Nearest neighbours", [_gallery(run) for run in runs]),
        ("Most confused", [_confusions(run) for run in runs]),
        ("Map of the vectors", [_map(run) for run in runs]),
        ("Training", [_drawing(run.curves, "curves of the training") for run in runs]),
        ("Settings", [_settings(run) for run in runs]),
    ]
    body = []
    for heading, parts in sections:
        if not any(parts):
            continue
        cells = []
        for run, part in zip(runs, parts, strict=True):
            name = f"<h3>{_text(run.name)}</h3>" if len(runs) > 1 else ""
            cells.append(f'<div class="run">{name}{part or "<p class=pale>Not measured.</p>"}</div>')
        body.append(f"<section><h2>{heading}</h2><div class=runs>{''.join(cells)}</div></section>")
    maps = [_map_data(run.map) for run in runs if run.map is not None]  # in the order of their canvases
    data = json.dumps(maps).replace("<", "\\u003c")  # so that no label can end the script
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><h1>{_text(title)}</h1>"
        f"{''.join(body)}<div id=tip hidden><canvas width=96 height=96></canvas><span></span></div>"
        f"<script type=application/json id=maps>{data}</script><script>{_SCRIPT}</script></body></html>\n"
    )


def _facts(run: PageRun) -> str:
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(words)}</dd>" for name, words in run.facts.items())
    return f"<dl>{lines}</dl>" + "".join(f"<p>{_text(sentence)}</p>" for sentence in run.sentences)


def _accuracies(run: PageRun) -> str:
    if not run.accuracies:
        return ""
    rows = "".join(
        f"<tr><td>{_text(found.name)}</td><td><b>{100 * found.top1:.2f}</b></td>"
        f"<td>{100 * found.interval[0]:.2f} to {100 * found.interval[1]:.2f}</td><td>{100 * found.top5:.2f}</td>"
        f'<td class=bar><i style="width:{100 * found.top1:.1f}%"></i></td></tr>'
        for found in run.accuracies
    )
    head = "<tr><th></th><th>top-1 %</th><th>95 % interval</th><th>top-5 %</th><th></th></tr>"
    return f"<p>{_text(run.about_accuracies)}</p><table>{head}{rows}</table>"


def _gallery(run: PageRun) -> str:
    lines = []
    for query in run.gallery:
        cells = [f'<figure class=query><img src="{_jpeg(query.picture)}" alt="query"><figcaption>{_text(query.label)}']
        cells.append("</figcaption></figure>")
        for picture, label, score in query.neighbours:
            kind = "" if not (label and query.label) else " class=right" if label == query.label else " class=wrong"
            mark = "" if not kind else "✓ " if "right" in kind else "✗ "
            cells.append(
                f'<figure{kind}><img src="{_jpeg(picture)}" alt="{_text(label) or "neighbour"}">'
                f"<figcaption>{mark}{score:.2f}<br>{_text(label)}</figcaption></figure>"
            )
        lines.append(f"<div class=line>{''.join(cells)}</div>")
    note = "<p>A query (left) and its nearest neighbours with their cosine"
    note += "; ✓ of the query's class, ✗ of another." if any(query.label for query in run.gallery) else "."
    return f"{note}</p>{''.join(lines)}" if lines else ""


def _confusions(run: PageRun) -> str:
    if not run.confusions:
        return ""
    rows = []
    for found in run.confusions:
        pictures = "".join(f'<img src="{_jpeg(picture)}" alt="">' for picture in found.pictures)
        rows.append(
            f"<tr><td>{_text(found.label)}</td><td>{_text(found.taken_for)}</td><td>{found.count:,}</td>"
            f"<td class=small>{pictures}</td></tr>"
        )
    head = "<tr><th>class</th><th>taken for</th><th>pictures</th><th></th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _map(run: PageRun) -> str:
    if run.map is None:
        return ""
    keys = "".join(
        f'<span><i style="background:{_COLOURS[place % len(_COLOURS)]}"></i>{_text(name)}</span>'
        for place, name in enumerate(run.map.names[: len(_COLOURS)])
    )
    more = len(run.map.names) - len(_COLOURS)
    keys += f"<span>and {more} more, colours repeat</span>" if more > 0 else ""
    return f"<p>{_text(run.map.about)}</p><canvas class=map></canvas><p class=keys>{keys}</p>"


def _map_data(found: Map) -> dict[str, Any]:
    low, high = found.points.min(0), found.points.max(0)
    scaled = (found.points - low) / np.maximum(high - low, 1e-9)
    return {
        "points": np.round(scaled, 4).tolist(),
        "classes": found.classes.tolist(),
        "names": list(found.names),
        "sheet": _jpeg(found.sheet),
        "columns": found.columns,
        "side": found.side,
        "colours": list(_COLOURS),
    }


def _drawing(png: bytes | None, words: str) -> str:
    if png is None:
        return ""
    return f'<img class=wide src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{words}">'


def _settings(run: PageRun) -> str:
    rows = "".join(
        f"<tr{' class=different' if name in run.different else ''}><td>{_text(name)}</td><td>{_text(value)}</td></tr>"
        for name, value in run.settings.items()
    )
    return f"<details{' open' if run.different else ''}><summary>All settings</summary><table>{rows}</table></details>"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _jpeg(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


# Okabe and Ito's, then darker ones
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D00", "#5B2A86", "#B8B000", "#7A7A7A",
    "#004D40", "#8B1E3F",
)  # fmt: skip

_STYLE = """
:root{color-scheme:light dark;--ink:#222;--pale:#666;--paper:#fff;--line:#ddd;--right:#009E73;--wrong:#D55E00}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--pale:#a0a0a0;--paper:#161616;--line:#3a3a3a}}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;padding:1.2rem;
max-width:80rem}
h1{font-size:1.5rem;margin:.2rem 0 1rem}h2{font-size:1.15rem;border-bottom:1px solid var(--line);padding-bottom:.2rem}
h3{font-size:.95rem;color:var(--pale);margin:.2rem 0;overflow-wrap:anywhere}
.runs{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr));gap:1.5rem}
.run{min-width:0;overflow-x:auto}.pale{color:var(--pale)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem .9rem;margin:0}dt{color:var(--pale)}
dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse}td,th{padding:.2rem .7rem .2rem 0;text-align:left;vertical-align:middle}
th{color:var(--pale);font-weight:normal}.bar{width:9rem}.bar i{display:block;height:.55rem;background:#0072B2}
.different{outline:2px solid var(--wrong)}
.line{display:flex;flex-wrap:wrap;gap:.35rem;margin-bottom:.8rem}
figure{margin:0;width:76px;border:3px solid transparent}figure img{width:70px;height:70px;display:block;
object-fit:cover;image-rendering:auto}
figure.query{margin-right:.8rem}figure.right{border-color:var(--right)}figure.wrong{border:3px dashed var(--wrong)}
figcaption{font-size:11px;color:var(--pale);white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.small img{width:40px;height:40px;object-fit:cover;margin-right:3px}
.wide{max-width:100%;background:#fff}
.map{width:min(100%,44rem);aspect-ratio:1;border:1px solid var(--line);touch-action:none}
.keys span{margin-right:.9rem;white-space:nowrap}
.keys i{display:inline-block;width:.7rem;height:.7rem;margin-right:.3rem;border-radius:50%}
#tip{position:fixed;pointer-events:none;background:var(--paper);border:1px solid var(--line);padding:4px;font-size:12px}
#tip[hidden]{display:none}#tip canvas{display:block}
"""

_SCRIPT = """
'use strict';
const maps = JSON.parse(document.getElementById('maps').textContent);
const tip = document.getElementById('tip'), shown = tip.querySelector('canvas'), words = tip.querySelector('span');
document.querySelectorAll('canvas.map').forEach((canvas, number) => {
  const map = maps[number], sheet = new Image(), margin = 8;
  sheet.src = map.sheet;
  let size = 0;
  const place = point => [margin + point[0] * (size - 2 * margin), margin + (1 - point[1]) * (size - 2 * margin)];
  const colour = kind => kind < 0 ? '#888' : map.colours[kind % map.colours.length];
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    size = canvas.clientWidth;
    canvas.width = canvas.height = size * ratio;
    const pen = canvas.getContext('2d');
    pen.scale(ratio, ratio);
    map.points.forEach((point, row) => {
      const [x, y] = place(point);
      pen.fillStyle = colour(map.classes[row]);
      pen.beginPath();
      pen.arc(x, y, 2.4, 0, 7);
      pen.fill();
    });
  };
  const look = event => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, nearest = 144;
    map.points.forEach((point, row) => {
      const [px, py] = place(point), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < nearest) { nearest = distance; best = row; }
    });
    tip.hidden = best < 0;
    if (best < 0) return;
    const pen = shown.getContext('2d'), side = map.side;
    pen.clearRect(0, 0, 96, 96);
    pen.drawImage(sheet, best % map.columns * side, Math.floor(best / map.columns) * side, side, side, 0, 0, 96, 96);
    words.textContent = map.classes[best] < 0 ? '' : map.names[map.classes[best]];
    tip.style.left = Math.min(event.clientX + 12, innerWidth - 116) + 'px';
    tip.style.top = Math.min(event.clientY + 12, innerHeight - 136) + 'px';
  };
  canvas.addEventListener('pointermove', look);
  canvas.addEventListener('pointerdown', look);
  canvas.addEventListener('pointerleave', () => { tip.hidden = true; });
  new ResizeObserver(draw).observe(canvas);
});
"""
