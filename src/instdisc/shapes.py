"""Names of tensor shapes: `Float[Tensor, "batch dim"]` in a signature says what goes in and out.

The names are read by people and, under pytest only, checked by jaxtyping and beartype; at run time they cost nothing.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor", "UInt8"]
