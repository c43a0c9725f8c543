"""The server that a load is for: endpoints, certificates, the leader."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from .._engine import TlsConfig
from ..pb import rpc_pb2, rpc_pb2_grpc

DEFAULT_PORT = 2379
_PAGE_KEYS = 5_000
_CHANNEL_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20)]


class TargetError(Exception):
    """The server cannot be reached or used as asked; the text says why, for people."""


@dataclass(frozen=True)
class Endpoint:
    """One address of the server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Target:
    """All endpoints, and how to speak to them."""

    endpoints: tuple[Endpoint, ...]
    secure: bool = False
    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    timeout_seconds: float = 10.0

    def tls(self) -> TlsConfig | None:
        """For the native clients; None without TLS."""
        if not self.secure:
            return None
        try:
            return TlsConfig(
                cert_file=str(self.cert) if self.cert else None,
                key_file=str(self.key) if self.key else None,
                ca_file=str(self._authorities()),
            )
        except ValueError as error:
            raise TargetError(str(error)) from error

    def _authorities(self) -> Path:
        if self.cacert is not None:
            return self.cacert
        known = ssl.get_default_verify_paths().cafile
        if known is None:
            raise TargetError("https endpoints need --cacert here: this system has no file of authorities")
        return Path(known)

    def channel(self, endpoint: Endpoint) -> grpc.Channel:
        """A channel for single calls."""
        if not self.secure:
            return grpc.insecure_channel(str(endpoint), _CHANNEL_OPTIONS)
        try:
            credentials = grpc.ssl_channel_credentials(
                self._authorities().read_bytes(),
                self.key.read_bytes() if self.key else None,
                self.cert.read_bytes() if self.cert else None,
            )
        except OSError as error:
            raise TargetError(str(error)) from error
        return grpc.secure_channel(str(endpoint), credentials, _CHANNEL_OPTIONS)

    def addresses(self) -> list[tuple[str, str, str]]:
        """For the native clients: IP and port, authority, host that the certificate must name. Each is tried."""
        return [(_reachable(one, self.timeout_seconds), str(one), one.host) for one in self.endpoints]

    def leader_only(self) -> Target:
        """The same with the leader as only endpoint.

        Raises:
            TargetError: when none of the endpoints is the leader's.
        """
        leaders = []
        for endpoint in self.endpoints:
            with self.channel(endpoint) as channel:
                try:
                    stub = rpc_pb2_grpc.MaintenanceStub(channel)  # type: ignore[no-untyped-call]
                    status = stub.Status(rpc_pb2.StatusRequest(), timeout=self.timeout_seconds)
                except grpc.RpcError as error:
                    raise TargetError(f"{endpoint}: {describe(error)}") from error
            if status.leader == status.header.member_id:
                leaders.append(endpoint)
        if not leaders:
            raise TargetError("--target-leader: none of the endpoints is the leader's; name all members' endpoints")
        return replace(self, endpoints=(leaders[-1],))

    def revisions(self, key: bytes, range_end: bytes) -> Iterator[tuple[bytes, int]]:
        """The keys of a range and their revisions, in pages."""
        with self.channel(self.endpoints[0]) as channel:
            stub = rpc_pb2_grpc.KVStub(channel)  # type: ignore[no-untyped-call]
            more = True
            while more:
                request = rpc_pb2.RangeRequest(key=key, range_end=range_end, keys_only=True, limit=_PAGE_KEYS)
                try:
                    answer = stub.Range(request, timeout=self.timeout_seconds)
                except grpc.RpcError as error:
                    raise TargetError(f"{self.endpoints[0]}: {describe(error)}") from error
                for kv in answer.kvs:
                    yield kv.key, kv.mod_revision
                    key = kv.key + b"\0"
                more = answer.more

    def count(self, key: bytes, range_end: bytes) -> int:
        """How many keys there are in a range."""
        with self.channel(self.endpoints[0]) as channel:
            request = rpc_pb2.RangeRequest(key=key, range_end=range_end, count_only=True)
            try:
                stub = rpc_pb2_grpc.KVStub(channel)  # type: ignore[no-untyped-call]
                answer = stub.Range(request, timeout=self.timeout_seconds)
            except grpc.RpcError as error:
                raise TargetError(f"{self.endpoints[0]}: {describe(error)}") from error
            return int(answer.count)


def describe(error: grpc.RpcError) -> str:
    """A failed call, in one line."""
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)


def parse_endpoints(text: str) -> tuple[tuple[Endpoint, ...], bool]:
    """Comma-separated ``HOST:PORT`` or URLs, and whether they are https.

    Raises:
        ValueError: with a text for people.
    """
    found, schemes = [], set()
    for part in text.split(","):
        url = urlsplit(part if "://" in part else f"http://{part}")
        if url.scheme not in ("http", "https"):
            raise ValueError(f"{part!r}: the scheme must be http or https")
        try:
            port = url.port or DEFAULT_PORT
        except ValueError as error:
            raise ValueError(f"{part!r}: {error}") from error
        if not url.hostname or url.path.strip("/"):
            raise ValueError(f"{part!r} is not HOST:PORT or a URL of it")
        found.append(Endpoint(url.hostname, port))
        schemes.add(url.scheme)
    if len(schemes) > 1:
        raise ValueError("endpoints must be all http or all https")
    return tuple(found), schemes == {"https"}


def _reachable(endpoint: Endpoint, seconds: float) -> str:
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=seconds) as connected:
            host, port = connected.getpeername()[:2]
    except OSError as error:
        raise TargetError(f"cannot connect to {endpoint}: {error.strerror or error}") from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
