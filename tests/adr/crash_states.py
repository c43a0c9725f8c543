"""Crash states: every one that a power cut may leave, opened by the real code and held against named invariants.

A run of a job gives a trace (`adr_crash`): each store, flush and fence of the ring beneath the Rust functions, and each
operation on the disk. At each moment of it some things are uncertain: the 8-byte words that were stored and not yet
flushed and fenced, and the sectors and names that were not yet synced. Any subset of them may have survived. Where a
moment has few such states all are tried, where many a sample is. What recovery shows is judged by what was acknowledged
at that moment, and by what was under way. Some of the recoveries are cut off themselves, and judged again.

No line here writes a record: there is no second writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from adr_crash import Choice, Disk, Lab, Trace, World, at_random, newest, oldest
from adr_harness import Member
from adr_invariants import (
    ACKNOWLEDGED_IMPLIES_DURABLE,
    DRAIN_NEVER_PASSES_DURABLE,
    NO_VOTE_TWICE,
    RECOVERED_IS_PREFIX,
)
from raftkv_node.adr import CONFIGURATION, ENTRY, HARD_STATE, MARK_SNAPSHOT, Log, LogError, Record, Recovered
from raftkv_node.adr.files import decode_document
from raftkv_node.adr.manifest import MANIFEST_FILE, ManifestInvalid, read_manifest
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES

Moment = tuple[int, int]
#: One in so many recovered logs is closed as by a kill and opened once more.
SECOND_OPENING_EVERY = 4

NOTHING_DROPPED_COMES_BACK = "NOTHING_DROPPED_COMES_BACK"
A_CRASH_IS_NO_CORRUPTION = "A_CRASH_IS_NO_CORRUPTION"
A_GENERATION_IS_USED_ONCE = "A_GENERATION_IS_USED_ONCE"
RETIRED_IS_NEVER_PARTIAL = "RETIRED_IS_NEVER_PARTIAL"
INVARIANTS = (
    ACKNOWLEDGED_IMPLIES_DURABLE,
    RECOVERED_IS_PREFIX,
    DRAIN_NEVER_PASSES_DURABLE,
    NO_VOTE_TWICE,
    NOTHING_DROPPED_COMES_BACK,
    A_CRASH_IS_NO_CORRUPTION,
    A_GENERATION_IS_USED_ONCE,
    RETIRED_IS_NEVER_PARTIAL,
)


class Violation(AssertionError):
    """An invariant does not hold in a state."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant, self.detail = invariant, detail


# --- what a log holds ---


class State(NamedTuple):
    """What a recovery shows, or what it may show."""

    #: Term, vote, commit.
    hard: tuple[int, int, int] = (0, 0, 0)
    #: The index before the first entry.
    base: int = 0
    #: Term, index, payload.
    log: tuple[tuple[int, int, bytes], ...] = ()
    membership: tuple[int, int, bytes] | None = None
    #: Kind, term, index, payload of the user's marks.
    marks: tuple[tuple[int, int, int, bytes], ...] = ()

    def after(self, record: Record) -> State:
        kind, what, term, index, payload = record
        if kind == ENTRY:
            return self._replace(log=(*(found for found in self.log if found[1] < index), (term, index, payload)))
        if kind == HARD_STATE:
            return self._replace(hard=(term, int.from_bytes(payload, "little"), index))
        if kind == CONFIGURATION:
            return self._replace(membership=(term, index, payload))
        if what == MARK_SNAPSHOT:
            return self._replace(log=(), base=index)
        kept = [found for found in self.marks if found[0] != what]
        return self._replace(marks=tuple(sorted([*kept, (what, term, index, payload)])))

    def shows(self, other: State, released_below: int) -> bool:
        """Whether this, recovered, is `other`, of which entries below an index may have been given up."""
        if self[0] != other[0] or self[3:] != other[3:]:
            return False
        if not other.base <= self.base <= max(other.base, released_below - 1):
            return False
        return self.log == tuple(found for found in other.log if found[1] > self.base)

    @staticmethod
    def of(recovered: Recovered) -> State:
        membership = recovered.configuration
        return State(
            tuple(recovered.hard_state),
            recovered.first_index - 1,
            tuple((found.term, found.index, found.payload) for found in recovered.entries),
            None if membership is None else tuple(membership),
            tuple(sorted((kind, *mark) for kind, mark in recovered.marks.items())),
        )


EMPTY = State()


