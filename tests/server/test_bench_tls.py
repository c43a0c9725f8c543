"""``raftkv bench`` under TLS with client certificates."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from certificates import Authority, Pair
from processes import RAFTKV, NodeProcess, free_ports, wait_until


@dataclass
class Secured:
    member: NodeProcess
    authority: Authority
    client: Pair

    def bench(self, *arguments: str, host: str = "localhost") -> subprocess.CompletedProcess[str]:
        command = [RAFTKV, "bench", "put", "--endpoints", f"https://{host}:{self.member.client_port}"]
        command += ["--total", "200", "--clients", "5", "--dial-timeout", "2s", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class _SecureMember(NodeProcess):
    def command(self) -> list[str]:
        return [part.replace(f"http://127.0.0.1:{self.client_port}", self.url) for part in super().command()]

    @property
    def url(self) -> str:
        return f"https://localhost:{self.client_port}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    root = tmp_path_factory.mktemp("bench-tls")
    authority = Authority(root)
    server, client = authority.pair("server"), authority.pair("client")
    ports = free_ports(2)
    member = _SecureMember("n1", root / "n1", *ports)
    member.arguments = [
        *("--initial-cluster", f"n1={member.peer_url}", "--minimum-durability", "process", "--client-cert-auth"),
        *("--cert-file", server.cert, "--key-file", server.key, "--trusted-ca-file", authority.file),
    ]
    made = Secured(member, authority, client)
    member.start()
    try:
        wait_until("puts under TLS", lambda: made.bench(*_all(made)).returncode == 0)
        yield made
    finally:
        member.kill()


def _all(secured: Secured) -> tuple[str, ...]:
    return ("--cacert", secured.authority.file, "--cert", secured.client.cert, "--key", secured.client.key)


def test_a_client_certificate_opens_the_door(secured: Secured) -> None:
    done = secured.bench(*_all(secured), "--target-leader")
    assert done.returncode == 0, done.stderr
    assert "Requests/sec:" in done.stdout


def test_without_a_client_certificate_it_stays_shut(secured: Secured) -> None:
    done = secured.bench("--cacert", secured.authority.file)
    assert done.returncode == 1
    assert "connection" in done.stdout
    assert "could not go on" in done.stdout


def test_a_server_of_another_authority_is_not_trusted(secured: Secured, tmp_path: Path) -> None:
    other = Authority(tmp_path, "stranger")
    done = secured.bench("--cacert", other.file, "--cert", secured.client.cert, "--key", secured.client.key)
    assert done.returncode == 1
    assert "certificate" in done.stdout


def test_a_missing_file_is_named(secured: Secured) -> None:
    done = secured.bench("--cacert", "/nowhere/ca.crt")
    assert done.returncode == 1
    assert "/nowhere/ca.crt" in done.stderr
