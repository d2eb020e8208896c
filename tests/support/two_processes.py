"""Two processes as torchrun starts them, and ports that nobody takes meanwhile."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Sequence

_SECONDS = 500


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens.

    Linux takes ports of connections from 32768 on: one of these may be another test's by the time it is listened on.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            try:
                tried.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"a hundred ports of {host} are in use, or it has none")


def two_processes(words: Sequence[str]) -> list[str]:
    """What each rank of two that run these words says. Raises AssertionError once one fails; the other is ended."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            words,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + _SECONDS
    try:
        while any(one.poll() is None for one in both):
            failed = [one.returncode for one in both if one.poll()]
            assert not failed, f"a rank ended with {failed[0]}"
            assert time.monotonic() < deadline, f"no end after {_SECONDS} s"
            time.sleep(0.05)
        said = [one.communicate()[0] for one in both]
        assert [one.returncode for one in both] == [0, 0], said
        return said
    finally:
        for one in both:
            if one.poll() is None:
                one.kill()
                one.communicate()
