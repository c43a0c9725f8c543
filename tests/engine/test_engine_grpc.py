"""gRPC as clients see it: grpcio, sync and asyncio, against the engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from engine_harness import CHAT, ECHO, FAIL, FLOOD, HANG, MUTE, SIZE, Harness, wait_for
from raftkv_node import _engine as native

MIB = 1 << 20


@pytest.fixture
def channel(server: Harness) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


def test_unary_echo(channel: grpc.Channel) -> None:
    echo = channel.unary_unary(ECHO)
    for message in [b"", b"x", b"hello" * 1000, bytes(range(256)) * 4096]:
        assert echo(message, timeout=10) == message


def test_many_in_flight_are_answered_each_by_its_own(server: Harness, channel: grpc.Channel) -> None:
    echo = channel.unary_unary(ECHO)
    calls = [echo.future(str(i).encode(), timeout=30) for i in range(2000)]
    assert [int(call.result()) for call in calls] == list(range(2000))
    assert server.stat("calls") == 0
    assert server.stat("unary_calls") == 2000


def test_errors_carry_code_and_text(channel: grpc.Channel) -> None:
    for text in ["etcdserver: permission denied", "100% söme ünicode \n\t%41", ""]:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(FAIL)(text.encode(), timeout=10)
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert error.value.details() == text


def test_unknown_methods_and_services(channel: grpc.Channel) -> None:
    for path, text in [
        ("/test.Service/Nope", "unknown method Nope for service test.Service"),
        ("/other.Service/Echo", "unknown service other.Service"),
    ]:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(path)(b"x" * 100_000, timeout=10)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.value.details() == text


def test_large_messages_both_ways(launch: Callable[..., Harness]) -> None:
    server = launch(max_message_bytes=32 * MIB).start()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.target, options=options) as channel:
        message = bytes(range(256)) * (20 * MIB // 256)
        assert channel.unary_unary(ECHO)(message, timeout=60) == message
        assert channel.unary_unary(SIZE)(str(40 * MIB).encode(), timeout=60) == bytes(40 * MIB)


def test_too_large_a_message(server: Harness, channel: grpc.Channel) -> None:
    for path in [ECHO, CHAT]:
        with pytest.raises(grpc.RpcError) as error:
            list(channel.stream_stream(path)(iter([bytes(3 * MIB)]), timeout=10))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.value.details() == f"grpc: received message larger than max ({3 * MIB} vs. {2 * MIB})"
    assert channel.unary_unary(ECHO)(b"still here", timeout=10) == b"still here"


def test_compression_is_not_spoken(channel: grpc.Channel) -> None:
    echo = channel.unary_unary(ECHO)
    with pytest.raises(grpc.RpcError) as error:
        echo(b"x" * 1000, compression=grpc.Compression.Gzip, timeout=10)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.value.details() == 'grpc: Decompressor is not installed for grpc-encoding "gzip"'


def test_deadline_of_a_unary_call(server: Harness, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(HANG)(b"x", timeout=0.1)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    _, call_id, *_ = server.unary[0]
    assert server.event(native.EV_CANCELLED) == (native.EV_CANCELLED, call_id)
    wait_for(lambda: server.stat("calls") == 0, "the call is forgotten")


def test_a_late_reply_is_ignored(server: Harness, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(HANG)(b"x", timeout=0.05)
    server.event(native.EV_CANCELLED)
    call_id = server.unary[0][1]
    server.engine.reply([call_id], [b"late"])
    server.engine.reply_errors([(call_id, 5, "late")])
    assert server.engine.stream_send([(call_id, b"late")]) == [-1]
    server.engine.http_reply(call_id, 200, "text/plain", b"late")
    assert channel.unary_unary(ECHO)(b"fine", timeout=10) == b"fine"


def test_cancellation(server: Harness, channel: grpc.Channel) -> None:
    calls = [channel.unary_unary(HANG).future(b"x", timeout=60) for _ in range(20)]
    wait_for(lambda: len(server.unary) == 20, "all calls")
    for call in calls:
        call.cancel()
    wait_for(lambda: len(server.of(native.EV_CANCELLED)) == 20, "all cancellations")
    assert {event[1] for event in server.of(native.EV_CANCELLED)} == {call_id for _, call_id, *_ in server.unary}
    assert server.stat("calls") == 0


def test_streams_keep_order(server: Harness, channel: grpc.Channel) -> None:
    sent = [str(i).encode() * (i % 50) for i in range(3000)]
    assert list(channel.stream_stream(CHAT)(iter(sent), timeout=60)) == sent
    wait_for(lambda: server.stat("calls") == 0, "the stream is over")
    assert server.of(native.EV_CANCELLED) == []


def test_many_streams_at_once(server: Harness) -> None:
    async def chat(channel: grpc.aio.Channel, name: int) -> None:
        call = channel.stream_stream(CHAT)(timeout=60)
        for i in range(20):
            message = f"{name}/{i}".encode()
            await call.write(message)
            assert await call.read() == message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    async def main() -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            await asyncio.gather(*(chat(channel, i) for i in range(200)))

    asyncio.run(main())
    wait_for(lambda: server.stat("calls") == 0, "all streams are over")


def test_stream_cancelled_by_client(server: Harness, channel: grpc.Channel) -> None:
    call = channel.stream_stream(MUTE)(iter(()), timeout=60)
    opened = server.event(native.EV_STREAM_OPEN)
    server.event(native.EV_STREAM_HALF_CLOSE)
    call.cancel()
    assert server.event(native.EV_CANCELLED) == (native.EV_CANCELLED, opened[1])
    assert server.engine.stream_send([(opened[1], b"x")]) == [-1]


def test_stream_deadline(server: Harness, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(channel.stream_stream(MUTE)(iter(()), timeout=0.1))
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.event(native.EV_CANCELLED)


def test_stream_ended_by_server_with_error(server: Harness, channel: grpc.Channel) -> None:
    call = channel.stream_stream(MUTE)(iter(()), timeout=60)
    _, call_id, *_ = server.event(native.EV_STREAM_OPEN)
    server.engine.stream_send([(call_id, b"one"), (call_id, b"two")])
    server.engine.stream_close(call_id, 11, "mvcc: required revision has been compacted")
    assert [next(call), next(call)] == [b"one", b"two"]
    with pytest.raises(grpc.RpcError) as error:
        next(call)
    assert error.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert error.value.details() == "mvcc: required revision has been compacted"
    assert server.of(native.EV_CANCELLED) == []


def test_lost_connection_cancels_its_calls(server: Harness) -> None:
    channel = grpc.insecure_channel(server.target)
    calls = [channel.unary_unary(HANG).future(b"x", timeout=60), channel.stream_stream(MUTE)(iter(()), timeout=60)]
    wait_for(lambda: server.unary and server.of(native.EV_STREAM_OPEN), "both calls")
    channel.close()
    wait_for(lambda: len(server.of(native.EV_CANCELLED)) == len(calls), "both cancellations")
    wait_for(lambda: server.stat("connections") == 0, "no connection")


def test_metadata_is_captured(launch: Callable[..., Harness]) -> None:
    server = launch(capture_metadata=["token", "HasLeader"]).start()
    with grpc.insecure_channel(server.target) as channel:
        echo = channel.unary_unary(ECHO)
        echo(b"1", timeout=10)
        echo(b"2", metadata=[("hasleader", "true"), ("other", "x")], timeout=10)
        echo(b"3", metadata=[("token", "first"), ("token", "second")], timeout=10)
        list(channel.stream_stream(CHAT)(iter(()), metadata=[("token", "s")], timeout=10))
    by_message = {message: metadata for _, _, message, metadata in server.unary}
    assert by_message == {b"1": None, b"2": (None, b"true"), b"3": (b"first", None)}
    assert server.event(native.EV_STREAM_OPEN)[3] == (b"s", None)


def test_slow_reader_is_held_back_and_reported(launch: Callable[..., Harness]) -> None:
    server = launch(stream_queue_high_bytes=MIB).start()
    with grpc.insecure_channel(server.target) as channel:
        call = channel.stream_stream(MUTE)(iter(()), timeout=60)
        _, call_id, *_ = server.event(native.EV_STREAM_OPEN)
        sent = 0
        queued = 0
        while queued < 4 * MIB:  # the client's windows take some, then the queue grows
            [queued] = server.engine.stream_send([(call_id, bytes(100_000))])
            sent += 1
        assert server.of(native.EV_STREAM_DRAINED) == []
        server.engine.stream_close(call_id, 0, "")
        assert sum(len(message) for message in call) == sent * 100_000
    assert server.event(native.EV_STREAM_DRAINED) == (native.EV_STREAM_DRAINED, call_id)


def test_streams_that_are_too_much_together_are_held_back_and_none_is_cut_off(launch: Callable[..., Harness]) -> None:
    """Each holds less than its own limit, all of them more than their connection's: watches of one busy client."""
    server = launch(stream_queue_high_bytes=MIB, max_queued_bytes_per_connection=8 * MIB).start()
    with grpc.insecure_channel(server.target) as channel:
        calls = [channel.stream_stream(MUTE)(iter(()), timeout=60) for _ in range(20)]
        ids = [server.event(native.EV_STREAM_OPEN, n)[1] for n in range(1, 21)]
        sizes = server.engine.stream_send([(call_id, bytes(700_000)) for call_id in ids])
        assert sizes[0] < MIB
        told = [call_id for call_id, size in zip(ids, sizes, strict=True) if size >= 4 * MIB]
        assert told == ids[5:], (
            "half of what the connection may hold is six of them; from there on, each is told of all"
        )
        assert server.of(native.EV_STREAM_DRAINED) == []
        for call_id in ids:
            server.engine.stream_close(call_id, 0, "")
        for call in calls:
            assert sum(len(message) for message in call) == 700_000
    assert server.of(native.EV_CANCELLED) == []
    drained = {server.event(native.EV_STREAM_DRAINED, n)[1] for n in range(1, len(told) + 1)}
    assert drained == set(told)


