"""The edges of HTTP/2 and gRPC, by a client that says exactly what the test wants (python `h2`, or bare bytes)."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from engine_harness import CHAT, ECHO, FLOOD, HANG, MUTE, SIZE, Harness, wait_for
from raftkv_node import _engine as native

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


def message(payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(payload)) + payload


class Raw:
    """A client connection; `pump` reads until a condition on the collected events holds."""

    def __init__(self, port: int, **options: bool) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        config = h2.config.H2Configuration(client_side=True, validate_outbound_headers=False, **options)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.closed = False
        self.auto_window = True
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def request(self, path: str, *chunks: bytes, end: bool = True, headers: tuple[tuple[str, str], ...] = ()) -> int:
        stream = self.h2.get_next_available_stream_id()
        base = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
        self.h2.send_headers(stream, [*base, ("content-type", "application/grpc"), ("te", "trailers"), *headers])
        for chunk in chunks:
            self.h2.send_data(stream, chunk)
        if end:
            self.h2.end_stream(stream)
        self.flush()
        return stream

    def pump(self, until: Callable[[], object], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, self.events
            assert not self.closed, self.events
            data = self.sock.recv(1 << 20)
            if not data:
                self.closed = True
                continue
            for event in self.h2.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived) and self.auto_window and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.flush()

    def of(self, kind: type, stream: int | None = None) -> list[h2.events.Event]:
        found = [event for event in self.events if isinstance(event, kind)]
        return [event for event in found if stream is None or getattr(event, "stream_id", None) == stream]

    def ended(self, stream: int) -> bool:
        return bool(self.of(h2.events.StreamEnded, stream) or self.of(h2.events.StreamReset, stream))

    def answer(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """Body and all header fields of a response, when it is complete."""
        self.pump(lambda: self.ended(stream))
        body = b"".join(event.data for event in self.of(h2.events.DataReceived, stream))  # type: ignore[attr-defined]
        fields: dict[str, str] = {}
        for kind in (h2.events.ResponseReceived, h2.events.TrailersReceived):
            for event in self.of(kind, stream):
                fields.update({k.decode(): v.decode() for k, v in event.headers})  # type: ignore[attr-defined]
        return body, fields


@pytest.fixture
def connect(server: Harness) -> Iterator[Callable[[], Raw]]:
    made: list[Raw] = []

    def make() -> Raw:
        made.append(Raw(server.port))
        return made[-1]

    yield make
    for raw in made:
        raw.sock.close()


@pytest.fixture
def raw(connect: Callable[[], Raw]) -> Raw:
    return connect()


def test_a_unary_answer_to_the_byte(raw: Raw) -> None:
    body, fields = raw.answer(raw.request(ECHO, message(b"hi")))
    assert body == message(b"hi")
    assert fields == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}


def test_a_message_in_single_bytes(raw: Raw) -> None:
    assert raw.answer(raw.request(ECHO, *(bytes([b]) for b in message(b"slowly"))))[0] == message(b"slowly")
    chat = b"".join(message(bytes([65 + i]) * i) for i in range(20))
    assert raw.answer(raw.request(CHAT, *(bytes([b]) for b in chat)))[0] == chat
    assert raw.answer(raw.request(CHAT, chat))[0] == chat


@pytest.mark.parametrize(
    ("path", "chunks", "code", "text"),
    [
        (ECHO, [], 13, "the request ended before its message was complete"),
        (ECHO, [b"\0\0\0"], 13, "the request ended before its message was complete"),
        (ECHO, [message(b"abc")[:-1]], 13, "the request ended before its message was complete"),
        (ECHO, [message(b"a"), message(b"b")], 13, "a unary request has one message only"),
        (ECHO, [message(b"a", flags=1)], 12, "grpc: compressed flag set with identity or empty encoding"),
        (ECHO, [message(b"a", flags=7)], 13, "grpc: a message with unknown flags 0x7"),
        (ECHO, [b"\0\xff\xff\xff\xff"], 8, "grpc: received message larger than max (4294967295 vs. 2097152)"),
        (CHAT, [message(b"abc")[:-1]], 13, "the request ended in the middle of a message"),
        (MUTE, [message(b"a", flags=1)], 12, "grpc: compressed flag set with identity or empty encoding"),
        ("/no/such", [message(b"")], 12, "unknown service no"),
        ("/nonsense", [message(b"")], 12, 'malformed method name: "/nonsense"'),
    ],
)
def test_malformed_requests_get_a_status(raw: Raw, path: str, chunks: list[bytes], code: int, text: str) -> None:
    _, fields = raw.answer(raw.request(path, *chunks))
    assert (int(fields["grpc-status"]), fields["grpc-message"]) == (code, text)
    assert raw.answer(raw.request(ECHO, message(b"next")))[0] == message(b"next")


def test_early_refusal_stops_the_upload(raw: Raw) -> None:
    stream = raw.request("/no/such", message(bytes(10)), end=False)
    _, fields = raw.answer(stream)
    assert fields["grpc-status"] == "12"
    raw.pump(lambda: raw.of(h2.events.StreamReset, stream))
    assert raw.of(h2.events.StreamReset, stream)[0].error_code == 0  # type: ignore[attr-defined]


def test_requests_that_are_not_grpc(raw: Raw) -> None:
    stream = raw.h2.get_next_available_stream_id()
    raw.h2.send_headers(
        stream, [(":method", "GET"), (":scheme", "http"), (":path", "/health"), (":authority", "x")], end_stream=True
    )
    raw.flush()
    body, fields = raw.answer(stream)
    assert (body, fields[":status"], fields["content-length"]) == (b"GET /health ", "200", "12")
    stream = raw.h2.get_next_available_stream_id()
    raw.h2.send_headers(
        stream, [(":method", "POST"), (":scheme", "http"), (":path", ECHO), (":authority", "x")], end_stream=True
    )
    raw.flush()
    assert raw.answer(stream)[1][":status"] == "415"


def test_reset_is_a_cancellation(server: Harness, raw: Raw) -> None:
    streams = [raw.request(HANG, message(b"x")), raw.request(MUTE, end=False)]
    wait_for(lambda: server.unary and server.of(native.EV_STREAM_OPEN), "both calls")
    for stream in streams:
        raw.h2.reset_stream(stream, 8)
    raw.flush()
    wait_for(lambda: len(server.of(native.EV_CANCELLED)) == 2, "both cancellations")
    assert server.stat("calls") == 0
    assert raw.answer(raw.request(ECHO, message(b"next")))[0] == message(b"next")


def test_an_engine_deadline_answers_a_client_that_has_no_clock(server: Harness, raw: Raw) -> None:
    for path in (HANG, MUTE):
        _, fields = raw.answer(raw.request(path, message(b"x"), headers=(("grpc-timeout", "50m"),)))
        assert (fields["grpc-status"], fields["grpc-message"]) == ("4", "context deadline exceeded")
    wait_for(lambda: len(server.of(native.EV_CANCELLED)) == 2, "both cancellations")
    assert server.stat("deadline_exceeded") == 2
    assert raw.answer(raw.request(ECHO, message(b"x"), headers=(("grpc-timeout", "1H"),)))[1]["grpc-status"] == "0"


def test_deadline_with_messages_stuck_resets_the_stream(server: Harness, raw: Raw) -> None:
    raw.auto_window = False
    stream = raw.request(FLOOD, message(b"10 100000"), end=False, headers=(("grpc-timeout", "200m"),))
    raw.pump(lambda: raw.of(h2.events.StreamReset, stream))
    assert raw.of(h2.events.StreamReset, stream)[0].error_code == 8  # type: ignore[attr-defined]
    server.event(native.EV_CANCELLED)
    wait_for(lambda: server.stat("calls") == 0, "the call is forgotten")


def test_flow_control_is_obeyed_to_the_byte(raw: Raw) -> None:
    raw.auto_window = False
    stream = raw.request(SIZE, message(b"200000"))
    raw.pump(lambda: sum(len(e.data) for e in raw.of(h2.events.DataReceived)) >= 65535)  # type: ignore[attr-defined]
    raw.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        raw.sock.recv(1)
    raw.sock.settimeout(20)
    raw.auto_window = True
    raw.h2.increment_flow_control_window(500_000)
    raw.h2.increment_flow_control_window(500_000, stream)
    raw.flush()
    assert raw.answer(stream)[0] == message(bytes(200_000))


def test_header_bound(server: Harness, raw: Raw) -> None:
    many = tuple((f"x-{i}", "v" * 1000) for i in range(80))
    _, fields = raw.answer(raw.request(ECHO, message(b"x"), headers=many))
    assert (fields["grpc-status"], fields["grpc-message"]) == ("8", "request headers are larger than 65536 bytes")
    assert raw.answer(raw.request(ECHO, message(b"next")))[0] == message(b"next")
    assert raw.h2.remote_settings[h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE] == 65536
    assert server.stat("calls_rejected") == 1


def test_stream_bound(launch: Callable[..., Harness]) -> None:
    server = launch(max_concurrent_streams=10).start()
    raw = Raw(server.port)
    raw.pump(lambda: raw.of(h2.events.RemoteSettingsChanged) and raw.of(h2.events.SettingsAcknowledged))
    assert raw.h2.remote_settings.max_concurrent_streams == 10
    raw.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100
    raw.h2.remote_settings.acknowledge()
    for _ in range(11):
        raw.request(HANG, message(b"x"))
    raw.pump(lambda: raw.of(h2.events.ConnectionTerminated))
    wait_for(lambda: len(server.of(native.EV_CANCELLED)) == 10, "the first ten are cancelled")
    assert len(server.unary) == 10
    wait_for(lambda: server.stat("connections") == 0, "the connection is closed")
    raw.sock.close()


def test_ping_flood_is_sent_away(server: Harness, raw: Raw) -> None:
    raw.answer(raw.request(ECHO, message(b"x")))
    for i in range(5):
        raw.h2.ping(struct.pack(">Q", i))
        raw.flush()
    raw.pump(lambda: raw.of(h2.events.ConnectionTerminated))
    [goaway] = raw.of(h2.events.ConnectionTerminated)
    assert (goaway.error_code, goaway.additional_data) == (11, b"too_many_pings")  # type: ignore[attr-defined]
    wait_for(lambda: raw.sock.recv(100) == b"", "the connection is closed")
    assert server.stat("too_many_pings") == 1


def test_pings_between_answers_are_welcome(server: Harness, raw: Raw) -> None:
    for i in range(30):
        raw.h2.ping(struct.pack(">Q", i))
        assert raw.answer(raw.request(ECHO, message(b"x")))[0] == message(b"x")
    raw.pump(lambda: len(raw.of(h2.events.PingAckReceived)) == 30)
    assert server.stat("too_many_pings") == 0


def test_goaway_and_farewell_on_shutdown(server: Harness, raw: Raw) -> None:
    assert raw.answer(raw.request(ECHO, message(b"x")))[0] == message(b"x")
    hang = raw.request(HANG, message(b"x"))
    wait_for(lambda: len(server.unary) == 2, "the call")
    stopper = threading.Thread(target=server.engine.shutdown, args=(20.0,))
    stopper.start()
    raw.pump(lambda: len(raw.of(h2.events.ConnectionTerminated)) == 2)
    first, last = raw.of(h2.events.ConnectionTerminated)
    assert (first.last_stream_id, last.last_stream_id) == (2**31 - 1, hang)  # type: ignore[attr-defined]
    assert first.error_code == last.error_code == 0  # type: ignore[attr-defined]
    # python h2 takes a GOAWAY for the end; what follows is read as bytes
    server.engine.reply([server.unary[1][1]], [b"last words"])
    rest = b""
    while data := raw.sock.recv(65536):
        rest += data
    assert message(b"last words") in rest
    raw.sock.close()
    stopper.join(20)
    assert not stopper.is_alive()


@pytest.mark.parametrize(
    "garbage",
    [
        PREFACE[:-2] + b"xx",
        PREFACE + b"\xff" * 100,
        PREFACE + EMPTY_SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # a DATA frame of 16 MiB
        PREFACE + EMPTY_SETTINGS + b"\0\0\x01\0\0\0\0\0\x01x",  # DATA on an idle stream
        PREFACE + EMPTY_SETTINGS + b"\0\0\x05\x01\x04\0\0\0\x01" + b"\xff" * 5,  # headers that are no HPACK
        PREFACE + EMPTY_SETTINGS + b"\0\0\0\x09\0\0\0\0\x01",  # CONTINUATION of nothing
        PREFACE + EMPTY_SETTINGS + b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0",  # a window update of zero
        PREFACE + b"\0\0\x06\x04\0\0\0\0\0\0\x04\xff\xff\xff\xff",  # a window that is too large
    ],
)
def test_broken_frames_end_the_connection_only(server: Harness, garbage: bytes) -> None:
    good = Raw(server.port)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(garbage)
        while sock.recv(65536):
            pass
    assert good.answer(good.request(ECHO, message(b"fine")))[0] == message(b"fine")
    good.sock.close()
    wait_for(lambda: server.stat("connections") == 0, "all are gone")


def test_random_damage_never_breaks_the_engine(server: Harness) -> None:
    """A recorded conversation with flipped, dropped and doubled bytes, many times over."""
    record = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    record.initiate_connection()
    headers = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), ("content-type", "application/grpc")]
    for stream, path in ((1, ECHO), (3, CHAT), (5, "/health"), (7, MUTE)):
        record.send_headers(stream, [(":path", path), *headers])
        record.send_data(stream, message(b"payload") * 3, end_stream=stream != 7)
    record.ping(b"12345678")
    record.reset_stream(7, 8)
    whole = record.data_to_send()
    rng = random.Random(20261123)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(PREFACE) if rng.random() < 0.9 else 0, len(data))
            match rng.randrange(3):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    del data[at : at + rng.randint(1, 9)]
                case 2:
                    data[at:at] = data[at : at + rng.randint(1, 40)]
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
            try:
                for at in range(0, len(data), 50):
                    sock.sendall(data[at : at + 50])
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except OSError:
                pass  # reset by the engine: that is its right
    good = Raw(server.port)
    assert good.answer(good.request(ECHO, message(b"fine")))[0] == message(b"fine")
    good.sock.close()
    wait_for(lambda: server.stat("calls") == 0 and server.stat("connections") == 0, "nothing is left behind")


def test_continuation_flood_is_bounded(server: Harness) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(PREFACE + EMPTY_SETTINGS + b"\0\0\x01\x01\0\0\0\0\x01\x82")
        try:
            for _ in range(10_000):
                sock.sendall(b"\0\0\x01\x09\0\0\0\0\x01\x40")
        except OSError:
            pass
        else:
            while sock.recv(65536):
                pass
    wait_for(lambda: server.stat("connections") == 0, "the connection is closed")
