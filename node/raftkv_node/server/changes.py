"""Changes of the configuration on the leader: proposing them, waiting for them, and the leader's own changes of roles.

A change answers when the configuration that carries it is committed and, for a change of voters, no longer joint. It is
lost when another leader's entry stands in its place, or this member no longer leads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raftkv_node.raft import (
    ChangeRefusedError,
    Configuration,
    ConfigurationChange,
    ConfigurationError,
    MemberStatus,
    NotLeaderError,
    ProposalError,
    ProposalReason,
    ProposalRef,
    Raft,
)
from raftkv_node.server.members import attributes, role_settings
from raftkv_node.server.roles import Candidate, wished_voters
from raftkv_node.store.errors import (
    FAILED_PRECONDITION,
    LEADER_CHANGED,
    NO_LEADER,
    NOT_ENOUGH_STARTED_MEMBERS,
    TIMEOUT,
    TOO_MANY_REQUESTS,
    UNHEALTHY,
    EtcdError,
)

ABORTED = 10
MAX_LAG_ENTRIES = 100
"""M12: a member this many entries behind, or fewer, has caught up, if it has in time as well."""

Done = Callable[[EtcdError | None, int], None]
"""Called with None and the index of the committed configuration, or with the error."""


@dataclass(slots=True)
class _Waiting:
    ref: ProposalRef
    deadline: float
    done: Done


def refusal(error: ProposalError | ConfigurationError) -> EtcdError:
    """How a refused change is answered: etcd's text where etcd has the case."""
    if isinstance(error, ConfigurationError):
        return EtcdError(FAILED_PRECONDITION, f"etcdserver: {error}")
    if isinstance(error, NotLeaderError):
        return LEADER_CHANGED if error.leader_id else NO_LEADER
    match error.reason:
        case ProposalReason.STALE_CONFIGURATION:
            return EtcdError(ABORTED, f"raftkv: {error.detail}")
        case ProposalReason.DEAD_QUORUM:
            return NOT_ENOUGH_STARTED_MEMBERS
        case ProposalReason.UNCOMMITTED_LIMIT:
            return TOO_MANY_REQUESTS
        case ProposalReason.INVALID_CHANGE:
            return EtcdError(FAILED_PRECONDITION, f"raftkv: {error.detail}")
        case ProposalReason.TRANSFERRING:
            return LEADER_CHANGED
        case _:
            return UNHEALTHY


def is_caught_up(status: MemberStatus | None, election_ticks: int) -> bool:
    """M12, as the leader sees a member: few entries behind, and not long ago it had all."""
    return (
        status is not None
        and status.entries_behind <= MAX_LAG_ENTRIES
        and status.ticks_behind is not None
        and status.ticks_behind <= election_ticks
    )


class Changes:
    """Changes that wait for their commit, and the leader's decision about roles."""

    def __init__(self, raft: Raft, tick_seconds: float, timeout_seconds: float) -> None:
        self._raft = raft
        self._tick_seconds = tick_seconds
        self._timeout = timeout_seconds
        self._waiting: list[_Waiting] = []
        self._last_swap = float("-inf")
        self._leading_since = 0.0

    def began_to_lead(self, now: float) -> None:
        """This member was elected: silence of the others counts from here."""
        self._leading_since = now

    @property
    def changing(self) -> bool:
        """A later configuration is in the log than the committed one, or the voters are joint."""
        raft = self._raft
        return raft.configuration_index > raft.committed_configuration[0] or raft.configuration.joint

    def propose(self, change: ConfigurationChange, decided_at_index: int, now: float, done: Done) -> None:
        """Propose a change; ``done`` is called now with a refusal, or later with its fate."""
        try:
            ref = self._raft.propose_configuration(change, decided_at_index)
        except (ProposalError, ChangeRefusedError) as error:
            done(refusal(error), 0)
            return
        self._waiting.append(_Waiting(ref, now + self._timeout, done))

    def settle(self, now: float) -> None:
        """Answer changes whose fate is known."""
        if not self._waiting:
            return
        raft = self._raft
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            index, committed = raft.committed_configuration
            if index >= one.ref.index and not committed.joint:
                term = raft.term_at(one.ref.index)
                one.done(None if term in (-1, one.ref.term) else LEADER_CHANGED, index)
            elif raft.term != one.ref.term or not raft.is_leader:
                one.done(LEADER_CHANGED, 0)
            elif now >= one.deadline:
                one.done(TIMEOUT, 0)
            else:
                self._waiting.append(one)

    def abandon(self, error: EtcdError) -> None:
        """End all that waits."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.done(error, 0)

    # -- roles --------------------------------------------------------------------------------------------------------

    def adjust_roles(self, now: float, done: Done) -> frozenset[int] | None:
        """Leader only: propose the voters that are wished now, if they are others; returns them."""
        raft = self._raft
        if not raft.is_leader or self.changing or self._waiting:
            return None
        configuration = raft.configuration
        wanted = role_settings(configuration.settings)
        states = raft.status().members
        candidates = self._candidates(configuration, states, now)
        voters = wished_voters(wanted, candidates, raft.id, now - self._last_swap)
        if voters is None:
            voters = self._wished_by_hand(configuration, states)
            if voters is None:
                return None
        lost = configuration.voters - voters - wanted.leaving
        if lost and len(voters) >= len(configuration.voters):
            self._last_swap = now
        self.propose(ConfigurationChange(voters=voters), raft.configuration_index, now, done)
        return voters

    def _wished_by_hand(
        self, configuration: Configuration, states: Mapping[int, MemberStatus]
    ) -> frozenset[int] | None:
        """Members that were added by hand as voters join the voters once they have caught up."""
        ticks = self._raft.config.election_ticks
        ready = [
            one
            for one in sorted(configuration.learners)
            if attributes(configuration.members[one]).voter_wished and is_caught_up(states.get(one), ticks)
        ]
        return configuration.voters | {ready[0]} if ready else None

    def _candidates(
        self, configuration: Configuration, states: Mapping[int, MemberStatus], now: float
    ) -> list[Candidate]:
        raft = self._raft
        candidates = []
        for one in sorted(configuration.ids):
            status = states.get(one)
            silent = now - self._leading_since
            if status is not None and status.answered_ticks_ago is not None:
                silent = status.answered_ticks_ago * self._tick_seconds
            candidates.append(
                Candidate(
                    member_id=one,
                    number=attributes(configuration.members[one]).number,
                    voter=configuration.is_voter(one),
                    caught_up=is_caught_up(status, raft.config.election_ticks),
                    silent_seconds=silent,
                )
            )
        return candidates
