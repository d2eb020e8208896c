"""What an opened collection says of itself to the API: labels, copies, acts, files.

This file must not import torch, nor what imports it: the page answers while torch is being loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelState:
    """How labelling stands: counts is class -> (by hand, by vote); accuracy and its 95 % interval by leave-one-out."""

    counts: dict[str, tuple[int, int]]
    accuracy: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class CopyFacts:
    """A picture of a group of copies: why it is one (nothing of the kept one), and what tells which to keep.

    kind: same file or same picture; agreement: of its pixels with the kept one's; modified: seconds since 1970.
    """

    row: int
    kind: str
    changes: tuple[str, ...]
    agreement: float
    width: int
    height: int
    size: int | None
    format: str
    modified: float | None


@dataclass(frozen=True)
class Done:
    """What was done to labels by hand. act: its name, by which it can be undone; "" where nothing changed."""

    act: str
    text: str


@dataclass(frozen=True)
class Undone:
    """text: of the act. rows: that have their label of before. kept: how many were labelled again since."""

    text: str
    rows: list[int]
    kept: int


@dataclass(frozen=True)
class Suggestions:
    """What the labels by hand say of every row: codes (positions in names, -1 for removed), confidence, hand (bool)."""

    names: list[str]
    codes: np.ndarray
    confidence: np.ndarray
    hand: np.ndarray


@dataclass(frozen=True)
class FileFacts:
    """width, height: pixels. size: bytes; modified: seconds since 1970; None where it is no file, or unknown."""

    width: int
    height: int
    format: str
    size: int | None
    modified: float | None
