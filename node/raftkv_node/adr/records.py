"""Records, as the log's users make them: `(type, kind, term, index, payload)`.

The log knows four types. An ENTRY at index i supersedes every earlier record with an index not below i; of the others
the last one counts. `kind` is the user's for an entry (its entry type) and names what a mark is about. Who rolls an
entry back that carried a configuration appends the restored CONFIGURATION in the same batch.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Record: TypeAlias = tuple[int, int, int, int, bytes]

ENTRY = 1
HARD_STATE = 2
CONFIGURATION = 3
MARK = 4

#: The log as of here ends at (index, term): written by the log itself at the start of each segment.
MARK_POSITION = 1
#: The log was replaced by a snapshot and goes on behind (index, term).
MARK_SNAPSHOT = 2
#: Kinds from here on are the user's; the last mark of each kind is kept.
MARK_USER = 16

RECORD_HEADER_BYTES = 64
RECORD_ALIGN_BYTES = 64


class StoredEntry(NamedTuple):
    """An entry as it was read back."""

    term: int
    index: int  # type: ignore[assignment]
    kind: int
    payload: bytes


class HardState(NamedTuple):
    """What a member must never forget: its term, whom it voted for in it (0: nobody), and the known commit index."""

    term: int = 0
    vote: int = 0
    commit: int = 0


class Mark(NamedTuple):
    """A mark, or a configuration, as it was last written."""

    term: int
    index: int  # type: ignore[assignment]
    payload: bytes


def entry(term: int, index: int, kind: int, payload: bytes) -> Record:
    return (ENTRY, kind, term, index, payload)


def hard_state(term: int, vote: int, commit: int) -> Record:
    return (HARD_STATE, 0, term, commit, vote.to_bytes(8, "little"))


def configuration(term: int, index: int, payload: bytes) -> Record:
    """The membership as of the entry at `index`, opaque to the log."""
    return (CONFIGURATION, 0, term, index, payload)


def mark(kind: int, term: int, index: int, payload: bytes = b"") -> Record:
    return (MARK, kind, term, index, payload)


def snapshot(term: int, index: int) -> Record:
    """The log is replaced: it is empty now and goes on with `index` + 1."""
    return mark(MARK_SNAPSHOT, term, index)


def record_bytes(payload_bytes: int) -> int:
    """What a record takes in the log."""
    return -(-(RECORD_HEADER_BYTES + payload_bytes) // RECORD_ALIGN_BYTES) * RECORD_ALIGN_BYTES
