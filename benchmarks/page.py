"""The page of `instdisc serve` as a person waits for it: the first pictures, a jump, neighbours, the map.

    python benchmarks/page.py                                # runs of 50,000 and of 1,000,000 pictures; 3 minutes
    python benchmarks/page.py --counts 50000 --keep RUNS     # one of them; what was made stays there, to look at
    python benchmarks/page.py --counts 10000000              # half an hour, 30 GB of disk; with --approximate

The runs are written directly: digits enlarged to 128 pixels, vectors from their pixels and some noise, an encoder that
never trained. The small one is a folder of files, the large one Parquet; each has a map of up to 100,000 pictures. Each
start is a new process of the command; headless Chromium, without a graphics card, draws. Needs playwright and Chromium.
Of more than two million pictures the command has --approximate, whose file is made before the first start that counts.
Results go to results/page.json, where what it has of other counts stays.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processes import serving
from record import record

from instdisc.search.cells import MANY

SIDE, DIM, MAPPED, STARTS = 128, 128, 100_000, 3
# What stands in the window is drawn: every picture that can be seen has its pixels.
DRAWN = """selector => {
    const seen = [...document.querySelectorAll(selector)].filter((one) => {
        const box = one.getBoundingClientRect();
        return box.bottom > 0 && box.top < innerHeight;
    });
    const images = seen.map((one) => one.querySelector('img'));
    return seen.length > 0 && images.every((image) => image?.complete && image.naturalWidth > 0);
}"""
# From the deed until that is so: looked at in every frame. `gone` must first have left.
TIMED = f"""async ([deed, selector, gone]) => {{
    const drawn = {DRAWN};
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const before = document.querySelector(gone);
    const started = performance.now();
    new Function(deed)();
    while (before?.isConnected || !drawn(selector)) {{
        await frame();
        if (performance.now() - started > 60_000) return null;
    }}
    return performance.now() - started;
}}"""
# What stands there instead, where it did not come.
SEEN = """() => ({
    address: location.hash,
    text: document.getElementById('view').innerText.slice(0, 200),
    cells: document.querySelectorAll('.cell').length,
    broken: document.querySelectorAll('.broken').length,
    coming: [...document.images].filter((image) => !image.complete).length,
})"""
# A wheel or a hand turns and drags the map in every frame: milliseconds of each redraw, and between frames.
MOVED = """async (kind) => {
    const canvas = document.querySelector('canvas.map'), box = canvas.getBoundingClientRect();
    const x = box.left + box.width / 2, y = box.top + box.height / 2;
    const send = (type, more) => canvas.dispatchEvent(new PointerEvent(type, { pointerId: 1, bubbles: true, ...more }));
    canvas.setPointerCapture = () => {};
    if (kind === 'pan') send('pointerdown', { clientX: x, clientY: y });
    const redraws = [], frames = [];
    let before;
    for (let turn = 0; turn < 90; turn++) {
        const wheel = { deltaY: turn % 60 < 30 ? -60 : 60, clientX: x, clientY: y, cancelable: true };
        const hand = { clientX: x + 80 * Math.sin(turn / 8), clientY: y + 60 * Math.cos(turn / 8) };
        if (kind === 'pan') send('pointermove', hand);
        else canvas.dispatchEvent(new WheelEvent('wheel', wheel));
        const started = await new Promise((done) => requestAnimationFrame(done)); // the redraw was asked for before it
        redraws.push(performance.now() - started);
        if (before !== undefined) frames.push(started - before);
        before = started;
    }
    if (kind === 'pan') send('pointercancel', {});
    const at = (list, share) => list.sort((a, b) => a - b)[Math.floor(share * (list.length - 1))];
    return { redraw: at(redraws, 0.5), slowest: at(redraws, 1), frame: at(frames, 0.5), frame_95: at(frames, 0.95) };
}"""


def main() -> None:
    """Make the runs, measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[50_000, 1_000_000])
    parser.add_argument("--keep", type=Path, help="a folder for the runs; those that stand there are used again")
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("Driving a browser needs playwright: pip install playwright.")
    chromium = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if chromium is None:
        sys.exit("There is no Chromium here: apt install chromium.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        place = settings.keep or Path(folder)
        runs = [made_run(place / f"{count}", count) for count in settings.counts]
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        rows = []
        for run, count in zip(runs, settings.counts, strict=True):
            rows += [{"pictures": count, **row} for row in measured(browser, run)]
        browser.close()
    file = settings.results / "page.json"
    known = json.loads(file.read_text("utf-8"))["rows"] if file.is_file() else []
    rows = sorted(
        [*rows, *(row for row in known if row["pictures"] not in settings.counts)], key=lambda row: row["pictures"]
    )
    record(
        file,
        name="page",
        command="python benchmarks/page.py"
        + (f" --counts {' '.join(map(str, settings.counts))}" if settings.counts != [50_000, 1_000_000] else ""),
        unit=f"seconds from the start of the process to the first pictures drawn, {STARTS} starts for each count; "
        "`rows` has all that was measured",
        values=[start["first_pictures"] for row in rows for start in row.get("starts", [])],
        seeds=[0],
        rows=rows,
    )


def measured(browser: Any, run: Path) -> Iterator[dict[str, Any]]:
    """What a person waits for, in seconds; then the memory of the server in MB, and milliseconds of the map."""
    starts, options = [], ["--approximate"] if int(run.name) > MANY else []
    made = {}
    if options:
        started = time.perf_counter()
        with serving(run, *options) as (_, process):
            until_approximate(process)
            made = {"cells_made_seconds": round(time.perf_counter() - started, 1)}
    for turn in range(STARTS):
        started = time.perf_counter()
        with serving(run, *options) as (address, process):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"{address}#/", wait_until="commit")
            answered = time.perf_counter() - started
            page.wait_for_function(DRAWN, arg=".scroll .cell", polling=20, timeout=120_000)
            starts.append({"first_answer": answered, "first_pictures": time.perf_counter() - started})
            if turn < STARTS - 1:
                page.close()
                continue
            until_open(page)
            opened = {"open": time.perf_counter() - started} if options else {}
            if options:
                until_approximate(process)
                opened["approximate"] = time.perf_counter() - started
            memory = {"opened": resident(process.pid)}
            waits = visits(page, run)
            memory["used"] = resident(process.pid)
            yield {"starts": starts, "seconds": waits, "memory_mb": memory, **opened, **made}
            if (run / "map").is_dir():
                page.evaluate("location.hash = '#/map'")
                page.wait_for_selector("canvas.map", timeout=60_000)
                page.wait_for_timeout(2_000)
                points = min(int(run.name), MAPPED)
                yield {"map_points": points, "ms": {kind: page.evaluate(MOVED, kind) for kind in ("pan", "zoom")}}
            page.close()


