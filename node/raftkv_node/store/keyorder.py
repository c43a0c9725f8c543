"""A sorted set of keys for many insertions and few, but large, range reads.

Keys are kept in sorted chunks, with the first key of each chunk in a table beside them, so that a position is found
by two bisections.  New keys wait in an unordered set and are merged when somebody asks for an order, or when
`MERGE_THRESHOLD_KEYS` of them have gathered (whoever adds them sees to that), a chunk at a time: inserting is then
about as cheap as adding to a set, and asking never pays for more than a bounded number of merges.  Ranks (how many keys
lie in an interval) come from the running total of chunk lengths, which is rebuilt when asked for after a change: one
addition for each ~1,000 keys.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from itertools import accumulate, chain, islice
from typing import Final

CHUNK_KEYS: Final = 1024
"""A chunk is split at twice this length."""
MERGE_THRESHOLD_KEYS: Final = 1024
SORTED_AT_ONCE_KEYS: Final = 20_000
"""More keys are sorted in parts. A sort is one call that lets no other thread run, and the index of a snapshot that is
being installed is built beside the turn."""


def parts_in_order(keys: Iterable[bytes]) -> list[list[bytes]]:
    """The keys in parts that follow each other in byte order, none of them sorted yet; of many, each part is small."""
    given = list(keys)
    if len(given) <= SORTED_AT_ONCE_KEYS:
        return [given]
    # Keys between two of a sample belong together. Parts are half as large as they may be, for a sample errs.
    sample = sorted(given[:: max(1, len(given) // SORTED_AT_ONCE_KEYS)])
    borders = sample[:: max(1, len(sample) * SORTED_AT_ONCE_KEYS // (2 * len(given)))]
    parts: list[list[bytes]] = [[] for _ in range(len(borders) + 1)]
    for key in given:
        parts[bisect_right(borders, key)].append(key)
    return parts


class KeyOrder:
    """A set of keys in byte order.  An end of `None` means unbounded.  Not safe for concurrent use."""

    __slots__ = ("_chunks", "_firsts", "_ranks", "fresh")

    def __init__(self) -> None:
        self._chunks: list[list[bytes]] = []
        self._firsts: list[bytes] = []
        self.fresh: set[bytes] = set()
        """Keys that wait to be merged.  The hot path adds new keys here by itself; they must not be in the set
        already.
        """
        self._ranks: list[int] | None = None

    def __len__(self) -> int:
        return self._totals()[-1] + len(self.fresh)

    def add(self, key: bytes) -> None:
        """Adds a key that is not in the set."""
        self.fresh.add(key)

    def remove(self, key: bytes) -> None:
        """Removes a key that is in the set."""
        if key in self.fresh:
            self.fresh.remove(key)
            return
        at = bisect_right(self._firsts, key) - 1
        chunk = self._chunks[at] if at >= 0 else []
        position = bisect_left(chunk, key)
        if position == len(chunk) or chunk[position] != key:
            raise KeyError(key)
        del chunk[position]
        self._ranks = None
        if not chunk:
            del self._chunks[at], self._firsts[at]
        elif position == 0:
            self._firsts[at] = chunk[0]

    def build(self, keys: Iterable[bytes]) -> None:
        """Replaces the whole set."""
        ordered = chain.from_iterable(map(sorted, parts_in_order(keys)))
        self._chunks = list(iter(lambda: list(islice(ordered, CHUNK_KEYS)), []))
        self._firsts = [chunk[0] for chunk in self._chunks]
        self.fresh.clear()
        self._ranks = None

    def take_apart(self) -> None:
        """Empty it a chunk at a time; it must not be in use any more."""
        while self._chunks:
            self._chunks.pop()
        self._firsts = []

    def merge(self) -> None:
        """Brings waiting keys into order."""
        if not self.fresh:
            return
        keys = sorted(self.fresh)
        self.fresh.clear()
        self._ranks = None
        if not self._chunks:
            self.build(keys)
            return
        chunks, firsts = self._chunks, self._firsts
        position, count = 0, len(keys)
        while position < count:
            at = max(bisect_right(firsts, keys[position]) - 1, 0)
            end = bisect_left(keys, firsts[at + 1], position) if at + 1 < len(firsts) else count
            chunk = chunks[at]
            if end - position < 24:
                for key in keys[position:end]:
                    insort(chunk, key)
            else:
                chunk += keys[position:end]
                chunk.sort()
            firsts[at] = chunk[0]
            if len(chunk) >= 2 * CHUNK_KEYS:
                pieces = [chunk[i : i + CHUNK_KEYS] for i in range(0, len(chunk), CHUNK_KEYS)]
                chunks[at : at + 1] = pieces
                firsts[at : at + 1] = [piece[0] for piece in pieces]
            position = end

    def count(self, start: bytes, end: bytes | None) -> int:
        """How many keys are in [start, end)."""
        self.merge()
        if end is None:
            return max(self._totals()[-1] - self._rank(start), 0)
        return max(self._rank(end) - self._rank(start), 0)

    def slice(self, start: bytes, end: bytes | None, limit: int = 0) -> list[bytes]:
        """The keys in [start, end), in order; the first `limit` of them when that is not 0."""
        self.merge()
        chunks = self._chunks
        if not chunks or (end is not None and end <= start):
            return []
        at = max(bisect_right(self._firsts, start) - 1, 0)
        low = bisect_left(chunks[at], start)
        found: list[bytes] = []
        while at < len(chunks):
            chunk = chunks[at]
            last = end is not None and chunk[-1] >= end
            high = bisect_left(chunk, end) if last and end is not None else len(chunk)
            if limit and len(found) + high - low >= limit:
                found += chunk[low : low + limit - len(found)]
                return found
            found += chunk[low:high]
            if last:
                break
            at += 1
            low = 0
        return found

    def _rank(self, key: bytes) -> int:
        at = bisect_right(self._firsts, key) - 1
        if at < 0:
            return 0
        return self._totals()[at] + bisect_left(self._chunks[at], key)

    def _totals(self) -> list[int]:
        if self._ranks is None:
            self._ranks = list(accumulate(map(len, self._chunks), initial=0))
        return self._ranks
