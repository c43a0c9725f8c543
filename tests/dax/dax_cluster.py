"""Three members inside the virtual machine: rings on DAX memory, data folders on the disk that forgets."""

from __future__ import annotations

import json
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dax_load import channel
from dax_machine import Machine
from raftkv_node.pb import admin_pb2, admin_pb2_grpc

START_SECONDS = 240.0
"""Bound for all members to serve after a boot, under emulation on a busy machine."""
#: Emulation is ten to twenty times slower than the machine, and three members share it.
_TIMING = ("--heartbeat-interval", "500", "--election-timeout", "5000")
RING_BYTES = 8 << 20
PYTHON = sys.executable
#: The command on this machine.
RAFTKV = str(Path(sys.executable).with_name("raftkv"))
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a member said of its log when it opened it (its log's line "member")."""

    row: int
    level: str
    medium: str
    generation: int
    replayed: int
    torn_tail_bytes: int


@dataclass
class Member:
    name: str
    client_port: int
    peer_port: int


@dataclass
class Cluster:
    """The members; `ring_root` is where their rings lie in the guest."""

    machine: Machine
    members: list[Member]
    ring_root: str = "/run/pmem"
    minimum: str = "power"
    #: Long: most of what is acknowledged at a cut is in rings alone. Short: the cut meets the disk at work.
    drain_interval: str = "2s"

    @property
    def ports(self) -> list[int]:
        return [member.client_port for member in self.members]

    def arguments(self, member: Member) -> list[str]:
        peers = ",".join(f"{one.name}=http://127.0.0.1:{one.peer_port}" for one in self.members)
        client, peer = f"http://127.0.0.1:{member.client_port}", f"http://127.0.0.1:{member.peer_port}"
        return [
            *("--name", member.name, "--data-dir", f"/run/disk/{member.name}"),
            *("--listen-client-urls", f"http://0.0.0.0:{member.client_port}", "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", peers),
            *("--adr-path", f"{self.ring_root}/{member.name}", "--adr-size", str(RING_BYTES)),
            *("--adr-drain-interval", self.drain_interval, "--minimum-durability", self.minimum),
            *("--log-format", "json", *_TIMING),
        ]

    def start(self, others: Mapping[str, list[str]] | None = None) -> None:
        """Starts all members, and other `raftkv` commands by name; returns when their processes have begun."""
        commands = {member.name: ["node", *self.arguments(member)] for member in self.members} | dict(others or {})
        lines = ["\t".join([f"/run/share/{name}.log", *arguments]) + "\n" for name, arguments in commands.items()]
        (self.machine.share / "commands").write_text("".join(lines))
        folders = " ".join(f"{self.ring_root}/{member.name}" for member in self.members)
        launch = f"{shlex.quote(PYTHON)} {shlex.quote(str(_HERE / 'dax_nodes.py'))} < commands"
        self.machine.must(f"busybox mkdir -p {folders} && {launch}", START_SECONDS)

    def output(self, name: str) -> str:
        """What a member or another command has written in this boot."""
        path = self.machine.share / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def exit_code(self, name: str) -> int | None:
        """The exit code of a member or another command that has ended in this boot."""
        path = self.machine.share / f"{name}.code"
        return int(path.read_text()) if path.exists() else None

    def wait_for(self, names: Sequence[str]) -> dict[str, int]:
        """Waits until members or other commands have ended; their exit codes."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            codes = {name: code for name in names if (code := self.exit_code(name)) is not None}
            if len(codes) == len(names):
                return codes
            assert time.monotonic() < deadline, f"of {list(names)} only {codes} have ended\n{self.report()}"
            time.sleep(0.2)

    def wait(self) -> dict[str, int]:
        """Waits until each member serves a linearizable read or has ended; the exit codes of those that have.

        Returns early when no majority is left: the others will never serve.
        """
        deadline = time.monotonic() + START_SECONDS
        waiting, ended = list(self.members), {}
        while waiting:
            for member in list(waiting):
                code = self.exit_code(member.name)
                if code is not None:
                    ended[member.name] = code
                if code is not None or _healthy(member.client_port):
                    waiting.remove(member)
            if len(ended) * 2 > len(self.members):
                return ended
            if waiting and time.monotonic() > deadline:
                raise AssertionError(f"no answer from {waiting} in {START_SECONDS:.0f} s\n{self.report()}")
            time.sleep(0.2)
        return ended

    def recovery(self, member: Member) -> Recovery:
        """How a member found its log in this boot."""
        for line in self.output(member.name).splitlines():
            event: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "member":
                return Recovery(
                    event["row"],
                    event["durability"],
                    event["medium"],
                    event["generation"],
                    event["replayed"],
                    event["torn_tail_bytes"],
                )
        raise AssertionError(f"{member.name} did not say how it recovered\n{self.report()}")

    def described_level(self, member: Member) -> str:
        """Durability and medium by Admin's Describe."""
        with channel(member.client_port) as line:
            answer = admin_pb2_grpc.AdminStub(line).Describe(admin_pb2.DescribeRequest(), timeout=60)
        return f"{answer.durability}/{answer.medium}"

    def measured_level(self, member: Member) -> str:
        """The level by the metric `adr_durability_level`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{member.client_port}/metrics", timeout=60) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith('adr_durability_level{level="') and line.endswith(" 1.0"):
                    return str(line.split('"')[1])
        return "none"

    def stop(self) -> dict[str, int]:
        """Ends all members by SIGTERM; their exit codes."""
        names = [member.name for member in self.members]
        self.machine.must(f"kill -TERM $(cat {' '.join(f'{name}.pid' for name in names)})")
        return self.wait_for(names)

    def report(self) -> str:
        """The last lines of every member and of the guest, for a person who has to find out why."""
        texts = [f"--- {member.name}\n{self.output(member.name)[-3000:]}" for member in self.members]
        return "\n".join([*texts, "--- console", self.machine.last_words()])


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            return int(answer.status) == 200
    except (OSError, ValueError):
        # Also urllib's errors and http.client's: it does not serve yet.
        return False
