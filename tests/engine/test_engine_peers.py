"""Peer links: frames both ways, reconnection, refusal, damage and bounds."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from engine_harness import Harness, wait_for
from raftkv_node import _engine as native

PREFACE = b"RKVLINK\x01"


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    length = struct.pack("<I", len(payload))
    return length + struct.pack("<I", crc32c(length + payload)) + payload


@pytest.fixture
def node(launch: Callable[..., Harness]) -> Callable[..., Harness]:
    """Makes a started harness that listens for peers (its port) and reconnects quickly."""

    def make(port: int = 0, tls: native.TlsConfig | None = None, **options: Any) -> Harness:
        harness = launch(peer_backoff_min_seconds=0.01, peer_backoff_max_seconds=0.05, **options)
        harness.port = harness.engine.listen_peer("127.0.0.1", port, tls)
        return harness.start(grpc=False)

    return make


def link(a: Harness, b: Harness, link_id: int = 1, hello: bytes = b"a") -> int:
    """Connects a to b; returns b's id of the link."""
    a.engine.peer_connect(link_id, "127.0.0.1", b.port, hello)
    before = len(b.of(native.EV_PEER_INBOUND))
    wait_for(lambda: [e for e in a.of(native.EV_PEER_UP) if e[1] == link_id], "the link is up")
    inbound = wait_for(lambda: b.of(native.EV_PEER_INBOUND)[max(before - 1, 0) :], "the inbound link")
    return int(inbound[-1][1])


def test_hello_and_frames_both_ways(node: Callable[..., Harness]) -> None:
    a, b = node(), node()
    inbound = link(a, b, hello=b"I am a")
    assert a.event(native.EV_PEER_UP) == (native.EV_PEER_UP, 1, b"welcome I am a")
    _kind, inbound_id, hello, remote = b.event(native.EV_PEER_INBOUND)
    assert (inbound_id, hello, remote.split(":")[0]) == (inbound, b"I am a", "127.0.0.1")
    assert inbound >= 2**32
    sent = [str(i).encode() * (i % 100) for i in range(2000)]
    for at in range(0, 2000, 50):
        assert all(queued > 0 for queued in a.engine.peer_send([(1, f) for f in sent[at : at + 50]]))
        assert all(queued > 0 for queued in b.engine.peer_send([(inbound, f) for f in sent[at : at + 50]]))
    wait_for(lambda: b.frames.get(inbound) == sent, "a's frames")
    wait_for(lambda: a.frames.get(1) == [b"first", *sent], "b's frames")
    stats = a.engine.stats()
    assert stats["link.1.up"] == 1
    assert stats["link.1.bytes_out"] >= sum(map(len, sent))
    wait_for(lambda: a.stat("link.1.queued_bytes") == 0, "all is written")


def test_large_frames(node: Callable[..., Harness]) -> None:
    a, b = node(), node()
    inbound = link(a, b)
    frames = [bytes(range(256)) * 40_000, b"small", bytes(5_000_000), b""]
    a.engine.peer_send([(1, f) for f in frames])
    wait_for(lambda: b.frames.get(inbound) == frames, "all frames")


def test_many_links_at_once(node: Callable[..., Harness]) -> None:
    a, b = node(), node()
    for i in range(20):
        a.engine.peer_connect(i, "localhost", b.port, str(i).encode())
    wait_for(lambda: len(a.of(native.EV_PEER_UP)) == 20, "all links")
    a.engine.peer_send([(i, str(i).encode()) for i in range(20)])
    name = {e[1]: e[2] for e in b.of(native.EV_PEER_INBOUND)}
    wait_for(
        lambda: {name[k]: v for k, v in b.frames.items()} == {str(i).encode(): [str(i).encode()] for i in range(20)}, ""
    )


def test_reconnects_when_the_other_side_comes_back(node: Callable[..., Harness]) -> None:
    a, b = node(), node()
    link(a, b)
    port = b.port
    b.close()
    assert a.event(native.EV_PEER_DOWN) == (native.EV_PEER_DOWN, 1)
    assert a.engine.peer_send([(1, b"into the void")]) == [-1]
    assert a.stat("peer_frames_dropped") == 1
    c = node(port)
    a.event(native.EV_PEER_UP, 2)
    inbound = c.event(native.EV_PEER_INBOUND)[1]
    a.engine.peer_send([(1, b"again")])
    wait_for(lambda: c.frames.get(inbound) == [b"again"], "only what was sent on the new connection")


