"""The loss over the bank, with its gradient: time, memory and error of each way, beside the limit of matrix products.

    python benchmarks/loss_head.py --out results/loss_head.json        # 2 minutes; keep the machine quiet

Batch 128, 128 numbers a row, temperature 0.07, banks of 50,000 and of 1,280,000 random rows, on the GPU if there is
one. All ways take turns in one process, the second of two calls timed. Ours: the exact softmax with products in float32
and in bfloat16, the sampled softmax and NCE with 4,096 negatives, shared by the batch or private to a picture. Beside
them: torch's own attention kernel (the expected rows alone, without log Z), and the limit, the two matrix products of
the exact softmax over rows that stay in the cache, with no exp and no sum. Afterwards, in turns of their own: the
(batch, n) matrix with autograd, and a gather of all private negatives.

Memory: the growth of the process's peak over what stood before, one way in a process of its own (on Linux; on a GPU,
of the allocator's); for drawn negatives over a small bank only, as theirs does not depend on it. Error: of the gradient
against float64, relative to its length, for features unlike any row and for features with a cosine of 0.9 to their own
row, whose weight is then large.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import record
from torch.nn.functional import cross_entropy, normalize, scaled_dot_product_attention

from instdisc.allocator import keep_freed_memory
from instdisc.bank import MemoryBank
from instdisc.objectives import NCE, NonParametricSoftmax, SampledSoftmax

BATCH, DIM, TEMPERATURE, NEGATIVES = 128, 128, 0.07, 4096
INSTANCES = (50_000, 1_280_000)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXACT = {"exact, float32": torch.float32, "exact, bfloat16": torch.bfloat16}
LIMITS = {"limit, float32": torch.float32, "limit, bfloat16": torch.bfloat16}
WITH_ERRORS = (*EXACT, "naive matrix")


def bank_of(instances: int) -> MemoryBank:
    """A bank of random unit rows, made quickly."""
    bank = MemoryBank(1, DIM, device=DEVICE)
    bank.rows = torch.randn(instances, DIM, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)
    for part in bank.rows.split(65_536):
        part.div_(part.norm(dim=1, keepdim=True))
    bank.instances, bank.start, bank.stop = instances, 0, instances
    return bank


def features_of(bank: MemoryBank, own: torch.Tensor, cosine: float) -> torch.Tensor:
    """Unit features with this cosine to the rows of their own instances."""
    rows = bank.rows[own]
    other = torch.randn(BATCH, DIM, generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE)
    side = normalize(other - (other * rows).sum(1, keepdim=True) * rows, dim=1)
    return (cosine * rows + math.sqrt(1 - cosine**2) * side).requires_grad_()


def ways(bank: MemoryBank, features: torch.Tensor, own: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Each way by name: loss and gradient, which is left in `features.grad`."""

    def both(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def step() -> None:
            features.grad = None
            bank.updates += 1  # every step draws its own negatives
            loss().backward()

        return step

    def by_matrix() -> torch.Tensor:
        return cross_entropy(features @ bank.rows.T / TEMPERATURE, own)

    def by_gather() -> torch.Tensor:
        rows = bank.rows[torch.cat([own[:, None], private.noise.indices(own, bank)], dim=1)]
        return cross_entropy((rows @ features[:, :, None])[:, :, 0] / TEMPERATURE, torch.zeros_like(own))

    def by_attention() -> torch.Tensor:
        keys = bank.rows[None, None]
        return scaled_dot_product_attention(features.detach()[None, None], keys, keys, scale=1 / TEMPERATURE)

    def products(kind: torch.dtype) -> Callable[[], object]:
        rows = bank.rows[:4096].to(kind)
        columns = features.detach().T.to(kind).contiguous()
        scores = torch.empty(len(rows), BATCH, dtype=kind, device=DEVICE)
        weighted = torch.empty(BATCH, DIM, dtype=kind, device=DEVICE)

        def step() -> None:
            for _ in range(round(bank.instances / len(rows))):
                torch.mm(rows, columns, out=scores)
                torch.mm(scores.T, rows, out=weighted)

        return step

    found: dict[str, Callable[[], object]] = {}
    for name, kind in EXACT.items():
        exact = NonParametricSoftmax(TEMPERATURE, products=kind)
        found[name] = both(lambda exact=exact: exact(features, own, bank))
    found["naive matrix"] = both(by_matrix)
    found["attention alone, float32"] = by_attention
    private = SampledSoftmax(TEMPERATURE, NEGATIVES, "private")
    sampled = {
        "sampled, shared": SampledSoftmax(TEMPERATURE, NEGATIVES),
        "nce, shared": NCE(TEMPERATURE, NEGATIVES),
        "sampled, private": private,
        "nce, private": NCE(TEMPERATURE, NEGATIVES, "private"),
    }
    for name, objective in sampled.items():
        found[name] = both(lambda objective=objective: objective(features, own, bank))
    found["naive gather, private"] = both(by_gather)
    for name, kind in LIMITS.items():
        found[name] = products(kind)
    return found


def milliseconds(run: Callable[[], object]) -> float:
    """The time of one call, on a GPU until it is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def gradient_in_float64(bank: MemoryBank, features: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """(expected row - own row) / temperature, over the batch, in blocks of rows; scores never pass 1 / temperature."""
    queries = features.detach().double() / TEMPERATURE
    sums, weighted = queries.new_zeros(BATCH, 1), torch.zeros_like(queries)
    for part in bank.rows.split(16_384):
        rows = part.double()
        powers = (queries @ rows.T).exp()
        sums += powers.sum(1, keepdim=True)
        weighted += powers @ rows
    return (weighted / sums - bank.rows[own].double()) / TEMPERATURE / BATCH


def peak_megabytes(name: str, instances: int) -> float | None:
    """How far memory rises above bank and features during one call of a way, 10^6 bytes; None where it isn't told."""
    bank, few = bank_of(instances), bank_of(1000)
    own = torch.arange(BATCH, device=DEVICE)
    ways(few, features_of(few, own, 0.0), own)[name]()  # libraries are loaded and have their own buffers by now
    features = features_of(bank, own, 0.0)
    run = ways(bank, features, own)[name]
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.is_file():
        return None
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # what was freed would be taken again, unseen
        ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")  # the peak is now what is held now
    before = _held(status, "VmRSS")
    run()
    return (_held(status, "VmHWM") - before) / 1e3


def _held(status: Path, field: str) -> float:
    """Thousands of bytes."""
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1.024  # the kernel counts in 1024


def measure(instances: int, rounds: int) -> dict[str, dict[str, object]]:
    """Every way over a bank of so many rows."""
    bank = bank_of(instances)
    own = torch.arange(BATCH, device=DEVICE) * (instances // BATCH)
    features = features_of(bank, own, 0.0)
    taken: dict[str, list[float]] = {}
    every = ways(bank, features, own)
    naive = {name: run for name, run in every.items() if name.startswith("naive")}
    # Those last: for seconds after they gave back their gigabytes the system is busy with them.
    for turns in ({name: run for name, run in every.items() if name not in naive}, naive):
        for _ in range(rounds):
            for name, run in turns.items():
                run()  # not counted: it would pay for what the way before it left in the caches
                taken.setdefault(name, []).append(milliseconds(run))
    table: dict[str, dict[str, object]] = {}
    errors = {name: {} for name in WITH_ERRORS}
    for kind, cosine in {"unlike any row": 0.0, "cosine 0.9 to the own row": 0.9}.items():
        features = features_of(bank, own, cosine)
        exact = gradient_in_float64(bank, features, own)
        for name in WITH_ERRORS:
            ways(bank, features, own)[name]()
            assert features.grad is not None
            errors[name][kind] = float((features.grad - exact).norm() / exact.norm())
    print(f"\n{instances:,} rows       median ms (least, most)   of the limit   peak MB   gradient's errors")
    for name, times in taken.items():
        limit = next((statistics.median(taken[bound]) for bound in LIMITS if bound[7:] == name.split(", ")[-1]), None)
        row: dict[str, object] = {
            "milliseconds": times,
            "median_ms": statistics.median(times),
            "share_of_limit": limit / statistics.median(times) if limit and name in EXACT else None,
        }
        if name in WITH_ERRORS or (name not in LIMITS and instances <= 200_000):
            row["peak_mb"] = _in_a_process(name, instances)
        if name in errors:
            row["gradient_errors"] = errors[name]
        table[name] = row
        share, peak = row["share_of_limit"], row.get("peak_mb")
        print(
            f"{name:26}{statistics.median(times):9.2f} ({min(times):.2f}, {max(times):.2f})".ljust(56)
            + (f"{share:.0%}" if share else "").ljust(9)
            + ("" if peak is None else f"{peak:9.1f}").ljust(12)
            + " ".join(f"{error:.1e}" for error in errors.get(name, {}).values()),
            flush=True,
        )
    flop = 4 * instances * BATCH * DIM
    for name in LIMITS:
        rate = flop / statistics.median(taken[name]) / 1e6
        table[name]["gflop_per_second"] = rate
        print(f"{name}: {rate:.0f} GFLOP/s")
    return table


def _in_a_process(name: str, instances: int) -> float | None:
    words = [sys.executable, __file__, "--peak", name, "--instances", str(instances)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    peak: float | None = json.loads(done.stdout.splitlines()[-1])
    return peak


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--instances", type=int, nargs="+", default=list(INSTANCES), help="rows of the bank")
    parser.add_argument("--rounds", type=int, default=12, help="a quarter as many above 200,000 rows")
    parser.add_argument("--peak", metavar="WAY", help="measure the memory of one way alone, in this process")
    settings = parser.parse_args()
    if settings.peak:
        print(json.dumps(peak_megabytes(settings.peak, settings.instances[0])))
        return
    keep_freed_memory()  # as `instdisc train` does
    tables = {}
    for instances in settings.instances:
        rounds = settings.rounds if instances <= 200_000 else max(2, settings.rounds // 4)
        tables[str(instances)] = measure(instances, rounds)
    first = tables[str(settings.instances[0])]["exact, float32"]["milliseconds"]
    assert isinstance(first, list)
    record(
        settings.out,
        name="loss_head",
        command="python benchmarks/loss_head.py"
        + ("" if settings.instances == list(INSTANCES) else f" --instances {' '.join(map(str, settings.instances))}")
        + ("" if settings.rounds == 12 else f" --rounds {settings.rounds}"),
        unit=f"ms: exact softmax and gradient, float32 products, {settings.instances[0]} rows, batch {BATCH}",
        values=first,
        seeds=[0] * len(first),
        batch=BATCH,
        dim=DIM,
        temperature=TEMPERATURE,
        negatives=NEGATIVES,
        rows=tables,
    )


if __name__ == "__main__":
    main()
