"""Errors of the consensus core that a caller is expected to handle."""

from __future__ import annotations

from enum import IntEnum


class RaftError(Exception):
    """Base of the errors below (an `InvariantViolation` is not one: nothing can handle it)."""


class ProposalReason(IntEnum):
    """Why a proposal was refused. The numbers travel in PROPOSE_REJECTED messages: append, never renumber."""

    NOT_LEADER = 1
    NO_LEADER = 2
    TRANSFERRING = 3
    UNCOMMITTED_LIMIT = 4
    TOO_LARGE = 5
    CHANGE_IN_FLIGHT = 6
    NO_OWN_TERM_COMMIT = 7
    STALE_CONFIGURATION = 8
    DEAD_QUORUM = 9
    INVALID_CHANGE = 10


class ProposalError(RaftError):
    """A proposal was refused and is certainly not in the log: the client may retry it safely."""

    def __init__(self, reason: ProposalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class NotLeaderError(ProposalError):
    """This member does not lead. `leader_id` is the one that does, or 0 when none is known."""

    def __init__(self, leader_id: int) -> None:
        known = f"member {leader_id:x} leads" if leader_id else "no leader is known"
        super().__init__(ProposalReason.NOT_LEADER if leader_id else ProposalReason.NO_LEADER, known)
        self.leader_id = leader_id


class ProposalPausedError(ProposalError):
    """The leader takes no proposal at the moment: a transfer runs, or too much is uncommitted."""


class ChangeRefusedError(ProposalError):
    """A configuration change was refused by M8 or M9, or makes no sense; `reason` says which."""


class ConfigurationError(RaftError):
    """A configuration is malformed, of an unknown version, or a change to one is impossible."""


class MessageError(RaftError):
    """Bytes are not a message of this protocol version."""


class LostLogError(RaftError):
    """M15, *proven lost*: the leader holds a durable acknowledgement of this member for entries it does not have.

    The member must never vote or acknowledge again; the node exits with the code of *proven lost*.
    """

    def __init__(self, leader_id: int, term: int, match: int, durable_index: int) -> None:
        super().__init__(
            f"leader {leader_id:x} of term {term} holds index {match} as durable here, "
            f"but the log ends at {durable_index}"
        )
        self.leader_id = leader_id
        self.term = term
        self.match = match
        self.durable_index = durable_index
