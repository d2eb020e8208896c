"""Ids of pictures that come to a collection: no two pictures have the same, whichever source they come from."""

from __future__ import annotations

import os
import re

import pyarrow as pa
import pyarrow.compute as pc


def distinct_ids(own: pa.Array, taken: pa.Array, source: str) -> tuple[pa.Array, str]:
    """The ids of pictures (bytes) among others that have `taken`; and what now stands in front of some, "" for none.

    An id that another picture has gets the last part of the source's name in front, and a number where that is not
    enough. Examples:

        distinct_ids(pa.array([b"1.png", b"2.png"]), pa.array([b"1.png"]), "disk/b")   # [b"b/1.png", b"2.png"], "b/"
    """
    own, taken = (pc.cast(ids, pa.large_binary()) for ids in (own, taken))
    known = pc.is_in(own, value_set=taken)
    same = own.filter(known)
    if not len(same):
        return own, ""
    name = re.split(r"[/\\]", source.rstrip("/\\"))[-1] or "added"
    ids, front, number = same, name, 1
    while any(pc.any(pc.is_in(ids, value_set=others)).as_py() for others in (taken, own)):
        front = name if number == 1 else f"{name}~{number}"
        before, slash = (pa.scalar(text, pa.large_binary()) for text in (os.fsencode(front), b"/"))
        ids, number = pc.binary_join_element_wise(before, same, slash), number + 1
    return pc.replace_with_mask(own, known, ids), f"{front}/"
