"""Configurations: what may be one, what a change makes of one, and their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftkv_node.raft import Configuration, ConfigurationChange, ConfigurationError, initial_configuration

ROLES = ("voter", "learner", "standby", "removed", "absent")


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Plain configurations over ids 1 to 8 with at least one voter."""
    roles = {member: draw(st.sampled_from(ROLES)) for member in range(1, 8)}
    roles[8] = "voter"
    groups = {role: frozenset(member for member, its in roles.items() if its == role) for role in ROLES}
    ids = groups["voter"] | groups["learner"] | groups["standby"]
    return Configuration(
        voters=groups["voter"],
        learners=groups["learner"],
        standbys=groups["standby"],
        removed=groups["removed"],
        members={member: draw(st.binary(max_size=6)) for member in sorted(ids)},
        settings=draw(st.binary(max_size=6)),
    )


ids = st.frozensets(st.integers(1, 10), max_size=4)
attributes = st.dictionaries(st.integers(1, 10), st.binary(max_size=3), max_size=3)
changes = st.builds(
    ConfigurationChange,
    voters=st.none() | ids,
    demote_to_standby=st.booleans(),
    standbys=st.just(frozenset[int]()) | ids,
    add_learners=attributes,
    add_standbys=attributes,
    remove=ids,
    attributes=attributes,
    settings=st.none() | st.binary(max_size=3),
)


@given(configurations(), changes)
def test_a_change_is_refused_or_gives_what_was_wished(before: Configuration, change: ConfigurationChange) -> None:
    try:
        entered = before.change(change)
    except ConfigurationError:
        return
    after = entered.leave() if entered.joint else entered
    wished = before.voters - change.remove if change.voters is None else change.voters
    assert after.voters == wished
    assert not after.joint
    assert entered.joint == (wished != before.voters)
    assert entered.voters_outgoing == (before.voters if entered.joint else frozenset())
    # nobody loses the log before the old voters' part of the decision is over
    assert before.voters <= entered.ids
    assert after.removed == before.removed | change.remove
    assert not after.removed & after.ids
    demoted = before.voters - wished - change.remove
    assert demoted <= (after.standbys if change.demote_to_standby else after.learners)
    assert change.standbys <= after.standbys
    assert before.learners - wished - change.remove - change.standbys <= after.learners
    assert after.ids == (before.ids | change.add_learners.keys() | change.add_standbys.keys()) - change.remove
    for member in after.ids:
        expected = {**before.members, **change.attributes, **change.add_learners, **change.add_standbys}[member]
        assert after.members[member] == expected
    assert after.settings == (before.settings if change.settings is None else change.settings)


@given(configurations(), changes)
def test_bytes_round_trip_also_when_joint(before: Configuration, change: ConfigurationChange) -> None:
    assert Configuration.decode(before.encode()) == before
    try:
        entered = before.change(change)
    except ConfigurationError:
        return
    assert Configuration.decode(entered.encode()) == entered
    assert Configuration.decode(entered.encode()).encode() == entered.encode()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        configuration = Configuration.decode(data)
    except ConfigurationError:
        return
    assert configuration.encode() == data


@given(configurations(), st.integers(0, 400), st.integers(0, 255))
def test_damaged_bytes_are_refused_or_canonical(configuration: Configuration, position: int, value: int) -> None:
    data = bytearray(configuration.encode())
    data[position % len(data)] = value
    test_arbitrary_bytes_are_refused_or_canonical.hypothesis.inner_test(bytes(data))  # type: ignore[attr-defined]
    test_arbitrary_bytes_are_refused_or_canonical.hypothesis.inner_test(bytes(data[:position]))  # type: ignore[attr-defined]


THREE = initial_configuration([1, 2, 3])
IMPOSSIBLE = {
    "voter that is no member": ConfigurationChange(voters=frozenset({1, 4})),
    "no voter left": ConfigurationChange(remove=frozenset({1, 2, 3})),
    "empty voter set": ConfigurationChange(voters=frozenset()),
    "added twice": ConfigurationChange(add_learners={4: b""}, add_standbys={4: b""}),
    "member added": ConfigurationChange(add_learners={3: b""}),
    "added and removed": ConfigurationChange(add_learners={4: b""}, remove=frozenset({4})),
    "voter and removed": ConfigurationChange(voters=frozenset({1, 2}), remove=frozenset({2})),
    "standby that is no learner": ConfigurationChange(standbys=frozenset({3})),
    "attributes of nobody": ConfigurationChange(attributes={7: b"x"}),
    "nothing": ConfigurationChange(),
    "nothing, said twice": ConfigurationChange(voters=frozenset({1, 2, 3}), settings=b""),
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_impossible_changes(change: ConfigurationChange) -> None:
    with pytest.raises(ConfigurationError):
        THREE.change(change)


def test_a_removed_id_never_returns() -> None:
    burned = THREE.change(ConfigurationChange(remove=frozenset({9})))
    assert burned.removed == {9}
    for change in (ConfigurationChange(add_learners={9: b""}), ConfigurationChange(remove=frozenset({9}))):
        with pytest.raises(ConfigurationError):
            burned.change(change)


def test_a_joint_configuration_is_left_first() -> None:
    joint = THREE.change(ConfigurationChange(remove=frozenset({3})))
    with pytest.raises(ConfigurationError):
        joint.change(ConfigurationChange(settings=b"x"))
    with pytest.raises(ConfigurationError):
        THREE.leave()


INVALID = {
    "two roles": {"voters": {1}, "learners": {1}, "members": {1: b""}},
    "members missing": {"voters": {1, 2}, "members": {1: b""}},
    "removed member": {"voters": {1}, "members": {1: b""}, "removed": {1}},
    "members without voters": {"learners": {1}, "members": {1: b""}},
    "id zero": {"voters": {0}, "members": {0: b""}},
    "demotion of one who stays": {"voters": {1}, "voters_outgoing": {1}, "learners_next": {1}, "members": {1: b""}},
}


@pytest.mark.parametrize("fields", INVALID.values(), ids=INVALID.keys())
def test_invalid_configurations(fields: dict[str, object]) -> None:
    frozen = {name: frozenset(value) if isinstance(value, set) else value for name, value in fields.items()}
    with pytest.raises(ConfigurationError):
        Configuration(**frozen)  # type: ignore[arg-type]


def test_a_swap_of_a_lost_voter_for_a_standby_is_one_joint_step() -> None:
    before = THREE.change(ConfigurationChange(add_standbys={4: b"a"}))
    joint = before.change(ConfigurationChange(voters=frozenset({1, 2, 4}), demote_to_standby=True))
    assert (joint.voters, joint.voters_outgoing, joint.standbys) == ({1, 2, 4}, {1, 2, 3}, frozenset())
    after = joint.leave()
    assert (after.voters, after.standbys, after.removed) == ({1, 2, 4}, {3}, frozenset())
