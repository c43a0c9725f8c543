"""What a put costs a whole member, in instructions of the processor: interpreter, engine, store, log, all threads.

`test_turns.py` counts what Python executes in five members, this what all of it comes to in one: a loss in the engine,
in a codec or in a library is seen here alone. A member runs under callgrind, which counts only while it is told to;
clients and start are not in it. On the same build the counts repeat within a few per cent, on any machine, since
callgrind's processor is always the same. Where a limit is passed on purpose, write the new number here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from loader import run_plan
from processes import NodeProcess, free_ports, wait_until
from raftkv_node import compiled
from raftkv_node.bench import loads
from raftkv_node.bench.target import Target, parse_endpoints

LOSS = 1.2
"""A fifth more than measured fails."""
LONE_PUT = 175_000 if compiled() else 495_000
"""Instructions for a put that is alone (Debian's CPython 3.11)."""
PUT_OF_MANY = 28_500 if compiled() else 47_000
"""The same for each of a thousand in flight."""
FILLED = 5_000
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)

pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind (`make packages`)"),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the numbers are of CPython 3.11"),
]


class Counted(NodeProcess):
    """A member under callgrind."""

    def command(self) -> list[str]:
        counts = f"--callgrind-out-file={self.folder}/counts.%p"
        return ["valgrind", "--tool=callgrind", "--instr-atstart=no", counts, sys.executable, *super().command()]

    def _tell(self, *words: str) -> None:
        assert self.process is not None
        subprocess.run(["callgrind_control", *words, str(self.process.pid)], check=True, capture_output=True)

    def puts(self, in_flight: int, number: int, new_per_mille: int = 500) -> None:
        run_plan(
            Target(parse_endpoints(self.endpoint)[0]),
            loads.put(),
            in_flight=in_flight,
            requests=number,
            existing_keys=FILLED,
            new_per_mille=new_per_mille,
            seed=7,
        )

    def instructions(self, in_flight: int, number: int) -> float:
        """For one of so many puts."""
        for old in self.folder.glob("counts.*"):
            old.unlink()
        self._tell("-i", "on")
        self.puts(in_flight, number)
        self._tell("-i", "off")
        self._tell("--dump")
        wait_until("counts", self._totals)
        return sum(self._totals()) / number

    def _totals(self) -> list[int]:
        files = list(self.folder.glob("counts.*"))
        return [int(total) for file in files for total in _TOTALS.findall(file.read_text())]


@pytest.fixture(scope="module")
def member() -> Iterator[Counted]:
    with tempfile.TemporaryDirectory(prefix="counted-") as folder, tempfile.TemporaryDirectory(dir="/dev/shm") as rings:
        counted = Counted("n1", Path(folder), *free_ports(2))
        counted.arguments = [
            *("--initial-cluster", f"n1={counted.peer_url}", "--adr-path", rings, "--minimum-durability", "process")
        ]
        counted.start()
        try:
            wait_until("healthy member", counted.healthy)
            counted.puts(1000, FILLED, new_per_mille=1000)
            yield counted
        finally:
            counted.kill()


@pytest.mark.parametrize(("in_flight", "number", "measured"), [(1, 300, LONE_PUT), (1000, 5_000, PUT_OF_MANY)])
def test_a_put_costs_a_member_no_more_instructions_than_it_did(
    member: Counted, in_flight: int, number: int, measured: int
) -> None:
    counted = min(member.instructions(in_flight, number) for _ in range(3))
    assert counted <= LOSS * measured, f"{counted:.0f} instructions for a put, {measured} were measured"
    assert counted >= measured / 2, "the count misses most of the work"
