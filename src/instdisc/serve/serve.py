"""`instdisc serve`: the page around a run's collection, on this machine or for others by a token.

This file must not import torch: the page answers while the collection is being opened in the background.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from instdisc.allocator import give_back_freed_memory
from instdisc.errors import InputError
from instdisc.files import read_json
from instdisc.jobs.catalogue import Listed
from instdisc.jobs.run import Run
from instdisc.runs import RunFolder
from instdisc.serve.access import Reach

if TYPE_CHECKING:
    from instdisc.serve.opened import Opened


def _print_now(words: str) -> None:
    print(words, flush=True)  # whoever reads it through a pipe waits for the address


def _print_beside(words: str) -> None:
    print(words, file=sys.stderr, flush=True)  # programs take the first line of the output for the address


def _print_of_second(words: str) -> None:
    _print_beside(words.replace("--train-source", "--beside-source"))


def _lacks_search_vectors(folder: RunFolder) -> bool:
    """Whether the run has a map to search vectors and was not embedded since: a look that costs nothing."""
    index = folder.index / "index.json"
    if not folder.search_vectors.is_file():
        return False
    try:
        with safe_open(folder.search_vectors, framework="numpy") as file:
            step = json.loads(file.metadata()["whitening"])["step"]
        made = read_json(index) if index.is_file() else {}
        return not made.get("recomputed") or made["step"] != step
    except (InputError, OSError, SafetensorError, ValueError, LookupError, TypeError):
        return False  # the opening itself says what is wrong


def _opened_beside(
    first: Run, second: str | Path | None, source: Any, *, bank: bool, device: str
) -> tuple[Opened, Opened] | None:
    """Open both runs, if there are two. Raises InputError if the second is no run, or if they share no picture.

    source: where the second one's collection is now, if it was moved.
    """
    if second is None:
        return None
    from instdisc.jobs.index import searchable
    from instdisc.serve.beside import matched
    from instdisc.serve.opened import Opened

    other = Run(second, train_source=source)
    if not bank and _lacks_search_vectors(other.folder):
        other = searchable(other, device=device, say=_print_of_second).run
    pair = Opened(first, device=device), Opened(other, device=device)
    both = len(matched(*pair)[0])
    counts = [int((~one.index.removed).sum()) for one in pair]
    if not both:
        raise InputError(
            f"{first.path} and {other.path} have no picture in common, by their ids: "
            "compare two runs of the same pictures."
        )
    words = [f"{one.path} ({vectors.vectors} vectors)" for one, vectors in zip((first, other), pair, strict=True)]
    _print_beside(
        f"Comparing {' with '.join(words)}: {both:,} pictures are in both, of {counts[0]:,} and {counts[1]:,}."
    )
    return pair


def _listen(listening: socket.socket, reach: Reach) -> None:
    """Take the address. Raises InputError where it is taken or none of this machine."""
    try:
        listening.bind((reach.host, reach.port))
        listening.listen(128)  # who comes before the server is ready waits
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{reach.host}:{reach.port} can't be listened on ({reason}): choose another --port.") from None


def _names(*runs: str | Path) -> list[str]:
    """What runs are called: their folders, with those above them where two are called alike."""
    folders = [Path(run).resolve() for run in runs]
    alike = len({folder.name for folder in folders}) < len(set(folders))
    return [f"{folder.parent.name}/{folder.name}" if alike else folder.name for folder in folders]


def serve(
    run: str | Path,
    reach: Reach | None = None,
    *,
    beside: str | Path | None = None,
    approximate: bool = False,
    bank: bool = False,
    train_source: Any = None,
    beside_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] = _print_now,
) -> None:
    """Serve the page until it is interrupted: on this machine alone, or as `reach` says.

    beside: a second run, to compare with: of the same pictures, by their ids. train_source, beside_source: where the
    collections of the first and of the second run are now, if they were moved. approximate: let an HNSW graph answer
    searches, once it is built in the background. bank: show what is there at once, the rows of the bank perhaps;
    without it search vectors are computed first, once, where the run can make them.
    Raises InputError where a run can't be opened, two share no picture, the port is taken, or `reach` names
    what is no name or address.
    """
    if beside is None and beside_source is not None:
        raise InputError("--beside-source says where a second run's pictures are: name both runs.")
    reach = reach or Reach()
    access = reach.access()
    give_back_freed_memory()
    opened_run = Run(run, train_source=train_source)
    if not bank and _lacks_search_vectors(opened_run.folder):
        from instdisc.jobs.index import searchable

        _print_beside("Computing search vectors: this happens once; --bank shows the collection without them at once.")
        opened_run = searchable(opened_run, device=device, say=_print_beside).run

    from instdisc.serve.opening import Opening

    pair = _opened_beside(opened_run, beside, beside_source, bank=bank, device=device)

    def opened() -> Opened:
        from instdisc.serve.opened import Opened

        served = Opened(opened_run, device=device) if pair is None else pair[0]
        if approximate:
            threading.Thread(target=served.approximate, args=(say,), name="graph", daemon=True).start()
        return served

    if approximate and find_spec("usearch") is None:
        from instdisc.search.cells import MANY  # with torch: only where this may be an error

        if len(opened_run.rows) <= MANY:
            raise InputError("Approximate search needs usearch: pip install 'instdisc[ann]'.")

    family = socket.AF_INET6 if ":" in reach.host else socket.AF_INET
    # Where asyncio sees that the protocol is TCP, it sends small answers at once (TCP_NODELAY); else each waits 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _listen(listening, reach)
        port = listening.getsockname()[1]
        names = _names(opened_run.path, beside or opened_run.path)
        second = None if pair is None else (names[1], pair[1])
        opening = Opening(names[0], opened, lambda: Listed(opened_run), beside=second)
        say(reach.address(port, access))
        say("Open this address in a browser. Ctrl-C ends.")
        if access.token and (reach.allow_hosts or reach.trusted_proxies):
            say(f"By another name or through a proxy, its own address opens with ?token={access.token} at the end.")
        import uvicorn  # while the collection is looked at, and the browser waits

        from instdisc.serve.app import make_app
        from instdisc.serve.limits import config_for

        uvicorn.Server(config_for(make_app(opening, access))).run(sockets=[listening])
