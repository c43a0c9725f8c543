"""A live engine under hostile clients: whatever one does to its connection, the next client's call is answered.

python live_engine.py SECONDS [SEED]    prints connections, calls that worked, the engine's peak memory
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "engine"))
sys.path.append(str(Path(__file__).parents[1] / "tools"))

from engine_harness import ECHO, FLOOD, Harness
from machine import memory_bytes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
TRAILERS = bytes((HEADERS, END_STREAM | END_HEADERS, 0, 0, 0, 1))
#: What the process may grow by, whatever was sent to it.
GROWTH_BYTES = 256 << 20
READ_SECONDS = 0.02
CALL_SECONDS = 20.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    """HPACK without tables or Huffman; names and values below 127 bytes."""
    return b"".join(b"\0" + bytes((len(n),)) + n + bytes((len(v),)) + v for n, v in pairs)


def request(path: str = ECHO) -> bytes:
    return fields(
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )


def call(stream: int, body: bytes = b"hello", path: str = ECHO) -> bytes:
    message = b"\0" + struct.pack(">I", len(body)) + body
    return frame(HEADERS, END_HEADERS, stream, request(path)) + frame(DATA, END_STREAM, stream, message)


# --- what hostile clients send, in pieces; each piece is sent at once ---

Attack = Callable[[random.Random], list[bytes]]
OPENING = PREFACE + frame(SETTINGS, 0, 0)


def garbage(rng: random.Random) -> list[bytes]:
    return [rng.randbytes(rng.randint(1, 5000)) for _ in range(rng.randint(1, 4))]


def frames_of_anything(rng: random.Random) -> list[bytes]:
    def one() -> bytes:
        stream = rng.choice([0, 1, 2, 3, 5, 0x7FFFFFFF, 0x80000001])
        return frame(rng.randrange(12), rng.randrange(256), stream, rng.randbytes(rng.choice([0, 1, 4, 5, 8, 40])))

    return [OPENING, *(one() for _ in range(rng.randint(1, 30)))]


def cut_short(rng: random.Random) -> list[bytes]:
    whole = OPENING + call(1, b"x" * 500)
    return [whole[: rng.randrange(len(whole))]]


def damaged(rng: random.Random) -> list[bytes]:
    whole = bytearray(OPENING + b"".join(call(stream) for stream in (1, 3, 5)))
    for _ in range(rng.randint(1, 5)):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return [bytes(whole)]


def header_flood(rng: random.Random) -> list[bytes]:
    """More header fields than a request may have, and headers that grow in the table."""
    many = b"".join(fields((b"a%d" % n, b"v" * 100)) for n in range(500))
    indexed = b"".join(b"\x40\x01a\x64" + b"v" * 100 for _ in range(50)) + b"\xbe" * 8000
    block = request() + rng.choice([many, indexed])
    pieces = [block[at : at + 16000] for at in range(0, len(block), 16000)]
    head = frame(HEADERS, 0, 1, pieces[0])
    return [OPENING + head, *(frame(CONTINUATION, 0, 1, piece) for piece in pieces[1:])]


def continuation_flood(rng: random.Random) -> list[bytes]:
    """CVE-2024-27316: a header block that never ends."""
    return [OPENING + frame(HEADERS, 0, 1, request())] + [
        frame(CONTINUATION, 0, 1, fields((b"x", b"y" * 90)) * rng.randint(0, 20)) for _ in range(300)
    ]


def rapid_reset(rng: random.Random) -> list[bytes]:
    """CVE-2023-44487: streams that are opened and reset at once."""
    code = struct.pack(">I", 8)
    streams = range(1, 2 * rng.randint(100, 3000), 2)
    return [OPENING] + [frame(HEADERS, 5, stream, request()) + frame(RST_STREAM, 0, stream, code) for stream in streams]


def window_games(rng: random.Random) -> list[bytes]:
    """Windows of nothing, of everything, and beyond; answers that are never read."""
    settings = struct.pack(">HI", 4, rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
    update = struct.pack(">I", rng.choice([0, 1, 0x7FFFFFFF]))
    want = call(1, b"200 60000", FLOOD)
    return [PREFACE + frame(SETTINGS, 0, 0, settings) + want] + [
        frame(WINDOW_UPDATE, 0, rng.choice([0, 1]), update)
    ] * 5


def control_flood(rng: random.Random) -> list[bytes]:
    """Frames that ask for an answer each, which is never read."""
    one = rng.choice([frame(PING, 0, 0, bytes(8)), frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535))])
    return [OPENING, one * 20_000]


def settings_games(rng: random.Random) -> list[bytes]:
    pairs = b"".join(struct.pack(">HI", rng.randrange(9), rng.choice([0, 1, 16384, 0xFFFFFFFF])) for _ in range(20))
    return [PREFACE + frame(SETTINGS, 0, 0, pairs) + call(1)]


def many_streams(rng: random.Random) -> list[bytes]:
    """More calls at a time than are allowed, none of them complete."""
    return [OPENING] + [
        frame(HEADERS, END_HEADERS, stream, request()) for stream in range(1, 2 * rng.randint(50, 2000), 2)
    ]


def huge_messages(rng: random.Random) -> list[bytes]:
    """Messages that promise more than they bring, or are more than is allowed."""
    prefix = b"\0" + struct.pack(">I", rng.choice([0xFFFFFFFF, 1 << 24, 5]))
    parts = [frame(DATA, 0, 1, b"x" * 16000) for _ in range(rng.randint(1, 60))]
    return [OPENING + frame(HEADERS, END_HEADERS, 1, request()) + frame(DATA, 0, 1, prefix), *parts]


def slow(rng: random.Random) -> list[bytes]:
    """Byte for byte, and then silence."""
    whole = rng.choice([OPENING + call(1), b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\n"])
    return [whole[at : at + 1] for at in range(rng.randrange(len(whole)))]


def http1_games(rng: random.Random) -> list[bytes]:
    return [
        rng.choice(
            [
                b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 3000,
                b"GET /" + b"a" * 100_000,
                b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000,
                b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + b"a" * 1000,
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 500,
                b"GET / HTTP/1.1\r\nHost: \xff\xfe\0\r\n\r\n",
            ]
        )
    ]


ATTACKS: tuple[Attack, ...] = (
    garbage,
    frames_of_anything,
    cut_short,
    damaged,
    header_flood,
    continuation_flood,
    rapid_reset,
    window_games,
    control_flood,
    settings_games,
    many_streams,
    huge_messages,
    slow,
    http1_games,
)


def attack(port: int, pieces: list[bytes], rng: random.Random) -> None:
    """Sends the pieces, reads a little or nothing, and leaves: orderly, by a reset, or not before the next one."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(0.5)
        for piece in pieces:
            client.sendall(piece)
        if rng.random() < 0.5:
            client.settimeout(READ_SECONDS)
            client.recv(rng.choice([1, 65536]))
        if rng.random() < 0.3:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def works(port: int) -> None:
    """A normal call on a new connection: AssertionError unless it is answered."""
    received = b""
    deadline = time.monotonic() + CALL_SECONDS
    with socket.create_connection(("127.0.0.1", port), timeout=CALL_SECONDS) as client:
        client.sendall(OPENING + call(1, b"are you well"))
        client.settimeout(1.0)
        # The message, and behind it trailers that end the stream.
        while TRAILERS not in received.partition(b"are you well")[2]:
            assert time.monotonic() < deadline, f"no answer within {CALL_SECONDS} s: {received[-200:]!r}"
            with contextlib.suppress(TimeoutError):
                part = client.recv(65536)
                assert part, f"closed: {received[-200:]!r}"
                received += part


def run(seconds: float, seed: int) -> tuple[int, int]:
    """Attacks for so long. Returns connections and calls that worked; AssertionError if one did not."""
    rng = random.Random(seed)
    connections = calls = 0
    with Harness() as harness:
        harness.start()
        port = harness.port
        works(port)
        before = memory_bytes(None, "VmRSS")
        end = time.monotonic() + seconds
        while time.monotonic() < end or connections < len(ATTACKS):
            chosen = ATTACKS[connections % len(ATTACKS)] if connections < len(ATTACKS) else rng.choice(ATTACKS)
            attack(port, chosen(rng), rng)
            connections += 1
            # The harness keeps what arrived for tests to look at; here that is nobody's memory but ours.
            harness.events.clear()
            harness.unary.clear()
            if connections % 4 == 0:
                works(port)
                calls += 1
                grown = memory_bytes(None, "VmHWM") - before
                assert grown < GROWTH_BYTES, f"{grown} bytes more after {chosen.__name__}"
        works(port)
    return connections, calls + 2


if __name__ == "__main__":
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    made, answered = run(float(sys.argv[1]), number)
    print(f"connections {made} calls {answered} peak_mb {memory_bytes(None, 'VmHWM') >> 20}")
