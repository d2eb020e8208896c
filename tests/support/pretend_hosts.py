"""Several hosts on one machine: network namespaces of their own, joined by a switch that is a namespace too.

    with hosts(3) as (first, second, third):
        process = second.start([sys.executable, "-m", "instdisc", ...])

Each host has one address and one link, whose bytes are counted and whose rate can be limited. Needs Linux, root and
iproute2; elsewhere the tests that use it are skipped, with the reason. Nothing outside the namespaces is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_NETWORK = "10.213.7"


@dataclass
class Host:
    """One namespace. name: for iproute2; address: of its only link."""

    name: str
    address: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)

    def start(self, words: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a command here, in a process group of its own; what it says goes to `said()`."""
        with tempfile.NamedTemporaryFile(prefix=f"{self.name}-", delete=False) as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"GLOO_SOCKET_IFNAME": "eth0"} | environment,
            )
        self.processes.append(process)
        self.outputs.append(Path(output.name))
        return process

    def said(self) -> str:
        """All that the commands here have printed."""
        return "".join(path.read_text(errors="replace") for path in self.outputs)

    def sent(self) -> int:
        """Bytes that have left over the link, headers included."""
        counters = _run("ip", "netns", "exec", self.name, "cat", "/proc/net/dev")
        (line,) = (line for line in counters.splitlines() if line.strip().startswith("eth0:"))
        return int(line.split(":")[1].split()[8])

    def limit(self, megabits: float) -> None:
        """From now on the link takes so many megabits a second."""
        shape = ["tbf", "rate", f"{megabits}mbit", "burst", "32kb", "latency", "200ms"]
        _run("ip", "netns", "exec", self.name, "tc", "qdisc", "replace", "dev", "eth0", "root", *shape)

    def pull_the_plug(self) -> None:
        """Kill everything that runs here, at once."""
        for number in _run("ip", "netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        for process in self.processes:
            process.wait(timeout=500)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """`count` hosts; whatever still runs on them is killed in the end."""
    _require()
    mark = f"id{os.getpid()}"
    switch = f"{mark}-switch"
    made = [Host(f"{mark}-{number}", f"{_NETWORK}.{number}") for number in range(1, count + 1)]
    try:
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for number, host in enumerate(made, start=1):
            _run("ip", "netns", "add", host.name)
            _run("ip", "-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "eth0", "netns", host.name)
            _run("ip", "-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            _run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            _run("ip", "-n", host.name, "link", "set", "eth0", "up")
            _run("ip", "-n", host.name, "link", "set", "lo", "up")
        yield made
    finally:
        for host in made:
            with suppress(subprocess.CalledProcessError):
                host.pull_the_plug()
            for path in host.outputs:
                path.unlink()
        for name in (*(host.name for host in made), switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def torchrun(
    everyone: Sequence[Host], nodes: str, words: Sequence[str], meeting: int = 0
) -> list[subprocess.Popen[bytes]]:
    """Start an agent of torchrun on every host, with one process `words` under it; they meet at host `meeting`.

    nodes: how many hosts a group has, as in "3" or "2:4". Lost ones are noticed after ten seconds: on a machine that is
    busy a shorter time would take living ones for lost.
    """
    return [_agent(host, everyone[meeting], nodes, words) for host in everyone]


def _agent(host: Host, meeting: Host, nodes: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
    options = {
        "nnodes": nodes,
        "nproc-per-node": "1",
        "max-restarts": "20" if ":" in nodes else "0",
        "rdzv-backend": "c10d",
        "rdzv-endpoint": f"{meeting.address}:29400",
        # Without is_host an agent looks for its address behind the machine's name.
        "rdzv-conf": f"is_host={int(host is meeting)},last_call_timeout=5,"
        "keep_alive_interval=2,keep_alive_max_attempt=5",
        "rdzv-id": "test",
        "local-addr": host.address,
    }
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    # As runs/on_hosts.sh has it: torchrun's own store for the processes would go with the host of rank 0.
    return host.start(
        [sys.executable, "-m", "torch.distributed.run", *given, *words], TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
    )


def _require() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: install iproute2")
    tried = subprocess.run(["ip", "netns", "add", f"id{os.getpid()}-try"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", f"id{os.getpid()}-try"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"no network namespace can be made here: {tried.stderr.strip()}")


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
