"""A collection on a PostgreSQL server with pgvector, for a team: pushed from a run, then asked by anybody's program.

    with Postgres("postgresql://me@host/pictures") as store:
        store.sync("3f2a", "photos", index, step=9000)       # what is new, changed and gone since; one transaction
        store.search("3f2a", queries, 20, label="cat")

    instdisc_collections   key, name, step, dim, synced, whitening
    instdisc_<key>         row, id, path, label, tags text[], vector vector(dim), digest; an HNSW index over vector

Names that are no UTF-8 are stored with U+FFFD in the place of such bytes. Who pushes and who asks must agree on the
encoder: `step` names the vectors' checkpoint, `whitening` their map where they are search vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from instdisc.errors import InputError
from instdisc.progress import Bar
from instdisc.search.catalogue import Entry
from instdisc.search.index import Index
from instdisc.shapes import Float

_BLOCK = 4_096
_MOST_INDEXED = 2_000  # dimensions: pgvector's limit for HNSW
_BREADTH = 100
# The tables of versions without search vectors lack the column.
_WITH_WHITENING = "ALTER TABLE instdisc_collections ADD COLUMN IF NOT EXISTS whitening text NOT NULL DEFAULT ''"


@dataclass(frozen=True)
class Synced:
    """Pictures that were new to the server, whose vector, name, label or tags had changed, and that had gone."""

    added: int
    changed: int
    removed: int


class Postgres:
    """A connection. Raises InputError, in every method too, where psycopg, the server or pgvector is missing."""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
            from pgvector.psycopg import register_vector
        except ImportError:
            raise InputError("A PostgreSQL store needs its client: pip install 'instdisc[postgres]'.") from None
        self._sql = psycopg.sql
        self._error = psycopg.Error
        with self._told():
            try:
                self._connection = psycopg.connect(url, connect_timeout=10, autocommit=True)
            except psycopg.Error as error:
                words = str(error).strip().splitlines() or [""]
                raise InputError(f"The PostgreSQL server can't be reached: {words[-1].strip()}.") from None
            try:
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except psycopg.Error as error:
                if not self._connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
                    self._connection.close()
                    raise InputError(
                        "This PostgreSQL server has no pgvector: install it there, and let an administrator say "
                        f"CREATE EXTENSION vector in this database ({error.diag.message_primary})."
                    ) from None
            register_vector(self._connection)

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def sync(self, key: str, name: str, index: Index, step: int, *, whitening: str = "", show: bool = False) -> Synced:
        """Make the server's copy equal to the index: only what differs is sent. Others see it before or after.

        key: letters and digits, of this collection; name: for people. step: of the checkpoint that made the vectors;
        whitening: the digest of the map that made them search vectors, "" for embeddings.
        """
        table = self._table(key)
        rows = np.flatnonzero(~index.removed)
        with self._told(), self._connection.transaction():
            run = self._run
            run(
                "CREATE TABLE IF NOT EXISTS instdisc_collections (key text PRIMARY KEY, name text NOT NULL, "
                "step bigint NOT NULL, dim int NOT NULL, synced timestamptz NOT NULL)"
            )
            run(_WITH_WHITENING)
            run("SELECT pg_advisory_xact_lock(hashtextextended('instdisc', 0))")  # one push at a time
            known = run("SELECT dim FROM instdisc_collections WHERE key = %s", key).fetchone()
            if known is not None and known[0] != index.dim:
                run("DROP TABLE {table}", table=table)
            columns = (
                f"row bigint PRIMARY KEY, id text NOT NULL, path text NOT NULL, label text NOT NULL, "
                f"tags text[] NOT NULL, vector vector({index.dim}) NOT NULL, digest bytea NOT NULL"
            )
            run("CREATE TABLE IF NOT EXISTS {table} (" + columns + ")", table=table)
            before = dict(run("SELECT row, digest FROM {table}", table=table).fetchall())
            run("CREATE TEMPORARY TABLE coming (" + columns + ") ON COMMIT DROP")
            copy = "COPY coming (row, id, path, label, tags, vector, digest) FROM STDIN WITH (FORMAT BINARY)"
            added = changed = 0
            with (
                Bar(len(rows), "Comparing with the server", "pictures", enabled=show) as bar,
                self._connection.cursor().copy(copy) as lines,
            ):
                lines.set_types(["int8", "text", "text", "text", "text[]", "vector", "bytea"])
                for line in _lines(index, rows):
                    digest = before.pop(line[0], None)
                    if digest != line[-1]:
                        lines.write_row(line)
                        added += digest is None
                        changed += digest is not None
                    bar.advance()
            run("DELETE FROM {table} WHERE row = ANY(%s)", list(before), table=table)
            run(
                "INSERT INTO {table} SELECT * FROM coming ON CONFLICT (row) DO UPDATE SET id = excluded.id, "
                "path = excluded.path, label = excluded.label, tags = excluded.tags, vector = excluded.vector, "
                "digest = excluded.digest",
                table=table,
            )
            if index.dim <= _MOST_INDEXED:
                run("SET LOCAL maintenance_work_mem = '1GB'")
                run(
                    "CREATE INDEX IF NOT EXISTS {name} ON {table} USING hnsw (vector vector_ip_ops)",
                    table=table,
                    name=self._sql.Identifier(f"instdisc_{key}_hnsw"),
                )
            run(
                "INSERT INTO instdisc_collections (key, name, step, dim, synced, whitening) "
                "VALUES (%s, %s, %s, %s, now(), %s) ON CONFLICT (key) DO UPDATE SET name = excluded.name, "
                "step = excluded.step, dim = excluded.dim, synced = excluded.synced, whitening = excluded.whitening",
                key,
                name,
                step,
                index.dim,
                whitening,
            )
        with self._told():
            self._run("ANALYZE {table}", table=table)
        return Synced(added, changed, len(before))

    def made_by(self, key: str) -> tuple[int, str] | None:
        """The checkpoint and the map of the vectors, as `sync` took them; None where they were never pushed."""
        with self._told():
            if self._run("SELECT to_regclass('instdisc_collections')").fetchone()[0] is None:
                return None
            row = "SELECT step, to_jsonb(c)->>'whitening' FROM instdisc_collections c WHERE key = %s"
            found = self._run(row, key).fetchone()  # by way of JSON, where a column that is not there is null
        return None if found is None else (int(found[0]), found[1] or "")

    def search(
        self,
        key: str,
        queries: Float[Tensor, "queries dim"],
        neighbours: int,
        *,
        where: str | None = None,
        label: str | None = None,
        tag: str | None = None,
        exclude: Sequence[str] | None = None,
    ) -> list[list[tuple[Entry, float]]]:
        """For each query the pictures with the highest cosine, and it, best first: by HNSW, so that one may be missed.

        where, label, tag: as in `Index.matching`. exclude: one path a query that is never an answer. Raises InputError
        where fewer than `neighbours` pictures are to choose from, which is found out exactly.
        """
        conditions, values = ["true"], []
        if where is not None:
            for letter, written in (("\\", r"\\"), ("%", r"\%"), ("_", r"\_"), ("*", "%"), ("?", "_")):
                where = where.replace(letter, written)
            conditions.append("id LIKE %s")
            values.append(where)
        if label is not None:
            conditions.append("label = %s")
            values.append(label)
        if tag is not None:
            conditions.append("%s = ANY(tags)")
            values.append(tag)
        asked = (
            "SELECT row, id, path, label, -(vector <#> %s) FROM {table} WHERE "
            + " AND ".join([*conditions, "path <> %s"])
            + " ORDER BY vector <#> %s LIMIT %s"
        )
        answers = []
        with self._told():
            for number, query in enumerate(queries.cpu().float().numpy()):
                own = "" if exclude is None else _readable(exclude[number])
                found: list[Any] = []
                for setting in (
                    f"hnsw.ef_search = {min(max(_BREADTH, 2 * neighbours), 1_000)}",
                    "enable_indexscan = off",  # where HNSW finds too few: exactly
                ):
                    if len(found) < neighbours:
                        with self._connection.transaction():
                            self._run("SET LOCAL hnsw.iterative_scan = relaxed_order")
                            self._run(f"SET LOCAL {setting}")
                            given = (query, *values, own, query, neighbours)
                            found = self._run(asked, *given, table=self._table(key)).fetchall()
                if len(found) < neighbours:
                    raise InputError(
                        f"{neighbours} neighbours were asked for, and {len(found):,} pictures are there to choose "
                        "from: ask for fewer, or filter less."
                    )
                found.sort(key=lambda line: (-line[4], line[0]))
                answers.append([(Entry(*line[:4]), float(line[4])) for line in found])
        return answers

    def _table(self, key: str) -> Any:
        assert key.isalnum()
        return self._sql.Identifier(f"instdisc_{key}")

    def _run(self, words: str, *values: Any, **names: Any) -> Any:
        query = self._sql.SQL(words).format(**names) if names else words
        return self._connection.execute(query, values or None)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the server refuses, as a sentence."""
        try:
            yield
        except self._error as error:
            words = error.diag.message_primary or str(error)
            raise InputError(f"The PostgreSQL server refused: {words}.") from None


def _readable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _lines(index: Index, rows: np.ndarray) -> Iterator[tuple[int, str, str, str, list[str], np.ndarray, bytes]]:
    """A line a picture, with a digest of all that it says."""
    tags: dict[int, list[str]] = {}
    for name in sorted(index.tags):
        for row in index.tags[name].tolist():
            tags.setdefault(row, []).append(_readable(name))
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        vectors = index.vectors(some).numpy()
        for entry, vector in zip(index.entries(some), vectors, strict=True):
            words = [_readable(entry.id), _readable(entry.path), _readable(entry.label)]
            held = tags.get(entry.row, [])
            said = repr((words, held)).encode("utf-8", "backslashreplace")
            digest = hashlib.blake2b(said + vector.tobytes(), digest_size=8).digest()
            yield entry.row, words[0], words[1], words[2], held, vector, digest
