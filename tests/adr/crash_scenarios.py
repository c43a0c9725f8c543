"""What is cut off: each scenario runs the log's own code through one part of its life.

A scenario makes a world, fresh or left behind by an earlier opening and its end, and has a job to run in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from adr_crash import Lab, Trace, Traced, append, at_random, laboratory, oldest
from adr_harness import entries, until
from crash_states import EMPTY, Allowed, Bounds, Explorer, Job, Moment, Start, State, Tally, Violation, allowed
from raftkv_node.adr import MARK_USER, DurableLog, Log, Record, configuration, entry, hard_state, mark, snapshot
from raftkv_node.adr.files import SyncFailed
from raftkv_node.adr.ringlog import RingLog

HEADERS_BYTES = 8192
#: Data for about three records of the larger kind: it wraps; and segments of about one batch.
SMALL = {"adr_size_bytes": HEADERS_BYTES + 4096, "segment_size_bytes": 1500}
WIDE = {"adr_size_bytes": HEADERS_BYTES + 10240}
USER_MARK = 20


def drain(log: Log) -> None:
    if isinstance(log, RingLog):
        log.drain()


def give_up(log: Log, trace: Trace, below_index: int) -> None:
    """Releases: in ring mode here, since tests drain themselves; by the flush thread in disk mode."""
    trace.released.append((*trace.position(), below_index))
    if isinstance(log, RingLog):
        log._release_below = below_index
        log._release_segments()
    else:
        log.release(below_index)
        until(lambda: not log._wake.is_set())


# --- jobs ---


def few_words(log: Log, trace: Trace) -> None:
    """Batches so small that every subset of their words can be tried."""
    append(log, trace, [hard_state(1, 0xA1, 0)])
    append(log, trace, [entry(1, 1, 0, b"one")])
    append(log, trace, [entry(1, 2, 0, b"two"), hard_state(1, 0xA1, 1)])
    append(log, trace, [hard_state(2, 0, 1)])
    append(log, trace, [hard_state(2, 0xA2, 1), entry(2, 2, 0, b"won")])


def batches(log: Log, trace: Trace) -> None:
    """Elections, entries that supersede others, marks, configurations rolled back, a pad at the ring's end, a wrap."""
    append(log, trace, [hard_state(1, 0xA1, 0), configuration(1, 1, b"one"), *entries(1, 1, 2)])
    append(log, trace, [*entries(1, 3, 3, b"x" * 100), mark(USER_MARK, 1, 5, b"mark")])
    drain(log)
    append(log, trace, [entry(1, 6, 0, b"y" * 700)])
    append(log, trace, [hard_state(2, 0xA2, 2), *entries(2, 4, 2, b"two"), configuration(2, 4, b"two")])
    append(log, trace, [hard_state(3, 0xA3, 2), *entries(3, 4, 1, b"three"), configuration(1, 1, b"one")])
    drain(log)
    append(log, trace, [entry(3, 5, 0, b"z" * 1200), entry(3, 6, 0, b"w" * 900)])
    append(log, trace, [])
    drain(log)
    append(log, trace, [entry(3, 7, 0, b"v" * 700), mark(USER_MARK, 3, 7, b"again")])
    append(log, trace, entries(3, 8, 1))
    assert not isinstance(log, RingLog) or log.durable_lsn > log._ring.data_bytes + 1000, "it wraps"


def drains(log: Log, trace: Trace) -> None:
    """Drain, manifest, header flip and reclaim after each batch; new segments; the ring reused again and again."""
    append(log, trace, [hard_state(1, 0xA1, 0), *entries(1, 1, 2)])
    for turn in range(6):
        append(log, trace, [entry(1, 3 + turn, 0, b"%d" % turn * 600)])
        drain(log)
    append(log, trace, [hard_state(2, 0xA2, 8), entry(2, 8, 0, b"superseded")])
    drain(log)


def releases(log: Log, trace: Trace) -> None:
    """Segments given up below an applied index, one after the other, while others are written (D14)."""
    append(log, trace, [hard_state(1, 0xA1, 0), configuration(1, 1, b"one")])
    for turn in range(1, 7):
        append(log, trace, [entry(1, turn, 0, b"r" * 900)])
        drain(log)
        if turn > 2:
            give_up(log, trace, turn - 1)
    append(log, trace, [hard_state(1, 0xA1, 6)])
    drain(log)
    give_up(log, trace, 6)


