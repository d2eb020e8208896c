"""Rows of the bank in the host's memory, or on its disk, beside a GPU.

Where there is no GPU, torch's fake tensors stand for one: they have no values, but an operation with one tensor
on "cuda" and another on the CPU is refused, as it is on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from instdisc.bank import MemoryBank
from instdisc.objectives import NCE, NonParametricSoftmax, Proximal, SampledSoftmax

BATCH, DIM, INSTANCES = 16, 32, 5000
OBJECTIVES: dict[str, Callable[[], nn.Module]] = {
    "softmax": NonParametricSoftmax,
    "softmax in bfloat16, own rows masked": lambda: NonParametricSoftmax(mask_own=True, products=torch.bfloat16),
    "nce": lambda: NCE(partition="exact"),
    "nce with private noise": lambda: NCE(partition="exact", noise="private", negatives=64),
    "sampled": SampledSoftmax,
    "sampled privately": lambda: SampledSoftmax(noise="private", negatives=64),
    "proximal": Proximal,
}
DTYPES = (torch.float32, torch.float16, torch.int8)


def features(device: str) -> torch.Tensor:
    made = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(made, dim=1).to(device)


def indices(device: str) -> torch.Tensor:
    return torch.arange(0, INSTANCES, INSTANCES // BATCH)[:BATCH].to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("storage", ["memory", "host"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_tensor_is_where_it_is_used(name: str, storage: str, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        bank = MemoryBank(INSTANCES, DIM, dtype=dtype, device="cuda", storage=storage)
        assert {each.device.type for each in bank.tensors().values()} == {"cpu" if storage == "host" else "cuda"}
        assert bank.device == torch.device("cuda", 0)
        seen, whose = features("cuda"), indices("cuda")
        assert OBJECTIVES[name]()(seen, whose, bank).device.type == "cuda"
        assert bank.lookup(whose).device.type == "cuda"
        bank.update(whose, seen)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_private_scores_is_where_the_features_are(dtype: torch.dtype) -> None:
    """autograd itself does not run on a fake GPU: our backward is called by hand."""
    from instdisc.bank.private import PrivateScores

    class Context:
        def save_for_backward(self, *tensors: torch.Tensor) -> None:
            self.saved_tensors = tensors

    with FakeTensorMode():
        bank = MemoryBank(INSTANCES, DIM, dtype=dtype, device="cuda", storage="host")
        wanted = torch.zeros(BATCH, 64, dtype=torch.int64, device="cuda")
        context = Context()
        scores = PrivateScores.forward(context, features("cuda"), wanted, bank)
        gradient, *_ = PrivateScores.backward(context, scores)
    assert gradient is not None
    assert (gradient.device.type, gradient.shape) == ("cuda", (BATCH, DIM))


def test_a_tensor_on_the_other_device_would_be_noticed() -> None:
    """The tests above can fail: a bank whose rows stay behind."""
    with FakeTensorMode():
        bank = MemoryBank(INSTANCES, DIM, device="cuda", storage="host")
        bank.device = torch.device("cpu")
        with pytest.raises(RuntimeError, match="cuda"):
            Proximal()(features("cuda"), indices("cuda"), bank)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("storage", ["host", "disk"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_says_what_rows_on_the_device_say(name: str, storage: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """On a GPU where there is one; on a CPU the two differ in nothing but the way."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    answers = []
    for where in ("memory", storage):
        bank = MemoryBank(INSTANCES, DIM, dtype=dtype, device=device, storage=where, folder=tmp_path)
        bank.rows.copy_(MemoryBank(INSTANCES, DIM, dtype=dtype).rows)
        seen = features(device).requires_grad_()
        loss = OBJECTIVES[name]()(seen, indices(device), bank)
        loss.backward()
        bank.update(indices(device), seen.detach())
        assert seen.grad is not None
        answers.append((loss.detach(), seen.grad, bank.lookup(indices(device))))
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
