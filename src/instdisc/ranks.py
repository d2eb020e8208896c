"""The processes of one run, and what they send each other: the only user of torch.distributed.

A run of one process is the same code with nothing to send: every function here is then the identity. Under `torchrun`
call `start()` once, first. Only `gather_with_gradient` carries a gradient: the bank derives its
own by hand, because an `all_reduce` inside a graph gives a gradient off by the world size while the loss looks right.
"""

from __future__ import annotations

import importlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from instdisc.errors import InputError
from instdisc.shapes import Tensor

__all__ = [
    "average_buffers",
    "data_parallel",
    "device",
    "distributed",
    "gather",
    "gather_with_gradient",
    "is_main",
    "rank",
    "share",
    "start",
    "stop",
    "total",
    "world",
]

Answer = TypeVar("Answer")


def start() -> None:
    """Join the other processes that torchrun started (by its environment variables), or do nothing.

    Examples:
        >>> from instdisc import ranks
        >>> ranks.start()  # without torchrun: one process
        >>> ranks.world()
        1
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local())
        timeout = timedelta(minutes=30)
        join("nccl" if torch.cuda.is_available() else "gloo", timeout=timeout, **_meet(timeout))


def _meet(timeout: timedelta) -> dict[str, Any]:
    """Where the processes of this start find each other, for init_process_group.

    torchrun keeps one store for all the starts of a group, so a process that is early can read there what one of the
    start before had written: the address of a process that is dead. It fails, all are started again, and so on. Hence
    each start has keys of its own: rank 0 invents a name for them, and another believes it when rank 0, under that
    name, says the very word that this one had left there.
    """
    try:
        store, rank, world = next(rendezvous("env://", timeout=timeout))
        name = _name_of_start(store, rank, world, timeout)
    except (dist.DistError, ValueError) as error:  # ValueError: a variable of torchrun's is missing
        expected, why = os.environ["WORLD_SIZE"], str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"WORLD_SIZE is {expected}, but {expected} processes have not met ({why}): start them all with torchrun, "
            "or one alone without WORLD_SIZE."
        ) from error
    return {"store": PrefixStore(name, store), "rank": rank, "world_size": world}


def _name_of_start(store: Store, rank: int, world: int, timeout: timedelta) -> str:
    word = uuid.uuid4().hex
    if rank == 0:
        store.set("start", word)
        store.set(f"{word}/met", " ".join(store.get(f"{word}/{other}").decode() for other in range(1, world)))
        return word
    pause, until = 0.05, time.monotonic() + timeout.total_seconds()
    while time.monotonic() < until:
        name = store.get("start").decode()
        store.set(f"{name}/{rank}", word)
        time.sleep(pause)
        pause = min(1.5 * pause, 1.0)
        if store.check([f"{name}/met"]) and word in store.get(f"{name}/met").decode():
            return name
    raise dist.DistStoreError(f"rank 0 has not come in {timeout}")


def join(backend: str, **settings: Any) -> None:
    """torch.distributed.init_process_group, in such a way that `stop` ends everything that it begins."""
    # The functions of this module keep the group that exists when it is imported (as the default of an argument), and
    # torch imports it with any optimizer. A group so kept has threads that outlive `stop`; one that still holds a
    # tensor when the interpreter ends aborts the process ("terminate called without an active exception").
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, **settings)


def stop() -> None:
    """Leave the group of processes, if one was joined.

    Examples:
        >>> from instdisc import ranks
        >>> ranks.stop()  # nothing to leave: nothing happens
    """
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def distributed() -> Iterator[None]:
    """`start()` on entry and `stop()` on exit, for a whole command.

    Examples:
        >>> from instdisc import ranks
        >>> with ranks.distributed():
        ...     print(f"rank {ranks.rank()} of {ranks.world()}")
        rank 0 of 1
    """
    already = dist.is_initialized()
    start()
    try:
        yield
    finally:
        if not already:
            stop()


together = distributed  # its name in 0.1, for one release


def rank() -> int:
    """The number of this process, from 0.

    Examples:
        >>> from instdisc import ranks
        >>> ranks.rank()  # without torchrun
        0
    """
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are.

    Examples:
        >>> from instdisc import ranks
        >>> ranks.world()  # without torchrun
        1
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def local() -> int:
    """The number of this process on its own machine: which GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device(asked: str = "auto") -> torch.device:
    """The device of this process: the one asked for, or this process's GPU, Apple's, or the CPU, whichever there is.

    Examples:
        >>> from instdisc import ranks
        >>> ranks.device("cpu")
        device(type='cpu')
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(asked)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three, for want of one
        reason = (str(error).splitlines() or ["torch gives no reason"])[0].rstrip(".")
        raise InputError(
            f'The device "{asked}" can\'t be used here ({reason}): leave it to auto, or take cpu.'
        ) from error
    return chosen


def is_main() -> bool:
    """Whether this process prints and writes files.

    Examples:
        >>> from instdisc import ranks
        >>> ranks.is_main()  # without torchrun
        True
    """
    return rank() == 0


def share(count: int, of: int | None = None, total: int | None = None) -> tuple[int, int]:
    """The contiguous part [start, stop) of range(count) that rank `of` (this one) holds among `total` (all) ranks.

    The first `count % total` ranks hold one more than the others.

    Examples:
        >>> from instdisc import ranks
        >>> [ranks.share(10, of=rank, total=3) for rank in range(3)]
        [(0, 4), (4, 7), (7, 10)]
    """
    of = rank() if of is None else of
    total = world() if total is None else total
    size, more = divmod(count, total)
    first = of * size + min(of, more)
    return first, first + size + (of < more)


def barrier() -> None:
    """Wait until every process has come here."""
    if world() > 1:
        dist.barrier()


def sizes(count: int) -> list[int]:
    """`count` of every rank, in rank order."""
    if world() == 1:
        return [count]
    everyone: list[Any] = [None] * world()
    dist.all_gather_object(everyone, count)
    return everyone


def gather(tensor: Tensor, counts: list[int] | None = None) -> Tensor:
    """The tensors of all ranks one after another along dimension 0; lengths may differ. No gradient.

    Give `counts` (the length at every rank) where they are known: otherwise they are exchanged first.

    Examples:
        >>> import torch
        >>> from instdisc import ranks
        >>> ranks.gather(torch.tensor([[1.0], [2.0]])).shape  # of two ranks with two rows each: (4, 1)
        torch.Size([2, 1])
    """
    if world() == 1:
        return tensor.detach()
    counts = sizes(len(tensor)) if counts is None else counts
    longest = max(counts)
    padded = tensor.detach().new_zeros((longest, *tensor.shape[1:]), device=_sending(tensor))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count].to(tensor.device) for part, count in zip(parts, counts, strict=True)])


def _sending(tensor: Tensor) -> torch.device:
    """Where it must stand to be sent: NCCL takes it from this process's GPU only."""
    return torch.device("cuda", local()) if dist.get_backend() == "nccl" else tensor.device


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.counts = sizes(len(tensor))
        return gather(tensor, ctx.counts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        first = sum(ctx.counts[: rank()])
        return total(gradients[0].contiguous())[first : first + ctx.counts[rank()]]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """`gather`, where what every rank's loss says of this rank's part is summed in backward.

    That is the gradient of the sum of the ranks' losses, which data-parallel averaging then divides by their number.

    Examples:
        >>> import torch
        >>> from instdisc import ranks
        >>> features = torch.ones(2, 4, requires_grad=True)
        >>> ranks.gather_with_gradient(features).sum().backward()
        >>> features.grad.sum()
        tensor(8.)
    """
    return tensor if world() == 1 else _GatherWithGradient.apply(tensor)


def total(tensor: Tensor) -> Tensor:
    """The elementwise sum over ranks, as a new tensor. No gradient.

    Examples:
        >>> import torch
        >>> from instdisc import ranks
        >>> hits, tried = ranks.total(torch.tensor([3, 4])).tolist()
        >>> hits / tried
        0.75
    """
    if world() == 1:
        return tensor.detach()
    summed = tensor.detach().to(_sending(tensor), copy=True)
    dist.all_reduce(summed)
    return summed.to(tensor.device)


def largest(tensor: Tensor) -> Tensor:
    """The elementwise maximum over ranks, as a new tensor. No gradient."""
    if world() == 1:
        return tensor.detach()
    result = tensor.detach().to(_sending(tensor), copy=True)
    dist.all_reduce(result, op=dist.ReduceOp.MAX)
    return result.to(tensor.device)


def any_rank(flag: bool) -> bool:
    """Whether the flag is up on any rank: a decision that all ranks then take together."""
    return flag if world() == 1 else bool(largest(torch.tensor([int(flag)])).item())


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The value of rank `source` on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def on_main(work: Callable[[], Answer]) -> Answer:
    """Do it on the main process; every process has the answer, or the same InputError."""
    answer: Any = None
    problem: InputError | None = None
    if is_main():
        try:
            answer = work()
        except InputError as error:
            problem = error
    answer, problem = broadcast_object((answer, problem))
    if problem is not None:
        raise problem
    return answer


@contextmanager
def fail_together() -> Iterator[None]:
    """Where a rank raises an InputError inside, every rank raises one once it has come to the end.

    Without it the others would wait for that rank in whatever they send each other next.
    """
    problem: InputError | None = None
    try:
        yield
    except InputError as error:
        problem = error
    if world() > 1:
        everyone: list[Any] = [None] * world()
        dist.all_gather_object(everyone, problem)
        problem = problem or next((one for one in everyone if one is not None), None)
    if problem is not None:
        raise problem


def data_parallel(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its gradients averaged over ranks in `backward` (DistributedDataParallel); itself for one rank.

    Buffers (batch statistics) stay each rank's own: `average_buffers` brings them together where they are used.

    Examples:
        >>> import torch
        >>> from instdisc import ranks
        >>> encoder = torch.nn.Linear(4, 2)
        >>> ranks.data_parallel(encoder) is encoder  # in one process
        True
    """
    if world() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    with warnings.catch_warnings():  # DDP's own internals warn about their deprecations
        warnings.simplefilter("ignore")
        devices = [local()] if next(module.parameters()).is_cuda else None
        return torch.nn.parallel.DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)


def average_buffers(module: torch.nn.Module) -> None:
    """Replace every floating buffer (running statistics) by its mean over ranks, in place.

    Examples:
        >>> import torch
        >>> from instdisc import ranks
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> ranks.average_buffers(norm)  # before the weights are saved or measured
        >>> norm.running_mean
        tensor([0., 0.])
    """
    if world() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(total(buffer) / world())
