"""An epoch from 200,000 photographs in tar shards, on one rank and on two; then their embedding, one rank killed.

    python runs/shards.py photos.parquet --out runs/out/shards        # an hour on two cores, 8 GB of disk

The pictures are made of the given photographs: each is cut to 40 to 60 % of its sides, mirrored or not, resized to 224
pixels and encoded anew, 2,000 in a shard, those of one photograph far apart. Pictures a second are of the whole
epoch; memory is what all processes of the run hold for themselves, ten times a second, and how much more the last
quarter of the epoch has than the second. That every instance came exactly once: as many were drawn as there are, and
no row of the bank is as it began. Embedding is begun by two ranks, one is killed after some parts, the command is given
again, and the file is compared with one that a single process writes. The result goes to results/shards.json.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.bank import MemoryBank
from instdisc.checkpoint import open_checkpoint
from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.embeddings import open_embeddings
from instdisc.files import read_json
from instdisc.runs import RunFolder

SIDE, QUALITY, IN_A_SHARD = 224, 85, 2_000
RECIPE = {"backbone": "conv6", "width": 16, "dim": 64, "size": 32, "batch": 256, "objective": "nce"}
RECIPE |= {"partition": "moving_average", "order": "shards", "precision": "float32", "monitor_epochs": 1000}
RECIPE |= {"epochs": 1, "storage": "workers", "early_sizes": "", "grow_at": ""}


def shard(photos: str, folder: Path, number: int, pictures: int) -> None:
    """One tar file of changed copies, unless it is there."""
    file = folder / f"shard-{number:03d}.tar"
    if file.exists():
        return
    source, random = open_source(photos), np.random.default_rng([7, number])
    part = file.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        for position in range(number * IN_A_SHARD, min((number + 1) * IN_A_SHARD, pictures)):
            pixels = decode(source.read(position * 617 % len(source)))
            shape = np.array(pixels.shape[:2])
            size = (shape * random.uniform(0.4, 0.6)).astype(int)
            top, left = (random.uniform(size=2) * (shape - size)).astype(int)
            picture = Image.fromarray(pixels[top : top + size[0], left : left + size[1]])
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            if random.uniform() < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            content = io.BytesIO()
            picture.save(content, "JPEG", quality=QUALITY)
            member = tarfile.TarInfo(f"{position:06d}.jpg")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    part.rename(file)


def shards(photos: str, folder: Path, pictures: int) -> Path:
    """The folder with all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = [pool.submit(shard, photos, folder, n, pictures) for n in range(-(-pictures // IN_A_SHARD))]
        for one in made:
            one.result()
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Processes and their memory


def _family(process: int) -> list[int]:
    """It and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found = [process]
    for one in found:
        found += parents.get(one, [])
    return found


def _own_bytes(process: int) -> int:
    """Of memory that is no file's."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def command(words: Sequence[Any], ranks: int) -> list[str]:
    """The program's command line, by torchrun for several ranks."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [*start, "instdisc", *(str(word) for word in words)]


def watched(words: Sequence[Any], ranks: int) -> tuple[float, list[float]]:
    """Seconds that it took, and megabytes that its processes held meanwhile."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}
    began, held = time.perf_counter(), []
    with subprocess.Popen(command(words, ranks), env=os.environ | threads, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            held.append(sum(map(_own_bytes, _family(process.pid))) / 1e6)
            time.sleep(0.5)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, words))} ended with {process.returncode}")
    return time.perf_counter() - began, held


def epoch(source: Path, run: Path, ranks: int) -> dict[str, Any]:
    """One epoch, unless it is there: speed, memory, and whether every instance came once."""
    words: list[Any] = ["train", source, "--out", run, "--device", "cpu"]
    for name, value in RECIPE.items():
        words += ["--set", f"{name}={value}"]
    seconds, held = watched(words, ranks)
    saved = open_checkpoint(max(RunFolder(run).checkpoints.glob("step-*")))
    facts = saved.facts["bank"]
    rows = saved.rows("bank", 0, facts["instances"])["rows"]
    seed = read_json(run / "config.json")["settings"]["seed"]
    before = MemoryBank(facts["instances"], RECIPE["dim"], seed=seed).rows
    moved = int(((rows - before).abs().amax(1) > 1e-6).sum())
    second, last = (held[len(held) * a // 4 : len(held) * b // 4] for a, b in ((1, 2), (3, 4)))
    return {
        "ranks": ranks,
        "pictures": facts["instances"],
        "rows_of_the_bank_that_moved": moved,
        "steps": saved.step,
        "seconds": round(seconds, 1),
        "pictures_per_second": round(facts["instances"] / seconds, 1),
        "mb_most": round(max(held)),
        "mb_second_quarter": round(float(np.mean(second))),
        "mb_last_quarter": round(float(np.mean(last))),
    }


def embedding(source: Path, run: Path, folder: Path) -> dict[str, Any]:
    """By two ranks, one of them killed when a third of the parts are there; then again; and by one process."""
    out, single = folder / "two.npy", folder / "one.npy"
    parts = Path(f"{out}.parts")
    words = ["embed", run, source, "--device", "cpu", "-o"]
    with subprocess.Popen(command([*words, out], 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(list(parts.glob("part-*"))) < 8:
            if process.poll() is not None:
                sys.exit("The embedding was done before a rank could be killed.")
            time.sleep(0.2)
        ranks = [one for one in _family(process.pid) if f"{out}" in Path(f"/proc/{one}/cmdline").read_text()]
        os.kill(ranks[-1], signal.SIGKILL)
        threading.Timer(300, process.kill).start()
    there = len(list(parts.glob("part-*")))
    seconds, _ = watched([*words, out], 2)
    alone, _ = watched([*words, single], 1)
    two, one = open_embeddings(out), open_embeddings(single)
    ids = two.ids.to_pylist()
    return {
        "parts_when_killed": there,
        "seconds_to_end_it": round(seconds, 1),
        "seconds_of_one_process": round(alone, 1),
        "vectors": len(ids),
        "ids_twice": len(ids) - len(set(ids)),
        "same_order": ids == one.ids.to_pylist(),
        "largest_difference": float(np.abs(np.asarray(two.vectors) - np.asarray(one.vectors)).max()),
    }


def main() -> None:
    """Make the shards, train, embed, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="photographs that open_source takes")
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=Path("runs/out/shards"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    source = shards(settings.photos, settings.out / f"shards-{settings.pictures}", settings.pictures)
    epochs = []
    for ranks in (1, 2):
        epochs.append(epoch(source, settings.out / f"ranks-{ranks}", ranks))
        print(epochs[-1], flush=True)
    ended = embedding(source, settings.out / "ranks-1", settings.out)
    print(ended, flush=True)
    record(
        settings.results / "shards.json",
        name="shards",
        command=f"python runs/shards.py PHOTOS --pictures {settings.pictures}",
        unit="pictures a second over an epoch from tar shards, one rank and two",
        values=[row["pictures_per_second"] for row in epochs],
        seeds=[0],
        recipe=RECIPE,
        epochs=epochs,
        embedding=ended,
    )


if __name__ == "__main__":
    main()
