"""Each life of the tool survives SIGKILL at any moment, and what the machine refuses it (tests/support/killing.py).

python stress/kill.py          # a hundred times each
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from killing import TRIALS, killing
from lives import LIVES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it forks, and reads /proc"),
]
TIMES = 10


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., dict[str, Any]]]:
    """The process that tries them, one for all tests."""
    with killing() as asked:
        yield asked


@pytest.mark.parametrize("life", LIVES)
def test_nothing_is_lost_by_a_kill(ask: Callable[..., dict[str, Any]], life: str) -> None:
    counts = ask(life=life, trial="kill", times=TIMES, seed=0)
    assert not counts["faults"], counts["faults"][0]
    assert counts["died"] >= TIMES
    assert counts["survived"] == counts["tried"]


# Where memory ends depends on the machine: stress/kill.py tries that, and Ctrl-C.
@pytest.mark.parametrize("trial", [trial for trial in TRIALS if trial not in ("kill", "interrupt", "memory")])
@pytest.mark.parametrize("life", ["labels", "training"])
def test_a_hardship_gives_one_sentence_and_loses_nothing(
    ask: Callable[..., dict[str, Any]], life: str, trial: str
) -> None:
    if trial == "read-only" and os.geteuid() == 0 and not ask(life="scan", trial="kill", times=1, seed=1)["mounted"]:
        pytest.skip("root without the right to mount: nothing is read-only for it")
    counts = ask(life=life, trial=trial, times=2, seed=0)
    assert not counts["faults"], counts["faults"][0]
    assert counts["survived"] == counts["tried"] > 0
