"""Snapshots on their way to members that the log cannot help any more: the sender's side.

The core says who needs one. A worker opens a view of the backend (`SnapshotSource`) and reads it piece by piece; they
go out as SNAPSHOT messages on the member's link, at most `WINDOW_BYTES` of them unanswered, and wait here until they
are answered, so that whatever is lost on the way is sent again from memory and never read twice. The receiver names the
offset up to which it has written everything: after a broken link the transfer goes on from there.

The view keeps pages of the backend from being used again. A transfer that gets nowhere for `STALL_SECONDS`, or takes
longer than `life_seconds`, is given up, and a new one begins with a new view. At most `MAX_TRANSFERS` run at a time.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from queue import Full
from typing import NamedTuple

from raftkv_node._engine import crc32c
from raftkv_node.raft import Message, Raft
from raftkv_node.server.log import Logger, member
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.workers import Workers
from raftkv_node.store.snapshot import SnapshotSource

CHUNK_BYTES = 256 << 10
"""Largest piece of a snapshot in a message."""
WINDOW_BYTES = 2 << 20
"""Most bytes of one transfer that are read and not yet answered."""
MAX_TRANSFERS = 16
"""Snapshots that are sent at a time, as etcd's limit; a further member waits."""
STALL_SECONDS = 30.0
LIFE_SECONDS = 600.0
SLOWEST_BYTES_PER_SECOND = 1 << 20
"""A transfer may take `LIFE_SECONDS`, and as much longer as its bytes take at this rate: a member that is far away, or
whose disk is slow, must come to the end of a large backend."""
RESEND_SECONDS = 0.5
RESEND_MAXIMUM_SECONDS = 5.0
RETRY_SECONDS = 1.0
RETRY_MAXIMUM_SECONDS = 30.0
"""A member whose transfer failed waits for the next one, each time twice as long."""

PIECE = struct.Struct("<QIB")
"""Context of a SNAPSHOT message: offset of the piece, CRC32C of its bytes, 1 if it is the last."""
TAKEN = struct.Struct("<Q")
"""Context of a SNAPSHOT_RESPONSE: offset up to which all is written."""


def life_seconds(size_bytes: int) -> float:
    """How long a transfer of so many bytes may take in all, however steadily it goes on."""
    return LIFE_SECONDS + size_bytes / SLOWEST_BYTES_PER_SECOND


class Piece(NamedTuple):
    """Bytes of the stream, kept until they are answered."""

    offset: int
    data: bytes
    last: bool

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class Outgoing:
    """One transfer."""

    def __init__(self, peer: int, number: int, source: SnapshotSource, now: float) -> None:
        self.peer = peer
        self.number = number
        self.source = source
        self.began = self.progressed = now
        self.reading = False
        self.closed = False
        self.unanswered: deque[Piece] = deque()
        self.sent = 0
        """How many of the unanswered pieces were sent since the last loss."""
        self.read_bytes = 0
        self.taken_bytes = 0
        self.window = CHUNK_BYTES
        """Grows with each answer, falls back to one piece when something seems lost."""
        self.resend_at = now + RESEND_SECONDS
        self.resend_seconds = RESEND_SECONDS
        self.last: Piece | None = None

    @property
    def complete(self) -> bool:
        """Whether the member has written all of it, and only has to put it into its place."""
        return self.last is not None and self.taken_bytes >= self.last.end


