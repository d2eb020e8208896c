"""Starting an encoder from weights in a local safetensors file: another run's, or a backbone's from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from instdisc.errors import InputError
from instdisc.shapes import Tensor

_PREFIXES = ("", "backbone.", "encoder.", "module.", "encoder.backbone.", "module.backbone.")


def start_from_file(encoder: nn.Module, path: Path, *, whole: bool = False) -> str:
    """Copies every tensor that has the name and shape of one of the encoder's; says in a sentence what did not fit.

    The file may hold a whole encoder (`backbone.…`, `head.…`) or a backbone alone (timm's names), with or without a
    usual prefix. whole: every tensor of the backbone must be there, but for the counts of batches, which nothing uses.
    Raises InputError if the file can't be read, nothing in it fits, or not all is there that must be.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"The weights {path} can't be read as a safetensors file: {error}.") from error
    own = encoder.state_dict()
    fitting = max((_fitting(own, found, prefix) for prefix in _PREFIXES), key=len)
    if not fitting:
        raise InputError(f"Nothing in {path} fits this encoder: it holds {_listed(found)}; wanted {_listed(own)}.")
    of_backbone = [name for name in own if name.startswith("backbone.") and not name.endswith("num_batches_tracked")]
    lacking = [name for name in of_backbone if name not in fitting]
    if whole and lacking:
        raise InputError(
            f"{path} lacks {len(lacking)} of the {len(own)} tensors of this network ({_listed(lacking)}): they would "
            "stay random. Name the network that the weights are of, or give all of its weights."
        )
    with torch.no_grad():
        for name, source in fitting.items():
            own[name].copy_(found[source])  # state_dict's tensors share the parameters' memory
    missing = [name for name in own if name not in fitting]
    unused = sorted(set(found) - set(fitting.values()))
    sentence = f"{len(fitting)} of {len(own)} tensors from {path}"
    if missing:
        sentence += f"; left at random: {_listed(missing)}"
    if unused:
        sentence += f"; not used: {_listed(unused)}"
    return sentence


def _fitting(own: dict[str, Tensor], found: dict[str, Tensor], prefix: str) -> dict[str, str]:
    """Own name -> name in the file, for the names that are ours once `prefix` is off, or `backbone.` on."""
    pairs = {}
    for source, tensor in found.items():
        if source.startswith(prefix):
            bare = source.removeprefix(prefix)
            for name in (bare, f"backbone.{bare}"):
                if name in own and own[name].shape == tensor.shape:
                    pairs[name] = source
    return pairs


def _listed(names: Iterable[str], shown: int = 6) -> str:
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
