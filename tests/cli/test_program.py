"""The command as a program: its status, its last words, and an end that a thread of torch can't turn into an abort."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A thread that comes back from torch's C++ again and again, also while the interpreter ends.
BUSY = """
import atexit, sys, threading, torch
from instdisc.cli import program

def work():
    while True:
        torch.ones(200, 200) @ torch.ones(200, 200)

def main():
    threading.Thread(target=work, daemon=True).start()
    atexit.register(print, "called at the end")
    print("the last words", end="")
    print("and these", file=sys.stderr, end="")
    sys.exit(STATUS)

program.main = main
program.run()
"""


@pytest.mark.parametrize(("status", "expected"), [("3", 3), ("None", 0), ("0", 0)])
def test_a_busy_thread_of_torch_does_not_abort_the_end(status: str, expected: int) -> None:
    done = subprocess.run([sys.executable, "-c", BUSY.replace("STATUS", status)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (expected, "the last wordscalled at the end\n", "and these")


def test_a_fault_keeps_its_traceback() -> None:
    program = "import torch\nfrom instdisc.cli import program\nprogram.main = lambda: 1 / 0\nprogram.run()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_a_refusal_is_one_sentence_and_status_1() -> None:
    done = subprocess.run([sys.executable, "-m", "instdisc", "search", "no/run", "x"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("instdisc: ") and done.stderr.count("\n") == 1
