"""The store's answers, one rule at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from raftkv_node.pb import rpc_pb2
from raftkv_node.store import (
    ColdRead,
    PendingCompaction,
    Store,
    StoreCorrupt,
    StoreError,
    UnknownCommand,
    backend,
    commands,
    keyorder,
    reads,
)
from raftkv_node.store import errors as e
from store_driver import CLUSTER, MEMBER, TERM, Driver, batch_of

RangeRequest, Compare, RequestOp = rpc_pb2.RangeRequest, rpc_pb2.Compare, rpc_pb2.RequestOp


def put_op(key: bytes, value: bytes = b"", **more: object) -> RequestOp:
    return RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, **more))  # type: ignore[arg-type]


def range_op(key: bytes, **more: object) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=key, **more))  # type: ignore[arg-type]


def delete_op(key: bytes, range_end: bytes = b"", **more: object) -> RequestOp:
    return RequestOp(
        request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, **more)  # type: ignore[arg-type]
    )


def test_revisions_versions_and_headers(driver: Driver) -> None:
    assert driver.store.revision == 1
    first = driver.put(b"k", b"1")
    assert (first.header.cluster_id, first.header.member_id, first.header.raft_term) == (CLUSTER, MEMBER, TERM)
    assert first.header.revision == 2
    driver.put(b"k", b"2")
    kv = driver.range(b"k").kvs[0]
    assert (kv.create_revision, kv.mod_revision, kv.version, kv.value) == (2, 3, 2, b"2")
    deleted = driver.delete(b"k", prev_kv=True)
    assert deleted.deleted == 1 and deleted.prev_kvs[0].value == b"2" and deleted.header.revision == 4
    assert driver.delete(b"k").header.revision == 4, "a delete of nothing makes no revision"
    driver.put(b"k", b"3")
    kv = driver.range(b"k").kvs[0]
    assert (kv.create_revision, kv.mod_revision, kv.version) == (5, 5, 1)
    assert driver.range(b"k", revision=3).kvs[0].value == b"2"
    assert driver.range(b"k", revision=3).header.revision == 5
    assert not driver.range(b"k", revision=4).kvs
    assert driver.range(b"k", revision=6) == e.FUTURE_REVISION


def test_put_options(driver: Driver) -> None:
    assert driver.put(b"k", ignore_value=True) == e.KEY_NOT_FOUND
    assert driver.put(b"k", lease=7) == e.LEASE_NOT_FOUND
    driver.put(b"k", b"v")
    answer = driver.put(b"k", ignore_value=True, prev_kv=True)
    assert answer.prev_kv.value == b"v" and answer.prev_kv.version == 1
    kv = driver.range(b"k").kvs[0]
    assert (kv.value, kv.version) == (b"v", 2)
    assert driver.put(b"other", b"x", prev_kv=True).HasField("prev_kv") is False


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 16383, 16384, 2_097_151, 2_097_152])
def test_values_and_keys_of_all_encoded_lengths(driver: Driver, size: int) -> None:
    for key in (b"a", b"k" * 126, b"k" * 127, b"k" * 128, b"k" * 300):
        driver.put(key, b"v" * size)
        kv = driver.range(key).kvs[0]
        assert kv.key == key and kv.value == b"v" * size
    driver.commit()
    again = driver.reopen()
    for key in (b"a", b"k" * 126, b"k" * 127, b"k" * 128, b"k" * 300):
        assert again.range(key).kvs[0].value == b"v" * size
    again.close()


def test_txn_sees_its_writes_and_takes_one_revision(driver: Driver) -> None:
    driver.put(b"a", b"0")
    answer = driver.txn(
        rpc_pb2.TxnRequest(
            compare=[Compare(key=b"a", target=Compare.VERSION, version=1)],
            success=[
                range_op(b"a", range_end=b"z"),
                put_op(b"b", b"1", prev_kv=True),
                range_op(b"a", range_end=b"z"),
                delete_op(b"a", prev_kv=True),
                range_op(b"a", range_end=b"z"),
            ],
        )
    )
    assert answer.succeeded and answer.header.revision == 3
    before, put, between, deleted, after = answer.responses
    assert [kv.key for kv in before.response_range.kvs] == [b"a"] and before.response_range.header.revision == 2
    assert put.response_put.header.revision == 3 and not put.response_put.header.cluster_id
    assert [kv.key for kv in between.response_range.kvs] == [b"a", b"b"]
    assert deleted.response_delete_range.prev_kvs[0].value == b"0"
    assert [kv.key for kv in after.response_range.kvs] == [b"b"] and after.response_range.header.revision == 3
    assert driver.range(b"b").kvs[0].mod_revision == 3
    assert driver.txn(rpc_pb2.TxnRequest(failure=[put_op(b"c")])).header.revision == 3


def test_compares_of_a_missing_key(driver: Driver) -> None:
    for target, field in (
        (Compare.VERSION, "version"),
        (Compare.CREATE, "create_revision"),
        (Compare.MOD, "mod_revision"),
    ):
        assert driver.txn(rpc_pb2.TxnRequest(compare=[Compare(key=b"x", target=target, **{field: 0})])).succeeded
    lease = Compare(key=b"x", target=Compare.LEASE, lease=0)
    assert driver.txn(rpc_pb2.TxnRequest(compare=[lease])).succeeded
    for result in (Compare.EQUAL, Compare.NOT_EQUAL, Compare.LESS, Compare.GREATER):
        value = Compare(key=b"x", target=Compare.VALUE, result=result, value=b"")
        assert not driver.txn(rpc_pb2.TxnRequest(compare=[value])).succeeded


def test_nested_compares_come_before_all_writes(driver: Driver) -> None:
    nested = rpc_pb2.TxnRequest(
        compare=[Compare(key=b"a", target=Compare.VERSION, version=0)],
        success=[put_op(b"then")],
        failure=[put_op(b"else")],
    )
    answer = driver.txn(rpc_pb2.TxnRequest(success=[put_op(b"a"), RequestOp(request_txn=nested)]))
    inner = answer.responses[1].response_txn
    assert inner.succeeded and inner.HasField("header") and inner.header.revision == 0
    assert driver.range(b"then").count == 1 and driver.range(b"else").count == 0


def test_a_txn_that_cannot_be_done_changes_nothing(driver: Driver) -> None:
    driver.put(b"a", b"1")
    bad = [
        ([put_op(b"b"), put_op(b"c", lease=9)], e.LEASE_NOT_FOUND),
        ([put_op(b"b"), put_op(b"c", ignore_value=True)], e.KEY_NOT_FOUND),
        ([put_op(b"b"), range_op(b"a", revision=99)], e.FUTURE_REVISION),
        ([put_op(b"b"), range_op(b"a", revision=-1)], e.COMPACTED),
    ]
    for ops, error in bad:
        assert driver.txn(rpc_pb2.TxnRequest(success=ops)) == error
    assert driver.store.revision == 2 and driver.range(b"b").count == 0


def test_compaction(driver: Driver) -> None:
    for value in (b"1", b"2", b"3"):
        driver.put(b"k", value)
    driver.delete(b"k")
    driver.put(b"other", b"x")
    assert driver.compact(7) == e.FUTURE_REVISION
    assert driver.compact(3).header.revision == 6
    assert driver.compact(3) == e.COMPACTED
    assert driver.range(b"k", revision=2) == e.COMPACTED
    assert driver.range(b"k", revision=3).kvs[0].value == b"2", "reading at the compacted revision is allowed"
    waiting = driver.compact(6, physical=True)
    assert isinstance(waiting, PendingCompaction)
    assert driver.store.finished_compactions() == []
    driver.sweep()
    assert driver.store.finished_compactions() == []
    driver.commit()
    assert driver.store.finished_compactions() == [waiting]
    assert driver.store.finished_compactions() == []
    with driver.store.backend.all_records() as records:
        assert len(list(records)) == 1, "only the newest record of the one live key is left"
    assert driver.store.mvcc.index.entries.keys() == {b"other"}


def test_a_range_stops_at_its_limit_and_counts_on(driver: Driver) -> None:
    for n in range(10):
        driver.put(b"k%d" % n)
    answer = driver.range(b"k", b"l", limit=4)
    assert len(answer.kvs) == 4 and answer.more and answer.count == 10
    answer = driver.range(b"k4", b"\0", count_only=True)
    assert answer.count == 6 and not answer.kvs
    assert driver.range(b"\0", b"\0", keys_only=True).count == 10


def test_restart_keeps_what_was_committed(driver: Driver) -> None:
    driver.put(b"a", b"1")
    driver.store.apply_configuration(2, TERM, b"members")
    driver.apply(rpc_pb2.Member(ID=5, name="n5", clientURLs=["http://x"]))
    driver.put(b"a", b"2")
    driver.commit(3)
    driver.put(b"a", b"3")
    again = driver.reopen()
    store = again.store
    assert (store.applied_index, store.applied_term, store.revision) == (3, TERM, 2)
    assert (store.configuration, store.configuration_index) == (b"members", 2)
    assert rpc_pb2.Member.FromString(store.members[5]).name == "n5"
    assert again.range(b"a").kvs[0].value == b"1"
    store.apply_configuration(4, TERM, b"fewer", removed_members=[5])
    again.commit()
    once_more = again.reopen()
    assert once_more.store.members == {} and once_more.store.configuration == b"fewer"
    once_more.close()


def test_d13_a_commit_is_synced_and_holds_data_and_applied_index_or_nothing(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = driver.store.backend.env.flags()
    assert (flags["sync"], flags["metasync"], flags["map_async"]) == (True, True, False)
    driver.put(b"a", b"1")
    driver.commit()
    committed = driver.index
    driver.put(b"a", b"2")

    class Broken:
        def pack(self, *_: int) -> bytes:
            raise OSError("in the middle of the transaction, after the records")

    monkeypatch.setattr(backend, "APPLIED", Broken())
    driver.store.set_durable_index(driver.index)
    assert not driver.store.backend.commit_now()
    assert driver.store.failed is not None
    monkeypatch.undo()
    again = driver.reopen()
    assert again.index == committed
    assert [(kv.value, kv.mod_revision) for kv in again.range(b"a").kvs] == [(b"1", 2)]
    again.close()


def test_d14_a_commit_never_passes_the_durable_index(driver: Driver) -> None:
    for n in range(5):
        driver.put(b"k%d" % n)
    driver.store.set_durable_index(2)
    driver.store.backend.commit_now()
    assert driver.store.committed_index == 2
    assert not driver.store.backend.commit_now()
    assert driver.reopen().store.revision == 3


def test_d14_the_durable_index_goes_back_when_the_log_drops_a_tail(driver: Driver) -> None:
    """Entries 2 and 3 were durable, and were dropped for others that are applied before they are durable here."""
    driver.put(b"k")
    driver.store.set_durable_index(3)
    driver.store.set_durable_index(1)
    driver.put(b"k", b"of the new leader")
    driver.store.backend.commit_now()
    assert driver.store.committed_index == 1


def test_entries_must_follow_each_other(driver: Driver) -> None:
    driver.put(b"a")
    for index, term in ((1, TERM), (3, TERM), (2, TERM - 1)):
        with pytest.raises(StoreError, match="does not follow"):
            driver.store.apply_empty(index, term)


def test_d16_an_unknown_command_stops_before_any_effect(driver: Driver) -> None:
    batch = batch_of(rpc_pb2.PutRequest(key=b"a", value=b"b"), rpc_pb2.PutRequest(key=b"c"))
    newer = commands.Batch(1, 1, bytes([commands.PUT, 99]), batch.payloads)
    with pytest.raises(UnknownCommand, match="99"):
        driver.store.apply(1, TERM, newer)
    assert driver.store.applied_index == 0 and driver.range(b"a").count == 0


def test_d15_a_failed_commit_is_latched(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.put(b"a")
    driver.store.set_durable_index(1)
    calls = []

    def fail(chunks: object) -> None:
        calls.append(chunks)
        raise lmdb.Error("Input/output error")

    monkeypatch.setattr(driver.store.backend, "_write", fail)
    assert not driver.store.backend.commit_now()
    monkeypatch.undo()
    assert not driver.store.backend.commit_now(), "not retried"
    assert len(calls) == 1 and "Input/output error" in str(driver.store.failed)
    with pytest.raises(StoreError, match="store has failed"):
        driver.put(b"b")


def test_a_listener_that_fails_is_not_overlooked(make_driver: Callable[..., Driver]) -> None:
    def refuse(index: int) -> None:
        raise RuntimeError(f"no room for {index}")

    driver = make_driver(on_commit=refuse)
    driver.put(b"a")
    driver.store.set_durable_index(1)
    driver.store.backend.commit_now()
    assert str(driver.store.failed) == "no room for 1"


@pytest.mark.interpreted("makes a step fail")
def test_an_apply_that_breaks_off_is_the_end(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(driver.store.mvcc, "settle", fail)
    with pytest.raises(MemoryError):
        driver.put(b"a")
    monkeypatch.undo()
    with pytest.raises(StoreError, match="has failed"):
        driver.put(b"b")
    driver.store.set_durable_index(9)
    assert not driver.store.backend.commit_now() and driver.store.committed_index == 0


def test_what_changes_outside_of_an_entry_is_the_end(driver: Driver) -> None:
    """It would be in no chunk, so that no commit had it."""
    driver.put(b"a")
    driver.store.mvcc.put_simple(b"\x0a\x01b\x12\x01v", 3)
    with pytest.raises(StoreError, match="outside of an entry"):
        driver.put(b"c")


def test_many_new_keys_are_brought_into_order_by_those_who_add_them(driver: Driver) -> None:
    """Otherwise a range would have to, however many they are."""
    for number in range(keyorder.MERGE_THRESHOLD_KEYS - 1):
        driver.put(b"%06d" % number)
    assert len(driver.store.mvcc.index.live.fresh) == keyorder.MERGE_THRESHOLD_KEYS - 1
    driver.put(b"one more")
    assert not driver.store.mvcc.index.live.fresh


def test_values_outside_the_cache_are_read_by_a_worker(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver(value_cache_bytes=2000)
    for n in range(100):
        driver.put(b"k%03d" % n, b"v" * 200)
    driver.commit()
    cold = driver.store.start_range(RangeRequest(key=b"k000"))
    assert isinstance(cold, ColdRead)
    driver.put(b"k000", b"new")
    answers: list[bytes] = []
    worker = threading.Thread(target=lambda: answers.append(cold.run()))
    worker.start()
    worker.join()
    answer = rpc_pb2.RangeResponse.FromString(answers[0])
    assert answer.kvs[0].value == b"v" * 200 and answer.header.revision == 101, "as of the moment it was asked"
    assert isinstance(driver.store.start_range(RangeRequest(key=b"k000")), bytes)


def test_a_read_in_progress_holds_compaction_back(driver: Driver) -> None:
    for n in range(600):
        driver.put(b"k%03d" % n, b"1")
    cold = driver.store.start_range(RangeRequest(key=b"k", range_end=b"l"))
    assert isinstance(cold, ColdRead)
    for n in range(600):
        driver.put(b"k%03d" % n, b"2")
    driver.compact(driver.store.revision)
    driver.sweep()
    driver.commit()
    assert driver.store.compacting
    answer = rpc_pb2.RangeResponse.FromString(cold.run())
    assert answer.count == 600 and {kv.value for kv in answer.kvs} == {b"1"}
    driver.sweep()
    assert not driver.store.compacting


def test_the_backend_thread_commits_by_itself(tmp_path: Path) -> None:
    committed = threading.Event()
    indexes: list[int] = []

    def on_commit(index: int) -> None:
        indexes.append(index)
        committed.set()

    store = Store.open(tmp_path / "s", commit_interval_seconds=0.001, on_commit=on_commit)
    store.apply(1, 1, batch_of(rpc_pb2.PutRequest(key=b"a", value=b"b")))
    store.set_durable_index(1)
    assert committed.wait(30)
    store.apply(2, 1, batch_of(rpc_pb2.PutRequest(key=b"a", value=b"c")))
    store.set_durable_index(2)
    store.close()
    assert indexes[0] == 1 and indexes[-1] == 2
    again = Store.open(tmp_path / "s", start_thread=False)
    assert again.applied_index == 2
    again.close()


@pytest.fixture
def make_resting(make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Driver]:
    """Makes stores whose thread commits at once, and rests for so long before each further slice."""

    def make(name: str, rest_seconds: float = 30.0, **options: int) -> Driver:
        monkeypatch.setattr(backend, "REST_PER_WORK", 1e9)
        monkeypatch.setattr(backend, "MAX_REST_SECONDS", rest_seconds)
        return make_driver(name, start_thread=True, commit_interval_seconds=0.001, **options)

    return make


def seconds_to_commit(driver: Driver, then: Callable[[], None] | None = None) -> float:
    began = time.monotonic()
    driver.store.set_durable_index(driver.index)
    if then is not None:
        then()
    while driver.store.committed_index < driver.index:
        time.sleep(0.001)
    return time.monotonic() - began


def puts(slices: int, value: bytes = b"v") -> list[rpc_pb2.PutRequest]:
    return [rpc_pb2.PutRequest(key=b"k%06d" % n, value=value) for n in range(slices * backend.SLICE_RECORDS)]


def test_a_commit_rests_between_slices_until_the_store_is_closed(make_resting: Callable[..., Driver]) -> None:
    """After a stall all members commit seconds of changes at once, and their clients waited for the processor."""
    driver = make_resting("at-rest", 1.0)
    driver.apply(*puts(3))
    took = seconds_to_commit(driver)
    assert took > 2.0
    assert sum(driver.store.backend.commit_seconds) <= took - 1.9, "what is told of a commit is its work and its sync"
    driver.close()
    driver = make_resting("closed")
    driver.apply(*puts(3))

    def close() -> None:
        time.sleep(0.1)  # by now it rests
        driver.store.close()

    assert seconds_to_commit(driver, close) < 30


def test_a_commit_of_one_slice_does_not_rest(make_resting: Callable[..., Driver]) -> None:
    driver = make_resting("s")
    driver.apply(*puts(1))
    assert seconds_to_commit(driver) < 30


def test_a_commit_that_apply_waits_for_does_not_rest(make_resting: Callable[..., Driver]) -> None:
    """Nothing is added while apply waits, so that nothing new says that there is a hurry."""
    value = bytes(100)
    size = 4 * backend.SLICE_RECORDS * len(value)
    driver = make_resting("s", buffer_limit_bytes=size)
    driver.apply(*puts(4, value))
    assert driver.store.backpressure
    # The thread has long found out that nothing may be committed yet.
    time.sleep(0.1)
    assert seconds_to_commit(driver) < 30


def test_a_commit_that_becomes_urgent_rests_no_longer(make_resting: Callable[..., Driver]) -> None:
    value = bytes(100)
    size = 8 * backend.SLICE_RECORDS * len(value)
    driver = make_resting("s", buffer_limit_bytes=size)
    driver.apply(*puts(3, value))

    def more() -> None:
        time.sleep(0.1)  # by now it rests
        driver.apply(*puts(5, value))
        driver.store.set_durable_index(driver.index)

    assert seconds_to_commit(driver, more) < 30


def commits_of_a_backlog(driver: Driver) -> int:
    """In how many transactions 12 MiB are committed that wait."""
    requests = puts(12, bytes(1024))
    for at in range(0, len(requests), 64):
        driver.apply(*requests[at : at + 64])
    time.sleep(0.3)  # they have waited since before the last pass
    before = driver.store.backend.commits_total
    seconds_to_commit(driver)
    return driver.store.backend.commits_total - before


def test_a_backlog_is_committed_little_by_little(make_driver: Callable[..., Driver]) -> None:
    """After a stall it was one transaction of up to 16 MiB, of all members at once (`pace`)."""
    driver = make_driver("s", start_thread=True, commit_interval_seconds=0.01)
    assert commits_of_a_backlog(driver) > 4


def test_an_urgent_backlog_is_committed_as_fast_as_may_be(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver("s", start_thread=True, commit_interval_seconds=0.01, buffer_limit_bytes=1 << 20)
    assert commits_of_a_backlog(driver) <= 4


def test_an_urgent_commit_does_not_wait_for_its_time(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver("s", start_thread=True, commit_interval_seconds=60.0, buffer_limit_bytes=1 << 20)
    driver.store.set_durable_index(1 << 30)
    for _ in range(2):
        driver.apply(*puts(1, bytes(1024)))
    assert seconds_to_commit(driver) < 30


def test_a_store_is_closed_while_a_commit_waits_for_its_time(make_driver: Callable[..., Driver]) -> None:
    driver = make_driver("s", start_thread=True, commit_interval_seconds=60.0)
    driver.apply(*puts(1))
    time.sleep(0.1)  # by now it waits
    assert seconds_to_commit(driver, driver.store.close) < 30


def test_an_urgent_commit_of_what_is_not_durable_yet_does_not_spin(
    make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver("s", start_thread=True, commit_interval_seconds=0.1, buffer_limit_bytes=1 << 20)
    passes: list[int] = []
    commit = driver.store.backend._commit_once

    def counted(limit_bytes: int) -> bool:
        passes.append(limit_bytes)
        return commit(limit_bytes)

    monkeypatch.setattr(driver.store.backend, "_commit_once", counted)
    driver.apply(*puts(2, bytes(1024)))
    time.sleep(0.5)
    assert 1 <= len(passes) <= 8
    assert seconds_to_commit(driver) < 30


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7, 20, 29, 30, 31])
def test_a_limited_read_of_more_keys_than_are_looked_up_at_once(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """It failed, and was never answered: once it had its keys, it cut what was only to be counted to none."""
    monkeypatch.setattr(reads, "SLICE_KEYS", 3)
    for n in range(30):
        driver.put(b"k%02d" % n, b"v%d" % n)
    past = driver.store.revision
    driver.put(b"k00", b"later")
    driver.delete(b"k29")
    whole = driver.range(b"k", b"l", revision=past)
    for more in ({}, {"keys_only": True}, {"count_only": True}):
        found = driver.range(b"k", b"l", revision=past, limit=limit, **more)
        assert found.count == 30
        if "count_only" not in more:
            assert [kv.key for kv in found.kvs] == [kv.key for kv in whole.kvs][:limit]
            assert found.more == (limit < 30)
    for revision, total in ((past, 30), (0, 29)):
        ops = [range_op(b"k", range_end=b"l", limit=limit, revision=revision)]
        answer = driver.read_txn(rpc_pb2.TxnRequest(success=ops)).responses[0].response_range
        assert (len(answer.kvs), answer.count) == (min(limit, total), total)


def test_a_foreign_format_version_is_refused(driver: Driver) -> None:
    driver.put(b"a")
    driver.commit()
    backend = driver.store.backend
    with backend.env.begin(write=True) as txn:
        txn.put(b"version", (2).to_bytes(4, "big"), db=backend.meta)
    driver.crash()
    with pytest.raises(StoreError, match="format version 2; this node reads version 1"):
        Driver(driver.path)


def test_garbage_is_refused(tmp_path: Path, driver: Driver) -> None:
    folder = tmp_path / "garbage"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError):
        Driver(folder)
    driver.put(b"a", b"b")
    driver.commit()
    backend = driver.store.backend
    with backend.env.begin(write=True) as txn:
        txn.put(bytes(7) + b"\x02" + bytes(4), b"\xff\xff", db=backend.revisions)
    with pytest.raises(StoreCorrupt, match="record"):
        driver.reopen()


def test_a_path_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Store.open(tmp_path / "file" / "store")


def test_what_is_refused_is_not_kept(driver: Driver) -> None:
    """Refusals were raised as constants, whose tracebacks grew, and kept the refused requests' frames and bytes."""
    for value in (b"1", b"2", b"3"):
        driver.put(b"k", value)
    driver.compact(3)
    put = rpc_pb2.PutRequest(key=b"k", lease=77)
    refused = [
        driver.put(b"k", b"v" * 1000, lease=77),
        driver.put(b"none", ignore_value=True),
        driver.range(b"k", revision=1000),
        driver.range(b"k", revision=2),
        driver.txn(rpc_pb2.TxnRequest(success=[RequestOp(request_put=put)])),
        driver.read_txn(rpc_pb2.TxnRequest(success=[range_op(b"k", revision=1000)])),
    ]
    assert refused == [
        *(e.LEASE_NOT_FOUND, e.KEY_NOT_FOUND, e.FUTURE_REVISION, e.COMPACTED),
        *(e.LEASE_NOT_FOUND, e.FUTURE_REVISION),
    ]
    constants = [one for one in vars(e).values() if isinstance(one, e.EtcdError)]
    assert len(constants) > 10
    assert not [one for one in constants if one.__traceback__ is not None or one.__context__ is not None]
