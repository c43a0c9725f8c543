"""Fetching what apply needs before its turn comes (D17): which entries, when, and how long apply waits.

An entry is looked at when it enters the log, long before it is committed: what it will read and is not in memory is
read on a worker meanwhile. When its turn to be applied comes, it is looked at again, since the entries before it may
have changed everything; mostly nothing is missing, and it is applied. Otherwise apply stops in front of it, turns go on
(heartbeats, appends, reads), and the worker's wake brings it back. An entry is fetched for at most twice, and waited
for only so long; then it is applied with what is there, and what is missing is read on the turn and counted. A worker's
error ends the wait as well: reading on the spot then meets the same error, and the store fails closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from queue import Full
from time import monotonic
from typing import Final

from raftkv_node.raft import Entry, EntryType
from raftkv_node.server.workers import Workers
from raftkv_node.server.writes import Writes
from raftkv_node.store import commands
from raftkv_node.store.ahead import Needs
from raftkv_node.store.errors import CommandError
from raftkv_node.store.store import Store

MAX_ENTRIES_AHEAD: Final = 64
"""Entries looked at before their turn; those beyond are looked at when others are applied, or when it is their turn."""
MAX_FETCHES: Final = 4
"""Fetches on workers at a time, and one more for the entry whose turn it is. Each reads `AHEAD_ENTRY_BYTES` at most."""
MAX_HELD_BYTES: Final = 32 << 20
"""With so much fetched and not applied, nothing more is fetched but for the entry whose turn it is."""
QUEUED_WAIT_SECONDS: Final = 0.1
"""Apply waits so long for a worker to be free; checked in every turn, at the latest with each tick."""
FETCH_WAIT_SECONDS: Final = 5.0
"""Apply waits so long for a read that a worker has begun: reading on the turn would wait for the same disk."""
_MAX_ROUNDS: Final = 2


class _Plan:
    """What one entry needs, and what is there of it."""

    __slots__ = (
        "begun",
        "fetching",
        "held_bytes",
        "looked",
        "needs",
        "prev",
        "records",
        "rounds",
        "term",
        "waiting_since",
    )

    def __init__(self, term: int, prev: bool, needs: Needs | None) -> None:
        self.term = term
        self.prev = prev
        self.needs = needs
        self.records: dict[bytes, bytes] = {}
        self.held_bytes = 0
        self.rounds = 0
        self.looked = False
        """Whether it was found out at least once what is missing."""
        self.fetching = False
        self.begun = False
        """A worker has begun to read; set there."""
        self.waiting_since = 0.0


class Ahead:
    """Plans and fetches by entry. For the turn; only `_Plan.begun` is set by workers."""

    def __init__(
        self, own_id: int, store: Store, writes: Writes, workers: Workers, clock: Callable[[], float] = monotonic
    ) -> None:
        self._own_id = own_id
        self._store = store
        self._writes = writes
        self._workers = workers
        self._clock = clock
        self._plans: dict[int, _Plan] = {}
        self._fetches = 0
        self.held_bytes = 0
        """What was fetched and is not applied yet."""
        self.fetched_total = 0
        """Records that workers have read ahead."""

    def look(self, entries: Iterable[Entry]) -> None:
        """Entries are in the log, or committed: fetch for those that need it, as far as there is room."""
        if not self._store.may_be_cold:
            return
        for entry in entries:
            if len(self._plans) >= MAX_ENTRIES_AHEAD or self.held_bytes >= MAX_HELD_BYTES:
                self._forget()
                if len(self._plans) >= MAX_ENTRIES_AHEAD or self.held_bytes >= MAX_HELD_BYTES:
                    return
            plan = self._plans.get(entry.index)
            if plan is None or plan.term != entry.term:
                plan = self._plan(entry)
            if plan.needs is not None and not plan.looked and self._fetches < MAX_FETCHES:
                self._fetch(plan)

    def ready(self, entry: Entry) -> bool:
        """Whether the entry, whose turn it is, can be applied; else a worker wakes the node when it can."""
        if not self._store.may_be_cold:
            return True
        plan = self._plans.get(entry.index)
        if plan is None or plan.term != entry.term or plan.prev != self._store.mvcc.collect_prev:
            plan = self._plan(entry)
        if plan.needs is None:
            return True
        if plan.fetching:
            return self._waited_enough(plan)
        if plan.rounds < _MAX_ROUNDS:
            self._fetch(plan)
        return not plan.fetching

    def take(self, entry: Entry) -> tuple[Needs | None, dict[bytes, bytes] | None]:
        """What is known of an entry that is applied now: its needs, and the records that were fetched."""
        plan = self._plans.pop(entry.index, None) if self._plans else None
        if plan is None:
            return None, None
        needs = plan.needs
        self._drop(plan)
        return (needs, plan.records) if plan.term == entry.term else (None, None)

    def _plan(self, entry: Entry) -> _Plan:
        prev = self._store.mvcc.collect_prev
        plan = _Plan(entry.term, prev, self._needs(entry))
        old = self._plans.get(entry.index)
        if old is not None:
            self._drop(old)
        self._plans[entry.index] = plan
        return plan

    def _needs(self, entry: Entry) -> Needs | None:
        if entry.type == EntryType.CONFIG or not entry.data:
            return None
        try:
            origin, first_seq = commands.origin_of(entry.data)
            own = self._writes.find(first_seq) if origin == self._own_id else None
            if own is not None:
                batch = commands.Batch(origin, first_seq, own.kinds, own.payloads)
            else:
                batch = commands.decode_batch(entry.data)
        except CommandError:
            return None  # applying it says so
        return self._store.needs_of(batch, own is not None)

    def _fetch(self, plan: _Plan) -> None:
        """Have a worker read what is missing, if anything is."""
        store, needs = self._store, plan.needs
        assert needs is not None
        plan.looked = True
        before = len(plan.records)
        ids = store.cold_records(needs, plan.records)
        if len(plan.records) != before:
            self._hold(plan)
        if not ids:
            return

        def fetch() -> None:
            plan.begun = True
            try:
                found = store.read_records(ids)
            except Exception:
                found = {}  # apply reads on the spot, and meets the error where it is latched
            self._workers.done.append(lambda: self._fetched(plan, found))

        plan.begun, plan.waiting_since = False, 0.0
        try:
            self._workers.submit(fetch)
        except Full:
            return
        plan.rounds += 1
        plan.fetching = True
        self._fetches += 1

    def _fetched(self, plan: _Plan, found: dict[bytes, bytes]) -> None:
        self._fetches -= 1
        self.fetched_total += len(found)
        plan.fetching = False
        if plan.needs is not None:
            plan.records.update(found)
            self._hold(plan)

    def _waited_enough(self, plan: _Plan) -> bool:
        now = self._clock()
        if not plan.waiting_since:
            plan.waiting_since = now
        return now - plan.waiting_since >= (FETCH_WAIT_SECONDS if plan.begun else QUEUED_WAIT_SECONDS)

    def _hold(self, plan: _Plan) -> None:
        size = sum(map(len, plan.records.values()))
        self.held_bytes += size - plan.held_bytes
        plan.held_bytes = size

    def _drop(self, plan: _Plan) -> None:
        """The plan is used or void: what a worker still brings for it is thrown away."""
        self.held_bytes -= plan.held_bytes
        plan.held_bytes = 0
        if plan.fetching:
            plan.needs = None

    def _forget(self) -> None:
        """Drop plans of entries that were applied without them."""
        applied = self._store.applied_index
        for index in [one for one in self._plans if one <= applied]:
            self._drop(self._plans.pop(index))
