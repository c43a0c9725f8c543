"""Disks that fail, stall and run full beneath the drain (D6, D15): what is acknowledged stays, and the log says so."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from adr_faults import FaultyDisk
from adr_harness import NEVER_BYTES, Machine, Member, durably, entries, until
from raftkv_node.adr import (
    ALARM_FAILING,
    ALARM_FULL,
    ALARM_NO_SPACE,
    ALARM_STALLED,
    PRESSURE_FULL,
    PRESSURE_SHRINK,
    Files,
    Log,
    LogFailed,
    Refused,
    RingFull,
    entry,
)
from raftkv_node.adr.files import SyncFailed
from raftkv_node.adr.ringlog import DRAIN_TRIES, RingLog
from raftkv_node.adr.segments import REBUILT_SUFFIX, SEGMENT_HEADER_BYTES, Segments

SOON_SECONDS = 0.005


def opened(member: Member, disk: Files, **changes: Any) -> Log:
    log, _ = member.open(files=disk, drain_interval_seconds=SOON_SECONDS, stalled_after_seconds=0.05, **changes)
    return log


def drained(log: Log) -> bool:
    return not log._behind and not log.alarms()


def recovers(member: Member, last_index: int) -> None:
    log, recovered = member.open()
    assert recovered.last_index == last_index
    assert [item.payload for item in recovered.entries] == [b"value-%d" % n for n in range(1, last_index + 1)]
    log.close(clean=False)


# --- failed syncs and writes ---


class EverySecondSyncFails(Files):
    calls = 0

    def fdatasync(self, fd: int) -> None:
        self.calls += 1
        if self.calls % 2 == 0:
            raise SyncFailed(errno.EIO, "Input/output error")
        super().fdatasync(fd)


def test_d15_failures_with_progress_between_them_do_not_end_the_log(member: Member) -> None:
    """A drain that has brought a segment to disk before it failed used to count as one more failure in a row."""
    log, _ = member.open(files=EverySecondSyncFails(), segment_size_bytes=256)
    assert isinstance(log, RingLog)
    for index in range(1, 21):
        log.append(entries(1, index, 1))
    failures = 0
    while log._behind:
        failures += log.background_pass() is not None
        assert log.failed is None, f"after {failures} failures"
    assert failures > 2 * DRAIN_TRIES
    log.close(clean=False)
    recovers(member, 20)


@pytest.mark.parametrize("what", ["failing_syncs", "failing_writes"])
def test_d15_after_a_failed_sync_or_write_the_segment_is_made_anew(member: Member, what: str) -> None:
    """From what was synced of the file, and the ring; the file that failed is never synced again."""
    disk = FaultyDisk()
    log = opened(member, disk)
    durably(log, entries(1, 1, 5))
    until(lambda: drained(log))
    setattr(disk, what, 1)
    durably(log, entries(1, 6, 5))
    until(lambda: log.stats()["drain_errors"] == 1)
    until(lambda: drained(log))
    durably(log, entries(1, 11, 5))
    until(lambda: drained(log))
    assert log.failed is None
    assert log.stats()["segment_rebuilds"] == 1
    assert disk.synced_again == []
    assert len(log.read_entries(1, 16, 1 << 20)) == 15
    log.close(clean=False)
    disk.power_cut(member.data)
    assert not list(member.data.rglob("*" + REBUILT_SUFFIX))
    recovers(member, 15)


def test_d15_a_segment_that_could_be_neither_begun_nor_removed_is_begun_as_another_file(member: Member) -> None:
    """The first try's file is in the way: its header's sync failed, and then its removal."""
    disk = FaultyDisk()
    log, _ = member.open(files=disk, segment_size_bytes=1024)
    assert isinstance(log, RingLog)
    first = 1
    hit = False
    while not hit:
        assert first < 100, "no segment was begun"
        log.append(entries(1, first, 3))
        first += 3
        disk.failing_syncs = disk.failing_unlinks = 1
        with contextlib.suppress(SyncFailed):
            log.drain()
        hit = disk.failing_unlinks == 0
        disk.failing_syncs = disk.failing_unlinks = 0
        log.drain()
    assert disk.synced_again == []
    log.close(clean=False)
    recovers(member, first - 1)


def test_d15_the_test_disk_finds_a_second_sync_of_the_same_file(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the file is not given up. The next sync succeeds, and a power cut shows what it was worth."""
    monkeypatch.setattr(Segments, "_suspect", property(lambda self: False, lambda self, value: None), raising=False)
    disk = FaultyDisk()
    log = opened(member, disk)
    durably(log, entries(1, 1, 5))
    until(lambda: drained(log))
    disk.failing_syncs = 1
    durably(log, entries(1, 6, 20))
    until(lambda: drained(log))
    log.close(clean=False)
    assert disk.synced_again != []
    disk.power_cut(member.data)
    with pytest.raises(Refused, match="damaged"):
        member.open()


