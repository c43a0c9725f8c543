"""What every process of the playground does at its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process ``number`` when its parent dies (Linux ``prctl(2)``, PR_SET_PDEATHSIG).

    To be called in the child, between fork and exec or right at its start. The parent may have died before the call;
    comparing ``parent_pid`` closes that gap. The setting survives exec of an ordinary program.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def log_to_stderr(component: str, level: str = "INFO") -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format=f"%(asctime)s.%(msecs)03d %(levelname).1s {component}: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )


async def end_on_signals(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` until it ends or SIGTERM or SIGINT comes; then cancel it and wait for its clean-up."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
