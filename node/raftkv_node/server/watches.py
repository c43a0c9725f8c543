"""Watch streams between the engine and the store's hub."""

from __future__ import annotations

from collections.abc import Sequence
from queue import Full
from typing import Protocol

from google.protobuf.message import DecodeError

from raftkv_node.api.methods import Method
from raftkv_node.pb import rpc_pb2
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.workers import Workers
from raftkv_node.store.errors import MALFORMED_REQUEST, EtcdError
from raftkv_node.store.mvcc import RevisionEvents
from raftkv_node.store.store import Store
from raftkv_node.store.watch import WatchHub, WatchStream

STREAM_QUEUE_HIGH_BYTES = 1 << 20
"""The engine says when a stream that had more queued has drained to half of it."""


class StreamTransport(Protocol):
    """The part of the engine that streams need."""

    def stream_send(self, messages: Sequence[tuple[int, bytes]]) -> list[int]: ...
    def stream_close(self, call_id: int, code: int, message: str) -> None: ...


class Watches:
    """Streams by call, and the hub that fills them."""

    def __init__(self, store: Store, transport: StreamTransport, workers: Workers, metrics: Metrics) -> None:
        self.hub = WatchHub(store)
        self._transport = transport
        self._workers = workers
        self._metrics = metrics
        self._streams: dict[int, WatchStream] = {}
        self._calls: dict[WatchStream, int] = {}
        self._needing_leader: set[int] = set()

    @property
    def count(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    def notify(self, events: Sequence[RevisionEvents]) -> None:
        """Tell watchers what was applied."""
        self.hub.publish(events)

    def open(self, call_id: int, needs_leader: bool, now: float) -> None:
        """A client opened a stream."""
        stream = self.hub.open_stream(now)
        self._streams[call_id] = stream
        self._calls[stream] = call_id
        if needs_leader:
            self._needing_leader.add(call_id)

    def receive(self, call_id: int, message: bytes) -> None:
        """A client's message."""
        stream = self._streams.get(call_id)
        if stream is None:
            return
        self._metrics.method(Method.WATCH).received += 1
        try:
            request = rpc_pb2.WatchRequest.FromString(message)
        except DecodeError:
            self.end(call_id, MALFORMED_REQUEST)
            return
        stream.receive(request)

    def drained(self, call_id: int) -> None:
        """The engine has sent most of what was queued."""
        stream = self._streams.get(call_id)
        if stream is not None:
            stream.set_queued(0)

    def end(self, call_id: int, error: EtcdError | None = None) -> None:
        """End a stream from this side: with an error, or well because the client has finished."""
        if self.closed(call_id):
            code, text = (error.grpc_code, error.message) if error is not None else (0, "")
            self._metrics.handled(Method.WATCH, code)
            self._transport.stream_close(call_id, code, text)

    def closed(self, call_id: int) -> bool:
        """A stream is over; whether it was one of these."""
        stream = self._streams.pop(call_id, None)
        if stream is None:
            return False
        del self._calls[stream]
        self._needing_leader.discard(call_id)
        self.hub.close_stream(stream)
        return True

    def cancel_without_leader(self, error: EtcdError) -> None:
        """End the streams whose clients asked for a leader."""
        for call_id in list(self._needing_leader):
            self.end(call_id, error)

    def abandon(self, error: EtcdError) -> None:
        """End all streams."""
        for call_id in list(self._streams):
            self.end(call_id, error)

    def tick(self, now: float) -> None:
        """Progress notifications, and help for those who are behind."""
        self.hub.tick(now)

    def flush(self) -> None:
        """Send what the hub has for its streams; let a worker read history for those who are behind."""
        hub = self.hub
        if hub.unsynced:
            self._catch_up()
        if not hub.speaking:
            return
        messages: list[tuple[int, bytes]] = []
        speakers: list[tuple[WatchStream, int]] = []
        for stream, responses in hub.take_output():
            call_id = self._calls[stream]
            messages += [(call_id, response) for response in responses]
            speakers.append((stream, len(messages) - 1))
        queued = self._transport.stream_send(messages)
        self._metrics.method(Method.WATCH).sent += len(messages)
        for stream, last in speakers:
            size = queued[last]
            stream.set_queued(size if size >= STREAM_QUEUE_HIGH_BYTES else 0)

    def _catch_up(self) -> None:
        job = self.hub.start_resync()
        if job is None:
            return

        def work() -> None:
            job.run()
            self._workers.done.append(lambda: self.hub.finish_resync(job))

        try:
            self._workers.submit(work)
        except Full:
            job.run()
            self.hub.finish_resync(job)
