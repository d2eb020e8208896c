"""A contact sheet of pictures and their nearest neighbours.

    neighbour_sheet(queries, neighbours, scores, "neighbours.png")      # one row a query, best neighbour first

Colours are Okabe and Ito's, which people with any colour vision can tell apart; where a colour says something, a second
mark says it too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from instdisc.errors import InputError
from instdisc.files import write_whole

Picture = np.ndarray | Image.Image  # (h, w, 3) or (h, w) uint8, or a PIL image

_INK, _PALE, _PAPER, _BACKDROP = (34, 34, 34), (110, 110, 110), (255, 255, 255), (240, 240, 240)
_SAME, _OTHER = (0, 158, 115), (213, 94, 0)  # bluish green, vermilion

_CELL = 112  # pixels: the square that a picture is fitted into
_BORDER = 4
_GAP = 16
_MARGIN = 28
_QUERY_GAP = 36  # between a query and its neighbours
_TEXT = 15
_LINE = 20


def neighbour_sheet(
    queries: Sequence[Picture],
    neighbours: Sequence[Sequence[Picture]],
    scores: Any,
    out_png: Path | str,
    *,
    query_labels: Sequence[str] | None = None,
    neighbour_labels: Sequence[Sequence[str]] | None = None,
    heading: str = "Query",
    title: str = "Nearest neighbours, with their cosine",
) -> None:
    """A contact sheet: each row a query, then its neighbours, best first, with scores beneath.

    scores: a number for each neighbour; a query may have fewer than others. With labels for both, a neighbour of the
    query's class has a solid green border and one of another class a broken orange one. An unlabelled picture has the
    label "" and no border.
    Raises InputError if there is nothing to show, or if the numbers of pictures, scores and labels misfit.

    Examples:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from instdisc.report import neighbour_sheet
        >>> pictures = list(np.zeros((5, 32, 32, 3), np.uint8))
        >>> neighbour_sheet(pictures[:1], [pictures[1:]], [[0.9, 0.8, 0.7, 0.6]], "sheet.png")
        >>> with Image.open("sheet.png") as image:
        ...     image.size
        (700, 206)
    """
    table = [[float(score) for score in row] for row in scores]
    labelled = query_labels is not None and neighbour_labels is not None
    own_labels = query_labels if labelled and query_labels is not None else [""] * len(queries)
    found_labels = neighbour_labels if labelled and neighbour_labels is not None else [[""] * len(row) for row in table]
    width = _checked_width(queries, neighbours, table, own_labels, found_labels)

    font = ImageFont.load_default(_TEXT)
    step_x = _CELL + _GAP
    step_y = _CELL + (2 if labelled else 1) * _LINE + _GAP + 4
    left = _MARGIN
    first = left + _CELL + _QUERY_GAP
    top = _MARGIN + _LINE + 8
    # A sheet of one neighbour is still wide enough for its heading and its legend.
    content_width = max(first - left + width * step_x - _GAP, first - left + round(font.getlength(title)))
    framed = labelled and any(own_labels)
    if framed:
        content_width = max(content_width, _legend_width(font))
    height = top + len(queries) * step_y - _GAP + (_LINE + _GAP + 8 if framed else 0) + _MARGIN // 2
    sheet = Image.new("RGB", (left + content_width + left, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, _MARGIN // 2), heading, _INK, font)
    draw.text((first, _MARGIN // 2), title, _INK, font)
    for i, query in enumerate(queries):
        y = top + i * step_y
        _paste(sheet, query, left, y)
        _caption(draw, own_labels[i], left, y + _CELL + 4, _PALE, font)
        rule = left + _CELL + _QUERY_GAP // 2
        draw.line([(rule, y), (rule, y + _CELL)], (205, 205, 205), 1)
        for j, neighbour in enumerate(neighbours[i]):
            x = first + j * step_x
            label = found_labels[i][j]
            _paste(sheet, neighbour, x, y)
            _caption(draw, f"{table[i][j]:.3f}", x, y + _CELL + 4, _INK, font)
            _caption(draw, label, x, y + _CELL + 4 + _LINE, _PALE, font)
            if own_labels[i] and label:
                _frame(draw, x, y, _CELL, same=own_labels[i] == label)
    if framed:
        _legend(draw, left, height - _MARGIN // 2 - _LINE - 4, font)
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    write_whole(Path(out_png), content.getvalue())


def _checked_width(
    queries: Sequence[Picture],
    neighbours: Sequence[Sequence[Picture]],
    scores: list[list[float]],
    own_labels: Sequence[str],
    labels: Sequence[Sequence[str]],
) -> int:
    """The most neighbours that a query has. Raises InputError if there are none, or if the numbers misfit."""
    counts = [len(row) for row in neighbours]
    width = max(counts, default=0)
    if not len(queries) or not width:
        raise InputError("A neighbour sheet needs at least one query with at least one neighbour.")
    if len(counts) != len(queries) or [len(row) for row in scores] != counts:
        raise InputError("A neighbour sheet needs neighbours for each query, and a score for each of them.")
    if len(own_labels) != len(queries) or [len(row) for row in labels] != counts:
        raise InputError("A neighbour sheet needs one label for each picture.")
    return width


def _paste(sheet: Image.Image, picture: Picture, x: int, y: int) -> None:
    """The picture in the middle of its square, in its own proportions."""
    image = (picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))).convert("RGB")
    sheet.paste(_BACKDROP, (x, y, x + _CELL, y + _CELL))
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Few pixels shown large should look like pixels and not like a blurred photograph.
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    sheet.paste(image, (x + (_CELL - image.width) // 2, y + (_CELL - image.height) // 2))


def _frame(draw: ImageDraw.ImageDraw, x: int, y: int, side: int, *, same: bool) -> None:
    """A solid green or a broken orange border just outside a square."""
    low, high = -_BORDER, side + _BORDER - 1
    if same:
        draw.rectangle((x + low, y + low, x + high, y + high), outline=_SAME, width=_BORDER)
        return
    length = high - low + 1
    dashes = max(3, length // 10) | 1  # odd: a dash in every corner
    edges = [low + round(i * length / dashes) for i in range(dashes + 1)]
    for start, stop in zip(edges[::2], edges[1::2], strict=False):
        for near in (low, high - _BORDER + 1):
            draw.rectangle((x + start, y + near, x + stop - 1, y + near + _BORDER - 1), fill=_OTHER)
            draw.rectangle((x + near, y + start, x + near + _BORDER - 1, y + stop - 1), fill=_OTHER)


_LEGEND = ((True, "same class as the query"), (False, "another class"))
_LEGEND_BOX, _LEGEND_GAP = 14, 28


def _legend(draw: ImageDraw.ImageDraw, x: int, y: int, font: Any) -> None:
    for same, words in _LEGEND:
        _frame(draw, x + _BORDER, y + _BORDER, _LEGEND_BOX, same=same)
        x += _LEGEND_BOX + 2 * _BORDER + 8
        draw.text((x, y + 2), words, _INK, font)
        x += round(font.getlength(words)) + _LEGEND_GAP


def _legend_width(font: Any) -> int:
    each = _LEGEND_BOX + 2 * _BORDER + 8 + _LEGEND_GAP
    return sum(each + round(font.getlength(words)) for _, words in _LEGEND) - _LEGEND_GAP


def _caption(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, colour: tuple[int, int, int], font: Any) -> None:
    if text:
        draw.text((x, y + 2), _fitted(text, _CELL, font), colour, font)


def _fitted(text: str, width: float, font: Any) -> str:
    """The text, cut with an ellipsis where it is too long."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
