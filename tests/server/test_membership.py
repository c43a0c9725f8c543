"""M4, M5, M13, M15 with real processes: who is heard, what an old disk is told, what a standby serves."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from processes import Cluster, NodeProcess, channel, cluster, wait_until
from raftkv_node.adr import EXIT_MISMATCH, EXIT_PROVEN_LOST
from raftkv_node.pb import admin_pb2, admin_pb2_grpc, rpc_pb2, rpc_pb2_grpc

DISK = ("--minimum-durability", "process")


def put(node: NodeProcess, key: bytes, value: bytes) -> None:
    with channel(node.endpoint) as connection:
        request = rpc_pb2.PutRequest(key=key, value=value)
        rpc_pb2_grpc.KVStub(connection).Put(request, timeout=20, wait_for_ready=True)


def get(node: NodeProcess, key: bytes, serializable: bool = False) -> bytes:
    with channel(node.endpoint) as connection:
        request = rpc_pb2.RangeRequest(key=key, serializable=serializable)
        answer = rpc_pb2_grpc.KVStub(connection).Range(request, timeout=20, wait_for_ready=True)
        return bytes(answer.kvs[0].value) if answer.kvs else b""


def status(node: NodeProcess) -> rpc_pb2.StatusResponse:
    with channel(node.endpoint) as connection:
        stub = rpc_pb2_grpc.MaintenanceStub(connection)
        return stub.Status(rpc_pb2.StatusRequest(), timeout=20, wait_for_ready=True)


def test_m4_a_removed_member_that_never_heard_of_it_is_refused_and_disrupts_nobody(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, "disk", DISK) as under_test:
        leader = under_test.leader()
        away = next(one for one in under_test.members if one is not leader)
        gone = status(away).header.member_id
        away.kill()
        with channel(leader.endpoint) as connection:
            stub = rpc_pb2_grpc.ClusterStub(connection)
            stub.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=gone), timeout=20)
        term = status(leader).raftTerm
        away.start()
        refused = f"member {gone:x} has been permanently removed from the cluster"
        for _ in range(2):
            wait_until("refusal", lambda: refused in away.log_text())
            for number in range(30):  # longer than several elections
                put(leader, b"k", b"%d" % number)
            assert status(leader).raftTerm == term
            assert leader.leads()
            away.kill()
            (away.folder / "log").unlink()
            away.start()
        wait_until("refusal once more", lambda: refused in away.log_text())
        assert away.get("/health")[0] != 200


def test_m4_a_removed_member_serves_nobody_any_more(tmp_path: Path) -> None:
    """The entry that removes a member does not reach it: it learns of it by their refusals. Before it did, its
    watchers waited for ever for what nobody would tell it, and serializable reads were answered."""
    with cluster(tmp_path, 3, "disk", DISK) as under_test:
        leader = under_test.leader()
        gone = next(one for one in under_test.members if one is not leader)
        put(gone, b"k", b"1")
        ended: list[grpc.RpcError] = []

        def watch(ready: threading.Event) -> None:
            with channel(gone.endpoint) as connection:
                create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"k"))
                hold = threading.Event()

                def requests() -> Iterator[rpc_pb2.WatchRequest]:
                    yield create
                    hold.wait(60)

                try:
                    for _ in rpc_pb2_grpc.WatchStub(connection).Watch(requests(), timeout=40):
                        ready.set()
                except grpc.RpcError as error:
                    ended.append(error)
                hold.set()

        ready = threading.Event()
        watcher = threading.Thread(target=watch, args=(ready,))
        watcher.start()
        assert ready.wait(20)
        with channel(leader.endpoint) as connection:
            stub = rpc_pb2_grpc.ClusterStub(connection)
            stub.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=status(gone).header.member_id), timeout=20)
        put(leader, b"k", b"2")
        watcher.join(20)
        assert [error.details() for error in ended] == ["raftkv: this member was removed from the cluster"]
        with channel(gone.endpoint) as connection, pytest.raises(grpc.RpcError, match="was removed from the cluster"):
            rpc_pb2_grpc.KVStub(connection).Range(rpc_pb2.RangeRequest(key=b"k", serializable=True), timeout=20)
        assert get(leader, b"k") == b"2"


def test_m5_m15_a_copy_from_the_middle_of_an_opening_is_found_out(tmp_path: Path) -> None:
    """Disk mode: the copy's next generation is as good as any, but it lacks what the member has acknowledged."""
    with cluster(tmp_path, 3, "disk", DISK) as under_test:
        leader = under_test.leader()
        copied = next(one for one in under_test.members if one is not leader)
        put(leader, b"k", b"1")
        assert get(copied, b"k") == b"1"
        shutil.copytree(copied.data_dir, tmp_path / "copy")
        for number in range(20):
            put(copied, b"k", b"later-%d" % number)
        copied.kill()
        shutil.rmtree(copied.data_dir)
        shutil.copytree(tmp_path / "copy", copied.data_dir)
        copied.start()
        assert copied.wait() in (EXIT_MISMATCH, EXIT_PROVEN_LOST), copied.log_text()
        put(leader, b"k", b"and on")


