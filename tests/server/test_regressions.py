"""Mistakes that a review of the node has found, each by the name of what went wrong."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import lmdb
import pytest
from processes import NodeProcess, channel, free_ports, wait_until
from raftkv_node.adr import EXIT_DURABILITY, EXIT_MISMATCH, EXIT_PROVEN_LOST, Log
from raftkv_node.api.kv import Admitted, within_quota
from raftkv_node.api.methods import Method
from raftkv_node.pb import admin_pb2, admin_pb2_grpc, rpc_pb2, rpc_pb2_grpc
from raftkv_node.raft import FetchRequest, Raft
from raftkv_node.server.answers import Answers
from raftkv_node.server.faults import INTERNAL_FAULT, RequestFault
from raftkv_node.server.identity import IdentityError, load_or_format
from raftkv_node.server.kv import cold_job
from raftkv_node.server.lifecycle import EXIT_FAILED
from raftkv_node.server.log import Logger
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.openings import Openings
from raftkv_node.server.replica import Replica
from raftkv_node.server.workers import MAX_QUEUED_JOBS, Workers
from raftkv_node.store import commands
from raftkv_node.store.backend import Backend
from raftkv_node.store.errors import NO_SPACE
from raftkv_node.store.reads import ColdRead, Pins
from raftkv_node.store.store import Store


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[NodeProcess]]:
    """Three members' places, in disk mode; none is started."""
    ports = free_ports(6)
    made = [NodeProcess(f"n{i + 1}", tmp_path / f"n{i + 1}", ports[2 * i], ports[2 * i + 1]) for i in range(3)]
    for one in made:
        one.arguments = ["--initial-cluster", f"{one.name}={one.peer_url}"]
    yield made
    for one in made:
        if one.running:
            one.kill()


def test_a_log_that_was_deleted_beside_the_identity_is_not_begun_again(nodes: list[NodeProcess]) -> None:
    """A member with its identity and nothing else has forgotten votes and entries: it must not start empty (M1)."""
    member = nodes[0]
    member.start()
    wait_until("healthy member", member.healthy)
    member.kill()
    for path in member.data_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "identity":
            path.unlink()
    for _ in range(2):
        member.start()
        assert member.wait() == EXIT_PROVEN_LOST, member.log_text()
    assert "its log was lost" in member.log_text()


def test_m1_m4_a_wiped_member_does_not_come_back_under_its_old_id(nodes: list[NodeProcess]) -> None:
    """By hand a member finds its id by its URL; the others know the disk that it had and do not hear the new one."""
    first, second = nodes[:2]
    first.start()
    wait_until("healthy member", first.healthy)
    with channel(first.endpoint) as connection:
        added = rpc_pb2_grpc.ClusterStub(connection).MemberAdd(rpc_pb2.MemberAddRequest(peerURLs=[second.peer_url]))
    second.arguments = [
        *("--initial-cluster", f"n1={first.peer_url},n2={second.peer_url}", "--initial-cluster-state", "existing"),
    ]
    second.start()
    wait_until("healthy second member", second.healthy)
    second.kill()
    shutil.rmtree(second.data_dir)
    first.kill()
    first.start()
    second.start()
    refusal = f"member {added.member.ID:x} has already been bootstrapped, and is bound to another disk"
    wait_until("refusal", lambda: refusal in first.log_text() or refusal in second.log_text())
    assert first.get("/health")[0] != 200, "two members are needed, and one of them has lost its votes"


def test_a_log_that_is_refused_at_bootstrap_ends_the_node_with_the_logs_code(nodes: list[NodeProcess]) -> None:
    """The operator tells the refusals apart by the exit code; it was 72 until the next start."""
    member = nodes[0]
    ring = member.folder / "ring"
    ring.mkdir(parents=True)
    member.arguments = ["--operated", "--number", "1", "--adr-path", str(ring), "--minimum-durability", "power"]
    member.start()
    wait_until("answer", lambda: member.get("/version")[0] == 200)
    with channel(member.endpoint) as connection:
        stub = admin_pb2_grpc.AdminStub(connection)
        seen = stub.Describe(admin_pb2.DescribeRequest(), timeout=10).identity
        identity = admin_pb2.Identity(
            cluster_id=0xC1, member_id=0xA1, number=1, disk_uuid=seen.disk_uuid, peer_url=member.peer_url
        )
        request = admin_pb2.BootstrapRequest(identity=identity, settings=admin_pb2.Settings(replicas=1, max_voters=1))
        with pytest.raises(grpc.RpcError):
            stub.Bootstrap(request, timeout=30)
    assert member.wait() == EXIT_DURABILITY, member.log_text()


