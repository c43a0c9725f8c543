"""Bugs that others have made, planted one at a time: a simulation that does not find them proves nothing.

Each is a small change of a small method of the production core, of the turn, or of the log.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from raftkv_node.raft import (
    Configuration,
    ConfigurationChange,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    ProposalRef,
    Raft,
    Ready,
)
from simulation_node import SimNode
from simulation_setup import Setup, changes, churn, crashes, freezes, mixed
from simulation_storage import ModelLog
from simulation_world import World


class OwnCountBeforeDurable(Raft):
    """The leader counts itself as soon as it has appended (etcd 14370)."""

    def _append_as_leader(self, kind: EntryType, data: bytes) -> ProposalRef:
        ref = super()._append_as_leader(kind, data)
        self._progress[self.id].set_own_match(self._log.last_index)
        self._maybe_commit()
        return ref

    def _update_own_match(self) -> None:
        self._maybe_commit()


class PriorTermCommit(Raft):
    """Entries of earlier terms are committed by counting (figure 8)."""

    def _maybe_commit(self) -> None:
        index = self._agreed_index()
        if index > self._log.committed:
            self._advance_commit(index)
            self._flush_needed = True
            self._after_commit()


class VoteWithoutLogCheck(Raft):
    """Votes are given to anyone."""

    def _log_is_up_to_date(self, log_term: int, index: int) -> bool:
        return True


class ChangeWithoutOwnTermCommit(Raft):
    """A new leader changes the configuration before it has committed anything."""

    def _change_has_own_term(self) -> bool:
        return True

    def _change_in_flight(self) -> bool:
        return False


class TwoChangesInFlight(Raft):
    """A change is taken on top of one that is not committed, whatever it was decided on (raft issue 80)."""

    def propose_configuration(self, change: ConfigurationChange, decided_at_index: int) -> ProposalRef:
        return super().propose_configuration(change, self.configuration_index)

    def _change_in_flight(self) -> bool:
        return False


class ReusedReadContext(Raft):
    """All reads wait for the same round, so old answers confirm new reads (raft issue 397)."""

    def _next_read_round(self) -> int:
        return 1


class ResentForward(Raft):
    """A leader takes a forwarded proposal as often as it arrives."""

    def _seen_forward(self, message: Message) -> bool:
        return False


class AcknowledgeBeforeFence(SimNode):
    """Votes and acknowledgements leave before what they promise is durable."""

    def persist(self, ready: Ready) -> None:
        self.send(ready.messages_after_persist)
        ready.messages_after_persist = ()
        super().persist(ready)


class VoteBeforeFence(SimNode):
    """Only votes and vote requests leave too early."""

    def persist(self, ready: Ready) -> None:
        votes = (MessageType.VOTE, MessageType.VOTE_RESPONSE)
        self.send([message for message in ready.messages_after_persist if message.type in votes])
        rest = [message for message in ready.messages_after_persist if message.type not in votes]
        ready.messages_after_persist = rest
        super().persist(ready)


@dataclass
class StaleRecordsBehindTail(ModelLog):
    """Records behind a dropped tail stay, and are found again when the gap before them is filled."""

    def drop_behind(self, end: int) -> None:
        return


@dataclass
class LostHardState(ModelLog):
    """Recovery finds the entries, but not the vote, and no term beyond that of the last entry."""

    lost: bool = field(default=True)

    def replay(self, end: int) -> tuple[HardState, list[Entry]]:
        hard_state, entries = super().replay(end)
        return HardState(entries[-1].term if entries else 0, 0, hard_state.commit), entries


@dataclass(frozen=True)
class Planted:
    """One bug, where it sits, and the rules that may tell of it."""

    name: str
    found_by: frozenset[str]
    raft: Callable[..., Raft] = Raft
    node: type[SimNode] = SimNode
    log: Callable[[Configuration], ModelLog] = ModelLog
    shape: Callable[[random.Random], Setup] = mixed

    def world(self, seed: int) -> World:
        setup = self.shape(random.Random(seed))
        return World(seed, setup, raft_class=self.raft, node_class=self.node, log_class=self.log)


def planted(name: str, *found_by: str, **where: object) -> Planted:
    return replace(Planted(name, frozenset(found_by)), **where)  # type: ignore[arg-type]


BUGS = [
    planted("own count before durable", "COMMITTED_ON_QUORUM", raft=OwnCountBeforeDurable, shape=crashes),
    planted("prior-term commit", "COMMIT_OWN_TERM", raft=PriorTermCommit, shape=churn),
    planted("vote without the log check", "LEADER_COMPLETENESS", raft=VoteWithoutLogCheck, shape=churn),
    planted(
        "acknowledgement before the fence",
        "COMMITTED_ON_QUORUM",
        "M15_LOST_LOG",
        "ELECTION_SAFETY",
        node=AcknowledgeBeforeFence,
    ),
    planted("vote before the fence", "VOTE_ONCE", "ELECTION_SAFETY", node=VoteBeforeFence),
    planted(
        "stale records behind a dropped tail",
        "LOG_MATCHING",
        "TERM_MONOTONIC",
        log=StaleRecordsBehindTail,
        shape=crashes,
    ),
    planted("lost HardState", "VOTE_ONCE", "TERM_MONOTONIC", log=LostHardState, shape=churn),
    planted(
        "change without an own-term commit", "OWN_TERM_BEFORE_CHANGE", raft=ChangeWithoutOwnTermCommit, shape=changes
    ),
    planted("two changes in flight", "ONE_CHANGE_IN_FLIGHT", raft=TwoChangesInFlight, shape=changes),
    planted("reused read context", "LINEARIZABLE_READ", raft=ReusedReadContext, shape=freezes),
    planted("doubled forwarded proposal", "M16_APPLIED_ONCE", raft=ResentForward),
]
