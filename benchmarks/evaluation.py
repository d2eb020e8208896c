"""Time and memory of kNN and of the linear SVM at 50,000 training and 10,000 test vectors, beside scikit-learn's.

    python benchmarks/evaluation.py --out results/evaluation.json          # two minutes; keep the machine quiet

Made vectors: ten overlapping classes; 128 numbers for kNN (k 200, cosine, votes exp(cosine / 0.07)), 512 for the SVM at
one cost. Each contestant runs in a process of its own, in turns; memory is that of the process at its peak, less what
it needs before. The answers are compared: kNN must give the same labels, save where two classes have as many votes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from record import record

TRAIN, TEST, CLASSES = 50_000, 10_000, 10
NEIGHBOURS, TEMPERATURE, COST = 200, 0.07, 1e-3
CONTESTANTS = ("knn", "knn of scikit-learn", "svm", "svm of scikit-learn")


def made(dim: int, train: int, test: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training vectors and labels, test vectors and labels: unit rows around overlapping centres."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(CLASSES, dim)) * 0.25
    labels = random.integers(0, CLASSES, train + test)
    vectors = (centres[labels] + random.normal(size=(train + test, dim))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:train], labels[:train], vectors[train:], labels[train:]


def predictor(name: str) -> tuple[int, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]]:
    """The number of dimensions, and a function (train, labels, test) -> predicted labels."""
    if name == "knn":
        from instdisc.evaluation.knn import KNN

        return 128, lambda train, labels, test: KNN(NEIGHBOURS, TEMPERATURE).fit(train, labels).predict(test)
    if name == "svm":
        from instdisc.evaluation.svm import LinearSVM

        return 512, lambda train, labels, test: LinearSVM(COST).fit(train, labels).predict(test)
    if name == "knn of scikit-learn":
        from sklearn.neighbors import KNeighborsClassifier

        return (
            128,
            lambda train, labels, test: (
                KNeighborsClassifier(
                    NEIGHBOURS, algorithm="brute", metric="cosine", weights=lambda far: np.exp((1 - far) / TEMPERATURE)
                )
                .fit(train, labels)
                .predict(test)
            ),
        )
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    def predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        scaler = StandardScaler().fit(train)
        return LinearSVC(C=COST, dual=False).fit(scaler.transform(train), labels).predict(scaler.transform(test))

    return 512, predict


def measure(name: str, folder: Path) -> dict[str, float]:
    """Seconds, MB above the start and accuracy of one contestant; its labels go to a file."""
    dim, predict = predictor(name)
    # loaded, not made here: what making them needs at its peak would hide what the contestant needs
    train, labels, test, test_labels = (np.load(folder / f"made-{dim}-{part}.npy") for part in range(4))
    predict(train[:2000], labels[:2000], test[:10])  # imports, threads and kernels
    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    started = time.perf_counter()
    found = predict(train, labels, test)
    seconds = time.perf_counter() - started
    np.save(answers_of(name, folder), found)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"seconds": seconds, "mb": peak - before, "accuracy": float((found == test_labels).mean())}


def answers_of(name: str, folder: Path) -> Path:
    """The file of a contestant's labels."""
    return folder / f"{name.replace(' ', '_')}.npy"


def main() -> None:
    """Measure one contestant, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes (JSON)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train", type=int, default=TRAIN, help="vectors")
    parser.add_argument("--test", type=int, default=TEST, help="vectors")
    parser.add_argument("--folder", type=Path, help="for the answers; a temporary folder without it")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="measure this one alone, in this process")
    settings = parser.parse_args()
    if settings.contestant and settings.folder:
        print(json.dumps(measure(settings.contestant, settings.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(settings.repeats, settings.train, settings.test, Path(folder), settings.out)


def compare(repeats: int, train: int, test: int, folder: Path, out: Path | None) -> None:
    """All contestants in turn, and their answers beside each other."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for dim in (128, 512):
        for part, values in enumerate(made(dim, train, test)):
            np.save(folder / f"made-{dim}-{part}.npy", values)
    for _ in range(repeats):
        for name in CONTESTANTS:
            words = [sys.executable, __file__, "--contestant", name, "--folder", str(folder)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, {key: round(value, 3) for key, value in found[name][-1].items()}, flush=True)
    answers = {name: np.load(answers_of(name, folder)) for name in CONTESTANTS}
    same = {kind: float((answers[kind] == answers[f"{kind} of scikit-learn"]).mean()) for kind in ("knn", "svm")}
    seconds = {name: [one["seconds"] for one in all_of] for name, all_of in found.items()}
    ratios = [theirs / ours for ours, theirs in zip(seconds["knn"], seconds["knn of scikit-learn"], strict=True)]
    record(
        out,
        name="evaluation",
        command=f"python benchmarks/evaluation.py --repeats {repeats}",
        unit="times as fast as KNeighborsClassifier, 10,000 queries among 50,000 of 128 numbers, k 200",
        values=ratios,
        seeds=list(range(repeats)),
        median_seconds={name: statistics.median(values) for name, values in seconds.items()},
        share_of_equal_answers=same,
        contestants=found,
    )


if __name__ == "__main__":
    main()
