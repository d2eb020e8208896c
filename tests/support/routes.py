"""Ways to a server from elsewhere, on this machine: a forwarded port, nginx, jupyter-server-proxy, an own network.

Each is a context that gives the address of the page's folder, with a slash at the end. Programs that are missing skip.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from two_processes import free_port

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reach.md").read_text(encoding="utf-8")
NAMES = (
    "photos.example",
    "site.example",
    "pictures.local",
    "evil.example",
)  # led to this machine by the browser's own rules
RULES = "--host-resolver-rules=" + ", ".join(f"MAP {name} 127.0.0.1" for name in NAMES)


def section(title: str) -> str:
    """What docs/reach.md says of a way."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def serve_words(title: str, which: int = 0) -> list[str]:
    """The words after `instdisc serve runs/mine` of a command of that section."""
    commands = re.findall(r"instdisc serve runs/mine(.*)$", section(title), flags=re.MULTILINE)
    return commands[which].split("`")[0].split()


def configuration(title: str) -> str:
    """The nginx configuration of that section."""
    (found,) = re.findall(r"```nginx\n(.*?)```", section(title), flags=re.DOTALL)
    return found


@contextmanager
def forwarded(to: tuple[str, int]) -> Iterator[int]:
    """A port of 127.0.0.1 whose bytes go to `to` and back, as `ssh -L` and a container's engine have it."""

    def pump(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while part := one.recv(65_536):
                other.sendall(part)
        for end, how in ((other, socket.SHUT_WR), (one, socket.SHUT_RD)):
            with suppress(OSError):
                end.shutdown(how)

    def serve() -> None:
        with suppress(OSError):
            while True:
                line = listening.accept()[0]
                try:
                    beyond = socket.create_connection(to, 10)
                except OSError:
                    line.close()
                    continue
                beyond.settimeout(None)
                lines.extend((line, beyond))
                for pair in ((line, beyond), (beyond, line)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    lines: list[socket.socket] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for line in lines:
                line.close()


def _answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until something listens there."""
    parts = urlsplit(address)
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((parts.hostname or "", parts.port or 80), 10).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"{address} does not answer ({error}): {log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


@contextmanager
def started(words: list[str], address: str, folder: Path, **environment: str) -> Iterator[None]:
    """A program that answers at `address` while this lasts."""
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    try:
        _answers(address, process, log)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def nginx(server: str, port: int, folder: Path, address: str) -> Iterator[None]:
    """nginx with one `server { ... }`; 8765 in it becomes `port`."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed: apt install nginx-light")
    folder.mkdir()
    places = "".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = f"""
        pid nginx.pid; error_log stderr warn; daemon off; master_process off;
        events {{ worker_connections 256; }}
        http {{ access_log off; {places} {server.replace("8765", str(port))} }}"""
    (folder / "nginx.conf").write_text(text)
    words = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with started(words, address, folder):
        yield


def certificate(name: str, folder: Path) -> None:
    """NAME.crt and NAME.key, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt install openssl")
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")]
    more = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run(["openssl", *words, *files, *more], check=True, capture_output=True)


def jupyter_program() -> str | None:
    """`jupyter-server` of an environment that has jupyter-server-proxy: .ci/run makes one in build/jupyter."""
    asks = "import jupyter_server_proxy"
    for program in (ROOT / "build" / "jupyter" / "bin" / "jupyter-server", shutil.which("jupyter-server")):
        python = Path(program).with_name("python") if program else Path("python")
        if python.is_file() and not subprocess.run([python, "-c", asks], capture_output=True).returncode:
            return str(program)
    return None


@contextmanager
def jupyter(folder: Path) -> Iterator[tuple[str, str]]:
    """The address of a Jupyter server with jupyter-server-proxy, under a user's path, and its own token."""
    program = jupyter_program()
    if program is None:
        pytest.skip("jupyter-server-proxy is not installed: .ci/run makes build/jupyter with it")
    port, token = free_port(), "of-jupyter"
    folder.mkdir()
    options = {
        "ServerApp.base_url": "/user/ada/",
        "ServerApp.port": str(port),
        "ServerApp.open_browser": "False",
        "ServerApp.allow_root": "True",
        "ServerApp.root_dir": str(folder),
        "IdentityProvider.token": token,
    }
    words = [program, *(f"--{name}={value}" for name, value in options.items())]
    places = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    address = f"http://127.0.0.1:{port}/user/ada/"
    with started(words, address, folder, PYTHONPATH="", **places):
        yield address, token


@contextmanager
def container(words: list[str], folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """A program in a network of its own, as a container has it: its address, and what it has printed so far."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs Linux, root and iproute2")
    name, ours = f"id{os.getpid()}-box", f"id{os.getpid()}b"[-15:]
    address = "10.213.9.2"

    def run(*given: str) -> None:
        done = subprocess.run(["ip", *given], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")

    folder.mkdir()
    log = folder / "log.txt"
    process = None
    try:
        run("netns", "add", name)
        run("link", "add", ours, "type", "veth", "peer", "eth0", "netns", name)
        run("address", "add", "10.213.9.1/30", "dev", ours)
        run("link", "set", ours, "up")
        run("-n", name, "address", "add", f"{address}/30", "dev", "eth0")
        run("-n", name, "link", "set", "eth0", "up")
        run("-n", name, "link", "set", "lo", "up")
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", name, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        yield address, lambda: log.read_text(errors="replace")
    finally:
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
