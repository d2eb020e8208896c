"""Linear support vector machines, one against the rest: the paper's test of what a layer's features hold.

    svm = LinearSVM().fit(train_vectors, train_labels)      # the cost is chosen by cross-validation inside train
    svm.chosen_, svm.predict(test_vectors)
    svm.evaluate(test_vectors, test_labels)                 # top-1, top-5, 95 % interval

For each class the weights minimise ½|w|² + cost · Σ_i max(0, 1 − y_i w·x_i)², y_i = 1 for pictures of the class and −1
for the others, on standardised features with a constant 1 appended: what liblinear solves. The objective is smooth and
convex, so L-BFGS over all classes at once, by matrix products on the device, reaches the same optimum in less time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from instdisc.evaluation.linear import LinearClassifier, Standardised
from instdisc.shapes import Float, Tensor

__all__ = ["COSTS", "LinearSVM"]

COSTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_ITERATIONS = 1000


class LinearSVM(LinearClassifier):
    """One-vs-rest linear SVM with squared hinge loss and an L2 penalty (the intercept's included, as in liblinear).

    cost: the weight of the loss, liblinear's C; None = the best of `costs` in cross-validation over `folds` parts of
    the training vectors. device: where to compute; by default where the vectors are. Fitted values: LinearClassifier.

    Examples:
        >>> import numpy as np
        >>> from instdisc.evaluation.svm import LinearSVM
        >>> vectors = np.array([[1.0, 0.1], [0.9, 0.0], [1.1, 0.2], [0.1, 1.0], [0.0, 0.9], [0.2, 1.1]])
        >>> svm = LinearSVM(cost=1.0).fit(vectors, np.array([3, 3, 3, 8, 8, 8]))
        >>> svm.predict(np.array([[0.8, 0.1], [0.1, 0.8]])), svm.weights_.shape
        (array([3, 8]), torch.Size([2, 2]))
    """

    what = "the cost of the SVM"

    def __init__(
        self,
        cost: float | None = None,
        *,
        costs: Sequence[float] = COSTS,
        folds: int = 3,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(costs if cost is None else [cost], folds, folds, seed, device)

    def _learn(
        self, rows: Standardised, classes: int, choice: float, start: Tensor | None
    ) -> Float[Tensor, "classes dim_and_one"]:
        # The objective is divided by cost · rows, so that the solver's tolerances mean the same for all.
        device, count = rows.mean.device, len(rows)
        weights = torch.zeros(classes, len(rows.mean) + 1, device=device) if start is None else start.clone()
        weights.requires_grad_()
        penalty = 1 / (choice * count)

        @torch.no_grad()
        def objective() -> Tensor:
            slope = weights * penalty
            value = 0.5 * penalty * weights.double().square().sum()
            for block, codes in rows:
                slack = block @ weights.T
                own = (torch.arange(len(block), device=device), codes)
                slack[own] = -slack[own]
                slack.add_(1).clamp_min_(0)
                value += slack.square().sum(dtype=torch.float64) / count
                slack[own] = -slack[own]
                slope.addmm_(slack.T, block, alpha=2 / count)
            weights.grad = slope
            return value

        optimizer = torch.optim.LBFGS(
            [weights],
            max_iter=_ITERATIONS,
            history_size=20,
            tolerance_grad=1e-6,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(objective)
        return weights.detach()
