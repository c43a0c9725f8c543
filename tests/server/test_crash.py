"""No acknowledged write is lost and no linearizable read is stale, whoever dies: the short form.

Several clients write and read their own keys without pause. Each value is a sequence number that only grows, so two
things can be checked without knowing the order of anything else: what a read returns is at least what was acknowledged
before it began, and at the end each key holds its last acknowledged value, or the one after it whose fate was unknown.
A write of unknown fate may take effect at any later time; so it is the last one of its key, and the client goes on with
another.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest
from processes import Cluster, channel, cluster, wait_until
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

CLIENTS = 6
KEYS_PER_CLIENT = 4


@dataclass
class Client:
    """One writer and reader of its own keys, through one member after the other."""

    number: int
    endpoints: list[str]
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    tried: dict[bytes, int] = field(default_factory=dict)
    acknowledgements: int = 0
    stale: list[str] = field(default_factory=list)
    lives: list[int] = field(default_factory=lambda: [0] * KEYS_PER_CLIENT)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        channels = [channel(endpoint) for endpoint in self.endpoints]
        stubs = [rpc_pb2_grpc.KVStub(one) for one in channels]
        turn = self.number
        while not self.stop.is_set():
            place = turn % KEYS_PER_CLIENT
            key = b"client-%d/key-%d/%d" % (self.number, place, self.lives[place])
            stub = stubs[turn % len(stubs)]
            turn += 1
            try:
                self._write(stub, key)
                self._read(stubs[turn % len(stubs)], key)
            except grpc.RpcError:
                self.lives[place] += 1
                time.sleep(0.02)
        for one in channels:
            one.close()

    def _write(self, stub: rpc_pb2_grpc.KVStub, key: bytes) -> None:
        number = self.tried.get(key, 0) + 1
        self.tried[key] = number
        stub.Put(rpc_pb2.PutRequest(key=key, value=b"%d" % number), timeout=3)
        self.acknowledged[key] = number
        self.acknowledgements += 1

    def _read(self, stub: rpc_pb2_grpc.KVStub, key: bytes) -> None:
        before = self.acknowledged.get(key, 0)
        answer = stub.Range(rpc_pb2.RangeRequest(key=key), timeout=3)
        found = int(answer.kvs[0].value) if answer.kvs else 0
        if not before <= found <= self.tried[key]:
            self.stale.append(f"{key.decode()}: read {found}, acknowledged {before}, tried {self.tried[key]}")


class Load:
    """All clients in threads."""

    def __init__(self, under_test: Cluster) -> None:
        endpoints = [one.endpoint for one in under_test.members]
        self.clients = [Client(number, endpoints) for number in range(CLIENTS)]
        self._threads = [threading.Thread(target=one.run, daemon=True) for one in self.clients]
        for thread in self._threads:
            thread.start()

    @property
    def acknowledgements(self) -> int:
        return sum(one.acknowledgements for one in self.clients)

    def wait_for_progress(self, more: int = 50) -> None:
        """Waits until that many further writes are acknowledged."""
        wanted = self.acknowledgements + more
        wait_until(f"{more} acknowledged writes", lambda: self.acknowledgements >= wanted)

    def end(self) -> None:
        for one in self.clients:
            one.stop.set()
        for thread in self._threads:
            thread.join(30)

    def check(self, under_test: Cluster) -> None:
        """Every key on every member, linearizably and, once applied, serializably."""
        for one in self.clients:
            assert not one.stale, one.stale[:5]
        for member in under_test.members:
            with channel(member.endpoint) as connection:
                stub = rpc_pb2_grpc.KVStub(connection)
                for client in self.clients:
                    for key, tried in client.tried.items():
                        for serializable in (False, True):
                            request = rpc_pb2.RangeRequest(key=key, serializable=serializable)
                            answer = stub.Range(request, timeout=10, wait_for_ready=True)
                            found = int(answer.kvs[0].value) if answer.kvs else 0
                            assert client.acknowledged.get(key, 0) <= found <= tried, (member.name, key, serializable)


def hashes_agree(under_test: Cluster) -> None:
    """HashKV at one revision is the same on all members."""
    found: set[int] = set()
    with channel(under_test.members[0].endpoint) as connection:
        answer = rpc_pb2_grpc.KVStub(connection).Range(rpc_pb2.RangeRequest(key=b"k"), timeout=10)
    revision = answer.header.revision
    for member in under_test.members:
        with channel(member.endpoint) as connection:
            stub = rpc_pb2_grpc.KVStub(connection)
            stub.Range(rpc_pb2.RangeRequest(key=b"k"), timeout=10)
            request = rpc_pb2.HashKVRequest(revision=revision)
            found.add(rpc_pb2_grpc.MaintenanceStub(connection).HashKV(request, timeout=10).hash)
    assert len(found) == 1, found


def kill_the_leader(under_test: Cluster, load: Load) -> None:
    leader = under_test.leader()
    leader.kill()
    load.wait_for_progress()
    leader.start()


def kill_two_members(under_test: Cluster, load: Load) -> None:
    leader = under_test.leader()
    victims = [leader, next(one for one in under_test.members if one is not leader)]
    for one in victims:
        one.signal(signal.SIGKILL)
    for one in victims:
        one.wait()
    load.wait_for_progress()
    for one in victims:
        one.start()


def kill_all(under_test: Cluster, load: Load) -> None:
    for one in under_test.members:
        one.signal(signal.SIGKILL)
    for one in under_test.members:
        one.wait()
    for one in under_test.members:
        one.start()


STEPS: list[Callable[[Cluster, Load], None]] = [kill_the_leader, kill_two_members, kill_all]


@pytest.mark.parametrize("mode", ["adr", "disk"])
def test_crashes_lose_nothing(mode: str, tmp_path: Path) -> None:
    minimum = () if mode == "adr" else ("--minimum-durability", "process")
    with cluster(tmp_path, 5, mode, minimum) as under_test:
        load = Load(under_test)
        try:
            load.wait_for_progress()
            for step in STEPS:
                step(under_test, load)
                under_test.wait_healthy()
                load.wait_for_progress()
        finally:
            load.end()
        load.check(under_test)
        hashes_agree(under_test)
        for member in under_test.members:
            assert member.stop() == 0, member.log_text()[-2000:]


def test_a_paused_leader_answers_no_stale_read(tmp_path: Path) -> None:
    """A leader that was stopped for longer than an election takes must not answer from what it knew."""
    with cluster(tmp_path, 3, "adr") as under_test:
        load = Load(under_test)
        try:
            load.wait_for_progress()
            leader = under_test.leader()
            leader.signal(signal.SIGSTOP)
            load.wait_for_progress()
            leader.signal(signal.SIGCONT)
            under_test.wait_healthy()
            load.wait_for_progress()
        finally:
            load.end()
        load.check(under_test)
        hashes_agree(under_test)


def test_etcd_20418_a_leader_that_wakes_up_alone_answers_no_read_from_what_it_knew(tmp_path: Path) -> None:
    """It was stopped, others have written since, and nobody tells it: whoever might is stopped now, and what was on its
    way ended with earlier processes. Until an election timeout is over it takes itself for the leader; a read that it
    answers is stale."""

    def read(stub: rpc_pb2_grpc.KVStub, seconds: float) -> bytes:
        return bytes(stub.Range(rpc_pb2.RangeRequest(key=b"k"), timeout=seconds, wait_for_ready=True).kvs[0].value)

    def write(stub: rpc_pb2_grpc.KVStub, value: bytes) -> None:
        stub.Put(rpc_pb2.PutRequest(key=b"k", value=value), timeout=20, wait_for_ready=True)

    with cluster(tmp_path, 3, "adr") as under_test:
        leader = under_test.leader()
        others = [one for one in under_test.members if one is not leader]
        with channel(leader.endpoint) as connection:
            old = rpc_pb2_grpc.KVStub(connection)
            write(old, b"old")
            leader.signal(signal.SIGSTOP)
            for one in others:
                one.kill()
                one.start()
            with channel(others[0].endpoint) as another:
                write(rpc_pb2_grpc.KVStub(another), b"new")
            for one in others:
                one.signal(signal.SIGSTOP)
            leader.signal(signal.SIGCONT)
            for _ in range(20):
                with pytest.raises(grpc.RpcError):
                    read(old, 0.1)
            for one in others:
                one.signal(signal.SIGCONT)
            assert read(old, 20) == b"new"


def test_a_member_that_was_stopped_well_says_so_and_comes_back(tmp_path: Path) -> None:
    """D9: SIGTERM ends with code 0, the lead is handed on, and the next start replays nothing."""
    with cluster(tmp_path, 3, "adr") as under_test:
        load = Load(under_test)
        try:
            load.wait_for_progress()
            leader = under_test.leader()
            assert leader.stop() == 0
            load.wait_for_progress()
            leader.start()
            under_test.wait_healthy()
            assert "replayed=0" in leader.log_text().rpartition(" member id=")[2]
        finally:
            load.end()
        load.check(under_test)


def test_another_process_on_the_same_folders_is_refused(tmp_path: Path) -> None:
    """D11."""
    with cluster(tmp_path, 1, "adr") as under_test:
        member = under_test.members[0]
        again = replace(member, client_port=0, peer_port=0, process=None)
        advertised = again.command().index("--initial-advertise-peer-urls") + 1
        initial = again.command().index("--initial-cluster") + 1
        second = list(again.command())
        second[advertised], second[initial] = member.peer_url, f"{member.name}={member.peer_url}"
        result = subprocess.run(second, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 71, result.stderr
        assert result.stderr.count("\n") == 1
        assert member.healthy()


def test_a_member_that_was_away_for_long_catches_up_from_the_logs_files(tmp_path: Path) -> None:
    """What it lacks has left the leader's memory: it is read back from ring and segments."""
    with cluster(tmp_path, 3, "adr") as under_test:
        away = next(one for one in under_test.members if not one.leads())
        away.kill()
        others = [one for one in under_test.members if one is not away]
        value = bytes(200_000)
        with channel(others[0].endpoint) as connection:
            stub = rpc_pb2_grpc.KVStub(connection)
            for number in range(150):
                stub.Put(rpc_pb2.PutRequest(key=b"bulk-%d" % (number % 10), value=value), timeout=30)
            revision = stub.Put(rpc_pb2.PutRequest(key=b"last", value=b"one"), timeout=30).header.revision
        away.start()
        wait_until("member that has caught up", away.healthy)
        with channel(away.endpoint) as connection:
            stub = rpc_pb2_grpc.KVStub(connection)
            answer = stub.Range(rpc_pb2.RangeRequest(key=b"last"), timeout=30)
            assert (answer.kvs[0].value, answer.header.revision) == (b"one", revision)
        hashes_agree(under_test)
