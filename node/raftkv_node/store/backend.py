"""The LMDB side of the store: buffered writes, one synced transaction after another, in a thread of its own.

Applying an entry of the log never waits for a disk.  What it changes is gathered in a `Chunk` (records, deletions,
meta data, applied index) and queued.  The backend thread takes a prefix of the queue, writes it in one transaction
and syncs it.

**Nothing is ever invisible.**  A chunk leaves the queue only after its commit.  A reader looks at the queue first
and opens its LMDB transaction afterwards: what was no longer queued is committed, and what is committed is seen.

**Order.**  Only chunks whose log entries are durable in the log (`set_durable_index`) are committed; a transaction
holds whole chunks, so data, revision, applied index, term, configuration and members are always of the same entry.
Deletions made by compaction travel behind the compaction's own chunk and can never be found without it.

**Python's interpreter lock.**  LMDB takes a slice of records (`SLICE_BYTES`, `SLICE_RECORDS`) in one call of well
under a millisecond of work.  Its binding gives the lock up for each record and takes it back, so that other threads
run, and may be held up.  The sync itself runs without the lock.

**Pace.**  After a disk has stalled, all members have seconds of changes to commit at the same moment.  The thread is
nicer than the others, works such a backlog off over seconds (`pace`), and rests between the slices of a commit, so that
those who serve clients have the processor meanwhile.  A commit that is urgent (very much is buffered, or the store is
closed) takes what it can and does not rest.

**Failure.**  A transaction or sync that fails is not retried: after a failed sync nobody knows what the page cache
holds.  The error is latched, the queue grows no further use, and the node must stop.

The address space for the file is reserved once, generously (it costs nothing), because growing the map later would
have to stop every reader.  The file itself grows as it is written.

Never compiled (`docs/architecture.md`): other threads than the turn's spend their time here, too.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

import lmdb

from raftkv_node.threads import be_nice, daemon

from .chunk import Chunk
from .encoding import main_of, record_id
from .errors import StoreCorrupt, StoreError
from .pace import Pace

FORMAT_VERSION = 1
DEFAULT_QUOTA_BYTES = 2 << 30
UNLIMITED_QUOTA_BYTES = 1 << 40
"""What a negative quota, none, stands for: address space is reserved once, so that there must be some bound."""
SLICE_RECORDS = 1024
SLICE_BYTES = 512 << 10
REST_PER_WORK = 3.0
"""For how long a commit rests before its next slice, as a multiple of what the last took."""
MAX_REST_SECONDS = 0.01
"""A rest is never longer: that still commits some 40 MiB or 90,000 records a second."""
TRANSACTION_BYTES = 16 << 20
"""A transaction takes no further chunk once it has so much."""
MAX_READERS = 512

SCARCE_BYTES = 2 * TRANSACTION_BYTES
"""Less room than this on the disk is told when a commit fails."""

VERSION_KEY = b"version"
APPLIED_KEY = b"applied"
CONFIGURATION_KEY = b"configuration"
REVISION_KEY = b"revision"
SNAPSHOT_KEY = b"snapshot"
"""In a backend that was made of a snapshot: where that stood, as `APPLIED`."""

APPLIED = struct.Struct(">QQ")
REVISIONS = struct.Struct(">qq")
VERSION = struct.Struct(">I")
MEMBER_ID = struct.Struct(">Q")


_first = attrgetter("first")
Chunks = list[Chunk]


def find(chunks: Chunks, rid: bytes) -> bytes | None:
    """The record with that id in a queue, or `None`."""
    at = bisect_right(chunks, main_of(rid), key=_first) - 1
    return chunks[at].records.get(rid) if at >= 0 else None


class Backend:
    """Owns the LMDB environment and the thread that writes to it."""

    def __init__(
        self,
        path: Path,
        *,
        quota_bytes: int = 0,
        commit_interval_seconds: float = 0.1,
        urgent_bytes: int = 32 << 20,
        on_commit: Callable[[int], None] | None = None,
    ) -> None:
        """Opens or creates the environment in folder `path`; call `start` once recovery has read it.

        A commit begins `commit_interval_seconds` after the last has ended, at once while `urgent_bytes` are buffered.
        `quota_bytes` 0 means 2 GiB, negative none.  `StoreError` or `StoreCorrupt` when it cannot be used.
        """
        self.path = path
        self.quota_bytes = UNLIMITED_QUOTA_BYTES if quota_bytes < 0 else quota_bytes or DEFAULT_QUOTA_BYTES
        self.on_commit = on_commit
        self.failure: BaseException | None = None
        self.commit_seconds: list[float] = []
        """Durations of commits without their rests, for a metrics exporter to drain."""
        self.commits_total = 0
        self.committed_index = 0
        self.chunks_committed = 0
        self.size_bytes = 0
        self.size_in_use_bytes = 0
        self._interval_seconds = commit_interval_seconds
        self._urgent_bytes = urgent_bytes
        self._added_bytes = 0
        self._committed_bytes = 0
        self._durable_index = 0
        self._lock = threading.Lock()
        self._chunks: Chunks = []
        self._wake = threading.Event()
        self._urgent = threading.Event()
        """The next commit is not to wait for its time, and one that rests is to go on."""
        self._stopping = False
        self._thread: threading.Thread | None = None
        try:
            self.env = lmdb.open(
                str(path),
                map_size=self.map_bytes,
                max_dbs=8,
                max_readers=MAX_READERS,
                mode=0o600,
                readahead=False,
            )
            self.revisions = self.env.open_db(b"revisions")
            self.meta = self.env.open_db(b"meta")
            self.members = self.env.open_db(b"members")
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.PageNotFoundError) as error:
            raise StoreCorrupt(f"the backend in {path} is not an intact LMDB environment: {error}") from error
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"the backend in {path} cannot be opened: {error}") from error
        self._check_version()
        self._measure()

    @property
    def map_bytes(self) -> int:
        """Address space that is reserved for the file."""
        return 2 * self.quota_bytes + (1 << 30)

    def _check_version(self) -> None:
        try:
            with self.env.begin(write=True) as txn:
                found = txn.get(VERSION_KEY, db=self.meta)
                if found is None:
                    if txn.stat(self.revisions)["entries"] or txn.stat(self.meta)["entries"]:
                        raise StoreCorrupt(f"the backend in {self.path} holds data but no format version")
                    txn.put(VERSION_KEY, VERSION.pack(FORMAT_VERSION), db=self.meta)
                elif len(found) != VERSION.size:
                    raise StoreCorrupt(f"the backend in {self.path} has an unreadable format version")
                elif VERSION.unpack(found)[0] != FORMAT_VERSION:
                    raise StoreError(
                        f"the backend in {self.path} has format version {VERSION.unpack(found)[0]}; "
                        f"this node reads version {FORMAT_VERSION}"
                    )
        except lmdb.Error as error:
            raise StoreCorrupt(f"the backend in {self.path} cannot be read: {error}") from error

    # The turn's side.

    @property
    def buffered_bytes(self) -> int:
        """Record bytes that wait for their commit."""
        return self._added_bytes - self._committed_bytes

    @property
    def chunks(self) -> Chunks:
        """The queue as of now.  Take it before opening a transaction; it is only ever appended to."""
        return self._chunks

    def add(self, chunk: Chunk) -> None:
        """Queues a chunk behind those before it."""
        with self._lock:
            self._chunks.append(chunk)
        self._added_bytes += chunk.record_bytes
        if not self._wake.is_set():
            self._wake.set()
        if self._added_bytes - self._committed_bytes >= self._urgent_bytes and not self._urgent.is_set():
            self._urgent.set()

    def set_durable_index(self, index: int) -> None:
        """Entries up to `index`, and none above, are durable in this member's log: their chunks may be committed.

        It goes back when the log drops a tail that no quorum had: what then comes in its place has the same indexes,
        and may be committed by the others, and applied here, before it is durable here.
        """
        self._durable_index = index

    @property
    def durable_index(self) -> int:
        return self._durable_index

    # Readers, in any thread.

    def read(self, rid: bytes) -> bytes | None:
        """One record, from the queue or LMDB."""
        found = find(self._chunks, rid)
        if found is not None:
            return found
        with self.env.begin() as txn:
            value: bytes | None = txn.get(rid, db=self.revisions)
            return value

    def read_many(self, rids: list[bytes]) -> list[bytes | None]:
        """Many records with one transaction."""
        chunks = self._chunks
        with self.env.begin(db=self.revisions) as txn:
            get = txn.get
            return [find(chunks, rid) or get(rid) for rid in rids]

    def read_some(self, rids: list[bytes], room_bytes: int = sys.maxsize) -> list[bytes]:
        """The first of these records: all, or as many as have `room_bytes` together, and one at least.  `StoreError`
        when one is not there.
        """
        if not rids:
            return []
        chunks = self._chunks
        found: list[bytes] = []
        with self.env.begin(db=self.revisions) as txn:
            for rid in rids:
                record = find(chunks, rid) or txn.get(rid)
                if record is None:
                    raise StoreError("a record stands in the index but not in the backend")
                found.append(record)
                room_bytes -= len(record)
                if room_bytes <= 0:
                    break
        return found

    def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """The first `limit` records with ids in [start, end), in order."""
        chunks = self._chunks[:]
        found: list[tuple[bytes, bytes]] = []
        with self.env.begin(db=self.revisions) as txn:
            cursor = txn.cursor()
            if cursor.set_range(start):
                for item in cursor.iternext():
                    if item[0] >= end or len(found) >= limit:
                        break
                    found.append(item)
        if len(found) < limit:
            last = found[-1][0] if found else b""
            for chunk in chunks[max(bisect_right(chunks, main_of(start), key=_first) - 1, 0) :]:
                if len(found) >= limit or record_id(chunk.first) >= end:
                    break
                for rid, value in chunk.records.items():
                    if start <= rid < end and rid > last:
                        found.append((rid, value))
            del found[limit:]
        return found

    # The thread.

    def start(self) -> None:
        """Starts the writing thread."""
        self._thread = daemon("store-backend", self._run)
        self._thread.start()

    def close(self, commit: bool = True) -> None:
        """Stops the thread, by default after a last commit of all that may be committed, and closes the environment."""
        self.retire()
        if commit and self.failure is None:
            while self._commit_once():
                pass
        self.env.close()

    def retire(self) -> None:
        """Stops the thread for good.  Readers go on; the environment is closed when the last of them lets go of it."""
        self._stopping = True
        self._wake.set()
        self._urgent.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def started(self) -> bool:
        """Whether the writing thread runs."""
        return self._thread is not None

    def commit_now(self) -> bool:
        """Commits one transaction in the calling thread, for tests and tools; never while the thread runs."""
        assert self._thread is None
        return self._commit_once()

    def _run(self) -> None:
        be_nice()
        pace, committed = Pace(time.monotonic()), True
        while not self._stopping:  # looked at after `_wake` was cleared: whoever stops the thread sets it afterwards
            self._wake.wait()
            self._wait(self._interval_seconds, although_urgent=not committed)
            if self._stopping:
                return
            paced_bytes = pace.take_bytes(self._added_bytes, self._committed_bytes, time.monotonic())
            committed = self._commit_once(TRANSACTION_BYTES if self._is_urgent() else paced_bytes)
            if self.failure is not None:
                return
            with self._lock:
                if not self._chunks:
                    self._wake.clear()

    def _is_urgent(self) -> bool:
        return self.buffered_bytes >= self._urgent_bytes

    def _wait(self, seconds: float, although_urgent: bool = False) -> None:
        """Waits so long, or until a commit becomes urgent or the thread is to end; by default not if one is."""
        self._urgent.clear()  # before looking: whoever sets it from now on ends this wait
        if not self._stopping and (although_urgent or not self._is_urgent()):
            self._urgent.wait(seconds)

    def _commit_once(self, limit_bytes: int = TRANSACTION_BYTES) -> bool:
        """Commits the next chunks that may be, and no further one from `limit_bytes` on; whether there were any.  A
        failure is latched.
        """
        queue, durable, limit_bytes = self._chunks, self._durable_index, min(limit_bytes, TRANSACTION_BYTES)
        taken: Chunks = []
        size = 0
        for chunk in queue:
            if chunk.index > durable or size >= limit_bytes:
                break
            taken.append(chunk)
            size += chunk.record_bytes
        if not taken or self.failure is not None:
            return False
        started = time.monotonic()
        try:
            rested_seconds = self._write(taken)
            self._measure()
        except lmdb.MapFullError as error:
            self.failure = StoreError(
                f"the backend in {self.path} is full: twice its quota of {self.quota_bytes} bytes"
            )
            self.failure.__cause__ = error
            return False
        except Exception as error:
            self.failure = StoreError(f"the backend in {self.path} cannot commit: {error}{self._room()}")
            self.failure.__cause__ = error
            return False
        self.commit_seconds.append(time.monotonic() - started - rested_seconds)
        self.commits_total += 1
        with self._lock:
            self._chunks = self._chunks[len(taken) :]
        self._committed_bytes += size
        self.committed_index = taken[-1].index
        self.chunks_committed += len(taken)
        if self.on_commit is not None:
            try:
                self.on_commit(self.committed_index)
            except Exception as error:
                # Whoever listens would wait for ever for what this thread no longer does.
                self.failure = error
                return False
        return True

    def _room(self) -> str:
        """For a failure's text: LMDB calls a full disk an input/output error."""
        with contextlib.suppress(OSError):
            found = os.statvfs(self.path)
            if found.f_bavail * found.f_frsize < SCARCE_BYTES:
                return f" (its disk has {found.f_bavail * found.f_frsize} bytes left)"
        return ""

    def _write(self, chunks: Chunks) -> float:
        """One transaction, synced; for how long it rested meanwhile."""
        meta: dict[bytes, bytes] = {}
        members: dict[int, bytes | None] = {}
        newest: Chunk | None = None
        with self.env.begin(write=True) as txn:
            cursor = txn.cursor(self.revisions)
            worked_seconds = rested_seconds = 0.0
            for piece in _slices(chunks):
                rested_seconds += self._rest(worked_seconds)
                began = time.monotonic()
                consumed, _ = cursor.putmulti(piece, append=True)
                worked_seconds = time.monotonic() - began
                if consumed != len(piece):
                    raise StoreError(f"LMDB took {consumed} of {len(piece)} records")
            for chunk in chunks:
                if chunk.revision:
                    newest = chunk
                if chunk.configuration:
                    meta[CONFIGURATION_KEY] = chunk.configuration
                if chunk.members is not None:
                    members.update(chunk.members)
                for at in range(0, len(chunk.deletes), SLICE_RECORDS):
                    for rid in chunk.deletes[at : at + SLICE_RECORDS]:
                        txn.delete(rid, db=self.revisions)
                    time.sleep(0)
            if newest is not None:
                meta[REVISION_KEY] = REVISIONS.pack(newest.revision, newest.compact_revision)
            meta[APPLIED_KEY] = APPLIED.pack(chunks[-1].index, chunks[-1].term)
            for key, value in meta.items():
                txn.put(key, value, db=self.meta)
            for member, attributes in members.items():
                if attributes is None:
                    txn.delete(MEMBER_ID.pack(member), db=self.members)
                else:
                    txn.put(MEMBER_ID.pack(member), attributes, db=self.members)
        return rested_seconds

    def _rest(self, worked_seconds: float) -> float:
        """Leaves the processor to others for a while, unless somebody waits or may soon; for how long."""
        if self._thread is None:
            return 0.0
        began = time.monotonic()
        self._wait(min(REST_PER_WORK * worked_seconds, MAX_REST_SECONDS))
        return time.monotonic() - began

    def _measure(self) -> None:
        info = self.env.info()
        with self.env.begin() as txn:
            stats = [txn.stat(db) for db in (self.revisions, self.meta, self.members)]
        page = stats[0]["psize"]
        self.size_bytes = (info["last_pgno"] + 1) * page
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        self.size_in_use_bytes = min((pages + 2) * page, self.size_bytes)

    # Recovery.

    def load_meta(self) -> dict[bytes, bytes]:
        """All meta data."""
        with self.env.begin(db=self.meta) as txn:
            return dict(txn.cursor())

    def load_members(self) -> dict[int, bytes]:
        """Members' attributes by id."""
        with self.env.begin(db=self.members) as txn:
            return {MEMBER_ID.unpack(key)[0]: value for key, value in txn.cursor()}

    def _read_ahead(self) -> None:
        """Asks for the whole file: LMDB maps it for random access, page by page, which is slow for a scan from disk."""
        if not hasattr(os, "posix_fadvise"):
            return
        descriptor = os.open(self.path / "data.mdb", os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def all_records(self) -> Iterator[Iterator[tuple[bytes, bytes]]]:
        """An iterator over all committed records in revision order."""
        self._read_ahead()
        with self.env.begin(db=self.revisions) as txn:
            yield iter(txn.cursor())


def _slices(chunks: Chunks) -> Iterator[list[tuple[bytes, bytes]]]:
    """The records of `chunks`, in slices that LMDB takes in one short call."""
    piece: list[tuple[bytes, bytes]] = []
    size = 0
    for chunk in chunks:
        if chunk.record_bytes + size <= SLICE_BYTES and len(chunk.records) + len(piece) <= SLICE_RECORDS:
            piece += chunk.records.items()
            size += chunk.record_bytes
            continue
        for item in chunk.records.items():
            piece.append(item)
            size += len(item[1])
            if size >= SLICE_BYTES or len(piece) >= SLICE_RECORDS:
                yield piece
                piece, size = [], 0
    if piece:
        yield piece
