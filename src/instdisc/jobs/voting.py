"""How the neighbours vote in an evaluation: how many, and with which temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instdisc import ranks
from instdisc.data.sources.source import Source
from instdisc.errors import InputError
from instdisc.evaluation.knn import KNN
from instdisc.jobs.vectors import Vectors

NEIGHBOURS = 200


def temperature_of(temperature: float | str, facts: Mapping[str, Any]) -> float:
    """The temperature of the votes, a number; "run": that of the run with this config.json. InputError for others."""
    if temperature == "run":
        return float(facts["settings"]["temperature"])
    try:
        return float(temperature)
    except ValueError:
        raise InputError(f'The temperature is a number or "run", not "{temperature}".') from None


def check_votes(neighbours: int | None, temperature: float, training: Source, *, leave_one_out: bool) -> None:
    """Refuse an invalid k or temperature before everything is embedded, which can take hours."""
    KNN(NEIGHBOURS if neighbours is None else neighbours, temperature)
    if neighbours is not None and training.labels is not None:
        most = int((training.labels >= 0).sum()) - leave_one_out
        if neighbours > most:
            raise InputError(
                f"{neighbours} neighbours were asked for, but a picture has {most} labelled others: lower k."
            )


def neighbours_of(asked: int | None, train: Vectors, *, leave_one_out: bool) -> int:
    """k: what was asked for (kNN refuses what can't be), or 200, or all the labelled pictures there are."""
    if asked is not None:
        return asked
    assert train.labels is not None
    labelled = everywhere(int((train.labels >= 0).sum()))
    return max(1, min(NEIGHBOURS, labelled - leave_one_out))


def everywhere(count: int) -> int:
    """The sum over ranks."""
    return sum(ranks.sizes(count))