def test_two_that_wait_on_one_folder_do_not_overwrite_each_others_identity(nodes: list[NodeProcess]) -> None:
    """The log's lock comes with the identity: before it, a Join to the second process replaced the first one's."""
    first, second = nodes[0], replace(nodes[1], folder=nodes[0].folder)
    identity = admin_pb2.Identity(cluster_id=0xC1, member_id=0xA1, number=1, peer_url=first.peer_url)
    for member in (first, second):
        member.arguments = ["--operated", "--number", "1"]
    first.start()
    wait_until("answer", lambda: first.get("/version")[0] == 200)
    second.start()
    wait_until("second answer", lambda: second.get("/version")[0] == 200)
    try:
        with channel(first.endpoint) as one, channel(second.endpoint) as two:
            stub = admin_pb2_grpc.AdminStub(one)
            identity.disk_uuid = stub.Describe(admin_pb2.DescribeRequest(), timeout=10).identity.disk_uuid
            settings = admin_pb2.Settings(replicas=1, max_voters=1)
            stub.Bootstrap(admin_pb2.BootstrapRequest(identity=identity, settings=settings), timeout=30)
            identity.member_id = 0xA2
            with pytest.raises(grpc.RpcError):
                admin_pb2_grpc.AdminStub(two).Join(admin_pb2.JoinRequest(identity=identity), timeout=30)
        assert second.wait() == EXIT_FAILED, second.log_text()
        assert first.stop() == 0
        assert load_or_format(first.data_dir, 1, "n1").member_id == 0xA1
    finally:
        second.kill()


def test_m5_an_older_disk_was_heard_after_its_peer_had_restarted(nodes: list[NodeProcess], tmp_path: Path) -> None:
    """M5: a volume restored from a snapshot is found out by peers that were restarted meanwhile, too."""
    first, second, _ = nodes
    initial = f"n1={first.peer_url},n2={second.peer_url}"
    for member in (first, second):
        member.arguments = ["--initial-cluster", initial]
        member.start()
    wait_until("healthy members", lambda: first.healthy() and second.healthy())
    assert second.stop() == 0
    shutil.copytree(second.data_dir, tmp_path / "snapshot")
    second.start()
    wait_until("healthy member", second.healthy)
    assert second.stop() == 0
    assert first.stop() == 0
    shutil.rmtree(second.data_dir)
    shutil.copytree(tmp_path / "snapshot", second.data_dir)
    first.start()
    second.start()
    assert second.wait() == EXIT_MISMATCH, second.log_text()
    second.start()  # with a generation that nobody has heard of
    assert second.wait() == EXIT_MISMATCH, second.log_text()
    assert "was a volume restored?" in second.log_text()


