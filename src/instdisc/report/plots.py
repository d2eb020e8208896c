"""Curves of a run and plots of tables, drawn from files by matplotlib (the extra "plots").

    training_curves("RUN/metrics.jsonl", "curves.png")
    table_plot("Objectives", rows, {"knn": "kNN"}, "table.svg")         # rows: as `instdisc reproduce` makes them

Colours are Okabe and Ito's, which people with any colour vision can tell apart.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instdisc.errors import InputError
from instdisc.files import write_whole

_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def training_curves(metrics: Path | str, out_png: Path | str, *, title: str = "") -> None:
    r"""The loss terms, the kNN accuracy and the label-free health of a run against epochs, one panel each.

    metrics: the `metrics.jsonl` of a run; lines with `losses` and lines with `measured` are drawn, a line cut short
    by a kill is left out. Where views grow a dotted line says to what side [px]: whole pictures are measured, so the
    measurements rise there. Raises InputError without matplotlib, without the file, or if it holds nothing to draw.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from instdisc.report import training_curves
        >>> lines = '{"epoch": 1, "losses": {"nce": 9.1}}\n{"epoch": 2, "losses": {"nce": 7.4}}'
        >>> written = Path("metrics.jsonl").write_text(lines)
        >>> training_curves("metrics.jsonl", "curves.png", title="runs/mine")
        >>> with Image.open("curves.png") as image:
        ...     image.size
        (660, 510)
    """
    lines = _read_lines(Path(metrics))
    panels = _panels(lines)
    if not panels:
        raise InputError(f"{metrics} holds nothing to draw yet: train for at least one epoch.")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _new_figure(figsize=(4.4 * columns, 3.1 * rows + (0.3 if title else 0)))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (heading, curves) in zip(axes, panels.items(), strict=False):
        for colour, (name, points) in zip(_LINES * len(curves), curves.items(), strict=False):
            epochs, values = zip(*points, strict=True)
            ax.plot(
                epochs,
                values,
                color=colour,
                linewidth=1.6,
                label=name,
                marker="o" if len(points) < 15 else "",
                markersize=3,
            )
        ax.set_title(heading, loc="left", fontsize=10)
        ax.set_xlabel("epoch", fontsize=9)
        _plain_axes(ax)
        for epoch, side in _growth(lines):
            ax.axvline(epoch, color="#888888", linewidth=0.9, linestyle=":")
            ax.text(
                epoch,
                1,
                f"{side} px ",
                fontsize=7,
                color="#666666",
                ha="right",
                va="top",
                transform=ax.get_xaxis_transform(),
            )
        if len(curves) > 1:
            ax.legend(frameon=False, fontsize=8)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    _write_figure(figure, Path(out_png))


def table_plot(
    title: str,
    rows: Sequence[dict[str, Any]],
    measures: dict[str, str],
    out: Path | str,
    *,
    curves: dict[str, list[tuple[float, float]]] | None = None,
) -> None:
    """A table as a picture: a point with its deviation for each row and measure, published values as hollow points.

    rows: as `instdisc reproduce` makes them (name, measure -> mean and std, published). measures: name -> words.
    curves: row -> (epoch, loss), drawn in a second panel. out: its ending, png or svg, decides the format.
    Raises InputError without matplotlib.

    Examples:
        >>> from PIL import Image
        >>> from instdisc.report import table_plot
        >>> row = {"name": "NCE", "knn": {"mean": 79.8, "std": 0.2}, "published": {"knn": 80.4}}
        >>> table_plot("CIFAR-10", [row], {"knn": "kNN"}, "table.png")
        >>> with Image.open("table.png") as image:
        ...     image.size
        (960, 630)
    """
    figure = _new_figure(figsize=((10.5 if curves else 6.4), 4.2))
    left, *right = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    positions = np.arange(len(rows))
    for number, ((measure, words), colour) in enumerate(zip(measures.items(), _LINES, strict=False)):
        at = positions + 0.16 * (number - (len(measures) - 1) / 2)
        means = [row[measure]["mean"] for row in rows]
        deviations = [row[measure]["std"] or 0.0 for row in rows]
        left.errorbar(at, means, yerr=deviations, fmt="os"[number % 2], color=colour, capsize=3, label=words)
        published = [(x, row["published"][measure]) for x, row in zip(at, rows, strict=True)]
        known = [(x, value) for x, value in published if value is not None]
        if known:
            xs, values = zip(*known, strict=True)
            shape = "os"[number % 2]
            left.plot(xs, values, shape, markerfacecolor="none", color=colour, label=f"{words}, published")
    left.set_xticks(positions, [row["name"] for row in rows], rotation=20, ha="right", fontsize=8)
    left.set_ylabel("accuracy, %", fontsize=9)
    left.set_title(title, loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for ax in right:
        for (name, points), colour in zip((curves or {}).items(), _LINES, strict=False):
            ax.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, label=name)
        ax.set_title("Loss, without the term itself (mean over seeds)", loc="left", fontsize=10)
        ax.set_xlabel("epoch", fontsize=9)
        ax.legend(frameon=False, fontsize=8)
    for ax in (left, *right):
        _plain_axes(ax)
    _write_figure(figure, Path(out))


def few_labels_plot(shares: Sequence[dict[str, Any]], methods: dict[str, str], out: Path | str) -> None:
    """Accuracy against the share of labels, a line a method, with its deviation over draws.

    shares: as `evaluate --with semi` makes them (share, method -> mean and std, from 0 to 1). methods: name -> words.
    Raises InputError without matplotlib.

    Examples:
        >>> from PIL import Image
        >>> from instdisc.report import few_labels_plot
        >>> one, ten = {"mean": 0.55, "std": 0.02}, {"mean": 0.7, "std": 0.01}
        >>> shares = [{"share": 0.01, "knn": one}, {"share": 0.1, "knn": ten}]
        >>> few_labels_plot(shares, {"knn": "kNN"}, "few_labels.png")
        >>> with Image.open("few_labels.png") as image:
        ...     image.size
        (960, 630)
    """
    figure = _new_figure(figsize=(6.4, 4.2))
    ax = figure.subplots()
    percents = [100 * row["share"] for row in shares]
    for (method, words), colour in zip(methods.items(), _LINES, strict=False):
        means = [100 * row[method]["mean"] for row in shares]
        deviations = [100 * row[method]["std"] for row in shares]
        ax.errorbar(percents, means, yerr=deviations, fmt="o-", color=colour, capsize=3, label=words)
    ax.set_xscale("log")
    ax.set_xticks(percents, [f"{percent:g} %" for percent in percents])
    ax.minorticks_off()
    ax.set_xlabel("share of the labels", fontsize=9)
    ax.set_ylabel("accuracy, %", fontsize=9)
    ax.legend(frameon=False, fontsize=8)
    _plain_axes(ax)
    _write_figure(figure, Path(out))


def _new_figure(figsize: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError('Plots need matplotlib: pip install "instdisc[plots]".') from None
    return Figure(figsize=figsize, layout="constrained")


def _plain_axes(ax: Any) -> None:
    ax.tick_params(labelsize=8, length=3)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _write_figure(figure: Any, out: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format=out.suffix[1:])
    write_whole(out, content.getvalue())


# What a measured number is called, the panel it stands in, and its scale. A panel's name says which way is better.
_MEASURED = {
    "knn": ("training pictures, leave-one-out", "kNN accuracy, % (higher is better)", 100.0),
    "knn_test": ("test pictures", "kNN accuracy, % (higher is better)", 100.0),
    "alignment": ("alignment", "Alignment of two views (0 = equal)", 1.0),
    "uniformity": ("uniformity", "Uniformity (lower = more evenly spread)", 1.0),
    "effective_rank": ("effective rank", "Effective rank (directions in use)", 1.0),
}

Curves = dict[str, list[tuple[float, float]]]


def _panels(lines: list[dict[str, Any]]) -> dict[str, Curves]:
    """Panel -> curve -> points (epoch, value), in the order in which they should be read."""
    found: dict[str, Curves] = {}
    for line in lines:
        for name, value in line.get("losses", {}).items():
            _add(found, "Loss", name, line["epoch"], value)
        for name, value in line.get("measured", {}).items():
            curve, panel, scale = _MEASURED.get(name, (name, name, 1.0))
            _add(found, panel, curve, line["epoch"], value, scale)
    order = ["Loss", *dict.fromkeys(panel for _, panel, _ in _MEASURED.values())]
    return {panel: found[panel] for panel in [*order, *found] if panel in found}


def _growth(lines: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """The epochs at which the views had grown, and to what side; nothing where they have one size."""
    sides = [(line["epoch"], line["size"]) for line in lines if "size" in line]
    return [now for before, now in itertools.pairwise(sides) if before[1] != now[1]]


def _add(found: dict[str, Curves], panel: str, curve: str, epoch: float, value: Any, scale: float = 1.0) -> None:
    # A figure that could not be measured is null, and a diverged one NaN: neither is a point.
    if isinstance(value, int | float) and math.isfinite(value):
        found.setdefault(panel, {}).setdefault(curve, []).append((float(epoch), scale * value))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"There are no metrics at {path}: give the metrics.jsonl of a run.")
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "epoch" in line:
            lines.append(line)
    return lines