def visits(page: Any, run: Path) -> dict[str, Any]:
    """Seconds of what a person does: jump to a place of the grid, look at neighbours, walk on, go back."""
    total = int(run.name)

    def timed(deed: str, selector: str, gone: str) -> float:
        spent = page.evaluate(TIMED, [deed, selector, gone])
        if spent is None:
            sys.exit(f"After a minute the page has not drawn what `{deed}` should lead to: {page.evaluate(SEEN)}")
        return spent / 1000

    scroll = "const scroll = document.querySelector('.scroll'); scroll.scrollTop = {} * scroll.scrollHeight"
    jumps = [timed(scroll.format(share), ".scroll .cell", ".scroll .cell") for share in (0.5, 0.25, 0.75, 0.9, 0.1)]
    rows = np.linspace(0, total - 1, 7).astype(int)[1:-1].tolist()
    first = timed(f"location.hash = '#/picture/{rows[0]}'", ".few .cell", ".scroll")
    walks = [timed(f"location.hash = '#/picture/{row}'", ".few .cell", ".few .cell") for row in rows[1:]]
    back = timed("history.back()", ".few .cell", ".few .cell")
    return {
        "jump": statistics.median(jumps),
        "jumps": jumps,
        "first_neighbours": first,
        "neighbours": statistics.median(walks),
        "back": back,
    }


def until_approximate(process: Any) -> None:
    """Wait until the command says that search is approximate."""
    while "approximate" not in (line := process.stdout.readline()):
        if not line:
            sys.exit("The server has ended.")


def until_open(page: Any) -> None:
    """Wait until everything that the server loads in the background is there."""
    page.evaluate("""async () => {
        const state = async () => (await (await fetch('api/status')).json()).state;
        while (await state() !== 'open') await new Promise((go) => setTimeout(go, 50));
    }""")


def resident(pid: int) -> dict[str, float]:
    """Memory of a process in MB: all that is in it, and what is its own (not of mapped files)."""
    content = Path(f"/proc/{pid}/status").read_text()
    sizes = {name: int(size) / 1024 for name, size in re.findall(r"(VmRSS|RssAnon):\s+(\d+) kB", content)}
    return {"resident": round(sizes["VmRSS"]), "own": round(sizes["RssAnon"])}


# ---------------------------------------------------------------------------------------------------------------------
# The made runs


def made_run(run: Path, count: int) -> Path:
    """A run folder of this many pictures; as it stands if it was made before.

    Made by a process of its own, so that this one stays small.
    """
    if not (run / "config.json").is_file():
        print(f"Making a run of {count:,} pictures", flush=True)
        program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import page; page.write_run"
        environment = os.environ | {"XDG_CACHE_HOME": str(run.parent / "cache")}
        subprocess.run([sys.executable, "-c", f"{program}({str(run)!r}, {count})"], check=True, env=environment)
    return run


