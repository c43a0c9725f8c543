"""Who serves the sockets: a thread of the engine's, or poll() itself; and that a caller may stay away from poll()."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from engine_harness import ECHO, Harness, wait_for
from raftkv_node import _engine as native


@pytest.fixture
def inline() -> Iterator[Harness]:
    """A started engine whose sockets are served by poll()."""
    harness = Harness(rounds="inline").start()
    yield harness
    harness.close()


@pytest.fixture
def choosing() -> Iterator[Harness]:
    """A started engine that decides by itself."""
    harness = Harness(rounds="auto").start()
    yield harness
    harness.close()


def _rounds(harness: Harness) -> tuple[int, int]:
    """Rounds run by the thread, and by poll()."""
    stats = harness.engine.stats()
    return stats["rounds_threaded"], stats["rounds_inline"]


def _during(harness: Harness, act: Callable[[], None]) -> tuple[int, int]:
    """How many rounds of each kind an action took."""
    before = _rounds(harness)
    act()
    after = _rounds(harness)
    return after[0] - before[0], after[1] - before[1]


def test_a_call_alone_is_served_by_poll(choosing: Harness) -> None:
    with grpc.insecure_channel(choosing.target) as channel:
        echo = channel.unary_unary(ECHO)
        echo(b"first", timeout=60)

        def one_by_one() -> None:
            for _ in range(50):
                assert echo(b"x", timeout=60) == b"x"

        threaded, by_poll = _during(choosing, one_by_one)
    assert by_poll > 2 * threaded


def test_many_calls_at_a_time_are_served_by_the_thread(choosing: Harness) -> None:
    with grpc.insecure_channel(choosing.target) as channel:
        echo = channel.unary_unary(ECHO)

        def burst() -> None:
            # what is there at once is taken at once: the pause collects it
            for _ in range(40):
                choosing.pause()
                calls = [echo.future(b"x", timeout=60) for _ in range(64)]
                time.sleep(0.01)
                choosing.resume()
                assert all(call.result() == b"x" for call in calls)

        burst()
        threaded, by_poll = _during(choosing, burst)
    assert threaded > by_poll


def test_a_caller_that_stays_away_is_not_waited_for(inline: Harness) -> None:
    """A long turn: what it has sent leaves, and what comes is read, without a poll."""
    with grpc.insecure_channel(inline.target) as channel:
        echo = channel.unary_unary(ECHO)
        assert echo(b"x", timeout=60) == b"x"
        inline.pause()
        accepted = inline.stat("connections_accepted")
        options = (("grpc.use_local_subchannel_pool", 1),)  # a connection of its own
        with grpc.insecure_channel(inline.target, options=options) as other:
            call = other.unary_unary(ECHO).future(b"y", timeout=60)
            wait_for(lambda: inline.stat("connections_accepted") > accepted, "the other connection")
            inline.resume()
            assert call.result() == b"y"


def test_a_flush_writes_without_a_poll() -> None:
    """A reply that is flushed is with its client before the next poll, and before the caller is taken for absent."""
    engine = native.Engine(rounds="inline")
    engine.register_methods([(ECHO, 0, False)])
    port = engine.listen_grpc("127.0.0.1", 0)
    engine.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(30):
                call = channel.unary_unary(ECHO).future(b"x", timeout=60)
                batch = engine.poll(60)
                while not batch.unary:
                    batch = engine.poll(60)
                ((_, call_ids, messages, _),) = batch.unary
                rounds = engine.stats()["rounds_threaded"]
                engine.reply(call_ids, messages)
                engine.flush()
                assert call.result() == b"x"
                if engine.stats()["rounds_threaded"] == rounds:
                    return  # nobody else can have written it
        pytest.fail("the thread took over each time")
    finally:
        engine.shutdown(0)


def test_a_wake_up_ends_an_inline_poll(inline: Harness) -> None:
    inline.close()
    engine = native.Engine(rounds="inline")
    engine.start()
    try:
        for _ in range(3):
            engine.poll(0)
        for _ in range(20):
            waker = threading.Timer(0.01, engine.wake)
            waker.start()
            began = time.monotonic()
            assert not engine.poll(60)
            assert time.monotonic() - began < 30
            waker.join()
        assert engine.stats()["rounds_inline"] > 0
    finally:
        engine.shutdown(0)


def test_a_caller_that_comes_back_just_when_the_thread_takes_over_is_not_locked_out() -> None:
    """It must never be that the I/O thread has the sockets for good, and the caller waits until it lets go of them."""
    engine = native.Engine(rounds="inline", poll_patience_seconds=0.0002)
    engine.start()
    polls = 0

    def turns() -> None:
        nonlocal polls
        for number in range(20_000):
            engine.poll(0)
            polls += 1
            back = time.monotonic() + number % 50 * 0.00001  # up to half a millisecond
            while time.monotonic() < back:
                pass

    caller = threading.Thread(target=turns, daemon=True)
    caller.start()
    caller.join(120)
    assert not caller.is_alive(), f"it waits for ever after {polls} polls"
    stats = engine.stats()
    assert stats["rounds_inline"] > 100 and stats["rounds_threaded"] > 100, "they were to take turns"
    engine.shutdown(0)


@pytest.mark.parametrize("rounds", ["inline", "auto", "thread"])
def test_a_shutdown_ends_while_another_thread_goes_on_polling(rounds: str) -> None:
    for _ in range(10):
        harness = Harness(rounds=rounds).start()
        with grpc.insecure_channel(harness.target) as channel:
            assert channel.unary_unary(ECHO)(b"x", timeout=60) == b"x"
        ended = threading.Thread(target=harness.engine.shutdown, args=(0,))
        ended.start()
        ended.join(30)
        assert not ended.is_alive()
        harness.close()


def test_changing_sides_loses_nothing(choosing: Harness) -> None:
    """Calls alone and in bursts in turn, from several connections, with answers from another thread's wake-ups."""
    stop = threading.Event()

    def wake() -> None:
        while not stop.wait(0.001):
            choosing.engine.wake()

    waker = threading.Thread(target=wake)
    waker.start()
    try:
        with grpc.insecure_channel(choosing.target) as channel:
            echo = channel.unary_unary(ECHO)
            for number in range(60):
                size = 200 if number % 3 == 0 else 1
                calls = [
                    (b"%d-%d" % (number, one), echo.future(b"%d-%d" % (number, one), timeout=60)) for one in range(size)
                ]
                for sent, call in calls:
                    assert call.result() == sent
    finally:
        stop.set()
        waker.join()


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="rounds must be 'auto', 'thread' or 'inline', not 'never'"):
        native.Engine(rounds="never")  # type: ignore[arg-type]
