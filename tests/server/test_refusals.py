"""Bad input: each gets one clear sentence and an exit code of its own, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import RAFTKV, NodeProcess, channel, free_ports, wait_until
from raftkv_node.adr import (
    EXIT_ABSENT,
    EXIT_CORRUPT,
    EXIT_DURABILITY,
    EXIT_MISMATCH,
    EXIT_UNUSABLE,
)
from raftkv_node.config import EXIT_USAGE
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc
from raftkv_node.server.members import founders


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    """A member alone, with a ring in an ordinary folder; not started."""
    client, peer = free_ports(2)
    made = NodeProcess("n1", tmp_path / "n1", client, peer)
    ring = tmp_path / "ring"
    ring.mkdir()
    made.arguments = [
        *("--initial-cluster", f"n1={made.peer_url}", "--adr-path", str(ring), "--adr-size", "4Mi"),
        *("--minimum-durability", "process"),
    ]
    yield made
    if made.running:
        made.kill()


def used(node: NodeProcess) -> None:
    """Lets the member live and die by SIGKILL, with something in its ring."""
    node.start()
    wait_until("healthy member", node.healthy)
    assert node.get("/readyz")[0] == 200
    node.kill()


def drained(node: NodeProcess) -> bool:
    """Whether the member has brought anything from its ring to disk."""
    found = re.search(r"adr_drain_bytes_total ([0-9.e+]+)", node.get("/metrics")[1])
    return found is not None and float(found[1]) > 0


def refused(node: NodeProcess, code: int, *words: str) -> None:
    """The next start ends by itself with this code, and says these words in one sentence."""
    before = len(node.log_text()) if (node.folder / "log").exists() else 0
    node.start()
    assert node.wait() == code, node.log_text()[before:]
    said = node.log_text()[before:]
    assert said.startswith("raftkv node: "), said
    assert said.count("\n") == 1, said
    for word in words:
        assert word in said, said


def ring_file(node: NodeProcess) -> Path:
    """The one ring file that there is."""
    folder = Path(node.arguments[node.arguments.index("--adr-path") + 1])
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= 1 << 20]
    assert len(files) == 1, files
    return files[0]


def test_flags_that_make_no_sense() -> None:
    for arguments in (["--no-such-flag"], ["--adr-size", "200Mi"], ["--initial-cluster", "a=http://b:1"]):
        result = subprocess.run([RAFTKV, "node", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == EXIT_USAGE
        assert result.stderr.startswith("raftkv node: --")
        assert result.stderr.count("\n") == 1


def test_a_port_in_use(node: NodeProcess, tmp_path: Path) -> None:
    node.start()
    wait_until("healthy member", node.healthy)
    other = NodeProcess("n2", tmp_path / "n2", node.client_port, free_ports(1)[0])
    other.arguments = ["--minimum-durability", "process"]
    refused(other, EXIT_UNUSABLE, "cannot listen", str(node.client_port))
    assert node.healthy()


def test_a_disk_that_cannot_be_written(node: NodeProcess) -> None:
    node.folder.mkdir(parents=True)
    (node.folder / "data").write_text("a file where the folder should be")
    refused(node, EXIT_UNUSABLE, "data folder")


def _read_only_mounts() -> bool:
    """Whether this user may mount in a name space of its own."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return (
        shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not _read_only_mounts(), reason="this user may not mount, not even in a name space of its own")
@pytest.mark.parametrize("folder", ["data", "ring"])
def test_a_disk_that_became_read_only(node: NodeProcess, folder: str) -> None:
    """As after an error of the medium; it loses nothing, and goes on when the disk can be written again."""
    used(node)
    place = node.data_dir if folder == "data" else ring_file(node).parents[2]
    files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    mounted = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, str(place), *node.command()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == EXIT_UNUSABLE, result.stderr
    assert result.stderr.startswith("raftkv node: ")
    assert result.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in files} == files
    node.start()
    wait_until("healthy member", node.healthy)


