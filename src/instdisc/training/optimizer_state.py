"""An optimizer's state dict as named tensors and plain facts, which a checkpoint can hold, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from instdisc.shapes import Tensor


def flatten_optimizer(state: Any) -> tuple[dict[str, Tensor], Any]:
    """A torch state dict as (tensors by path, the rest as JSON values): `unflatten_optimizer` gives it back exactly.

    Takes dicts with any keys, lists, tuples, numbers, strings and None, nested at will. What JSON lacks is tagged:
    {"$tensor": path}, {"$tuple": [...]}, {"$map": [[key, value], ...]} (keys that are no strings), {"$float": "inf"}.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            # safetensors has rows in one order only; the momentum of a channels_last weight must come back as it lay,
            # or each later step takes torch's slow path.
            shuffled = value.ndim == 4 and not value.is_contiguous()
            shuffled = shuffled and value.is_contiguous(memory_format=torch.channels_last)
            return {"$tensor": path, "channels_last": True} if shuffled else {"$tensor": path}
        if isinstance(value, Mapping):
            entries = [(key, plain(entry, f"{path}.{key}" if path else str(key))) for key, entry in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return dict(entries)
            return {"$map": [[plain(key, f"{path}.key"), entry] for key, entry in entries]}
        if isinstance(value, list | tuple):
            listed = [plain(entry, f"{path}.{position}") for position, entry in enumerate(value)]
            return {"$tuple": listed} if isinstance(value, tuple) else listed
        if isinstance(value, float) and not math.isfinite(value):
            return {"$float": repr(value)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{path} is a {type(value).__name__}, which a checkpoint can't hold without pickle")

    rest = plain(state, "")
    return tensors, rest


def unflatten_optimizer(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """The state dict that `flatten_optimizer` took apart."""
    if isinstance(rest, list):
        return [unflatten_optimizer(tensors, entry) for entry in rest]
    if not isinstance(rest, dict):
        return rest
    if "$tensor" in rest:
        tensor = tensors[rest["$tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if rest.get("channels_last") else tensor
    if "$tuple" in rest:
        return tuple(unflatten_optimizer(tensors, entry) for entry in rest["$tuple"])
    if "$map" in rest:
        pairs = unflatten_optimizer(tensors, rest["$map"])
        return dict(pairs)
    if "$float" in rest:
        return float(rest["$float"])
    return {key: unflatten_optimizer(tensors, entry) for key, entry in rest.items()}
