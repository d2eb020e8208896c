"""Between the host and a device: on a CPU nothing happens; on the pretend device what is sent and fetched is the same.

That the host does not wait is in test_pretend_device.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from instdisc.transfer import Arriving, constant, fetch, send

CPU = torch.device("cpu")

THERE_AND_BACK = """
import json
import torch
from pretend_device import BEGUN, DEVICE, Far, Pretend, counted
from instdisc.transfer import Arriving, constant, fetch, send
with Pretend():
    values = torch.arange(5.0)
    with counted() as sending:
        far = send(values, DEVICE)
    with counted() as fetching:
        back = fetch(far, far + 1, far * 2)
    with counted() as making:
        constants = [constant(((1, 2), (3, 4)), DEVICE) for _ in range(9)]
    print(json.dumps({
        "kinds": [isinstance(one, Far) for one in (far, send(far, DEVICE), constants[0], *back)],
        "values": [one.tolist() for one in back], "constant": constants[0].cpu().tolist(),
        "arrived": Arriving(far).result().tolist(), "same": all(one is constants[0] for one in constants),
        "waits": [sum(times for (what, _), times in c.items() if what != BEGUN) for c in (sending, fetching, making)],
        "other": constant(((1, 2), (3, 4)), DEVICE, torch.float32).dtype == torch.float32,
    }))
"""


def test_on_a_cpu_tensors_stay_what_they_are() -> None:
    values = torch.arange(4.0)
    assert send(values, CPU) is values
    assert [one is values for one in fetch(values, values)] == [True, True] and fetch() == []
    assert Arriving(values).result() is values
    first, second = constant((1.0, 2.0), CPU), constant((1.0, 2.0), CPU)
    assert torch.equal(first, torch.tensor([1.0, 2.0])) and first is not second, "a tracer must never find a kept one"


def test_what_is_sent_and_fetched_is_the_same() -> None:
    command = [sys.executable, "-c", THERE_AND_BACK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parent / "support")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kinds"] == [True, True, True, False, False, False]
    assert told["values"] == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 2, 4, 6, 8]] and told["arrived"] == [0, 1, 2, 3, 4]
    assert told["constant"] == [[1, 2], [3, 4]] and told["same"] and told["other"]
    assert told["waits"] == [0, 1, 1]
