"""The log as the core sees it: a window of entries in memory above a base, and four marks that only the core moves.

    base            emitted   last         committed: known to be on a quorum
      |  e  e  e  e  e  |  e  e  |         applying:  handed out to be applied, applied: reported back
      (index, term)   handed to be persisted; durable <= emitted

Entries at or below the base are on disk; what a slow member needs of them is fetched by the caller.

`durable` is the own match index of D4 and needs care when a suffix is overwritten while writes are under way (the
append-ABA case: an entry that was written, overwritten and written again with the same term and index; when the first
write completes, the second has yet to take it away). The rule here: an index counts as durable only if no write that is
still under way, or yet to be handed out, starts at or below it. Then whatever prefix of the writes a crash leaves, the
entry is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, final

from mypy_extensions import mypyc_attr

from .invariants import Invariant, InvariantViolation, invariant
from .messages import EntryBlock
from .types import Entry

UNKNOWN_TERM: Final = -1
"""The term of an index that is outside the window: equal to no term."""


@final
@mypyc_attr(acyclic=True)
class PendingWrite:
    """A Ready whose persistence has not been reported. first = 0: it had no entries."""

    __slots__ = ("first", "last", "last_term", "number", "term", "vote")

    def __init__(self, number: int, first: int, last: int, last_term: int, term: int, vote: int) -> None:
        self.number: Final = number
        self.first: Final = first
        self.last: Final = last
        self.last_term: Final = last_term
        self.term: Final = term
        self.vote: Final = vote

    def without_entries(self) -> PendingWrite:
        """Of what it asked for, term and vote alone."""
        return PendingWrite(self.number, 0, 0, 0, self.term, self.vote)


class Log:
    """Entries (base_index, last_index] in memory; see the module's text."""

    __slots__ = (
        "_block",
        "_block_key",
        "_entries",
        "_pending",
        "applied",
        "applying",
        "base_index",
        "base_term",
        "committed",
        "durable",
        "emitted",
        "last_index",
        "window_bytes",
    )

    def __init__(self, base_index: int, base_term: int, entries: Sequence[Entry], committed: int, applied: int) -> None:
        self.base_index = base_index
        self.base_term = base_term
        self._entries: list[Entry] = []
        self.window_bytes = 0
        self._pending: deque[PendingWrite] = deque()
        self._block: EntryBlock | None = None
        self._block_key = (0, 0)
        self.committed = self.applied = self.applying = base_index
        self.last_index = base_index
        """Index of the last entry."""
        self.append(entries)
        last = self.last_index
        invariant(Invariant.STATE_MACHINE_SAFETY, base_index <= applied <= last, f"applied {applied} of {last}")
        self.durable = self.emitted = last
        self.committed = max(applied, min(committed, last))
        self.applied = self.applying = applied

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        return self._entries[-1].term if self._entries else self.base_term

    def term_at(self, index: int) -> int:
        """Term of the entry at `index`, or UNKNOWN_TERM outside the window (the base's term is known)."""
        position = index - self.base_index - 1
        if 0 <= position < len(self._entries):
            return self._entries[position].term
        return self.base_term if position == -1 else UNKNOWN_TERM

    def entry(self, index: int) -> Entry:
        """The entry at an index inside the window."""
        position = index - self.base_index - 1
        if position < 0:
            raise IndexError(f"index {index} is below the window")
        return self._entries[position]

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries after the last one."""
        index, term = self.last_index, self.last_term
        size = 0
        for entry in entries:
            index += 1
            if entry.index != index or entry.term < term:
                raise InvariantViolation(
                    Invariant.LOG_MATCHING, f"({entry.term},{entry.index}) after ({term},{index - 1})"
                )
            term = entry.term
            size += entry.size_bytes
        self._entries.extend(entries)
        self.last_index = index
        self.window_bytes += size

    def truncate(self, first: int) -> None:
        """Drop the entries from `first` on."""
        if first <= self.committed:
            raise InvariantViolation(Invariant.LEADER_COMPLETENESS, f"truncation at {first}, commit {self.committed}")
        position = first - self.base_index - 1
        self.window_bytes -= sum(entry.size_bytes for entry in self._entries[position:])
        del self._entries[position:]
        self.last_index = min(self.last_index, first - 1)
        self.emitted = min(self.emitted, first - 1)
        self.durable = min(self.durable, first - 1)
        self._block = None

    def compact(self, index: int) -> int:
        """Forget entries up to `index`, which must be applied and durable; returns the new base index."""
        if index <= self.base_index:
            return self.base_index
        detail = f"compact({index}) with applied {self.applied}, durable {self.durable}"
        invariant(Invariant.WINDOW_BELOW_APPLIED, index <= min(self.applied, self.durable), detail)
        count = index - self.base_index
        self.base_term = self._entries[count - 1].term
        self.window_bytes -= sum(entry.size_bytes for entry in self._entries[:count])
        del self._entries[:count]
        self.base_index = index
        return index

    def restore(self, index: int, term: int) -> None:
        """Replace the whole log by a snapshot of all up to (term, index), which lies above the commit index.

        What was durable stays so: until the replacement is written a crash finds the old entries, afterwards the
        snapshot. Writes under way say nothing about the new log.
        """
        if index <= self.committed:
            raise InvariantViolation(Invariant.SNAPSHOT_ABOVE_COMMIT, f"{index}, commit {self.committed}")
        self._entries = []
        self.window_bytes = 0
        self._block = None
        self._pending = deque([write.without_entries() for write in self._pending])
        self.base_index, self.base_term = index, term
        self.last_index = index
        self.committed = self.applying = self.emitted = index
        self.durable = min(self.durable, index)

    def block(self, first: int, max_bytes: int) -> EntryBlock:
        """Entries from `first` on up to `max_bytes` (at least one); the same object when asked for the same again."""
        last = self.last_index
        if self._block is not None and self._block_key == (first, last):
            return self._block
        block = EntryBlock(self.slice(first, last, max_bytes))
        self._block, self._block_key = block, (first, last)
        return block

    def slice(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """Entries first..last, cut off at `max_bytes`, but not before the first entry."""
        start = first - self.base_index - 1
        if start < 0:
            raise IndexError(f"index {first} is below the window")
        entries = self._entries[start : last - self.base_index]
        if len(entries) == 1:
            return entries
        size = 0
        for position, entry in enumerate(entries):
            size += entry.size_bytes
            if size > max_bytes and position:
                return entries[:position]
        return entries

    def commit_to(self, index: int) -> None:
        """Advance the commit index."""
        if not self.committed <= index <= self.last_index:
            detail = f"from {self.committed} to {index}, last {self.last_index}"
            raise InvariantViolation(Invariant.COMMIT_MONOTONIC, detail)
        self.committed = index

    def find_conflict(self, entries: Sequence[Entry]) -> int:
        """Position of the first of `entries` that is not in the log; len(entries) if all are."""
        if entries and entries[0].index > self.last_index:
            return 0
        for position, entry in enumerate(entries):
            if self.term_at(entry.index) != entry.term:
                return position
        return len(entries)

    def last_at_or_below(self, index: int, term: int) -> tuple[int, int]:
        """The last (index, term) of this log at or below `index` whose term is at most `term`: two logs that differ
        above may agree there, and cannot agree between. A term below the window is UNKNOWN_TERM."""
        index = min(index, self.last_index)
        while (known := self.term_at(index)) != UNKNOWN_TERM and known > term:
            index -= 1
        return index, known

    # -- persistence -----------------------------------------------------------------------------------------

    def take_unemitted(self) -> list[Entry]:
        """Entries that were not handed out yet; they count as handed out from now on."""
        entries = self._entries[self.emitted - self.base_index :]
        self.emitted = self.last_index
        return entries

    def write_started(
        self, number: int, entries: Sequence[Entry], term: int, vote: int, restored: tuple[int, int] | None = None
    ) -> None:
        """Remember what the Ready `number` asked to persist; `restored`: (index, term) of a snapshot before that."""
        first, last, last_term = (entries[0].index, entries[-1].index, entries[-1].term) if entries else (0, 0, 0)
        if restored is not None:
            first, last, last_term = (restored[0], last, last_term) if entries else (restored[0], *restored)
        self._pending.append(PendingWrite(number, first, last, last_term, term, vote))

    @property
    def writes_pending(self) -> bool:
        """Whether something handed out is not known to be durable."""
        return bool(self._pending)

    def writes_completed(self, number: int) -> PendingWrite | None:
        """Everything up to the Ready `number` is durable. Moves `durable`; returns the last write that completed."""
        completed: PendingWrite | None = None
        with_entries: PendingWrite | None = None
        while self._pending and self._pending[0].number <= number:
            completed = self._pending.popleft()
            with_entries = completed if completed.first else with_entries
        if with_entries is not None:
            self._advance_durable(with_entries)
        return completed

    def _advance_durable(self, write: PendingWrite) -> None:
        """Count a completed write as far as nothing still under way, or yet to be handed out, can take it back."""
        reach = min(write.last, self.emitted)
        for pending in self._pending:
            if pending.first:
                reach = min(reach, pending.first - 1)
        if reach <= self.durable:
            return
        if reach == write.last and self.term_at(reach) != write.last_term:
            raise InvariantViolation(Invariant.OWN_MATCH_DURABLE, f"({write.last_term},{reach}) is not in the log")
        self.durable = reach

    # -- application -----------------------------------------------------------------------------------------

    def take_committed(self, limit: int, max_bytes: int) -> list[Entry]:
        """Committed entries to apply next, up to index `limit` and `max_bytes`."""
        last = min(self.committed, limit)
        if last <= self.applying:
            return []
        entries = self.slice(self.applying + 1, last, max_bytes)
        self.applying = entries[-1].index
        return entries

    def applied_to(self, index: int) -> None:
        """The caller has applied everything up to `index`."""
        if not self.applied <= index <= self.applying:
            detail = f"applied {index} after {self.applied}, handed out {self.applying}"
            raise InvariantViolation(Invariant.STATE_MACHINE_SAFETY, detail)
        self.applied = index
