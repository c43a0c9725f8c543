"""A disk for each member that can be slow, stalled, full or failing: a mount of `slowfs` over a folder.

`tests/tools/slowfs` is the program; here is how it is built, mounted, told and ended. Several troubles on one disk
stand together: the worst of each counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CRATE = Path(__file__).parents[1] / "tools" / "slowfs"
LATELY_SECONDS = 15.0
"""A member may end because of its disk until so long after the trouble: it tries again several times first."""
MOUNT_SECONDS = 20.0


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a disk."""

    flush_ms: int = 0
    """Each flush takes so much longer."""
    stalled: bool = False
    """No flush returns."""
    fail_flushes: int = 0
    """So many flushes fail with EIO."""
    room_bytes: int | None = None
    """So many more bytes fit, then ENOSPC."""


def usable() -> str:
    """Why this machine cannot mount such a disk; empty if it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no access to /dev/fuse"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "neither root nor fusermount3"
    if shutil.which("cargo") is None:
        return "no cargo to build it with"
    return ""


@cache
def build() -> Path:
    """The program, built if need be."""
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--locked", "--manifest-path", str(CRATE / "Cargo.toml")],
        check=True,
    )
    return CRATE / "target" / "release" / "slowfs"


class Disk:
    """One mount, `mount`, over a folder beside it."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "disk"
        self._backing = folder / "backing"
        self._control = folder / "disk-control"
        self._lock = threading.Lock()
        self._standing: list[Trouble] = []
        self._healed_at = float("-inf")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.mount.mkdir(parents=True)
        self._backing.mkdir()
        self._control.write_text("")
        self._process = subprocess.Popen(
            [str(build()), str(self._backing), str(self.mount), str(self._control)], stdin=subprocess.DEVNULL
        )
        end = time.monotonic() + MOUNT_SECONDS
        while not os.path.ismount(self.mount):
            assert self._process.poll() is None, f"slowfs ended with {self._process.returncode}"
            assert time.monotonic() < end, "slowfs does not mount"
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the mount; what is open on it fails."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        subprocess.run(["umount", "--lazy", str(self.mount)], check=False, stderr=subprocess.DEVNULL)
        self._process = None

    def troubled_lately(self) -> bool:
        """Whether an end of the member's process may come from its disk."""
        with self._lock:
            return bool(self._standing) or time.monotonic() - self._healed_at < LATELY_SECONDS

    @contextmanager
    def trouble(self, trouble: Trouble) -> Iterator[None]:
        """While it lasts."""
        with self._lock:
            self._standing.append(trouble)
            self._tell()
        try:
            yield
        finally:
            with self._lock:
                self._standing.remove(trouble)
                self._healed_at = time.monotonic()
                self._tell()

    def _tell(self) -> None:
        """Writes the control file anew; the program looks at it many times a second."""
        rooms = [one.room_bytes for one in self._standing if one.room_bytes is not None]
        lines = [
            f"flush_ms {max((one.flush_ms for one in self._standing), default=0)}",
            f"stalled {int(any(one.stalled for one in self._standing))}",
            f"fail_flushes {max((one.fail_flushes for one in self._standing), default=0)}",
            f"room_bytes {min(rooms, default=-1)}",
        ]
        fresh = self._control.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self._control)
