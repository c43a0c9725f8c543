"""RangeStream on the server: the client's pace, whoever ends it, and a real node."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from machine import memory_bytes
from processes import NodeProcess, channel, free_ports, wait_until
from raftkv_node.api.methods import Method
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc
from raftkv_node.server import rangestreams
from raftkv_node.server.faults import INTERNAL_FAULT, RequestFault
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.rangestreams import RangeStreams
from raftkv_node.server.reads import Reads
from raftkv_node.server.watches import STREAM_QUEUE_HIGH_BYTES
from raftkv_node.server.workers import Workers
from raftkv_node.store import Store, commands
from raftkv_node.store.errors import COMPACTED, MALFORMED_REQUEST, NO_LEADER, STOPPED, TOO_MANY_REQUESTS, EtcdError
from raftkv_node.store.rangestream import RangeCursor

PIECE_BYTES = 1000
ALL = rpc_pb2.RangeRequest(key=b"k", range_end=b"l", serializable=True)


class Transport:
    """Streams of the engine: what was sent, how each ended, and what it says is queued."""

    def __init__(self) -> None:
        self.sent: dict[int, list[bytes]] = {}
        self.ended: dict[int, tuple[int, str]] = {}
        self.queued_bytes = 0

    def stream_send(self, messages: Sequence[tuple[int, bytes]]) -> list[int]:
        for call_id, message in messages:
            self.sent.setdefault(call_id, []).append(message)
        return [self.queued_bytes] * len(messages)

    def stream_close(self, call_id: int, code: int, message: str) -> None:
        self.ended[call_id] = code, message


class Server:
    """Streams over a store of 100 keys; jobs of workers are done when the test says so."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder, cluster_id=1, member_id=2, start_thread=False)
        self.store.set_term(3)
        for n in range(100):
            self.apply(commands.PUT, rpc_pb2.PutRequest(key=b"k%02d" % n, value=bytes(100)))
        self.transport = Transport()
        self.workers = Workers(0, lambda: None)
        self.reads = Reads(7.0)
        self.metrics = Metrics()
        self.now = 0.0
        self.streams = RangeStreams(
            self.store, self.reads, self.transport, self.workers, self.metrics, PIECE_BYTES, lambda: self.now
        )

    def apply(self, kind: int, request: rpc_pb2.PutRequest | rpc_pb2.CompactionRequest) -> None:
        batch = commands.decode_batch(commands.encode_batch(1, 1, bytes((kind,)), [request.SerializeToString()]))
        self.store.apply(self.store.applied_index + 1, 3, batch, None, True)

    def open(self, call_id: int, request: rpc_pb2.RangeRequest = ALL, needs_leader: bool = False) -> None:
        self.streams.open(call_id, needs_leader)
        self.streams.receive(call_id, request.SerializeToString(), 0.0)
        self.streams.half_closed(call_id)

    def work(self, jobs: int = 1000) -> int:
        """Do so many jobs of workers, and what they want done in the turn; how many there were."""
        done = 0
        while done < jobs and self.workers._queue.qsize():
            job = self.workers._queue.get()
            assert job is not None
            job()
            done += 1
            while self.workers.done:
                self.workers.done.popleft()()
        return done

    def answer(self, call_id: int) -> rpc_pb2.RangeResponse:
        whole = rpc_pb2.RangeStreamResponse()
        for message in self.transport.sent[call_id]:
            whole.MergeFromString(message)
        return whole.range_response


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "store")
    yield made
    made.store.close(commit=False)


def test_all_pieces_and_a_good_end(server: Server) -> None:
    server.open(7)
    assert server.work() > 10
    answer = server.answer(7)
    assert (len(answer.kvs), answer.count, answer.more, answer.header.revision) == (100, 100, False, 101)
    assert server.transport.ended == {7: (0, "")} and server.streams.count == 0
    counters = server.metrics.method(Method.RANGE_STREAM)
    assert (counters.received, counters.sent) == (1, len(server.transport.sent[7]))


