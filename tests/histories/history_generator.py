"""Legal histories, made by a cluster that is right: one key space, a member that lags, clients that are cut off.

An operation is invoked, takes effect at some later moment, and is answered later still; each step is an event of its
own, in an order drawn from the seed. A client that is cut off never hears of its operation, which may take effect at
any time, or never.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from history_checker import COMPACTED, FUTURE, _serializable
from history_records import History, Operation, Outcome, Watch
from history_timeline import Timeline
from raftkv_node.pb import rpc_pb2
from raftkv_node.store import EtcdError

Range, Put, Delete = rpc_pb2.RangeRequest, rpc_pb2.PutRequest, rpc_pb2.DeleteRangeRequest
Op, Compare = rpc_pb2.RequestOp, rpc_pb2.Compare


@dataclass
class _Shape:
    """What a history is made of."""

    operations: int = 60
    clients: int = 4
    keys: int = 4
    unknown: float = 0.1
    failed: float = 0.05
    serializable: float = 0.2
    compactions: float = 0.02
    past_reads: float = 0.1
    watches: int = 3


class Generator:
    """Makes one history from a seed."""

    def __init__(self, seed: int, **shape: Any) -> None:
        self.rng = random.Random(seed)
        self.shape = _Shape(**shape)
        self.history = History()
        self.truth = Timeline()
        self.lagging = Timeline()
        self.log: list[Message] = []
        self.copied = 0
        self.compacted = 0
        self.now = 0.0
        self.values = 0

    # -- requests ------------------------------------------------------------------------------------------------------

    def key(self) -> bytes:
        return b"k%d" % self.rng.randrange(self.shape.keys)

    def value(self) -> bytes:
        self.values += 1
        return b"v%d" % self.values

    def read(self, serializable: bool) -> Message:
        rng = self.rng
        request = Range(key=self.key(), serializable=serializable)
        if rng.random() < 0.3:
            request.key, request.range_end = b"k", b"l"
            request.limit = rng.choice([0, 0, 2])
        if rng.random() < 0.1:
            request.count_only = True
        if rng.random() < self.shape.past_reads and not serializable:
            request.revision = max(1, self.truth.revision + rng.randrange(-6, 3))
        return request

    def write(self) -> Message:
        rng = self.rng
        kind = rng.random()
        if kind < 0.5:
            return Put(key=self.key(), value=self.value(), prev_kv=rng.random() < 0.3)
        if kind < 0.65:
            request = Delete(key=self.key(), prev_kv=rng.random() < 0.5)
            if rng.random() < 0.2:
                request.key, request.range_end = b"k1", b"k3"
            return request
        first, second = rng.sample(range(self.shape.keys), 2) if self.shape.keys > 1 else (0, 0)
        a, b = b"k%d" % first, b"k%d" % second
        guess = self.truth.newest[a].mod_revision if a in self.truth.newest and rng.random() < 0.7 else 0
        success = [Op(request_put=Put(key=a, value=self.value()))]
        if a != b and kind < 0.9:
            success.append(Op(request_put=Put(key=b, value=self.value(), prev_kv=True)))
        elif a != b:
            success.append(Op(request_delete_range=Delete(key=b, prev_kv=True)))
        success.append(Op(request_range=Range(key=b"k", range_end=b"l")))
        compare = Compare(key=a, target=Compare.MOD, result=Compare.EQUAL, mod_revision=guess)
        failure = [Op(request_range=Range(key=a))]
        return rpc_pb2.TxnRequest(compare=[compare], success=success, failure=failure)

    def request(self) -> Message:
        kind = self.rng.random()
        if kind < self.shape.compactions:
            return rpc_pb2.CompactionRequest(revision=max(1, self.truth.revision + self.rng.randrange(-5, 2)))
        if kind < 0.45:
            return self.read(self.rng.random() < self.shape.serializable)
        return self.write()

    # -- life ----------------------------------------------------------------------------------------------------------

    def tick(self) -> float:
        self.now += self.rng.choice([0.001, 0.01, 0.1])
        return self.now

    def make(self) -> History:
        """The history."""
        idle = [f"c{number}" for number in range(self.shape.clients)]
        waiting: list[tuple[Operation, str]] = []
        effective: list[tuple[Operation, object]] = []
        left = self.shape.operations
        lives = 0
        while left or waiting or effective:
            step = self.rng.random()
            self._follow()
            if left and idle and step < 0.4:
                client = idle.pop(self.rng.randrange(len(idle)))
                operation = Operation(client, self.request(), self.tick())
                self.history.operations.append(operation)
                left -= 1
                fate = self.rng.random()
                if fate < self.shape.failed:
                    operation.outcome, operation.error = Outcome.FAILED, "etcdserver: too many requests"
                    operation.returned = self.tick()
                    idle.append(client)
                    continue
                lost = fate < self.shape.failed + self.shape.unknown
                waiting.append((operation, "lost" if lost else "answered"))
                if lost:
                    lives += 1
                    idle.append(f"c{lives}'")
            elif waiting and step < 0.7:
                operation, fate = waiting.pop(self.rng.randrange(len(waiting)))
                if fate == "lost" and self.rng.random() < 0.4:
                    continue
                answer = self._effect(operation)
                if fate == "answered":
                    effective.append((operation, answer))
            elif effective:
                operation, answer = effective.pop(self.rng.randrange(len(effective)))
                self._answer(operation, answer)
                idle.append(operation.client)
        for number in range(self.shape.watches):
            self._watch(number)
        return self.history

    def _follow(self) -> None:
        """The lagging member applies some more."""
        while self.copied < len(self.log) and self.rng.random() < 0.6:
            self.lagging.apply(self.log[self.copied])
            self.copied += 1

    def _effect(self, operation: Operation) -> object:
        self.tick()
        request = operation.request
        if isinstance(request, rpc_pb2.CompactionRequest):
            if request.revision <= self.compacted:
                return EtcdError(11, COMPACTED)
            if request.revision > self.truth.revision:
                return EtcdError(11, FUTURE)
            self.compacted = request.revision
            return rpc_pb2.CompactionResponse(header=rpc_pb2.ResponseHeader(revision=self.truth.revision))
        if _serializable(request):
            return self.lagging.apply(request)
        if isinstance(request, Range):
            if 0 < request.revision < self.compacted:
                return EtcdError(11, COMPACTED)
            return self.truth.apply(request)
        self.log.append(request)
        return self.truth.apply(request)

    def _answer(self, operation: Operation, answer: object) -> None:
        operation.returned = self.tick()
        if isinstance(answer, EtcdError):
            operation.outcome, operation.error = Outcome.FAILED, answer.message
            return
        assert isinstance(answer, Message)
        operation.outcome, operation.response = Outcome.OK, answer

    def _watch(self, number: int) -> None:
        """A watch, broken off and resumed now and then; all of it told when the history is over."""
        rng = self.rng
        request = rpc_pb2.WatchCreateRequest(key=b"k", range_end=b"l", prev_kv=rng.random() < 0.7, progress_notify=True)
        if number and rng.random() < 0.5:
            request.key, request.range_end = self.key(), b""
        if number and rng.random() < 0.3:
            request.filters.append(rng.choice([0, 1]))
        request.start_revision = 1 if not number else rng.randrange(1, self.truth.revision + 2)
        while True:
            made = rpc_pb2.WatchCreateRequest()
            made.CopyFrom(request)
            watch = Watch(f"w{number}", made)
            header = rpc_pb2.ResponseHeader(revision=self.truth.revision)
            watch.responses.append((self.tick(), rpc_pb2.WatchResponse(header=header, created=True)))
            self.history.watches.append(watch)
            last = self._tell(watch)
            if last is None:
                watch.complete_to = self.truth.revision
                return
            request.start_revision = last + 1

    def _tell(self, watch: Watch) -> int | None:
        """Tells events; the revision of the last one if the watch breaks off, None at the end."""
        rng, request = self.rng, watch.request
        response = rpc_pb2.WatchResponse(header=rpc_pb2.ResponseHeader(revision=self.truth.revision))
        for revision in range(max(request.start_revision, 2), self.truth.revision + 1):
            for kind, kv, old in self.truth.changes[revision]:
                inside = kv.key == request.key if not request.range_end else request.key <= kv.key < request.range_end
                if inside and (0 if kind == "put" else 1) not in request.filters:
                    event = response.events.add(type=0 if kind == "put" else 1, kv=kv)
                    if request.prev_kv and old is not None:
                        event.prev_kv.CopyFrom(old)
            if response.events and rng.random() < 0.6:
                watch.responses.append((self.tick(), response))
                response = rpc_pb2.WatchResponse(header=rpc_pb2.ResponseHeader(revision=self.truth.revision))
                if rng.random() < 0.1:
                    return revision
            if not response.events and rng.random() < 0.2:
                progress = rpc_pb2.WatchResponse(header=rpc_pb2.ResponseHeader(revision=revision))
                watch.responses.append((self.tick(), progress))
        if response.events:
            watch.responses.append((self.tick(), response))
        return None
