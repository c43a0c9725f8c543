"""A fourth member is added to three that hold many keys: how long until it has caught up, and what others feel of it.

    python tests/perf/bringup.py [--keys 100000] [--value-bytes 256]

The log is kept short (`--log-retention-entries`), so that only a snapshot helps the newcomer. One client puts all the
time, one after the other; its latencies while the snapshot is under way are held against those before. The result is
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from machine import memory_bytes
from processes import NodeProcess, channel, cluster, free_ports, wait_until
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

SHORT_LOG = ("--minimum-durability", "process", "--log-retention-entries", "500", "--log-retention-bytes", "1Mi")
PUTS_PER_TXN = 100
STEADY_SECONDS = 5.0
SAMPLE_SECONDS = 0.02


def fill(node: NodeProcess, keys: int, value_bytes: int) -> None:
    """All keys, many to a transaction."""
    value = bytes(value_bytes)
    with channel(node.endpoint) as connection:
        stub = rpc_pb2_grpc.KVStub(connection)
        for first in range(0, keys, PUTS_PER_TXN):
            puts = [
                rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"key/%08d" % number, value=value))
                for number in range(first, min(first + PUTS_PER_TXN, keys))
            ]
            stub.Txn(rpc_pb2.TxnRequest(success=puts), timeout=30)


def metric(node: NodeProcess, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = node.get("/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def resident_bytes(node: NodeProcess) -> int:
    """Anonymous memory of a process: without mapped files and rings."""
    assert node.process is not None
    return memory_bytes(node.process.pid, "RssAnon")


class Putter:
    """One client that puts, one request after the other, and notes when each began and how long it took."""

    def __init__(self, endpoint: str) -> None:
        self.taken: list[tuple[float, float]] = []
        self._endpoint = endpoint
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with channel(self._endpoint) as connection:
            stub = rpc_pb2_grpc.KVStub(connection)
            while not self._ended.is_set():
                began = time.monotonic()
                stub.Put(rpc_pb2.PutRequest(key=b"other", value=b"x" * 64), timeout=30)
                self.taken.append((began, time.monotonic() - began))

    def __enter__(self) -> Putter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def between(self, start: float, end: float) -> dict[str, float]:
        """Of the puts that began within a time: how many, and milliseconds."""
        found = sorted(seconds for began, seconds in self.taken if start <= began < end)
        if not found:
            return {"puts": 0}
        shares = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
        at = {name: found[min(len(found) - 1, int(len(found) * share))] * 1000 for name, share in shares.items()}
        return {"puts": len(found), **{name: round(value, 2) for name, value in at.items()}}


def join(leader: NodeProcess, folder: Path) -> NodeProcess:
    """A fourth member, a learner, added and started."""
    joiner = NodeProcess("n4", folder, *free_ports(2))
    with channel(leader.endpoint) as connection:
        stub = rpc_pb2_grpc.ClusterStub(connection)
        request = rpc_pb2.MemberAddRequest(peerURLs=[joiner.peer_url], isLearner=True)
        answer = stub.MemberAdd(request, timeout=30)
    known = [f"{one.name}={one.peerURLs[0]}" for one in answer.members if one.name]
    joiner.arguments = [
        *("--initial-cluster-state", "existing"),
        *("--initial-cluster", ",".join([*known, f"n4={joiner.peer_url}"])),
        *SHORT_LOG,
    ]
    joiner.start()
    return joiner


def measure(keys: int, value_bytes: int, root: Path) -> dict[str, object]:
    """The whole run."""
    with cluster(root, 3, "adr", SHORT_LOG) as started:
        leader = started.leader()
        fill(leader, keys, value_bytes)
        with Putter(leader.endpoint) as putter:
            began_steady = time.monotonic()
            time.sleep(STEADY_SECONDS)
            memory_before = peak = resident_bytes(leader)
            began = time.monotonic()
            joiner = join(leader, root / "n4")
            started.members.append(joiner)
            applied = 0.0
            while not applied or applied < metric(leader, "etcd_server_proposals_applied_total") - PUTS_PER_TXN:
                peak = max(peak, resident_bytes(leader))
                applied = metric(joiner, "etcd_server_proposals_applied_total")
                time.sleep(SAMPLE_SECONDS)
            caught_up = time.monotonic()
            wait_until("snapshot", lambda: metric(joiner, "etcd_snap_db_save_total_duration_seconds_count") >= 1)
        before, during = putter.between(began_steady, began), putter.between(began, caught_up)
        return {
            "keys": keys,
            "value_bytes": value_bytes,
            "snapshot_bytes": int(metric(joiner, "raftkv_snapshot_received_bytes_total")),
            "caught_up_seconds": round(caught_up - began, 2),
            "leader_memory_before_mib": memory_before >> 20,
            "leader_memory_peak_mib": peak >> 20,
            "before": before,
            "during": during,
            "p99_ratio": round(during["p99_ms"] / before["p99_ms"], 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments.keys, arguments.value_bytes, Path(folder))))


if __name__ == "__main__":
    main()
