"""The small values that the core takes and gives: entries, hard state, roles, configuration of one member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, final

from mypy_extensions import mypyc_attr

NO_MEMBER: Final = 0
"""The id that no member has: no vote given, no leader known."""

ENTRY_OVERHEAD_BYTES: Final = 16
"""Counted for each entry beside its data, so that a flood of empty entries meets the limits, too."""


@mypyc_attr(acyclic=True)
class Value:
    """What is never changed once it is made: equal, and hashed, by its fields.

    A named tuple would say the same in a line, but is made by interpreted code and read through descriptors, also
    where the module is compiled (`docs/decisions/0007-compiled-turn.md`). *Acyclic*: no field leads back to the value,
    so that the garbage collector never looks at one.
    """

    __slots__ = ()

    def fields(self) -> tuple[object, ...]:
        """All fields, in the order in which the constructor takes them."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and type(self) is type(other) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash(self.fields())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.fields()!r}"


class EntryType(IntEnum):
    """What an entry's data is. New types are proposed only when the cluster version allows (D16)."""

    NORMAL = 0
    CONFIG = 1


CONFIG: Final = int(EntryType.CONFIG)
"""`EntryType.CONFIG` for comparisons: the lookup of an enumeration's member costs more than the rest of them."""


@final
@mypyc_attr(acyclic=True)
class Entry(Value):
    """One entry of the log. NORMAL data is opaque (a whole batch of client requests); empty data is a leader's no-op.

    CONFIG data is an encoded, complete `Configuration`.
    """

    __slots__ = ("data", "index", "size_bytes", "term", "type")

    def __init__(self, term: int, index: int, type: int, data: bytes) -> None:
        self.term: Final = term
        self.index: Final = index
        self.type: Final = type
        self.data: Final = data
        self.size_bytes: Final = len(data) + ENTRY_OVERHEAD_BYTES
        """What the entry counts against limits."""

    def fields(self) -> tuple[object, ...]:
        return self.term, self.index, self.type, self.data


@final
@mypyc_attr(acyclic=True)
class HardState(Value):
    """What must survive a crash (D5). `commit` saves work at restart; only term and vote carry safety."""

    __slots__ = ("commit", "term", "vote")

    def __init__(self, term: int = 0, vote: int = NO_MEMBER, commit: int = 0) -> None:
        self.term: Final = term
        self.vote: Final = vote
        self.commit: Final = commit

    def fields(self) -> tuple[object, ...]:
        return self.term, self.vote, self.commit


class Role(IntEnum):
    """Role in consensus. A learner or standby is always FOLLOWER here; see the configuration for its kind."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


LEADER: Final = Role.LEADER
"""For comparisons, as `CONFIG`."""


@final
@mypyc_attr(acyclic=True)
class ProposalRef(Value):
    """Where a proposal stands in the log. It is committed if an entry of this term is applied at this index, and lost
    for ever if an entry of another term is."""

    __slots__ = ("index", "term")

    def __init__(self, term: int, index: int) -> None:
        self.term: Final = term
        self.index: Final = index

    def fields(self) -> tuple[object, ...]:
        return self.term, self.index


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one member, fixed while it runs.

    Ticks are the caller's unit of time (say 100 ms). `random(low, high)` returns an integer in [low, high]; it is the
    only randomness of the core, so that one seed replays a whole cluster.
    """

    id: int
    random: Callable[[int, int], int]
    election_ticks: int = 10
    """A follower that hears nothing for this long (plus a random part of up to as much again) campaigns."""
    heartbeat_ticks: int = 1
    """A leader sends heartbeats this often. At most a third of `election_ticks` is sensible."""
    max_append_bytes: int = 1 << 20
    """Entries per append message; one entry that is larger goes alone."""
    max_inflight_messages: int = 256
    """Append messages on the way to one member before an answer; at the limit entries wait for an answer."""
    max_inflight_bytes: int = 32 << 20
    """Bytes of entries on the way to one member; at the limit entries wait for an answer."""
    max_uncommitted_bytes: int = 64 << 20
    """Proposals beyond are refused with UNCOMMITTED_LIMIT (one always passes when nothing is uncommitted)."""
    max_apply_bytes: int = 4 << 20
    """Committed entries per Ready; the next Ready goes on. At least one entry is given."""
    max_pending_reads: int = 65536
    """Reads waiting for confirmation; beyond, a read fails at once with OVERLOADED."""
    pre_vote: bool = True
    """Ask before raising the term, so that a member that was cut off does not depose a live leader (thesis 9.6)."""
    check_quorum: bool = True
    """A leader that a quorum has not answered for `election_ticks` steps down; members ignore vote requests while they
    hear a leader (thesis 6.2, 4.2.3)."""
    apply_before_durable: bool = False
    """Whether committed entries may be applied before they are durable *here* (they are durable on a quorum). If so,
    the caller itself keeps backend commits at or below `Raft.durable_index` (D14)."""
    lazy_commit: bool = False
    """Whether a commit index that no append carries anyway waits for the next one, or for `Raft.tell_commit`. Members
    that want it at once (`Raft.eager`) get it at once; a commit of a configuration is always told."""

    def __post_init__(self) -> None:
        if not 0 < self.id < 1 << 64:
            raise ValueError(f"member id {self.id} is not in 1..2^64-1")
        if self.heartbeat_ticks < 1 or self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("election_ticks must be greater than heartbeat_ticks, and both positive")
        for name in ("max_append_bytes", "max_inflight_messages", "max_inflight_bytes", "max_uncommitted_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive")
        if self.max_apply_bytes < 1 or self.max_pending_reads < 1:
            raise ValueError("max_apply_bytes and max_pending_reads must be positive")
