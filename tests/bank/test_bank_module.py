"""The bank as a part of other loops: a module whose state is the whole bank, and the loops of examples/ beside ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reading import ROOT
from several_ranks import run_on_ranks
from torch import nn
from torch.nn.functional import normalize

from instdisc import IndexedDataset, MemoryBank

DTYPES = [torch.float32, torch.bfloat16, torch.int8]


def renewed(dtype: torch.dtype) -> MemoryBank:
    bank = MemoryBank(11, 6, dtype=dtype, seed=1)
    bank.update(torch.arange(4), normalize(torch.ones(4, 6), dim=1))
    return bank


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_gives_the_same_bank_inside_of_a_module(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.ModuleDict({"bank": renewed(dtype), "layer": nn.Linear(2, 2)})
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = nn.ModuleDict({"bank": MemoryBank(11, 6, dtype=dtype, seed=2), "layer": nn.Linear(2, 2)})
    assert not torch.equal(other["bank"].rows, model["bank"].rows)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    everyone = torch.arange(11)
    assert torch.equal(other["bank"].lookup(everyone), model["bank"].lookup(everyone))
    assert other["bank"].updates == 1
    assert not list(model["bank"].parameters()) and not list(model["bank"].buffers())


def test_a_state_of_another_bank_is_refused_and_changes_nothing() -> None:
    bank = renewed(torch.float32)
    before = bank.rows.clone()
    state = bank.state_dict()
    with pytest.raises(RuntimeError, match=r"rows is \(9, 6\) of torch.float32, and this bank has \(11, 6\)"):
        bank.load_state_dict(MemoryBank(9, 6).state_dict())
    with pytest.raises(RuntimeError, match="torch.bfloat16"):
        bank.load_state_dict(renewed(torch.bfloat16).state_dict())
    with pytest.raises(RuntimeError, match="Missing key.*rows"):
        bank.load_state_dict({"updates": torch.tensor(3)})
    with pytest.raises(RuntimeError, match="Unexpected key.*more"):
        bank.load_state_dict(state | {"more": torch.tensor(0)})
    assert torch.equal(bank.rows, before) and bank.updates == 1


def test_half_and_to_leave_the_dtype_of_the_rows() -> None:
    model = nn.Sequential(renewed(torch.float32))
    assert model.half().to("cpu", torch.float64)[0].rows.dtype == torch.float32


def saved_and_loaded(path: str) -> dict[str, torch.Tensor]:
    """On each rank: the state of three ranks or of one is loaded, and asked for again."""
    whole = torch.load(path, weights_only=True)
    bank = MemoryBank(11, 6, seed=5)
    bank.load_state_dict(whole)
    return {"own": bank.rows.clone(), **bank.state_dict()}


@pytest.mark.fault("the bank depends on the number of ranks")
def test_a_state_moves_between_numbers_of_ranks(tmp_path: Path) -> None:
    torch.save(renewed(torch.float32).state_dict(), tmp_path / "state.pt")
    whole = renewed(torch.float32).rows
    for found in run_on_ranks(3, saved_and_loaded, str(tmp_path / "state.pt")):
        assert len(found["own"]) in (3, 4)
        assert torch.equal(found["rows"], whole) and found["updates"] == 1


def test_a_data_set_with_the_number_of_each_sample() -> None:
    images = torch.arange(6).reshape(3, 2)
    assert IndexedDataset(images)[2][1] == 2 and torch.equal(IndexedDataset(images)[2][0], images[2])
    assert IndexedDataset([("a", 7), ("b", 8)])[1] == ("b", 1)
    assert IndexedDataset([{"image": "a", "label": 7}])[0] == ("a", 0)
    assert IndexedDataset([{"file": "a"}], picture=lambda sample: sample["file"])[0] == ("a", 0)
    with pytest.raises(IndexError):
        IndexedDataset(["a"])[1]


# ---------------------------------------------------------------------------------------------------------------------
# The loops of examples/, by the processes that a person would start


def started(loop: str, world: int, tmp_path: Path) -> dict[str, Any]:
    """What the loop and ours say on rank 0 (tests/support/loops.py)."""
    out = tmp_path / f"{loop}-{world}.json"
    launch = [sys.executable]
    if world > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    script = [str(ROOT / "tests" / "support" / "loops.py"), loop, str(out)]
    done = subprocess.run(
        [*launch, *script],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("loop", ["plain", "in_lightning", "in_accelerate"])
def test_a_loop_of_examples_has_our_losses(loop: str, world: int, tmp_path: Path) -> None:
    found = started(loop, world, tmp_path)
    assert len(found["ours"]) == 6 and max(found["ours"]) - min(found["ours"]) > 0.01
    assert found["theirs"] == pytest.approx(found["ours"], rel=1e-5)
    assert found["resumed"] == pytest.approx(found["theirs"][3:], rel=1e-5), "a stop after an epoch and a new start"


@pytest.mark.parametrize("loop", ["plain", "in_lightning", "in_accelerate"])
def test_a_loop_of_examples_is_short(loop: str) -> None:
    assert len((ROOT / "examples" / f"{loop}.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_the_bank_in_lightlys_simclr() -> None:
    """The lines of docs/loops.md with lightly's own projection head."""
    heads = pytest.importorskip("lightly.models.modules")
    page = (ROOT / "docs" / "loops.md").read_text(encoding="utf-8")
    lines = page.partition("## In lightly's SimCLR example")[2].partition("```python\n")[2].partition("```")[0]

    class SimCLR(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone, self.head = backbone, heads.SimCLRProjectionHead(24, 32, 128)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(x).flatten(start_dim=1))

    torch.manual_seed(0)
    views = torch.rand(64, 2, 3, 6, 6)
    names = {"torch": torch, "dataset": [(list(view), 0) for view in views], "SimCLR": SimCLR}
    space = names | {"backbone": nn.Conv2d(3, 24, 6)}
    before = MemoryBank(64, 128).rows
    exec(lines, space)
    assert space["bank"].updates == 4 and not torch.equal(space["bank"].rows, before)
    assert torch.isfinite(space["loss"])
