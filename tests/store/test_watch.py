"""Watches: the rules one at a time, then the guarantees under arbitrary interleavings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import Event
from raftkv_node.store.intervals import IntervalMap
from raftkv_node.store.watch import WatchHub, WatchStream
from store_driver import TERM, Driver, batch_of, fast_folder
from store_model import Model
from store_strategies import deletes, puts, txns

Create = rpc_pb2.WatchCreateRequest
Response = rpc_pb2.WatchResponse


class Watching:
    """A store with a hub, driven by hand."""

    def __init__(self, driver: Driver, **options: Any) -> None:
        self.driver = driver
        self.hub = WatchHub(driver.store, **options)

    def apply(self, *requests: Any) -> None:
        driver = self.driver
        result = driver.store.apply(driver.index + 1, TERM, batch_of(*requests))
        self.hub.publish(result.events)

    def put(self, key: bytes, value: bytes = b"x") -> None:
        self.apply(rpc_pb2.PutRequest(key=key, value=value))

    def delete(self, key: bytes) -> None:
        self.apply(rpc_pb2.DeleteRangeRequest(key=key))

    def compact(self, revision: int) -> None:
        self.apply(rpc_pb2.CompactionRequest(revision=revision))

    def catch_up(self) -> None:
        for _ in range(100):
            job = self.hub.start_resync()
            if job is None:
                return
            job.run()
            self.hub.finish_resync(job)
        raise AssertionError("never ends")

    def take(self, stream: WatchStream) -> list[Response]:
        """What the stream sends; the client reads all of it at once."""
        found: list[Response] = []
        for speaker, output in self.hub.take_output():
            if speaker is stream:
                found += map(Response.FromString, output)
            speaker.set_queued(0)
        return found


def create(stream: WatchStream, key: bytes, range_end: bytes = b"", **more: Any) -> None:
    stream.receive(rpc_pb2.WatchRequest(create_request=Create(key=key, range_end=range_end, **more)))


def cancel(stream: WatchStream, watch_id: int) -> None:
    stream.receive(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id)))


def ask_progress(stream: WatchStream) -> None:
    stream.receive(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))


@pytest.fixture
def watching(driver: Driver) -> Watching:
    return Watching(driver)


@pytest.fixture
def stream(watching: Watching) -> WatchStream:
    return watching.hub.open_stream(0.0)


def summary(responses: list[Response]) -> list[tuple[int, list[tuple[int, bytes, int]]]]:
    return [(r.watch_id, [(ev.type, ev.kv.key, ev.kv.mod_revision) for ev in r.events]) for r in responses]


def test_created_comes_first_and_in_order(watching: Watching, stream: WatchStream) -> None:
    watching.put(b"a")
    create(stream, b"b")
    create(stream, b"a", start_revision=1)
    create(stream, b"c", watch_id=7)
    create(stream, b"d")
    watching.put(b"b")
    watching.catch_up()
    responses = watching.take(stream)
    assert [(r.watch_id, r.created) for r in responses[:4]] == [(0, True), (1, True), (7, True), (2, True)]
    assert all(not r.events for r in responses[:4]) and responses[0].header.revision == 2
    assert summary(responses[4:]) == [(0, [(0, b"b", 3)]), (1, [(0, b"a", 2)])]


def test_refused_watches(watching: Watching, stream: WatchStream) -> None:
    create(stream, b"a", watch_id=3)
    create(stream, b"b", watch_id=3)
    create(stream, b"b", b"a")
    create(stream, b"b", b"b")
    create(stream, b"b", start_revision=-1)
    responses = watching.take(stream)[1:]
    assert [(r.watch_id, r.created, r.canceled) for r in responses] == [(-1, True, True)] * 4
    assert [r.cancel_reason for r in responses] == [
        "mvcc: duplicate watch ID provided on the WatchStream",
        "mvcc: watcher range is empty",
        "mvcc: watcher range is empty",
        "etcdserver: mvcc: required revision has been compacted",
    ]


def test_intervals(watching: Watching, stream: WatchStream) -> None:
    create(stream, b"")  # the key of one zero byte
    create(stream, b"b", b"\0")  # b and everything behind it
    create(stream, b"a", b"c")
    create(stream, b"", b"\0")  # everything
    watching.take(stream)
    for key in (b"\0", b"a", b"b", b"z"):
        watching.put(key)
    found: dict[int, list[bytes]] = {}
    for response in watching.take(stream):
        found.setdefault(response.watch_id, []).extend(ev.kv.key for ev in response.events)
    assert found == {0: [b"\0"], 1: [b"b", b"z"], 2: [b"a", b"b"], 3: [b"\0", b"a", b"b", b"z"]}


def test_events_carry_what_was_asked_for(watching: Watching, stream: WatchStream) -> None:
    create(stream, b"a", prev_kv=True)
    create(stream, b"a", filters=[Create.NOPUT])
    create(stream, b"a", filters=[Create.NODELETE])
    watching.take(stream)
    watching.apply(rpc_pb2.PutRequest(key=b"a", value=b"1"), rpc_pb2.PutRequest(key=b"a", value=b"2"))
    watching.delete(b"a")
    watching.put(b"a", b"3")
    by_id: dict[int, list[Event]] = {}
    for response in watching.take(stream):
        by_id.setdefault(response.watch_id, []).extend(response.events)
    created, changed, deleted, again = by_id[0]
    assert not created.HasField("prev_kv") and created.kv.version == 1
    assert changed.prev_kv.value == b"1" and changed.kv.value == b"2"
    assert deleted.prev_kv.value == b"2" and deleted.kv.mod_revision == 4 and not deleted.kv.create_revision
    assert not again.HasField("prev_kv")
    assert [ev.type for ev in by_id[1]] == [Event.DELETE]
    assert [ev.kv.value for ev in by_id[2]] == [b"1", b"2", b"3"]
    assert not by_id[2][1].HasField("prev_kv")


def test_history_is_told_like_the_present(watching: Watching, stream: WatchStream) -> None:
    create(stream, b"a", b"z", prev_kv=True)
    watching.take(stream)
    watching.put(b"a", b"1")
    watching.put(b"b", b"1")
    watching.put(b"a", b"2")
    watching.delete(b"a")
    watching.put(b"a", b"3")
    live = [ev for response in watching.take(stream) for ev in response.events]
    create(stream, b"a", b"z", prev_kv=True, start_revision=2)
    watching.catch_up()
    responses = watching.take(stream)
    assert responses[0].created
    assert [ev for response in responses[1:] for ev in response.events] == live


def test_start_below_compaction_is_cancelled(watching: Watching, stream: WatchStream) -> None:
    for _ in range(5):
        watching.put(b"a")
    create(stream, b"a", start_revision=2, watch_id=4)
    watching.compact(4)
    create(stream, b"a", start_revision=4, watch_id=5)
    watching.catch_up()
    responses = watching.take(stream)
    gone = [r for r in responses if r.canceled]
    assert [(r.watch_id, r.compact_revision, r.created) for r in gone] == [(4, 4, False)]
    events = [(ev.kv.mod_revision, ev.HasField("prev_kv")) for r in responses for ev in r.events if r.watch_id == 5]
    assert events == [(4, False), (5, False), (6, False)]


def test_a_deletion_at_the_compacted_revision_is_told(watching: Watching, stream: WatchStream) -> None:
    watching.put(b"a")
    watching.delete(b"a")
    watching.put(b"b")
    watching.compact(3)
    watching.driver.sweep()
    watching.driver.commit()
    create(stream, b"a", b"z", start_revision=3)
    watching.catch_up()
    assert summary(watching.take(stream)[1:]) == [(0, [(1, b"a", 3), (0, b"b", 4)])]


def test_a_future_start_hears_nothing_before(watching: Watching, stream: WatchStream) -> None:
    create(stream, b"a", start_revision=4, progress_notify=True)
    watching.take(stream)
    watching.put(b"a")
    ask_progress(stream)
    watching.hub.tick(10_000)
    watching.put(b"a")
    assert watching.take(stream) == []
    watching.put(b"a")
    assert summary(watching.take(stream)) == [(0, [(0, b"a", 4)])]
    ask_progress(stream)
    assert [(r.watch_id, r.header.revision) for r in watching.take(stream)] == [(-1, 4)]


def test_cancel(watching: Watching, stream: WatchStream) -> None:
    create(stream, b"a")
    cancel(stream, 0)
    cancel(stream, 99)
    watching.put(b"a")
    created, cancelled = watching.take(stream)
    assert created.created and cancelled.canceled and not cancelled.cancel_reason and cancelled.watch_id == 0
    assert watching.hub.watchers_total == 0 and not watching.driver.store.mvcc.collect_events
    create(stream, b"a")
    assert watching.take(stream)[0].watch_id == 1


def test_progress(watching: Watching, stream: WatchStream) -> None:
    ask_progress(stream)
    assert watching.take(stream) == [], "nobody watches on this stream"
    create(stream, b"a", progress_notify=True)
    create(stream, b"b")
    watching.put(b"c")
    ask_progress(stream)
    _, _, answer = watching.take(stream)
    assert (answer.watch_id, answer.header.revision) == (-1, 2) and not answer.events
    create(stream, b"a", start_revision=1)
    ask_progress(stream)
    assert len(watching.take(stream)) == 1, "silent while one is behind"
    watching.catch_up()
    ask_progress(stream)
    assert watching.take(stream)[-1].watch_id == -1
    watching.hub.tick(599.0)
    assert watching.take(stream) == []
    watching.hub.tick(700.0)
    assert [(r.watch_id, len(r.events), r.header.revision) for r in watching.take(stream)] == [(0, 0, 2)]
    watching.put(b"a")
    watching.take(stream)
    watching.hub.tick(1400.0)
    assert watching.take(stream) == [], "it had events since"
    watching.hub.tick(2100.0)
    assert len(watching.take(stream)) == 1


def test_fragments(driver: Driver) -> None:
    watching = Watching(driver, response_bytes=1000)
    stream = watching.hub.open_stream(0.0)
    create(stream, b"a", b"z", fragment=True)
    create(stream, b"a", b"z")
    watching.take(stream)
    ops = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k%d" % n, value=b"v" * 300)) for n in range(8)]
    watching.put(b"b")
    watching.apply(rpc_pb2.TxnRequest(success=ops))
    watching.put(b"c")
    responses = watching.take(stream)
    split = [r for r in responses if (r.watch_id == 0 and len(r.events) > 1) or r.fragment]
    assert [r.fragment for r in split] == [True, True, False]
    assert [len(r.events) for r in responses if r.watch_id == 1] == [1, 8, 1]
    assert all(r.ByteSize() < 1100 for r in responses if r.watch_id == 0)


def test_a_slow_stream_holds_little_and_misses_nothing(driver: Driver) -> None:
    watching = Watching(driver, stream_limit_bytes=2000)
    slow, quick = watching.hub.open_stream(0.0), watching.hub.open_stream(0.0)
    create(slow, b"a", b"z")
    create(quick, b"a", b"z")
    held: list[bytes] = []
    got: list[Response] = []
    for n in range(200):
        watching.put(b"k%d" % n, b"v" * 100)
        for stream, output in watching.hub.take_output():
            if stream is quick:
                got += map(Response.FromString, output)
                stream.set_queued(0)
            else:
                held += output
                stream.set_queued(sum(map(len, held)))
        assert watching.hub.start_resync() is None or not slow.full
    assert sum(map(len, held)) < 2500 and slow.full and watching.hub.slow_watchers == 1
    assert [ev.kv.mod_revision for r in got for ev in r.events] == list(range(2, 202))
    slow.set_queued(0)
    for _ in range(50):
        watching.catch_up()
        held += [part for stream, output in watching.hub.take_output() for part in output]
        slow.set_queued(0)
    told = [ev.kv.mod_revision for part in held for ev in Response.FromString(part).events]
    assert told == list(range(2, 202)) and watching.hub.slow_watchers == 0


def test_what_is_published_while_catching_up_is_bridged(watching: Watching, stream: WatchStream) -> None:
    for _ in range(5):
        watching.put(b"a")
    create(stream, b"a", start_revision=1)
    job = watching.hub.start_resync()
    assert job is not None and watching.hub.start_resync() is None
    watching.put(b"a")
    watching.put(b"other")
    job.run()
    watching.put(b"a")
    watching.hub.finish_resync(job)
    assert watching.hub.slow_watchers == 0
    watching.put(b"a")
    told = [ev.kv.mod_revision for r in watching.take(stream) for ev in r.events]
    assert told == [2, 3, 4, 5, 6, 7, 9, 10]


def test_a_closed_stream_is_forgotten(watching: Watching, stream: WatchStream) -> None:
    watching.put(b"a")
    create(stream, b"a", start_revision=1)
    create(stream, b"b")
    job = watching.hub.start_resync()
    assert job is not None
    watching.hub.close_stream(stream)
    job.run()
    watching.hub.finish_resync(job)
    watching.put(b"b")
    assert watching.hub.take_output() == [] and watching.hub.watchers_total == 0 and not watching.hub.unsynced
    assert not watching.driver.store.mvcc.collect_events


def test_an_event_is_encoded_once_for_many_watchers(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    from raftkv_node.store import watchcodec

    calls = []
    encode = watchcodec.encode_event
    monkeypatch.setattr(watchcodec, "encode_event", lambda event, prev: calls.append(event) or encode(event, prev))
    streams = [watching.hub.open_stream(0.0) for _ in range(100)]
    for at, stream in enumerate(streams):
        create(stream, b"a", b"z", prev_kv=at % 2 == 0)
        create(stream, b"a", bytes([ord("b") + at % 20]))
    watching.hub.take_output()
    watching.put(b"a")
    assert len(calls) == 2 and sum(len(output) for _, output in watching.hub.take_output()) == 200


intervals = st.tuples(st.binary(max_size=2), st.one_of(st.none(), st.binary(max_size=2)))


@pytest.mark.parametrize("pieces", [1000, 0])
def test_interval_map(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """Both as a table and as a tree."""
    from raftkv_node.store import intervals as module

    monkeypatch.setattr(module, "PIECES_AT_LEAST", pieces)
    monkeypatch.setattr(module, "PIECES_PER_INTERVAL", pieces)
    settings(deadline=None)(
        given(st.lists(intervals, unique=True), st.lists(intervals), st.binary(max_size=3))(_check_intervals)
    )()


def _check_intervals(added: list[Any], removed: list[Any], key: bytes) -> None:
    found: IntervalMap[Any] = IntervalMap()
    for interval in added:
        found.set(*interval, interval)
    found.containing(key)
    for interval in removed:
        if interval in added:
            added.remove(interval)
            found.remove(*interval)
    expected = [(start, end) for start, end in added if start <= key and (end is None or key < end)]
    assert sorted(found.containing(key), key=str) == sorted(expected, key=str)


# The guarantees: ordered, unique, reliable, atomic, resumable; progress is true; previous values are right.


class Client:
    """A watch as a client sees it, held against the model."""

    def __init__(self, request: Create, watch_id: int, revision: int) -> None:
        self.request = request
        self.id = watch_id
        self.start = request.start_revision or revision + 1
        self.promised = 0
        """Everything up to here was told."""
        self.told: list[tuple[int, Event]] = []
        self.cancelled_at: int | None = None
        self.fragments: list[Event] = []

    def hear(self, response: Response, model: Model) -> None:
        assert self.cancelled_at is None, "nothing after a cancellation"
        if response.canceled:
            assert response.compact_revision and self._next() < response.compact_revision <= model.compacted
            self.cancelled_at = response.compact_revision
            return
        if response.fragment:
            assert self.request.fragment
            self.fragments += response.events
            return
        events = [*self.fragments, *response.events]
        self.fragments = []
        for event in events:
            assert event.kv.mod_revision > self.promised, "told once, in order, all of a revision at once"
            self.told.append((event.kv.mod_revision, event))
        if not events:
            assert response.header.revision >= self.start or self.request.start_revision == 0
        assert response.header.revision >= self.promised
        self.promised = response.header.revision
        if self.promised >= self.start:
            self.check(model, self.promised)

    def check(self, model: Model, through: int) -> None:
        """Told is what had to be told; of what compaction took, the record before may be missing."""
        told, expected = [event for _, event in self.told], self.expected(model, through)
        assert len(told) == len(expected)
        for one, other in zip(told, expected, strict=True):
            if not one.HasField("prev_kv") and one.kv.mod_revision - 1 < model.compacted:
                other.ClearField("prev_kv")
            assert one == other

    def _next(self) -> int:
        return max(self.promised + 1, self.start)

    def expected(self, model: Model, through: int) -> list[Event]:
        wanted = []
        for revision in range(self.start, min(through, model.revision) + 1):
            for kind, kv, old in model.changes[revision]:
                key, end = self.request.key, self.request.range_end
                if not (kv.key == key if not end else kv.key >= key and (end == b"\0" or kv.key < end)):
                    continue
                if (Create.NOPUT if kind == "put" else Create.NODELETE) in self.request.filters:
                    continue
                event = Event(type=Event.PUT if kind == "put" else Event.DELETE, kv=kv)
                if self.request.prev_kv and old is not None:
                    event.prev_kv.CopyFrom(old)
                wanted.append(event)
        return wanted


watch_requests = st.builds(
    Create,
    key=st.sampled_from([b"a", b"ab", b"b", b"\0"]),
    range_end=st.sampled_from([b"", b"", b"\0", b"z"]),
    start_revision=st.sampled_from([0, 0, 1, 2, 3, 5, 9, 14]),
    prev_kv=st.booleans(),
    filters=st.sampled_from([[], [], [], [Create.NOPUT], [Create.NODELETE]]),
    fragment=st.booleans(),
    progress_notify=st.booleans(),
)
steps = st.one_of(
    st.tuples(st.just("write"), st.lists(st.one_of(puts, deletes, txns), min_size=1, max_size=3)),
    st.tuples(st.just("write"), st.lists(st.one_of(puts, deletes, txns), min_size=1, max_size=3)),
    st.tuples(st.just("write"), st.lists(st.one_of(puts, deletes, txns), min_size=1, max_size=3)),
    st.tuples(st.just("create"), st.tuples(st.integers(0, 1), watch_requests)),
    st.tuples(st.just("compact"), st.integers(1, 14)),
    st.tuples(st.just("read"), st.integers(0, 1)),
    st.tuples(st.just("read"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["start", "run", "finish", "progress", "tick", "commit", "sweep"]), st.integers(0, 1)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.tuples(st.integers(0, 1), watch_requests), max_size=3), st.lists(steps, max_size=30))
def test_watch_guarantees(first: list[Any], script: list[Any]) -> None:
    with fast_folder() as folder:
        driver = Driver(Path(folder), value_cache_bytes=300)
        watching = Watching(driver, stream_limit_bytes=400, response_bytes=150)
        _play(watching, Model(), [*(("create", item) for item in first), *script])
        driver.close()


def _play(watching: Watching, model: Model, script: list[Any]) -> None:
    hub = watching.hub
    streams = [hub.open_stream(0.0), hub.open_stream(0.0)]
    clients: dict[tuple[int, int], Client] = {}
    wire: list[list[bytes]] = [[], []]
    expect_created: list[list[Create]] = [[], []]
    job = None
    now = 0.0

    def transport() -> None:
        for stream, output in hub.take_output():
            at = streams.index(stream)
            wire[at] += output
            stream.set_queued(sum(map(len, wire[at])))

    def read(at: int) -> None:
        transport()
        for data in wire[at]:
            response = Response.FromString(data)
            if response.created:
                request, revision = expect_created[at].pop(0)
                clients[at, response.watch_id] = Client(request, response.watch_id, response.header.revision)
                assert response.header.revision == revision
            elif response.watch_id == -1:
                assert not response.events
                for (where, _), client in clients.items():
                    if where == at and client.cancelled_at is None:
                        assert client.request.start_revision <= response.header.revision
                        client.hear(response, model)
            else:
                clients[at, response.watch_id].hear(response, model)
        wire[at].clear()
        streams[at].set_queued(0)

    def finish() -> None:
        nonlocal job
        if job is not None:
            job.run()
            hub.finish_resync(job)
            job = None

    for action, argument in script:
        if action == "write":
            requests = [request for request in argument if not getattr(request, "lease", 0)]
            if requests:
                watching.apply(*requests)
                for request in requests:
                    model.apply(request)
        elif action == "create":
            at, request = argument
            expect_created[at].append((request, model.revision))
            streams[at].receive(rpc_pb2.WatchRequest(create_request=request))
        elif action == "compact":
            # A small number is a revision, a large one a distance from the newest.
            revision = argument if argument < 8 else model.revision - (argument - 8)
            request = rpc_pb2.CompactionRequest(revision=revision)
            watching.apply(request)
            model.apply(request)
        elif action == "read":
            read(argument)
        elif action == "start":
            job = hub.start_resync() if job is None else job
        elif action == "run" and job is not None:
            job.run()
        elif action == "finish":
            finish()
        elif action == "progress":
            ask_progress(streams[argument])
        elif action == "tick":
            now += 700
            hub.tick(now)
        elif action == "commit":
            watching.driver.commit()
        elif action == "sweep":
            watching.driver.sweep()
        transport()
    finish()
    for _ in range(200):
        read(0)
        read(1)
        if not hub.unsynced:
            break
        watching.catch_up()
    assert not hub.unsynced
    for at in (0, 1):
        read(at)
        assert not expect_created[at]
    assert watching.driver.store.revision == model.revision
    for client in clients.values():
        if client.cancelled_at is None:
            client.check(model, model.revision)


@pytest.mark.parametrize("records", [1, 3])
def test_catching_up_in_many_slices(
    make_driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    """Slices end at revisions, however small they are."""
    from raftkv_node.store import resync

    monkeypatch.setattr(resync, "SLICE_RECORDS", 2)
    monkeypatch.setattr(resync, "JOB_RECORDS", records)
    watching = Watching(make_driver())
    stream = watching.hub.open_stream(0.0)
    ops = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"t%d" % n)) for n in range(7)]
    for n in range(20):
        watching.put(b"k%d" % n)
        watching.apply(rpc_pb2.TxnRequest(success=ops))
        if n == 10:
            watching.driver.commit()
    create(stream, b"a", b"z", start_revision=1)
    watching.catch_up()
    seen: dict[int, int] = {}
    for at, response in enumerate(watching.take(stream)[1:]):
        for event in response.events:
            assert seen.setdefault(event.kv.mod_revision, at) == at, "a revision's events come together"
    assert sorted(seen) == list(range(2, 42))


def test_a_batch_is_cut_where_a_watch_starts(watching: Watching, stream: WatchStream) -> None:
    create(stream, b"a", start_revision=4)
    create(stream, b"a", b"z", start_revision=3)
    watching.apply(*(rpc_pb2.PutRequest(key=b"a", value=b"%d" % n) for n in range(4)))
    told = {r.watch_id: [ev.kv.mod_revision for ev in r.events] for r in watching.take(stream)[2:]}
    assert told == {0: [4, 5], 1: [3, 4, 5]}


def test_a_whole_batch_that_a_full_stream_missed_is_told_later(driver: Driver) -> None:
    watching = Watching(driver, stream_limit_bytes=100)
    stream = watching.hub.open_stream(0.0)
    create(stream, b"a")
    watching.take(stream)
    stream.set_queued(1000)
    watching.apply(*(rpc_pb2.PutRequest(key=b"a", value=b"%d" % n) for n in range(4)))
    assert watching.take(stream) == [] and watching.hub.slow_watchers == 1
    assert watching.hub.start_resync() is None, "no room yet"
    stream.set_queued(0)
    watching.catch_up()
    assert [ev.kv.mod_revision for r in watching.take(stream) for ev in r.events] == [2, 3, 4, 5]


def test_a_slice_under_way_keeps_its_history(watching: Watching, stream: WatchStream) -> None:
    for n in range(6):
        watching.put(b"a", b"%d" % n)
    create(stream, b"a", start_revision=3, prev_kv=True)
    job = watching.hub.start_resync()
    assert job is not None
    watching.compact(7)
    watching.driver.sweep()
    watching.driver.commit()
    job.run()
    watching.hub.finish_resync(job)
    told = [(ev.kv.mod_revision, ev.prev_kv.value) for r in watching.take(stream) for ev in r.events]
    assert told == [(3, b"0"), (4, b"1"), (5, b"2"), (6, b"3"), (7, b"4")]
    watching.driver.sweep()
    assert not watching.driver.store.compacting
