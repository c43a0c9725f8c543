"""What the simulation knows of a member's log: what is durable, and what is under way.

Recovery may show exactly the durable records and any number of those under way, in order (D2, D3); nothing else ever
comes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from adr_invariants import ACKNOWLEDGED_IMPLIES_DURABLE, NO_VOTE_TWICE, RECOVERED_IS_PREFIX
from raftkv_node import adr
from raftkv_node.adr.records import MARK_SNAPSHOT
from simulation_checks import Violation


class Durable(NamedTuple):
    """The state of a log after some of its records."""

    hard_state: tuple[int, int, int]
    entries: list[tuple[int, bytes]]
    membership: tuple[int, int, bytes]
    base: tuple[int, int] = (0, 0)
    """(index, term) of the snapshot that the entries follow."""

    def after(self, record: adr.Record) -> Durable:
        kind, _, term, index, payload = record
        if kind == adr.ENTRY:
            del self.entries[index - self.base[0] - 1 :]
            self.entries.append((term, payload))
        elif kind == adr.HARD_STATE:
            return self._replace(hard_state=(term, int.from_bytes(payload, "little"), index))
        elif kind == adr.CONFIGURATION:
            return self._replace(membership=(term, index, payload))
        elif kind == adr.MARK and record[1] == MARK_SNAPSHOT:
            return self._replace(base=(index, term), entries=[])
        return self

    @property
    def last_index(self) -> int:
        return self.base[0] + len(self.entries)

    def shows(self, found: adr.Recovered) -> bool:
        """Whether a recovery has found exactly this (of released entries nothing can be said)."""
        membership = (0, 0, b"") if found.configuration is None else tuple(found.configuration)
        return (
            tuple(found.hard_state) == self.hard_state
            and membership == self.membership
            and found.first_index > self.base[0]
            and found.last_index == self.last_index
            and [(one.term, one.payload) for one in found.entries]
            == self.entries[found.first_index - self.base[0] - 1 :]
        )


class Truth:
    """What is durable in a member's log, and what is under way."""

    def __init__(self) -> None:
        self.durable = Durable((0, 0, 0), [], (0, 0, b""))
        self.pending: deque[tuple[int, list[adr.Record]]] = deque()
        """Batches that were handed in, with the LSN behind them (0: not known, since the process died in `append`)."""

    def hand_in(self, batch: Sequence[adr.Record]) -> None:
        self.pending.append((0, list(batch)))

    def appended(self, lsn: int) -> None:
        self.pending[-1] = (lsn, self.pending[-1][1])

    def fenced(self, lsn: int) -> None:
        """Everything below `lsn` is durable now."""
        while self.pending and 0 < self.pending[0][0] <= lsn:
            for record in self.pending.popleft()[1]:
                self.durable = self.durable.after(record)

    def recovered(self, found: adr.Recovered) -> None:
        """RECOVERED_IS_PREFIX (D2, D3): what was durable is found, and of what was under way a prefix."""
        state = self.durable
        records = [record for _, batch in self.pending for record in batch]
        for number in range(len(records) + 1):
            if state.shows(found):
                self.durable = state
                self.pending.clear()
                return
            if number < len(records):
                state = state.after(records[number])
        raise Violation(
            self._broken_by(found),
            f"found {tuple(found.hard_state)} and entries {found.first_index} to {found.last_index} with the terms "
            f"{[one.term for one in found.entries][-10:]}; all durable and under way were {state.hard_state} and "
            f"{len(state.entries)} entries, {[term for term, _ in state.entries][-10:]}, {len(records)} under way",
        )

    def _broken_by(self, found: adr.Recovered) -> str:
        """Which rule a recovery breaks that shows none of what it may show."""
        (term, vote, _), (known_term, known_vote, _) = found.hard_state, self.durable.hard_state
        if term < known_term or (term == known_term and known_vote not in (0, vote)):
            return NO_VOTE_TWICE
        base = self.durable.base[0]
        promised = {(base + 1 + place, one[0]) for place, one in enumerate(self.durable.entries)}
        shown = {(found.first_index + place, one.term) for place, one in enumerate(found.entries)}
        lost = {one for one in promised - shown if one[0] >= found.first_index}
        return ACKNOWLEDGED_IMPLIES_DURABLE if lost else RECOVERED_IS_PREFIX

    def holds(self, index: int, term: int) -> bool:
        """Whether an entry, or a snapshot that has it, is durable."""
        return index <= self.durable.base[0] or self.durable_term(index) == term

    def durable_term(self, index: int) -> int | None:
        """The term at `index` that no crash from now on takes away."""
        base, base_term = self.durable.base
        if not base <= index <= self.durable.last_index or not index:
            return None
        for _, batch in self.pending:
            for kind, what, _, at, _ in batch:
                if (kind == adr.ENTRY and at <= index) or (kind == adr.MARK and what == MARK_SNAPSHOT and at < index):
                    return None
        return base_term if index == base else self.durable.entries[index - base - 1][0]
