"""A node with an identity: consensus, log, store, links, and its part of each turn.

The order inside a turn is the law of the design: what has arrived is stepped, what clients want is proposed as one
entry, the core's output is persisted with one fence, messages and replies that waited for it leave, committed entries
are applied as one batch, reads that the applied index has reached are served, watchers are told.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic
from types import MappingProxyType
from typing import Protocol

from raftkv_node.adr import Identity as LogIdentity
from raftkv_node.adr import Level, Log, LogOptions, Recovered, Refusal, Refused
from raftkv_node.config import NodeConfig
from raftkv_node.pb import rpc_pb2
from raftkv_node.raft import (
    Configuration,
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
from raftkv_node.server.hello import OLDER_DISK, RUNS_TWICE, Hello, HelloKind, Judge
from raftkv_node.server.identity import Identity
from raftkv_node.server.log import Logger
from raftkv_node.server.log import member as shown
from raftkv_node.server.members import bindings, peer_urls, role_settings, settings
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.openings import Openings
from raftkv_node.server.peers import Peers, PeerTls, Transport, members_frame
from raftkv_node.server.reads import Reads
from raftkv_node.server.replica import PRESSURE_FULL, PRESSURE_SHRINK, Replica, initial_state, raft_config
from raftkv_node.server.resolver import make_resolver
from raftkv_node.server.roles import wished_number
from raftkv_node.server.watches import StreamTransport, Watches
from raftkv_node.server.workers import Workers
from raftkv_node.server.writes import NOBODY, WriteLimits, Writes
from raftkv_node.store import commands
from raftkv_node.store.errors import NO_LEADER, STOPPED, EtcdError
from raftkv_node.store.store import Store

MAX_APPLY_GAP = 5000
"""Entries committed but not applied; beyond, new writes are answered with etcd's "too many requests"."""
APPLY_BUDGET_SECONDS = 0.002
PUBLISH_RETRY_SECONDS = 2.0
_CONTEXT = struct.Struct("<Q")


