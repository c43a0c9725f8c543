"""A simulated member that is the production one: `raftkv_node.server.member.Member` with all that it drives.

Raft, log, recovery, store, applier, the queues of writes and reads, the key space's requests and answers: all of it is
the code that a node runs, and it is the node's own driver that ties it together. What is replaced lies around it, and
`installed` names every piece: the clock, randomness, threads (their loops' bodies are events here), links to peers, the
engine, the disk (`simulation_disk`). Limits are made small, so that they are met.

`Truth` is what the simulation knows of a member's log: what is durable, and what is under way. Recovery may show
exactly the durable records and any number of those under way, in order (D2, D3); nothing else ever comes back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

from adr_harness import Machine
from raftkv_node import adr
from raftkv_node.adr import log as log_module
from raftkv_node.adr import opening as opening_module
from raftkv_node.adr.disklog import DiskLog
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.config import parse_arguments
from raftkv_node.pb import rpc_pb2
from raftkv_node.raft import Config, Configuration, Message, MessageType, Raft, Ready
from raftkv_node.server import applier as applier_module
from raftkv_node.server import identity as identities
from raftkv_node.server import kv as kv_module
from raftkv_node.server import member as member_module
from raftkv_node.server import replica as replica_module
from raftkv_node.server.ahead import Ahead
from raftkv_node.server.answers import Answers
from raftkv_node.server.identity import Identity
from raftkv_node.server.kv import KeySpace
from raftkv_node.server.log import Logger
from raftkv_node.server.member import Member
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.node import READ_BUDGET_SECONDS
from raftkv_node.server.replica import Replica
from raftkv_node.server.writes import WriteLimits
from raftkv_node.store import Batch, Store
from raftkv_node.store.store import ApplyResult
from simulation_checks import Violation
from simulation_disk import Place, SimFiles, SimRing

CLUSTER = 7
RING_BYTES = 8192 + (16 << 10)
SEGMENT_BYTES = 12 << 10
WINDOW_ENTRIES = 60
COMPACT_EVERY_ENTRIES = 20
MAX_APPEND_BYTES = 1500
SMALL_LIMITS = WriteLimits(max_batch_requests=10, max_batch_bytes=RING_BYTES // 10)
UNITS_PER_SECOND = 100
"""The world's units of time in a second: a tick of 100 ms is 10 of them."""
CLOCK_STEP_SECONDS = 0.0001
"""Each look at the clock takes so long: the budgets of a turn are used up by work, and the same in every run."""


