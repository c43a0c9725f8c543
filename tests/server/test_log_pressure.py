"""A member whose disk stalls, with all of its parts in one thread: D6 as clients, operators and dashboards see it."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from adr_faults import FaultyDisk
from adr_harness import until
from raftkv_node.adr import ALARM_FULL, ALARM_STALLED, PRESSURE_FULL, PRESSURE_SHRINK
from raftkv_node.api.methods import Method
from raftkv_node.config import parse_arguments
from raftkv_node.pb import admin_pb2, rpc_pb2
from raftkv_node.server import gauges as gauges_module
from raftkv_node.server import identity as identities
from raftkv_node.server import member as member_module
from raftkv_node.server.admin import AdminService
from raftkv_node.server.answers import Answers
from raftkv_node.server.hello import Hello, HelloKind
from raftkv_node.server.identity import load_or_format
from raftkv_node.server.kv import KeySpace
from raftkv_node.server.lifecycle import identity_of
from raftkv_node.server.log import Logger
from raftkv_node.server.member import Member
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.probes import Probes
from raftkv_node.server.workers import Workers

RING_BYTES = 4 << 20
VALUE_BYTES = 8 << 10
LOAD = 64
"""Writes that clients have in flight."""


class Engine:
    """The part of the engine that answers; everything else is taken and forgotten."""

    def __init__(self) -> None:
        self.answers: dict[int, bytes] = {}
        self.errors: dict[int, str] = {}
        self.http: list[tuple[int, bytes]] = []

    def reply(self, call_ids: Sequence[int], messages: Sequence[bytes]) -> None:
        self.answers.update(zip(call_ids, messages, strict=True))

    def reply_errors(self, errors: Sequence[tuple[int, int, str]]) -> None:
        self.errors.update({call_id: text for call_id, _, text in errors})

    def http_reply(self, _call: int, status: int, _type: str, body: bytes, _headers: Any) -> None:
        self.http.append((status, body))

    def stats(self) -> dict[str, int]:
        return {}

    def peer_send(self, _frames: Sequence[tuple[int, bytes]]) -> list[int]:
        return []

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Lone:
    """The only member of a cluster, on a ring of 4 MiB."""

    def __init__(self, folder: Path, disk: FaultyDisk, lines: io.StringIO) -> None:
        for name in ("data", "pmem"):
            (folder / name).mkdir()
        arguments = ["--data-dir", str(folder / "data"), "--adr-path", str(folder / "pmem"), "--adr-size", "4Mi"]
        self.config = parse_arguments(
            [*arguments, "--minimum-durability", "process", "--adr-drain-interval", "10ms"], {}
        )
        identity, founding = identity_of(
            self.config, load_or_format(self.config.data_dir, self.config.number, self.config.name)
        )
        self.identity, self.started, self.logger = identity, monotonic(), Logger(stream=lines)
        self.engine: Any = Engine()
        self.metrics, self.workers, self.answers = Metrics(), Workers(1, lambda: None), Answers(self.engine)
        self.member = Member(
            self.config,
            identity,
            founding,
            transport=self.engine,
            answers=self.answers,
            workers=self.workers,
            metrics=self.metrics,
            logger=self.logger,
        )
        self.keys = KeySpace(self.config, self.member, self.answers, self.workers, self.metrics)
        self.now = monotonic()
        self.calls = 0
        until(lambda: self.turn() or self.member.leader_id)

    def turn(self, seconds: float = 0.1) -> None:
        self.now += seconds
        self.member.tick(self.now)
        while self.member.advance(self.now):
            pass
        self.keys.serve(monotonic() + 1.0)
        self.answers.flush()

    def put(self, number: int = 1) -> list[int]:
        ids = list(range(self.calls + 1, self.calls + 1 + number))
        self.calls += number
        request = rpc_pb2.PutRequest(key=b"k%d" % self.calls, value=random.randbytes(VALUE_BYTES)).SerializeToString()
        self.keys.handle(Method.PUT, ids, [request] * number, self.now)
        self.turn(0.0)
        return ids

    def get(self) -> int:
        self.calls += 1
        self.keys.handle(Method.RANGE, [self.calls], [rpc_pb2.RangeRequest(key=b"k").SerializeToString()], self.now)
        self.turn(0.0)
        return self.calls

    def fill(self, pressure: float) -> None:
        while self.member.log.pressure() < pressure:
            assert self.put()[0] in self.engine.answers

    def describe(self) -> admin_pb2.DescribeResponse:
        answer: list[bytes] = []
        call: Any = SimpleNamespace(ok=answer.append)
        host: Any = self
        AdminService(host)._describe(call, admin_pb2.DescribeRequest(), 0.0)
        return admin_pb2.DescribeResponse.FromString(answer[0])

    def health(self, target: str = "/health") -> dict[str, str]:
        node: Any = self
        Probes(node).handle(0, "GET", target, self.now)
        self.turn(0.0)
        found: dict[str, str] = json.loads(self.engine.http[-1][1])
        return found

    def close(self) -> None:
        self.workers.close()
        self.member.close(clean=False)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def lines() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def lone(tmp_path: Path, disk: FaultyDisk, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lone]:
    options = member_module.LogOptions
    monkeypatch.setattr(
        member_module,
        "LogOptions",
        lambda **given: dataclasses.replace(options(**given), files=disk, stalled_after_seconds=0.1),
    )
    member = Lone(tmp_path, disk, lines)
    yield member
    disk.flowing.set()
    member.close()


@pytest.mark.interpreted("watches what is taken")
def test_d6_writes_wait_at_high_water_while_reads_go_on_and_everything_recovers(
    lone: Lone, disk: FaultyDisk, lines: io.StringIO
) -> None:
    log, engine = lone.member.log, lone.engine
    assert lone.put()[0] in engine.answers
    until(lambda: log.lag_seconds() == 0)
    assert lone.health() == {"health": "true", "reason": ""}
    disk.flowing.clear()

    lone.fill(PRESSURE_SHRINK)
    taken: list[int] = []
    take = lone.member.writes.take
    lone.member.writes.take = lambda *given, **named: taken.append(named["small"]) or take(*given, **named)  # type: ignore[method-assign, func-returns-value]
    lone.put()
    assert taken == [True], "from 75% on entries are made smaller"
    until(lambda: lone.turn(0.0) or any(ALARM_STALLED in alarm for alarm in lone.describe().alarms))
    assert lone.health() == {"health": "true", "reason": ""}, "writes still go on"

    lone.fill(PRESSURE_FULL)
    durable, waiting = log.durable_lsn, lone.put(LOAD)
    for _ in range(5):
        lone.turn()
    assert not engine.answers.keys() & set(waiting), "from 90% on proposals wait"
    assert log.durable_lsn == durable
    assert log.pressure() < 1.0
    assert lone.get() in engine.answers, "reads go on"
    until(lambda: lone.turn(0.0) or ALARM_FULL in log.alarms())
    assert lone.health() == {"health": "false", "reason": f"ALARM {ALARM_FULL}"}
    assert lone.health(f"/health?exclude={ALARM_FULL}")["health"] == "true"
    assert ALARM_FULL in lines.getvalue()

    late = lone.put()
    for _ in range(80):
        lone.turn()
    assert {engine.errors[one] for one in [*waiting, *late]} == {"etcdserver: request timed out"}

    figures = gauges_module.gauges(lone)  # type: ignore[arg-type]
    assert figures.counters["adr_ring_backpressure_seconds"] > 0
    assert (figures.values["adr_drain_stalled"], figures.values["adr_degraded"]) == (1.0, 1.0)

    disk.flowing.set()
    until(lambda: lone.turn(0.0) or not log.alarms())
    assert lone.put()[0] in engine.answers
    assert lone.describe().alarms == []
    assert lone.health() == {"health": "true", "reason": ""}
    assert "the log has recovered" in lines.getvalue()
    figures = gauges_module.gauges(lone)  # type: ignore[arg-type]
    assert (figures.values["adr_drain_stalled"], figures.values["adr_degraded"]) == (0.0, 0.0)


def test_the_figures_of_the_drain_are_there(lone: Lone) -> None:
    lone.put(3)
    until(lambda: lone.member.log.lag_seconds() == 0)
    figures = gauges_module.gauges(lone)  # type: ignore[arg-type]
    assert figures.values["adr_drain_last_success_timestamp_seconds"] > 1e9
    assert figures.histograms["adr_drain_duration_seconds"].count > 0
    assert figures.histograms["adr_drain_fsync_duration_seconds"].count > 0
    assert figures.counters["adr_log_fence"] > 0
    assert set(figures.labelled_counters["adr_drain_errors"][1]) == {("space",), ("io",), ("sync",)}


def test_m6_a_disk_that_cannot_be_noted_is_refused_and_ends_nobody(
    lone: Lone, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk ended a running member when a new one introduced itself."""
    identity = lone.member.identity
    hello = Hello(HelloKind.MEMBER, identity.cluster_id, 0xB0B, identity.member_id, b"n" * 16, 1, 7, "http://b:2380")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(identities, "save", full)
        reason = lone.member.introductions.refusal(hello)
    assert reason is not None and "cannot note that disk now (No space left on device)" in reason
    assert "a member's disk cannot be noted" in lines.getvalue()
    other = replace(hello, disk_uuid=b"m" * 16, nonce=8)
    assert lone.member.introductions.refusal(other) is None, "nothing of the refused hello was kept"
    assert "already been bootstrapped" in str(lone.member.introductions.refusal(hello))


@pytest.mark.interpreted("changes the core")
def test_a_commit_that_a_member_cannot_be_told_costs_one_try(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a follower that was stopped and whose window was full the leader took turns without a pause."""
    member = lone.member
    monkeypatch.setattr(type(member.raft), "commit_untold", property(lambda _raft: True))
    lone.put()
    assert member.tell_commit_at is not None
    lone.turn(0.01)
    for _ in range(3):
        assert member.tell_commit_at is None, "it would be due at once, again and again"
        lone.turn(0.01)
    lone.put()
    assert member.tell_commit_at is not None, "the next commit is another one"
