"""What work costs over a network: two hosts (network namespaces of this machine) and a link of some rate.

    python stress/hosts.py               # as root on Linux, with iproute2; some minutes

A training step: both hosts train conv6 of width 32 on made pictures of 32 px, batch 256, exact softmax, float32, one
process of one thread each: the gradients of the weights and the features of the batch go over the link in every step,
whatever the number of rows of the bank. Looking through a collection of made vectors, which both hosts have: all pairs
above a cosine, the ten neighbours of all, and those of 256 queries; what each found goes over the link. The rate is
limited on the way out of each host. Results go to results/hosts.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import numpy as np
import pyarrow as pa
import torch
from pretend_hosts import hosts, torchrun
from record import record
from torch.nn.functional import normalize

from instdisc import ranks
from instdisc.allocator import keep_freed_memory
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.open import open_source
from instdisc.encoder import build_encoder
from instdisc.runs import RunFolder
from instdisc.search.index import Index
from instdisc.search.pairs import neighbours_of_all, similar_pairs
from instdisc.training import Settings, Training

WAYS: tuple[tuple[int, float | None], ...] = (
    (5_000, None),
    (50_000, None),
    (50_000, 1000),
    (50_000, 100),
    (50_000, 20),
)
WARM, STEPS = 3, 12
LOOKING: tuple[tuple[int, float | None], ...] = ((10_000, None), (40_000, None), (40_000, 100))
NEIGHBOURS, QUERIES, THRESHOLD = 10, 256, 0.9


def main() -> None:
    """Measure every way, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--work", nargs=3, metavar=("WHAT", "ROWS", "FOLDER"), help="what each host does")
    settings = parser.parse_args()
    if settings.work:
        what, count, folder = settings.work
        torch.set_num_threads(1)
        {"train": train, "look": look}[what](int(count), Path(folder))
        return
    rows = [{"bank_rows": count, **between_hosts("train", count, megabits)} for count, megabits in WAYS]
    looking = [{"vectors": count, **between_hosts("look", count, megabits)} for count, megabits in LOOKING]
    record(
        settings.results / "hosts.json",
        name="hosts",
        command="python stress/hosts.py",
        unit="seconds of a step, median, two hosts and 50,000 rows, link not limited; `rows` has every way",
        values=[row["seconds"] for row in rows if row["bank_rows"] == 50_000 and row["megabits_per_second"] is None],
        seeds=[0],
        batch=256,
        gradient_bytes=4 * sum(weight.numel() for weight in build_encoder(_settings().encoder).parameters()),
        rows=rows,
        looking=looking,
    )


def between_hosts(what: str, count: int, megabits: float | None) -> dict[str, Any]:
    """What two hosts find, joined by a link of so many megabits a second."""
    with tempfile.TemporaryDirectory() as folder, hosts(2) as everyone:
        for host in everyone:
            if megabits is not None:
                host.limit(megabits)
        processes = torchrun(everyone, "2", [__file__, "--work", what, str(count), folder])
        for host, process in zip(everyone, processes, strict=True):
            if process.wait(timeout=600):
                raise SystemExit(host.said()[-3000:])
        found = {"megabits_per_second": megabits} | json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    print(what, count, found, flush=True)
    return found


def train(count: int, folder: Path) -> None:
    """Train some steps on this host; the first one writes what a step took and sent."""
    keep_freed_memory()
    with ranks.distributed():
        images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        settings = _settings()
        pictures = open_pictures(open_source(images), settings.size, torch.device("cpu"), storage="memory")
        encoder = build_encoder(settings.encoder, seed=0)
        training = Training(RunFolder(folder), settings, pictures, encoder, torch.device("cpu"))
        seconds: list[float] = []
        sent: list[int] = []
        for number, (parts, planned) in enumerate(training._steps_of(0, 0)):
            ranks.barrier()
            started, before = time.perf_counter(), _sent()
            training.encoder.train()
            training._agree(training.step(parts, planned), due=False)
            seconds.append(time.perf_counter() - started)
            sent.append(_sent() - before)
            if number == WARM + STEPS:
                break
        found: dict[str, Any] = {
            "seconds": round(statistics.median(seconds[WARM:]), 4),
            "seconds_of_steps": [round(one, 4) for one in seconds[WARM:]],
            "bytes_sent_a_step": round(statistics.median(sent[WARM:])),
        }
        if ranks.is_main():
            (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
        ranks.barrier()


def look(count: int, folder: Path) -> None:
    """Look through vectors, every fifth a copy; the first host writes what it took and sent."""
    with ranks.distributed():
        draw = torch.Generator().manual_seed(0)
        vectors = torch.randn(count, 128, generator=draw)
        copies = vectors[: count // 5] + 0.2 * torch.randn(count // 5, 128, generator=draw)
        vectors = normalize(torch.cat([vectors[: -len(copies)], copies]), dim=1)
        names = [str(row) for row in range(count)]
        index = Index([vectors], pa.table({"id": names, "location": names}))
        _, present = index.present()
        found: dict[str, Any] = {}
        for name, act in {
            "pairs": lambda: len(similar_pairs(present, THRESHOLD)),
            "neighbours_of_all": lambda: len(neighbours_of_all(present, NEIGHBOURS)[0]),
            "queries": lambda: len(index.search(vectors[:QUERIES], NEIGHBOURS)[0]),
        }.items():
            act()
            ranks.barrier()
            started, before = time.perf_counter(), _sent()
            answers = act()
            seconds, sent = time.perf_counter() - started, _sent() - before
            found[name] = {"seconds": round(seconds, 4), "bytes_sent": sent, "answers": answers}
        if ranks.is_main():
            (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
        ranks.barrier()


def _settings() -> Settings:
    return Settings(backbone="conv6", width=32, batch=256)


def _sent() -> int:
    """Bytes that have left this host over its link."""
    counters = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in counters if line.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[8])


if __name__ == "__main__":
    main()
