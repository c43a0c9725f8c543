"""Clients' writes on their way: waiting to be proposed, proposed and waiting to be applied, answered.

What one turn accepts travels as one entry. The requests of an entry are numbered consecutively from its first sequence,
which starts at a random number in each life of the process, so that an entry of an earlier life finds nobody waiting.

A proposal whose fate is unknown is never handed over again (M16). Its fate is known when it is applied; when the leader
has refused it; or when an entry of a later term than it was handed over in is applied here, and it was not applied
before. For a leader takes proposals in its own term only, and terms never fall along the log: it is not in it, and
never will be. What is so known to be lost waits to be proposed again, as if it had just come; a change of the leader is
to its callers a delay, and most often not even that, because the new leader has it in its log. Where entries are passed
over (a snapshot has their effect), what was handed over before is of unknown fate for ever, and its callers are told.

Holding new writes back while some entries are on their way makes entries larger just when the machine is busy, and
costs an idle one nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, final

from mypy_extensions import mypyc_attr

from raftkv_node.store.errors import (
    LEADER_CHANGED,
    TIMEOUT,
    TIMEOUT_CONNECTION_LOST,
    TIMEOUT_LEADER_FAILURE,
    TOO_MANY_REQUESTS,
    EtcdError,
)

NOBODY: Final = 0
"""The call id of a command that no client waits for. (The engine's ids start at 1.)"""


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """Bounds of what waits; what happens at each is said beside it."""

    max_batch_requests: int = 1024
    """Requests in an entry; more wait for the next one."""
    max_batch_bytes: int = 1 << 20
    """Bytes in an entry, but at least one request; more wait for the next one."""
    max_entries_in_flight: int = 4
    """Own entries that are proposed and not applied; at the limit new writes wait."""
    max_waiting_requests: int = 50_000
    """Writes that wait to be proposed; one more is answered with etcd's "too many requests"."""
    max_waiting_bytes: int = 128 << 20
    """Bytes of writes that wait to be proposed; at the limit as above."""


@final
@mypyc_attr(acyclic=True)
class Proposal:
    """An entry of this member's own on its way. Times are of the turn's clock, in seconds; 0: not yet."""

    __slots__ = (
        "acknowledged",
        "call_ids",
        "durable",
        "first_seq",
        "handed_term",
        "index",
        "kinds",
        "logged",
        "payloads",
        "proposed",
        "received",
        "term",
    )

    def __init__(
        self, first_seq: int, call_ids: list[int], kinds: bytes, payloads: list[bytes], received: float
    ) -> None:
        self.first_seq = first_seq
        self.call_ids = call_ids
        self.kinds = kinds
        self.payloads = payloads
        self.received = received
        """When the first of its requests arrived."""
        self.proposed = 0.0
        self.logged = 0.0
        """When its append to the own log began; by then it is on its way to the others, too."""
        self.durable = 0.0
        self.acknowledged = 0.0
        """When another member first acknowledged it."""
        self.term = 0
        """Where it stands in the own log; 0: it was forwarded."""
        self.index = 0
        self.handed_term = 0
        """The term in which it was handed over: that of its entry, if it ever becomes one."""

    def groups(self) -> list[tuple[int, list[int], list[bytes]]]:
        """Its requests, those of one kind together that stand together."""
        result: list[tuple[int, list[int], list[bytes]]] = []
        for kind, call_id, payload in zip(self.kinds, self.call_ids, self.payloads, strict=True):
            if not result or result[-1][0] != kind:
                result.append((kind, [], []))
            result[-1][1].append(call_id)
            result[-1][2].append(payload)
        return result


Errors = list[tuple[int, EtcdError]]
"""Calls to end, and how."""


def bytes_of(payloads: list[bytes]) -> int:
    """All of them together. (`sum(map(len, payloads))` goes through three objects where this is compiled.)"""
    size = 0
    for payload in payloads:
        size += len(payload)
    return size


class Writes:
    """The queue before the log, and what is between log and answer."""

    def __init__(self, first_seq: int, limits: WriteLimits, timeout_seconds: float) -> None:
        self._limits = limits
        self._timeout = timeout_seconds
        self._next_seq = first_seq
        self._queue: deque[tuple[int, list[int], list[bytes], float]] = deque()
        self._waiting_bytes = 0
        self.waiting = 0
        """Requests that are not proposed yet."""
        self._in_flight: dict[int, Proposal] = {}
        self._by_index: deque[Proposal] = deque()
        self.pending = 0
        """Requests that are proposed and not answered."""
        self.passed_index = 0
        """The last entry that was applied here."""

    def accept(self, kind: int, call_ids: list[int], payloads: list[bytes], now: float) -> Errors:
        """Queues writes of one kind; returns those that there is no room for."""
        room = self._limits.max_waiting_requests - self.waiting
        refused: Errors = []
        if len(call_ids) > room or self._waiting_bytes > self._limits.max_waiting_bytes:
            room = 0 if self._waiting_bytes > self._limits.max_waiting_bytes else max(0, room)
            refused = [(call_id, TOO_MANY_REQUESTS) for call_id in call_ids[room:]]
            call_ids, payloads = call_ids[:room], payloads[:room]
        if call_ids:
            self._queue.append((kind, call_ids, payloads, now))
            self.waiting += len(call_ids)
            self._waiting_bytes += bytes_of(payloads)
        return refused

    def cancel(self, call_ids: Collection[int]) -> None:
        """Drop writes that nobody waits for any more and that are not proposed yet."""
        kept: deque[tuple[int, list[int], list[bytes], float]] = deque()
        for kind, ids, payloads, arrived in self._queue:
            if not any(one in call_ids for one in ids):
                kept.append((kind, ids, payloads, arrived))
                continue
            left = [(one, payload) for one, payload in zip(ids, payloads, strict=True) if one not in call_ids]
            self.waiting -= len(ids) - len(left)
            self._waiting_bytes -= bytes_of(payloads) - sum(len(payload) for _, payload in left)
            if left:
                kept.append((kind, [one for one, _ in left], [payload for _, payload in left], arrived))
        self._queue = kept

    def may_propose(self) -> bool:
        """Whether something waits and the entries in flight leave room for one more."""
        return bool(self._queue) and len(self._in_flight) < self._limits.max_entries_in_flight

    def take(self, now: float, small: bool = False) -> Proposal:
        """The next entry, made of what waits, or an eighth of it; it counts as in flight until it is settled."""
        call_ids: list[int] = []
        kinds: list[bytes] = []
        payloads: list[bytes] = []
        received = self._queue[0][3]
        requests, size = self._limits.max_batch_requests, self._limits.max_batch_bytes
        if small:
            requests, size = requests // 8, size // 8
        while self._queue and requests > 0 and size > 0:
            kind, ids, group, arrived = self._queue.popleft()
            if payloads and len(group[0]) > size:
                self._queue.appendleft((kind, ids, group, arrived))
                break
            number = _fitting(group, requests, size)
            if number < len(ids):
                self._queue.appendleft((kind, ids[number:], group[number:], arrived))
                ids, group = ids[:number], group[:number]
            call_ids += ids
            payloads += group
            kinds.append(bytes((kind,)) * number)
            requests -= number
            taken = bytes_of(group)
            size -= taken
            self._waiting_bytes -= taken
        self.waiting -= len(call_ids)
        self.pending += len(call_ids)
        proposal = Proposal(self._next_seq, call_ids, b"".join(kinds), payloads, received)
        proposal.proposed = now
        self._next_seq += len(call_ids)
        self._in_flight[proposal.first_seq] = proposal
        return proposal

    def appended(self, proposal: Proposal, term: int, index: int) -> None:
        """The own log has the entry there: this member leads."""
        proposal.term, proposal.index = term, index
        proposal.handed_term = term
        self._by_index.append(proposal)

    def appended_entries(self) -> Iterable[Proposal]:
        """Own entries in the own log that are not settled."""
        return self._by_index

    def find(self, first_seq: int) -> Proposal | None:
        """The proposal with that first sequence, if anybody still waits for it."""
        return self._in_flight.get(first_seq)

    def settle(self, first_seq: int) -> Proposal | None:
        """The proposal that an applied entry of this member carries, if anybody still waits for it."""
        proposal = self._in_flight.pop(first_seq, None)
        if proposal is None:
            return None
        self.pending -= len(proposal.call_ids)
        if proposal.index:
            while self._by_index and self._by_index[0].index <= proposal.index:
                self._by_index.popleft()
        return proposal

    def refused(self, first_seq: int, error: EtcdError = LEADER_CHANGED) -> Errors:
        """The leader did not take the entry: it is certainly not in the log."""
        proposal = self.settle(first_seq)
        return [] if proposal is None else [(call_id, error) for call_id in proposal.call_ids]

    def propose_again(self, first_seq: int) -> None:
        """The proposal is certainly not in the log, and never will be: its requests go first when it is proposed next.

        They may exceed the bounds of what waits by the entries in flight.
        """
        proposal = self.settle(first_seq)
        if proposal is None:
            return
        for kind, call_ids, payloads in reversed(proposal.groups()):
            self._queue.appendleft((kind, call_ids, payloads, proposal.received))
            self.waiting += len(call_ids)
            self._waiting_bytes += bytes_of(payloads)

    def passed(self, index: int, term: int) -> Errors:
        """An entry was applied (its own proposal, if any, was settled before); what this tells of the others."""
        if index > self.passed_index + 1:
            return self.skipped_to(index)
        self.passed_index = index
        if self._in_flight:
            lost = [one.first_seq for one in self._in_flight.values() if 0 < one.handed_term < term]
            for first_seq in reversed(lost):
                self.propose_again(first_seq)
        return []

    def skipped_to(self, index: int) -> Errors:
        """A snapshot has the effect of the entries up to here: what is in flight may be among them."""
        self.passed_index = index
        errors: Errors = []
        for first_seq in list(self._in_flight):
            errors += self.refused(first_seq, TIMEOUT_LEADER_FAILURE)
        return errors

    def expire(self, now: float, has_leader: bool) -> Errors:
        """What has waited for longer than a request may."""
        errors: Errors = []
        while self._queue and self._queue[0][3] + self._timeout <= now:
            _, call_ids, payloads, _ = self._queue.popleft()
            self.waiting -= len(call_ids)
            self._waiting_bytes -= bytes_of(payloads)
            errors += [(call_id, TIMEOUT if has_leader else TIMEOUT_LEADER_FAILURE) for call_id in call_ids]
        late = [one for one in self._in_flight.values() if one.received + self._timeout <= now]
        for one in late:
            errors += self.refused(one.first_seq, TIMEOUT if has_leader else TIMEOUT_CONNECTION_LOST)
        return errors

    def abandon(self, error: EtcdError) -> Errors:
        """Everything that waits, at the end."""
        errors: Errors = [(call_id, error) for _, call_ids, _, _ in self._queue for call_id in call_ids]
        self._queue.clear()
        self.waiting = self._waiting_bytes = 0
        for first_seq in list(self._in_flight):
            errors += self.refused(first_seq, error)
        return errors


def _fitting(payloads: list[bytes], requests: int, size_bytes: int) -> int:
    """How many of the payloads fit, at least one."""
    if len(payloads) <= requests and bytes_of(payloads) <= size_bytes:
        return len(payloads)
    number, total = 0, 0
    for payload in payloads[:requests]:
        total += len(payload)
        if number and total > size_bytes:
            break
        number += 1
    return number
