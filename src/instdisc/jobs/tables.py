"""The paper's tables: which runs make them, and what was published. Data only; reproduce.py makes the runs.

A new table is one entry of TABLES. Published numbers are percent on CIFAR-10 (Wu et al. 2018), where there are any.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of a table: settings that differ from the scale's, the share of the pictures, and published numbers."""

    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    knn: float | None = None
    svm: float | None = None


@dataclass(frozen=True)
class Table:
    """rows: its lines. term: the term of the loss whose curves are drawn too, if any."""

    title: str
    rows: tuple[Row, ...]
    term: str | None = None


@dataclass(frozen=True)
class Scale:
    """How large the runs of a table are. source: its default pictures; pictures: how many, None = all.

    optimizer: settings of its own optimizer and the name of that, where it has one; without: the published SGD.
    """

    about: str
    source: str
    overrides: dict[str, Any]
    pictures: int | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    optimizer_name: str = ""

    def settings(self, published: bool) -> dict[str, Any]:
        """What differs from the paper's recipe; published: with the published optimizer in place of its own."""
        return self.overrides | ({} if published else self.optimizer)

    def words(self, published: bool) -> str:
        """`about`, with the optimizer."""
        optimizer = "" if published else self.optimizer_name
        return f"{self.about}, {optimizer or 'the published SGD'}"


def _nce(negatives: int = 4096, **more: Any) -> dict[str, Any]:
    return {"objective": "nce", "negatives": negatives, **more}


TABLES = {
    "objectives": Table(
        "Objectives",
        (
            Row("parametric softmax", {"objective": "parametric"}, knn=63.0, svm=60.3),
            Row("NCE, 1 negative", _nce(1), knn=42.5, svm=44.3),
            Row("NCE, 10 negatives", _nce(10), knn=63.4, svm=60.2),
            Row("NCE, 512 negatives", _nce(512), knn=78.4, svm=64.3),
            Row("NCE, 4096 negatives", _nce(4096), knn=80.4, svm=70.2),
            Row("non-parametric softmax", {"objective": "softmax"}, knn=80.8, svm=75.4),
        ),
    ),
    # The proximal term compares with the row that the picture left, so the bank keeps just that: momentum 0.
    "proximal": Table(
        "Weight of the proximal term",
        tuple(Row(f"λ = {weight}", _nce(proximal=float(weight), bank_momentum=0.0)) for weight in (0, 10, 30, 50)),
        term="nce",
    ),
    "partition": Table(
        "How Z is known",
        tuple(Row(name.replace("_", " "), _nce(partition=name)) for name in ("first_batch", "moving_average", "exact")),
    ),
    "dimension": Table("Numbers in a vector", tuple(Row(str(dim), {"dim": dim}) for dim in (32, 64, 128, 256))),
    "size": Table(
        "Share of the pictures that are trained on",
        tuple(Row(f"{100 * share:g} %", share=share) for share in (0.001, 0.01, 0.1, 0.3, 1.0)),
    ),
    "temperature": Table(
        "Temperature",
        tuple(Row(f"τ = {value:g}", {"temperature": value}) for value in (0.02, 0.05, 0.07, 0.1, 0.2, 0.5)),
    ),
    "bank_momentum": Table(
        "Momentum of the bank",
        tuple(Row(f"{value:g}", {"bank_momentum": value}) for value in (0.0, 0.25, 0.5, 0.75, 0.9)),
    ),
}

SCALES = {
    "tiny": Scale(
        "handwritten digits, seconds a run, to see the harness work",
        "digits",
        {
            "backbone": "conv6",
            "width": 8,
            "size": 16,
            "batch": 64,
            "epochs": 2,
            "hue": 0.0,
            "grey": 0.0,
        },
    ),
    "cpu": Scale(
        "10,000 CIFAR-10 pictures, a narrow network, 20 epochs, under 90 minutes a table on two cores",
        "cifar10",
        {"backbone": "conv6", "width": 32, "epochs": 20},
        pictures=10_000,
        # The published SGD has learned little after so few steps. Muon's steps have a length of their own, whatever
        # the gradient's is, so it learned even where Z was the first batch's: the rates were chosen then.
        optimizer={"optimizer": "muon", "lr": 0.02, "vector_lr": 0.001},
        optimizer_name="Muon",
    ),
    "full": Scale(
        "the paper's own setting, for a GPU",
        "cifar10",
        {"precision": "bfloat16", "compile": True},
    ),
}
