"""What a run consists of, and how bad its world is: settings, and shapes of runs chosen by a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from simulation_node import Timing


@dataclass(frozen=True)
class Faults:
    """How bad the world is; probabilities per message, per point of a turn, or per fault event."""

    lose: float = 0.03
    double: float = 0.03
    late: float = 0.05
    crash: float = 0.0008
    partition: float = 0.25
    one_way: float = 0.0
    """Some links of a member carry nothing in one direction."""
    sleep: float = 0.15
    change: float = 0.3
    transfer: float = 0.1
    freeze: float = 0.0
    power: float = 0.4
    """How many deaths of a process are power cuts of its machine (where there is a disk to lose)."""
    away: float = 0.0
    """A member is gone for long, when all others are there."""
    blackout: float = 0.0
    """The power of all machines at once."""
    zone_loss: float = 0.0
    """The power of all machines of one zone at once (where there are zones)."""
    zone_gone: float = 0.0
    """A zone is lost for good, at most once in a run, if all quorums can bear it (in a `HardWorld`)."""
    ring_loss: float = 0.0
    """A member's persistent memory is gone for ever (these and the next: per fault event, in a `HardWorld`)."""
    rot: float = 0.0
    """A bit flips in the files or the ring of a member that is down."""
    restore: float = 0.0
    """A member's volume is copied after a clean stop, or restored from the copy."""
    move: float = 0.0
    """A pod comes up on another host, and back."""
    stop: float = 0.0
    """A member is stopped well (SIGTERM)."""
    stall: float = 0.0
    """A disk does nothing for a while."""
    clock: float = 0.0
    """A member's clock jumps."""
    disk_error: float = 0.0
    """Per operation on a log's file while the member runs: it fails (at a start, more rarely)."""
    full: float = 0.0
    """A disk has no room for a while (per fault event)."""
    broken: float = 0.0
    """A disk fails in all that it does for a while."""
    fragile: float = 8.0
    """How much likelier a death is where something is half written."""
    restart: int = 600
    fault_every: int = 150


@dataclass(frozen=True)
class Setup:
    """What a run consists of, chosen by the seed unless a test says otherwise."""

    members: int = 3
    slow_disks: bool = False
    apply_before_durable: bool = False
    duration: int = 6000
    clients: int = 4
    flush: int = 25
    retention_entries: int = 25
    """How many entries members keep for those that lag."""
    segment_bytes: int = 12 << 10
    window_entries: int = 60
    drain: float = 0.05
    """How likely a ring that is not half full is drained at a tick."""
    faults: Faults = field(default_factory=Faults)
    timing: Timing = field(default_factory=Timing)
    zones: int = 0
    """Members stand in so many zones, by turns; 0: nobody knows of zones."""
    max_voters: int = 9
    promote_after: float = 0.0
    """Seconds of silence that cost a vote. Above 0 the leader changes roles by itself; such a cluster begins with one
    voter and learners."""
    leader_preference: tuple[str, ...] = ()
    unit_milliseconds: int = 10
    """What a unit of the world's time stands for."""
    latencies: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """One-way delays between zones (and within one), in units; where there is none it is 1 to 3."""
    skip: tuple[str, ...] = ()
    """Single faults of the run (`World.struck`) that are left out: a failure is shrunk to those that it needs."""

    @property
    def operated(self) -> bool:
        """Whether roles are the leader's to change."""
        return self.promote_after > 0


def churn(rng: random.Random) -> Setup:
    """Leaders come and go while entries travel one by one: the country of figure 8."""
    faults = Faults(
        lose=0.25, double=0.0, late=0.1, crash=0.004, change=0.0, partition=0.5, fault_every=40, restart=120
    )
    timing = Timing(election_ticks=5, heartbeat_ticks=1, max_append_bytes=1, max_inflight_messages=1)
    return Setup(5, rng.random() < 0.5, faults=faults, timing=timing)


def crashes(rng: random.Random) -> Setup:
    """Processes die at every corner and come back at once."""
    faults = Faults(lose=0.0, double=0.0, late=0.0, crash=0.02, partition=0.0, change=0.0, sleep=0.0, restart=60)
    flush = rng.choice((25, 100))
    return Setup(rng.choice((1, 3, 3)), rng.random() < 0.8, faults=faults, clients=8, flush=flush, duration=4000)


def freezes(rng: random.Random) -> Setup:
    """Leaders are cut off and stopped, and wake up believing that they lead."""
    faults = Faults(lose=0.0, crash=0.0, partition=0.0, sleep=0.0, change=0.1, freeze=0.8, fault_every=200)
    return Setup(rng.choice((3, 5)), rng.random() < 0.3, faults=faults, clients=8)


def changes(rng: random.Random) -> Setup:
    """The membership changes all the while, and so does the lead."""
    faults = Faults(lose=0.1, late=0.1, crash=0.002, change=1.0, transfer=0.3, fault_every=40, restart=150)
    return Setup(rng.choice((1, 3, 5)), rng.random() < 0.5, faults=faults, duration=4000)


def mixed(rng: random.Random) -> Setup:
    """A bit of everything, each fault often switched off altogether (swarm testing)."""
    faults = Faults(
        lose=rng.choice((0.0, 0.03, 0.15)),
        double=rng.choice((0.0, 0.03, 0.2)),
        late=rng.choice((0.0, 0.05, 0.3)),
        crash=rng.choice((0.0, 0.0008, 0.003)),
        partition=rng.choice((0.0, 0.25, 0.5)),
        sleep=rng.choice((0.0, 0.15, 0.3)),
        change=rng.choice((0.0, 0.3, 0.7)),
        transfer=rng.choice((0.0, 0.1, 0.3)),
    )
    slow = rng.random() < 0.5
    return Setup(rng.choice((1, 3, 3, 5)), slow, slow and rng.random() < 0.5, faults=faults)


PROFILES = (mixed, changes, mixed, churn, crashes, freezes)


def setup_of(seed: int) -> Setup:
    """Derive a run's shape from its seed."""
    return PROFILES[seed % len(PROFILES)](random.Random(seed ^ 0x5EED))
