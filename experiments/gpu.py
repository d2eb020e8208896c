"""All that a borrowed GPU should tell, most valuable first, in few minutes: one script that goes on where it was.

    python experiments/gpu.py --train train.parquet --test test.parquet --minutes 9 --work WORK --out OUT
    python experiments/gpu.py ... --minutes 5            # again on the same machine: what is done is not done again
    python experiments/gpu.py --dry-run                  # every stage in small on the CPU, before a GPU is asked for

It needs torch 2.10 or newer and what `pip install instdisc` brings, but neither simplejpeg nor FastAPI nor pydantic,
and no network; the checkout is enough (nothing has to be installed). The stages:

    pictures         read both files once, into arrays
    equality         bank, objectives, augmentation, update, step, kNN, embedding and resume against the CPU, to 1e-4
    steps            ms of a training step, eager, compiled and as CUDA graphs, beside floors from operations and bytes
    best_20          best_cifar10 for 20 epochs (aim: kNN 80.8 %)
    loss_head        the loss over 1.28 and 10 million rows: seconds long, and so before what takes minutes
    best_200         best_cifar10 for 200 epochs (aim: 90.6 %)
    paper_softmax    the paper's recipe for 200 epochs, exact softmax (published: 80.8 %)
    paper_nce        and NCE with 4,096 negatives (published: 80.4 %)

Each is a process of its own, with a limit on its time: one that fails or hangs costs the others nothing. Its result is
written at once, to WORK/results, and copied to OUT. A long stage says before how many minutes it will take, from the
steps' measured time, and is begun only if they are left in this call, or in one to come (--later); a training that is
stopped is resumed by the next call. WORK holds arrays and runs, and must outlast a call; OUT gets small files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_TO_SAVE = 0.25  # minutes that a training has for its checkpoint when its time is over
_WORK = "where arrays, runs and results stay between calls; a dry run keeps none"
_AROUND = 0.4  # minutes beside the steps of a training: start, compiling, measuring


@dataclass(frozen=True)
class Stage:
    """minutes: its limit; no stage without a `recipe` takes all of it. A training has those of its steps."""

    minutes: float = 0.0
    recipe: str = ""  # of `steps` in the result of the stage of that name
    epochs: int = 0


STAGES = {
    "pictures": Stage(1.0),
    "equality": Stage(1.5),
    "steps": Stage(3.0),
    "best_20": Stage(recipe="best_cifar10", epochs=20),
    "loss_head": Stage(0.75),
    "best_200": Stage(recipe="best_cifar10", epochs=200),
    "paper_softmax": Stage(recipe="paper_cifar10", epochs=200),
    "paper_nce": Stage(recipe="paper_cifar10, NCE", epochs=200),
}


def predicted(name: str, results: Path) -> float:
    """Minutes that a stage will take from now on: a training's, from the measured step and how far it has come."""
    stage = STAGES[name]
    if not stage.recipe:
        return stage.minutes
    found = read(results / "steps.json").get("recipes", {}).get(stage.recipe)
    if not found:
        return float("inf")
    left = stage.epochs - epochs_done(results.parent / name / "metrics.jsonl")
    return _AROUND + left * found["steps_an_epoch"] * min(way["ms"] for way in found["ways"].values()) / 60_000


def epochs_done(metrics: Path) -> float:
    """How far a training has come that was stopped, by its last whole line."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    for line in reversed(lines):
        try:
            return float(json.loads(line)["epoch"])
        except (ValueError, KeyError):  # cut short by a kill
            continue
    return 0.0


def read(file: Path) -> dict[str, Any]:
    """A result; nothing where there is none, or half of one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(file: Path, found: dict[str, Any]) -> None:
    """A result, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, file)


def run_stage(words: list[str], minutes: float) -> str:
    """Run a child for at most so long; "" or, in words, how it ended otherwise. It may save first."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "gpu_stages.py"), *words],
        env=settings,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which nohup and & leave ignored
    )
    for seconds, ending in ((60 * minutes, signal.SIGINT), (60 * _TO_SAVE, signal.SIGKILL), (None, None)):
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(ending or signal.SIGKILL)
        else:
            return "" if code == 0 else f"it ended with {code}"
    raise AssertionError("a killed child has ended")


