"""A node with an identity: consensus, log, store, links, and its part of each turn.

The order inside a turn is the law of the design: what has arrived is stepped, what clients want is proposed as one
entry, the core's output is persisted with one fence, messages and replies that waited for it leave, committed entries
are applied as one batch, reads that the applied index has reached are served, watchers are told.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

from raftkv_node.adr import PRESSURE_FULL, PRESSURE_SHRINK, Level, Log, LogOptions, Recovered
from raftkv_node.adr import Identity as LogIdentity
from raftkv_node.adr.files import Files
from raftkv_node.config import NodeConfig
from raftkv_node.pb import rpc_pb2
from raftkv_node.raft import (
    Configuration,
    Message,
    MessageType,
    NotLeaderError,
    ProposalError,
    ProposalReason,
    Raft,
    Ready,
    SoftState,
)
from raftkv_node.server import identity as identities
from raftkv_node.server import openings
from raftkv_node.server.ahead import Ahead
from raftkv_node.server.answers import Answers
from raftkv_node.server.applier import Applier
from raftkv_node.server.changes import Changes, refusal
from raftkv_node.server.identity import Identity
from raftkv_node.server.installs import Installs, Prepared
from raftkv_node.server.introductions import Introductions
from raftkv_node.server.log import Logger
from raftkv_node.server.log import member as shown
from raftkv_node.server.members import peer_urls, role_settings, settings
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.moves import Moves
from raftkv_node.server.openings import Openings
from raftkv_node.server.peers import Peers, PeerTls, Transport
from raftkv_node.server.rangestreams import RangeStreams
from raftkv_node.server.reads import Reads
from raftkv_node.server.replica import Replica, initial_state, raft_config
from raftkv_node.server.resolver import make_resolver
from raftkv_node.server.roles import wished_number
from raftkv_node.server.tickets import Tickets
from raftkv_node.server.transfers import Transfers
from raftkv_node.server.watches import StreamTransport, Watches
from raftkv_node.server.workers import Workers
from raftkv_node.server.writes import NOBODY, WriteLimits, Writes
from raftkv_node.store import commands, install
from raftkv_node.store.errors import NO_LEADER, STOPPED, UNAVAILABLE, EtcdError
from raftkv_node.store.snapshot import SnapshotSink, SnapshotSource
from raftkv_node.store.store import Store

MAX_APPLY_GAP: Final = 5000
"""Entries committed but not applied; beyond, new writes are answered with etcd's "too many requests"."""
APPLY_BUDGET_SECONDS: Final = 0.002
SEGMENT_BYTES: Final = 64 << 20
"""Size of the log's segments, but at most a quarter of what the log may keep: it is released by whole segments."""
PUBLISH_RETRY_SECONDS: Final = 2.0
COMMIT_NOTICE_SECONDS: Final = 0.002
"""A commit that no append carries is told after this: a client that writes one thing after the other mostly writes
again before, and the followers are spared a turn for each of its writes."""
WAS_REMOVED: Final = EtcdError(UNAVAILABLE, "raftkv: this member was removed from the cluster")
_CONTEXT: Final = struct.Struct("<Q")


class Engine(Transport, StreamTransport, Protocol):
    """The parts of the engine that a member uses."""

    def flush(self) -> None: ...


class Failure(Exception):
    """The node cannot go on; the text is one sentence."""


