"""The members under attack: real processes, each with its own view of the network, its own clock, ring and disk.

Members get numbers that are never used twice: who replaces a member whose ring is lost is a new one. A member has a
*life*: it counts the starts of its process, since a session of serializable reads ends with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from chaos_disks import Disk
from chaos_links import Links, link_host, listen_host
from processes import NodeProcess, channel, free_ports
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

MAX_MEMBERS = 60
HEAL_SECONDS = 90.0
"""Bound of whatever must work once nothing is broken any more."""
CALL_SECONDS = 10.0
CLOCK_SOURCE = Path(__file__).parents[1] / "tools" / "wallclock.c"


def host_name(number: int) -> str:
    return f"chaos-{number}"


def build_clock(folder: Path) -> Path:
    """The library through which a member sees another wall clock (tests/tools/wallclock.c)."""
    made = folder / "wallclock.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(made), str(CLOCK_SOURCE), "-ldl"], check=True)
    return made


def free_peer_port() -> int:
    """A port that is free on every address: all members and links of a run share its number."""
    with socket.socket() as one:
        one.bind(("0.0.0.0", 0))
        return int(one.getsockname()[1])


@dataclass
class ChaosMember(NodeProcess):
    """A member that is reached over links and sees a clock that can be set."""

    number: int = 0
    clock_library: Path = Path()
    ring: Path | None = None
    disk: Disk | None = None
    life: int = 0
    stopped: bool = False
    #: A fault that must not meet another one on the same member holds this.
    busy: threading.Lock = field(default_factory=threading.Lock)
    gone: bool = False

    @property
    def peer_url(self) -> str:
        return f"http://{host_name(self.number)}:{self.peer_port}"

    @property
    def data_dir(self) -> Path:
        return (self.folder if self.disk is None else self.disk.mount) / "data"

    @property
    def clock_file(self) -> Path:
        return self.folder / "clock"

    def command(self) -> list[str]:
        command = super().command()
        place = command.index("--listen-peer-urls") + 1
        command[place] = f"http://{listen_host(self.number)}:{self.peer_port}"
        return [*command, "--resolver", f"hosts-file:{self.folder / 'hosts'}"]

    def prepare(self) -> None:
        """Its folder, with its own view of where the others are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{link_host(self.number, other)} {host_name(other)}" for other in range(1, MAX_MEMBERS + 1)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        self.shift_clock(0)
        if self.disk is not None:
            self.disk.start()

    def shift_clock(self, seconds: int) -> None:
        """The wall clock that it sees from now on: a running member sees a jump."""
        with self.clock_file.open("r+b" if self.clock_file.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    def start(self) -> None:
        self.life += 1
        self.stopped = False
        shifted = {"LD_PRELOAD": str(self.clock_library), "WALLCLOCK_FILE": str(self.clock_file)}
        with _ENVIRONMENT:
            os.environ.update(shifted)
            try:
                super().start()
            finally:
                for name in shifted:
                    del os.environ[name]

    def freeze(self) -> None:
        self.stopped = True
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
        self.stopped = False

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()
        self.stopped = False

    def account(self) -> str:
        """Its log, with what each of its threads does now at the end, in the node's and in the kernel's words."""
        if not self.running or self.process is None:
            return self.log_text()
        threads = sorted(Path(f"/proc/{self.process.pid}/task").iterdir())
        kernel = [f"{one.name} {(one / 'wchan').read_text()}" for one in threads]
        self.signal(signal.SIGUSR1)
        time.sleep(1.0)
        return f"{self.log_text()}\nin the kernel: {', '.join(kernel)}"

    @property
    def serves(self) -> bool:
        """Whether it answers a serializable read."""
        return self.running and not self.stopped and self.get("/health?serializable=true")[0] == 200


_ENVIRONMENT = threading.Lock()


class Patience:
    """Retries until a bound; what the last attempt said is part of the failure."""

    def __init__(self, what: str, seconds: float = HEAL_SECONDS) -> None:
        self._what, self._end = what, time.monotonic() + seconds
        self._seconds = seconds

    def until(self, attempt: Callable[[], bool]) -> None:
        said = ""
        while True:
            try:
                if attempt():
                    return
            except grpc.RpcError as error:
                said = str(error.details())
            if time.monotonic() > self._end:
                raise NotHealed(f"no {self._what} within {self._seconds:.0f} s: {said}")
            time.sleep(0.1)


class NotHealed(AssertionError):
    """Nothing is broken any more, and yet something does not work."""


class ChaosCluster:
    """All members of one cluster, those of the past included."""

    def __init__(self, root: Path, size: int, rings: Path | None, links: Links, port: int, with_disks: bool) -> None:
        self.root, self.rings, self.links, self.port = root, rings, links, port
        self._with_disks = with_disks
        self._clock_library = build_clock(root)
        self.changes = threading.Lock()
        """One replacement at a time."""
        self.members: list[ChaosMember] = []
        self.made: list[ChaosMember] = []
        """All that ever were, those included that were never let in."""
        for number in range(1, size + 1):
            self.members.append(self._make(number))
        founders = ",".join(f"{one.name}={one.peer_url}" for one in self.members)
        for one in self.members:
            one.arguments += ["--initial-cluster", founders]

    def _make(self, number: int) -> ChaosMember:
        folder = self.root / f"n{number}"
        disk = Disk(folder) if self._with_disks else None
        (port,) = free_ports(1)
        member = ChaosMember(f"n{number}", folder, port, self.port, number=number, disk=disk)
        member.clock_library = self._clock_library
        member.arguments = [
            *("--minimum-durability", "process", "--newest-disk-patience", "3s"),
            # Small, so that who was away for some seconds gets a snapshot now and then.
            *("--log-retention-entries", "400", "--log-retention-bytes", "2Mi"),
        ]
        if self.rings is not None:
            member.ring = self.rings / member.name
            member.ring.mkdir(parents=True)
            member.arguments += ["--adr-path", str(member.ring), "--adr-size", "4Mi"]
        member.prepare()
        self.links.add(number)
        self.made.append(member)
        return member

    def start(self) -> None:
        for one in self.members:
            one.start()
        self.wait_healthy()

    def wait_healthy(self) -> None:
        """Until a linearizable read works on every member."""
        for one in list(self.members):
            patience = Patience(f"healthy {one.name}")
            patience.until(lambda one=one: one.running and one.get("/health")[0] == 200)  # type: ignore[misc]

    def leader(self) -> ChaosMember | None:
        """The member that says it leads, if any does now."""
        return next((one for one in self.members if one.running and not one.stopped and one.leads()), None)

    # -- replacement ---------------------------------------------------------------------------------------------------

    def replace(self, lost: ChaosMember) -> ChaosMember:
        """A new member for one whose ring is lost: the old one is removed for good, the new one joins empty."""
        with self.changes:
            self._ask("removal", lambda stub: self._remove(stub, lost))
            lost.gone = True
            others = [one for one in self.members if one is not lost]
            fresh = self.join(others)
            self._ask("promotion", lambda stub: self._promote(stub, fresh))
            self.members = [*others, fresh]
            fresh.busy.release()
            self._forget(lost)
            return fresh

    def join(self, others: list[ChaosMember]) -> ChaosMember:
        """A new member with an empty disk: a learner, and nobody's target."""
        fresh = self._make(len(self.made) + 1)
        self._ask("addition", lambda stub: self._add(stub, fresh))
        known = ",".join(f"{one.name}={one.peer_url}" for one in [*others, fresh])
        fresh.arguments += ["--initial-cluster", known, "--initial-cluster-state", "existing"]
        fresh.busy.acquire()
        fresh.start()
        return fresh

    def _ask(self, what: str, request: Callable[[rpc_pb2_grpc.ClusterStub], bool]) -> None:
        """Asks one member after the other, until it is done or known to have been done."""
        turn = 0

        def attempt() -> bool:
            nonlocal turn
            turn += 1
            target = self.members[turn % len(self.members)]
            if not target.running or target.stopped:
                return False
            with channel(target.endpoint) as line:
                return request(rpc_pb2_grpc.ClusterStub(line))

        Patience(f"{what} of a member", 2 * HEAL_SECONDS).until(attempt)

    @staticmethod
    def _listed(stub: rpc_pb2_grpc.ClusterStub, member: ChaosMember) -> rpc_pb2.Member | None:
        listed = stub.MemberList(rpc_pb2.MemberListRequest(linearizable=True), timeout=CALL_SECONDS).members
        return next((one for one in listed if member.peer_url in one.peerURLs), None)

    def _remove(self, stub: rpc_pb2_grpc.ClusterStub, member: ChaosMember) -> bool:
        found = self._listed(stub, member)
        if found is not None:
            stub.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=found.ID), timeout=CALL_SECONDS)
        return found is None or self._listed(stub, member) is None

    def _add(self, stub: rpc_pb2_grpc.ClusterStub, member: ChaosMember) -> bool:
        if self._listed(stub, member) is None:
            request = rpc_pb2.MemberAddRequest(peerURLs=[member.peer_url], isLearner=True)
            stub.MemberAdd(request, timeout=CALL_SECONDS)
        return True

    def _promote(self, stub: rpc_pb2_grpc.ClusterStub, member: ChaosMember) -> bool:
        if not member.running:
            member.start()
        found = self._listed(stub, member)
        if found is not None and found.isLearner:
            stub.MemberPromote(rpc_pb2.MemberPromoteRequest(ID=found.ID), timeout=CALL_SECONDS)
        return found is not None and not found.isLearner

    @staticmethod
    def _forget(member: ChaosMember) -> None:
        """The disk of a member that is gone is of no use any more."""
        if member.disk is not None:
            member.disk.stop()
        shutil.rmtree(member.folder / "data", ignore_errors=True)

    def close(self) -> None:
        """Ends every process and every mount."""
        for one in self.made:
            one.signal(signal.SIGCONT)
            one.signal(signal.SIGKILL)
        for one in self.made:
            if one.disk is not None:
                one.disk.stop()
            if one.process is not None:
                one.wait()
