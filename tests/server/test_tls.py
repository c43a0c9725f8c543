"""TLS by the flags: clients with and without a certificate, members among themselves, metrics without one."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from processes import Cluster, NodeProcess, free_ports, wait_until
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc


@dataclass
class Authority:
    """A certificate authority in a folder."""

    folder: Path

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        self._certificate = self._sign(self._name, self._key, authority=True)
        self.path = self.folder / "ca.pem"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of a name, for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, authority=False)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths


class SecureNode(NodeProcess):
    """A member whose clients and peers use TLS."""

    metrics_port = 0

    @property
    def peer_url(self) -> str:
        return f"https://127.0.0.1:{self.peer_port}"

    def command(self) -> list[str]:
        return [
            part.replace(f"http://127.0.0.1:{self.client_port}", f"https://127.0.0.1:{self.client_port}")
            for part in super().command()
        ]


def test_clients_and_members_by_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, member, client = (authority.issue(name) for name in ("server", "member", "client"))
    made = Cluster(tmp_path, 3, None)
    ports = free_ports(3)
    made.members = [SecureNode(one.name, one.folder, one.client_port, one.peer_port) for one in made.members]
    initial = ",".join(f"{one.name}={one.peer_url}" for one in made.members)
    for one, port in zip(made.members, ports, strict=True):
        one.arguments = [
            *("--initial-cluster", initial, "--minimum-durability", "process"),
            *("--cert-file", str(server[0]), "--key-file", str(server[1])),
            *("--client-cert-auth", "--trusted-ca-file", str(authority.path)),
            *("--peer-cert-file", str(member[0]), "--peer-key-file", str(member[1])),
            *("--peer-client-cert-auth", "--peer-trusted-ca-file", str(authority.path)),
            *("--listen-metrics-urls", f"http://127.0.0.1:{port}"),
        ]
    try:
        for one in made.members:
            one.start()
        for port in ports:
            wait_until("healthy member", lambda port=port: _healthy(port))  # type: ignore[misc]
        root, key, certificate = authority.path.read_bytes(), client[1].read_bytes(), client[0].read_bytes()
        with grpc.secure_channel(
            made.members[0].endpoint, grpc.ssl_channel_credentials(root, key, certificate)
        ) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            kv.Put(rpc_pb2.PutRequest(key=b"k", value=b"v"), timeout=20)
            assert kv.Range(rpc_pb2.RangeRequest(key=b"k"), timeout=20).kvs[0].value == b"v"
        without_certificate = grpc.secure_channel(made.members[0].endpoint, grpc.ssl_channel_credentials(root))
        for refused in (without_certificate, grpc.insecure_channel(made.members[0].endpoint)):
            with refused as channel, pytest.raises(grpc.RpcError):
                rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"k"), timeout=3)
        context = ssl.create_default_context(cafile=str(authority.path))
        context.load_cert_chain(client[0], client[1])
        with urllib.request.urlopen(
            f"https://{made.members[0].endpoint}/version", context=context, timeout=10
        ) as answer:
            assert answer.status == 200
    finally:
        made.kill_all()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
