"""What the core asks of its caller, and what it tells: the output of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .configuration import Configuration
from .errors import ProposalReason
from .messages import Message
from .reads import ReadFailure, ReadState
from .types import Entry, HardState, Role


class SoftState(NamedTuple):
    """What is worth telling but not worth keeping."""

    role: Role
    leader_id: int
    term: int
    transferee: int


class FetchRequest(NamedTuple):
    """The leader needs entries from `first` on, at most `max_bytes` but at least one, that left its memory.

    Answer with `Raft.provide_entries(peer, first, term of entry first - 1, entries)`, or `Raft.fetch_failed(peer)`.
    """

    peer: int
    first: int
    max_bytes: int


class RejectedProposal(NamedTuple):
    """A forwarded proposal that the leader refused; it is certainly not in the log."""

    context: bytes
    reason: ProposalReason


class ConfigurationInForce(NamedTuple):
    """The configuration that decisions use from now on: the last in the log, committed or not (M8)."""

    index: int  # type: ignore[assignment]  # the field hides tuple.index
    configuration: Configuration


class Ready(NamedTuple):
    """One turn's output. Readys are worked off in order; `docs/raft.md` has the contract step by step.

    1. Persist `hard_state` and `entries`, in one batch; entries replace whatever stands at their first index and above.
       `must_sync` says whether anything here must be durable (a hard state that differs only in `commit` may be written
       lazily, and needs no flush).
    2. Send `messages` at any time, best before the flush.
    3. When this and all earlier Readys are durable: call `Raft.persisted(number)`, send `messages_after_persist`.
       (Nothing is to be waited for if nothing is outstanding and `must_sync` is false; then that list is empty.)
    4. Apply `committed_entries` in order, call `Raft.applied(last index)`.
    """

    number: int
    must_sync: bool
    hard_state: HardState | None
    entries: Sequence[Entry]
    messages: Sequence[Message]
    messages_after_persist: Sequence[Message]
    committed_entries: Sequence[Entry]
    read_states: Sequence[ReadState]
    read_failures: Sequence[ReadFailure]
    rejected_proposals: Sequence[RejectedProposal]
    fetch_requests: Sequence[FetchRequest]
    soft_state: SoftState | None
    configuration: ConfigurationInForce | None
