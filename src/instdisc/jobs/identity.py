"""Which pictures of a source are those that a run was trained on: by their ids, though others came and some have gone.

An unchanged source is taken as it is. In one that changed each picture is found by its id, where at least half of them
are there and most of the sixteen that are looked at show the same pixels; `Gathered` then stands for the source.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.loading.pixel_cache import fingerprint_of, looked_at
from instdisc.data.sources.arrow import LabelsError
from instdisc.data.sources.gathered import Gathered, Known, rows_by_id
from instdisc.data.sources.given import GivenSource
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.data.storage.skipped import BEGINNING
from instdisc.errors import InputError, is_shortage
from instdisc.jobs.sources import findable, has_no_encoder, read_instances
from instdisc.runs import GIVEN_LABELS, RunFolder

Parts = Sequence[Source | None]


def reopen(run: RunFolder, facts: Mapping[str, Any], moved_to: Any = None) -> Source:
    """The pictures that a run was trained on; InputError when they have changed or were never on disk.

    moved_to: where they are now, if they were moved, or the arrays in memory.
    """
    if has_no_encoder(facts):
        location = facts["source"]["given"] if moved_to is None else findable(moved_to)
        return _given_source(run, facts, location, moved_to is not None)
    return as_before(run, facts, open_parts(run, facts, moved_to))


def _given_source(run: RunFolder, facts: Mapping[str, Any], location: Any, moved: bool) -> Source:
    """The rows of vectors that were made elsewhere; without their pictures where these have gone."""
    try:
        with pa.OSFile(os.fsencode(run.given)) as file:
            table = pq.read_table(file)
        table.validate(full=True)
        kinds = [table[name].type for name in ("id", "location")]
        if len(table) != facts["data"]["rows"] or kinds != [pa.large_string()] * 2:
            raise ValueError("it has other rows than the run")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if is_shortage(error):
            raise
        raise InputError(f"{run.given} can't be read ({error}): restore the run folder.") from None
    pictures = None
    if location is not None:
        try:
            pictures = open_source(location, split=facts["source"]["split"], limit=facts["source"]["limit"])
        except InputError:
            if moved:
                raise
    source = GivenSource(facts["source"]["name"], table, pictures)
    if facts["source"]["labels"] is not None:
        with suppress(LabelsError):
            source.set_labels(facts["source"]["labels"])
    return source


def open_parts(run: RunFolder, facts: Mapping[str, Any], moved_to: Any = None, *, whole: bool = False) -> list[Any]:
    """The sources of a run as they are now, that of its start first; None for a later one that can't be opened.

    whole: without the limit that was given for some. Raises InputError where the first can't be opened.
    """
    first = facts["source"]
    location = first["given"] if moved_to is None else findable(moved_to)
    if location is None:
        raise InputError(
            f"{run.path} was trained on pictures in memory ({first['name']}), which can't be opened again: give the "
            "same as train_source."
        )
    limited = not whole and not facts["data"].get("gathered")
    try:
        parts: list[Source | None] = [_opened(_with_labels_of(run, first), location, limited)]
    except InputError as error:
        if moved_to is None:
            raise InputError(
                f"{error} If the pictures of {run.path} are elsewhere now, or need a newly signed URL or a password, "
                "name the new location with --train-source."
            ) from None
        raise
    return [*parts, *later_parts(facts, limited=limited)]


def _with_labels_of(run: RunFolder, described: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, where labels that stand in the run folder are found."""
    return {**described, "labels": run.path / GIVEN_LABELS} if described["labels"] == GIVEN_LABELS else described


def later_parts(facts: Mapping[str, Any], *, limited: bool = True) -> list[Source | None]:
    """The sources that a run grew by since its start, as they are now; None for one that can't be opened."""
    parts: list[Source | None] = []
    for described in facts["source"].get("more", ()):
        try:
            parts.append(_opened(described, described["given"], limited))
        except InputError:
            parts.append(None)
    return parts


def _opened(described: Mapping[str, Any], location: Any, limited: bool) -> Source:
    source = open_source(location, split=described["split"], limit=described["limit"] if limited else None)
    if described["labels"] is not None:
        with suppress(LabelsError):  # it stops only who needs labels, and is told then
            source.set_labels(described["labels"])
    return source


def as_before(run: RunFolder, facts: Mapping[str, Any], parts: Parts) -> Source:
    """The pictures of the run in its sources as they are now, numbered as instances.arrow has it.

    Bank rows belong to pictures: InputError where too few are left, or most show other pixels under the same names. A
    few that were edited, or written again around the same pixels, lock nobody out: `changed_rows` tells of them.
    """
    known, source = facts["data"], parts[0]
    assert source is not None
    if not known.get("gathered") and (
        fingerprint_of(source) == known["fingerprint"] or _mostly_the_same(known, source)
    ):
        return source
    found = gathered(read_instances(run), parts, known["rows"])
    if not _found_again(known, found):
        raise InputError(
            f"{source.name} has other pictures now ({len(source):,}) than when {run.path} was trained on it "
            f"({known['rows']:,}): restore them, or start a new run. Where they were moved, name the place with "
            "--train-source."
        )
    return found


