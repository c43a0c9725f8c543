"""The rules D1 to D16 that a log can show by itself, a named test each (the table and the crashes have files of their
own).
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adr_crash import laboratory, newest, ring_image
from adr_harness import SMALL_RING_BYTES, Machine, Member, durably, entries, until
from raftkv_node._engine import LogCorrupt, LogIndex, Ring, RingFull, RingImage, log_encode, log_scan
from raftkv_node.adr import Files, Log, Refusal, Refused, entry, hard_state, record_bytes
from raftkv_node.adr.manifest import State
from raftkv_node.adr.ringfile import DATA_OFFSET_BYTES, HEADER_PAGE_BYTES, decode_header, read_headers
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.adr.segments import SEGMENT_HEADER_BYTES

SEED = 0x5EED
EXHAUSTIVE_WORDS = 12


@pytest.fixture
def path() -> Iterator[Path]:
    folder = laboratory()
    file = folder / "a.ring"
    file.write_bytes(bytes(DATA_OFFSET_BYTES + 2048))
    yield file
    shutil.rmtree(folder)


def ring_at(path: Path, generation: int = 1, start_lsn: int = 0, seed: int = SEED) -> Ring:
    return Ring(str(path), path.stat().st_size, generation, seed, start_lsn)


def ends(path: Path, start: int = 0, generation: int = 1, seed: int = SEED) -> tuple[int, str | None]:
    image = RingImage.load(str(path), path.stat().st_size - DATA_OFFSET_BYTES)
    end, _, why, _ = image.scan(start, generation, seed)
    return end, why


def poke(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


# --- D1 ---


def test_d1_a_payload_that_is_a_records_bytes_is_no_record(path: Path) -> None:
    """A client writes the bytes of a record, aligned and at the right LSN: without the secret it is none."""
    index = LogIndex()
    forged = log_encode([entry(9, 9, 0, b"forged")], 128, 0, 1, SEED + 1, LogIndex())
    ring = ring_at(path)
    ring.append([entry(1, 1, 0, bytes(64) + forged)], index)
    poke(path, DATA_OFFSET_BYTES, bytes(64))
    assert ends(path) == (0, None)
    image = RingImage.load(str(path), 2048)
    assert not image.holds_any(1, SEED)


def test_d1_no_record_wraps_and_pads_fill(path: Path) -> None:
    ring, index = ring_at(path), LogIndex()
    for number in range(1, 40):
        start, end = ring.append([entry(1, number, 0, bytes(300))], index)
        assert start % 64 == end % 64 == 0
        _, lsn, size = index.locate(number, number + 1, 1)[0]
        assert lsn % 2048 + size <= 2048
        ring.set_reclaimed(end)


def test_d1_a_record_larger_than_half_of_the_ring_is_refused(path: Path) -> None:
    ring, index = ring_at(path), LogIndex()
    ring.append([entry(1, 1, 0, bytes(1024 - 64))], index)
    with pytest.raises(ValueError, match="half"):
        ring.append([entry(1, 2, 0, bytes(1024))], index)


def test_d1_a_record_of_half_the_ring_fits_wherever_the_log_stands(path: Path) -> None:
    ring, index = ring_at(path), LogIndex()
    for number in range(1, 40):
        size = 1024 - 64 if number % 3 == 0 else 64 * (number % 7)
        _, end = ring.append([entry(1, number, 0, bytes(size))], index)
        ring.set_reclaimed(end)


# --- D2 ---


def three_batches(path: Path) -> list[int]:
    ring, index = ring_at(path), LogIndex()
    return [ring.append(entries(1, 1 + 2 * n, 2), index)[0] for n in range(3)] + [ring.durable_lsn]


def test_d2_a_torn_record_of_the_last_batch_is_the_end(path: Path) -> None:
    starts = three_batches(path)
    poke(path, DATA_OFFSET_BYTES + starts[2] + 70, b"torn")
    assert ends(path) == (starts[2], None), "the valid record behind it is dropped with it"


def test_d2_a_bad_record_below_a_fence_is_corruption(path: Path) -> None:
    starts = three_batches(path)
    poke(path, DATA_OFFSET_BYTES + starts[1] + 70, b"rot")
    end, why = ends(path)
    assert end == starts[1]
    assert why is not None
    assert "durable" in why


def test_d2_the_scan_begins_at_drained_and_the_end_is_never_below_it(path: Path) -> None:
    starts = three_batches(path)
    poke(path, DATA_OFFSET_BYTES, bytes(64))
    assert ends(path, starts[1]) == (starts[3], None)
    assert ends(path, starts[3]) == (starts[3], None)


def test_d2_unreadable_bytes_in_the_scanned_range_are_corruption_and_behind_it_are_not(path: Path) -> None:
    """What the file does not have reads as an error, as a poisoned page does."""
    starts = three_batches(path)
    image = RingImage.load(str(path), 2048)
    assert image.scan(0, 1, SEED)[2] is None
    with path.open("r+b") as file:
        file.truncate(DATA_OFFSET_BYTES + starts[3])
    assert RingImage.load(str(path), 2048).scan(0, 1, SEED)[2] == f"the ring cannot be read at LSN {0}"
    with path.open("r+b") as file:
        file.truncate(DATA_OFFSET_BYTES)
    assert "cannot be read" in str(RingImage.load(str(path), 2048).scan(0, 1, SEED)[2])


@pytest.mark.parametrize("page", [1, 2])
def test_d2_a_record_that_reaches_into_unreadable_bytes_is_corruption(path: Path, page: int) -> None:
    """Where the last record's header can be read and the rest cannot, nothing behind it tells that it was durable."""
    path.write_bytes(bytes(DATA_OFFSET_BYTES + 32768))
    ring, index = ring_at(path), LogIndex()
    ring.append([entry(1, 1, 0, b"one")], index)
    last = ring.durable_lsn
    ring.append([entry(1, 2, 0, b"2" * 9000)], index)
    ring.close()
    with path.open("r+b") as file:
        file.truncate(DATA_OFFSET_BYTES + page * 4096)
    end, count, why, _ = RingImage.load(str(path), 32768).scan(0, 1, SEED)
    assert (end, count) == (last, 1)
    assert why == f"the ring cannot be read at LSN {last}"


