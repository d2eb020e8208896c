"""What a run has to grow by: pictures that came, went or were edited since it was trained, in one source."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.gathered import Gathered, Known, rows_by_id
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.errors import InputError, counted
from instdisc.jobs.collection import Collection
from instdisc.jobs.identity import as_before, gathered, new_rows, open_parts, unreadable_names
from instdisc.jobs.ids import distinct_ids
from instdisc.jobs.sources import changed_rows, describe_source, findable, log_lines, stamps_in

Say = Callable[[str], None] | None
_KEYS = ("given", "labels", "split", "limit")


@dataclass(frozen=True)
class Grown:
    """The pictures that a run shall have: the kept ones in their order, then those that came.

    described: where they stand, as config.json keeps it. bank_row: of each row of the source the row that it has in the
    bank, -1 where it starts as the encoder embeds it. fresh: bool, those that are new to the training. new_row: of each
    row of the collection its row in the source, -1 where it has gone. moved: path of before -> path now.
    parts: how many of the index are taken in.
    """

    source: Gathered
    described: dict[str, Any]
    bank_row: np.ndarray
    fresh: np.ndarray
    new_row: np.ndarray
    gone: int
    edited: int
    moved: dict[str, str]
    parts: int

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.gone or self.edited or self.fresh.any())

    @property
    def words(self) -> str:
        """How many came, went, were edited."""
        new = counted(int(self.fresh.sum()), "new picture")
        return f"{new}, {self.gone:,} gone, {self.edited:,} edited, {len(self.source) - int(self.fresh.sum()):,} kept"


class _Places:
    """The sources of a run with what describes each; one location is one part, however often it was named."""

    def __init__(self, collection: Collection, moved_to: Any) -> None:
        facts = collection.facts
        self.described = [{key: facts["source"][key] for key in _KEYS}]
        self.described += [{key: one[key] for key in _KEYS} for one in facts["source"].get("more", ())]
        self.sources: list[Any] = open_parts(collection.folder, facts, moved_to, whole=True)
        if moved_to is not None:
            self.described[0]["given"] = describe_source(moved_to, None, None, None)["given"]
        for described, source in zip(self.described, self.sources, strict=True):
            if source is None:
                raise InputError(f"{described['given']}, from where pictures were added, can't be opened: put it back.")

    def number(self, described: Mapping[str, Any], source: Source) -> int:
        """The part of this location, a new one where there was none."""
        for number, known in enumerate(self.described):
            if known["given"] == described["given"] and known["split"] == described["split"]:
                return number
        self.described.append({key: described[key] for key in _KEYS})
        self.sources.append(source)
        return len(self.sources) - 1


def gather(collection: Collection, given: Mapping[str, Any] | None, say: Say) -> Grown:
    """What a run has to grow by. given: another source, with labels, split, limit, as a person named it.

    Raises InputError where a source of the run can't be opened or has other pictures now, and for pictures in memory.
    """
    places = _Places(collection, collection.moved_to)
    as_before(collection.folder, collection.facts, places.sources)  # refuses another folder of the same names
    known, part, now, stamps = _known(collection, places)
    removed = np.zeros(len(part), dtype=bool)
    removed[collection.changes.removed] = True
    if given is not None:
        described = describe_source(*(given[key] for key in _KEYS))
        if described["given"] is None:
            raise InputError("Pictures in memory can't be added, since they could not be found again: save them first.")
        opened = open_source(
            findable(given["given"]), labels=given["labels"], split=given["split"], limit=given["limit"]
        )
        log_lines(say, opened.label_notes)
        places.number(described, opened)
    new = _Came(known, part, places, unreadable_names(collection.folder))
    count, training = len(part), len(collection.rows)
    kept = np.flatnonzero(now >= 0)
    source = Gathered(
        _name(places.sources),
        places.sources,
        new.names(kept),
        np.r_[part[kept], new.part],
        np.r_[now[kept], new.rows],
    )
    bank_row = np.r_[np.where(kept < training, kept, -1), np.full(len(new.rows), -1)]
    fresh = bank_row < 0
    edited = np.zeros(0, np.int64)
    if (after := source.stamps()) is not None and stamps is not None:
        edited = changed_rows(stamps[kept], after[: len(kept)])
        bank_row[edited] = -1
    new_row = np.full(count, -1)
    new_row[kept] = np.arange(len(kept))
    first, *more = places.described
    return Grown(
        source,
        {**first, **({"more": more} if more else {})},
        bank_row,
        fresh,
        new_row,
        int((now < 0).sum()),
        len(edited),
        _moved(known, source, kept) if collection.moved_to is not None else {},
        len(collection.changes.added),
    )


def _known(collection: Collection, places: _Places) -> tuple[Known, np.ndarray, np.ndarray, np.ndarray | None]:
    """Of all rows of the collection: names, number of the part, row there now (-1: gone), stamps of before."""
    table = collection.run.instances
    own = gathered(
        table.set_column(table.schema.get_field_index("row"), "row", pa.array(np.arange(len(table)))),
        places.sources,
        len(table),
    )
    known, parts, rows = [own.known], [own.part], [own.rows]
    made = collection.changes.recomputed
    stamps = [stamps_in(table) if made is None or made.stamps is None else made.stamps]
    for part in collection.changes.added:
        assert part.pictures is not None and part.source is not None
        try:
            source, there = collection.added_source(part)
        except InputError as error:
            raise InputError(
                f"The pictures that were added from {part.source['given']} can't be found ({error}): put them back, or "
                f"take them out by `instdisc index {collection.folder.path} --reset`."
            ) from None
        number = places.number(part.source, source)
        names = Known.of(part.pictures)
        known.append(names)
        parts.append(np.full(len(there), number))
        rows.append(there if places.sources[number] is source else rows_by_id(places.sources[number], names.own))
        stamps.append(part.stamps)
    together = Known(
        *(
            pa.chunked_array([c for one in known for c in getattr(one, name).chunks], pa.large_binary())
            for name in ("ids", "own", "locations")
        )
    )
    unknown = [np.full((len(r), 2), -1) if s is None else s for s, r in zip(stamps, rows, strict=True)]
    return together, np.concatenate(parts), np.concatenate(rows), np.concatenate(unknown)


class _Came:
    """The pictures of all parts that the collection does not have: part, rows there, and ids that no other has."""

    def __init__(self, known: Known, part: np.ndarray, places: _Places, unreadable: frozenset[bytes]) -> None:
        self._known = known
        numbers, rows, own, where = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], list[bytes](), list[bytes]()
        there = frozenset(known.locations.to_pylist())
        for number, source in enumerate(places.sources):
            mine = known.own.filter(pa.array(part == number))
            if places.described[number]["limit"] is not None and len(mine):
                continue  # of a part that a limit cut, nobody knows which are new
            found = new_rows(source, mine)
            table = source.fetch_table().take(pa.array(found))
            names, locations = (pc.cast(table[one], pa.large_binary()).to_pylist() for one in ("id", "location"))
            seen = there | frozenset(where)
            new = [
                position
                for position, location in enumerate(locations)
                if location not in seen
                and (not unreadable & {location, names[position]} or _readable(source, int(found[position])))
            ]
            numbers.append(np.full(len(new), number))
            rows.append(found[new])
            own += [names[position] for position in new]
            where += [locations[position] for position in new]
        self.part, self.rows, self._own, self._where = np.concatenate(numbers), np.concatenate(rows), own, where
        self._sources = places.sources

    def names(self, kept: np.ndarray) -> Known:
        """Of the kept pictures and these; where an id is taken, the source's name stands in front of it."""
        taken, ids = self._known.ids.combine_chunks(), list[bytes]()
        own = pa.array(self._own, pa.large_binary())
        for number in np.unique(self.part).tolist():  # ascending, as they stand
            found, _ = distinct_ids(own.filter(pa.array(self.part == number)), taken, self._sources[number].name)
            taken = pa.concat_arrays([taken, found])
            ids += found.to_pylist()
        before = self._known.take(kept)
        after = (pa.array(names, pa.large_binary()) for names in (ids, self._own, self._where))
        columns = zip((before.ids, before.own, before.locations), after, strict=True)
        return Known(*(pa.chunked_array([*one.chunks, new], pa.large_binary()) for one, new in columns))


def _readable(source: Source, row: int) -> bool:
    """Whether a picture that could not be read before can be now."""
    try:
        decode(source.read(row))
    except UnreadableError:
        return False
    return True


def _name(sources: list[Source]) -> str:
    return sources[0].name if len(sources) == 1 else f"{sources[0].name} and {len(sources) - 1} more"


def _moved(known: Known, source: Gathered, kept: np.ndarray) -> dict[str, str]:
    before = known.take(kept).locations.to_pylist()
    now = source.locations(0, len(kept))
    return {os.fsdecode(a): os.fsdecode(b) for a, b in zip(before, now, strict=True) if a != b}
