"""A member that stops taking what it is sent (SIGSTOP), under load: the others go on, its backlog has a bound."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from processes import NodeProcess, channel, cluster, wait_until
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc
from raftkv_node.raft import Config

pytestmark = pytest.mark.slow

VALUE = b"x" * (1 << 20)
WRITES = 48
"""More bytes than may be on their way to one member."""
LIMIT_BYTES = Config(1, lambda low, high: low).max_inflight_bytes


def queued_bytes(node: NodeProcess) -> float:
    """What waits for the slowest link of a member."""
    lines = node.get("/metrics")[1].splitlines()
    return max((float(line.split()[-1]) for line in lines if line.startswith("raftkv_peer_queued_bytes{")), default=0)


def test_a_stalled_member_holds_up_nobody_and_its_backlog_is_bounded(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, "disk") as made:
        leader = made.leader()
        stalled = next(one for one in made.members if one is not leader)
        other = next(one for one in made.members if one not in (leader, stalled))
        stalled.signal(signal.SIGSTOP)
        most = 0.0
        with channel(leader.endpoint) as connection:
            kv = rpc_pb2_grpc.KVStub(connection)
            for number in range(WRITES):
                kv.Put(rpc_pb2.PutRequest(key=b"k%d" % (number % 4), value=VALUE), timeout=60)
                most = max(most, queued_bytes(leader))
            last = kv.Put(rpc_pb2.PutRequest(key=b"last", value=b"v"), timeout=60).header.revision
        assert 0 < most <= 1.25 * LIMIT_BYTES, "appends on their way, and no more than heartbeats beside them"
        stalled.signal(signal.SIGCONT)

        def has_all(node: NodeProcess) -> bool:
            with channel(node.endpoint) as connection:
                request = rpc_pb2.RangeRequest(key=b"last", serializable=True)
                found = rpc_pb2_grpc.KVStub(connection).Range(request, timeout=60).kvs
            return bool(found) and found[0].mod_revision == last

        for node in (other, stalled):
            wait_until(f"all that was written at {node.name}", lambda node=node: has_all(node), 120)  # type: ignore[misc]
