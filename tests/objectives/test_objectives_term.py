"""The training loop goes by what a term says of itself: a made term, of no name that the loop could know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny, training_in
from torch import nn

from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.jobs.train_log import log_settings
from instdisc.objectives import OBJECTIVES, TERMS, NonParametricSoftmax, Objective, Term
from instdisc.training import Settings, read_metrics


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


def test_all_objectives_are_terms_and_no_other_term_is_one() -> None:
    assert all(issubclass(objective, Term) for objective in [*OBJECTIVES.values(), *TERMS.values()])
    assert all(issubclass(objective, Objective) for objective in OBJECTIVES.values())
    assert not any(issubclass(term, Objective) for term in TERMS.values())


def test_an_objective_that_no_settings_make_is_refused_at_once() -> None:
    class Unfinished(Objective):
        def forward(self, features: torch.Tensor, indices: torch.Tensor, bank: object) -> torch.Tensor:
            return features.sum()

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()


class Scaled(NonParametricSoftmax):
    """A made objective: the exact softmax, times the proximal setting; it says how it is called."""

    @classmethod
    def from_settings(cls, settings: Settings, instances: int) -> Scaled:
        made = super().from_settings(settings, instances)
        made.factor = settings.group_weight
        return made

    @staticmethod
    def described(settings: Settings) -> str:
        return f" times {settings.group_weight:g}"

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.factor * super().forward(*given)


def test_a_new_objective_is_a_line_in_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is told of it: settings take its name, a run trains by it and says so, a wrong name lists it."""
    monkeypatch.setitem(OBJECTIVES, "scaled", Scaled)
    with pytest.raises(InputError, match="objective is one of softmax, sampled, nce, parametric, scaled, not"):
        tiny(objective="scalled")
    lines: list[str] = []
    settings = tiny(epochs=1).with_overrides({"objective": "scaled", "group_weight": "3"})
    log_settings(lines.append, settings)
    assert "scaled times 3, temperature" in lines[0]
    losses = {}
    for name in ("softmax", "scaled"):
        training = training_in(tmp_path / name, replace(settings, objective=name, lr=1e-12))
        training.fit()
        losses[name] = read_metrics(training.run)[-1]["losses"][name]
    assert losses["scaled"] == pytest.approx(3 * losses["softmax"], rel=1e-5)


@pytest.mark.parametrize("name", [*OBJECTIVES, *TERMS])
@pytest.mark.parametrize("noise", ["shared", "private"])
def test_a_term_asks_for_no_row_that_it_did_not_announce(
    name: str, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rows_needed` is what a bank on disk reads ahead; the exact softmax goes through all rows in order instead."""
    settings = tiny(objective=name if name in OBJECTIVES else "softmax", negatives=5, noise=noise)
    settings = replace(settings, views=2, view_share=0.5, groups=2, proximal=1.0)
    term = settings.terms(40, 16)[name]
    bank = MemoryBank(40, 8, seed=0)
    asked: list[torch.Tensor] = []
    scores, log_partition = bank.scores, bank.log_partition
    monkeypatch.setattr(bank, "scores", lambda of, rows: (asked.append(rows), scores(of, rows))[1])

    def partition(*given: torch.Tensor, among: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        asked.extend([] if among is None else [among])
        return log_partition(*given, among=among, **more)

    monkeypatch.setattr(bank, "log_partition", partition)
    indices = torch.tensor([3, 9, 3, 9])
    width = 16 if term.reads == "pooled" else 8
    announced = term.rows_needed(indices, bank)
    term(torch.nn.functional.normalize(torch.randn(4, width), dim=1), indices, bank)
    told = set() if announced is None else set(announced.flatten().tolist())
    assert {row for rows in asked for row in rows.flatten().tolist()} == told
