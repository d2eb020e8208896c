"""Each attack for a second (tests/support/attacks.py): no server error, nothing leaks, others are served.

What takes longer, with more pictures and all attacks, is stress/hostile.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import attacked, plant
from serving import COUNT, Client, made_collection, served

TOKEN = "a-token-that-nobody-guesses"
SOURCE = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pictures, run = made_collection(tmp_path_factory.mktemp("attacks") / "collection")
    plant(pictures)
    return pictures, run


@pytest.fixture(scope="module")
def client(trained: tuple[Path, Path]) -> Iterator[Client]:
    with served(trained[1]) as client:
        yield client


@pytest.mark.fault("path traversal by file name")
@pytest.mark.parametrize(
    "attack", ["strangers", "paths", "bodies", "heads", "half-closed", "slow-bodies", "comparisons"]
)
def test_attacks_break_nothing_and_find_nothing(client: Client, trained: tuple[Path, Path], attack: str) -> None:
    found = attacked(attack, client.port, 1.0, SOURCE, str(trained[0].parent))
    assert found["tried"] > 3 and found["leaks"] == 0, found
    assert not [status for status in found["answers"] if status.startswith("5") and status != "503"], found
    assert client.json("/api/pictures")["total"] == COUNT
    assert client.json("/api/labels")["classes"] == []


@pytest.mark.fault("server bound to all interfaces")
def test_no_token_but_the_right_one_lets_anybody_in(trained: tuple[Path, Path]) -> None:
    with served(trained[1], token=TOKEN) as client:
        found = attacked("tokens", client.port, 1.5, SOURCE)
        assert found["tried"] > 20 and found["leaks"] == 0, found
        assert set(found["answers"]) <= {"4xx", "none"}, found
        assert client.send("GET", "/api/collection", authorization=f"Bearer {TOKEN}")[0] == 200