def test_d15_a_sync_that_goes_on_failing_ends_the_log_after_a_few_files(member: Member) -> None:
    disk = FaultyDisk()
    log = opened(member, disk)
    durably(log, entries(1, 1, 2))
    until(lambda: drained(log))
    told: list[Exception] = []
    log.on_failed = told.append
    disk.failing_syncs = 1000
    durably(log, entries(1, 3, 1))
    until(lambda: log.failed is not None)
    assert (len(told), disk.tries) == (1, DRAIN_TRIES)
    with pytest.raises(LogFailed):
        log.append(entries(1, 4, 1))
    with pytest.raises(LogFailed):
        log.close()
    assert disk.tries == DRAIN_TRIES
    disk.failing_syncs = 0
    disk.power_cut(member.data)
    recovers(member, 3)


def test_d15_disk_mode_ends_at_the_first_failed_sync(folder: Path) -> None:
    member = Member(folder, Machine(), ring=False).make()
    disk = FaultyDisk()
    log = opened(member, disk)
    durably(log, entries(1, 1, 2))
    before = log.durable_lsn
    disk.failing_syncs = 1
    log.append(entries(1, 3, 1))
    until(lambda: log.failed is not None)
    assert (disk.tries, log.durable_lsn) == (1, before), "what was not synced is not durable"
    with pytest.raises(LogFailed):
        log.append(entries(1, 4, 1))
    with pytest.raises(LogFailed):
        log.close()


def after_a_failed_sync(folder: Path) -> tuple[Member, FaultyDisk, int]:
    """Disk mode: a sync fails, the member starts again on the same kernel, then the power goes."""
    member = Member(folder, Machine(), ring=False).make()
    disk = FaultyDisk()
    log = opened(member, disk)
    durably(log, entries(1, 1, 2))
    disk.failing_syncs = 1
    log.append(entries(1, 3, 20))
    until(lambda: log.failed is not None)
    log.close(clean=False)
    log, recovered = member.open(files=disk)
    log.close(clean=False)
    disk.power_cut(member.data)
    return member, disk, recovered.last_index


def test_d15_what_a_start_finds_behind_a_failed_sync_is_on_disk_before_it_counts(folder: Path) -> None:
    """The page cache still shows what the failed sync has dropped: a start copies it, rather than syncing it again."""
    member, disk, shown = after_a_failed_sync(folder)
    assert disk.synced_again == []
    recovers(member, shown)


def test_d15_a_start_that_only_syncs_again_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync_again(self: Segments, segment: Any) -> None:
        fd = self._files.open(segment.path)
        self._files.fsync(fd)
        self._files.close(fd)

    monkeypatch.setattr(Segments, "_replace", sync_again)
    with pytest.raises((AssertionError, Refused)):
        recovers(*after_a_failed_sync(folder)[::2])


def test_d15_a_folder_whose_sync_failed_ends_the_log(member: Member) -> None:
    disk = FaultyDisk()
    log = opened(member, disk)
    disk.failing_folder_syncs = 1
    durably(log, entries(1, 1, 3))
    until(lambda: log.failed is not None)
    log.close(clean=False)
    recovers(member, 3)


def test_a_ring_that_cannot_be_read_ends_the_log_at_once(member: Member) -> None:
    """No file of the drain's disk helps; what was promised is shown to be lost by the next start, not by the drain."""
    disk = FaultyDisk()
    log = opened(member, disk)
    assert isinstance(log, RingLog)
    ring = log._ring

    class Poisoned:
        def copy_out(self, *_: Any) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        def __getattr__(self, name: str) -> Any:
            return getattr(ring, name)

    with log._draining:
        log._ring = Poisoned()  # type: ignore[assignment]
    with contextlib.suppress(LogFailed):
        log.append(entries(1, 1, 1))
    until(lambda: log.failed is not None)
    assert "cannot be read" in str(log.failed)
    assert log.stats()["segment_rebuilds"] == 0
    log._ring = ring
    log.close(clean=False)


