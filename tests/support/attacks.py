"""Attacks on a server, each for some seconds and in a process of its own, since it is as busy as the server.

    python tests/support/attacks.py slow-heads 8765 --seconds 10 --source 127.0.0.2  # {"tried": 1200, "answers": ...}

Used by tests/stress/test_serve_attacks.py and stress/hostile.py. What is asked stands in attack_requests.py,
how much and how slowly in attack_floods.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attack_floods as floods
import attack_requests as requests
from attacked import SECRET, Target

ATTACKS: dict[str, Callable[[Target], None]] = {
    act.__name__.replace("_", "-"): act
    for act in (
        *(requests.strangers, requests.paths, requests.bodies, requests.heads, requests.pipelined),
        *(requests.half_closed, requests.tokens, floods.slow_heads, floods.silent, floods.slow_bodies),
        *(floods.slow_readers, floods.queries, floods.comparisons, floods.uploads, floods.hostile_uploads),
    )
}


def attacked(attack: str, port: int, seconds: float, source: str = "127.0.0.2", folder: str = "") -> dict[str, Any]:
    """What `python tests/support/attacks.py` prints."""
    words = [sys.executable, __file__, attack, str(port), "--seconds", str(seconds), "--source", source]
    done = subprocess.run([*words, "--folder", folder], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def plant(pictures: Path) -> None:
    """Secrets beside and above a folder of pictures, in it, and behind links in it; one link is where a picture was."""
    beside = pictures.parent / "beside"
    beside.mkdir()
    for place in (pictures, pictures.parent, next(pictures.glob("*/")), beside):
        (place / "secret.txt").write_text(SECRET)
    (pictures / "link.txt").symlink_to(beside / "secret.txt")
    (pictures / "link").symlink_to(beside, target_is_directory=True)
    second = sorted(pictures.glob("*/*.*g"))[1]  # by the first and some others a changed collection is known
    second.unlink()
    second.symlink_to(beside / "secret.txt")


def main() -> None:
    """One attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", choices=list(ATTACKS))
    parser.add_argument("port", type=int)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--source", default="127.0.0.1", help="the address to come from")
    parser.add_argument("--folder", default="", help="of the secrets, to ask for by their whole path")
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096) if hard > 0 else 4_096, hard))
    target = Target(given.port, given.seconds, given.source, given.folder)
    ATTACKS[given.attack](target)
    print(json.dumps({"tried": target.tried, "answers": target.answers, "leaks": target.leaks, "first": target.first}))


if __name__ == "__main__":
    main()