def work_through(asked: argparse.Namespace, until: float) -> None:
    """Every stage that is not done and fits."""
    results: Path = asked.work / "results"
    for name in asked.stages:
        before = read(results / f"{name}.json")
        if before.get("state") == "done":
            print(f"{name}: done before.", flush=True)
            continue
        needs, left = predicted(name, results), (until - time.monotonic()) / 60 - _TO_SAVE
        if not asked.dry_run:
            print(f"{name}: {needs:.1f} minutes at most or as predicted, {max(0.0, left):.1f} left.", flush=True)
        training = bool(STAGES[name].recipe)
        if left <= 0 or (training and needs > left + asked.later and not asked.dry_run):
            note = "not begun: it does not fit" if needs < float("inf") else "not begun: steps were not measured"
            write(results / f"{name}.json", {**before, "state": note, "minutes_predicted": min(needs, 1e6)})
            collect(results, asked.out)
            continue
        words = ["--stage", name, "--work", str(asked.work), "--device", asked.device]
        words += ["--dry-run"] if asked.dry_run else ["--train", str(asked.train), "--test", str(asked.test)]
        started = time.monotonic()
        allowed = min(left, 1.5 * needs + _AROUND) if training and needs < float("inf") else min(left, needs)
        ended = run_stage(words, left if asked.dry_run else allowed)
        after = read(results / f"{name}.json")
        if ended and after.get("state") not in ("done", "failed"):
            after |= {"state": f"cut off: {ended}"}
        write(results / f"{name}.json", {**after, "wall_minutes": round((time.monotonic() - started) / 60, 3)})
        print(f"{name}: {after.get('state', 'no result')}.", flush=True)
        collect(results, asked.out)
        if name == "pictures" and after.get("state") != "done":
            return  # every other stage needs them


def collect(results: Path, out: Path) -> None:
    """Everything so far in one file beside the others, and all of it to where it is wanted."""
    found = {name: read(results / f"{name}.json") for name in STAGES if (results / f"{name}.json").exists()}
    write(results / "gpu.json", {"name": "gpu", "command": "python experiments/gpu.py", "stages": found})
    out.mkdir(parents=True, exist_ok=True)
    for file in results.glob("*.json"):
        if file.resolve().parent != out.resolve():
            shutil.copy(file, out / file.name)


def main() -> None:
    """Read the command line, and work through the stages."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="CIFAR-10's training pictures, a Parquet file or .npz (see --test)")
    parser.add_argument("--test", type=Path, help="its test pictures; .npz: `images` (n, 32, 32, 3) uint8 and `labels`")
    parser.add_argument("--minutes", type=float, default=9.0, help="of wall clock that this call may take")
    parser.add_argument("--later", type=float, default=0.0, help="minutes that a later call on this machine will have")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "instdisc-gpu"), help=_WORK)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="where small results are copied to")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of the stages")
    parser.add_argument("--device", default="cuda", help="cuda; with --dry-run cpu")
    parser.add_argument("--dry-run", action="store_true", help="all stages in small: 512 made pictures, on the CPU")
    asked = parser.parse_args()
    asked.stages = asked.stages.split(",")
    if unknown := [name for name in asked.stages if name not in STAGES]:
        parser.error(f"there is no stage {unknown[0]}: choose from {', '.join(STAGES)}")
    if (asked.train is None) != (asked.test is None) or (asked.train is None and not asked.dry_run):
        parser.error("give --train and --test, or --dry-run")
    if asked.minutes <= 0:
        parser.error("--minutes must be positive")
    for file in filter(None, (asked.train, asked.test)):
        if not file.is_file():
            parser.error(f"there is no file {file}")
    if asked.dry_run and asked.device == "cuda":
        asked.device = "cpu"
    try:
        if asked.dry_run:
            asked.work = Path(tempfile.mkdtemp(prefix="instdisc-gpu-"))
        work_through(asked, started + 60 * asked.minutes)
    finally:
        if asked.dry_run:
            shutil.rmtree(asked.work, ignore_errors=True)
    states = {name: read(asked.out / f"{name}.json").get("state", "not asked for") for name in STAGES}
    print("\n".join(f"{name:15s} {state}" for name, state in states.items()))
    if asked.dry_run and any(states[name] != "done" for name in asked.stages):
        sys.exit("The dry run has failed: see above.")


if __name__ == "__main__":
    main()
