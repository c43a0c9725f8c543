"""The seam itself: polling, waking, lifecycle and misuse."""

from __future__ import annotations

import gc
import socket
import threading
import time
from typing import Any

import grpc
import pytest
from engine_harness import ECHO, HANG, Harness, wait_for
from raftkv_node import _engine as native


def test_poll_waits_for_its_timeout_and_is_empty() -> None:
    engine = native.Engine()
    began = time.monotonic()
    batch = engine.poll(0.05)
    assert time.monotonic() - began >= 0.05
    assert not batch
    assert (batch.unary, batch.events, batch.peer) == ([], [], [])
    engine.poll(0)
    with pytest.raises(ValueError, match="timeout_seconds"):
        engine.poll(-1)
    with pytest.raises(ValueError, match="timeout_seconds"):
        engine.poll(float("nan"))


def test_wake_ends_a_poll_and_is_remembered() -> None:
    engine = native.Engine()
    engine.wake()
    assert not engine.poll(60)
    waker = threading.Timer(0.05, engine.wake)
    waker.start()
    assert not engine.poll(60)
    waker.join()


def test_other_threads_run_while_a_poll_waits() -> None:
    engine = native.Engine()
    poller = threading.Thread(target=engine.poll, args=(60,))
    poller.start()
    assert sum(range(1000)) == 499500  # would not get here under the GIL
    engine.wake()
    poller.join(10)
    assert not poller.is_alive()


def test_a_full_batch_is_true_and_grouped_by_method(server: Harness) -> None:
    server.pause()
    with grpc.insecure_channel(server.target) as channel:
        calls = [channel.unary_unary(ECHO).future(b"%d" % i, timeout=60) for i in range(50)]
        calls += [channel.unary_unary(HANG).future(b"h", timeout=60) for _ in range(5)]
        wait_for(lambda: server.stat("unary_calls") == 55, "all calls")
        time.sleep(0.05)
        batch = server.engine.poll(1)
        assert batch
        groups = {method: (ids, messages, metadata) for method, ids, messages, metadata in batch.unary}
        assert [len(ids) for ids, _, _ in groups.values()] == [50, 5]
        assert sorted(map(int, groups[0][1])) == list(range(50))
        assert all(metadata is None for _, _, metadata in groups.values())
        assert len({call_id for ids, _, _ in groups.values() for call_id in ids}) == 55
        for ids, messages, _ in groups.values():
            server.engine.reply(tuple(ids), tuple(messages))  # any sequence will do
        assert [call.result() for call in calls] == [b"%d" % i for i in range(50)] + [b"h"] * 5
        server.resume()


def test_lifecycle_errors() -> None:
    engine = native.Engine()
    engine.start()
    with pytest.raises(RuntimeError, match="started before"):
        engine.start()
    with pytest.raises(RuntimeError, match="before start"):
        engine.register_methods([("/a/b", 1, False)])
    engine.shutdown(0)
    engine.shutdown(0)
    with pytest.raises(ValueError, match="method id 4096"):
        native.Engine().register_methods([("/a/b", 4096, False)])
    with pytest.raises(ValueError, match="handshake_timeout_seconds"):
        native.Engine(handshake_timeout_seconds=-1)


def test_after_shutdown_calls_do_nothing(server: Harness) -> None:
    server.close()
    engine = server.engine
    engine.reply([1], [b"x"])
    engine.reply_errors([(1, 2, "x")])
    engine.stream_close(1, 0, "")
    engine.http_reply(1, 200, "", b"")
    engine.peer_connect(1, "127.0.0.1", 1, b"")
    assert engine.peer_send([(1, b"x")]) == [-1]
    assert engine.stream_send([(1, b"x")]) == [-1]
    assert not engine.poll(0.01)
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", server.port)) != 0


def test_an_engine_that_never_starts_frees_its_port() -> None:
    engine = native.Engine()
    port = engine.listen_grpc("127.0.0.1", 0)
    engine.shutdown(0)
    other = native.Engine()
    assert other.listen_grpc("127.0.0.1", port) == port


def test_a_dropped_engine_ends_its_thread() -> None:
    engine = native.Engine()
    port = engine.listen_grpc("127.0.0.1", 0)
    engine.start()
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    del engine
    gc.collect()

    def refused() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0

    wait_for(refused, "the listener is closed")


def test_arguments_of_wrong_kinds(server: Harness) -> None:
    engine: Any = server.engine
    with pytest.raises(ValueError, match="1 call ids, but 2 messages"):
        engine.reply([1], [b"", b""])
    for bad in ([("x", b"")], [(1, "text")], [(-1, b"")], 7):
        with pytest.raises((TypeError, OverflowError)):
            engine.stream_send(bad)
        with pytest.raises((TypeError, OverflowError)):
            engine.peer_send(bad)
    with pytest.raises(TypeError):
        engine.reply([1], ["text"])
    with pytest.raises(OverflowError):
        engine.listen_grpc("127.0.0.1", 70_000)
    for call in (engine.peer_reject, engine.peer_accept):
        with pytest.raises(ValueError, match="a hello of 70000 bytes"):
            call(2**40, bytes(70_000))
    with pytest.raises(ValueError, match="a hello of 70000 bytes"):
        engine.peer_connect(1, "127.0.0.1", 1, bytes(70_000))
