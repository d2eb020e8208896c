"""The method in Lightning: python examples/in_lightning.py. Checkpoints hold the bank; fit(ckpt_path=...) goes on."""

import pytorch_lightning as lightning
import torch
from digits import Parts, digits
from torch.utils.data import DataLoader

from instdisc import KNN


class Discrimination(lightning.LightningModule):
    """Encoder and bank as one module."""

    def __init__(self, parts: Parts, lr: float = 0.1) -> None:
        super().__init__()
        self.parts, self.encoder, self.objective, self.lr = parts, parts.encoder, parts.objective, lr

    def setup(self, stage: str) -> None:
        """Here the processes have met."""
        self.bank = self.parts.new_bank()

    def training_step(self, batch: list[torch.Tensor], _: int) -> dict[str, torch.Tensor]:
        images, indices = batch
        aspects = torch.ones_like(indices).float()
        features = self.encoder(self.parts.augment(images, indices, aspects, seed=0, step=self.global_step))
        loss = self.objective(features, indices, self.bank)
        return {"loss": loss, "features": features.detach(), "indices": indices}

    def on_train_batch_end(self, outputs: dict[str, torch.Tensor], batch: list[torch.Tensor], _: int) -> None:
        self.bank.update(outputs["indices"], outputs["features"])  # the only write

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.encoder.parameters(), lr=self.lr, momentum=0.9, nesterov=True)


if __name__ == "__main__":
    parts = digits()
    model = Discrimination(parts)
    lightning.Trainer(max_epochs=20).fit(model, DataLoader(parts.data, batch_size=128, shuffle=True))
    print(f"kNN of the bank's rows {KNN(5).fit(model.bank.rows, parts.labels).leave_one_out().top1:.1%}")
