"""What a log does for its user, in both modes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from adr_harness import KIB, SMALL_RING_BYTES, Machine, Member, durably, entries, until
from raftkv_node._engine import Ring
from raftkv_node.adr import (
    Environment,
    Files,
    HardState,
    Level,
    LogFailed,
    LogOptions,
    Medium,
    Owned,
    RingFull,
    Unusable,
    configuration,
    entry,
    hard_state,
    mark,
    record_bytes,
    snapshot,
)
from raftkv_node.adr.records import MARK_USER
from raftkv_node.adr.ringlog import RingLog


def test_a_new_log_is_empty(either: Member) -> None:
    log, recovered = either.open()
    assert recovered.fresh
    assert (recovered.first_index, recovered.last_index, recovered.entries) == (1, 0, [])
    assert recovered.hard_state == HardState(0, 0, 0)
    assert recovered.configuration is None
    log.close()


@pytest.mark.parametrize("clean", [True, False])
def test_all_that_was_durable_is_recovered(either: Member, clean: bool) -> None:
    log, _ = either.open()
    durably(log, [hard_state(2, 0xA1, 0), configuration(1, 1, b"members"), *entries(2, 1, 5)])
    durably(log, [*entries(2, 6, 3), hard_state(2, 0xA1, 7), mark(MARK_USER, 2, 7, b"opened")])
    log.close(clean=clean)
    log, recovered = either.open()
    assert not recovered.fresh
    assert recovered.hard_state == HardState(2, 0xA1, 7)
    assert recovered.configuration == (1, 1, b"members")
    assert recovered.marks[MARK_USER] == (2, 7, b"opened")
    assert [(found.index, found.payload) for found in recovered.entries] == [
        (index, b"value-%d" % index) for index in range(1, 9)
    ]
    assert (recovered.last_index, recovered.last_term) == (8, 2)
    log.close()


def test_a_later_entry_supersedes_all_from_its_index_on(either: Member) -> None:
    log, _ = either.open()
    durably(log, entries(1, 1, 8))
    durably(log, entries(2, 4, 2, b"new"))
    assert log.last_index == 5
    for _ in range(2):
        found = log.read_entries(1, 100, 1 << 20)
        assert [(item.index, item.term) for item in found] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
        log.close(clean=False)
        log, recovered = either.open()
        assert recovered.last_term == 2
    log.close()


def test_a_gap_a_lower_term_or_a_second_vote_is_refused_and_nothing_is_written(either: Member) -> None:
    log, _ = either.open()
    durably(log, [hard_state(3, 1, 0), *entries(3, 1, 2)])
    for batch in (entries(3, 4, 1), [hard_state(2, 1, 0)], [hard_state(3, 2, 0)], [entry(3, 0, 0, b"")]):
        before = log.durable_lsn
        with pytest.raises(ValueError):
            log.append(batch)
        assert log.durable_lsn == before
    durably(log, [hard_state(4, 2, 0), *entries(4, 3, 1)])
    log.close()


def test_a_snapshot_replaces_the_log(either: Member) -> None:
    log, _ = either.open()
    durably(log, entries(1, 1, 4))
    durably(log, [snapshot(5, 1000), *entries(5, 1001, 2)])
    assert (log.first_index, log.last_index, log.term(1000)) == (1001, 1002, 5)
    log.close(clean=False)
    log, recovered = either.open()
    assert recovered.snapshot == (5, 1000, b"")
    assert (recovered.first_index, recovered.last_index, recovered.base_term) == (1001, 1002, 5)
    log.close(clean=False)
    log, recovered = either.open()
    assert (recovered.first_index, recovered.last_index) == (1001, 1002)
    log.close()


def test_old_segments_are_released_and_the_rest_is_recovered(either: Member) -> None:
    log, _ = either.open(segment_size_bytes=2048, recovered_entries_bytes=1024)
    for first in range(1, 101, 5):
        durably(log, [hard_state(1, 9, first - 1), *entries(1, first, 5)])
        if isinstance(log, RingLog):
            log.drain()
    before = log.stats()["segments"]
    assert before > 3
    log.release(60)
    until(lambda: log.stats()["segments"] < before)
    assert 1 < log.first_index <= 60
    assert log.read_entries(1, 10, 1 << 20) == []
    first = log.first_index
    assert [item.index for item in log.read_entries(first, 200, 1 << 20)] == list(range(first, 101))
    log.close(clean=False)
    log, recovered = either.open(recovered_entries_bytes=1024)
    assert (recovered.first_index, recovered.last_index) == (first, 100)
    assert recovered.hard_state == HardState(1, 9, 95)
    assert 0 < len(recovered.entries) < 100 - first, "older entries are left on disk"
    assert [item.index for item in log.read_entries(first, first + 3, 1 << 20)] == [first, first + 1, first + 2]
    log.close()


def test_a_disk_log_whose_newest_segment_is_all_that_is_left_survives_a_crash(folder: Path) -> None:
    member = Member(folder, Machine(), ring=False, changes={"segment_size_bytes": 500}).make()
    log, _ = member.open()
    durably(log, [hard_state(1, 1, 0)])
    for index in range(1, 10):
        durably(log, [entry(1, index, 0, b"v" * 200)])
    log.release(9)
    until(lambda: len(member.segments()) == 1)
    log.close(clean=False)
    log, recovered = member.open()
    assert (recovered.first_index, recovered.last_index) == (log.first_index, 9)
    assert tuple(recovered.hard_state) == (1, 1, 0)
    log.close()


class Operations(Files):
    """Remembers what changes names, and when folders are synced."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Path]] = []

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.seen.append(("unlink", path))

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.seen.append(("sync", path))


