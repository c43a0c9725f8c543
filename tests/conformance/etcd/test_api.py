"""etcd's API by grpcio: exact error texts and codes, what a response carries, watches, and what is refused when."""

from __future__ import annotations

import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "server"))

from processes import Cluster, NodeProcess, channel, cluster, free_ports, wait_until
from raftkv_node.api.methods import METHODS
from raftkv_node.pb import health_pb2, health_pb2_grpc, rpc_pb2, rpc_pb2_grpc

Code = grpc.StatusCode
Put, Range, Delete, Txn = rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.DeleteRangeRequest, rpc_pb2.TxnRequest
Op = rpc_pb2.RequestOp


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("api"), 1, "adr", ("--max-request-bytes", "100000")) as made:
        yield made


@pytest.fixture
def connection(alone: Cluster) -> Iterator[grpc.Channel]:
    with channel(alone.members[0].endpoint) as made:
        yield made


@pytest.fixture
def kv(connection: grpc.Channel) -> Any:
    return rpc_pb2_grpc.KVStub(connection)


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Code and text of the error that a call ends with."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


def put(key: bytes, value: bytes = b"v") -> Any:
    return Op(request_put=Put(key=key, value=value))


REFUSALS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("Put", Put(value=b"v"), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    ("Range", Range(), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    ("DeleteRange", Delete(), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    ("Put", Put(key=b"k", value=b"v", ignore_value=True), Code.INVALID_ARGUMENT, "etcdserver: value is provided"),
    ("Put", Put(key=b"k", lease=1, ignore_lease=True), Code.INVALID_ARGUMENT, "etcdserver: lease is provided"),
    ("Put", Put(key=b"no such", ignore_value=True), Code.INVALID_ARGUMENT, "etcdserver: key not found"),
    ("Put", Put(key=b"k", value=b"v", lease=7), Code.NOT_FOUND, "etcdserver: requested lease not found"),
    ("Put", Put(key=b"k", value=bytes(100_001)), Code.INVALID_ARGUMENT, "etcdserver: request is too large"),
    ("Range", Range(key=b"k", sort_order=9), Code.INVALID_ARGUMENT, "etcdserver: invalid sort option"),
    (
        "Range",
        Range(key=b"k", revision=1 << 40),
        Code.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    ),
    (
        "Txn",
        Txn(success=[put(b"a"), put(b"a")]),
        Code.INVALID_ARGUMENT,
        "etcdserver: duplicate key given in txn request",
    ),
    (
        "Txn",
        Txn(success=[put(b"%d" % number) for number in range(129)]),
        Code.INVALID_ARGUMENT,
        "etcdserver: too many operations in txn request",
    ),
    ("Txn", Txn(success=[Op()]), Code.INVALID_ARGUMENT, "etcdserver: key not found"),
    (
        "Compact",
        rpc_pb2.CompactionRequest(revision=1 << 40),
        Code.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    ),
]


@pytest.mark.parametrize(("method", "request_", "code", "text"), REFUSALS)
def test_errors_have_etcds_codes_and_texts(kv: Any, method: str, request_: Any, code: Any, text: str) -> None:
    assert refused(lambda: getattr(kv, method)(request_, timeout=10)) == (code, text)


def test_what_is_no_message_is_refused(connection: grpc.Channel) -> None:
    call = connection.unary_unary("/etcdserverpb.KV/Put")
    assert refused(lambda: call(b"\xff\xff\xff", timeout=10))[0] == Code.INVALID_ARGUMENT


def _not_served() -> list[str]:
    """Paths of etcd's API that this version does not serve; locks and elections are not in our protocol files."""
    served = {info.path for info in METHODS.values()}
    services = rpc_pb2.DESCRIPTOR.services_by_name.values()
    paths = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert served & paths
    return [*sorted(paths - served), "/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"]


@pytest.mark.parametrize("path", _not_served())
def test_what_is_not_served_is_unimplemented(connection: grpc.Channel, path: str) -> None:
    """One empty message, or a stream with one, gets the same answer."""
    assert refused(lambda: connection.unary_unary(path)(b"", timeout=10))[0] == Code.UNIMPLEMENTED
    stream = connection.stream_stream(path)
    assert refused(lambda: list(stream(iter([b""]), timeout=10)))[0] == Code.UNIMPLEMENTED


def test_headers_name_cluster_member_revision_and_term(kv: Any, connection: grpc.Channel) -> None:
    before = kv.Range(Range(key=b"header"), timeout=10).header
    after = kv.Put(Put(key=b"header", value=b"v"), timeout=10).header
    assert after.revision == before.revision + 1
    assert (after.cluster_id, after.member_id) == (before.cluster_id, before.member_id)
    assert after.raft_term >= 1
    status = rpc_pb2_grpc.MaintenanceStub(connection).Status(rpc_pb2.StatusRequest(), timeout=10)
    assert status.header.member_id == after.member_id == status.leader
    major, minor, _ = (int(part) for part in status.version.split("."))
    assert (major, minor) >= (3, 6)


def test_every_write_of_many_at_once_is_answered_with_its_own_revision(kv: Any) -> None:
    """Batching must be invisible: as many revisions as writes, and each write is there."""
    number = 500
    calls = [kv.Put.future(Put(key=b"many/%04d" % one, value=b"%d" % one), timeout=30) for one in range(number)]
    revisions = [call.result().header.revision for call in calls]
    assert len(set(revisions)) == number
    assert max(revisions) - min(revisions) == number - 1
    found = kv.Range(Range(key=b"many/", range_end=b"many0"), timeout=10)
    assert [int(one.value) for one in found.kvs] == list(range(number))
    assert {one.mod_revision for one in found.kvs} == set(revisions)


def test_a_large_range_and_a_large_value_come_whole(kv: Any) -> None:
    value = bytes(range(256)) * 300
    for number in range(40):
        kv.Put(Put(key=b"large/%02d" % number, value=value), timeout=10)
    found = kv.Range(Range(key=b"large/", range_end=b"large0"), timeout=30)
    assert found.count == 40
    assert all(one.value == value for one in found.kvs)


def test_a_transaction_of_reads_is_answered_without_a_revision(kv: Any) -> None:
    revision = kv.Put(Put(key=b"read", value=b"1"), timeout=10).header.revision
    for serializable in (False, True):
        op = Op(request_range=Range(key=b"read", serializable=serializable))
        answer = kv.Txn(Txn(success=[op]), timeout=10)
        assert answer.succeeded
        assert answer.responses[0].response_range.kvs[0].value == b"1"
        assert answer.header.revision == revision


def test_who_asks_for_a_leader_is_served_while_there_is_one(kv: Any) -> None:
    kv.Range(Range(key=b"k"), timeout=10, metadata=(("hasleader", "true"),))


def test_members_leaders_and_alarms(connection: grpc.Channel) -> None:
    members = rpc_pb2_grpc.ClusterStub(connection)
    maintenance = rpc_pb2_grpc.MaintenanceStub(connection)
    own = members.MemberList(rpc_pb2.MemberListRequest(linearizable=True), timeout=10).members[0].ID
    not_found = (Code.NOT_FOUND, "etcdserver: member not found")
    assert refused(lambda: members.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=1), timeout=10)) == not_found
    assert refused(lambda: members.MemberPromote(rpc_pb2.MemberPromoteRequest(ID=1), timeout=10)) == not_found
    assert refused(lambda: members.MemberPromote(rpc_pb2.MemberPromoteRequest(ID=own), timeout=10)) == (
        Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member",
    )  # fmt: skip
    assert refused(lambda: members.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=own), timeout=10)) == (
        Code.FAILED_PRECONDITION, "etcdserver: re-configuration failed due to not enough started members",
    )  # fmt: skip
    for urls in ([], ["no url"], ["http://a:1", "http://a:1"], [f"http://{'h' * 254}:1"]):
        request = rpc_pb2.MemberAddRequest(peerURLs=urls, isLearner=True)
        assert refused(lambda request=request: members.MemberAdd(request, timeout=10)) == (  # type: ignore[misc]
            Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid",
        )  # fmt: skip
    assert refused(lambda: maintenance.MoveLeader(rpc_pb2.MoveLeaderRequest(targetID=1), timeout=10)) == (
        Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee",
    )  # fmt: skip
    assert not maintenance.Alarm(rpc_pb2.AlarmRequest(), timeout=10).alarms


