"""The class of the bank: what is asked of its rows, whichever rank holds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instdisc import ranks
from instdisc.bank.disk import DiskRows
from instdisc.bank.partition import Known, SumsOverSome, sums_over_all
from instdisc.bank.private import PrivateScores
from instdisc.bank.rows import DTYPES, EPSILON, Rows, full_precision, random_directions, rounded
from instdisc.errors import InputError
from instdisc.shapes import Float, Int, Tensor


class MemoryBank(nn.Module):
    """One unit row for each instance, of shape (instances, dim); `rows` is this rank's part.

    A module without parameters: it goes with `to`, `state_dict` and `load_state_dict`. `state_dict` has the whole bank,
    so every rank asks for it together, and it is loaded by any number of ranks. The rows keep their dtype in `to` and
    `half`, and are no registered buffers: DistributedDataParallel writes rank 0's buffers over those of the others.

    Raises InputError for sizes, a momentum or a dtype that are invalid, and where memory or disk do not suffice.

    momentum: a row is renewed as normalise(momentum * row + (1 - momentum) * feature). The published runs use 0.5; the
        text of the paper replaces the row, which is 0.
    seed: the rows at the start are random directions, functions of (seed, row) alone, the same for any number of ranks.
    dtype: float32, or float16/bfloat16 for half the memory, or int8 for a quarter (`scales` has the rows' scales then);
        arithmetic is in float32 always, and what an update writes is rounded.
    storage: "memory" keeps the rows on `device`; beside a GPU "host" keeps them in the host's memory, and "disk",
        beside any device, in a memory-mapped file without a name in `folder` (bank/disk.py). What is asked of them
        comes to `device` all the same: rows that are looked up, or for the exact sum all of them, a block at a time.

    Examples:
        >>> import torch
        >>> from instdisc import MemoryBank
        >>> bank = MemoryBank(1000, dim=8)
        >>> features = torch.nn.functional.normalize(torch.randn(2, 8), dim=1)
        >>> bank.scores(features, torch.tensor([0, 1, 2])).shape, bank.log_partition(features, 0.07).shape
        (torch.Size([2, 3]), torch.Size([2]))
        >>> bank.update(torch.tensor([5, 7]), features)
        >>> bool((bank.positives(features, torch.tensor([5, 7])) > 0).all()), bank.rows.shape
        (True, torch.Size([1000, 8]))
    """

    def __init__(
        self,
        instances: int,
        dim: int = 128,
        *,
        momentum: float = 0.5,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        storage: str = "memory",
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if instances < 1 or dim < 1:
            raise InputError(f"A bank needs at least one instance and one dimension, not {instances} and {dim}.")
        if not 0 <= momentum < 1:
            raise InputError(f"The bank's momentum must be in [0, 1), not {momentum}: with 1 no row would ever change.")
        if dtype not in DTYPES:
            raise InputError(f"A bank's rows are float32, float16, bfloat16 or int8, not {dtype}.")
        if storage not in ("memory", "host", "disk"):
            raise InputError(f'A bank\'s rows are kept in "memory", "host" or "disk", not "{storage}".')
        self.instances, self.dim, self.momentum, self.seed = instances, dim, momentum, seed
        self.updates = 0  # how often `update` was called: the step that the objectives' noise is drawn for
        self._over_some = SumsOverSome()
        self._world = ranks.world()
        self.start, self.stop = ranks.share(instances)
        local = self.stop - self.start
        self._disk: DiskRows | None = None
        if storage == "disk":
            self._disk = DiskRows(local, dim, dtype, None if folder is None else Path(folder))
        torch_device = torch.device(device if storage == "memory" else "cpu")
        self.rows: Tensor = (
            torch.empty(local, dim, dtype=dtype, device=torch_device) if self._disk is None else self._disk.rows
        )
        self.scales: Tensor | None = torch.empty(local, device=torch_device) if dtype == torch.int8 else None
        # where features are, and what is looked up; "cuda" is this process's GPU
        self.device = self.rows.device if storage == "memory" else torch.empty(0, device=device).device
        at_once = 4_096 if torch_device.type == "cpu" else 65_536  # on a CPU the draws of a part stay in its cache
        for first in range(self.start, self.stop, at_once):
            last = min(first + at_once, self.stop)
            drawn = random_directions(first, last, dim, seed, self.rows.device)
            self._write(slice(first - self.start, last - self.start), *rounded(drawn, dtype))

    @property
    def kept(self) -> Rows:
        """This rank's rows with their scales."""
        if ranks.world() != self._world:
            raise InputError(
                f"This bank was made for {self._world} process(es), and now there are {ranks.world()}: make it once "
                "they have met (in Lightning: in `setup`)."
            )
        return Rows(self.rows, self.scales)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of this rank's rows, by name: the tensors themselves, to be read and written."""
        return {"rows": self.rows} if self.scales is None else {"rows": self.rows, "scales": self.scales}

    def lookup(self, indices: Int[Tensor, "*any"], *, common: bool = False) -> Float[Tensor, "*any dim"]:
        """The rows of these instances as float32, a copy. `common`: every rank asks for the same (saves traffic)."""
        flat = indices.reshape(-1)
        if ranks.world() == 1:
            found = self._gathered(flat)
        else:
            counts = None if common else ranks.sizes(len(flat))
            asked = flat if counts is None else ranks.gather(flat, counts)
            mine, here = self._here(asked)
            # each row comes from the one rank that has it: the others add exact zeros
            found = ranks.total(torch.where(here[:, None], self._gathered(mine), 0.0))
            if counts is not None:
                first = sum(counts[: ranks.rank()])
                found = found[first : first + len(flat)]
        return found.reshape(*indices.shape, self.dim)

    def scores(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " shared"] | Int[Tensor, "batch private"]
    ) -> Float[Tensor, "batch scores"]:
        """Inner products of features with rows (cosines, as both are unit vectors), differentiable in `features`.

        indices: (m,) rows shared by the whole batch, the same on every rank: one matrix product; or (batch, m) rows of
            each picture's own, gathered piece by piece and gathered again in backward, so that no (batch, m, dim) copy
            is kept.
        """
        if indices.dim() == 1:
            with full_precision(features):
                return features.float() @ self.lookup(indices, common=True).T
        return PrivateScores.apply(features, indices, self)

    def positives(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The inner product of each feature with the row of its own instance, differentiable in `features`."""
        return (features * self.lookup(indices)).sum(1)

    def log_partition(
        self,
        features: Float[Tensor, "batch dim"],
        temperature: float,
        *,
        among: Int[Tensor, " shared"] | None = None,
        without: Int[Tensor, " batch"] | None = None,
        products: torch.dtype = torch.float32,
    ) -> Float[Tensor, " batch"]:
        """log Z = log of the sum over all rows j of exp(v_j . f / temperature): the denominator of eq 2, exact.

        Computed in blocks of rows: the memory needed does not depend on the number of rows, and there is no
        (batch, instances) matrix. The gradient is (expected row) / temperature, the softmax-weighted mean of the rows,
        which the same pass accumulates.
        among: the sum over these rows alone, the same on every rank; a row counts as often as it is named.
        without: leave this instance's row out of each picture's sum (its own, for masking); -inf where none is left.
        products: float32, or bfloat16 in two thirds of the time where the CPU has such products, with sums in
            float32. What that costs grows as few rows take most of the weight, for a score s is then off by up to
            |s| / 500: at temperature 0.07 the gradient of the softmax is off by 2e-4 of its length over a random bank,
            1e-3 to 1e-2 over a trained one, and 3e-2 where a picture's own row has 0.9 of the weight (in float32: 5e-8,
            1e-6 and 4e-6), and log Z by 1e-3, 2e-2 and 5e-2. So it is never chosen but by this argument: not by
            autocast.
        """
        if products not in (torch.float32, torch.bfloat16):
            raise InputError(f"The products over a bank are in float32 or bfloat16, not {products}.")
        with full_precision(features):
            if among is None:
                found = sums_over_all(features, self.kept, self.start, temperature, without, products)
            else:
                rows = self.lookup(among, common=True)
                found = self._over_some(features, rows, among, temperature, without, products)
            return Known.apply(features, *found)

    def expect(self, indices: Int[Tensor, "*any"]) -> None:
        """Say which instances' rows a step will ask for: where rows are on disk, this rank's are read meanwhile."""
        if self._disk is not None:
            mine, here = self._here(indices)
            self.want(mine[here].to(self.rows.device))

    @torch.no_grad()
    def update(self, indices: Int[Tensor, " batch"], features: Float[Tensor, "batch dim"]) -> None:
        """Renew the rows of these instances from their features: normalise(momentum * row + (1 - momentum) * feature).

        The batch is the global one: all ranks call this together, each with its part. Where an instance comes more than
        once (two views, or a picture drawn twice) its row is renewed once, from the mean of its features, so the order
        within the batch plays no role. Where that leaves no direction (a zero feature, the row's exact opposite, a NaN)
        the row stays as it was: rows are unit vectors always.
        """
        if ranks.world() > 1:
            counts = ranks.sizes(len(indices))
            indices, features = ranks.gather(indices, counts), ranks.gather(features.float(), counts)
        ordered, order = indices.sort(stable=True)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        # Sums of equal instances, without a data-dependent shape (which would make a GPU wait for the host). Two
        # addends give the same sum in either order, so two views stay deterministic on a GPU too.
        group = fresh.cumsum(0) - 1
        sums = torch.zeros(len(ordered), self.dim, device=self.device).index_add_(0, group, features.float()[order])
        counts_of = torch.zeros(len(ordered), device=self.device).index_add_(0, group, torch.ones_like(group).float())
        means = (sums / counts_of.clamp_min(1)[:, None])[group]
        if ranks.world() > 1:
            mine, here = self._here(ordered)
            ordered, means = mine[here], means[here]
        rows = self._gathered(ordered)
        renewed = self.momentum * rows + (1 - self.momentum) * means
        lengths = renewed.norm(dim=1, keepdim=True)
        # equal instances write equal values, so it does not matter which of them is written last
        renewed = torch.where(lengths > EPSILON, renewed / lengths.clamp_min(EPSILON), rows)
        self._write(ordered, *rounded(renewed, self.rows.dtype))
        self.updates += 1
        if self._disk is not None:
            self._disk.forget()

    def fill(self, indices: Int[Tensor, " rows"], vectors: Float[Tensor, "rows dim"]) -> None:
        """Put unit vectors in the places of rows, as they are: what is known before a run's first step.

        No update, and not counted as one. Rows that another rank holds are left to it.
        """
        mine, here = self._here(indices)
        self._write(mine[here], *rounded(vectors[here].float(), self.rows.dtype))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the rows themselves."""
        return {
            "instances": self.instances,
            "dim": self.dim,
            "momentum": self.momentum,
            "seed": self.seed,
            "updates": self.updates,
            "dtype": str(self.rows.dtype).removeprefix("torch."),
        }

    def __repr__(self) -> str:
        kind = str(self.rows.dtype).removeprefix("torch.")
        return f"MemoryBank({self.instances}, {self.dim}, momentum={self.momentum}, dtype={kind}, device={self.device})"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryBank:
        """Move the rows with the module, from a file into memory where the device is another one."""
        device = fn(torch.empty(0, device=self.device)).device
        if device != self.device:
            self.rows = self.rows.to(device)
            self.scales = None if self.scales is None else self.scales.to(device)
            self.device, self._disk = device, self._disk if device.type == "cpu" else None
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        shares = [ranks.share(self.instances, of) for of in range(ranks.world())]
        for name, part in self.tensors().items():
            destination[prefix + name] = ranks.gather(part, [stop - start for start, stop in shares])
        destination[prefix + "updates"] = torch.tensor(self.updates)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        expected = self.tensors() | {"updates": torch.tensor(self.updates)}
        given = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        missing_keys += [prefix + name for name in expected if name not in given]
        unexpected_keys += [prefix + name for name in given if name not in expected] if strict else []
        for name, part in self.tensors().items():
            whole = given.get(name, part)
            shape = torch.Size([self.instances, *part.shape[1:]])
            if name in given and (whole.shape != shape or whole.dtype != part.dtype):
                error_msgs.append(
                    f"{prefix}{name} is {tuple(whole.shape)} of {whole.dtype}, and this bank has {tuple(shape)} of "
                    f"{part.dtype}"
                )
            elif name in given:
                part.copy_(whole[self.start : self.stop])
        if "updates" in given and not error_msgs:
            self.updates = int(given["updates"])

    def want(self, positions: Tensor) -> None:
        """Have these of this rank's rows read ahead, where they are on disk."""
        if self._disk is not None:
            self._disk.want(positions)

    def _gathered(self, positions: Tensor) -> Tensor:
        """Rows on `device`, in float32; they travel as they are kept."""
        positions = positions.to(self.rows.device)
        self.want(positions)
        return self.kept.picked(positions, self.device)

    def _write(self, where: Tensor | slice, values: Tensor, scales: Tensor | None) -> None:
        device = self.rows.device
        where = where if isinstance(where, slice) else where.to(device)
        self.rows[where] = values.to(device)
        if self.scales is not None and scales is not None:
            self.scales[where] = scales.to(device)

    def _here(self, indices: Int[Tensor, "*any"]) -> tuple[Tensor, Tensor]:
        """Positions in `rows` (0 for what another rank holds) and whether this rank holds each."""
        here = (indices >= self.start) & (indices < self.stop)
        return torch.where(here, indices - self.start, 0), here
