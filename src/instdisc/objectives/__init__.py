"""The objectives, one a file, all called alike: `forward(features, indices, bank) -> scalar`, the mean over the batch.

An objective asks the bank and never writes it. The loss of a run is a sum of named terms; `OBJECTIVES` gives them the
names that configurations use. A new objective is one file, one line here, and one test file.
"""

from __future__ import annotations

from instdisc.objectives.batch_groups import BatchGroups
from instdisc.objectives.nce import NCE
from instdisc.objectives.nonparametric_softmax import NonParametricSoftmax
from instdisc.objectives.parametric_softmax import ParametricSoftmax
from instdisc.objectives.proximal import Proximal
from instdisc.objectives.sampled_softmax import SampledSoftmax
from instdisc.objectives.term import Term
from instdisc.objectives.view_softmax import ViewSoftmax

OBJECTIVES: dict[str, type[Term]] = {
    "softmax": NonParametricSoftmax,
    "sampled": SampledSoftmax,
    "nce": NCE,
    "parametric": ParametricSoftmax,
    "views": ViewSoftmax,
    "groups": BatchGroups,
    "proximal": Proximal,
}

__all__ = [
    "NCE",
    "OBJECTIVES",
    "BatchGroups",
    "NonParametricSoftmax",
    "ParametricSoftmax",
    "Proximal",
    "SampledSoftmax",
    "Term",
    "ViewSoftmax",
]