class Engine(Transport, StreamTransport, Protocol):
    """The parts of the engine that a member uses."""


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
        self._logger = logger
        self._founders = frozenset(founding.members) - {identity.member_id} if not identity.operated else frozenset()
        self._openings = Openings(
            config.data_dir, workers.submit, lambda why: logger.warn("openings of members are not kept", reason=why)
        )
        self._bindings: Mapping[int, bytes] = MappingProxyType({})
        self._publish_at = 0.0
        self._own_attributes = rpc_pb2.Member(
            ID=identity.member_id, name=config.name, clientURLs=config.client_urls
        ).SerializeToString(deterministic=True)
        self._removed: frozenset[int] = frozenset()
        self._last_leader = 0
        self.removed_from_cluster = False
        self._leader_lost_at: float | None = monotonic()
        tick = config.heartbeat_interval / 1000
        timeout = config.request_timeout_seconds
        self.log, recovered = Log.open(log_options(config, identity))
        self.recovered: Recovered = recovered
        self.store = Store.open(
            config.data_dir / "backend",
            cluster_id=identity.cluster_id,
            member_id=identity.member_id,
            quota_backend_bytes=config.quota_backend_bytes,
        )
        self.raft = Raft(
            raft_config(identity.member_id, config.election_ticks, config.pre_vote, random.SystemRandom().randint),
            initial_state(recovered, self.log, self.store, founding),
        )
        self.store.set_term(self.raft.term)
        self.store.set_durable_index(self.raft.durable_index)
        tls = PeerTls(config.peer_cert_file, config.peer_key_file, config.peer_trusted_ca_file)
        self.peers = Peers(
            transport, self, resolver=make_resolver(config.resolver), tls=tls, metrics=metrics, logger=logger
        )
        self.replica = Replica(self.raft, self.log, self.peers.send, workers, metrics)
        self.writes = Writes(
            random.SystemRandom().randrange(1, 1 << 63), WriteLimits(max_batch_bytes=config.max_batch_bytes), timeout
        )
        self.reads = Reads(timeout)
        self.changes = Changes(self.raft, tick, timeout)
        self.watches = Watches(self.store, transport, workers, metrics)
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
        )
        self._configured(self.raft.configuration)
        if not identity.begun:
            self._keep(replace(self.identity, begun=True))

    def _keep(self, identity: Identity) -> None:
        """Change what the identity file knows beside the ids, durably, before anything depends on it."""
        identities.save(self.config.data_dir, identity)
        self.identity = identity

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The configuration in force."""
        return self.raft.configuration

    @property
    def opened(self) -> bool:
        """Whether clients are served (M2)."""
        return bool(settings(self.configuration.settings).opened)

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
        """M6: a founder by hand takes part once all founders have shown their disks."""
        return self._founders <= self.identity.bindings.keys()

    def published(self) -> dict[int, rpc_pb2.Member]:
        """What members have published of themselves."""
        return {one: rpc_pb2.Member.FromString(encoded) for one, encoded in self.store.members.items()}

    # -- introductions (hello.py) -------------------------------------------------------------------------------------

    def hello(self, to_id: int) -> Hello:
        """The own hello, for this member."""
        return Hello(
            HelloKind.MEMBER,
            self.identity.cluster_id,
            self.identity.member_id,
            to_id,
            self.identity.disk_uuid,
            self.log.generation,
            int.from_bytes(self.log.nonce[:8], "little"),
            self.identity.peer_url,
        )

    def refusal(self, hello: Hello) -> str | None:
        """Why the speaker is not heard, or None; an accepted hello is remembered."""
        if hello.to_id == 0:
            hello = replace(hello, to_id=self.identity.member_id)
        judge = Judge(
            self.identity.cluster_id,
            self.identity.member_id,
            self.raft.committed_configuration[1].removed,
            self._bindings,
            self._openings.known,
        )
        reason = judge.refusal(hello)
        if reason is None:
            self._openings.note(hello.from_id, hello.generation, hello.nonce)
            if not self.identity.operated and hello.from_id not in self._bindings:
                self._bind(hello)
        return reason

    def _bind(self, hello: Hello) -> None:
        """M6: keep the disk uuid that a member has shown, before anything depends on it.

        By hand nobody else writes it down. A member that lost its disk finds its id again by its URL, but not its
        votes: with another disk it must be added again.
        """
        waiting = not self.may_vote
        known = {**self.identity.bindings, hello.from_id: hello.disk_uuid}
        self._keep(replace(self.identity, bindings=MappingProxyType(known)))
        self._bindings = MappingProxyType({**self._bindings, hello.from_id: hello.disk_uuid})
        if waiting and self.may_vote:
            self._logger.info("all founders have shown their disks", members=len(self._founders) + 1)

    def rejected(self, by: int, reason: str) -> None:
        """M5: whoever has an older disk than one that it has shown ends for good. Raises :class:`Refused` for it."""
        if OLDER_DISK in reason or RUNS_TWICE in reason:
            self._keep(replace(self.identity, disowned=True))
            raise Refused(Refusal.MISMATCH, f"{identities.DISOWNED} (member {by:x} says: {reason})")

    def members_frame(self) -> bytes | None:
        """Cluster id and configuration for a node that asks for its own id."""
        configuration = self.raft.committed_configuration[1]
        return members_frame(self.identity.cluster_id, configuration.encode()) if configuration.members else None

    # -- the turn -----------------------------------------------------------------------------------------------------

    def receive(self, batches: Sequence[tuple[int, list[bytes]]], now: float) -> None:
        """Frames of other members."""
        messages = self.peers.receive(batches, now)
        if messages and self.may_vote:
            self.replica.step(messages)

    def tick(self, now: float) -> None:
        """One heartbeat interval has passed."""
        if self.may_vote:
            self.raft.tick()
        self.peers.tick(now)
        has_leader = self.leader_id != 0
        self._answers.errors(self.writes.expire(now, has_leader))
        self.reads.expire(now)
        self.applier.finish_compactions()
        self.watches.tick(now)
        self._publish(now)
        if self.raft.is_leader:
            voters = self.changes.adjust_roles(now, self._roles_changed)
            if voters is not None:
                self._logger.info("voters are to change", voters=",".join(shown(one) for one in sorted(voters)))
        if self._leader_lost_at is not None and now - self._leader_lost_at >= 3 * self.config.election_timeout / 1000:
            self.watches.cancel_without_leader(NO_LEADER)

    def advance(self, now: float) -> bool:
        """Everything between what has arrived and the answers; whether work is left for the next turn."""
        self._propose(now)
        context = self.reads.next_try(now, self.leader_id != 0)
        if context is not None:
            self.raft.read_index(context)
        for ready in self.replica.advance():
            self._take(ready, now)
        self._stamp()
        self.store.set_durable_index(self.raft.durable_index)
        more = self.applier.run(monotonic() + APPLY_BUDGET_SECONDS)
        if self.raft.has_ready():
            for ready in self.replica.advance():
                self._take(ready, now)
            more = more or bool(self.replica.committed)
        self.reads.serve(self.store.applied_index)
        self.changes.settle(now)
        if self.store.compacting:
            more = self.store.background() or more
        self._check()
        return more or (self.writes.may_propose() and self._accepting)

    @property
    def _accepting(self) -> bool:
        """Whether proposals can be handed over now."""
        return self.leader_id != 0 and self.log.pressure() < PRESSURE_FULL

    @property
    def overloaded(self) -> bool:
        """Whether applying is so far behind what is committed that no write is taken."""
        return self.raft.commit_index - self.store.applied_index > MAX_APPLY_GAP

    def _propose(self, now: float) -> None:
        """Make one entry of the writes that wait, and hand it to the log or to the leader."""
        writes = self.writes
        if not writes.may_propose() or not self._accepting:
            return
        proposal = writes.take(now, small=self.log.pressure() >= PRESSURE_SHRINK)
        data = commands.encode_batch(self.identity.member_id, proposal.first_seq, proposal.kinds, proposal.payloads)
        self.metrics.batch_requests.add(len(proposal.call_ids))
        proposal.proposed = monotonic()
        try:
            if self.raft.is_leader:
                ref = self.raft.propose(data)
                writes.appended(proposal, ref.term, ref.index)
            else:
                proposal.leader_id = self.leader_id
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
            error = NO_LEADER if rejected.reason == ProposalReason.NO_LEADER else refusal(_rejection(rejected.reason))
            self._fail(self.writes.refused(_CONTEXT.unpack(rejected.context)[0], error))
        removed = self.raft.committed_configuration[1].removed
        if removed != self._removed:
            self.peers.refuse_removed(removed - self._removed)
            self._removed = removed
            if self.identity.member_id in removed and not self.removed_from_cluster:
                self.removed_from_cluster = True
                self._logger.warn("this member was removed from the cluster")

    def _leader_may_have_changed(self, state: SoftState, now: float) -> None:
        raft = self.raft
        self.store.set_term(raft.term)
        leads = raft.is_leader
        self._fail(self.writes.leader_changed(raft.leader_id, raft.term if leads else 0))
        if state.leader_id:
            if self._last_leader != state.leader_id:
                self._last_leader = state.leader_id
                self.metrics.leader_changes += 1
                self._logger.info("leader", id=shown(state.leader_id), term=state.term, own=leads)
                if leads:
                    self.changes.began_to_lead(now)
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
        self._bindings = MappingProxyType({**self.identity.bindings, **bindings(configuration)})
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

    @property
    def busy(self) -> bool:
        """Whether clients wait for answers."""
        return bool(self.writes.pending or self.writes.waiting or self.reads.waiting)

    def abandon(self) -> None:
        """End everything that clients wait for."""
        self._fail(self.writes.abandon(STOPPED))
        self.reads.abandon(STOPPED)
        self.changes.abandon(STOPPED)
        self.watches.abandon(STOPPED)

    def close(self, clean: bool = True) -> None:
        """D9: the store commits what is durable, the log is drained and marked clean, last."""
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
        minimum_durability=Level(config.minimum_durability),
        identity_files=frozenset({identities.FILE_NAME, openings.FILE_NAME}),
        begun=identity.begun,
    )