def test_a_reader_that_never_reads_is_cut_off(launch: Callable[..., Harness]) -> None:
    server = launch(max_queued_bytes_per_connection=8 * MIB).start()
    with grpc.insecure_channel(server.target) as channel:
        call = channel.stream_stream(FLOOD)(iter([b"400 100000"]), timeout=60)
        _, call_id, *_ = server.event(native.EV_STREAM_OPEN)
        assert server.event(native.EV_CANCELLED) == (native.EV_CANCELLED, call_id)
        with pytest.raises(grpc.RpcError):
            list(call)
        assert channel.unary_unary(ECHO)(b"still here", timeout=10) == b"still here"


def test_half_sent_messages_are_bounded(launch: Callable[..., Harness]) -> None:
    server = launch(max_message_bytes=8 * MIB, max_queued_bytes_per_connection=MIB).start()
    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(ECHO)(bytes(4 * MIB), timeout=10)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert channel.unary_unary(ECHO)(b"still here", timeout=10) == b"still here"


def test_what_arrives_while_the_inbox_is_full_is_read_afterwards(launch: Callable[..., Harness]) -> None:
    """A connection whose bytes came while nothing was read was forgotten: calls and window updates hung for ever."""
    server = launch(max_inbox_bytes=4 * MIB).start()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with (
        grpc.insecure_channel(server.target, options=options) as loud,
        grpc.insecure_channel(server.target, options=options) as quiet,
    ):
        for channel in (loud, quiet):
            channel.unary_unary(ECHO)(b"connected", timeout=10)
        server.pause()
        calls = [loud.unary_unary(ECHO).future(bytes(10_000), timeout=60) for _ in range(1000)]
        try:
            wait_for(lambda: server.stat("inbox_full") > 0, "the inbox is full")
            time.sleep(0.2)
            waiting = quiet.unary_unary(ECHO).future(b"me, too", timeout=20)
            time.sleep(0.2)
        finally:
            server.resume()
        assert waiting.result() == b"me, too"
        assert all(len(call.result()) == 10_000 for call in calls)


