"""A real process, killed without warning, again and again: what it acknowledged is there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from adr_crash import laboratory
from raftkv_node.adr import Identity, Level, Log, LogOptions

ROUNDS = 5
VICTIM = Path(__file__).with_name("adr_victim.py")


@pytest.mark.parametrize("mode", ["ring", "disk"])
def test_a_killed_process_has_lost_nothing_that_it_acknowledged(mode: str) -> None:
    folder = laboratory()
    memory, data = folder / "pmem", folder / "data"
    memory.mkdir()
    data.mkdir()
    ring = str(memory) if mode == "ring" else ""
    acknowledged = 0
    try:
        for number in range(ROUNDS):
            process = subprocess.Popen(
                [sys.executable, str(VICTIM), str(data), ring], stdout=subprocess.PIPE, text=True
            )
            try:
                assert process.stdout is not None
                opened = int(process.stdout.readline().split()[1])
                assert opened >= acknowledged
                for _ in range(20 + 30 * number):
                    process.stdout.readline()
                os.kill(process.pid, signal.SIGKILL)
                lines = process.stdout.read().split("\n")
            finally:
                process.kill()
                process.wait()
            whole = [int(line) for line in lines[:-1] if line]
            acknowledged = max([opened, *whole])
        log, recovered = Log.open(
            LogOptions(
                data_dir=data,
                adr_path=memory if ring else None,
                adr_size_bytes=4 << 20,
                identity=Identity(1, 2, 3, b"v" * 16),
                minimum_durability=Level.PROCESS,
            )
        )
        assert recovered.last_index >= acknowledged > 0
        found = log.read_entries(1, recovered.last_index + 1, 1 << 30)
        assert [item.index for item in found] == list(range(1, recovered.last_index + 1))
        assert all(item.payload == b"%d" % item.index * 40 for item in found)
        log.retire()
    finally:
        shutil.rmtree(folder)
