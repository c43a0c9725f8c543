"""Real node processes for tests: started, killed and stopped alike, in temporary folders and on free ports."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from machine import free_ports

RAFTKV = str(Path(sys.executable).with_name("raftkv"))
START_SECONDS = 60.0
"""Bound of every wait; it tells "hangs" from "works" on a small and busy machine."""


def wait_until(what: str, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Waits for a condition; an AssertionError names it when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(0.05)


@dataclass
class NodeProcess:
    """One member's process; it can be started again after its end, on the same folders and ports."""

    name: str
    folder: Path
    client_port: int
    peer_port: int
    arguments: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def command(self) -> list[str]:
        client = f"http://127.0.0.1:{self.client_port}"
        return [
            *(RAFTKV, "node", "--name", self.name, "--data-dir", str(self.data_dir)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *self.arguments,
        ]

    def start(self) -> None:
        """Starts the process; its output goes to ``log`` in its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "RAFTKV_"))}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )

    def log_text(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Sends a signal to the process, if it runs."""
        if self.process is not None and self.running:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self, seconds: float = START_SECONDS) -> int:
        """Waits for the end; the exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def get(self, path: str) -> tuple[int, str]:
        """An HTTP GET on the client port: status and body; (0, "") when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}{path}", timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def healthy(self) -> bool:
        """Whether a linearizable read works. An end of the process is an error, not a wait."""
        assert self.running, f"{self.name} has ended:\n{self.log_text()[-3000:]}"
        return self.get("/health")[0] == 200

    def leads(self) -> bool:
        """Whether it says that it leads."""
        return "\netcd_server_is_leader 1" in self.get("/metrics")[1]


class Cluster:
    """Members started by hand."""

    def __init__(self, root: Path, size: int, ring_root: Path | None, extra: tuple[str, ...] = ()) -> None:
        ports = free_ports(2 * size)
        self.members = [
            NodeProcess(f"n{i + 1}", root / f"n{i + 1}", ports[2 * i], ports[2 * i + 1]) for i in range(size)
        ]
        initial = ",".join(f"{one.name}={one.peer_url}" for one in self.members)
        for one in self.members:
            one.arguments = ["--initial-cluster", initial, *extra]
            if ring_root is not None:
                ring = ring_root / one.name
                ring.mkdir(parents=True)
                one.arguments += ["--adr-path", str(ring), "--minimum-durability", "process", "--adr-size", "8Mi"]

    def start(self) -> None:
        for one in self.members:
            one.start()
        self.wait_healthy()

    def wait_healthy(self) -> None:
        """Waits until a linearizable read works on every member that runs."""
        for one in self.members:
            if one.running:
                wait_until(f"healthy {one.name}", one.healthy)

    def leader(self) -> NodeProcess:
        """The member that says it leads."""
        found: list[NodeProcess] = []

        def look() -> bool:
            found[:] = [one for one in self.members if one.running and one.leads()]
            return bool(found)

        wait_until("leader", look)
        return found[-1]

    def kill_all(self) -> None:
        for one in self.members:
            one.signal(signal.SIGCONT)
            one.signal(signal.SIGKILL)
        for one in self.members:
            if one.process is not None:
                one.wait()


@contextmanager
def cluster(root: Path, size: int, mode: str, extra: tuple[str, ...] = ()) -> Iterator[Cluster]:
    """A running cluster; ``mode`` is adr (ring on tmpfs where there is one) or disk. Nothing is left behind."""
    memory = Path("/dev/shm")
    rings = None
    if mode == "adr":
        base = memory if os.access(memory, os.W_OK) else root
        rings = base / f"raftkv-test-{os.getpid()}-{root.name}"
    made = Cluster(root, size, rings, extra)
    try:
        made.start()
        yield made
    finally:
        made.kill_all()
        if rings is not None:
            shutil.rmtree(rings, ignore_errors=True)


def channel(endpoint: str) -> grpc.Channel:
    """A channel that connects again quickly after a failure."""
    return grpc.insecure_channel(
        endpoint,
        options=[
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        ],
    )
