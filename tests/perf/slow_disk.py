"""A disk whose flushes take as long as one likes, for the comparison: the chaos tests' disk over a temporary folder."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))

from chaos_disks import Disk, Trouble, usable

_NOTICE_SECONDS = 0.05
"""By then the disk has seen its orders."""


class NoSlowDisk(Exception):
    """This machine cannot mount one; the text says why."""


class SlowDisk:
    """The mount; a context manager that leaves nothing behind.

    Raises:
        NoSlowDisk: when this machine cannot mount one.
    """

    def __init__(self, beneath: Path | None) -> None:
        if why := usable():
            raise NoSlowDisk(why)
        self._root = Path(tempfile.mkdtemp(prefix="slow-disk-", dir=beneath))
        self._disk = Disk(self._root)
        self.folder = self._disk.mount

    def __enter__(self) -> SlowDisk:
        try:
            self._disk.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    @contextmanager
    def _while(self, trouble: Trouble) -> Iterator[None]:
        with self._disk.trouble(trouble):
            time.sleep(_NOTICE_SECONDS)
            yield
        time.sleep(_NOTICE_SECONDS)

    @contextmanager
    def flushes_take(self, milliseconds: int) -> Iterator[None]:
        """Each flush takes so much longer."""
        with self._while(Trouble(flush_ms=milliseconds)):
            yield

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """No flush returns."""
        with self._while(Trouble(stalled=True)):
            yield
