"""The replica between core and log, where the log buffer is small."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from raftkv_node import adr
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.raft import (
    Config,
    Entry,
    FetchRequest,
    HardState,
    InitialState,
    Message,
    MessageType,
    Raft,
    initial_configuration,
)
from raftkv_node.raft.messages import EntryBlock
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.replica import EntriesGone, Replica

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


@pytest.mark.parametrize("survive", [1, 2])
def test_a_batch_that_is_cut_off_commits_nothing_that_it_was_to_replace(tmp_path: Path, survive: int) -> None:
    """A hard state stood in front of the entries that its commit index was about. Where a crash left it alone, entries
    of an older term at their places counted as committed, and were applied. Found by the simulation."""
    replica, log, _ = follower(tmp_path)
    replica.step([append(1, 4)])
    replica.advance()
    whole = log.append

    def cut_off(batch: Any) -> int:
        whole(batch[:survive])
        raise KeyboardInterrupt

    log.append = cut_off  # type: ignore[method-assign]
    newer = [Entry(2, index, 0, b"newer") for index in (3, 4)]
    with pytest.raises(KeyboardInterrupt):
        replica.step([Message(MessageType.APPEND, 3, 2, 2, 2, 1, commit=4, entries=EntryBlock(newer))])
        replica.advance()
    log.close(clean=False)
    log, found = adr.Log.open(log._options)
    log.close(clean=False)
    assert found.hard_state.term == 2
    committed = [one for one in found.entries if one.index <= found.hard_state.commit]
    assert [one.term for one in committed] == ([1, 1] if survive == 1 else [1, 1, 2])[: len(committed)]
    assert len(committed) >= 2


def test_the_commit_index_follows_with_the_next_batch(tmp_path: Path) -> None:
    replica, log, _ = follower(tmp_path)
    try:
        replica.step([Message(MessageType.APPEND, 1, 2, 1, 0, 0, commit=2, entries=append(1, 2).entries)])
        replica.advance()
        assert (replica.raft.commit_index, log._index.hard_state[2]) == (2, 0)
        replica.step([append(3, 1)])
        replica.advance()
        assert log._index.hard_state[2] == 2
    finally:
        log.close(clean=False)


def test_a_leaders_entries_are_on_their_way_before_its_own_append(tmp_path: Path) -> None:
    """The others work while the leader writes its own log: on a lone put that is what it waits for."""
    replica, log, sent = follower(tmp_path)
    there: list[tuple[int, int]] = []
    replica._flush = lambda: there.append((sent[-1].entries.items[-1].index, log.last_index))
    try:
        raft = replica.raft
        raft.campaign()
        replica.advance()
        replica.step([Message(MessageType.PRE_VOTE_RESPONSE, 1, 2, 1)])
        replica.advance()
        replica.step([Message(MessageType.VOTE_RESPONSE, 1, 2, raft.term)])
        replica.advance()
        assert raft.is_leader
        replica.step([Message(MessageType.APPEND_RESPONSE, one, 2, raft.term, 1) for one in (1, 3)])
        replica.advance()
        there.clear()
        index = raft.propose(b"put").index
        replica.advance()
        assert there == [(index, index - 1)] and log.last_index == index
    finally:
        log.close(clean=False)


def test_old_entries_are_found_however_large_the_one_before_them_is(tmp_path: Path) -> None:
    """A member that lagged behind the memory was never brought up again where two large entries followed each other:
    the one before the first, read for its term, used up the bytes of the fetch."""
    (tmp_path / "data").mkdir()
    options = adr.LogOptions(data_dir=tmp_path / "data", identity=adr.Identity(1, 1, 1, bytes(16)))
    log, _ = adr.Log.open(options)
    try:
        lsn = log.append([adr.entry(1, index, 0, bytes(200_000)) for index in range(1, 5)])
        wait_until("flush", lambda: log.durable_lsn >= lsn)
        members = initial_configuration((1, 2, 3))
        raft = Raft(Config(1, random.Random(1).randint), InitialState(HardState(), 0, 0, members, 0, (), 0))
        workers: Any = None
        replica = Replica(raft, log, lambda _: None, workers, Metrics())
        for first in range(1, 5):
            found = replica._read(FetchRequest(2, first, 1000))
            assert found.previous_term == (1 if first > 1 else 0)
            assert [one.index for one in found.entries] == [first]
        with pytest.raises(EntriesGone, match="entry 5"):
            replica._read(FetchRequest(2, 5, 1000))
    finally:
        log.close(clean=False)
