"""Ids of pictures that come to a collection: distinct, whatever they are called in their sources."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instdisc.jobs.ids import distinct_ids

NAMES = st.lists(st.sampled_from([b"1", b"2", b"b/1", b"b/2", b"b~2/1", b"\xff"]), unique=True, max_size=6)


@given(own=NAMES, taken=NAMES)
@settings(max_examples=200, deadline=None)
def test_no_two_are_the_same_and_only_those_that_were_change(own: list[bytes], taken: list[bytes]) -> None:
    found, front = distinct_ids(pa.array(own, pa.large_binary()), pa.array(taken, pa.large_binary()), "disk/b/")
    ids = found.to_pylist()
    assert len({*ids, *taken}) == len(own) + len(taken)
    for before, after in zip(own, ids, strict=True):
        assert after == (front.encode() + before if before in taken else before)
    assert bool(front) == bool(set(own) & set(taken))


@pytest.mark.parametrize(
    ("source", "expected"), [("disk/b", "b/1"), ("c:\\pictures\\b\\", "b/1"), ("/", "added/1"), ("b", "b/1")]
)
def test_the_last_part_of_the_name_of_the_source_stands_in_front(source: str, expected: str) -> None:
    found, _ = distinct_ids(pa.array(["1"]), pa.array(["1"]), source)
    assert found.to_pylist() == [expected.encode()]
