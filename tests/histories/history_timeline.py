"""The key space at every revision: the model of the store's tests, so kept that 100,000 revisions fit."""

from __future__ import annotations

from bisect import bisect_right

from raftkv_node.pb.kv_pb2 import KeyValue
from store_model import Model, State

_Change = tuple[str, KeyValue, KeyValue | None]


class _Past:
    """States by revision: the newest at hand, others made from the versions of each key."""

    def __init__(self) -> None:
        self.newest: State = {}
        self.length = 2
        self.versions: dict[bytes, tuple[list[int], list[KeyValue | None]]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, revision: int) -> State:
        if revision in (-1, self.length - 1):
            return self.newest
        state: State = {}
        for key, (revisions, values) in self.versions.items():
            place = bisect_right(revisions, revision)
            found = values[place - 1] if place else None
            if found is not None:
                state[key] = found
        return state

    def record(self, state: State, changes: list[_Change]) -> None:
        """The state after one more revision."""
        for kind, kv, _ in changes:
            revisions, values = self.versions.setdefault(kv.key, ([], []))
            revisions.append(self.length)
            values.append(kv if kind == "put" else None)
        self.newest = state
        self.length += 1

    def undo(self, changes: list[_Change]) -> None:
        """The state before the newest revision."""
        for _, kv, old in changes:
            for column in self.versions[kv.key]:
                column.pop()
            if old is None:
                del self.newest[kv.key]
            else:
                self.newest[kv.key] = old
        self.length -= 1


class Timeline(Model):
    """The model; `changes[r]` are the changes of revision r. Compactions are left to the checker."""

    def __init__(self) -> None:
        super().__init__()
        self._past = _Past()
        self.history = self._past  # type: ignore[assignment]

    def _end(self) -> None:
        if self.open_changes:
            self._past.record(self.open, self.open_changes)
            self.changes.append(self.open_changes)

    def undo(self) -> None:
        """Takes the newest revision back."""
        self._past.undo(self.changes.pop())

    @property
    def newest(self) -> State:
        """The state at the newest revision; not to be changed."""
        return self._past.newest
