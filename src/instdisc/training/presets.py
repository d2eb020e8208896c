"""The presets: functions that return the settings of a run, the command and the expected result on top.

`default` looks at the data and the device, and chooses; the others are fixed recipes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from instdisc.errors import InputError
from instdisc.training.config import Settings


@dataclass(frozen=True)
class DataFacts:
    """What a preset may look at. side: a typical shorter side of the pictures, in pixels; device: cuda, mps or cpu.

    Examples:
        >>> from instdisc.training import DataFacts, preset
        >>> on_cpu = preset("default", DataFacts(count=50_000, side=32, device="cpu"))
        >>> on_gpu = preset("default", DataFacts(count=50_000, side=32, device="cuda"))
        >>> on_cpu.backbone, on_gpu.backbone
        ('conv6', 'resnet18')
    """

    count: int
    side: int
    device: str


def paper_cifar10(facts: DataFacts | None = None) -> Settings:
    """instdisc train cifar10 --preset paper_cifar10 --out runs/paper     (published: kNN 80.8; NCE with 4096: 80.4)

    The published CIFAR-10 recipe with the exact softmax; `--set objective=nce` for the NCE row, whose Z is a moving
    average: with the published constant (`--set partition=first_batch`) NCE collapsed here (runs/nce_partition.py).
    """
    return Settings(preset="paper_cifar10", monitor_epochs=10)


def paper_imagenet(facts: DataFacts | None = None) -> Settings:
    """instdisc train IMAGENET --preset paper_imagenet --out runs/imagenet     (published: kNN 41.0)

    The published ImageNet recipe: ResNet-18 (`--set backbone=resnet50` gives 46.5), NCE with 4096 negatives. But for Z,
    a moving average here: `--set partition=first_batch` is the published constant.
    """
    return Settings(
        preset="paper_imagenet",
        size=224,
        objective="nce",
        temperature=0.07,
        batch=256,
        weight_decay=1e-4,
        flip=0.5,
        monitor_epochs=5,
    )


def laptop_cifar10(facts: DataFacts | None = None) -> Settings:
    """instdisc train cifar10 --preset laptop_cifar10 --out runs/laptop

    CIFAR-10 in an hour on two CPU cores; the network was chosen by runs/choose_recipe.py, optimizer and rate by
    runs/choose_laptop.py.
    """
    return replace(
        _TWO_VIEWS,
        preset="laptop_cifar10",
        backbone="conv7",
        width=64,
        hidden=512,
        lr=0.05,
        warmup=2.0,
        epochs=55,
        minutes=60.0,
        monitor_epochs=5,
        early_sizes=(0.5, 0.75),
        grow_at=(0.25, 0.7),  # as good as later in runs of a few minutes; the longer a run, the less small views teach
    )


def best_cifar10(facts: DataFacts | None = None) -> Settings:
    """instdisc train cifar10 --preset best_cifar10 --out runs/best     (not measured yet: it is made for a GPU)

    The paper's network with the recipe that the laptop's trials chose, for 200 epochs: two views, MLP head, flip,
    cosine, Muon, the exact softmax over the bank.
    """
    return replace(
        _TWO_VIEWS,
        preset="best_cifar10",
        backbone="resnet18",
        width=None,
        hidden=512,
        objective="softmax",
        warmup=5.0,
        epochs=200.0,
        monitor_epochs=10,
    )


def digits(facts: DataFacts | None = None) -> Settings:
    """instdisc train digits --preset digits --out runs/digits

    The 1,797 handwritten digits that scikit-learn ships, in a minute or two on two CPU cores. Digits are not mirrored,
    have no colour, and stay digits when a little is cut off: mild crops, and a jitter of brightness and contrast.
    """
    return replace(
        _TWO_VIEWS,
        preset="digits",
        size=16,
        objective="softmax",
        batch=128,
        warmup=2.0,
        epochs=40,
        crop_scale=(0.5, 1.0),
        flip=0.0,
        jitter=1.0,
        saturation=0.0,
        hue=0.0,
        grey=0.0,
        monitor_epochs=10,
    )


def from_pretrained(facts: DataFacts | None = None) -> Settings:
    """instdisc train FOLDER --preset from_pretrained --set backbone=NAME --set pretrained=FILE.safetensors --out RUN

    On a published network: its features are computed once, and a head learns on them in minutes. `--set unfreeze=last`
    or `all` lets the network learn too, at a tenth of the rates. Without `pretrained`, timm's own weights.
    """
    count = 50_000 if facts is None else facts.count
    epochs = max(5, min(100, round(1_500_000 / count)))
    return replace(
        _TWO_VIEWS,
        preset="from_pretrained",
        backbone="resnet18",
        width=None,
        hidden=512,
        size=224,
        pretrained=True,
        unfreeze="none",
        backbone_rate=0.1,
        negatives=4096 if count >= 8192 else max(1, count // 2),
        batch=min(256, max(8, count // 8)),
        warmup=min(2.0, epochs / 16),
        epochs=epochs,
        monitor_epochs=max(1, round(epochs / 5)),
    )


def default(facts: DataFacts | None = None) -> Settings:
    """instdisc train FOLDER --out RUN

    Looks at the data: the size of the pictures decides the side and the stem, their number the length and the
    objective, the device the network.
    """
    if facts is None:
        raise InputError("The preset default needs to look at the data: give it their facts.")
    gpu = facts.device != "cpu"
    small = facts.side <= 64
    size = _nearest_side(facts.side) if small else (224 if gpu else 96)
    growing = _GROWING if size >= 32 else {}  # half of less shows too little
    # The run sees about this many pictures: hours on a GPU, half an hour or so on two cores.
    seen = (20_000_000 if gpu else 1_500_000 if small else 120_000) * (2 if growing else 1)
    epochs = max(5, min(400, round(seen / facts.count)))
    return replace(
        _TWO_VIEWS,
        preset="default",
        backbone="resnet18" if gpu or not small else _TWO_VIEWS.backbone,
        width=None if gpu else 32,
        hidden=512,
        size=size,
        # Exact up to ten million rows on a GPU: beyond, a shared sample costs a thousandth and loses little.
        objective="softmax" if gpu and facts.count <= 10_000_000 else "sampled",
        negatives=4096 if facts.count >= 8192 else max(1, facts.count // 2),
        batch=min(256, max(8, facts.count // 8)),
        warmup=min(5.0, epochs / 16),
        epochs=epochs,
        blur=0.0 if small else 0.5,
        monitor_epochs=max(1, round(epochs / 20)),
        **growing,
    )


# What the recipes of our own share: half of the loss compares two views of a picture, half a view with the bank.
_TWO_VIEWS = Settings(
    backbone="conv6",
    width=32,
    head="mlp",
    objective="sampled",
    views=2,
    view_share=0.5,
    fill_epochs=1.0,
    bank_momentum=0.0,
    batch=256,
    optimizer="muon",
    lr=0.02,
    schedule="cosine",
    flip=0.5,
    jitter=0.8,
    hue=0.1,
)

# Half the side, then three quarters, then whole pictures: twice as many epochs in the same time.
_GROWING: dict[str, Any] = {"early_sizes": (0.5, 0.75), "grow_at": (0.5, 0.8)}


def _nearest_side(side: int) -> int:
    """The stored side for small pictures: theirs, in steps of 4, at least 16."""
    return max(16, 4 * round(side / 4))


PRESETS: dict[str, Callable[[DataFacts | None], Settings]] = {
    "default": default,
    "laptop_cifar10": laptop_cifar10,
    "best_cifar10": best_cifar10,
    "paper_cifar10": paper_cifar10,
    "paper_imagenet": paper_imagenet,
    "digits": digits,
    "from_pretrained": from_pretrained,
}


def preset(name: str, facts: DataFacts) -> Settings:
    """The settings of a preset by name; InputError where there is none of this name.

    Examples:
        >>> from instdisc.training import DataFacts, preset
        >>> settings = preset("digits", DataFacts(count=1797, side=8, device="cpu"))
        >>> settings.size, settings.batch, settings.epochs, settings.optimizer
        (16, 128, 40, 'muon')
    """
    if name not in PRESETS:
        raise InputError(f'There is no preset "{name}": choose one of {", ".join(PRESETS)}.')
    return PRESETS[name](facts)
