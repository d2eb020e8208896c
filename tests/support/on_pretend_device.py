"""What test_pretend_device.py looks at: training, embedding, kNN and commands on the pretend device, in one process.

    python tests/support/on_pretend_device.py OUT.json SCENARIO...         # each scenario's facts, or its error

A process needs seconds to import torch, and the pretend device is its process's for good.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from pretend_device import BEGUN, DEVICE, Pretend, counted, waits
from tiny_runs import SIDE, made_pictures, picture_folder, tiny
from torch.nn.functional import normalize

from instdisc import KNN, cli
from instdisc.data.augment import Augmentation
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.open import open_source
from instdisc.encoder import build_encoder
from instdisc.errors import InputError
from instdisc.evaluation import knn as knn_module
from instdisc.neighbours import top_k
from instdisc.runs import RunFolder
from instdisc.training import Training, read_metrics

CPU = torch.device("cpu")
VIEWS: dict[str, Any] = {"views": 2, "view_share": 0.5, "flip": 0.5, "jitter": 0.8, "hue": 0.1}
# Every objective, term, precision and way to keep a bank.
RUNS: dict[str, dict[str, Any]] = {
    "softmax": {"mask_own": True},
    "sampled, views, blur, Muon": {"objective": "sampled", **VIEWS, "blur": 0.5, "optimizer": "muon"},
    "NCE, accumulate": {"objective": "nce", "accumulate": 2},
    "NCE, private noise, first batch": {"objective": "nce", "noise": "private", "partition": "first_batch"},
    "parametric, bfloat16": {"objective": "parametric", "precision": "bfloat16"},
    "groups, proximal, bfloat16": {"views": 2, "groups": 4, "group_from": 0, "proximal": 1, "precision": "bfloat16"},
    "int8": {"bank_dtype": "int8"},
    "three views, growing": {"views": 3, "view_share": 0.5, "early_sizes": (0.5,), "grow_at": (0.5,)},
}


def started(folder: Path, device: torch.device, count: int = 64, **changes: Any) -> Training:
    """A run in memory."""
    settings = tiny(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = open_pictures(open_source(made_pictures(count)), SIDE, device, storage="memory")
    encoder = build_encoder(settings.encoder, seed=0)
    return Training(RunFolder(folder), settings, pictures, encoder, device, settings.precision)


@contextmanager
def before_each_step(training: Training, act: Callable[[], None]) -> Iterator[None]:
    step = Training.step

    def acting(self: Training, *words: Any) -> Any:
        act()
        return step(self, *words)

    with patch.object(Training, "step", acting):
        yield


def losses_and_waits(folder: Path, device: torch.device, **changes: Any) -> tuple[list[float], list[int]]:
    """The loss of each line, and how often the host waited from one step to the next."""
    training = started(folder, device, **changes)
    marks: list[int] = []
    with before_each_step(training, lambda: marks.append(real_waits(waits))):
        training.fit()
    return [line["loss"] for line in read_metrics(training.run)], [after - before for before, after in pairwise(marks)]


def real_waits(counts: Mapping[tuple[str, str], int]) -> int:
    """How many; a copy to the host that was only begun is none."""
    return sum(times for (what, _), times in counts.items() if what != BEGUN)


def trainings(folder: Path) -> dict[str, Any]:
    """Every kind of run, beside the CPU."""
    found = {}
    for number, (name, changes) in enumerate(RUNS.items()):
        far, counts = losses_and_waits(folder / f"{number}far", DEVICE, **changes)
        near, none = losses_and_waits(folder / f"{number}near", CPU, **changes)
        found[name] = {"far": far, "near": near, "waits": counts, "waits_on_cpu": sum(none)}
    return found


def lines(folder: Path) -> dict[str, Any]:
    """Two epochs of 24 steps, with a line each second step: copies to the host that were begun, step by step."""
    training = started(folder / "far", DEVICE, count=384, objective="nce")
    marks: list[int] = []
    with before_each_step(training, lambda: marks.append(sum(waits.values()) - real_waits(waits))):
        training.fit()
    other = started(folder / "near", CPU, count=384, objective="nce")
    other.fit()
    lines = [[line for line in read_metrics(one.run) if "loss" in line] for one in (training, other)]
    return {
        "begun": [after - before for before, after in pairwise(marks)],
        "far": [[line["step"], line["loss"], line["log_partition"], line["lr"]] for line in lines[0]],
        "near": [[line["step"], line["loss"], line["log_partition"], line["lr"]] for line in lines[1]],
    }


def divergence(folder: Path) -> dict[str, Any]:
    """A weight becomes NaN before step 5 of a run with a line each second step; and the same where it saves at once."""
    found = {}
    for name, stops in (("late", False), ("saved at once", True)):
        training = started(folder / name, DEVICE, count=384)

        def poison(training: Training = training, stops: bool = stops) -> None:
            if training.step_number == 4:
                with torch.no_grad():
                    next(training.encoder.parameters()).fill_(float("nan"))
                training._asked_to_stop = stops

        with before_each_step(training, poison):
            try:
                training.fit()
                said = "nothing"
            except InputError as error:
                said = str(error)
        found[name] = {
            "said": said,
            "at_step": training.step_number,
            "saved": sorted(path.name for path in training.run.checkpoints.glob("*")),
            "diagnosis": json.loads((training.run.diagnosis / "nan.json").read_text())["step"],
            "bank_is_finite": bool(torch.isfinite(training.bank.rows).all()),
        }
    return found


def resumed(folder: Path) -> dict[str, Any]:
    """A run that was stopped at step 3 and went on, to the bit of one that was not."""
    changes = {"objective": "nce", "partition": "first_batch", **VIEWS}
    through = started(folder / "through", DEVICE, **changes)
    through.fit()
    stopped = started(folder / "stopped", DEVICE, **changes)

    def stop() -> None:
        stopped._asked_to_stop = stopped.step_number == 2

    with before_each_step(stopped, stop):
        stopped.fit()
    at, again = stopped.step_number, started(folder / "stopped", DEVICE, **changes)
    again.resume()
    again.fit()
    states = [{**one.encoder.state_dict(), **one.terms.state_dict(), **one.bank.tensors()} for one in (through, again)]
    return {
        "stopped_at": at,
        "differ": [name for name, value in states[0].items() if not torch.equal(value.cpu(), states[1][name].cpu())],
        "lines": [[[line["step"], line["losses"]] for line in read_metrics(one.run)] for one in (through, again)],
    }


def parts(folder: Path) -> dict[str, Any]:
    """Augmentation, embedding and kNN: answers beside the CPU's, and waits."""
    found: dict[str, Any] = {}
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers, aspects = torch.arange(40), torch.linspace(0.5, 2, 40)
    for name, changes in {"all": {"blur": 0.5}, "in order": {"shuffle": False}, "no hue": {"hue": 0.0}}.items():
        augment = Augmentation(size=24, flip=0.5, **changes)
        with patch("instdisc.data.augment._fused", lambda: None):
            near = augment(images, numbers, aspects, seed=1, step=2)
        far_arguments = [part.to(DEVICE) for part in (images, numbers, aspects)]
        augment(*far_arguments, seed=1, step=1)
        with counted() as found_waits:
            far = augment(*far_arguments, seed=1, step=2)
        found[f"augmentation, {name}"] = {
            "off": float((far.cpu() - near).abs().max()),
            "waits": sum(found_waits.values()),
        }

    encoder, pictures = build_encoder(tiny().encoder, seed=0), made_pictures(64)
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    near_vectors, near_levels = encoder.embed(tensor, batch=16), encoder.features(tensor, batch=16)
    encoder.embed(tensor, batch=16, device=DEVICE)
    for name, given in (("a tensor", tensor), ("pictures", list(pictures))):
        with counted() as found_waits:
            far_vectors = encoder.embed(given, batch=16)
        found[f"embedding of {name}"] = {
            "off": float((far_vectors - near_vectors).abs().max()),
            "waits_a_batch": real_waits(found_waits) / 4,
        }
    with counted() as found_waits:
        far_levels = encoder.features(tensor, batch=16)
    found["levels"] = {
        "off": max(float((far_levels[name] - values).abs().max()) for name, values in near_levels.items()),
        "waits_a_batch": real_waits(found_waits) / 4,
    }

    random = torch.Generator().manual_seed(2)
    known, asked = (normalize(torch.randn(count, 16, generator=random), dim=1) for count in (500, 120))
    known[100:150] = known[:50]  # ties
    labels = np.arange(500) % 7
    with patch.object(knn_module, "_BLOCK_NUMBERS", 100 * 16), patch.object(knn_module, "_BATCH", 60):
        near_knn = KNN(20).fit(known, labels)
        for name, rows, queries in (
            ("on the device", known.to(DEVICE), asked.to(DEVICE)),
            ("as arrays", known.numpy(), asked.numpy()),
        ):
            far_knn = KNN(20, device=DEVICE).fit(rows, labels)
            with counted() as found_waits:
                far_result = far_knn.evaluate(queries, np.arange(120) % 7)
            found[f"kNN of vectors {name}"] = {
                "equal": [far_result.top1, far_result.top5]
                == [
                    near_knn.evaluate(asked, np.arange(120) % 7).top1,
                    near_knn.evaluate(asked, np.arange(120) % 7).top5,
                ],
                "leave_one_out": far_knn.leave_one_out().top1 == near_knn.leave_one_out().top1,
                "waits": sum(found_waits.values()),  # of 2 batches of queries and 5 blocks of rows each
            }
    exclude = torch.arange(120) * 4
    scores, indices = top_k(asked, known, 30, exclude=exclude, block=100)
    far_scores, far_indices = top_k(asked.to(DEVICE), known.to(DEVICE), 30, exclude=exclude.to(DEVICE), block=100)
    found["top k"] = {
        "rows_equal": bool(torch.equal(far_indices.cpu(), indices)),
        "off": float((far_scores.cpu() - scores).abs().max()),
    }
    try:
        top_k(asked.to(DEVICE), known.masked_fill(torch.arange(16) == 3, torch.nan).to(DEVICE), 3)
    except InputError as error:
        found["top k"]["of_nan"] = str(error)
    return found


