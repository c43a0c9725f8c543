"""Where the leader should be: by zone, and by where the writes come from (``consensus.leaderPreference``).

A write that arrives at the leader is on its way to a quorum at once; one that arrives anywhere else travels to the
leader and back first. With members far from each other the place of the leader is most of a write's latency. The
preference is a list: zones, the best first, and at its end perhaps the word ``Writers``:

- A leader hands over to a voter of a better zone. Zones that are not named are all worse than those that are.
- With ``Writers`` it hands over to a voter of an equally good zone whose side sends clearly most of the writes. A side
  is a zone; where a member's zone is not known, the member itself.

:func:`wished_leader` decides; it is pure. A move is a leadership transfer: the target has all but the latest entries,
writes wait for about a round trip, none is lost, and if it fails the old leader goes on. So a wrong move is harmless,
and a move too many is what must not happen:

- Only voters that have been in step for ``SETTLE_TIMEOUTS`` are moved to, and only by a leader that has led as long. A
  member that fails under the lead has to stand that long again.
- After a transfer that failed the pause doubles, up to ``MAX_PAUSE_FACTOR`` times.
- A zone's rank only ever gets better by a move; writes must come from another side in ``WINDOWS`` windows of time, one
  after the other, each with ``MIN_SHARE`` of them: a side that just won cannot lose by the same writes.

Elections are not influenced. That a member of a worse zone waits longer before it stands would make every outage longer
in which the better zones are lost, to save a move that costs a round trip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

WRITERS = "Writers"
"""The word in the list that is no zone."""
MAX_ZONES = 16
MAX_ZONE_CHARACTERS = 63
SETTLE_TIMEOUTS = 10
"""Election timeouts that a leader has led, and a target has been in step, before a move."""
MAX_PAUSE_FACTOR = 64
WINDOW_TIMEOUTS = 5
"""Election timeouts in a window over which writes are counted."""
WINDOWS = 3
MIN_SHARE = 0.6
MIN_WRITES = 20
"""Fewer writes in a window say nothing."""


class MoveCause(StrEnum):
    """Why the leader moves."""

    ZONE = "zone"
    WRITERS = "writers"


class Move(NamedTuple):
    """A transfer that is wished, and why."""

    target: int
    cause: MoveCause


@dataclass(frozen=True, slots=True)
class LeaderPreference:
    """The list, taken apart."""

    zones: tuple[str, ...] = ()
    follow_writers: bool = False

    @classmethod
    def parse(cls, words: Iterable[str]) -> LeaderPreference:
        """Read the list. Raises ValueError for what makes no sense; the text says what to change."""
        listed = tuple(words)
        zones = tuple(word for word in listed if word != WRITERS)
        if WRITERS in listed[:-1]:
            raise ValueError(f'"{WRITERS}" stands once, and last: it decides between equally good zones')
        if len(zones) > MAX_ZONES or len(set(zones)) != len(zones):
            raise ValueError(f"at most {MAX_ZONES} zones are listed, each once")
        if any(not 0 < len(zone) <= MAX_ZONE_CHARACTERS for zone in zones):
            raise ValueError(f"a zone's name has 1 to {MAX_ZONE_CHARACTERS} characters")
        return cls(zones, WRITERS in listed)

    def rank(self, zone: str) -> int:
        """0 for the best zone; the same for all that are not listed."""
        return self.zones.index(zone) if zone in self.zones else len(self.zones)

    def __bool__(self) -> bool:
        return bool(self.zones) or self.follow_writers


@dataclass(frozen=True, slots=True)
class Heir:
    """What the leader knows of a voter that stays, itself among them."""

    member_id: int
    number: int
    zone: str
    steady_seconds: float
    """How long it has been in step without a break; 0: it is not."""
    entries_behind: int = 0


def side_of(member_id: int, zone: str) -> str:
    """What a member's writes count for."""
    return zone or f"member {member_id:x}"


def wished_leader(
    preference: LeaderPreference,
    heirs: Sequence[Heir],
    leader_id: int,
    windows: Sequence[Mapping[str, int]],
    settle_seconds: float,
) -> Move | None:
    """The voter that should lead instead of the leader, or None.

    ``windows``: how many writes came from each side, in the last windows of time, each complete. A voter that has not
    been steady for ``settle_seconds`` is not moved to, nor does a leader that has not led for so long move.
    """
    own = next((one for one in heirs if one.member_id == leader_id), None)
    if own is None or own.steady_seconds < settle_seconds:
        return None
    ready = [one for one in heirs if one.member_id != leader_id and one.steady_seconds >= settle_seconds]
    if not ready:
        return None
    writing = dominant_side(windows) if preference.follow_writers else None
    best = min(preference.rank(one.zone) for one in ready)
    equal = [one for one in ready if preference.rank(one.zone) == best]

    def order(one: Heir) -> tuple[bool, int, int, int]:
        return (side_of(one.member_id, one.zone) != writing, one.entries_behind, one.number, one.member_id)

    first = min(equal, key=order)
    if best < preference.rank(own.zone):
        return Move(first.member_id, MoveCause.ZONE)
    if best > preference.rank(own.zone) or writing is None or writing == side_of(own.member_id, own.zone):
        return None
    if side_of(first.member_id, first.zone) != writing:
        return None
    return Move(first.member_id, MoveCause.WRITERS)


def dominant_side(windows: Sequence[Mapping[str, int]]) -> str | None:
    """The side that sent clearly most in each of the last windows, if there is one."""
    if len(windows) < WINDOWS:
        return None
    found: set[str | None] = set()
    for window in windows[-WINDOWS:]:
        total = sum(window.values())
        side = max(sorted(window), key=lambda one: window[one]) if window else None
        clear = side is not None and total >= MIN_WRITES and window[side] >= MIN_SHARE * total
        found.add(side if clear else None)
    return found.pop() if len(found) == 1 else None


class Origins:
    """Counts, at every member, the writes that are applied by the member that they came through."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._windows: deque[Mapping[int, int]] = deque(maxlen=WINDOWS)
        self._ticks = 0

    def add(self, origin: int, writes: int) -> None:
        """An entry with so many writes was applied."""
        self._counts[origin] = self._counts.get(origin, 0) + writes

    def tick(self, window_ticks: int) -> None:
        """Time passes; now and then a window ends."""
        self._ticks += 1
        if self._ticks >= window_ticks:
            self._ticks = 0
            self._windows.append(self._counts)
            self._counts = {}

    def by_side(self, zones: Mapping[int, str]) -> list[Mapping[str, int]]:
        """The last windows by side; writes of members that are no more count for no side."""
        result: list[Mapping[str, int]] = []
        for window in self._windows:
            sides: dict[str, int] = {}
            for origin, number in window.items():
                if origin in zones:
                    side = side_of(origin, zones[origin])
                    sides[side] = sides.get(side, 0) + number
            result.append(sides)
        return result


class Steadiness:
    """Since when each member has been in step with this leader, in ticks."""

    def __init__(self) -> None:
        self._term = 0
        self._tick = 0
        self._since: dict[int, int] = {}

    def tick(self, term: int, in_step: Collection[int]) -> None:
        """One tick of a leader of this term, and who is in step now."""
        self._tick += 1
        if term != self._term:
            self._term = term
            self._since = {}
        self._since = {one: self._since.get(one, self._tick) for one in in_step}

    def ticks(self, member: int) -> int:
        """For how long the member has been in step; 0 if it is not."""
        return self._tick - self._since[member] if member in self._since else 0
