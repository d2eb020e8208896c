"""A loop of examples/ and ours on the same batches, on this process or those of torchrun: loops.py LOOP OUT.json"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(Path(__file__).parent)]

import digits  # noqa: E402
from tiny_runs import made_pictures, tiny, training_in  # noqa: E402

from instdisc import IndexedDataset, ranks  # noqa: E402

PICTURES, EPOCHS = 60, 2
SETTINGS = tiny(
    batch=20, epochs=EPOCHS, schedule="constant", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0, seed=0
)


class Ordered:
    """Our batches of one epoch after another: this rank's part of each."""

    def __init__(self, training: Any, epoch: int = 0) -> None:
        self.training, self.epoch = training, epoch

    def __iter__(self) -> Iterator[list[int]]:
        number = self.training.batches_per_epoch
        batches = self.training.order.batches(PICTURES, number, seed=SETTINGS.seed, epoch=self.epoch)
        self.epoch += 1
        for batch in batches:
            begin, end = ranks.share(len(batch))
            yield batch[begin:end].tolist()

    def __len__(self) -> int:
        return self.training.batches_per_epoch


def ours(folder: Path) -> list[float]:
    """The loss of every step of all ranks."""
    training = training_in(folder / "ours", SETTINGS, PICTURES, batch_statistics=True)
    losses = []
    for epoch in range(EPOCHS):
        for parts, planned in training._steps_of(epoch, 0):
            training.encoder.train()
            losses.append(float(ranks.total(sum(training.step(parts, planned).values()))))
    return losses


def parts_and_loader(folder: Path, epoch: int) -> tuple[digits.Parts, DataLoader[Any]]:
    """What `ours` begins with, for a loop that knows nothing of it."""
    training = training_in(folder / "theirs", SETTINGS, PICTURES, batch_statistics=True)
    pictures = torch.from_numpy(made_pictures(PICTURES)).permute(0, 3, 1, 2).contiguous()
    parts = digits.Parts(
        training.encoder, SETTINGS.dim, next(iter(training.kinds.values())), training.augment, IndexedDataset(pictures)
    )
    return parts, DataLoader(parts.data, batch_sampler=Ordered(training, epoch))


def plain(folder: Path, epoch: int, epochs: int) -> list[torch.Tensor]:
    """examples/plain.py; a stop is what the person saves: encoder, optimizer, bank."""
    import plain as loop

    parts, loader = parts_and_loader(folder, epoch)
    bank, kept = parts.new_bank(), folder / f"plain-{ranks.rank()}.pt"
    optimizer = torch.optim.SGD(parts.encoder.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    modules = {"encoder": parts.encoder, "optimizer": optimizer, "bank": bank}
    if epoch:
        for name, state in torch.load(kept, weights_only=True).items():
            modules[name].load_state_dict(state)
    losses = loop.fit(parts, bank, loader, optimizer, epochs)
    torch.save({name: module.state_dict() for name, module in modules.items()}, kept)
    return losses


def in_lightning(folder: Path, epoch: int, epochs: int) -> list[torch.Tensor]:
    """examples/in_lightning.py, with its Trainer's checkpoints."""
    import pytorch_lightning as lightning
    from in_lightning import Discrimination

    losses = []

    class Noting(Discrimination):
        def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
            super().on_train_batch_end(outputs, batch, number)
            losses.append(outputs["loss"].detach())

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks.world(),
        strategy="ddp" if ranks.world() > 1 else "auto",
        max_epochs=epoch + epochs,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    parts, loader = parts_and_loader(folder, epoch)
    trainer.fit(Noting(parts), loader, ckpt_path=folder / "lightning.ckpt" if epoch else None)
    trainer.save_checkpoint(folder / "lightning.ckpt")
    return losses


def in_accelerate(folder: Path, epoch: int, epochs: int) -> list[torch.Tensor]:
    """examples/in_accelerate.py, with accelerator.save_state."""
    from accelerate import Accelerator
    from in_accelerate import fit

    accelerator = Accelerator(cpu=True)
    parts, loader = parts_and_loader(folder, epoch)
    losses = fit(parts, parts.new_bank(), loader, accelerator, epochs, str(folder / "state") if epoch else "")
    accelerator.save_state(str(folder / "state"))
    return losses


LOOPS = {"plain": plain, "in_lightning": in_lightning, "in_accelerate": in_accelerate}


def main(name: str, out: str) -> None:
    """Both, from the start; then theirs from the stop after an epoch."""
    with ranks.distributed():
        folder = Path(ranks.broadcast_object(tempfile.mkdtemp(dir=Path(out).parent) if ranks.is_main() else None))
        loop = LOOPS[name]
        expected, whole, _ = ours(folder), loop(folder, 0, EPOCHS), loop(folder, 0, 1)
        ranks.barrier()
        resumed = loop(folder, 1, EPOCHS - 1)
        found = {
            "ours": expected,
            "theirs": [float(ranks.total(loss) / ranks.world()) for loss in whole],
            "resumed": [float(ranks.total(loss) / ranks.world()) for loss in resumed],
        }
        if ranks.is_main():
            Path(out).write_text(json.dumps(found), encoding="utf-8")
        ranks.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
