"""The log's interface, and what its two forms share.

A `Log` is opened once per process (`Log.open`), appended to by one thread, and read by any. In ring mode a batch is
durable when `append` returns; in disk mode when `durable_lsn` has reached what `append` returned, which the flush
thread says through `on_durable`. Everything else is the same: records, segments, recovery, refusals.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from raftkv_node._engine import LogCorrupt, LogIndex
from raftkv_node.adr import records
from raftkv_node.adr.errors import LogFailed, Unusable
from raftkv_node.adr.files import Files, SyncFailed, may_retry
from raftkv_node.adr.level import Level
from raftkv_node.adr.levels import Environment, Medium
from raftkv_node.adr.manifest import Manifest, write_manifest
from raftkv_node.adr.places import Place, wipe
from raftkv_node.adr.records import HardState, Mark, Record, StoredEntry
from raftkv_node.adr.segments import DURATIONS_KEPT, ZERO_AHEAD_BYTES, Generation, Segments
from raftkv_node.adr.table import Member
from raftkv_node.threads import daemon

if TYPE_CHECKING:
    from raftkv_node.adr.opening import Opened

MIB: Final = 1 << 20
#: D6: with the log buffer this full, entries are made smaller.
PRESSURE_SHRINK: Final = 0.75
#: D6: with the log buffer this full, proposals wait.
PRESSURE_FULL: Final = 0.9
RING_SIZE_MINIMUM_BYTES: Final = 4 * MIB
RING_SIZE_MAXIMUM_BYTES: Final = 100 * MIB
#: Names of alarms (`Log.alarms`).
ALARM_STALLED: Final = "ADR_DRAIN_STALLED"
ALARM_NO_SPACE: Final = "ADR_DRAIN_NO_SPACE"
ALARM_FAILING: Final = "ADR_DRAIN_FAILING"
ALARM_FULL: Final = "ADR_RING_FULL"
#: How long the background thread waits at most until it tries again what has failed.
RETRY_SECONDS: Final = 0.1
#: Where segments lie in the data folder, unless a drain folder is given.
SEGMENT_FOLDER: Final = "wal"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose log this is. `disk_uuid`: 16 random bytes that the disk was given when it was formatted."""

    cluster_id: int
    member_id: int
    number: int
    disk_uuid: bytes
    namespace: str = ""
    cluster_name: str = ""

    @property
    def member(self) -> Member:
        return Member(self.cluster_id, self.member_id, self.number, self.disk_uuid)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Where the stable memory is, where it is drained to, and what the caller relies upon.

    `adr_path`: a folder on persistent memory that exists (never made); None: disk mode. `drain_dir`: the segments'
    folder, by default `wal` in the data folder. `identity_files`: names in the data folder that do not make it a
    used one. `begun`: the caller knows that this log was opened before; an empty folder is then a lost log.
    `accept_loss`: go on with what is on disk where rows 9 to 11 refuse; only for a member that gives up its id. In disk
    mode `adr_size_bytes` bounds what waits for its flush, and zeros are kept `zero_ahead_bytes` ahead of the last
    record on disk, so that a flush seldom makes the file larger (0: not). Draining begins `drain_interval_seconds`
    after the last time, or when `drain_size_bytes` wait. `stalled_after_seconds`: from this age of the oldest record
    that is not on disk on the log says so (`alarms`).
    """

    data_dir: Path
    identity: Identity
    adr_path: Path | None = None
    adr_size_bytes: int = 64 * MIB
    drain_dir: Path | None = None
    drain_interval_seconds: float = 0.1
    drain_size_bytes: int = 8 * MIB
    stalled_after_seconds: float = 5.0
    minimum_durability: Level = Level.POWER
    segment_size_bytes: int = 64 * MIB
    zero_ahead_bytes: int = ZERO_AHEAD_BYTES
    recovered_entries_bytes: int = 32 * MIB
    identity_files: frozenset[str] = frozenset({"identity.json"})
    begun: bool = False
    accept_loss: bool = False
    adr_size_limits_bytes: tuple[int, int] = (RING_SIZE_MINIMUM_BYTES, RING_SIZE_MAXIMUM_BYTES)
    files: Files = field(default_factory=Files)
    environment: Environment = field(default_factory=Environment)

    @property
    def segment_folder(self) -> Path:
        return self.drain_dir if self.drain_dir is not None else self.data_dir / SEGMENT_FOLDER

    def check(self) -> None:
        """Unusable: a value is out of its bounds."""
        low, high = self.adr_size_limits_bytes
        if not low <= self.adr_size_bytes <= high:
            raise Unusable(f"the log buffer's size is {self.adr_size_bytes} bytes, but must be from {low} to {high}")
        if self.drain_interval_seconds <= 0 or self.drain_size_bytes <= 0 or self.segment_size_bytes <= 0:
            raise Unusable("drain interval, drain size and segment size must be positive")
        if self.zero_ahead_bytes < 0:
            raise Unusable("what is written ahead on disk cannot be less than nothing")
        if self.stalled_after_seconds <= 0:
            raise Unusable("the time after which a drain counts as stalled must be positive")
        if len(self.identity.disk_uuid) != 16:
            raise Unusable("a disk uuid has 16 bytes")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the log held when it was opened.

    `entries`: the tail, at most `recovered_entries_bytes` of it; older ones by `Log.read_entries`. `base_term`: term of
    the entry before `first_index`, 0 if it is not known. `torn_tail_bytes`: valid records that followed a torn one and
    were dropped with it (the normal picture of a power cut). `replayed`: records that were found behind what the
    manifest knew to be drained. `fresh`: the log was made just now. `row`: the decision table's. `ring_proof`: the log
    was recovered from a ring in use, in memory outside of the disk, which proves that the disk is not an older copy.
    """

    hard_state: HardState
    configuration: Mark | None
    snapshot: Mark | None
    marks: dict[int, Mark]
    first_index: int
    last_index: int
    last_term: int
    base_term: int
    entries: list[StoredEntry]
    torn_tail_bytes: int
    replayed: int
    duration_seconds: float
    generation: int
    nonce: bytes
    fresh: bool
    row: int
    ring_proof: bool = False


