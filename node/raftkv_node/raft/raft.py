"""The public face of the consensus core: input by `step`, `tick`, `propose`, ...; output by `ready`.

The caller's turn, in short (`docs/raft.md` has it step by step):

    for message in arrived: raft.step(message)
    raft.propose(batch)
    while raft.has_ready():
        ready = raft.ready()
        send(ready.messages)
        persist(ready.hard_state, ready.entries)         # ring: now. disk: started here, finished turns later
        raft.persisted(ready.number)                     # when it is durable
        send(ready.messages_after_persist)
        apply(ready.committed_entries); raft.applied(...)

Nothing here blocks, reads a clock, or draws randomness that was not handed in; iteration is in sorted order. The same
calls give the same output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from .configuration import Configuration
from .core import InitialState
from .elections import Elections
from .errors import NotLeaderError, ProposalError, ProposalPausedError, ProposalReason
from .invariants import Invariant, InvariantViolation, invariant
from .messages import REJECT, Flag, Message, MessageType
from .progress import NEVER, ProgressState
from .ready import ConfigurationInForce, Ready, RejectedProposal, SoftState
from .types import LEADER, NO_MEMBER, Config, EntryType, HardState, ProposalRef, Role

_NO_MESSAGES: Final[Sequence[Message]] = ()
_FROM_LEADER: Final = frozenset((MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT))
_VOTE_REQUESTS: Final = frozenset((MessageType.PRE_VOTE, MessageType.VOTE))


class MemberStatus(NamedTuple):
    """A leader's view of one member. Lags are M12's: in entries, and in ticks (None: never known to be caught up)."""

    match: int
    next: int
    state: ProgressState
    inflight_messages: int
    inflight_bytes: int
    answered_ticks_ago: int | None
    entries_behind: int
    ticks_behind: int | None


class Status(NamedTuple):
    """A member's state at one moment."""

    id: int
    role: Role
    term: int
    vote: int
    leader_id: int
    transferee: int
    commit_index: int
    applied_index: int
    last_index: int
    durable_index: int
    configuration_index: int
    configuration: Configuration
    members: dict[int, MemberStatus]