# --- no room ---


def test_d6_a_full_disk_stops_nothing_until_the_ring_is_full_and_is_told(member: Member) -> None:
    disk = FaultyDisk()
    log = opened(member, disk)
    disk.full = True
    log.append(entries(1, 1, 3))
    until(lambda: log.stats()["drain_errors_space"] > 2 * DRAIN_TRIES)
    log.append(entries(1, 4, 3))
    until(lambda: {ALARM_NO_SPACE, ALARM_STALLED} <= log.alarms().keys())
    assert "make room" in log.alarms()[ALARM_NO_SPACE]
    assert log.failed is None
    disk.full = False
    until(lambda: drained(log))
    assert log.stats()["segment_rebuilds"] == 0, "no sync has failed: the file is good"
    log.close()
    recovers(member, 6)


def test_d6_no_room_for_a_segment_made_anew_is_waited_for(member: Member) -> None:
    disk = FaultyDisk()
    log = opened(member, disk)
    durably(log, entries(1, 1, 3))
    until(lambda: drained(log))
    disk.failing_syncs, disk.full = 1, False
    durably(log, entries(1, 4, 3))
    until(lambda: log.stats()["drain_errors_sync"] == 1)
    disk.full = True
    durably(log, entries(1, 7, 3))
    disk.full = False
    until(lambda: drained(log))
    assert disk.synced_again == []
    log.close(clean=False)
    disk.power_cut(member.data)
    recovers(member, 9)


def test_disk_mode_waits_for_room_and_goes_on(folder: Path) -> None:
    member = Member(folder, Machine(), ring=False).make()
    disk = FaultyDisk()
    log = opened(member, disk, segment_size_bytes=1024)
    durably(log, entries(1, 1, 8))
    before = log.durable_lsn
    disk.full = True
    log.append(entries(1, 9, 12))
    log.append(entries(1, 21, 12))
    until(lambda: ALARM_NO_SPACE in log.alarms())
    assert log.durable_lsn == before, "nothing is promised that is not on disk"
    disk.full = False
    until(lambda: drained(log))
    durably(log, entries(1, 33, 8))
    assert log.failed is None
    log.close(clean=False)
    recovers(member, 40)


# --- stalls and back-pressure ---


def fill(log: Log, index: int, until_pressure: float) -> int:
    while log.pressure() < until_pressure:
        log.append([entry(1, index, 0, b"value-%d" % index)])
        index += 1
    return index


def test_d6_a_stalled_disk_rides_on_the_ring_and_recovers_by_itself(member: Member) -> None:
    """75%, 90%, full: nothing is overwritten, reads go on, the log says what is wrong; then the disk answers again."""
    disk = FaultyDisk()
    log = opened(member, disk)
    log.append(entries(1, 1, 3))
    until(lambda: drained(log))
    disk.flowing.clear()
    index = fill(log, 4, PRESSURE_SHRINK)
    until(lambda: ALARM_STALLED in log.alarms())
    assert ALARM_FULL not in log.alarms()
    assert log.backpressure_seconds() == 0.0
    index = fill(log, index, PRESSURE_FULL)
    until(lambda: ALARM_FULL in log.alarms())
    assert log.backpressure_seconds() > 0.0
    with pytest.raises(RingFull):
        index = fill(log, index, 2.0)
    last = log.last_index
    assert [item.index for item in log.read_entries(1, last + 1, 1 << 20)] == list(range(1, last + 1))
    disk.flowing.set()
    until(lambda: drained(log))
    waited = log.backpressure_seconds()
    assert waited > 0.05
    log.append([entry(1, last + 1, 0, b"value-%d" % (last + 1))])
    until(lambda: drained(log))
    assert log.backpressure_seconds() == waited, "it counts only while it is full"
    assert log.failed is None
    log.close(clean=False)
    recovers(member, last + 1)


