"""How far a constant for Z may be from Z: NCE by SGD on a made problem, with Z wrong by a factor in every step.

    python runs/nce_constant.py                                                                     # half a minute

Six classes of 100 inputs are seen through one linear layer whose outputs start close together, as a fresh network's do.
Every input is its own class. Z is known exactly and divided by a factor, so that NCE stands on a constant that Z has
outgrown as much; measured is how well the rows of the bank know their class. The result goes to
results/nce_constant.json; NCE's warning goes by it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import torch
from record import record
from torch.nn.functional import normalize

from instdisc.bank import MemoryBank
from instdisc.evaluation.quality import effective_rank
from instdisc.objectives import NCE

FACTORS = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
CLASSES, COUNT, INPUTS, DIM = 6, 600, 24, 16
NEIGHBOURS, EPOCHS, BATCH = 10, 10, 32


class WrongZ(MemoryBank):
    """A bank whose log Z is told too small by the logarithm of `factor`."""

    factor = 1.0

    def log_partition(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """log(Z / factor)."""
        return super().log_partition(*arguments, **options) - math.log(self.factor)


def learned(factor: float, seed: int) -> dict[str, float]:
    """What the rows know after ten epochs: the share whose ten nearest rows vote for their class, percent."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(COUNT) % CLASSES
    centres = 0.5 * torch.randn(CLASSES, INPUTS, generator=generator)
    inputs = 2 * torch.randn(INPUTS, generator=generator) + centres[labels]
    weight = (torch.randn(INPUTS, DIM, generator=generator) / INPUTS**0.5).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.03, momentum=0.9)
    bank, objective = WrongZ(COUNT, DIM, momentum=0.5, seed=seed), NCE(0.1, 256, partition="exact", seed=seed)
    bank.factor = factor
    for _ in range(EPOCHS):
        for indices in torch.randperm(COUNT, generator=generator).split(BATCH):
            noise = 0.6 * torch.randn(len(indices), INPUTS, generator=generator)
            features = normalize((inputs[indices] + noise) @ weight, dim=1)
            loss = objective(features, indices, bank)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bank.update(indices, features.detach())
    nearest = (bank.rows @ bank.rows.T).fill_diagonal_(-1).topk(NEIGHBOURS).indices
    right = (labels[nearest].mode(1).values == labels).float().mean()
    return {"knn": 100 * float(right), "effective_rank": effective_rank(bank.rows), "loss": float(loss.detach())}


def main() -> None:
    """Every factor with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    rows = []
    for factor in FACTORS:
        found = [learned(factor, seed) for seed in range(settings.seeds)]
        row: dict[str, Any] = {"z_over_constant": factor}
        for name in found[0]:
            values = [round(one[name], 2) for one in found]
            row[name] = {
                "values": values,
                "mean": round(statistics.fmean(values), 2),
                "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
            }
        rows.append(row)
    record(
        settings.results / "nce_constant.json",
        name="nce_constant",
        command=f"python runs/nce_constant.py --seeds {settings.seeds}",
        unit="rows whose 10 nearest rows vote for their class, %, with Z known exactly; in `rows` it is z_over_constant"
        " times the constant",
        values=rows[FACTORS.index(1.0)]["knn"]["values"],
        seeds=list(range(settings.seeds)),
        rows=rows,
    )


if __name__ == "__main__":
    main()
