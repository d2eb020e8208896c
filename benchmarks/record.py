"""How a measurement is written down: one JSON file with what a reader needs to judge it and to make it again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def device_name() -> str:
    """The machine in words."""
    import torch  # here: a child that is started from a small process reports a small peak of memory

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").is_file()
        else iter([platform.processor()]),
        platform.machine(),
    )
    capability = torch.backends.cpu.get_cpu_capability()  # processors of one name differ in it, and by times in speed
    if torch.cpu._is_amx_tile_supported():
        capability += " and AMX"
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return f"{model} with {capability}, {cores} cores, torch {torch.__version__}, {threads} threads"


def commit() -> str:
    """The commit of the checkout; "+changes" where files differ from it, "" where there is no git."""
    if shutil.which("git") is None:
        return ""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def record(
    out: Path | None, *, name: str, command: str, unit: str, values: list[float], seeds: list[int], **more: Any
) -> dict[str, Any]:
    """Print the result, and write it to `out`, with mean and standard deviation of `values` (one a seed or repeat)."""
    result = {
        "name": name,
        "command": command,
        "device": device_name(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": unit,
        "seeds": seeds,
        "values": values,
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        **more,
    }
    text = json.dumps(result, indent=2) + "\n"
    if out is not None:  # before it is printed: the reader of our output may have gone
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    print(text)
    return result


def record_contestants(
    out: Path | None, *, name: str, command: str, unit: str, rates: dict[str, list[float]], **more: Any
) -> None:
    """`record` of contestants that took turns, each with a rate a repeat; the first on top, and a table."""
    first = next(iter(rates))
    rounded = {contestant: [round(rate, 1) for rate in found] for contestant, found in rates.items()}
    record(
        out,
        name=name,
        command=command,
        unit=f"{unit} of {first}; `contestants` has all",
        values=rounded[first],
        seeds=list(range(len(rounded[first]))),
        contestants={
            contestant: {
                "values": found,
                "mean": round(statistics.fmean(found), 1),
                "std": round(statistics.stdev(found), 1) if len(found) > 1 else None,
            }
            for contestant, found in rounded.items()
        },
        **more,
    )
    for contestant, found in rates.items():
        print(
            f"{contestant:50s} median {statistics.median(found):9.0f}   {min(found):9.0f} to {max(found):9.0f} {unit}"
        )
