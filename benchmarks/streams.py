"""An epoch from a store behind a network: pictures a second, bytes and requests, by pictures and by shards.

    python benchmarks/streams.py                     # some minutes; a web server of its own, 20 ms away, 50 MB/s

Photographs (see decode.py) in Parquet files and tar shards stand on a web server that waits before each answer and
sends no faster than a link would. Two processes decode, batches of 128 are thrown away. "faulty": every fifth
request is refused. Each epoch starts without anything kept; the contestants take turns.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import io
import multiprocessing
import socketserver
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from decode import photographs
from record import record_contestants

from instdisc.data import open_pictures, open_source
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.loading.sampler import choose_order

BATCH, SIZE, GROUP = 128, 128, 64


class Store(http.server.SimpleHTTPRequestHandler):
    """Files in ranges, late and slowly. One link for all who ask; `facts`: requests, bytes, whether it is faulty."""

    protocol_version = "HTTP/1.1"
    delay, rate = 0.02, 50e6
    link = threading.Lock()
    facts: Any = None

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """A range of a file, or the whole."""
        self.facts[0] += 1
        time.sleep(self.delay)
        if self.facts[2] and self.facts[0] % 5 == 0:
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        size = path.stat().st_size
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(1 << 18, stop - start))
                with self.link:
                    time.sleep(len(piece) / self.rate)
                    self.facts[1] += len(piece)
                self.wfile.write(piece)
                start += len(piece)


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


def serve(folder: str, facts: Any, port: Any) -> None:
    """What the server's process does."""
    Store.facts = facts
    server = _Server(("127.0.0.1", 0), functools.partial(Store, directory=folder))
    port.value = server.server_address[1]
    server.serve_forever()


@contextmanager
def store(folder: Path) -> Iterator[tuple[str, Any]]:
    """A server in a process of its own: its address, and its requests, bytes and whether it is faulty."""
    context = multiprocessing.get_context("spawn")
    facts, port = context.Array("q", 3, lock=False), context.Value("i", 0)
    process = context.Process(target=serve, args=(str(folder), facts, port), daemon=True)
    process.start()
    while port.value == 0:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port.value}", facts
    process.kill()


def write(folder: Path, count: int, files: int) -> None:
    """The same photographs as Parquet files and as tar shards."""
    for number, contents in enumerate(np.array_split(np.array(photographs(count), object), files)):
        table = pa.table({"image": pa.array(list(contents), pa.binary())})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=GROUP)
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for place, content in enumerate(contents):
                member = tarfile.TarInfo(f"{number:03d}{place:06d}.jpg")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def epoch(address: str, facts: Any, ending: str, by: str, files: int, faulty: bool) -> dict[str, float]:
    """One epoch of a source: pictures a second, megabytes and requests."""
    facts[2] = 0
    with tempfile.TemporaryDirectory() as index:
        source = open_source(f"{address}/{{0..{files - 1}}}.{ending}", index_folder=Path(index))
        quarantine = Quarantine(Path(index) / "unreadable.csv")
        with open_pictures(
            source, SIZE, torch.device("cpu"), storage="workers", workers=2, quarantine=quarantine
        ) as pictures:
            order = choose_order(pictures, by)
            batches = order.batches(pictures.count, -(-pictures.count // BATCH), seed=0, epoch=0)
            facts[0], facts[1], facts[2] = 0, 0, int(faulty)
            started = time.perf_counter()
            read = sum(len(batch.indices) for batch in pictures.batches(batches))
            seconds = time.perf_counter() - started
        if read != len(source) or quarantine.count:
            raise RuntimeError(f"{len(source) - read} pictures of {len(source)} did not come")
    return {"rate": read / seconds, "mb": facts[1] / 1e6, "requests": facts[0]}


def main() -> None:
    """Measure all in turn and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/streams.json"))
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    ways = [(ending, by, False) for ending in ("tar", "parquet") for by in ("shards", "pictures")]
    ways += [(ending, "shards", True) for ending in ("tar", "parquet")]
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), settings.count, settings.files)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.tar")) / 1e6
        with store(Path(folder)) as (address, facts):
            for _ in range(settings.repeats):
                for ending, by, faulty in ways:
                    name = f"{ending}, order by {by}" + (", faulty store" if faulty else "")
                    found.setdefault(name, []).append(epoch(address, facts, ending, by, settings.files, faulty))
                    print(name, found[name][-1], flush=True)
    record_contestants(
        settings.out,
        name="streams",
        command=f"python benchmarks/streams.py --count {settings.count} --files {settings.files} "
        f"--repeats {settings.repeats}",
        unit="pictures/s with two decoding processes",
        rates={name: [round(one["rate"], 1) for one in runs] for name, runs in found.items()},
        data={"pictures": settings.count, "mb": round(size), "delay_seconds": Store.delay, "mb_per_second": 50},
        fetched={
            name: {"mb": round(runs[-1]["mb"]), "requests": int(runs[-1]["requests"])} for name, runs in found.items()
        },
    )


if __name__ == "__main__":
    main()
