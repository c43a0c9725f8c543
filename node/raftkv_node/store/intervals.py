"""Which of many key intervals contain a key.

All starts and ends cut the key space into pieces; where intervals overlap little (as prefixes do), a table says for
each piece which intervals cover it, and a query is one bisection.  Where they overlap so much that the table would
be large, a sorted array serves instead, seen as a balanced search tree by start, each node with the greatest end
below it: a query visits only subtrees that can hold an answer.

Either is made anew when asked after a change, since watches come and go far less often than keys change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V", bound=Hashable)

_End = tuple[bool, bytes]

PIECES_PER_INTERVAL = 8
"""The table of pieces is given up when its entries are more than this many for each interval, and `PIECES_AT_LEAST`."""
PIECES_AT_LEAST = 1000


class IntervalMap(Generic[V]):
    """Distinct values by half-open key interval; an end of `None` is unbounded."""

    __slots__ = ("_ends", "_items", "_max_ends", "_pieces", "_points", "_starts", "_values")

    def __init__(self) -> None:
        self._items: dict[tuple[bytes, bytes | None], V] = {}
        self._starts: list[bytes] | None = None
        self._ends: list[_End] = []
        self._max_ends: list[_End] = []
        self._values: list[V] = []
        self._points: list[bytes] = []
        self._pieces: list[tuple[V, ...]] | None = None
        """What covers the keys from each point to the next; `None` where the tree serves."""

    def __len__(self) -> int:
        return len(self._items)

    def get(self, start: bytes, end: bytes | None) -> V | None:
        """The value of exactly this interval."""
        return self._items.get((start, end))

    def values(self) -> list[V]:
        """All values."""
        return list(self._items.values())

    def set(self, start: bytes, end: bytes | None, value: V) -> None:
        """Sets the value of an interval."""
        self._items[start, end] = value
        self._starts = None

    def remove(self, start: bytes, end: bytes | None) -> None:
        """Forgets an interval that is there."""
        del self._items[start, end]
        self._starts = None

    def containing(self, key: bytes) -> list[V]:
        """The values of all intervals that contain `key`, in no particular order."""
        if self._starts is None:
            self._build()
        if self._pieces is not None:
            at = bisect_right(self._points, key)
            return list(self._pieces[at - 1]) if at else []
        starts = self._starts
        assert starts is not None
        ends, max_ends, values = self._ends, self._max_ends, self._values
        wanted = (False, key)
        found = []
        todo = [(0, len(starts))]
        while todo:
            low, high = todo.pop()
            if low >= high:
                continue
            middle = (low + high) // 2
            if max_ends[middle] <= wanted:
                continue
            todo.append((low, middle))
            if starts[middle] <= key:
                if ends[middle] > wanted:
                    found.append(values[middle])
                todo.append((middle + 1, high))
        return found

    def _build(self) -> None:
        ordered = sorted(self._items.items(), key=lambda item: item[0][0])
        self._starts = [interval[0] for interval, _ in ordered]
        self._ends = [(end is None, end or b"") for (_, end), _ in ordered]
        self._values = [value for _, value in ordered]
        self._pieces = self._cut()
        if self._pieces is not None:
            return
        self._max_ends = list(self._ends)
        self._raise_ends(0, len(ordered))

    def _cut(self) -> list[tuple[V, ...]] | None:
        """The table of pieces, or `None` when it would be large."""
        opening: dict[bytes, list[V]] = {}
        closing: dict[bytes, list[V]] = {}
        for (start, end), value in self._items.items():
            if end is None or start < end:
                opening.setdefault(start, []).append(value)
                if end is not None:
                    closing.setdefault(end, []).append(value)
        self._points = sorted(opening.keys() | closing.keys())
        most = max(PIECES_AT_LEAST, PIECES_PER_INTERVAL * len(self._items))
        open_values: dict[V, None] = {}
        pieces: list[tuple[V, ...]] = []
        total = 0
        for point in self._points:
            for value in closing.get(point, ()):
                del open_values[value]
            open_values.update(dict.fromkeys(opening.get(point, ())))
            total += len(open_values)
            if total > most:
                return None
            pieces.append(tuple(open_values))
        return pieces

    def _raise_ends(self, low: int, high: int) -> _End:
        """Sets the greatest end of each subtree; recursion is as deep as the tree is high."""
        if low >= high:
            return (False, b"")
        middle = (low + high) // 2
        greatest = max(self._ends[middle], self._raise_ends(low, middle), self._raise_ends(middle + 1, high))
        self._max_ends[middle] = greatest
        return greatest
