"""The replica between core and log, where the log buffer is small."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from raftkv_node import adr
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.raft import Config, Entry, HardState, InitialState, Message, MessageType, Raft, initial_configuration
from raftkv_node.raft.messages import EntryBlock
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.replica import Replica

RING_BYTES = 8192 + (16 << 10)


def follower(folder: Path) -> tuple[Replica, RingLog, list[Message]]:
    """Member 2 of three on a ring that nobody drains but the test."""
    (folder / "data").mkdir()
    (folder / "pmem").mkdir()
    log, _ = adr.Log.open(
        adr.LogOptions(
            data_dir=folder / "data",
            identity=adr.Identity(1, 2, 2, bytes(16)),
            adr_path=folder / "pmem",
            adr_size_bytes=RING_BYTES,
            adr_size_limits_bytes=(1 << 10, 1 << 20),
            drain_interval_seconds=3600.0,
            minimum_durability=adr.Level.PROCESS,
        )
    )
    assert isinstance(log, RingLog)
    log._stop_thread()
    log._closing = False
    members = initial_configuration((1, 2, 3))
    raft = Raft(Config(2, random.Random(1).randint), InitialState(HardState(), 0, 0, members, 0, (), 0))
    sent: list[Message] = []
    workers: Any = None
    return Replica(raft, log, sent.extend, workers, Metrics()), log, sent


def append(first: int, count: int) -> Message:
    entries = [Entry(1, index, 0, b"v" * 1000) for index in range(first, first + count)]
    return Message(MessageType.APPEND, 1, 2, 1, first - 1, 1 if first > 1 else 0, entries=EntryBlock(entries))


def test_a_batch_larger_than_the_whole_log_buffer_gets_through_and_is_acknowledged_as_a_whole(tmp_path: Path) -> None:
    replica, log, sent = follower(tmp_path)
    try:
        for first in range(1, 41, 4):
            replica.step([append(first, 4)])
        for _ in range(10):
            replica.advance()
            if replica.raft.durable_index == 40:
                break
            assert not [one for one in sent if one.type == MessageType.APPEND_RESPONSE], "not all is durable"
            log.drain()
        assert replica.raft.durable_index == log.last_index == 40
        assert sent[-1].type == MessageType.APPEND_RESPONSE and sent[-1].index == 40
    finally:
        log.close(clean=False)
