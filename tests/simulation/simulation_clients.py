"""Clients of the simulated members: calls and watches, and the history of all that they saw.

Clients write unique values and remember the highest revision that anybody was answered. What is answered must be what
the model says at that place in the log, and its revision must not be below what was known when the call began: no
acknowledged write is lost, no linearizable read is stale. What was refused for certain must never be applied.

That is checked at each answer, with knowledge that no client has. Besides, the clients' history alone (calls, times,
answers, and what watches were told) goes in the end to the checker that judges real clusters (`tests/histories`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from history_checker import COMPACTED, FUTURE, Contradiction, Undecided, check
from history_records import History, Operation, Outcome, Watch
from raftkv_node.api.methods import Method
from raftkv_node.pb import rpc_pb2
from raftkv_node.server.writes import NOBODY
from raftkv_node.store import commands
from raftkv_node.store import errors as etcd
from simulation_checks import Violation
from simulation_member import MemberNode
from simulation_member_checks import REQUESTS, MemberChecks, plain
from simulation_world import World

KIND_OF_METHOD = {
    Method.PUT: commands.PUT,
    Method.DELETE_RANGE: commands.DELETE_RANGE,
    Method.TXN: commands.TXN,
    Method.COMPACT: commands.COMPACT,
}
CERTAIN_REFUSALS = {error.message for error in (etcd.LEADER_CHANGED, etcd.NO_LEADER, etcd.TOO_MANY_REQUESTS)}
"""Errors that say that a write is not, and never will be, in the log (M16)."""
RESPONSES: dict[Method, Any] = {
    Method.RANGE: rpc_pb2.RangeResponse,
    **{method: REQUESTS[kind][1] for method, kind in KIND_OF_METHOD.items()},
}
TRUE_ERRORS = (COMPACTED, FUTURE)
"""Errors that are an answer."""
KEYS = [b"k%d" % number for number in range(8)]
MAX_OPERATIONS = 12_000
"""A history that is longer is not checked: the time would be better spent on another seed."""
MAX_ATTEMPTS = 20_000
"""Where watches were told too little to tell which of many unknown writes took effect, it is left undecided."""
WATCHERS = 2
COMPLETE_AFTER = 300
"""In the liveness phase a watch has been told everything so many units after the last write."""


@dataclass(frozen=True)
class Call:
    """A client's call that is not answered yet."""

    node: int
    method: int
    payload: bytes
    floor: int
    """The highest revision that anybody had been answered when the call began."""
    operation: Operation


@dataclass
class Watcher:
    """A client that watches all keys, at one member after the other."""

    name: str
    node: int = 0
    """Where its present watch is; 0: it has none."""
    next_revision: int = 0
    watch: Watch | None = None