class Raft(Elections):
    """One member of a Raft group. See the package's documentation for the contract with the caller."""

    def __init__(self, config: Config, initial: InitialState) -> None:
        super().__init__(config, initial)
        self._number = 0
        self._last_hard_state = HardState(self.term, self.vote, self._log.committed)
        self._last_soft_state = SoftState(self.role, self.leader_id, self.term, self._transferee)
        self._last_configuration = (self.configuration_index, self.configuration)
        self._handlers: dict[int, Callable[[Message], None]] = {
            MessageType.PRE_VOTE: self._handle_vote_request,
            MessageType.VOTE: self._handle_vote_request,
            MessageType.PRE_VOTE_RESPONSE: self._handle_vote_response,
            MessageType.VOTE_RESPONSE: self._handle_vote_response,
            MessageType.APPEND: self._handle_append,
            MessageType.HEARTBEAT: self._handle_heartbeat,
            MessageType.APPEND_RESPONSE: self._handle_append_response,
            MessageType.HEARTBEAT_RESPONSE: self._handle_heartbeat_response,
            MessageType.TIMEOUT_NOW: self._handle_timeout_now,
            MessageType.READ_INDEX: self._handle_read_index,
            MessageType.READ_INDEX_RESPONSE: self._handle_read_index_response,
            MessageType.PROPOSE: self._handle_propose,
            MessageType.PROPOSE_REJECTED: self._handle_propose_rejected,
            MessageType.SNAPSHOT: self._handle_snapshot,
            MessageType.SNAPSHOT_RESPONSE: self._handle_snapshot_response,
        }

    # -- input: messages -------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message from a peer. Wrong, late or doubled ones do no harm.

        Raises `LostLogError` (M15) when the message proves that this member has lost entries that it acknowledged, and
        `InvariantViolation`; after either the node must stop.
        """
        if message.to != self.id or self._is_removed(message):
            return
        if message.term != self.term and not self._settle_term(message):
            return
        if message.type in _FROM_LEADER:
            self._hear_leader(message)
        self._handlers[message.type](message)

    def _is_removed(self, message: Message) -> bool:
        """M4: whether the sender's removal is committed here. The leader that was removed is heard to its last word."""
        removed = self._configurations[0][1].removed
        if not removed:
            return False
        return message.sender in removed and not (message.sender == self.leader_id and message.term == self.term)

    def _settle_term(self, message: Message) -> bool:
        """Bring the terms together; whether the message is then to be handled."""
        kind = message.type
        if message.term < self.term:
            self._answer_older_term(message)
            return kind == MessageType.PROPOSE_REJECTED
        if kind in _VOTE_REQUESTS and not message.flags & Flag.FORCE and self._in_lease():
            return False
        if kind == MessageType.PRE_VOTE:
            return True
        if kind == MessageType.PRE_VOTE_RESPONSE and not message.flags & REJECT:
            return message.term == self.term + 1
        self._become_follower(message.term, NO_MEMBER)
        return True

    def _answer_older_term(self, message: Message) -> None:
        """Let a sender know that its term is over, where that helps it on."""
        if message.type in _FROM_LEADER:
            # a leader that never hears of the higher term would keep this member out for ever
            self._send(self._refused(message, MessageType.APPEND_RESPONSE, index=message.index))
        elif message.type == MessageType.PRE_VOTE:
            self._send(self._refused(message, MessageType.PRE_VOTE_RESPONSE))
        elif message.type == MessageType.PROPOSE and not self._seen_forward(message):
            self._reject_proposal(message, ProposalReason.NOT_LEADER)

    def _hear_leader(self, message: Message) -> None:
        """An append or heartbeat of this term: its sender leads."""
        if self.role is LEADER:
            detail = f"term {self.term}: {self.id:x} and {message.sender:x}"
            raise InvariantViolation(Invariant.ELECTION_SAFETY, detail)
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, message.sender)
        elif self.leader_id != message.sender:
            self._set_leader(message.sender)
        self._election_elapsed = 0

    def _handle_append_response(self, message: Message) -> None:
        if self.role is LEADER:
            super()._handle_append_response(message)

    def _handle_heartbeat_response(self, message: Message) -> None:
        if self.role is LEADER:
            super()._handle_heartbeat_response(message)

    # -- input: proposals ------------------------------------------------------------------------------------

    def propose(self, data: bytes) -> ProposalRef:
        """Append an entry (a whole batch of requests) at the leader; returns where it stands.

        It is not committed yet, and may be lost with the lead. Raises `NotLeaderError` or `ProposalPausedError`
        (TRANSFERRING, UNCOMMITTED_LIMIT); then nothing was appended.
        """
        if self.role is not LEADER:
            raise NotLeaderError(self.leader_id)
        if not data:
            raise ValueError("an empty entry is a leader's no-op, not a proposal")
        if self._transferee:
            raise ProposalPausedError(ProposalReason.TRANSFERRING, f"leadership moves to {self._transferee:x}")
        limit = self.config.max_uncommitted_bytes
        if self._uncommitted_bytes and self._uncommitted_bytes + len(data) > limit:
            detail = f"{self._uncommitted_bytes} bytes are not committed yet, the limit is {limit}"
            raise ProposalPausedError(ProposalReason.UNCOMMITTED_LIMIT, detail)
        return self._append_as_leader(EntryType.NORMAL, data)

    def forward(self, data: bytes, context: bytes) -> None:
        """Send a proposal to the leader, once and never again (M16).

        If the leader refuses it, a later Ready has a `RejectedProposal` with `context`; otherwise its fate shows only
        in what is applied. Raises `NotLeaderError` when no leader is known. If this member leads by now, it proposes
        (and raises what `propose` raises).
        """
        if self.role is LEADER:
            self.propose(data)
            return
        if self.leader_id == NO_MEMBER:
            raise NotLeaderError(NO_MEMBER)
        self._forward_sequence += 1
        self._send(
            Message(
                MessageType.PROPOSE,
                self.id,
                self.leader_id,
                self.term,
                log_term=self._incarnation,
                sequence=self._forward_sequence,
                context=context,
                data=data,
            )
        )

    def _handle_propose(self, message: Message) -> None:
        """A forwarded proposal: append it, at most once, or say why not."""
        if self._seen_forward(message):
            return
        try:
            self.propose(message.data)
        except ProposalError as error:
            self._reject_proposal(message, error.reason)

    def _seen_forward(self, message: Message) -> bool:
        """Whether a copy of a proposal may have been handled here before: then nothing must be done, nor said.

        Copies come from a network that doubles. Of the last term that this member has led it remembers the highest
        number of each incarnation of each sender (a lower one that arrives late is taken for a copy, too). Of terms
        that it led earlier, or may have led before it was started, it remembers nothing and drops all. Only where it
        cannot have taken the proposal does it say no. The fate of what is dropped is unknown to the client, as after
        any loss.
        """
        if message.term != self._forwards_term:
            return message.term <= self._last_led_term
        key = (message.sender, message.log_term)
        if message.sequence <= self._forwards_seen.get(key, 0):
            return True
        self._forwards_seen[key] = message.sequence
        return False

    def _reject_proposal(self, message: Message, reason: ProposalReason) -> None:
        self._send(
            Message(
                MessageType.PROPOSE_REJECTED,
                self.id,
                message.sender,
                self.term,
                log_term=message.log_term,
                sequence=message.sequence,
                flags=Flag.REJECT,
                reason=reason,
                context=message.context,
            )
        )

    def _handle_propose_rejected(self, message: Message) -> None:
        """The leader refused; an answer to an earlier incarnation of this member is nobody's."""
        if message.log_term == self._incarnation:
            self._rejected_proposals.append(RejectedProposal(message.context, ProposalReason(message.reason)))

    # -- input: what the caller has done ---------------------------------------------------------------------

    def persisted(self, number: int) -> None:
        """Everything that Readys up to `number` asked to persist is durable here.

        Moves `durable_index`, the leader's own match (D4) and a candidate's own vote, and nothing else does.
        """
        invariant(Invariant.PERSISTENCE_IN_ORDER, number <= self._number, f"{number} of {self._number}")
        before = self._log.durable
        completed = self._log.writes_completed(number)
        if completed is None:
            return
        self._vote_durable(completed.term, completed.vote)
        if self.role is LEADER and self._log.durable > before:
            self._update_own_match()

    def applied(self, index: int) -> None:
        """Committed entries up to `index` are applied."""
        self._log.applied_to(index)

    def compact(self, index: int) -> int:
        """Forget entries up to `index` in memory, as far as they are applied and durable; returns the new base index.

        The caller keeps them on disk as long as a member may need them (`FetchRequest`).
        """
        return self._log.compact(min(index, self._log.applied, self._log.durable))

    # -- output ----------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether `ready` would give anything."""
        if self._flush_needed:
            self._flush()
        log = self._log
        if self._messages or self._messages_after or log.emitted < log.last_index:
            return True
        if log.applying < log.committed and log.applying < self._apply_limit():
            return True
        last = self._last_hard_state
        if last.commit != log.committed or last.term != self.term or last.vote != self.vote:
            return True
        return self._has_news()

    def _has_news(self) -> bool:
        """Whether there is anything to tell but messages, entries and a hard state: mostly not."""
        return bool(
            self._read_states
            or self._read_failures
            or self._rejected_proposals
            or self._fetch_requests
            or self._snapshot is not None
            or self._snapshot_requests
            or self._snapshot_messages
            or self._soft_state_is_news()
            or self._last_configuration[1] is not self._configurations[-1][1]
            or self._last_configuration[0] != self._configurations[-1][0]
        )

    def ready(self) -> Ready:
        """End the turn: take all there is to do and to tell. `Ready` says what to do with it, and in which order."""
        if self._flush_needed:
            self._flush()
        log = self._log
        self._number += 1
        entries = log.take_unemitted()
        previous = self._last_hard_state
        hard_state = HardState(self.term, self.vote, log.committed)
        snapshot, self._snapshot = self._snapshot, None
        changed = previous.term != self.term or previous.vote != self.vote
        must_sync = bool(entries) or snapshot is not None or changed
        if must_sync:
            restored = (snapshot.index, snapshot.term) if snapshot is not None else None
            log.write_started(self._number, entries, self.term, self.vote, restored)
        elif self._messages_after and not log.writes_pending:
            self._messages.extend(self._messages_after)
            self._messages_after = []
        self._last_hard_state = hard_state
        messages, after = self._messages, self._messages_after
        if messages:
            self._messages = []
        if after:
            self._messages_after = []
        ready = Ready(
            self._number,
            must_sync,
            hard_state if changed or previous.commit != hard_state.commit else None,
            entries,
            messages or _NO_MESSAGES,
            after or _NO_MESSAGES,
            log.take_committed(self._apply_limit(), self.config.max_apply_bytes),
        )
        ready.snapshot = snapshot
        if self._has_news():
            self._tell_news(ready)
        return ready

    def _tell_news(self, ready: Ready) -> None:
        """Hand over what is seldom there."""
        ready.soft_state, ready.configuration = self._take_soft_state(), self._take_configuration()
        ready.read_states, self._read_states = self._read_states, []
        ready.read_failures, self._read_failures = self._read_failures, []
        ready.rejected_proposals, self._rejected_proposals = self._rejected_proposals, []
        ready.fetch_requests, self._fetch_requests = self._fetch_requests, []
        ready.snapshot_requests, self._snapshot_requests = self._snapshot_requests, []
        ready.snapshot_messages, self._snapshot_messages = self._snapshot_messages, []

    def _flush(self) -> None:
        """End of a turn: turn what was marked into messages."""
        self._flush_needed = False
        self._flush_reads()
        if self.role is LEADER:
            self._send_appends()
        self._telling_commit = False

    def _apply_limit(self) -> int:
        """Highest index that may be applied now."""
        log = self._log
        if self.config.apply_before_durable or log.durable > log.committed:
            return log.committed
        return log.durable

    def _soft_state_is_news(self) -> bool:
        last = self._last_soft_state
        return (
            last.leader_id != self.leader_id
            or last.role is not self.role
            or last.term != self.term
            or last.transferee != self._transferee
        )

    def _take_soft_state(self) -> SoftState | None:
        if not self._soft_state_is_news():
            return None
        self._last_soft_state = SoftState(self.role, self.leader_id, self.term, self._transferee)
        return self._last_soft_state

    def _take_configuration(self) -> ConfigurationInForce | None:
        index, configuration = self._configurations[-1]
        if self._last_configuration[0] == index and self._last_configuration[1] is configuration:
            return None
        self._last_configuration = (index, configuration)
        return ConfigurationInForce(index, configuration)

    # -- looking ---------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Return the state; `members` is empty unless this member leads."""
        log = self._log
        return Status(
            self.id,
            self.role,
            self.term,
            self.vote,
            self.leader_id,
            self._transferee,
            log.committed,
            log.applied,
            log.last_index,
            log.durable,
            self.configuration_index,
            self.configuration,
            {member: self._member_status(member) for member in sorted(self._progress)},
        )

    def _member_status(self, member: int) -> MemberStatus:
        progress, last, own = self._progress[member], self._log.last_index, member == self.id
        answered = 0 if own else self._tick - progress.answered_tick
        behind = 0 if own else self._tick - progress.caught_up_tick
        return MemberStatus(
            progress.match,
            progress.next,
            progress.state,
            len(progress.inflight),
            progress.inflight_bytes,
            None if progress.answered_tick == NEVER and not own else answered,
            last - progress.match,
            None if progress.caught_up_tick == NEVER and not own else behind,
        )
