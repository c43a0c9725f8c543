"""The state of one member, and the transitions that every part of the protocol shares.

`Raft` is built in layers, each a class of its own file that adds one concern to the one below:

    Core         state, log, configurations in the log, roles            core.py
    Replication  appends, heartbeats, acknowledgements, commit           replication.py
    Snapshots    members that are too far behind, and installing          snapshots.py
    Reading      ReadIndex and forwarding of reads                       reading.py
    Membership   configuration changes                                   membership.py
    Elections    pre-votes, votes, ticks, leadership transfer            elections.py
    Raft         the public face: step, propose, ready, persisted        raft.py

A lower layer calls a higher one only through the methods that `Core` declares abstract.

Decisions on which safety hangs are small methods (`_log_is_up_to_date`, `_may_commit`, `_own_match`, ...), so that each
can be read, and broken on purpose in a test, by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from .configuration import Configuration
from .invariants import Invariant, InvariantViolation, invariant
from .log import Log
from .messages import Flag, Message, MessageType
from .progress import Progress
from .reads import ForwardedReads, LeaderReads, ReadFailure, ReadFailureReason, ReadState
from .ready import FetchRequest, RejectedProposal, Snapshot
from .types import CONFIG, LEADER, NO_MEMBER, Config, Entry, HardState, Role


@dataclass(frozen=True, slots=True)
class InitialState:
    """What a member starts from: what its log and backend hold after recovery, all of it durable.

    `base_index`, `base_term`: the entry before the first of `entries`; (0, 0) at the log's start. Entries at or below
    the base need not be in memory, but must be applied. `base_configuration` is the last at or below the base,
    appended at `base_configuration_index`; CONFIG entries above are found in `entries`. A node that is to be a
    cluster's first member starts with itself as the voter of `base_configuration` at index 0, one that joins with the
    empty one.
    """

    hard_state: HardState = field(default_factory=HardState)
    base_index: int = 0
    base_term: int = 0
    base_configuration: Configuration = field(default_factory=Configuration)
    base_configuration_index: int = 0
    entries: Sequence[Entry] = ()
    applied: int = 0


class Core(ABC):
    """State and shared transitions; see the module's text."""

    def __init__(self, config: Config, initial: InitialState) -> None:
        hard_state = initial.hard_state
        self.config = config
        self.id = config.id
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.FOLLOWER
        self.leader_id = NO_MEMBER
        self._log = Log(
            initial.base_index,
            initial.base_term,
            initial.entries,
            hard_state.commit,
            max(initial.applied, initial.base_index),
        )
        last_term = self._log.last_term
        invariant(Invariant.TERM_MONOTONIC, self.term >= last_term, f"term {self.term}, last entry's {last_term}")
        self._configurations: list[tuple[int, Configuration]] = [
            (initial.base_configuration_index, initial.base_configuration)
        ]
        self._durable_term = self.term
        self._durable_vote = self.vote
        # leader's
        self._progress: dict[int, Progress] = {}
        self._sent_to: list[int] = []
        self._tick = 0
        self._leading_since = 0
        self._heartbeat_elapsed = 0
        self._uncommitted_bytes = 0
        self._transferee = NO_MEMBER
        self._transfer_elapsed = 0
        self._reads = LeaderReads()
        # everyone's
        self._forwards_seen: dict[tuple[int, int], int] = {}
        self._forwards_term = 0
        self._last_led_term = self.term
        self._released_index = 0
        self._election_elapsed = 0
        self._election_timeout = config.election_ticks
        self._votes: dict[int, bool] = {}
        self._incarnation = config.random(1, (1 << 63) - 1)
        self._forward_sequence = 0
        self._forwarded_reads = ForwardedReads(config.random(1, (1 << 63) - 1))
        # output of the turn
        self._messages: list[Message] = []
        self._messages_after: list[Message] = []
        self._read_states: list[ReadState] = []
        self._read_failures: list[ReadFailure] = []
        self._rejected_proposals: list[RejectedProposal] = []
        self._fetch_requests: list[FetchRequest] = []
        self._snapshot: Snapshot | None = None
        self._snapshot_requests: list[int] = []
        self._snapshot_messages: list[Message] = []
        self._flush_needed = False
        self._telling_commit = False
        self.eager = False
        """Whether somebody waits here for what is committed (a client, a watcher); the caller sets it at any time."""
        for entry in initial.entries:
            if entry.type == CONFIG and entry.index > initial.base_configuration_index:
                self._configurations.append((entry.index, Configuration.decode(entry.data)))
        self._trim_configurations()
        self._set_members()
        self._reset_election_timer()

    # -- declared for lower layers, defined in higher ones ---------------------------------------------------

    @abstractmethod
    def _after_commit(self) -> None:
        """The commit index of this leader has advanced."""

    @abstractmethod
    def _after_match(self, member: int, progress: Progress) -> None:
        """A member has acknowledged more."""

    # -- what the outside may see ----------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the last in the log (M8)."""
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        """Index at which the configuration in force was appended."""
        return self._configurations[-1][0]

    @property
    def committed_configuration(self) -> tuple[int, Configuration]:
        """(index, configuration) of the last one that is known to be committed: what M9's decisions are based on."""
        return self._configurations[0]

    @property
    def commit_index(self) -> int:
        """Highest index known to be committed."""
        return self._log.committed

    @property
    def last_index(self) -> int:
        """Index of the last entry, durable or not."""
        return self._log.last_index

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        return self._log.last_term

    @property
    def durable_index(self) -> int:
        """Last index that no crash can take away here (D4). Backend commits never pass it (D14)."""
        return self._log.durable

    @property
    def applied_index(self) -> int:
        """Last index that the caller has reported as applied."""
        return self._log.applied

    @property
    def window_bytes(self) -> int:
        """Bytes of entries in memory; `compact` brings it down."""
        return self._log.window_bytes

    @property
    def window_base_index(self) -> int:
        """Entries up to here left the memory."""
        return self._log.base_index

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self.role is LEADER

    @property
    def transferee(self) -> int:
        """The member that the lead is being handed to; 0 when no transfer runs."""
        return self._transferee

    def term_at(self, index: int) -> int:
        """Term of an entry in memory or of the base; -1 when it is not there."""
        return self._log.term_at(index)

    # -- sending ---------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        """Send what promises nothing that is not durable."""
        self._messages.append(message)

    def _send_after_persist(self, message: Message) -> None:
        """Send once all that this member has decided so far is durable: votes, vote requests, acknowledgements."""
        self._messages_after.append(message)

    # -- roles -----------------------------------------------------------------------------------------------

    def _set_term(self, term: int) -> None:
        """Enter a later term, in which no vote is given yet."""
        if term < self.term:
            raise InvariantViolation(Invariant.TERM_MONOTONIC, f"from {self.term} to {term}")
        if term > self.term:
            self.term = term
            self.vote = NO_MEMBER

    def _set_vote(self, candidate: int) -> None:
        """Give this term's vote."""
        if self.vote not in (NO_MEMBER, candidate):
            raise InvariantViolation(Invariant.VOTE_ONCE, f"term {self.term}: {self.vote:x}, then {candidate:x}")
        self.vote = candidate

    def _set_leader(self, leader: int) -> None:
        """Follow a leader of this term, or (0) know of none. Forwarded reads of another leader fail."""
        if leader and self.leader_id and leader != self.leader_id:
            detail = f"term {self.term}: {self.leader_id:x} and {leader:x}"
            raise InvariantViolation(Invariant.ELECTION_SAFETY, detail)
        if leader != self.leader_id:
            self.leader_id = leader
            self._fail_reads(self._forwarded_reads.drain(), ReadFailureReason.LEADER_CHANGED)

    def _fail_reads(self, contexts: Sequence[bytes], reason: ReadFailureReason) -> None:
        self._read_failures.extend([ReadFailure(context, reason) for context in contexts])

    def _leave_role(self) -> None:
        """Drop what belongs to the role that ends."""
        self._reset_election_timer()
        self._votes = {}
        self._transferee = NO_MEMBER
        self._fail_reads(self._reads.drain_own(), ReadFailureReason.LEADER_CHANGED)
        self._progress = {}
        self._sent_to = []
        self._fetch_requests = []
        self._snapshot_requests = []
        self._uncommitted_bytes = 0

    def _become_follower(self, term: int, leader: int) -> None:
        """Follow `leader` (0: unknown) in `term`."""
        if term > self.term or self.role is LEADER:
            self._set_leader(NO_MEMBER)
        self._set_term(term)
        self._leave_role()
        self.role = Role.FOLLOWER
        self._set_leader(leader)

    def _reset_election_timer(self) -> None:
        """Start waiting again, for a new random time."""
        self._election_elapsed = 0
        ticks = self.config.election_ticks
        self._election_timeout = ticks + self.config.random(0, ticks - 1)

    def _promotable(self) -> bool:
        """Whether this member may campaign: it votes in the configuration in force, or did in one since the last that
        it knows to be committed.

        The latter is for members that lose their vote by an entry which the remaining voters may lack: those cannot
        win against the longer log, so somebody who has the entry must bring it to them. (Say 1, 2, 3 become 1, and 2
        and 3 have the last entry: 1 needs a vote of theirs.) Votes count by the newest configuration all the same.
        """
        return any(configuration.is_voter(self.id) for _, configuration in self._configurations)

    # -- the log and the configurations in it ----------------------------------------------------------------

    def _append_to_log(self, entries: Sequence[Entry]) -> None:
        """Append; a configuration among the entries is in force from now on (M8)."""
        self._log.append(entries)
        found = False
        for entry in entries:
            if entry.type == CONFIG:
                self._append_configuration(entry.index, Configuration.decode(entry.data))
                found = True
        if found:
            self._set_members()

    def _append_configuration(self, index: int, configuration: Configuration) -> None:
        lost = self.configuration.removed - configuration.removed
        if lost:
            raise InvariantViolation(Invariant.REMOVED_NEVER_RETURNS, f"{sorted(lost)} at {index}")
        self._configurations.append((index, configuration))

    def _truncate_log(self, first: int) -> None:
        """Drop entries from `first` on; a configuration among them gives way to the one before it (M8)."""
        if self.role is LEADER:
            raise InvariantViolation(Invariant.LEADER_APPEND_ONLY, f"truncation at {first} in term {self.term}")
        self._log.truncate(first)
        if self.configuration_index >= first:
            self._configurations = [item for item in self._configurations if item[0] < first]
            self._set_members()

    def _trim_configurations(self) -> None:
        """Forget configurations before the last committed one: no truncation can bring them back."""
        committed = self._log.committed
        while len(self._configurations) > 1 and self._configurations[1][0] <= committed:
            del self._configurations[0]

    def _set_members(self) -> None:
        """Adapt to the configuration in force: a leader follows the progress of exactly its members."""
        if self.role is not LEADER:
            return
        ids = self.configuration.ids | {self.id}
        for member in sorted(ids.difference(self._progress)):
            self._progress[member] = Progress(self._log.last_index + 1)
        for member in sorted(self._progress.keys() - ids):
            del self._progress[member]
        self._sent_to = sorted(ids - {self.id})
        self._flush_needed = True
        if self._transferee and not self.configuration.is_voter(self._transferee):
            self._transferee = NO_MEMBER

    def _advance_commit(self, index: int) -> None:
        """Move the commit index and what hangs on it at every member."""
        log = self._log
        if self.role is LEADER:
            size = sum(entry.size_bytes for entry in log.slice(log.committed + 1, index, 1 << 62))
            self._uncommitted_bytes = max(0, self._uncommitted_bytes - size)
        log.commit_to(index)
        if len(self._configurations) > 1:
            self._trim_configurations()

    def _own_term_committed(self) -> bool:
        """Whether an entry of this leader's term is committed: only then it knows the commit index (section 8)."""
        return self._log.term_at(self._log.committed) == self.term

    def _refused(
        self, message: Message, kind: MessageType, index: int = 0, log_term: int = 0, match: int = 0
    ) -> Message:
        """A negative answer in the own term."""
        return Message(kind, self.id, message.sender, self.term, index, log_term, match=match, flags=Flag.REJECT)
