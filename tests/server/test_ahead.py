"""D17: what apply needs is fetched ahead, by a worker, and apply waits in front of the entry meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Full
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message
from raftkv_node.pb import rpc_pb2
from raftkv_node.raft import Entry, EntryType
from raftkv_node.server import ahead as server_ahead
from raftkv_node.server.ahead import Ahead
from raftkv_node.server.applier import Applier
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.writes import WriteLimits, Writes
from raftkv_node.store import Store, commands
from raftkv_node.store import ahead as store_ahead
from raftkv_node.store.mvcc import RevisionEvents

pytestmark = pytest.mark.interpreted("a stand-in for the replica")

OWN, OTHER = 7, 8
KEYS = 50
VALUE = b"v" * 200

KINDS: dict[type[Message], int] = {
    rpc_pb2.PutRequest: commands.PUT,
    rpc_pb2.DeleteRangeRequest: commands.DELETE_RANGE,
    rpc_pb2.TxnRequest: commands.TXN,
}


class Pool:
    """Workers whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], None]] = deque()
        self.done: deque[Callable[[], None]] = deque()
        self.full = False
        self.fetches = 0

    def submit(self, job: Callable[[], None]) -> None:
        if self.full:
            raise Full
        self.fetches += 1
        self.jobs.append(job)

    def run(self) -> None:
        """The jobs, in another thread, and then what they want done in the turn."""
        while self.jobs:
            thread = threading.Thread(target=self.jobs.popleft())
            thread.start()
            thread.join()
        while self.done:
            self.done.popleft()()


class Answers:
    """What clients are answered."""

    def __init__(self) -> None:
        self.answers: dict[int, bytes] = {}

    def ok(self, call_ids: Sequence[int], results: Sequence[bytes]) -> None:
        self.answers.update(zip(call_ids, results, strict=True))

    def error(self, call_id: int, error: Exception) -> None:
        raise AssertionError(error)


class Bench:
    """A store whose values are on disk, with the applier before it."""

    def __init__(self, path: Path, keys: int = KEYS) -> None:
        self.store = Store.open(path, value_cache_bytes=0, start_thread=False)
        self.pool = Pool()
        self.now = 100.0
        self.writes = Writes(1, WriteLimits(), 5.0)
        self.answers = Answers()
        self.events: list[RevisionEvents] = []
        self.replica: Any = SimpleNamespace(committed=deque(), applied=lambda index: None, installing=False)
        pool: Any = self.pool
        answers: Any = self.answers
        self.ahead = Ahead(OWN, self.store, self.writes, pool, lambda: self.now)
        self.applier = Applier(
            OWN,
            store=self.store,
            replica=self.replica,
            writes=self.writes,
            answers=answers,
            metrics=Metrics(),
            ahead=self.ahead,
            notify=self.events.extend,
            count_origin=lambda origin, number: None,
        )
        self.index = 0
        self.calls = 0
        for n in range(keys):
            self.foreign(rpc_pb2.PutRequest(key=b"k%03d" % n, value=VALUE))
        self.apply()
        self.pool.run()
        self.apply()
        assert self.store.applied_index == keys
        self.commit()

    def commit(self) -> None:
        self.store.set_durable_index(1 << 60)
        while self.store.backend.commit_now():
            pass

    def entry(self, origin: int, first_seq: int, requests: Sequence[Message]) -> Entry:
        self.index += 1
        kinds = bytes(KINDS[type(one)] for one in requests)
        data = commands.encode_batch(origin, first_seq, kinds, [one.SerializeToString() for one in requests])
        return Entry(1, self.index, EntryType.NORMAL, data)

    def foreign(self, *requests: Message) -> Entry:
        """An entry of another member, committed."""
        entry = self.entry(OTHER, 1, requests)
        self.replica.committed.append((entry, monotonic()))
        return entry

    def own(self, *requests: Message) -> list[int]:
        """An own entry that went through the log; the ids of its calls."""
        ids = []
        for request in requests:
            self.calls += 1
            ids.append(self.calls)
            self.writes.accept(KINDS[type(request)], [self.calls], [request.SerializeToString()], 0.0)
        proposal = self.writes.take(0.0)
        entry = self.entry(OWN, proposal.first_seq, requests)
        self.ahead.look([entry])
        self.replica.committed.append((entry, monotonic()))
        return ids

    def apply(self) -> bool:
        """A turn's part: everything that can be applied; whether there is work for the next turn at once."""
        return self.applier.run(monotonic() + 60)

    @property
    def misses(self) -> int:
        return self.store.cache_misses_total


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "store")
    yield made
    made.store.close(commit=False)


