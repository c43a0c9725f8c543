"""A client that writes numbered keys without pause and remembers what became of each.

A write ends in one of two ways: *acknowledged*, and then it must be there for ever, or *maybe* (an error, a deadline, a
broken connection), and then it may be there, whole, or not at all. No write is sent twice.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field

import grpc
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


@dataclass
class History:
    """What the writer knows: values of acknowledged and of maybe keys, and when acknowledgements came."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    maybe: dict[str, str] = field(default_factory=dict)
    acknowledged_at: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def longest_gap_seconds(self) -> float:
        """The longest time between two acknowledgements."""
        times = sorted(self.acknowledged_at)
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


class Writer:
    """Threads that put numbered keys through one address until told to stop."""

    def __init__(self, address: str, prefix: str = "/numbered/", threads: int = 4, deadline_seconds: float = 2) -> None:
        self.history = History()
        self._address = address
        self._prefix = prefix
        self._deadline_seconds = deadline_seconds
        self._lock = threading.Lock()
        self._next = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        """Starts writing."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> History:
        """Stops writing and returns what was seen."""
        self._stop.set()
        for thread in self._threads:
            thread.join(self._deadline_seconds + 10)
        return self.history

    def count(self) -> int:
        """Acknowledged writes so far."""
        return len(self.history.acknowledged)

    def _write(self) -> None:
        # A channel per thread: one broken connection is not everyone's.
        options = [*_CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._address, options=options) as channel:
            stub = rpc_pb2_grpc.KVStub(channel)
            while not self._stop.is_set():
                with self._lock:
                    number, self._next = self._next, self._next + 1
                self._put(stub, f"{self._prefix}{number:08d}", f"value-{number}")

    def _put(self, stub: rpc_pb2_grpc.KVStub, key: str, value: str) -> None:
        request = rpc_pb2.PutRequest(key=key.encode(), value=value.encode())
        try:
            stub.Put(request, timeout=self._deadline_seconds)
        except grpc.RpcError as error:
            with self._lock:
                self.history.maybe[key] = value
                text = f"{error.code().name}: {error.details()}"
                self.history.errors[text] = self.history.errors.get(text, 0) + 1
            time.sleep(0.02)
            return
        with self._lock:
            self.history.acknowledged[key] = value
            self.history.acknowledged_at.append(time.monotonic())


def missing_writes(address: str, history: History, *, serializable: bool) -> list[str]:
    """What is wrong on one member: acknowledged keys that are missing or differ, and keys that nobody wrote."""
    problems: list[str] = []
    found: dict[str, str] = {}
    key = b"/numbered/"
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 64 << 20)]) as channel:
        stub = rpc_pb2_grpc.KVStub(channel)
        while True:
            request = rpc_pb2.RangeRequest(key=key, range_end=b"/numbered0", limit=5000, serializable=serializable)
            answer = stub.Range(request, timeout=30)
            found.update({kv.key.decode(): kv.value.decode() for kv in answer.kvs})
            if not answer.more:
                break
            key = answer.kvs[-1].key + b"\0"
    for name, value in history.acknowledged.items():
        if found.get(name) != value:
            problems.append(f"acknowledged {name} is {found.get(name)!r}, not {value!r}")
    for name, value in found.items():
        if name not in history.acknowledged and history.maybe.get(name) != value:
            problems.append(f"{name} = {value!r} was never written")
    return problems
