"""The native engine (Rust, `node/native`): transport in batches, and persistent memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

__version__: str

# ---------------------------------------------------------------------------------------------------------------------
# transport: HTTP/2 + gRPC framing, HTTP/1.1, TLS and peer links, in batches
#
# One native I/O thread owns every socket. Python takes a Batch of what has arrived (Engine.poll), and hands back lists
# of replies; each call crosses once, copies, and returns without waiting for the network. All methods may be called
# from any thread. Sizes are bytes. A call, stream or link that is gone is ignored (or reported as -1 where the method
# returns sizes): its end was, or will be, an event of its own.
#
# Order: the messages of one call, and the frames of one link, arrive and leave in order. Within a Batch take `unary`
# first, then `events` (a call that arrived and was cancelled between two polls is in both), then `peer`.

# Kinds of Batch.events (the first item of each tuple) and what follows it. `metadata` is a tuple of values in the order
# of Engine(capture_metadata=...) with None for what the client did not send, or None when it sent none of them.
EV_STREAM_OPEN: int  # (kind, call_id, method_id, metadata)
EV_STREAM_MESSAGE: int  # (kind, call_id, message)
EV_STREAM_HALF_CLOSE: int  # (kind, call_id): the client will send nothing more
EV_STREAM_DRAINED: (
    int  # (kind, call_id): a queue that stream_send reported at or over stream_queue_high_bytes fell below half of it,
    # and what all streams of its connection hold below a quarter of max_queued_bytes_per_connection
)
EV_CANCELLED: (
    int  # (kind, call_id): unary, streaming or HTTP; cancelled, past its deadline, cut off, or its connection lost
)
EV_HTTP: int  # (kind, call_id, method: str, path_with_query: str, body: bytes, metadata); answer with http_reply
EV_PEER_UP: int  # (kind, link_id, hello_reply)
EV_PEER_REJECTED: (
    int  # (kind, link_id, reason): the other side refused our hello; the engine tries again, with back-off
)
EV_PEER_DOWN: int  # (kind, link_id): after EV_PEER_UP only; the engine reconnects by itself
EV_PEER_INBOUND: int  # (kind, inbound_id, hello, remote_address): answer with peer_accept or peer_reject
EV_PEER_INBOUND_CLOSED: int  # (kind, inbound_id): also after peer_reject

EventTuple = tuple[Any, ...]
Metadata = tuple[bytes | None, ...] | None

class TlsConfig:
    """Certificates for a listener or for an outgoing link. Read and checked here: ValueError says which file is bad."""

    def __init__(
        self,
        cert_file: str | None = None,
        key_file: str | None = None,
        ca_file: str | None = None,
        require_client_cert: bool = False,
        server_name: str | None = None,
    ) -> None:
        """`cert_file`, `key_file`: PEM; needed by a listener, optional for a link (client certificate).
        `ca_file`: PEM; a listener checks client certificates against it when they are required (or offered), a link
        checks the server's. `server_name`: what the server's certificate must name (default: the host connected to)."""

class Batch:
    """What arrived since the last poll. Falsy when empty."""

    # (method_id, call_ids, messages, metadata per call; None when no call of the group carried any)
    unary: list[tuple[int, list[int], list[bytes], list[Metadata] | None]]
    events: list[EventTuple]
    peer: list[tuple[int, list[bytes]]]  # inbound_id or link_id (links carry frames both ways) -> frames in order
    def __bool__(self) -> bool: ...

class Engine:
    """The transport. Register methods and listen, then start(); poll() from one thread at a time."""

    def __init__(
        self,
        *,
        max_connections: int = 10_000,
        max_concurrent_streams: int = 4_096,
        max_message_bytes: int = 2_097_152,
        max_header_bytes: int = 65_536,
        max_queued_bytes_per_connection: int = 67_108_864,
        max_http_body_bytes: int = 4_194_304,
        max_inbox_bytes: int = 134_217_728,
        max_inbox_events: int = 262_144,
        stream_queue_high_bytes: int = 1_048_576,
        max_peer_frame_bytes: int = 67_108_864,
        max_queued_bytes_per_peer: int = 134_217_728,
        keepalive_min_interval_seconds: float = 5.0,
        handshake_timeout_seconds: float = 10.0,
        idle_http1_timeout_seconds: float = 120.0,
        peer_backoff_min_seconds: float = 0.05,
        peer_backoff_max_seconds: float = 2.0,
        capture_metadata: Sequence[str] = (),
        rounds: Literal["auto", "thread", "inline"] = "auto",
        poll_patience_seconds: float = 0.02,
        deferrable_frames: Sequence[int] = (),
    ) -> None:
        """Bounds, and what happens at each:

        max_connections: client and inbound peer connections; one more is accepted and closed at once.
        max_concurrent_streams: calls per HTTP/2 connection, announced in SETTINGS; a client that opens more although
            it has acknowledged that loses its connection.
        max_message_bytes: a larger gRPC message from a client ends its call with RESOURCE_EXHAUSTED.
        max_header_bytes: a larger header list ends the call with RESOURCE_EXHAUSTED (HTTP/1.1: 431).
        max_queued_bytes_per_connection: half-received messages plus unsent replies of one connection. Over it, new
            calls and further message bytes end with RESOURCE_EXHAUSTED; stream_send cuts its call off if that
            holds more than an eighth.
        max_http_body_bytes: a larger plain HTTP request body is answered with 413.
        max_inbox_bytes, max_inbox_events: what waits for poll(); over it the engine stops reading sockets.
        stream_queue_high_bytes: see EV_STREAM_DRAINED.
        max_peer_frame_bytes: a larger frame is a ValueError in peer_send, and closes the link when received.
        max_queued_bytes_per_peer: over it peer_send drops the frame and reports -1.
        keepalive_min_interval_seconds: clients that ping a quiet connection more often (three strikes) get GOAWAY.
        handshake_timeout_seconds: TLS, HTTP/2 preface, an HTTP/1.1 request's head and body, a peer's hello.
        idle_http1_timeout_seconds: a kept-alive HTTP/1.1 connection without a request is closed.
        peer_backoff_*: bounds of the exponential, jittered pause between two attempts to connect a link.
        capture_metadata: names (lower case) of request headers to hand to Python; the first value of each, raw bytes
            (values of "-bin" headers as sent, in base64).
        rounds: who reads and writes sockets: a thread of the engine's, or poll() itself, which saves the hand-overs
            between two threads while little arrives at a time. "auto" changes between them by what the last polls
            brought.
        poll_patience_seconds: for a caller that stays away from poll() for longer, the thread takes over.
        deferrable_frames: first bytes of the peer frames that may wait; see poll()."""

    def register_methods(self, methods: Sequence[tuple[str, int, bool]]) -> None:
        """(":path", method_id, streaming): e.g. ("/pkg.Service/Method", 3, False). Ids are below 4096.
        Paths not registered are answered with UNIMPLEMENTED. Before start() only (RuntimeError)."""

    def listen_grpc(self, host: str, port: int, tls: TlsConfig | None = None) -> int:
        """gRPC, and plain HTTP over HTTP/1.1 or HTTP/2, on one port (ALPN, or the HTTP/2 preface, decides).
        Host: a name, an IPv4 or IPv6 address, "" for all addresses. Port 0 takes a free one. Returns the port.
        OSError (with address) when it cannot be bound."""

    def listen_http(self, host: str, port: int, tls: TlsConfig | None = None) -> int:
        """HTTP/1.1 only; else as listen_grpc."""

    def listen_peer(self, host: str, port: int, tls: TlsConfig | None = None) -> int:
        """Peer links; else as listen_grpc."""

    def start(self) -> None:
        """Starts the I/O thread. RuntimeError when called twice."""

    def poll(self, timeout_seconds: float, deferred_frames: int = 0, deferred_seconds: float = 0.0) -> Batch:
        """Takes all that has arrived; waits (without the GIL) at most `timeout_seconds` (0: not at all) for the first
        event or a wake(). Peer frames of a kind that may wait do not end the wait alone, unless more than
        `deferred_frames` of them are there, or the first has waited for `deferred_seconds`, or the inbox is full.
        Python's signal handlers run after it returns. RuntimeError when the I/O thread has died."""

    def flush(self) -> None:
        """What was asked for so far (replies, frames) goes out now, if it would wait for the next poll() otherwise. For
        the thread that polls, in the middle of a turn, where somebody waits for it."""

    def wake(self) -> None:
        """Makes the poll that waits, or else the next one, return at once."""

    def reply(self, call_ids: Sequence[int], messages: Sequence[bytes]) -> None:
        """Answers unary calls with OK. ValueError when the lists differ in length."""

    def reply_errors(self, errors: Sequence[tuple[int, int, str]]) -> None:
        """Ends calls (unary or streaming) with (call_id, gRPC status code, message)."""

    def stream_send(self, messages: Sequence[tuple[int, bytes]]) -> list[int]:
        """Queues messages on streaming calls. Per message: bytes now queued for that call, or for all streaming calls
        of its connection once those hold half of max_queued_bytes_per_connection; -1 if it is gone."""

    def stream_close(self, call_id: int, code: int, message: str) -> None:
        """Ends a streaming call with a gRPC status, after what is queued has been sent."""

    def http_reply(
        self,
        call_id: int,
        status: int,
        content_type: str,
        body: bytes,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Answers an EV_HTTP."""

    def peer_connect(self, link_id: int, host: str, port: int, hello: bytes, tls: TlsConfig | None = None) -> None:
        """Keeps a link to a peer until peer_disconnect. `link_id`: the caller's, below 2**32; inbound ids are above.
        `host`: a name (resolved again for each attempt, off the I/O thread) or an address. `hello` opens each
        connection (at most 65,536 bytes, as the answers to it). ValueError when the link exists."""

    def peer_disconnect(self, link_id: int) -> None:
        """Closes and forgets a link (no EV_PEER_DOWN), or closes an inbound connection (EV_PEER_INBOUND_CLOSED)."""

    def peer_accept(self, inbound_id: int, hello_reply: bytes) -> None:
        """Opens an inbound link for frames both ways."""

    def peer_reject(self, inbound_id: int, reason: bytes) -> None:
        """Refuses an inbound link: the other side sees EV_PEER_REJECTED with this reason."""

    def peer_send(self, frames: Sequence[tuple[int, bytes]]) -> list[int]:
        """Queues frames. Per frame: bytes now queued on that link, or -1 when it was dropped: the link is down, not yet
        accepted, or over max_queued_bytes_per_peer."""

    def shutdown(self, grace_seconds: float) -> None:
        """Closes the listeners, sends GOAWAY, lets calls in flight finish for `grace_seconds` (keep polling and
        replying from another thread), then closes everything and joins the I/O thread. Later calls do nothing."""

    def stats(self) -> dict[str, int]:
        """Counters since the start, and gauges (connections, calls, peer_connections). Per link:
        "link.<id>.bytes_in", "link.<id>.bytes_out", "link.<id>.queued_bytes", "link.<id>.up"."""

# ---------------------------------------------------------------------------------------------------------------------
# persistent memory: node/native/src/pmem

class RingFull(Exception):
    """The ring holds too much that is not yet on disk for this batch; nothing was written."""

class LogCorrupt(Exception):
    """Bytes of the log that must be valid are not (rule D2)."""

class LogIndex:
    def __init__(self) -> None: ...
    def absorb(self, data: bytes, lsn: int, generation: int, seed: int, preamble: bool = False) -> tuple[int, int]: ...
    def reset(self, index: int, term: int) -> None: ...
    def release(self, lsn: int) -> None: ...
    def locate(self, lo: int, hi: int, max_bytes: int) -> list[tuple[int, int, int]]: ...
    def term(self, index: int) -> int | None: ...
    def mark(self, kind: int) -> tuple[int, int, bytes] | None: ...
    def marks_from(self, from_kind: int) -> list[tuple[int, int, int, bytes]]: ...
    def tail(self, max_bytes: int) -> int: ...
    def __len__(self) -> int: ...
    @property
    def first_index(self) -> int: ...
    @property
    def last(self) -> tuple[int, int]: ...
    @property
    def hard_state(self) -> tuple[int, int, int]: ...
    @property
    def configuration(self) -> tuple[int, int, bytes] | None: ...

class Recording:
    def __len__(self) -> int: ...
    def kinds(self) -> str: ...
    def uncertain(self, at: int, without: str = "") -> list[int]: ...
    def image(self, at: int, choices: Sequence[int], without: str = "") -> bytes: ...

class Ring:
    def __init__(
        self, path: str | Path, size_bytes: int, generation: int, seed: int, start_lsn: int, flush: str | None = None
    ) -> None: ...
    def append(self, records: Sequence[tuple[int, int, int, int, bytes]], index: LogIndex) -> tuple[int, int]: ...
    def store_header(self, copy: int, header: bytes) -> None: ...
    def copy_out(self, lo: int, hi: int, max_bytes: int) -> bytes: ...
    def read_raw(self, lo: int, hi: int) -> bytes: ...
    def set_reclaimed(self, lsn: int) -> None: ...
    def record(self) -> Recording: ...
    def close(self) -> None: ...
    @property
    def durable_lsn(self) -> int: ...
    @property
    def reclaimed_lsn(self) -> int: ...
    @property
    def data_bytes(self) -> int: ...
    @property
    def fences(self) -> int: ...
    @property
    def map_sync(self) -> bool: ...
    @property
    def flush(self) -> str: ...

class RingImage:
    @staticmethod
    def load(path: str | Path, data_bytes: int) -> RingImage: ...
    def scan(self, start_lsn: int, generation: int, seed: int) -> tuple[int, int, str | None, int]: ...
    def holds_any(self, generation: int, seed: int) -> bool: ...
    def linear(self, lo: int, hi: int, generation: int, seed: int) -> bytes: ...

def crc32c(data: bytes, seed: int = 0) -> int: ...
def log_encode(
    records: Sequence[tuple[int, int, int, int, bytes]],
    lsn: int,
    fenced_lsn: int,
    generation: int,
    seed: int,
    index: LogIndex,
) -> bytes: ...
def log_scan(data: bytes, lsn: int, generation: int, seed: int) -> tuple[int, int, str | None, int]: ...
def log_extract(
    data: bytes, lsn: int, generation: int, seed: int, lsns: Sequence[int]
) -> list[tuple[int, int, int, bytes]]: ...
def probe_map_sync(path: str | Path) -> bool: ...
def probe_dax(path: str | Path) -> bool: ...
def probe_flush() -> str: ...

# ---------------------------------------------------------------------------------------------------------------------
# bench: a load generator that runs without the interpreter

class Histogram:
    """Nanoseconds in buckets that are at most 1/128 of their values wide; count, sums and extremes are exact."""

    def __init__(self) -> None: ...
    def record(self, value_ns: int) -> None: ...
    def merge(self, other: Histogram) -> None: ...
    def percentile(self, per_cent: float) -> int:
        """The value that so many of all do not exceed, at most 0.4% off; 0 when there is none."""
    def buckets(self) -> list[tuple[int, int, int]]:
        """Those that hold something: smallest value, values wide, count."""
    @property
    def count(self) -> int: ...
    @property
    def sum_ns(self) -> float: ...
    @property
    def sum_squares(self) -> float: ...
    @property
    def min_ns(self) -> int: ...
    @property
    def max_ns(self) -> int: ...

class OperationSnapshot:
    @property
    def missed(self) -> int:
        """Calls that succeeded without doing what they were for (`verdict`)."""
    @property
    def failed(self) -> int: ...
    @property
    def answer_bytes(self) -> int: ...
    @property
    def latency(self) -> Histogram:
        """Of the calls that succeeded."""
    @property
    def lately(self) -> Histogram:
        """The same since the last snapshot with `take_lately`."""

class LoadSnapshot:
    @property
    def phase(self) -> str:
        """connecting, running, draining (waits for the last answers and events), ended."""
    @property
    def operations(self) -> list[OperationSnapshot]: ...
    @property
    def events(self) -> Histogram:
        """From the intended time of the call that a stamp stands for to its return on a stream."""
    @property
    def events_lately(self) -> Histogram: ...
    @property
    def events_expected(self) -> int: ...
    @property
    def errors(self) -> list[tuple[int | None, int, str, int]]:
        """Operation (None: a stream or a connection), gRPC status code, message, how often."""
    @property
    def started(self) -> int: ...
    @property
    def unsent(self) -> int:
        """Calls of an open loop that were due, and for which there was no time any more."""
    @property
    def in_flight(self) -> int: ...
    @property
    def connected(self) -> int: ...
    @property
    def ready_streams(self) -> int: ...
    @property
    def elapsed_seconds(self) -> float:
        """From the first call to the last answer, or to now."""
    @property
    def events_elapsed_seconds(self) -> float: ...
    @property
    def failure(self) -> str | None:
        """Why the load could not go on."""

class Load:
    """gRPC calls made from templates, in one native thread. Add operations and streams, start, take snapshots."""

    def __init__(
        self,
        endpoints: Sequence[tuple[str, str, str]],
        *,
        connections: int,
        clients: int,
        key_space: int,
        key_digits: int,
        total: int | None = None,
        duration: float | None = None,
        rate: float | None = None,
        tls: TlsConfig | None = None,
        call_timeout: float = 10.0,
        dial_timeout: float = 10.0,
        drain_timeout: float = 10.0,
        sequential: bool = False,
        ordered: bool = False,
        fresh_per_mille: int = 0,
        seed: int = 1,
    ) -> None:
        """`endpoints`: "IP:PORT", the authority to name, and the host that the certificate must name. `rate`: an open
        loop; without, each client sends its next call when the last has ended. `key_digits`: hexadecimal digits that
        stand for a key's number. `sequential`: keys in turn, not at random; `ordered`: they sort as their numbers do.
        `fresh_per_mille`: share of the calls of operations that create which go to a new key."""

    def add_operation(
        self,
        method: str,
        body: bytes,
        *,
        weight: int = 1,
        patches: Sequence[tuple[str, int, int]] = (),
        verdict: Sequence[int] | None = None,
        captures: Sequence[tuple[str, str, Sequence[int]]] = (),
        follow: tuple[Sequence[int], int] | None = None,
        creates: bool = False,
        same_key: bool = False,
        events: int = 0,
    ) -> None:
        """`patches`: written over the body, (kind, first byte, argument): "key" (argument: added to its number),
        "random" (bytes), "stamp" (16 bytes), "key_number" and "client_number" (varints of 10 bytes), "client_bytes"
        (bytes). Paths are field numbers into the answer. `verdict`: a field that is 0 when the call missed its aim.
        `captures`: (always, hit or miss; to: key_number, client_number or client_bytes; path). `follow`: while the
        field is not 0, this operation comes next."""

    def add_stream(
        self,
        method: str,
        messages: Sequence[bytes],
        *,
        ready: Sequence[int],
        ready_count: int,
        failed: Sequence[int],
        stamp: Sequence[int],
    ) -> None:
        """A call that stays open; the load begins once each had `ready_count` messages with field `ready` set."""

    def remember(self, numbers: Sequence[tuple[int, int]]) -> None:
        """Key numbers, and what is remembered for those keys from the start."""
    def start(self) -> None: ...
    def stop(self) -> None:
        """Ends the load at once, whatever is under way."""
    def wait(self, timeout: float) -> bool:
        """Whether the load has ended within so many seconds."""
    def snapshot(self, *, take_lately: bool = False) -> LoadSnapshot: ...