def test_a_power_cut_in_a_release_leaves_no_hole(member: Member) -> None:
    """An older segment must not come back beside a later one that is gone."""
    files = Operations()
    log, _ = member.open(segment_size_bytes=500, files=files)
    assert isinstance(log, RingLog)
    for index in range(1, 10):
        log.append([entry(1, index, 0, b"v" * 200)])
        log.drain()
    files.seen.clear()
    log._release_below = 9
    log._release_segments()
    steps = [what for what, path in files.seen]
    assert steps.count("unlink") > 2 and steps == ["unlink", "sync"] * (len(steps) // 2)
    log.close()


@pytest.mark.parametrize("ring", [True, False])
def test_folders_that_a_killed_process_made_are_made_durable(folder: Path, ring: bool) -> None:
    member = Member(folder, Machine(), ring=ring).make()
    (member.data / "wal").mkdir()
    if ring:
        member.ring_folder.mkdir(parents=True)
    files = Operations()
    log, _ = member.open(files=files)
    expected = {member.data} | ({member.pmem, member.ring_folder.parent} if ring else set())
    assert expected <= {path for what, path in files.seen if what == "sync"}
    log.close()


def test_an_emptied_log_knows_where_it_ends(either: Member) -> None:
    """All entries are released: the position at the start of the segment that is left says where the log goes on."""
    log, _ = either.open()
    durably(log, entries(4, 1, 10))
    log.close()
    log, _ = either.open()
    log.release(11)
    if isinstance(log, RingLog):
        log.drain()
    durably(log, [hard_state(5, 0, 10)])
    until(lambda: log.stats()["segments"] == 1)
    assert (log.first_index, log.last_index, log.term(10)) == (11, 10, 4)
    log.close()
    log, recovered = either.open()
    assert (recovered.first_index, recovered.last_index, recovered.last_term) == (11, 10, 4)
    with pytest.raises(ValueError):
        log.append(entries(5, 1, 1))
    durably(log, entries(5, 11, 1))
    log.close()


def test_a_full_ring_refuses_and_goes_on_after_a_drain(member: Member) -> None:
    log, _ = member.open()
    assert isinstance(log, RingLog)
    index = 1
    with pytest.raises(RingFull):
        while True:
            log.append(entries(1, index, 2, bytes(500)))
            index += 2
    assert log.pressure() > 0.9
    assert log.last_index == index - 1, "what did not fit has left no trace"
    log.drain()
    assert log.pressure() == 0.0
    log.append(entries(1, index, 2, bytes(500)))
    log.close(clean=False)
    log, recovered = member.open()
    assert recovered.last_index == index + 1
    log.close()


def test_the_ring_is_used_round_and_round(member: Member) -> None:
    log, _ = member.open()
    assert isinstance(log, RingLog)
    for first in range(1, 301, 3):
        log.append(entries(1, first, 3, bytes(first)))
        if log.pressure() > 0.5:
            log.drain()
    assert log.durable_lsn > 3 * SMALL_RING_BYTES
    assert len(log.read_entries(1, 301, 1 << 20)) == 300
    log.close(clean=False)
    log, recovered = member.open()
    assert [len(item.payload) for item in recovered.entries][:3] == [3, 3, 3]
    assert len(recovered.entries) == 300
    log.close()


@pytest.mark.parametrize("left", [64, 128, 192, 256, 320])
def test_a_segment_may_begin_where_the_ring_wraps(member: Member, left: int) -> None:
    """A pad before the segment's hard state, or behind it, is not damage."""
    data_bytes = SMALL_RING_BYTES - 8 * KIB
    log, _ = member.open(segment_size_bytes=data_bytes - KIB)
    assert isinstance(log, RingLog)
    log.append([hard_state(1, 1, 0), configuration(1, 1, b"c" * 100)])
    unit = record_bytes(0)
    count = (data_bytes - left - log.durable_lsn) // unit
    log.append([entry(1, index, 0, b"") for index in range(1, count + 1)])
    assert data_bytes - log.durable_lsn == left
    log.drain()
    log.append([entry(1, count + 1, 0, b"first of its segment")])
    log.drain()
    log.close()
    log, recovered = member.open()
    assert recovered.last_index == count + 1 and recovered.entries[-1].payload == b"first of its segment"
    log.close()


class DrainedAtOnce:
    """A ring beside which the drain thread runs as soon as a batch is durable, before its appender goes on."""

    def __init__(self, log: RingLog) -> None:
        self._log, self._ring = log, log._ring

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)

    def append(self, *batch: Any) -> tuple[int, int]:
        places = self._ring.append(*batch)
        self._log.drain()
        return places


