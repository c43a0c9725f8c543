"""Clusters of real processes on this machine for the benchmarks: etcd's and RaftKV's, started and stopped alike."""

from __future__ import annotations

import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from certificates import Authority, Pair
from machine import cpu_seconds, free_ports, memory_bytes
from raftkv_node.bench.target import Target, parse_endpoints

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LEVEL = re.compile(r'^adr_durability_level\{[^}]*level="(\w+)"[^}]*\} 1(?:\.0)?$', flags=re.MULTILINE)


def process_resident_bytes(pid: int, *, shared: bool = True) -> int:
    """Resident memory of a process now; ``shared``: with its pages on tmpfs (a ring)."""
    kinds = ("RssAnon", "RssFile", "RssShmem") if shared else ("RssAnon", "RssFile")
    return memory_bytes(pid, *kinds)


@dataclass(frozen=True)
class Certificates:
    """What members and clients of a cluster with TLS show each other."""

    authority: Authority
    member: Pair
    client: Pair

    @staticmethod
    def make(folder: Path) -> Certificates:
        """Throw-away ones, in a folder."""
        authority = Authority(folder)
        return Certificates(authority, authority.pair("member"), authority.pair("client"))

    def flags(self) -> list[str]:
        """Of a member: everybody who speaks to it shows a certificate. etcd and RaftKV have the same."""
        return [
            *("--client-cert-auth", "--cert-file", self.member.cert, "--key-file", self.member.key),
            *("--trusted-ca-file", self.authority.file, "--peer-client-cert-auth"),
            *("--peer-cert-file", self.member.cert, "--peer-key-file", self.member.key),
            *("--peer-trusted-ca-file", self.authority.file),
        ]

    def context(self) -> ssl.SSLContext:
        """Of a client in Python."""
        context = ssl.create_default_context(cafile=self.authority.file)
        context.load_cert_chain(self.client.cert, self.client.key)
        return context


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
        return cpu_seconds(self.process.pid)

    def resident_bytes(self, *, shared: bool = True) -> int:
        """Resident memory of the process now; ``shared``: with its pages on tmpfs (a ring)."""
        assert self.process is not None
        return process_resident_bytes(self.process.pid, shared=shared)

    def forget_peak(self) -> None:
        """Has the peak of resident memory begin anew."""
        assert self.process is not None
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The peak of resident memory since then."""
        assert self.process is not None
        return memory_bytes(self.process.pid, "VmHWM")


def end_as_interrupted() -> None:
    """Have SIGTERM end this process as Ctrl-C does: otherwise the members that it has started would be left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Cluster:
    """A cluster of processes in one temporary folder; a context manager that leaves nothing behind."""

    kind = "cluster"
    range_stream = False
    """Whether its members have RangeStream."""
    has_ring = False
    """Whether pages on tmpfs are those of its members' rings; otherwise they are a backend's, as mapped files are."""

    def __init__(self, size: int, folder: Path | None = None, *, tls: bool = False) -> None:
        self._root = Path(tempfile.mkdtemp(prefix=f"{self.kind}-", dir=folder))
        ports = free_ports(2 * size)
        self.members = [
            Member(f"n{i + 1}", ports[2 * i], ports[2 * i + 1], self._root / f"n{i + 1}") for i in range(size)
        ]
        self.fresh_processors: float | None = None
        """What the members use together while nobody has given them anything; None: nobody has looked."""
        self._certificates = Certificates.make(self._root) if tls else None
        self._scheme = "https" if tls else "http"
        self._context = self._certificates.context() if self._certificates else None

    def _command(self, member: Member) -> list[str]:
        raise NotImplementedError

    def initial_cluster(self) -> str:
        """The value of ``--initial-cluster``."""
        return ",".join(f"{m.name}={self._scheme}://127.0.0.1:{m.peer_port}" for m in self.members)

    def _urls(self, member: Member) -> list[str]:
        """The flags that both kinds of members take."""
        client = f"{self._scheme}://127.0.0.1:{member.client_port}"
        peer = f"{self._scheme}://127.0.0.1:{member.peer_port}"
        return [
            *("--name", member.name, "--data-dir", str(member.folder / "data")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", self.initial_cluster(), "--initial-cluster-state", "new"),
            *("--log-level", "error", *(self._certificates.flags() if self._certificates else [])),
        ]

    def target(self, *, leader_only: bool = False) -> Target:
        """For the load generator."""
        endpoints = self.endpoints(leader_only=leader_only)
        if self._certificates is None:
            return Target(parse_endpoints(endpoints)[0])
        urls = ",".join(f"https://{one}" for one in endpoints.split(","))
        authority, client = Path(self._certificates.authority.file), self._certificates.client
        return Target(*parse_endpoints(urls), authority, Path(client.cert), Path(client.key))

    def get(self, member: Member, path: str) -> bytes:
        """An HTTP GET on a member's client port."""
        url = f"{self._scheme}://{member.endpoint}{path}"
        with urllib.request.urlopen(url, timeout=5, context=self._context) as answer:
            return bytes(answer.read())

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

    def stop(self, member: Member) -> None:
        """Ends the member's process as an operator does, by SIGTERM."""
        assert member.process is not None
        member.process.send_signal(signal.SIGTERM)
        member.process.wait(_STOP_SECONDS)

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

    def _healthy(self, member: Member) -> bool:
        try:
            return bool(json.loads(self.get(member, "/health"))["health"] == "true")
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
                    if b"\netcd_server_is_leader 1" in self.get(member, "/metrics"):
                        return member
                except OSError:
                    continue
            time.sleep(0.1)
        raise RuntimeError(f"no member of the {self.kind} cluster says that it leads")

    def leader_changes(self) -> int:
        """Changes of the leader that the members have seen, added up."""
        changes = 0
        for member in self.members:
            page = self.get(member, "/metrics").decode()
            found = re.search(r"^etcd_server_leader_changes_seen_total (\S+)", page, flags=re.MULTILINE)
            if found is None:
                raise RuntimeError(f"{member.name} does not say how often its leader has changed")
            changes += int(float(found[1]))
        return changes

    def durability_levels(self) -> set[str]:
        """The levels that the members found for their logs; none where members do not look for one."""
        return set()

    def cpu_seconds(self) -> float:
        """CPU time of all members so far."""
        return sum(m.cpu_seconds() for m in self.members)

    def resident_bytes(self, *, shared: bool = True) -> int:
        """Resident memory of all members."""
        return sum(m.resident_bytes(shared=shared) for m in self.members)


class EtcdCluster(Cluster):
    """Members of etcd, as its documentation starts them."""

    kind = "etcd"

    def __init__(
        self,
        size: int,
        binaries: Path,
        folder: Path | None = None,
        extra: tuple[str, ...] = (),
        *,
        tls: bool = False,
    ) -> None:
        super().__init__(size, folder, tls=tls)
        self._binaries = binaries
        self._extra = extra

    def _command(self, member: Member) -> list[str]:
        return [str(self._binaries / "etcd"), *self._urls(member), *self._extra]


class RaftKVCluster(Cluster):
    """Members of RaftKV, with the ADR log on a folder (``adr_folder``) or in disk mode (without)."""

    kind = "raftkv"
    range_stream = True
    has_ring = True

    def __init__(
        self,
        size: int,
        folder: Path | None = None,
        adr_folder: Path | None = None,
        extra: tuple[str, ...] = (),
        *,
        tls: bool = False,
    ) -> None:
        super().__init__(size, folder, tls=tls)
        self._adr = Path(tempfile.mkdtemp(prefix="raftkv-adr-", dir=adr_folder)) if adr_folder else None
        self._extra = extra

    def _command(self, member: Member) -> list[str]:
        adr: list[str] = []
        if self._adr is not None:
            ring = self._adr / member.name
            ring.mkdir(exist_ok=True)
            adr = ["--adr-path", str(ring), "--minimum-durability", "process"]
        raftkv = str(Path(sys.executable).with_name("raftkv"))
        return [raftkv, "node", *self._urls(member), *adr, *self._extra]

    def durability_levels(self) -> set[str]:
        """The levels that the members found for their logs.

        Raises:
            RuntimeError: when a member does not say which.
        """
        levels: set[str] = set()
        for member in self.members:
            found = _LEVEL.findall(self.get(member, "/metrics").decode())
            if len(found) != 1:
                raise RuntimeError(f"{member.name} does not say what a write survives that it acknowledged")
            levels.update(found)
        return levels

    def _clean(self) -> None:
        super()._clean()
        if self._adr is not None:
            shutil.rmtree(self._adr, ignore_errors=True)