def test_a_linearizable_stream_waits_for_the_quorum(server: Server) -> None:
    request = rpc_pb2.RangeRequest(key=b"k", range_end=b"l")
    server.open(7, request)
    assert server.work() == 0 and server.reads.waiting == 1
    context = server.reads.next_try(0.0, True)
    assert context is not None
    server.reads.confirmed(context, 90, 0.1)
    server.reads.serve(90)
    server.work()
    assert server.answer(7).count == 100
    server.open(8, request)
    server.reads.abandon(STOPPED)
    assert server.transport.ended[8] == (14, "etcdserver: server stopped")


def test_a_slow_client_is_waited_for(server: Server) -> None:
    server.transport.queued_bytes = STREAM_QUEUE_HIGH_BYTES
    server.open(7)
    assert server.work() == 1, "nothing more is read while so much is queued"
    assert not server.store._pins, "nor is any revision kept for it"
    server.streams.drained(7)
    assert server.work() == 1
    server.transport.queued_bytes = STREAM_QUEUE_HIGH_BYTES - 1
    server.streams.drained(7)
    server.work()
    assert server.answer(7).count == 100 and server.transport.ended == {7: (0, "")}


def test_a_client_that_is_faster_than_the_turn_is_not_waited_for_in_vain(server: Server) -> None:
    """The engine may have sent a piece, and have said so, before the turn hears that it was handed over."""
    server.transport.queued_bytes = STREAM_QUEUE_HIGH_BYTES
    server.open(7)
    for _ in range(100):
        job = server.workers._queue.get()
        assert job is not None
        job()
        server.streams.drained(7)
        while server.workers.done:
            server.workers.done.popleft()()
        if 7 in server.transport.ended:
            break
    assert server.answer(7).count == 100


def test_history_that_is_compacted_meanwhile_ends_the_stream(server: Server) -> None:
    server.open(7)
    server.work(2)
    server.apply(commands.PUT, rpc_pb2.PutRequest(key=b"k99", value=b"new"))
    server.apply(commands.COMPACT, rpc_pb2.CompactionRequest(revision=102))
    server.work()
    assert server.transport.ended == {7: (COMPACTED.grpc_code, COMPACTED.message)}


def test_clients_that_go_away(server: Server) -> None:
    server.open(7)
    assert server.streams.closed(7) and not server.streams.closed(7)
    assert server.work() == 1, "what was ordered is thrown away, and nothing follows"
    server.open(8)
    server.transport.queued_bytes = rangestreams.GONE
    assert server.work() == 1
    server.streams.drained(8)
    server.streams.closed(8)
    assert server.transport.ended == {}


def test_requests_that_are_refused(server: Server) -> None:
    def ended(call_id: int) -> EtcdError:
        return EtcdError(*server.transport.ended[call_id])

    server.open(1, rpc_pb2.RangeRequest())
    assert ended(1).message == "etcdserver: key is not provided"
    server.open(2, rpc_pb2.RangeRequest(key=b"k", sort_order=rpc_pb2.RangeRequest.DESCEND))
    assert ended(2) == EtcdError(12, "RangeStream does not support custom sort orders")
    server.open(3, rpc_pb2.RangeRequest(key=b"k", serializable=True, revision=1000))
    assert ended(3).message == "etcdserver: mvcc: required revision is a future revision"
    server.streams.open(4, False)
    server.streams.receive(4, b"\xff", 0.0)
    assert ended(4) == MALFORMED_REQUEST
    server.streams.open(5, False)
    server.streams.half_closed(5)
    assert ended(5) == MALFORMED_REQUEST
    assert server.streams.count == 0 and server.work() == 0


def test_streams_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rangestreams, "MAX_RANGE_STREAMS", 2)
    for call_id in (1, 2, 3):
        server.open(call_id)
    assert server.transport.ended == {3: (TOO_MANY_REQUESTS.grpc_code, TOO_MANY_REQUESTS.message)}
    server.work()
    assert server.answer(2).count == 100


