"""One tour through ranks, bank and objectives on N processes, to be compared with the same tour on one.

    one, two = joined(1), joined(2)      # what all ranks say together: losses summed, the rest one after another

A process needs seconds to import torch, so everything is run in one group for each N, once a test session. Tests that
start processes of their own use `run_on_ranks`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import normalize

from instdisc import ranks
from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives import (
    NCE,
    BatchGroups,
    NonParametricSoftmax,
    NTXent,
    ParametricSoftmax,
    Proximal,
    SampledSoftmax,
)
from instdisc.search import pairs
from instdisc.search.index import Index
from instdisc.search.mahalanobis import outlier_scores

Facts = dict[str, torch.Tensor]

# More than one block of rows on each of two ranks; neither 2 nor 3 divides it: the shares are uneven.
INSTANCES, DIM = 5003, 12
# Each picture comes as two views, and the views of some stand on different ranks.
PICTURES = (10, 4000, 77, 10, 4000, 77, 2501, 5002, 0, 2501, 5002, 0)
PARTS = {1: (12,), 2: (8, 4), 3: (6, 2, 4)}
STEPS = 3


def run_on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What function(*arguments) returns on each of `world` gloo processes, in rank order.

    The function stands at the top of a module that a fresh process can import; it returns tensors and plain facts.
    An exception on a rank is raised here, with that rank's traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_one_rank, (world, folder, function, arguments), nprocs=world)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(world)]


def _one_rank(rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name need not resolve
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    ranks.join("gloo", init_method=meeting, timeout=timedelta(seconds=500), world_size=world, rank=rank)
    try:
        torch.save(function(*arguments), Path(folder, f"{rank}.pt"))
        ranks.barrier()
    finally:
        ranks.stop()


@cache
def tour(world: int) -> list[Facts]:
    """The facts of every rank."""
    return [_tour()] if world == 1 else run_on_ranks(world, _tour)


@cache
def joined(world: int) -> Facts:
    """The facts of all ranks as one: losses are summed, anything else stands in a row."""
    every = tour(world)
    assert all(facts.keys() == every[0].keys() for facts in every)
    together = {name: [facts[name] for facts in every] for name in every[0]}
    return {
        name: torch.stack(values).sum(0) if name.endswith(".loss") else torch.cat(values)
        for name, values in together.items()
    }


def objectives() -> dict[str, torch.nn.Module]:
    """Every objective in every way it can go, by a name that the tests use."""
    return {
        "softmax": NonParametricSoftmax(0.1),
        "softmax_masked": NonParametricSoftmax(0.1, mask_own=True),
        "softmax_cold": NonParametricSoftmax(0.01),
        "sampled": SampledSoftmax(0.1, 500),
        "sampled_private": SampledSoftmax(0.1, 40, "private"),
        "sampled_decoupled": SampledSoftmax(0.1, 500, decoupled=True, mask_own=False),
        "nce": NCE(0.3, 500, partition="first_batch"),
        "nce_average": NCE(0.3, 500, partition="moving_average"),
        "nce_private": NCE(0.3, 60, "private", "moving_average", mask_own=True),
        "nce_exact": NCE(0.3, 500, partition="exact"),
        "parametric": ParametricSoftmax(INSTANCES, DIM, seed=3),
        "views": NTXent(0.2, 300),
        "views_alone": NTXent(0.2, 0, weight=0.5),
        "groups": BatchGroups(DIM, 2, seed=3),
        "proximal": Proximal(10.0),
    }


def _tour() -> Facts:
    facts = {f"ranks.{name}": value for name, value in _ranks().items()}
    facts |= {f"bank.{name}": value for name, value in _bank().items()}
    facts |= {f"compared.{name}": value for name, value in _compared().items()}
    for name, objective in objectives().items():
        facts |= {f"{name}.{what}": value for what, value in _steps(objective).items()}
    return facts


def alike_rows() -> torch.Tensor:
    """Unit vectors, some of them several times, far from each other: equal scores on different ranks."""
    rows = normalize(torch.randn(900, DIM, generator=torch.Generator().manual_seed(11)), dim=1)
    for copies in (300, 600, 899):
        rows[copies : copies + 40] = rows[: min(40, len(rows) - copies)]
    return rows


def _compared() -> Facts:
    """Pairs, neighbours, search and outlier scores among rows that every rank holds."""
    rows, others = alike_rows(), alike_rows()[450:700]
    with patch.multiple(pairs, _QUERIES=128, _ROWS=50, _TILE=16):  # many blocks, and some that are cut
        return _compare(rows, others)


def _compare(rows: torch.Tensor, others: torch.Tensor) -> Facts:
    own = pairs.Vectors.of(rows)
    within = pairs.similar_pairs(own, 0.8)
    between = pairs.similar_pairs(own, 0.8, against=pairs.Vectors.of(others))
    scores, places = pairs.neighbours_of_all(own, 4)
    facts = {f"within_{name}": torch.from_numpy(value) for name, value in vars(within).items()}
    facts |= {f"between_{name}": torch.from_numpy(value) for name, value in vars(between).items()}
    facts |= {"all_scores": torch.from_numpy(scores), "all_places": torch.from_numpy(places)}

    names = pa.array([f"{number:04d}" for number in range(len(rows))], pa.large_string())
    removed = np.arange(len(rows)) % 7 == 3
    index = Index([rows[:200], rows[200:]], pa.table({"id": names, "location": names}), removed=removed)
    queries = rows[[0, 5, 301, 899]]
    among = np.arange(len(rows)) % 2 == 0
    few = np.isin(np.arange(len(rows)), (2, 851, 854))  # some ranks have none of them
    asked = {
        "": index.search(queries, 9),
        "some_": index.search(queries, 9, among=among, exclude=np.array([0, 5, -1, 899])),
        "few_": index.search(queries, 3, among=few),
    }
    for name, (found, numbers) in asked.items():
        facts |= {f"{name}search_scores": found, f"{name}search_rows": numbers}

    begin, end = ranks.share(len(rows))
    stages = {"one": rows[begin:end].numpy(), "two": rows[begin:end, :3].numpy() ** 2}
    facts["outlier_scores"] = ranks.gather(torch.from_numpy(outlier_scores(stages)))

    broken = rows.clone()
    broken[850, 2] = torch.nan  # the last rank alone meets it as a query
    for name, wrong in {
        "not_finite": lambda: pairs.neighbours_of_all(pairs.Vectors.of(broken), 4),
        "pairs_not_finite": lambda: pairs.similar_pairs(pairs.Vectors.of(broken), 0.8),
        "search_not_finite": lambda: Index([broken], index.pictures).search(queries, 9),
        "too_many": lambda: pairs.similar_pairs(own, 0.8, most=len(within) - 1),
        "fail_together": lambda: _fail_on(ranks.world() - 1),
        "on_main": lambda: ranks.on_main(_fail),
    }.items():
        try:
            wrong()
            facts[name] = torch.zeros(0, dtype=torch.int64)
        except InputError as error:
            facts[name] = torch.tensor(list(str(error).encode()))
    return facts


def _fail_on(rank: int) -> None:
    with ranks.fail_together():
        if ranks.rank() == rank:
            _fail()


def _fail() -> None:
    raise InputError("It went wrong here.")


def _ranks() -> Facts:
    """What the processes send each other; rank r brings r + 1 rows, the last one none."""
    rank, world = ranks.rank(), ranks.world()
    count = rank + 1 if rank < world - 1 else 0
    rows = torch.full((count, 2), float(rank))
    facts = {
        "world": torch.tensor([world]),
        "main": torch.tensor([ranks.is_main()]),
        "share": torch.tensor(ranks.share(10)),
        "sizes": torch.tensor(ranks.sizes(count)),
        "gathered": ranks.gather(rows),
        "gathered_whole_numbers": ranks.gather(torch.arange(count), ranks.sizes(count)),
        "total": ranks.total(torch.tensor([1.0, rank])),
        "largest": ranks.largest(torch.tensor([-1.0, rank])),
        "any": torch.tensor([ranks.any_rank(rank == 1), ranks.any_rank(False)]),
        "word": torch.tensor(list(ranks.broadcast_object(f"from {rank}", 1 if world > 1 else 0).encode())),
    }
    leaf = torch.arange(1.0, count + 1).requires_grad_()
    everyone = ranks.gather_with_gradient(leaf)
    # the sum over ranks r of (r + 1) * sum_j x_j^2
    ((rank + 1) * everyone.square().sum()).backward()
    facts |= {"gradient_leaf": leaf.detach(), "gradient": leaf.grad}

    model = torch.nn.BatchNorm1d(2, affine=False)
    model.running_mean = torch.tensor([0.0, rank])
    model.num_batches_tracked = torch.tensor(7 + rank)
    ranks.average_buffers(model)
    facts |= {"mean": model.running_mean, "batches": model.num_batches_tracked[None]}

    linear = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(linear.weight)
    parallel = ranks.data_parallel(linear)
    parallel(torch.tensor([[float(rank)]])).sum().backward()
    facts["averaged"] = linear.weight.grad[0]
    facts["same_module"] = torch.tensor([parallel is linear, ranks.data_parallel(model) is model])
    ranks.barrier()
    return facts


def _part() -> slice:
    """Which pictures of the global batch this rank brings."""
    counts = PARTS[ranks.world()]
    first = sum(counts[: ranks.rank()])
    return slice(first, first + counts[ranks.rank()])


def _features(step: int) -> torch.Tensor:
    """The unit features of the global batch, the same on every rank."""
    return normalize(torch.randn(len(PICTURES), DIM, generator=torch.Generator().manual_seed(step)), dim=1)


def _steps(objective: torch.nn.Module) -> Facts:
    """Losses, gradients and the bank's rows over some steps of one objective."""
    bank = MemoryBank(INSTANCES, DIM, seed=5)
    part = _part()
    indices = torch.tensor(PICTURES)[part]
    gradients, losses = [], []
    for step in range(STEPS):
        features = _features(step)[part].requires_grad_()
        # each rank's loss is the mean over its own part
        loss = objective(features, indices, bank) * (len(indices) / len(PICTURES))
        loss.backward()
        losses.append(loss.detach())
        gradients.append(features.grad)
        bank.update(indices, features.detach())
    facts = {"loss": torch.stack(losses), "gradient": torch.stack(gradients, dim=1), "rows": bank.rows}
    for name, parameter in objective.named_parameters():
        facts[f"{name}.loss"] = parameter.grad  # summed over ranks, as a loss is
    for name, buffer in objective.named_buffers():
        facts[name] = buffer[None]
    return facts