def gathered(instances: pa.Table, parts: Parts, count: int) -> Gathered:
    """The pictures of instances.arrow in these sources; `count` rows, numbered as there."""
    known, rows = Known.of(instances), instances["row"].to_numpy()
    count = max(count, int(rows.max()) + 1 if len(rows) else 0)
    part = instances["part"].to_numpy() if "part" in instances.column_names else np.zeros(len(rows), np.int64)
    now = np.full(len(rows), -1)
    for number, source in enumerate(parts):
        here = np.flatnonzero(part == number)
        if source is not None and len(here):
            now[here] = rows_by_id(source, known.own.take(pa.array(here)))
    location = np.full(count, -1)
    location[rows] = np.arange(len(rows))
    there = location >= 0
    whole = np.stack([np.zeros(count, np.int64), np.full(count, -1)])
    whole[:, there] = np.stack([part, now])[:, location[there]]
    first = next(source.name for source in parts if source is not None)
    name = first if len(parts) == 1 else f"{first} and {len(parts) - 1} more"
    return Gathered(name, parts, known.take(location), whole[0], whole[1])


def _found_again(known: Mapping[str, Any], found: Gathered) -> bool:
    """Whether at least half of the pictures are there, and most of those that can be compared show the same pixels."""
    named = int(pc.sum(pc.greater(pc.binary_length(found.known.ids), 0)).as_py() or 0)
    before = known.get("pixels")
    if 2 * int((found.rows >= 0).sum()) < named or not isinstance(before, list):
        return False
    rows = looked_at(found)
    if len(rows) != len(before):
        return False
    pairs = [
        (then, _hash_of(found, row))
        for row, then in zip(rows, before, strict=True)
        if then is not None and found.rows[row] >= 0
    ]
    return bool(pairs) and 2 * sum(then == now for then, now in pairs) >= len(pairs)


def _mostly_the_same(known: Mapping[str, Any], source: Source) -> bool:
    before = known.get("pixels")
    if not isinstance(before, list) or known.get("ids") != source.fingerprint:
        return False
    now = pixel_hashes(source)
    return len(now) == len(before) and 2 * sum(one == other for one, other in zip(before, now, strict=True)) >= len(now)


def pixel_hashes(source: Source) -> list[str | None]:
    """What the pictures that `fingerprint_of` looks at show, whatever else their files say; None for an unreadable."""
    return [_hash_of(source, row) for row in looked_at(source)]


def _hash_of(source: Source, row: int) -> str | None:
    try:
        pixels = decode(source.read(row))
    except UnreadableError:
        return None
    digest = hashlib.blake2b(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes(), digest_size=8)
    return digest.hexdigest()


def new_rows(source: Source, own: pa.ChunkedArray) -> np.ndarray:
    """The rows of a source whose ids are none of these, ascending: what came since."""
    ids = pc.cast(source.fetch_table()["id"], pa.large_binary())
    return np.flatnonzero(~pc.is_in(ids, value_set=own.combine_chunks()).to_numpy(zero_copy_only=False).astype(bool))


def unreadable_before(run: RunFolder) -> list[tuple[str, str, str]]:
    """Id, path and reason of each picture that could not be read when the run was trained, by quarantine.csv."""
    if not run.quarantine.is_file():
        return []
    with open(run.quarantine, newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = [tuple(line) for line in csv.reader(file) if len(line) == 3 and line[0] != "id"]
    return [(own, path, reason) for own, path, reason in lines if not reason.startswith(BEGINNING)]


def unreadable_names(run: RunFolder) -> frozenset[bytes]:
    """Ids and locations of those."""
    return frozenset(os.fsencode(name) for line in unreadable_before(run) for name in line[:2])


def news(run: RunFolder, found: Gathered, there: Sequence[bytes] = ()) -> list[str]:
    """Sentences on pictures that came and went since a run was trained.

    there: locations of the pictures that are in the collection otherwise. Those that could not be read are no news.
    """
    sentences = []
    named = np.array(pc.binary_length(found.known.ids).to_pylist()) > 0
    gone = np.flatnonzero(named & (found.rows < 0))
    if len(gone):
        have = "picture has" if len(gone) == 1 else "pictures have"
        sentences.append(
            f"{len(gone):,} {have} gone, the first is {found.location(int(gone[0]))}: "
            f"`instdisc train {run.path} --add` takes what has gone out of the run."
        )
    others = frozenset(there) | unreadable_names(run)
    for number, source in enumerate(found.parts):
        if source is None:
            continue
        rows = new_rows(source, found.known.own.filter(pa.array(found.part == number)))
        table = source.fetch_table().take(pa.array(rows))
        names = (pc.cast(table[column], pa.large_binary()).to_pylist() for column in ("id", "location"))
        new = [where for own, where in zip(*names, strict=True) if not others & {own, where}]
        if new:
            sentences.append(
                f"{len(new):,} new {'picture' if len(new) == 1 else 'pictures'} in {source.name}, the first is "
                f"{os.fsdecode(new[0])}: `instdisc train {run.path} --add` trains on, `instdisc index {run.path} --add "
                f"{source.name}` adds without training."
            )
    return sentences
