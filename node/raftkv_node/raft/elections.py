"""Elections: time, pre-votes, votes, leases, transfer (Raft, 5.2 and 5.4.1; thesis 3.10, 4.2.3, 9.6)."""

from __future__ import annotations

from .invariants import Invariant, invariant
from .membership import Membership
from .messages import REJECT, Flag, Message, MessageType
from .progress import Progress
from .quorum import VoteResult, has_majority, joint_count_votes
from .types import LEADER, NO_MEMBER, EntryType, Role


class Elections(Membership):
    """Who leads."""

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed."""
        self._tick += 1
        if self.role is LEADER:
            self._tick_leader()
            return
        self._election_elapsed += 1
        self._expire_reads()
        if self._election_elapsed >= self._election_timeout and self._promotable():
            self._election_elapsed = 0
            self._campaign_first()

    def _tick_leader(self) -> None:
        self._heartbeat_elapsed += 1
        if self._transferee:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= self.config.election_ticks:
                self._transferee = NO_MEMBER
        if self.config.check_quorum and not self._quorum_answers():
            self._become_follower(self.term, NO_MEMBER)
        elif self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._send_heartbeats()

    def _quorum_answers(self) -> bool:
        """Whether a quorum has answered within an election timeout (a new leader gets one to be answered)."""
        if self._tick - self._leading_since < self.config.election_ticks:
            return True
        live = self._live_members()
        configuration = self.configuration
        return has_majority(configuration.voters, live) and has_majority(configuration.voters_outgoing, live)

    def _in_lease(self) -> bool:
        """Whether this member heard a leader so recently that nobody should be elected (thesis 4.2.3)."""
        if not self.config.check_quorum or self.leader_id == NO_MEMBER:
            return False
        return self.role is LEADER or self._election_elapsed < self.config.election_ticks

    # -- campaigning -----------------------------------------------------------------------------------------

    def campaign(self) -> None:
        """Try to become leader now, as after an election timeout. Nothing happens if this member may not, or leads."""
        if self.role is not LEADER and self._promotable():
            self._campaign_first()

    def _campaign_first(self) -> None:
        if self.config.pre_vote:
            self._campaign_pre_vote()
        else:
            self._campaign_vote(force=False)

    def _campaign_pre_vote(self) -> None:
        """Ask who would vote for this member. Promises nothing and changes no term."""
        self._set_leader(NO_MEMBER)
        self._leave_role()
        self.role = Role.PRE_CANDIDATE
        self._request_votes(MessageType.PRE_VOTE, self.term + 1, 0)
        self._record_vote(self.id, True)

    def _campaign_vote(self, force: bool) -> None:
        """Stand for the next term. The own vote counts when it is durable (`_vote_durable`)."""
        self._set_leader(NO_MEMBER)
        self._leave_role()
        self.role = Role.CANDIDATE
        self._set_term(self.term + 1)
        self._set_vote(self.id)
        self._request_votes(MessageType.VOTE, self.term, Flag.FORCE if force else 0)

    def _request_votes(self, kind: MessageType, term: int, flags: int) -> None:
        index, log_term = self._log.last_index, self._log.last_term
        send = self._send if kind == MessageType.PRE_VOTE else self._send_after_persist
        for member in sorted(self.configuration.all_voters - {self.id}):
            send(Message(kind, self.id, member, term, index, log_term, flags=flags))

    def _vote_durable(self, term: int, vote: int) -> None:
        """(term, vote) is durable: a candidate's own vote counts from now on."""
        self._durable_term, self._durable_vote = term, vote
        if self.role is Role.CANDIDATE and term == self.term and vote == self.id and self.id not in self._votes:
            self._record_vote(self.id, True)

    def _record_vote(self, voter: int, granted: bool) -> None:
        """Count a vote and act on the result."""
        self._votes.setdefault(voter, granted)
        configuration = self.configuration
        result = joint_count_votes(configuration.voters, configuration.voters_outgoing, self._votes)
        if result == VoteResult.WON and self.role is Role.PRE_CANDIDATE:
            self._campaign_vote(force=False)
        elif result == VoteResult.WON:
            self._become_leader()
        elif result == VoteResult.LOST:
            self._become_follower(self.term, NO_MEMBER)

    def _become_leader(self) -> None:
        """Lead this term: nothing is known of the others, and an empty entry makes the commit index known."""
        won = self.role is Role.CANDIDATE and (self._durable_term, self._durable_vote) == (self.term, self.id)
        invariant(
            Invariant.ELECTION_SAFETY, won, f"leader of term {self.term} as {self.role.name} without a durable vote"
        )
        self._leave_role()
        self.role = Role.LEADER
        self._set_leader(self.id)
        log = self._log
        uncommitted = log.slice(log.committed + 1, log.last_index, 1 << 62)
        self._uncommitted_bytes = sum(entry.size_bytes for entry in uncommitted)
        self._last_led_term = self._forwards_term = self.term
        self._forwards_seen = {}
        self._leading_since = self._tick
        self._heartbeat_elapsed = 0
        self._reads.sequence = 0
        self._progress = {}
        self._set_members()
        self._append_as_leader(EntryType.NORMAL, b"")
        self._update_own_match()

    # -- voting ----------------------------------------------------------------------------------------------

    def _handle_vote_request(self, message: Message) -> None:
        """Answer a vote or pre-vote of this term (a pre-vote's: of a later one, which is not entered).

        Learners and standbys answer, too: one that was made a voter may not know it yet, and must not block the quorum.
        The candidate counts voters only. For the same reason an unknown candidate is judged like any other (M4).
        """
        pre = message.type == MessageType.PRE_VOTE
        kind = MessageType.PRE_VOTE_RESPONSE if pre else MessageType.VOTE_RESPONSE
        if not (self._may_vote_for(message) and self._log_is_up_to_date(message.log_term, message.index)):
            self._send(self._refused(message, kind))
        elif pre:
            self._send(Message(kind, self.id, message.sender, message.term))
        else:
            self._election_elapsed = 0
            self._set_vote(message.sender)
            self._send_after_persist(Message(kind, self.id, message.sender, message.term))

    def _may_vote_for(self, message: Message) -> bool:
        """Whether this term's vote is free for the candidate, or is its already."""
        if message.type == MessageType.PRE_VOTE and message.term > self.term:
            return True
        return self.vote == message.sender or (self.vote == NO_MEMBER and self.leader_id == NO_MEMBER)

    def _log_is_up_to_date(self, log_term: int, index: int) -> bool:
        """Whether a log that ends at (log_term, index) is at least as complete as this one (section 5.4.1)."""
        return (log_term, index) >= (self._log.last_term, self._log.last_index)

    def _handle_vote_response(self, message: Message) -> None:
        expected = Role.PRE_CANDIDATE if message.type == MessageType.PRE_VOTE_RESPONSE else Role.CANDIDATE
        if self.role == expected:
            self._record_vote(message.sender, not message.flags & REJECT)

    # -- leadership transfer ---------------------------------------------------------------------------------

    def transfer_leader(self, target: int) -> bool:
        """Start to move the lead to a voter: proposals wait until it leads, or an election timeout has passed.

        Returns whether a transfer to the target is under way (False: this member does not lead, or the target is
        itself or no voter).
        """
        if self.role is not LEADER or target == self.id or target not in self.configuration.voters:
            return False
        if self._transferee != target:
            self._transferee = target
            self._transfer_elapsed = 0
            progress = self._progress[target]
            if not self._finish_transfer(target, progress):
                progress.probe_sent = False
                self._flush_needed = True
        return True

    def _finish_transfer(self, member: int, progress: Progress) -> bool:
        """Tell the target to campaign as soon as it has the whole log."""
        if member != self._transferee or progress.match < self._log.last_index:
            return False
        self._send(Message(MessageType.TIMEOUT_NOW, self.id, member, self.term))
        return True

    def _after_match(self, member: int, progress: Progress) -> None:
        self._finish_transfer(member, progress)

    def _handle_timeout_now(self, _message: Message) -> None:
        """The leader wants this member to take over: no pre-vote, and others' leases do not count."""
        if self._promotable():
            self._campaign_vote(force=True)
