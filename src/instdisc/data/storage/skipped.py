"""What a scan skipped, counted by its reason in one location: `info`, `train` and quarantine.csv tell it from here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from instdisc.data.storage.kinds import KINDS, reason_of, sentence_of
from instdisc.data.storage.urls import without_secrets
from instdisc.errors import visible

MOST_NAMED = 1000  # locations of one kind that are kept; the others are counted
_EXAMPLES = {"ours", "system", "software", "hidden", "unopened", "cut", "other", "beside", "label"}
BEGINNING = "skipped: "  # of a reason in the list, which tells such lines from pictures that can't be read


class Skipped:
    """Places that are no rows of a source, by kind (see `kinds.KINDS`).

    counts: kind -> how many. paired: kind -> how many of them stand beside a picture of the same name.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.paired: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, kind: str, locations: Iterable[str], count: int) -> None:
        """`count` more of a kind; of their locations, paths or URLs, the first are kept."""
        if not count:
            return
        self.counts[kind] += count
        kept = self._places.setdefault(kind, [])
        for location in locations:
            if len(kept) >= MOST_NAMED:
                break
            kept.append(without_secrets(location))

    def merge(self, other: Skipped) -> None:
        """All that the other holds as well."""
        for kind, count in other.counts.items():
            self.add(kind, other._places.get(kind, ()), count)
        self.paired.update(other.paired)

    def notes(self, *, examples: bool = True) -> tuple[str, ...]:
        """A sentence for each kind, for a person; with the names of some where the kind alone does not say enough."""
        return tuple(f"{self._sentence(kind, examples)}." for kind in self._kinds())

    def _kinds(self) -> list[str]:
        known = [kind for kind in KINDS if kind in self.counts]
        return known + sorted(self.counts.keys() - KINDS.keys())

    def _sentence(self, kind: str, examples: bool) -> str:
        words = sentence_of(kind, self.counts[kind])
        if examples and kind in _EXAMPLES:
            names = list(
                dict.fromkeys(os.path.basename(location.rstrip("/")) for location in self._places.get(kind, ()))
            )
            shown = visible(", ".join(names[:3]), keep="").encode(errors="backslashreplace").decode()
            return f"{words} ({shown}{', ...' if len(names) > 3 else ''})" if names else words
        if paired := self.paired[kind]:
            return f"{words} ({paired:,} beside a picture of the same name, which is taken)"
        return words

    def lines(self, source: str) -> Iterator[tuple[str, str, str]]:
        """(id, path, reason) for the list of what was not read: a line a location, and one for those without a name."""
        for kind in self._kinds():
            locations = self._places.get(kind, [])
            for location in locations:
                yield location, location, BEGINNING + reason_of(kind)
            if rest := self.counts[kind] - len(locations):
                yield "", source, f"{BEGINNING}{'another ' if rest == 1 else ''}{sentence_of(kind, rest)}"

    def to_facts(self, most: int = MOST_NAMED) -> dict[str, Any]:
        """What an index keeps of it, with at most so many locations a kind."""
        locations = {kind: found[:most] for kind, found in self._places.items()}
        return {"counts": dict(self.counts), "paired": dict(self.paired), "places": locations}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any] | None) -> Skipped:
        """What `to_facts` wrote."""
        found = cls()
        if facts:
            found.counts.update(facts["counts"])
            found.paired.update(facts["paired"])
            found._places = {kind: list(locations) for kind, locations in facts["places"].items()}
        return found