def test_a_paused_handler_stops_the_clients_not_the_memory(launch: Callable[..., Harness]) -> None:
    server = launch(max_inbox_bytes=4 * MIB).start()
    message = bytes(10_000)  # fits a frame, so that few messages are half received
    with grpc.insecure_channel(server.target) as channel:
        echo = channel.unary_unary(ECHO)
        echo(b"connected", timeout=10)
        server.pause()
        calls = [echo.future(message, timeout=60) for _ in range(4000)]
        try:
            wait_for(lambda: server.stat("inbox_full") > 0, "the inbox is full")
            time.sleep(0.2)
            assert server.stat("client_bytes_in") < 16 * MIB
        finally:
            server.resume()
        assert all(call.result() == message for call in calls)


def test_graceful_shutdown_finishes_what_is_in_flight(server: Harness) -> None:
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(HANG).future(b"x", timeout=60)
        wait_for(lambda: server.unary, "the call")
        stopper = threading.Thread(target=server.engine.shutdown, args=(30.0,))
        stopper.start()
        time.sleep(0.2)
        assert stopper.is_alive()
        server.engine.reply([server.unary[0][1]], [b"done"])
        assert call.result() == b"done"
        stopper.join(20)
        assert not stopper.is_alive()
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(ECHO)(b"x", timeout=5)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_shutdown_does_not_wait_longer_than_its_grace(server: Harness) -> None:
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(HANG).future(b"x", timeout=60)
        wait_for(lambda: server.unary, "the call")
        server.engine.shutdown(0.1)
        with pytest.raises(grpc.RpcError) as error:
            call.result()
        assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        server.event(native.EV_CANCELLED)


def test_keepalive_pings_on_a_quiet_stream(launch: Callable[..., Harness]) -> None:
    """A client that pings at the permitted pace, with a stream and nothing else, is never sent away."""
    server = launch(keepalive_min_interval_seconds=0.2).start()
    options: list[tuple[str, Any]] = [
        ("grpc.keepalive_time_ms", 220),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_sent_ping_interval_without_data_ms", 220),
    ]
    with grpc.insecure_channel(server.target, options=options) as channel:
        call = channel.stream_stream(MUTE)(iter(()), timeout=60)
        _, call_id, *_ = server.event(native.EV_STREAM_OPEN)
        time.sleep(2.5)
        assert server.stat("too_many_pings") == 0
        server.engine.stream_send([(call_id, b"alive")])
        assert next(call) == b"alive"
        call.cancel()
