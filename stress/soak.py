"""An hour of training with evaluation and checkpoints, a server of the same run, a client that never stops asking.

    python stress/soak.py                                # an hour; Linux
    python stress/soak.py --minutes 2 --results /tmp     # a look whether it works
    python stress/soak.py --series runs/soak/series.jsonl    # judge what was kept of one that was cut short

Training measures after every epoch and saves ten times a minute; pictures are decoded by a process beside it. The
client looks at the grid, at pictures and their neighbours, uploads pictures and searches with them, labels, and asks
for duplicates. Memory, descriptors and threads of both are read every few seconds, and kept in KEEP/series.jsonl.

Flat: in the second half, a straight line through the means of 24 equal pieces grows an hour by no more than 5 % of the
mean (memory) or by no more than 1 (descriptors, threads), at the upper end of the slope's 95 % interval. Results go to
results/soak.json and results/soak.png.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from processes import held, serving
from record import record

SIDE, CLASSES, EVERY, PIECES = 32, 10, 3.0, 24
SETTINGS = ("monitor_epochs=1", "checkpoint_minutes=0.1", "width=16", "storage=workers", "workers=1")
# Which line of a process must be flat, and what it may grow an hour: a share of its mean, or a number.
ALLOWED = {"rss_mb": 0.05, "own_mb": 0.05, "descriptors": 1.0, "threads": 1.0}
WORDS = {
    "rss_mb": "RSS, MB",
    "own_mb": "memory of its own and its children's, MB",
    "descriptors": "descriptors",
    "threads": "threads",
}


def main() -> None:
    """Run both, look at them until the training ends, judge and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--pictures", type=Path, help="a folder to train on in place of made pictures")
    parser.add_argument("--keep", type=Path, default=Path("runs/soak"), help="for the run and the series; made anew")
    parser.add_argument("--series", type=Path, help="judge these lines, and run nothing")
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("What processes hold is read from /proc, as Linux has it.")
    series = settings.series or soaked(settings.keep, settings.pictures, settings.minutes)
    lines = [json.loads(line) for line in series.read_text().splitlines()]
    columns = [(who, what) for who in ("training", "server") for what in ALLOWED]
    rows = [judged(lines, who, what) for who, what in columns]
    minutes = lines[-1]["minutes"]
    given = f" --pictures {settings.pictures}" if settings.pictures else ""
    record(
        settings.results / "soak.json",
        name="soak",
        command=f"python stress/soak.py --minutes {settings.minutes:g}{given}",
        unit="growth an hour in the second half, as a share of the mean (memory) or a number, for each of `rows`",
        values=[row["growth_an_hour"] for row in rows],
        seeds=[0],
        minutes=round(minutes, 1),
        settings=SETTINGS,
        rule=f"flat: the upper end of the 95 % interval of the slope over the second half, from {PIECES} means, is at "
        "most 5 % of the mean an hour (memory) or 1 an hour (descriptors, threads)",
        training=lines[-1]["trained"],
        client=lines[-1]["client"],
        rows=rows,
        series=[",".join(["minutes", *[f"{who} {what}" for who, what in columns]])]
        + [
            ",".join([f"{line['minutes']:.2f}", *[f"{line[who][what]:.1f}" for who, what in columns]])
            for line in lines[:: max(1, len(lines) // 240)]
        ],
    )
    draw(lines, settings.results / "soak.png")
    print(sentence(rows, minutes))


def soaked(keep: Path, pictures: Path | None, minutes: float) -> Path:
    """Training and server for so long; the file with a line for every look."""
    keep.mkdir(parents=True, exist_ok=True)
    run, series = keep / f"run-{time.strftime('%H%M%S')}", keep / "series.jsonl"
    if pictures is None:
        pictures = keep / "pictures"
        make_pictures(pictures, 3_000, seed=0)
    make_pictures(keep / "test", 500, seed=1)
    words = [sys.executable, "-m", "instdisc", "train", str(pictures), "--out", str(run), "--minutes", str(minutes)]
    words += ["--test", str(keep / "test"), *itertools.chain(*(("--set", one) for one in SETTINGS))]
    with open(keep / "training.txt", "w") as said, subprocess.Popen(words, stdout=said, stderr=said) as training:
        try:
            while not any((run / "checkpoints").glob("*")):
                time.sleep(0.2)
                if training.poll() is not None:
                    sys.exit(f"The training has ended: see {said.name}.")
            with serving(run) as (address, server), open(series, "w") as lines:
                client = Client(address, sorted(pictures.rglob("*.png")))
                threading.Thread(target=client.ask_on, daemon=True).start()
                look(training, server, client, run, lines.write)
                client.ended.set()
                lines.flush()
            if training.wait() or client.failed:
                sys.exit(f"Training ended with {training.returncode}; {client.failed} requests failed: {client.first}")
        finally:
            training.terminate()
    return series


def look(training: Any, server: Any, client: Client, run: Path, write: Callable[[str], Any]) -> None:
    """A line every few seconds, until the training ends."""
    started = time.monotonic()
    while training.poll() is None:
        if server.poll() is not None:
            raise SystemExit("The server has ended.")
        try:
            line = {"training": held(training.pid), "server": held(server.pid)}
        except ProcessLookupError:  # it ends just now
            return
        measured = (run / "metrics.jsonl").read_text().count('"measured"') if (run / "metrics.jsonl").exists() else 0
        line |= {"minutes": (time.monotonic() - started) / 60, "client": client.told()}
        line |= {"trained": {"evaluations": measured, "checkpoints": len(client.checkpoints_seen(run))}}
        write(json.dumps(line) + "\n")
        time.sleep(EVERY)


class Client:
    """One person who does everything, again and again, on a connection that is kept as browsers keep theirs."""

    def __init__(self, address: str, files: list[Path]) -> None:
        parts = urlsplit(address)
        self._line = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self._files, self._seconds, self._seen = files, list[float](), set[str]()
        self.asked, self.failed, self.first, self.ended = 0, 0, "", threading.Event()

    def told(self) -> dict[str, float]:
        """How many requests, how many failed, and how long they took lately."""
        lately = sorted(self._seconds[-2_000:])
        return {
            "requests": self.asked,
            "failed": self.failed,
            "median_ms": round(1000 * statistics.median(lately), 1) if lately else 0.0,
            "p99_ms": round(1000 * lately[int(0.99 * len(lately))], 1) if lately else 0.0,
        }

    def checkpoints_seen(self, run: Path) -> set[str]:
        """Names of all checkpoints that stood there at some look."""
        self._seen |= {one.name for one in (run / "checkpoints").glob("*") if not one.name.startswith(".")}
        return self._seen

    def ask_on(self) -> None:
        """Until it is told to end."""
        for deed in itertools.cycle(self._deeds()):
            if self.ended.wait(0.1):
                return
            deed()

    def ask(self, path: str, body: Any = None) -> Any:
        """The answer; a failure is counted, and the next one asked."""
        started = time.perf_counter()
        try:
            content = json.dumps(body) if isinstance(body, dict) else body
            kind = {"content-type": "application/json"} if isinstance(body, dict) else {}
            self._line.request("GET" if body is None else "POST", path, content, kind)
            answer = self._line.getresponse()
            found = answer.read()
            if answer.status != 200:
                raise OSError(f"{path}: {answer.status} {found[:200]!r}")
        except (OSError, http.client.HTTPException) as error:
            self._line.close()
            if not self.ended.is_set():
                self.failed, self.first = self.failed + 1, self.first or f"{type(error).__name__} {error}"
            return None
        self._seconds = [*self._seconds[-2_000:], time.perf_counter() - started]
        self.asked += 1
        return json.loads(found) if answer.getheader("content-type") == "application/json" else found

    def _deeds(self) -> Iterator[Callable[[], Any]]:
        """What there is to do, for some thousand pictures; then it begins again."""
        about = self.ask("/api/collection")
        total = about["pictures"]
        self.ask("/api/map", {})

        def search(turn: int) -> None:
            found = self.ask("/api/uploads", self._files[turn % len(self._files)].read_bytes())
            if found:
                self.ask(f"/api/search?upload={found['id']}&count=20")
                self.ask(f"/api/uploads/{found['id']}")

        def label(turn: int) -> None:
            rows = [turn % total, (turn + 1) % total]
            self.ask("/api/labels", {"rows": rows, "label": f"class {turn % 7}"})
            self.ask("/api/proposals?count=5")
            self.ask("/api/labels", {"rows": rows, "label": None})

        def paths(turn: int, *given: str) -> Callable[[], Any]:
            return lambda: [self.ask(path) for path in given]

        for turn in range(2_000):
            start = 40 * turn % total
            yield paths(turn, f"/api/pictures?start={start}&count=40")
            yield paths(turn, *[f"/pictures/{row}" for row in range(start, min(start + 40, total))])
            row = 7 * turn % total
            yield paths(turn, f"/pictures/{row}?size=full", f"/api/neighbours/{row}?count=40")
            yield paths(turn, f"/api/search?like={row},{(row + 9) % total}&unlike={(row + 5) % total}&count=20")
            yield lambda turn=turn: search(turn)
            if turn % 5 == 0:
                yield lambda turn=turn: label(turn)
                yield paths(turn, "/api/status", "/api/labels.csv", "/api/map", f"/api/pictures?where=*{turn % 10}.png")
            if turn % 20 == 0:
                yield paths(
                    turn, f"/api/look-alikes?threshold={0.9 + turn % 100 / 1000}", "/api/outliers", "/", "/app.js"
                )


def make_pictures(folder: Path, count: int, seed: int) -> None:
    """PNG files like CIFAR's in size: a colour and a wave for each class, a gradient and noise for each picture."""
    from PIL import Image

    random = np.random.default_rng(seed)
    across = np.linspace(0, 1, SIDE)
    colours = np.random.default_rng(9).uniform(40, 215, (CLASSES, 3))
    for number in range(count):
        kind = number % CLASSES
        wave = 40 * np.sin(across * (kind + 2) * 3 + random.uniform(0, 6))
        slope = random.uniform(-60, 60, 3) * across[:, None, None]
        picture = colours[kind] + wave[:, None] + slope + random.normal(0, 15, (SIDE, SIDE, 3))
        place = folder / f"kind {kind}" / f"{number:05}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(place)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def judged(lines: list[dict[str, Any]], who: str, what: str) -> dict[str, Any]:
    """Growth an hour over the second half with its 95 % interval, and whether that is flat."""
    half = [line for line in lines if line["minutes"] >= lines[-1]["minutes"] / 2]
    pieces = [piece for piece in np.array_split(np.arange(len(half)), PIECES) if len(piece)]
    times = np.array([np.mean([half[place]["minutes"] / 60 for place in piece]) for piece in pieces])
    values = np.array([np.mean([half[place][who][what] for place in piece]) for piece in pieces])
    slope, low, high = line_through(times, values)
    scale = values.mean() if what.endswith("_mb") else 1.0
    return {
        "who": who,
        "what": what,
        "mean": round(float(values.mean()), 2),
        "most": round(max(line[who][what] for line in lines), 2),
        "growth_an_hour": round(slope / scale, 4),
        "interval": [round(low / scale, 4), round(high / scale, 4)],
        "allowed": ALLOWED[what],
        "flat": bool(high / scale <= ALLOWED[what]),
    }


def line_through(times: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Slope of the least squares line, and its 95 % interval by Student's t."""
    from scipy.stats import linregress, t

    if np.ptp(values) == 0:
        return 0.0, 0.0, 0.0
    found = linregress(times, values)
    reach = float(t.ppf(0.975, len(times) - 2) * found.stderr)
    return float(found.slope), float(found.slope) - reach, float(found.slope) + reach


def sentence(rows: list[dict[str, Any]], minutes: float) -> str:
    """What came of it."""
    growing = [f"{row['who']} {row['what']} ({row['growth_an_hour']:+.3f} an hour)" for row in rows if not row["flat"]]
    memory = {row["who"]: row for row in rows if row["what"] == "own_mb"}
    shares = " and ".join(
        f"{100 * row['growth_an_hour']:+.1f} % ({100 * row['interval'][0]:+.1f} to {100 * row['interval'][1]:+.1f})"
        for row in memory.values()
    )
    verdict = "flat" if not growing else "not flat: " + ", ".join(growing)
    return (
        f"After {minutes:.0f} minutes memory, descriptors and threads of training and server are {verdict}; "
        f"memory grows by {shares} an hour in the second half."
    )


def draw(lines: list[dict[str, Any]], out: Path) -> None:
    """A panel for each thing held, training and server in each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    for axes, (what, words) in zip(figure.subplots(2, 2).flatten(), WORDS.items(), strict=True):
        for who, colour in (("training", "#0072B2"), ("server", "#D55E00")):
            times, values = zip(*[(line["minutes"], line[who][what]) for line in lines], strict=True)
            axes.plot(times, values, color=colour, linewidth=0.9, label=who)
        axes.set(title=words, xlabel="minutes")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