def put(answer: bytes) -> Any:
    return rpc_pb2.PutResponse.FromString(answer)


def compare_value(key: bytes, value: bytes, range_end: bytes = b"") -> Any:
    return rpc_pb2.Compare(key=key, range_end=range_end, target=rpc_pb2.Compare.VALUE, value=value)


def put_op(key: bytes, value: bytes, **more: Any) -> Any:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, **more))


def range_op(key: bytes, range_end: bytes = b"", **more: Any) -> Any:
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, range_end=range_end, **more))


def test_d17_a_cold_previous_value_is_fetched_before_its_turn(bench: Bench) -> None:
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    assert bench.pool.fetches == 1, "when it entered the log"
    bench.pool.run()
    assert not bench.apply()
    assert put(bench.answers.answers[call]).prev_kv.value == VALUE
    assert bench.misses == 0
    assert bench.ahead.held_bytes == 0


def test_d17_apply_waits_for_a_fetch_and_turns_go_on(bench: Bench) -> None:
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    assert not bench.apply(), "nothing to do at once: the worker wakes the node"
    assert not bench.answers.answers
    bench.pool.run()
    bench.apply()
    assert put(bench.answers.answers[call]).prev_kv.value == VALUE
    assert bench.misses == 0


@pytest.mark.parametrize("range_end", [b"", b"k004"])
def test_d17_a_transaction_compares_cold_values(bench: Bench, range_end: bytes) -> None:
    (call,) = bench.own(
        rpc_pb2.TxnRequest(
            compare=[compare_value(b"k003", VALUE, range_end)],
            success=[put_op(b"k003", b"new", prev_kv=True), range_op(b"k01", b"k02")],
            failure=[range_op(b"k040")],
        )
    )
    bench.apply()
    bench.pool.run()
    bench.apply()
    answer = rpc_pb2.TxnResponse.FromString(bench.answers.answers[call])
    assert answer.succeeded
    assert answer.responses[0].response_put.prev_kv.value == VALUE
    assert [kv.value for kv in answer.responses[1].response_range.kvs] == [VALUE] * 10
    assert bench.misses == 0


def test_d17_another_members_transaction_needs_only_what_it_compares(bench: Bench) -> None:
    bench.foreign(rpc_pb2.TxnRequest(compare=[compare_value(b"k003", VALUE)], success=[range_op(b"k", b"l")]))
    bench.foreign(rpc_pb2.PutRequest(key=b"k004", ignore_value=True))
    assert not bench.apply()
    assert bench.pool.fetches == 2, "behind the one that waits the next is fetched, too"
    bench.pool.run()
    bench.apply()
    assert bench.store.applied_index == bench.index
    assert bench.misses == 0


def test_d17_the_way_of_a_transaction_is_known_from_revisions(bench: Bench) -> None:
    guarded = rpc_pb2.Compare(key=b"k003", target=rpc_pb2.Compare.MOD, mod_revision=5)
    bench.own(rpc_pb2.TxnRequest(compare=[guarded], success=[put_op(b"k003", b"new")], failure=[range_op(b"k003")]))
    assert bench.pool.fetches == 0, "k003 is of revision 5: its value is not needed"
    bench.apply()
    (call,) = bench.own(
        rpc_pb2.TxnRequest(compare=[guarded], success=[put_op(b"k003", b"x")], failure=[range_op(b"k004")])
    )
    assert bench.pool.fetches == 1
    bench.pool.run()
    bench.apply()
    answer = rpc_pb2.TxnResponse.FromString(bench.answers.answers[call])
    assert answer.responses[0].response_range.kvs[0].value == VALUE
    assert bench.misses == 0


def test_d17_watchers_get_cold_records_from_before_a_change(bench: Bench) -> None:
    bench.store.watching(True, True)
    bench.foreign(rpc_pb2.PutRequest(key=b"k003", value=b"new"), rpc_pb2.PutRequest(key=b"none", value=b"new"))
    bench.foreign(rpc_pb2.DeleteRangeRequest(key=b"k01", range_end=b"k02"))
    bench.apply()
    bench.pool.run()
    bench.apply()
    assert len(bench.events) == 3
    assert VALUE in (bench.events[0][1][0].prev or b"")
    assert bench.events[1][1][0].prev is None
    assert all(VALUE in (event.prev or b"") for event in bench.events[2][1])
    assert bench.misses == 0


