"""TLS: ALPN, client certificates, and files that cannot be used."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from certificates import Authority, Pair
from engine_harness import CHAT, ECHO, Harness, wait_for
from raftkv_node import _engine as native


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server_pair(authority: Authority) -> Pair:
    return authority.pair("server")


def credentials(authority: Authority, client: Pair | None = None) -> grpc.ChannelCredentials:
    key, chain = client.pem() if client else (None, None)
    return grpc.ssl_channel_credentials(Path(authority.file).read_bytes(), key, chain)


def test_grpc_over_tls(launch: Callable[..., Harness], authority: Authority, server_pair: Pair) -> None:
    server = launch(max_message_bytes=16 << 20).start(tls=native.TlsConfig(server_pair.cert, server_pair.key))
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(f"localhost:{server.port}", credentials(authority), options=options) as channel:
        echo = channel.unary_unary(ECHO)
        for message in [b"", b"secret", bytes(range(256)) * 40_000]:
            assert echo(message, timeout=30) == message
        calls = [echo.future(str(i).encode(), timeout=30) for i in range(500)]
        assert [call.result() for call in calls] == [str(i).encode() for i in range(500)]
        sent = [bytes([i % 256]) * i for i in range(300)]
        assert list(channel.stream_stream(CHAT)(iter(sent), timeout=30)) == sent


def test_plain_and_tls_listeners_side_by_side(
    launch: Callable[..., Harness], authority: Authority, server_pair: Pair
) -> None:
    server = launch()
    tls_port = server.engine.listen_grpc("127.0.0.1", 0, native.TlsConfig(server_pair.cert, server_pair.key))
    server.start()
    with grpc.insecure_channel(server.target) as channel:
        assert channel.unary_unary(ECHO)(b"plain", timeout=10) == b"plain"
    with grpc.secure_channel(f"localhost:{tls_port}", credentials(authority)) as channel:
        assert channel.unary_unary(ECHO)(b"tls", timeout=10) == b"tls"
    with grpc.insecure_channel(f"127.0.0.1:{tls_port}") as channel:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(ECHO)(b"plain to tls", timeout=2)
        assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2"], "h2"), (["http/1.1"], "http/1.1"), (["http/1.1", "h2"], "h2"), ([], None)],
)
def test_alpn(
    launch: Callable[..., Harness], authority: Authority, server_pair: Pair, offered: list[str], chosen: str | None
) -> None:
    server = launch().start(tls=native.TlsConfig(server_pair.cert, server_pair.key))
    context = ssl.create_default_context(cafile=authority.file)
    if offered:
        context.set_alpn_protocols(offered)
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    with context.wrap_socket(plain, server_hostname="localhost") as tls:
        assert tls.selected_alpn_protocol() == chosen
        if chosen == "h2":
            tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            assert tls.recv(100)[3] == 4  # SETTINGS
        else:
            tls.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert tls.recv(1000).endswith(b"GET /health ")


def test_required_client_certificates(
    launch: Callable[..., Harness], authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    tls = native.TlsConfig(server_pair.cert, server_pair.key, authority.file, require_client_cert=True)
    server = launch()
    metrics_port = server.engine.listen_http("127.0.0.1", 0)
    server.start(tls=tls)
    target = f"localhost:{server.port}"
    with grpc.secure_channel(target, credentials(authority, authority.pair("client"))) as channel:
        assert channel.unary_unary(ECHO)(b"known", timeout=10) == b"known"
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "stranger").pair("intruder")
    for client in (None, stranger):
        with grpc.secure_channel(target, credentials(authority, client)) as channel:
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(ECHO)(b"unknown", timeout=2)
            assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert [message for _, _, message, _ in server.unary] == [b"known"]
    with socket.create_connection(("127.0.0.1", metrics_port), timeout=20) as sock:  # a listener without certificates
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert sock.recv(1000).endswith(b"GET /metrics ")


def test_offered_client_certificates_are_checked(
    launch: Callable[..., Harness], authority: Authority, server_pair: Pair
) -> None:
    server = launch().start(tls=native.TlsConfig(server_pair.cert, server_pair.key, authority.file))
    for client in (None, authority.pair("client")):
        with grpc.secure_channel(f"localhost:{server.port}", credentials(authority, client)) as channel:
            assert channel.unary_unary(ECHO)(b"x", timeout=10) == b"x"


def test_a_handshake_that_stalls_is_cut_off(launch: Callable[..., Harness], server_pair: Pair) -> None:
    server = launch(handshake_timeout_seconds=0.2).start(tls=native.TlsConfig(server_pair.cert, server_pair.key))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(b"\x16\x03\x01\x00\xff")
        assert sock.recv(100) == b""
    wait_for(lambda: server.stat("connections") == 0, "it is closed")


def test_files_that_cannot_be_used(authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    other = authority.pair("other")
    for arguments, text in [
        ((str(tmp_path / "none"), server_pair.key), "cannot read certificates from .*none"),
        ((str(empty), server_pair.key), "empty holds no PEM certificate"),
        ((server_pair.cert, str(empty)), "cannot read the private key in .*empty"),
        ((server_pair.cert, None), "cert_file and key_file go together"),
        ((server_pair.cert, other.key), "certificate and key cannot be used"),
        ((server_pair.cert, server_pair.key, None, True), "require_client_cert needs a ca_file"),
        ((None, None, authority.file, False, "not a name"), "is no server name"),
    ]:
        with pytest.raises(ValueError, match=text):
            native.TlsConfig(*arguments)  # type: ignore[arg-type]
    engine = native.Engine()
    with pytest.raises(ValueError, match="a TLS listener needs"):
        engine.listen_grpc("127.0.0.1", 0, native.TlsConfig(ca_file=authority.file))
    with pytest.raises(ValueError, match="a TLS link needs"):
        engine.peer_connect(1, "127.0.0.1", 1, b"", native.TlsConfig(server_pair.cert, server_pair.key))
