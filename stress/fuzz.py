"""Coverage-guided fuzzing of what reads strangers' bytes: every parser here that is ours, by atheris (libFuzzer).

    python stress/fuzz.py --seconds 300                          # each of the targets; Linux, pip install atheris
    python stress/fuzz.py --targets labels tar --seconds 20 --results /tmp

A target is right where it answers or raises InputError (of pictures: UnreadableError), in one line, within five seconds
and 2 GB. What else happens is a finding: its bytes stay in CORPUS/TARGET. The corpora grow from whole files, and from
what earlier starts have found. Results go to results/fuzz.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from record import record

Act = Callable[[bytes], None]
SECONDS, MEGABYTES, LONGEST = 5, 2048, 4096  # a picture of the most pixels that are allowed takes 0.7 s
_LAST = re.compile(r"#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)")


def labels(folder: Path) -> tuple[Act, list[bytes]]:
    """A table of labels beside pictures, and one of labels by hand."""
    from instdisc.data.sources.labels import labels_of_lines, read_label_lines
    from instdisc.jobs.label import read_table

    file = folder / "labels.csv"
    names = [b"a.jpg", b"b.jpg", b"ab.jpg"]

    def act(content: bytes) -> None:
        file.write_bytes(content)
        with refused():
            lines = read_label_lines(file)
            (codes, classes), _ = labels_of_lines(lines, 3, lambda a, b: names[a:b], lambda a, b: names[a:b])
            assert codes.shape == (3,) and codes.min() >= -1 and codes.max() < max(len(classes), 1)
        with refused():
            table = read_table(file)
            assert len(table.names) == len(table.labels) and all(table.labels)

    lines = "path,label\na.jpg,1\nb.jpg,2\n"
    return act, [lines.encode(), b'"id","label"\n"a.jpg","x, y"\n', b"label\n1\n2\n3\n", lines.encode("utf-16")]


def hand(folder: Path) -> tuple[Act, list[bytes]]:
    """labels/hand.csv of a run folder."""
    from instdisc.jobs import journal
    from instdisc.runs import RunFolder

    run = RunFolder(folder)
    run.labels.mkdir()

    def act(content: bytes) -> None:
        run.hand_labels.write_bytes(content)
        with refused():
            for path, (label, when) in journal.read(run).items():
                assert isinstance(path, str) and isinstance(label, str) and isinstance(when, str)

    return act, [b"path,label,time\n/a/b.jpg,cat,2026-01-01\n", b"path,label,time\n"]


def index(folder: Path) -> tuple[Act, list[bytes]]:
    """The index of a source in the cache folder: damaged, it is none."""
    import pyarrow as pa

    from instdisc.data.storage.scan import facts_of, read_index, write_index

    file = folder / "index.arrow"

    def act(content: bytes) -> None:
        file.write_bytes(content)
        with refused():
            table = read_index(file)
            if table is not None:
                assert isinstance(facts_of(table), dict) and len(table) >= 0

    write_index(file, pa.table({"name": ["a", "b"], "size": [1, 2]}), {"fingerprint": "x"})
    return act, [file.read_bytes()]


def config(folder: Path) -> tuple[Act, list[bytes]]:
    """config.json of a run folder, and what of it is looked at first."""
    from instdisc.encoder import EncoderConfig
    from instdisc.jobs.sources import read_facts
    from instdisc.runs import FORMAT, RunFolder
    from instdisc.training import Settings

    run = RunFolder(folder)

    def act(content: bytes) -> None:
        run.config.write_bytes(content)
        with refused():
            facts = read_facts(run)
            Settings.from_dict(facts["settings"])

    facts: dict[str, Any] = {
        "format": FORMAT,
        "source": {"name": "x", "given": "x", "labels": None, "split": None, "limit": None},
        "data": {"rows": 3, "readable": 3, "fingerprint": "x"},
        "settings": Settings().to_dict(),
        "encoder": vars(EncoderConfig()),
        "chosen": {"device": "cpu", "device_name": "", "precision": "float32", "storage": "memory"},
    }
    return act, [json.dumps(facts, default=str).encode(), b'{"format": 1}']


def checkpoints(folder: Path) -> tuple[Act, list[bytes]]:
    """state.json of a checkpoint, sealed by whoever wrote it."""
    import torch

    from instdisc import checkpoint

    checkpoint.save(folder, step=3, tensors={"encoder": {"w": torch.zeros(2)}}, facts={"epoch": 1.0})
    (step,) = folder.glob("step-*")
    whole = (step / "state.json").read_bytes()

    def act(content: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
            state = json.loads(content)
            state.pop("sha256", None)
            content = json.dumps(state | {"sha256": checkpoint._digest(state)}).encode()
        (step / "state.json").write_bytes(content)
        with refused():
            found = checkpoint.latest(folder, warn=lambda words: None)
            if found is not None:
                found.tensors("encoder")

    return act, [whole]


def weights(folder: Path) -> tuple[Act, list[bytes]]:
    """A file of weights to start from."""
    import torch
    from safetensors.torch import save

    from instdisc.encoder.weights import start_from_file

    file = folder / "weights.safetensors"
    module = torch.nn.Linear(2, 2)

    def act(content: bytes) -> None:
        file.write_bytes(content)
        with refused():
            start_from_file(module, file)

    return act, [save(dict(module.state_dict())), save({"other": torch.zeros(2, 3, dtype=torch.int8)}), b"{}"]


def tar(folder: Path) -> tuple[Act, list[bytes]]:
    """A tar shard: its index, and each picture that it says it has."""
    from instdisc.data.sources.open import open_source

    shard = io.BytesIO()
    with tarfile.TarFile(fileobj=shard, mode="w") as made:
        for name in ("a.jpg", "a.cls", "../b.png"):
            member = tarfile.TarInfo(name)
            member.size = 20
            made.addfile(member, io.BytesIO(b"\xff\xd8\xff" + bytes(17)))
    turn = 0

    def act(content: bytes) -> None:
        nonlocal turn
        turn += 1
        file = folder / f"{turn % 2}.tar"
        file.write_bytes(content)
        with refused():
            source = open_source(str(file), index_folder=folder / "index")
            for row, picture in source.iterate():
                assert source.identifier(row).startswith(file.name)
                assert not isinstance(picture, bytes) or picture in content
        for old in (folder / "index").glob("*"):
            old.unlink()

    return act, [shard.getvalue()]


def pictures(folder: Path) -> tuple[Act, list[bytes]]:
    """The bytes of a picture, in every accepted format."""
    from hostile_pictures import small_files
    from PIL import Image

    from instdisc.data.decoding.decode import decode

    seeds = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
        content = io.BytesIO()
        Image.new("RGB", (7, 5), (200, 10, 30)).save(content, kind)
        seeds.append(content.getvalue())
    seeds += [content for kind, content in small_files().items() if kind in ("avif", "heic")]

    def act(content: bytes) -> None:
        with refused():
            pixels = decode(content)
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and str(pixels.dtype) == "uint8"

    return act, seeds


def requests(folder: Path) -> tuple[Act, list[bytes]]:
    """The path and query of a request to the page's server: an answer or a refusal, and no 5xx."""
    import asyncio

    from serving import made_collection

    from instdisc.serve.access import Access
    from instdisc.serve.app import make_app
    from instdisc.serve.opened import Opened
    from instdisc.serve.opening import Opening

    _, run = made_collection(folder)
    served = Opened(run, device="cpu")
    opening = Opening("run", lambda: served, lambda: None)
    app = make_app(opening, Access(frozenset({"x"})))
    loop = asyncio.new_event_loop()

    async def ask(path: bytes, query: bytes) -> int:
        status = 0

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/" + path.decode("latin-1"),
            "raw_path": b"/" + path,
            "query_string": query,
            "root_path": "",
            "headers": [(b"host", b"x")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await app(scope, receive, send)
        return status

    def act(content: bytes) -> None:
        path, _, query = content.partition(b"?")
        status = loop.run_until_complete(ask(path, query))
        assert status < 500 or status == 503, status

    while loop.run_until_complete(ask(b"api/pictures", b"start=0&count=3")) == 503:  # it is being opened
        pass
    loop.run_until_complete(ask(b"index.html", b""))
    ways = ["pictures", "neighbours/0", "search", "duplicates", "look-alikes", "map/points", "labels", "proposals"]
    ways.append("uploads/x")
    asked = [f"api/{way}?count=3&start=1&where=*&rows=1,2&like=0&by=mixed&threshold=0.9&size=full" for way in ways]
    return act, [one.encode() for one in [*asked, "pictures/0?size=full", "index.html"]]


TARGETS: dict[str, Callable[[Path], tuple[Act, list[bytes]]]] = {
    "labels": labels,
    "hand": hand,
    "index": index,
    "config": config,
    "checkpoints": checkpoints,
    "weights": weights,
    "tar": tar,
    "pictures": pictures,
    "requests": requests,
}


@contextlib.contextmanager
def refused() -> Any:
    """What is refused in one line is right."""
    from instdisc.data.decoding.decode import UnreadableError
    from instdisc.errors import InputError

    said = ""
    try:
        yield
    except (InputError, UnreadableError) as error:
        said = str(error).strip()
    assert "\n" not in said, f"more than a line: {said}"


def fuzz(name: str, corpus: Path, seconds: int) -> None:
    """In a process of its own: libFuzzer calls the target, and ends the process."""
    import atheris

    with atheris.instrument_imports(include=["instdisc"], enable_loader_override=False):
        import instdisc  # noqa: F401

        folder = Path(tempfile.mkdtemp(prefix="instdisc-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        act, seeds = TARGETS[name](folder)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={LONGEST}"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={corpus}/", str(corpus)], act)
    atheris.Fuzz()


def main() -> None:
    """Every target in turn, and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=300, help="for each")
    parser.add_argument("--corpus", type=Path, default=Path("runs/out/fuzz"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--one", choices=list(TARGETS), help="in this process")
    settings = parser.parse_args()
    if settings.one:
        fuzz(settings.one, settings.corpus, settings.seconds)
        return
    if find_spec("atheris") is None:
        sys.exit("atheris is not installed: pip install atheris (Linux, and Pythons that it has wheels for).")
    rows = []
    for name in settings.targets:
        corpus = settings.corpus / name
        corpus.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, __file__, "--one", name, "--corpus", str(corpus), "--seconds", str(settings.seconds)]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
        last = _LAST.findall(done.stderr) or [("0", "0", "0", "0")]
        tried, coverage, features, kept = map(int, last[-1])
        found = sorted(file.name for kind in ("crash", "timeout", "oom", "leak") for file in corpus.glob(f"{kind}-*"))
        row = {"target": name, "tried": tried, "coverage": coverage, "features": features, "corpus": kept}
        rows.append(row | {"status": done.returncode, "findings": found})
        print(json.dumps(rows[-1]), flush=True)
        if found or done.returncode:
            print(done.stdout[-1500:], done.stderr[-3000:], flush=True)
    record(
        settings.results / "fuzz.json",
        name="fuzz",
        command=f"python stress/fuzz.py --targets {' '.join(settings.targets)} --seconds {settings.seconds}",
        unit="inputs tried, one value a target; `rows` has the edges and features that they reached, and the findings",
        values=[float(row["tried"]) for row in rows],
        seeds=[0],
        tried=sum(row["tried"] for row in rows),
        findings=sum(len(row["findings"]) for row in rows),
        limits={"seconds": SECONDS, "megabytes": MEGABYTES, "bytes": LONGEST},
        rows=rows,
    )
    if any(row["findings"] or row["status"] for row in rows):
        sys.exit("Something was found: see above.")


if __name__ == "__main__":
    main()
