"""Plain HTTP on the gRPC port and on a port of its own."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import time
from collections.abc import Callable

import pytest
from engine_harness import Harness, wait_for
from raftkv_node import _engine as native


def exchange(port: int, request: bytes) -> bytes:
    """Sends bytes, returns all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(request)
        answer = b""
        while data := sock.recv(65536):
            answer += data
        return answer


def test_get_on_the_grpc_port(server: Harness) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for i in range(3):  # kept alive
        connection.request("GET", f"/health?n={i}")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, f"GET /health?n={i} ".encode())
        assert response.headers["content-type"] == "text/plain"
    connection.close()
    assert server.stat("connections_accepted") == 1
    assert server.stat("http_calls") == 3


def test_http_only_port(launch: Callable[..., Harness]) -> None:
    server = launch()
    port = server.engine.listen_http("127.0.0.1", 0)
    server.start()
    assert exchange(port, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nGET /metrics ")
    assert exchange(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_bodies(server: Harness) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/v3/kv/put", body=b'{"key": "Zm9v"}')
    assert connection.getresponse().read() == b'POST /v3/kv/put {"key": "Zm9v"}'
    connection.request("PUT", "/c", body=iter([b"one ", b"two"]), encode_chunked=True)
    assert connection.getresponse().read() == b"PUT /c one two"
    connection.request("HEAD", "/health")
    response = connection.getresponse()
    assert (response.read(), response.headers["content-length"]) == (b"", "13")
    connection.request("GET", "/last")
    assert connection.getresponse().read() == b"GET /last "


def test_pipelined_requests_are_answered_in_order(server: Harness) -> None:
    request = b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % i for i in range(50)) + b"GET /end HTTP/1.0\r\n\r\n"
    answer = exchange(server.port, request)
    bodies = [part.split(b"\r\n\r\n")[1] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"GET /%d " % i for i in range(50)] + [b"GET /end "]


def test_expect_100_continue(server: Harness) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ab")
        assert sock.recv(1000).endswith(b"POST / ab")


def test_captured_headers(launch: Callable[..., Harness]) -> None:
    server = launch(capture_metadata=["authorization"]).start()
    exchange(server.port, b"GET /a HTTP/1.0\r\nAuthorization: Bearer t\r\n\r\n")
    exchange(server.port, b"GET /b HTTP/1.0\r\n\r\n")
    assert server.event(native.EV_HTTP, 1)[2:] == ("GET", "/a", b"", (b"Bearer t",))
    assert server.event(native.EV_HTTP, 2)[2:] == ("GET", "/b", b"", None)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_bad_requests_are_refused_and_closed(server: Harness, request_bytes: bytes, status: int) -> None:
    answer = exchange(server.port, request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Connection: close" in answer
    assert server.of(native.EV_HTTP) == []


def test_slow_requests_are_cut_off(launch: Callable[..., Harness]) -> None:
    server = launch(handshake_timeout_seconds=0.2, idle_http1_timeout_seconds=0.2).start()
    began = time.monotonic()
    assert exchange(server.port, b"") == b""  # says nothing
    assert exchange(server.port, b"PRI * HT") == b""  # half a preface
    assert exchange(server.port, b"GET /slow HTTP/1.1\r\nX:") == b""  # half a head
    assert exchange(server.port, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf") == b""
    assert exchange(server.port, b"GET / HTTP/1.1\r\n\r\n").endswith(b"GET / ")  # then idle
    assert time.monotonic() - began < 15
    wait_for(lambda: server.stat("connections") == 0, "all are closed")


def test_too_many_connections(launch: Callable[..., Harness]) -> None:
    server = launch(max_connections=5).start()
    socks = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(5)]
    wait_for(lambda: server.stat("connections") == 5, "five connections")
    assert exchange(server.port, b"") == b""
    assert server.stat("connections_rejected") == 1
    for sock in socks:
        sock.close()
    wait_for(lambda: server.stat("connections") == 0, "none is left")
    assert exchange(server.port, b"GET / HTTP/1.0\r\n\r\n").endswith(b"GET / ")


def test_client_that_leaves_before_the_answer(launch: Callable[..., Harness]) -> None:
    server = launch().start()
    server.pause()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(b"GET /gone HTTP/1.1\r\n\r\n")
        wait_for(lambda: server.stat("http_calls") == 1, "the request")
    wait_for(lambda: server.stat("connections") == 0, "the client has left")
    server.resume()
    _, call_id, *_ = server.event(native.EV_HTTP)
    assert server.event(native.EV_CANCELLED) == (native.EV_CANCELLED, call_id)


def test_port_in_use_and_bad_hosts(server: Harness) -> None:
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}: Address already in use"):
        server.engine.listen_grpc("127.0.0.1", server.port)
    with pytest.raises(OSError, match=r"cannot listen on no-such-host\.invalid:1: "):
        server.engine.listen_http("no-such-host.invalid", 1)
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0: "):
        server.engine.listen_peer("192.0.2.1", 0)


def test_names_and_ipv6(launch: Callable[..., Harness]) -> None:
    server = launch()
    ports = [server.engine.listen_http(host, 0) for host in ("localhost", "")]
    server.start(grpc=False)
    for port in ports:
        assert exchange(port, b"GET /x HTTP/1.0\r\n\r\n").endswith(b"GET /x ")
    try:
        port6 = server.engine.listen_http("[::1]", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    with socket.create_connection(("::1", port6), timeout=20) as sock:
        sock.sendall(b"GET /six HTTP/1.0\r\n\r\n")
        assert sock.recv(1000).endswith(b"GET /six ")


def test_replies_that_http_cannot_carry(server: Harness) -> None:
    reply = server.engine.http_reply
    with pytest.raises(ValueError, match="characters"):
        reply(1, 200, "text/plain\r\nX: y", b"")
    with pytest.raises(ValueError, match="characters"):
        reply(1, 200, "text/plain", b"", [("X:", "y")])
    with pytest.raises(ValueError, match="999"):
        reply(1, 999, "text/plain", b"")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl (Debian curl)")
def test_curl_with_either_version(server: Harness) -> None:
    for option in ("--http1.1", "--http2-prior-knowledge"):
        url = f"http://127.0.0.1:{server.port}/version"
        command = ["curl", "-sS", "--max-time", "20", option]
        assert subprocess.check_output([*command, url]) == b"GET /version "
        big = b"x" * 3_000_000
        out = subprocess.run([*command, "--data-binary", "@-", url], input=big, capture_output=True, check=True).stdout
        assert out == b"POST /version " + big
        head = subprocess.check_output([*command, "-I", url])
        assert b"content-length: 14" in head.lower()
