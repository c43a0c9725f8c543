"""A disk that loses what was not flushed: an NBD server of our own.

QEMU's caches are the host's page cache, and that survives the end of QEMU: killing it never loses a write, so a test on
an image file would pass whatever the guest forgot to flush. This server is the disk instead. It keeps the newest
contents in the image, and for every 512-byte sector written since the last FLUSH all its earlier contents, down to the
durable one. `cut` is the power failure: each such sector becomes, on its own, any one of its contents, as with a real
disk's volatile cache. A FLUSH makes all that came before it durable, a write with FUA itself.

A flush takes a while, as it does on a disk, or else hardly any cut would find a sector that was not flushed.

The protocol is NBD's fixed newstyle with simple replies, as QEMU speaks it (the NBD project's doc/proto.md).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

SECTOR_BYTES = 512
MOST_REQUEST_BYTES = 32 << 20

_NBD_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_OPTION_ABORT, _OPTION_INFO, _OPTION_GO = 2, 6, 7
_REPLY_ACK, _REPLY_INFO, _REPLY_UNSUPPORTED = 1, 3, (1 << 31) + 1
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_COMMAND_FUA = 1
#: HAS_FLAGS, SEND_FLUSH, SEND_FUA.
_EXPORT_FLAGS = 1 | 4 | 8


class Flushes(StrEnum):
    #: A flush makes durable what came before.
    HONEST = "honest"
    #: A flush is answered and forgotten: a planted bug.
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Loss:
    """What a cut did: sectors that were not flushed, and how many of them did not keep their newest contents."""

    unflushed_sectors: int
    lost_sectors: int


@dataclass
class Disk:
    """The contents of a disk and what of them is durable. All methods are for one thread at a time."""

    image: Path
    flushes: Flushes = Flushes.HONEST
    longest_flush_seconds: float = 0.0
    flush_count: int = 0
    _earlier: dict[int, list[bytes]] = field(default_factory=dict)
    _fd: int = -1

    def __post_init__(self) -> None:
        self._fd = os.open(self.image, os.O_RDWR | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """The newest contents."""
        return os.pread(self._fd, length, offset).ljust(length, b"\0")

    def write(self, offset: int, data: bytes, *, through: bool = False) -> None:
        """Writes whole sectors; `through` (FUA) makes these sectors durable at once.

        Raises:
            ValueError: offset or length is not a multiple of a sector, or out of bounds.
        """
        if offset % SECTOR_BYTES or len(data) % SECTOR_BYTES or offset + len(data) > self.size_bytes:
            raise ValueError(f"a write of {len(data)} bytes at {offset} is not of whole sectors of this disk")
        first = offset // SECTOR_BYTES
        before = self.read(offset, len(data))
        os.pwrite(self._fd, data, offset)
        durable = through and self.flushes == Flushes.HONEST
        for i in range(len(data) // SECTOR_BYTES):
            if durable:
                self._earlier.pop(first + i, None)
            else:
                content = before[i * SECTOR_BYTES : (i + 1) * SECTOR_BYTES]
                self._earlier.setdefault(first + i, []).append(content)

    def flush(self) -> None:
        """All that was written before is durable."""
        self.flush_count += 1
        if self.flushes == Flushes.HONEST:
            self._earlier.clear()

    def cut(self, chance: random.Random) -> Loss:
        """The power fails: every sector that was not flushed gets one of its contents since the last flush.

        How likely a sector is to keep its newest contents is drawn once for the whole cut, so that all from "nothing
        arrived" to "nearly everything did" comes up.
        """
        keeps = chance.choice((0.0, 0.5, 0.9))
        lost = 0
        for sector in sorted(self._earlier):
            if chance.random() >= keeps:
                os.pwrite(self._fd, chance.choice(self._earlier[sector]), sector * SECTOR_BYTES)
                lost += 1
        loss = Loss(len(self._earlier), lost)
        self._earlier.clear()
        return loss


class DiskServer:
    """Serves one `Disk` on a Unix socket, one client after the other. It answers nothing any more after `cut`."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self.disk, self.path = disk, path
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True, name="disk")
        self._thread.start()

    def cut(self, chance: random.Random, power_off: Callable[[], object] = lambda: None) -> Loss:
        """The power fails, of the machine (by `power_off`) and of this disk; the next client sees what is left.

        Nothing is carried out any more from the moment before `power_off` is called: a flush that is under way then, or
        lies in the socket, must not be finished by a disk that outlives its machine.
        """
        with self._lock:
            power_off()
            if self._client is not None:
                # A client that has gone already has shut it down itself.
                with contextlib.suppress(OSError):
                    self._client.shutdown(socket.SHUT_RDWR)
                # What it had sent before and the server has not read yet never arrived.
                self._client = None
            return self.disk.cut(chance)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            if self._client is not None:
                with contextlib.suppress(OSError):
                    self._client.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.disk.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._client = client
            try:
                if self._greet(client):
                    self._transmit(client)
            except (ConnectionError, EOFError):
                pass
            except BaseException as error:
                self.failure = error
            finally:
                with self._lock:
                    self._client = None
                    client.close()

    def _greet(self, client: socket.socket) -> bool:
        """The newstyle handshake; False when the client gives up."""
        client.sendall(_NBD_MAGIC + _OPTION_MAGIC + struct.pack(">H", 3))
        _receive(client, 4)
        while True:
            magic, option, length = struct.unpack(">8sII", _receive(client, 16))
            if magic != _OPTION_MAGIC or length > 65536:
                raise ConnectionError("not an NBD option")
            _receive(client, length)
            if option in (_OPTION_INFO, _OPTION_GO):
                export = struct.pack(">HQH", 0, self.disk.size_bytes, _EXPORT_FLAGS)
                _answer_option(client, option, _REPLY_INFO, export)
                _answer_option(client, option, _REPLY_ACK)
                if option == _OPTION_GO:
                    return True
            elif option == _OPTION_ABORT:
                _answer_option(client, option, _REPLY_ACK)
                return False
            else:
                _answer_option(client, option, _REPLY_UNSUPPORTED)

    def _transmit(self, client: socket.socket) -> None:
        while True:
            magic, flags, command, handle, offset, length = struct.unpack(">IHH8sQI", _receive(client, 28))
            if magic != _REQUEST_MAGIC or length > MOST_REQUEST_BYTES:
                raise ConnectionError("not an NBD request")
            if command == _DISCONNECT:
                return
            if command == _FLUSH and self.disk.longest_flush_seconds:
                # Before it counts, and without the lock: the power may fail meanwhile.
                time.sleep(random.uniform(0.0, self.disk.longest_flush_seconds))
            payload = _receive(client, length) if command == _WRITE else b""
            with self._lock:
                if self._client is None:
                    return
                error, data = self._carry_out(command, flags, offset, length, payload)
            client.sendall(struct.pack(">II8s", _REPLY_MAGIC, error, handle) + data)

    def _carry_out(self, command: int, flags: int, offset: int, length: int, payload: bytes) -> tuple[int, bytes]:
        if command == _READ:
            return 0, self.disk.read(offset, length)
        if command == _WRITE:
            try:
                self.disk.write(offset, payload, through=bool(flags & _COMMAND_FUA))
            except ValueError:
                return errno.EINVAL, b""
            return 0, b""
        if command == _FLUSH:
            self.disk.flush()
            return 0, b""
        return errno.EINVAL, b""


def _answer_option(client: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
    client.sendall(struct.pack(">QIII", _OPTION_REPLY_MAGIC, option, kind, len(data)) + data)


def _receive(client: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = client.recv(min(length - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
