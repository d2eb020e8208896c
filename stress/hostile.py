"""Attacks on `instdisc serve` while somebody uses it: what was answered, what leaked, how long the other one waited.

    python stress/hostile.py                                  # five minutes on two cores; Linux
    python stress/hostile.py --attacks queries --seconds 5 --results /tmp

The collection has 20,000 pictures, with secrets planted beside and above it and behind links in it. The attacks are in
tests/support/attacks.py. Each comes from another address of this machine than the honest user, and those that only ask
for more than there is come from the same address too. That user keeps looking at the grid, at a picture, searching by
it and with a picture of their own; a 503 is waited out, as the page does, and the wait counts. Results go to
results/hostile.json after each attack; what stands there of the same commit is not tried again, and other attacks of
other commits are kept.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from attacks import ATTACKS, attacked, plant
from page import made_run
from processes import held, serving
from record import commit, record

COUNT, TOKEN, STRANGER, HONEST = 20_000, "a-token-for-this-measurement", "127.0.0.2", "127.0.0.1"
WHERE = {STRANGER: "another address", HONEST: "the same address", "": ""}
FROM_THE_SAME = ("queries", "uploads", "comparisons", "slow-heads", "slow-bodies")  # address, too


def main() -> None:
    """Make a collection, attack it, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="*", choices=[*ATTACKS, "schemathesis"], default=[*ATTACKS, "schemathesis"])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    out = settings.results / "hostile.json"
    rows, here = kept(out, settings.seconds), commit()
    known = {key for key, row in rows.items() if row["commit"] == here}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "errors.txt"), "w+") as errors:
        run = made_run(Path(folder, "collections", str(COUNT)), COUNT)
        plant(run.parent / f"pictures-{COUNT}")
        asked = [("rest", ""), *((one, STRANGER) for one in settings.attacks)]
        asked += [(one, HONEST) for one in settings.attacks if one in FROM_THE_SAME]
        for token in (None, TOKEN):
            with serving(run, *(("--token", token) if token else ()), errors=errors) as (address, server):
                port = int(address.split(":")[2].partition("/")[0])
                user = Honest(port, token, min((run.parent / f"pictures-{COUNT}").glob("*/*5.jpg")))
                user.until_open()
                for attack, source in asked:
                    if (attack == "tokens") == (token is not None) and (attack, WHERE[source]) not in known:
                        found = measured(attack, source, server.pid, user, settings.seconds, folder)
                        rows[attack, WHERE[source]] = {**found, "commit": here}
                        errors.flush()
                        write(out, list(rows.values()), settings.seconds, Path(errors.name).read_text(errors="replace"))
                if server.poll() is not None:
                    sys.exit("The server has ended.")


def kept(out: Path, seconds: float) -> dict[tuple[str, str], dict[str, Any]]:
    """What was recorded before, each row with the commit at which it was tried."""
    before = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"seconds": seconds, "rows": []}
    if before["seconds"] != seconds:
        return {}
    return {(row["attack"], row["source"]): {"commit": before["commit"], **row} for row in before["rows"]}


def write(out: Path, rows: list[dict[str, Any]], seconds: float, said: str) -> None:
    """Record what is known so far. said: what the server has printed in this start."""
    attacks = " ".join(dict.fromkeys(row["attack"] for row in rows if row["attack"] != "rest"))
    record(
        out,
        name="hostile",
        command=f"python stress/hostile.py --attacks {attacks} --seconds {seconds:g}",
        unit="milliseconds that an honest user waits at the median, one value for rest and each attack; `rows` has all",
        values=[row["honest_ms"]["median"] for row in rows],
        seeds=[0],
        pictures=COUNT,
        seconds=seconds,
        held="of the server: before, at most, after",
        tried=sum(row.get("tried", 0) for row in rows),
        server_errors=sum(row["answers"].get("500", 0) for row in rows),
        leaks=sum(row["leaks"] for row in rows),
        honest_unanswered=sum(row["honest_unanswered"] for row in rows),
        tracebacks=said.count("Traceback"),
        said=said[-2_000:],
        rows=rows,
    )


