"""Consensus and its log in the turn: what the core asks for is persisted, sent and applied in the order of D4.

With a ring an append is durable when it returns, so one turn does it all: append with one fence, send what promised
durability, apply. In disk mode the append is handed to the log's flusher; votes and acknowledgements wait for the
flush that covers them, and turns go on meanwhile. A hard state that differs only in its commit index waits for the next
append (it saves work at a restart, no more).

Old entries that a slow member needs are read on a worker and handed back to the turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from queue import Full
from time import monotonic
from typing import Final, NamedTuple

from raftkv_node._engine import RingFull
from raftkv_node.adr import PRESSURE_FULL, Log, Record, Recovered, Refusal, Refused, records
from raftkv_node.raft import (
    Config,
    Configuration,
    Entry,
    FetchRequest,
    InitialState,
    Message,
    Raft,
    Ready,
    Snapshot,
)
from raftkv_node.raft import HardState as RaftHardState
from raftkv_node.raft.messages import APPEND, APPEND_RESPONSE, VOTE_RESPONSE
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.workers import Workers
from raftkv_node.store.store import Store

WINDOW_BYTES: Final = 16 << 20
"""Entries kept in memory for members that lag a little; more lag is served from the log's files."""
WINDOW_ENTRIES: Final = 20_000
"""The same bound in entries."""
COMPACT_EVERY_ENTRIES: Final = 1_000


class EntriesGone(Exception):
    """Old entries that a member needs are not in the log any more."""


class Fetched(NamedTuple):
    """Old entries for a member, read on a worker."""

    request: FetchRequest
    previous_term: int
    entries: list[Entry]