class Member:
    """See the module's text."""

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        founding: Configuration,
        *,
        transport: Engine,
        answers: Answers,
        workers: Workers,
        metrics: Metrics,
        logger: Logger,
    ) -> None:
        """Opens log and store. Raises the log's and the store's errors, before anything was changed or sent."""
        self.config = config
        self.identity = identity
        self.metrics = metrics
        self._answers = answers
        self._transport = transport
        self._logger = logger
        kept = Openings(
            config.data_dir,
            workers,
            self._openings_stored,
            lambda why: logger.warn("openings of members are not kept", reason=why),
        )
        self._publish_at = 0.0
        self._own_attributes = rpc_pb2.Member(
            ID=identity.member_id, name=config.name, clientURLs=config.client_urls
        ).SerializeToString(deterministic=True)
        self._removed: frozenset[int] = frozenset()
        self._settings: bytes | None = None
        self._opened = False
        self._last_leader = 0
        self._log_alarms: frozenset[str] = frozenset()
        self._commit_told = 0
        self.tell_commit_at: float | None = None
        """When the commit index is to be told to members that nobody waits at."""
        self._leader_refuses = False
        """The leader took no proposal lately: the next one is handed over with the next tick, or to the next leader."""
        self.removed_from_cluster = False
        self._leader_lost_at: float | None = monotonic()
        tick = config.heartbeat_interval / 1000
        timeout = config.request_timeout_seconds
        self.log, recovered = Log.open(log_options(config, identity))
        self.recovered: Recovered = recovered
        self._files = Files()
        if settle_snapshot(self._files, config.data_dir, recovered):
            index = recovered.snapshot.index if recovered.snapshot is not None else 0
            logger.info("the installation of a snapshot is finished", index=index)
        self.store = self._open_store(config.data_dir / install.BACKEND)
        self.raft = Raft(
            raft_config(identity.member_id, config.election_ticks, config.pre_vote, random.SystemRandom().randint),
            initial_state(recovered, self.log, self.store, founding),
        )
        self.introductions = Introductions(
            identity,
            founding,
            patience_seconds=config.newest_disk_patience,
            openings=kept,
            log=self.log,
            recovered=recovered,
            raft=self.raft,
            surroundings=self,
            logger=logger,
        )
        self.store.set_term(self.raft.term)
        self.store.set_durable_index(self.raft.durable_index)
        tls = PeerTls(config.peer_cert_file, config.peer_key_file, config.peer_trusted_ca_file)
        self.peers = Peers(
            transport,
            self.introductions,
            resolver=make_resolver(config.resolver),
            tls=tls,
            metrics=metrics,
            logger=logger,
        )
        self.replica = Replica(self.raft, self.log, self.peers.send, workers, metrics, transport.flush)
        self.writes = Writes(
            random.SystemRandom().randrange(1, 1 << 63), WriteLimits(max_batch_bytes=config.max_batch_bytes), timeout
        )
        self.writes.passed_index = self.store.applied_index
        self.reads = Reads(timeout)
        self.changes = Changes(self.raft, tick, timeout)
        self.tickets = Tickets(self.raft, self.changes, lambda: self.introductions.generations)
        self.moves = Moves(self.raft, tick)
        self.watches = Watches(self.store, transport, workers, metrics)
        self.range_streams = RangeStreams(self.store, self.reads, transport, workers, metrics, config.max_request_bytes)
        self.ahead = Ahead(identity.member_id, self.store, self.writes, workers)
        self.applier = Applier(
            identity.member_id,
            store=self.store,
            replica=self.replica,
            writes=self.writes,
            answers=answers,
            metrics=metrics,
            ahead=self.ahead,
            notify=self.watches.notify,
            count_origin=self.moves.origins.add,
        )
        self._founding = founding.encode()
        self._released = 0
        self.transfers = Transfers(self.raft, workers, metrics, logger, self._open_source)
        self.installs = Installs(self.raft, workers, metrics, logger, self)
        self._release()
        self._configured(self.raft.configuration)
        if not identity.begun:
            self.keep(replace(self.identity, begun=True))
        self.introductions.look_at_gate(monotonic())

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The configuration in force."""
        return self.raft.configuration

    @property
    def opened(self) -> bool:
        """Whether clients are served (M2)."""
        encoded = self.raft.configuration.settings
        if encoded is not self._settings:  # asked for every batch of calls
            self._opened = settings(encoded).opened
            self._settings = encoded
        return self._opened

    @property
    def leader_id(self) -> int:
        """The leader, 0 when none is known."""
        return self.raft.leader_id

    @property
    def is_voter(self) -> bool:
        return self.configuration.is_voter(self.identity.member_id)

    @property
    def is_standby(self) -> bool:
        """No voter, and no vacancy that it waits for: it serves what needs no vote (M13)."""
        configuration = self.configuration
        own = self.identity.member_id
        if configuration.is_voter(own) or own not in configuration.ids:
            return False
        wanted = role_settings(configuration.settings)
        return own in configuration.standbys or (
            wanted.replicas > 0 and wished_number(wanted, configuration.ids) <= len(configuration.voters)
        )

    @property
    def is_learner(self) -> bool:
        """On its way to a vote: answers as etcd's learner does."""
        return not self.is_voter and not self.is_standby

    @property
    def may_vote(self) -> bool:
        """M5, M6: whether this member takes part in consensus at all."""
        return self.introductions.may_vote

    @property
    def _founds_alone(self) -> bool:
        """Whether this is the one voter of a cluster in which nobody has stood for election yet: there is no leader to
        wait for, and an election timeout would only delay the members that are to join."""
        return self.raft.term == 0 and self.raft.configuration.all_voters == {self.identity.member_id}

    def published(self) -> dict[int, rpc_pb2.Member]:
        """What members have published of themselves."""
        return {one: rpc_pb2.Member.FromString(encoded) for one, encoded in self.store.members.items()}

    # -- what introductions need (introductions.py) -------------------------------------------------------------------

    def keep(self, identity: Identity) -> None:
        """Change what the identity file knows beside the ids, durably, before anything depends on it."""
        identities.save(self.config.data_dir, identity)
        self.identity = identity

    def _openings_stored(self) -> None:
        self.introductions.tell_openings()

    @property
    def connected(self) -> Collection[int]:
        """Members that can be told something."""
        return self.peers.connected

    def tell(self, to: int, openings: bytes) -> None:
        """Tell one of them what is stored here."""
        self.peers.tell(to, openings)

    def receipt(self, member: int) -> tuple[int, int]:
        """The newest (term, index) that a member has promised since its last hello; (0, 0): none."""
        return self.replica.receipts.get(member, (0, 0))

    def forget_receipt(self, member: int) -> None:
        """The member has said hello with another opening."""
        self.replica.receipts.pop(member, None)

    def was_removed(self) -> None:
        """Serve nobody any more: what this member has only gets older. Watchers are to go on elsewhere."""
        if not self.removed_from_cluster:
            self.removed_from_cluster = True
            self._logger.warn("this member was removed from the cluster")
            self.watches.abandon(WAS_REMOVED)
            self.range_streams.abandon(WAS_REMOVED)

    # -- the turn -----------------------------------------------------------------------------------------------------

    def receive(self, batches: Sequence[tuple[int, list[bytes]]], now: float) -> None:
        """Frames of other members."""
        self.hear(self.peers.receive(batches, now))

    def hear(self, messages: Sequence[Message]) -> None:
        """Messages of members that were let in. M5: none reaches the core before this member takes part."""
        if messages and self.may_vote:
            self.replica.step(messages)

    def tick(self, now: float) -> None:
        """One heartbeat interval has passed."""
        if self.may_vote:
            if self._founds_alone:
                self.raft.campaign()
            self.raft.tick()
        self.peers.tick(now)
        self.introductions.tick(now)
        self._leader_refuses = False
        has_leader = self.leader_id != 0
        self._answers.errors(self.writes.expire(now, has_leader))
        self.reads.expire(now)
        self.applier.finish_compactions()
        self.watches.tick(now)
        self._publish(now)
        self._look_at_log()
        self.transfers.tick(now)
        self.installs.tick(now)
        self._release()
        if self.raft.is_leader:
            self.tickets.tick(now)
            change = self.changes.adjust_roles(now, self._roles_changed)
            if change is not None:
                voters = ",".join(shown(one) for one in sorted(change.voters))
                self._logger.info("voters are to change", voters=voters, cause=str(change.cause))
        move = self.moves.tick(self.peers.connected, lambda: not self.changes.changing and not self.tickets.held(now))
        if move is not None:
            self._logger.info("the lead is to move", to=shown(move.target), cause=str(move.cause))
        if self._leader_lost_at is not None and now - self._leader_lost_at >= 3 * self.config.election_timeout / 1000:
            self.watches.cancel_without_leader(NO_LEADER)
            self.range_streams.cancel_without_leader(NO_LEADER)

    def advance(self, now: float) -> bool:
        """Everything between what has arrived and the answers; whether work is left for the next turn."""
        self._propose(now)
        self.raft.eager = bool(self.writes.pending or self.reads.waiting or self.watches.count)
        if self.tell_commit_at is not None and now >= self.tell_commit_at:
            self.raft.tell_commit()
            self._commit_told = self.raft.commit_index
        if self.reads.waiting:
            context = self.reads.next_try(now, self.leader_id != 0)
            if context is not None:
                self.raft.read_index(context)
        for ready in self.replica.advance():
            self._take(ready, now)
        if not (self.replica.committed and self.raft.is_leader):
            # the leader waits for a follower's acknowledgement, not for what that one applies next; its own clients
            # come first
            self._transport.flush()
        if self.replica.restored is not None:
            self._install(now)
        if self.peers.dropped:
            self._report_dropped()
        if self.writes.pending:
            self._stamp()
        self.store.set_durable_index(self.raft.durable_index)
        more = bool(self.replica.committed) and self.applier.run(monotonic() + APPLY_BUDGET_SECONDS)
        if self.raft.has_ready():
            for ready in self.replica.advance():
                self._take(ready, now)
            more = more or bool(self.replica.committed) or self.raft.has_ready()
        # Once for each commit index: a member that cannot be told now (its window is full, say) hears it with the next
        # append or heartbeat. To try again at once would be a turn without end.
        if self.raft.commit_index == self._commit_told or not self.raft.commit_untold:
            self.tell_commit_at = None
        elif self.tell_commit_at is None:
            self.tell_commit_at = now + COMMIT_NOTICE_SECONDS
        if self.reads.waiting:
            self.reads.serve(self.store.applied_index)
        self.changes.settle(now)
        if self.store.compacting:
            more = self.store.background() or more
        self._check()
        return more or (self.writes.may_propose() and self._accepting)

    def _report_dropped(self) -> None:
        """What was on its way to a member is lost: the core sends it nothing more but one append, until it answers."""
        for one in self.peers.dropped:
            self.raft.report_unreachable(one)
        self.peers.dropped.clear()

    @property
    def _accepting(self) -> bool:
        """Whether proposals can be handed over now."""
        return self._leader_accepts and self.log.pressure() < PRESSURE_FULL

    @property
    def _leader_accepts(self) -> bool:
        """Whether the leader would take a proposal. While the lead is handed over, they wait."""
        return not (self.raft.leader_id == 0 or self._leader_refuses or self.raft.transferee)

    @property
    def overloaded(self) -> bool:
        """Whether applying is so far behind what is committed that no write is taken."""
        return self.raft.commit_index - self.store.applied_index > MAX_APPLY_GAP

    def _propose(self, now: float) -> None:
        """Make one entry of the writes that wait, and hand it to the log or to the leader."""
        writes = self.writes
        if not writes.may_propose() or not self._leader_accepts:
            return
        pressure = self.log.pressure()
        if pressure >= PRESSURE_FULL:
            return
        proposal = writes.take(now, small=pressure >= PRESSURE_SHRINK)
        data = commands.encode_batch(self.identity.member_id, proposal.first_seq, proposal.kinds, proposal.payloads)
        self.metrics.batch_requests.add(len(proposal.call_ids))
        proposal.proposed = monotonic()
        try:
            if self.raft.is_leader:
                ref = self.raft.propose(data)
                writes.appended(proposal, ref.term, ref.index)
            else:
                proposal.handed_term = self.raft.term
                self.raft.forward(data, _CONTEXT.pack(proposal.first_seq))
        except ProposalError as error:
            self._fail(writes.refused(proposal.first_seq, refusal(error)))

    def _take(self, ready: Ready, now: float) -> None:
        """What a Ready tells besides log and messages."""
        self.ahead.look(ready.entries)
        if ready.soft_state is not None:
            self._leader_may_have_changed(ready.soft_state, now)
        if ready.configuration is not None:
            self._configured(ready.configuration.configuration)
        for state in ready.read_states:
            took = self.reads.confirmed(state.context, state.index, now)
            if took is not None:
                self.metrics.read_index.add(took)
        for failure in ready.read_failures:
            self.reads.failed(failure.context, failure.reason, now)
        for rejected in ready.rejected_proposals:
            self._rejected(_CONTEXT.unpack(rejected.context)[0], rejected.reason)
        for peer in ready.snapshot_requests:
            self.transfers.wanted(peer, now)
        for message in ready.snapshot_messages:
            if message.type == MessageType.SNAPSHOT:
                self.installs.receive(message, now)
            else:
                self.transfers.answered(message, now)
        removed = self.raft.committed_configuration[1].removed
        if removed != self._removed:
            self.peers.refuse_removed(removed - self._removed)
            self.introductions.forget(removed)
            self._removed = removed
            if self.identity.member_id in removed:
                self.was_removed()

    def _rejected(self, first_seq: int, reason: ProposalReason) -> None:
        """The leader did not take a proposal; where it leads no more, another soon will."""
        if reason in (ProposalReason.TRANSFERRING, ProposalReason.NOT_LEADER):
            self.writes.propose_again(first_seq)
            self._leader_refuses = True
        else:
            error = NO_LEADER if reason == ProposalReason.NO_LEADER else refusal(_rejection(reason))
            self._fail(self.writes.refused(first_seq, error))

    def _leader_may_have_changed(self, state: SoftState, now: float) -> None:
        raft = self.raft
        self.store.set_term(raft.term)
        leads = raft.is_leader
        self._leader_refuses = False
        if state.leader_id:
            if self._last_leader != state.leader_id:
                self._last_leader = state.leader_id
                self.metrics.leader_changes += 1
                self._logger.info("leader", id=shown(state.leader_id), term=state.term, own=leads)
            self._leader_lost_at = None
        elif self._leader_lost_at is None:
            self._last_leader = 0
            self._leader_lost_at = now
            self._logger.warn("no leader", term=state.term)

    def _configured(self, configuration: Configuration) -> None:
        """Another configuration is in force: links and bindings follow it."""
        own = self.identity.member_id
        urls = peer_urls(configuration, own)
        if own not in configuration.ids:
            # a joining member hears from the leader first; until then it knows those that it was told
            known = {one.member_id: one.peer_url for one in self.identity.peers if one.member_id != own}
            urls = {one: url for one, url in {**known, **urls}.items() if one not in configuration.removed}
        self.introductions.configured(configuration)
        self.peers.set_members(urls)

    def _roles_changed(self, error: EtcdError | None, index: int) -> None:
        if error is None:
            self.metrics.learner_promote_successes += 1
            self._logger.info("voters have changed", configuration=index)
        else:
            self._logger.debug("change of voters refused", reason=error.message)

    def _stamp(self) -> None:
        """Note when own entries became durable here and were first acknowledged by another member."""
        now = monotonic()
        durable, acknowledged = self.raft.durable_index, self.replica.acknowledged_index
        for proposal in self.writes.appended_entries():
            if not proposal.logged:
                proposal.logged = self.replica.append_began
            if not proposal.durable and proposal.index <= durable:
                proposal.durable = self.replica.durable_at
            if not proposal.acknowledged and proposal.index <= acknowledged:
                proposal.acknowledged = now

    def _fail(self, errors: Sequence[tuple[int, EtcdError]]) -> None:
        self.metrics.proposals_failed += len(errors)
        self._answers.errors([one for one in errors if one[0] != NOBODY])

    def _check(self) -> None:
        """Fail closed: a member whose log or store has failed must not go on."""
        if self.log.failed is not None:
            raise Failure(f"the log failed: {self.log.failed}") from self.log.failed
        if self.store.failed is not None:
            raise Failure(f"the store failed: {self.store.failed}") from self.store.failed

    def _look_at_log(self) -> None:
        """Say once that the log is in trouble, of which kind, and that it is well again."""
        alarms = self.log.alarms()
        if alarms.keys() == self._log_alarms:
            return
        for name in sorted(alarms.keys() - self._log_alarms):
            self._logger.warn("the log is degraded", alarm=name, reason=alarms[name])
        for name in sorted(self._log_alarms.difference(alarms)):
            self._logger.info("the log has recovered", alarm=name)
        self._log_alarms = frozenset(alarms)

    # -- snapshots and the end of the log -----------------------------------------------------------------------------

    def _open_store(self, folder: Path, start_thread: bool = True) -> Store:
        return Store.open(
            folder,
            cluster_id=self.identity.cluster_id,
            member_id=self.identity.member_id,
            quota_backend_bytes=self.config.quota_backend_bytes,
            start_thread=start_thread,
        )

    def _open_source(self) -> SnapshotSource:
        return SnapshotSource(self.store.backend, self.identity.cluster_id, self._founding)

    def open_sink(self) -> SnapshotSink:
        """On a worker: a place for a snapshot that is received."""
        map_bytes = self.store.backend.map_bytes
        return SnapshotSink(self.config.data_dir / install.PARTIAL, self.identity.cluster_id, map_bytes)

    def complete(self, sink: SnapshotSink) -> Prepared:
        """On a worker: a whole snapshot becomes durable, and is opened."""
        began = monotonic()
        snapshot = sink.finish()
        folder = install.complete(self._files, self.config.data_dir)
        self.metrics.snapshots.sync_seconds.add(monotonic() - began)
        return Prepared(snapshot, self._open_store(folder, start_thread=False))

    def discard(self, store: Store) -> None:
        """On a worker: a snapshot that was made durable is of no use."""
        store.close(commit=False)
        install.discard(self.config.data_dir)

    def _install(self, now: float) -> None:
        """The log is replaced, durably: the store follows at once, and the disk on a worker."""
        prepared = self.installs.prepared
        assert prepared is not None and self.replica.restored == prepared.snapshot
        revision = self.store.revision
        old = self.store.replace(prepared.store)
        self.replica.store_replaced()
        self.applier.restored(prepared.snapshot.configuration)
        self._fail(self.writes.skipped_to(self.store.applied_index))
        self.watches.hub.restored(revision)

        def swap() -> None:
            old.retire()
            install.swap(self._files, self.config.data_dir)

        self.installs.installed(now, swap)

    def _release(self) -> None:
        """Let go of what of the log is in a synced commit (D14) and not kept for members that lag.

        A snapshot on its way keeps what follows it, up to as much again: its receiver will ask for that next.
        """
        if self.replica.installing or self.installs.swapping:
            return
        log, config = self.log, self.config
        committed = self.store.committed_index
        below = max(committed + 1 - config.log_retention_entries, log.tail_index(config.log_retention_bytes))
        sent = self.transfers.lowest_index()
        if sent is not None:
            below = max(min(below, sent + 1), log.tail_index(2 * config.log_retention_bytes))
        below = min(below, committed + 1)
        if below > 1:
            log.release(below)
        released = log.first_index - 1
        if released > self._released:
            self._released = released
            self.raft.entries_released(released)

    # -- what it publishes --------------------------------------------------------------------------------------------

    def _publish(self, now: float) -> None:
        """Tell the cluster name and client URLs, through the log, until the log has them."""
        own = self.identity.member_id
        if now < self._publish_at or not self.leader_id or own not in self.configuration.ids:
            return
        if self.store.members.get(own) != self._own_attributes:
            self._publish_at = now + PUBLISH_RETRY_SECONDS
            self.writes.accept(commands.MEMBER_ATTRIBUTES, [NOBODY], [self._own_attributes], now)

    # -- the end ------------------------------------------------------------------------------------------------------

    def transfer_target(self) -> int:
        """The voter to hand the lead to: the one that has most; 0 where there is none."""
        if not self.raft.is_leader:
            return 0
        states = self.raft.status().members
        heirs = [
            (states[one].match, -one)
            for one in self.configuration.voters
            if one != self.identity.member_id and one in states and one in self.peers.connected
        ]
        return -max(heirs)[1] if heirs else 0

    def stream_closed(self, call_id: int) -> bool:
        """A client's stream is over; whether it was one that is known here."""
        return self.watches.closed(call_id) or self.range_streams.closed(call_id)

    @property
    def busy(self) -> bool:
        """Whether clients wait for answers."""
        return bool(self.writes.pending or self.writes.waiting or self.reads.waiting or self.range_streams.moving)

    def abandon(self) -> None:
        """End everything that clients wait for."""
        self._fail(self.writes.abandon(STOPPED))
        self.reads.abandon(STOPPED)
        self.changes.abandon(STOPPED)
        self.watches.abandon(STOPPED)
        self.range_streams.abandon(STOPPED)

    def close(self, clean: bool = True) -> None:
        """D9: the store commits what is durable, the log is drained and marked clean, last."""
        self.transfers.abandon()
        self.store.close(commit=clean)
        self.log.close(clean)


