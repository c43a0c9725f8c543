"""Linearizable reads without log entries (thesis 6.4): bookkeeping of ReadIndex on leaders and on those that forward.

A leader keeps a round number. The reads of one turn form a batch with the next round and the commit index at that
moment; every heartbeat from then on names the round, every answer echoes it. Once a quorum has echoed round r or a
later one, no other leader can have been elected before r began, so all batches up to r may be answered. A lost
heartbeat costs nothing: the next one names the same or a later round. Rounds only grow within a term and messages name
the term, so no echo can be mistaken for another's (the reused context of raft issue 397).

A member that does not lead forwards a turn's reads as one request with a number of its own. Numbers start at a random
64-bit value after each start, so that an answer to an earlier incarnation finds nobody. The caller's contexts never
travel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class ReadFailureReason(IntEnum):
    """Why a read got no index. It was not executed: the caller may try again under a new context."""

    NO_LEADER = 1
    LEADER_CHANGED = 2
    TIMED_OUT = 3
    OVERLOADED = 4


class ReadState(NamedTuple):
    """A read may be served from any state that has applied `index`."""

    index: int  # type: ignore[assignment]  # the field hides tuple.index
    context: bytes


class ReadFailure(NamedTuple):
    """A read that will get no answer."""

    context: bytes
    reason: ReadFailureReason


class ReadRequest(NamedTuple):
    """A read at the leader: its own (origin 0, context) or another member's (origin, number)."""

    origin: int
    number: int
    context: bytes


class ReadBatch(NamedTuple):
    """Reads that wait for the same round."""

    sequence: int
    index: int  # type: ignore[assignment]  # the field hides tuple.index
    requests: list[ReadRequest]


class LeaderReads:
    """Reads that a leader has to confirm."""

    __slots__ = ("_batches", "_count", "sequence", "unsealed")

    def __init__(self) -> None:
        self.sequence = 0
        """The latest round."""
        self.unsealed: list[ReadRequest] = []
        """Reads of no round yet: those of this turn, or all while no entry of the own term is committed."""
        self._batches: deque[ReadBatch] = deque()
        self._count = 0

    @property
    def count(self) -> int:
        """Reads that wait."""
        return self._count + len(self.unsealed)

    def seal(self, sequence: int, commit: int) -> None:
        """Make the unsealed reads the batch of round `sequence`."""
        self.sequence = sequence
        self._batches.append(ReadBatch(sequence, commit, self.unsealed))
        self._count += len(self.unsealed)
        self.unsealed = []

    def confirmed(self, sequence: int) -> list[ReadBatch]:
        """Take the batches up to a round that a quorum has echoed."""
        done: list[ReadBatch] = []
        while self._batches and self._batches[0].sequence <= sequence:
            done.append(self._batches.popleft())
            self._count -= len(done[-1].requests)
        return done

    def drain_own(self) -> list[bytes]:
        """Take the contexts of this member's own reads; forget the rest (their origins find out by themselves)."""
        requests = [request for batch in self._batches for request in batch.requests] + self.unsealed
        self._batches.clear()
        self.unsealed = []
        self._count = 0
        return [request.context for request in requests if not request.origin]


class ForwardedReads:
    """Reads that a member has sent, or will send at the end of the turn, to its leader."""

    __slots__ = ("_next_number", "_waiting", "count", "unsent")

    def __init__(self, first_number: int) -> None:
        self._next_number = first_number
        self._waiting: dict[int, tuple[int, Sequence[bytes]]] = {}
        self.unsent: list[bytes] = []
        self.count = 0

    def add(self, context: bytes) -> None:
        """Queue a read."""
        self.unsent.append(context)
        self.count += 1

    def send(self, deadline_tick: int) -> int:
        """Turn the queued reads into one request; returns its number."""
        number = self._next_number
        self._next_number = (number + 1) & ((1 << 64) - 1)
        self._waiting[number] = (deadline_tick, self.unsent)
        self.unsent = []
        return number

    def answered(self, number: int) -> Sequence[bytes]:
        """Take the contexts of a request; empty when it is not known (any more)."""
        _, contexts = self._waiting.pop(number, (0, ()))
        self.count -= len(contexts)
        return contexts

    def expired(self, tick: int) -> list[bytes]:
        """Take the contexts of requests whose deadline has passed. Deadlines grow with the numbers."""
        contexts: list[bytes] = []
        while self._waiting:
            number = next(iter(self._waiting))
            if self._waiting[number][0] > tick:
                break
            contexts.extend(self.answered(number))
        return contexts

    def drain(self) -> list[bytes]:
        """Take all contexts."""
        contexts = [context for _, waiting in self._waiting.values() for context in waiting] + self.unsent
        self._waiting.clear()
        self.unsent = []
        self.count = 0
        return contexts
