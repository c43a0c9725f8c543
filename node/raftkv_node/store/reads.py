"""Reads outside of apply, at a fixed revision: at once when all is in memory, else on a worker.

The thread that applies answers small reads whose values are cached.  Everything else (values on disk, history,
large results) becomes a `ColdRead`: its revision is pinned, so it may run at any time in any thread.  It takes the
store's lock only to read the index, `SLICE_KEYS` keys at a time, and lets other threads run in between.  While a
revision is pinned, compaction forgets nothing that a read at it needs.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue

from .encoding import field, main_of
from .txn import Path, check_ranges, range_in_path, txn_response

if TYPE_CHECKING:
    from .mvcc import Mvcc

SLICE_KEYS = 2000
"""Keys looked up in one go by a worker: about half a millisecond."""
INLINE_KEYS = 512
INLINE_BYTES = 1 << 20
"""More than that is not answered on the turn, even from memory."""


class Pins:
    """Revisions that reads in progress need.  Only `release` may be called outside the thread that applies."""

    __slots__ = ("_counts", "_released")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._released: deque[int] = deque()

    def add(self, revision: int) -> None:
        """Compaction keeps what reads at `revision` need, until it is released as often as it was added."""
        self._counts[revision] = self._counts.get(revision, 0) + 1

    def release(self, revision: int) -> None:
        """Takes one `add` back.  Lock-free, so that a finaliser may call it anywhere."""
        self._released.append(revision)

    def lowest(self) -> int | None:
        """The lowest revision still needed."""
        while self._released:
            revision = self._released.popleft()
            left = self._counts[revision] - 1
            if left:
                self._counts[revision] = left
            else:
                del self._counts[revision]
        return min(self._counts, default=None)

    def __len__(self) -> int:
        return sum(self._counts.values()) - len(self._released)


def rows_at(
    mvcc: Mvcc, key: bytes, end: bytes | None, revision: int, limit: int
) -> tuple[list[tuple[bytes, bytes]], int]:
    """(key, record id) of [key, end) at a revision, cut to `limit`, and the total.  Needs the lock in a worker."""
    index = mvcc.index
    if end == key + b"\0":
        rid = index.at(key, revision)
        return ([], 0) if rid is None else ([(key, rid)], 1)
    if revision >= mvcc.read_revision:
        entries = index.entries
        keys = index.live.slice(key, end, limit)
        total = index.live.count(key, end) if limit and len(keys) == limit else len(keys)
        return [(k, entries[k][0]) for k in keys], total
    found = index.select(index.candidates(key, end, 0), revision)
    return [(k, rid) for k, rid, _ in (found[:limit] if limit else found)], len(found)


class Rows(NamedTuple):
    """A stretch of the key space at a revision, as far as memory knows it."""

    keys: list[bytes]
    """Those that exist there, in order."""
    records: list[bytes | None]
    """Theirs; `None` for what the backend has to tell."""
    missing: list[bytes]
    """The record ids of those, in order."""
    last: bytes | None
    """The last key looked at, where there may be more."""

    def cut(self, limit: int) -> Rows:
        """The first `limit` of them, which is at least 1; there are more if that is not all."""
        if len(self.keys) <= limit:
            return self
        keys, records = self.keys[:limit], self.records[:limit]
        return Rows(keys, records, self.missing[: records.count(None)], keys[-1])

    def filled(self, found: list[bytes]) -> list[bytes]:
        """The records with what the backend had; as many as it told of, from the first on."""
        if not self.missing:
            return cast(list[bytes], self.records)
        values = iter(found)
        records: list[bytes] = []
        for record in self.records:
            if record is None and (record := next(values, None)) is None:
                break
            records.append(record)
        return records


def look_up(mvcc: Mvcc, start: bytes, end: bytes | None, revision: int, keys_wanted: int) -> Rows:
    """The next `keys_wanted` keys of [start, end) at a revision; fewer may exist there.  Needs the lock in a worker."""
    index, cached = mvcc.index, mvcc.cache.get
    if revision >= mvcc.read_revision:
        # Nothing was written since: what lives is what is asked for, and what is cached is its record.
        keys = index.live.slice(start, end, keys_wanted)
        looked_at, records = keys, list(map(cached, keys))
        entries = index.entries
        gone = [key for key, one in zip(keys, records, strict=True) if one is None] if None in records else []
        missing = [entries[key][0] for key in gone]
    else:
        looked_at = index.candidates(start, end, keys_wanted)
        rows = index.select(looked_at, revision)
        keys = [row[0] for row in rows]
        records = [cached(key) if newest else None for key, _, newest in rows]
        missing = [row[1] for row, one in zip(rows, records, strict=True) if one is None]
    return Rows(keys, records, missing, looked_at[-1] if len(looked_at) == keys_wanted else None)


class ApplyView:
    """The state as the thread that applies sees it, open revision included.  Misses read LMDB at once, and are
    counted.
    """

    __slots__ = ("_mvcc",)

    def __init__(self, mvcc: Mvcc) -> None:
        self._mvcc = mvcc

    @property
    def read_revision(self) -> int:
        return self._mvcc.read_revision

    def rows(self, key: bytes, end: bytes | None, revision: int, limit: int) -> tuple[list[bytes], int]:
        mvcc = self._mvcc
        pairs, total = rows_at(mvcc, key, end, revision, limit)
        return [mvcc.hot(k, rid) or mvcc.read(rid) for k, rid in pairs], total

    def count(self, key: bytes, end: bytes | None, revision: int) -> int:
        if revision >= self._mvcc.read_revision:
            return self._mvcc.index.live.count(key, end)
        return rows_at(self._mvcc, key, end, revision, 0)[1]

    def numbers(self, key: bytes) -> tuple[int, int, int] | None:
        entry = self._mvcc.index.entries.get(key)
        if entry is None or not entry[2]:
            return None
        return entry[1], main_of(entry[0]), entry[2]


class PinnedView:
    """The state at one revision, for workers."""

    __slots__ = ("_mvcc", "_revision", "_totals")

    def __init__(self, mvcc: Mvcc, revision: int) -> None:
        self._mvcc = mvcc
        self._revision = revision
        self._totals: dict[tuple[bytes, bytes | None], int] = {}

    def remember_total(self, key: bytes, end: bytes | None, total: int) -> None:
        """How many keys [key, end) has at this revision, known beforehand: a limited read need not count them again."""
        self._totals[key, end] = total

    @property
    def read_revision(self) -> int:
        return self._revision

    def rows(self, key: bytes, end: bytes | None, revision: int, limit: int) -> tuple[list[bytes], int]:
        mvcc = self._mvcc
        if key + b"\0" == end:
            with mvcc.lock:
                rid = mvcc.index.at(key, revision)
                hot = mvcc.hot(key, rid) if rid is not None else None
            return ([], 0) if rid is None else ([hot or mvcc.backend.read_some([rid])[0]], 1)
        known = self._known(key, end, revision)
        records: list[bytes] = []
        total = 0
        start: bytes | None = key
        while start is not None:
            if known is not None and limit and len(records) >= limit:
                return records, known
            with mvcc.lock:
                rows = look_up(mvcc, start, end, revision, SLICE_KEYS)
            total += len(rows.keys)
            start = rows.last + b"\0" if rows.last is not None else None
            if not limit or len(records) < limit:  # otherwise the rest is only counted
                if limit:
                    rows = rows.cut(limit - len(records))
                records += rows.filled(mvcc.backend.read_some(rows.missing))
            time.sleep(0)
        return records, total

    def count(self, key: bytes, end: bytes | None, revision: int) -> int:
        mvcc = self._mvcc
        known = self._known(key, end, revision)
        if known is not None:
            return known
        total = 0
        start: bytes | None = key
        while start is not None:
            with mvcc.lock:
                keys = mvcc.index.candidates(start, end, SLICE_KEYS)
                total += len(mvcc.index.select(keys, revision))
            start = keys[-1] + b"\0" if len(keys) == SLICE_KEYS else None
            time.sleep(0)
        return total

    def _known(self, key: bytes, end: bytes | None, revision: int) -> int | None:
        return self._totals.get((key, end)) if revision == self._revision else None

    def numbers(self, key: bytes) -> tuple[int, int, int] | None:
        records, _ = self.rows(key, key + b"\0", self._revision, 1)
        if not records:
            return None
        kv = KeyValue.FromString(records[0])
        return kv.create_revision, kv.mod_revision, kv.version


class ColdRead:
    """A read that a worker has to do.  Call `run` once, in any thread, or `close`."""

    __slots__ = ("_closed", "_pins", "_revision", "_work")

    def __init__(self, pins: Pins, revision: int, work: Callable[[], bytes]) -> None:
        self._pins = pins
        self._revision = revision
        self._work = work
        self._closed = False
        pins.add(revision)

    def run(self) -> bytes:
        """The encoded response.  Raises `EtcdError` as an answer, `StoreError` when the store failed."""
        try:
            return self._work()
        finally:
            self.close()

    def close(self) -> None:
        """Gives the pinned revision free; the read is abandoned if it has not run."""
        if not self._closed:
            self._closed = True
            self._pins.release(self._revision)

    def __del__(self) -> None:
        self.close()


def read_only_txn(request: rpc_pb2.TxnRequest, header: bytes, view: PinnedView, compacted: int) -> bytes:
    """The encoded answer to a transaction of ranges."""
    path = Path(request, view)
    check_ranges(path, view.read_revision, compacted)
    responses = [field(b"\x0a", range_in_path(op.request_range, view, compacted)) for op in path.ops]
    return txn_response(header, path.succeeded, responses)