def test_connects_to_one_that_starts_later(node: Callable[..., Harness]) -> None:
    a = node()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    a.engine.peer_connect(7, "127.0.0.1", port, b"early")
    wait_for(lambda: a.stat("peer_connects") > 2, "some attempts")
    assert a.engine.peer_send([(7, b"x")]) == [-1]
    assert a.of(native.EV_PEER_DOWN) == []
    node(port)
    assert a.event(native.EV_PEER_UP) == (native.EV_PEER_UP, 7, b"welcome early")


def test_a_name_without_address_is_tried_again(node: Callable[..., Harness]) -> None:
    a = node()
    a.engine.peer_connect(1, "no-such-host.invalid", 1, b"")
    time.sleep(0.1)
    a.engine.peer_disconnect(1)
    a.engine.peer_connect(1, "localhost", a.port, b"self")
    assert a.event(native.EV_PEER_UP)[1] == 1


def test_rejection(node: Callable[..., Harness]) -> None:
    a, b = node(), node()
    b.accept_hello = lambda hello: False
    a.engine.peer_connect(1, "127.0.0.1", b.port, b"stranger")
    assert a.event(native.EV_PEER_REJECTED) == (native.EV_PEER_REJECTED, 1, b"not you, stranger")
    a.event(native.EV_PEER_REJECTED, 3)  # it tries again
    assert a.engine.peer_send([(1, b"x")]) == [-1]
    b.event(native.EV_PEER_INBOUND_CLOSED, 3)
    b.accept_hello = lambda hello: True
    a.event(native.EV_PEER_UP)
    assert a.of(native.EV_PEER_DOWN) == []


def test_disconnect_from_either_side(node: Callable[..., Harness]) -> None:
    a, b = node(), node()
    inbound = link(a, b)
    b.engine.peer_disconnect(inbound)
    assert b.event(native.EV_PEER_INBOUND_CLOSED) == (native.EV_PEER_INBOUND_CLOSED, inbound)
    a.event(native.EV_PEER_DOWN)
    a.event(native.EV_PEER_UP, 2)
    a.engine.peer_disconnect(1)
    b.event(native.EV_PEER_INBOUND_CLOSED, 2)
    time.sleep(0.1)
    assert len(a.of(native.EV_PEER_UP)) == 2
    assert len(a.of(native.EV_PEER_DOWN)) == 1
    assert a.engine.peer_send([(1, b"x")]) == [-1]
    assert "link.1.up" not in a.engine.stats()


def raw_inbound(b: Harness, hello: bytes = PREFACE + frame(b"raw")) -> tuple[socket.socket, int]:
    """A hand-made connection that b has accepted, and b's id of it."""
    number = len(b.of(native.EV_PEER_INBOUND)) + 1
    sock = socket.create_connection(("127.0.0.1", b.port), timeout=20)
    sock.sendall(hello)
    inbound = b.event(native.EV_PEER_INBOUND, number)[1]
    expected = PREFACE + frame(b"\x01welcome raw") + frame(b"first")
    got = b""
    while len(got) < len(expected):
        got += sock.recv(len(expected) - len(got))
    assert got == expected
    return sock, inbound


def test_the_format_to_the_byte(node: Callable[..., Harness]) -> None:
    b = node()
    sock, inbound = raw_inbound(b)
    for byte in frame(b"in single bytes") + frame(b"!"):
        sock.sendall(bytes([byte]))
    wait_for(lambda: b.frames.get(inbound) == [b"in single bytes", b"!"], "both frames")
    b.engine.peer_send([(inbound, b"answer")])
    assert sock.recv(100) == frame(b"answer")
    sock.close()
    b.event(native.EV_PEER_INBOUND_CLOSED)


def test_frames_right_behind_the_hello(node: Callable[..., Harness]) -> None:
    b = node()
    _, inbound = raw_inbound(b, PREFACE + frame(b"raw") + frame(b"eager") + frame(b"more"))
    wait_for(lambda: b.frames.get(inbound) == [b"eager", b"more"], "both frames")


@pytest.mark.parametrize("bit", [0, 13, 35, 50, 64, 70, 100])
def test_a_corrupted_frame_closes_the_link(node: Callable[..., Harness], bit: int) -> None:
    b = node(max_peer_frame_bytes=1000)
    sock, inbound = raw_inbound(b)
    bad = bytearray(frame(b"payload!"))
    bad[bit // 8] ^= 1 << (bit % 8)
    sock.sendall(frame(b"good") + bad + bytes(1000))
    assert b.event(native.EV_PEER_INBOUND_CLOSED) == (native.EV_PEER_INBOUND_CLOSED, inbound)
    assert b.frames.get(inbound) == [b"good"]


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"RKVLINK\x02" + frame(b"from the future"),
        PREFACE + b"\xff" * 100,
        PREFACE + frame(bytes(70_000)),
    ],
)
def test_strange_greetings_are_not_answered(node: Callable[..., Harness], greeting: bytes) -> None:
    b = node()
    with socket.create_connection(("127.0.0.1", b.port), timeout=20) as sock:
        sock.sendall(greeting)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    wait_for(lambda: b.stat("peer_connections") == 0, "closed")
    assert b.of(native.EV_PEER_INBOUND) == []


