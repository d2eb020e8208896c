"""Does a device compute what the CPU does? Every part of the method on both, on the same numbers, in true float32."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.functional import normalize

from instdisc import KNN, draws
from instdisc.bank import MemoryBank
from instdisc.data import augment as augmenting
from instdisc.data.augment import Augmentation, centre
from instdisc.data.augment.parameters import Draws
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.open import open_source
from instdisc.encoder import build_encoder
from instdisc.objectives import NCE, BatchGroups, NonParametricSoftmax, NTXent, Proximal, SampledSoftmax, Term
from instdisc.runs import RunFolder
from instdisc.training import Settings, Training

MOST = 1e-4  # relative: the length of the difference over that of the CPU's answer
CPU = torch.device("cpu")
ROWS, BATCH, DIM = 3_000, 64, 128
_TINY: dict[str, Any] = {
    "backbone": "conv6", "width": 8, "batch": 32, "views": 2, "view_share": 0.5, "objective": "nce", "negatives": 64,
    "proximal": 1.0, "groups": 4, "group_from": 0.0, "precision": "float32", "epochs": 4, "optimizer": "muon",
}  # fmt: skip


def equality(device: torch.device) -> dict[str, Any]:
    """The error of each part, and whether all are within bounds."""
    with true_float32(), tempfile.TemporaryDirectory() as folder:
        checks = {
            name: error
            for part in (of_augmentation, of_bank, of_objectives, of_neighbours, of_embedding)
            for name, error in part(device)
        }
        checks |= dict(of_training(device, Path(folder)))
    errors = {name: {"error": error, "within": bool(error <= MOST)} for name, error in checks.items()}
    for name, found in errors.items():
        print(f"{'ok  ' if found['within'] else 'OFF '} {name:50s} {found['error']:.2e}", flush=True)
    return {"most": MOST, "all_within": all(found["within"] for found in errors.values()), "checks": errors}


@contextmanager
def true_float32() -> Iterator[None]:
    """Neither TF32 nor bfloat16 inside, nor the CPU's compiled augmentation, which takes long to compile."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with patch.object(augmenting, "_fused", lambda: None):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def off(found: torch.Tensor, true: torch.Tensor) -> float:
    """Relative error; infinite where something is no number."""
    found, true = found.detach().cpu().double(), true.detach().cpu().double()
    error = float((found - true).norm() / true.norm().clamp_min(1e-30))
    return error if error == error else float("inf")


def differing(found: torch.Tensor, true: torch.Tensor) -> float:
    """The share of entries that are not the same."""
    return float((found.cpu() != true.cpu()).float().mean())


def of_augmentation(device: torch.device) -> Iterator[tuple[str, float]]:
    """Random numbers to the bit; boxes, but for a side that rounds the other way; pixels from the same draws."""
    numbers = torch.arange(512)
    mine, theirs = (draws.uniforms(numbers.to(place), 33, seed=1, step=2) for place in (CPU, device))
    yield "random numbers, share that differ", differing(theirs, mine)
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    aspects = torch.linspace(0.5, 2, 512)
    augment = Augmentation(size=32, flip=0.5, blur=0.5)
    drawn, far = (augment.draw(numbers.to(place), aspects.to(place), 32, 32, seed=0, step=5) for place in (CPU, device))
    # A power or a root that is off by its last bit may round a box's side the other way: of these pictures one or two.
    yield "boxes, share that differ, above 1 %", max(0.0, differing(far.boxes, drawn.boxes) - 0.01)
    yield "order of the jitter, share that differ", differing(far.order, drawn.order)
    carried = Draws(**{name: values.to(device) for name, values in vars(drawn).items()})
    yield "augmented pictures", off(augment.apply(images.to(device), carried), augment.apply(images, drawn))
    yield (
        "the evaluation view",
        off(centre(images.to(device), aspects.to(device), size=28), centre(images, aspects, size=28)),
    )