def test_d17_a_watcher_that_comes_after_the_look_is_heeded(bench: Bench) -> None:
    bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new"))
    assert bench.pool.fetches == 0
    bench.store.watching(True, True)
    bench.apply()
    bench.pool.run()
    bench.apply()
    assert VALUE in (bench.events[0][1][0].prev or b"")
    assert bench.misses == 0


def test_d17_history_that_a_transaction_reads_is_fetched(bench: Bench) -> None:
    bench.foreign(rpc_pb2.PutRequest(key=b"k003", value=b"new"))
    bench.apply()
    bench.commit()
    (call,) = bench.own(rpc_pb2.TxnRequest(success=[range_op(b"k003", b"k005", revision=20)]))
    bench.pool.run()
    bench.apply()
    answer = rpc_pb2.TxnResponse.FromString(bench.answers.answers[call])
    assert [kv.value for kv in answer.responses[0].response_range.kvs] == [VALUE] * 2
    assert bench.misses == 0


def test_d17_a_key_that_changes_in_between_is_fetched_again(bench: Bench) -> None:
    bench.foreign(rpc_pb2.PutRequest(key=b"k003", value=b"between"))
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    bench.pool.run()  # brings what the key was before the first entry
    bench.apply()
    bench.commit()
    bench.pool.run()
    bench.apply()
    assert put(bench.answers.answers[call]).prev_kv.value == b"between"
    assert bench.misses == 0


def test_d17_a_key_that_is_gone_meanwhile_is_not_found(bench: Bench) -> None:
    bench.foreign(rpc_pb2.DeleteRangeRequest(key=b"k003"))
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    bench.pool.run()
    bench.apply()
    assert not put(bench.answers.answers[call]).HasField("prev_kv")
    assert bench.misses == 0


def test_d17_plain_writes_are_not_looked_at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a plain put was looked up")

    monkeypatch.setattr(bench.store, "cold_records", never)
    bench.own(*[rpc_pb2.PutRequest(key=b"k%03d" % n, value=b"new") for n in range(KEYS)])
    bench.own(rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"l"))
    bench.apply()
    assert bench.store.applied_index == bench.index
    assert bench.pool.fetches == 0


def test_d17_nothing_is_parsed_while_everything_fits_the_cache(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", start_thread=False)
    try:
        assert not store.may_be_cold
        pool: Any = Pool()
        ahead = Ahead(OWN, store, Writes(1, WriteLimits(), 5.0), pool)
        entry = Entry(1, 1, EntryType.NORMAL, b"not even a batch")
        ahead.look([entry])
        assert ahead.ready(entry)
        assert ahead.take(entry) == (None, None)
    finally:
        store.close(commit=False)


def test_d17_a_workers_error_falls_back_to_a_counted_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ids: Sequence[bytes]) -> dict[bytes, bytes]:
        raise OSError("EIO")

    monkeypatch.setattr(bench.store, "read_records", broken)
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    for _ in range(3):
        bench.pool.run()
        bench.apply()
    assert bench.pool.fetches == 2, "tried twice, not for ever"
    assert put(bench.answers.answers[call]).prev_kv.value == VALUE
    assert bench.misses == 1


def test_d17_an_error_on_the_spot_is_latched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> Any:
        raise OSError("EIO")

    monkeypatch.setattr(bench.store.backend, "read", broken)
    monkeypatch.setattr(bench.store.backend, "read_many", broken)
    bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    with pytest.raises(OSError, match="EIO"):
        for _ in range(3):
            bench.pool.run()
            bench.apply()
    assert isinstance(bench.store.failed, OSError)


def test_d17_apply_does_not_wait_for_ever(bench: Bench) -> None:
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    bench.apply()
    bench.now += server_ahead.QUEUED_WAIT_SECONDS / 2
    bench.apply()
    assert not bench.answers.answers
    bench.now += server_ahead.QUEUED_WAIT_SECONDS
    bench.apply()
    assert put(bench.answers.answers[call]).prev_kv.value == VALUE
    assert bench.misses == 1
    bench.pool.run()
    assert bench.ahead.held_bytes == 0, "what comes too late is thrown away"


