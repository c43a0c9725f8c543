"""A cluster whose members and clients know each other by certificates, and a metrics port that asks for none."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from certificates import Authority, Pair
from processes import START_SECONDS, NodeProcess, free_ports, wait_until
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc


@dataclass
class TlsNode(NodeProcess):
    """A member with https URLs; its metrics are plain."""

    metrics_port: int = 0

    @property
    def peer_url(self) -> str:
        return f"https://localhost:{self.peer_port}"

    def command(self) -> list[str]:
        return [part.replace("http://127.0.0.1", "https://localhost") for part in super().command()] + [
            *("--listen-metrics-urls", f"http://127.0.0.1:{self.metrics_port}")
        ]

    def get(self, path: str) -> tuple[int, str]:
        """By the metrics port, without a certificate."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except OSError:
            return 0, ""


@dataclass
class Secured:
    """The members, and what their clients need."""

    members: list[TlsNode]
    authority: Authority
    client: Pair
    stranger: Pair

    def channel(self, member: TlsNode, pair: Pair | None) -> grpc.Channel:
        key, chain = pair.pem() if pair else (None, None)
        credentials = grpc.ssl_channel_credentials(Path(self.authority.file).read_bytes(), key, chain)
        return grpc.secure_channel(f"localhost:{member.client_port}", credentials)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    root = tmp_path_factory.mktemp("tls")
    (root / "other").mkdir()
    authority, other = Authority(root), Authority(root / "other", "stranger")
    server, peer, client = authority.pair("server"), authority.pair("peer"), authority.pair("client")
    ports = free_ports(9)
    members = [TlsNode(f"n{i + 1}", root / f"n{i + 1}", *ports[3 * i : 3 * i + 2]) for i in range(3)]
    for member, port in zip(members, ports[2::3], strict=True):
        member.metrics_port = port
        member.arguments = [
            *("--initial-cluster", ",".join(f"{one.name}={one.peer_url}" for one in members)),
            *("--minimum-durability", "process", "--client-cert-auth", "--peer-client-cert-auth"),
            *("--cert-file", server.cert, "--key-file", server.key, "--trusted-ca-file", authority.file),
            *("--peer-cert-file", peer.cert, "--peer-key-file", peer.key, "--peer-trusted-ca-file", authority.file),
        ]
    try:
        for member in members:
            member.start()
        for member in members:
            wait_until(f"healthy {member.name}", member.healthy)
        yield Secured(members, authority, client, other.pair("intruder"))
    finally:
        for member in members:
            if member.process is not None:
                member.kill()


def test_a_write_through_one_member_is_read_through_the_others(secured: Secured) -> None:
    for number, member in enumerate(secured.members):
        with secured.channel(member, secured.client) as channel:
            put = rpc_pb2.PutRequest(key=b"secret", value=b"%d" % number)
            rpc_pb2_grpc.KVStub(channel).Put(put, timeout=10)
        for other in secured.members:
            with secured.channel(other, secured.client) as channel:
                answer = rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"secret"), timeout=10)
                assert answer.kvs[0].value == b"%d" % number


def test_clients_without_a_known_certificate_are_not_served(secured: Secured) -> None:
    member = secured.members[0]
    for pair in (None, secured.stranger):
        with secured.channel(member, pair) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"secret"), timeout=3)
            assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    with grpc.insecure_channel(f"127.0.0.1:{member.client_port}") as channel, pytest.raises(grpc.RpcError):
        rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"secret"), timeout=3)


@pytest.mark.parametrize("pair", [None, "stranger"])
def test_the_peer_port_hears_nobody_without_a_known_certificate(secured: Secured, pair: str | None) -> None:
    """Whatever is said there: the connection ends before an answer."""
    context = ssl.create_default_context(cafile=secured.authority.file)
    if pair:
        context.load_cert_chain(secured.stranger.cert, secured.stranger.key)
    plain = socket.create_connection(("127.0.0.1", secured.members[0].peer_port), timeout=START_SECONDS)
    with pytest.raises(ssl.SSLError), context.wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(b"hello")
        connection.recv(100)


def test_http_on_the_client_port_asks_for_the_certificate_too(secured: Secured) -> None:
    url = f"https://localhost:{secured.members[0].client_port}/version"
    context = ssl.create_default_context(cafile=secured.authority.file)
    with pytest.raises(OSError):
        urllib.request.urlopen(url, context=context, timeout=10)
    context.load_cert_chain(secured.client.cert, secured.client.key)
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        assert answer.status == 200


def test_metrics_and_health_need_no_certificate_on_their_own_port(secured: Secured) -> None:
    for member in secured.members:
        status, text = member.get("/metrics")
        assert status == 200
        assert "etcd_server_has_leader 1.0" in text
        assert member.get("/health") == (200, '{"health":"true","reason":""}')
        assert member.get("/readyz")[0] == 200


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed (Debian's package etcd-client)")
def test_etcdctl_with_its_certificate(secured: Secured) -> None:
    endpoints = ",".join(f"https://localhost:{one.client_port}" for one in secured.members)
    files = ["--cacert", secured.authority.file, "--cert", secured.client.cert, "--key", secured.client.key]
    command = ["etcdctl", f"--endpoints={endpoints}", *files, "endpoint", "health"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert (done.stdout + done.stderr).count("is healthy") == len(secured.members)
