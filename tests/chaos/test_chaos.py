"""A minute of `make chaos` with a new seed, the planted bugs that it must find, and its tools one by one."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import chaos_disks
import pytest
from chaos_disks import Disk, Trouble
from chaos_faults import together
from chaos_links import FREE, Links, Rule, link_host, listen_host
from chaos_members import build_clock, free_peer_port
from chaos_plan import EPOCHS, SECONDS, Deck, Epoch, Kind, plan_round, usable_kinds
from chaos_plants import PLANTS
from chaos_run import Settings, run
from chaos_table import table

NO_DISKS = chaos_disks.usable()
PATIENCE_SECONDS = 20.0
QUIET_SECONDS = 0.5
DAY_SECONDS = 86400

# -- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_chaos_for_a_minute_loses_nothing_and_lies_never() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    epochs = (Epoch(3, True, 2),)
    totals = run(Settings(seed, epochs=epochs, round_seconds=18.0, disks=not NO_DISKS))
    assert not totals.findings, f"seed {seed}:\n{table(totals)}\n" + "\n".join(totals.findings)
    assert totals.injected == totals.survived
    assert totals.injected.total() > 16, table(totals)
    assert totals.most_at_once >= 3, table(totals)
    assert totals.writes > 50 and totals.linearizable_reads > 20 and totals.watch_events > 100, table(totals)
    assert totals.bookmarks > 5, table(totals)


FOUND_BY = {
    # a revision made up, a counter below what was acknowledged, an answer out of its time
    "takes-silence-for-yes": "lost stale watch",
    "reads-without-asking": "stale",
    "loses-events": "watch",
    # contents gone, revisions made twice, or a watch that was told other events
    "disks-fall-back": "lost stale watch",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANTS))
def test_chaos_finds_the_planted_bug(name: str) -> None:
    only = frozenset({Kind.KILL_ONE, Kind.KILL_ALL, Kind.STOP_LEADER, Kind.STOP_FOLLOWERS, Kind.LINK_SLOW})
    settings = Settings(
        random.SystemRandom().randrange(1 << 32),
        epochs=(Epoch(3, True, 8),),
        round_seconds=8.0,
        faults_a_round=6,
        only=only,
        disks=False,
        **PLANTS[name],
    )
    totals = run(settings)
    assert totals.findings, f"seed {settings.seed}: {name} was not found\n{table(totals)}"
    assert sum(totals.count(one) for one in FOUND_BY[name].split()) == 1, totals.findings


# -- the plan --------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_schedule_and_all_kinds_come_up() -> None:
    kinds = usable_kinds(EPOCHS[0], frozenset(), True)
    assert set(kinds) == set(Kind) == set(SECONDS)

    def plan(seed: str) -> list[object]:
        deck = Deck(random.Random(seed), kinds)
        return [one for number in range(3) for one in plan_round(f"{seed}/{number}", deck, 20.0, 16)]

    first = plan("a")
    assert first == plan("a") != plan("b")
    counts = [sum(one.kind is kind for one in first) for kind in Kind]  # type: ignore[attr-defined]
    assert counts == [3] * len(Kind)


def test_no_ring_is_lost_where_there_is_none() -> None:
    assert Kind.RING_LOST not in usable_kinds(Epoch(3, False, 1), frozenset(), True)
    assert not {kind for kind in usable_kinds(EPOCHS[0], frozenset(), False) if "flush" in kind or "disk" in kind}


# -- links -----------------------------------------------------------------------------------------------------------


@contextmanager
def linked() -> Iterator[tuple[Links, socket.socket, socket.socket]]:
    """Members 1 and 2 with a connection that 1 has made: the proxy, 1's end, 2's end."""
    port = free_peer_port()
    links = Links(port, 1)
    with socket.create_server((listen_host(2), port)) as server:
        try:
            links.add(1)
            links.add(2)
            with socket.create_connection((link_host(1, 2), port)) as one:
                two, _ = server.accept()
                with two:
                    one.settimeout(PATIENCE_SECONDS)
                    two.settimeout(PATIENCE_SECONDS)
                    yield links, one, two
        finally:
            links.close()


def silent(end: socket.socket) -> bool:
    """Whether nothing arrives for a while."""
    end.settimeout(QUIET_SECONDS)
    try:
        return not end.recv(100)
    except TimeoutError:
        return True
    finally:
        end.settimeout(PATIENCE_SECONDS)


def test_a_cut_direction_holds_its_bytes_and_the_other_goes_on() -> None:
    with linked() as (links, one, two):
        one.sendall(b"before")
        assert two.recv(100) == b"before"
        links.set([(1, 2)], Rule(cut=True))
        one.sendall(b"held")
        assert silent(two)
        two.sendall(b"other way")
        assert one.recv(100) == b"other way"
        links.set([(1, 2)], FREE)
        assert two.recv(100) == b"held"


def test_a_reset_ends_connections_and_refuses_new_ones() -> None:
    with linked() as (links, one, two):
        links.set([(2, 1)], Rule(reset=True))
        for end in (one, two):
            with pytest.raises(OSError):
                if not end.recv(100):
                    raise ConnectionResetError
        address = (link_host(1, 2), int(two.getsockname()[1]))
        with pytest.raises(OSError), socket.create_connection(address) as again:
            again.settimeout(PATIENCE_SECONDS)
            if not again.recv(100):
                raise ConnectionResetError


def test_a_slow_link_delays_and_narrows() -> None:
    with linked() as (links, one, two):
        links.set([(1, 2)], Rule(delay_ms=300))
        sent = time.monotonic()
        one.sendall(b"late")
        assert two.recv(100) == b"late"
        assert time.monotonic() - sent >= 0.29
        links.set([(1, 2)], Rule(bytes_per_second=100_000))
        sent = time.monotonic()
        threading.Thread(target=one.sendall, args=(bytes(100_000),), daemon=True).start()
        left = 100_000
        while left:
            left -= len(two.recv(left))
        assert time.monotonic() - sent >= 0.9


def test_rules_of_several_faults_stand_together() -> None:
    assert together([]) == FREE
    both = together([Rule(delay_ms=5, bytes_per_second=10), Rule(cut=True, delay_ms=7, loss=0.5)])
    assert both == Rule(cut=True, delay_ms=12, loss=0.5, bytes_per_second=10)


# -- clocks ----------------------------------------------------------------------------------------------------------


def test_a_shifted_clock_is_the_wall_clock_alone_and_jumps_while_running(tmp_path: Path) -> None:
    shift = tmp_path / "shift"
    shift.write_bytes((0).to_bytes(8, sys.byteorder, signed=True))
    program = "import time\nwhile input() == '': print(time.time(), time.monotonic(), flush=True)"
    environment = {**os.environ, "LD_PRELOAD": str(build_clock(tmp_path)), "WALLCLOCK_FILE": str(shift)}
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdin is not None and child.stdout is not None

    def ask() -> tuple[float, float]:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        wall, monotonic = map(float, child.stdout.readline().split())
        return wall - time.time(), monotonic - time.monotonic()

    for seconds in (0, -DAY_SECONDS, 3 * DAY_SECONDS, 0):
        shift.write_bytes(seconds.to_bytes(8, sys.byteorder, signed=True))
        wall, monotonic = ask()
        assert abs(wall - seconds) < PATIENCE_SECONDS
        assert abs(monotonic) < PATIENCE_SECONDS
    child.stdin.close()
    child.wait(PATIENCE_SECONDS)


# -- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if NO_DISKS:
        pytest.skip(NO_DISKS)
    made = Disk(tmp_path)
    made.start()
    yield made
    made.stop()


def test_slowfs_delays_each_flush_by_what_it_was_told(disk: Disk) -> None:
    with (disk.mount / "file").open("wb", buffering=0) as file, disk.trouble(Trouble(flush_ms=50)):
        time.sleep(0.1)
        began = time.monotonic()
        for _ in range(10):
            file.write(b"x")
            os.fdatasync(file.fileno())
        assert time.monotonic() - began >= 0.5


def test_slowfs_fails_flushes_and_then_no_more(disk: Disk) -> None:
    with (disk.mount / "file").open("wb", buffering=0) as file, disk.trouble(Trouble(fail_flushes=2)):
        time.sleep(0.1)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                os.fsync(file.fileno())
        os.fsync(file.fileno())


def test_slowfs_is_full_after_so_many_bytes(disk: Disk) -> None:
    with (disk.mount / "file").open("wb", buffering=0) as file:
        with disk.trouble(Trouble(room_bytes=5000)):
            time.sleep(0.1)
            file.write(bytes(4096))
            with pytest.raises(OSError, match="No space left"):
                file.write(bytes(4096))
            os.pwrite(file.fileno(), b"over what is there", 0)
        time.sleep(0.1)
        file.write(bytes(4096))
    assert (disk.mount / "file").stat().st_size == 8192


def test_slowfs_stalls_flushes_and_nothing_else(disk: Disk) -> None:
    with (disk.mount / "file").open("wb", buffering=0) as file:
        flushing = threading.Thread(target=os.fsync, args=(file.fileno(),))
        with disk.trouble(Trouble(stalled=True)):
            time.sleep(0.1)
            flushing.start()
            flushing.join(QUIET_SECONDS)
            assert flushing.is_alive()
            (disk.mount / "other").write_bytes(b"goes on")
            assert (disk.mount / "other").read_bytes() == b"goes on"
        flushing.join(PATIENCE_SECONDS)
        assert not flushing.is_alive()


def test_slowfs_serves_files_as_a_disk_does(disk: Disk) -> None:
    """Renames under open files, links, shared maps."""
    folder = disk.mount / "a"
    (folder / "b").mkdir(parents=True)
    with (folder / "b" / "x").open("w+b", buffering=0) as file:
        file.write(b"one")
        folder.rename(disk.mount / "z")
        file.write(b" two")
        assert (disk.mount / "z" / "b" / "x").read_bytes() == b"one two"
        os.link(disk.mount / "z" / "b" / "x", disk.mount / "hard")
        (disk.mount / "z" / "b" / "x").unlink()
        (disk.mount / "soft").symlink_to("hard")
        file.write(b" three")
    assert (disk.mount / "soft").read_bytes() == b"one two three"
    assert sorted(one.name for one in disk.mount.iterdir()) == ["hard", "soft", "z"]
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    with mmap.mmap(file.fileno(), 0) as map:\n"
        "        map[0:3] = b'ONE'\n"
        "        map.flush()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(disk.mount / "hard")], check=True)
    assert (disk.mount / "hard").read_bytes() == b"ONE two three"
