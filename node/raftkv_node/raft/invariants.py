"""The invariants of the consensus core, by name, and the one function that asserts them.

The names are those of the Raft paper (figure 3 and section 5) and of this project's durability and membership
contracts; `docs/raft.md` explains each, the simulator checks the global ones under the same names. An invariant that
does not hold means a bug or lost data: the node must stop before it tells anyone anything, so the check is an ordinary
`if` (python -O strips `assert`, and these must never be stripped).
"""

from __future__ import annotations

from enum import Enum


class Invariant(Enum):
    """Names of what must always hold; the value is the sentence that a person reads when it does not."""

    ELECTION_SAFETY = "at most one leader is elected in a term"
    TERM_MONOTONIC = "the term of a member never goes back"
    VOTE_ONCE = "a member gives at most one vote in a term"
    LEADER_APPEND_ONLY = "a leader never overwrites or deletes entries of its log"
    LOG_MATCHING = (
        "entries are contiguous, their terms never decrease, equal (term, index) means equal logs up to there"
    )
    LEADER_COMPLETENESS = "a committed entry is in the log of every later leader, so it is never truncated"
    STATE_MACHINE_SAFETY = "entries are applied once, in order, and only when they are committed"
    COMMIT_MONOTONIC = "the commit index never goes back and never passes the last index"
    COMMIT_OWN_TERM = "a leader commits by counting only entries of its own term (section 5.4.2)"
    OWN_MATCH_DURABLE = "D4: a leader counts itself only up to what is durable here"
    MATCH_NEVER_LOWERED = "M15: within a term the match a leader holds for a member never goes down"
    HEARTBEAT_COMMIT_BOUNDED = "M15: a heartbeat's commit is at most the match of its receiver"
    ONE_CHANGE_IN_FLIGHT = "M8: a configuration is appended only when the one before it is committed"
    OWN_TERM_BEFORE_CHANGE = "M8: no configuration is appended before an entry of the leader's own term is committed"
    REMOVED_NEVER_RETURNS = "M4: an id in the removed set never leaves it and is never a member again"
    PERSISTENCE_IN_ORDER = "the caller reports persistence of numbers that were handed out, in order"
    SNAPSHOT_ABOVE_COMMIT = "a snapshot replaces a log only above what the member knows to be committed"
    RELEASED_BELOW_COMMIT = "D14: entries are released only below what is committed and durable"
    WINDOW_BELOW_APPLIED = "entries leave the memory window only when they are applied and durable"


class InvariantViolation(Exception):
    """An invariant does not hold. The node must stop: what it would say next cannot be trusted."""

    def __init__(self, name: Invariant, detail: str) -> None:
        super().__init__(f"{name.name}: {name.value} ({detail})")
        self.name = name
        self.detail = detail


def invariant(name: Invariant, condition: bool, detail: str = "") -> None:
    """Raise `InvariantViolation` unless the condition holds. Hot paths test first and call only to raise."""
    if not condition:
        raise InvariantViolation(name, detail)
