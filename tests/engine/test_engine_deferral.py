"""Peer frames that may wait: alone they end a poll only when enough are there, or after a while."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from raftkv_node import _engine as native

MAY_WAIT, URGENT = b"\x08may wait", b"\x01urgent"
LONG_SECONDS = 30.0
"""Nothing here waits for so long."""


class Pair:
    """Two engines and a link between them; one sends, the other polls in this thread."""

    def __init__(self, rounds: str, **options: int) -> None:
        self.receiver = native.Engine(rounds=rounds, deferrable_frames=MAY_WAIT[:1], **options)  # type: ignore[arg-type]
        self.sender = native.Engine()
        port = self.receiver.listen_peer("127.0.0.1", 0)
        self.receiver.start()
        self.sender.start()
        self.sender.peer_connect(1, "127.0.0.1", port, b"hello")
        self._accept()
        while not any(event[0] == native.EV_PEER_UP for event in self.sender.poll(LONG_SECONDS).events):
            pass

    def _accept(self) -> None:
        while True:
            for event in self.receiver.poll(LONG_SECONDS).events:
                if event[0] == native.EV_PEER_INBOUND:
                    self.receiver.peer_accept(event[1], b"welcome")
                    self.receiver.flush()
                    return

    def send(self, *frames: bytes) -> None:
        assert min(self.sender.peer_send([(1, frame) for frame in frames])) >= 0

    def close(self) -> None:
        for engine in (self.sender, self.receiver):
            engine.shutdown(0)

    def frames(self, timeout: float, count: int, seconds: float) -> list[bytes]:
        batch = self.receiver.poll(timeout, count, seconds)
        return [frame for _, frames in batch.peer for frame in frames]


@pytest.fixture(params=["inline", "auto", "thread"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.param)
    yield pair
    pair.close()


def test_frames_that_may_wait_wait_for_each_other(pair: Pair) -> None:
    pair.send(MAY_WAIT)
    assert pair.frames(0.2, 1, LONG_SECONDS) == [MAY_WAIT], "the timeout ends the wait, and brings what is there"
    pair.send(MAY_WAIT)
    began = time.monotonic()
    assert pair.frames(0.05, 1, LONG_SECONDS) in ([MAY_WAIT], [])
    assert time.monotonic() - began > 0.04, "one is not enough"
    pair.send(MAY_WAIT, MAY_WAIT, MAY_WAIT)
    got: list[bytes] = []
    while len(got) < 3:
        got += pair.frames(LONG_SECONDS, 1, LONG_SECONDS / 2)
    assert time.monotonic() - began < LONG_SECONDS / 3, "two are"


def test_anything_else_brings_them_along(pair: Pair) -> None:
    pair.send(MAY_WAIT, URGENT)
    began = time.monotonic()
    got: list[bytes] = []
    while URGENT not in got:
        got += pair.frames(LONG_SECONDS, 1000, LONG_SECONDS)
    assert got == [MAY_WAIT, URGENT]
    pair.send(MAY_WAIT)
    time.sleep(0.1)
    pair.receiver.wake()
    pair.frames(LONG_SECONDS, 1000, LONG_SECONDS)
    assert time.monotonic() - began < LONG_SECONDS / 2


def test_they_do_not_wait_for_ever(pair: Pair) -> None:
    pair.send(MAY_WAIT)
    began = time.monotonic()
    assert pair.frames(LONG_SECONDS, 1000, 0.1) == [MAY_WAIT]
    assert 0.05 < time.monotonic() - began < LONG_SECONDS / 2


def test_without_a_word_about_them_nothing_waits(pair: Pair) -> None:
    pair.send(MAY_WAIT)
    began = time.monotonic()
    batch = pair.receiver.poll(LONG_SECONDS)
    assert [frames for _, frames in batch.peer] == [[MAY_WAIT]]
    assert time.monotonic() - began < LONG_SECONDS / 2


def test_a_full_inbox_lets_nothing_wait() -> None:
    pair = Pair("auto", max_inbox_events=10)
    try:
        pair.send(*[MAY_WAIT] * 100)
        began, got = time.monotonic(), 0
        while got < 90:  # fewer than the bound may be left at the end, and wait
            got += len(pair.frames(LONG_SECONDS, 1000, LONG_SECONDS))
        assert time.monotonic() - began < LONG_SECONDS / 2
    finally:
        pair.close()
