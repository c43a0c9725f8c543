"""Clusters of real processes on this machine for the benchmarks: etcd's and RaftKV's, started and stopped alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


def free_ports(count: int) -> list[int]:
    """Ports on the loopback address that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Member:
    """One process of a cluster."""

    name: str
    client_port: int
    peer_port: int
    folder: Path
    command: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Resident memory of the process now."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Cluster:
    """A cluster of processes in one temporary folder; a context manager that leaves nothing behind."""

    kind = "cluster"

    def __init__(self, size: int, folder: Path | None = None) -> None:
        self._root = Path(tempfile.mkdtemp(prefix=f"{self.kind}-", dir=folder))
        ports = free_ports(2 * size)
        self.members = [
            Member(f"n{i + 1}", ports[2 * i], ports[2 * i + 1], self._root / f"n{i + 1}") for i in range(size)
        ]

    def _command(self, member: Member) -> list[str]:
        raise NotImplementedError

    def initial_cluster(self) -> str:
        """The value of ``--initial-cluster``."""
        return ",".join(f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in self.members)

    def __enter__(self) -> Cluster:
        try:
            for member in self.members:
                member.folder.mkdir(parents=True, exist_ok=True)
                self.start(member)
            self.wait_healthy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.process.send_signal(signal.SIGTERM)
        for member in self.members:
            if member.process is not None:
                try:
                    member.process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    member.process.kill()
                    member.process.wait()
        self._clean()

    def _clean(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def start(self, member: Member) -> None:
        """Starts the member's process; its output goes to ``log`` in its folder."""
        with (member.folder / "log").open("ab") as log:
            member.process = subprocess.Popen(self._command(member), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait_healthy(self) -> None:
        """Waits until every member answers ``/health`` with success, i.e. linearizable reads work on each."""
        deadline = time.monotonic() + _START_SECONDS
        for member in self.members:
            while not self._healthy(member):
                assert member.process is not None
                if member.process.poll() is not None or time.monotonic() > deadline:
                    text = (member.folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{self.kind} member {member.name} did not become healthy:\n{text}")
                time.sleep(0.05)

    @staticmethod
    def _healthy(member: Member) -> bool:
        try:
            with urllib.request.urlopen(f"http://{member.endpoint}/health", timeout=5) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (OSError, ValueError, KeyError):
            return False

    def endpoints(self, *, leader_only: bool = False) -> str:
        """All endpoints, comma-separated, or just the leader's."""
        return self.leader().endpoint if leader_only else ",".join(m.endpoint for m in self.members)

    def leader(self) -> Member:
        """The member that says it leads."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for member in self.members:
                try:
                    with urllib.request.urlopen(f"http://{member.endpoint}/metrics", timeout=5) as answer:
                        if b"\netcd_server_is_leader 1" in answer.read():
                            return member
                except OSError:
                    continue
            time.sleep(0.1)
        raise RuntimeError(f"no member of the {self.kind} cluster says that it leads")

    def cpu_seconds(self) -> float:
        """CPU time of all members so far."""
        return sum(m.cpu_seconds() for m in self.members)

    def resident_bytes(self) -> int:
        """Resident memory of all members."""
        return sum(m.resident_bytes() for m in self.members)


class EtcdCluster(Cluster):
    """Members of etcd, as its documentation starts them."""

    kind = "etcd"

    def __init__(self, size: int, binaries: Path, folder: Path | None = None, extra: tuple[str, ...] = ()) -> None:
        super().__init__(size, folder)
        self._binaries = binaries
        self._extra = extra

    def _command(self, member: Member) -> list[str]:
        client, peer = f"http://127.0.0.1:{member.client_port}", f"http://127.0.0.1:{member.peer_port}"
        return [
            *(str(self._binaries / "etcd"), "--name", member.name, "--data-dir", str(member.folder / "data")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", self.initial_cluster(), "--initial-cluster-state", "new"),
            *("--log-level", "error", *self._extra),
        ]


class RaftKVCluster(Cluster):
    """Members of RaftKV, with the ADR log on a folder (``adr_folder``) or in disk mode (without)."""

    kind = "raftkv"

    def __init__(
        self, size: int, folder: Path | None = None, adr_folder: Path | None = None, extra: tuple[str, ...] = ()
    ) -> None:
        super().__init__(size, folder)
        self._adr = Path(tempfile.mkdtemp(prefix="raftkv-adr-", dir=adr_folder)) if adr_folder else None
        self._extra = extra

    def _command(self, member: Member) -> list[str]:
        client, peer = f"http://127.0.0.1:{member.client_port}", f"http://127.0.0.1:{member.peer_port}"
        adr: list[str] = []
        if self._adr is not None:
            ring = self._adr / member.name
            ring.mkdir(exist_ok=True)
            adr = ["--adr-path", str(ring), "--minimum-durability", "process"]
        return [
            *(str(Path(sys.executable).with_name("raftkv")), "node"),
            *("--name", member.name, "--data-dir", str(member.folder / "data")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", self.initial_cluster(), "--initial-cluster-state", "new"),
            *("--log-level", "error", *adr, *self._extra),
        ]

    def _clean(self) -> None:
        super()._clean()
        if self._adr is not None:
            shutil.rmtree(self._adr, ignore_errors=True)
