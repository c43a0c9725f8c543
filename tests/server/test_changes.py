"""The leader's changes of the configuration as its server sees them, on the real core with hand-made answers (M8, M9,
M12, M14)."""

from __future__ import annotations

import pytest
from raftkv_node.pb import admin_pb2
from raftkv_node.raft import Config as RaftConfig
from raftkv_node.raft import (
    Configuration,
    ConfigurationChange,
    InitialState,
    MemberStatus,
    Message,
    MessageType,
    ProgressState,
    Raft,
)
from raftkv_node.server.changes import MAX_LAG_ENTRIES, STANDBY_AFTER_TIMEOUTS, Changes, is_caught_up
from raftkv_node.server.members import encode_attributes, encode_settings
from raftkv_node.server.roles import Cause
from raftkv_node.store.errors import NOT_ENOUGH_STARTED_MEMBERS, UNHEALTHY, EtcdError

TICK_SECONDS = 0.1
ELECTION_TICKS = 10
PROMOTE_AFTER_TICKS = 30
VOTERS = frozenset({1, 2, 3})


def status(behind: int, ticks: int | None) -> MemberStatus:
    return MemberStatus(100, 101, ProgressState.REPLICATE, 0, 0, 0, behind, ticks)


@pytest.mark.parametrize(
    ("state", "caught_up"),
    [
        (status(0, 0), True),
        (status(MAX_LAG_ENTRIES, ELECTION_TICKS), True),
        (status(MAX_LAG_ENTRIES + 1, 0), False),
        (status(0, ELECTION_TICKS + 1), False),
        (status(0, None), False),
        (None, False),
    ],
)
def test_m12_caught_up_is_few_entries_and_little_time_behind(state: MemberStatus | None, caught_up: bool) -> None:
    assert is_caught_up(state, ELECTION_TICKS) is caught_up


class Leader:
    """Member 1 leads a cluster whose other members answer, or not, as the test says."""

    def __init__(self, learners: frozenset[int] = frozenset(), voters: frozenset[int] = VOTERS) -> None:
        wanted = admin_pb2.Settings(
            replicas=len(voters), max_voters=len(voters), promote_after_milliseconds=3000, opened=True
        )
        members = {one: encode_attributes(admin_pb2.Identity(member_id=one, number=one)) for one in voters | learners}
        configuration = Configuration(
            voters=voters, learners=learners, members=members, settings=encode_settings(wanted)
        )
        config = RaftConfig(1, lambda low, high: low, election_ticks=ELECTION_TICKS, pre_vote=False)
        self.raft = Raft(config, InitialState(base_configuration=configuration))
        self.changes = Changes(self.raft, TICK_SECONDS, 5.0)
        self.silent: set[int] = set()
        self.now = 0.0
        self.refusals: list[EtcdError] = []

    def deliver(self) -> None:
        """What leaves is answered at once by those who are not silent."""
        while self.raft.has_ready():
            ready = self.raft.ready()
            self.raft.persisted(ready.number)
            for message in (*ready.messages, *ready.messages_after_persist):
                answer = self.answer(message)
                if answer is not None and message.to not in self.silent:
                    self.raft.step(answer)
        self.changes.settle(self.now)

    @staticmethod
    def answer(message: Message) -> Message | None:
        if message.type == MessageType.VOTE:
            return Message(MessageType.VOTE_RESPONSE, message.to, message.sender, message.term)
        if message.type == MessageType.APPEND:
            index = message.index + len(message.entries.items)
            return Message(MessageType.APPEND_RESPONSE, message.to, message.sender, message.term, index=index)
        if message.type == MessageType.HEARTBEAT:
            kind, sequence = MessageType.HEARTBEAT_RESPONSE, message.sequence
            return Message(kind, message.to, message.sender, message.term, sequence=sequence)
        return None

    def lead(self) -> None:
        self.raft.campaign()
        self.deliver()
        assert self.raft.is_leader

    def tick(self, ticks: int = 1, seconds: float = TICK_SECONDS) -> list[Cause]:
        """Heartbeat intervals; the causes of the changes that were proposed in them."""
        causes = []
        for _ in range(ticks):
            self.now += seconds
            self.raft.tick()
            self.deliver()
            change = self.changes.adjust_roles(self.now, self.done)
            self.deliver()
            if change is not None:
                causes.append(change.cause)
        return causes

    def done(self, error: EtcdError | None, _index: int) -> None:
        if error is not None:
            self.refusals.append(error)

    def propose(self, change: ConfigurationChange) -> bool:
        return self.changes.propose(change, self.raft.configuration_index, self.now, self.done)


