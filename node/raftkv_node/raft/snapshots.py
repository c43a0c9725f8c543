"""Snapshots (Raft, section 7): members that need what is no longer in the log, and replacing a log by a snapshot.

The core decides who needs a snapshot, judges each of its pieces by term, sender and log, and replaces the log. Making,
cutting, sending again, checking and keeping the pieces is the caller's: they are opaque here. So a transfer never holds
up anything: a member in SNAPSHOT state gets heartbeats and no appends, all others go on.

A snapshot succeeds by an ordinary acknowledgement: the member has installed it durably, or has meanwhile got further by
other ways. It needs no leader that stays: what is complete is a committed state, whoever sent it.
"""

from __future__ import annotations

from .invariants import Invariant, InvariantViolation
from .messages import Flag, Message, MessageType
from .progress import SNAPSHOT
from .ready import Snapshot
from .replication import Replication
from .types import LEADER, NO_MEMBER, Role


class Snapshots(Replication):
    """Who gets a snapshot, and what becomes of one."""

    # -- leader ----------------------------------------------------------------------------------------------

    def awaits_snapshot(self, peer: int) -> bool:
        """Whether this leader still wants a snapshot to be sent to the member."""
        progress = self._progress.get(peer)
        return progress is not None and progress.state is SNAPSHOT

    def snapshot_started(self, peer: int, index: int) -> bool:
        """The caller sends the member a snapshot of all up to `index`. False: it is not wanted any more."""
        progress = self._progress.get(peer)
        if progress is None or progress.state is not SNAPSHOT:
            return False
        progress.pending_snapshot = index
        return True

    def snapshot_failed(self, peer: int) -> None:
        """There is none, or it did not arrive: look again what the member has, after its next answer."""
        progress = self._progress.get(peer)
        if progress is not None and progress.state is SNAPSHOT:
            progress.become_probe()
            progress.probe_sent = True

    def send_snapshot(self, peer: int, index: int, term: int, transfer: int, context: bytes, data: bytes) -> None:
        """Send a piece of a snapshot of all up to (term, index) to a member that waits for it."""
        progress = self._progress.get(peer)
        if progress is None or progress.state is not SNAPSHOT:
            return
        kind = MessageType.SNAPSHOT
        self._send(
            Message(
                kind,
                self.id,
                peer,
                self.term,
                index,
                term,
                match=progress.match,
                sequence=transfer,
                context=context,
                data=data,
            )
        )

    def _handle_snapshot_response(self, message: Message) -> None:
        """The member has taken a piece, or cannot use it: for the caller."""
        if self.role is LEADER and self._heard(message) is not None:
            self._snapshot_messages.append(message)

    # -- follower --------------------------------------------------------------------------------------------

    def _handle_snapshot(self, message: Message) -> None:
        """A piece of a snapshot. What the log holds already needs none: then only the commit index moves."""
        self._check_own_log(message)
        if message.index <= self._log.committed:
            self._acknowledge(message, self._log.committed)
        elif self._has_committed(message.index, message.log_term):
            self._advance_commit(message.index)
            self._acknowledge(message, message.index)
        else:
            self._snapshot_messages.append(message)

    def _has_committed(self, index: int, term: int) -> bool:
        """Whether the log holds the entry (term, index), and so all of a snapshot up to it."""
        return self._log.term_at(index) == term

    def answer_snapshot(self, message: Message, context: bytes, reject: bool = False) -> None:
        """Tell the sender of a piece how far its snapshot has come, or (`reject`) that this transfer has no future."""
        if message.term != self.term:
            return
        flags = Flag.REJECT if reject else 0
        kind = MessageType.SNAPSHOT_RESPONSE
        self._send(
            Message(
                kind,
                self.id,
                message.sender,
                self.term,
                message.index,
                message.log_term,
                sequence=message.sequence,
                flags=flags,
                context=context,
            )
        )

    def restore(self, snapshot: Snapshot) -> bool:
        """Replace the log by a snapshot that is complete and durable in a place beside the state machine's own.

        True: the next Ready has it, `Ready` says what is to be done. False: this member has got as far by other ways;
        the snapshot is of no use. Neither term nor vote nor commit index goes back.
        """
        log = self._log
        if self.role is LEADER or snapshot.index <= log.committed:
            return False
        if self._has_committed(snapshot.index, snapshot.term):
            self._advance_commit(snapshot.index)
            return False
        if snapshot.term > self.term:
            raise InvariantViolation(Invariant.TERM_MONOTONIC, f"a snapshot of {snapshot.term} in term {self.term}")
        lost = self._configurations[0][1].removed - snapshot.configuration.removed
        if lost:
            raise InvariantViolation(Invariant.REMOVED_NEVER_RETURNS, f"{sorted(lost)} in the snapshot")
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, NO_MEMBER)
        log.restore(snapshot.index, snapshot.term)
        self._configurations = [(snapshot.configuration_index, snapshot.configuration)]
        self._released_index = snapshot.index
        self._snapshot = snapshot
        if self.leader_id != NO_MEMBER:
            self._send_after_persist(
                Message(MessageType.APPEND_RESPONSE, self.id, self.leader_id, self.term, index=snapshot.index)
            )
        return True
