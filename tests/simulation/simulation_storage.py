"""What a simulated node keeps: interfaces for its log and its store, and the models that stand in for them.

The world knows only `LogStore` and `StateStore`. A production log or store takes part by implementing them (its files
on a simulated disk); the models below are the smallest thing that can be crashed in all the ways that matter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from raftkv_node.raft import Configuration, Entry, HardState, InitialState


class LogStore(Protocol):
    """A node's durable log: hard state and entries."""

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Write one batch. It is durable only after the next `fence`."""

    def fence(self) -> None:
        """Make durable all that was written."""

    def crash(self, rng: random.Random) -> None:
        """Power is cut: of what was not fenced any part may survive."""

    def recover(self, applied: int, rng: random.Random) -> InitialState:
        """Open again; what is returned is durable. `applied`: what the store has."""

    def read(self, first: int, max_bytes: int) -> tuple[int, list[Entry]]:
        """Return the term of entry first - 1 and entries from `first` on (fetches of a leader)."""

    def durable_term(self, index: int) -> int | None:
        """Term of the entry at `index` that every crash from now on leaves in place; None if there is none."""


class StateStore(Protocol):
    """A node's replicated state."""

    @property
    def applied(self) -> int:
        """Index of the last entry applied."""

    def apply(self, entries: Sequence[Entry]) -> None:
        """Apply committed entries."""

    def commit(self) -> None:
        """Make the applied state durable (a backend commit)."""

    def crash(self) -> None:
        """Fall back to the last commit."""

    def digest(self) -> int:
        """A number that is equal on all nodes that have applied the same."""


class Record(NamedTuple):
    """One record of the model's ring: a hard state or an entry (which truncates what stands at its index and above)."""

    value: HardState | Entry


@dataclass
class ModelLog:
    """A log as a sequence of records at positions (LSNs). Unfenced records may survive a crash in any subset; recovery
    takes the records up to the first hole and forgets what lies behind, for ever."""

    configuration: Configuration
    slots: dict[int, Record] = field(default_factory=dict)
    fenced: int = 0
    end: int = 0
    durable_terms: list[int] = field(default_factory=list)

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        # the hard state first: entries of a term must not be found without it
        values: list[HardState | Entry] = [hard_state] if hard_state is not None else []
        for value in [*values, *entries]:
            self.slots[self.end] = Record(value)
            self.end += 1

    def fence(self) -> None:
        for position in range(self.fenced, self.end):
            value = self.slots[position].value
            if isinstance(value, Entry):
                del self.durable_terms[value.index - 1 :]
                self.durable_terms.append(value.term)
        self.fenced = self.end

    def crash(self, rng: random.Random) -> None:
        keep = rng.random()
        for position in range(self.fenced, self.end):
            if rng.random() > keep:
                del self.slots[position]

    def recover(self, applied: int, rng: random.Random) -> InitialState:
        end = 0
        while end in self.slots:
            end += 1
        self.drop_behind(end)
        self.end = self.fenced = end
        hard_state, entries = self.replay(end)
        self.durable_terms = [entry.term for entry in entries]
        base = rng.choice((0, applied, rng.randint(0, applied)))
        base_term = entries[base - 1].term if base else 0
        index, configuration = 0, self.configuration
        for entry in entries[:base]:
            if entry.type:
                index, configuration = entry.index, Configuration.decode(entry.data)
        return InitialState(hard_state, base, base_term, configuration, index, tuple(entries[base:]), applied)

    def drop_behind(self, end: int) -> None:
        """Forget records behind the end (the ring does it by a new generation)."""
        for position in [position for position in self.slots if position > end]:
            del self.slots[position]

    def replay(self, end: int) -> tuple[HardState, list[Entry]]:
        """Hard state and entries after the records before `end`."""
        hard_state, entries = HardState(), list[Entry]()
        for position in range(end):
            value = self.slots[position].value
            if isinstance(value, Entry):
                del entries[value.index - 1 :]
                entries.append(value)
            else:
                hard_state = value
        return hard_state, entries

    def read(self, first: int, max_bytes: int) -> tuple[int, list[Entry]]:
        _, entries = self.replay(self.end)
        found: list[Entry] = []
        size = 0
        for entry in entries[first - 1 :]:
            size += entry.size_bytes
            if found and size > max_bytes:
                break
            found.append(entry)
        return (entries[first - 2].term if first > 1 else 0), found

    def durable_term(self, index: int) -> int | None:
        """Term at `index` in the fenced part, unless an unfenced record may take it away."""
        if index > len(self.durable_terms):
            return None
        for position in range(self.fenced, self.end):
            record = self.slots.get(position)
            if record is not None and isinstance(record.value, Entry) and record.value.index <= index:
                return None
        return self.durable_terms[index - 1]


@dataclass
class ModelStore:
    """The replicated state as a chained digest and the set of request ids, in memory, and a durable copy of both."""

    applied: int = 0
    chain: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    saved: tuple[int, int, dict[str, int]] = (0, 0, {})

    def apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.applied = entry.index
            self.chain = hash((self.chain, entry.index, entry.term, int.from_bytes(entry.data, "big")))
            if not entry.type:
                for request in entry.data.decode().split("|") if entry.data else ():
                    self.requests[request] = entry.index

    def commit(self) -> None:
        self.saved = (self.applied, self.chain, dict(self.requests))

    def crash(self) -> None:
        self.applied, self.chain, requests = self.saved
        self.requests = dict(requests)

    def digest(self) -> int:
        return self.chain
