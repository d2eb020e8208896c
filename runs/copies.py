"""At which cosine copies are told from others, by the embedding and by search vectors: what the threshold comes from.

    python runs/copies.py runs/out/photos --photos photos.parquet

Of each of the first 300 photographs a changed copy is made (resized, re-encoded, cropped, brighter, mirrored: 60 each).
For each threshold: the share of the copies found, mirrored ones apart, and pairs among the first 1,500 photographs that
would be taken for copies. The runs were trained on these photographs, so a fresh collection may do worse. The result
goes to results/copies.json.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

import instdisc
from instdisc.data.decode import decode
from instdisc.data.source import open_source
from instdisc.encoder.encoder import VECTORS

PICTURES, COPIED, KINDS = 1_500, 300, 5
THRESHOLDS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def changed(picture: Image.Image, kind: int) -> np.ndarray:
    """A copy: resized, re-encoded, cropped by a tenth, brighter or (the last) mirrored."""
    width, height = picture.size
    if kind == 0:
        picture = picture.resize((width * 7 // 10, height * 7 // 10))
    elif kind == 1:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=40)
        picture = Image.open(content)
    elif kind == 2:
        picture = picture.crop((width // 20, height // 20, width - width // 20, height - height // 20))
    elif kind == 3:
        return np.clip(np.asarray(picture) * 1.15 + 5, 0, 255).astype(np.uint8)
    else:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture.convert("RGB"))


def measured(run: Path, pictures: list[np.ndarray], copies: list[np.ndarray]) -> list[dict[str, Any]]:
    """One row for each kind of vectors and threshold."""
    encoder, mirrored, rows = instdisc.load(run), np.arange(COPIED) % KINDS == KINDS - 1, []
    for vectors in VECTORS:
        known, found = encoder.embed(pictures, vectors=vectors), encoder.embed(copies, vectors=vectors)
        own = (known[:COPIED] * found).sum(1).numpy()
        others = (known @ known.T).numpy()[np.triu_indices(len(known), 1)]
        for threshold in THRESHOLDS:
            row = {
                "run": run.name,
                "vectors": vectors,
                "threshold": threshold,
                "found": round(float((own[~mirrored] >= threshold).mean()), 3),
                "mirrored_found": round(float((own[mirrored] >= threshold).mean()), 3),
                "pairs_of_others": int((others >= threshold).sum()),
            }
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    """Measure every run, and record all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--photos", required=True)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    source = open_source(settings.photos, limit=PICTURES)
    pictures = [decode(source.read(row)) for row in range(len(source))]
    copies = [changed(Image.fromarray(pictures[row]), row % KINDS) for row in range(COPIED)]
    rows = [row for run in settings.runs for row in measured(run, pictures, copies)]
    record(
        settings.results / "copies.json",
        name="copies",
        command="python runs/copies.py RUN [RUN...] --photos photos.parquet",
        unit="share of 240 changed copies found at a cosine of 0.85 of search vectors; `rows` has all",
        values=[row["found"] for row in rows if row["vectors"] == "search" and row["threshold"] == 0.85],
        seeds=[0] * len(settings.runs),
        rows=rows,
    )


if __name__ == "__main__":
    main()
