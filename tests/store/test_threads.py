"""Apply, commits and workers at once: whatever the timing, answers are those of a fixed revision."""

from __future__ import annotations

import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raftkv_node.pb import rpc_pb2
from raftkv_node.store import ColdRead, Store
from raftkv_node.store.watch import WatchHub
from store_driver import TERM, batch_of

KEYS = [b"k%04d" % n for n in range(1500)]


def test_reads_commits_compactions_and_watches_beside_writes(tmp_path: Path) -> None:
    rng = random.Random(7)
    store = Store.open(tmp_path / "s", commit_interval_seconds=0.001, value_cache_bytes=60_000)
    hub = WatchHub(store, stream_limit_bytes=200_000)
    stream = hub.open_stream(0.0)
    hub.create(stream, rpc_pb2.WatchCreateRequest(key=b"k", range_end=b"l", prev_kv=True))
    model: dict[bytes, bytes] = {}
    writes: dict[int, tuple[bytes, bytes | None]] = {}
    reads: list[tuple[Future[bytes], dict[bytes, bytes], int]] = []
    told: list[tuple[int, bytes]] = []
    held = committed = 0
    resync: tuple[Any, Future[None]] | None = None

    def take(deliver: bool) -> None:
        nonlocal held
        for _, output in hub.take_output():
            for data in output:
                told.extend((ev.kv.mod_revision, ev.kv.key) for ev in rpc_pb2.WatchResponse.FromString(data).events)
                held += len(data)
        held = 0 if deliver else held
        stream.set_queued(held)

    with ThreadPoolExecutor(3) as workers:
        for turn in range(400):
            requests: list[Any] = []
            for _ in range(20):
                key = rng.choice(KEYS)
                if rng.random() < 0.2 and key in model:
                    requests.append(rpc_pb2.DeleteRangeRequest(key=key))
                    del model[key]
                    writes[store.revision + len(requests)] = (key, None)
                else:
                    value = b"%d" % rng.getrandbits(400)
                    requests.append(rpc_pb2.PutRequest(key=key, value=value))
                    model[key] = value
                    writes[store.revision + len(requests)] = (key, value)
            if turn % 40 == 30:
                requests.append(rpc_pb2.CompactionRequest(revision=store.revision))
            index = store.applied_index + 1
            result = store.apply(index, TERM, batch_of(*requests))
            hub.publish(result.events)
            store.set_durable_index(index - rng.randrange(3))
            take(rng.random() < 0.1)
            if resync is not None and resync[1].done():
                resync[1].result()
                hub.finish_resync(resync[0])
                resync = None
            if resync is None and (job := hub.start_resync()) is not None:
                resync = (job, workers.submit(job.run))
            if turn % 4 == 0:
                read = store.start_range(rpc_pb2.RangeRequest(key=b"k", range_end=b"l"))
                future = workers.submit(read.run) if isinstance(read, ColdRead) else _done(read)
                reads.append((future, dict(model), store.revision))
                hashing = store.start_hash()
                workers.submit(hashing.run)
            assert store.failed is None
            if turn % 40 == 39:
                committed = _after_a_commit(store, committed)
        for future, expected, revision in reads:
            answer = rpc_pb2.RangeResponse.FromString(future.result())
            assert answer.header.revision == revision and answer.count == len(expected)
            assert {kv.key: kv.value for kv in answer.kvs} == expected
        for _ in range(200):
            take(True)
            if resync is not None:
                resync[1].result()
                hub.finish_resync(resync[0])
            job = hub.start_resync()
            resync = None if job is None else (job, workers.submit(job.run))
            if resync is None and not hub.unsynced:
                break
        take(True)
    if hub.watchers_total:
        assert told == [(revision, key) for revision, (key, _) in sorted(writes.items())]
    else:
        assert told == [(revision, key) for revision, (key, _) in sorted(writes.items())][: len(told)]
    assert any(isinstance(future, Future) for future, _, _ in reads) and store.backend.commits_total >= 10
    while store.background():
        pass
    assert not store.compacting
    digest = rpc_pb2.HashKVResponse.FromString(store.start_hash().run()).hash
    store.set_durable_index(store.applied_index)
    store.close()
    again = Store.open(tmp_path / "s", start_thread=False)
    assert rpc_pb2.HashKVResponse.FromString(again.start_hash().run()).hash == digest
    again.close()


def _after_a_commit(store: Store, before: int) -> int:
    """Waits until the backend's thread has committed again, however fast the turns are; its commits so far."""
    for _ in range(3000):
        if store.backend.commits_total > before:
            break
        time.sleep(0.01)
    return store.backend.commits_total


def _done(value: bytes) -> Future[bytes]:
    future: Future[bytes] = Future()
    future.set_result(value)
    return future