def test_health_by_grpc(connection: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(connection)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == serving
    stream = health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert next(stream).status == serving
    stream.cancel()


@pytest.mark.parametrize("target", ["//[", "//[::1", "http://[", "/%zz", "//\u2100/", "/health?%", "*"])
def test_no_http_target_ends_the_node(alone: Cluster, target: str) -> None:
    member = alone.members[0]
    with socket.create_connection(("127.0.0.1", member.client_port), timeout=20) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        sock.recv(1000)
    assert member.healthy()


class Watching:
    """A watch stream with requests and responses as queues."""

    def __init__(self, connection: grpc.Channel, metadata: Any = ()) -> None:
        self._requests: queue.Queue[Any] = queue.Queue()
        self.responses: queue.Queue[Any] = queue.Queue()
        self._stream = rpc_pb2_grpc.WatchStub(connection).Watch(iter(self._requests.get, None), metadata=metadata)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for response in self._stream:
                self.responses.put(response)
        except grpc.RpcError as error:
            self.responses.put(error)

    def create(self, **fields: Any) -> Any:
        self._requests.put(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(**fields)))
        return self.next()

    def cancel(self, watch_id: int) -> Any:
        self._requests.put(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id)))
        return self.next()

    def progress(self) -> Any:
        self._requests.put(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
        return self.next()

    def next(self) -> Any:
        return self.responses.get(timeout=20)

    def events(self, number: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < number:
            found += self.next().events
        return found

    def close(self) -> None:
        self._requests.put(None)
        self._stream.cancel()


@pytest.fixture
def watching(connection: grpc.Channel) -> Iterator[Watching]:
    made = Watching(connection, (("hasleader", "true"),))
    yield made
    made.close()


def test_a_watch_is_created_told_and_cancelled(kv: Any, watching: Watching) -> None:
    created = watching.create(key=b"w/", range_end=b"w0", prev_kv=True)
    assert created.created
    assert not created.canceled
    kv.Put(Put(key=b"w/1", value=b"a"), timeout=10)
    kv.Put(Put(key=b"elsewhere", value=b"a"), timeout=10)
    kv.Put(Put(key=b"w/1", value=b"b"), timeout=10)
    kv.DeleteRange(Delete(key=b"w/1"), timeout=10)
    first, second, third = watching.events(3)
    assert (first.type, first.kv.value, first.kv.version) == (0, b"a", 1)
    assert (second.kv.value, second.prev_kv.value) == (b"b", b"a")
    assert (third.type, third.kv.key, third.prev_kv.value) == (1, b"w/1", b"b")
    canceled = watching.cancel(created.watch_id)
    assert canceled.canceled
    assert canceled.watch_id == created.watch_id


def test_a_watch_from_the_past_sees_everything_once_in_order(kv: Any, watching: Watching) -> None:
    start = kv.Put(Put(key=b"past/0", value=b"0"), timeout=10).header.revision
    for number in range(1, 50):
        kv.Put(Put(key=b"past/%d" % (number % 7), value=b"%d" % number), timeout=10)
    watching.create(key=b"past/", range_end=b"past0", start_revision=start)
    for number in range(50, 60):
        kv.Put(Put(key=b"past/0", value=b"%d" % number), timeout=10)
    events = watching.events(60)
    assert [int(event.kv.value) for event in events] == list(range(60))
    revisions = [event.kv.mod_revision for event in events]
    assert revisions == sorted(set(revisions))


def test_the_events_of_a_transaction_come_in_one_response(kv: Any, watching: Watching) -> None:
    watching.create(key=b"t/", range_end=b"t0")
    kv.Txn(Txn(success=[put(b"t/1"), put(b"t/2"), put(b"t/3")]), timeout=10)
    response = watching.next()
    assert [event.kv.key for event in response.events] == [b"t/1", b"t/2", b"t/3"]
    assert len({event.kv.mod_revision for event in response.events}) == 1


def test_progress_is_told_when_asked_for(kv: Any, watching: Watching) -> None:
    watching.create(key=b"p")
    revision = kv.Put(Put(key=b"unrelated", value=b"x"), timeout=10).header.revision
    answer = watching.progress()
    assert answer.watch_id == -1
    assert answer.header.revision >= revision
    assert not answer.events


def test_watches_that_cannot_be(kv: Any, watching: Watching) -> None:
    backwards = watching.create(key=b"b", range_end=b"a")
    assert (backwards.created, backwards.canceled, backwards.watch_id) == (True, True, -1)
    assert backwards.cancel_reason == "mvcc: watcher range is empty"
    revision = 0
    for value in (b"1", b"2", b"3"):
        revision = kv.Put(Put(key=b"compacted", value=value), timeout=10).header.revision
    kv.Compact(rpc_pb2.CompactionRequest(revision=revision), timeout=10)
    assert watching.create(key=b"compacted", start_revision=1).created
    canceled = watching.next()
    assert (canceled.canceled, canceled.compact_revision) == (True, revision)
    assert refused(lambda: kv.Range(Range(key=b"compacted", revision=1), timeout=10)) == (
        Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted",
    )  # fmt: skip


def test_a_learner_serves_serializable_reads_and_survives_nonsense(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, "disk") as made:
        first = made.members[0]
        learner = NodeProcess("n2", tmp_path / "n2", *free_ports(2))
        with channel(first.endpoint) as connection:
            rpc_pb2_grpc.KVStub(connection).Put(Put(key=b"k", value=b"v"), timeout=10)
            request = rpc_pb2.MemberAddRequest(peerURLs=[learner.peer_url], isLearner=True)
            rpc_pb2_grpc.ClusterStub(connection).MemberAdd(request, timeout=10)
        learner.arguments = [
            *("--initial-cluster", f"n1={first.peer_url},n2={learner.peer_url}"),
            *("--initial-cluster-state", "existing"),
        ]
        made.members.append(learner)
        learner.start()
        with channel(learner.endpoint) as connection:
            kv = rpc_pb2_grpc.KVStub(connection)

            def has_it() -> bool:
                try:
                    return bool(kv.Range(Range(key=b"k", serializable=True), timeout=5).kvs)
                except grpc.RpcError:
                    return False

            wait_until("learner with the key", has_it)
            refusal = (Code.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner")
            assert refused(lambda: kv.Range(Range(key=b"k"), timeout=10)) == refusal
            call = connection.unary_unary("/etcdserverpb.KV/Range")
            assert refused(lambda: call(b"\xff\xff\xff", timeout=10)) == refusal
            assert has_it()


def test_without_a_quorum_nothing_is_promised(tmp_path: Path) -> None:
    """Two of three are gone: only serializable reads go on, everything else ends with etcd's errors."""
    with cluster(tmp_path, 3, "adr", ("--election-timeout", "500")) as made:
        left, *gone = made.members
        with channel(left.endpoint) as connection:
            kv = rpc_pb2_grpc.KVStub(connection)
            kv.Put(Put(key=b"k", value=b"v"), timeout=10)
            watching = Watching(connection, (("hasleader", "true"),))
            assert watching.create(key=b"k").created
            for one in gone:
                one.kill()
            ended = watching.next()
            assert isinstance(ended, grpc.RpcError)
            assert (ended.code(), ended.details()) == (Code.UNAVAILABLE, "etcdserver: no leader")  # type: ignore[attr-defined]
            asking = (("hasleader", "true"),)
            assert refused(lambda: kv.Range(Range(key=b"k"), timeout=10, metadata=asking)) == (
                Code.UNAVAILABLE, "etcdserver: no leader",
            )  # fmt: skip
            assert kv.Range(Range(key=b"k", serializable=True), timeout=10).kvs[0].value == b"v"
            code, text = refused(lambda: kv.Put(Put(key=b"k", value=b"w"), timeout=30))
            assert code == Code.UNAVAILABLE
            assert "timed out" in text
            assert refused(lambda: kv.Range(Range(key=b"k"), timeout=30)) == (
                Code.UNAVAILABLE, "etcdserver: request timed out",
            )  # fmt: skip
            assert left.get("/health") == (503, '{"health":"false","reason":"RAFT NO LEADER"}')
            assert left.get("/livez")[0] == 200
            assert left.get("/readyz")[0] == 503