class Transfers:
    """All snapshots that this member sends. For the turn."""

    def __init__(
        self,
        raft: Raft,
        workers: Workers,
        metrics: Metrics,
        logger: Logger,
        open_source: Callable[[], SnapshotSource],
    ) -> None:
        """`open_source` is called on a worker."""
        self._raft = raft
        self._workers = workers
        self._metrics = metrics
        self._logger = logger
        self._open_source = open_source
        self._running: dict[int, Outgoing] = {}
        self._opening: set[int] = set()
        self._failures: dict[int, tuple[int, float]] = {}
        """Member to the number of failures in a row, and when the next transfer may begin."""
        self._number = 0

    @property
    def running(self) -> int:
        """Transfers that have begun and not ended."""
        return len(self._running) + len(self._opening)

    def lowest_index(self) -> int | None:
        """The lowest index of a snapshot on its way: what follows it in the log will be asked for next."""
        return min((one.source.index for one in self._running.values()), default=None)

    # -- begin and end ------------------------------------------------------------------------------------------------

    def wanted(self, peer: int, now: float) -> None:
        """The core wants a snapshot to be sent to a member."""
        if peer in self._opening:
            return  # for an earlier term; what it finds is used
        self._close(peer)
        _, not_before = self._failures.get(peer, (0, 0.0))
        if now < not_before or self.running >= MAX_TRANSFERS:
            self._raft.snapshot_failed(peer)
            return

        def work() -> None:
            try:
                source = self._open_source()
            except Exception as error:
                reason = str(error)
                self._workers.done.append(lambda: self._not_opened(peer, now, reason))
                return
            self._workers.done.append(lambda: self._opened(peer, source, now))

        try:
            self._workers.submit(work)
        except Full:
            self._raft.snapshot_failed(peer)
            return
        self._opening.add(peer)

    def _not_opened(self, peer: int, now: float, reason: str) -> None:
        self._opening.discard(peer)
        self._failed(peer, now, reason)

    def _opened(self, peer: int, source: SnapshotSource, now: float) -> None:
        self._opening.discard(peer)
        if not self._raft.snapshot_started(peer, source.index):
            source.close()
            return
        self._number += 1
        self._running[peer] = out = Outgoing(peer, self._number, source, now)
        self._metrics.snapshots.sending[peer] = 1
        self._logger.info(
            "sending a snapshot", to=member(peer), index=source.index, term=source.term, bytes=source.size_bytes
        )
        self._pump(out)

    def _close(self, peer: int) -> Outgoing | None:
        out = self._running.pop(peer, None)
        if out is not None:
            out.closed = True
            self._metrics.snapshots.sending.pop(peer, None)
            if not out.reading:
                out.source.close()
        return out

    def _failed(self, peer: int, now: float, reason: str) -> None:
        failures = self._failures.get(peer, (0, 0.0))[0] + 1
        pause = min(RETRY_SECONDS * 2 ** min(failures - 1, 16), RETRY_MAXIMUM_SECONDS)
        self._failures[peer] = (failures, now + pause)
        self._metrics.snapshots.count(self._metrics.snapshots.send_failures, peer)
        self._logger.warn("snapshot was not sent", to=member(peer), reason=reason)
        self._raft.snapshot_failed(peer)

    def abandon(self) -> None:
        """Gives all transfers up."""
        for peer in list(self._running):
            self._close(peer)

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _pump(self, out: Outgoing) -> None:
        """Sends what the window has room for, and reads ahead as far as it may ever grow."""
        under_way = sum(len(piece.data) for _, piece in zip(range(out.sent), out.unanswered, strict=False))
        while out.sent < len(out.unanswered) and (not out.sent or under_way < out.window):
            piece = out.unanswered[out.sent]
            self._send(out, piece)
            out.sent += 1
            under_way += len(piece.data)
        if not out.reading and out.last is None and out.read_bytes - out.taken_bytes < WINDOW_BYTES:
            self._read(out)

    def _send(self, out: Outgoing, piece: Piece) -> None:
        context = PIECE.pack(piece.offset, crc32c(piece.data), piece.last)
        source = out.source
        self._raft.send_snapshot(out.peer, source.index, source.term, out.number, context, piece.data)
        self._metrics.snapshots.sent_bytes += len(piece.data)

    def _read(self, out: Outgoing) -> None:
        def work() -> None:
            try:
                data = out.source.read(CHUNK_BYTES)
            except Exception as error:
                reason = str(error)
                self._workers.done.append(lambda: self._unreadable(out, reason))
                return
            self._workers.done.append(lambda: self._was_read(out, data))

        try:
            self._workers.submit(work)
        except Full:
            return  # tried again with the next tick
        out.reading = True

    def _unreadable(self, out: Outgoing, reason: str) -> None:
        out.reading = False
        if out.closed:
            out.source.close()
            return
        self._close(out.peer)
        self._failed(out.peer, out.progressed, reason)

    def _was_read(self, out: Outgoing, data: bytes) -> None:
        out.reading = False
        if out.closed:
            out.source.close()
            return
        piece = Piece(out.read_bytes, data, out.source.done)
        out.read_bytes += len(data)
        out.unanswered.append(piece)
        if piece.last:
            out.last = piece
        self._pump(out)

    def answered(self, message: Message, now: float) -> None:
        """A member's SNAPSHOT_RESPONSE."""
        out = self._running.get(message.sender)
        if out is None or out.number != message.sequence or len(message.context) != TAKEN.size:
            return
        if message.reject:
            self._close(out.peer)
            self._failed(out.peer, now, "the member cannot use it any more")
            return
        (taken,) = TAKEN.unpack(message.context)
        if taken <= out.taken_bytes:
            return
        while out.unanswered and out.unanswered[0].end <= taken:
            out.unanswered.popleft()
            out.sent = max(0, out.sent - 1)
        out.taken_bytes = taken
        out.progressed = now
        out.resend_seconds = RESEND_SECONDS
        out.resend_at = now + RESEND_SECONDS
        out.window = min(2 * out.window, WINDOW_BYTES)
        self._pump(out)

    def tick(self, now: float) -> None:
        """Ends what is over, sends again what seems lost."""
        for peer, out in list(self._running.items()):
            if not self._raft.awaits_snapshot(peer):
                self._ended(out, now)
            elif now - out.began >= life_seconds(out.source.size_bytes):
                self._close(peer)
                self._failed(peer, now, "too slow")
            elif now - out.progressed >= STALL_SECONDS:
                self._close(peer)
                self._failed(peer, now, "the member takes no more of it")
            else:
                if now >= out.resend_at:
                    self._send_again(out, now)
                self._pump(out)

    def _send_again(self, out: Outgoing, now: float) -> None:
        """Go back to the first piece without an answer, and slow down; the last one asks whether all is in place."""
        out.resend_seconds = min(2 * out.resend_seconds, RESEND_MAXIMUM_SECONDS)
        out.resend_at = now + out.resend_seconds
        out.window = CHUNK_BYTES
        out.sent = 0
        if out.complete and out.last is not None:
            self._send(out, out.last)

    def _ended(self, out: Outgoing, now: float) -> None:
        """The member has it, or this member does not lead any more."""
        self._close(out.peer)
        if not self._raft.is_leader:
            self._logger.info("snapshot is not sent on: another leads", to=member(out.peer), bytes=out.taken_bytes)
            return
        self._failures.pop(out.peer, None)
        snapshots = self._metrics.snapshots
        snapshots.count(snapshots.sent, out.peer)
        snapshots.took(snapshots.send_seconds, out.peer, now - out.began)
        self._logger.info(
            "snapshot was sent",
            to=member(out.peer),
            index=out.source.index,
            bytes=out.taken_bytes,
            seconds=round(now - out.began, 3),
        )
