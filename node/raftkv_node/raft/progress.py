"""What a leader knows about each member: how far its log agrees, and what is on the way to it.

PROBE      one append (or none) under way at a time, `next` is a guess      <- start, a gap, an unreachable peer
REPLICATE  appends are pipelined, `next` runs ahead of `match` by what is in flight   <- after an acknowledgement
SNAPSHOT   no appends; the caller transfers a snapshot   <- what the member needs next is released from the log
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final

from .invariants import Invariant, InvariantViolation

NEVER: Final = -(1 << 62)
"""A tick before all others."""


class ProgressState(IntEnum):
    """How appends are sent to a member."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


# For comparisons, as in types.py.
PROBE: Final = ProgressState.PROBE
REPLICATE: Final = ProgressState.REPLICATE
SNAPSHOT: Final = ProgressState.SNAPSHOT


class Progress:
    """A leader's view of one member, in one term. Ticks are the leader's own count."""

    __slots__ = (
        "acked_sequence",
        "answered_tick",
        "caught_up_tick",
        "eager",
        "fetching",
        "inflight",
        "inflight_bytes",
        "mark_index",
        "mark_tick",
        "match",
        "next",
        "pending_snapshot",
        "probe_sent",
        "sent_commit",
        "sent_index",
        "sent_term",
        "state",
    )

    def __init__(self, next_index: int) -> None:
        self.match = 0
        """Highest index that the member acknowledged as durable to this leader in this term (M15)."""
        self.next = next_index
        """Index of the next entry to send."""
        self.state: ProgressState = PROBE
        self.probe_sent = False
        """In PROBE: an append is under way. In REPLICATE with full limits: the one empty append was sent."""
        self.inflight: deque[tuple[int, int]] = deque()
        """(last index, bytes) of each append with entries that is under way."""
        self.inflight_bytes = 0
        self.sent_commit = 0
        """Highest commit index sent in an append."""
        self.eager = False
        """Somebody waits there for what is committed."""
        self.sent_index = self.sent_term = 0
        """Last entry sent, so that its term is known when it has left the leader's memory."""
        self.answered_tick = NEVER
        """Tick of the last answer of any kind."""
        self.acked_sequence = 0
        """Highest read round that the member has confirmed."""
        self.pending_snapshot = 0
        """In SNAPSHOT: index of the snapshot on its way; 0 while none is."""
        self.fetching = 0
        """First index of the fetch of old entries under way; 0 when none is."""
        self.mark_index = next_index - 1
        self.mark_tick = NEVER
        self.caught_up_tick = NEVER
        """Latest tick of which it is known that the member now has all that the leader had then (M12, in time)."""

    def advance_match(self, index: int) -> bool:
        """Record a durable acknowledgement; whether it was news."""
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        self.next = max(self.next, index + 1)
        if index <= self.match:
            return False
        self.match = index
        self.probe_sent = False
        return True

    def set_own_match(self, index: int) -> None:
        """Move the leader's own match."""
        if index < self.match:
            raise InvariantViolation(Invariant.MATCH_NEVER_LOWERED, f"own match {self.match} to {index}")
        self.match = index
        self.next = max(self.next, index + 1)

    def become_probe(self) -> None:
        """Forget what is under way and look for the point of agreement again."""
        self.state = PROBE
        self.pending_snapshot = 0
        self.next = self.match + 1
        self.probe_sent = False
        self.inflight.clear()
        self.inflight_bytes = 0

    def become_snapshot(self) -> None:
        """What the member needs next is not in the log any more."""
        self.become_probe()
        self.state = SNAPSHOT
        self.pending_snapshot = 0

    def become_replicate(self) -> None:
        """The logs agree up to `match`: send ahead from there."""
        self.state = REPLICATE
        self.pending_snapshot = 0
        self.next = self.match + 1
        self.probe_sent = False
        self.inflight.clear()
        self.inflight_bytes = 0

    def rejected(self, index: int, hint: int) -> bool:
        """The member lacks the entry before an append, at `index`, and might agree at `hint`. False: old news."""
        if self.state is REPLICATE:
            if index <= self.match:
                return False
            self.become_probe()
            return True
        if self.state is SNAPSHOT or self.next - 1 != index:
            return False
        self.next = max(min(index, hint + 1), self.match + 1)
        self.probe_sent = False
        return True

    def sent(self, last_index: int, last_term: int, size_bytes: int) -> None:
        """An append with entries up to (last_term, last_index) is on its way."""
        self.sent_index, self.sent_term = last_index, last_term
        if self.state is REPLICATE:
            self.next = last_index + 1
            self.inflight.append((last_index, size_bytes))
            self.inflight_bytes += size_bytes
        else:
            self.probe_sent = True

    def full(self, max_messages: int, max_bytes: int) -> bool:
        """Whether the limits of what may be under way are reached."""
        return len(self.inflight) >= max_messages or self.inflight_bytes >= max_bytes

    def note_caught_up(self, last_index: int, tick: int) -> None:
        """Keep `caught_up_tick`: reaching the mark shows that the member has all that there was at the mark's tick."""
        if self.match >= self.mark_index:
            self.caught_up_tick = self.mark_tick
            self.mark_index = last_index
            self.mark_tick = tick
            if self.match >= last_index:
                self.caught_up_tick = tick