class Replica:
    """Drives the consensus core against log and peers."""

    def __init__(
        self,
        raft: Raft,
        log: Log,
        send: Callable[[Sequence[Message]], None],
        workers: Workers,
        metrics: Metrics,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self.raft = raft
        self.log = log
        self._send = send
        self._flush = flush
        self._workers = workers
        self._metrics = metrics
        self._lazy_hard_state: RaftHardState | None = None
        self._written_commit = raft.commit_index
        self._unflushed: deque[tuple[int, int, Sequence[Message]]] = deque()
        self._fetched: deque[Fetched | int] = deque()
        self._blocked: tuple[Ready, list[Record]] | None = None
        self._restoring: tuple[int, Snapshot] | None = None
        self.restored: Snapshot | None = None
        """A snapshot that has replaced the log, durably: the store is to take it over."""
        self.committed: deque[tuple[Entry, float]] = deque()
        """Entries to apply, in order, and when they were known to be committed."""
        self.append_began = self.durable_at = 0.0
        """When the latest append began, and when the latest Ready became durable."""
        self.acknowledged_index = 0
        """Highest index of the own log that another member has acknowledged."""
        self.receipts: dict[int, tuple[int, int]] = {}
        """By member the newest (term, index) that it has promised since its last hello: it was durable there (M5)."""

    # -- input --------------------------------------------------------------------------------------------------------

    def step(self, messages: Sequence[Message]) -> None:
        """Give the core the messages of this turn; remember whose acknowledgement completed a quorum."""
        raft = self.raft
        full: bool | None = None  # asked once, and only where it matters
        for message in messages:
            if message.type == APPEND_RESPONSE:
                before = raft.commit_index
                raft.step(message)
                if not message.reject:
                    self._note_receipt(message)
                    self.acknowledged_index = max(self.acknowledged_index, message.index)
                if raft.commit_index != before:
                    completed = self._metrics.quorum_completed
                    completed[message.sender] = completed.get(message.sender, 0) + 1
            else:
                if message.type == APPEND and message.entries.items:
                    if full is None:
                        full = self.log.pressure() >= PRESSURE_FULL
                    if full:
                        continue
                raft.step(message)
                if message.type == VOTE_RESPONSE and not message.reject:
                    self._note_receipt(message)

    def _note_receipt(self, message: Message) -> None:
        """A promise was received: its sender had it durably."""
        term, index = message.term, message.index
        known = self.receipts.get(message.sender)
        if known is None or term > known[0] or (term == known[0] and index > known[1]):
            self.receipts[message.sender] = (term, index)

    # -- output -------------------------------------------------------------------------------------------------------

    def advance(self) -> list[Ready]:
        """Work off what the core has to say; returns it for what concerns others (reads, configuration, leader)."""
        if self._fetched:
            self._take_fetched()
        if self._unflushed:
            self._take_flushed()
        raft = self.raft
        taken: list[Ready] = []
        while (self._blocked is None or self._unblock()) and raft.has_ready():
            ready = raft.ready()
            taken.append(ready)
            if ready.messages:
                self._send(ready.messages)
                if ready.entries:
                    self._flush()  # the others append while this one does
            if ready.snapshot is not None:
                # what was to be applied is in it; what follows waits for it
                self.committed.clear()
                self._restoring = (ready.number, ready.snapshot)
            if ready.committed_entries:
                now = monotonic()
                self.committed.extend([(entry, now) for entry in ready.committed_entries])
            for request in ready.fetch_requests:
                self._fetch(request)
            self._persist(ready)
        return taken

    def _persist(self, ready: Ready) -> bool:
        """Step 1 and 3 of the core's contract. False: the buffer is full; the rest waits until more is drained."""
        if ready.hard_state is not None:
            self._lazy_hard_state = ready.hard_state
        if not ready.must_sync and not ready.configuration:
            self._after(ready)
            return True
        batch = []
        if self._lazy_hard_state is not None:
            wanted = self._lazy_hard_state
            self._written_commit = ready.commit_in_front(wanted.commit, self._written_commit)
            batch.append(records.hard_state(wanted.term, wanted.vote, self._written_commit))
            if self._written_commit == wanted.commit:
                self._lazy_hard_state = None
        if ready.snapshot is not None:
            batch.append(records.snapshot(ready.snapshot.term, ready.snapshot.index))
        batch += [records.entry(one.term, one.index, one.type, one.data) for one in ready.entries]
        if ready.configuration is not None:
            index, configuration = ready.configuration
            batch.append(records.configuration(max(0, self.raft.term_at(index)), index, configuration.encode()))
        return self._write(ready, batch)

    def _write(self, ready: Ready, batch: list[Record]) -> bool:
        """Append the records, in parts where they are more than the buffer has room for: what a crash leaves of them is
        a shorter log that promised nothing."""
        self.append_began = monotonic()
        try:
            lsn = self.log.append(batch)
            self._metrics.append.add(monotonic() - self.append_began)
        except RingFull:
            number = self._fitting(batch)
            if number == len(batch) or not self._append_part(batch[:number]):
                number = 0
            self._blocked = (ready, batch[number:])
            return False
        self._after(ready, lsn)
        return True

    def _append_part(self, part: list[Record]) -> bool:
        try:
            self.log.append(part)
        except RingFull:
            return False
        return True

    def _fitting(self, batch: list[Record]) -> int:
        """How many records to try, at least one: half of the room, since a record does not wrap around the end."""
        room = self.log.headroom() // 2
        for number, record in enumerate(batch):
            room -= records.record_bytes(len(record[4]))
            if room < 0:
                return max(1, number)
        return len(batch)

    def _unblock(self) -> bool:
        """Go on with a write that found the buffer full; whether nothing is in the way any more."""
        if self._blocked is None:
            return True
        (ready, batch), self._blocked = self._blocked, None
        return self._write(ready, batch)

    @property
    def blocked(self) -> bool:
        """Whether the buffer is full: nothing is taken from the core until more is drained."""
        return self._blocked is not None

    def _after(self, ready: Ready, lsn: int = 0) -> None:
        """Send what promises durability, once it holds; report it to the core."""
        if not self._unflushed and (lsn == 0 or self.log.durable_lsn >= lsn):
            self._durable(ready.number, ready.messages_after_persist)
        else:
            self._unflushed.append((lsn, ready.number, ready.messages_after_persist))

    def _take_flushed(self) -> None:
        durable = self.log.durable_lsn
        while self._unflushed and self._unflushed[0][0] <= durable:
            _, number, messages = self._unflushed.popleft()
            self._durable(number, messages)

    def _durable(self, number: int, messages: Sequence[Message]) -> None:
        self.durable_at = monotonic()
        if messages:
            self._send(messages)
        self.raft.persisted(number)
        if self._restoring is not None and number >= self._restoring[0]:
            self.restored, self._restoring = self._restoring[1], None

    @property
    def installing(self) -> bool:
        """Whether a snapshot has replaced the log, and not yet the store: nothing is applied meanwhile."""
        return self._restoring is not None or self.restored is not None

    def store_replaced(self) -> None:
        """The store has taken the snapshot over."""
        assert self.restored is not None
        self.raft.applied(self.restored.index)
        self.restored = None

    # -- applied ------------------------------------------------------------------------------------------------------

    def applied(self, index: int) -> None:
        """Report entries as applied; forget old ones in memory now and then."""
        raft = self.raft
        raft.applied(index)
        base = raft.window_base_index
        if index - base > WINDOW_ENTRIES + COMPACT_EVERY_ENTRIES:
            raft.compact(index - WINDOW_ENTRIES)
        elif raft.window_bytes > WINDOW_BYTES and index - base > 1:
            raft.compact(base + (index - base + 1) // 2)

    # -- old entries --------------------------------------------------------------------------------------------------

    def _fetch(self, request: FetchRequest) -> None:
        def read() -> None:
            try:
                self._fetched.append(self._read(request))
            except Exception:
                self._fetched.append(request.peer)
                raise

        try:
            self._workers.submit(read)
        except Full:
            self._fetched.append(request.peer)

    def _read(self, request: FetchRequest) -> Fetched:
        first = request.first
        previous_term = self.log.term(first - 1) or 0 if first > 1 else 0
        if first > 1 and not previous_term:
            raise EntriesGone(f"entry {first - 1} is not in the log any more")
        stored = self.log.read_entries(first, self.log.last_index + 1, request.max_bytes)
        entries = [Entry(one.term, one.index, one.kind, one.payload) for one in stored]
        if not entries:
            raise EntriesGone(f"entry {first} is not in the log")
        return Fetched(request, previous_term, entries)

    def _take_fetched(self) -> None:
        while self._fetched:
            one = self._fetched.popleft()
            if isinstance(one, Fetched):
                self.raft.provide_entries(one.request.peer, one.request.first, one.previous_term, one.entries)
            else:
                self.raft.fetch_failed(one)


def initial_state(recovered: Recovered, log: Log, store: Store, founding: Configuration) -> InitialState:
    """What the core starts from: the entries above what the backend holds, and the configuration that it has applied.

    Raises :class:`Refused` (*corrupt*) where the log does not reach down to the backend, or ends below it (D15).
    """
    base_index, base_term = store.applied_index, store.applied_term
    last = recovered.last_index
    entries = [Entry(one.term, one.index, one.kind, one.payload) for one in recovered.entries if one.index > base_index]
    missing_to = entries[0].index if entries else last + 1
    while missing_to > base_index + 1:
        stored = log.read_entries(base_index + 1, missing_to, 1 << 62)
        if not stored:
            break
        entries = [Entry(one.term, one.index, one.kind, one.payload) for one in stored] + entries
        missing_to = entries[0].index
    if base_index > last or [one.index for one in entries] != list(range(base_index + 1, last + 1)):
        raise Refused(
            Refusal.CORRUPT,
            f"the backend has applied entry {base_index}, but the log holds {recovered.first_index} to {last}",
        )
    if store.configuration:
        index, configuration = store.configuration_index, Configuration.decode(store.configuration)
    else:
        index, configuration = 0, founding
    hard_state = recovered.hard_state
    return InitialState(
        hard_state=RaftHardState(hard_state.term, hard_state.vote, hard_state.commit),
        base_index=base_index,
        base_term=base_term,
        base_configuration=configuration,
        base_configuration_index=index,
        entries=entries,
        applied=base_index,
    )


def raft_config(
    member_id: int,
    election_ticks: int,
    pre_vote: bool,
    random: Callable[[int, int], int],
) -> Config:
    """The core's settings for a node. Entries may be applied before their own flush: the backend commits behind it."""
    return Config(
        id=member_id,
        random=random,
        election_ticks=election_ticks,
        pre_vote=pre_vote,
        apply_before_durable=True,
        lazy_commit=True,
    )
