"""What the core asks of its caller, and what it tells: the output of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from mypy_extensions import mypyc_attr

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


class Snapshot(NamedTuple):
    """A state of the whole group after the entry (term, index), and the configuration in force there: complete, with
    every id that was ever removed (M4). What the state machine holds travels beside the core."""

    index: int  # type: ignore[assignment]  # the field hides tuple.index
    term: int
    configuration_index: int
    configuration: Configuration


class RejectedProposal(NamedTuple):
    """A forwarded proposal that the leader refused; it is certainly not in the log."""

    context: bytes
    reason: ProposalReason


class ConfigurationInForce(NamedTuple):
    """The configuration that decisions use from now on: the last in the log, committed or not (M8)."""

    index: int  # type: ignore[assignment]  # the field hides tuple.index
    configuration: Configuration


@final
@mypyc_attr(acyclic=True)
class Ready:
    """One turn's output. Readys are worked off in order; `docs/raft.md` has the contract step by step.

    1. Persist `hard_state` and `entries`, in one batch; entries replace whatever stands at their first index and above.
       Of a batch that a crash cuts off the front may survive alone: the commit index that stands there must not reach
       into what the rest replaces (`commit_in_front`). The whole one is for the next batch.
       `must_sync` says whether anything here must be durable (a hard state that differs only in `commit` may be written
       lazily, and needs no flush).
    2. Send `messages` at any time, best before the flush.
    3. When this and all earlier Readys are durable: call `Raft.persisted(number)`, send `messages_after_persist`.
       (Nothing is to be waited for if nothing is outstanding and `must_sync` is false; then that list is empty.)
    4. Apply `committed_entries` in order, call `Raft.applied(last index)`.

    `snapshot`: the log is replaced by it. In step 1 it goes into the same batch, behind the hard state and before
    `entries`; once that is durable the caller puts the snapshot's state in the place of its own, and calls
    `Raft.applied(snapshot.index)` before it applies anything else.
    `snapshot_requests`: members that need what is no longer in the log (`Raft.snapshot_started`, `snapshot_failed`).
    `snapshot_messages`: SNAPSHOT and SNAPSHOT_RESPONSE messages that the core lets through, for the caller's transfers.
    """

    __slots__ = (
        "committed_entries",
        "configuration",
        "entries",
        "fetch_requests",
        "hard_state",
        "messages",
        "messages_after_persist",
        "must_sync",
        "number",
        "read_failures",
        "read_states",
        "rejected_proposals",
        "snapshot",
        "snapshot_messages",
        "snapshot_requests",
        "soft_state",
    )

    def __init__(
        self,
        number: int,
        must_sync: bool,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        messages: Sequence[Message],
        messages_after_persist: Sequence[Message],
        committed_entries: Sequence[Entry],
    ) -> None:
        self.number = number
        self.must_sync = must_sync
        self.hard_state = hard_state
        self.entries = entries
        self.messages = messages
        self.messages_after_persist = messages_after_persist
        self.committed_entries = committed_entries
        # what most turns have nothing of; the core sets it before it hands the Ready out
        self.read_states: Sequence[ReadState] = ()
        self.read_failures: Sequence[ReadFailure] = ()
        self.rejected_proposals: Sequence[RejectedProposal] = ()
        self.fetch_requests: Sequence[FetchRequest] = ()
        self.soft_state: SoftState | None = None
        self.configuration: ConfigurationInForce | None = None
        self.snapshot: Snapshot | None = None
        self.snapshot_requests: Sequence[int] = ()
        self.snapshot_messages: Sequence[Message] = ()

    def commit_in_front(self, commit: int, written: int) -> int:
        """The highest commit index, up to `commit`, that may stand in front of this batch's entries or snapshot.

        Without them the log may hold entries of an older term at their places, which `commit` would declare committed.
        `written`: what stands in the log already.
        """
        if self.snapshot is not None:
            return min(commit, written)
        return min(commit, self.entries[0].index - 1) if self.entries else commit