def test_d2_segments_of_disk_mode_follow_the_same_rule() -> None:
    index = LogIndex()
    first = log_encode(entries(1, 1, 2), 0, 0, 1, SEED, index)
    second = log_encode(entries(1, 3, 2), len(first), len(first), 1, SEED, index)
    whole = first + second
    assert log_scan(whole, 0, 1, SEED)[:3] == (len(whole), 4, None)
    torn = whole[: len(first) + 70] + b"torn" + whole[len(first) + 74 :]
    assert log_scan(torn, 0, 1, SEED)[:3] == (len(first), 2, None)
    rotten = b"rot" + whole[3:]
    assert log_scan(rotten, 0, 1, SEED)[2] is not None


def test_d2_a_segment_of_disk_mode_that_cannot_be_read_is_corrupt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = Member(folder, Machine(), ring=False).make()
    log, _ = member.open()
    durably(log, entries(1, 1, 3))
    log.close(clean=False)
    read = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.suffix == ".seg":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(Refused) as refused:
        member.open()
    assert refused.value.kind == Refusal.CORRUPT


# --- D3 ---


def test_d3_a_dropped_tail_never_comes_back(folder: Path) -> None:
    """Disk mode: a batch of three is torn in its first record."""
    member = Member(folder, Machine(), ring=False).make()
    log, _ = member.open()
    keep = durably(log, entries(1, 1, 2))
    durably(log, entries(1, 3, 3))
    log.close(clean=False)
    poke(member.segments()[0], SEGMENT_HEADER_BYTES + keep + 66, b"torn")
    log, recovered = member.open()
    assert (recovered.last_index, recovered.torn_tail_bytes) == (2, 2 * 128)
    assert member.segments()[0].stat().st_size == SEGMENT_HEADER_BYTES + keep, "cut off"
    durably(log, entries(2, 3, 1))
    log.close(clean=False)
    log, recovered = member.open()
    assert [(item.term, item.index) for item in recovered.entries] == [(1, 1), (1, 2), (2, 3)]
    log.close()