class ClientWorld(World):
    """A world with clients of production members; `MemberWorld` has the members."""

    checks: MemberChecks

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.calls: dict[int, Call] = {}
        self.floor = 1
        self.compactions = self.refusals = self.serializable = self.moments = 0
        self.history = History()
        self.watchers = [Watcher(f"w{number}") for number in range(WATCHERS)]
        self.streams: dict[int, Watcher] = {}
        super().__init__(*arguments, **options)

    def member(self, node: Any) -> MemberNode:
        assert isinstance(node, MemberNode)
        return node

    def moment(self) -> float:
        """A time that is another one at each look."""
        self.moments += 1
        return float(self.moments)

    # -- clients -------------------------------------------------------------------------------------------------------

    def client(self, client: int) -> None:
        """A client calls somewhere, and comes back later."""
        self.at(self.rng.randint(5, 60), self.client, client)
        node = self.nodes[self.rng.choice(sorted(self.nodes))]
        if not node.up or self.member(node).member.is_learner:
            return
        if self.rng.random() < 0.3:
            self.watch(node)
        self.call(node, [self.request() for _ in range(self.rng.choice((1, 1, 2, 5)))], f"c{client}")

    def request(self) -> tuple[int, Any]:
        """Some request."""
        rng = self.rng
        kind = rng.random()
        key = rng.choice(KEYS)
        if kind < 0.45:
            return Method.PUT, rpc_pb2.PutRequest(key=key, value=self.unique(), prev_kv=rng.random() < 0.1)
        if kind < 0.57:
            return Method.TXN, self.transaction(key)
        if kind < 0.63:
            return Method.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=key, range_end=rng.choice((b"", key + b"~")))
        if kind < 0.65:
            return Method.COMPACT, rpc_pb2.CompactionRequest(revision=max(1, self.floor - rng.randint(0, 20)))
        end = rng.choice((b"", b"k9"))
        return Method.RANGE, rpc_pb2.RangeRequest(key=key, range_end=end, serializable=kind > 0.92)

    def unique(self) -> bytes:
        self.next_request += 1
        return b"v%d" % self.next_request + b"." * self.rng.choice((0, 0, 50, 200))

    def transaction(self, key: bytes) -> rpc_pb2.TxnRequest:
        rng, txn = self.rng, rpc_pb2.TxnRequest()
        compare = rpc_pb2.Compare
        txn.compare.add(
            result=rng.choice((compare.EQUAL, compare.GREATER, compare.LESS, compare.NOT_EQUAL)),
            target=compare.VERSION,
            key=key,
            version=rng.randint(0, 5),
        )
        txn.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=key, value=self.unique()))
        txn.success.add().request_range.CopyFrom(rpc_pb2.RangeRequest(key=b"k", range_end=b"l"))
        txn.success.add().request_delete_range.CopyFrom(
            rpc_pb2.DeleteRangeRequest(key=b"k1" if key != b"k1" else b"k2")
        )
        txn.failure.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=key, value=self.unique(), prev_kv=True))
        return txn

    def call(self, node: Any, requests: list[tuple[int, Any]], client: str = "test") -> None:
        """Calls that arrive together."""
        calls = []
        for method, request in requests:
            self.next_request += 1
            payload = request.SerializeToString()
            operation = Operation(client, request, self.moment(), session=f"{client} at {node.id}.{node.incarnation}")
            self.history.operations.append(operation)
            self.calls[self.next_request] = Call(node.id, method, payload, self.floor, operation)
            calls.append((method, self.next_request, payload))
        self.act(node, self.member(node).call, calls)

    def replied(self, node: MemberNode, call_id: int, message: bytes) -> None:
        """An answer: it is the model's, and knows all that was known when the call began."""
        call = self.calls.pop(call_id)
        operation, kind = call.operation, RESPONSES[Method(call.method)]
        operation.returned, operation.outcome, operation.response = self.moment(), Outcome.OK, kind.FromString(message)
        if call.method == Method.RANGE:
            self.range_answered(node, call, message)
            return
        answer = REQUESTS[KIND_OF_METHOD[Method(call.method)]][1].FromString(message)
        self.acknowledged += 1
        self.checks.acknowledged(node, call.payload)
        if call.method in (Method.PUT, Method.TXN):
            expected = self.checks.answers[call.payload]
            detail = f"{node.id} answers {answer}, expected {expected}"
            self.checks.demand("ACKNOWLEDGED", plain(answer) == expected, detail)
            self.demand_floor(node, call, answer.header.revision - 1)
        else:
            self.compactions += call.method == Method.COMPACT
            self.demand_floor(node, call, answer.header.revision)
        self.floor = max(self.floor, answer.header.revision)

    def demand_floor(self, node: MemberNode, call: Call, revision: int) -> None:
        detail = f"{node.id} answers {call.payload!r} at {revision}, {call.floor} was known before"
        self.checks.demand("LINEARIZABLE", revision >= call.floor, detail)

    def range_answered(self, node: MemberNode, call: Call, message: bytes) -> None:
        request = rpc_pb2.RangeRequest.FromString(call.payload)
        answer = rpc_pb2.RangeResponse.FromString(message)
        revision = answer.header.revision
        self.checks.contents(f"{node.id} answers", answer, revision, request.key, request.range_end)
        if request.serializable:
            self.serializable += 1
            return
        self.demand_floor(node, call, revision)
        self.reads_served += 1
        self.floor = max(self.floor, revision)

    def failed(self, node: MemberNode, call_id: int, code: int, text: str) -> None:
        if call_id == NOBODY:
            return
        call = self.calls.pop(call_id)
        call.operation.returned, call.operation.error = self.moment(), text.removeprefix("etcdserver: ")
        if text in CERTAIN_REFUSALS or call.operation.error in TRUE_ERRORS:
            call.operation.outcome = Outcome.FAILED
        if call.method == Method.RANGE:
            self.reads_failed += 1
        elif text in CERTAIN_REFUSALS:
            self.refusals += 1
            if call.method in (Method.PUT, Method.TXN):
                self.checks.refused.add(call.payload)
                known = call.payload not in self.checks.answers
                self.checks.demand("M16_REJECTED", known, f"{call.payload!r} is refused, but is in the log")

    def forgotten(self, node: Any) -> None:
        """The process is gone, and with it what it has not answered; who watched there goes elsewhere."""
        self.calls = {number: call for number, call in self.calls.items() if call.node != node.id}
        for number, watcher in list(self.streams.items()):
            if watcher.node == node.id:
                self.stream_ended(number)

    # -- watches -------------------------------------------------------------------------------------------------------

    def watch(self, node: Any) -> None:
        """Who watches nothing begins here, where it was; who watches asks how far it has come."""
        for number, watcher in list(self.streams.items()):
            if number in self.streams and self.rng.random() < 0.3:
                request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
                there = self.nodes[watcher.node]
                self.act(there, self.member(there).watch, number, request.SerializeToString(), False)
        for watcher in self.watchers:
            if not watcher.node:
                self.next_request += 1
                watcher.node = node.id
                create = rpc_pb2.WatchCreateRequest(
                    key=b"\0", range_end=b"\0", start_revision=watcher.next_revision, prev_kv=self.rng.random() < 0.5
                )
                watcher.watch = Watch(watcher.name, create)
                self.history.watches.append(watcher.watch)
                self.streams[self.next_request] = watcher
                payload = rpc_pb2.WatchRequest(create_request=create).SerializeToString()
                self.act(node, self.member(node).watch, self.next_request, payload, True)
                return

    def watched(self, number: int, message: bytes) -> None:
        """A watch is told something."""
        watcher = self.streams.get(number)
        if watcher is None or watcher.watch is None:
            return
        response = rpc_pb2.WatchResponse.FromString(message)
        watcher.watch.responses.append((self.moment(), response))
        if response.canceled:
            # What it was to see is compacted: it begins anew.
            watcher.next_revision = 0
            self.stream_ended(number)
        elif response.events:
            watcher.next_revision = response.events[-1].kv.mod_revision + 1
        elif not response.created or not watcher.watch.request.start_revision:
            watcher.next_revision = max(watcher.next_revision, response.header.revision + 1)

    def stream_ended(self, number: int) -> None:
        """A member ends a stream, or a client leaves it; whichever is second finds nothing any more."""
        watcher = self.streams.pop(number, None)
        if watcher is not None:
            watcher.node, watcher.watch = 0, None

    # -- the history ---------------------------------------------------------------------------------------------------

    def check_history(self) -> None:
        """What the clients saw is linearizable, and watches kept their promises."""
        if len(self.history.operations) > MAX_OPERATIONS:
            self.checks.count("histories too long to be checked")
            return
        self.run_until(self.now + COMPLETE_AFTER)
        members = self.leaders()[0].raft.configuration.ids if self.leaders() else frozenset()
        for watcher in self.streams.values():
            if watcher.node in members and watcher.watch is not None and watcher.watch.responses:
                watcher.watch.complete_to = self.checks.model.revision
        try:
            checked = check(self.history, MAX_ATTEMPTS)
        except Contradiction as contradiction:
            raise Violation("LINEARIZABLE_HISTORY", str(contradiction)) from contradiction
        except Undecided:
            self.checks.count("histories undecided")
            return
        self.checks.count("histories checked")
        self.checks.count("operations in checked histories", checked.operations)
        self.checks.count("watch events in checked histories", checked.watch_events)
        self.checks.count("progress told in checked histories", checked.bookmarks)