def test_a_client_that_stands_still_keeps_its_place_until_another_wants_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rangestreams, "MAX_RANGE_STREAMS", 2)
    server.transport.queued_bytes = STREAM_QUEUE_HIGH_BYTES
    server.open(1)
    server.work()
    server.now = 10.0
    server.streams.open(2, False)  # and never says what it wants
    server.now = rangestreams.STILL_SECONDS - 1
    server.open(3)
    assert set(server.transport.ended) == {3}, "nobody has stood still for long"
    server.streams.drained(1)
    server.work()
    server.now = rangestreams.STILL_SECONDS + 10.0
    server.open(4)
    assert set(server.transport.ended) == {2, 3}, "it goes to the one that moved longest ago"
    assert server.transport.ended[2] == (TOO_MANY_REQUESTS.grpc_code, TOO_MANY_REQUESTS.message)
    server.open(5)
    assert set(server.transport.ended) == {2, 3, 5}
    server.transport.queued_bytes = 0
    server.streams.drained(1)
    server.work()
    assert server.answer(1).count == 100, "a slow one loses nothing"


def test_a_stop_waits_for_streams_that_move(server: Server) -> None:
    assert not server.streams.moving
    server.transport.queued_bytes = STREAM_QUEUE_HIGH_BYTES
    server.open(1)
    assert server.streams.moving
    server.now = 2 * rangestreams.MOVING_SECONDS
    assert server.streams.moving, "its piece is being read"
    server.work()
    assert not server.streams.moving, "its client takes nothing"
    server.streams.drained(1)
    assert server.streams.moving


