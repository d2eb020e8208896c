"""instdisc train SOURCE --out RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from instdisc.errors import InputError

EXAMPLES = """
Examples:

`instdisc train photos/ --out runs/photos` — a folder, all subfolders included

`instdisc train "shards-*.tar" --out runs/web --minutes 60` — WebDataset shards, for an hour

`instdisc train cifar10 --preset paper_cifar10 --out runs/paper` — the paper's recipe

`instdisc train photos/ --out runs/photos --resume` — go on where it stopped

`instdisc train photos/ --out runs/nce --set objective=nce --set negatives=1024` — vary the method

`torchrun --nproc-per-node 4 -m instdisc train photos/ --out runs/photos` — four processes
"""

_OPTIONS = ("source", "out", "preset", "resume", "labels", "split", "limit", "test", "device", "say")


def command(
    source: Annotated[
        list[str],
        typer.Argument(help="Folder(s), Parquet or tar files, patterns, URLs; or digits, cifar10, cifar100, stl10."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to make.")],
    preset: Annotated[
        str,
        typer.Option(help="default, laptop_cifar10, paper_cifar10, paper_imagenet or digits."),
    ] = "default",
    epochs: Annotated[float | None, typer.Option(help="Passes over the pictures.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long instead.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step, over all processes.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random numbers.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the run.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV with path (or id) and label, for measuring only.")] = None,
    test: Annotated[str | None, typer.Option(help="Labelled pictures to measure kNN on while training.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the source, where it has several.")] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first pictures only.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Go on if the run has begun, else start it: for torchrun and queues.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first picture that can't be read.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Train an encoder on unlabelled pictures."""
    if epochs is not None and minutes is not None:
        raise InputError("Give --epochs or --minutes, not both: either one says how long to train.")
    overrides = parse_settings(set_ or [])
    given = {"epochs": epochs, "minutes": minutes, "batch": batch, "size": size, "seed": seed}
    overrides |= {name: value for name, value in given.items() if value is not None}
    if strict:
        overrides["strict"] = True
    from instdisc import ranks
    from instdisc.jobs.train import train

    with ranks.together():  # around the last line too: once the processes have parted, each is the main one
        run = train(
            source[0] if len(source) == 1 else source,
            out,
            preset,
            resume="auto" if auto_resume else resume,
            labels=labels,
            test=test,
            split=split,
            limit=limit,
            device=device,
            **overrides,
        )
        if not run.finished:
            raise typer.Exit(130)  # as shells expect after Ctrl-C, so that a script does not go on to evaluate
        if ranks.is_main():
            print(f"Next: instdisc evaluate {out}")


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """["lr=0.1", "flip=0.5"] as a dict of texts, which the settings read as their own types."""
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f'--set takes NAME=VALUE, as in --set lr=0.1, not "{text}".')
        name = name.strip().replace("-", "_")
        if name in _OPTIONS:
            raise InputError(f'"{name}" is no setting of a run: it is an option of the command, see --help.')
        settings[name] = value.strip()
    return settings
