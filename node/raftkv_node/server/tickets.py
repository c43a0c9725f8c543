"""The leader's leave to restart a member (M11).

A restart that the operator decides upon takes a live voter away. What the operator sees may be old when it acts, so the
leader is asked, who knows who answers: it gives one ticket at a time, only while every other voter is there and caught
up, and only if a quorum of live voters remains without the member.

The ticket is part of the replicated settings. So it is given only where any change of the configuration would be
accepted (own term committed, nothing in flight, decided on the committed configuration, a quorum that answers), two
leaders never give two, and a later leader knows it. It ends when its member has come back, which is not "ready" but
what the leader sees: a later opening of the member's log than the ticket names, and a match within M12. A ticket that
is never used ends by time. No clock travels: each leader counts from when it first sees the ticket, which is never
earlier than the grant; who was given it counts from when it asked, which is never later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raftkv_node.pb import admin_pb2
from raftkv_node.raft import NO_MEMBER, Configuration, ConfigurationChange, MemberStatus, Raft
from raftkv_node.raft.quorum import has_majority
from raftkv_node.server.changes import Changes, Done, is_caught_up
from raftkv_node.server.members import encode_settings, settings

VALID_SECONDS = 30
"""Within so long after it was asked for, a restart must have begun."""
HOLD_SECONDS = 150
"""A ticket keeps others from one for so long. Between the two fits the end of a process: a pod's grace period."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the leader knows when it decides."""

    configuration: Configuration
    leader_id: int
    states: Mapping[int, MemberStatus]
    election_ticks: int
    generations: Mapping[int, int]
    """The newest opening of each member's log that was heard of."""
    held_seconds: float
    """How long this leader has known the present ticket."""

    def answers(self, member: int) -> bool:
        """Whether a member has answered within the last election timeout (the leader itself has)."""
        state = self.states.get(member)
        lately = state is not None and state.answered_ticks_ago is not None
        return lately and state.answered_ticks_ago <= self.election_ticks  # type: ignore[union-attr, operator]

    def is_back(self, member: int) -> bool:
        """M12: it answers and has what the others have."""
        return self.answers(member) and is_caught_up(self.states.get(member), self.election_ticks)


def denial(scene: Scene, member: int) -> str | None:
    """Why no ticket is given for this member, or None."""
    configuration = scene.configuration
    if member not in configuration.ids:
        return f"{member:x} is no member"
    taken = _other_ticket(scene, member)
    if taken is not None:
        return taken
    if configuration.voters == {member}:
        return None
    if member == scene.leader_id:
        return f"member {member:x} leads: move the lead to another voter first"
    others = configuration.voters - {member}
    missing = sorted(one for one in others if not scene.is_back(one))
    if configuration.is_voter(member) and missing:
        shown = ", ".join(f"{one:x}" for one in missing)
        return f"voter {shown} is missing or has not caught up"
    live = {one for one in others if scene.answers(one)}
    if not has_majority(configuration.voters, live):
        return f"without member {member:x} no quorum of live voters would remain"
    return None


def _other_ticket(scene: Scene, member: int) -> str | None:
    """One at a time: whether another member's ticket still holds."""
    ticket = settings(scene.configuration.settings).restart
    other = ticket.member_id
    if other in (0, member) or other not in scene.configuration.ids or scene.held_seconds >= HOLD_SECONDS:
        return None
    if scene.generations.get(other, 0) > ticket.generation and scene.is_back(other):
        return None
    return f"member {other:x} has a ticket and has not come back yet"


class Tickets:
    """Gives tickets while this member leads."""

    def __init__(self, raft: Raft, changes: Changes, generations: Callable[[], Mapping[int, int]]) -> None:
        self._raft = raft
        self._changes = changes
        self._generations = generations
        self._seen = (0, 0)
        self._since = 0.0

    def tick(self, now: float) -> None:
        """Note since when this leader, in this term, knows the present ticket."""
        seen = (self._raft.term, settings(self._raft.configuration.settings).restart.number)
        if seen != self._seen:
            self._seen, self._since = seen, now

    def denial(self, member: int, now: float) -> str | None:
        """Why no ticket is given for this member now, or None. For the leader only."""
        self.tick(now)
        if self._changes.changing:
            return "a change of the configuration is in flight"
        return denial(self._scene(now), member)

    def held(self, now: float) -> bool:
        """Whether a restart may be under way. For the leader only."""
        self.tick(now)
        return _other_ticket(self._scene(now), NO_MEMBER) is not None

    def _scene(self, now: float) -> Scene:
        raft = self._raft
        return Scene(
            raft.configuration,
            raft.id,
            raft.status().members,
            raft.config.election_ticks,
            self._generations(),
            now - self._since,
        )

    def grant(self, member: int, decided_at_index: int, now: float, done: Done) -> int:
        """Write the ticket into the configuration; `done` says when that is committed. Returns its number."""
        wanted = admin_pb2.Settings()
        wanted.CopyFrom(settings(self._raft.configuration.settings))
        number = wanted.restart.number + 1
        generation = self._generations().get(member, 0)
        wanted.restart.CopyFrom(admin_pb2.Ticket(member_id=member, generation=generation, number=number))
        change = ConfigurationChange(settings=encode_settings(wanted))
        self._changes.propose(change, decided_at_index, now, done)
        return number


def keep_ticket(wanted: admin_pb2.Settings, present: bytes) -> admin_pb2.Settings:
    """Settings that somebody else wishes, with the ticket that is there: nobody but the leader writes it."""
    kept = admin_pb2.Settings()
    kept.CopyFrom(wanted)
    kept.ClearField("restart")
    if settings(present).HasField("restart"):
        kept.restart.CopyFrom(settings(present).restart)
    return kept
