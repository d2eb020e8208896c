"""instdisc serve RUN [SECOND]"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import CollectionSource, Device, Run

EXAMPLES = """
Examples:

`instdisc serve runs/photos` — browse, search, clean and label the collection in a browser, on this machine alone

`instdisc serve runs/photos runs/longer` — compare two runs: neighbours side by side, what changed, which one is right

`instdisc serve runs/photos --host 0.0.0.0 --port 8080` — for others too, by the address with the token that it prints

`instdisc serve runs/photos --allow-host photos.example --trusted-proxy 127.0.0.1` — behind a proxy on this machine
"""


def command(
    run: Run,
    beside: Annotated[Path | None, typer.Argument(help="A second run of the same pictures, to compare with.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8765,
    token: Annotated[
        str | None,
        typer.Option(envvar="INSTDISC_TOKEN", help="The secret in the address; made up beyond this machine."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A further name to answer to, as in photos.example; may be given again. Needs a token."),
    ] = None,
    base_path: Annotated[
        str, typer.Option(help="The path under which a proxy shows the page, as in /photos.", show_default=False)
    ] = "",
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of a proxy whose X-Forwarded headers are believed; may be given again."),
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Search nearly exactly, sooner: for millions of pictures.")
    ] = False,
    bank: Annotated[
        bool, typer.Option("--bank", help="Show it at once, by the rows of the bank where nothing better is there.")
    ] = False,
    train_source: CollectionSource = None,
    beside_source: Annotated[
        str | None, typer.Option(help="Where the second run's collection is now, if moved.")
    ] = None,
    device: Device = "auto",
    with_stdin: Annotated[
        bool, typer.Option("--with-stdin", hidden=True, help="End with the standard input: with who writes it.")
    ] = False,
) -> None:
    """Show a run's collection in a browser: search, browse, find duplicates, label."""
    from instdisc.serve.access import Reach
    from instdisc.serve.serve import serve

    if with_stdin:
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    serve(
        run,
        Reach(host, port, token, allow_host or (), base_path, trusted_proxy or ()),
        beside=beside,
        approximate=approximate,
        bank=bank,
        train_source=train_source,
        beside_source=beside_source,
        device=device,
    )


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
