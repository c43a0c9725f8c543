"""Segments: the log's files on disk (docs/formats/segment.md).

A segment holds the log's records from its first LSN on, byte for byte; it belongs to one generation, whose secret is in
its header; and it begins with the hard state, the configuration and the position of the log as of its first LSN (D5),
so that the segments before it can go. Together the segments are one chain: each begins where the one before ends.

A file whose sync failed is suspect: the kernel may have dropped pages and count them as written. It is never synced
again (D15). The next write makes a new file beside it, from what was synced of the old one, checked record by record;
`sync` gives it the old one's name. Until that name is durable, the old file holds what it is relied upon for.

Where a batch waits for the flush (disk mode), zeros are kept ahead of the records. The flush of a file that grows, or
of blocks that it never had, takes a commit of the file system's journal besides the data; one into blocks of zeros that
were flushed before does not. Zeros are no record: behind the end (D2) it is as if nothing were there.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from raftkv_node._engine import LogCorrupt, LogIndex, crc32c, log_extract, log_scan
from raftkv_node.adr.errors import LogFailed, Refusal, Refused
from raftkv_node.adr.files import Files, may_retry
from raftkv_node.adr.manifest import seed_of
from raftkv_node.adr.records import StoredEntry
from raftkv_node.adr.table import Member

SEGMENT_VERSION = 1
SEGMENT_SUFFIX = ".seg"
SEGMENT_HEADER_BYTES = 256
#: A segment that is made anew, until it is whole.
REBUILT_SUFFIX = ".seg.new"
#: How far zeros are written ahead in disk mode. Less, and more flushes pay for it; more, and those that do take longer
#: (docs/performance.md).
ZERO_AHEAD_BYTES = 256 << 10
#: Durations of syncs kept for the exporter between two scrapes; older ones are dropped.
DURATIONS_KEPT = 4096

_MAGIC = b"RAFTKVSG"
#: magic, version, crc32c, cluster, member, number, generation, start LSN, ring uuid, disk uuid, secret.
_LAYOUT = struct.Struct("<8sIIQQQQQ16s16s16s")
_CRC_AT = 12
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.seg")


@dataclass(frozen=True, slots=True)
class Generation:
    """What all records of one opening share."""

    number: int
    ring_uuid: bytes
    secret: bytes

    @property
    def seed(self) -> int:
        return seed_of(self.secret)


@dataclass(slots=True)
class Segment:
    """One file of the chain; `end_lsn` and `highest_index` (0: no entry) grow with what was written."""

    path: Path
    generation: Generation
    start_lsn: int
    end_lsn: int
    highest_index: int = 0

    def offset(self, lsn: int) -> int:
        return SEGMENT_HEADER_BYTES + lsn - self.start_lsn


def segment_name(start_lsn: int, generation: int) -> str:
    return f"{start_lsn:016x}-{generation:016x}{SEGMENT_SUFFIX}"


def encode_header(member: Member, generation: Generation, start_lsn: int) -> bytes:
    packed = bytearray(SEGMENT_HEADER_BYTES)
    _LAYOUT.pack_into(
        packed,
        0,
        _MAGIC,
        SEGMENT_VERSION,
        0,
        member.cluster_id,
        member.member_id,
        member.number,
        generation.number,
        start_lsn,
        generation.ring_uuid,
        member.disk_uuid,
        generation.secret,
    )
    struct.pack_into("<I", packed, _CRC_AT, crc32c(bytes(packed)))
    return bytes(packed)


def decode_header(data: bytes) -> tuple[Member, Generation, int] | None:
    """Whose segment it is, its generation and first LSN; None if the header is not whole or of another version."""
    if len(data) < SEGMENT_HEADER_BYTES:
        return None
    packed = bytearray(data[:SEGMENT_HEADER_BYTES])
    (crc,) = struct.unpack_from("<I", packed, _CRC_AT)
    struct.pack_into("<I", packed, _CRC_AT, 0)
    if crc != crc32c(bytes(packed)):
        return None
    magic, version, _, cluster, member, number, generation, start, uuid, disk, secret = _LAYOUT.unpack_from(packed)
    if magic != _MAGIC or version != SEGMENT_VERSION:
        return None
    return Member(cluster, member, number, disk), Generation(generation, uuid, secret), start


def has_segments(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix == SEGMENT_SUFFIX for path in folder.iterdir())


def _corrupt(path: Path, why: object) -> Refused:
    return Refused(
        Refusal.CORRUPT,
        f"segment {path} is damaged: {why}; replace this member (its files were left as they are)",
    )


def _read(path: Path) -> bytes:
    """What cannot be read is damage, never the end (D2)."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _corrupt(path, error) from error


