"""The optimizers of the recipes: SGD as published, and Muon, which learns faster from few epochs.

Both are one torch Optimizer with one state dict, so checkpoints and schedules need not know which is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from instdisc.shapes import Float, Tensor
from instdisc.training.config import Settings

# Odd quintic p(x) = ax + bx³ + cx⁵, iterated: drives singular values in (0, 1] to about 1 within four or five rounds.
# The coefficients maximise the slope at 0 (Jordan et al., "Muon", 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def make_optimizer(settings: Settings, encoder: nn.Module, terms: nn.ModuleDict) -> torch.optim.Optimizer:
    """The optimizer over the encoder's weights that learn and those of the objective (the parametric softmax has some).

    Where settings.backbone_rate is not 1, the backbone's weights are groups of their own, at the end.
    """
    slow = list(encoder.get_submodule("backbone").parameters()) if settings.backbone_rate != 1 else []
    slowed = {id(parameter) for parameter in slow}
    own = [weight for weight in encoder.parameters() if weight.requires_grad and id(weight) not in slowed]
    slow = [weight for weight in slow if weight.requires_grad]
    if settings.optimizer == "sgd":
        groups: list[dict[str, Any]] = [{"params": [*own, *terms.parameters()], "lr": settings.lr}]
        if slow:
            groups.append({"params": slow, "lr": settings.lr * settings.backbone_rate})
        return torch.optim.SGD(
            groups,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
    layers: list[nn.Parameter] = []
    others: list[nn.Parameter] = []  # the weights of a softmax are vectors, one a picture
    for term in terms.values():
        (layers if term.is_layer else others).extend(term.parameters())
    groups = _muon_groups(settings, own, layers, others)
    if slow:
        groups += _muon_groups(settings, slow, [], [], settings.backbone_rate)
    return Muon(groups, momentum=settings.momentum)


def _muon_groups(
    settings: Settings,
    weights: list[nn.Parameter],
    layers: list[nn.Parameter],
    others: list[nn.Parameter],
    share: float = 1.0,
) -> list[dict[str, Any]]:
    """Matrices, and vectors with the rest, at this share of their rates."""
    matrices = [weight for weight in weights if weight.ndim > 1] + layers
    vectors = [weight for weight in weights if weight.ndim <= 1] + others
    return [
        {"params": matrices, "lr": share * settings.lr, "orthogonal": True, "weight_decay": settings.weight_decay},
        {"params": vectors, "lr": share * settings.vector_lr, "orthogonal": False, "weight_decay": 0.0},
    ]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by the nearest orthogonal one (Jordan et al. 2024); SGD for what is no matrix.

    A group with orthogonal=True updates each weight W (convolutions as (out, in·height·width)) by
        B ← momentum·B + G,   W ← (1 − lr·weight_decay)·W − lr·√max(1, rows/columns)·orthogonal(G + momentum·B);
    another by Nesterov SGD, W ← W − lr·(G + momentum·B), with the same decoupled decay.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.9) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients; a closure is not called."""
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].mul_(momentum).add_(weight.grad)
                update = weight.grad.add(buffer, alpha=momentum)
                if group["orthogonal"]:
                    matrix = update.reshape(len(update), -1)
                    stretch = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                    update = orthogonal(matrix).mul_(stretch).reshape(update.shape)
                weight.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonal(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """U·Vᵀ of the singular value decomposition U·S·Vᵀ, nearly: singular values land between about 0.7 and 1.2.

    Newton and Schulz's iteration in matrix products only; float32 in and out. Every round multiplies X from the left by
    a polynomial of its Gram matrix, so the rounds are run on that small square alone and X is multiplied once: half of
    the time for convolutions, whose matrices are nine times as long as high.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / (x.norm() + 1e-7)  # the Frobenius norm bounds the largest singular value
    gram = x @ x.T
    product = factor = _polynomial(gram)
    for _ in range(_ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    x = product @ x
    return x.T.contiguous() if tall else x


def _polynomial(gram: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    """a + b·gram + c·gram²: what a round of the quintic multiplies its argument by."""
    a, b, c = _QUINTIC
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor
