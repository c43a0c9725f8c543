"""Clusters of production members under all faults, with clients whose histories are checked exactly.

`MemberWorld` is `World` with `MemberNode`s: the same network, deaths, sleeps, splits and changes of the membership, and
power cuts, of one machine or all. Every step is checked by `Checks` (election safety, log matching, leader
completeness, state-machine safety, durable quorums), and by `MemberChecks` against an obvious model of the key space:

- The committed log is one sequence. The model applies each entry once, when the first member calls it committed. Every
  member's results, revisions and, where they have applied the same, hashes of the key space must be the model's.
- Clients write unique values and remember the highest revision that anybody was answered. What is answered must be what
  the model says at that place in the log, and its revision must not be below what was known when the call began: no
  acknowledged write is lost, no linearizable read is stale. What was refused for certain must never be applied.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adr_crash import laboratory
from raftkv_node.adr import LogError
from raftkv_node.api.methods import Method
from raftkv_node.pb import admin_pb2, rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue
from raftkv_node.raft import (
    Configuration,
    ConfigurationChange,
    Entry,
    EntryType,
    Message,
    MessageType,
    Raft,
    decode_message,
    initial_configuration,
)
from raftkv_node.server.member import Failure
from raftkv_node.server.members import encode_settings
from raftkv_node.server.replica import Replica
from raftkv_node.server.writes import NOBODY
from raftkv_node.store import Batch, EtcdError, commands
from raftkv_node.store import errors as etcd
from raftkv_node.store.errors import StoreError
from raftkv_node.store.store import ApplyResult
from simulation_checks import Checks, Violation
from simulation_member import UNITS_PER_SECOND, Clock, MemberNode, SimStore, installed
from simulation_node import CrashError
from simulation_storage import ModelLog
from simulation_world import Faults, Setup, World
from store_model import Model

REQUESTS: dict[int, tuple[Any, Any]] = {
    commands.PUT: (rpc_pb2.PutRequest, rpc_pb2.PutResponse),
    commands.DELETE_RANGE: (rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse),
    commands.TXN: (rpc_pb2.TxnRequest, rpc_pb2.TxnResponse),
    commands.COMPACT: (rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse),
}
KIND_OF_METHOD = {
    Method.PUT: commands.PUT,
    Method.DELETE_RANGE: commands.DELETE_RANGE,
    Method.TXN: commands.TXN,
    Method.COMPACT: commands.COMPACT,
}
CERTAIN_REFUSALS = {error.message for error in (etcd.LEADER_CHANGED, etcd.NO_LEADER, etcd.TOO_MANY_REQUESTS)}
"""Errors that say that a write is not, and never will be, in the log (M16)."""
FRAGILE = frozenset(("in ring append", "in ring header", "after records", "after truncate"))
KEYS = [b"k%d" % number for number in range(8)]


def plain(answer: Any) -> Any:
    """An answer without what depends on who gives it."""
    if hasattr(answer, "header"):
        copy = type(answer)()
        copy.CopyFrom(answer)
        copy.header.CopyFrom(rpc_pb2.ResponseHeader(revision=answer.header.revision))
        return copy
    return answer


@dataclass(frozen=True)
class Call:
    """A client's call that is not answered yet."""

    node: int
    method: int
    payload: bytes
    floor: int
    """The highest revision that anybody had been answered when the call began."""


class MemberChecks(Checks):
    """What must hold for production members, beyond what must hold for any."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.data: list[bytes] = [b""]
        """The committed entries' data, by index."""
        self.expected: list[list[Any]] = [[]]
        """What each request of an entry is answered, by index."""
        self.revisions: list[tuple[int, int]] = [(1, -1)]
        """Revision and compaction after each entry."""
        self.answers: dict[bytes, Any] = {}
        """The answer to each request that stands in the log, by its (unique) bytes."""
        self.batches: dict[tuple[int, int], int] = {}
        self.refused: set[bytes] = set()
        self.hashes: dict[int, bytes] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # -- log -----------------------------------------------------------------------------------------------------------

    def applied(self, node: Any, entries: Any) -> None:
        """Every member applies the same entries; the model applies each of them once."""
        for entry in entries:
            known = self.chains.setdefault(entry.index, entry.term)
            self.demand("STATE_MACHINE_SAFETY", known == entry.term, f"index {entry.index} at {node.id}")
            if entry.index < len(self.data):
                same = self.data[entry.index] == entry.data
                self.demand("STATE_MACHINE_SAFETY", same, f"index {entry.index} at {node.id} has other data")
                continue
            self.demand("STATE_MACHINE_SAFETY", entry.index == len(self.data), f"{node.id} skips to {entry.index}")
            self._commit(entry)

    def _commit(self, entry: Entry) -> None:
        expected: list[Any] = []
        if entry.type == EntryType.NORMAL and entry.data:
            batch = commands.decode_batch(entry.data)
            first = self.batches.setdefault((batch.origin, batch.first_seq), entry.index)
            self.demand("M16_APPLIED_ONCE", first == entry.index, f"one batch at {first} and {entry.index}")
            expected = [self._model(kind, payload) for kind, payload in zip(batch.kinds, batch.payloads, strict=True)]
        self.data.append(entry.data)
        self.expected.append(expected)
        self.revisions.append((self.model.revision, self.model.compacted))

    def _model(self, kind: int, payload: bytes) -> Any:
        self.demand("M16_REJECTED", payload not in self.refused, f"{payload!r} was refused, but is in the log")
        if kind == commands.MEMBER_ATTRIBUTES:
            return None
        answer = self.model.apply(REQUESTS[kind][0].FromString(payload))
        self.answers[payload] = answer
        return answer

    # -- store ---------------------------------------------------------------------------------------------------------

    def was_applied(self, node: MemberNode, index: int, term: int, batch: Batch, result: ApplyResult) -> None:
        """A member has applied an entry: its answers and revision are the model's."""
        known = index < len(self.data) and self.chains[index] == term
        self.demand("STATE_MACHINE_SAFETY", known, f"{node.id} applies ({term},{index}), which is not committed")
        revision, compacted = self.revisions[index]
        store = node.member.store
        same = result.revision == revision and store.compact_revision == compacted
        detail = f"{node.id} is at {result.revision} after {index}, compacted at {store.compact_revision}, "
        self.demand("STATE_MACHINE_SAFETY", same, f"{detail}not at {revision} and {compacted}")
        results = result.results or []
        for kind, answer, expected in zip(batch.kinds, results, self.expected[index], strict=False):
            if isinstance(answer, bytes) and kind in REQUESTS:
                found = plain(REQUESTS[kind][1].FromString(answer))
                self.demand("STATE_MACHINE_SAFETY", found == expected, f"{node.id} at {index}: {found} not {expected}")
            elif isinstance(answer, EtcdError):
                self.demand("STATE_MACHINE_SAFETY", answer == expected, f"{node.id} at {index}: {answer}")

    def state(self, node: MemberNode) -> None:
        """A member's whole state is the model's, and so is, between members, its hash."""
        store = node.member.store
        index = store.applied_index
        read = store.start_range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
        found = rpc_pb2.RangeResponse.FromString(read if isinstance(read, bytes) else read.run())
        self.demand("STATE_MACHINE_SAFETY", index < len(self.data), f"{node.id} has applied {index}")
        self.contents(f"{node.id} at {index}", found, self.revisions[index][0], b"\0", b"\0")
        known = self.hashes.setdefault(index, node.hash_kv())
        self.demand("STATE_MACHINE_SAFETY", known == node.hash_kv(), f"{node.id} at {index} has another hash")
        self.count("states compared")

    def contents(self, who: str, found: rpc_pb2.RangeResponse, revision: int, key: bytes, end: bytes) -> None:
        """What was read is what the model has at that revision."""
        there = revision < len(self.model.history) and found.header.revision == revision
        self.demand("STATE_MACHINE_SAFETY", there, f"{who} shows revision {found.header.revision}, not {revision}")
        state = self.model.history[revision]
        expected: list[KeyValue] = [state[one] for one in self.model.keys(state, key, end)]
        detail = f"{who}: {[kv.key for kv in found.kvs]}, expected {[kv.key for kv in expected]} at {revision}"
        self.demand("STATE_MACHINE_SAFETY", list(found.kvs) == expected, detail)

    def store_committed(self, node: MemberNode) -> None:
        """D14: a backend commit never passes what is durable in the member's own log."""
        index = node.committed_index = node.member.store.committed_index
        kept = f"{node.id} has committed {index}, its log begins at {node.member.log.first_index}"
        self.demand("D14_SEGMENTS_KEPT", node.member.log.first_index <= index + 1, kept)
        self.demand("FAILED", node.member.store.failed is None, f"{node.member.store.failed}")
        if index:
            durable = node.log.durable_term(index)
            detail = f"{node.id} has committed up to {index}, in its log is {durable}, not {self.chains[index]}"
            self.demand("D14_COMMIT_BEHIND_LOG", durable == self.chains[index], detail)
            self.count("backend commits")

    def opened(self, node: MemberNode) -> None:
        """D13, D15: at every start."""
        store, log = node.member.store, node.member.log
        flags = store.backend.env.flags()
        self.demand("D13_SYNCED", bool(flags["sync"] and flags["metasync"]), f"{flags}")
        gap = f"{node.id}: log {log.first_index} to {log.last_index}, applied {store.applied_index}"
        self.demand("D15_NO_GAP", log.first_index - 1 <= store.applied_index <= log.last_index, gap)
        lost = f"{node.id} had committed {node.committed_index}, now it has applied {store.applied_index}"
        self.demand("D13_SYNCED", store.applied_index >= node.committed_index, lost)
        if log.first_index > 1:
            self.count("recovered without released segments")
        self.state(node)
        self.count(f"recovered by row {node.member.recovered.row}")
        if node.member.recovered.torn_tail_bytes:
            self.count("torn tails")

    # -- messages ------------------------------------------------------------------------------------------------------

    def promised(self, node: MemberNode, message: Message) -> None:
        """D4: what a vote or an acknowledgement promises is durable when it leaves."""
        if message.term != node.raft.term or message.reject:
            return
        if message.type in (MessageType.VOTE, MessageType.VOTE_RESPONSE):
            vote = node.id if message.type == MessageType.VOTE else message.to
            found = node.log.durable.hard_state[:2]
            self.demand("D4_VOTE_DURABLE", found == (message.term, vote), f"{node.id} sends {message}, has {found}")
        elif message.type == MessageType.APPEND_RESPONSE and message.index:
            durable = node.log.durable_term(message.index)
            term = node.raft.term_at(message.index)
            detail = f"{node.id} acknowledges ({term},{message.index}), durable is {durable}"
            self.demand("D4_ACK_DURABLE", term in (-1, durable), detail)