@dataclass
class Allowed:
    """The states that a recovery may show, in order: the first is what was acknowledged."""

    states: list[State]
    #: All that came before: what an acknowledgement has ruled out.
    past: list[State] = field(default_factory=list)
    released_below: int = 0
    #: Nothing was acknowledged since the last opening was over: what that one showed is what there is.
    finished: bool = False
    retired: bool = False

    def judge(self, shown: State | str) -> None:
        """Violation, by the name of what is broken."""
        if isinstance(shown, str):
            if not self.retired:
                raise Violation(A_CRASH_IS_NO_CORRUPTION, f"refused: {shown}")
            return
        if any(shown.shows(state, self.released_below) for state in self.states):
            return
        if self.retired:
            if shown != EMPTY:
                raise Violation(RETIRED_IS_NEVER_PARTIAL, f"a part of a retired log was opened: {shown}")
            return
        acknowledged = self.states[0]
        (term, vote, _), (known_term, known_vote, _) = shown.hard, acknowledged.hard
        if term < known_term or (term == known_term and known_vote not in (0, vote)):
            raise Violation(NO_VOTE_TWICE, f"promised {acknowledged.hard}, recovered {shown.hard}")
        lost = set(acknowledged.log) - set(shown.log)
        if lost or any(shown.shows(state, self.released_below) for state in self.past):
            raise Violation(ACKNOWLEDGED_IMPLIES_DURABLE, f"acknowledged {acknowledged}, recovered {shown}")
        if self.finished:
            raise Violation(NOTHING_DROPPED_COMES_BACK, f"shown was {acknowledged}, now {shown}")
        raise Violation(RECOVERED_IS_PREFIX, f"recovered {shown}, allowed {self.states}")


def allowed(trace: Trace, before: Allowed, shown: State, moment: Moment, early_ack: int = 0) -> Allowed:
    """What a recovery after a crash at `moment` of a trace may show. `early_ack`: a planted bug, in ring events."""
    if trace.opened is None or moment < trace.opened:
        return before

    def past(position: Moment) -> bool:
        return position[0] <= moment[0] and position[1] <= moment[1]

    chain = [shown]
    for operations, events, record in trace.attempts:
        if past((operations, events)):
            chain.append(chain[-1].after(record))
    done = sum(1 for operations, events in trace.acks if past((operations, events - early_ack)))
    below = max([before.released_below, *(b for o, e, b in trace.released if past((o, e)))])
    retired = trace.retired is not None and past(trace.retired)
    return Allowed(chain[done:], chain[:done], below, finished=len(chain) == 1, retired=retired)


# --- the states of a moment ---


class Tree:
    """All paths through a tree of choices, one after the other."""

    def __init__(self) -> None:
        self.path: list[list[int]] = []
        self._at = 0

    def choose(self, count: int) -> int:
        if self._at == len(self.path):
            self.path.append([0, count])
        self._at += 1
        return self.path[self._at - 1][0]

    def advance(self) -> bool:
        """Goes to the next path; False when there is none."""
        self._at = 0
        while self.path and self.path[-1][0] == self.path[-1][1]:
            self.path.pop()
        if self.path:
            self.path[-1][0] += 1
        return bool(self.path)


class Noted:
    """Makes choices by another chooser, and notes them, so that a state can be named."""

    def __init__(self, choose: Choice) -> None:
        self._choose = choose
        self.made: list[int] = []

    def __call__(self, count: int) -> int:
        self.made.append(self._choose(count))
        return self.made[-1]


def replayed(made: list[int]) -> Choice:
    rest = iter(made)
    return lambda count: min(count, next(rest, 0))


def rarely(seed: int, chance: float, late: bool) -> Choice:
    """Almost all old with a few new ones, or the other way round: where torn batches hide."""
    rng = random.Random(seed)
    return lambda count: rng.randint(0, count) if rng.random() < chance else (count if late else 0)


def samples(rng: random.Random) -> Iterator[Choice]:
    """Nothing more survived; all did; then at random, by turns: half of it, few, all but few."""
    yield oldest
    yield newest
    while True:
        yield at_random(rng.getrandbits(32))
        yield rarely(rng.getrandbits(32), 0.1, False)
        yield rarely(rng.getrandbits(32), 0.1, True)


def state_count(trace: Trace, world: World, moment: Moment, without: str, limit: int) -> int:
    """About how many states a moment has (never fewer than that), `limit` if there are more."""
    operations, events = moment
    count = 1
    recordings = [(recording, at) for name, (recording, at) in world.uncertain.items() if name != trace.ring_name]
    if trace.recording is not None:
        recordings.append((trace.recording, events))
    for recording, at in recordings:
        for values in recording.uncertain(at, without):
            count *= values + 1
            if count >= limit:
                return limit
    return min(limit, count << min(64, _disk_choices(trace.disks[operations][0])))


