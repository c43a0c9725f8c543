"""Writers outside the virtual machine, what they were told, and whether that is still true.

They run on the host, over a forwarded port. So a write counts as acknowledged when the host has its answer, and no
power cut in the guest can take that knowledge away. A write that was not answered may be there or not, whole.

Two kinds of keys are written in turn: new ones, each once, which must be there for ever; and one counter for each
writer, overwritten again and again, which must never show an older number than the last acknowledged one, nor one that
was never sent.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import grpc
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

PREFIX = b"/cut/"
_PAGE_KEYS = 2000
_PUT_SECONDS = 20.0
_RANGE_SECONDS = 60.0
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", 64 << 20),
]


def channel(port: int) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS)


@dataclass
class History:
    """All writes of a run. Keys are written once, but for counters."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    maybe: dict[str, str] = field(default_factory=dict)
    counter_acknowledged: dict[str, int] = field(default_factory=dict)
    counter_sent: dict[str, int] = field(default_factory=dict)
    #: Answered writes of both kinds.
    answers: int = 0

    def problems(self, found: dict[str, str]) -> list[str]:
        """What is wrong with the contents of a member: lost, rolled back, or never written."""
        problems = []
        for key, value in self.acknowledged.items():
            if found.get(key) != value:
                problems.append(f"lost: acknowledged {key} is {found.get(key)!r}, not {value!r}")
        for key, number in self.counter_acknowledged.items():
            now = int(found.get(key, "0"))
            if now < number:
                problems.append(f"lost: {key} was acknowledged as {number} and is {now}")
        for key, text in found.items():
            if key in self.counter_sent:
                if int(text) > self.counter_sent[key]:
                    problems.append(f"phantom: {key} is {text}, but {self.counter_sent[key]} was sent last")
            elif key not in self.acknowledged and self.maybe.get(key) != text:
                problems.append(f"phantom: {key} = {text!r} was never written")
        return problems

    @property
    def keys_checked(self) -> int:
        return len(self.acknowledged) + len(self.counter_acknowledged)


class Load:
    """Writers, spread over the members, from `start` to `stop`. A writer that gets an error goes to the next member."""

    def __init__(self, history: History, ports: list[int], writers: int, round_number: int) -> None:
        self._history, self._ports, self._round = history, ports, round_number
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(i,), daemon=True) for i in range(writers)]
        self._before = history.answers

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def answered(self) -> int:
        """Writes that were acknowledged since the start of this load."""
        return self._history.answers - self._before

    def stop(self) -> None:
        """Returns when nothing more can be acknowledged."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_PUT_SECONDS + 10)
            assert not thread.is_alive(), "a writer hangs"

    def _write(self, writer: int) -> None:
        number, member = 0, writer
        while not self._stop.is_set():
            with channel(self._ports[member % len(self._ports)]) as line:
                stub = rpc_pb2_grpc.KVStub(line)
                while not self._stop.is_set():
                    number += 1
                    if not self._put(stub, writer, number):
                        break
            member += 1
            # A machine that is gone answers at once; there is no hurry then.
            self._stop.wait(0.1)

    def _put(self, stub: rpc_pb2_grpc.KVStub, writer: int, number: int) -> bool:
        history, counts = self._history, number % 2 == 0
        with self._lock:
            if counts:
                key = f"{PREFIX.decode()}counter-{writer}"
                value = str(history.counter_sent.get(key, 0) + 1)
                history.counter_sent[key] = int(value)
            else:
                key = f"{PREFIX.decode()}{self._round:03d}-{writer}-{number:06d}"
                # Random-looking and of several records' length, so that a torn one would show.
                value = f"{self._round}.{writer}.{number}." * 20
                history.maybe[key] = value
        try:
            stub.Put(rpc_pb2.PutRequest(key=key.encode(), value=value.encode()), timeout=_PUT_SECONDS)
        except grpc.RpcError:
            return False
        with self._lock:
            history.answers += 1
            if counts:
                history.counter_acknowledged[key] = int(value)
            else:
                history.acknowledged[key] = history.maybe.pop(key)
        return True


def contents(port: int, *, serializable: bool) -> dict[str, str]:
    """All keys of the load on one member, at one revision."""
    found: dict[str, str] = {}
    start, revision = PREFIX, 0
    with channel(port) as line:
        stub = rpc_pb2_grpc.KVStub(line)
        while True:
            request = rpc_pb2.RangeRequest(
                key=start, range_end=PREFIX[:-1] + b"0", limit=_PAGE_KEYS, serializable=serializable, revision=revision
            )
            answer = stub.Range(request, timeout=_RANGE_SECONDS)
            revision = revision or answer.header.revision
            found.update({one.key.decode(): one.value.decode() for one in answer.kvs})
            if not answer.more:
                return found
            start = answer.kvs[-1].key + b"\0"


def wait_for_answers(load: Load, answers: int, seconds: float) -> None:
    """Waits until a load was acknowledged that many writes."""
    deadline = time.monotonic() + seconds
    while load.answered() < answers:
        assert time.monotonic() < deadline, f"only {load.answered()} of {answers} writes answered in {seconds:.0f} s"
        time.sleep(0.05)