def write_run(folder: str, count: int) -> None:
    """Pictures, then what a training leaves: config.json, instances.arrow, a checkpoint; and a map, if it is large."""
    import pyarrow as pa
    import torch
    from safetensors.torch import save_file

    from instdisc import checkpoint
    from instdisc.data.loading.pixel_cache import fingerprint_of
    from instdisc.data.sources.open import open_source
    from instdisc.encoder import EncoderConfig, build_encoder
    from instdisc.files import write_json
    from instdisc.runs import FORMAT, RunFolder

    run = RunFolder(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    pictures, pixels, classes = digits()
    kinds = np.random.default_rng(0).integers(0, len(pictures), count)  # which digit each picture is
    place = run.path.parent / f"pictures-{count}"
    (write_files if count <= 100_000 else write_parquet)(place, pictures, classes, kinds)
    source = open_source(str(place))
    if count <= 100_000:  # a folder is in the order of its names
        kinds = kinds[np.lexsort((np.arange(count), classes[kinds]))]
    table = source.fetch_table().append_column("row", pa.array(np.arange(count)))
    with pa.OSFile(str(run.instances), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    encoder = build_encoder(EncoderConfig(backbone="conv6", width=8, dim=DIM, image_size=32), seed=0)
    vectors = torch.empty(count, DIM)
    axes = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)[2]
    known = (pixels - pixels.mean(0)) @ axes.T
    known = np.pad(known, ((0, 0), (0, DIM - known.shape[1]))).astype(np.float32)
    random = np.random.default_rng(1)
    for start in range(0, count, 65_536):
        some = known[kinds[start : start + 65_536]]
        noisy = torch.from_numpy(some + 0.06 * random.standard_normal(some.shape, np.float32))
        vectors[start : start + len(some)] = torch.nn.functional.normalize(noisy, dim=1)
    checkpoint.save(
        run.checkpoints,
        step=1,
        tensors={"encoder": encoder.state_dict()},
        facts={"epoch": 1.0},
        shards={"bank": checkpoint.Shard({"rows": vectors}, 0, count)},
    )
    rows = np.sort(random.permutation(count)[:MAPPED])
    run.map.parent.mkdir()
    points = known[kinds[rows], :2] + 0.08 * random.standard_normal((len(rows), 2))
    made = {"rows": torch.from_numpy(rows), "points": torch.from_numpy(points.astype(np.float32))}
    save_file(made, run.map, metadata={"step": "1"})
    facts = {
        "format": FORMAT,
        "source": {"name": source.name, "given": str(place.resolve()), "labels": None, "split": None, "limit": None},
        "data": {"rows": count, "readable": count, "fingerprint": fingerprint_of(source)},
        "settings": {},
        "encoder": encoder.describe(),
        "chosen": {"device": "cpu", "device_name": "", "precision": "float32", "storage": "memory"},
    }
    write_json(run.config, json.loads(json.dumps(facts)))


def digits() -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Handwritten digits as JPEG in some colours, their pixels in 0..1, and which digit each is."""
    from PIL import Image
    from sklearn.datasets import load_digits

    known = load_digits()
    colours = np.random.default_rng(0).uniform(0.55, 1, (len(known.images), 3))
    pictures = []
    for picture, colour in zip(known.images, colours, strict=True):
        out = io.BytesIO()
        shown = Image.fromarray((picture[..., None] / 16 * 255 * colour).astype(np.uint8))
        shown.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        pictures.append(out.getvalue())
    return pictures, known.data / 16, known.target


def write_files(place: Path, pictures: list[bytes], classes: np.ndarray, kinds: np.ndarray) -> None:
    """One file a picture, in a folder for each class."""
    for name in range(10):
        (place / f"digit {name}").mkdir(parents=True, exist_ok=True)
    for row, kind in enumerate(kinds.tolist()):
        (place / f"digit {classes[kind]}" / f"{row:07d}.jpg").write_bytes(pictures[kind])


def write_parquet(place: Path, pictures: list[bytes], classes: np.ndarray, kinds: np.ndarray) -> None:
    """Row groups of a thousand, as the hub has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    features = {
        "label": {"names": [f"digit {name}" for name in range(10)], "_type": "ClassLabel"},
        "image": {"_type": "Image"},
    }
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with pq.ParquetWriter(place / "train-00000.parquet", schema) as writer:
        for start in range(0, len(kinds), 1_000):
            some = kinds[start : start + 1_000]
            images = [{"bytes": pictures[one], "path": None} for one in some.tolist()]
            table = pa.table([pa.array(images, kind), pa.array(classes[some], pa.int64())], schema=schema)
            writer.write_table(table, row_group_size=1_000)


if __name__ == "__main__":
    main()