def _bank() -> Facts:
    """The bank's own answers, also where a rank brings no picture at all."""
    bank = MemoryBank(INSTANCES, DIM, seed=1, momentum=0.25)
    facts = {"random": bank.rows.clone()}
    part, features = _part(), _features(0)
    indices = torch.tensor(PICTURES)
    common = torch.arange(0, INSTANCES, 7)
    private = torch.arange(len(PICTURES) * 50).reshape(len(PICTURES), 50) * 8 % INSTANCES
    mine = features[part].requires_grad_()
    facts["lookup"] = bank.lookup(indices[part])
    facts["table"] = bank.lookup(private[part])
    facts["positives"] = bank.positives(mine, indices[part])
    facts["scores"] = bank.scores(mine, common)
    facts["private"] = bank.scores(mine, private[part])
    facts["log_partition"] = bank.log_partition(mine, 0.07)
    facts["without"] = bank.log_partition(mine, 0.07, without=indices[part])
    facts["cold"] = bank.log_partition(mine, 0.005)
    facts["noise_scores"] = bank.scores(mine, common[:5])
    weights = torch.linspace(-1, 2, 50)
    for name in ("private", "scores", "log_partition", "without", "cold"):
        answer = facts[name]
        scalar = (answer * weights).sum() if name == "private" else answer.square().sum()
        (facts[f"{name}_gradient"],) = torch.autograd.grad(scalar, mine, retain_graph=True)

    bank.update(indices[part], mine.detach())
    facts["once"] = bank.rows.clone()
    # the last rank brings everything, the others nothing; one picture comes three times
    alone = slice(0, len(PICTURES)) if ranks.rank() == ranks.world() - 1 else slice(0, 0)
    thrice = torch.tensor([3, 3, 3, *PICTURES[3:]])
    facts["empty_lookup"] = bank.lookup(thrice[alone])
    facts["empty_private"] = bank.scores(features[alone], private[alone])
    facts["empty_partition"] = bank.log_partition(features[alone], 0.07)
    bank.update(thrice[alone], features[alone])
    facts["twice"] = bank.rows.clone()

    half = MemoryBank(INSTANCES, DIM, seed=1, dtype=torch.bfloat16)
    half.update(indices[part], mine.detach())
    facts["half"] = half.rows.float()
    facts["half_partition"] = half.log_partition(mine, 0.07)

    tiny = MemoryBank(2, DIM)  # on three ranks one holds no row
    facts["tiny_partition"] = tiny.log_partition(mine, 0.07, without=indices[part] % 2)
    facts["tiny_cold"] = tiny.log_partition(mine, 0.005)
    return {name: value.detach() for name, value in facts.items()}