def test_a_drain_that_overtakes_its_appender_never_passes_the_next_segments_start(member: Member) -> None:
    """The drain thread may see a batch before `append` has returned: by then it must know where a segment begins."""
    log, _ = member.open(segment_size_bytes=KIB)
    assert isinstance(log, RingLog)
    log._ring = cast(Ring, DrainedAtOnce(log))
    drained = 0
    for index in range(1, 40):
        log.append([hard_state(1, 1, 0), entry(1, index, 0, b"x" * 200)])
        assert log.stats()["drained_lsn"] == log.durable_lsn and member.manifest().drained_lsn > drained
        drained = member.manifest().drained_lsn
    assert len(member.segments()) > 5
    log.close(clean=False)
    log, recovered = member.open()
    assert [found.index for found in recovered.entries] == [*range(1, 40)]
    log.close()


def test_a_refused_batch_begins_no_segment(member: Member) -> None:
    log, _ = member.open(segment_size_bytes=KIB)
    assert isinstance(log, RingLog)
    log.append([hard_state(1, 1, 0), *entries(1, 1, 20)])
    for batch, refused in ((entries(1, 30, 1), ValueError), (entries(1, 21, 4, b"x" * 4000), RingFull)):
        with pytest.raises(refused):
            log.append(batch)
    log.drain()
    before = len(member.segments())
    log.append(entries(1, 21, 1))
    log.drain()
    assert len(member.segments()) == before + 1
    log.close()
    log, recovered = member.open()
    assert recovered.last_index == 21
    log.close()


class ReleasedMeanwhile:
    """An index behind whose answer to a reader the log goes on: what was found is drained and released."""

    def __init__(self, log: RingLog, go_on: Callable[[], None]) -> None:
        self._index, self._go_on = log._index, go_on

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def locate(self, *asked: int) -> list[tuple[int, int, int]]:
        places = self._index.locate(*asked)
        self._go_on()
        return places


def test_a_read_that_a_release_overtakes_ends_empty_however_long_it_is(member: Member) -> None:
    """Released entries are in no segment: they were looked for in the ring, in a range that is longer than the ring."""
    log, _ = member.open(segment_size_bytes=KIB)
    assert isinstance(log, RingLog)
    log.append([hard_state(1, 1, 0)])
    for index in range(1, 81):
        log.append(entries(1, index, 1, b"x" * 400))
        log.drain()

    def release() -> None:
        log.release(60)
        assert log.background_pass() is None

    index, log._index = log._index, cast(Any, ReleasedMeanwhile(log, release))
    assert log.read_entries(1, 81, 1 << 20) == []
    log._index = index
    assert log.read_entries(60, 81, 1 << 20)[-1].index == 80
    log.close()


def test_entries_are_read_from_ring_and_segments_alike(member: Member) -> None:
    log, _ = member.open()
    assert isinstance(log, RingLog)
    log.append(entries(1, 1, 10))
    log.drain()
    log.append(entries(1, 11, 10))
    assert [item.index for item in log.read_entries(5, 16, 1 << 20)] == list(range(5, 16))
    assert len(log.read_entries(1, 21, 1)) == 1, "at least one"
    log.close()


