"""The in-memory index: which record holds a key at a revision.

For each key a plain tuple says what its newest record is::

    (record id, create revision, version, history)

`history` is `None` or a byte array of the older record ids, 12 bytes each, oldest first; as ids order bytewise, it
is searched by bisection.  Tuples of plain values and byte arrays are not tracked by Python's garbage collector, so
a million keys do not turn every collection into a pause.  A deleted key keeps its entry (its newest record is a
tombstone) until compaction drops it.

Two ordered sets stand beside the table: `live` keys, which answer the present, and `dead` ones (deleted, not yet
compacted), which history needs as well.  `versioned` holds the keys that compaction may have work with: those with
history or a tombstone.
"""

from __future__ import annotations

from heapq import merge

from .encoding import RECORD_ID_BYTES, main_of, record_id
from .keyorder import KeyOrder

Entry = tuple[bytes, int, int, bytearray | None]

_N = RECORD_ID_BYTES


def _visible(history: bytes | bytearray, revision: int) -> int:
    """How many ids of `history` have a main revision of at most `revision`."""
    bound = record_id(revision + 1)
    low, high = 0, len(history) // _N
    while low < high:
        middle = (low + high) // 2
        if history[middle * _N : middle * _N + _N] < bound:
            low = middle + 1
        else:
            high = middle
    return low


class Index:
    """See the module's text.  All methods belong to one thread at a time."""

    __slots__ = ("dead", "entries", "live", "versioned")

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.live = KeyOrder()
        self.dead = KeyOrder()
        self.versioned: set[bytes] = set()

    def put(self, key: bytes, rid: bytes, main: int) -> tuple[int, int]:
        """Records `key` as written by record `rid` of revision `main`; returns its (create revision, version)."""
        entry = self.entries.get(key)
        if entry is None:
            self.entries[key] = (rid, main, 1, None)
            self.live.add(key)
            return main, 1
        old, create, version, history = entry
        if version:
            version += 1
        else:
            create, version = main, 1
            self.dead.remove(key)
            self.live.add(key)
        if history is None:
            history = bytearray(old)
            self.versioned.add(key)
        else:
            history += old
        self.entries[key] = (rid, create, version, history)
        return create, version

    def delete(self, key: bytes, rid: bytes) -> None:
        """Records that the live `key` was deleted by tombstone `rid`."""
        old, _, _, history = self.entries[key]
        if history is None:
            history = bytearray(old)
            self.versioned.add(key)
        else:
            history += old
        self.entries[key] = (rid, 0, 0, history)
        self.live.remove(key)
        self.dead.add(key)

    def restore(self, key: bytes, rid: bytes, create: int, version: int) -> None:
        """Adds a record in revision order while a store is opened (version 0: a tombstone).  The orders are made at
        the end.
        """
        entry = self.entries.get(key)
        history = None
        if entry is not None:
            history = entry[3]
            if history is None:
                history = bytearray(entry[0])
            else:
                history += entry[0]
        if not version or history is not None:
            self.versioned.add(key)
        self.entries[key] = (rid, create, version, history)

    def at(self, key: bytes, revision: int) -> bytes | None:
        """The id of the record that `key` has at `revision`, or `None` when it is absent there."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        rid, _, version, history = entry
        if main_of(rid) <= revision:
            return rid if version else None
        if history is None:
            return None
        position = _visible(history, revision)
        if not position:
            return None
        rid = bytes(history[(position - 1) * _N : position * _N])
        return None if rid[11] & 1 else rid

    def before(self, key: bytes, main: int) -> bytes | None:
        """The id of the record that `key` had before the changes of revision `main`, or `None`."""
        return self.at(key, main - 1)

    def kept_at(self, key: bytes, compact: int) -> bytes | None:
        """The one record of at most revision `compact` that a compaction there keeps of `key`, or `None`."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        rid, _, _, history = entry
        if main_of(rid) > compact:
            if history is None:
                return None
            position = _visible(history, compact)
            if not position:
                return None
            rid = bytes(history[(position - 1) * _N : position * _N])
        return None if rid[11] & 1 and main_of(rid) < compact else rid

    def candidates(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """The first `limit` (0: all) keys in [start, end), live or dead, in order."""
        live = self.live.slice(start, end, limit)
        dead = self.dead.slice(start, end, limit)
        if not dead:
            return live
        keys = list(merge(live, dead))
        return keys[:limit] if limit else keys

    def select(self, keys: list[bytes], revision: int) -> list[tuple[bytes, bytes, bool]]:
        """(key, record id, whether that is the newest) for those of `keys` that exist at `revision`."""
        entries = self.entries
        bound = record_id(revision + 1)
        found = []
        for key in keys:
            entry = entries[key]
            rid = entry[0]
            if rid < bound:
                if entry[2]:
                    found.append((key, rid, True))
            elif entry[3] is not None:
                past = self.at(key, revision)
                if past is not None:
                    found.append((key, past, False))
        return found

    def compact_key(self, key: bytes, compact: int) -> list[bytes]:
        """Forgets the records of `key` that a compaction at `compact` makes unreachable, and returns their ids.

        The newest record of at most `compact` stays, unless it is a tombstone older than `compact`.  A tombstone of
        exactly that revision stays: a watch may still start there.
        """
        entry = self.entries.get(key)
        if entry is None:
            return []
        latest, create, version, history = entry
        ids = bytes(history or b"") + latest
        kept = _visible(ids, compact) - 1
        if kept >= 0:
            rid = ids[kept * _N : kept * _N + _N]
            if rid[11] & 1 and main_of(rid) < compact:
                kept += 1
        kept = max(kept, 0)
        if kept * _N == len(ids):
            del self.entries[key]
            self.dead.remove(key)
        else:
            rest = bytearray(ids[kept * _N : -_N])
            self.entries[key] = (latest, create, version, rest or None)
            if rest or not version:
                self.versioned.add(key)
        return [ids[i : i + _N] for i in range(0, kept * _N, _N)]