def test_many_streams_have_small_pieces(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, also those that began when there were few."""
    monkeypatch.setattr(rangestreams, "PIECES_BYTES", 2400)
    monkeypatch.setattr(rangestreams, "MIN_PIECE_BYTES", 300)
    server.transport.queued_bytes = STREAM_QUEUE_HIGH_BYTES
    server.open(0)
    server.work()  # the first ten keys
    server.streams.drained(0)
    server.work()
    alone = len(server.transport.sent[0][-1])
    assert alone >= PIECE_BYTES
    for call_id in range(1, 8):
        server.open(call_id)
    server.work()
    for call_id in range(8):
        server.streams.drained(call_id)
    server.work()
    record = 130
    pieces = [len(server.transport.sent[call_id][-1]) for call_id in range(8)]
    assert all(300 <= piece < 300 + record for piece in pieces), "an eighth each, and a record"
    server.transport.queued_bytes = 0
    for call_id in range(8):
        server.streams.drained(call_id)
    server.work()
    assert all(server.answer(call_id).count == 100 for call_id in range(8))


def test_a_stream_that_waits_for_the_server_keeps_its_place(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rangestreams, "MAX_RANGE_STREAMS", 1)
    server.open(1)  # its piece is ordered, and no worker has the time
    server.now = 10 * rangestreams.STILL_SECONDS
    server.open(2)
    assert set(server.transport.ended) == {2}
    server.work()
    assert server.answer(1).count == 100


def test_a_fault_in_a_piece_ends_its_stream_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.open(1)
    with monkeypatch.context() as patch:
        patch.setattr(RangeCursor, "read", lambda *_: int("a mistake"))
        job = server.workers._queue.get()
        assert job is not None
        with pytest.raises(RequestFault) as fault:
            job()
    assert isinstance(fault.value.__cause__, ValueError)
    server.workers.done.popleft()()
    assert server.transport.ended == {1: (INTERNAL_FAULT.grpc_code, INTERNAL_FAULT.message)}
    server.open(2)
    server.work()
    assert server.answer(2).count == 100


def test_streams_end_with_the_leader_or_the_member(server: Server) -> None:
    server.open(1, needs_leader=True)
    server.open(2)
    server.streams.cancel_without_leader(NO_LEADER)
    assert set(server.transport.ended) == {1}
    server.streams.abandon(STOPPED)
    assert server.transport.ended[2] == (STOPPED.grpc_code, STOPPED.message)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    client, peer = free_ports(2)
    made = NodeProcess("n1", tmp_path / "n1", client, peer)
    made.arguments = ["--initial-cluster", f"n1={made.peer_url}", "--minimum-durability", "process"]
    made.start()
    wait_until("healthy member", made.healthy)
    yield made
    made.kill()


def test_a_node_streams_more_than_it_could_hold_for_a_slow_client(node: NodeProcess) -> None:
    """60 MB of values for eight clients that do not read: a few MB of memory each, and the others are served."""
    with channel(node.endpoint) as connection:
        kv = rpc_pb2_grpc.KVStub(connection)
        value = bytes(500_000)
        for n in range(120):
            kv.Put(rpc_pb2.PutRequest(key=b"k%03d" % n, value=value), timeout=20)
        wait_until("all is committed", lambda: node.metric("raftkv_backend_buffered_bytes") == 0)
        assert node.process is not None
        before = memory_bytes(node.process.pid, "RssAnon")
        request = rpc_pb2.RangeRequest(key=b"k", range_end=b"l")
        # One connection each, so that their windows are their own.
        slow = [grpc.insecure_channel(node.endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
        try:
            streams = [rpc_pb2_grpc.KVStub(one).RangeStream(request, timeout=60) for one in slow]
            firsts = [next(stream).range_response for stream in streams]
            assert all(1 <= len(first.kvs) <= 10 for first in firsts)
            time.sleep(0.5)
            assert kv.Range(rpc_pb2.RangeRequest(key=b"k000"), timeout=20).count == 1
            assert memory_bytes(node.process.pid, "RssAnon") - before < 8 * (8 << 20)
            for stream, first in zip(streams, firsts, strict=True):
                whole = rpc_pb2.RangeStreamResponse(range_response=first)
                for piece in stream:
                    assert piece.ByteSize() < 3 << 20
                    whole.MergeFrom(piece)
                assert [kv.key for kv in whole.range_response.kvs] == [b"k%03d" % n for n in range(120)]
                assert whole.range_response.count == 120 and whole.range_response.header.revision == 121
        finally:
            for one in slow:
                one.close()
        assert 'grpc_method="RangeStream"' in node.get("/metrics")[1]


def test_a_streams_answers_are_those_of_the_range(node: NodeProcess) -> None:
    with channel(node.endpoint) as connection:
        kv = rpc_pb2_grpc.KVStub(connection)
        for n in range(30):
            kv.Put(rpc_pb2.PutRequest(key=b"k%02d" % n, value=b"v"), timeout=20)
        for request in (
            rpc_pb2.RangeRequest(key=b"k", range_end=b"l"),
            rpc_pb2.RangeRequest(key=b"k", range_end=b"l", limit=12, serializable=True),
            rpc_pb2.RangeRequest(key=b"k", range_end=b"l", limit=30),
            rpc_pb2.RangeRequest(key=b"k", range_end=b"l", revision=9, limit=3),
            rpc_pb2.RangeRequest(key=b"k", range_end=b"l", keys_only=True, revision=20),
            rpc_pb2.RangeRequest(key=b"k", range_end=b"l", count_only=True),
            rpc_pb2.RangeRequest(key=b"k07"),
            rpc_pb2.RangeRequest(key=b"nothing"),
            rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"),
        ):
            whole = rpc_pb2.RangeStreamResponse()
            for piece in kv.RangeStream(request, timeout=20):
                whole.MergeFrom(piece)
            assert whole.range_response == kv.Range(request, timeout=20)
        with pytest.raises(grpc.RpcError) as refused:
            next(kv.RangeStream(rpc_pb2.RangeRequest(key=b"k", revision=10_000), timeout=20))
        assert refused.value.code() == grpc.StatusCode.OUT_OF_RANGE