def test_less_durability_than_asked_for(node: NodeProcess) -> None:
    node.arguments[node.arguments.index("--minimum-durability") + 1] = "power"
    refused(node, EXIT_DURABILITY, "power")


def test_a_refused_first_start_binds_to_no_flags(node: NodeProcess) -> None:
    """Who mends the flags gets the member that they describe, not the one of the first try."""
    level = node.arguments.index("--minimum-durability") + 1
    node.arguments[level] = "power"
    refused(node, EXIT_DURABILITY)
    node.arguments[level] = "process"
    blocker = socket.create_server(("127.0.0.1", node.peer_port))
    refused(node, EXIT_UNUSABLE, "cannot listen")
    blocker.close()
    node.arguments += ["--initial-cluster-token", "second try"]
    node.start()
    wait_until("healthy member", node.healthy)
    expected = founders([("n1", (node.peer_url,))], "second try")
    with channel(node.endpoint) as connection:
        status = rpc_pb2_grpc.MaintenanceStub(connection).Status(rpc_pb2.StatusRequest(), timeout=10)
    assert (status.header.cluster_id, status.header.member_id) == (expected.cluster_id, expected.ids["n1"])


def test_a_ring_whose_disk_is_lost(node: NodeProcess) -> None:
    used(node)
    shutil.rmtree(node.data_dir)
    refused(node, EXIT_MISMATCH)
    ring_file(node)


def test_a_ring_that_is_not_there(node: NodeProcess) -> None:
    used(node)
    ring_file(node).rename(node.folder / "elsewhere")
    refused(node, EXIT_ABSENT)


def test_a_truncated_ring(node: NodeProcess) -> None:
    used(node)
    path = ring_file(node)
    half = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.truncate(half)
    refused(node, EXIT_CORRUPT, "ring")
    assert path.stat().st_size == half


def test_a_garbage_segment(node: NodeProcess) -> None:
    node.start()
    # A member can be ready before anything was drained, and what is behind the drained position is in the ring.
    wait_until("something is drained", lambda: node.healthy() and drained(node))
    node.kill()
    with min((node.data_dir / "wal").iterdir()).open("r+b") as file:
        file.seek(200)
        file.write(b"garbage" * 20)
    refused(node, EXIT_CORRUPT)


def test_a_damaged_identity(node: NodeProcess) -> None:
    used(node)
    path = node.data_dir / "identity"
    path.write_bytes(path.read_bytes().replace(b'"n1"', b'"n2"'))
    refused(node, EXIT_CORRUPT, "identity")


def test_a_garbage_backend(node: NodeProcess) -> None:
    used(node)
    data = node.data_dir / "backend" / "data.mdb"
    with data.open("r+b") as file:
        file.write(b"\xff" * 8192)
    refused(node, EXIT_CORRUPT, "backend")


def test_a_ring_of_another_cluster(node: NodeProcess, tmp_path: Path) -> None:
    """Its file at this member's place: refused, and left as it was."""
    used(node)
    own = ring_file(node)
    foreign = NodeProcess("n1", tmp_path / "other", *free_ports(2))
    ring = tmp_path / "other-ring"
    ring.mkdir()
    foreign.arguments = [
        *("--initial-cluster", f"n1={foreign.peer_url}", "--adr-path", str(ring), "--adr-size", "4Mi"),
        *("--minimum-durability", "process", "--initial-cluster-token", "another"),
    ]
    used(foreign)
    theirs = ring_file(foreign)
    place = own.parent / theirs.name
    content = theirs.read_bytes()
    own.unlink()
    place.write_bytes(content)
    refused(node, EXIT_MISMATCH)
    assert place.read_bytes() == content


def test_a_running_member_ends_well_by_either_signal(node: NodeProcess) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        node.start()
        wait_until("healthy member", node.healthy)
        node.signal(number)
        assert node.wait() == 0, node.log_text()
