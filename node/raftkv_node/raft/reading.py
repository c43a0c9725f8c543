"""ReadIndex at the leader and its forwarding elsewhere; `reads.py` has the idea and the bookkeeping."""

from __future__ import annotations

from .messages import Message, MessageType
from .quorum import joint_agreed_value
from .reads import ReadBatch, ReadFailureReason, ReadRequest, ReadState
from .snapshots import Snapshots
from .types import LEADER, NO_MEMBER


class Reading(Snapshots):
    """Linearizable reads."""

    def read_index(self, context: bytes) -> None:
        """Ask for an index from which a linearizable read may be served.

        The answer is a `ReadState` with this context in a later Ready, or a `ReadFailure`; exactly one of them. A
        leader that commits nothing of its own term yet keeps the read until it does. Use a new context for each try.
        """
        waiting = self._reads.count if self.role is LEADER else self._forwarded_reads.count
        if self.role is not LEADER and self.leader_id == NO_MEMBER:
            self._fail_reads((context,), ReadFailureReason.NO_LEADER)
        elif waiting >= self.config.max_pending_reads:
            self._fail_reads((context,), ReadFailureReason.OVERLOADED)
        elif self.role is LEADER:
            self._reads.unsealed.append(ReadRequest(NO_MEMBER, 0, context))
            self._flush_needed = True
        else:
            self._forwarded_reads.add(context)
            self._flush_needed = True

    def _flush_reads(self) -> None:
        """End of a turn: start a round for the turn's reads, or forward them."""
        if self.role is LEADER:
            if self._reads.unsealed and self._may_serve_reads():
                self._reads.seal(self._next_read_round(), self._log.committed)
                if self._sent_to:
                    self._send_heartbeats()
                self._confirm_reads()
        elif self._forwarded_reads.unsent:
            number = self._forwarded_reads.send(self._tick + self.config.election_ticks)
            self._send(Message(MessageType.READ_INDEX, self.id, self.leader_id, self.term, sequence=number))

    def _may_serve_reads(self) -> bool:
        """Before an entry of the own term is committed, a leader's commit index may be behind what was acknowledged."""
        return self._own_term_committed()

    def _next_read_round(self) -> int:
        """A round that no heartbeat of this term has named before."""
        return self._reads.sequence + 1

    def _confirmed_round(self) -> int:
        """The latest round that a quorum has echoed."""
        rounds = {member: progress.acked_sequence for member, progress in self._progress.items()}
        rounds[self.id] = self._reads.sequence
        configuration = self.configuration
        return joint_agreed_value(configuration.voters, configuration.voters_outgoing, rounds)

    def _confirm_reads(self) -> None:
        """Answer the reads whose round a quorum has echoed."""
        if self._reads.count:
            for batch in self._reads.confirmed(self._confirmed_round()):
                self._answer_reads(batch)

    def _answer_reads(self, batch: ReadBatch) -> None:
        for request in batch.requests:
            if request.origin == NO_MEMBER:
                self._read_states.append(ReadState(batch.index, request.context))
            else:
                kind = MessageType.READ_INDEX_RESPONSE
                self._send(
                    Message(kind, self.id, request.origin, self.term, index=batch.index, sequence=request.number)
                )

    def _handle_heartbeat_response(self, message: Message) -> None:
        super()._handle_heartbeat_response(message)
        self._confirm_reads()

    def _handle_read_index(self, message: Message) -> None:
        """A member forwards reads. A leader that cannot take them says nothing: they time out there."""
        if self.role is LEADER and self._reads.count < self.config.max_pending_reads:
            self._reads.unsealed.append(ReadRequest(message.sender, message.sequence, b""))
            self._flush_needed = True
            progress = self._progress.get(message.sender)
            if progress is not None:
                progress.eager = True  # the read waits there until its index is applied

    def _handle_read_index_response(self, message: Message) -> None:
        for context in self._forwarded_reads.answered(message.sequence):
            self._read_states.append(ReadState(message.index, context))

    def _expire_reads(self) -> None:
        """Give up forwarded reads that no answer came for."""
        if self._forwarded_reads.count:
            self._fail_reads(self._forwarded_reads.expired(self._tick), ReadFailureReason.TIMED_OUT)
