"""Which of many key intervals contain a key.

A sorted array of distinct intervals, seen as a balanced search tree by start, each node with the greatest end below
it: a query visits only subtrees that can hold an answer.  The tree is made anew when asked after a change, since
watches come and go far less often than keys change.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V", bound=Hashable)

_End = tuple[bool, bytes]


class IntervalMap(Generic[V]):
    """Values by half-open key interval; an end of `None` is unbounded."""

    __slots__ = ("_ends", "_items", "_max_ends", "_starts", "_values")

    def __init__(self) -> None:
        self._items: dict[tuple[bytes, bytes | None], V] = {}
        self._starts: list[bytes] | None = None
        self._ends: list[_End] = []
        self._max_ends: list[_End] = []
        self._values: list[V] = []

    def __len__(self) -> int:
        return len(self._items)

    def get(self, start: bytes, end: bytes | None) -> V | None:
        """The value of exactly this interval."""
        return self._items.get((start, end))

    def set(self, start: bytes, end: bytes | None, value: V) -> None:
        """Sets the value of an interval."""
        self._items[start, end] = value
        self._starts = None

    def remove(self, start: bytes, end: bytes | None) -> None:
        """Forgets an interval that is there."""
        del self._items[start, end]
        self._starts = None

    def containing(self, key: bytes) -> list[V]:
        """The values of all intervals that contain `key`."""
        if self._starts is None:
            self._build()
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
        self._max_ends = list(self._ends)
        self._raise_ends(0, len(ordered))

    def _raise_ends(self, low: int, high: int) -> _End:
        """Sets the greatest end of each subtree; recursion is as deep as the tree is high."""
        if low >= high:
            return (False, b"")
        middle = (low + high) // 2
        greatest = max(self._ends[middle], self._raise_ends(low, middle), self._raise_ends(middle + 1, high))
        self._max_ends[middle] = greatest
        return greatest