class Surroundings(Protocol):
    """What a member needs of its world."""

    setup: Any
    checks: Any
    raft_class: Callable[..., Raft]
    replica_class: type[Replica]
    store_class: type[SimStore]
    starting: MemberNode
    clock: Clock
    planted: Mapping[Any, Mapping[str, Any]]
    """Production code to be replaced by a bug: class or module, name, bug."""

    def seconds(self) -> float:
        """The present time."""

    def reach(self, node: Any, point: str) -> None:
        """A point where the process may die."""

    def send(self, message: Message) -> None:
        """Hand a message to the network."""

    def later(self, node: Any, low: int, high: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call an action of the node some time from now, if it lives so long."""

    def observe(self, node: Any, ready: Ready) -> None:
        """Look at what the core has given, before any of it is worked off."""

    def released(self) -> int:
        """Entries below this index are in every member's backend, and will be needed by no one."""

    def replied(self, node: Any, call_id: int, message: bytes) -> None:
        """A call is answered."""

    def failed(self, node: Any, call_id: int, code: int, text: str) -> None:
        """A call is answered with an error."""

    def forgotten(self, node: Any) -> None:
        """The process is gone, and with it all calls that it has not answered."""


# -- what the simulation knows of a log --------------------------------------------------------------------------------


class Durable(NamedTuple):
    """The state of a log after some of its records."""

    hard_state: tuple[int, int, int]
    entries: list[tuple[int, bytes]]
    membership: tuple[int, int, bytes]

    def after(self, record: adr.Record) -> Durable:
        kind, _, term, index, payload = record
        if kind == adr.ENTRY:
            del self.entries[index - 1 :]
            self.entries.append((term, payload))
        elif kind == adr.HARD_STATE:
            return self._replace(hard_state=(term, int.from_bytes(payload, "little"), index))
        elif kind == adr.CONFIGURATION:
            return self._replace(membership=(term, index, payload))
        return self

    def shows(self, found: adr.Recovered) -> bool:
        """Whether a recovery has found exactly this (of released entries nothing can be said)."""
        membership = (0, 0, b"") if found.configuration is None else tuple(found.configuration)
        return (
            tuple(found.hard_state) == self.hard_state
            and membership == self.membership
            and found.last_index == len(self.entries)
            and [(one.term, one.payload) for one in found.entries] == self.entries[found.first_index - 1 :]
        )


class Truth:
    """What is durable in a member's log, and what is under way."""

    def __init__(self) -> None:
        self.durable = Durable((0, 0, 0), [], (0, 0, b""))
        self.pending: deque[tuple[int, list[adr.Record]]] = deque()
        """Batches that were handed in, with the LSN behind them (0: not known, since the process died in `append`)."""

    def hand_in(self, batch: Sequence[adr.Record]) -> None:
        self.pending.append((0, list(batch)))

    def appended(self, lsn: int) -> None:
        self.pending[-1] = (lsn, self.pending[-1][1])

    def fenced(self, lsn: int) -> None:
        """Everything below `lsn` is durable now."""
        while self.pending and 0 < self.pending[0][0] <= lsn:
            for record in self.pending.popleft()[1]:
                self.durable = self.durable.after(record)

    def recovered(self, found: adr.Recovered) -> None:
        """D2, D3: what was durable is found, and of what was under way a prefix."""
        state = self.durable
        records = [record for _, batch in self.pending for record in batch]
        for number in range(len(records) + 1):
            if state.shows(found):
                self.durable = state
                self.pending.clear()
                return
            if number < len(records):
                state = state.after(records[number])
        raise Violation(
            "D3_DURABLE_IS_FOUND",
            f"found {tuple(found.hard_state)} and entries {found.first_index} to {found.last_index} with the terms "
            f"{[one.term for one in found.entries][-10:]}; all durable and under way were {state.hard_state} and "
            f"{len(state.entries)} entries, {[term for term, _ in state.entries][-10:]}, {len(records)} under way",
        )

    def durable_term(self, index: int) -> int | None:
        """The term at `index` that no crash from now on takes away."""
        if not 0 < index <= len(self.durable.entries):
            return None
        for _, batch in self.pending:
            if any(kind == adr.ENTRY and at <= index for kind, _, _, at, _ in batch):
                return None
        return self.durable.entries[index - 1][0]


# -- the pieces around a member ----------------------------------------------------------------------------------------


class SimPeers:
    """Links to the other members: messages go to the world's network as bytes."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node
        self.requests: list[Any] = []
        self.responses: list[Any] = []
        self.connected: frozenset[int] = frozenset()

    def send(self, messages: Sequence[Message]) -> None:
        node = self._node
        for message in messages:
            node.world.checks.promised(node, message)
            node.world.send(message)
            node.world.reach(node, f"after {MessageType(message.type).name}")

    def set_members(self, urls: Mapping[int, str]) -> None: ...
    def refuse_removed(self, removed: Any) -> None: ...
    def tick(self, now: float) -> None: ...


class SimEngine:
    """The part of the engine that answers."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node

    def reply(self, call_ids: Sequence[int], messages: Sequence[bytes]) -> None:
        for call_id, message in zip(call_ids, messages, strict=True):
            self._node.world.replied(self._node, call_id, message)
        self._node.world.reach(self._node, "after replies")

    def reply_errors(self, errors: Sequence[tuple[int, int, str]]) -> None:
        for call_id, code, text in errors:
            self._node.world.failed(self._node, call_id, code, text)


class SimWorkers:
    """Jobs of a node, done some time later."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node
        self.done: deque[Callable[[], None]] = deque()
        """What jobs want to be done in the turn."""

    def submit(self, job: Callable[[], None]) -> None:
        self._node.world.later(self._node, 1, 10, self._node.work, job)


class SimStore(Store):
    """The production store; what it applies is compared with the model at once."""

    node: MemberNode

    def apply(self, index: int, term: int, batch: Batch, *arguments: Any, **options: Any) -> ApplyResult:
        result = super().apply(index, term, batch, *arguments, **options)
        self.node.world.checks.was_applied(self.node, index, term, batch, result)
        self.node.world.reach(self.node, "after apply")
        return result


class StoreView:
    """What the world asks of a store."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node

    @property
    def applied(self) -> int:
        return self._node.member.store.applied_index

    def digest(self) -> int:
        return hash(self._node.hash_kv())


# -- the member --------------------------------------------------------------------------------------------------------


class MemberNode:
    """One member over all of its lives. Has what the world asks of a `SimNode`."""

    def __init__(
        self, member_id: int, world: Surroundings, folder: Path, founding: Configuration, rng: random.Random
    ) -> None:
        self.id = member_id
        self.world = world
        self.rng = rng
        self.log = Truth()
        self.place = Place(folder, self._reach, rng)
        self.member: Member
        self.store = StoreView(self)
        self.up = False
        self.incarnation = 0
        self.dies_of_power = False
        self.committed_index = 0
        self._founding = founding
        self._open: list[Any] = []
        self._flush_due = False
        self._disk_mode = world.setup.slow_disks
        arguments = [
            *("--name", f"n{member_id}", "--data-dir", str(folder / "data")),
            *("--heartbeat-interval", "100", "--election-timeout", "1000"),
            *(() if self._disk_mode else ("--adr-path", str(folder / "pmem"))),
        ]
        self._config = parse_arguments(arguments, {})

    def _identity(self) -> Identity:
        """The identity on the disk; an empty disk is formatted, and issued the member's ids."""
        found = identities.load_or_format(self._config.data_dir, self.id, self._config.name)
        if found.issued:
            return found
        issued = found.issue(dataclasses.replace(found, cluster_id=CLUSTER, member_id=self.id, operated=True))
        identities.save(self._config.data_dir, issued)
        return issued

    @property
    def raft(self) -> Raft:
        return self.member.raft

    def _reach(self, point: str) -> None:
        self.world.reach(self, point)

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open log and store, and join in: what a node does at its start."""
        self.incarnation += 1
        self._flush_due = False
        self.world.starting = self
        self.files = SimFiles(self.place)
        engine: Any = SimEngine(self)
        answers = Answers(engine)
        self.workers = SimWorkers(self)
        workers: Any = self.workers
        metrics = Metrics()
        self.member = Member(
            self._config,
            self._identity(),
            self._founding,
            transport=engine,
            answers=answers,
            workers=workers,
            metrics=metrics,
            logger=Logger("error", stream=io.StringIO()),
        )
        self.answers = answers
        self.key_space = KeySpace(self._config, self.member, answers, workers, metrics)
        self.world.checks.opened(self)
        self.up = True

    def open_log(self, options: adr.LogOptions) -> tuple[adr.Log, adr.Recovered]:
        """The production opening, on the simulated disk."""
        log, found = adr.Log.open(
            dataclasses.replace(
                options,
                files=self.files,
                environment=Machine(),
                adr_size_bytes=RING_BYTES if not self._disk_mode else 1 << 20,
                adr_size_limits_bytes=(1 << 10, 1 << 20),
                segment_size_bytes=SEGMENT_BYTES,
                minimum_durability=adr.Level.POWER,
            )
        )
        self._open.append(lambda: log.close(clean=False))
        self.log.recovered(found)
        append = log.append

        def watched(batch: Sequence[adr.Record]) -> int:
            self._reach("before append")
            self.log.hand_in(batch)
            try:
                lsn = append(batch)
            except adr.RingFull:
                self.log.pending.pop()
                self.world.checks.count("ring full")
                raise
            self.log.appended(lsn)
            self.log.fenced(log.durable_lsn)
            self._reach("after append")
            return lsn

        log.append = watched  # type: ignore[method-assign]
        return log, found

    def open_store(self, path: Path, **options: Any) -> Store:
        """The production opening, without its thread."""
        store = self.world.store_class.open(path, start_thread=False, **options)
        assert isinstance(store, SimStore)
        store.node = self
        self._open.append(lambda: store.close(commit=False))
        return store

    def crash(self) -> None:
        """The process dies, or the machine's power is cut; nothing is said good-bye to."""
        self.up = False
        for close in self._open:
            close()
        self._open = []
        power = self.dies_of_power or self.rng.random() < self.world.setup.faults.power
        self.dies_of_power = False
        self.place.died(power)
        self.world.forgotten(self)

    # -- the turn ------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """What the node does between two looks at the engine."""
        more = self.member.advance(self.world.seconds())
        more = self.key_space.serve(self.world.clock() + READ_BUDGET_SECONDS) or more
        self.answers.flush()
        self.member.watches.flush()
        if more:
            self.world.later(self, 1, 1, self.turn)
        log = self.member.log
        if isinstance(log, DiskLog) and log.durable_lsn < log._lsn and not self._flush_due:
            self._flush_due = True
            self.world.later(self, 1, self.world.setup.flush, self.flush)

    def receive(self, message: Message) -> None:
        """A message has come."""
        self.member.replica.step((message,))
        self.turn()

    def call(self, calls: Sequence[tuple[int, int, bytes]]) -> None:
        """Calls of clients have come: method, id, request."""
        for method, call_id, payload in calls:
            self.key_space.handle(method, [call_id], [payload], self.world.seconds())
        self.turn()

    def work(self, job: Callable[[], None]) -> None:
        """A worker's job; old entries that are gone are nobody's failure."""
        with contextlib.suppress(LookupError):
            job()
        while self.workers.done:
            self.workers.done.popleft()()
        self.turn()

    def tick(self) -> None:
        """A heartbeat interval has passed; and what the node's threads do beside the turn."""
        self.member.tick(self.world.seconds())
        log, rng = self.member.log, self.rng
        log.release(self.world.released())
        if isinstance(log, RingLog) and rng.random() < (0.2 if log.pressure() > 0.5 else 0.05):
            log.drain()
            log._release_segments()
        if rng.random() < 0.1:
            self.commit_store()
        self.turn()

    def flush(self) -> None:
        """The body of the disk log's flush thread."""
        self._flush_due = False
        log = self.member.log
        assert isinstance(log, DiskLog)
        log.flush()
        self.log.fenced(log.durable_lsn)
        self._reach("after flush")
        log._release_segments()
        self.turn()

    def commit_store(self) -> None:
        """The body of the store's thread."""
        store = self.member.store
        self._reach("before backend commit")
        store.backend.commit_now()
        self.world.checks.store_committed(self)
        self._reach("after backend commit")

    def hash_kv(self) -> bytes:
        """HashKV of the newest revision, without the header."""
        found = rpc_pb2.HashKVResponse.FromString(self.member.store.start_hash().run())
        found.ClearField("header")
        return found.SerializeToString(deterministic=True)


# -- the pieces in their places --------------------------------------------------------------------------------------


@contextlib.contextmanager
def installed(world: Surroundings) -> Iterator[None]:
    """The simulation's pieces in the places of the production ones; `world.starting` is the node that starts now."""

    def observed(config: Config, initial: Any) -> Raft:
        node = world.starting
        raft = world.raft_class(config, initial)
        ready = raft.ready

        def watched() -> Ready:
            taken = ready()
            world.observe(node, taken)
            world.reach(node, "before messages")
            return taken

        raft.ready = watched  # type: ignore[method-assign]
        return raft

    raft_config = member_module.raft_config

    def small(*arguments: Any) -> Config:
        return dataclasses.replace(
            raft_config(*arguments),
            heartbeat_ticks=world.setup.timing.heartbeat_ticks,
            election_ticks=world.setup.timing.election_ticks,
            max_append_bytes=min(MAX_APPEND_BYTES, 12 * world.setup.timing.max_append_bytes),
            max_inflight_messages=world.setup.timing.max_inflight_messages,
            max_apply_bytes=1000,
        )

    def open_log(options: adr.LogOptions) -> tuple[adr.Log, adr.Recovered]:
        return world.starting.open_log(options)

    def open_store(path: Path, **options: Any) -> Store:
        return world.starting.open_store(path, **options)

    def token_bytes(size: int) -> bytes:
        return world.starting.rng.randbytes(size)

    clock = world.clock
    pieces: dict[Any, dict[str, Any]] = {
        member_module: {
            "Log": SimpleNamespace(open=open_log),
            "Store": SimpleNamespace(open=open_store),
            "Raft": observed,
            "raft_config": small,
            "Replica": world.replica_class,
            "Peers": lambda *_, **__: SimPeers(world.starting),
            "random": SimpleNamespace(SystemRandom=lambda: world.starting.rng),
            "monotonic": clock,
            "WriteLimits": lambda **_: SMALL_LIMITS,
            "Ahead": lambda *arguments: Ahead(*arguments, clock=clock),
        },
        replica_module: {
            "monotonic": clock,
            "WINDOW_ENTRIES": WINDOW_ENTRIES,
            "COMPACT_EVERY_ENTRIES": COMPACT_EVERY_ENTRIES,
        },
        applier_module: {"monotonic": clock},
        kv_module: {"monotonic": clock, "READS_PER_SLICE": 1},
        identities: {"Files": lambda: world.starting.files},
        opening_module: {
            "Ring": lambda path, *rest: SimRing(world.starting.place, path, *rest),
            "secrets": SimpleNamespace(token_bytes=token_bytes),
        },
        log_module.Log: {"_start_thread": lambda *_: None},
    }
    with contextlib.ExitStack() as stack:
        for where, replaced in [*pieces.items(), *world.planted.items()]:
            stack.enter_context(patch.multiple(where, **replaced))
        yield


class Clock:
    """The world's time; each look at it takes a moment."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._moment, self._looks = 0.0, 0

    def __call__(self) -> float:
        moment = self._world.seconds()
        if moment != self._moment:
            self._moment, self._looks = moment, 0
        self._looks += 1
        return moment + self._looks * CLOCK_STEP_SECONDS
