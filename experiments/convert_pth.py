"""Someone else's `.pth` weights as a safetensors file with timm's names, for `instdisc open --weights`.

    python experiments/convert_pth.py model.pth --timm tf_efficientnet_lite0 -o weights.safetensors

A `.pth` file is a pickle, which can hold programs. So a process of its own reads it: with `weights_only=True`, which
takes tensors and refuses all else, with 60 seconds and 8 GB at most (`--seconds`, `--gigabytes`). It hands over a
safetensors file. This process reads only that one, and gives the tensors timm's names: by name where the file has them
(`module.` or `state_dict` around them are taken off), else by order. By order, every tensor must have the shape of
timm's and the same last word (`weight`, `running_mean`, ...); else nothing is written.

Order alone can't prove that two tensors of one shape are not swapped: measure afterwards on pictures you know.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# What the other process does. The names are numbered, since a safetensors file has no order of its own.
_READ = """
import resource, sys
import torch
from safetensors.torch import save_file
source, target, seconds, gigabytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))
found = torch.load(source, map_location="cpu", weights_only=True)
for name in ("state_dict", "model", "model_state_dict"):
    if isinstance(found.get(name), dict):
        found = found[name]
tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
save_file({f"{at:06d} {name}": value.contiguous().clone() for at, (name, value) in enumerate(tensors.items())}, target)
"""


def main() -> None:
    """Read, rename, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="The .pth file.")
    parser.add_argument("--timm", required=True, metavar="NAME", help="timm's name of the network.")
    parser.add_argument("-o", "--out", type=Path, required=True, help="The safetensors file.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--gigabytes", type=int, default=8)
    settings = parser.parse_args()
    found = read_apart(settings.source, settings.seconds, settings.gigabytes)
    named = with_names_of(settings.timm, found)
    save_file(named, settings.out)
    print(f"{len(named)} tensors of {settings.source} are in {settings.out}, with the names of timm's {settings.timm}.")


def read_apart(source: Path, seconds: int, gigabytes: int) -> OrderedDict[str, torch.Tensor]:
    """The tensors of a `.pth` file in their order, read by another process; SystemExit where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tensors.safetensors"
        words = [sys.executable, "-I", "-c", _READ, str(source), str(target), str(seconds), str(gigabytes)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=10 * seconds)
        if done.returncode or not target.is_file():
            lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
            raise SystemExit(f"{source} can't be read as weights alone: {lines[-1]}")
        tensors = load_file(target)
    return OrderedDict((name.partition(" ")[2], tensors[name]) for name in sorted(tensors))


def with_names_of(network: str, found: OrderedDict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names of timm's network; SystemExit, which says what differs, where they don't fit."""
    import timm

    with torch.device("meta"):
        wanted = timm.create_model(network).state_dict()
    bare = {name.removeprefix("module."): value for name, value in found.items()}
    if bare.keys() == wanted.keys():
        pairs = [(name, name, bare[name]) for name in wanted]
    elif len(found) == len(wanted):
        pairs = [(name, own, value) for name, (own, value) in zip(wanted, found.items(), strict=True)]
    else:
        raise SystemExit(
            f"The file has {len(found)} tensors, timm's {network} has {len(wanted)}: name another network."
        )
    for name, own, value in pairs:
        if value.shape != wanted[name].shape or name.rpartition(".")[2] != own.rpartition(".")[2]:
            raise SystemExit(
                f"{own} {tuple(value.shape)} stands where timm's {network} has {name} {tuple(wanted[name].shape)}: "
                "name another network."
            )
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    main()
