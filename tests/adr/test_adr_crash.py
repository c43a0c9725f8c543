"""Crashes at every step of opening, appending, draining, switching and closing: every acknowledged record is there
afterwards, nothing else is, and the member is not refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adr_crash import EMPTY, Lab, Trace, append, at_random, expected, laboratory, newest, oldest, state_of
from adr_harness import entries
from raftkv_node.adr import Log, LogError, configuration, entry, hard_state
from raftkv_node.adr.ringlog import RingLog

SAMPLES = 2


@pytest.fixture
def room() -> Iterator[Path]:
    folder = laboratory()
    yield folder
    shutil.rmtree(folder)


def work(log: Log, trace: Trace) -> None:
    """Two elections, entries that supersede others, a drain in the middle, a wrap, a new segment, a clean end."""
    append(log, trace, [hard_state(1, 0xA1, 0), configuration(1, 1, b"one"), *entries(1, 1, 2)])
    append(log, trace, entries(1, 3, 3, b"x" * 100))
    drain(log)
    append(log, trace, [entry(1, 6, 0, b"y" * 700)])
    append(log, trace, [hard_state(2, 0xA2, 2), *entries(2, 4, 2, b"two"), configuration(2, 4, b"two")])
    drain(log)
    append(log, trace, [entry(2, 6, 0, b"z" * 700), entry(2, 7, 0, b"w" * 500)])
    append(log, trace, [])
    drain(log)
    append(log, trace, [*entries(2, 8, 2), hard_state(2, 0xA2, 9)])
    drain(log)
    append(log, trace, [entry(2, 10, 0, b"v" * 700)])
    append(log, trace, entries(2, 11, 1))
    assert not isinstance(log, RingLog) or log.durable_lsn > log._ring.data_bytes + 1000, "it wraps"


def drain(log: Log) -> None:
    if isinstance(log, RingLog):
        log.drain()


def work_and_close(log: Log, trace: Trace) -> None:
    append(log, trace, [hard_state(3, 0xA3, 0), *entries(3, 1, 3)])
    log.close()


@pytest.fixture(params=["ring", "disk"])
def lab(room: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(room, monkeypatch, request.param == "ring")
    # Data for about three records of the larger kind: it wraps; and segments of about one batch.
    lab.changes = {"adr_size_bytes": 8192 + 4096, "segment_size_bytes": 1500}
    return lab


def explore(lab: Lab, job: Any, *, without: str = "", early_ack: int = 0, samples: int = SAMPLES) -> int:
    """Runs a job in a new world and crashes it at every moment. Returns how many states were opened."""
    world = lab.new()
    trace, _ = lab.run(world, job)
    opened = 0
    for moment in trace.moments():
        allowed = expected(trace, EMPTY, moment, early_ack)
        choices = [oldest, newest, *(at_random(hash((*moment, n))) for n in range(samples))]
        for choose in choices:
            after = lab.crash(world, trace, moment, choose, without=without)
            try:
                log, recovered = after.member.open()
            except LogError as error:
                raise AssertionError(f"refused after {trace.operations[moment[0]]} {moment}: {error}") from error
            log.close(clean=False)
            assert state_of(recovered) in allowed, f"after {trace.operations[moment[0]]} {moment}: {recovered}"
            lab.discard(after)
            opened += 1
    return opened


def test_a_power_cut_at_any_moment_loses_nothing_acknowledged(lab: Lab) -> None:
    assert explore(lab, work) > 150


def test_a_power_cut_in_a_clean_shutdown_loses_nothing_acknowledged(lab: Lab) -> None:
    assert explore(lab, work_and_close) > 50


@pytest.mark.parametrize("power", [True, False])
def test_a_crash_in_the_recovery_of_a_crash_loses_nothing_and_brings_nothing_back(lab: Lab, power: bool) -> None:
    explore_twice(lab, power)


def test_a_crash_while_the_ring_is_resized_loses_nothing(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(room, monkeypatch, True)
    lab.changes = {"adr_size_bytes": 8192 + 4096, "segment_size_bytes": 1500}
    explore_twice(lab, True, crashes=3, then={"adr_size_bytes": 8192 + 10240})


@pytest.mark.parametrize("from_ring", [True, False])
def test_a_crash_while_the_mode_is_changed_loses_nothing(
    room: Path, monkeypatch: pytest.MonkeyPatch, from_ring: bool
) -> None:
    """Through clean, from a ring to none and back: every state of the change opens in the new mode, with all of it."""
    lab = Lab(room, monkeypatch, from_ring)
    world = lab.new()
    trace, _ = lab.run(world, work_and_close)
    whole = expected(trace, EMPTY, trace.position())
    assert len(whole) == 1
    lab.ring = not from_ring
    second = lab.crash(world, trace, trace.position(), oldest)
    again, _ = lab.run(second, None)
    for moment in again.moments():
        for choose in (oldest, newest, at_random(hash(moment))):
            third = lab.crash(second, again, moment, choose)
            log, recovered = third.member.open()
            log.close(clean=False)
            assert state_of(recovered) in whole
            lab.discard(third)


def explore_twice(lab: Lab, power: bool, crashes: int = 12, then: dict[str, Any] | None = None) -> None:
    """D3: what a finished recovery showed is what every later one shows, whatever happens in between.

    `then`: options that are other ones from the second opening on.
    """
    world = lab.new()
    trace, _ = lab.run(world, work)
    moments = list(trace.moments())
    lab.changes.update(then or {})
    for number, moment in enumerate(moments[:: max(1, len(moments) // crashes)]):
        allowed = expected(trace, EMPTY, moment)
        second = lab.crash(world, trace, moment, at_random(number), power=power)
        again, seen = lab.run(second, None)
        shown = state_of(seen)
        assert shown in allowed
        for inner in again.moments():
            finished = again.opened is not None and inner >= again.opened
            for choose in (oldest, newest, at_random(hash(inner))):
                third = lab.crash(second, again, inner, choose)
                try:
                    log, recovered = third.member.open()
                except LogError as error:
                    raise AssertionError(f"refused after {moment} and {inner}: {error}") from error
                log.close(clean=False)
                assert state_of(recovered) in ([shown] if finished else allowed), (moment, inner)
                lab.discard(third)
        lab.discard(second)
