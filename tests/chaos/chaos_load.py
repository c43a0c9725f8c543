"""Clients under whose eyes all of it happens: what they asked, when, what they were told, and what watches told them.

Every client has one call at a time, on a member drawn anew now and then, and records it as the checker of histories
wants it. A call is *failed* only if it certainly never takes effect: refused for what it asks, or never sent since no
connection was made. Anything else that is not an answer is *unknown*.

Besides the keys that all share, each client has a counter that only it puts. So that acknowledged writes are kept is
checked twice: by the checker of the history, and by comparing numbers.
"""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import grpc
from chaos_members import ChaosCluster, ChaosMember
from google.protobuf.message import Message
from history_records import History, Operation, Outcome, Watch
from processes import channel
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

KEYS = [b"k%d" % number for number in range(8)]
FENCE = b"fence"
CALL_SECONDS = 3.0
STAY_CALLS = 20
"""On the average a client stays with a member for so many calls."""
PAUSE_SECONDS = 0.03
WATCH_SECONDS = (2.0, 9.0)
"""A stream of a watch is given up after a time in this range, and resumed on another member."""
PROGRESS_SECONDS = (0.2, 2.0)
"""After a time in this range a watcher asks how far its stream has told everything."""
ALL = b"\0"
_REFUSED = {grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
_NEVER_SENT = "failed to connect to all addresses"

Put, Delete, Range, Txn = rpc_pb2.PutRequest, rpc_pb2.DeleteRangeRequest, rpc_pb2.RangeRequest, rpc_pb2.TxnRequest
Op, Compare = rpc_pb2.RequestOp, rpc_pb2.Compare


@dataclass
class Record:
    """All that was seen of one cluster since it was founded."""

    history: History = field(default_factory=History)
    lock: threading.Lock = field(default_factory=threading.Lock)
    acknowledged: list[float] = field(default_factory=list)
    """Times of answered writes."""
    counters: dict[bytes, int] = field(default_factory=dict)
    """The last number that was acknowledged, by key."""
    sent: dict[bytes, int] = field(default_factory=dict)

    def gaps(self, start: float, end: float) -> list[tuple[float, float]]:
        """Times without an acknowledged write, between two moments."""
        times = sorted(self.acknowledged)
        inside = times[bisect_right(times, start) : bisect_right(times, end)]
        points = [start, *inside, end]
        return list(pairwise(points))

    def first_after(self, moment: float) -> float:
        """Seconds from a moment to the first write that was acknowledged after it; there is one."""
        with self.lock:
            return min(one for one in self.acknowledged if one >= moment) - moment


class Session:
    """Calls of one client, recorded."""

    def __init__(self, name: str, record: Record) -> None:
        self.name, self._record = name, record
        self._line: grpc.Channel | None = None
        self.member: ChaosMember | None = None

    def go_to(self, member: ChaosMember) -> None:
        self.close()
        self.member, self._line = member, channel(member.endpoint)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def call(self, request: Message, seconds: float = CALL_SECONDS) -> Operation:
        """One recorded call."""
        assert self.member is not None and self._line is not None
        stub = rpc_pb2_grpc.KVStub(self._line)
        method: Any = {
            Put: stub.Put,
            Delete: stub.DeleteRange,
            Range: stub.Range,
            Txn: stub.Txn,
            rpc_pb2.CompactionRequest: stub.Compact,
        }[type(request)]
        life = self.member.life
        operation = Operation(self.name, request, time.monotonic())
        try:
            operation.response = method(request, timeout=seconds)
            operation.outcome = Outcome.OK
            operation.returned = time.monotonic()
            if self.member.life == life:
                operation.session = f"{self.name}/{self.member.name}/{life}"
        except grpc.RpcError as error:
            operation.error = str(error.details())
            if error.code() in _REFUSED or _NEVER_SENT in operation.error:
                operation.outcome = Outcome.FAILED
                operation.returned = time.monotonic()
        self._keep(operation)
        return operation

    def _keep(self, operation: Operation) -> None:
        reads = isinstance(operation.request, Range)
        if operation.outcome is not Outcome.OK and (reads or _NEVER_SENT in operation.error):
            return  # it says nothing about anything
        with self._record.lock:
            self._record.history.operations.append(operation)
            if operation.outcome is Outcome.OK and isinstance(operation.request, (Put, Delete, Txn)):
                self._record.acknowledged.append(operation.returned)


class Client(threading.Thread):
    """One client, from `start` to `stop`."""

    def __init__(
        self,
        name: str,
        record: Record,
        cluster: ChaosCluster,
        seed: str,
        session: Callable[[str, Record], Session] = Session,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._record, self._cluster, self._rng = record, cluster, random.Random(seed)
        self._session = session(name, record)
        self._ending = threading.Event()
        self._counter = b"c/" + name.encode()
        self._values = 0
        self._newest = 1
        self._tag = name + "/" + seed

    def stop(self) -> None:
        self._ending.set()

    def run(self) -> None:
        while not self._ending.is_set():
            if self._session.member is None or self._rng.random() < 1 / STAY_CALLS:
                self._session.go_to(self._rng.choice(self._cluster.members))
            request = self._request()
            operation = self._session.call(request)
            if operation.outcome is Outcome.OK:
                self._remember(operation)
            else:
                self._session.go_to(self._rng.choice(self._cluster.members))
            self._ending.wait(self._rng.random() * 2 * PAUSE_SECONDS)
        self._session.close()

    def _remember(self, operation: Operation) -> None:
        request, response = operation.request, operation.response
        assert response is not None
        self._newest = max(self._newest, int(response.header.revision))  # type: ignore[attr-defined]
        if isinstance(request, Put) and request.key == self._counter:
            with self._record.lock:
                self._record.counters[self._counter] = int(request.value)

    def _value(self) -> bytes:
        self._values += 1
        return f"{self._tag}/{self._values}".encode()

    def _request(self) -> Message:
        rng, key = self._rng, self._rng.choice(KEYS)
        draw = rng.random()
        if draw < 0.25:
            return Put(key=key, value=self._value(), prev_kv=rng.random() < 0.3)
        if draw < 0.37:
            number = self._record.sent.get(self._counter, 0) + 1
            self._record.sent[self._counter] = number
            return Put(key=self._counter, value=b"%d" % number)
        if draw < 0.42:
            end = key + b"\xff" if rng.random() < 0.8 else b"k\xff"
            return Delete(key=key, range_end=end, prev_kv=rng.random() < 0.5)
        if draw < 0.6:
            return self._transaction(key)
        if draw < 0.61:
            return rpc_pb2.CompactionRequest(revision=max(1, self._newest - rng.randrange(200)))
        past = rng.random() < 0.05
        return Range(
            key=rng.choice((key, ALL)),
            range_end=rng.choice((b"", ALL)),
            serializable=rng.random() < 0.4,
            revision=max(1, self._newest - rng.randrange(20)) if past else 0,
        )

    def _transaction(self, key: bytes) -> Message:
        """Compares and swaps: by the revision that was seen last, or by what is there at all."""
        rng = self._rng
        other = rng.choice(KEYS)
        compare = Compare(result=Compare.GREATER, target=Compare.MOD, key=key, mod_revision=self._newest - 30)
        if rng.random() < 0.3:
            compare = Compare(result=Compare.EQUAL, target=Compare.VERSION, key=key, version=0)
        swap = [Op(request_put=Put(key=key, value=self._value()))]
        if other != key:
            swap.append(Op(request_put=Put(key=other, value=self._value())))
        return Txn(compare=[compare], success=swap, failure=[Op(request_range=Range(key=key))])


class Watcher(threading.Thread):
    """One watch that is resumed for ever: each stream that ends, is cut or given up goes on elsewhere."""

    def __init__(self, name: str, record: Record, cluster: ChaosCluster, seed: str, key: bytes, end: bytes) -> None:
        super().__init__(name=name, daemon=True)
        self._record, self._cluster, self._rng = record, cluster, random.Random(seed)
        self._key, self._end = key, end
        self._prev_kv = self._rng.random() < 0.5
        self._ending = threading.Event()
        self._call: Any = None
        self._next = 0
        self.reached = 0
        """Everything up to this revision was told."""
        self.watch: Watch | None = None
        self.resumed = 0

    def stop(self) -> None:
        self._ending.set()
        if self._call is not None:
            self._call.cancel()

    def vouch(self, revision: int) -> None:
        """The stream that told of this revision has told everything up to it."""
        with self._record.lock:
            if self.watch is not None and self.reached >= revision:
                self.watch.complete_to = revision

    def run(self) -> None:
        while not self._ending.is_set():
            member = self._rng.choice(self._cluster.members)
            if member.running:
                with channel(member.endpoint) as line:
                    self._follow(rpc_pb2_grpc.WatchStub(line))
            self._ending.wait(0.1)

    def _follow(self, stub: rpc_pb2_grpc.WatchStub) -> None:
        create = rpc_pb2.WatchCreateRequest(
            key=self._key,
            range_end=self._end,
            start_revision=self._next,
            prev_kv=self._prev_kv,
            progress_notify=True,
        )
        asks_no_more = threading.Event()
        pause = random.Random(self._rng.random())

        def requests() -> Any:
            yield rpc_pb2.WatchRequest(create_request=create)
            while not asks_no_more.wait(pause.uniform(*PROGRESS_SECONDS)):
                yield rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())

        watch = Watch(self.name, create)
        try:
            self._call = stub.Watch(requests(), timeout=self._rng.uniform(*WATCH_SECONDS))
            for response in self._call:
                self._take(watch, response)
                if response.canceled or self._ending.is_set():
                    return
        except grpc.RpcError:
            pass
        finally:
            asks_no_more.set()
            self._call.cancel()

    def _take(self, watch: Watch, response: rpc_pb2.WatchResponse) -> None:
        with self._record.lock:
            if not watch.responses:
                self._record.history.watches.append(watch)
                self.resumed += 1
            watch.responses.append((time.monotonic(), response))
            self.watch = watch
            if response.canceled:
                if response.compact_revision:
                    self._next = response.compact_revision
                return
            if response.created:
                self._next = self._next or response.header.revision + 1
                return
            if response.fragment:
                return
            told = response.events[-1].kv.mod_revision if response.events else response.header.revision
            self.reached = max(self.reached, told)
            self._next = max(self._next, self.reached + 1)
