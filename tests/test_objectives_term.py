"""The training loop goes by what a term says of itself: a made term, of no name that the loop could know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny, training_in
from torch import nn

from instdisc.objectives import OBJECTIVES, Term
from instdisc.training import Settings


class Made(Term):
    """The mean length of a layer's output; it remembers what it was given."""

    is_layer = True
    begins = 0.5

    def __init__(self, reads: str, waits: bool, width: int) -> None:
        super().__init__()
        self.reads, self.waits_for_bank = reads, waits
        self.layer = nn.Linear(width, 3, bias=False)
        self.given: list[torch.Tensor] = []

    def forward(self, features: torch.Tensor, indices: torch.Tensor, bank: object) -> torch.Tensor:
        self.given.append(features.detach())
        return self.layer(features.float()).norm(dim=1).mean()


@pytest.mark.parametrize(("reads", "width"), [("embedding", 8), ("pooled", 16)])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_term_is_given_what_it_reads_from_when_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str, width: int, optimizer: str
) -> None:
    made, own = Made(reads, False, width), Settings.terms
    monkeypatch.setattr(Settings, "terms", lambda *given: own(*given) | {"made": made})
    monkeypatch.setattr(Settings, "weights", lambda settings: {"softmax": 1.0, "made": 0.5})
    training = training_in(tmp_path, tiny(epochs=4, optimizer=optimizer, lr=0.01))
    before = made.layer.weight.detach().clone()
    training.fit()
    assert len(made.given) == training.total_steps - training.total_steps // 2, "from half of the run on"
    assert all(given.shape[1] == width for given in made.given)
    unit = torch.cat(made.given).norm(dim=1)
    assert torch.allclose(unit, torch.ones(()), atol=1e-4) == (reads == "embedding")
    assert not torch.equal(made.layer.weight, before), "the optimizer has its weights"


def test_a_term_waits_for_the_bank_where_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, eager, own = Made("embedding", True, 8), Made("embedding", False, 8), Settings.terms
    waiting.begins = eager.begins = 0.0
    monkeypatch.setattr(Settings, "terms", lambda *given: own(*given) | {"waiting": waiting, "eager": eager})
    monkeypatch.setattr(
        Settings, "weights", lambda settings: {"softmax": 1.0, "views": 0.0, "waiting": 0.1, "eager": 0.1}
    )
    training = training_in(tmp_path, tiny(epochs=2, views=2, view_share=0.5, fill_epochs=1.0, lr=0.01))
    training.fit()
    assert len(eager.given) == training.total_steps and len(waiting.given) == training.total_steps // 2


def test_all_objectives_are_terms() -> None:
    assert all(issubclass(objective, Term) for objective in OBJECTIVES.values())
