"""What a training step costs over a network: two hosts (network namespaces of this machine) and a link of some rate.

    python benchmarks/hosts.py               # as root on Linux, with iproute2; some minutes

Both hosts train conv6 of width 32 on made pictures of 32 px, batch 256, exact softmax, float32, one process of one
thread each: the gradients of the weights and the features of the batch go over the link in every step, whatever the
number of rows of the bank. The rate is limited on the way out of each host. Results go to results/hosts.json.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import numpy as np
import torch
from hosts import hosts, torchrun
from record import record

from instdisc import ranks
from instdisc.allocator import keep_freed_memory
from instdisc.data.pictures import open_pictures
from instdisc.data.source import open_source
from instdisc.encoder import build_encoder
from instdisc.runs import RunFolder
from instdisc.training import Settings, Training

WAYS: tuple[tuple[int, float | None], ...] = (
    (5_000, None),
    (50_000, None),
    (50_000, 1000),
    (50_000, 100),
    (50_000, 20),
)
WARM, STEPS = 3, 12


def main() -> None:
    """Measure every way, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--work", nargs=2, metavar=("ROWS", "FOLDER"), help="what each host does")
    settings = parser.parse_args()
    if settings.work:
        work(int(settings.work[0]), Path(settings.work[1]))
        return
    rows = []
    for count, megabits in WAYS:
        with tempfile.TemporaryDirectory() as folder, hosts(2) as everyone:
            for host in everyone:
                if megabits is not None:
                    host.limit(megabits)
            processes = torchrun(everyone, "2", [__file__, "--work", str(count), folder])
            for host, process in zip(everyone, processes, strict=True):
                if process.wait(timeout=600):
                    raise SystemExit(host.said()[-3000:])
            found = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
        rows.append({"bank_rows": count, "megabits_per_second": megabits, **found})
        print(rows[-1], flush=True)
    record(
        settings.results / "hosts.json",
        name="hosts",
        command="python benchmarks/hosts.py",
        unit="seconds of a step, median, two hosts and 50,000 rows, link not limited; `rows` has every way",
        values=[row["seconds"] for row in rows if row["bank_rows"] == 50_000 and row["megabits_per_second"] is None],
        seeds=[0],
        batch=256,
        gradient_bytes=4 * sum(weight.numel() for weight in build_encoder(_settings().encoder).parameters()),
        rows=rows,
    )


def work(count: int, folder: Path) -> None:
    """Train some steps on this host; the first one writes what a step took and sent."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with ranks.together():
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


def _settings() -> Settings:
    return Settings(backbone="conv6", width=32, batch=256)


def _sent() -> int:
    """Bytes that have left this host over its link."""
    counters = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in counters if line.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[8])


if __name__ == "__main__":
    main()
