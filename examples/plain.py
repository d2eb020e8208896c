"""The method in a loop of plain torch: python examples/plain.py, or torchrun --nproc-per-node 2 examples/plain.py."""

import torch
from digits import Parts, digits
from torch.utils.data import DataLoader, DistributedSampler

from instdisc import KNN, MemoryBank, ranks


def fit(parts: Parts, bank: MemoryBank, loader: DataLoader, optimizer: torch.optim.Optimizer, epochs: int):
    """The loss of each step."""
    encoder, losses = ranks.data_parallel(parts.encoder).train(), []
    for _ in range(epochs):
        for images, indices in loader:
            views = parts.augment(images, indices, torch.ones(len(images)), seed=0, step=bank.updates)
            features = encoder(views)
            loss = parts.objective(features, indices, bank)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            bank.update(indices, features.detach())  # the only write
            losses.append(loss.detach())
    return losses


if __name__ == "__main__":
    with ranks.distributed():
        parts = digits()
        bank = parts.new_bank()
        sampler = DistributedSampler(parts.data, ranks.world(), ranks.rank())
        loader = DataLoader(parts.data, batch_size=128 // ranks.world(), sampler=sampler)
        optimizer = torch.optim.SGD(parts.encoder.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        losses = fit(parts, bank, loader, optimizer, epochs=20)
        rows = bank.state_dict()["rows"]  # of all ranks, which ask for it together
        if ranks.is_main():
            accuracy = KNN(5).fit(rows, parts.labels).leave_one_out().top1
            print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}; kNN of the bank's rows {accuracy:.1%}")