def measured(attack: str, source: str, pid: int, user: Honest, seconds: float, folder: str) -> dict[str, Any]:
    """One attack: its answers, what the server held before, at most and after, how long the user waited."""
    before, most = held(pid), Counter[str]()
    user.waits.clear()
    user.unanswered = user.asked_again = 0
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            now = held(pid)
            for name in now:
                most[name] = max(most[name], round(now[name], 1))
            time.sleep(0.1)

    threads = [threading.Thread(target=watch), threading.Thread(target=user.keep_asking, args=(over,))]
    for thread in threads:
        thread.start()
    if attack == "rest":
        time.sleep(seconds)
        found: dict[str, Any] = {"tried": 0, "answers": {}, "leaks": 0}
    elif attack == "schemathesis":
        found = schemathesis(user.port, folder)
    else:
        found = attacked(attack, user.port, seconds, source, folder)
    over.set()
    for thread in threads:
        thread.join()
    for _ in range(300):  # what was asked for is still being answered, connections that are held run out
        after = held(pid)
        if after["descriptors"] <= before["descriptors"] + 2 and not after["children"]:
            break
        time.sleep(0.1)
    return {
        "attack": attack,
        "source": WHERE[source],
        **found,
        "honest_ms": user.told(),
        "honest_asked": sum(map(len, user.waits.values())),
        "honest_told_to_wait": user.asked_again,
        "honest_unanswered": user.unanswered,
        "held": {name: f"{before[name]:.0f}, {most[name]:.0f}, {after[name]:.0f}" for name in before},
    }


def schemathesis(port: int, folder: str) -> dict[str, Any]:
    """What it asks comes from the OpenAPI description; its checks must all pass."""
    program = Path(sys.executable).with_name("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = [
        str(program),
        "run",
        f"http://127.0.0.1:{port}/api/openapi.json",
        "--checks",
        checks,
        "--max-examples",
        "60",
    ]
    words += ["--phases", "coverage,fuzzing", "--seed", "1", "--no-color", "--request-timeout", "60"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    generated = [line for line in done.stdout.splitlines() if "generated" in line or "passed" in line]
    tried = [int(word) for line in generated for word in line.replace(",", "").split() if word.isdigit()]
    words = [] if done.returncode == 0 else done.stdout.splitlines()[-60:]
    return {"tried": max(tried, default=0), "answers": {"500": int(done.returncode != 0)}, "leaks": 0, "said": words}


class Honest:
    """Somebody who looks at the grid, at pictures, and searches; how long each answer takes."""

    def __init__(self, port: int, token: str | None, own: Path) -> None:
        self.port, self._own = port, own.read_bytes()
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(HONEST, 0))
        self.waits: dict[str, list[float]] = {}
        self.unanswered = self.asked_again = 0

    def until_open(self) -> None:
        while (status := json.loads(self._ask("GET", "/api/status") or b"{}")).get("state") != "open":
            if status.get("error"):
                sys.exit(f"The server does not open the run: {status['error']}")
            time.sleep(0.1)

    def keep_asking(self, over: threading.Event) -> None:
        for turn in range(10**9):
            row = 37 * turn % COUNT
            self._timed("grid", "GET", f"/api/pictures?start={row}&count=60")
            self._timed("picture", "GET", f"/pictures/{row}?size=full")
            self._timed("search", "GET", f"/api/neighbours/{row}?count=40")
            found = self._timed("upload", "POST", "/api/uploads", self._own) if turn % 4 == 0 else None
            if found:
                self._timed("search", "GET", f"/api/search?upload={json.loads(found)['id']}&count=40")
            if turn % 3 == 0:
                self._line.close()  # and a new connection has its turn too
            if over.wait(0.02):
                return

    def told(self) -> dict[str, Any]:
        everything = sorted(1000 * wait for waits in self.waits.values() for wait in waits)
        found = {"median": statistics.median(everything), "p95": _at(everything, 0.95), "p99": _at(everything, 0.99)}
        found |= {"most": everything[-1]}
        by_kind = {kind: round(1000 * statistics.median(waits), 1) for kind, waits in self.waits.items()}
        return {name: round(value, 1) for name, value in found.items()} | {"median_by_kind": by_kind}

    def _timed(self, kind: str, *what: Any) -> bytes | None:
        started = time.perf_counter()
        found = self._ask(*what)
        self.unanswered += found is None
        self.waits.setdefault(kind, []).append(time.perf_counter() - started)
        return found

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes | None:
        """As a browser: a connection that was closed meanwhile is opened again; a 503 is waited out."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                self._line.request(method, path, body, self._headers)
                answer = self._line.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                self._line.close()
                self.asked_again += 1
                time.sleep(0.05)
                continue
            if answer.status == 200:
                return content
            if answer.status != 503:
                return None
            self.asked_again += 1
            time.sleep(float(answer.getheader("retry-after", "1")))
        return None


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
