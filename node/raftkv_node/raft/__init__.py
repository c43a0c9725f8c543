"""Raft consensus as a pure state machine: no clock, no socket, no thread, no randomness that is not handed in.

`Raft` is the whole of it; `docs/raft.md` is its manual: the contract with the caller step by step, the roles, the
messages and the invariants. The sources are the Raft paper (Ongaro and Ousterhout 2014, "the paper" in comments), the
dissertation (Ongaro 2014, "thesis"), and the project's durability (D) and membership (M) contracts.
"""

from .configuration import Configuration, ConfigurationChange, initial_configuration
from .core import InitialState
from .errors import (
    ChangeRefusedError,
    ConfigurationError,
    LostLogError,
    MessageError,
    NotLeaderError,
    ProposalError,
    ProposalPausedError,
    ProposalReason,
    RaftError,
)
from .invariants import Invariant, InvariantViolation, invariant
from .messages import NO_ENTRIES, EntryBlock, Flag, Message, MessageType, decode_message, encode_message
from .progress import ProgressState
from .raft import MemberStatus, Raft, Status
from .reads import ReadFailure, ReadFailureReason, ReadState
from .ready import ConfigurationInForce, FetchRequest, Ready, RejectedProposal, Snapshot, SoftState
from .types import NO_MEMBER, Config, Entry, EntryType, HardState, ProposalRef, Role

__all__ = [
    "NO_ENTRIES",
    "NO_MEMBER",
    "ChangeRefusedError",
    "Config",
    "Configuration",
    "ConfigurationChange",
    "ConfigurationError",
    "ConfigurationInForce",
    "Entry",
    "EntryBlock",
    "EntryType",
    "FetchRequest",
    "Flag",
    "HardState",
    "InitialState",
    "Invariant",
    "InvariantViolation",
    "LostLogError",
    "MemberStatus",
    "Message",
    "MessageError",
    "MessageType",
    "NotLeaderError",
    "ProgressState",
    "ProposalError",
    "ProposalPausedError",
    "ProposalReason",
    "ProposalRef",
    "Raft",
    "RaftError",
    "ReadFailure",
    "ReadFailureReason",
    "ReadState",
    "Ready",
    "RejectedProposal",
    "Role",
    "Snapshot",
    "SoftState",
    "Status",
    "decode_message",
    "encode_message",
    "initial_configuration",
    "invariant",
]
