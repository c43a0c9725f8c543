"""D17 with real processes, whose value cache holds nothing: every value that apply needs is on disk."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
import pytest
from processes import NodeProcess, channel, cluster, wait_until
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

KEYS = 100
WITHOUT_CACHE = f"""#!{sys.executable}
import sys
from raftkv_node.store.store import Store
Store.open.__func__.__kwdefaults__["value_cache_bytes"] = 0
from raftkv_node.cli import main
sys.exit(main())
"""


def wait_committed(nodes: list[NodeProcess], applied_index: float) -> None:
    """Until everything up to an entry is applied, and out of the backend's queue."""
    for node in nodes:
        wait_until(
            f"commit of {node.name}",
            lambda node=node: (  # type: ignore[misc]
                node.metric("etcd_server_proposals_applied_total") >= applied_index
                and node.metric("raftkv_backend_buffered_bytes") == 0
            ),
        )


@pytest.mark.interpreted("changes a default")
@pytest.mark.parametrize(("size", "mode"), [(1, "disk"), (3, "adr")])
def test_d17_members_without_a_cache_agree_and_fetch_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, mode: str
) -> None:
    script = tmp_path / "raftkv-without-cache"
    script.write_text(WITHOUT_CACHE)
    script.chmod(0o700)
    monkeypatch.setattr(processes, "RAFTKV", str(script))
    with cluster(tmp_path, size, mode) as made:
        node = made.members[-1]
        with channel(node.endpoint) as connection, ThreadPoolExecutor(8) as clients:
            kv = rpc_pb2_grpc.KVStub(connection)

            def put(n: int, value: bytes) -> bytes:
                request = rpc_pb2.PutRequest(key=b"k%03d" % n, value=value, prev_kv=True)
                return bytes(kv.Put(request, timeout=30).prev_kv.value)

            def swap(n: int, old: bytes, new: bytes) -> bool:
                compare = rpc_pb2.Compare(key=b"k%03d" % n, target=rpc_pb2.Compare.VALUE, value=old)
                op = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k%03d" % n, value=new))
                return bool(kv.Txn(rpc_pb2.TxnRequest(compare=[compare], success=[op]), timeout=30).succeeded)

            assert set(clients.map(lambda n: put(n, b"one"), range(KEYS))) == {b""}
            wait_committed(made.members, node.metric("etcd_server_proposals_applied_total"))
            assert set(clients.map(lambda n: put(n, b"two"), range(KEYS))) == {b"one"}
            wait_committed(made.members, node.metric("etcd_server_proposals_applied_total"))
            assert all(clients.map(lambda n: swap(n, b"two", b"three"), range(KEYS)))
            assert not any(clients.map(lambda n: swap(n, b"two", b"four"), range(KEYS)))
            wait_committed(made.members, node.metric("etcd_server_proposals_applied_total"))
            for one in made.members:
                fetched = one.metric("raftkv_apply_fetched_records_total")
                assert fetched > KEYS / 2
                # A machine that is too busy to run a worker in time makes a few.
                assert one.metric("raftkv_apply_cache_misses_total") < fetched / 4
        hashes = set()
        for one in made.members:
            with channel(one.endpoint) as connection:
                answer = rpc_pb2_grpc.MaintenanceStub(connection).HashKV(rpc_pb2.HashKVRequest(), timeout=30)
                hashes.add((answer.hash, answer.header.revision))
        assert len(hashes) == 1