def commands(folder: Path) -> dict[str, Any]:
    """The commands that take --device, one after another on one run."""
    pictures, run = str(picture_folder(folder / "pictures", 60)), str(folder / "run")
    one = str(next(Path(pictures).rglob("*.png")))
    test = str(picture_folder(folder / "test", 24, seed=1))
    settings = {"width": 4, "dim": 8, "precision": "auto", "compile": "auto", "monitor_epochs": 1, "negatives": 16}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    train = ["train", pictures, "--preset", "digits", "--epochs", "2", "--batch", "16", *sets, "--out"]
    words = {
        "train": [*train, run],
        "resume": [*train, run, "--resume"],
        "evaluate": ["evaluate", run, test, "--with", "svm,linear,retrieval,quality"],
        "embed": ["embed", run, test, "-o", str(folder / "vectors.parquet")],
        "search": ["search", run, one, "-k", "3"],
        "index": ["index", run, "--recompute"],
        "duplicates": ["duplicates", run],
        "outliers": ["outliers", run],
        "label": ["label", run, "--propose", "3"],
        "compare": ["compare", run, run, test, "-k", "20"],
        "workers": [*train, str(folder / "workers"), "--set", "storage=workers"],
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, command in words.items():
        sys.argv = ["instdisc", *command, "--device", "pretend"]
        try:
            cli.main()
            found[name] = 0
        except SystemExit as ending:
            found[name] = ending.code or 0
        except Exception:
            found[name] = traceback.format_exc()
    config = json.loads((folder / "run" / "config.json").read_text())
    return {"ended": found, "device": config["chosen"]["device"]}


def experiment(folder: Path) -> dict[str, Any]:
    """Stages of experiments/gpu.py."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
    import gpu
    import gpu_stages

    given = gpu_stages.Given(folder, DEVICE, dry=True)
    found = {}
    for name in ("pictures", "equality", "steps", "loss_head", "paper_nce"):
        found[name] = gpu_stages.stage(given, name)
        gpu.write(folder / "results" / f"{name}.json", found[name])
    return found


SCENARIOS = {one.__name__: one for one in (trainings, lines, divergence, resumed, parts, commands, experiment)}


def main() -> None:
    """Run scenarios, each in a folder of its own."""
    torch.set_num_threads(1)
    out, names = Path(sys.argv[1]), sys.argv[2:]
    found = {}
    with Pretend(), tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                found[name] = SCENARIOS[name](Path(folder, name))
            except Exception:
                found[name] = {"error": traceback.format_exc()}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as instdisc/cli/program.py: the thread of autograd may abort an end of Python's own
