"""Moving the lead to where it is preferred (`preference.py` says where): the leader's part of each tick."""

from __future__ import annotations

from collections.abc import Callable, Collection

from raftkv_node.raft import NO_MEMBER, Raft
from raftkv_node.server.changes import is_caught_up
from raftkv_node.server.members import attributes, leader_preference, role_settings, zones
from raftkv_node.server.preference import (
    MAX_PAUSE_FACTOR,
    SETTLE_TIMEOUTS,
    WINDOW_TIMEOUTS,
    Heir,
    Move,
    MoveCause,
    Origins,
    Steadiness,
    wished_leader,
)


class Moves:
    """Starts transfers of the lead, at most one at a time, and counts what became of them."""

    def __init__(self, raft: Raft, tick_seconds: float) -> None:
        self._raft = raft
        self._tick_seconds = tick_seconds
        self._steadiness = Steadiness()
        self._pending: Move | None = None
        self._failures_in_a_row = 0
        self._pause_ticks = 0
        self.origins = Origins()
        self.moved: dict[MoveCause, int] = {}
        self.failed = 0

    def tick(self, connected: Collection[int], calm: Callable[[], bool]) -> Move | None:
        """A heartbeat interval has passed. Starts a transfer and returns it, if one is wished and all is ``calm``: no
        change of members and no restart is under way."""
        raft = self._raft
        self.origins.tick(WINDOW_TIMEOUTS * raft.config.election_ticks)
        if self._pending is not None:
            self._settle(self._pending)
        if not raft.is_leader:
            return None
        self._pause_ticks = max(0, self._pause_ticks - 1)
        preference = leader_preference(raft.configuration.settings)
        if not preference:
            return None
        heirs = self._heirs(connected)
        if raft.transferee != NO_MEMBER or self._pause_ticks:
            return None
        settle_seconds = SETTLE_TIMEOUTS * raft.config.election_ticks * self._tick_seconds
        move = wished_leader(
            preference, heirs, raft.id, self.origins.by_side(zones(raft.configuration)), settle_seconds
        )
        if move is None or not calm() or not raft.transfer_leader(move.target):
            return None
        self._pending = move
        return move

    def _settle(self, move: Move) -> None:
        """Whether the transfer that was started has come to an end."""
        raft = self._raft
        if raft.leader_id == NO_MEMBER or raft.transferee != NO_MEMBER:
            return
        self._pending = None
        if raft.leader_id == move.target:
            self.moved[move.cause] = self.moved.get(move.cause, 0) + 1
            self._failures_in_a_row = self._pause_ticks = 0
        else:
            self.failed += 1
            factor = min(MAX_PAUSE_FACTOR, 2**self._failures_in_a_row)
            self._failures_in_a_row += 1
            self._pause_ticks = factor * SETTLE_TIMEOUTS * raft.config.election_ticks

    def _heirs(self, connected: Collection[int]) -> list[Heir]:
        """The voters that stay."""
        raft = self._raft
        configuration = raft.configuration
        states = raft.status().members
        ticks = raft.config.election_ticks
        in_step = {
            one
            for one in configuration.voters
            if one == raft.id or (one in connected and is_caught_up(states.get(one), ticks))
        }
        self._steadiness.tick(raft.term, in_step)
        where = zones(configuration)
        staying = configuration.voters - role_settings(configuration.settings).leaving
        return [
            Heir(
                member_id=one,
                number=attributes(configuration.members[one]).number,
                zone=where[one],
                steady_seconds=self._steadiness.ticks(one) * self._tick_seconds,
                entries_behind=states[one].entries_behind if one in states else 0,
            )
            for one in sorted(staying)
        ]
