"""Which pictures are copies, by evidence: the bytes of their files, or their pixels laid over each other.

    finder = Finder(stored, contents)
    proven = finder.within(proposed)                  # pairs; vectors and signatures propose, pixels decide
    finder.groups(proven, best_first)                 # the best of each, and the copies that are proven against it

Two pictures are the *same file* (equal bytes), the *same picture* (resized, re-encoded, cropped, mirrored, turned,
recoloured a little), or neither, whatever their vectors say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from instdisc.neighbours import Nearest, shared
from instdisc.progress import Bar
from instdisc.search.alignment import (
    Aligned,
    agreement,
    colour_change,
    guessed,
    patches,
    refined,
)
from instdisc.search.cells import MANY, Cells, made
from instdisc.search.closer import Larger, Limits, closer_look
from instdisc.search.fingerprints import SIDE, Fingerprints, Signatures
from instdisc.search.joins import Join
from instdisc.search.pairs import Vectors
from instdisc.shapes import Float, Int, Tensor

SAME_FILE, SAME_PICTURE = "same file", "same picture"
PROPOSED = 5  # nearest by their signatures, and as many by vectors, that are compared with each picture
_SMALLEST = 32  # pixels of the shorter side: smaller pictures are compared as they are, not cropped
_PAIRS, _TOGETHER, _PASSES, _CHUNK, _AT_ONCE = 512, 64, 4, 4_096, 16_384  # pairs at a quick and at a last look
_KEYED = 1 << 20  # pairs that are numbered at once
_LIMITS = Limits()
_FIRST_LOOK = 0.85
_LOOKS = ((16, 4, 0.8), (32, 3, 0.84), (64, 2, 0.88))  # pixels of a side, steps, least correlation
_RECOLOURED, _CROPPED = 3.0, 0.015  # grey levels, shares of a side: what is worth a word


Contents = Callable[[int], Any]  # what a source gives for the picture at a position; UnreadableError where it can't


@dataclass(frozen=True)
class Proof:
    """Why two pictures are copies. kind: same file or same picture; changes: as resized, cropped, mirrored.

    agreement: of their detail once they are laid over each other; 1 of the same file.
    """

    kind: str
    changes: tuple[str, ...]
    agreement: float

    @property
    def certainty(self) -> float:
        """To order proofs by: equal bytes are surer than any pixels."""
        return self.agreement + (self.kind == SAME_FILE)


@dataclass(frozen=True)
class Group:
    """best: the position of the picture to keep; copies: (position, proof against the best), the most certain first."""

    best: int
    copies: list[tuple[int, Proof]]


Proven = dict[tuple[int, int], Proof]  # (position, position) -> why; the lower position first, within one collection


class Finder:
    """Proofs among the pictures of a collection, or between it and others.

    contents(position): of the collection's own pictures, for a last look at more pixels; theirs: of the others.
    """

    def __init__(
        self,
        own: Fingerprints,
        contents: Contents,
        others: Fingerprints | None = None,
        theirs: Contents | None = None,
        *,
        limits: Limits = _LIMITS,
        show: bool = False,
    ) -> None:
        self._limits = limits
        self.own, self.others, self._show = own, own if others is None else others, show
        self._found: Proven = {}
        self._tried = np.zeros(0, np.int64)  # keys of pairs, ascending
        self._patches = _all_patches(own)
        self._their_patches = self._patches if others is None else _all_patches(self.others)
        self._larger = Larger(contents)
        self._their_larger = self._larger if theirs is None else Larger(theirs)

    def within(self, proposed: Int[np.ndarray, "pairs 2"] | None = None) -> Proven:
        """All proofs found within the collection, between one picture of each kind of file and the others of it too.

        proposed: pairs of positions that are compared beside those whose signatures are alike.
        """
        proven: Proven = {}
        first = _first_of_each(self.own.digests)
        positions = self.own.readable()
        for position in positions[first[positions] != positions].tolist():
            proven[int(first[position]), position] = Proof(SAME_FILE, (), 1.0)
        among = asked = positions[first[positions] == positions]
        keys = self._keys(np.zeros((0, 2), np.int64) if proposed is None else first[proposed])
        for _ in range(_PASSES):
            if len(among) < 2 or not len(asked):
                break
            nearest = self._alike(asked, among)
            near = self._keys(nearest)
            found = self._verified(np.union1d(keys, near))
            proven |= found
            known = np.sort(np.array([one * len(self.own) + other for one, other in found], np.int64))
            ends = np.sort(nearest, axis=2)
            same = np.isin(ends[:, :, 0] * len(self.own) + ends[:, :, 1], known)
            asked = asked[same.all(axis=1)]  # these may have more copies than were looked at
            copies = np.array([other for _, other in found], np.int64)
            among, asked = among[~np.isin(among, copies)], asked[~np.isin(asked, copies)]
            keys = keys[:0]
        return proven

    def across(self, proposed: Int[np.ndarray, "pairs 2"] | None = None) -> Proven:
        """(position here, position there) -> proof, for the others' pictures."""
        here, there = self.own.readable(), self.others.readable()
        proven: Proven = {}
        order = here[np.argsort(self.own.digests[here], kind="stable")]
        last = np.searchsorted(self.own.digests[order], self.others.digests[there], side="right") - 1
        for position, own in zip(there.tolist(), order[last].tolist() if len(order) else [], strict=len(order) > 0):
            if self.own.digests[own] == self.others.digests[position]:
                proven[own, position] = Proof(SAME_FILE, (), 1.0)
        if not len(here) or not len(there):
            return proven
        signatures = Signatures(self.own, self.others)
        nearest = Nearest(signatures.of(self.others, there), min(PROPOSED, len(here)))
        for start in range(0, len(here), _CHUNK):
            nearest.add(signatures.of(self.own, here[start : start + _CHUNK]), start)
        pairs = np.stack([here[nearest.indices.numpy()].ravel(), np.repeat(there, nearest.indices.shape[1])], axis=1)
        return self.verify(pairs if proposed is None else np.concatenate([proposed, pairs])) | proven

    def _alike(
        self, asked: Int[np.ndarray, " asked"], among: Int[np.ndarray, " among"]
    ) -> Int[np.ndarray, "asked k 2"]:
        """Each picture with those whose signatures are nearest. Of several processes the main one alone is here.

        asked: some of those `among` which the nearest are looked for, ascending.
        """
        own = torch.from_numpy(np.searchsorted(among, asked))
        signatures = Signatures(self.own).of(self.own, among)
        if len(among) > MANY:
            vectors, rows = Vectors.of(signatures), np.arange(len(among))
            join = Join(Cells(vectors, rows, made(vectors, rows, show=self._show)))
            nearest = join.neighbours_of(own.numpy(), PROPOSED, show=self._show)[1]
            return np.stack([np.broadcast_to(asked[:, None], nearest.shape), among[nearest]], axis=2)
        found = Nearest(signatures[own], min(PROPOSED, len(among) - 1), own, expected=len(among))
        with Bar(len(among), "Comparing thumbnails", "pictures", enabled=self._show) as bar:
            for start in range(0, len(among), _AT_ONCE):
                some = signatures[start : start + _AT_ONCE]
                found.add(some, start)
                bar.advance(len(some))
        nearest = found.indices.numpy()
        return np.stack([np.broadcast_to(asked[:, None], nearest.shape), among[nearest]], axis=2)

    def verify(self, pairs: Int[np.ndarray, "pairs 2"], *, last: bool = False) -> Proven:
        """The proofs of those of these pairs that are the same picture. last: nobody will ask for these again."""
        return self._verified(self._keys(pairs), last=last)

    def _keys(self, pairs: Int[np.ndarray, "... 2"]) -> Int[np.ndarray, " keys"]:
        """A number for each pair of readable pictures, ascending, each once."""
        parts = [np.zeros(0, np.int64)]
        flat = pairs.reshape(-1, 2)
        for start in range(0, len(flat), _KEYED):
            some = flat[start : start + _KEYED]
            if self.others is self.own:
                some = np.sort(some, axis=1)
                some = some[some[:, 0] != some[:, 1]]
            some = some[self.own.read[some[:, 0]] & self.others.read[some[:, 1]]]
            parts.append(some[:, 0] * len(self.others) + some[:, 1])
        return np.unique(np.concatenate(parts))

    def _verified(self, keys: Int[np.ndarray, " keys"], *, last: bool = False) -> Proven:
        """`verify` of the pairs with these keys."""
        at = np.searchsorted(self._tried, keys)
        todo = keys[np.append(self._tried, -1)[at] != keys]
        if not last:
            self._tried = np.union1d(self._tried, todo)
        with Bar(len(todo), "Comparing pixels", "pairs", enabled=self._show) as bar:
            for count, found in self._in_chunks(todo):
                self._found |= found
                bar.advance(count)
        if len(keys) > len(self._found):
            known = np.array([one * len(self.others) + other for one, other in self._found], np.int64)
            keys = np.sort(known[np.isin(known, keys)])
        asked = zip(*(axis.tolist() for axis in np.divmod(keys, max(len(self.others), 1))), strict=True)
        return {pair: self._found[pair] for pair in asked if pair in self._found}

    def _in_chunks(self, todo: Int[np.ndarray, " pairs"]) -> Iterator[tuple[int, Proven]]:
        """How many pairs were looked at, and the proofs among them; by several threads where there is enough."""

        def look(start: int) -> tuple[int, Proven]:
            some = np.stack(np.divmod(todo[start : start + _PAIRS], len(self.others)), axis=1)
            return len(some), self._same(some)

        starts, threads = range(0, len(todo), _PAIRS), torch.get_num_threads()
        return shared(look, starts, threads) if min(threads, len(starts) - 1) > 1 else map(look, starts)

    def _same(self, pairs: Int[np.ndarray, "pairs 2"]) -> Proven:
        """`verify` of few pairs: a quick look at all, and closer ones at those that pass."""
        aligned = guessed(self._patches[pairs[:, 0]], self._their_patches[pairs[:, 1]])
        shorter = self._shorter(pairs)
        found: Proven = {}
        for side in (8, 16, SIDE // 2, SIDE):
            next_one = {8: _SMALLEST // 2, 16: _SMALLEST, SIDE // 2: SIDE, SIDE: 1 << 40}[side]
            here = np.flatnonzero((shorter >= side) & (shorter < next_one) | (shorter < side) & (side == 8))
            found |= self._same_of_side(pairs[here], aligned.at(torch.from_numpy(here)), side)
        return found

    def _same_of_side(self, pairs: Int[np.ndarray, "pairs 2"], aligned: Aligned, side: int) -> Proven:
        """side: of the thumbnails that are compared, no larger than the pictures are."""
        positions = _flat(aligned.score >= _FIRST_LOOK)
        pairs, aligned = pairs[positions.numpy()], aligned.at(positions)
        for finer, steps, least in _LOOKS if side >= _SMALLEST else ():
            if finer <= side and len(pairs):
                aligned = refined(*self._grey(pairs), aligned, finer, steps)
                positions = _flat((aligned.score >= least) & self._limits.plausible(aligned))
                pairs, aligned = pairs[positions.numpy()], aligned.at(positions)
        if not len(pairs):
            return {}
        if side < _SMALLEST:
            aligned = _whole(aligned)
        score, detail = agreement(*self._grey(pairs), aligned, side)
        tint, change = colour_change(self.own.colour(pairs[:, 0]), self.others.colour(pairs[:, 1]), aligned)
        limits = self._limits
        least = limits.agreement if side >= _SMALLEST else limits.small
        passed = _flat((score >= least) & (detail >= limits.detail) & (tint <= limits.tint))
        found: Proven = {}
        for some in passed.split(_TOGETHER) if len(passed) else ():
            left, nearer, agreed = self._closer(pairs[some.numpy()], replace(aligned.at(some), score=score[some]))
            for number, position in enumerate(some[left].tolist()):
                one, other = pairs[position].tolist()
                changes = self._changes(one, other, nearer.at(torch.tensor([number])), float(change[position]))
                found[one, other] = Proof(SAME_PICTURE, changes, float(agreed[number]))
        return found

    def _grey(self, pairs: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.own.grey(pairs[:, 0]), self.others.grey(pairs[:, 1])

    def _shorter(self, pairs: Int[np.ndarray, "pairs 2"]) -> Int[np.ndarray, " pairs"]:
        """Pixels of the shorter side of the smaller picture."""
        return np.minimum(self.own.shorter[pairs[:, 0]], self.others.shorter[pairs[:, 1]])

    def _closer(
        self, pairs: Int[np.ndarray, "pairs 2"], aligned: Aligned
    ) -> tuple[Int[Tensor, " left"], Aligned, Float[Tensor, " left"]]:
        """`closer_look` at those that have more pixels than their thumbnails; the others were compared as they are."""
        shorter = torch.from_numpy(self._shorter(pairs))
        if int(shorter.max()) < _SMALLEST:
            return torch.arange(len(pairs)), aligned, aligned.score.clamp(max=1)
        first, second = self._larger(pairs[:, 0].tolist()), self._their_larger(pairs[:, 1].tolist())
        return closer_look(first, second, aligned, shorter, self._limits)

    def _changes(self, one: int, other: int, aligned: Aligned, change: float) -> tuple[str, ...]:
        first, second = self.own.records[one], self.others.records[other]
        turned = int(aligned.symmetry[0])
        window = aligned.window[0] - torch.tensor([0.0, 0.0, 1.0, 1.0])
        cropped = bool((window.abs() > _CROPPED).any())
        sizes = [{int(fact["width"]), int(fact["height"])} for fact in (first, second)]
        words = [
            ("mirrored", turned >= 4),
            ("turned", turned % 4 != 0),
            ("cropped", cropped),
            ("resized", not cropped and sizes[0] != sizes[1]),
            ("recoloured", change > _RECOLOURED and not cropped),
        ]
        return tuple(word for word, holds in words if holds) or ("re-encoded",)

    def groups(self, proven: Proven, best_first: Callable[[Sequence[int]], Sequence[int]]) -> list[Group]:
        """Each copy with the one that is kept in its place, against which it is proven. Most certain groups first.

        best_first: orders the pictures of a group by which to keep.
        """
        first = _first_of_each(self.own.digests)
        found = []
        for members in _components(proven):
            left = list(best_first(members))
            while len(left) > 1:
                best = left.pop(0)
                found_now = self._proofs(best, left, first)
                left = [position for position in left if position not in found_now]
                if found_now:
                    copies = sorted(found_now.items(), key=lambda one: (-one[1].certainty, one[0]))
                    found.append(Group(best, copies))
        return sorted(found, key=lambda group: (-group.copies[-1][1].certainty, group.best))

    def _proofs(self, best: int, others: Sequence[int], first: np.ndarray) -> dict[int, Proof]:
        """Of these pictures those that are proven to be copies of the best one."""
        pairs = np.sort([(first[best], first[position]) for position in others], axis=1)
        found = {pair: self._found[pair] for pair in map(tuple, pairs.tolist()) if pair in self._found}
        if missing := [pair for pair in pairs.tolist() if pair[0] != pair[1] and tuple(pair) not in found]:
            found |= self.verify(np.array(missing), last=True)
        answer = {}
        for position, (one, other) in zip(others, pairs.tolist(), strict=True):
            proof = Proof(SAME_FILE, (), 1.0) if one == other else found.get((one, other))
            if proof is not None:
                answer[position] = proof
        return answer


def _flat(holds: Tensor) -> Tensor:
    return holds.nonzero().squeeze(1)


def _whole(aligned: Aligned) -> Aligned:
    window = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(aligned.window), 4)
    return replace(aligned, window=window)


def _all_patches(stored: Fingerprints) -> Tensor:
    shape = patches(torch.zeros(1, SIDE, SIDE)).shape[1:]
    answer = torch.from_numpy(stored.scratch((len(stored), *shape), np.int8))
    for start in range(0, len(stored), _CHUNK):
        stop = min(start + _CHUNK, len(stored))
        answer[start:stop] = patches(stored.grey(np.arange(start, stop)))
    return answer


def _first_of_each(digests: np.ndarray) -> Int[np.ndarray, " pictures"]:
    """For each picture the first with the same digest."""
    if not len(digests):
        return np.zeros(0, np.int64)
    _, first, kind = np.unique(digests, return_index=True, return_inverse=True)
    return first[kind]


def _components(proven: Proven) -> list[list[int]]:
    """Places that are linked by proofs, ascending."""
    root: dict[int, int] = {}

    def find(position: int) -> int:
        while root.setdefault(position, position) != position:
            root[position] = root[root[position]]
            position = root[position]
        return position

    for one, other in proven:
        low, high = sorted((find(one), find(other)))
        root[high] = low
    together: dict[int, list[int]] = {}
    for position in sorted(root):
        together.setdefault(find(position), []).append(position)
    return list(together.values())
