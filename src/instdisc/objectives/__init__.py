"""The objectives, one a file, all called alike: `forward(features, indices, bank) -> scalar`, the mean over the batch.

An objective asks the bank and never writes it. The loss of a run is a sum of named terms: one of `OBJECTIVES`, by the
name that configurations use, and the further `TERMS`. A new objective is one file, one line here, and one test file.
"""

from __future__ import annotations

from instdisc.objectives.batch_groups import BatchGroups
from instdisc.objectives.nce import NCE
from instdisc.objectives.nonparametric_softmax import NonParametricSoftmax
from instdisc.objectives.nt_xent import NTXent
from instdisc.objectives.parametric_softmax import ParametricSoftmax
from instdisc.objectives.proximal import Proximal
from instdisc.objectives.sampled_softmax import SampledSoftmax
from instdisc.objectives.term import Objective, Term

OBJECTIVES: dict[str, type[Objective]] = {
    "softmax": NonParametricSoftmax,
    "sampled": SampledSoftmax,
    "nce": NCE,
    "parametric": ParametricSoftmax,
}
TERMS: dict[str, type[Term]] = {
    "views": NTXent,
    "groups": BatchGroups,
    "proximal": Proximal,
}
ViewSoftmax = NTXent  # its name in 0.1, kept for one release

__all__ = [
    "NCE",
    "OBJECTIVES",
    "TERMS",
    "BatchGroups",
    "NTXent",
    "NonParametricSoftmax",
    "Objective",
    "ParametricSoftmax",
    "Proximal",
    "SampledSoftmax",
    "Term",
    "ViewSoftmax",
]
