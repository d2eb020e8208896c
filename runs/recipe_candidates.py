"""Networks tried by choose_recipe.py beside the small encoders of instdisc: importing this makes their names known.

Not part of the library: what wins moves there, as conv7 did.
"""

from __future__ import annotations

from torch import nn

from instdisc.encoder.small import SMALL_ENCODERS, Pairs


def from_identity(module: nn.Module) -> nn.Module:
    """The same with the first filters of every convolution handing on what enters (Dirac start)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.dirac_(part.weight[: part.in_channels])
    return module


SMALL_ENCODERS["conv6d"] = lambda width=32: from_identity(Pairs(3, width))
