"""Bugs that other stores have had, each under its number there: what happened to them must not happen here.

The list is docs/known-bugs.md; the tests of the consensus core are `tests/raft/test_known_raft_bugs.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from raftkv_node.pb import rpc_pb2
from raftkv_node.store.errors import DUPLICATE_KEY, EMPTY_KEY, TOO_MANY_OPERATIONS
from raftkv_node.store.validate import check_txn, is_read_only
from raftkv_node.store.watch import WatchStream
from store_driver import TERM, Driver, batch_of
from test_watch import Watching, ask_progress, create, summary

Put = rpc_pb2.PutRequest


@pytest.fixture
def watching(driver: Driver) -> Watching:
    return Watching(driver)


@pytest.fixture
def stream(watching: Watching) -> WatchStream:
    return watching.hub.open_stream(0.0)


@pytest.mark.parametrize("committed", range(7))
def test_etcd_13766_what_is_applied_and_what_was_written_are_committed_together(
    committed: int, make_driver: Callable[..., Driver]
) -> None:
    """3.5.0-2: the applied index was saved before the data, and a crash between made the member skip entries."""
    driver = make_driver()
    for number in range(6):
        driver.put(b"k%d" % number)
    driver.commit(committed)
    driver.crash()
    after = make_driver()
    assert after.index == after.store.committed_index <= committed
    assert {kv.key for kv in after.range(b"\0", b"\0").kvs} == {b"k%d" % number for number in range(after.index)}


@pytest.mark.parametrize("sweep_keys", [1, 2, 100])
def test_etcd_17780_the_revision_never_goes_back_when_a_compaction_is_cut_off(
    sweep_keys: int, make_driver: Callable[..., Driver]
) -> None:
    """The newest revision was derived from the records that were left, and a compaction takes the newest when it is a
    deletion. Here each slice of the purge, committed or not, may be the last thing that happened."""
    for slices_done in range(6):
        driver = make_driver(f"store-{slices_done}")
        for key in (b"a", b"b", b"c"):
            driver.put(key)
        driver.delete(b"\0", b"\0")
        revision = driver.store.revision
        driver.compact(revision)
        driver.commit()
        for _ in range(slices_done):
            driver.store.background(sweep_keys)
            driver.commit()
        driver.store.background(sweep_keys)
        driver.crash()
        after = make_driver(f"store-{slices_done}")
        assert (after.store.revision, after.store.compact_revision) == (revision, revision)
        assert after.put(b"d").header.revision == revision + 1


@pytest.mark.interpreted("plants a bug")
def test_etcd_18667_a_transaction_that_reads_what_was_compacted_changes_no_member_differently(
    make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members whose purge had come differently far answered the range inside a transaction differently, and one of them
    did not write. Whether a revision is compacted is decided by the log alone, and whoever waits for no answer decides
    as those who do."""
    members = [make_driver(name) for name in ("swept", "committed", "lazy")]
    # applying an entry purges a few keys by itself; a read in progress would hold it up, too
    monkeypatch.setattr(members[2].store, "background", lambda keys=0: False)
    for member in members:
        for number in range(5):
            member.put(b"a", b"%d" % number)
        member.compact(4)
    members[0].sweep()
    members[1].sweep()
    members[1].commit()
    assert [member.store.compacting for member in members] == [False, False, True]
    for revision in (3, 4, 6):
        txn = rpc_pb2.TxnRequest(
            success=[
                rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"a", revision=revision)),
                rpc_pb2.RequestOp(request_put=Put(key=b"b", value=b"%d" % revision)),
            ]
        )
        answers = [member.txn(txn) for member in members[:2]]
        assert members[2].apply(txn, want=False) == []
        assert [str(answer) for answer in answers[1:]] == [str(answers[0])]
        assert len({member.store.revision for member in members}) == 1
        states = {member.hash().SerializeToString() for member in members}
        assert len(states) == 1, f"members diverged at a read of revision {revision}"


def test_etcd_15220_progress_never_overtakes_events(driver: Driver) -> None:
    """A progress notification took another way than the events, and promised what was still in the queue."""
    watching = Watching(driver, stream_limit_bytes=200, response_bytes=100)
    stream = watching.hub.open_stream(0.0)
    create(stream, b"a", progress_notify=True)
    watching.take(stream)
    for _ in range(50):
        watching.put(b"a", b"x" * 40)
    ask_progress(stream)
    watching.hub.tick(10_000.0)
    told = 1
    for _ in range(100):
        watching.catch_up()
        responses = watching.take(stream)
        for response in responses:
            for event in response.events:
                assert event.kv.mod_revision == told + 1
                told += 1
            if not response.events:
                assert response.header.revision <= told, "promised, but not told yet"
        ask_progress(stream)
        if told == driver.store.revision and any(one.watch_id == -1 for one in responses):
            break
    else:
        raise AssertionError(f"told up to {told} of {driver.store.revision}, and no progress")


