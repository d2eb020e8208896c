"""Memory shared with children: what they write is seen here, and no block is handed out twice while it is looked at."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from instdisc.data.loading.buffers import Mapped, Shared

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows hands no open file on to a child")


def test_what_a_child_writes_is_seen() -> None:
    shared = Shared()
    block = shared.block(1000)
    program = (
        "import sys; from instdisc.data.loading.buffers import Mapped\n"
        "handle, offset, length = map(int, sys.argv[1:])\n"
        "Mapped(handle).block(offset, length)[:1000] = [n % 251 for n in range(1000)]"
    )
    numbers = map(str, (shared.handle, block.offset, block.length))
    subprocess.run([sys.executable, "-c", program, *numbers], pass_fds=[shared.handle], check=True)
    np.testing.assert_array_equal(block.content, np.arange(1000) % 251)


def test_a_block_is_used_again_only_when_nobody_looks_at_it() -> None:
    """Through a view, and through a tensor made of it."""
    shared = Shared()
    first, second = shared.block(10), shared.block(20)
    offset, other = first.offset, second.offset
    assert offset != other
    kept = torch.from_numpy(first.content[2:5])
    del first
    third = shared.block(30)
    assert third.offset not in (offset, other)
    kept[:] = 7
    assert (Mapped(shared.handle).block(offset, third.length)[2:5] == 7).all()
    del kept
    assert shared.block(10).offset == offset


def test_closing_leaves_what_is_looked_at() -> None:
    shared = Shared()
    block = shared.block(10)
    block.content[:] = 3
    shared.close()
    assert (block.content == 3).all()
