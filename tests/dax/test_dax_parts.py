"""The parts of `make test-dax` that need no virtual machine: the disk that forgets, and what counts as lost."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from dax_disk import Disk, DiskServer, Flushes, Loss
from dax_load import History

T = TypeVar("T")
SECTOR = 512
OLD, NEW, NEWER = b"o" * SECTOR, b"n" * SECTOR, b"N" * SECTOR


class Everything(random.Random):
    """Chance at its worst: everything that was not flushed goes back to its durable contents."""

    def choice(self, choices: Sequence[T]) -> T:  # type: ignore[override]
        return choices[0]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    image = tmp_path / "disk"
    image.write_bytes(OLD * 64)
    made = Disk(image)
    yield made
    made.close()


def test_what_was_not_flushed_is_lost_in_a_cut(disk: Disk) -> None:
    disk.write(0, NEW)
    assert disk.read(0, SECTOR) == NEW
    assert disk.cut(Everything()) == Loss(1, 1)
    assert disk.read(0, SECTOR) == OLD


def test_what_was_flushed_is_there_after_a_cut(disk: Disk) -> None:
    disk.write(0, NEW)
    disk.flush()
    disk.write(SECTOR, NEW)
    assert disk.cut(Everything()) == Loss(1, 1)
    assert disk.read(0, 2 * SECTOR) == NEW + OLD


def test_a_write_with_fua_is_durable_alone(disk: Disk) -> None:
    disk.write(0, NEW)
    disk.write(SECTOR, NEW, through=True)
    disk.cut(Everything())
    assert disk.read(0, 2 * SECTOR) == OLD + NEW


def test_every_content_since_the_flush_may_survive_each_sector_for_itself(disk: Disk) -> None:
    chance, seen = random.Random(1), set()
    for _ in range(300):
        disk.write(0, OLD * 2)
        disk.flush()
        disk.write(0, NEW * 2)
        disk.write(0, NEWER * 2)
        disk.cut(chance)
        both = disk.read(0, 2 * SECTOR)
        seen.add((both[:1], both[SECTOR : SECTOR + 1]))
    assert seen == {(a, b) for a in (b"o", b"n", b"N") for b in (b"o", b"n", b"N")}


def test_a_lying_disk_forgets_what_it_was_told_to_flush(disk: Disk) -> None:
    disk.flushes = Flushes.IGNORED
    disk.write(0, NEW)
    disk.flush()
    disk.write(SECTOR, NEW, through=True)
    assert disk.cut(Everything()) == Loss(2, 2)
    assert disk.read(0, 2 * SECTOR) == OLD * 2


@pytest.mark.parametrize(("offset", "length"), [(1, SECTOR), (0, 100), (64 * SECTOR, SECTOR)])
def test_a_part_of_a_sector_and_what_lies_outside_are_refused(disk: Disk, offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="whole sectors"):
        disk.write(offset, bytes(length))


class Client:
    """The client's side of NBD, as far as the test goes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")
        assert self.file.read(18)[:16] == b"NBDMAGICIHAVEOPT"
        self.socket.sendall(struct.pack(">I", 3))

    def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while not replies or replies[-1][0] == 3:
            _, _, kind, length = struct.unpack(">QIII", self.file.read(20))
            replies.append((kind, self.file.read(length)))
        return replies

    def request(self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> tuple[int, bytes]:
        self.socket.sendall(struct.pack(">IHH8sQI", 0x25609513, flags, command, b"12345678", offset, length) + data)
        magic, error, handle = struct.unpack(">II8s", self.file.read(16))
        assert (magic, handle) == (0x67446698, b"12345678")
        return error, self.file.read(length) if command == 0 and not error else b""


def test_the_server_speaks_nbd_and_forgets(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(OLD * 64)
    server = DiskServer(Disk(image), tmp_path / "socket")
    client = Client(server.path)
    assert client.option(8) == [((1 << 31) + 1, b"")]  # structured replies: not known here
    (info, export), (acknowledged, _) = client.option(7, struct.pack(">IH", 0, 0))
    assert (info, acknowledged) == (3, 1)
    assert struct.unpack(">HQH", export) == (0, 64 * SECTOR, 13)
    assert client.request(1, 0, SECTOR, NEW) == (0, b"")
    assert client.request(3, 0, 0) == (0, b"")
    assert client.request(1, SECTOR, SECTOR, NEW) == (0, b"")
    assert client.request(1, 2 * SECTOR, SECTOR, NEW, flags=1) == (0, b"")
    assert client.request(1, 3, SECTOR, NEW)[0] != 0
    assert client.request(0, 0, 3 * SECTOR) == (0, NEW * 3)
    assert server.cut(Everything()) == Loss(1, 1)
    client.socket.close()
    again = Client(server.path)
    again.option(7, struct.pack(">IH", 0, 0))
    assert again.request(0, 0, 3 * SECTOR) == (0, NEW + OLD + NEW)
    again.socket.close()
    server.close()
    assert server.failure is None


def test_a_flush_that_comes_with_the_cut_does_not_count(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(OLD * 64)
    server = DiskServer(Disk(image), tmp_path / "socket")
    client = Client(server.path)
    client.option(7, struct.pack(">IH", 0, 0))
    assert client.request(1, 0, SECTOR, NEW) == (0, b"")

    def power_off() -> None:
        client.socket.sendall(struct.pack(">IHH8sQI", 0x25609513, 0, 3, b"12345678", 0, 0))

    assert server.cut(Everything(), power_off) == Loss(1, 1)
    assert client.file.read() == b"", "a flush after the cut was answered"
    assert server.disk.read(0, SECTOR) == OLD
    server.close()
    assert server.failure is None


def test_what_counts_as_lost_as_rolled_back_and_as_never_written() -> None:
    history = History(
        acknowledged={"a": "1", "b": "2"},
        maybe={"m": "3"},
        counter_acknowledged={"c": 5},
        counter_sent={"c": 7},
    )
    whole = {"a": "1", "b": "2", "c": "5"}
    assert history.problems(whole) == []
    assert history.problems({**whole, "m": "3", "c": "7"}) == []
    for wrong, text in [
        ({"a": "1", "c": "5"}, "lost: acknowledged b is None"),
        ({**whole, "b": "1"}, "lost: acknowledged b is '1'"),
        ({**whole, "c": "4"}, "lost: c was acknowledged as 5 and is 4"),
        ({"a": "1", "b": "2"}, "lost: c was acknowledged as 5 and is 0"),
        ({**whole, "c": "8"}, "phantom: c is 8"),
        ({**whole, "m": "4"}, "phantom: m = '4'"),
        ({**whole, "x": "1"}, "phantom: x = '1'"),
    ]:
        (problem,) = history.problems(wrong)
        assert problem.startswith(text)
