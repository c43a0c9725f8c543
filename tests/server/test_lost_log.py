"""M15 with real processes: a member that has lost what it acknowledged says so, and never acknowledges again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from processes import NodeProcess, channel, cluster, wait_until
from raftkv_node.adr import EXIT_PROVEN_LOST
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

ONE_TERM = ("--minimum-durability", "process", "--election-timeout", "15000")
"""What a leader knows of the others' logs holds in its own term (M15): so the leader must outlast the test."""


def put(node: NodeProcess, value: bytes) -> None:
    with channel(node.endpoint) as connection:
        request = rpc_pb2.PutRequest(key=b"k", value=value)
        rpc_pb2_grpc.KVStub(connection).Put(request, timeout=40, wait_for_ready=True)


def read(node: NodeProcess) -> None:
    with channel(node.endpoint) as connection:
        rpc_pb2_grpc.KVStub(connection).Range(rpc_pb2.RangeRequest(key=b"k"), timeout=40, wait_for_ready=True)


def term(node: NodeProcess) -> int:
    with channel(node.endpoint) as connection:
        stub = rpc_pb2_grpc.MaintenanceStub(connection)
        return int(stub.Status(rpc_pb2.StatusRequest(), timeout=20, wait_for_ready=True).raftTerm)


HEARD_ALL_THE_SAME = """import sys
from raftkv_node.cli import main
from raftkv_node.server.hello import Judge
Judge._broken_promise = lambda self, hello: None
sys.exit(main())"""


@pytest.fixture
def hello_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No member looks into a hello for a broken promise: what is left is the match in the leader's messages."""
    command = NodeProcess.command

    def without(self: NodeProcess) -> list[str]:
        return [sys.executable, "-c", HEARD_ALL_THE_SAME, *command(self)[1:]]

    monkeypatch.setattr(NodeProcess, "command", without)


@pytest.mark.usefixtures("hello_tells_nothing")
def test_m15_a_member_that_lost_what_it_acknowledged_exits_as_proven_lost(tmp_path: Path) -> None:
    """A disk from the middle of an opening: its next generation is new to everyone, and only the match tells."""
    with cluster(tmp_path, 3, "disk", ONE_TERM) as under_test:
        leader = under_test.leader()
        began = term(leader)
        lost = next(one for one in under_test.members if one is not leader)
        put(leader, b"kept")
        read(lost)
        shutil.copytree(lost.data_dir, tmp_path / "copy")
        for number in range(20):
            put(leader, b"later %d" % number)
        read(lost)
        lost.kill()
        shutil.rmtree(lost.data_dir)
        shutil.copytree(tmp_path / "copy", lost.data_dir)
        for attempt in range(2):
            lost.start()
            assert lost.wait() == EXIT_PROVEN_LOST, lost.log_text()[-3000:]
            assert lost.log_text().count("the log of this member is proven lost") == attempt + 1
        assert term(leader) == began, "no new leader: the match is this term's"
        put(leader, b"and on")
        wait_until("healthy leader", leader.healthy)
