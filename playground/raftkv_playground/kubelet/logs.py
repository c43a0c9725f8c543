"""What containers print: a file per container and start, and an index of when.

A process writes straight into its file, so that a slow kubelet never blocks a pod and nothing is lost when the
kubelet dies. The kubelet notes once a second how long each growing file is; from these notes come ``--since`` and
``--timestamps``, which are therefore exact to about ``NOTE_SECONDS``. A file that grows past ``LOG_LIMIT_BYTES`` has
its older half cut off, in place (the program appends, so it goes on undisturbed; what is printed during the cut may
be lost).
"""

from __future__ import annotations

import asyncio
import datetime
import os
from bisect import bisect_right
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from raftkv_playground.objects import format_time

NOTE_SECONDS = 1.0
LOG_LIMIT_BYTES = 64 << 20
FOLLOW_SECONDS = 0.2
CHUNK_BYTES = 1 << 16
TAIL_MESSAGE_LINES = 80
TAIL_MESSAGE_BYTES = 2048
"""Kubernetes' limits for a termination message that is taken from the log."""
KEPT_STARTS = 2
"""Logs kept per container: the running start and the one before."""


@dataclass(slots=True)
class LogFile:
    """One start's output. ``notes`` are (seconds since the epoch, length by then), both growing."""

    path: Path
    notes: list[tuple[float, int]] = field(default_factory=list)
    closed: bool = False

    def note(self, moment: float) -> None:
        """Remember the file's length now; cut the file if it is too long."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size > LOG_LIMIT_BYTES:
            size = self._cut()
        if not self.notes or self.notes[-1][1] != size:
            self.notes.append((moment, size))

    def _cut(self) -> int:
        with self.path.open("r+b") as file:
            file.seek(-LOG_LIMIT_BYTES // 2, os.SEEK_END)
            file.readline()
            rest = file.read()
            file.seek(0)
            file.write(rest)
            file.truncate()
        self.notes.clear()
        return len(rest)

    def offset_since(self, moment: float) -> int:
        """Where what was printed after ``moment`` begins."""
        index = bisect_right(self.notes, moment, key=lambda note: note[0])
        return self.notes[index - 1][1] if index else 0

    def time_at(self, offset: int) -> float:
        """When the byte at ``offset`` was printed, about."""
        index = bisect_right(self.notes, offset, key=lambda note: note[1])
        if index < len(self.notes):
            return self.notes[index][0]
        return datetime.datetime.now(datetime.UTC).timestamp()

    def tail_offset(self, lines: int, start: int = 0) -> int:
        """Where the last ``lines`` lines begin, not before ``start``."""
        if lines <= 0:
            return self.size()
        with self.path.open("rb") as file:
            position, found, last = file.seek(0, os.SEEK_END), 0, True
            while position > start:
                step = min(CHUNK_BYTES, position - start)
                position -= step
                file.seek(position)
                block = file.read(step)
                if last and block.endswith(b"\n"):
                    block = block[:-1]
                last = False
                while (cut := block.rfind(b"\n")) >= 0:
                    found += 1
                    if found == lines:
                        return position + cut + 1
                    block = block[:cut]
        return start

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def message(self) -> str:
        """The end of the log as a termination message."""
        start = max(self.tail_offset(TAIL_MESSAGE_LINES), self.size() - TAIL_MESSAGE_BYTES) if self.size() else 0
        if not self.size():
            return ""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(TAIL_MESSAGE_BYTES).decode(errors="replace")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """As ``kubectl logs`` asks: ``tail_lines`` None is all, ``since`` seconds since the epoch."""

    follow: bool = False
    tail_lines: int | None = None
    since: float | None = None
    timestamps: bool = False
    limit_bytes: int | None = None


async def read(log: LogFile, options: LogOptions) -> AsyncIterator[bytes]:
    """The log's bytes; with ``follow`` until the container has ended and all is read."""
    start = log.offset_since(options.since) if options.since is not None else 0
    if options.tail_lines is not None and log.size():
        start = log.tail_offset(options.tail_lines, start)
    sent = 0
    async for offset, block in _blocks(log, start, options.follow):
        if options.timestamps:
            block = _stamp(log, offset, block)
        if options.limit_bytes is not None and sent + len(block) >= options.limit_bytes:
            yield block[: options.limit_bytes - sent]
            return
        sent += len(block)
        yield block


async def _blocks(log: LogFile, start: int, follow: bool) -> AsyncIterator[tuple[int, bytes]]:
    """(offset, whole lines), the last one perhaps without its end."""
    offset, rest = start, b""
    while True:
        ended = log.closed
        size = log.size()
        if size < offset:
            offset, rest = size, b""  # it was cut
        if size > offset:
            with log.path.open("rb") as file:
                file.seek(offset)
                data = file.read(CHUNK_BYTES)
            begin = offset - len(rest)
            offset += len(data)
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                yield begin, whole + newline
            await asyncio.sleep(0)
            continue
        if ended or not follow:
            if rest:
                yield offset - len(rest), rest
            return
        await asyncio.sleep(FOLLOW_SECONDS)


def _stamp(log: LogFile, offset: int, block: bytes) -> bytes:
    lines = []
    for line in block.splitlines(keepends=True):
        moment = datetime.datetime.fromtimestamp(log.time_at(offset), datetime.UTC)
        lines.append(f"{format_time(moment)[:-1]}.000000000Z ".encode() + line)
        offset += len(line)
    return b"".join(lines)


class LogKeeper:
    """All logs of a pod: by container, the newest start last."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, list[LogFile]] = {}

    def begin(self, container: str, number: int) -> LogFile:
        """The file for the container's start ``number``; older ones than the one before it are removed."""
        path = self._directory / container / f"{number}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        files = self._files.setdefault(container, [])
        files.append(LogFile(path))
        while len(files) > KEPT_STARTS:
            files.pop(0).path.unlink(missing_ok=True)
        return files[-1]

    def recover(self, container: str) -> None:
        """Find the logs that a kubelet before this one kept."""
        found = sorted((self._directory / container).glob("*.log"), key=lambda path: int(path.stem))
        self._files[container] = [LogFile(path, closed=True) for path in found[-KEPT_STARTS:]]

    def find(self, container: str, previous: bool = False) -> LogFile | None:
        files = self._files.get(container, [])
        wanted = 2 if previous else 1
        return files[-wanted] if len(files) >= wanted else None

    def note(self) -> None:
        moment = datetime.datetime.now(datetime.UTC).timestamp()
        for files in self._files.values():
            if files and not files[-1].closed:
                files[-1].note(moment)
