"""Microseconds of Python that the store spends, measured alone: `python tests/perf/store_bench.py [keys ...]`.

Prints one line per measurement: processor time of the thread that applies, so that what else runs on the machine counts
little.  Nothing is asserted.
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from machine import memory_bytes
from raftkv_node.pb import rpc_pb2
from raftkv_node.store import Batch, ColdRead, Store, commands
from raftkv_node.store.watch import WatchHub

BATCH = 250
VALUE = b"v" * 256


def key(n: int) -> bytes:
    return b"/registry/pods/default/pod-%012d" % n


def batches(numbers: list[int], make: Callable[[int], bytes], kind: int) -> list[Batch]:
    """The requests as they come out of the log."""
    payloads = [make(n) for n in numbers]
    return [
        commands.decode_batch(commands.encode_batch(1, at, bytes([kind]) * len(part), part))
        for at in range(0, len(payloads), BATCH)
        for part in [payloads[at : at + BATCH]]
    ]


def put(n: int) -> bytes:
    return rpc_pb2.PutRequest(key=key(n), value=VALUE).SerializeToString()


def update(n: int) -> bytes:
    """What kube-apiserver sends for an update."""
    compare = rpc_pb2.Compare(key=key(n), target=rpc_pb2.Compare.MOD, result=rpc_pb2.Compare.GREATER, mod_revision=0)
    write = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key(n), value=VALUE))
    read = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key(n)))
    return rpc_pb2.TxnRequest(compare=[compare], success=[write], failure=[read]).SerializeToString()


def run(store: Store, label: str, work: list[Batch], want: bool, hub: WatchHub | None = None) -> None:
    count = sum(len(batch.payloads) for batch in work)
    worst = 0.0
    started = time.thread_time()
    for batch in work:
        at = time.thread_time()
        index = store.applied_index + 1
        result = store.apply(index, 1, batch, None, want)
        if hub is not None:
            hub.publish(result.events)
            for stream, _ in hub.take_output():
                stream.set_queued(0)
        store.set_durable_index(index)
        worst = max(worst, time.thread_time() - at)
    spent = time.thread_time() - started
    print(f"{label:58} {spent / count * 1e6:8.2f} us each, worst batch of {BATCH}: {worst * 1e3:.1f} ms")


def read(store: Store, label: str, request: rpc_pb2.RangeRequest, times: int) -> None:
    started = time.thread_time()
    how = ""
    for _ in range(times):
        answer = store.start_range(request)
        if isinstance(answer, ColdRead):
            how = "(worker)"
            answer = answer.run()
    print(f"{label:58} {(time.thread_time() - started) / times * 1e6:8.2f} us each {how}")


def bench(keys: int, folder: Path) -> None:
    store = Store.open(folder / str(keys), cluster_id=1 << 60, member_id=1 << 60)
    gc.freeze()
    rng = random.Random(1)
    order = list(range(keys))
    rng.shuffle(order)
    some = [rng.randrange(keys) for _ in range(50_000)]
    print(f"-- {keys} distinct keys, values of {len(VALUE)} bytes, commits running beside")
    run(store, "put, new keys in random order, with responses", batches(order, put, commands.PUT), True)
    run(store, "put, existing keys, with responses", batches(some, put, commands.PUT), True)
    run(store, "put, existing keys, without responses", batches(some, put, commands.PUT), False)
    run(store, "txn (compare, put), with responses", batches(some[:20_000], update, commands.TXN), True)
    hub = WatchHub(store)
    for n in range(100):
        stream = hub.open_stream(0.0)
        create = rpc_pb2.WatchCreateRequest(key=b"/registry/%d/" % n, range_end=b"/registry/%d0" % n, prev_kv=True)
        hub.create(stream, create)
    hub.create(stream, rpc_pb2.WatchCreateRequest(key=b"/registry/", range_end=b"/registry0", prev_kv=True))
    hub.take_output()
    run(store, "put, existing keys, 101 watched ranges, one matching", batches(some, put, commands.PUT), True, hub)
    everything = {"key": b"/registry/", "range_end": b"/registry0"}
    read(store, "range, one key", rpc_pb2.RangeRequest(key=key(5)), 20_000)
    read(store, "range, count only", rpc_pb2.RangeRequest(**everything, count_only=True), 2_000)
    read(store, "range, limit 500", rpc_pb2.RangeRequest(**everything, limit=500), 50)
    read(store, "range, everything", rpc_pb2.RangeRequest(**everything), 1)
    started = time.thread_time()
    store.start_hash().run()
    print(f"{'hash of everything':58} {(time.thread_time() - started) * 1e3:8.1f} ms")
    compaction = rpc_pb2.CompactionRequest(revision=store.revision).SerializeToString()
    run(store, "compaction (logical)", batches([0], lambda _: compaction, commands.COMPACT), False)
    started = time.thread_time()
    worst = 0.0
    while store.compacting:
        at = time.thread_time()
        store.background()
        worst = max(worst, time.thread_time() - at)
    print(f"{'compaction (sweep)':58} {(time.thread_time() - started) * 1e3:8.1f} ms, worst slice {worst * 1e3:.1f} ms")
    store.close()
    del store, hub, stream
    gc.collect()
    before = memory_bytes(None, "RssAnon")
    started = time.thread_time()
    store = Store.open(folder / str(keys), value_cache_bytes=0)
    spent = time.thread_time() - started
    used = memory_bytes(None, "RssAnon") - before
    print(f"{'open again':58} {spent * 1e3:8.1f} ms, {used / keys:.0f} bytes per key and index")
    store.close()


if __name__ == "__main__":
    for size in map(int, sys.argv[1:] or ("10000", "100000")):
        with tempfile.TemporaryDirectory() as temporary:
            bench(size, Path(temporary))
