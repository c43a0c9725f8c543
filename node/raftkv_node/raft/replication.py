"""Replication: a leader's appends and heartbeats, a follower's answers, and what is committed (Raft, section 5.3).

Sending is lazy: what a turn appends or learns only marks the leader as having something to send, and the end of the
turn (`Raft.ready`) sends each member one message with all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .core import Core
from .errors import LostLogError
from .invariants import Invariant, InvariantViolation, invariant
from .log import UNKNOWN_TERM
from .messages import APPEND, APPEND_RESPONSE, EAGER, NO_ENTRIES, QUIET, REJECT, EntryBlock, Message, MessageType
from .progress import PROBE, REPLICATE, SNAPSHOT, Progress
from .quorum import NO_LIMIT, joint_agreed_value, majority
from .ready import FetchRequest
from .types import LEADER, Entry, EntryType, ProposalRef


class Replication(Core):
    """Appends, heartbeats, acknowledgements, commit."""

    # -- leader: appending -----------------------------------------------------------------------------------

    def _append_as_leader(self, kind: EntryType, data: bytes) -> ProposalRef:
        """Append an entry of the own term and see that it is sent."""
        entry = Entry(self.term, self._log.last_index + 1, int(kind), data)
        self._uncommitted_bytes += entry.size_bytes
        self._append_to_log((entry,))
        self._flush_needed = True
        return ProposalRef(entry.term, entry.index)

    # -- leader: sending -------------------------------------------------------------------------------------

    def _send_appends(self) -> None:
        """Send each member what it lacks, as far as its limits allow."""
        last_index = self._log.last_index
        for member in self._sent_to:
            progress = self._progress[member]
            # mostly a member in step has all, and a turn in which others answered must not cost more for it
            if progress.next <= last_index or progress.state is not REPLICATE or self._commit_is_news(progress):
                while self._send_append(member, progress):
                    pass

    def _send_append(self, member: int, progress: Progress, force: bool = False) -> bool:
        """Send one append if there is reason to; whether more may follow at once.

        `force` sends an empty append even if nothing is new and even past the limits: its answer shows what is lost.
        """
        log = self._log
        if progress.state is SNAPSHOT or (progress.state is PROBE and progress.probe_sent and not force):
            return False
        full = progress.full(self.config.max_inflight_messages, self.config.max_inflight_bytes)
        wanted = progress.next <= log.last_index and not (full and progress.state is REPLICATE)
        if not (wanted or force or progress.state is PROBE or self._commit_is_news(progress)):
            return False
        if progress.next <= self._unreachable_index():
            self._need_snapshot(member, progress)
            return False
        previous_term = self._previous_term(progress)
        if previous_term == UNKNOWN_TERM or (wanted and progress.next <= log.base_index):
            if wanted or progress.state is PROBE:
                self._fetch(member, progress)
            return False
        block = log.block(progress.next, self.config.max_append_bytes) if wanted else NO_ENTRIES
        self._send_block(member, progress, previous_term, block, quiet=not force)
        return bool(block) and progress.state is REPLICATE and progress.next <= log.last_index

    def _unreachable_index(self) -> int:
        """Entries up to here are not in the caller's log any more.

        Some of them may still be in memory, and are not sent all the same: how far memory reaches back is a matter of
        bytes and of what was read lately, and a member would go back and forth between entries and a snapshot
        (`_follows_log` asks the same). How far the log reaches back is what was configured (`--log-retention-entries`),
        and a member that is no further behind never gets here.
        """
        return self._released_index

    def _need_snapshot(self, member: int, progress: Progress) -> None:
        """The next entry is released. A member that has not answered lately would only hold a snapshot up; it is looked
        at again when it answers."""
        if self._tick - progress.answered_tick <= self.config.election_ticks:
            progress.become_snapshot()
            self._snapshot_requests.append(member)

    def _previous_term(self, progress: Progress) -> int:
        """Term of the entry before the next one to send: in memory, or sent just before; else UNKNOWN_TERM."""
        previous = progress.next - 1
        return progress.sent_term if progress.sent_index == previous > 0 else self._log.term_at(previous)

    def _commit_is_news(self, progress: Progress) -> bool:
        """Whether a member in step has not been told the commit index."""
        return (
            progress.sent_commit < self._log.committed
            and progress.state is REPLICATE
            and (progress.eager or self._telling_commit or not self.config.lazy_commit)
        )

    @property
    def commit_untold(self) -> bool:
        """Whether members in step have not been told the commit index of this leader (`Config.lazy_commit`)."""
        if self.role is not LEADER or not self.config.lazy_commit:
            return False
        committed, known = self._log.committed, self._progress
        return any(
            known[member].sent_commit < committed and known[member].state is REPLICATE for member in self._sent_to
        )

    def tell_commit(self) -> None:
        """Tell the commit index to all that do not know it, with the next Ready."""
        self._telling_commit = self._flush_needed = True

    def _send_block(
        self, member: int, progress: Progress, previous_term: int, block: EntryBlock, quiet: bool = True
    ) -> None:
        """Send entries `progress.next`.. (or none) and count them as under way."""
        previous = progress.next - 1
        empty = not block.items
        flags = QUIET if empty and quiet and progress.state is REPLICATE else 0
        self._send(
            Message(
                APPEND,
                self.id,
                member,
                self.term,
                previous,
                previous_term,
                self._log.committed,
                progress.match,
                0,
                flags,
                entries=block,
            )
        )
        progress.sent_commit = self._log.committed
        if not empty:
            progress.sent(block.items[-1].index, block.items[-1].term, block.size_bytes)
        elif progress.state is PROBE:
            progress.probe_sent = True

    def _fetch(self, member: int, progress: Progress) -> None:
        """Ask the caller for entries that left the memory; at most one such request per member."""
        if not progress.fetching:
            progress.fetching = progress.next
            self._fetch_requests.append(FetchRequest(member, progress.next, self.config.max_append_bytes))

    def provide_entries(self, peer: int, first: int, previous_term: int, entries: Sequence[Entry]) -> None:
        """Hand in what a `FetchRequest` asked for: entries from `first` on and the term of the entry before.

        An answer that is not waited for any more (another term, the member moved on) is dropped.
        """
        progress = self._progress.get(peer)
        if self.role is not LEADER or progress is None or progress.fetching != first:
            return
        progress.fetching = 0
        self._flush_needed = True
        block = EntryBlock(entries)
        self._check_fetched(first, previous_term, block)
        full = progress.full(self.config.max_inflight_messages, self.config.max_inflight_bytes)
        if progress.next != first or (progress.state is REPLICATE and full) or progress.probe_sent:
            return
        self._send_block(peer, progress, previous_term, block)

    def _check_fetched(self, first: int, previous_term: int, block: EntryBlock) -> None:
        """Fetched entries must be a run of this very log."""
        index, term, log = first - 1, previous_term, self._log
        good = bool(block.items) and log.term_at(index) in (term, UNKNOWN_TERM)
        for entry in block.items:
            index += 1
            good = (
                good
                and entry.index == index
                and term <= entry.term
                and log.term_at(index) in (entry.term, UNKNOWN_TERM)
            )
            term = entry.term
        detail = f"fetched {len(block)} entries from {first} that are not this log's"
        invariant(Invariant.LOG_MATCHING, good and index <= log.last_index, detail)

    def entries_released(self, index: int) -> None:
        """Entries up to `index` are gone from the caller's log, too: who needs one gets a snapshot.

        They must be in a synced state of the state machine (D14).
        """
        bound = min(self._log.committed, self._log.durable)
        if index > bound:
            raise InvariantViolation(Invariant.RELEASED_BELOW_COMMIT, f"{index}, committed and durable are {bound}")
        self._released_index = max(self._released_index, index)

    def fetch_failed(self, peer: int) -> None:
        """A fetch gave nothing; it is tried again when the member answers the next heartbeat."""
        progress = self._progress.get(peer)
        if progress is not None:
            progress.fetching = 0

    def _send_heartbeats(self) -> None:
        """Tell every member that this leader lives, what it may commit, and the latest read round."""
        self._heartbeat_elapsed = 0
        for member in self._sent_to:
            progress = self._progress[member]
            commit = self._heartbeat_commit(progress)
            if commit > progress.match:
                raise InvariantViolation(Invariant.HEARTBEAT_COMMIT_BOUNDED, f"{commit} > {progress.match}")
            self._send(
                Message(
                    MessageType.HEARTBEAT,
                    self.id,
                    member,
                    self.term,
                    commit=commit,
                    match=progress.match,
                    sequence=self._reads.sequence,
                )
            )

    def _heartbeat_commit(self, progress: Progress) -> int:
        """A heartbeat verifies nothing, so it commits only what the member has acknowledged (M15)."""
        return min(progress.match, self._log.committed)

    # -- leader: answers -------------------------------------------------------------------------------------

    def _handle_append_response(self, message: Message) -> None:
        progress = self._heard(message)
        if progress is None:
            return
        if message.flags & REJECT:
            self._handle_rejection(message, progress)
            return
        if message.index > self._log.last_index:
            detail = f"{message.sender:x} acknowledges {message.index}, the leader's last is {self._log.last_index}"
            raise InvariantViolation(Invariant.LEADER_APPEND_ONLY, detail)
        progress.eager = bool(message.flags & EAGER)
        advanced = progress.advance_match(message.index)
        if progress.state is SNAPSHOT and self._follows_log(progress):
            progress.become_replicate()
        if progress.state is PROBE and message.index >= progress.match:
            progress.become_replicate()
        progress.note_caught_up(self._log.last_index, self._tick)
        if advanced:
            if message.index > self._log.committed:  # otherwise a quorum has more already
                self._maybe_commit()
            if self.role is LEADER:
                self._after_match(message.sender, progress)
        self._flush_needed = True

    def _follows_log(self, progress: Progress) -> bool:
        """Whether a member that waits for a snapshot has it, or enough to go on from the log without."""
        return 0 < progress.pending_snapshot <= progress.match or progress.match >= self._unreachable_index()

    def _heard(self, message: Message) -> Progress | None:
        """Note that a member has answered."""
        progress = self._progress.get(message.sender)
        if progress is not None:
            progress.answered_tick = self._tick
        return progress

    def _handle_rejection(self, message: Message, progress: Progress) -> None:
        """Step back to where the logs may agree: at or below the hint, at or below its term in the own log."""
        hint, hint_term = message.match, message.log_term
        index, _ = self._log.last_at_or_below(hint, hint_term)
        if progress.rejected(message.index, min(hint, index)):
            self._flush_needed = True

    def _handle_heartbeat_response(self, message: Message) -> None:
        progress = self._heard(message)
        if progress is None:
            return
        progress.acked_sequence = max(progress.acked_sequence, message.sequence)
        progress.note_caught_up(self._log.last_index, self._tick)
        if progress.state is PROBE:
            progress.probe_sent = False
            self._flush_needed = True
        elif progress.state is REPLICATE and progress.match < self._log.last_index:
            # an append or its answer may be lost: an empty one shows it
            self._send_append(message.sender, progress, force=True)

    def report_unreachable(self, peer: int) -> None:
        """Messages to a peer were dropped: what is in flight to it may be lost."""
        progress = self._progress.get(peer)
        if progress is not None and progress.state is REPLICATE:
            progress.become_probe()
            self._flush_needed = True

    # -- leader: commit --------------------------------------------------------------------------------------

    def _own_match(self) -> int:
        """How far the leader counts itself: only what is durable here (D4)."""
        return self._log.durable

    def _update_own_match(self) -> None:
        """Durability has advanced."""
        match = self._own_match()
        invariant(Invariant.OWN_MATCH_DURABLE, match <= self._log.durable, f"{match} > {self._log.durable}")
        self._progress[self.id].set_own_match(match)
        self._maybe_commit()

    def _agreed_index(self) -> int:
        """Highest index on a quorum of the configuration in force."""
        configuration = self.configuration
        matches: dict[int, int] = {member: progress.match for member, progress in self._progress.items()}
        return joint_agreed_value(configuration.voters, configuration.voters_outgoing, matches)

    def missing_acknowledgements(self) -> int:
        """How many members at least must acknowledge more before this leader can commit anything: whoever looks at
        fewer answers of members looks in vain. NO_LIMIT while nothing waits for them; 0 where no such number is known.
        """
        if self.role is not LEADER:
            return 0
        log = self._log
        if log.committed == log.last_index:
            return NO_LIMIT
        return self._missing_of_both()

    def _missing_of_both(self) -> int:
        """Acknowledgements that the next entry needs at least, of the set that needs more."""
        configuration = self.configuration
        return max(self._missing(configuration.voters), self._missing(configuration.voters_outgoing))

    def _missing(self, voters: Collection[int]) -> int:
        """Of one set. That this leader itself has the entry is taken for granted: it may be durable by then."""
        first, progress, own = self._log.committed + 1, self._progress, self.id
        missing = majority(len(voters))
        for one in voters:
            found = progress.get(one)
            if one == own or (found is not None and found.match >= first):
                missing -= 1
        return missing

    def _may_commit(self, index: int) -> bool:
        """Only an entry of the own term is committed by counting; earlier ones with it (figure 8)."""
        return self._log.term_at(index) == self.term

    def _maybe_commit(self) -> None:
        """Commit what a quorum has."""
        if self._missing_of_both() > 0:
            return  # mostly: the first of the acknowledgements that an entry needs
        index = self._agreed_index()
        if index > self._log.committed and self._may_commit(index):
            if self._log.term_at(index) != self.term:
                raise InvariantViolation(Invariant.COMMIT_OWN_TERM, f"index {index} in term {self.term}")
            if self._log.committed < self.configuration_index <= index:
                self._telling_commit = True
            self._advance_commit(index)
            self._flush_needed = True
            self._after_commit()

    # -- follower --------------------------------------------------------------------------------------------

    def _check_own_log(self, message: Message) -> None:
        """M15: what this leader holds as acknowledged by this member must be durable here."""
        if message.match > self._log.durable:
            raise LostLogError(message.sender, message.term, message.match, self._log.durable)

    def _handle_append(self, message: Message) -> None:
        self._check_own_log(message)
        log = self._log
        if message.index < log.committed:
            self._acknowledge(message, log.committed)
            return
        if log.term_at(message.index) != message.log_term:
            self._reject_append(message)
            return
        items = message.entries.items
        fresh = items[log.find_conflict(items) :]
        if fresh:
            if fresh[0].index <= log.last_index:
                self._truncate_log(fresh[0].index)
            self._append_to_log(fresh)
        verified = message.index + len(items)
        commit = min(message.commit, verified)
        if commit > log.committed:
            self._advance_commit(commit)
        if not message.flags & QUIET:
            self._acknowledge(message, verified)

    def _acknowledge(self, message: Message, index: int) -> None:
        """Say that the log agrees with the leader's up to `index`, once it is durable."""
        flags = EAGER if self.eager else 0
        self._send_after_persist(Message(APPEND_RESPONSE, self.id, message.sender, self.term, index=index, flags=flags))

    def _reject_append(self, message: Message) -> None:
        """Say that the entry before the append is missing, and where the logs may agree."""
        hint, hint_term = self._log.last_at_or_below(message.index, message.log_term)
        self._send(
            self._refused(
                message,
                MessageType.APPEND_RESPONSE,
                index=message.index,
                match=hint,
                log_term=max(hint_term, 0),
            )
        )

    def _handle_heartbeat(self, message: Message) -> None:
        self._check_own_log(message)
        if message.commit > self._log.committed:
            self._advance_commit(message.commit)
        self._send(
            Message(MessageType.HEARTBEAT_RESPONSE, self.id, message.sender, self.term, sequence=message.sequence)
        )
