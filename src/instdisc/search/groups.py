"""Groups of near-duplicates by complete linkage: in a group every two pictures are at least as alike as was asked.

    groups = linked(similar_pairs(own, 0.95))

Single linkage chains: a like b, b like c, and a and z end in one group. Complete linkage can't, and each group
shows its least similar pair.
"""

from __future__ import annotations

from dataclasses import dataclass

from instdisc.search.pairs import Pairs


@dataclass(frozen=True)
class Group:
    """members: ascending positions. worst: the two members that are least alike; score: their cosine."""

    members: tuple[int, ...]
    worst: tuple[int, int]
    score: float


def linked(pairs: Pairs) -> list[Group]:
    """The complete-linkage clusters of two and more, cut at the lowest score that `pairs` goes down to.

    Agglomerative clustering merges the two clusters whose least similar members are most alike. With the pairs in order
    of their score that is the moment at which all pairs between two clusters have been seen, so that no matrix is
    needed. Most members first; then by the first member.
    """
    cluster: dict[int, int] = {}  # picture -> the cluster that it is in, called by one of its members
    members: dict[int, list[int]] = {}
    seen: dict[int, dict[int, int]] = {}  # cluster -> cluster -> pairs between them so far
    worst: dict[int, tuple[int, int, float]] = {}
    for first, second, score in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.scores.tolist(), strict=True):
        for one in (first, second):
            if one not in cluster:
                cluster[one], members[one], seen[one] = one, [one], {}
        a, b = cluster[first], cluster[second]
        if a == b:
            continue
        count = seen[a].get(b, 0) + 1
        if count < len(members[a]) * len(members[b]):
            seen[a][b] = seen[b][a] = count
            continue
        if len(members[a]) + len(seen[a]) < len(members[b]) + len(seen[b]):
            a, b = b, a
        for one in members[b]:
            cluster[one] = a
        members[a] += members.pop(b)
        for other, count in seen.pop(b).items():
            del seen[other][b]
            if other != a:
                seen[a][other] = seen[other][a] = seen[a].get(other, 0) + count
        worst.pop(b, None)
        worst[a] = (first, second, score)
    found = [Group(tuple(sorted(members[name])), *_pair(worst[name])) for name in worst]
    return sorted(found, key=lambda group: (-len(group.members), group.members))


def _pair(worst: tuple[int, int, float]) -> tuple[tuple[int, int], float]:
    return worst[:2], worst[2]
