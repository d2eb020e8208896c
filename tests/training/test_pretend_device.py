"""Code for a GPU without a GPU: on a pretend device nothing is mixed with the CPU, and the host hardly waits."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

SUPPORT = Path(__file__).parents[1] / "support"

# What is wrong, and the wait that it is counted as (none: it is right, or refused).
ITSELF = """
import json, os, sys
import torch
from pretend_device import BEGUN, DEVICE, Far, Pretend, counted
near, said = torch.arange(6.0), {}
with Pretend():
    far, index, numbers = near.to(DEVICE, non_blocking=True), torch.tensor([1, 0]), near.long().to(DEVICE)
    for name, act in {
        "item": lambda: far[0].item(), "tolist": lambda: far.tolist(), "bool": lambda: bool(far[0] > 1),
        "int": lambda: int(far[2]), "nonzero": lambda: far.nonzero(), "mask": lambda: far[far > 2],
        "set by mask": lambda: far.clone().__setitem__(far > 2, 0.0), "unique": lambda: numbers.unique(),
        "bincount": lambda: numbers.bincount(), "equal": lambda: torch.equal(far, far), "to the CPU": lambda: far.cpu(),
        "from the CPU": lambda: near.to(DEVICE), "into it": lambda: far.clone().copy_(near),
        "a constant": lambda: torch.tensor([1.0, 2.0], device=DEVICE), "CPU index": lambda: far[index],
        "begun": lambda: far.to("cpu", non_blocking=True), "sent": lambda: near.to(DEVICE, non_blocking=True),
        "work": lambda: (torch.zeros(6, device=DEVICE) + far).sort().values.softmax(0) * 2,
        "a number beside it": lambda: far * torch.tensor(2.0), "sum of two": lambda: far + near,
        "index_select": lambda: far.index_select(0, index), "index_put": lambda: far.clone().__setitem__(numbers, near),
        "numpy": lambda: far.numpy(),
    }.items():
        with counted() as found:
            try:
                answer = act()
                kind = "far" if isinstance(answer, Far) else "near"
            except (RuntimeError, TypeError) as error:
                kind = "refused"
        said[name] = [kind, sum(found.values()), [what for what, _ in found] == [BEGUN]]
    weight = torch.ones(3, 6, requires_grad=True, device=DEVICE)
    (weight @ far).square().sum().backward()
    said["gradient"] = weight.grad.inner.tolist()
print(json.dumps(said), flush=True)
os._exit(0)  # as instdisc/cli/program.py: the thread of autograd may abort an end of Python's own
"""


def python(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=500, cwd=SUPPORT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def found(*scenarios: str) -> dict[str, Any]:
    """What on_pretend_device.py tells of these scenarios."""
    out = Path(mkdtemp()) / "found.json"
    python("on_pretend_device.py", str(out), *scenarios)
    told = json.loads(out.read_text())
    for name in scenarios:
        assert "error" not in told[name], told[name]["error"]
    return told


def test_the_pretend_device_counts_waits_and_refuses_mixtures() -> None:
    said = json.loads(python("-c", ITSELF).splitlines()[-1])
    for name in ("item", "tolist", "bool", "int", "nonzero", "mask", "unique", "bincount", "equal"):
        assert said[name][1:] == [1, False], name
    for name in ("to the CPU", "from the CPU", "into it", "a constant", "CPU index"):
        assert said[name][1:] == [1, False], name
    assert said["begun"] == ["near", 1, True]
    assert said["set by mask"][1:] == [0, False], "one number is filled in, and no place is looked for"
    for name in ("sent", "work", "a number beside it"):
        assert said[name] == ["far", 0, False], name
    for name in ("sum of two", "index_select", "index_put", "numpy"):
        assert said[name][0] == "refused", name
    # d/dw of sum((w x)^2) with w = 1, x = 0..5: 2 * 15 * x
    assert said["gradient"] == [[30.0 * x for x in range(6)]] * 3


def close(far: list[float], near: list[float], most: float) -> bool:
    return len(far) == len(near) and all(abs(a - b) <= most * abs(b) for a, b in zip(far, near, strict=True))


@pytest.mark.slow
def test_no_step_of_any_recipe_makes_the_host_wait() -> None:
    """From the third step on: constants stand on the device then. The losses are the CPU's."""
    for name, one in found("trainings")["trainings"].items():
        # In half precision, as autocast rounds; growing views are drawn anew at another size in the middle.
        bfloat16 = "bfloat16" in name
        assert close(one["far"], one["near"], 0.1 if bfloat16 else 2e-3), (name, one)
        assert one["far"][0] == pytest.approx(one["near"][0], rel=2e-2 if bfloat16 else 1e-4), name
        assert one["waits_on_cpu"] == 0
        later = one["waits"][2:]
        assert len(later) >= 4 and max(later) == 0, (name, one["waits"])


@pytest.mark.slow
def test_losses_come_together_once_a_line_and_are_those_of_every_step() -> None:
    told = found("lines")["lines"]
    assert [line[0] for line in told["far"]] == [line[0] for line in told["near"]] == list(range(2, 49, 2))
    for place in (1, 2, 3):
        far, near = ([line[place] for line in lines] for lines in (told["far"], told["near"]))
        assert close(far[:6], near[:6], 1e-3), (far, near)
    assert max(told["begun"]) == 1 and sum(told["begun"]) <= 24


@pytest.mark.fault("NaN loss goes on for hours")
def test_a_loss_that_is_no_number_is_found_within_a_line_and_never_saved() -> None:
    told = found("divergence", "parts")["divergence"]
    for one in told.values():
        assert one["said"].startswith(
            "The training diverged at step 5: a loss or a weight is no finite number any more"
        )
        assert one["diagnosis"] == 5 and one["saved"] == [] and one["bank_is_finite"]
    assert told["late"]["at_step"] <= 5 + 2, "a line each second step"
    assert told["saved at once"]["at_step"] == 5


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit() -> None:
    told = found("resumed")["resumed"]
    assert told["stopped_at"] == 3 and told["differ"] == []
    assert told["lines"][0] == told["lines"][1] and len(told["lines"][0]) == 8


def test_augmentation_embedding_and_knn_are_the_cpus_and_wait_once_a_block_at_most() -> None:
    told = found("divergence", "parts")["parts"]
    for name, one in told.items():
        if name.startswith("augmentation"):
            assert one["waits"] == 0 and one["off"] < 2e-5, name
        elif name.startswith("kNN"):
            # two batches of queries, each over five blocks of rows
            assert one["equal"] and one["leave_one_out"] and one["waits"] <= 10, (name, one)
        elif name.startswith(("embedding", "levels")):
            assert one["off"] < 1e-5 and one["waits_a_batch"] <= 1, name
    assert told["top k"]["rows_equal"] and told["top k"]["off"] < 1e-5
    assert told["top k"]["of_nan"].startswith("A vector holds NaN or infinity")


@pytest.mark.slow
def test_every_command_with_a_device_runs_on_it() -> None:
    told = found("commands")["commands"]
    assert set(told["ended"].values()) == {0}, told["ended"]
    assert told["device"].startswith("pretend")


@pytest.mark.slow
def test_the_script_for_a_borrowed_gpu_runs_on_it() -> None:
    told = found("experiment")["experiment"]
    assert {one["state"] for one in told.values()} == {"done"}
    wrong = {name: one["error"] for name, one in told["equality"]["checks"].items() if not one["within"]}
    assert not wrong