def test_a_silent_peer_is_given_up(node: Callable[..., Harness]) -> None:
    b = node(handshake_timeout_seconds=0.2)
    with socket.create_connection(("127.0.0.1", b.port), timeout=20) as sock:
        sock.sendall(PREFACE)
        assert sock.recv(100) == b""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        b.engine.peer_connect(1, "127.0.0.1", mute.getsockname()[1], b"anyone?")
        wait_for(lambda: b.stat("peer_connects") >= 3, "attempts go on")
    assert b.of(native.EV_PEER_UP) == []


def test_queue_bound(node: Callable[..., Harness]) -> None:
    b = node(max_queued_bytes_per_peer=16 << 20)
    sock, inbound = raw_inbound(b)
    big = bytes(1 << 20)
    results = [b.engine.peer_send([(inbound, big)])[0] for _ in range(64)]
    assert -1 in results
    assert max(results) <= 16 << 20
    sent = sum(result > 0 for result in results)
    got = 0
    while got < sent * (len(big) + 8):
        got += len(sock.recv(1 << 20))
    wait_for(lambda: b.stat(f"link.{inbound}.queued_bytes") == 0, "drained")
    assert b.engine.peer_send([(inbound, b"room again")])[0] > 0
    assert b.stat("peer_frames_dropped") == results.count(-1)


def test_frame_bound(node: Callable[..., Harness]) -> None:
    a, b = node(), node(max_peer_frame_bytes=1000)
    inbound = link(a, b)
    with pytest.raises(ValueError, match="a frame of 1001 bytes for link"):
        b.engine.peer_send([(inbound, b"ok"), (inbound, bytes(1001))])
    a.engine.peer_send([(1, bytes(1001))])
    b.event(native.EV_PEER_INBOUND_CLOSED)
    a.event(native.EV_PEER_DOWN)


def test_misuse(node: Callable[..., Harness]) -> None:
    a = node()
    a.engine.peer_connect(1, "127.0.0.1", a.port, b"")
    with pytest.raises(ValueError, match="link 1 exists"):
        a.engine.peer_connect(1, "127.0.0.1", a.port, b"")
    with pytest.raises(ValueError, match=r"not below 2\*\*32"):
        a.engine.peer_connect(2**32, "127.0.0.1", a.port, b"")
    a.engine.peer_accept(99, b"")
    a.engine.peer_reject(2**40, b"")
    a.engine.peer_disconnect(2**40)
    assert a.engine.peer_send([(2**40, b"x"), (99, b"x")]) == [-1, -1]


def test_links_over_tls(node: Callable[..., Harness], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("member")
    tls = native.TlsConfig(pair.cert, pair.key, authority.file, require_client_cert=True)
    a, b = node(tls=tls), node(tls=tls)
    a.engine.peer_connect(1, "localhost", b.port, b"over tls", tls)
    a.event(native.EV_PEER_UP)
    inbound = b.event(native.EV_PEER_INBOUND)[1]
    sent = [bytes([i % 256]) * (i * 37 % 5000) for i in range(1000)] + [bytes(3_000_000)]
    a.engine.peer_send([(1, f) for f in sent])
    b.engine.peer_send([(inbound, f) for f in sent])
    wait_for(lambda: b.frames.get(inbound) == sent, "a's frames")
    wait_for(lambda: a.frames.get(1) == [b"first", *sent], "b's frames")
    wait_for(lambda: a.stat("link.1.queued_bytes") == 0, "all is written")


def test_links_that_do_not_fit_over_tls(node: Callable[..., Harness], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("member")
    b = node(tls=native.TlsConfig(pair.cert, pair.key, authority.file, require_client_cert=True))
    a = node()
    ca_only = native.TlsConfig(ca_file=authority.file)
    wrong_name = native.TlsConfig(pair.cert, pair.key, authority.file, server_name="other.example")
    a.engine.peer_connect(1, "127.0.0.1", b.port, b"no certificate", ca_only)
    a.engine.peer_connect(2, "127.0.0.1", b.port, b"wrong name", wrong_name)
    a.engine.peer_connect(3, "127.0.0.1", b.port, b"no tls")
    wait_for(lambda: a.stat("peer_connects") >= 9, "attempts go on")
    assert a.of(native.EV_PEER_UP) == b.of(native.EV_PEER_INBOUND) == []
