"""The method with Hugging Face Accelerate: accelerate launch examples/in_accelerate.py, or by python."""

import torch
from accelerate import Accelerator
from digits import Parts, digits
from torch.utils.data import DataLoader

from instdisc import KNN, MemoryBank


def fit(parts: Parts, bank: MemoryBank, loader: DataLoader, accelerator: Accelerator, epochs: int, state: str = ""):
    """The loss of each step. state: a folder of accelerator.save_state, to go on from."""
    optimizer = torch.optim.SGD(parts.encoder.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    encoder, optimizer = accelerator.prepare(parts.encoder.train(), optimizer)
    accelerator.register_for_checkpointing(bank)  # save_state and load_state then have it, on any number of ranks
    if state:
        accelerator.load_state(state)
    losses = []
    for _ in range(epochs):
        for images, indices in loader:
            aspects = torch.ones_like(indices).float()
            views = parts.augment(images, indices, aspects, seed=0, step=bank.updates)
            features = encoder(views)
            loss = parts.objective(features, indices, bank)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            bank.update(indices, features.detach())  # the only write
            losses.append(loss.detach())
    return losses


if __name__ == "__main__":
    parts, accelerator = digits(), Accelerator()
    bank = parts.new_bank().to(accelerator.device)
    loader = accelerator.prepare(DataLoader(parts.data, batch_size=64, shuffle=True))
    losses = fit(parts, bank, loader, accelerator, epochs=20)
    accuracy = KNN(5).fit(bank.state_dict()["rows"], parts.labels).leave_one_out().top1
    accelerator.print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}; kNN of the bank's rows {accuracy:.1%}")
