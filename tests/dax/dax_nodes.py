"""Runs `raftkv` commands inside the guest: imports once, forks once for each command.

Under emulation the imports of a node take some ten seconds; all that a boot starts share them so. Each line of standard
input is a command: the file for its output, then the arguments of `raftkv`, separated by tabs. It runs in a session of
its own; its process id goes to a file beside its output, and so does its exit code when it has ended.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

# Not for use here: they are what the commands would import each for itself.
import raftkv_node.adr.tools
import raftkv_node.server.lifecycle  # noqa: F401
from raftkv_node.cli import main as run_command


def _command(output: str, arguments: list[str]) -> int:
    """The exit code of a command whose output goes to `output`."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(file, standard)
    try:
        return run_command(arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _start(output: str, arguments: list[str]) -> None:
    watcher = os.fork()
    if watcher:
        return
    os.setsid()
    command = os.fork()
    if command == 0:
        os._exit(_command(output, arguments))
    Path(output).with_suffix(".pid").write_text(f"{command}\n")
    _, status = os.waitpid(command, 0)
    part = Path(output).with_suffix(".code.part")
    part.write_text(f"{os.waitstatus_to_exitcode(status)}\n")
    part.rename(Path(output).with_suffix(".code"))
    os._exit(0)


for line in sys.stdin:
    command_output, *command_arguments = line.rstrip("\n").split("\t")
    _start(command_output, command_arguments)
