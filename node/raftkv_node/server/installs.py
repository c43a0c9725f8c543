"""Snapshots that this member receives: pieces to a place of their own, checks, and the change from the old state.

Pieces are written by a worker, one job at a time, to a second backend beside the store's (`SnapshotSink`); reads and
the store go on with the old state. When all is whole and durable, a worker opens it and builds its index. Then, on the
turn, the core replaces its log (`Raft.restore`), the log gets its mark, and once that is durable the store takes over
the new backend in one step. The acknowledgement leaves with the mark and not before. `store.install` has the order on
the disk.

One snapshot is received at a time. A piece of a newer transfer ends the older one; of an older one nothing is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Full
from typing import NamedTuple, Protocol

import lmdb

from raftkv_node._engine import crc32c
from raftkv_node.raft import Message, Raft, Snapshot
from raftkv_node.server.log import Logger, member
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.transfers import CHUNK_BYTES, PIECE, TAKEN, WINDOW_BYTES
from raftkv_node.server.workers import Workers
from raftkv_node.store.errors import StoreError
from raftkv_node.store.snapshot import SnapshotSink
from raftkv_node.store.store import Store

QUEUE_BYTES = 2 * WINDOW_BYTES
"""Received and not written yet; pieces beyond are dropped, and will come again."""
FAULTS = (StoreError, lmdb.Error, OSError)
"""What ends a transfer and nothing else: a bad stream, or a disk that has no room or fails."""


class Places(Protocol):
    """What the member does on the disk, on workers."""

    def open_sink(self) -> SnapshotSink:
        """A new sink, in the place of any other."""

    def complete(self, sink: SnapshotSink) -> Prepared:
        """Makes a whole snapshot durable under its name, and opens it as a store."""

    def discard(self, store: Store) -> None:
        """A store that `complete` has opened is of no use."""


class Prepared(NamedTuple):
    """A snapshot that is durable, and open."""

    snapshot: Snapshot
    store: Store


class Incoming:
    """One transfer."""

    def __init__(self, message: Message, now: float) -> None:
        self.first = message
        self.began = now
        self.expected = 0
        """Offset of the next piece to be queued."""
        self.written = 0
        self.queue: deque[Message] = deque()
        self.queued_bytes = 0
        self.sink: SnapshotSink | None = None
        self.whole = False
        """Whether its end is queued: nothing more comes."""
        self.closed = False

    def is_of(self, message: Message) -> bool:
        """Whether a piece belongs to this transfer."""
        return self._key(message) == self._key(self.first)

    def is_newer_than(self, message: Message) -> bool:
        """Whether a piece belongs to an older transfer of the same leader. (One of an older term does not get here.)"""
        return message.term == self.first.term and message.sequence < self.first.sequence

    @staticmethod
    def _key(message: Message) -> tuple[int, int, int]:
        return message.term, message.sender, message.sequence


class Installs:
    """The snapshot that is being received, and then installed. For the turn."""

    def __init__(self, raft: Raft, workers: Workers, metrics: Metrics, logger: Logger, places: Places) -> None:
        self._raft = raft
        self._workers = workers
        self._metrics = metrics
        self._logger = logger
        self._places = places
        self._incoming: Incoming | None = None
        self._jobs: deque[Callable[[], Callable[[], None]]] = deque()
        self._busy = False
        self.preparing = False
        """Whether a whole snapshot is made ready: no other is received meanwhile."""
        self.prepared: Prepared | None = None
        """What the core was given, until the store has taken it over."""
        self.swapping = False
        """Whether the store uses a snapshot that has yet to get the backend's name on the disk."""
        self._began = self._now = 0.0

    @property
    def under_way(self) -> bool:
        """Whether a snapshot is received or installed."""
        return self._incoming is not None or self.preparing or self.prepared is not None or self.swapping

    # -- pieces -------------------------------------------------------------------------------------------------------

    def receive(self, message: Message, now: float) -> None:
        """A piece that the core has let through."""
        self._now = now
        if len(message.context) != PIECE.size or len(message.data) > CHUNK_BYTES:
            self._logger.warn("a piece of a snapshot makes no sense", sender=member(message.sender))
            return
        offset, checksum, last = PIECE.unpack(message.context)
        incoming = self._incoming
        if incoming is None or not incoming.is_of(message):
            if (
                self.preparing
                or self.prepared is not None
                or self.swapping
                or (incoming is not None and incoming.is_newer_than(message))
            ):
                return
            if offset:
                self._raft.answer_snapshot(message, TAKEN.pack(0), reject=True)
                return
            incoming = self._begin(message, now)
        if offset != incoming.expected or incoming.whole:
            self._raft.answer_snapshot(message, TAKEN.pack(incoming.written))
            return
        if checksum != crc32c(message.data):
            self._logger.warn("a piece of a snapshot is damaged", sender=member(message.sender), offset=offset)
            return
        if incoming.queued_bytes + len(message.data) > QUEUE_BYTES:
            return
        incoming.expected += len(message.data)
        incoming.queued_bytes += len(message.data)
        incoming.whole = bool(last)
        incoming.queue.append(message)
        self._metrics.snapshots.received_bytes += len(message.data)
        self._submit(lambda: self._write(incoming))

    def _begin(self, message: Message, now: float) -> Incoming:
        if self._incoming is not None:
            self._logger.info("snapshot is superseded", sender=member(self._incoming.first.sender))
            self._give_up(self._incoming)
        self._incoming = incoming = Incoming(message, now)
        self._metrics.snapshots.receiving[message.sender] = 1
        self._logger.info(
            "receiving a snapshot", sender=member(message.sender), index=message.index, term=message.log_term
        )
        return incoming

    def _give_up(self, incoming: Incoming) -> None:
        """The transfer is over; its sink is closed behind the job that may be writing to it."""
        incoming.closed = True
        if self._incoming is incoming:
            self._incoming = None
            self._metrics.snapshots.receiving.clear()

        def close() -> Callable[[], None]:
            if incoming.sink is not None:
                incoming.sink.close()
            return lambda: None

        self._submit(close)

    # -- jobs, one at a time ------------------------------------------------------------------------------------------

    def _submit(self, job: Callable[[], Callable[[], None]]) -> None:
        """Queue a job for a worker; it returns what is to be done on the turn."""
        self._jobs.append(job)
        self._next_job()

    def _next_job(self) -> None:
        if self._busy or not self._jobs:
            return
        job = self._jobs[0]

        def work() -> None:
            then = job()
            self._workers.done.append(lambda: self._job_done(then))

        try:
            self._workers.submit(work)
        except Full:
            return  # with the next tick
        self._busy = True
        self._jobs.popleft()

    def _job_done(self, then: Callable[[], None]) -> None:
        self._busy = False
        then()
        self._next_job()

    def tick(self, now: float) -> None:
        """A job that found no room in the workers' queue is tried again."""
        self._now = now
        self._next_job()

    def _write(self, incoming: Incoming) -> Callable[[], None]:
        """On a worker: takes the next queued piece in."""
        message = incoming.queue.popleft()
        if incoming.closed:
            return lambda: None
        try:
            if incoming.sink is None:
                incoming.sink = self._places.open_sink()
            incoming.sink.feed(message.data)
        except FAULTS as error:
            reason = str(error)
            return lambda: self._failed(incoming, message, reason)
        return lambda: self._written(incoming, message)

    def _failed(self, incoming: Incoming, message: Message, reason: str) -> None:
        if incoming.closed:
            return
        self._give_up(incoming)
        self._metrics.snapshots.count(self._metrics.snapshots.receive_failures, message.sender)
        self._logger.error("snapshot cannot be taken", sender=member(message.sender), reason=reason)
        self._raft.answer_snapshot(message, TAKEN.pack(0), reject=True)

    def _written(self, incoming: Incoming, message: Message) -> None:
        if incoming.closed:
            return
        incoming.written += len(message.data)
        incoming.queued_bytes -= len(message.data)
        self._raft.answer_snapshot(message, TAKEN.pack(incoming.written))
        if incoming.whole and incoming.written == incoming.expected:
            self._received(incoming, message)

    # -- installing ---------------------------------------------------------------------------------------------------

    def _received(self, incoming: Incoming, message: Message) -> None:
        sink = incoming.sink
        assert sink is not None
        if not sink.complete:
            self._failed(incoming, message, "the snapshot ends before its end")
            return
        self._began = incoming.began
        self._incoming = None
        self.preparing = True
        self._metrics.snapshots.installing = 1
        snapshots = self._metrics.snapshots
        snapshots.receiving.clear()
        snapshots.count(snapshots.received, message.sender)
        snapshots.took(snapshots.receive_seconds, message.sender, self._now - incoming.began)
        self._logger.info("snapshot is received", sender=member(message.sender), index=message.index, bytes=sink.bytes)

        def prepare() -> Callable[[], None]:
            try:
                prepared = self._places.complete(sink)
            except FAULTS as error:
                sink.close()
                reason = str(error)
                return lambda: self._unusable(incoming, message, reason)
            return lambda: self._ready(prepared)

        self._submit(prepare)

    def _unusable(self, incoming: Incoming, message: Message, reason: str) -> None:
        self.preparing = False
        self._metrics.snapshots.installing = 0
        self._failed(incoming, message, reason)

    def _ready(self, prepared: Prepared) -> None:
        """The snapshot is durable and open: the core decides."""
        self.preparing = False
        if self._raft.restore(prepared.snapshot):
            self.prepared = prepared
            return
        self._metrics.snapshots.installing = 0
        self._logger.info("snapshot is not needed any more", index=prepared.snapshot.index)

        def discard() -> Callable[[], None]:
            self._places.discard(prepared.store)
            return lambda: None

        self._submit(discard)

    def installed(self, now: float, swap: Callable[[], None]) -> None:
        """The store has taken the snapshot over; `swap` brings the disk into line, on a worker."""
        prepared, self.prepared = self.prepared, None
        assert prepared is not None
        self._metrics.snapshots.installing = 0
        self._metrics.snapshots.install_seconds.add(now - self._began)
        self._logger.info(
            "snapshot is installed",
            index=prepared.snapshot.index,
            term=prepared.snapshot.term,
            revision=prepared.store.revision,
            seconds=round(now - self._began, 3),
        )

        self.swapping = True

        def work() -> Callable[[], None]:
            swap()
            return self._swapped

        self._submit(work)

    def _swapped(self) -> None:
        self.swapping = False
