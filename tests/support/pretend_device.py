"""A pretend accelerator, which finds faults of code for GPUs: tensors say that they live on it, and the CPU computes.

    python tests/support/pretend_device.py train digits --preset digits --epochs 2 --set precision=float32 --out RUN
    python tests/support/pretend_device.py evaluate RUN --with svm,linear,retrieval,quality  # any; waits come last

Two kinds of faults show without a GPU. Tensors of two devices in one operation are refused, as a GPU refuses them. And
places where the host waits for the device are counted, by operation and line: what it reads (`.item()`, `.tolist()`,
`bool`, `.cpu()`), what has a shape that depends on values (`nonzero`, a mask as an index, `unique`, `bincount`), and
what is copied there from the host without `non_blocking`. A copy to the host that is `non_blocking` counts as begun:
somebody waits for it later. On a CUDA device each of the others lets its queue run empty.

It says nothing of speed, numerics, memory, CUDA's own kernels or torch.compile; under autocast, convolutions and
products are in half precision. It stands on torch's Python backend for PrivateUse1, which is experimental, and is the
process's for good: hence the tests use it in processes of their own (on_pretend_device.py).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


backend_registration._setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
DEVICE = torch.device("pretend:0")
BEGUN = "copy to the host, begun"
# (operation, file of the package and line) -> how often the host waited there
waits: Counter[tuple[str, str]] = Counter()
_VALUES_ASKED_FOR = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "is_nonzero", "_unique2",
        "_unique", "unique_consecutive", "unique_dim", "bincount", "repeat_interleave", "_linalg_svd", "_linalg_eigh",
    )
}  # fmt: skip
# Here, and nowhere else, a GPU takes whole numbers from the host as an index, and copies them first.
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}


def note(operation: str) -> None:
    """Count a wait where the package asks for it."""
    frames = [frame for frame in traceback.extract_stack() if "/instdisc/" in frame.filename]
    where = f"{frames[-1].filename.rpartition('/instdisc/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
    waits[operation, where] += 1


class Far(torch.Tensor):
    """A tensor on the pretend device; `inner` is the CPU tensor behind it."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        note("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor of the pretend device has no NumPy array: copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Pretend(TorchDispatchMode):
    """Inside, new tensors may be made on the pretend device (by this thread)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def counted() -> Iterator[Counter[tuple[str, str]]]:
    """The waits inside, once it is over."""
    before, found = Counter(waits), Counter[tuple[str, str]]()
    yield found
    found.update(waits - before)


def _near(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, Far)


def _is_far(device: Any) -> bool:
    return device is not None and torch.device(device).type == "pretend"


def _refuse_mixture(name: str, args: Any, kwargs: Any) -> None:
    """An error where a CPU tensor stands beside a far one; a single number may, and whole numbers as an index."""
    if name in _INDEXING:
        indices = [one for one in args[1] if one is not None]
        if any(map(_near, indices)):
            note("copy from the host: an index")
        args = (args[0], *args[2:])
    mixed = [tuple(one.shape) for one in tree_flatten((args, kwargs))[0] if _near(one) and one.dim()]
    if mixed:
        raise RuntimeError(f"{name} has tensors on two devices: those of the shapes {mixed} are on the CPU.")


def _note_waits(name: str, args: Any, kwargs: Any, far: bool) -> None:
    """Count what makes the host wait."""
    if name == "aten::copy_":
        to_far, from_far = isinstance(args[0], Far), isinstance(args[1], Far)
        waiting = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
    elif name == "aten::_to_copy":
        from_far = isinstance(args[0], Far)
        to_far = from_far if kwargs.get("device") is None else _is_far(kwargs["device"])
        waiting = not kwargs.get("non_blocking")
    else:
        masks = name in _INDEXING and any(
            isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if far and (name in _VALUES_ASKED_FOR or masks):
            note(name if not masks else f"{name} by a mask")
        return
    if from_far and not to_far:
        note("copy to the host" if waiting else BEGUN)
    elif to_far and not from_far and waiting:
        note("copy from the host")


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func._schema.name
    far = any(isinstance(one, Far) for one in tree_flatten((args, kwargs))[0])
    asked, copies = kwargs.get("device"), name in ("aten::_to_copy", "aten::copy_")
    if far and not copies:
        _refuse_mixture(name, args, kwargs)
    _note_waits(name, args, kwargs, far)
    to_far = _is_far(asked)
    if to_far:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner = tree_map(lambda one: one.inner if isinstance(one, Far) else one, (args, kwargs))
    out = func(*inner[0], **inner[1])
    if not isinstance(out, torch.Tensor | list | tuple):
        return out
    if func._schema.is_mutable and name.split("::")[1].endswith("_") and args and isinstance(args[0], torch.Tensor):
        return args[0]
    if isinstance(kwargs.get("out"), Far):
        return kwargs["out"]
    if to_far or (far and (asked is None or not copies)):
        return tree_map(lambda one: Far(one) if _near(one) else one, out)
    return out


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Far:
    return Far(torch.empty(size, dtype=dtype, device="cpu", memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Far:
    note("copy from the host")  # torch.tensor(..., device=...), new_tensor
    return Far(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    near = (one.inner if isinstance(one, Far) else one for one in (target, source))
    next(near).copy_(next(near))
    return target


_library = torch.library.Library("aten", "IMPL")  # for threads, and for what is made below the dispatch mode
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")


def _in_half(name: str) -> Any:
    """An operator as autocast runs it: float32 tensors as the dtype of the moment."""

    def run(*args: Any, **kwargs: Any) -> Any:
        def half(one: Any) -> Any:
            wide = isinstance(one, torch.Tensor) and one.dtype == torch.float32
            return one.to(torch.get_autocast_dtype("pretend")) if wide else one

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            args, kwargs = tree_map(half, (args, kwargs))
            return getattr(torch, name)(*args, **kwargs)

    return run


for _name in ("conv2d", "matmul", "mm", "bmm", "addmm", "baddbmm"):
    _library.impl(_name, _in_half(_name), "AutocastPrivateUse1")
_others = torch.library.Library("_", "IMPL")
_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


def main() -> None:
    """Run a command with `--device pretend`, and print where the host waited."""
    from instdisc import cli, ranks

    ranks.device = lambda asked="auto": DEVICE
    try:
        with Pretend():
            cli.main()
    finally:
        for (operation, where), times in waits.most_common(40):
            print(f"{times:6d}  {operation:30s} {where}")


if __name__ == "__main__":
    main()
