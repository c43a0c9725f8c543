"""Reads a slice of history for watchers that are behind.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .encoding import main_of, record_id, record_key, record_numbers
from .errors import StoreError
from .intervals import IntervalMap
from .mvcc import Event, Mvcc, RevisionEvents
from .watchcodec import Encoded, Memo, Variant, select

if TYPE_CHECKING:
    from .store import Store

SLICE_RECORDS = 500
JOB_RECORDS = 5000
"""A job ends at the end of the revision in which it has read so many records."""
JOB_BYTES = 4 << 20


class Want(NamedTuple):
    """What a job is to find for a watcher: everything in [key, end) from `next_revision` on."""

    watcher: Hashable
    key: bytes
    end: bytes | None
    next_revision: int
    variant: Variant


_Interval = tuple[bytes, bytes | None]


class Matcher:
    """Sorts changes, which come in revision order, by who wants them."""

    def __init__(self, wants: Sequence[Want]) -> None:
        self._wants = wants
        self._keys: dict[bytes, _Interval] = {}
        self._ranges: IntervalMap[_Interval] = IntervalMap()
        self._batches: dict[_Interval, list[RevisionEvents]] = {}
        self._with_prev: set[_Interval] = set()
        for want in wants:
            interval = want.key, want.end
            if want.end == want.key + b"\0":
                self._keys[want.key] = interval
            else:
                self._ranges.set(want.key, want.end, interval)
            if want.variant.prev:
                self._with_prev.add(interval)

    def intervals(self, key: bytes) -> list[_Interval]:
        """The wanted intervals that contain a key."""
        found = self._ranges.containing(key) if len(self._ranges) else []
        single = self._keys.get(key)
        if single is not None:
            found.append(single)
        return found

    def wants_prev(self, intervals: list[_Interval]) -> bool:
        """Whether somebody there wants the record before a change."""
        return not self._with_prev.isdisjoint(intervals)

    def add(self, revision: int, event: Event, intervals: list[_Interval]) -> None:
        """Adds a change to the intervals that contain it."""
        for interval in intervals:
            batch = self._batches.setdefault(interval, [])
            if batch and batch[-1][0] == revision:
                batch[-1][1].append(event)
            else:
                batch.append((revision, [event]))

    def found(self) -> dict[Hashable, Encoded]:
        """Encoded events by watcher."""
        found: dict[Hashable, Encoded] = {}
        encoded: dict[tuple[_Interval, Variant], Encoded] = {}
        memo: Memo = {}
        for want in self._wants:
            interval = want.key, want.end
            batch = self._batches.get(interval)
            if not batch:
                continue
            mine = encoded.get((interval, want.variant))
            if mine is None:
                mine = encoded[interval, want.variant] = select(batch, want.variant, memo)
            if mine and mine[0][0] < want.next_revision:
                mine = [item for item in mine if item[0] >= want.next_revision]
            if mine:
                found[want.watcher] = mine
        return found


class ResyncJob:
    """One slice.  `run` in any thread; afterwards `found` holds encoded events by watcher, all up to `through`.

    While the job is open, compaction leaves what it needs alone.
    """

    def __init__(self, store: Store, wants: Sequence[Want], target: int) -> None:
        """`target`: the newest revision to look at, which must be applied."""
        self.wants = wants
        self.first = min(want.next_revision for want in wants)
        self.target = target
        self.through = self.first - 1
        self.found: dict[Hashable, Encoded] = {}
        self.failed: BaseException | None = None
        self.void = False
        """Whether the store was replaced meanwhile: what is found is of no use."""
        self._mvcc: Mvcc = store.mvcc
        self._compacted = store.compact_revision
        self._close = store.pin(max(self.first - 1, self._compacted))

    def close(self) -> None:
        """Lets compaction go on.  May be called more than once."""
        self._close()

    def run(self) -> None:
        """Reads and matches.  A failure is kept in `failed`, for the thread that applies."""
        try:
            self._match(self._read())
        except Exception as error:
            self.failed = error

    def _read(self) -> list[tuple[bytes, bytes]]:
        records: list[tuple[bytes, bytes]] = []
        size = 0
        start, end = record_id(self.first), record_id(self.target + 1)
        while True:
            piece = self._mvcc.backend.scan(start, end, SLICE_RECORDS)
            records += piece
            if len(piece) < SLICE_RECORDS:
                self.through = self.target
                return records
            start = piece[-1][0] + b"\0"
            size += sum(len(item[1]) for item in piece)
            if len(records) >= JOB_RECORDS or size >= JOB_BYTES:
                break
            time.sleep(0)
        # The last revision may have more: finish it.
        self.through = main_of(records[-1][0])
        end = record_id(self.through + 1)
        while piece := self._mvcc.backend.scan(start, end, SLICE_RECORDS):
            records += piece
            start = piece[-1][0] + b"\0"
        return records

    def _match(self, records: list[tuple[bytes, bytes]]) -> None:
        matcher = Matcher(self.wants)
        for at, (rid, data) in enumerate(records):
            key = record_key(data)
            intervals = matcher.intervals(key)
            if intervals:
                event = self._event(rid, key, data, matcher.wants_prev(intervals))
                matcher.add(main_of(rid), event, intervals)
            if not at % SLICE_RECORDS:
                time.sleep(0)
        self.found = matcher.found()

    def _event(self, rid: bytes, key: bytes, data: bytes, prev: bool) -> Event:
        deleted = rid[11] & 1 == 1
        main = main_of(rid)
        created = not deleted and record_numbers(data)[1] == main
        before = self._before(key, main) if prev and not created else None
        return Event(key, data, deleted, created, before)

    def _before(self, key: bytes, main: int) -> bytes | None:
        """The record before the change at `main`; `None` when compaction has made it unreachable."""
        mvcc = self._mvcc
        if main - 1 < self._compacted:
            return None
        with mvcc.lock:
            rid = mvcc.index.before(key, main)
            record = mvcc.hot(key, rid) if rid is not None else None
        if rid is None or record is not None:
            return record
        record = mvcc.backend.read(rid)
        if record is None:
            raise StoreError(f"record {rid.hex()} stands in the index but not in the backend")
        return record
