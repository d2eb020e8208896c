"""Files of vectors between instdisc and its peers, both ways: LightlyStudio, FiftyOne, embedding-atlas, Lance.

    instdisc embed runs/mine pictures/ -o ours.parquet
    PEER/bin/python experiments/exchange.py lance ours.parquet lance.parquet    # in an environment that has the peer
    python experiments/exchange.py check ours.parquet lance.parquet             # in one that has instdisc

The first puts our vectors into the peer, as its own documentation does, asks it for the nearest of a picture where it
can be asked, and writes Parquet from what it holds. The second reads that file as `instdisc open` does: every picture
must have the vector that it had.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


def main() -> None:
    """One peer, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*PEERS, "check"])
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    given = parser.parse_args()
    if given.what == "check":
        check(given.ours, given.theirs)
        return
    from importlib.metadata import version

    table = pq.read_table(given.ours)
    names = [str(one) for one in table["location"].to_pylist()]
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
    nearest = PEERS[given.what](given.ours, names, vectors, given.theirs)
    said = {"peer": given.what, "version": version(PACKAGES[given.what]), "pictures": len(names)}
    if nearest is not None:
        cosines = vectors @ vectors[0]
        said["nearest agree"] = nearest == [names[row] for row in np.argsort(-cosines, kind="stable")[: len(nearest)]]
    print(json.dumps(said))


def lance_there(ours: Path, names: list[str], vectors: np.ndarray, theirs: Path) -> list[str]:
    """A Lance data set of the table, asked for the nearest of its first picture."""
    import lance

    with tempfile.TemporaryDirectory() as folder:
        made = lance.write_dataset(pq.read_table(ours), f"{folder}/ours.lance")
        found = made.to_table(nearest={"column": "vector", "q": vectors[0], "k": 5, "metric": "cosine"})
        pq.write_table(made.to_table(), theirs)
    return [str(one) for one in found["location"].to_pylist()]


def atlas_there(ours: Path, names: list[str], vectors: np.ndarray, theirs: Path) -> None:
    """The application that embedding-atlas exports holds the table, with a projection that it made of the vectors."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("embedding-atlas"), ours, "--vector", "vector"]
        subprocess.run([*command, "--export-application", f"{folder}/atlas.zip"], check=True, capture_output=True)
        with zipfile.ZipFile(f"{folder}/atlas.zip") as archive:
            theirs.write_bytes(archive.read("data/dataset.parquet"))
    assert "projection_x" in pq.read_schema(theirs).names


def lightly_there(ours: Path, names: list[str], vectors: np.ndarray, theirs: Path) -> None:
    """An embedder that looks vectors up by path, as its example does; then DuckDB writes its table as Parquet."""
    import duckdb
    import lightly_studio
    from lightly_studio.database import db_manager
    from lightly_studio_serve.embedder import ImagePathEmbedder

    known = dict(zip(names, vectors, strict=True))

    class Ours(ImagePathEmbedder):  # type: ignore[misc]
        def embedding_space_spec(self) -> Any:
            return lightly_studio.EmbeddingSpaceSpec(space_key="instdisc", dimension=vectors.shape[1])

        def embed_images(self, paths: list[str]) -> Any:
            kept = [number for number, path in enumerate(paths) if path in known]
            found = np.stack([known[paths[number]] for number in kept])
            return lightly_studio.EmbeddingResult(embeddings=found, kept_indices=kept)

    with tempfile.TemporaryDirectory() as folder:
        db_manager.connect(db_file=f"{folder}/studio.db", cleanup_existing=True)
        lightly_studio.register_default_embedder(embedder=Ours())
        data = lightly_studio.ImageDataset.create()
        data.add_images_from_path(path=os.path.commonpath(names))
        db_manager.close()
        with duckdb.connect(f"{folder}/studio.db", read_only=True) as database:
            database.execute(
                "COPY (SELECT image.sample_id, image.file_path_abs AS filepath, vectors.embedding FROM image "
                f"JOIN sample_embedding AS vectors USING (sample_id)) TO '{theirs}' (FORMAT parquet)"
            )


def fiftyone_there(ours: Path, names: list[str], vectors: np.ndarray, theirs: Path) -> list[str]:
    """Samples with a field of vectors, a similarity index over it; then a DataFrame of the fields, as Parquet."""
    import fiftyone
    import fiftyone.brain
    import pandas

    data = fiftyone.Dataset()
    labels = pq.read_table(ours)["label"].to_pylist()
    data.add_samples(
        [
            fiftyone.Sample(filepath=name, embedding=vector, ground_truth=fiftyone.Classification(label=str(label)))
            for name, vector, label in zip(names, vectors, labels, strict=True)
        ]
    )
    fiftyone.brain.compute_similarity(data, embeddings="embedding", brain_key="ours", metric="cosine")
    found = data.sort_by_similarity(data.first().id, k=5, brain_key="ours")
    fields = ("id", "filepath", "embedding", "ground_truth.label")
    columns = dict(zip(("id", "filepath", "embedding", "label"), data.values(list(fields)), strict=True))
    pandas.DataFrame(columns).to_parquet(theirs)
    nearest = [str(one) for one in found.values("filepath")]
    data.delete()
    return nearest


def check(ours: Path, theirs: Path) -> None:
    """Raise where the peer's file does not give every picture the vector that it had."""
    from instdisc.data.sources.given import read_vectors

    before, after = read_vectors(ours), read_vectors(theirs)
    assert not after.unusable, after.unusable[0]
    row_of = {name: row for row, name in enumerate(after.table["location"].to_pylist())}
    rows = [row_of[name] for name in before.table["location"].to_pylist()]
    assert len(row_of) == len(before.vectors) and np.array_equal(after.vectors[rows], before.vectors), theirs
    print(f"{theirs}: {len(rows):,} vectors of {before.vectors.shape[1]} dimensions, each as it was")


PEERS = {
    "lance": lance_there,
    "lightly-studio": lightly_there,
    "embedding-atlas": atlas_there,
    "fiftyone": fiftyone_there,
}
PACKAGES = {"lance": "pylance", **{name: name for name in ("lightly-studio", "embedding-atlas", "fiftyone")}}


if __name__ == "__main__":
    main()
