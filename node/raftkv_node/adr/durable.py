"""The ring as a library: a durable log for any Python program, without members, terms and snapshots.

`DurableLog` is a thin face of `Log`, which does all the work: same ring, same drain, same recovery, same refusals. An
item's position is its entry's index; the term is always one. What was released is a mark in the log itself, so that it
holds at once and after any crash, although segments go later and as a whole. docs/log-library.md is the guide.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from raftkv_node._engine import RingFull
from raftkv_node.adr.errors import LogFailed, Unusable
from raftkv_node.adr.files import Files, make_folder, read_document, write_document
from raftkv_node.adr.level import Level
from raftkv_node.adr.levels import Environment, Medium
from raftkv_node.adr.log import MIB, Identity, Log, LogOptions
from raftkv_node.adr.places import lock
from raftkv_node.adr.records import MARK_USER, Record, entry, mark, record_bytes

#: Whose log this is: a checksummed document beside the manifest.
LOG_FILE = "log.json"
LOG_FORMAT = 1
#: How much a replay holds in memory at a time, at least one item.
REPLAY_CHUNK_BYTES = 1 * MIB
#: How often a full buffer is looked at again.
ROOM_CHECK_SECONDS = 0.001

_TERM = 1
_KIND = 0
_RELEASED = MARK_USER
#: Beside the items: a preamble where a segment begins (hard state, configuration, position, the release's mark).
_PREAMBLE_BYTES = 4 * record_bytes(0)


class Released(LookupError):
    """The position asked for was given up by `release`."""


class DurableLog:
    """A durable, append-only sequence of byte strings at positions 1, 2, 3, ...

    Any thread may call any method; appends are taken one after the other. One process has a log at a time.
    """

    def __init__(self, log: Log, released_below: int) -> None:
        self._log = log
        self._appending = threading.Lock()
        self._progress = threading.Condition()
        self._waiting: deque[tuple[int, int]] = deque()
        self._durable = self._last = log.last_index
        self._released_below = released_below
        self._capacity_bytes = log.stats().get("ring_size_bytes")
        #: Set before `close` waits for its turn: an append that waits for room gives its own up.
        self._closing = False
        self._closed = False
        log.on_durable = self._on_durable
        log.on_failed = self._on_failed

    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        ring: str | os.PathLike[str] | None = None,
        size_bytes: int = 64 * MIB,
        drain_to: str | os.PathLike[str] | None = None,
        minimum_durability: Level | str = Level.POWER,
        drain_interval_seconds: float = 0.1,
        drain_size_bytes: int = 8 * MIB,
        segment_size_bytes: int = 64 * MIB,
        environment: Environment | None = None,
    ) -> DurableLog:
        """Opens the log in the folder `path`, or makes one there; recovers what the last process has left.

        `path`: made if missing, inside an existing folder. `ring`: an existing folder on persistent memory, which is
        never made; None: disk mode, where each append waits for a flush of the disk. `size_bytes`: of the ring, 4 MiB
        to 100 MiB; in disk mode, what may wait for its flush. `drain_to`: where the ring is drained to, by default
        `wal` in `path`. `minimum_durability`: `power`, `kernel` or `process`, what an item must survive at least.
        `environment`: tests put another machine in its place.

        Errors, nothing changed: Refused (ring and disk do not belong together, or one is lost or damaged),
        DurabilityTooLow, Owned (another process has it), Unusable (a folder or a size cannot be used).
        """
        folder, files = Path(path), Files()
        document = _document(files, folder)
        options = LogOptions(
            data_dir=folder,
            identity=Identity(
                int(document["log_id"], 16), int(document["log_id"], 16), 1, bytes.fromhex(document["disk_uuid"])
            ),
            adr_path=None if ring is None else Path(ring),
            adr_size_bytes=size_bytes,
            drain_dir=None if drain_to is None else Path(drain_to),
            drain_interval_seconds=drain_interval_seconds,
            drain_size_bytes=drain_size_bytes,
            minimum_durability=_level(minimum_durability),
            segment_size_bytes=segment_size_bytes,
            # Items are read when they are replayed.
            recovered_entries_bytes=0,
            identity_files=frozenset({LOG_FILE}),
            begun=document["begun"],
            environment=environment if environment is not None else Environment(),
        )
        log, recovered = Log.open(options)
        if not document["begun"]:
            # From now on an empty folder is a lost log, not a new one. Before the first item.
            write_document(files, folder / LOG_FILE, {**document, "begun": True})
        released = recovered.marks.get(_RELEASED)
        return DurableLog(log, released.index if released is not None else 1)

    # --- appending ---

    def append(self, data: bytes | Sequence[bytes], timeout_seconds: float | None = None) -> int:
        """Appends one item, or several in one batch, and returns the position of the last.

        With a ring they are durable on return; in disk mode when `wait` has returned for that position. A batch costs
        one fence, or shares one flush, and is acknowledged as a whole; a crash in its middle may keep a first part of
        it. While the buffer is full this waits for the drain.

        Nothing appended: TypeError, an item is not bytes; ValueError, the batch is too large for the buffer;
        TimeoutError, there was no room in time. LogFailed: the log failed or is closed, also while this waited;
        open it again.
        """
        items = [data] if isinstance(data, bytes) else list(data)
        if not all(isinstance(item, bytes) for item in items):
            raise TypeError("an item is bytes: encode what you append")
        with self._appending:
            first = self._log.last_index + 1
            batch = [entry(_TERM, first + n, _KIND, item) for n, item in enumerate(items)]
            self._append(batch, timeout_seconds)
            return self._last

    def _append(self, batch: list[Record], timeout_seconds: float | None) -> int:
        self._check_size(batch)
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            try:
                lsn = self._log.append(batch)
                break
            except RingFull as error:
                if self._closing:
                    raise LogFailed("the log was closed while it had no room: nothing was appended") from error
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"the log buffer had no room within {timeout_seconds} s: {error}") from error
                time.sleep(ROOM_CHECK_SECONDS)
        with self._progress:
            self._last = self._log.last_index
            if self._log.durable_lsn >= lsn:
                self._durable = self._last
                self._waiting.clear()
                self._progress.notify_all()
            else:
                self._waiting.append((lsn, self._last))
        return lsn

    def _check_size(self, batch: list[Record]) -> None:
        """A batch that fits into an empty ring nowhere would wait for ever."""
        capacity = self._capacity_bytes
        if capacity is None:
            return
        sizes = [record_bytes(len(record[-1])) for record in batch]
        # No record wraps: the largest may leave a hole of its size at the ring's end.
        needed = sum(sizes) + max(sizes, default=0) + _PREAMBLE_BYTES
        if needed > capacity:
            raise ValueError(f"the batch takes {needed} bytes of a log buffer of {capacity}: append it in parts")

    def wait(self, position: int, timeout_seconds: float | None = None) -> None:
        """Returns when the item at `position`, and with it all before, is durable. At once with a ring.

        ValueError: nothing was appended there. TimeoutError: it is not durable yet. LogFailed: it will not be known.
        """
        if not 0 <= position <= self._last:
            raise ValueError(f"position {position} is not one of a log that ends at {self._last}")
        self._wait(lambda: self._durable >= position, f"position {position}", timeout_seconds)

    def _wait(self, done: Callable[[], bool], what: str, timeout_seconds: float | None) -> None:
        with self._progress:
            self._progress.wait_for(lambda: done() or self._ended, timeout_seconds)
            if done():
                return
        if self._ended:
            raise LogFailed(f"the log ended before {what} was known to be durable ({self._log.failed or 'closed'})")
        raise TimeoutError(f"{what} is not durable after {timeout_seconds} s")

    @property
    def _ended(self) -> bool:
        return self._closed or self._log.failed is not None

    def _on_durable(self, lsn: int) -> None:
        with self._progress:
            while self._waiting and self._waiting[0][0] <= lsn:
                self._durable = self._waiting.popleft()[1]
            self._progress.notify_all()

    def _on_failed(self, _: Exception) -> None:
        with self._progress:
            self._progress.notify_all()

    # --- reading ---

    def replay(self, from_: int | None = None) -> Iterator[tuple[int, bytes]]:
        """The durable items from `from_` on (None: from the first), each with its position, up to the last one now.

        Holds about a MiB, or one item, at a time; appends may go on meanwhile. Released: `from_`, or what was to come
        next, was given up. LogFailed: what is on disk is damaged, or the log was closed.
        """
        with self._progress:
            self._check_open()
            end = self._durable
        position = self.first if from_ is None else from_
        if position < self.first:
            raise Released(f"position {position} was released: the log begins at {self.first}")
        return self._replay(position, end)

    def _replay(self, position: int, end: int) -> Iterator[tuple[int, bytes]]:
        while position <= end:
            self._check_open()
            found = self._log.read_entries(position, end + 1, REPLAY_CHUNK_BYTES)
            if not found:
                raise Released(f"position {position} was released: the log begins at {self.first}")
            for item in found:
                yield item.index, item.payload
            position = found[-1].index + 1

    def _check_open(self) -> None:
        if self._closed:
            raise LogFailed("the log is closed")

    @property
    def first(self) -> int:
        """The first position that can be replayed; one more than `last` when there is none."""
        return max(self._log.first_index, self._released_below)

    @property
    def last(self) -> int:
        """The last position that was appended, 0 when there was none."""
        return self._last

    @property
    def durable(self) -> int:
        """The last position that is durable."""
        return self._durable

    # --- giving up ---

    def release(self, below: int) -> None:
        """Gives all items below `below` up: they are not replayed any more, and their space is freed, by and by.

        ValueError: that is beyond the end. LogFailed: as with `append`.
        """
        with self._appending:
            if below > self._last + 1:
                raise ValueError(f"only what was appended can be released: the log ends at {self._last}")
            if below <= self._released_below:
                return
            lsn = self._append([mark(_RELEASED, _TERM, below)], None)
        self._wait(lambda: self._log.durable_lsn >= lsn, "the release", None)
        self._released_below = max(self._released_below, below)
        self._log.release(below)

    # --- the rest ---

    @property
    def level(self) -> Level:
        """What a durable item survives: `power`, `kernel` or `process`."""
        return self._log.level

    @property
    def medium(self) -> Medium:
        return self._log.medium

    @property
    def alarms(self) -> dict[str, str]:
        """What is wrong but may pass (a full or stalled disk), by name; nothing durable is in danger."""
        return self._log.alarms()

    def stats(self) -> dict[str, int]:
        """Counters and gauges of the log, in the unit of their names."""
        return self._log.stats()

    def close(self) -> None:
        """Drains, marks the log clean, and ends it. Again: nothing. LogFailed: it was left as by a crash.

        What waits for room in `append` or `release` ends with LogFailed; nothing of it was appended.
        """
        self._closing = True
        with self._appending:
            if self._closed:
                return
            try:
                self._log.close()
            finally:
                with self._progress:
                    if self._log.failed is None:
                        self._durable = self._last
                    self._closed = True
                    self._progress.notify_all()

    def __enter__(self) -> DurableLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _level(level: Level | str) -> Level:
    try:
        return Level(level)
    except ValueError as error:
        raise ValueError(f"durability {level!r} is none of {', '.join(Level)}") from error


def _document(files: Files, folder: Path) -> dict[str, Any]:
    """Whose log is in `folder`; a new one if the folder is empty."""
    try:
        make_folder(files, folder)
        document = read_document(folder / LOG_FILE)
        if document is None:
            document = _new_document(files, folder)
    except ValueError as error:
        raise Unusable(f"{folder / LOG_FILE} is damaged: {error}") from error
    except OSError as error:
        raise Unusable(f"the log cannot use {folder}: {error.strerror or error}") from error
    if document.get("format") != LOG_FORMAT:
        raise Unusable(f"{folder / LOG_FILE} is of format {document.get('format')}, which this program does not know")
    return document


def _new_document(files: Files, folder: Path) -> dict[str, Any]:
    """Under the folder's lock: of two that find it empty the second must not write its ids over the first's."""
    held = lock(folder, "log")
    try:
        document = read_document(folder / LOG_FILE)
        if document is not None:
            return document
        others = [path.name for path in folder.iterdir() if path.name not in ("lost+found", LOG_FILE + ".tmp")]
        if others:
            raise Unusable(f"{folder} is no log and not empty (it has {sorted(others)[0]}): give an empty folder")
        document = {
            "format": LOG_FORMAT,
            "log_id": f"{secrets.randbits(63) + 1:016x}",
            "disk_uuid": secrets.token_hex(16),
            "begun": False,
        }
        write_document(files, folder / LOG_FILE, document)
        return document
    finally:
        os.close(held)
