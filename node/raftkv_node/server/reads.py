"""Linearizable reads: one question to the quorum per turn, and the wait until this member has applied far enough.

A turn's reads share one ReadIndex request. Each try has a context of its own, so that a late answer to an earlier try
is nobody's; a try that fails is repeated until the callers' time is up, since a read changes nothing. While a few tries
are on their way the next reads gather and share the following one.

What waits is a plain function, called with None once the read may be served from the present state, or with the error.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from raftkv_node.raft import ReadFailureReason
from raftkv_node.store.errors import TIMEOUT, TIMEOUT_WAITING_FOR_APPLIED_INDEX, TOO_MANY_REQUESTS, EtcdError

Resume = Callable[[EtcdError | None], None]

MAX_TRIES_IN_FLIGHT: Final = 4
MAX_WAITING_READS: Final = 50_000
RETRY_SECONDS: Final = 0.5
_CONTEXT: Final = struct.Struct("<Q")


@dataclass(slots=True)
class _Group:
    """Reads that share a try."""

    resumes: list[Resume]
    received: float
    started: float = 0.0
    wait_until: float = 0.0
    context: bytes = field(default=b"")


class Reads:
    """Reads that wait for the quorum, or for the applied index."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._number = 0
        self._gathering: list[Resume] = []
        self._gathering_since = 0.0
        self._retry: deque[_Group] = deque()
        self._asked: dict[bytes, _Group] = {}
        self._confirmed: list[tuple[int, int, _Group]] = []
        self.waiting = 0
        """Reads that are not served yet."""
        self.failures = 0
        self.slow = 0

    def add(self, resume: Resume, now: float) -> None:
        """Queue a read; at the limit it fails at once."""
        if self.waiting >= MAX_WAITING_READS:
            resume(TOO_MANY_REQUESTS)
            return
        if not self._gathering:
            self._gathering_since = now
        self._gathering.append(resume)
        self.waiting += 1

    def next_try(self, now: float, has_leader: bool) -> bytes | None:
        """The context to ask the quorum under now, if anybody waits for it."""
        if not has_leader or len(self._asked) >= MAX_TRIES_IN_FLIGHT:
            return None
        if self._retry and self._retry[0].wait_until <= now:
            group = self._retry.popleft()
        elif self._gathering:
            group = _Group(self._gathering, self._gathering_since)
            self._gathering = []
        else:
            return None
        self._number += 1
        group.context = _CONTEXT.pack(self._number)
        group.started = now
        self._asked[group.context] = group
        return group.context

    def confirmed(self, context: bytes, index: int, now: float) -> float | None:
        """The quorum has answered; returns how long it took, or None if nobody asked (any more)."""
        group = self._asked.pop(context, None)
        if group is None:
            return None
        self._number += 1
        heappush(self._confirmed, (index, self._number, group))
        return now - group.started

    def failed(self, context: bytes, reason: ReadFailureReason, now: float) -> None:
        """A try failed: repeat it, at once where a new leader may be known already."""
        group = self._asked.pop(context, None)
        if group is None:
            return
        self.failures += 1
        pause = 0.0 if reason == ReadFailureReason.LEADER_CHANGED else 0.05
        group.wait_until = now + pause
        self._retry.append(group)

    def serve(self, applied: int) -> None:
        """Resume the reads that the applied index has reached."""
        while self._confirmed and self._confirmed[0][0] <= applied:
            group = heappop(self._confirmed)[2]
            self.waiting -= len(group.resumes)
            for resume in group.resumes:
                resume(None)

    def expire(self, now: float) -> None:
        """End reads that have waited for longer than a request may; ask again where an answer is overdue."""
        for context, group in list(self._asked.items()):
            if group.received + self._timeout <= now:
                del self._asked[context]
                self._end(group, TIMEOUT)
            elif group.started + RETRY_SECONDS <= now:
                del self._asked[context]
                self.slow += 1
                self._retry.append(group)
        for group in [one for one in self._retry if one.received + self._timeout <= now]:
            self._retry.remove(group)
            self._end(group, TIMEOUT)
        if self._gathering and self._gathering_since + self._timeout <= now:
            self._end(_Group(self._gathering, self._gathering_since), TIMEOUT)
            self._gathering = []
        late = [item for item in self._confirmed if item[2].received + self._timeout <= now]
        if late:
            self._confirmed = [item for item in self._confirmed if item not in late]
            self._confirmed.sort(key=lambda item: item[:2])
            for _, _, group in late:
                self._end(group, TIMEOUT_WAITING_FOR_APPLIED_INDEX)

    def abandon(self, error: EtcdError) -> None:
        """End all reads."""
        groups = [*self._asked.values(), *self._retry, *(group for _, _, group in self._confirmed)]
        groups.append(_Group(self._gathering, 0.0))
        self._asked.clear()
        self._retry.clear()
        self._confirmed.clear()
        self._gathering = []
        for group in groups:
            self._end(group, error)

    def _end(self, group: _Group, error: EtcdError) -> None:
        self.waiting -= len(group.resumes)
        for resume in group.resumes:
            resume(error)
