"""The multi-version state machine: current revision, index, value cache, and the chunk that is being filled.

`Mvcc` knows how one key changes; what a request means (checks, responses, transactions) is told in `apply` and
`txn`. One revision is open at a time: `begin` names it, each change takes the next sub-revision, `end` closes it
and hands its events to whoever watches.  A revision without a change is not consumed.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, NamedTuple

from .backend import Backend
from .chunk import Chunk
from .encoding import MAX_SUB_REVISION, RECORD_ID, record, tombstone_record, varint
from .errors import StoreError
from .freeing import Lifetime, free_after
from .index import Index
from .keyorder import MERGE_THRESHOLD_KEYS

CACHE_ENTRY_OVERHEAD_BYTES: Final = 200
"""What a cached value costs beside its bytes (object headers, the table, the queue)."""


class Event(NamedTuple):
    """One change of one key, as watchers need it."""

    key: bytes
    record: bytes
    """The encoded `mvccpb.KeyValue`; of a deletion: key and revision only."""
    deleted: bool
    created: bool
    prev: bytes | None
    """The record before the change; `None` when there was none or nobody asked (see `Mvcc.collect_prev`)."""


RevisionEvents = tuple[int, list[Event]]


SLOWLY_FREED_KEYS = 20_000
"""A state of so many keys is not freed at once."""


class Mvcc:
    """See the module's text.  Mutated by one thread; `lock` excludes readers in workers."""

    def __init__(self, backend: Backend, value_cache_bytes: int) -> None:
        self.backend = backend
        self.index = Index()
        self.revision = 1
        self.compact_revision = -1
        self.lock = threading.Lock()
        self.cache: dict[bytes, bytes] = {}
        """Newest records by key, oldest insertions evicted first."""
        self.cache_limit_bytes = value_cache_bytes
        self.cache_bytes = 0
        self._cache_queue: deque[bytes] = deque()
        self.no_chunk = Chunk(0, 0, 2)
        """Stands where no entry is being applied: empty for ever."""
        self.chunk = self.no_chunk
        self.main = 2
        self.sub = 0
        self.collect_events = False
        self.collect_prev = False
        self.events: list[RevisionEvents] = []
        self._open_events: list[Event] = []
        self.puts_total = 0
        self.deletes_total = 0
        self.cache_misses_total = 0
        """Values that had to be read from LMDB by the thread that applies."""
        self.fetched: dict[bytes, bytes] = {}
        """Records by id that were read ahead for the entry being applied (see `ahead`)."""
        self._lifetime = Lifetime()
        self.evicted = False
        """Whether the cache has ever been too small: before, every newest record is in it."""

    def retire(self) -> None:
        """Another state takes this one's place; readers may go on in it. What was large in it is taken apart when the
        last of them has let go, by a thread of its own and in small steps: to free millions of keys at once would stop
        all threads for as long as that takes.
        """
        index = self.index
        if len(index.entries) + len(self.cache) >= SLOWLY_FREED_KEYS:
            tables = (index.entries, self.cache)
            free_after(self._lifetime, tables, (index.live, index.dead))

    # One revision.

    def begin(self) -> None:
        """Opens the next revision."""
        self.main = self.revision + 1
        self.sub = 0

    def end(self) -> int:
        """Closes the open revision, consuming it if anything changed; returns the current revision."""
        if self.sub:
            self.sub = 0
            self.revision = self.main
            if self._open_events:
                self.events.append((self.main, self._open_events))
                self._open_events = []
        return self.revision

    @property
    def read_revision(self) -> int:
        """The revision that a read inside the open revision sees."""
        return self.main if self.sub else self.revision

    def _next_id(self, tombstone: int) -> bytes:
        sub = self.sub
        if sub > MAX_SUB_REVISION:
            raise StoreError("more changes in one revision than the format can number")
        self.sub = sub + 1
        return RECORD_ID.pack(self.main, sub << 1 | tombstone)

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Writes a key in the open revision."""
        rid = self._next_id(0)
        create, version = self.index.put(key, rid, self.main)
        self._store(key, rid, record(key, create, self.main, version, value=value, lease=lease), version == 1)
        self.puts_total += 1

    def put_simple(self, payload: bytes, end: int) -> bytes:
        """A whole revision for a request that `simple_put` recognised; returns the encoded revision.

        The same as `begin`, `put`, `end`, without the detours: nearly every write goes this way.
        """
        main = self.revision + 1
        rid = RECORD_ID.pack(main, 0)
        key = payload[2:end]
        encoded = varint(main)
        index = self.index
        entries = index.entries
        entry = entries.get(key)
        if entry is None:
            entries[key] = (rid, main, 1, None)
            index.live.fresh.add(key)
            data = b"".join((payload[:end], b"\x10", encoded, b"\x18", encoded, b"\x20\x01\x2a", payload[end + 1 :]))
            created = True
        else:
            create, version = index.put(key, rid, main)
            created = version == 1
            data = b"".join(
                (
                    payload[:end],
                    b"\x10",
                    varint(create),
                    b"\x18",
                    encoded,
                    b"\x20",
                    varint(version),
                    b"\x2a",
                    payload[end + 1 :],
                )
            )
        self.puts_total += 1
        if self.collect_events:
            self._store(key, rid, data, created)
            self.events.append((main, self._open_events))
            self._open_events = []
        else:
            cache = self.cache
            old = cache.get(key)
            cache[key] = data
            if old is None:
                self._cache_queue.append(key)
                self.cache_bytes += len(data) + CACHE_ENTRY_OVERHEAD_BYTES
            else:
                self.cache_bytes += len(data) - len(old)
            chunk = self.chunk
            chunk.records[rid] = data
            chunk.record_bytes += len(data)
        self.revision = main
        return encoded

    def _store(self, key: bytes, rid: bytes, data: bytes, created: bool) -> None:
        """Puts a live record where it belongs: event, cache, chunk."""
        cache = self.cache
        old = cache.get(key)
        if self.collect_events:
            prev = None
            if self.collect_prev and not created:
                prev = old if old is not None else self._read_before_newest(key)
            self._open_events.append(Event(key, data, False, created, prev))
        cache[key] = data
        if old is None:
            self._cache_queue.append(key)
            self.cache_bytes += len(data) + CACHE_ENTRY_OVERHEAD_BYTES
        else:
            self.cache_bytes += len(data) - len(old)
        self.chunk.records[rid] = data
        self.chunk.record_bytes += len(data)

    def delete(self, key: bytes) -> None:
        """Deletes a live key in the open revision."""
        rid = self._next_id(1)
        data = tombstone_record(key, self.main)
        prev = None
        if self.collect_events and self.collect_prev:
            prev = self.newest(key)
        self.index.delete(key, rid)
        old = self.cache.pop(key, None)
        if old is not None:
            # Its place in the queue stays behind; eviction passes over it.
            self.cache_bytes -= len(old) + CACHE_ENTRY_OVERHEAD_BYTES
        if self.collect_events:
            self._open_events.append(Event(key, data, True, False, prev))
        self.chunk.records[rid] = data
        self.chunk.record_bytes += len(data)
        self.deletes_total += 1

    def settle(self) -> None:
        """After a batch: the cache is brought back under its limit, and many new keys into order."""
        self.evict()
        for order in (self.index.live, self.index.dead):
            if len(order.fresh) >= MERGE_THRESHOLD_KEYS:
                order.merge()

    def evict(self) -> None:
        """Brings the cache back under its limit."""
        queue, cache = self._cache_queue, self.cache
        if self.cache_bytes > self.cache_limit_bytes:
            self.evicted = True
        while self.cache_bytes > self.cache_limit_bytes and queue:
            old = cache.pop(queue.popleft(), None)
            if old is not None:
                self.cache_bytes -= len(old) + CACHE_ENTRY_OVERHEAD_BYTES
        if len(queue) > 2 * len(cache) + 1024:
            self._cache_queue = deque(cache)

    def warm(self, key: bytes, data: bytes | None) -> None:
        """Caches (or, with `None`, forgets) a record while the store is opened."""
        old = self.cache.pop(key, None)
        if old is not None:
            self.cache_bytes -= len(old) + CACHE_ENTRY_OVERHEAD_BYTES
        if data is not None:
            self.cache[key] = data
            self._cache_queue.append(key)
            self.cache_bytes += len(data) + CACHE_ENTRY_OVERHEAD_BYTES

    # Reading, by the thread that applies.

    def newest(self, key: bytes) -> bytes | None:
        """The current record of a key, or `None`."""
        found = self.cache.get(key)
        if found is not None:
            return found
        entry = self.index.entries.get(key)
        if entry is None or not entry[2]:
            return None
        return self.read(entry[0])

    def _read_before_newest(self, key: bytes) -> bytes | None:
        history = self.index.entries[key][3]
        return self.read(bytes(history[-12:])) if history else None

    def read(self, rid: bytes) -> bytes:
        """A record by id: from the chunk being filled, what was fetched ahead, the queue or LMDB.

        `StoreError` when it is not there.
        """
        found = self.chunk.records.get(rid) or self.fetched.get(rid)
        if found is None:
            found = self.backend.read(rid)
            self.cache_misses_total += 1
            if found is None:
                raise StoreError(f"record {rid.hex()} stands in the index but not in the backend")
        return found

    def hot(self, key: bytes, rid: bytes) -> bytes | None:
        """A record if it is in memory and newest; needs `lock` in a worker."""
        found = self.cache.get(key)
        if found is not None and self.index.entries[key][0] == rid:
            return found
        return None
