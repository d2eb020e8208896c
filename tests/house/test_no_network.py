"""A whole life of the tool reaches for nothing beyond this machine: no telemetry, no update check, no download.

Counted twice. In every Python process, children included, an audit hook notes each connection and each name that is
looked up. And where there is Linux, root and iproute2, all of it runs in a network of its own whose only way out is a
device that counts and leads nowhere: what C, C++ or Rust code sends is seen there too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import picture_folder

# Python imports it at its start, in every process that finds it on its path.
HOOK = """
import os, sys
def note(event, arguments):
    place = None
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        place = arguments[1]
        if isinstance(place, (str, bytes)) or place is None or str(place[0]).startswith("127.") or place[0] == "::1":
            return
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyname_ex"):
        place = arguments[0]
        if place in (None, "", "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1"):
            return
    else:
        return
    with open(os.environ["NOTED"], "a") as file:
        file.write(f"{event} {place} {sys.argv[:3]}\\n")
sys.addaudithook(note)
open(os.environ["NOTED"] + ".started", "a").write("x")
"""

LIFE = """
import signal, subprocess, sys, time, urllib.request
from instdisc import cli
small = "--epochs 1 --set backbone=conv6 --set width=4 --set dim=8 --set size=16 --set batch=16"
for line in (
    "info pictures",
    f"train pictures --out run {small} --set storage=workers --set workers=1",
    f"train pictures --out run {small} --set storage=workers --set workers=1 --resume",
    "evaluate run --with svm,retrieval,quality",
    "embed run pictures -o vectors.parquet",
    "search run pictures/red/0000.png -k 3 --sheet found.png",
    "duplicates run", "outliers run", "label run --propose 3", "report run -o report.html",
):
    sys.argv = ["instdisc", *line.split()]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, (line, ended.code)
words = [sys.executable, "-m", "instdisc", "serve", "run", "--port", "0"]
with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
    try:
        address = server.stdout.readline().strip()
        ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        for _ in range(200):
            if b'"open"' in ask(address + "api/status").read():
                break
            time.sleep(0.1)
        assert ask(address + "api/neighbours/0").status == 200
    finally:
        server.send_signal(signal.SIGTERM)
print("lived")
"""

CONTROL = """
import socket
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as line:
        line.settimeout(0.2)
        try:
            line.connect(("192.0.2.1", 9))
            line.send(b"x")
        except OSError:
            pass
"""

# A network of its own: loopback, and a device that everything else would leave by; it counts, and leads nowhere.
ALONE = """
ip link set lo up
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 || true
ip link add out type veth peer name nowhere
ip link set nowhere up
ip address add 198.51.100.1/24 dev out
ip link set out up arp off
ip route add default dev out
"$@"
grep out: /proc/self/net/dev > "$NOTED.packets"
"""


def lived(program: str, folder: Path) -> tuple[list[str], int | None]:
    """Run a program: the attempts that Python noted, and the packets that would have left (None: not counted here)."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    noted = folder / "noted"
    # What a test sets to keep libraries off the network is undone: they must keep off by themselves.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(folder / "hook"), "NOTED": str(noted)}
    words = [sys.executable, "-c", program]
    can = [shutil.which(name) for name in ("unshare", "ip")]
    alone = ["unshare", "-n", "bash", "-euc", ALONE, "alone"]
    counted = all(can) and not subprocess.run([*alone, "true"], env=environment, capture_output=True).returncode
    done = subprocess.run(
        [*alone, *words] if counted else words,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (folder / "noted.started").is_file(), "the hook was not there"
    packets = int((folder / "noted.packets").read_text().partition(":")[2].split()[9]) if counted else None  # sent
    return noted.read_text().splitlines() if noted.is_file() else [], packets


@pytest.mark.slow
def test_a_whole_life_connects_to_nothing(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pictures", 40)
    attempts, packets = lived(LIFE, tmp_path)
    assert attempts == []
    assert packets in (0, None)
    assert len((tmp_path / "noted.started").read_text()) >= 3, "this process, one that decodes, the server"


def test_an_attempt_would_be_counted(tmp_path: Path) -> None:
    attempts, packets = lived(CONTROL, tmp_path)
    assert len(attempts) == 2 and all("192.0.2.1" in one for one in attempts)
    if packets is None:
        pytest.skip("packets are counted on Linux, as root, with iproute2 alone; connections were counted")
    assert packets >= 2