def snapshots(log: Log, trace: Trace) -> None:
    """A snapshot replaces the log twice: once while the old tail is in the ring, once when all is on disk."""
    append(log, trace, [hard_state(1, 0xA1, 0), configuration(1, 1, b"one"), *entries(1, 1, 3)])
    append(log, trace, [hard_state(2, 0xA2, 40), snapshot(2, 40), configuration(2, 30, b"from a snapshot")])
    append(log, trace, entries(2, 41, 2))
    drain(log)
    append(log, trace, [entry(2, 43, 0, b"s" * 900)])
    drain(log)
    append(log, trace, [snapshot(3, 90), hard_state(3, 0xA3, 90), configuration(3, 90, b"another")])
    drain(log)
    give_up(log, trace, 91)
    append(log, trace, entries(3, 91, 1))


def closes(log: Log, trace: Trace) -> None:
    """A clean end (D9)."""
    append(log, trace, [hard_state(3, 0xA3, 0), *entries(3, 1, 3)])
    drain(log)
    append(log, trace, [hard_state(4, 0, 2), *entries(4, 3, 1)])
    log.close()


def retires(log: Log, trace: Trace) -> None:
    append(log, trace, [hard_state(3, 0xA3, 0), *entries(3, 1, 3)])
    drain(log)
    append(log, trace, entries(3, 4, 1, b"r" * 900))
    trace.retired = trace.position()
    log.retire()


def goes_on(log: Log, trace: Trace) -> None:
    """What a recovered member does: a new term, an entry in the place of what may have been dropped, a drain."""
    term, _, commit = log._index.hard_state
    follows = log.last_index + 1
    append(log, trace, [hard_state(term + 1, 0xB1, commit), entry(term + 1, follows, 0, b"in its place")])
    drain(log)
    append(log, trace, [hard_state(term + 2, 0xB2, commit)])


