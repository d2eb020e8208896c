"""What docs/scale.md computes: the page is as its script makes it, and the formulas give what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cluster  # noqa: E402  # a script


def test_the_page_is_as_the_script_makes_it() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    made = page.partition(cluster.BEGIN)[2].partition(cluster.END)[0].strip()
    assert made == cluster.page(ROOT / "results" / "scale.json").strip()


def test_bytes_sent_are_those_that_two_hosts_sent() -> None:
    facts = json.loads((ROOT / "results" / "hosts.json").read_text())
    sent = [row["bytes_sent_a_step"] for row in facts["rows"] if row["megabits_per_second"] is None]
    two = cluster.Cluster(pictures=50_000, ranks=2, batch=facts["batch"], weights=facts["gradient_bytes"] / 4)
    for measured in sent:
        assert cluster.needs(two)["sent a step, exact (bytes)"] == pytest.approx(measured, rel=0.05)


def test_one_rank_sends_nothing_and_twice_the_ranks_halve_what_is_shared() -> None:
    one = cluster.Cluster(ranks=1)
    assert cluster.needs(one)["sent a step, exact (bytes)"] == 0
    some, more = cluster.needs(replace(one, ranks=8)), cluster.needs(replace(one, ranks=16))
    for name in ("rows a rank", "bank a rank (bytes)", "exact objective (seconds a step)"):
        assert some[name] == 2 * more[name]


def test_where_the_exact_objective_costs_as_much_as_the_encoder() -> None:
    name = "exact costs as much as the encoder from (pictures)"
    found = cluster.needs(replace(cluster.Cluster(), pictures=cluster.needs(cluster.Cluster())[name]))
    assert found["exact objective (seconds a step)"] == pytest.approx(found["encoder (seconds a step)"])


def test_an_epoch_by_hand() -> None:
    """Ten million pictures, ten ranks of 1,000 a second: 1,000 s an epoch, a hundred of them 27.8 hours."""
    found = cluster.needs(cluster.Cluster(1e7, 10, teraflops=1e9, gigabits=1e9, epochs=100, rate=1000, price=2))
    assert found["the run, sampled (hours)"] == pytest.approx(100_000 / 3600, rel=1e-3)
    assert found["the run, sampled (cost)"] == pytest.approx(100_000 / 3600 * 20, rel=1e-3)


def test_the_command() -> None:
    words = [
        sys.executable,
        ROOT / "benchmarks" / "cluster.py",
        "--pictures",
        "2e8",
        "--ranks",
        "128",
        "--rows",
        "int8",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "200 M pictures, 128 ranks" in done.stdout and "| bank a rank | 206 MB |" in done.stdout
    refused = subprocess.run([*words, "--rate", "0"], capture_output=True, text=True)
    assert refused.returncode == 2 and "rate must be positive, not 0" in refused.stderr