def test_etcd_17507_progress_is_told_on_the_stream_that_asked(watching: Watching, stream: WatchStream) -> None:
    """Requests for progress of one stream were answered on another."""
    other = watching.hub.open_stream(0.0)
    for one in (stream, other):
        create(one, b"a")
        watching.take(one)
    ask_progress(other)
    answers = {stream: 0, other: 0}
    for speaker, output in watching.hub.take_output():
        answers[speaker] += len(output)
    assert answers == {stream: 0, other: 1}


@pytest.mark.parametrize("restart", [False, True], ids=["running", "after a restart"])
@pytest.mark.parametrize("swept", [False, True], ids=["not purged", "purged"])
def test_etcd_18089_a_deletion_at_the_compacted_revision_is_still_told(
    restart: bool, swept: bool, make_driver: Callable[..., Driver]
) -> None:
    """A compaction exactly at a deletion took its event away (#18089, #19179), though one may watch from there."""
    driver = make_driver()
    driver.put(b"a")
    driver.put(b"b")
    driver.delete(b"a")
    driver.compact(4)
    if swept:
        driver.sweep()
    driver.commit()
    if restart:
        driver.crash()
        driver = make_driver()
    watching = Watching(driver)
    stream = watching.hub.open_stream(0.0)
    create(stream, b"a", b"z", start_revision=4)
    watching.catch_up()
    assert summary(watching.take(stream)[1:]) == [(0, [(1, b"a", 4)])]


def test_etcd_20221_a_watch_of_the_future_hears_nothing_of_the_past(watching: Watching, stream: WatchStream) -> None:
    """A member that lagged replayed old revisions to a watch that had started beyond them (#15271, #20221)."""
    create(stream, b"a", b"z", start_revision=6, progress_notify=True)
    assert watching.take(stream)[0].created
    for _ in range(4):  # revisions 2 to 5: the member catches up
        watching.put(b"a")
        ask_progress(stream)
        watching.hub.tick(100_000.0)
        watching.catch_up()
    assert watching.take(stream) == []
    watching.put(b"b")
    assert summary(watching.take(stream)) == [(0, [(0, b"b", 6)])]


def test_etcd_17529_a_starved_stream_loses_no_event(driver: Driver) -> None:
    """Events were lost when one stream starved another. Here one of two reads nothing for a long time."""
    watching = Watching(driver, stream_limit_bytes=300, response_bytes=100)
    starved, lively = watching.hub.open_stream(0.0), watching.hub.open_stream(0.0)
    for one in (starved, lively):
        create(one, b"a")
    heard: dict[WatchStream, list[int]] = {starved: [], lively: []}

    def read(reading: set[WatchStream]) -> None:
        for speaker, output in watching.hub.take_output():
            for data in output:
                heard[speaker] += [ev.kv.mod_revision for ev in rpc_pb2.WatchResponse.FromString(data).events]
            speaker.set_queued(0 if speaker in reading else 1 << 20)

    starved.set_queued(1 << 20)
    for _ in range(200):
        driver_result = driver.store.apply(driver.index + 1, TERM, batch_of(Put(key=b"a", value=b"x" * 20)))
        watching.hub.publish(driver_result.events)
        read({lively})
        watching.catch_up()
    starved.set_queued(0)
    for _ in range(300):
        watching.catch_up()
        read({starved, lively})
    assert heard[lively] == heard[starved] == list(range(2, 202))


def nested(depth: int, innermost: rpc_pb2.TxnRequest) -> rpc_pb2.TxnRequest:
    """A transaction in so many others."""
    request = innermost
    for _ in range(depth):
        request = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_txn=request)])
    return request


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_etcd_nested_transactions_count_against_one_bound_and_are_looked_into(depth: int) -> None:
    """What was asked of a transaction was not asked of the ones in it (3.6, 3.7: cost, rights)."""
    puts = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k%d" % number)) for number in range(4)]
    assert check_txn(nested(depth, rpc_pb2.TxnRequest(success=puts)), depth + 4) is None
    assert check_txn(nested(depth, rpc_pb2.TxnRequest(success=puts)), depth + 3) == TOO_MANY_OPERATIONS
    assert check_txn(nested(depth, rpc_pb2.TxnRequest(failure=puts)), depth + 3) == TOO_MANY_OPERATIONS
    no_key = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest())
    assert check_txn(nested(depth, rpc_pb2.TxnRequest(failure=[no_key])), 128) == EMPTY_KEY
    twice = rpc_pb2.TxnRequest(success=[puts[0], rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(success=puts[:1]))])
    assert check_txn(nested(depth, twice), 128) == DUPLICATE_KEY
    assert not is_read_only(nested(depth, rpc_pb2.TxnRequest(failure=puts[:1]))), "it would pass the log by"