def _disk_choices(disk: Disk) -> int:
    names = disk.certain.keys() | disk.current.keys()
    choices = sum(1 for name in names if disk.certain.get(name, -1) != disk.current.get(name, -1))
    used = {disk.certain.get(name) for name in names} | {disk.current.get(name) for name in names}
    for number in used - {None}:
        assert number is not None
        old, new = disk.inodes[number].certain, disk.inodes[number].current
        if old != new:
            choices += 1
            for at in range(0, len(new), 512):
                choices += old[at : at + 512].ljust(len(new[at : at + 512]), b"\0") != new[at : at + 512]
    return choices


# --- exploring ---


@dataclass
class Bounds:
    """How much is tried. `exhaustive`: a moment with at most so many states has all of them tried."""

    exhaustive: int = 64
    samples: int = 3
    #: One in so many states is recovered under trace, and that recovery is cut off as well.
    second_every: int = 40
    second_moments: int = 6
    second_samples: int = 2
    #: Once each moment had its share, sampling goes on until then.
    seconds: float = 0.0


@dataclass
class Tally:
    """What was tried."""

    name: str
    moments: int = 0
    exhausted: int = 0
    exhaustive: int = 0
    sampled: int = 0
    recoveries: int = 0
    second_crashes: int = 0
    second_states: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def states(self) -> int:
        return self.exhaustive + self.sampled + self.second_states


Job = Callable[[Log, Trace], None]


@dataclass
class Start:
    """A world to run a job in, and what its opening may show."""

    world: World
    may_show: Allowed


class Explorer:
    """Crashes one job at its moments. `again`: what a recovered log is used for before it is cut off in turn.

    Planted bugs: `without` flush or fence; acknowledgements, or drains, that come so many ring events too early.
    """

    def __init__(
        self,
        lab: Lab,
        bounds: Bounds,
        tally: Tally,
        seed: int,
        *,
        without: str = "",
        early_ack: int = 0,
        early_drain: int = 0,
    ) -> None:
        self.lab, self.bounds, self.tally = lab, bounds, tally
        self._rng = random.Random(seed)
        self._without, self._early_ack = without, early_ack
        self._early_drain = early_drain
        self._turn = 0

    def explore(self, start: Start, job: Job | None, again: Job | None = None) -> None:
        """Violation: an invariant is broken in some state; its message names the state."""
        began = time.monotonic()
        trace, shown = self._run(start, job)
        moments = list(trace.moments())
        self.tally.moments += len(moments)
        opener = _Opener(self, start.world, trace, start.may_show, shown)
        for moment in moments:
            self._crash_at(opener, moment, again)
        rest = samples(self._rng)
        while time.monotonic() < began + self.bounds.seconds:
            self._try(opener, self._rng.choice(moments), next(rest), again)
            self.tally.sampled += 1
        self.tally.seconds += time.monotonic() - began

    def _run(self, start: Start, job: Job | None) -> tuple[Trace, State]:
        try:
            trace, recovered = self.lab.run(start.world, job)
        except LogError as error:
            raise Violation(A_CRASH_IS_NO_CORRUPTION, f"refused: {error}") from error
        shown = State.of(recovered)
        start.may_show.judge(shown)
        if self._early_drain:
            trace.disks = [(disk, max(0, events - self._early_drain)) for disk, events in trace.disks]
        return trace, shown

    def _crash_at(self, opener: _Opener, moment: Moment, again: Job | None) -> None:
        limit = self.bounds.exhaustive + 1
        if state_count(opener.trace, opener.world, moment, self._without, limit) < limit:
            tree = Tree()
            while True:
                self._try(opener, moment, tree.choose, again)
                self.tally.exhaustive += 1
                if not tree.advance():
                    break
            self.tally.exhausted += 1
            return
        for _, choose in zip(range(self.bounds.samples), samples(self._rng), strict=False):
            self._try(opener, moment, choose, again)
            self.tally.sampled += 1

    def _try(self, opener: _Opener, moment: Moment, choose: Choice, again: Job | None) -> None:
        self._turn += 1
        second = self.bounds.second_every and self._turn % self.bounds.second_every == 0
        opener.check(moment, choose)
        if second:
            self._second(opener, moment, replayed(opener.noted), again)

    def _second(self, opener: _Opener, moment: Moment, choose: Choice, again: Job | None) -> None:
        """The power goes in the recovery from a crash, or soon after it."""
        permitted = opener.permitted(moment)
        if permitted.retired:
            return
        world = self.lab.crash(opener.world, opener.trace, moment, choose, without=self._without)
        try:
            trace, shown = self._run(Start(world, permitted), again)
            inner = _Opener(self, world, trace, permitted, shown, f"{moment} of ")
            moments = list(trace.moments())
            for cut in self._rng.sample(moments, min(len(moments), self.bounds.second_moments)):
                self.tally.second_crashes += 1
                for _, option in zip(range(self.bounds.second_samples), samples(self._rng), strict=False):
                    inner.check(cut, option)
                    self.tally.second_states += 1
        finally:
            self.lab.discard(world)