def preamble(index: LogIndex) -> list[Record]:
    """What every segment and every generation begins with (D5): hard state, configuration, position; then marks."""
    term, vote, commit = index.hard_state
    membership = index.configuration or (0, 0, b"")
    last_index, last_term = index.last
    return [
        records.hard_state(term, vote, commit),
        records.configuration(*membership),
        records.mark(records.MARK_POSITION, last_term, last_index),
        *(records.mark(*found) for found in index.marks_from(records.MARK_USER)),
    ]


class Log(ABC):
    """A member's log. See the module."""

    def __init__(self, opened: Opened) -> None:
        options = opened.options
        self._options = options
        self._files = options.files
        self._index: LogIndex = opened.index
        self._segments: Segments = opened.segments
        self._manifest: Manifest = opened.manifest
        self._generation: Generation = opened.generation
        self._locks: list[int] = opened.locks
        self._segment_start = 0
        self._release_below = 0
        self._closing = False
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._bad_sectors = opened.bad_sectors
        self.level: Level = opened.level
        self.medium: Medium = opened.medium
        self.failed: Exception | None = None
        #: Called from the flush thread with the new durable LSN (disk mode only; ring mode is durable on return).
        self.on_durable: Callable[[int], None] | None = None
        #: Called once, from the thread that failed.
        self.on_failed: Callable[[Exception], None] | None = None
        self._durations: deque[float] = deque(maxlen=DURATIONS_KEPT)
        #: When the oldest record that is not on disk was appended, None if all is.
        self._lag_since: float | None = None
        #: Since when the buffer is so full that proposals wait, and for how long they did before.
        self._full_since: float | None = None
        self._backpressure_seconds = 0.0
        #: What keeps the drain from going on: an error that is tried again.
        self._trouble: OSError | None = None
        self._last_success_seconds = time.time()
        self._counts = {
            "appended_batches": 0,
            "appended_bytes": 0,
            "appended_records": 0,
            "drains": 0,
            "drained_bytes": 0,
            "drain_errors": 0,
            "drain_errors_space": 0,
            "drain_errors_sync": 0,
            "drain_errors_io": 0,
            "released_segments": 0,
            "ring_full": 0,
        }
        self._high_watermark_bytes = 0

    @staticmethod
    def open(options: LogOptions) -> tuple[Log, Recovered]:
        """Opens, or makes, a member's log: recovered, durable, and in a new generation (D3, D8).

        Errors, nothing changed: Refused, DurabilityTooLow, Owned, Unusable, each with one sentence and an `exit_code`.
        """
        from raftkv_node.adr.opening import open_log

        return open_log(options)

    # --- appending: one thread ---

    @abstractmethod
    def append(self, batch: Sequence[Record]) -> int:
        """Appends the records of a turn and returns the LSN behind them; they count once `durable_lsn` has reached it.

        RingFull (of the engine): there is no room until more is drained; nothing was appended. ValueError: an entry
        leaves a gap, or a term or vote goes back; nothing was appended. LogFailed: the node must stop.
        """

    @property
    @abstractmethod
    def durable_lsn(self) -> int:
        """All below it survives what `level` names."""

    @abstractmethod
    def pressure(self) -> float:
        """How full the buffer is, 0 to 1. From 0.75 on batches are made smaller, from 0.9 on proposals wait (D6)."""

    @abstractmethod
    def headroom(self) -> int:
        """Bytes that fit into the buffer now."""

    def _check_usable(self) -> None:
        if self.failed is not None:
            raise LogFailed(f"the log failed: {self.failed}") from self.failed
        if self._closing:
            raise LogFailed("the log is closed")

    def _preamble(self) -> list[Record]:
        return preamble(self._index)

    def _appended(self, count: int, size_bytes: int, held_bytes: int, room_bytes: int) -> None:
        """`held_bytes` of `room_bytes` are in use now, or fewer by what was drained meanwhile."""
        counts = self._counts
        counts["appended_batches"] += 1
        counts["appended_records"] += count
        counts["appended_bytes"] += size_bytes
        self._high_watermark_bytes = max(self._high_watermark_bytes, held_bytes)
        if self._lag_since is None:
            self._lag_since = now()
        if held_bytes >= PRESSURE_FULL * room_bytes or self._full_since is not None:
            self._note_pressure()

    # --- reading: any thread ---

    @property
    def first_index(self) -> int:
        """Index of the first entry held (one more than the last where there is none)."""
        return self._index.first_index

    @property
    def last_index(self) -> int:
        return self._index.last[0]

    def term(self, index: int) -> int | None:
        """Term of the entry at `index`, also of the one before the first where it is known (0: it is not)."""
        return self._index.term(index)

    def tail_index(self, max_bytes: int) -> int:
        """The first index from which all entries to the last take at most `max_bytes` in the log."""
        return self._index.tail(max_bytes)

    def read_entries(self, lo: int, hi: int, max_bytes: int) -> list[StoredEntry]:
        """Durable entries of [lo, hi), from the first on, about `max_bytes` of them but at least one; validated.

        Fewer when the rest is not durable yet; empty when `lo` is released or not there. LogFailed: what is there is
        damaged.
        """
        found: list[StoredEntry] = []
        places = self._index.locate(lo, hi, max_bytes)
        durable = self.durable_lsn
        position = 0
        while position < len(places) and places[position][1] < durable:
            segment = self._segments.segment_at(places[position][1])
            end = position + 1
            limit = segment.end_lsn if segment is not None else durable
            while end < len(places) and places[end - 1][1] < places[end][1] < limit:
                end += 1
            run = places[position:end]
            if segment is None:
                read = self._read_undrained(run)
                if read is None:
                    continue  # drained and given up meanwhile: now a segment has it
            else:
                try:
                    read = self._segments.read(segment, run)
                except FileNotFoundError:
                    read = []
            if not read:
                break  # released meanwhile, or not there yet
            found += read
            position = end
        return found

    @abstractmethod
    def _read_undrained(self, run: list[tuple[int, int, int]]) -> list[StoredEntry] | None:
        """The entries at `run` (index, LSN, bytes), not yet in a synced segment. None: they are there by now; empty:
        they
        are released, or nowhere yet."""

    # --- background ---

    def release(self, below_index: int) -> None:
        """Segments that hold only entries below `below_index` may go: the caller has them in a synced commit (D14)."""
        if below_index > self._release_below:
            self._release_below = below_index
            self._wake.set()

    def _release_segments(self) -> None:
        if self._release_below:
            self._counts["released_segments"] += self._segments.release(self._release_below, self._index)

    def _drained_to_disk(self) -> None:
        """A drain, or a flush, has succeeded."""
        self._trouble = None
        self._last_success_seconds = time.time()

    def _drain_error(self, error: OSError) -> None:
        """Counts an error of the drain's disk by its kind."""
        counts = self._counts
        counts["drain_errors"] += 1
        sync = isinstance(error, SyncFailed)
        counts["drain_errors_sync" if sync else "drain_errors_space" if may_retry(error) else "drain_errors_io"] += 1
        self._trouble = error

    def _pause(self) -> None:
        """Before something is tried again, whatever waits; the end of the log ends it."""
        self._ended.wait(min(self._options.drain_interval_seconds, RETRY_SECONDS))

    def _note_pressure(self) -> None:
        """Keeps the time in which proposals wait. The appender and the drain call it, each after what it changed."""
        full, since = self.pressure() >= PRESSURE_FULL, self._full_since
        if full and since is None:
            self._full_since = now()
        elif not full and since is not None:
            self._full_since = None
            self._backpressure_seconds += now() - since

    def _fail(self, error: Exception) -> None:
        """Latches a failure: from now on nothing is durable any more, and the node must stop (D15)."""
        if self.failed is None:
            self.failed = error
            if self.on_failed is not None:
                self.on_failed(error)

    def _start_thread(self, name: str, target: Callable[[], None]) -> None:
        self._thread = daemon(name, target)
        self._thread.start()

    def _stop_thread(self) -> None:
        self._closing = True
        self._ended.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def left_places(self, places: tuple[Place, ...]) -> None:
        """What of older places could not be cleared; the next manifest that is written says so."""
        self._manifest = self._manifest.replace(old_places=places)

    def _write_manifest(self, manifest: Manifest) -> None:
        write_manifest(self._files, self._options.data_dir, manifest)
        self._manifest = manifest

    def close(self, clean: bool = True) -> None:
        """Ends the log. `clean`: drained and marked clean, manifest last (D9); else as a crash would leave it.

        LogFailed: it could not be marked clean; it is closed as after a crash.
        """
        if not self._locks:
            return
        self._stop_thread()
        try:
            if clean:
                self._end_clean()
        finally:
            self._close_files()
            self._unlock()

    def _end_clean(self) -> None:
        if self.failed is not None:
            raise LogFailed(f"the log failed and is not marked clean: {self.failed}") from self.failed
        try:
            self._mark_clean()
        except (OSError, LogCorrupt) as error:
            self._fail(error)
            raise LogFailed(f"the log could not be brought to disk and is not marked clean: {error}") from error

    @abstractmethod
    def _mark_clean(self) -> None:
        """Brings everything to disk and says so, the manifest last. OSError or LogCorrupt: it could not."""

    def _close_files(self) -> None:
        self._segments.close()

    def retire(self) -> None:
        """Closes and wipes rings, segments and manifest, the manifest last (M10 is the caller's to have checked)."""
        self._stop_thread()
        self._close_files()
        self._segments.forget()
        options, identity = self._options, self._options.identity
        wipe(
            self._files,
            options.data_dir,
            options.segment_folder,
            options.adr_path,
            (identity.cluster_id, identity.number),
            options.environment,
        )
        self._unlock()

    def _unlock(self) -> None:
        locks, self._locks = self._locks, []
        for fd in locks:
            os.close(fd)

    # --- figures ---

    def lag_seconds(self) -> float:
        """Age of the oldest record that is not on disk yet, 0 if all is."""
        if not self._behind:
            return 0.0
        since = self._lag_since
        if since is None:  # forgotten when an append met the end of a drain: known from now on
            since = self._lag_since = now()
        return max(0.0, now() - since)

    @property
    @abstractmethod
    def _behind(self) -> bool:
        """Whether there are records that are not on disk yet."""

    def backpressure_seconds(self) -> float:
        """For how long, in all, proposals had to wait for room (D6)."""
        since = self._full_since
        return self._backpressure_seconds + (0.0 if since is None else max(0.0, now() - since))

    def alarms(self) -> dict[str, str]:
        """What is wrong but may pass, by name (docs/durability.md); nothing acknowledged is in danger. Any thread."""
        found: dict[str, str] = {}
        lag, trouble, limit = self.lag_seconds(), self._trouble, self._options.stalled_after_seconds
        where = self._options.segment_folder
        if trouble is not None:
            reason = trouble.strerror or str(trouble)
            if may_retry(trouble):
                found[ALARM_NO_SPACE] = f"no room for the log in {where}: {reason}; make room, it goes on by itself"
            else:
                found[ALARM_FAILING] = f"the log could not be written to {where}: {reason}; it is tried on a new file"
        if lag > limit:
            found[ALARM_STALLED] = f"nothing was brought to disk in {where} for {lag:.0f} s"
        since = self._full_since
        if since is not None and now() - since > limit:
            found[ALARM_FULL] = f"the log buffer is {self.pressure():.0%} full: writes wait until more is on disk"
        return found

    def stats(self) -> dict[str, int]:
        """Plain counters and gauges, in the unit of their names."""
        return {
            **self._counts,
            "durable_lsn": self.durable_lsn,
            "drained_lsn": self._segments.end_lsn,
            "segment_bytes": self._segments.total_bytes(),
            "segments": self._segments.count(),
            "entries": len(self._index),
            "high_watermark_bytes": self._high_watermark_bytes,
            "generation": self._generation.number,
            "unsafe_shutdowns": self._manifest.unsafe_shutdowns or 0,
            "bad_sectors": self._bad_sectors,
            "segment_rebuilds": self._segments.rebuilds,
            "backpressure_milliseconds": round(self.backpressure_seconds() * 1000),
            "drain_lag_milliseconds": round(self.lag_seconds() * 1000),
            "last_drain_unix_milliseconds": round(self._last_success_seconds * 1000),
        }

    def take_durations_seconds(self) -> list[float]:
        """Durations of drains (ring mode) or flushes (disk mode) since the last call."""
        return _take(self._durations)

    def take_sync_durations_seconds(self) -> list[float]:
        """Durations of the syncs of segments since the last call."""
        return _take(self._segments.sync_seconds)

    @property
    def nonce(self) -> bytes:
        """This opening's random nonce (M5)."""
        return bytes.fromhex(self._manifest.nonce)

    @property
    def generation(self) -> int:
        return self._generation.number


def _take(durations: deque[float]) -> list[float]:
    taken = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(durations.popleft())
    return taken


def now() -> float:
    return time.monotonic()
