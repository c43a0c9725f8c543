"""The log for any program: the guide's examples as they stand, and what the guide promises."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adr_crash import laboratory
from adr_harness import Machine, until
from raftkv_node.adr import (
    DurabilityTooLow,
    DurableLog,
    Files,
    Level,
    LogFailed,
    Owned,
    Refusal,
    Refused,
    Released,
    Unusable,
    durable,
)
from raftkv_node.adr.ringlog import RingLog
from raftkv_node.adr.segments import Segments

GUIDE = Path(__file__).parents[2] / "docs" / "log-library.md"
MIB = 1 << 20
KILLS = 4
CLOSE_SECONDS = 10.0


@pytest.fixture
def room() -> Iterator[Path]:
    folder = laboratory()
    (folder / "ring").mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["ring", "disk"])
def options(room: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    return {
        "path": room / "log",
        "ring": room / "ring" if request.param == "ring" else None,
        "size_bytes": 4 * MIB,
        "minimum_durability": "process",
    }


def example(name: str, room: Path) -> list[str]:
    """A block of the guide as a program, and its arguments."""
    found = re.search(rf"as {name}[^\n]*-->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    (room / name).write_text(found[1])
    return [sys.executable, str(room / name), str(room / "log"), str(room / "ring")]


def test_the_guides_example_runs_and_finds_its_orders_again(room: Path) -> None:
    command = example("orders.py", room)
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert first == ["level process: 0 orders from before"]
    second = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert second == ["level process: 3 orders from before", "1 2 coffees", "2 1 tea", "3 3 cakes"]


def test_the_guides_counter_is_killed_and_has_all_that_it_acknowledged(room: Path) -> None:
    command, acknowledged = example("counter.py", room), 0
    for turn in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            word, number = process.stdout.readline().split()
            assert word == "found" and int(number) >= acknowledged
            for _ in range(50 + 400 * turn):
                process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            lines = process.stdout.read().split("\n")[:-1]
        finally:
            process.kill()
            process.wait()
        acknowledged = max([int(number), *(int(line.split()[1]) for line in lines)])
    with DurableLog.open(room / "log", ring=room / "ring", size_bytes=4 * MIB, minimum_durability="process") as log:
        assert log.last >= acknowledged > 50 * KILLS
        assert all(data == b"number %d" % position for position, data in log.replay())


def test_what_was_appended_is_replayed_at_once_and_by_the_next_process(options: dict[str, Any]) -> None:
    with DurableLog.open(**options) as log:
        assert (log.first, log.last, list(log.replay())) == (1, 0, [])
        assert log.append(b"one") == 1
        assert log.append([b"two", b"", b"x" * 100_000]) == 4
        assert log.append([]) == 4
        log.wait(4)
        assert log.durable == 4
        expected = [(1, b"one"), (2, b"two"), (3, b""), (4, b"x" * 100_000)]
        assert list(log.replay()) == expected
        assert list(log.replay(3)) == expected[2:]
        assert list(log.replay(5)) == []
    with DurableLog.open(**options) as log:
        assert list(log.replay()) == expected
        assert log.append(b"five") == 5


def test_a_release_holds_at_once_and_after_a_crash(options: dict[str, Any]) -> None:
    options["segment_size_bytes"] = 20_000
    log = DurableLog.open(**options)
    for number in range(1, 101):
        log.append(b"%d" % number * 500)
    log.wait(100)
    log.release(61)
    log.release(30)
    assert log.first == 61
    with pytest.raises(Released, match="begins at 61"):
        log.replay(60)
    log._log.close(clean=False)
    with DurableLog.open(**options) as log:
        assert (log.first, log.last) == (61, 100)
        assert [position for position, _ in log.replay()] == list(range(61, 101))
        with pytest.raises(ValueError, match="only what was appended"):
            log.release(102)
        log.release(101)
        assert list(log.replay()) == []
    with DurableLog.open(**options) as log:
        assert (log.first, log.last, log.append(b"next")) == (101, 100, 101)


def test_released_segments_go(options: dict[str, Any]) -> None:
    with DurableLog.open(**options, segment_size_bytes=20_000, drain_interval_seconds=0.01) as log:
        for number in range(60):
            log.wait(log.append(b"%d" % number * 1000))

        def released() -> bool:
            log.release(log.append(b"more"))
            return log.stats()["released_segments"] > 1

        until(released)


def test_a_replay_that_is_overtaken_by_a_release_says_so(options: dict[str, Any]) -> None:
    with DurableLog.open(**options, segment_size_bytes=100_000, drain_interval_seconds=0.01) as log:
        for _ in range(60):
            log.wait(log.append(b"x" * 60_000))
        replay = log.replay()
        assert next(replay)[0] == 1

        def released() -> bool:
            log.release(log.append(b"x" * 60_000))
            return log.stats()["released_segments"] >= 20

        until(released)
        with pytest.raises(Released):
            list(replay)


def test_a_replay_is_bounded_in_memory(options: dict[str, Any]) -> None:
    item = b"x" * 30_000
    with DurableLog.open(**options) as log:
        for _ in range(600):
            log.append(item)
        log.wait(600)
    # Opening, too, brings no items along.
    with DurableLog.open(**options) as log:
        tracemalloc.start()
        count = sum(len(data) == len(item) for _, data in log.replay())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 600
        assert peak < 5 * MIB, f"{peak} bytes for 18 MB of items"


def test_threads_append_and_read_beside_each_other(options: dict[str, Any]) -> None:
    with DurableLog.open(**options) as log:

        def write(name: int) -> None:
            for number in range(200):
                log.wait(log.append(b"%d %d" % (name, number)))
                if number % 50 == 0:
                    assert sum(1 for _ in log.replay()) >= number

        threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [data.split() for _, data in log.replay()]
        assert len(found) == 800
        for name in range(4):
            assert [int(number) for who, number in found if int(who) == name] == list(range(200))


def test_a_full_ring_makes_an_append_wait_for_the_drain(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, drain = threading.Event(), RingLog.drain

    def held(self: RingLog) -> None:
        if gate.is_set():
            drain(self)

    monkeypatch.setattr(RingLog, "drain", held)
    log = DurableLog.open(room / "log", ring=room / "ring", size_bytes=4 * MIB, minimum_durability="process")
    with pytest.raises(TimeoutError, match="no room within"):
        while True:
            log.append(b"x" * 500_000, timeout_seconds=0.05)
    full = log.last
    assert 5 <= full <= 8
    gate.set()
    assert log.append(b"there is room again") == full + 1
    log.close()


@pytest.mark.parametrize("call", ["append", "release"])
def test_a_close_ends_what_waits_for_room_on_a_full_disk(
    options: dict[str, Any], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append without a timeout used to hold `close` back for as long as the disk was full."""
    full, pwrite = threading.Event(), Files.pwrite

    def no_room(self: Files, fd: int, data: bytes | memoryview, offset: int) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        pwrite(self, fd, data, offset)

    monkeypatch.setattr(Files, "pwrite", no_room)
    log = DurableLog.open(**options)
    log.wait(log.append([b"kept", b"released"]))
    full.set()
    with pytest.raises(TimeoutError):
        while True:
            log.append(b"x" * 500_000, timeout_seconds=0.02)
    with pytest.raises(TimeoutError):
        while True:  # until there is no room for a mark either
            log.append(b"", timeout_seconds=0.02)
    last, ended = log.last, list[Exception]()

    def wait_for_room() -> None:
        try:
            log.append(b"never there") if call == "append" else log.release(2)
        except LogFailed as error:
            ended.append(error)

    def close() -> None:
        with contextlib.suppress(LogFailed):
            log.close()

    waiting = threading.Thread(target=wait_for_room, daemon=True)
    closing = threading.Thread(target=close, daemon=True)
    waiting.start()
    until(log._appending.locked)
    closing.start()
    for thread in (waiting, closing):
        thread.join(CLOSE_SECONDS)
        assert not thread.is_alive(), "close waits for room"
    assert len(ended) == 1 and "closed while it had no room: nothing was appended" in str(ended[0])
    with pytest.raises(LogFailed):
        log.append(b"too late")
    full.clear()
    with DurableLog.open(**options) as log:
        # Disk mode's items were never durable, which their `wait` would have said.
        assert log.first == 1 and log.last == (last if options["ring"] is not None else 2)