class _Opener:
    """Lays states of one trace out, opens them, and judges. Equal bytes are recovered once."""

    def __init__(
        self, explorer: Explorer, world: World, trace: Trace, before: Allowed, shown: State, where: str = ""
    ) -> None:
        self._explorer = explorer
        self.world, self.trace = world, trace
        self._before, self._shown, self._where = before, shown, where
        self._known: dict[bytes, State | str] = {}
        self._permitted: tuple[Moment, Allowed] | None = None
        self.noted: list[int] = []

    def permitted(self, moment: Moment) -> Allowed:
        if self._permitted is None or self._permitted[0] != moment:
            made = allowed(self.trace, self._before, self._shown, moment, self._explorer._early_ack)
            self._permitted = moment, made
        return self._permitted[1]

    def check(self, moment: Moment, choose: Choice) -> None:
        lab, noted = self._explorer.lab, Noted(choose)
        state = lab.lay_out(self.world, self.trace, moment, noted, without=self._explorer._without)
        self.noted = noted.made
        try:
            durable = self.trace.durable_at(moment)
            if durable is not None:
                check_drained(state, durable)
            self.permitted(moment).judge(self._outcome(state))
        except Violation as violation:
            operation = self.trace.operations[moment[0]]
            choices = ",".join(f"{value}x{len(list(run))}" for value, run in groupby(self.noted))
            raise Violation(
                violation.invariant,
                f"cut at {self._where}{moment} (after {operation}; choices {choices}): {violation.detail}",
            ) from violation

    def _outcome(self, state: dict[str, bytes | None]) -> State | str:
        digest = hashlib.blake2b(digest_size=16)
        for name, data in sorted(state.items()):
            digest.update(f"{name} {-1 if data is None else len(data)}\n".encode())
            digest.update(data or b"")
        key = digest.digest()
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._recover(state)
            self._explorer.tally.recoveries += 1
        return known

    def _recover(self, state: dict[str, bytes | None]) -> State | str:
        member = self._explorer.lab.settle(state)
        try:
            return recover(member, twice=self._explorer.tally.recoveries % SECOND_OPENING_EVERY == 0)
        finally:
            self._explorer.lab.discard(World(member, Disk()))


def recover(member: Member, twice: bool) -> State | str:
    """Opens, closes as a kill does, and, if asked to, opens again: what the first one showed, or why it refused."""
    seen: list[tuple[int, State]] = []
    before = _generation(member)
    for _ in range(1 + twice):
        try:
            log, recovered = member.open()
        except (LogError, AssertionError) as error:
            return f"{type(error).__name__}: {error}" + (" (at the second opening)" if seen else "")
        log.close(clean=False)
        seen.append((recovered.generation, State.of(recovered)))
    if seen[0][1] != seen[-1][1]:
        raise Violation(NOTHING_DROPPED_COMES_BACK, f"opened with {seen[0][1]}, and again with {seen[-1][1]}")
    for earlier, later in pairwise([before, *(generation for generation, _ in seen)]):
        if later <= earlier:
            raise Violation(A_GENERATION_IS_USED_ONCE, f"generation {later} followed {earlier}")
    return seen[0][1]


def _generation(member: Member) -> int:
    try:
        manifest = read_manifest(member.data)
    except ManifestInvalid:
        return 0
    return 0 if manifest is None else manifest.generation


def check_drained(state: dict[str, bytes | None], durable_lsn: int) -> None:
    """Neither a segment, whole or not, nor the manifest goes further than what was fenced (D6)."""
    manifest = state.get(f"data/{MANIFEST_FILE}")
    if manifest is not None:
        with contextlib.suppress(ValueError):
            drained = decode_document(manifest)["drained_lsn"]
            if drained > durable_lsn:
                raise Violation(DRAIN_NEVER_PASSES_DURABLE, f"drained to LSN {drained}, durable is {durable_lsn}")
    for name, data in state.items():
        if name.endswith(".seg") and data is not None and len(data) > SEGMENT_HEADER_BYTES:
            end = int(Path(name).name.partition("-")[0], 16) + len(data) - SEGMENT_HEADER_BYTES
            if end > durable_lsn:
                raise Violation(
                    DRAIN_NEVER_PASSES_DURABLE, f"segment {name} ends at LSN {end}, durable is {durable_lsn}"
                )