class Watched:
    """A log under `DurableLog`, whose appends and releases stand in the trace."""

    def __init__(self, log: Log, trace: Trace) -> None:
        self._log, self._trace = log, trace

    def append(self, batch: list[Record]) -> int:
        append(self._log, self._trace, batch)
        lsn: int = self._trace.fenced[-1][1]
        return lsn

    def release(self, below_index: int) -> None:
        give_up(self._log, self._trace, below_index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def library(log: Log, trace: Trace) -> None:
    """The log as a library: no hard state, no configuration; what was released is a mark, before any segment goes."""
    items = DurableLog(cast(Log, Watched(log, trace)), 1)
    items.append([b"one", b"two"])
    for turn in range(5):
        items.append(b"%d" % turn * 600)
        drain(log)
        if turn > 1:
            items.release(items.last)
    items.append(b"last")
    items.release(items.last + 1)
    assert [*items.replay()] == [], "all is released"


def library_goes_on(log: Log, trace: Trace) -> None:
    released = log._index.mark(MARK_USER)
    items = DurableLog(cast(Log, Watched(log, trace)), released[1] if released is not None else 1)
    assert [at for at, _ in items.replay()] == [*range(items.first, items.last + 1)]
    items.append(b"in its place")
    drain(log)
    items.release(items.last)


class OneSyncFails(Traced):
    """The third sync of a segment fails; no file is synced again after that."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._left = 3
        self._failed: set[int] = set()

    def fdatasync(self, fd: int) -> None:
        self._left -= 1
        if self._left == 0:
            self._failed.add(os.fstat(fd).st_ino)
            raise SyncFailed(errno.EIO, "Input/output error")
        self.fsync(fd)

    def fsync(self, fd: int) -> None:
        assert os.fstat(fd).st_ino not in self._failed, "a failed sync is tried again on the same file"
        super().fsync(fd)


def makes_a_segment_anew(log: Log, trace: Trace) -> None:
    """D15: a sync fails, and the segment is written again as another file."""
    append(log, trace, [hard_state(1, 0xA1, 0), *entries(1, 1, 2)])
    drain(log)
    for first in (3, 6, 9):
        append(log, trace, entries(1, first, 3, b"x" * 100))
        with contextlib.suppress(SyncFailed):
            drain(log)
    append(log, trace, entries(1, 12, 1))
    drain(log)
    assert log.stats()["segment_rebuilds"] == 1


# --- worlds ---


@dataclass(frozen=True)
class Scenario:
    """`lead`: what an earlier opening did; `cut`: how it ended, "clean", "power" or "kill". `then`: what is another
    one from the second opening on: options of the log, "ring", "place"."""

    name: str
    job: Job | None
    ring: bool = True
    lead: Job | None = None
    cut: str = ""
    then: dict[str, Any] = field(default_factory=dict)
    again: Job | None = goes_on
    worlds: int = 1
    traced: type[Traced] = Traced


def _leave(lab: Lab, scenario: Scenario, rng: random.Random) -> Start:
    """The world that the scenario's job finds."""
    world = lab.new()
    fresh = Allowed([EMPTY], finished=True)
    lab.traced = scenario.traced
    if scenario.lead is None:
        return Start(world, fresh)
    trace, recovered = lab.run(world, scenario.lead)
    shown = State.of(recovered)
    moment: Moment = trace.position()
    if scenario.cut != "clean":
        assert trace.opened is not None
        opened = trace.opened
        moment = rng.choice([moment for moment in trace.moments() if moment >= opened])
    choose = oldest if scenario.cut == "clean" else at_random(rng.getrandbits(32))
    power = scenario.cut != "kill"
    _change(lab, scenario.then)
    return Start(lab.crash(world, trace, moment, choose, power=power), allowed(trace, fresh, shown, moment))


def _change(lab: Lab, then: dict[str, Any]) -> None:
    options = dict(then)
    lab.ring = options.pop("ring", lab.ring)
    place = options.pop("place", None)
    if place is not None:
        lab.places.append(lab.place)
        lab.place = place
    lab.changes.update(options)


SCENARIOS = (
    Scenario("batches of few words", few_words),
    Scenario("batches, wraps, pads", batches),
    Scenario("drain, header flip, reclaim", drains),
    Scenario("segments released", releases),
    Scenario("snapshot installed", snapshots),
    Scenario("segment made anew", makes_a_segment_anew, traced=OneSyncFails),
    Scenario("clean shutdown", closes),
    Scenario("retire", retires),
    Scenario("switch after a clean shutdown", goes_on, lead=closes, cut="clean"),
    Scenario("recovery after a power cut", goes_on, lead=batches, cut="power", worlds=4),
    Scenario("recovery after a kill", goes_on, lead=batches, cut="kill", worlds=4),
    Scenario("recovery with segments released", goes_on, lead=releases, cut="power", worlds=2),
    Scenario("recovery in a snapshot's install", goes_on, lead=snapshots, cut="power", worlds=4),
    Scenario("resize, larger", goes_on, lead=batches, cut="power", then=WIDE, worlds=2),
    Scenario(
        "resize, smaller", goes_on, lead=drains, cut="power", then={"adr_size_bytes": HEADERS_BYTES + 3072}, worlds=2
    ),
    Scenario("relocation after a clean shutdown", goes_on, lead=closes, cut="clean", then={"place": "pmem2"}),
    Scenario(
        "relocation after a power cut", goes_on, lead=batches, cut="power", then={"place": "pmem2", **WIDE}, worlds=2
    ),
    Scenario("from ring to disk mode", goes_on, lead=closes, cut="clean", then={"ring": False}),
    Scenario("disk mode, batches", batches, ring=False),
    Scenario("disk mode, segments released", releases, ring=False),
    Scenario("disk mode, snapshot installed", snapshots, ring=False),
    Scenario("disk mode, clean shutdown", closes, ring=False),
    Scenario("disk mode, retire", retires, ring=False),
    Scenario("disk mode, recovery", goes_on, ring=False, lead=batches, cut="power", worlds=4),
    Scenario("library", library, again=library_goes_on),
    Scenario("library, recovery", library_goes_on, lead=library, cut="power", again=library_goes_on, worlds=4),
    Scenario("library in disk mode", library, ring=False, again=library_goes_on),
    Scenario("from disk mode to ring", goes_on, ring=False, lead=closes, cut="clean", then={"ring": True}),
)


@contextmanager
def a_lab(scenario: Scenario, seed: int) -> Iterator[Lab]:
    folder = laboratory()
    try:
        with pytest.MonkeyPatch.context() as patch:
            lab = Lab(folder, patch, scenario.ring, seed)
            lab.changes = dict(SMALL)
            yield lab
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(scenario: Scenario, seed: int, bounds: Bounds, worlds: int = 0, **planted: Any) -> Tally:
    """Explores a scenario in so many worlds (0: as many as it names). Violations are counted, not raised."""
    tally = Tally(scenario.name)
    count = (worlds or scenario.worlds) if scenario.lead is not None and scenario.cut != "clean" else 1
    share = Bounds(**{**vars(bounds), "seconds": bounds.seconds / count})
    for number in range(count):
        with a_lab(scenario, seed + number) as lab:
            try:
                start = _leave(lab, scenario, random.Random(seed + number))
                Explorer(lab, share, tally, seed + number, **planted).explore(start, scenario.job, scenario.again)
            except Violation as violation:
                tally.violations.append(f"seed {seed + number}: {violation}")
    return tally
