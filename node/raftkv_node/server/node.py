"""The node: one thread that takes turns with the engine, in whatever phase the node is.

Without an identity it only answers the administration service, health and probes. With one, a :class:`Member` does
the rest. Calls are sorted by what they need: the key space in groups, watches as streams, everything rare one by one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final

from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from raftkv_node import _engine
from raftkv_node.api.methods import ADMIN_METHODS, ALWAYS_SERVED, METHODS, Method
from raftkv_node.config import NodeConfig
from raftkv_node.pb import health_pb2, rpc_pb2
from raftkv_node.raft import Configuration
from raftkv_node.server import identity as identities
from raftkv_node.server.admin import AdminService
from raftkv_node.server.answers import Answers
from raftkv_node.server.calls import ClientCall, PeerCall
from raftkv_node.server.cluster import ClusterService
from raftkv_node.server.discovery import Discovery
from raftkv_node.server.faults import INTERNAL_FAULT, REQUEST_FAULTS, RequestFault
from raftkv_node.server.gauges import gauges
from raftkv_node.server.identity import Identity
from raftkv_node.server.kv import KeySpace
from raftkv_node.server.log import Logger
from raftkv_node.server.log import member as shown
from raftkv_node.server.member import WAS_REMOVED, Failure, Member
from raftkv_node.server.metrics import Collector, MethodName, Metrics
from raftkv_node.server.probes import Probes
from raftkv_node.server.replica import EntriesGone
from raftkv_node.server.workers import Workers
from raftkv_node.store.errors import (
    MALFORMED_REQUEST,
    NO_LEADER,
    NOT_SUPPORTED_FOR_LEARNER,
    STOPPED,
    UNAVAILABLE,
    EtcdError,
)

CAPTURED_METADATA: Final = ("hasleader", "authorization")
_HAS_LEADER, _AUTHORIZATION = 0, 1
WORKER_THREADS: Final = 2
FULL_BUFFER_POLL_SECONDS: Final = 0.005
"""How often a full log buffer is tried again."""
DEFERRED_SECONDS: Final = 0.002
"""How long acknowledgements that can commit nothing wait for more, at most; a member that lags is sent more then."""
MAX_DEFERRED_FRAMES: Final = 1000
"""So many of them do not wait any longer."""
READ_BUDGET_SECONDS: Final = 0.001
"""Time for reads in a turn; more of them wait for the next one."""
NOT_OPEN: Final = EtcdError(UNAVAILABLE, "raftkv: the cluster is not open to clients yet")
NOT_STARTED: Final = EtcdError(UNAVAILABLE, "raftkv: this node has no identity yet")

_CLIENT_EVENTS: Final = frozenset(
    {
        _engine.EV_HTTP,
        _engine.EV_STREAM_OPEN,
        _engine.EV_STREAM_MESSAGE,
        _engine.EV_STREAM_HALF_CLOSE,
        _engine.EV_STREAM_DRAINED,
    }
)
KEY_SPACE: Final = frozenset({Method.RANGE, Method.PUT, Method.DELETE_RANGE, Method.TXN, Method.COMPACT})
_HEALTH_WATCHES: Final = 10_000
"""Open health streams; one more is refused."""


class Node:
    """See the module's text. ``run`` returns when the node is to stop."""

    def __init__(
        self, config: NodeConfig, identity: Identity, founding: Configuration, engine: _engine.Engine, logger: Logger
    ) -> None:
        self.config = config
        self.identity = identity
        self.member: Member | None = None
        self.started = monotonic()
        self.logger = logger
        self.engine = engine
        self.stopping = False
        self.retiring: Identity | None = None
        self.metrics = Metrics()
        self.answers = Answers(engine)
        self.workers = Workers(WORKER_THREADS, engine.wake)
        self.admin = AdminService(self)
        self.registry = CollectorRegistry(auto_describe=False)
        names = {number: MethodName(info.service, info.name, info.kind) for number, info in METHODS.items()}
        self.registry.register(Collector(self.metrics, lambda: gauges(self), names))
        self.probes = Probes(self)
        self._founding = founding
        self._tick_seconds = config.heartbeat_interval / 1000
        self._next_tick = monotonic()
        self._health_streams: dict[int, bool] = {}
        self._work_left = False
        self._cancelled: set[int] = set()
        self._discovery: Discovery | None = None
        if identity.issued and not identity.retired:
            self._become_member()
        elif not config.operated:
            self._discovery = Discovery(config, identity, engine, logger)

    # -- identity -----------------------------------------------------------------------------------------------------

    def take_identity(self, identity: Identity) -> None:
        """Save an identity that was just issued and begin to be that member."""
        folder = self.config.data_dir
        if identities.load_or_format(folder, self.config.number, self.config.name) != self.identity:
            # the log's lock (D11) comes with the log: two that wait on one folder find out here
            raise Failure(f"another process has changed the identity in {folder}")
        identities.save(self.config.data_dir, identity)
        self.identity = identity
        if identity.founding:
            self._founding = Configuration.decode(identity.founding)
        self._become_member()

    def _become_member(self) -> None:
        member = Member(
            self.config,
            self.identity,
            self._founding,
            transport=self.engine,
            answers=self.answers,
            workers=self.workers,
            metrics=self.metrics,
            logger=self.logger,
        )
        if member.log.on_durable is None:
            member.log.on_durable = self._wake_for_flush
        self.member = member
        self.key_space = KeySpace(self.config, member, self.answers, self.workers, self.metrics)
        self.cluster = ClusterService(self.config, member, self.workers)
        recovered = member.recovered
        self.logger.info(
            "member",
            id=shown(self.identity.member_id),
            cluster=shown(self.identity.cluster_id),
            durability=member.log.level,
            medium=member.log.medium,
            row=recovered.row,
            generation=recovered.generation,
            last_index=recovered.last_index,
            applied=member.store.applied_index,
            replayed=recovered.replayed,
            torn_tail_bytes=recovered.torn_tail_bytes,
            recovery_ms=round(recovered.duration_seconds * 1000, 1),
        )

    def _wake_for_flush(self, _lsn: int) -> None:
        self.engine.wake()

    def retire(self, identity: Identity) -> None:
        """Wipe ring and disk and end the process, after the answer is out."""
        self.retiring = identity
        self.stopping = True

    # -- the turn -----------------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Take turns until the node is to stop (or ``until`` says so)."""
        while not self.stopping if until is None else not until():
            self.turn()

    def turn(self) -> None:
        """One turn; the design's law."""
        batch = self._poll()
        started = monotonic()
        if batch:
            self._take(batch, started)
            if self._cancelled:
                self._forget_cancelled()
        if self.workers.done or self.workers.failures:
            self._workers_done()
        if started >= self._next_tick:
            self._tick(started)
        member = self.member
        if member is not None:
            if member.peers.requests:
                self._forwarded(member, started)
            if member.peers.responses:
                self.cluster.take_responses()
            self._work_left = member.advance(started)
            if self.key_space.reads_left:
                self._work_left = self.key_space.serve(monotonic() + READ_BUDGET_SECONDS) or self._work_left
        self.answers.flush()
        if member is not None:
            member.watches.flush()
        if batch:
            self.metrics.turns += 1
            self.metrics.turn.add(monotonic() - started)

    def _poll(self) -> _engine.Batch:
        """Wait for what this turn is about. Acknowledgements that can commit nothing yet wait for others, or for
        anything else that comes."""
        timeout = 0.0 if self._work_left else max(0.0, self._next_tick - monotonic())
        member = self.member
        if member is None:
            return self.engine.poll(timeout)
        if member.replica.blocked:
            timeout = min(timeout, FULL_BUFFER_POLL_SECONDS)
        if member.tell_commit_at is not None:
            timeout = min(timeout, max(0.0, member.tell_commit_at - monotonic()))
        awaited = min(member.raft.missing_acknowledgements(), MAX_DEFERRED_FRAMES)
        return self.engine.poll(timeout, max(0, awaited - 1), DEFERRED_SECONDS)

    def _take(self, batch: _engine.Batch, now: float) -> None:
        for method, call_ids, messages, metadata in batch.unary:
            counters = self.metrics.method(method)
            counters.started += len(call_ids)
            counters.received += len(call_ids)
            try:
                self._unary(method, call_ids, messages, metadata, now)
            except REQUEST_FAULTS as error:
                if method in ADMIN_METHODS:
                    raise  # these change what the node is: half done they must not be left
                self._fault(error, method)
                self._refuse(method, call_ids, INTERNAL_FAULT)
        for event in batch.events:
            try:
                self._event(event, now)
            except REQUEST_FAULTS as error:
                if event[0] not in _CLIENT_EVENTS:
                    raise
                self._fault(error, event[0])
                self._end_faulty(event)
        if batch.peer:
            if self.member is not None:
                self.member.receive(batch.peer, now)
            elif self._discovery is not None:
                self._discovered(self._discovery, self._discovery.receive(batch.peer))

    def _forget_cancelled(self) -> None:
        """Nobody waits any more for these calls."""
        if self.member is not None:
            self.member.writes.cancel(self._cancelled)
        self._cancelled.clear()

    def _fault(self, error: Exception, number: int) -> None:
        """A request has met a fault of ours: say where. Its caller gets INTERNAL, and everybody else is served on."""
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        self.logger.error("a request could not be handled", error=repr(error), kind=number, where=where)

    def _end_faulty(self, event: tuple[Any, ...]) -> None:
        """End the stream or HTTP request of an event that could not be handled."""
        if event[0] == _engine.EV_HTTP:
            self.engine.http_reply(event[1], 500, "text/plain", b"internal error\n")
            return
        if self.member is not None:
            self.member.stream_closed(event[1])
        self.engine.stream_close(event[1], INTERNAL_FAULT.grpc_code, INTERNAL_FAULT.message)

    def _discovered(self, discovery: Discovery, identity: Identity | None) -> None:
        if identity is not None:
            discovery.close()
            self._discovery = None
            self.take_identity(identity)

    def _tick(self, now: float) -> None:
        """A heartbeat interval has passed. After a pause of the process one tick is given, not all that were missed."""
        self._next_tick = max(self._next_tick + self._tick_seconds, now)
        if self.member is not None:
            self.member.tick(now)
            self.cluster.tick(now)
        elif self._discovery is not None:
            self._discovery.tick(now)
        if self._health_streams:
            self._tell_health()

    def _workers_done(self) -> None:
        while self.workers.failures:
            failure = self.workers.failures.popleft()
            if isinstance(failure, EntriesGone):
                self.logger.warn("old entries cannot be read", error=str(failure))
            elif isinstance(failure, RequestFault):
                self._fault(failure.error, failure.method)
            else:
                raise Failure(f"a worker failed: {failure!r}") from failure
        while self.workers.done:
            self.workers.done.popleft()()

    def _forwarded(self, member: Member, now: float) -> None:
        requests, member.peers.requests = member.peers.requests, []
        for request in requests:
            call = PeerCall(request.connection, request.request_id, request.method, member.peers)
            if request.method in self.cluster.methods:
                self.cluster.handle(call, request.message, now)
            else:
                call.error(MALFORMED_REQUEST)

    # -- unary calls --------------------------------------------------------------------------------------------------

    def _unary(
        self,
        method: int,
        call_ids: list[int],
        messages: list[bytes],
        metadata: list[_engine.Metadata] | None,
        now: float,
    ) -> None:
        if method not in ALWAYS_SERVED:
            refusal = self._refusal()
            if refusal is not None:
                self._refuse(method, call_ids, refusal)
                return
            if metadata is not None:
                call_ids, messages = self._with_leader(method, call_ids, messages, metadata)
            member = self.member
            assert member is not None
            if member.is_learner:
                call_ids, messages = self._for_learner(method, call_ids, messages)
            if not call_ids:
                return
        if method in KEY_SPACE:
            self.key_space.handle(method, call_ids, messages, now)
        else:
            self._one_by_one(method, call_ids, messages, metadata, now)

    def _one_by_one(
        self,
        method: int,
        call_ids: list[int],
        messages: list[bytes],
        metadata: list[_engine.Metadata] | None,
        now: float,
    ) -> None:
        for position, (call_id, message) in enumerate(zip(call_ids, messages, strict=True)):
            call = ClientCall(call_id, method, self.answers, self.metrics)
            if method in ADMIN_METHODS:
                values = metadata[position] if metadata is not None else None
                self.admin.handle(call, message, values[_AUTHORIZATION] if values else None, now)
            elif method == Method.HEALTH_CHECK:
                call.ok(self._health().SerializeToString())
            else:
                self.cluster.handle(call, message, now)

    def _refusal(self) -> EtcdError | None:
        """Why clients are not served at all now."""
        if self.stopping:
            return STOPPED
        if self.member is None:
            return NOT_STARTED
        if self.member.removed_from_cluster:
            return WAS_REMOVED
        return None if self.member.opened else NOT_OPEN

    def _refuse(self, method: int, call_ids: Sequence[int], error: EtcdError) -> None:
        self.metrics.handled(method, error.grpc_code, len(call_ids))
        self.answers.errors([(call_id, error) for call_id in call_ids])

    def _with_leader(
        self, method: int, call_ids: list[int], messages: list[bytes], metadata: list[_engine.Metadata]
    ) -> tuple[list[int], list[bytes]]:
        """Without those that ask for a leader while there is none."""
        if self.member is not None and self.member.leader_id:
            return call_ids, messages
        needing = [bool(values) and values is not None and values[_HAS_LEADER] == b"true" for values in metadata]
        if not any(needing):
            return call_ids, messages
        self._refuse(method, [call_id for call_id, needs in zip(call_ids, needing, strict=True) if needs], NO_LEADER)
        return (
            [call_id for call_id, needs in zip(call_ids, needing, strict=True) if not needs],
            [message for message, needs in zip(messages, needing, strict=True) if not needs],
        )

    def _for_learner(self, method: int, call_ids: list[int], messages: list[bytes]) -> tuple[list[int], list[bytes]]:
        """A learner serves Status and serializable ranges only, as etcd's."""
        if method == Method.STATUS:
            return call_ids, messages
        kept: list[tuple[int, bytes]] = []
        if method == Method.RANGE:
            kept = [
                (call_id, message)
                for call_id, message in zip(call_ids, messages, strict=True)
                if _is_serializable(message)
            ]
        kept_ids = {call_id for call_id, _ in kept}
        self._refuse(method, [one for one in call_ids if one not in kept_ids], NOT_SUPPORTED_FOR_LEARNER)
        return [call_id for call_id, _ in kept], [message for _, message in kept]

    # -- events -------------------------------------------------------------------------------------------------------

    def _event(self, event: tuple[Any, ...], now: float) -> None:
        kind, number = event[0], event[1]
        member = self.member
        if kind == _engine.EV_HTTP:
            self.probes.handle(number, event[2], event[3], now)
        elif kind == _engine.EV_STREAM_OPEN:
            self._stream_opened(number, event[2], event[3], now)
        elif kind == _engine.EV_STREAM_MESSAGE:
            if number in self._health_streams:
                self._send_health(number)
            elif member is not None:
                member.watches.receive(number, event[2])
                member.range_streams.receive(number, event[2], now)
        elif kind == _engine.EV_STREAM_HALF_CLOSE:
            if member is not None:
                member.watches.end(number)
                member.range_streams.half_closed(number)
        elif kind == _engine.EV_STREAM_DRAINED:
            if member is not None:
                member.watches.drained(number)
                member.range_streams.drained(number)
        elif kind == _engine.EV_CANCELLED:
            self._health_streams.pop(number, None)
            if member is not None and not member.stream_closed(number):
                self._cancelled.add(number)
        elif member is not None:
            member.peers.handle(event)
        elif self._discovery is not None:
            self._discovery.handle(event)
        elif kind == _engine.EV_PEER_INBOUND:
            self.engine.peer_reject(number, b"this node has no identity yet")

    def _stream_opened(self, call_id: int, method: int, metadata: _engine.Metadata, now: float) -> None:
        self.metrics.method(method).started += 1
        if method == Method.HEALTH_WATCH:
            if len(self._health_streams) >= _HEALTH_WATCHES:
                self.engine.stream_close(call_id, 8, "raftkv: too many health streams")
            else:
                self._health_streams[call_id] = not self._healthy
            return
        refusal = self._refusal()
        member = self.member
        needs_leader = metadata is not None and metadata[_HAS_LEADER] == b"true"
        if refusal is None and member is not None:
            if member.is_learner:
                refusal = NOT_SUPPORTED_FOR_LEARNER
            elif needs_leader and not member.leader_id:
                refusal = NO_LEADER
        if refusal is not None or member is None:
            error = refusal or NOT_STARTED
            self.metrics.handled(method, error.grpc_code)
            self.engine.stream_close(call_id, error.grpc_code, error.message)
        elif method == Method.RANGE_STREAM:
            member.range_streams.open(call_id, needs_leader)
        else:
            member.watches.open(call_id, needs_leader, now)

    # -- health -------------------------------------------------------------------------------------------------------

    @property
    def _healthy(self) -> bool:
        return self._refusal() is None

    def _health(self) -> health_pb2.HealthCheckResponse:
        response = health_pb2.HealthCheckResponse
        return response(status=response.SERVING if self._healthy else response.NOT_SERVING)

    def _send_health(self, call_id: int) -> None:
        healthy = self._healthy
        if self._health_streams.get(call_id) != healthy:
            self._health_streams[call_id] = healthy
            self.engine.stream_send([(call_id, self._health().SerializeToString())])

    def _tell_health(self) -> None:
        for call_id in list(self._health_streams):
            self._send_health(call_id)


def _is_serializable(message: bytes) -> bool:
    try:
        return bool(rpc_pb2.RangeRequest.FromString(message).serializable)
    except DecodeError:
        return False