def test_a_log_that_was_never_in_trouble_says_nothing(either: Member) -> None:
    log = opened(either, FaultyDisk())
    durably(log, entries(1, 1, 3))
    until(lambda: drained(log))
    stats = log.stats()
    assert (stats["drain_errors"], stats["backpressure_milliseconds"], stats["drain_lag_milliseconds"]) == (0, 0, 0)
    assert log.take_sync_durations_seconds() != []
    log.close()


def test_errors_of_the_drain_are_an_alarm_until_it_succeeds(member: Member) -> None:
    disk = FaultyDisk()
    log = opened(member, disk)
    assert isinstance(log, RingLog)
    durably(log, entries(1, 1, 3))
    until(lambda: drained(log))
    log._stop_thread()
    disk.failing_syncs = 1
    log._closing = False
    log.append(entries(1, 4, 1))
    with pytest.raises(OSError) as caught:
        log.drain()
    log._drain_error(caught.value)
    assert "tried on a new file" in log.alarms()[ALARM_FAILING]
    log.drain()
    assert log.alarms() == {}
    log.close()


# --- scheduling ---


def test_a_drain_begins_by_age(member: Member) -> None:
    log, _ = member.open(drain_interval_seconds=SOON_SECONDS)
    assert isinstance(log, RingLog)
    assert log._drain_at_bytes == NEVER_BYTES
    log.append(entries(1, 1, 1))
    until(lambda: drained(log))
    log.close()


