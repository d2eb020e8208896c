"""Between the host and a device: on a CPU nothing happens; on the pretend device what is sent and fetched is the same.

That the host does not wait is in test_pretend_device.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from instdisc import transfer
from instdisc.transfer import Arriving, Upload, constant, fetch, send

CPU = torch.device("cpu")

THERE_AND_BACK = """
import json
import torch
from pretend_device import BEGUN, DEVICE, Far, Pretend, counted
from instdisc.transfer import Arriving, Upload, constant, fetch, send
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
        "arrived": Arriving(far).result().tolist(),
        "uploaded": Upload(values, DEVICE).result().cpu().tolist(),
        "same": all(one is constants[0] for one in constants),
        "waits": [sum(times for (what, _), times in c.items() if what != BEGUN) for c in (sending, fetching, making)],
        "other": constant(((1, 2), (3, 4)), DEVICE, torch.float32).dtype == torch.float32,
    }))
"""


def test_on_a_cpu_tensors_stay_what_they_are() -> None:
    values = torch.arange(4.0)
    assert send(values, CPU) is values
    assert [one is values for one in fetch(values, values)] == [True, True] and fetch() == []
    assert Arriving(values).result() is values and Upload(values, CPU).result() is values
    first, second = constant((1.0, 2.0), CPU), constant((1.0, 2.0), CPU)
    assert torch.equal(first, torch.tensor([1.0, 2.0])) and first is not second, "a tracer must never find a kept one"


def test_what_is_sent_and_fetched_is_the_same() -> None:
    command = [sys.executable, "-c", THERE_AND_BACK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parent / "support")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kinds"] == [True, True, True, False, False, False]
    assert told["values"] == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 2, 4, 6, 8]] and told["arrived"] == [0, 1, 2, 3, 4]
    assert told["uploaded"] == [0, 1, 2, 3, 4]
    assert told["constant"] == [[1, 2], [3, 4]] and told["same"] and told["other"]
    assert told["waits"] == [0, 1, 1]


class Recorded(torch.Tensor):
    """A tensor that writes down what is asked of it, and on which stream; stands for a stream too."""

    called_so: str
    said: list[str]
    on = "no stream"

    @classmethod
    def called(cls, name: str, said: list[str]) -> Recorded:
        made = torch.zeros(1).as_subclass(cls)
        made.called_so, made.said = name, said
        return made

    def to(self, *_: Any, non_blocking: bool, **__: Any) -> Recorded:  # type: ignore[override]
        self.said.append(f"copied on {Recorded.on}" + ("" if non_blocking else ", waiting"))
        return Recorded.called("the copy", self.said)

    def wait_stream(self, other: Recorded) -> None:
        self.said.append(f"{self.called_so} waits for {other.called_so}")

    def record_stream(self, stream: Recorded) -> None:  # type: ignore[override]
        self.said.append(f"{self.called_so} is read on {stream.called_so}")


def test_an_upload_on_a_stream_of_its_own_is_waited_for_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    values, side, current = (Recorded.called(name, said) for name in ("values", "the upload", "what computes"))

    @contextmanager
    def inside(stream: Recorded) -> Iterator[None]:
        monkeypatch.setattr(Recorded, "on", stream.called_so)
        yield
        monkeypatch.setattr(Recorded, "on", "what computes")

    monkeypatch.setattr(transfer, "_upload_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    upload = Upload(values, torch.device("cuda:0"))
    assert said == ["copied on the upload"]
    upload.result()
    assert said[1:] == ["what computes waits for the upload", "the copy is read on what computes"]