class Jobs:
    """Workers that do a job when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []
        self.done: deque[Callable[[], None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def work(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()
            while self.done:
                self.done.popleft()()


def test_m5_openings_count_as_stored_once_on_disk_and_damage_is_refused(tmp_path: Path) -> None:
    jobs, told = Jobs(), []
    first = Openings(tmp_path, jobs, lambda: told.append(dict(first.stored)), pytest.fail)
    first.note(0xA1, 7, (1 << 64) - 1)
    first.note(0xB2, 1, 5)
    assert first.stored == {}
    jobs.work()
    expected = {0xA1: (7, (1 << 64) - 1), 0xB2: (1, 5)}
    assert told == [{0xA1: expected[0xA1]}, expected]
    again = Openings(tmp_path, jobs, pytest.fail, pytest.fail)
    assert again.known == again.stored == expected
    data = (tmp_path / "openings").read_bytes()
    for damaged in (b"", data[:-1], data.replace(b"7", b"8")):
        (tmp_path / "openings").write_bytes(damaged)
        with pytest.raises(IdentityError):
            Openings(tmp_path, jobs, pytest.fail, pytest.fail)


def test_m5_an_opening_that_cannot_be_written_is_not_told_as_stored(tmp_path: Path) -> None:
    jobs, told, warned = Jobs(), [], []
    kept = Openings(tmp_path / "folder", jobs, lambda: told.append(1), warned.append)
    kept.note(0xA1, 7, 1)
    jobs.work()
    assert (kept.stored, told, len(warned)) == ({}, [], 1)
    (tmp_path / "folder").mkdir()
    kept.write()
    jobs.work()
    assert (kept.stored, told) == ({0xA1: (7, 1)}, [1])


def test_a_volume_of_another_number_is_refused(nodes: list[NodeProcess]) -> None:
    """A claim that is mounted into another member's pod would let that pod speak as the claim's member."""
    member = nodes[0]
    member.arguments = ["--operated", "--number", "1"]
    member.start()
    wait_until("answer", lambda: member.get("/version")[0] == 200)
    assert member.stop() == 0
    member.arguments = ["--operated", "--number", "2"]
    member.start()
    assert member.wait() == EXIT_MISMATCH, member.log_text()
    assert "is of number 1, not 2" in member.log_text()


def test_a_full_disk_under_the_backend_was_called_an_input_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_backend: Backend, _chunks: object) -> None:
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    store = Store.open(tmp_path, start_thread=False)
    monkeypatch.setattr(Backend, "_write", fail)
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_bavail=2, f_frsize=4096))
    store.apply_empty(1, 1)
    store.set_durable_index(1)
    assert not store.backend.commit_now()
    assert "Input/output error (its disk has 8192 bytes left)" in str(store.failed)
    store.close()


def test_the_quota_was_not_looked_at(nodes: list[NodeProcess]) -> None:
    """At its quota a member refuses what makes the backend larger, before LMDB is full and every member stops."""
    member = nodes[0]
    member.arguments += ["--quota-backend-bytes", str(2 << 20)]
    member.start()
    wait_until("healthy member", member.healthy)
    with channel(member.endpoint) as connection:
        stub = rpc_pb2_grpc.KVStub(connection)
        with pytest.raises(grpc.RpcError) as refused:
            for number in range(40):
                stub.Put(rpc_pb2.PutRequest(key=b"%d" % number, value=bytes(100_000)), timeout=30)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.details() == NO_SPACE.message
        revision = stub.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"0", range_end=b"\0"), timeout=30).header.revision
        stub.Compact(rpc_pb2.CompactionRequest(revision=revision, physical=True), timeout=30)

        def written() -> bool:
            try:
                stub.Put(rpc_pb2.PutRequest(key=b"again", value=bytes(100_000)), timeout=30)
            except grpc.RpcError as error:
                assert error.details() == NO_SPACE.message
                return False
            return True

        wait_until("room", written)


def test_at_the_quota_what_puts_nothing_is_taken() -> None:
    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k", value=b"v"))
    delete = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"k"))
    nested = rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(failure=[put]))
    transactions = [[delete], [put], [delete, nested], [delete, delete]]
    payloads = [rpc_pb2.TxnRequest(success=one).SerializeToString() for one in transactions]
    kept = within_quota(commands.TXN, Admitted([1, 2, 3, 4], payloads, []))
    assert (kept.call_ids, kept.errors) == ([1, 4], [(2, NO_SPACE), (3, NO_SPACE)])
    kept = within_quota(commands.PUT, Admitted([5], [b""], []))
    assert (kept.call_ids, kept.payloads, kept.errors) == ([], [], [(5, NO_SPACE)])


def test_a_request_larger_than_a_quarter_of_the_ring_ended_the_node(nodes: list[NodeProcess]) -> None:
    """What --max-request-bytes allows fits into the log buffer, whatever its size and however full it was."""
    member = nodes[0]
    ring = member.folder / "ring"
    ring.mkdir(parents=True)
    member.arguments += ["--adr-path", str(ring), "--adr-size", "4Mi", "--minimum-durability", "process"]
    member.start()
    wait_until("healthy member", member.healthy)
    with channel(member.endpoint) as connection:
        stub = rpc_pb2_grpc.KVStub(connection)
        for size in (100, 1_500_000, 700_000, 1_572_000, 1_572_000, 900_000, 1_572_000):
            stub.Put(rpc_pb2.PutRequest(key=b"k", value=bytes(size)), timeout=30)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Put(rpc_pb2.PutRequest(key=b"k", value=bytes(1_573_000)), timeout=30)
        assert refused.value.details() == "etcdserver: request is too large"
    member.kill()
    member.start()
    wait_until("healthy member", member.healthy)


@pytest.mark.interpreted("a stand-in for the core")
def test_a_full_queue_of_cold_reads_ended_the_leader() -> None:
    """When the workers take no more jobs, a slow member's entries are fetched later; the node lives on."""

    class Core:
        commit_index = 0
        failed: list[int] = []  # noqa: RUF012  # one test, one list

        def fetch_failed(self, peer: int) -> None:
            self.failed.append(peer)

    workers = Workers(0, lambda: None)
    for _ in range(MAX_QUEUED_JOBS):
        workers.submit(lambda: None)
    core = Core()
    replica = Replica(cast(Raft, core), cast(Log, None), lambda _messages: None, workers, Metrics())
    replica._fetch(FetchRequest(7, 1, 1 << 20))
    replica._take_fetched()
    assert core.failed == [7]


def test_a_log_line_in_the_middle_of_a_log_line_does_not_end_the_node() -> None:
    """A signal's handler logs; the stream says "reentrant call" when it interrupts the turn's own line."""

    class Busy:
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

    Logger(stream=cast(Any, Busy())).info("stopping")


def test_a_fault_in_a_cold_read_is_answered_and_told() -> None:
    """A worker's IndexError was taken for old entries that are gone: the caller waited for its deadline."""
    replies: list[tuple[int, int, str]] = []

    class Engine:
        def reply(self, call_ids: Sequence[int], messages: Sequence[bytes]) -> None:
            raise AssertionError((call_ids, messages))

        def reply_errors(self, errors: Sequence[tuple[int, int, str]]) -> None:
            replies.extend(errors)

    def mistaken() -> bytes:
        return bytes([int("a mistake")])

    job = cold_job(ColdRead(Pins(), 1, mistaken), Method.RANGE, 7, Answers(Engine()))
    with pytest.raises(RequestFault) as fault:
        job()
    assert isinstance(fault.value.__cause__, ValueError) and fault.value.method == Method.RANGE
    assert replies == [(7, INTERNAL_FAULT.grpc_code, INTERNAL_FAULT.message)]