def test_m8_no_change_before_an_entry_of_the_own_term_is_committed() -> None:
    leader = Leader(frozenset({4}))
    leader.raft.campaign()
    for message in leader.raft.ready().messages:
        assert message.type != MessageType.APPEND
    leader.raft.persisted(1)
    leader.raft.step(Message(MessageType.VOTE_RESPONSE, 2, 1, leader.raft.term))
    assert leader.raft.is_leader
    assert not leader.propose(ConfigurationChange(voters=frozenset({1, 2, 4})))
    assert leader.refusals == [UNHEALTHY]
    leader.deliver()
    assert leader.propose(ConfigurationChange(voters=frozenset({1, 2, 4})))


def test_m8_one_change_is_in_flight_and_a_swap_is_one_joint_step() -> None:
    leader = Leader(frozenset({4}))
    leader.lead()
    leader.tick()
    assert leader.propose(ConfigurationChange(voters=frozenset({1, 2, 4})))
    assert leader.raft.configuration.joint
    assert leader.raft.configuration.voters_outgoing == VOTERS
    assert leader.changes.changing
    assert not leader.propose(ConfigurationChange(settings=b""))
    assert leader.refusals == [UNHEALTHY]
    leader.deliver()
    assert leader.raft.committed_configuration[1].voters == {1, 2, 4}
    assert not leader.changes.changing


def test_m9_the_leader_refuses_a_change_into_a_quorum_that_does_not_answer_also_its_own() -> None:
    leader = Leader(frozenset({4, 5}))
    leader.lead()
    leader.tick(ELECTION_TICKS)
    leader.silent = {3, 4, 5}
    leader.tick(ELECTION_TICKS + 1)
    dead = ConfigurationChange(voters=frozenset({1, 4, 5}))
    assert not leader.propose(dead)
    assert leader.refusals == [NOT_ENOUGH_STARTED_MEMBERS]
    assert leader.tick(3 * PROMOTE_AFTER_TICKS) == [], "it does not even wish one"
    assert leader.raft.configuration.voters == VOTERS


def test_m14_silence_costs_a_vote_after_promote_after_and_not_before() -> None:
    leader = Leader(frozenset({4, 5}))
    leader.lead()
    leader.tick(5)
    leader.silent = {3}
    assert leader.tick(PROMOTE_AFTER_TICKS - 1) == []
    assert leader.tick(3) == [Cause.SILENCE]
    configuration = leader.raft.committed_configuration[1]
    assert configuration.voters == {1, 2, 4}
    assert 3 in configuration.standbys
    assert leader.changes.promotions == {Cause.SILENCE: 1}
    leader.silent = {2, 3}
    leader.tick(ELECTION_TICKS)
    assert leader.changes.promotions == {Cause.SILENCE: 1}


def test_m14_a_leader_that_was_stopped_has_not_heard_silence() -> None:
    """It wakes up an hour later by the clock, having seen one tick."""
    leader = Leader(frozenset({4}))
    leader.lead()
    leader.tick(5)
    assert leader.tick(1, seconds=3600.0) == []
    assert leader.tick(PROMOTE_AFTER_TICKS) == []
    assert leader.raft.configuration.voters == VOTERS


def test_m14_silence_counts_anew_for_another_leader() -> None:
    leader = Leader(frozenset({4}))
    leader.lead()
    leader.tick(5)
    leader.silent = {3}
    assert leader.tick(PROMOTE_AFTER_TICKS - 5) == []
    higher = leader.raft.term + 1
    leader.raft.step(Message(MessageType.APPEND_RESPONSE, 2, 1, higher, index=0))
    assert not leader.raft.is_leader
    leader.lead()
    assert leader.tick(PROMOTE_AFTER_TICKS - 5) == []
    assert leader.tick(10) == [Cause.SILENCE]


def test_m7_m13_a_learner_without_a_vacancy_becomes_a_standby_once_the_members_rest() -> None:
    leader = Leader(frozenset({4, 5}))
    leader.lead()
    leader.silent = {5}
    leader.tick(STANDBY_AFTER_TIMEOUTS * ELECTION_TICKS + 2)
    configuration = leader.raft.committed_configuration[1]
    assert (configuration.standbys, configuration.learners) == ({4}, {5}), "who has not caught up is a learner"
    leader.silent = set()
    leader.tick(STANDBY_AFTER_TIMEOUTS * ELECTION_TICKS + 2)
    assert leader.raft.committed_configuration[1].standbys == {4, 5}


def test_m14_of_two_silent_voters_the_second_is_swapped_a_whole_promote_after_later() -> None:
    """What silenced both may be on this side: the leader gives the second as long again to be heard of."""
    leader = Leader(learners=frozenset({6, 7}), voters=frozenset({1, 2, 3, 4, 5}))
    leader.lead()
    leader.tick(ELECTION_TICKS)
    leader.silent = {4, 5}
    swaps = [number for number in range(4 * PROMOTE_AFTER_TICKS) if Cause.SILENCE in leader.tick()]
    assert len(swaps) == 2 and leader.raft.configuration.voters == {1, 2, 3, 6, 7}
    assert swaps[0] >= PROMOTE_AFTER_TICKS - 1 and swaps[1] - swaps[0] >= PROMOTE_AFTER_TICKS