def test_d3_the_next_generation_starts_where_the_log_ends(either: Member) -> None:
    log, _ = either.open()
    end = durably(log, entries(1, 1, 4))
    log.close(clean=False)
    log, _ = either.open()
    assert log.durable_lsn >= end
    if isinstance(log, RingLog):
        assert log._header.start_lsn == end
        assert log.stats()["drained_lsn"] == end, "what was recovered is on disk before the log is handed out"
    log.close()


# --- D4 ---


def test_d4_one_fence_per_batch(member: Member) -> None:
    log, _ = member.open()
    for count in (1, 5, 20):
        before = log.stats()["fences"]
        log.append(entries(1, log.last_index + 1, count))
        assert log.stats()["fences"] == before + 1
    log.close()


def test_d4_stores_and_flushes_come_before_the_fence(path: Path) -> None:
    ring, index = ring_at(path), LogIndex()
    recording = ring.record()
    ring.append(entries(1, 1, 3), index)
    assert recording.kinds() == "sfF"
    assert recording.uncertain(len(recording)) == []
    assert recording.uncertain(2) != []


@pytest.mark.parametrize("payload_bytes", [0, 1, 64, 100, 900])
def test_d4_every_line_of_a_batch_is_written_back_before_the_fence(path: Path, payload_bytes: int) -> None:
    """The recorder counts the lines that the flush's loop reaches, not the range that it was asked for."""
    ring, index = ring_at(path), LogIndex()
    recording = ring.record()
    for number in (1, 2):
        ring.append([entry(1, number, 0, b"x" * payload_bytes)], index)
        assert recording.uncertain(len(recording)) == []
        assert recording.uncertain(len(recording) - 1) != []
    assert recording.image(len(recording), []) == path.read_bytes(), "the shadow is what the mapping holds"
    ring.close()


def test_d4_disk_mode_says_durable_only_after_the_sync(folder: Path) -> None:
    class Slow(Files):
        syncing: Any = None

        def fdatasync(self, fd: int) -> None:
            assert self.syncing is None or self.syncing(), "the log says durable before the sync is over"
            super().fdatasync(fd)

    files = Slow()
    member = Member(folder, Machine(), ring=False).make()
    log, _ = member.open(files=files)
    seen: list[int] = []
    log.on_durable = seen.append
    before = log.durable_lsn
    files.syncing = lambda: log.durable_lsn == before and not seen
    lsn = log.append(entries(1, 1, 2))
    until(lambda: seen or log.failed)
    assert (log.failed, log.durable_lsn, seen) == (None, lsn, [lsn])
    files.syncing = None
    log.close()


# --- D5 ---


def test_d5_every_segment_begins_with_hard_state_membership_and_position(either: Member) -> None:
    log, _ = either.open(segment_size_bytes=1024)
    for first in range(1, 41, 2):
        durably(log, [hard_state(first, 7, first - 1), *entries(first, first, 2)])
        if isinstance(log, RingLog):
            log.drain()
    log.close(clean=False)
    assert len(either.segments()) > 3
    for segment in either.segments():
        data = segment.read_bytes()[SEGMENT_HEADER_BYTES:]
        types = [data[at + 9] for at in (0, 64, 128)]
        assert types == [2, 3, 4], segment


# --- D6 ---


