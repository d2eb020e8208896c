"""How long a folder of many files takes to scan, and how much memory the process that scans it needs.

    python benchmarks/scan.py --files 200000 --out results/scan.json

Makes a tree of small files (1,000 a folder, two levels deep), then opens it in fresh processes: the first scan, a
second one that finds the index, a third after some files have come and gone, and the pickled source that a worker gets.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from record import record

PICTURE = b"\xff\xd8\xff\xe0" + bytes(28)  # a scan looks at no more than this
SCAN = """
import json, pickle, resource, sys, time
start = time.perf_counter()
from instdisc.data.sources.open import open_source
imported = time.perf_counter() - start
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
source = open_source(sys.argv[1], index_folder=sys.argv[2])
seconds = time.perf_counter() - start
unit = 2**20 if sys.platform == "darwin" else 2**10
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "pictures": len(source), "seconds": round(seconds, 3), "import_seconds": round(imported, 3),
    "peak_mb": round(peak / unit, 1), "peak_after_imports_mb": round(base / unit, 1),
    "pickled_bytes": len(pickle.dumps(source)), "fingerprint": source.fingerprint,
}))
"""


def make_tree(root: Path, files: int, *, extensionless: bool) -> None:
    """Small files in folders of 1,000, `a/0001/name.jpg`; without endings every one has to be looked into."""
    ending = "" if extensionless else ".jpg"
    for first in range(0, files, 1000):
        folder = root / f"part-{first // 50_000}" / f"{first // 1000:04d}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + 1000, files)):
            (folder / f"picture-{number:08d}{ending}").write_bytes(PICTURE)


def scan(root: Path, index: Path) -> dict[str, float]:
    """One opening of the tree in a process of its own."""
    finished = subprocess.run(
        [sys.executable, "-c", SCAN, str(root), str(index)], check=True, capture_output=True, text=True
    )
    return dict(json.loads(finished.stdout))


def measure(files: int, folder: Path, *, extensionless: bool, repeats: int) -> dict[str, list[dict[str, float]]]:
    """The scans of one tree; each kind in a list of repeats."""
    root = folder / "tree"
    make_tree(root, files, extensionless=extensionless)
    found: dict[str, list[dict[str, float]]] = {"first": [], "again": [], "after_100_renamed": []}
    try:
        for repeat in range(repeats):
            index = folder / f"index-{repeat}"
            found["first"].append(scan(root, index))
            found["again"].append(scan(root, index))
            for path in sorted(root.glob("part-0/0000/*"))[:100]:
                path.rename(path.with_name(f"moved{repeat}-{path.name}"))
            found["after_100_renamed"].append(scan(root, index))
            shutil.rmtree(index)
    finally:
        shutil.rmtree(root)
    return found


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000, help="how many files the tree has")
    parser.add_argument("--repeats", type=int, default=3, help="of each scan")
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--folder", type=Path, help="where the tree is made; a temporary folder without it")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        named, unnamed = (
            measure(settings.files, Path(folder), extensionless=extensionless, repeats=settings.repeats)
            for extensionless in (False, True)
        )
    record(
        settings.out,
        name="scan",
        command=f"python benchmarks/scan.py --files {settings.files} --repeats {settings.repeats}",
        unit="seconds for the first scan of files named as pictures, one a repeat",
        values=[scanned["seconds"] for scanned in named["first"]],
        seeds=list(range(settings.repeats)),
        files=settings.files,
        memory="peak_mb: resident memory of the scanning process at its peak, imports included",
        named_as_pictures=named,
        known_by_content_only=unnamed,
    )


if __name__ == "__main__":
    main()
