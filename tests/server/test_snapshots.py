"""Snapshots between real processes: members that were away for long, and new ones in an old cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from processes import START_SECONDS, Cluster, NodeProcess, channel, cluster, free_ports, wait_until
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

SMALL_LOG = ("--log-retention-entries", "10", "--log-retention-bytes", "256Ki")
VALUE_BYTES = 1000


class Writer:
    """A client that writes numbered keys without pause, and remembers the longest wait of one write."""

    def __init__(self, endpoint: str) -> None:
        self.written = 0
        self.longest_seconds = 0.0
        self.failures: list[str] = []
        self._endpoint = endpoint
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with channel(self._endpoint) as connection:
            stub = rpc_pb2_grpc.KVStub(connection)
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    stub.Put(rpc_pb2.PutRequest(key=b"w/%d" % self.written, value=bytes(VALUE_BYTES)), timeout=30)
                except grpc.RpcError as error:
                    self.failures.append(str(error))  # a busy machine may cost the leader its lead
                    if len(self.failures) > 100:
                        return
                    continue
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
                self.written += 1

    @contextmanager
    def running(self) -> Iterator[Writer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()


def fill(node: NodeProcess, first: int, count: int) -> None:
    """Writes keys, many at a time; again where a busy machine has cost the leader its lead."""
    with channel(node.endpoint) as connection:
        stub = rpc_pb2_grpc.KVStub(connection)
        for start in range(first, first + count, 100):
            left = set(range(start, min(start + 100, first + count)))
            deadline = time.monotonic() + START_SECONDS
            while left:
                assert time.monotonic() < deadline, f"no write within {START_SECONDS:.0f} s"
                calls = {
                    number: stub.Put.future(
                        rpc_pb2.PutRequest(key=b"f/%06d" % number, value=bytes(VALUE_BYTES)), timeout=60
                    )
                    for number in left
                }
                left -= {number for number, call in calls.items() if call.exception() is None}


def fill_in_rounds(node: NodeProcess, first: int) -> None:
    """1.8 MB, with pauses: what is written is drained, committed and released between them, however fast it went in."""
    for number in range(15):
        fill(node, first + 120 * number, 120)
        time.sleep(0.4)


def metric(node: NodeProcess, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = node.get("/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def contents(node: NodeProcess, serializable: bool = False) -> list[tuple[bytes, bytes, int, int]]:
    """All keys of a member, page by page at one revision: there may be more than a message of gRPC holds."""
    found: list[tuple[bytes, bytes, int, int]] = []
    revision, start = 0, b"\0"
    with channel(node.endpoint) as connection:
        while True:
            request = rpc_pb2.RangeRequest(
                key=start, range_end=b"\0", serializable=serializable, limit=1000, revision=revision
            )
            page = rpc_pb2_grpc.KVStub(connection).Range(request, timeout=60)
            found += [(kv.key, kv.value, kv.mod_revision, kv.version) for kv in page.kvs]
            if not page.more:
                return found
            revision, start = page.header.revision, page.kvs[-1].key + b"\0"


def installed(node: NodeProcess) -> float:
    return metric(node, "etcd_snap_db_save_total_duration_seconds_count")


def away(started: Cluster) -> tuple[NodeProcess, NodeProcess]:
    """A leader whose log does not reach back to where the other member, which is down, was."""
    leader = started.leader()
    follower = next(one for one in started.members if one is not leader)
    fill(leader, 0, 200)
    follower.kill()
    fill_in_rounds(leader, 200)
    # (1.8 MB were written, a quarter of a megabyte is kept)
    wait_until("released log", lambda: metric(leader, "adr_log_segment_bytes") < 1 << 20)
    return leader, follower


@pytest.mark.parametrize("mode", ["adr", "disk"])
def test_a_member_that_was_away_for_long_catches_up_by_a_snapshot_under_load(tmp_path: Path, mode: str) -> None:
    with cluster(tmp_path, 3, mode, SMALL_LOG) as started:
        leader, follower = away(started)
        with Writer(leader.endpoint).running() as writer:
            follower.start()
            wait_until("healthy follower", follower.healthy)
            wait_until("writes", lambda: writer.written > 50)
        assert installed(follower) >= 1, follower.log_text()[-3000:]
        members = started.members
        wait_until("success", lambda: sum(metric(one, "etcd_network_snapshot_send_success") for one in members) >= 1)
        assert metric(follower, "etcd_server_snapshot_apply_in_progress_total") == 0
        assert contents(follower) == contents(leader)
        # what was installed is what is found again
        follower.kill()
        follower.start()
        wait_until("healthy follower", follower.healthy)
        assert contents(follower) == contents(leader)
        assert follower.stop() == 0
        assert {path.name for path in follower.data_dir.iterdir()} & {
            "snapshot",
            "snapshot.partial",
            "backend.old",
        } == set()


def test_a_follower_killed_while_it_receives_and_installs_comes_back(tmp_path: Path) -> None:
    with cluster(tmp_path, 3, "adr", SMALL_LOG) as started:
        leader, follower = away(started)
        for pause in (0.3, 0.6, 0.9, 1.2):
            follower.start()
            time.sleep(pause)
            follower.kill()
        follower.start()
        wait_until("healthy follower", follower.healthy)
        assert contents(follower) == contents(leader)


def test_a_new_learner_joins_an_old_cluster_by_a_snapshot(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, "disk", SMALL_LOG) as started:
        (first,) = started.members
        fill_in_rounds(first, 0)
        wait_until("released log", lambda: metric(first, "adr_log_segment_bytes") < 1 << 20)
        ports = free_ports(2)
        joiner = NodeProcess("n2", tmp_path / "n2", *ports)
        with channel(first.endpoint) as connection:
            stub = rpc_pb2_grpc.ClusterStub(connection)
            stub.MemberAdd(rpc_pb2.MemberAddRequest(peerURLs=[joiner.peer_url], isLearner=True), timeout=30)
        joiner.arguments = [
            *("--initial-cluster-state", "existing"),
            *("--initial-cluster", f"n1={first.peer_url},n2={joiner.peer_url}"),
            *SMALL_LOG,
        ]
        joiner.start()
        started.members.append(joiner)
        wait_until("snapshot", lambda: installed(joiner) >= 1)

        def caught_up() -> bool:
            return contents(joiner, serializable=True) == contents(first)

        wait_until("learner caught up", caught_up)
