"""Configuration changes by M8 and M9: joint consensus for voters, simple entries for the rest, one at a time."""

from __future__ import annotations

from collections.abc import Collection

from .configuration import Configuration, ConfigurationChange
from .errors import ChangeRefusedError, ConfigurationError, NotLeaderError, ProposalPausedError, ProposalReason
from .invariants import Invariant, invariant
from .messages import Message, MessageType
from .quorum import has_majority
from .reading import Reading
from .types import LEADER, NO_MEMBER, EntryType, ProposalRef


class Membership(Reading):
    """Changing who takes part."""

    def propose_configuration(self, change: ConfigurationChange, decided_at_index: int) -> ProposalRef:
        """Append a configuration change that was decided on the committed configuration at `decided_at_index`.

        A change of the voter set enters a joint configuration; this leader leaves it by itself once it is committed.
        Raises `NotLeaderError`, `ProposalPausedError` (a transfer runs) or `ChangeRefusedError`: CHANGE_IN_FLIGHT,
        NO_OWN_TERM_COMMIT, STALE_CONFIGURATION, DEAD_QUORUM, INVALID_CHANGE.
        """
        if self.role is not LEADER:
            raise NotLeaderError(self.leader_id)
        if self._transferee:
            raise ProposalPausedError(ProposalReason.TRANSFERRING, f"leadership moves to {self._transferee:x}")
        if not self._change_has_own_term():
            raise ChangeRefusedError(
                ProposalReason.NO_OWN_TERM_COMMIT, "no entry of this leader's term is committed yet"
            )
        if self._change_in_flight():
            raise ChangeRefusedError(
                ProposalReason.CHANGE_IN_FLIGHT, f"the change at index {self.configuration_index} is not finished"
            )
        if decided_at_index != self.configuration_index:
            detail = (
                f"decided on the configuration of index {decided_at_index}, it is that of {self.configuration_index}"
            )
            raise ChangeRefusedError(ProposalReason.STALE_CONFIGURATION, detail)
        try:
            target = self.configuration.change(change)
        except ConfigurationError as error:
            raise ChangeRefusedError(ProposalReason.INVALID_CHANGE, str(error)) from error
        if not self._new_quorum_lives(target.voters):
            raise ChangeRefusedError(
                ProposalReason.DEAD_QUORUM, "no quorum of the new voters has answered within the last election timeout"
            )
        return self._append_change(target)

    def _change_has_own_term(self) -> bool:
        """M8: no change before an entry of the leader's own term is committed."""
        return self._own_term_committed()

    def _change_in_flight(self) -> bool:
        """M8: whether the last change is not committed, or half done."""
        return self.configuration_index > self._log.committed or self.configuration.joint

    def _new_quorum_lives(self, voters: Collection[int]) -> bool:
        """M9: whether a quorum of the new voters has answered within the last election timeout (the leader has)."""
        return has_majority(voters, self._live_members())

    def _live_members(self) -> set[int]:
        """Members that have answered within the last election timeout, and the leader itself."""
        since = self._tick - self.config.election_ticks
        live = {member for member, progress in self._progress.items() if progress.answered_tick >= since}
        live.add(self.id)
        return live

    def _append_change(self, target: Configuration) -> ProposalRef:
        invariant(Invariant.OWN_TERM_BEFORE_CHANGE, self._change_has_own_term(), f"term {self.term}")
        settled = self.configuration_index <= self._log.committed
        invariant(Invariant.ONE_CHANGE_IN_FLIGHT, settled, f"the one of index {self.configuration_index}")
        return self._append_as_leader(EntryType.CONFIG, target.encode())

    def _after_commit(self) -> None:
        """A leader's commit has advanced: reads may go, a joint configuration is left, a removed leader steps down."""
        if self._reads.unsealed:
            self._flush_needed = True
        if not self._own_term_committed() or self.configuration_index > self._log.committed:
            return
        if self.configuration.joint:
            self._append_change(self.configuration.leave())
        elif self.id not in self.configuration.voters:
            self._resign()

    def _resign(self) -> None:
        """The removal of this leader is committed: hand the lead to the member that has most, and step down."""
        heirs = [
            (self._progress[member].match, -member) for member in self.configuration.voters if member in self._progress
        ]
        self._send_appends()
        if heirs:
            match, negated = max(heirs)
            if match >= self.configuration_index:
                self._send(Message(MessageType.TIMEOUT_NOW, self.id, -negated, self.term))
        self._become_follower(self.term, NO_MEMBER)
