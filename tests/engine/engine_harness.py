"""An engine with a small handler behind it, on a thread, for tests that talk to it as clients do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from raftkv_node import _engine as native

ECHO = "/test.Service/Echo"  # unary: answers what it got
FAIL = "/test.Service/Fail"  # unary: PERMISSION_DENIED with the request as text
HANG = "/test.Service/Hang"  # unary: never answered by the handler
SIZE = "/test.Service/Size"  # unary: answers as many bytes as the request says in decimal
CHAT = "/test.Service/Chat"  # streaming: answers each message, ends with the client
FLOOD = "/test.Service/Flood"  # streaming: answers "N SIZE" with N messages of SIZE bytes
MUTE = "/test.Service/Mute"  # streaming: never says anything
_METHODS = [ECHO, FAIL, HANG, SIZE, CHAT, FLOOD, MUTE]
_STREAMING = {CHAT, FLOOD, MUTE}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Waits until `condition` is true and returns its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"not within {seconds} s: {what}")


class Harness:
    """Runs an engine's turns until closed. Everything that arrived is kept for the test to look at."""

    def __init__(self, **options: Any) -> None:
        self.engine = native.Engine(**options)
        self.engine.register_methods([(path, i, path in _STREAMING) for i, path in enumerate(_METHODS)])
        self.port = 0
        self.events: list[tuple[Any, ...]] = []
        self.unary: list[tuple[str, int, bytes, Any]] = []
        self.frames: dict[int, list[bytes]] = {}
        self.method_of: dict[int, str] = {}
        self.accept_hello: Callable[[bytes], bool] = lambda hello: True
        self._pause = threading.Event()
        self._paused = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="harness", daemon=True)

    def start(self, *, grpc: bool = True, tls: native.TlsConfig | None = None) -> Harness:
        if grpc:
            self.port = self.engine.listen_grpc("127.0.0.1", 0, tls)
        self.engine.start()
        self._thread.start()
        return self

    def close(self) -> None:
        self.engine.shutdown(0)
        self._stop = True
        self.engine.wake()
        if self._thread.is_alive():
            self._thread.join(10)

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def pause(self) -> None:
        """Stops polling; returns when that is so."""
        self._paused.clear()
        self._pause.set()
        self.engine.wake()
        assert self._paused.wait(20)

    def resume(self) -> None:
        self._pause.clear()

    def of(self, kind: int) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] == kind]

    def event(self, kind: int, number: int = 1) -> tuple[Any, ...]:
        """The `number`th event of a kind, when it has come."""
        wait_for(lambda: len(self.of(kind)) >= number, f"event {kind}")
        return self.of(kind)[number - 1]

    def stat(self, name: str) -> int:
        return self.engine.stats()[name]

    def _run(self) -> None:
        while not self._stop:
            if self._pause.is_set():
                self._paused.set()
                time.sleep(0.005)
                continue
            self._turn(self.engine.poll(1.0))

    def _turn(self, batch: native.Batch) -> None:
        for method_id, call_ids, messages, metadata in batch.unary:
            method = _METHODS[method_id]
            for i, (call_id, message) in enumerate(zip(call_ids, messages, strict=True)):
                self.unary.append((method, call_id, message, metadata[i] if metadata else None))
            if method == ECHO:
                self.engine.reply(call_ids, messages)
            elif method == SIZE:
                self.engine.reply(call_ids, [bytes(int(m)) for m in messages])
            elif method == FAIL:
                code = grpc.StatusCode.PERMISSION_DENIED.value[0]
                self.engine.reply_errors([(c, code, m.decode()) for c, m in zip(call_ids, messages, strict=True)])
        for event in batch.events:
            self._event(event)
            self.events.append(event)
        for link, frames in batch.peer:
            self.frames.setdefault(link, []).extend(frames)

    def _event(self, event: tuple[Any, ...]) -> None:
        match event:
            case (native.EV_STREAM_OPEN, call_id, method_id, _):
                self.method_of[call_id] = _METHODS[method_id]
            case (native.EV_STREAM_MESSAGE, call_id, message) if self.method_of[call_id] == CHAT:
                self.engine.stream_send([(call_id, message)])
            case (native.EV_STREAM_MESSAGE, call_id, message) if self.method_of[call_id] == FLOOD:
                count, size = map(int, message.split())
                self.engine.stream_send([(call_id, bytes(size))] * count)
            case (native.EV_STREAM_HALF_CLOSE, call_id) if self.method_of[call_id] != MUTE:
                self.engine.stream_close(call_id, 0, "")
            case (native.EV_HTTP, call_id, method, path, body, _):
                self.engine.http_reply(call_id, 200, "text/plain", f"{method} {path} ".encode() + body)
            case (native.EV_PEER_INBOUND, inbound_id, hello, _):
                if self.accept_hello(hello):
                    self.engine.peer_accept(inbound_id, b"welcome " + hello)
                    self.engine.peer_send([(inbound_id, b"first")])
                else:
                    self.engine.peer_reject(inbound_id, b"not you, " + hello)
