"""RangeStreams between the engine and the store: a piece at a time, as fast as the client takes them.

A stream asks the quorum once, like a range, and keeps the revision that it began with. A worker reads each piece and
hands it to the engine; the turn orders the next one when less than `STREAM_QUEUE_HIGH_BYTES` are left of the last.
So a stream costs that and a piece of memory, whatever the size of its range, and next to nothing of the turn's time.
The more streams there are, the smaller are their pieces, so that those of all together stay within `PIECES_BYTES`.

A client may stand still for as long as it likes, while its place is wanted by nobody: as with etcd. When all places
are taken, a new stream gets that of the one whose client has taken too little for a next piece for longest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import Full
from time import monotonic

from raftkv_node.api.kv import admit_range_stream
from raftkv_node.api.methods import Method
from raftkv_node.pb import rpc_pb2
from raftkv_node.server.faults import faults_told
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.reads import Reads
from raftkv_node.server.watches import STREAM_QUEUE_HIGH_BYTES, StreamTransport
from raftkv_node.server.workers import Workers
from raftkv_node.store.errors import MALFORMED_REQUEST, TOO_MANY_REQUESTS, EtcdError
from raftkv_node.store.rangestream import RangeCursor
from raftkv_node.store.store import Store

MAX_RANGE_STREAMS = 128
"""Streams that are open. One more takes the place of one that stands still, or is refused."""
STILL_SECONDS = 30.0
"""A stream that got no further piece for so long, because its client took too little, may lose its place."""
MOVING_SECONDS = 1.0
"""A stream that got a further piece so lately is waited for when the member stops."""
PIECES_BYTES = 64 << 20
"""Pieces of all streams together, but for a last record of each."""
MIN_PIECE_BYTES = PIECES_BYTES // MAX_RANGE_STREAMS
GONE = -1
"""What the engine says of a call that has ended."""


class _Stream:
    """One call."""

    __slots__ = ("asked", "cursor", "drained", "moved", "needs_leader", "reading")

    def __init__(self, needs_leader: bool, now: float) -> None:
        self.needs_leader = needs_leader
        self.moved = now
        """When it was opened, or the client had last taken enough for another piece."""
        self.asked = False
        self.cursor: RangeCursor | None = None
        self.reading = False
        """Whether a piece is ordered and the turn has not heard yet that the engine has it."""
        self.drained = False
        """Whether the engine has sent most of what was queued meanwhile: it may be faster than the turn hears of it."""


class RangeStreams:
    """Streams by call."""

    def __init__(
        self,
        store: Store,
        reads: Reads,
        transport: StreamTransport,
        workers: Workers,
        metrics: Metrics,
        max_request_bytes: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._store = store
        self._reads = reads
        self._transport = transport
        self._workers = workers
        self._metrics = metrics
        self._max_request_bytes = max_request_bytes
        self._streams: dict[int, _Stream] = {}

    @property
    def count(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    @property
    def moving(self) -> bool:
        """Whether a stream goes on."""
        since = self._clock() - MOVING_SECONDS
        return any(stream.reading or stream.moved >= since for stream in self._streams.values())

    def open(self, call_id: int, needs_leader: bool) -> None:
        """A client opened a stream; its request follows."""
        now = self._clock()
        if len(self._streams) >= MAX_RANGE_STREAMS:
            waiting = [one for one, stream in self._streams.items() if not stream.reading]
            stillest = min(waiting, key=lambda one: self._streams[one].moved, default=None)
            if stillest is not None and self._streams[stillest].moved <= now - STILL_SECONDS:
                self.end(stillest, TOO_MANY_REQUESTS)
        self._streams[call_id] = _Stream(needs_leader, now)
        if len(self._streams) > MAX_RANGE_STREAMS:
            self.end(call_id, TOO_MANY_REQUESTS)

    def receive(self, call_id: int, message: bytes, now: float) -> None:
        """A client's message: the request. More of them mean nothing."""
        stream = self._streams.get(call_id)
        if stream is None or stream.asked:
            return
        stream.asked = True
        self._metrics.method(Method.RANGE_STREAM).received += 1
        request = admit_range_stream(message, self._max_request_bytes)
        if isinstance(request, EtcdError):
            self.end(call_id, request)
        elif request.serializable:
            self._start(call_id, stream, request, None)
        else:
            self._reads.add(partial(self._start, call_id, stream, request), now)

    def half_closed(self, call_id: int) -> None:
        """The client will send nothing more."""
        stream = self._streams.get(call_id)
        if stream is not None and not stream.asked:
            self.end(call_id, MALFORMED_REQUEST)

    def drained(self, call_id: int) -> None:
        """The engine has sent most of what was queued."""
        stream = self._streams.get(call_id)
        if stream is None:
            return
        if stream.reading:
            stream.drained = True
        elif stream.cursor is not None:
            self._order(call_id, stream, stream.cursor)

    def end(self, call_id: int, error: EtcdError | None = None) -> None:
        """End a stream from this side: with an error, or because all was sent."""
        if self.closed(call_id):
            code, text = (error.grpc_code, error.message) if error is not None else (0, "")
            self._metrics.handled(Method.RANGE_STREAM, code)
            self._transport.stream_close(call_id, code, text)

    def closed(self, call_id: int) -> bool:
        """A stream is over; whether it was one of these."""
        return self._streams.pop(call_id, None) is not None

    def cancel_without_leader(self, error: EtcdError) -> None:
        """End the streams whose clients asked for a leader."""
        for call_id in [one for one, stream in self._streams.items() if stream.needs_leader]:
            self.end(call_id, error)

    def abandon(self, error: EtcdError) -> None:
        """End all streams."""
        for call_id in list(self._streams):
            self.end(call_id, error)

    def _start(self, call_id: int, stream: _Stream, request: rpc_pb2.RangeRequest, error: EtcdError | None) -> None:
        """The applied state may be read from now on, or nothing may be."""
        if self._streams.get(call_id) is not stream:
            return
        if error is not None:
            self.end(call_id, error)
            return
        try:
            stream.cursor = self._store.open_range(request)
        except EtcdError as failure:
            self.end(call_id, failure)
        else:
            self._order(call_id, stream, stream.cursor)

    def _piece_bytes(self) -> int:
        """How large a stream's next piece may be."""
        return min(self._max_request_bytes, max(MIN_PIECE_BYTES, PIECES_BYTES // len(self._streams)))

    def _order(self, call_id: int, stream: _Stream, cursor: RangeCursor) -> None:
        """Have a worker read the next piece and hand it to the engine."""
        try:
            piece = self._store.start_piece(cursor, self._piece_bytes())
        except EtcdError as failure:
            self.end(call_id, failure)
            return

        def job() -> None:
            with faults_told(Method.RANGE_STREAM, lambda e: self._workers.done.append(partial(self.end, call_id, e))):
                message = piece.run()
            (queued,) = self._transport.stream_send([(call_id, message)])
            self._workers.done.append(partial(self._sent, call_id, stream, cursor, queued))

        try:
            self._workers.submit(job)
        except Full:
            piece.close()
            self.end(call_id, TOO_MANY_REQUESTS)
        else:
            stream.reading, stream.drained, stream.moved = True, False, self._clock()

    def _sent(self, call_id: int, stream: _Stream, cursor: RangeCursor, queued_bytes: int) -> None:
        """The engine has a piece, and so much in all for this call."""
        stream.reading = False
        if self._streams.get(call_id) is not stream or queued_bytes == GONE:
            return
        self._metrics.method(Method.RANGE_STREAM).sent += 1
        if cursor.finished:
            self.end(call_id)
        elif queued_bytes < STREAM_QUEUE_HIGH_BYTES or stream.drained:
            self._order(call_id, stream, cursor)
