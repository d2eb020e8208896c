"""instdisc train SOURCE --out RUN, and instdisc train RUN --add [SOURCE]"""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from instdisc.cli.options import Device, Limit, TrainSource
from instdisc.errors import InputError

EXAMPLES = """
Examples:

`instdisc train photos/ --out runs/photos` — a folder, all subfolders included

`instdisc train "shards-*.tar" --out runs/web --minutes 60` — WebDataset shards, for an hour

`instdisc train cifar10 --preset paper_cifar10 --out runs/paper` — the paper's recipe

`instdisc train photos/ --out runs/tuned --preset from_pretrained --set backbone=resnet50` — on a published network

`instdisc train photos/ --out runs/photos --resume` — go on where it stopped

`instdisc train runs/photos --add` — take in the pictures that came to photos/, drop those that are gone

`instdisc train runs/photos --add new/ --epochs 5` — pictures from elsewhere too, and five epochs

`instdisc train photos/ --out runs/nce --set objective=nce --set negatives=1024` — vary the method

`instdisc train other/ --out runs/other --config runs/photos/config.json` — by the settings of another run

`torchrun --nproc-per-node 4 -m instdisc train photos/ --out runs/photos` — four processes
"""

_OPTIONS = (
    "source",
    "out",
    "add",
    "preset",
    "resume",
    "labels",
    "split",
    "limit",
    "test",
    "train_source",
    "device",
    "say",
    "config",
    "on_log",
)


def _show_settings(asked: bool) -> bool:
    """What `--set` takes, and what the presets set."""
    if not asked:
        return False
    from instdisc.training import described

    width = min(100, shutil.get_terminal_size().columns)
    group = ""
    for setting in described():
        if setting.group != group:
            group = setting.group
            print(f"\n{group}")
        print(f"  {setting.name}={setting.default}  ({setting.values})")
        presets = "; ".join(f"{name}: {value or 'empty'}" for name, value in setting.presets.items())
        for text in filter(None, (setting.text, presets)):
            print(textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    print("\n`--preset default` chooses by the pictures and the machine: RUN/config.json says what.")
    raise typer.Exit


def command(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Folder(s), Parquet or tar files, patterns, URLs; or digits, cifar10, cifar100, stl10. With --add the "
            "run folder, then new pictures from elsewhere, if any."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run folder to make.")] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Take new pictures into a run, let those go that have gone, train on briefly.")
    ] = False,
    preset: Annotated[
        str,
        typer.Option(help="default, from_pretrained, laptop_cifar10, paper_cifar10, paper_imagenet or digits."),
    ] = "default",
    epochs: Annotated[float | None, typer.Option(help="Passes over the pictures.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long instead.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step, over all processes.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random numbers.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting: see --help-settings."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings from a run's config.json, or from JSON or TOML.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV with path (or id) and label, for measuring only.")] = None,
    test: Annotated[str | None, typer.Option(help="Labelled pictures to measure kNN on while training.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the source, where it has several.")] = None,
    limit: Limit = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Go on if the run has begun, else start it: for torchrun and queues.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first picture that can't be read.")] = False,
    train_source: TrainSource = None,
    device: Device = "auto",
    help_settings: Annotated[
        bool,
        typer.Option("--help-settings", callback=_show_settings, is_eager=True, help="Show every setting and exit."),
    ] = False,
) -> None:
    """Train an encoder on unlabelled pictures; with --add, train a run on with those that came since."""
    if epochs is not None and minutes is not None:
        raise InputError("Give --epochs or --minutes, not both: either one says how long to train.")
    overrides = parse_settings(set_ or [])
    given = {"epochs": epochs, "minutes": minutes, "batch": batch, "size": size, "seed": seed}
    overrides |= {name: value for name, value in given.items() if value is not None}
    if strict:
        overrides["strict"] = True
    more = {"labels": labels, "split": split, "limit": limit, "train_source": train_source, "device": device}
    more |= overrides
    if add:
        if out is not None or preset != "default" or test is not None or config is not None:
            raise InputError("--add goes by the run's own settings: leave out --out, --preset, --config and --test.")
        _run(source, None, resume=resume or auto_resume, **more)
    elif out is None:
        raise InputError("Name the run folder to make: --out runs/mine. To train a run on with new pictures: --add.")
    else:
        more |= {"preset": preset, "config": config, "test": test}
        _run(source, out, resume="auto" if auto_resume else resume, **more)


def _run(source: list[str], out: Path | None, **more: Any) -> None:
    """Train into the folder; or, without one, go on with the run that is named first, and with what is named then."""
    from instdisc import ranks
    from instdisc.jobs.grow import grow
    from instdisc.jobs.train import train

    first, *others = source
    with ranks.distributed():  # around the last line too: once the processes have parted, each is the main one
        if out is None:
            run = grow(first, others[0] if len(others) == 1 else others or None, **more)
        else:
            run = train(source if others else first, out, **more)
        if not run.finished:
            raise typer.Exit(130)  # as shells expect after Ctrl-C, so that a script does not go on to evaluate
        if ranks.is_main():
            print(f"Next: instdisc evaluate {out or first}")


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