def _rejection(reason: ProposalReason) -> ProposalError:
    return NotLeaderError(0) if reason == ProposalReason.NO_LEADER else ProposalError(reason, "the leader refused")


def log_options(config: NodeConfig, identity: Identity) -> LogOptions:
    """The log's options from flags and identity."""
    return LogOptions(
        data_dir=config.data_dir,
        identity=LogIdentity(
            cluster_id=identity.cluster_id,
            member_id=identity.member_id,
            number=identity.number,
            disk_uuid=identity.disk_uuid,
            namespace=config.namespace,
            cluster_name=config.cluster_name,
        ),
        adr_path=config.adr_path,
        adr_size_bytes=config.adr_size,
        drain_dir=config.adr_drain_dir,
        drain_interval_seconds=config.adr_drain_interval,
        drain_size_bytes=config.adr_drain_size,
        minimum_durability=Level(config.minimum_durability),
        segment_size_bytes=min(SEGMENT_BYTES, config.log_retention_bytes // 4),
        identity_files=frozenset({identities.FILE_NAME, openings.FILE_NAME}),
        begun=identity.begun,
    )


def settle_snapshot(files: Files, data_dir: Path, recovered: Recovered) -> bool:
    """Before the store is opened: an interrupted installation is finished (true), or comes to nothing."""
    mark = recovered.snapshot
    return install.settle(files, data_dir, (mark.index, mark.term) if mark is not None else None)
