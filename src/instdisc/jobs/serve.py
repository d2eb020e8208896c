"""`instdisc serve`: the page around a run's collection, on this machine or for others by a token.

This file must not import torch: the page answers while the collection is being opened in the background.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from instdisc.allocator import give_back_freed_memory
from instdisc.data.decode import decode
from instdisc.errors import InputError
from instdisc.jobs.sources import read_facts, read_instances, reopen
from instdisc.runs import RunFolder, read_json

if TYPE_CHECKING:
    from instdisc.jobs.served import ServedRun


def _print_now(words: str) -> None:
    print(words, flush=True)  # whoever reads it through a pipe waits for the address


def _print_beside(words: str) -> None:
    print(words, file=sys.stderr, flush=True)  # programs take the first line of the output for the address


LOCAL = ("127.0.0.1", "localhost", "::1")


def hosts_of(host: str, port: int) -> list[str]:
    """What a browser may call this server in its Host header."""
    names = {host, socket.gethostname(), socket.getfqdn()} if host not in LOCAL else set(LOCAL)
    if host in ("0.0.0.0", "::"):
        names |= {*LOCAL, *_addresses()}
    written = [f"[{name}]" if ":" in name else name for name in names]
    return [f"{name}:{port}" for name in written] + (written if port == 80 else [])


def _addresses() -> set[str]:
    """This machine's own addresses, as far as its name leads to them and a route to elsewhere shows one."""
    found = set()
    try:
        found |= {str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None)}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: nothing is sent
            found.add(probe.getsockname()[0])
    except OSError:
        pass
    return found


class RunLook:
    """A run's own pictures, as the grid shows them before torch is loaded (serve/handed.py).

    Raises an error of some kind where that is not all of the collection, or can't be had: the whole is waited for then.
    """

    def __init__(self, run: str | Path, *, train_source: Any = None) -> None:
        folder = RunFolder(run)
        facts = read_facts(folder)
        self.dim = int(facts["encoder"]["dim"])
        self._source = reopen(folder, facts, train_source)
        self._pictures = read_instances(folder)
        self._rows = self._pictures["row"].to_numpy()
        there = np.ones(len(self._rows), dtype=bool)
        self.recomputed, self.vectors, self.tags = False, "embedding", list[str]()
        if (folder.index / "index.json").is_file():
            changed = read_json(folder.index / "index.json")
            if any(part["source"] is not None for part in changed["parts"]):
                raise InputError("Pictures were added.")
            with pa.memory_map(os.fsencode(folder.index / changed["marks"])) as file:
                marks = pa.ipc.open_file(file).read_all()
            names = np.array(marks["tag"].to_pylist(), dtype=object)
            there[marks["row"].to_numpy()[names == ""]] = False
            self.recomputed, self.tags = changed["recomputed"] is not None, sorted(set(names) - {""})
            if self.recomputed:
                self.vectors = "search" if changed.get("whitening") else "embedding"
                with safe_open(folder.index / f"{changed['recomputed']}.safetensors", framework="numpy") as file:
                    self.dim = int(file.get_slice("vectors").get_shape()[1])
        self.rows = np.flatnonzero(there)
        self._hand: dict[str, str] = {}
        if folder.hand_labels.is_file():
            with open(folder.hand_labels, newline="", encoding="utf-8", errors="surrogateescape") as lines:
                self._hand = {line["path"]: line["label"] for line in csv.DictReader(lines)}
        self._names = list(self._source.label_names or [])
        self.label_names = [*self._names, *sorted(set(self._hand.values()) - set(self._names))]

    def entries(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        found = self._pictures.take(pa.array(np.asarray(rows, dtype=np.int64))).select(["id", "location"])
        codes = None if self._source.labels is None else self._source.labels[self._rows[list(rows)]]
        entries = []
        for place, (row, one) in enumerate(zip(rows, found.to_pylist(), strict=True)):
            path = os.fsdecode(one["location"])
            label = "" if codes is None or codes[place] < 0 else self._names[codes[place]]
            hand = path in self._hand
            entries.append(
                {"row": int(row), "id": os.fsdecode(one["id"]), "path": path, "hand": hand}
                | {"label": self._hand[path] if hand else label}
            )
        return entries

    def picture(self, row: int) -> np.ndarray:
        return decode(self._source.read(int(self._rows[row])))


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


def serve(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    approximate: bool = False,
    bank: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] = _print_now,
) -> None:
    """Serve the page until it is interrupted. Beyond this machine a token is needed: one is made where none is given.

    approximate: let an HNSW graph answer searches, once it is built in the background. bank: show what is there at
    once, the rows of the bank perhaps; without it search vectors are computed first, once, where the run can make them.
    Raises InputError where the run can't be opened or the port is taken.
    """
    give_back_freed_memory()
    RunFolder(run).read_config()
    if not bank and _lacks_search_vectors(RunFolder(run)):
        from instdisc.jobs.index import searchable

        _print_beside("Computing search vectors: this happens once; --bank shows the collection without them at once.")
        searchable(run, train_source=train_source, device=device, say=_print_beside)

    from instdisc.serve.handed import Opening

    def opened() -> ServedRun:
        from instdisc.jobs.served import ServedRun

        served = ServedRun(run, train_source=train_source, device=device)
        if approximate:
            threading.Thread(target=served.approximate, args=(say,), name="graph", daemon=True).start()
        return served

    if approximate and find_spec("usearch") is None:
        raise InputError("Approximate search needs usearch: pip install 'instdisc[ann]'.")

    if host not in LOCAL and not token:
        token = secrets.token_urlsafe(24)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Where asyncio sees that the protocol is TCP, it sends small answers at once (TCP_NODELAY); else each waits 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(128)  # who comes before the server is ready waits
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{host}:{port} can't be listened on ({reason}): choose another --port.") from None
        port = listening.getsockname()[1]
        opening = Opening(Path(run).resolve().name, opened, lambda: RunLook(run, train_source=train_source))
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{port}/" + (f"?token={token}" if token else ""))
        say("Open this address in a browser. Ctrl-C ends.")
        import uvicorn  # while the collection is looked at, and the browser waits

        from instdisc.serve.app import make_app
        from instdisc.serve.wire import config_for

        uvicorn.Server(config_for(make_app(opening, hosts_of(host, port), token))).run(sockets=[listening])
