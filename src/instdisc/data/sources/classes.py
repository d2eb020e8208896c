"""Labels from the names of folders, and which names are those of splits (train, test, ...), which are no classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from instdisc.data.sources.labels import Encoded, encode
from instdisc.data.storage.scan import chunks

SPLITS = {"train", "training", "trn", "test", "testing", "tst", "val", "valid", "validation", "validate", "dev", "eval"}
SPLITS |= {"evaluation", "holdout", "unlabeled", "unlabelled"}


class Classes(NamedTuple):
    """labels: of each row, None where there are none. choices: sentences on what was made of the folders."""

    labels: Encoded | None
    choices: list[str]


def splits_among(names: Iterable[str]) -> list[str]:
    """The names of splits among some words, once each, as they are written."""
    return list(dict.fromkeys(name for name in names if name.lower() in SPLITS))


def find_classes(ids: pa.ChunkedArray, prefixes: Sequence[bytes]) -> Classes:
    """Labels from the folders right below each root; below its splits, where all folders there are splits.

    A folder is a class if pictures lie right in it. There are labels where two or more folders are classes, and most
    pictures lie in one; the others have no label. prefixes: what the ids of each root begin with.
    """
    tops = Counter(top for piece in _parts(ids, prefixes) for top, slash, _ in piece if slash)
    folders = list(tops)
    split = bool(folders) and len(splits_among(top.decode(errors="replace") for top in folders)) == len(folders)
    choices = []
    if split and len(folders) > 1:
        told = [f"{top.decode(errors='replace')} ({tops[top]:,})" for top in sorted(folders)]
        one = sorted(folders, key=lambda top: -tops[top])[0].decode(errors="replace")
        choices.append(
            f"The folders {', '.join(told)} are splits, no classes, and all are taken: --split {one} takes one alone."
        )
    classes: list[pa.Array] = []
    deep = 0
    for piece in _parts(ids, prefixes):
        if split:
            piece = [rest.partition(b"/") if slash else (top, slash, rest) for top, slash, rest in piece]
        found = [top if slash and b"/" not in rest else b"" for top, slash, rest in piece]
        classes.append(pa.array(found, pa.large_binary()))
        deep += sum(b"/" in rest for _, _, rest in piece)
    return _labelled(pa.chunked_array(classes, pa.large_binary()), deep, choices)


def _labelled(classes: pa.ChunkedArray, deep: int, choices: list[str]) -> Classes:
    """The labels of rows whose classes are these, empty where a picture lies in none; deep: how many lie deeper."""
    count = len(pc.unique(pc.filter(classes, pc.not_equal(classes, b""))))
    if count < 2:
        return Classes(None, choices)
    strays = pc.sum(pc.equal(classes, b"")).as_py()
    if 2 * strays < len(classes):
        if strays:
            have = "has" if strays == 1 else "have"
            choices.append(f"{count:,} folders are classes; {_where(strays, deep)} and {have} no label.")
        return Classes(encode(classes), choices)
    if 2 * deep < len(classes):  # else it is no folder of classes at all, but an album, by years perhaps
        choices.append(
            f"{count:,} folders are not taken as classes, since {_where(strays, deep)}, half or more of all."
        )
    return Classes(None, choices)


def _where(strays: int, deep: int) -> str:
    place = "deeper" if deep == strays else "beside them or deeper" if deep else "beside them"
    return f"1 picture lies {place}" if strays == 1 else f"{strays:,} pictures lie {place}"


def _parts(ids: pa.ChunkedArray, prefixes: Sequence[bytes]) -> Iterator[list[tuple[bytes, bytes, bytes]]]:
    """Of ids below their roots the first part, a slash and the rest; the name alone for what lies beside the folders.

    Piece by piece: not all ids stand in Python objects at a time.
    """
    known = tuple(prefixes)
    for start, stop in chunks(len(ids)):
        entries = ids.slice(start, stop - start).to_pylist()
        if known != (b"",):
            roots = (next(prefix for prefix in known if entry.startswith(prefix)) for entry in entries)
            entries = [entry[len(root) :] for entry, root in zip(entries, roots, strict=True)]
        yield [entry.partition(b"/") for entry in entries]