def banks(device: torch.device, **how: Any) -> tuple[MemoryBank, MemoryBank, torch.Tensor, torch.Tensor]:
    """A bank on the CPU, its like on the device, features and the instances that they are of, two of them equal."""
    near, far = MemoryBank(ROWS, DIM, seed=4, **how), MemoryBank(ROWS, DIM, seed=4, device=device, **how)
    features = normalize(torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    own = torch.arange(0, ROWS, ROWS // BATCH)[:BATCH]
    own[1] = own[0]
    return near, far, features, own


def of_bank(device: torch.device) -> Iterator[tuple[str, float]]:
    """Rows of the start, sums over all and over some, and the update, in every dtype."""
    for dtype in (torch.float32, torch.float16, torch.int8):
        near, far, features, own = banks(device, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        if dtype == torch.float32:
            yield "bank: rows of the start", off(far.rows, near.rows)
        else:  # what is rounded may round the other way
            far.rows.copy_(near.rows)
            if near.scales is not None and far.scales is not None:
                far.scales.copy_(near.scales)
        log_z = near.log_partition(features, 0.07, without=own)
        yield f"bank, {name}: log Z", off(far.log_partition(features.to(device), 0.07, without=own.to(device)), log_z)
        scores = near.scores(features, own)
        yield f"bank, {name}: scores", off(far.scores(features.to(device), own.to(device)), scores)
        if dtype == torch.float32:
            near.update(own, features)
            far.update(own.to(device), features.to(device))
            yield "bank: rows after an update", off(far.rows, near.rows)


def of_objectives(device: torch.device) -> Iterator[tuple[str, float]]:
    """Loss and gradient of every term."""
    terms: dict[str, Any] = {
        "softmax": lambda: NonParametricSoftmax(0.07),
        "sampled, shared": lambda: SampledSoftmax(0.07, 256),
        "sampled, private": lambda: SampledSoftmax(0.07, 256, "private"),
        "NCE, moving average": lambda: NCE(0.07, 256),
        "NCE, first batch": lambda: NCE(0.07, 256, "private", "first_batch"),
        "NCE, exact": lambda: NCE(0.07, 256, partition="exact"),
        "views": lambda: NTXent(0.1, 256),
        "groups": lambda: BatchGroups(DIM, 4),
        "proximal": lambda: Proximal(30.0),
    }
    near, far, features, own = banks(device)
    own = own[: BATCH // 2].repeat(2)  # two views a picture
    own[1] = own[1 + BATCH // 2] = 1
    for name, make in terms.items():
        answers = []
        for bank, place in ((near, CPU), (far, device)):
            term: Term = make().to(place)
            asked = features.to(place).clone().requires_grad_()
            loss = term(asked, own.to(place), bank)
            loss.backward()
            answers.append((loss, asked.grad))
        (mine, slope), (theirs, other) = answers
        assert slope is not None and other is not None
        yield f"objective {name}: loss", off(theirs, mine)
        yield f"objective {name}: gradient", off(other, slope)


def of_neighbours(device: torch.device) -> Iterator[tuple[str, float]]:
    """kNN's votes and answers."""
    random = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 10, (ROWS,), generator=random).numpy()
    known = normalize(torch.randn(ROWS, DIM, generator=random) + 3 * torch.eye(10, DIM)[labels], dim=1)
    asked = normalize(torch.randn(200, DIM, generator=random), dim=1)
    near = KNN(50).fit(known, labels)
    far = KNN(50, device=device).fit(known.to(device), labels)
    yield "kNN: votes", off(far.votes(asked.to(device)), near.votes(asked))
    yield "kNN: accuracy of leave-one-out", abs(far.leave_one_out().top1 - near.leave_one_out().top1)


def made(count: int) -> np.ndarray:
    """Smooth pictures, (count, 32, 32, 3) uint8: the slopes of noise cancel, and little is left of them to compare."""
    random = np.random.default_rng(6)
    waves = np.sin(random.uniform(0.05, 0.5, (count, 1, 1, 3)) * np.arange(32)[None, :, None, None])
    waves = waves * np.cos(random.uniform(0.05, 0.5, (count, 1, 1, 3)) * np.arange(32)[None, None, :, None])
    return np.asarray(128 + 100 * waves, dtype=np.uint8)


def of_embedding(device: torch.device) -> Iterator[tuple[str, float]]:
    """Vectors of the paper's network."""
    pictures = torch.from_numpy(made(64)).permute(0, 3, 1, 2).contiguous()
    near = build_encoder({"backbone": "resnet18", "width": 16}, seed=0).embed(pictures, precision="float32")
    far = build_encoder({"backbone": "resnet18", "width": 16}, seed=0)
    yield "embedding", off(far.embed(pictures, device=device, precision="float32"), near)


def of_training(device: torch.device, folder: Path) -> Iterator[tuple[str, float]]:
    """Losses of the first steps beside the CPU's, and a run that was stopped beside one that was not."""

    def start(place: torch.device, name: str) -> Training:
        settings = Settings().with_overrides(_TINY)
        store = open_pictures(open_source(made(128)), 32, place, storage="memory", workers=0)
        run = RunFolder(folder / name)
        run.path.mkdir(exist_ok=True)
        return Training(run, settings, store, build_encoder(settings.encoder, seed=0), place)

    def taken(training: Training, until: int) -> list[float]:
        losses = []
        while training.step_number < until:
            epoch, first = divmod(training.step_number, training.batches_per_epoch)
            for parts, planned in training._steps_of(epoch, first):
                training.encoder.train()
                losses.append(float(sum(training.step(parts, planned).values())))
                if training.step_number == until:
                    break
        return losses

    near, through, stopped = start(CPU, "near"), start(device, "through"), start(device, "stopped")
    mine, theirs = taken(near, 2), taken(through, 6)
    yield "training: the loss of the first step", abs(theirs[0] - mine[0]) / abs(mine[0])
    yield "training: the loss of the second step", abs(theirs[1] - mine[1]) / abs(mine[1])
    taken(stopped, 3)
    stopped.save()
    resumed = start(device, "stopped")
    resumed.resume()
    taken(resumed, 6)
    for name, value in through.encoder.state_dict().items():
        if value.is_floating_point() and value.dim() > 1:
            yield f"resume: {name}", off(resumed.encoder.state_dict()[name], value)
    yield "resume: rows of the bank", off(resumed.bank.rows, through.bank.rows)