def test_disk_mode_calls_back_when_durable(folder: Path) -> None:
    member = Member(folder, Machine(), ring=False).make()
    log, _ = member.open()
    seen: list[int] = []
    log.on_durable = seen.append
    lsn = log.append(entries(1, 1, 3))
    until(lambda: seen and seen[-1] >= lsn)
    assert (log.level, log.medium) == (Level.POWER, Medium.DISK)
    log.close()


def test_one_owner(either: Member) -> None:
    log, _ = either.open()
    with pytest.raises(Owned):
        either.open()
    log.close()
    log, _ = either.open()
    log.close()


def test_a_closed_log_takes_nothing(either: Member) -> None:
    log, _ = either.open()
    log.close()
    with pytest.raises(LogFailed):
        log.append(entries(1, 1, 1))


def test_retiring_leaves_nothing(either: Member) -> None:
    log, _ = either.open()
    durably(log, entries(1, 1, 3))
    log.retire()
    assert [path for path in either.folder.rglob("*") if path.is_file()] == []
    log, recovered = either.open()
    assert recovered.fresh
    log.close()


def test_sizes_out_of_bounds_are_refused(member: Member) -> None:
    limits = LogOptions(data_dir=member.data, identity=member.options().identity).adr_size_limits_bytes
    assert limits == (4 << 20, 100 << 20)
    for size in ((4 << 20) - 1, (100 << 20) + 1):
        with pytest.raises(Unusable):
            member.open(adr_size_bytes=size, adr_size_limits_bytes=limits)
    assert list(member.data.iterdir()) == []


def test_a_small_ring_is_drained_when_half_of_it_is_used(member: Member) -> None:
    log, _ = member.open()
    assert isinstance(log, RingLog)
    log._drain_at_bytes = log._ring.data_bytes // 2
    log.append(entries(1, 1, 2, bytes(2000)))
    assert log.stats()["drains"] == 0
    log.append(entries(1, 3, 3, bytes(2000)))
    until(lambda: log.stats()["ring_used_bytes"] == 0)
    assert log.stats()["drain_lag_milliseconds"] == 0
    log.close()


def test_reads_race_with_appends_drains_laps_and_releases(either: Member) -> None:
    """What any thread reads is right or not there, while the ring is overwritten and segments go."""
    log, _ = either.open(drain_interval_seconds=0.001, segment_size_bytes=3000)
    wrong: list[str] = []
    reads = [0]
    stop = threading.Event()

    def read() -> None:
        rng = random.Random(1)
        while not stop.is_set():
            last = log.last_index
            lo = max(1, last - rng.randint(0, 60))
            try:
                found = log.read_entries(lo, last + 1, 4000)
            except LogFailed as error:
                wrong.append(str(error))
                return
            reads[0] += len(found)
            for index, item in enumerate(found, lo):
                if item.index != index or item.payload != b"%d" % index * 9:
                    wrong.append(f"{item} at {index}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        index = 0
        while index < 6000 and not wrong:
            try:
                log.append([entry(1, index + n, 0, b"%d" % (index + n) * 9) for n in range(1, 4)])
            except RingFull:
                time.sleep(0.0005)
                continue
            index += 3
            if index % 300 == 0:
                log.release(index - 40)
                until(lambda: log.durable_lsn and log.pressure() < 0.9)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    assert reads[0] > 0
    assert log.failed is None
    log.close()
    log, recovered = either.open()
    assert recovered.last_index == index
    assert recovered.first_index > 1
    log.close()


def test_the_real_machine_is_probed_and_never_overstated(folder: Path, tmp_path: Path) -> None:
    """No test machine is assumed to have persistent memory; what it has is named, and nothing is left behind."""
    machine = Environment()
    assert machine.boot_id()
    assert machine.host()
    for place in (folder, tmp_path):
        probe = machine.probe_ring(place)
        assert probe == machine.probe_ring(place), "stable"
        assert (probe.medium == Medium.PMEM) == (probe.level != Level.PROCESS)
        assert probe.level == Level.PROCESS or (probe.map_sync and probe.dax)
        assert probe.level != Level.POWER or probe.persistence_domain
        volatile = probe.file_system in ("tmpfs", "ramfs")
        assert machine.probe_disk(place).level == (Level.PROCESS if volatile else Level.POWER)
        assert not volatile or machine.boot_id() in probe.identity
        assert list(place.iterdir()) == []
