"""Nine real members of which five vote: automatic promotion, zones, roles by settings, the leader's place (M7 to M9,
M12 to M14)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from processes import channel, wait_until
from raftkv_node.pb import admin_pb2, rpc_pb2, rpc_pb2_grpc
from test_operated import Cluster, Operated

PATIENCE_SECONDS = 240.0
"""Bound of every wait: nine processes share few cores."""
ZONES = {0xA0 + number: f"zone-{'abc'[(number - 1) % 3]}" for number in range(1, 10)}


def wished(max_voters: int = 5, **more: Any) -> admin_pb2.Settings:
    return admin_pb2.Settings(
        replicas=9, max_voters=max_voters, promote_after_milliseconds=5000, opened=True, zones=ZONES, **more
    )


def answers(node: Operated) -> bool:
    """Whether the node has come up."""
    try:
        node.describe()
    except grpc.RpcError:
        return False
    return True


class Nine:
    """The members, and what is known of them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = {0xA0 + node.number: node for node in cluster.nodes}
        self.dead: set[int] = set()
        self.written = 0

    def form(self) -> None:
        """The first member is bootstrapped, the others join; then the operator wishes nine, of which five vote."""
        first, *rest = self.cluster.nodes
        for node in self.cluster.nodes:
            node.start()
            wait_until(f"answer of {node.name}", lambda node=node: answers(node), PATIENCE_SECONDS)  # type: ignore[misc]
        alone = admin_pb2.Settings(replicas=1, max_voters=5, promote_after_milliseconds=5000)
        first.call("Bootstrap", admin_pb2.BootstrapRequest(identity=first.identity(), settings=alone))
        for node in rest:
            identity = node.identity()
            self.cluster.change("AddMember", identity=identity)
            node.call("Join", admin_pb2.JoinRequest(identity=identity, peers=[first.identity()]))
        self.cluster.change("SetSettings", settings=wished())

    def roles(self, role: int) -> set[int]:
        configuration = self.cluster.configuration()
        return {one.identity.member_id for one in configuration.members if one.role == role} if configuration else set()

    def settle(self, voters: int) -> set[int]:
        """Waits until so many members vote, all of them alive, and nobody else does but as a standby."""
        found: set[int] = set()

        def settled() -> bool:
            found.clear()
            found.update(self.roles(admin_pb2.ROLE_VOTER))
            return len(found) == voters and not found & self.dead and not self.roles(admin_pb2.ROLE_LEARNER)

        wait_until(f"{voters} living voters", settled, PATIENCE_SECONDS)
        return found

    def kill(self, member: int) -> None:
        self.nodes[member].kill()
        self.dead.add(member)

    def put(self, node: Operated) -> None:
        """A write that is acknowledged, whatever moves meanwhile."""

        def attempt() -> bool:
            try:
                with channel(node.endpoint) as connection:
                    request = rpc_pb2.PutRequest(key=b"k%d" % self.written, value=b"v")
                    rpc_pb2_grpc.KVStub(connection).Put(request, timeout=20)
            except grpc.RpcError:
                return False
            return True

        wait_until("write", attempt, PATIENCE_SECONDS)
        self.written += 1

    def leader(self) -> int:
        configuration = self.cluster.configuration()
        return int(configuration.leader_id) if configuration else 0

    def reads_all(self, node: Operated) -> bool:
        """Whether a serializable read at this member sees all that was written."""
        request = rpc_pb2.RangeRequest(key=b"k", range_end=b"l", serializable=True, count_only=True)
        with channel(node.endpoint) as connection:
            return bool(rpc_pb2_grpc.KVStub(connection).Range(request, timeout=20).count == self.written)


pytestmark = pytest.mark.slow


@pytest.fixture
def nine(tmp_path: Path) -> Iterator[Nine]:
    made = Cluster(tmp_path, 9)
    yield Nine(made)
    for node in made.nodes:
        if node.running:
            node.kill()


def test_m7_m8_m9_m14_nine_members_lose_voters_and_standbys_take_over(nine: Nine) -> None:
    nine.form()
    voters = nine.settle(5)
    assert sorted(Counter(ZONES[one] for one in voters).values()) == [1, 2, 2]
    nine.put(nine.cluster.nodes[0])

    for _ in range(2):
        victim = min(voters - {nine.leader()})
        nine.kill(victim)
        nine.put(nine.nodes[nine.leader() or min(voters - nine.dead)])
        voters = nine.settle(5)
    standbys = nine.roles(admin_pb2.ROLE_STANDBY)
    assert nine.dead <= standbys, "who lost its vote for its silence is a standby"

    standby = nine.nodes[min(standbys - nine.dead)]
    nine.put(standby)
    wait_until("standby that follows", lambda: nine.reads_all(standby), PATIENCE_SECONDS)

    nine.cluster.change("SetSettings", settings=wished(max_voters=3))
    voters = nine.settle(3)
    assert nine.leader() in voters
    nine.cluster.change("SetSettings", settings=wished(max_voters=5))
    voters = nine.settle(5)

    elsewhere = min(ZONES[one] for one in voters if ZONES[one] != ZONES[nine.leader()])
    nine.cluster.change("SetSettings", settings=wished(leader_preference=[elsewhere]))
    wait_until(f"leader in {elsewhere}", lambda: ZONES.get(nine.leader()) == elsewhere, PATIENCE_SECONDS)
    nine.put(nine.nodes[nine.leader()])
    assert "raftkv_role_changes_total" in nine.nodes[nine.leader()].get("/metrics")[1]