def test_m5_a_restarted_member_waits_for_a_dead_one_only_as_long_as_it_was_told(tmp_path: Path) -> None:
    """Three members, one dead for good: another one restarts, and the cluster serves again."""
    with cluster(tmp_path, 3, "disk", (*DISK, "--newest-disk-patience", "2s")) as under_test:
        put(under_test.members[0], b"k", b"1")
        dead, restarted, other = under_test.members
        dead.kill()
        for one in (restarted, other):
            one.kill()
        for one in (restarted, other):
            one.start()
        wait_until("healthy members", lambda: restarted.healthy() and other.healthy())
        assert get(restarted, b"k") == b"1"
        assert "members are missing" in restarted.log_text()


def test_m5_without_patience_a_restarted_member_waits_for_a_quorum_of_the_others(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, "disk", (*DISK, "--newest-disk-patience", "0s")) as under_test:
        put(under_test.members[0], b"k", b"1")
        dead, restarted, other = under_test.members
        for one in under_test.members:
            one.kill()
        for one in (restarted, other):
            one.start()
        wait_until("linked members", lambda: restarted.log_text().count("peer link is up") > 2)
        assert all(one.log_text().count("takes part") == 1 for one in (restarted, other)), "only at their first start"
        dead.start()
        under_test.wait_healthy()
        assert get(restarted, b"k") == b"1"


def operated(root: Path, cluster_of: Cluster) -> list[NodeProcess]:
    """Two operated members: a voter, and a standby that there is no vacancy for."""
    token = root / "token"
    token.write_text("t")
    for number, node in enumerate(cluster_of.members, 1):
        node.arguments = ["--operated", "--number", str(number), "--admin-token-file", str(token), *DISK]
        node.start()
    return cluster_of.members


def admin(node: NodeProcess, name: str, request: object) -> admin_pb2.GetConfigurationResponse:
    with channel(node.endpoint) as connection:
        stub = admin_pb2_grpc.AdminStub(connection)
        answer = getattr(stub, name)(
            request, timeout=30, metadata=(("authorization", "Bearer t"),), wait_for_ready=True
        )
        assert not isinstance(answer, grpc.RpcError)
        return answer  # type: ignore[no-any-return]


def identity(node: NodeProcess, number: int) -> admin_pb2.Identity:
    shown = admin(node, "Describe", admin_pb2.DescribeRequest()).identity  # type: ignore[attr-defined]
    return admin_pb2.Identity(
        cluster_id=0xC1, member_id=0xA0 + number, number=number, disk_uuid=shown.disk_uuid, name=node.name,
        peer_url=node.peer_url, client_urls=[f"http://{node.endpoint}"],
    )  # fmt: skip


def test_m13_a_standby_serves_reads_and_watches_and_forwards_the_rest(tmp_path: Path) -> None:
    made = Cluster(tmp_path, 2, None)
    try:
        voter, standby = operated(tmp_path, made)
        wanted = admin_pb2.Settings(replicas=2, max_voters=1)
        first, second = identity(voter, 1), identity(standby, 2)
        admin(voter, "Bootstrap", admin_pb2.BootstrapRequest(identity=first, settings=wanted))
        wait_until("leader", lambda: bool(described(voter).leader_id))
        change(voter, "AddMember", identity=second)
        admin(standby, "Join", admin_pb2.JoinRequest(identity=second, peers=[first]))
        wanted.opened = True
        change(voter, "SetSettings", settings=wanted)
        wait_until("ready standby", lambda: standby.get("/readyz")[0] == 200)
        assert described(standby).role == admin_pb2.ROLE_STANDBY
        put(standby, b"k", b"forwarded")
        assert get(standby, b"k") == b"forwarded"
        assert get(standby, b"k", serializable=True) == b"forwarded"
        assert not status(standby).isLearner, "a client that asks is served like by any member"
        with channel(standby.endpoint) as connection:
            read = threading.Event()
            events = rpc_pb2_grpc.WatchStub(connection).Watch(watch(b"k", read), timeout=30)
            assert next(events).created
            assert next(events).events[0].kv.value == b"forwarded"
            read.set()
        # it counts for nothing in the quorum: without it the voter goes on, and alone it does not
        standby.kill()
        put(voter, b"k", b"without")
        assert get(voter, b"k") == b"without"
    finally:
        made.kill_all()


def watch(key: bytes, until: threading.Event) -> Iterator[rpc_pb2.WatchRequest]:
    """A watch from the beginning; the stream stays open."""
    yield rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key, start_revision=1))
    until.wait(60)


def described(node: NodeProcess) -> admin_pb2.DescribeResponse:
    return admin(node, "Describe", admin_pb2.DescribeRequest())  # type: ignore[return-value]


def change(leader: NodeProcess, name: str, **fields: object) -> None:
    """A change decided on the configuration of this moment; retried until the leader takes it."""

    def attempt() -> bool:
        try:
            index = admin(leader, "GetConfiguration", admin_pb2.GetConfigurationRequest()).configuration_index
            admin(leader, name, getattr(admin_pb2, f"{name}Request")(decided_at_index=index, **fields))
        except grpc.RpcError as error:
            assert error.code() != grpc.StatusCode.INVALID_ARGUMENT, error
            return False
        return True

    wait_until(name, attempt)
