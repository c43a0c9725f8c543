"""A cluster as the operator makes it: Describe, Bootstrap, Join, AddMember, roles, Open, RemoveMember, Retire."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from processes import START_SECONDS, NodeProcess, channel, free_ports, wait_until
from raftkv_node.pb import admin_pb2, admin_pb2_grpc, rpc_pb2, rpc_pb2_grpc
from raftkv_node.server import identity as identities

CLUSTER_ID = 0xC0FFEE
TOKEN = "secret-of-the-operator"


class Operated(NodeProcess):
    """An operated node and its administration API."""

    number = 0

    def call(self, name: str, request: Any, token: str = TOKEN) -> Any:
        """One call of the Admin service."""
        with channel(self.endpoint) as connection:
            stub = admin_pb2_grpc.AdminStub(connection)
            metadata = (("authorization", f"Bearer {token}"),)
            return getattr(stub, name)(request, timeout=START_SECONDS, metadata=metadata, wait_for_ready=True)

    def describe(self) -> Any:
        return self.call("Describe", admin_pb2.DescribeRequest())

    def identity(self) -> admin_pb2.Identity:
        """What the operator would give it: ids issued, disk uuid as shown."""
        return admin_pb2.Identity(
            cluster_id=CLUSTER_ID,
            member_id=0xA0 + self.number,
            number=self.number,
            disk_uuid=self.describe().identity.disk_uuid,
            name=self.name,
            peer_url=self.peer_url,
            client_urls=[f"http://{self.endpoint}"],
        )


class Cluster:
    """Some operated nodes, and changes through whichever leads."""

    def __init__(self, root: Path, size: int) -> None:
        token = root / "token"
        token.write_text(TOKEN + "\n")
        ports = free_ports(2 * size)
        self.nodes: list[Operated] = []
        for i in range(size):
            ring = root / f"ring{i}"
            ring.mkdir()
            node = Operated(f"demo-{i + 1}", root / f"demo-{i + 1}", ports[2 * i], ports[2 * i + 1])
            node.number = i + 1
            node.arguments = [
                *("--operated", "--number", str(i + 1), "--admin-token-file", str(token)),
                *("--adr-path", str(ring), "--adr-size", "4Mi", "--minimum-durability", "process"),
                *("--namespace", "default", "--cluster-name", "demo", "--host-name", f"host-{i}"),
            ]
            self.nodes.append(node)

    def configuration(self) -> Any:
        """The committed configuration, from the leader."""
        for node in self.nodes:
            if not node.running:
                continue
            try:
                return node.call("GetConfiguration", admin_pb2.GetConfigurationRequest())
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE), error
        return None

    def change(self, name: str, **fields: Any) -> int:
        """A change on the leader, decided on the configuration of this moment; retried while others are in flight."""
        result: list[int] = []

        def attempt() -> bool:
            configuration = self.configuration()
            if configuration is None or configuration.changing:
                return False
            leader = next(node for node in self.nodes if 0xA0 + node.number == configuration.leader_id)
            request = getattr(admin_pb2, f"{name}Request")(decided_at_index=configuration.configuration_index, **fields)
            try:
                result.append(leader.call(name, request).configuration_index)
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE), error
            return bool(result)

        wait_until(name, attempt)
        return result[0]

    def settle(self, voters: set[int]) -> None:
        """Waits until exactly these numbers vote."""

        def settled() -> bool:
            configuration = self.configuration()
            if configuration is None or configuration.changing:
                return False
            voting = {one.identity.number for one in configuration.members if one.role == admin_pb2.ROLE_VOTER}
            return voting == voters

        wait_until(f"voters {sorted(voters)}", settled)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, 3)
    for node in made.nodes:
        node.start()
    yield made
    for node in made.nodes:
        if node.running:
            node.kill()


def settings(replicas: int, *, opened: bool = False, leaving: tuple[int, ...] = ()) -> admin_pb2.Settings:
    return admin_pb2.Settings(
        replicas=replicas, max_voters=5, promote_after_milliseconds=30_000, opened=opened, leaving=leaving
    )


def form(cluster: Cluster) -> None:
    """Three voters, opened."""
    first, *rest = cluster.nodes
    first.call("Bootstrap", admin_pb2.BootstrapRequest(identity=first.identity(), settings=settings(3)))
    for node in rest:
        identity = node.identity()
        cluster.change("AddMember", identity=identity)
        node.call("Join", admin_pb2.JoinRequest(identity=identity, peers=[first.identity()]))
    cluster.settle({1, 2, 3})
    cluster.change("SetSettings", settings=settings(3, opened=True))


def put(node: Operated, key: bytes, value: bytes) -> None:
    with channel(node.endpoint) as connection:
        rpc_pb2_grpc.KVStub(connection).Put(rpc_pb2.PutRequest(key=key, value=value), timeout=10)


def test_a_founder_does_not_wait_for_an_election_timeout(tmp_path: Path) -> None:
    (node,) = (alone := Cluster(tmp_path, 1)).nodes
    node.arguments += ["--election-timeout", "50000"]
    node.start()
    try:
        node.call("Bootstrap", admin_pb2.BootstrapRequest(identity=node.identity(), settings=settings(1)))
        wait_until("a leader", lambda: alone.configuration() is not None, 25)
    finally:
        node.kill()


def test_an_empty_node_waits_and_serves_nobody(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    described = node.describe()
    assert described.phase == admin_pb2.PHASE_WAITING
    assert (described.identity.number, described.host, described.identity.member_id) == (1, "host-0", 0)
    assert len(described.identity.disk_uuid) == 16
    with pytest.raises(grpc.RpcError) as refused:
        put(node, b"k", b"v")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert node.get("/livez")[0] == 200
    assert node.get("/readyz")[0] == 503
    for token in ("", "wrong"):
        with pytest.raises(grpc.RpcError) as unknown:
            node.call("Describe", admin_pb2.DescribeRequest(), token)
        assert unknown.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_an_identity_is_issued_once(cluster: Cluster) -> None:
    """M1: idempotent for the same content, refused for any other, kept over a restart."""
    node, other = cluster.nodes[:2]
    identity = node.identity()
    for wrong in (other.identity(), admin_pb2.Identity(cluster_id=1, number=1, disk_uuid=identity.disk_uuid)):
        with pytest.raises(grpc.RpcError) as refused:
            node.call("Bootstrap", admin_pb2.BootstrapRequest(identity=wrong, settings=settings(3)))
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    request = admin_pb2.BootstrapRequest(identity=identity, settings=settings(3))
    node.call("Bootstrap", request)
    node.call("Bootstrap", request)
    assert node.stop() == 0
    node.start()
    node.call("Bootstrap", request)
    assert node.describe().identity.member_id == 0xA1
    with pytest.raises(grpc.RpcError) as refused:
        node.call("Join", admin_pb2.JoinRequest(identity=identity))
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as closed:
        put(node, b"k", b"v")
    assert closed.value.code() == grpc.StatusCode.UNAVAILABLE
    assert node.describe().phase == admin_pb2.PHASE_LATCHED
    unreachable = other.identity()
    unreachable.peer_url = "nonsense"
    with pytest.raises(grpc.RpcError) as refused:
        node.call("AddMember", admin_pb2.AddMemberRequest(identity=unreachable))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_three_members_form_open_shrink_and_one_is_retired(cluster: Cluster) -> None:
    """M2, M7, M8, M9, M10: the whole life of a member."""
    form(cluster)
    for node in cluster.nodes:
        wait_until(f"ready {node.name}", lambda node=node: node.get("/readyz")[0] == 200)  # type: ignore[misc]
    put(cluster.nodes[1], b"k", b"v")
    with channel(cluster.nodes[0].endpoint) as connection:
        members = rpc_pb2_grpc.ClusterStub(connection)
        for by_hand in (
            lambda: members.MemberAdd(rpc_pb2.MemberAddRequest(peerURLs=["http://x:1"], isLearner=True), timeout=10),
            lambda: members.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=0xA0), timeout=10),
        ):
            with pytest.raises(grpc.RpcError) as owned:
                by_hand()
            assert owned.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert "spec.replicas" in owned.value.details()
    configuration = cluster.configuration()
    leader = next(node for node in cluster.nodes if 0xA0 + node.number == configuration.leader_id)
    with pytest.raises(grpc.RpcError) as stale:
        leader.call(
            "SetSettings",
            admin_pb2.SetSettingsRequest(
                decided_at_index=configuration.configuration_index - 1, settings=settings(1, opened=True)
            ),
        )
    assert stale.value.code() == grpc.StatusCode.ABORTED
    leaving = [node for node in cluster.nodes if node is not leader]
    ids = tuple(0xA0 + node.number for node in leaving)
    cluster.change("SetSettings", settings=settings(1, opened=True, leaving=ids))
    cluster.settle({leader.number})
    for node in leaving:
        index = cluster.change("RemoveMember", member_id=0xA0 + node.number)
        node.call(
            "Retire",
            admin_pb2.RetireRequest(
                cluster_id=CLUSTER_ID,
                member_id=0xA0 + node.number,
                disk_uuid=node.describe().identity.disk_uuid,
                configuration_index=index,
            ),
        )
        assert node.wait() == 0
        assert not any(node.data_dir.iterdir())
        ring = Path(node.arguments[node.arguments.index("--adr-path") + 1])
        assert not [name for _, _, names in os.walk(ring) for name in names]
    assert sorted(cluster.configuration().removed) == sorted(ids)
    put(leader, b"k", b"w")


def test_a_wipe_that_was_interrupted_is_finished_at_the_next_start(cluster: Cluster) -> None:
    """M10: the order to wipe is kept durably before anything is removed."""
    node = cluster.nodes[0]
    node.call("Bootstrap", admin_pb2.BootstrapRequest(identity=node.identity(), settings=settings(1)))
    node.kill()
    identities.save(node.data_dir, replace(identities.load_or_format(node.data_dir, 0, ""), retired=True))
    node.start()
    assert node.wait() == 0
    assert not any(node.data_dir.iterdir())
    ring = Path(node.arguments[node.arguments.index("--adr-path") + 1])
    assert not [name for _, _, names in os.walk(ring) for name in names]


def test_a_member_that_is_not_removed_is_not_wiped(cluster: Cluster) -> None:
    """M10."""
    form(cluster)
    node = cluster.nodes[2]
    described = node.describe()
    request = admin_pb2.RetireRequest(
        cluster_id=CLUSTER_ID, member_id=0xA3, disk_uuid=described.identity.disk_uuid, configuration_index=1
    )
    with pytest.raises(grpc.RpcError) as refused:
        node.call("Retire", request)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    request.cluster_deleted = True
    request.disk_uuid = bytes(16)
    with pytest.raises(grpc.RpcError):
        node.call("Retire", request)
    assert node.running


def ticket(cluster: Cluster, member_id: int, index: int | None = None) -> Any:
    """Asks whichever leads for leave to restart a member."""
    configuration = cluster.configuration()
    leader = next(node for node in cluster.nodes if 0xA0 + node.number == configuration.leader_id)
    decided = configuration.configuration_index if index is None else index
    return leader.call("RestartTicket", admin_pb2.RestartTicketRequest(member_id=member_id, decided_at_index=decided))


def granted(cluster: Cluster, member_id: int) -> Any:
    """A ticket, as soon as one is given."""
    found: list[Any] = []

    def attempt() -> bool:
        if cluster.configuration() is None:
            return False
        answer = ticket(cluster, member_id)
        found[:] = [answer] if answer.granted else []
        return bool(found)

    wait_until(f"ticket for {member_id:x}", attempt)
    return found[0]


def test_m11_members_restart_one_at_a_time_under_a_ticket_that_later_leaders_know(cluster: Cluster) -> None:
    form(cluster)
    configuration = cluster.configuration()
    leader = next(node for node in cluster.nodes if 0xA0 + node.number == configuration.leader_id)
    first, second = (node for node in cluster.nodes if node is not leader)
    with pytest.raises(grpc.RpcError) as stale:
        granted_index = configuration.configuration_index - 1
        wait_until("members are there", lambda: not ticket(cluster, 0xA0 + first.number, granted_index).reason)
    assert stale.value.code() == grpc.StatusCode.ABORTED
    with pytest.raises(grpc.RpcError) as elsewhere:
        first.call("RestartTicket", admin_pb2.RestartTicketRequest(member_id=0xA0 + second.number))
    assert elsewhere.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "leads" in ticket(cluster, 0xA0 + leader.number).reason
    leave = granted(cluster, 0xA0 + first.number)
    assert leave.valid_seconds < leave.hold_seconds
    assert not leave.sole_voter
    assert cluster.configuration().configuration_index == leave.configuration_index
    assert cluster.configuration().restart.member_id == 0xA0 + first.number
    assert "has a ticket" in ticket(cluster, 0xA0 + second.number).reason
    # the operator's own settings change nothing about it, and a later leader knows it
    cluster.change("SetSettings", settings=settings(5, opened=True))
    with channel(leader.endpoint) as connection:
        move = rpc_pb2.MoveLeaderRequest(targetID=0xA0 + second.number)
        rpc_pb2_grpc.MaintenanceStub(connection).MoveLeader(move, timeout=10)
    wait_until("another leader", lambda: (cluster.configuration() or configuration).leader_id == 0xA0 + second.number)
    wait_until(
        "a ticket that holds", lambda: "has a ticket" in ticket(cluster, 0xA0 + leader.number).reason, seconds=30
    )
    assert first.stop() == 0
    assert "has a ticket" in ticket(cluster, 0xA0 + leader.number).reason
    first.start()
    again = granted(cluster, 0xA0 + leader.number)
    assert again.number == leave.number + 1