def test_what_never_fits_is_refused_at_once(room: Path) -> None:
    with DurableLog.open(room / "log", ring=room / "ring", size_bytes=4 * MIB, minimum_durability="process") as log:
        for batch in ([b"x" * (3 * MIB)], [b"x" * MIB] * 4):
            with pytest.raises(ValueError, match=r"larger than half|in parts"):
                log.append(batch)
        with pytest.raises(TypeError, match="encode"):
            log.append("text")  # type: ignore[arg-type]
        assert log.append([b"x" * MIB] * 2) == 2


def test_after_a_failure_nothing_is_promised(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = DurableLog.open(room / "log", minimum_durability="process")
    log.wait(log.append(b"kept"))

    def broken(self: Any, end_lsn: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Segments, "sync", broken)
        position = log.append(b"not promised")
        with pytest.raises(LogFailed, match="position 2"):
            log.wait(position)
        with pytest.raises(LogFailed):
            log.append(b"no more")
        with pytest.raises(LogFailed):
            log.close()
    with DurableLog.open(room / "log", minimum_durability="process") as log:
        assert next(iter(log.replay())) == (1, b"kept")


def test_a_closed_log_says_so(options: dict[str, Any]) -> None:
    log = DurableLog.open(**options)
    log.append(b"one")
    log.close()
    log.close()
    for call in (lambda: log.append(b"two"), log.replay, lambda: log.release(2)):
        with pytest.raises(LogFailed, match="closed"):
            call()
    log.wait(1)


def test_wait_knows_what_was_appended(options: dict[str, Any]) -> None:
    with DurableLog.open(**options) as log:
        for position in (1, -1):
            with pytest.raises(ValueError, match="ends at 0"):
                log.wait(position)


def test_a_log_has_one_owner(options: dict[str, Any]) -> None:
    with DurableLog.open(**options), pytest.raises(Owned):
        DurableLog.open(**options)


def test_of_two_that_find_a_folder_empty_the_second_leaves_the_firsts_ids(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw no log before the first one made it: the folder would be of one log, and its document of another."""
    read = durable.read_document
    first: list[Any] = []

    def overtaken(path: Path) -> dict[str, Any] | None:
        seen = read(path)
        if not first:
            first.append(None)
            first[0] = DurableLog.open(**options)
        return seen

    monkeypatch.setattr(durable, "read_document", overtaken)
    with pytest.raises(Owned):
        DurableLog.open(**options)
    first[0].append(b"one")
    first[0].close()
    with DurableLog.open(**options) as log:
        assert [*log.replay()] == [(1, b"one")]


def test_a_folder_that_is_no_log_is_left_alone(room: Path) -> None:
    (room / "mine").mkdir()
    (room / "mine" / "letter").write_text("dear")
    with pytest.raises(Unusable, match="not empty"):
        DurableLog.open(room / "mine")
    assert [path.name for path in (room / "mine").iterdir()] == ["letter"]
    with pytest.raises(Unusable, match="No such file"):
        DurableLog.open(room / "none" / "below")
    with pytest.raises(ValueError, match="none of process, kernel, power"):
        DurableLog.open(room / "log", minimum_durability="forever")


def test_the_weaker_medium_is_refused_unless_asked_for(room: Path) -> None:
    with pytest.raises(DurabilityTooLow):
        DurableLog.open(room / "log", ring=room / "ring", environment=Machine(level=Level.PROCESS))
    with DurableLog.open(room / "log", ring=room / "ring", environment=Machine()) as log:
        assert log.level is Level.POWER


def test_a_lost_log_is_not_taken_for_a_new_one(options: dict[str, Any]) -> None:
    with DurableLog.open(**options) as log:
        log.append(b"one")
    shutil.rmtree(options["path"] / "wal")
    (options["path"] / "manifest.json").unlink()
    if options["ring"] is not None:
        shutil.rmtree(options["ring"])
        options["ring"].mkdir()
    with pytest.raises(Refused) as found:
        DurableLog.open(**options)
    assert found.value.kind == Refusal.PROVEN_LOST
    (options["path"] / "log.json").write_bytes(b"{}")
    with pytest.raises(Unusable, match="damaged"):
        DurableLog.open(**options)


def test_a_lost_ring_is_refused_until_it_is_back(room: Path) -> None:
    log = DurableLog.open(room / "log", ring=room / "ring", environment=Machine())
    log.append(b"only in the ring")
    log._log.close(clean=False)
    (room / "ring").rename(room / "away")
    (room / "ring").mkdir()
    with pytest.raises(Refused) as found:
        DurableLog.open(room / "log", ring=room / "ring", environment=Machine())
    assert found.value.kind == Refusal.ABSENT
    with DurableLog.open(room / "log", ring=room / "away", environment=Machine()) as log:
        assert list(log.replay()) == [(1, b"only in the ring")]
