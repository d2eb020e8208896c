"""Background threads: their answers and errors reach whoever waits, and they neither hold up nor break the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from instdisc.data.background import Background


def test_answers_errors_and_cancelling() -> None:
    background, gate = Background(1), threading.Event()
    assert background.submit(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        background.submit(divmod, 7, 0).result()
    first = background.submit(gate.wait, 10)
    second = background.submit(divmod, 7, 2)
    time.sleep(0.1)
    background.close()
    gate.set()
    assert first.result() is True
    with pytest.raises(CancelledError):
        second.result()


def ended(job: str) -> subprocess.CompletedProcess[str]:
    program = f"import time\nfrom instdisc.data.background import Background\nb = Background(2)\n{job}\nprint('end')"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500)


def test_a_busy_thread_may_end_first() -> None:
    done = ended("b.submit(lambda: (time.sleep(0.4), print('job', flush=True)))\ntime.sleep(0.1)")
    assert (done.returncode, done.stdout.split()) == (0, ["end", "job"]), done.stderr


def test_a_stuck_thread_does_not_hold_up_the_end() -> None:
    done = ended("b.submit(time.sleep, 3_000)\ntime.sleep(0.1)")  # it is given 300
    assert done.returncode == 0