class Segments:
    """The chain, and the end of it that is being written. One thread writes; any thread reads."""

    def __init__(self, files: Files, folder: Path, member: Member) -> None:
        self._files = files
        self._folder = folder
        self._member = member
        self._lock = threading.Lock()
        self._chain: list[Segment] = []
        self._fd: int | None = None
        self._unsynced = False
        #: Whether the last segment's file must not be used any more, and the file that takes its place.
        self._suspect = False
        self._beside: Path | None = None
        #: How far zeros are written ahead of the records; 0: not at all. Set before the first write.
        self.zero_ahead_bytes = 0
        #: Up to this offset of the file that is open zeros were written, or were to be and had no room.
        self._zeros_to = 0
        self.rebuilds = 0
        self.sync_seconds: deque[float] = deque(maxlen=DURATIONS_KEPT)

    # --- opening ---

    def load(
        self, drained_lsn: int, index: LogIndex, *, log_may_begin_there: bool = False
    ) -> list[tuple[Path, int, int]]:
        """Reads and checks all that lies below `drained_lsn`, which must be whole, and takes it into `index`.

        Returns the files that begin at or behind it (path, first LSN, generation by name), untouched. Changes nothing.
        `log_may_begin_there`: the manifest names the newest segment's start (disk mode): all before may be released.
        """
        named = []
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            match = _NAME.fullmatch(path.name)
            if match is not None:
                named.append((int(match[1], 16), int(match[2], 16), path))
            elif path.suffix == SEGMENT_SUFFIX:
                raise _corrupt(path, "its name is not a segment's")
        named.sort()
        below = [item for item in named if item[0] < drained_lsn]
        released = log_may_begin_there and any(start == drained_lsn for start, _, _ in named)
        if drained_lsn > 0 and not below and not released:
            raise Refused(
                Refusal.CORRUPT,
                f"the segments below LSN {drained_lsn} are missing in {self._folder}: replace this member",
            )
        for position, (start, _, path) in enumerate(below):
            end = below[position + 1][0] if position + 1 < len(below) else drained_lsn
            self._chain.append(self._read_whole(path, start, end, index))
        return [(path, start, generation) for start, generation, path in named if start >= drained_lsn]

    def _header(self, path: Path, data: bytes, start_lsn: int) -> Generation:
        header = decode_header(data)
        if header is None:
            raise _corrupt(path, "it has no valid header")
        owner, generation, start = header
        if owner != self._member:
            raise Refused(
                Refusal.MISMATCH,
                f"segment {path} belongs to member {owner.member_id:016x} of cluster {owner.cluster_id:016x} on disk "
                f"{owner.disk_uuid.hex()}, not to this member",
            )
        if start != start_lsn or segment_name(start, generation.number) != path.name:
            raise _corrupt(path, "its header is another segment's")
        return generation

    def _read_whole(self, path: Path, start: int, end: int, index: LogIndex) -> Segment:
        data = _read(path)
        generation = self._header(path, data, start)
        records = data[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + end - start]
        if len(records) < end - start:
            raise _corrupt(path, f"it ends at LSN {start + len(records)}, before {end}")
        try:
            _, highest = index.absorb(records, start, generation.number, generation.seed, True)
        except LogCorrupt as error:
            raise _corrupt(path, error) from error
        return Segment(path, generation, start, end, highest)

    def scan_tail(self, later: list[tuple[Path, int, int]], generation: Generation, index: LogIndex) -> tuple[int, int]:
        """Disk mode: finds the end of the log of `generation` behind what `load` has read, and takes it into `index`.

        Returns the end LSN and the bytes of valid records dropped behind it. Nothing is changed. The first bad record
        is the end unless a later one says that everything there was durable (D2); a later segment says so by being
        there.
        """
        tail = self._chain[-1] if self._chain else None
        dropped = 0
        if tail is not None and tail.generation == generation:
            dropped = self._extend(tail, index)
        for path, start, number in later:
            if number != generation.number:
                continue
            data = _read(path)
            if decode_header(data) is None:
                if log_scan(data[SEGMENT_HEADER_BYTES:], start, generation.number, generation.seed)[1]:
                    raise _corrupt(path, "records, but no valid header")
                continue
            found = self._header(path, data, start)
            end = self._chain[-1].end_lsn if self._chain else start
            if found != generation or start != end:
                raise _corrupt(
                    self._chain[-1].path, f"its records end at LSN {end}, the next segment begins at {start}"
                )
            segment = Segment(path, generation, start, start)
            if len(data) > SEGMENT_HEADER_BYTES:
                dropped = self._extend(segment, index, preamble=True)
            self._chain.append(segment)
        return (self._chain[-1].end_lsn if self._chain else 0), dropped

    def _extend(self, segment: Segment, index: LogIndex, preamble: bool = False) -> int:
        data = _read(segment.path)[segment.offset(segment.end_lsn) :]
        generation = segment.generation
        end, count, why, dropped = log_scan(data, segment.end_lsn, generation.number, generation.seed)
        if why is not None:
            raise _corrupt(segment.path, why)
        if count:
            try:
                whole = data[: end - segment.end_lsn]
                _, highest = index.absorb(whole, segment.end_lsn, generation.number, generation.seed, preamble)
            except LogCorrupt as error:
                raise _corrupt(segment.path, error) from error
            segment.end_lsn = end
            segment.highest_index = max(segment.highest_index, highest)
        return dropped

    def settle(self, later: list[tuple[Path, int, int]], proven_lsn: int) -> None:
        """Makes the chain durable and cuts off everything behind it (D3): nothing dropped comes back.

        Below `proven_lsn` everything was synced before the manifest said so. What was only found behind it (disk mode)
        is copied to new files: if a sync of theirs failed before the last stop, the kernel counts what it dropped as
        written, and one more sync would succeed without writing it (D15).
        """
        kept = {segment.path for segment in self._chain if segment.end_lsn > segment.start_lsn}
        self._chain = [segment for segment in self._chain if segment.path in kept]
        for path, _, _ in later:
            if path not in kept:
                self._files.unlink(path)
        if self._folder.is_dir():
            for path in sorted(self._folder.glob("*" + REBUILT_SUFFIX)):
                self._files.unlink(path)
        for segment in self._chain:
            if segment.end_lsn > proven_lsn:
                self._replace(segment)
                continue
            fd = self._files.open(segment.path)
            try:
                if os.fstat(fd).st_size > segment.offset(segment.end_lsn):
                    self._files.truncate(fd, segment.offset(segment.end_lsn))
                self._files.fsync(fd)
            finally:
                self._files.close(fd)
        self._files.sync_folder(self._folder)

    # --- writing: one thread ---

    @property
    def end_lsn(self) -> int:
        return self._chain[-1].end_lsn if self._chain else 0

    @property
    def first_lsn(self) -> int:
        return self._chain[0].start_lsn if self._chain else 0

    @property
    def newest_lsn(self) -> int:
        """Where the newest segment begins, -1 without one."""
        return self._chain[-1].start_lsn if self._chain else -1

    def start(self, generation: Generation, lsn: int) -> None:
        """Begins a new segment at `lsn`, which must be where the chain ends; the one before must be synced (D14).

        After an error nothing is left of it, and it may be tried again: then it is another file.
        """
        assert not self._unsynced, "the segment before is synced first (D14)"
        assert not self._chain or self._chain[-1].end_lsn == lsn, "segments are one chain"
        self.close()
        path = self._folder / segment_name(lsn, generation.number)
        assert all(segment.path != path for segment in self._chain), "what the log relies upon is never removed here"
        if path.exists():
            self._files.unlink(path)  # an earlier try's, where its removal failed, too
        fd = self._files.create(path)
        try:
            # Header and name are durable before the first record, so that records behind a bad header are corruption.
            self._files.pwrite(fd, encode_header(self._member, generation, lsn), 0)
            self._files.fsync(fd)
            self._files.sync_folder(self._folder)
        except OSError:
            self._files.close(fd)
            with contextlib.suppress(OSError):
                self._files.unlink(path)
            raise
        self._fd = fd
        with self._lock:
            self._chain.append(Segment(path, generation, lsn, lsn))

    def reopen(self) -> None:
        """Goes on with the last segment of the chain, to append what was recovered to it."""
        assert self._fd is None
        self._fd = self._files.open(self._chain[-1].path)

    def write(self, data: bytes, lsn: int, highest_index: int) -> None:
        """Writes records at the end of the last segment. Idempotent until `sync`: nothing is counted before.

        After an error whoever goes on writes again from the segment's `end_lsn` on; without room in the same file,
        else in one that takes its place.
        """
        segment = self._chain[-1]
        if self._suspect:
            self._rebuild(segment)
        assert self._fd is not None
        self._unsynced = True
        end = segment.offset(lsn) + len(data)
        try:
            self._files.pwrite(self._fd, data, segment.offset(lsn))
            if self.zero_ahead_bytes and end > self._zeros_to:
                self._zero_ahead(end)
        except OSError as error:
            self._suspect = not may_retry(error)
            raise
        segment.highest_index = max(segment.highest_index, highest_index)

    def _zero_ahead(self, end: int) -> None:
        """Writes zeros from the end of the records on, which the next sync makes part of the file. Records come first:
        a disk without room for zeros takes records for as long as it would have anyway. It is asked for room again
        when they have reached what it was asked for last."""
        assert self._fd is not None
        self._zeros_to = end + self.zero_ahead_bytes
        try:
            self._files.pwrite(self._fd, bytes(self.zero_ahead_bytes), end)
        except OSError as error:
            if not may_retry(error):
                raise

    def sync(self, end_lsn: int) -> None:
        """Makes all that was written durable; now the segment ends at `end_lsn`."""
        assert self._fd is not None
        assert not self._suspect, "a failed sync is never tried again on the same file (D15)"
        began = time.monotonic()
        try:
            self._files.fdatasync(self._fd)
        except OSError:
            self._suspect = True
            raise
        segment = self._chain[-1]
        if self._beside is not None:
            self._files.rename(self._beside, segment.path)
            self._beside = None
            self._files.sync_folder(self._folder)
            self.rebuilds += 1
        self.sync_seconds.append(time.monotonic() - began)
        self._unsynced = False
        with self._lock:
            segment.end_lsn = end_lsn

    def _rebuild(self, segment: Segment) -> None:
        """A new file with what was synced of the last segment, beside the suspect one. The rest is the caller's."""
        self.close()
        self._fd, self._beside = self._copy(segment)
        self._suspect = False

    def _replace(self, segment: Segment) -> None:
        """A copy of a segment takes its place, durably."""
        fd, beside = self._copy(segment)
        try:
            self._files.fsync(fd)
        finally:
            self._files.close(fd)
        self._files.rename(beside, segment.path)

    def _copy(self, segment: Segment) -> tuple[int, Path]:
        """A new file beside a segment, with its header and its records up to its end, checked; not synced yet."""
        data = segment.path.read_bytes()[: segment.offset(segment.end_lsn)]
        generation = self._header(segment.path, data, segment.start_lsn)
        length = segment.end_lsn - segment.start_lsn
        end, _, why, _ = log_scan(data[SEGMENT_HEADER_BYTES:], segment.start_lsn, generation.number, generation.seed)
        if len(data) != SEGMENT_HEADER_BYTES + length or end != segment.end_lsn or why is not None:
            raise _corrupt(segment.path, why or f"its records end at LSN {end}, before {segment.end_lsn}")
        beside = segment.path.with_suffix(REBUILT_SUFFIX)
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(beside)
        fd = self._files.create(beside)
        try:
            self._files.pwrite(fd, data, 0)
        except OSError:
            self._files.close(fd)
            with contextlib.suppress(OSError):
                self._files.unlink(beside)
            raise
        return fd, beside

    def close(self) -> None:
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None
        self._zeros_to = 0

    # --- reading: any thread ---

    def segment_at(self, lsn: int) -> Segment | None:
        """The segment whose synced records cover `lsn`."""
        with self._lock:
            position = bisect_right(self._chain, lsn, key=lambda segment: segment.start_lsn) - 1
            if position < 0 or lsn >= self._chain[position].end_lsn:
                return None
            return self._chain[position]

    def read(self, segment: Segment, places: list[tuple[int, int, int]]) -> list[StoredEntry]:
        """The entries at `places` (index, LSN, bytes; ascending), validated. FileNotFoundError: released meanwhile."""
        lo = places[0][1]
        hi = places[-1][1] + places[-1][2]
        with segment.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), hi - lo, segment.offset(lo))
        generation = segment.generation
        try:
            found = log_extract(data, lo, generation.number, generation.seed, [place[1] for place in places])
        except LogCorrupt as error:
            raise LogFailed(f"segment {segment.path} is damaged: {error}") from error
        return [StoredEntry(*item) for item in found]

    # --- releasing ---

    def release(self, below_index: int, index: LogIndex) -> int:
        """Deletes the oldest segments that hold entries below `below_index` only; never the newest (D14).

        The segment behind a deleted one was synced with its name and its preamble before (`end_lsn` moves in `sync`).
        Returns how many were deleted.
        """
        released = 0
        while True:
            with self._lock:
                if len(self._chain) < 2:
                    return released
                oldest, following = self._chain[0], self._chain[1]
            if oldest.highest_index >= below_index or following.end_lsn == following.start_lsn:
                return released
            index.release(following.start_lsn)
            # One by one: a power cut must not bring an older one back beside the hole that a later one has left. And
            # it leaves the chain last: after an error it is the first to go again.
            with contextlib.suppress(FileNotFoundError):
                self._files.unlink(oldest.path)
            self._files.sync_folder(self._folder)
            with self._lock:
                self._chain.pop(0)
            released += 1

    def total_bytes(self) -> int:
        with self._lock:
            return sum(segment.end_lsn - segment.start_lsn for segment in self._chain)

    def count(self) -> int:
        with self._lock:
            return len(self._chain)

    def forget(self) -> None:
        """Gives all segments up (retiring): they are deleted by `wipe_segments`."""
        self.close()
        with self._lock:
            self._chain = []


def wipe_segments(files: Files, folder: Path) -> None:
    """Deletes all segments in a folder, and what was being made of them, durably. Fine if there are none."""
    for path in sorted(folder.glob("*.seg*")):
        if path.name.endswith((SEGMENT_SUFFIX, REBUILT_SUFFIX)):
            with contextlib.suppress(FileNotFoundError):
                files.unlink(path)
    if folder.is_dir():
        files.sync_folder(folder)
