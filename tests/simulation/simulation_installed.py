"""The simulation's pieces in the places of the production ones, with limits so small that they are met."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from raftkv_node import adr, compiled
from raftkv_node.adr import log as log_module
from raftkv_node.adr import opening as opening_module
from raftkv_node.raft import Config, Raft, Ready
from raftkv_node.server import applier as applier_module
from raftkv_node.server import identity as identities
from raftkv_node.server import installs as installs_module
from raftkv_node.server import kv as kv_module
from raftkv_node.server import member as member_module
from raftkv_node.server import openings as openings_module
from raftkv_node.server import replica as replica_module
from raftkv_node.server import transfers as transfers_module
from raftkv_node.server.ahead import Ahead
from raftkv_node.server.writes import WriteLimits
from raftkv_node.store import Store
from raftkv_node.store import snapshot as snapshot_module
from simulation_disk import SimRing
from simulation_member import RING_BYTES
from simulation_pieces import SimPeers

if TYPE_CHECKING:
    from simulation_member import Surroundings

MAX_APPEND_BYTES = 1500
SMALL_LIMITS = WriteLimits(max_batch_requests=10, max_batch_bytes=RING_BYTES // 10)
CHUNK_BYTES = 600
SMALL_TRANSFERS = {
    "CHUNK_BYTES": CHUNK_BYTES,
    "WINDOW_BYTES": 4 * CHUNK_BYTES,
    "MAX_TRANSFERS": 2,
    "STALL_SECONDS": 5.0,
    "LIFE_SECONDS": 15.0,
    "RESEND_SECONDS": 0.3,
    "RESEND_MAXIMUM_SECONDS": 1.0,
    "RETRY_SECONDS": 0.2,
    "RETRY_MAXIMUM_SECONDS": 1.0,
}
CLOCK_STEP_SECONDS = 0.0001
"""Each look at the clock takes so long: the budgets of a turn are used up by work, and the same in every run."""


class Observed:
    """A compiled core, none of whose methods can be replaced, with another `ready`."""

    def __init__(self, raft: Raft, ready: Callable[[], Ready]) -> None:
        self._raft = raft
        self.ready = ready

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raft, name)


@contextlib.contextmanager
def installed(world: Surroundings) -> Iterator[None]:
    """The simulation's pieces in the places of the production ones; `world.starting` is the node that starts now."""

    def observed(config: Config, initial: Any) -> Raft:
        node = world.starting
        raft = world.raft_class(config, initial)
        ready = raft.ready

        def watched() -> Ready:
            taken = ready()
            world.observe(node, taken)
            world.reach(node, "before messages")
            return taken

        if compiled("raftkv_node.raft.core"):
            return cast(Raft, Observed(raft, watched))
        raft.ready = watched  # type: ignore[method-assign]
        return raft

    raft_config = member_module.raft_config

    def small(*arguments: Any) -> Config:
        return dataclasses.replace(
            raft_config(*arguments),
            heartbeat_ticks=world.setup.timing.heartbeat_ticks,
            election_ticks=world.setup.timing.election_ticks,
            max_append_bytes=min(MAX_APPEND_BYTES, 12 * world.setup.timing.max_append_bytes),
            max_inflight_messages=world.setup.timing.max_inflight_messages,
            max_apply_bytes=1000,
        )

    def open_log(options: adr.LogOptions) -> tuple[adr.Log, adr.Recovered]:
        return world.starting.open_log(options)

    def open_store(path: Path, **options: Any) -> Store:
        return world.starting.open_store(path, **options)

    def token_bytes(size: int) -> bytes:
        return world.starting.rng.randbytes(size)

    clock = world.clock
    pieces: dict[Any, dict[str, Any]] = {
        member_module: {
            "Log": SimpleNamespace(open=open_log),
            "Store": SimpleNamespace(open=open_store),
            "Raft": observed,
            "raft_config": small,
            "Replica": world.replica_class,
            "Peers": lambda *_, **__: SimPeers(world.starting),
            "random": SimpleNamespace(SystemRandom=lambda: world.starting.rng),
            "monotonic": clock,
            "WriteLimits": lambda **_: SMALL_LIMITS,
            "Ahead": lambda *arguments: Ahead(*arguments, clock=clock),
            "Files": lambda: world.starting.files,
        },
        replica_module: {
            "monotonic": clock,
            "WINDOW_ENTRIES": world.setup.window_entries,
            "COMPACT_EVERY_ENTRIES": world.setup.window_entries // 3,
        },
        applier_module: {"monotonic": clock},
        transfers_module: SMALL_TRANSFERS,
        installs_module: {"CHUNK_BYTES": CHUNK_BYTES, "QUEUE_BYTES": 4 * CHUNK_BYTES},
        snapshot_module: {"PIECE_BYTES": CHUNK_BYTES // 2, "SINK_BYTES": 2 * CHUNK_BYTES},
        kv_module: {"monotonic": clock, "READS_PER_SLICE": 1},
        identities: {"Files": lambda: world.starting.files},
        openings_module: {"Files": lambda: world.starting.files},
        opening_module: {
            "Ring": lambda path, *rest: SimRing(world.starting.place, path, *rest),
            "secrets": SimpleNamespace(token_bytes=token_bytes),
        },
        log_module.Log: {"_start_thread": lambda *_: None},
    }
    with contextlib.ExitStack() as stack:
        for where, replaced in [*pieces.items(), *world.planted.items()]:
            stack.enter_context(patch.multiple(where, **replaced))
        yield


class Clock:
    """The world's time; each look at it takes a moment."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._moment, self._looks = 0.0, 0

    def __call__(self) -> float:
        moment = self._world.seconds()
        if moment != self._moment:
            self._moment, self._looks = moment, 0
        self._looks += 1
        return moment + self._looks * CLOCK_STEP_SECONDS
