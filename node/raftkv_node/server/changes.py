"""Changes of the configuration on the leader: proposing them, waiting for them, and the leader's own changes of roles.

A change answers when the configuration that carries it is committed and, for a change of voters, no longer joint. It is
lost when another leader's entry stands in its place, or this member no longer leads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

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
from raftkv_node.server.members import attributes, role_settings, zones
from raftkv_node.server.roles import Candidate, Cause, RoleChange, RoleSettings, surplus_learners, wished_voters
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

ABORTED: Final = 10
FOREVER: Final = 1 << 62
MAX_LAG_ENTRIES: Final = 100
"""M12: a member this many entries behind, or fewer, has caught up, if it has in time as well."""
STANDBY_AFTER_TIMEOUTS: Final = 2
"""A learner without a vacancy becomes a standby when no change was made for so many election timeouts: while members
come one after the other, the changes that bring them need not wait for this one."""

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
        self._tick = 0
        """Ticks seen as the leader: all times below are counted in them. A process that was stopped, and wakes up as
        the leader that it was, has therefore not heard that everybody was silent meanwhile."""
        self._term = 0
        self._leading_since = 0
        self._last_swap = -FOREVER
        self._disturbed = 0
        """The tick at which this leader was elected, voters changed or one was silent last."""
        self._index = 0
        self._index_since = 0
        self.promotions: dict[Cause, int] = {}
        """Changes of voters that this member has made by itself while it led, by cause."""

    @property
    def changing(self) -> bool:
        """A later configuration is in the log than the committed one, or the voters are joint."""
        raft = self._raft
        return raft.configuration_index > raft.committed_configuration[0] or raft.configuration.joint

    def propose(self, change: ConfigurationChange, decided_at_index: int, now: float, done: Done) -> bool:
        """Propose a change; ``done`` is called now with a refusal, or later with its fate. Whether it was appended."""
        try:
            ref = self._raft.propose_configuration(change, decided_at_index)
        except (ProposalError, ChangeRefusedError) as error:
            done(refusal(error), 0)
            return False
        self._waiting.append(_Waiting(ref, now + self._timeout, done))
        return True

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

    def adjust_roles(self, now: float, done: Done) -> RoleChange | None:
        """The leader's tick: propose the voters that are wished now, if they are others; returns them.

        Learners for which there is no vacancy become standbys on the way.
        """
        raft = self._raft
        if not raft.is_leader:
            return None
        configuration = raft.configuration
        states = raft.status().members
        self._pass_time()
        wanted = role_settings(configuration.settings)
        candidates = self._candidates(configuration, states)
        if any(one.voter and not one.active for one in candidates):
            self._disturbed = self._tick
        if self.changing or self._waiting:
            return None
        change = wished_voters(
            wanted, candidates, raft.id, self._since(self._last_swap), self._since(self._disturbed)
        ) or self._wished_by_hand(configuration, states)
        if change is None:
            self._name_standbys(wanted, candidates, now)
            return None
        wish = ConfigurationChange(voters=change.voters, demote_to_standby=wanted.replicas > 0)
        if not self.propose(wish, raft.configuration_index, now, self._counted(change, done)):
            return None
        if change.cause in (Cause.SILENCE, Cause.SPREAD):
            self._last_swap = self._tick
        return change

    def _pass_time(self) -> None:
        """One tick. A leader of another term begins anew: silence counts from its election."""
        raft = self._raft
        self._tick += 1
        if raft.term != self._term:
            self._term = raft.term
            self._leading_since = self._disturbed = self._tick
        if raft.configuration_index != self._index:
            self._index = raft.configuration_index
            self._index_since = self._tick

    def _since(self, tick: int) -> float:
        """Seconds since a tick."""
        return (self._tick - tick) * self._tick_seconds

    def _counted(self, change: RoleChange, done: Done) -> Done:
        """Count the change once it is committed."""

        def settled(error: EtcdError | None, index: int) -> None:
            if error is None:
                self.promotions[change.cause] = self.promotions.get(change.cause, 0) + 1
                self._disturbed = self._tick
            done(error, index)

        return settled

    def _name_standbys(self, wanted: RoleSettings, candidates: Sequence[Candidate], now: float) -> None:
        """Learners that wait for nothing become standbys, once the membership has come to rest."""
        raft = self._raft
        if self._tick - self._index_since < STANDBY_AFTER_TIMEOUTS * raft.config.election_ticks:
            return
        surplus = surplus_learners(wanted, candidates)
        if surplus:
            self.propose(ConfigurationChange(standbys=surplus), raft.configuration_index, now, _nobody_waits)

    def _wished_by_hand(self, configuration: Configuration, states: Mapping[int, MemberStatus]) -> RoleChange | None:
        """Members that were added by hand as voters join the voters once they have caught up."""
        ticks = self._raft.config.election_ticks
        ready = [
            one
            for one in sorted(configuration.learners)
            if attributes(configuration.members[one]).voter_wished and is_caught_up(states.get(one), ticks)
        ]
        return RoleChange(configuration.voters | {ready[0]}, Cause.VACANCY) if ready else None

    def _candidates(self, configuration: Configuration, states: Mapping[int, MemberStatus]) -> list[Candidate]:
        raft = self._raft
        where = zones(configuration)
        candidates = []
        for one in sorted(configuration.ids):
            status = states.get(one)
            silent = self._tick - self._leading_since
            if status is not None and status.answered_ticks_ago is not None:
                silent = status.answered_ticks_ago
            candidates.append(
                Candidate(
                    member_id=one,
                    number=attributes(configuration.members[one]).number,
                    voter=configuration.is_voter(one),
                    caught_up=is_caught_up(status, raft.config.election_ticks),
                    silent_seconds=silent * self._tick_seconds,
                    active=silent <= raft.config.election_ticks,
                    zone=where[one],
                    entries_behind=status.entries_behind if status is not None else 0,
                    standby=one in configuration.standbys,
                )
            )
        return candidates


def _nobody_waits(_error: EtcdError | None, _index: int) -> None:
    """The fate of a change that is tried again, if it is still wished."""