class MemberWorld(World):
    """A run with production members, in files below `folder`."""

    def __init__(
        self,
        seed: int,
        setup: Setup,
        raft_class: Callable[..., Raft] = Raft,
        replica_class: type[Replica] = Replica,
        store_class: type[SimStore] = SimStore,
        node_class: type[MemberNode] = MemberNode,
        planted: Mapping[Any, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        self.folder: Path = laboratory()
        self.planted = planted
        self.replica_class, self.store_class = replica_class, store_class
        self.member_class = node_class
        self.starting: MemberNode
        self.clock = Clock(self)
        self.calls: dict[int, Call] = {}
        self.floor = 1
        self.last_writes: set[bytes] = set()
        self.blackouts = self.compactions = self.refusals = self.serializable = 0
        super().__init__(seed, replace(setup, members=0), raft_class, log_class=ModelLog)
        self.setup = setup
        self.checks: MemberChecks = MemberChecks()
        self.settings = encode_settings(admin_pb2.Settings(max_voters=9, opened=True))
        self.next_id = setup.members + 1

    def run(self) -> MemberWorld:
        """Both phases; the files are gone afterwards."""
        try:
            with installed(self):
                self._run()
        finally:
            for node in self.nodes.values():
                node.crash()
            shutil.rmtree(self.folder)
        return self

    def _run(self) -> None:
        founding = initial_configuration(range(1, self.setup.members + 1), self.settings)
        for member in range(1, self.setup.members + 1):
            self.add_node(member, founding)
        super().run()
        for node in self.nodes.values():
            self.checks.state(self.member(node))

    def member(self, node: Any) -> MemberNode:
        assert isinstance(node, MemberNode)
        return node

    # -- what members ask of their world -------------------------------------------------------------------------------

    def seconds(self) -> float:
        return self.now / UNITS_PER_SECOND

    def reach(self, node: Any, point: str) -> None:
        """A point where the process may die: most of all where something is half written, and then by a power cut."""
        self.points[point] = self.points.get(point, 0) + 1
        fragile = point in FRAGILE
        if self.faulty and self.rng.random() < self.setup.faults.crash * (self.setup.faults.fragile if fragile else 1):
            self.note(f"{node.id} dies {point}")
            if fragile and self.rng.random() < self.setup.faults.power:
                self.member(node).dies_of_power = True
            raise CrashError(point)

    def later(self, node: Any, low: int, high: int, action: Callable[..., None], *arguments: Any) -> None:
        self.at(self.rng.randint(low, high), self.act_in, node, node.incarnation, action, arguments)

    def released(self) -> int:
        """Where members may join nothing is released: without snapshots they need the whole log."""
        if self.setup.faults.change:
            return 0
        return min(self.member(node).committed_index for node in self.nodes.values())

    def forgotten(self, node: Any) -> None:
        self.calls = {number: call for number, call in self.calls.items() if call.node != node.id}

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def add_node(self, member: int, configuration: Configuration) -> None:
        rng = random.Random(self.rng.getrandbits(64))
        node: Any = self.member_class(member, self, self.folder / str(member), configuration, rng)
        self.nodes[member] = node
        self.start(node)

    def guard(self, node: Any, action: Callable[..., None], *arguments: Any) -> None:
        try:
            super().guard(node, action, *arguments)
        except (LogError, StoreError, Failure, OSError, ValueError, AssertionError) as error:
            raise Violation("FAILED", f"{node.id}: {type(error).__name__}: {error}") from error

    def step(self, node: Any, data: bytes) -> None:
        self.member(node).receive(decode_message(data))

    def tick_now(self, node: Any) -> None:
        self.member(node).tick()

    def fault(self) -> None:
        if self.faulty and self.rng.random() < self.setup.faults.blackout:
            self.note("the power of all machines is cut")
            self.blackouts += 1
            for node in list(self.nodes.values()):
                self.member(node).dies_of_power = True
                if node.up:
                    self.crash(node)
                else:
                    node.crash()
        super().fault()

    # -- clients -------------------------------------------------------------------------------------------------------

    def client(self, client: int) -> None:
        """A client calls somewhere, and comes back later."""
        self.at(self.rng.randint(5, 60), self.client, client)
        node = self.nodes[self.rng.choice(sorted(self.nodes))]
        if not node.up or self.member(node).member.is_learner:
            return
        self.call(node, [self.request() for _ in range(self.rng.choice((1, 1, 2, 5)))])

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

    def call(self, node: Any, requests: list[tuple[int, Any]]) -> None:
        """Calls that arrive together."""
        calls = []
        for method, request in requests:
            self.next_request += 1
            payload = request.SerializeToString()
            self.calls[self.next_request] = Call(node.id, method, payload, self.floor)
            calls.append((method, self.next_request, payload))
        self.act(node, self.member(node).call, calls)

    def replied(self, node: MemberNode, call_id: int, message: bytes) -> None:
        """An answer: it is the model's, and knows all that was known when the call began."""
        call = self.calls.pop(call_id)
        if call.method == Method.RANGE:
            self.range_answered(node, call, message)
            return
        answer = REQUESTS[KIND_OF_METHOD[Method(call.method)]][1].FromString(message)
        self.acknowledged += 1
        known = call.payload in self.checks.answers
        self.checks.demand("ACKNOWLEDGED", known, f"{node.id} acknowledges {call.payload!r}, which is not in the log")
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
        if call.method == Method.RANGE:
            self.reads_failed += 1
        elif text in CERTAIN_REFUSALS:
            self.refusals += 1
            if call.method in (Method.PUT, Method.TXN):
                self.checks.refused.add(call.payload)
                known = call.payload not in self.checks.answers
                self.checks.demand("M16_REJECTED", known, f"{call.payload!r} is refused, but is in the log")

    # -- the operator --------------------------------------------------------------------------------------------------

    def wish(self, configuration: Configuration) -> ConfigurationChange | None:
        change = super().wish(configuration)
        if change is not None and change.settings is not None:
            settings = admin_pb2.Settings(max_voters=9, opened=True, promote_after_milliseconds=self.now)
            return ConfigurationChange(settings=encode_settings(settings))
        return change

    # -- liveness ------------------------------------------------------------------------------------------------------

    def written(self) -> bool:
        if any(payload in self.checks.answers for payload in self.last_writes):
            return True
        for leader in self.leaders():
            request = rpc_pb2.PutRequest(key=b"last", value=self.unique())
            self.last_writes.add(request.SerializeToString())
            self.call(leader, [(Method.PUT, request)])
        return False


# -- shapes of runs ----------------------------------------------------------------------------------------------------


def storms(rng: random.Random) -> Setup:
    """Processes die and machines lose their power at every corner; the network is good."""
    faults = Faults(
        lose=0.0, double=0.0, late=0.0, crash=0.012, partition=0.0, change=0.0, sleep=0.05, restart=60,
        power=0.7, blackout=0.3,
    )  # fmt: skip
    return Setup(
        rng.choice((1, 3, 3)),
        rng.random() < 0.5,
        faults=faults,
        clients=rng.choice((6, 20)),
        duration=2000,
        flush=rng.choice((40, 200)),
    )


def everything(rng: random.Random) -> Setup:
    """A bit of all: bad network, splits, sleeps, changes of members, deaths, power cuts."""
    faults = Faults(
        lose=rng.choice((0.0, 0.05)),
        double=rng.choice((0.0, 0.1)),
        late=rng.choice((0.0, 0.1)),
        crash=rng.choice((0.001, 0.003)),
        partition=rng.choice((0.0, 0.4)),
        sleep=rng.choice((0.0, 0.2)),
        change=rng.choice((0.0, 0.5)),
        transfer=0.1,
        power=0.5,
        blackout=0.1,
        restart=150,
    )
    return Setup(3, rng.random() < 0.5, faults=faults, clients=6, duration=2500)


def torrents(rng: random.Random) -> Setup:
    """Slow disks under load, and power cuts in the middle of their writes: torn tails."""
    faults = replace(storms(rng).faults, crash=0.002, fragile=150.0, power=0.9)
    return Setup(rng.choice((1, 3)), True, faults=faults, clients=20, duration=1500, flush=200)


SHAPES = (storms, everything, torrents)


def run_of(seed: int, **classes: Any) -> MemberWorld:
    """The run of a seed."""
    return MemberWorld(seed, SHAPES[seed % len(SHAPES)](random.Random(seed ^ 0x5EED)), **classes)