class Order(Files):
    """Says what was done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self.done.append("segment synced")

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.done.append("manifest")


def test_d6_space_is_reclaimed_in_order(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Order()
    log, _ = member.open(files=files)
    assert isinstance(log, RingLog)
    log.append(entries(1, 1, 3))
    files.done.clear()
    flip = RingLog._flip_header

    def flipped(self: RingLog, **changes: Any) -> None:
        assert self._ring.reclaimed_lsn < self._ring.durable_lsn
        flip(self, **changes)
        files.done.append("header")

    monkeypatch.setattr(RingLog, "_flip_header", flipped)
    log.drain()
    assert files.done == ["segment synced", "manifest", "header"]
    assert log._ring.reclaimed_lsn == log.durable_lsn
    log.close(clean=False)


def test_d6_undrained_bytes_are_never_overwritten(path: Path) -> None:
    ring, index = ring_at(path), LogIndex()
    kept = []
    with pytest.raises(RingFull):
        for number in range(1, 100):
            kept.append(ring.append([entry(1, number, 0, b"%d" % number)], index)[1])
    assert ends(path) == (kept[-1], None)
    with pytest.raises(ValueError, match="never past"):
        ring.set_reclaimed(kept[-1] + 64)


# --- D7 ---


def test_d7_the_higher_valid_header_copy_counts(member: Member) -> None:
    log, _ = member.open()
    assert isinstance(log, RingLog)
    for first in range(1, 6):
        log.append(entries(1, first, 1))
        log.drain()
    log.close(clean=False)
    ring = member.rings()[0]
    both = read_headers(ring.path)
    assert [header.sequence for header in both] == [ring.header.sequence, ring.header.sequence - 1]
    poke(ring.path, ring.header.sequence % 2 * HEADER_PAGE_BYTES + 20, b"\xff\xff")
    older = member.rings()[0].header
    assert older.sequence == ring.header.sequence - 1
    assert older.reclaimed_lsn < ring.header.reclaimed_lsn
    log, recovered = member.open()
    assert recovered.last_index == 5, "an older copy only reclaims less"
    log.close()


@pytest.mark.parametrize("size_bytes", [0, DATA_OFFSET_BYTES, DATA_OFFSET_BYTES + 1, 1 << 40, 1 << 62])
def test_d7_a_header_of_a_size_that_no_ring_has_is_none(member: Member, size_bytes: int) -> None:
    log, _ = member.open()
    log.append([hard_state(1, 1, 0)])
    log.close(clean=False)
    (ring,) = member.rings()
    bad = dataclasses.replace(ring.header, size_bytes=size_bytes, sequence=9)
    poke(ring.path, HEADER_PAGE_BYTES, bad.encode())
    assert decode_header(bad.encode()) is None
    log, recovered = member.open()
    assert recovered.hard_state.term == 1, "the other copy counts"
    log.close()


def test_d7_a_header_flip_torn_anywhere_leaves_a_valid_header(path: Path) -> None:
    """Every subset of the words of a flip, where few; else many."""
    from raftkv_node.adr.ringfile import RingHeader

    header = RingHeader(0, 1, 2, 3, b"u" * 16, b"d" * 16, 16384, 5, 0, 0, None, False, "power", "b", "h", "f")
    ring = ring_at(path)
    ring.store_header(0, header.encode())
    ring.store_header(1, dataclasses.replace(header, sequence=1).encode())
    recording = ring.record()
    ring.store_header(0, dataclasses.replace(header, sequence=2, reclaimed_lsn=640).encode())
    counts = recording.uncertain(1)
    assert len(counts) <= EXHAUSTIVE_WORDS
    for choices in itertools.product((0, 1), repeat=len(counts)):
        image = recording.image(1, choices)
        copies = [decode_header(image[at : at + HEADER_PAGE_BYTES]) for at in (0, HEADER_PAGE_BYTES)]
        sequences = {copy.sequence for copy in copies if copy is not None}
        assert 1 in sequences
        assert 2 not in sequences or all(choices)


def test_d7_every_subset_of_the_unfenced_words_of_a_batch_recovers_a_prefix(path: Path) -> None:
    ring, index = ring_at(path), LogIndex()
    ring.append([hard_state(1, 1, 0)], index)
    recording = ring.record()
    start, end = ring.append([hard_state(2, 1, 0), hard_state(2, 1, 1)], index)
    counts = recording.uncertain(2)
    assert len(counts) <= 16
    prefixes = {start, start + 64, end}
    for choices in itertools.product((0, 1), repeat=len(counts)):
        path.write_bytes(recording.image(2, choices))
        found, why = ends(path)
        assert why is None
        assert found in prefixes
        assert found != end or all(choices)
    path.write_bytes(ring_image(recording, len(recording), newest))
    assert ends(path) == (end, None)


def test_d7_a_torn_write_over_older_records_of_the_ring_is_never_taken_for_one(path: Path) -> None:
    """A reclaimed lap lies beneath: any mix of its words with new ones ends the log at a record boundary."""
    ring, index = ring_at(path), LogIndex()
    for number in range(1, 33):
        ring.append([hard_state(1, 1, number)], index)
        ring.set_reclaimed(ring.durable_lsn)
    recording = ring.record()
    start, end = ring.append([hard_state(1, 1, 40)], index)
    assert start == 2048
    counts = recording.uncertain(2)
    for choices in itertools.product((0, 1), repeat=len(counts)):
        path.write_bytes(recording.image(2, choices))
        assert ends(path, start) == (end if all(choices) else start, None)


# --- D8 and generations ---


def test_d8_a_file_reused_under_the_next_generation_shows_nothing_of_the_last(path: Path) -> None:
    """The record of the next generation at the same LSN as a dropped one, torn in any way, is never a mix of both."""
    first, index = ring_at(path, 1), LogIndex()
    first.append([hard_state(1, 1, 1), hard_state(1, 1, 2)], index)
    first.close()
    second = ring_at(path, 2, 0)
    recording = second.record()
    second.append([hard_state(1, 1, 9)], LogIndex())
    counts = recording.uncertain(2)
    for choices in itertools.product((0, 1), repeat=len(counts)):
        path.write_bytes(recording.image(2, choices))
        assert ends(path, 0, 2) == (64 if all(choices) else 0, None)


def test_d8_each_generation_has_its_own_uuid_file_and_secret(member: Member) -> None:
    seen = []
    for _ in range(3):
        log, _ = member.open()
        manifest = member.manifest()
        seen.append((manifest.ring_uuid, manifest.secret, manifest.ring_file, manifest.nonce))
        assert [ring.path.name for ring in member.rings()] == [manifest.ring_file]
        log.close(clean=False)
    assert all(len(set(column)) == 3 for column in zip(*seen, strict=True))


# --- D9 ---


def test_d9_a_clean_end_marks_ring_and_manifest(member: Member) -> None:
    log, _ = member.open()
    end = durably(log, entries(1, 1, 3))
    assert member.manifest().state == State.DIRTY
    assert not member.rings()[0].header.clean
    log.close()
    manifest, header = member.manifest(), member.rings()[0].header
    assert (manifest.state, manifest.drained_lsn) == (State.CLEAN, end)
    assert (header.clean, header.reclaimed_lsn) == (True, end)


# --- D11 ---


def test_d11_files_are_the_members_own(member: Member) -> None:
    log, _ = member.open()
    durably(log, entries(1, 1, 1))
    log.close()
    for found in member.folder.rglob("*"):
        if found.is_file():
            assert found.stat().st_mode & 0o777 == 0o600, found
    assert member.ring_folder == member.pmem / "00000000000000c1" / "3"


def test_d11_the_folder_of_the_ring_is_never_made(member: Member) -> None:
    shutil.rmtree(member.pmem)
    with pytest.raises(Refused, match="does not exist") as caught:
        member.open()
    assert caught.value.kind == Refusal.ABSENT
    assert not member.pmem.exists()


# --- D14 ---


def test_d14_the_newest_segment_is_never_deleted(either: Member) -> None:
    log, _ = either.open()
    durably(log, entries(1, 1, 5))
    if isinstance(log, RingLog):
        log.drain()
    log.release(1000)
    log._release_segments()
    assert log.stats()["segments"] == 1
    log.close()
    log, recovered = either.open()
    assert recovered.last_index == 5
    log.close()


def test_d16_a_record_of_a_later_version_is_not_the_end(path: Path) -> None:
    """A newer program wrote it: valid by its checksum, unknown to this one."""
    from raftkv_node._engine import crc32c

    three_batches(path)
    data = bytearray(path.read_bytes()[DATA_OFFSET_BYTES : DATA_OFFSET_BYTES + 128])
    data[8] = 2
    (length,) = struct.unpack_from("<I", data, 4)
    struct.pack_into("<I", data, 0, crc32c(bytes(data[4 : 64 + length]), SEED))
    poke(path, DATA_OFFSET_BYTES, bytes(data))
    end, why = ends(path)
    assert end == 0
    assert why is not None
    assert "version 2" in why
    with pytest.raises(LogCorrupt):
        LogIndex().absorb(bytes(data), 0, 1, SEED)


def test_sizes_are_as_documented() -> None:
    assert record_bytes(0) == 64
    assert record_bytes(1) == 128
    assert SMALL_RING_BYTES > DATA_OFFSET_BYTES
    assert Log.open is RingLog.open