def test_d17_a_read_that_has_begun_is_waited_for_longer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    read = bench.store.read_records

    def slow(ids: Sequence[bytes]) -> dict[bytes, bytes]:
        begun.set()
        go_on.wait(60)
        return read(ids)

    monkeypatch.setattr(bench.store, "read_records", slow)
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    thread = threading.Thread(target=bench.pool.run)
    thread.start()
    assert begun.wait(60)
    bench.apply()
    bench.now += 2 * server_ahead.QUEUED_WAIT_SECONDS
    bench.apply()
    assert not bench.answers.answers
    go_on.set()
    thread.join()
    bench.apply()
    assert put(bench.answers.answers[call]).prev_kv.value == VALUE
    assert bench.misses == 0


def test_d17_a_full_pool_is_no_reason_to_wait(bench: Bench) -> None:
    bench.pool.full = True
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    bench.apply()
    assert put(bench.answers.answers[call]).prev_kv.value == VALUE
    assert bench.misses == 1


def test_d17_fetching_ahead_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        bench.entry(OTHER, 1, [rpc_pb2.PutRequest(key=b"k%03d" % (n % KEYS), ignore_value=True)])
        for n in range(2 * server_ahead.MAX_ENTRIES_AHEAD)
    ]
    bench.ahead.look(entries)
    assert bench.pool.fetches == server_ahead.MAX_FETCHES
    bench.pool.run()
    monkeypatch.setattr(server_ahead, "MAX_HELD_BYTES", 1)
    bench.ahead.look(entries)
    assert bench.pool.fetches == server_ahead.MAX_FETCHES
    monkeypatch.undo()
    bench.replica.committed.extend((entry, monotonic()) for entry in entries)
    while bench.replica.committed:
        bench.apply()
        assert len(bench.ahead._plans) <= server_ahead.MAX_ENTRIES_AHEAD
        bench.pool.run()
    assert bench.misses == 0
    assert bench.ahead.held_bytes == 0


def test_d17_one_entry_is_bounded_in_records_and_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_ahead, "AHEAD_ENTRY_RECORDS", 20)
    (call,) = bench.own(rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True))
    for _ in range(2):
        bench.pool.run()
        bench.apply()
    answer = rpc_pb2.DeleteRangeResponse.FromString(bench.answers.answers[call])
    assert [kv.value for kv in answer.prev_kvs] == [VALUE] * KEYS
    assert bench.misses == KEYS - 20
    monkeypatch.setattr(store_ahead, "AHEAD_ENTRY_BYTES", 500)
    ids = list(range(5))
    bench.foreign(*[rpc_pb2.PutRequest(key=b"n%03d" % n, value=VALUE) for n in ids])
    bench.apply()
    bench.commit()
    newest = [bench.store.mvcc.index.entries[b"n%03d" % n][0] for n in ids]
    assert len(bench.store.read_records(newest)) == 3


def test_d17_an_entry_that_was_replaced_is_looked_at_again(bench: Bench) -> None:
    old = bench.entry(OTHER, 1, [rpc_pb2.PutRequest(key=b"k003", ignore_value=True)])
    bench.ahead.look([old])
    bench.pool.run()
    request = rpc_pb2.PutRequest(key=b"k004", ignore_value=True)
    data = commands.encode_batch(OTHER, 1, [commands.PUT], [request.SerializeToString()])
    bench.replica.committed.append((Entry(2, old.index, EntryType.NORMAL, data), monotonic()))
    bench.apply()
    bench.pool.run()
    bench.apply()
    assert bench.store.applied_index == old.index
    versions = [bench.store.mvcc.index.entries[key][2] for key in (b"k003", b"k004")]
    assert versions == [1, 2], "the old entry was not applied, neither by its bytes nor by its parsed requests"
    assert bench.misses == 0
    assert bench.ahead.held_bytes == 0


def test_d17_what_waits_for_its_commit_is_taken_along(bench: Bench) -> None:
    bench.foreign(rpc_pb2.PutRequest(key=b"k003", value=b"queued"))
    bench.apply()
    (call,) = bench.own(rpc_pb2.PutRequest(key=b"k003", value=b"new", prev_kv=True))
    assert bench.pool.fetches == 0
    bench.commit()
    bench.apply()
    assert put(bench.answers.answers[call]).prev_kv.value == b"queued"
    assert bench.misses == 0
