"""A simulated member that is the production one: `raftkv_node.server.member.Member` with all that it drives.

Raft, log, recovery, store, applier, the queues of writes and reads, the key space's requests and answers: all of it is
the code that a node runs, and it is the node's own driver that ties it together. What is replaced lies around it, and
`simulation_installed` names every piece: the clock, randomness, threads (their loops' bodies are events here), links to
peers, the engine, the disk (`simulation_disk`). Limits are made small, so that they are met.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adr_harness import Machine
from raftkv_node import adr
from raftkv_node.adr.disklog import DiskLog
from raftkv_node.adr.records import MARK_SNAPSHOT
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.config import parse_arguments
from raftkv_node.pb import rpc_pb2
from raftkv_node.raft import Configuration, Message, Raft, Ready
from raftkv_node.server import identity as identities
from raftkv_node.server.answers import Answers
from raftkv_node.server.hello import Hello
from raftkv_node.server.identity import Identity
from raftkv_node.server.kv import KeySpace
from raftkv_node.server.log import Logger
from raftkv_node.server.member import Member
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.node import READ_BUDGET_SECONDS
from raftkv_node.server.replica import EntriesGone, Replica
from raftkv_node.store import Store
from raftkv_node.store.snapshot import SnapshotSink
from simulation_disk import Place, SimFiles
from simulation_node import CrashError
from simulation_pieces import SimEngine, SimPeers, SimSink, SimStore, SimWorkers, StoreView
from simulation_truth import Truth

if TYPE_CHECKING:
    from simulation_installed import Clock

CLUSTER = 7
RING_BYTES = 8192 + (16 << 10)
ZERO_AHEAD_BYTES = 1 << 10
"""Much less than a segment, so that it runs out all the time."""


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

    def linked(self, member: int) -> frozenset[int]:
        """Members that a member has a working link to."""

    def post(self, sender: int, to: int, what: str, *arguments: Any) -> None:
        """Call an action of another node, as a message would: late, or never."""

    def later(self, node: Any, low: int, high: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call an action of the node some time from now, if it lives so long."""

    def observe(self, node: Any, ready: Ready) -> None:
        """Look at what the core has given, before any of it is worked off."""

    def replied(self, node: Any, call_id: int, message: bytes) -> None:
        """A call is answered."""

    def failed(self, node: Any, call_id: int, code: int, text: str) -> None:
        """A call is answered with an error."""

    def watched(self, number: int, message: bytes) -> None:
        """A watch is told something."""

    def stream_ended(self, number: int) -> None:
        """A stream of watches is over."""

    def forgotten(self, node: Any) -> None:
        """The process is gone, and with it all calls that it has not answered."""


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
        self.machine = Machine()
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
            *("--log-retention-entries", str(world.setup.retention_entries)),
            *("--newest-disk-patience", "500ms"),
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

    def make_files(self) -> SimFiles:
        """The file operations of the next opening."""
        return SimFiles(self.place)

    def now_seconds(self) -> float:
        """The time that the member's own clock shows."""
        return self.world.seconds()

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
        self._promotions = 0
        self.world.starting = self
        self.files = self.make_files()
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
        self._watch_snapshots()
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
                environment=self.machine,
                adr_size_bytes=RING_BYTES if not self._disk_mode else 1 << 20,
                adr_size_limits_bytes=(1 << 10, 1 << 20),
                segment_size_bytes=self.world.setup.segment_bytes,
                zero_ahead_bytes=ZERO_AHEAD_BYTES,
                minimum_durability=adr.Level.POWER,
            )
        )
        self._open.append(lambda: log.close(clean=False))
        self.log.recovered(found)
        append = log.append

        def watched(batch: Sequence[adr.Record]) -> int:
            mark = any(record[:2] == (adr.MARK, MARK_SNAPSHOT) for record in batch)
            self._reach("before install mark" if mark else "before append")
            self.log.hand_in(batch)
            try:
                lsn = append(batch)
            except adr.RingFull:
                self.log.pending.pop()
                self.world.checks.count("ring full")
                raise
            self.log.appended(lsn)
            self.log.fenced(log.durable_lsn)
            self._reach("after install mark" if mark else "after append")
            return lsn

        log.append = watched  # type: ignore[method-assign]
        return log, found

    def open_store(self, path: Path, **options: Any) -> Store:
        """The production opening, without its thread."""
        store = self.world.store_class.open(path, **{**options, "start_thread": False})
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
        more = self.member.advance(self.now_seconds())
        more = self.key_space.serve(self.world.clock() + READ_BUDGET_SECONDS) or more
        self.answers.flush()
        self.member.watches.flush()
        self._count_promotions()
        if more:
            self.world.later(self, 1, 1, self.turn)
        log = self.member.log
        if isinstance(log, DiskLog) and log.durable_lsn < log._lsn and not self._flush_due:
            self._flush_due = True
            self.world.later(self, 1, self.world.setup.flush, self.flush)

    def _watch_snapshots(self) -> None:
        """Points around what the member does with a snapshot, and counts."""
        member, world = self.member, self.world
        open_sink, sent = member.open_sink, member.metrics.snapshots.count

        def sink() -> SnapshotSink:
            made = open_sink()
            made.__class__ = SimSink
            made.reach = self._reach  # type: ignore[attr-defined]
            return made

        def count(counts: dict[int, int], peer: int) -> None:
            sent(counts, peer)
            if counts is member.metrics.snapshots.sent:
                world.checks.count("snapshots sent")
            elif counts is member.metrics.snapshots.send_failures:
                world.checks.count("snapshots given up")

        member.open_sink = sink  # type: ignore[method-assign]
        member.metrics.snapshots.count = count  # type: ignore[method-assign]

    def _count_promotions(self) -> None:
        """Changes of voters that the leader has made by itself, and that are committed."""
        promotions = self.member.changes.promotions
        number = sum(promotions.values())
        for _ in range(number - self._promotions):
            self.world.checks.count("automatic promotions")
        self._promotions = number

    def receive(self, message: Message) -> None:
        """A message has come."""
        if message.sender in self._peers.judged:
            self.member.hear((message,))
        self.turn()

    def introduced(self, sender: int, hello: bytes, first: bool) -> None:
        """A member says who it is: it is judged, and answered with what this one has stored, or with the reason."""
        said = Hello.decode(hello)
        if not self.world.member(self.world.nodes[sender]).lives_on(said.generation):
            return  # the connection has ended with the life that said it
        self.world.starting = self  # what is written now is written to this disk
        reason = self.member.introductions.refusal(said)
        if reason is not None:
            self.world.post(self.id, sender, "refused", self.id, reason, said.generation)
            return
        self._peers.judged.add(sender)
        if first:
            self.world.post(
                self.id, sender, "introduced", self.id, self.member.introductions.hello(sender).encode(), False
            )
        self._peers.tell(sender, self.member.introductions.openings())

    def lives_on(self, generation: int) -> bool:
        """Whether this member runs, on that opening of its log."""
        return self.up and self.member.log.generation == generation

    def refused(self, by: int, reason: str, generation: int) -> None:
        """A member does not hear this one. What an earlier life is told comes on its connection, which is gone."""
        if self.lives_on(generation):
            self.world.starting = self
            self.member.introductions.rejected(by, reason)

    def hung_up(self, other: int) -> None:
        """The connection to a member is gone, as it is when its process ends."""
        self._peers.judged.discard(other)

    def told(self, by: int, openings: bytes) -> None:
        """A member says what it has stored."""
        if by in self._peers.judged:
            self.world.starting = self
            self.member.introductions.told(by, openings)
            self.turn()

    @property
    def _peers(self) -> SimPeers:
        peers: Any = self.member.peers
        assert isinstance(peers, SimPeers)
        return peers

    def watch(self, call_id: int, payload: bytes, first: bool) -> None:
        """A client opens a stream, or says something on one."""
        if first:
            self.member.watches.open(call_id, False, self.now_seconds())
        self.member.watches.receive(call_id, payload)
        self.turn()

    def call(self, calls: Sequence[tuple[int, int, bytes]]) -> None:
        """Calls of clients have come: method, id, request."""
        for method, call_id, payload in calls:
            self.key_space.handle(method, [call_id], [payload], self.now_seconds())
        self.turn()

    def work(self, job: Callable[[], None]) -> None:
        """A worker's job; old entries that are gone are nobody's failure."""
        self.world.starting = self  # it may open a snapshot
        with contextlib.suppress(EntriesGone):
            job()
        while self.workers.done:
            self.workers.done.popleft()()
        self.turn()

    def tick(self) -> None:
        """A heartbeat interval has passed; and what the node's threads do beside the turn."""
        self.member.tick(self.now_seconds())
        log, rng = self.member.log, self.rng
        if isinstance(log, RingLog) and rng.random() < max(self.world.setup.drain, 0.2 if log.pressure() > 0.5 else 0):
            self.drain(log)
        if rng.random() < 0.1:
            self.commit_store()
        self.turn()

    def drain(self, log: RingLog) -> None:
        """A pass of the ring log's drain thread."""
        undrained = log.stats()["drained_lsn"]
        try:
            self._pass(log)
        except CrashError:
            if undrained != log.durable_lsn:
                self.world.checks.count("drains cut by a crash")
            raise

    def _pass(self, log: RingLog | DiskLog) -> None:
        """What goes wrong on a disk that does not fail is a bug."""
        error = log.background_pass()
        if error is not None:
            self.disk_complained(error)

    def disk_complained(self, error: Exception) -> None:
        """The log could not do what it wanted: here no disk ever fails, so that it is the log's own fault."""
        raise error

    def flush(self) -> None:
        """A pass of the disk log's flush thread."""
        self._flush_due = False
        log = self.member.log
        assert isinstance(log, DiskLog)
        self._pass(log)
        self.log.fenced(log.durable_lsn)
        self._reach("after flush")
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
