"""A simulated member: the production Raft core between a log and a store, and the turn that ties them together.

The turn is that of `docs/raft.md`. A node persists within the turn (the ring) or, with `slow_disk`, has one flush under
way at a time while turns go on (disk mode). At every point where a real process can die, `reach(point)` lets the world
kill it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from raftkv_node.raft import (
    Config,
    FetchRequest,
    HardState,
    Message,
    MessageType,
    ProposalError,
    Raft,
    ReadFailure,
    Ready,
    RejectedProposal,
)
from simulation_storage import LogStore, StateStore


class CrashError(BaseException):
    """The simulated process dies here. (No code of the process may catch it.)"""


@dataclass(frozen=True)
class Timing:
    """Settings that all members share."""

    election_ticks: int = 10
    heartbeat_ticks: int = 2
    max_append_bytes: int = 120
    max_inflight_messages: int = 4


class Environment(Protocol):
    """What a node needs of its world."""

    def reach(self, node: SimNode, point: str) -> None:
        """A point where the process may die (raises `CrashError`)."""

    def send(self, message: Message) -> None:
        """Hand a message to the network."""

    def start_flush(self, node: SimNode) -> None:
        """Call `node.flush_done` some time later."""

    def start_fetch(self, node: SimNode, request: FetchRequest) -> None:
        """Call `node.fetch_done` some time later."""

    def observe(self, node: SimNode, ready: Ready) -> None:
        """Look at what a turn has given, before any of it is worked off."""

    def answered(self, node: SimNode, request: str) -> None:
        """A write is acknowledged to its client."""

    def rejected(self, node: SimNode, request: str) -> None:
        """A write is refused to its client: it must never be applied."""

    def read_served(self, node: SimNode, context: bytes, index: int) -> None:
        """A linearizable read is answered from the state of `index`."""

    def read_failed(self, node: SimNode, context: bytes) -> None:
        """A linearizable read is refused."""


@dataclass
class SimNode:
    """One member."""

    id: int
    world: Environment
    log: LogStore
    store: StateStore
    rng: random.Random
    timing: Timing
    raft_class: Callable[..., Raft] = Raft
    slow_disk: bool = False
    apply_before_durable: bool = False
    raft: Raft = field(init=False)
    up: bool = False
    incarnation: int = 0
    waiting: list[Ready] = field(default_factory=list)
    flushing: list[Ready] = field(default_factory=list)
    unwritten: HardState | None = None
    own_requests: set[str] = field(default_factory=set)
    reads: list[tuple[int, bytes]] = field(default_factory=list)
    batch: list[str] = field(default_factory=list)

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open log and store, and join in."""
        self.incarnation += 1
        initial = self.log.recover(self.store.applied, self.rng)
        config = Config(
            id=self.id,
            random=self.rng.randint,
            election_ticks=self.timing.election_ticks,
            heartbeat_ticks=self.timing.heartbeat_ticks,
            max_append_bytes=self.timing.max_append_bytes,
            max_inflight_messages=self.timing.max_inflight_messages,
            max_uncommitted_bytes=5000,
            max_apply_bytes=200,
            apply_before_durable=self.apply_before_durable,
        )
        self.raft = self.raft_class(config, initial)
        self.up = True

    def crash(self) -> None:
        """The process dies; what was not durable may be gone."""
        self.up = False
        self.waiting, self.flushing, self.unwritten = [], [], None
        self.own_requests, self.reads, self.batch = set(), [], []
        self.log.crash(self.rng)
        self.store.crash()

    # -- requests --------------------------------------------------------------------------------------------

    def put(self, request: str) -> None:
        """A client's write; those of one turn go as one entry."""
        self.batch.append(request)

    def propose_batch(self) -> None:
        """Propose what has come in, or forward it."""
        batch, self.batch = self.batch, []
        if not batch:
            return
        data = "|".join(batch).encode()
        self.own_requests.update(batch)
        try:
            if self.raft.is_leader:
                self.raft.propose(data)
            else:
                self.raft.forward(data, data)
        except ProposalError:
            self.refuse(data)

    def refuse(self, context: bytes) -> None:
        for request in context.decode().split("|"):
            self.own_requests.discard(request)
            self.world.rejected(self, request)

    # -- the turn --------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Work off everything there is to do."""
        self.propose_batch()
        while self.raft.has_ready():
            ready = self.raft.ready()
            self.world.observe(self, ready)
            self.world.reach(self, "before messages")
            self.send(ready.messages)
            self.persist(ready)
            self.apply(ready)
            self.answer(ready)

    def send(self, messages: object) -> None:
        for message in messages:  # type: ignore[attr-defined]
            self.world.send(message)
            self.world.reach(self, f"after {MessageType(message.type).name}")

    def persist(self, ready: Ready) -> None:
        """Write and, with a ring, fence at once; otherwise the flush covers it later."""
        self.world.reach(self, "before write")
        self.log.write(self.hard_state_in_front(ready), ready.entries)
        self.world.reach(self, "after write")
        if self.slow_disk:
            if ready.must_sync or ready.messages_after_persist:
                self.waiting.append(ready)
                self.begin_flush()
            return
        if ready.must_sync:
            self.log.fence()
            self.world.reach(self, "after fence")
        self.complete([ready])

    def hard_state_in_front(self, ready: Ready) -> HardState | None:
        """What is written in front of the entries, any of which may be lost; the rest waits for the next batch."""
        state = self.unwritten = ready.hard_state or self.unwritten
        if state is None:
            return None
        commit = ready.commit_in_front(state.commit, self.raft.applied_index)
        if commit == state.commit:
            self.unwritten = None
        return HardState(state.term, state.vote, commit)

    def begin_flush(self) -> None:
        """Start a flush for all that waits, unless one is under way."""
        if self.waiting and not self.flushing:
            self.flushing, self.waiting = self.waiting, []
            self.world.start_flush(self)

    def flush_done(self) -> None:
        """The flush has ended. In this model it also covers what was written since; only what it promised counts."""
        self.log.fence()
        self.world.reach(self, "after flush")
        done, self.flushing = self.flushing, []
        self.complete(done)
        self.begin_flush()
        self.turn()

    def complete(self, readys: list[Ready]) -> None:
        """Readys are durable: say so, then send what waited for it."""
        self.raft.persisted(readys[-1].number)
        for ready in readys:
            self.send(ready.messages_after_persist)

    def apply(self, ready: Ready) -> None:
        if not ready.committed_entries:
            return
        self.store.apply(ready.committed_entries)
        self.raft.applied(ready.committed_entries[-1].index)
        self.world.reach(self, "after apply")
        for entry in ready.committed_entries:
            for request in entry.data.decode().split("|") if entry.data and not entry.type else ():
                if request in self.own_requests:
                    self.own_requests.discard(request)
                    self.world.answered(self, request)

    def commit_store(self) -> None:
        """Make the applied state durable, as far as the log is (D14)."""
        if self.store.applied <= self.raft.durable_index:
            self.world.reach(self, "before backend commit")
            self.store.commit()
            self.world.reach(self, "after backend commit")

    def answer(self, ready: Ready) -> None:
        """Serve reads whose index is applied; pass on refusals; start fetches."""
        self.reads.extend((index, context) for index, context in ready.read_states)
        served = [read for read in self.reads if read[0] <= self.store.applied]
        self.reads = [read for read in self.reads if read[0] > self.store.applied]
        for _, context in served:
            self.world.read_served(self, context, self.store.applied)
        self.fail(ready.read_failures)
        self.reject(ready.rejected_proposals)
        for request in ready.fetch_requests:
            self.world.start_fetch(self, request)

    def fail(self, failures: object) -> None:
        failure: ReadFailure
        for failure in failures:  # type: ignore[attr-defined]
            self.world.read_failed(self, failure.context)

    def reject(self, rejections: object) -> None:
        rejection: RejectedProposal
        for rejection in rejections:  # type: ignore[attr-defined]
            self.refuse(rejection.context)

    def fetch_done(self, request: FetchRequest) -> None:
        """Old entries were read from the log (or nothing was)."""
        term, entries = self.log.read(request.first, request.max_bytes)
        if entries:
            self.raft.provide_entries(request.peer, request.first, term, entries)
        else:
            self.raft.fetch_failed(request.peer)
        self.turn()
