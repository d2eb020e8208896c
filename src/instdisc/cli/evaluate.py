"""instdisc evaluate RUN [SOURCE]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from instdisc.cli.options import Device, Run, TrainSource
from instdisc.errors import InputError

EXAMPLES = """
Examples:

`instdisc evaluate runs/photos` — leave-one-out on the training pictures

`instdisc evaluate runs/photos test/` — labelled test pictures

`instdisc evaluate runs/photos test/ --with svm,retrieval` — linear SVMs on every level, and retrieval

`instdisc evaluate runs/photos test/ --with semi` — 1 to 20 % of the labels: fine-tuned, spread, from scratch

`instdisc evaluate runs/photos --published resnet50` — beside a published encoder, and which is best here

`instdisc evaluate runs/photos --labels labels.csv -k 20` — labels from a file, 20 neighbours
"""


def command(
    run: Run,
    source: Annotated[str | None, typer.Argument(help="Labelled test pictures; without: leave-one-out.")] = None,
    with_: Annotated[
        str, typer.Option("--with", help="Beside knn: svm, linear (on every level), semi, retrieval, quality.")
    ] = "knn",
    neighbours: Annotated[
        int | None, typer.Option("-k", "--neighbours", help="How many vote; 200 if there are.")
    ] = None,
    temperature: Annotated[str, typer.Option(help="Of the votes: a number, or run for the run's own.")] = "0.07",
    bank: Annotated[bool, typer.Option("--bank", help="Use the bank's rows for the training pictures.")] = False,
    labels: Annotated[Path | None, typer.Option(help="CSV with path (or id) and label.")] = None,
    train_source: TrainSource = None,
    published: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A published encoder to compare with, frozen: a network of timm's."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its weights, a safetensors file; without: timm's own, fetched.")
    ] = None,
    shares: Annotated[str, typer.Option(help="Of the labels, in percent, for semi.")] = "1,2,5,10,20",
    device: Device = "auto",
) -> None:
    """Measure a run: weighted kNN, beside raw pixels and an untrained encoder."""
    from instdisc import ranks
    from instdisc.jobs.evaluate import evaluate

    with ranks.distributed():  # around the table too: once the processes have parted, each is the main one
        report = evaluate(
            run,
            source,
            measures=[name.strip() for name in with_.split(",")],
            neighbours=neighbours,
            temperature=temperature,
            bank=bank,
            labels=labels,
            train_source=train_source,
            shares=[_percent(text) for text in shares.split(",")],
            device=device,
            published=published,
            weights=weights,
        )
        if ranks.is_main():
            show(report, run)


def _percent(text: str) -> float:
    try:
        return float(text.strip().removesuffix("%")) / 100
    except ValueError:
        raise InputError(f'--shares takes percentages like 1,5,20, not "{text}".') from None


def show(report: dict[str, Any], run: Path) -> None:
    """The report as a table, with what it means."""
    from rich.table import Table

    from instdisc.cli.console import console
    from instdisc.jobs.measures import knn_rows

    shown = console()
    if "knn" in report:
        settings = report["settings"]
        table = Table(title=f"Weighted kNN, k = {settings['neighbours']}, {settings['mode']}", title_justify="left")
        table.add_column("vectors")
        for name in ("top-1 %", "95 % interval", "top-5 %"):
            table.add_column(name, justify="right")
        for name, result in knn_rows(report):
            low, high = result["interval"]
            style = "bold" if name in ("search vectors", "embedding") else None
            table.add_row(
                name,
                f"{100 * result['top1']:.2f}",
                f"{100 * low:.2f} to {100 * high:.2f}",
                f"{100 * result['top5']:.2f}",
                style=style,
            )
        shown.print(table)
        shown.print(report["best"], markup=False)
        _show_linear(shown, report)
        _show_few_labels(shown, report, run)
    else:
        why = report.get("labels_problem") or "Give --labels, or a folder of class folders."
        shown.print(f"kNN accuracy was not measured: there are no valid labels. {why}", markup=False)
    quality = report["quality"]
    shown.print(
        f"Without labels: effective rank {quality['effective_rank']:.1f}, uniformity {quality['uniformity']:.2f}. "
        f"{quality['sentence']}",
        markup=False,
    )
    for section in report.values():
        for sentence in section.get("sentences", ()) if isinstance(section, dict) else ():
            shown.print(sentence, markup=False)
    _show_retrieval(shown, report)
    if report.get("neighbours_sheet"):
        shown.print(f"Nearest neighbours to look at: {run / report['neighbours_sheet']}")
    shown.print(f"All of it is in {run / 'evaluation.json'}.")


def _show_retrieval(shown: Any, report: dict[str, Any]) -> None:
    """What is found when pictures ask for others like them: a line for each kind of vectors."""
    from rich.table import Table

    if "retrieval" not in report:
        return
    ranks = list(report["retrieval"]["precision"])
    title = f"Retrieval by {report['retrieval']['queries']:,} pictures, % (P@k: of the same class among the first k)"
    table = Table(title=title, title_justify="left")
    table.add_column("vectors")
    for words in (*(f"P@{k}" for k in ranks), f"any in {ranks[-1]}", "mAP"):
        table.add_column(words, justify="right")
    for name, words in (("retrieval_search", "search vectors"), ("retrieval", "embedding")):
        if name in report:
            found = report[name]
            shares = [*found["precision"].values(), found["recall"][ranks[-1]], found["mean_average_precision"]]
            table.add_row(words, *(f"{100 * share:.2f}" for share in shares))
    shown.print(table)


def _show_linear(shown: Any, report: dict[str, Any]) -> None:
    """The linear classifiers, a line for each level of features."""
    from rich.table import Table

    for name, title, constant in (("svm", "Linear SVM", "cost"), ("linear", "Linear probe", "learning rate")):
        if name not in report:
            continue
        table = Table(title=f"{title}, {report[name]['mode']}", title_justify="left")
        table.add_column("features")
        for column in ("numbers", "top-1 %", "95 % interval", "top-5 %", constant):
            table.add_column(column, justify="right")
        for level, result in report[name]["levels"].items():
            low, high = result["interval"]
            table.add_row(
                level,
                f"{result['dim']}",
                f"{100 * result['top1']:.2f}",
                f"{100 * low:.2f} to {100 * high:.2f}",
                f"{100 * result['top5']:.2f}",
                f"{result['chosen']:g}",
            )
        shown.print(table)


def _show_few_labels(shown: Any, report: dict[str, Any], run: Path) -> None:
    """What a few labels give: a line for each method, mean and standard deviation over the draws."""
    from rich.table import Table

    from instdisc.jobs.semi import METHODS

    if "semi" not in report:
        return
    found = report["semi"]
    table = Table(title=f"With a few labels, top-1 %, {found['draws']} draws, {found['mode']}", title_justify="left")
    table.add_column("of the labels")
    for row in found["shares"]:
        table.add_column(f"{100 * row['share']:g} %, {row['labels']:,}", justify="right")
    for name, words in METHODS.items():
        means = (f"{100 * row[name]['mean']:.2f} ± {100 * row[name]['std']:.2f}" for row in found["shares"])
        table.add_row(words, *means)
    shown.print(table)
    if found["plot"]:
        shown.print(f"As curves: {run / found['plot']}")
