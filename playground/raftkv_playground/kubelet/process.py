"""Starting and stopping the processes of containers (Linux: sessions, pidfds, parent-death signals)."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCH = Path(__file__).with_name("launch.py")
KILL_WAIT_SECONDS = 5.0
"""How long a group that was sent SIGKILL is waited for."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``code`` is 128 + signal for one that was killed, as container runtimes report it."""

    code: int
    signal: int | None
    started: datetime.datetime
    finished: datetime.datetime


def launch_argv(argv: Sequence[str]) -> list[str]:
    return [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), "--", *argv]


class Process:
    """One running program in a session of its own, so that signals reach all that it started."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.started = datetime.datetime.now(datetime.UTC)
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    @classmethod
    def start(
        cls, argv: Sequence[str], env: Mapping[str, str], cwd: str, output: Path, input: int = subprocess.DEVNULL
    ) -> Process:
        """Standard output and error are appended to ``output``. Raises OSError."""
        with output.open("ab", buffering=0) as log:
            popen = subprocess.Popen(
                launch_argv(argv),
                stdin=input,
                stdout=log,
                stderr=log,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        return cls(popen)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        # What the program left behind in its session ends with it, as in a container. Before it is reaped, so that
        # its number cannot belong to another group yet.
        self.signal_group(signal.SIGKILL)
        status = self._popen.wait()
        number = -status if status < 0 else None
        finished = datetime.datetime.now(datetime.UTC)
        if not self._exit.done():
            self._exit.set_result(Exit(status if number is None else 128 + number, number, self.started, finished))

    @property
    def running(self) -> bool:
        return not self._exit.done()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def stop(self, grace_seconds: float) -> Exit:
        """SIGTERM to the program; SIGKILL to its whole session after ``grace_seconds``."""
        self.signal(signal.SIGTERM)
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes in the moment of success, and
        # a probe that kills its container is cancelled in just that moment.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(grace_seconds, 0)):
                return await self.wait()
        self.signal_group(signal.SIGKILL)
        async with asyncio.timeout(KILL_WAIT_SECONDS):
            return await self.wait()


async def run_once(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, timeout_seconds: float, output_limit_bytes: int = 10_240
) -> tuple[int, str]:
    """Run a probe's or hook's program to its end; its exit code and the start of its output. Raises TimeoutError
    (the program is killed then) and OSError."""
    child = await asyncio.create_subprocess_exec(
        *launch_argv(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            output, _ = await child.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
        raise
    return child.returncode or 0, output[:output_limit_bytes].decode(errors="replace")