def test_a_drain_begins_by_bytes(member: Member) -> None:
    log, _ = member.open(drain_interval_seconds=3600.0, drain_size_bytes=4096)
    assert isinstance(log, RingLog)
    log._drain_at_bytes = min(log._options.drain_size_bytes, log._ring.data_bytes // 2)
    log.append([entry(1, 1, 0, bytes(1000))])
    assert log.stats()["drains"] == 0
    log.append([entry(1, index, 0, bytes(1000)) for index in range(2, 6)])
    until(lambda: drained(log))
    log.close()


# --- releasing ---


def test_d14_a_segment_that_could_not_be_deleted_leaves_no_hole(member: Member) -> None:
    disk = FaultyDisk()
    log, _ = member.open(files=disk, segment_size_bytes=1024)
    assert isinstance(log, RingLog)
    for first in range(1, 61, 3):
        log.append(entries(1, first, 3))
        log.drain()
    assert len(member.segments()) > 4
    disk.failing_unlinks = 1
    log.release(40)
    with pytest.raises(OSError):
        log._release_segments()
    log._release_segments()
    assert log.first_index > 1
    log.close(clean=False)
    log, recovered = member.open()
    assert (recovered.last_index, recovered.first_index) == (60, recovered.entries[0].index)
    log.close()


# --- zeros ahead of the records (disk mode) ---


class Writes(Files):
    """Remembers what is written to each segment: (offset, bytes, whether they are zeros only)."""

    def __init__(self, room_bytes: int = 1 << 40) -> None:
        self.made: dict[str, list[tuple[int, int, bool]]] = {}
        self.room_bytes = room_bytes
        """By how much files may become larger together. Of what does not fit all that does is written, as on a disk."""
        self.zeros_fail_with: int | None = None

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.suffix == ".seg":
            zeros = not any(data)
            if zeros and self.zeros_fail_with is not None:
                raise OSError(self.zeros_fail_with, os.strerror(self.zeros_fail_with))
            self.made.setdefault(path.name, []).append((offset, len(data), zeros))
            wanted = max(0, offset + len(data) - os.fstat(fd).st_size)
            if wanted > self.room_bytes:
                super().pwrite(fd, data[: len(data) - wanted + self.room_bytes], offset)
                self.room_bytes = 0
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room_bytes -= wanted
        super().pwrite(fd, data, offset)


@pytest.fixture
def on_disk(folder: Path) -> Member:
    return Member(folder, Machine(), ring=False).make()


def test_flushes_in_disk_mode_seldom_make_a_segment_larger(on_disk: Member) -> None:
    """A flush that does waits for the file system's journal, too."""
    log = opened(on_disk, Writes(), zero_ahead_bytes=16 << 10)
    sizes = []
    for index in range(1, 401):
        durably(log, entries(1, index, 1))
        sizes.append(on_disk.segments()[-1].stat().st_size)
        assert sizes[-1] >= SEGMENT_HEADER_BYTES + log.durable_lsn
    grown = sum(1 for before, after in pairwise(sizes) if after > before)
    assert 1 <= grown <= log.durable_lsn // (16 << 10) + 1
    log.close(clean=False)
    recovers(on_disk, 400)


@pytest.mark.parametrize("clean", [True, False])
def test_an_opening_cuts_off_what_was_ahead(on_disk: Member, clean: bool) -> None:
    """D3. Where the manifest proves the segment (clean) it is cut off, else a copy takes the segment's place."""
    log = opened(on_disk, Files())
    durably(log, entries(1, 1, 9))
    end = log.durable_lsn
    log.close(clean=clean)
    (segment,) = on_disk.segments()
    assert segment.stat().st_size > SEGMENT_HEADER_BYTES + end
    recovers(on_disk, 9)
    assert segment.stat().st_size == SEGMENT_HEADER_BYTES + end


def test_each_segment_has_zeros_and_only_where_no_record_was(on_disk: Member) -> None:
    files = Writes()
    log = opened(on_disk, files, zero_ahead_bytes=1 << 10, segment_size_bytes=4 << 10)
    index = 1
    for count in (1, 7, 2, 30, 1, 1, 12, 40) * 3:
        durably(log, entries(1, index, count))
        index += count
    log.close()
    assert len(files.made) > 3
    for made in files.made.values():
        reached = 0
        for offset, size, zeros in made:
            assert offset >= reached if zeros else offset == reached
            reached = reached if zeros else offset + size
        assert any(zeros for *_, zeros in made)
    recovers(on_disk, index - 1)


def test_zeros_take_no_room_that_records_need(on_disk: Member) -> None:
    """Records come first, and go into what zeros have got: as much is taken as without zeros, to the last record."""
    log = opened(on_disk, Files(), zero_ahead_bytes=0)
    durably(log, entries(1, 1, 40))
    needed = SEGMENT_HEADER_BYTES + log.durable_lsn
    log.close(clean=False)
    shutil.rmtree(on_disk.data)
    files = Writes(room_bytes=needed)
    log = opened(on_disk.make(), files, zero_ahead_bytes=4 << 10)
    durably(log, entries(1, 1, 40))
    assert files.room_bytes == 0 and log.failed is None and not log.alarms()
    log.append(entries(1, 41, 40))
    until(lambda: ALARM_NO_SPACE in log.alarms())
    files.room_bytes = 1 << 20
    until(lambda: drained(log))
    log.close(clean=False)
    recovers(on_disk, 80)


def test_room_for_zeros_is_not_looked_for_with_each_flush(on_disk: Member) -> None:
    files = Writes()
    files.zeros_fail_with = errno.ENOSPC
    tries: list[int] = []
    log = opened(on_disk, files, zero_ahead_bytes=4 << 10)
    zero_ahead = log._segments._zero_ahead
    log._segments._zero_ahead = lambda end: tries.append(end) or zero_ahead(end)  # type: ignore[func-returns-value, method-assign]
    for index in range(1, 201):
        durably(log, entries(1, index, 1))
    assert log.failed is None and not log.alarms()
    assert 1 <= len(tries) <= log.durable_lsn // (4 << 10) + 1
    log.close(clean=False)
    recovers(on_disk, 200)


def test_d15_zeros_that_cannot_be_written_end_the_log(on_disk: Member) -> None:
    """As records do: what of the file is on disk is not known."""
    files = Writes()
    log = opened(on_disk, files)
    durably(log, entries(1, 1, 3))
    files.zeros_fail_with = errno.EIO
    for index in range(4, 100):
        if log.failed is None:
            with contextlib.suppress(LogFailed):
                log.append(entries(1, index, 1))
    until(lambda: log.failed is not None)
    log.close(clean=False)


@pytest.mark.parametrize(("ring", "ahead"), [(True, 4096), (False, 0)])
def test_a_drain_and_whoever_does_not_want_it_write_no_zeros(folder: Path, ring: bool, ahead: int) -> None:
    """Nobody waits for a drain: it would be more to write, and nothing won."""
    member = Member(folder, Machine(), ring=ring).make()
    files = Writes()
    log = opened(member, files, zero_ahead_bytes=ahead)
    durably(log, entries(1, 1, 5))
    until(lambda: drained(log))
    log.close()
    assert files.made and not any(zeros for made in files.made.values() for *_, zeros in made)
