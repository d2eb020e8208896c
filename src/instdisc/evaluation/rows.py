"""Vectors and labels as the evaluators take them: arrays, memory maps or tensors, read a block at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from instdisc.errors import InputError
from instdisc.transfer import send


def widened(vectors: Any, rows: slice | np.ndarray, device: torch.device) -> Tensor:
    """Some rows as float32 on the device."""
    if isinstance(vectors, Tensor):
        picked = vectors[rows if isinstance(rows, slice) else send(torch.from_numpy(rows), vectors.device)].detach()
        return (picked if picked.device == device else send(picked.float(), device)).float()
    # A fresh array: torch complains about the read-only ones of a memory map.
    return send(torch.from_numpy(np.array(vectors[rows], dtype=np.float32)), device)


def like(vectors: Any, answer: Tensor) -> Any:
    """The answer as the vectors came: an array for arrays, a tensor on their device for tensors."""
    return answer.to(vectors.device) if isinstance(vectors, Tensor) else answer.numpy()


def require_matrix(vectors: Any) -> None:
    """Raises InputError unless these are vectors of shape (n, dim)."""
    if not isinstance(vectors, np.ndarray | Tensor) or vectors.ndim != 2:
        raise InputError("Vectors must be an array or tensor of shape (n, dim).")


def integers(labels: Any, count: int) -> np.ndarray:
    """Labels as int64, one a vector; raises InputError for others."""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.ndim != 1 or len(values) != count:
        raise InputError(f"There are {count} vectors and labels of shape {values.shape}: give one label for each.")
    if values.dtype.kind not in "iu":
        raise InputError(f"Labels must be whole numbers, not {values.dtype}: number the classes.")
    return values.astype(np.int64)
