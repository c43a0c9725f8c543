"""The runs of the soak: what decides one, what it is played in, and what came of it."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from simulation_checks import Violation
from simulation_cluster import SHAPES, MemberWorld
from simulation_hard import HardWorld, failing_disks, losses, zones
from simulation_node import Timing
from simulation_setup import Faults, Setup

SHOWN_TRACE_LINES = 60
RUN_SECONDS = 600
"""A run that takes so long hangs; most take two."""
WORLDS: dict[str, type[MemberWorld]] = {"member": MemberWorld, "hard": HardWorld}
TURNS: tuple[tuple[str, Callable[[random.Random], Setup]], ...] = (
    *(("hard", shape) for shape in (losses, losses, losses, failing_disks, failing_disks, zones)),
    *(("member", shape) for shape in SHAPES),
)
"""What seeds play, by turns: the lossy shape most often, since most of the goals are met there."""
GOALS = (
    "elections",
    "membership changes",
    "automatic promotions",
    "snapshots installed",
    "rings lost",
    "drains cut by a crash",
    "disk errors",
    "power cuts of all members",
)
"""What a long soak must have had enough of (`--goal`)."""
WEATHER = (
    "messages lost",
    "messages doubled",
    "messages late",
    "messages out of order",
    "messages cut off",
    "full partitions",
    "bridged partitions",
    "one-way cuts",
    "pauses",
    "zones lost",
    "deaths of a process or machine",
    "moved pods refused",
    "stopped well",
    "disk stalls",
    "full disks",
    "broken disks",
    "clock jumps",
    "corrupt records refused",
    "corrupt rings refused",
    "restored disks refused",
    "torn tails",
    "ring full",
    "histories checked",
    "operations in checked histories",
    "watch events in checked histories",
)
"""What else must have happened at all."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: all that decides what happens in it."""

    world: str
    seed: int
    setup: Setup

    def line(self) -> str:
        """One line that `parse` reads."""
        setup: dict[str, Any] = {}
        for field in dataclasses.fields(Setup):
            value = getattr(self.setup, field.name)
            if field.name == "latencies":
                value = [[*pair, delay] for pair, delay in value.items()]
            setup[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        return json.dumps({"world": self.world, "seed": self.seed, "setup": setup}, separators=(",", ":"))

    @staticmethod
    def parse(line: str) -> Run:
        raw = json.loads(line)
        setup = dict(raw["setup"])
        setup["faults"], setup["timing"] = Faults(**setup["faults"]), Timing(**setup["timing"])
        setup["latencies"] = {(a, b): delay for a, b, delay in setup["latencies"]}
        for name in ("skip", "leader_preference"):
            setup[name] = tuple(setup[name])
        return Run(raw["world"], raw["seed"], Setup(**setup))


@dataclasses.dataclass
class Outcome:
    """What came of a run."""

    run: Run
    counts: Counter[str]
    seconds: float
    rule: str = ""
    text: str = ""
    trace: tuple[str, ...] = ()
    struck: tuple[str, ...] = ()
    """The single faults that happened, for the shrinking of a failure."""


def run_of(seed: int) -> Run:
    """The run of a seed: worlds and shapes by turns."""
    world, shape = TURNS[seed % len(TURNS)]
    return Run(world, seed, shape(random.Random(seed ^ 0x50AC)))


class HangError(BaseException):
    """A run does not end. (No code of a member may catch it.)"""


def play(run: Run) -> Outcome:
    """Acts a run out."""
    began = time.process_time()
    world = WORLDS[run.world](run.seed, run.setup)
    rule = text = ""
    try:
        world.run()
    except Violation as violation:
        rule, text = violation.rule, str(violation)
    except HangError:
        rule, text = "HANGS", f"HANGS: the run has not ended within {RUN_SECONDS} s; it is at {world.now}"
    except Exception as error:  # a simulator that fails has found something, too
        rule, text = "SIMULATOR", f"SIMULATOR: {type(error).__name__}: {error}"
    passed, trace = time.process_time() - began, tuple(world.trace[-SHOWN_TRACE_LINES:])
    return Outcome(run, counts_of(world), passed, rule, text, trace, tuple(world.struck) if rule else ())


def play_in_time(run: Run) -> Outcome:
    """Acts a run out in a process that does nothing else: one that hangs is a failure."""

    def hangs(_signal: int, _frame: FrameType | None) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(RUN_SECONDS)
    try:
        return play(run)
    finally:
        signal.alarm(0)


def counts_of(world: MemberWorld) -> Counter[str]:
    """What happened."""
    counts = Counter(world.checks.counts)
    counts.update(
        {
            "events": world.sequence,
            "steps of members checked": world.checks.steps,
            "simulated seconds": round(world.seconds()),
            "elections": len(world.checks.leaders),
            "power cuts of all members": world.blackouts,
            "zones lost": world.zone_losses,
            "deaths of a process or machine": world.crashes,
            "writes acknowledged": world.acknowledged,
            "linearizable reads": world.reads_served,
            "serializable reads": world.serializable,
            "entries committed": len(world.checks.committed) - 1,
        }
    )
    return counts
