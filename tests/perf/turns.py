"""Five production nodes in one process and one thread, on a transport that hands lists over: what a put costs Python.

No sockets, no wake-ups and no other process are in it, so its processor time is the turns' own and repeats well; that
is what the regression test and the profile look at. Rings are files on tmpfs; stores commit on their own threads, as
they do in production.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raftkv_node import _engine
from raftkv_node.api.methods import Method
from raftkv_node.config import parse_arguments
from raftkv_node.pb import rpc_pb2
from raftkv_node.server.identity import load_or_format
from raftkv_node.server.lifecycle import identity_of
from raftkv_node.server.log import Logger
from raftkv_node.server.node import Node

START_SECONDS = 30.0
KEYS = 20_000
"""Different keys that are put."""
BASE_PORT = 20_000
"""Of peer URLs: names of the nodes, never bound."""


class Arrived:
    """A batch, as the engine's."""

    def __init__(self) -> None:
        self.unary: list[tuple[int, list[int], list[bytes], None]] = []
        self.events: list[tuple[Any, ...]] = []
        self.peer: list[tuple[int, list[bytes]]] = []

    def __bool__(self) -> bool:
        return bool(self.unary or self.events or self.peer)


class LoopTransport:
    """Stands in for the engine of one node; everything sent is in the receiver's next batch."""

    def __init__(self, ports: dict[int, LoopTransport]) -> None:
        self._ports = ports
        self._next = Arrived()
        self._inbound: dict[int, tuple[LoopTransport, int]] = {}
        self._links: dict[int, tuple[LoopTransport, int]] = {}
        self._frames: dict[int, list[bytes]] = {}
        self._next_inbound = 1 << 32
        self.answered = 0

    # what the node calls

    def poll(self, _timeout: float, _frames: int = 0, _seconds: float = 0.0) -> Arrived:
        arrived, self._next = self._next, Arrived()
        arrived.peer, self._frames = list(self._frames.items()), {}
        return arrived

    def flush(self) -> None:
        """All is handed over at once."""

    def wake(self) -> None:
        """The driver asks everybody in turn."""

    def reply(self, call_ids: Sequence[int], _messages: Sequence[bytes]) -> None:
        self.answered += len(call_ids)

    def reply_errors(self, errors: Sequence[tuple[int, int, str]]) -> None:
        raise RuntimeError(f"a call failed: {errors[0]}")

    def peer_connect(self, link_id: int, _host: str, port: int, hello: bytes, tls: object = None) -> None:
        other = self._ports[port]
        inbound = other._next_inbound
        other._next_inbound += 1
        other._inbound[inbound] = (self, link_id)
        self._links[link_id] = (other, inbound)
        other._next.events.append((_engine.EV_PEER_INBOUND, inbound, hello, "loop"))

    def peer_disconnect(self, link_id: int) -> None:
        self._links.pop(link_id, None)

    def peer_accept(self, inbound_id: int, hello_reply: bytes) -> None:
        other, link_id = self._inbound[inbound_id]
        other._next.events.append((_engine.EV_PEER_UP, link_id, hello_reply))

    def peer_reject(self, inbound_id: int, reason: bytes) -> None:
        raise RuntimeError(f"a node is refused: {reason.decode()}")

    def peer_send(self, frames: Sequence[tuple[int, bytes]]) -> list[int]:
        sizes = []
        for connection, frame in frames:
            way = self._links.get(connection) or self._inbound.get(connection)
            if way is None:
                sizes.append(-1)
                continue
            other, number = way
            other._frames.setdefault(number, []).append(frame)
            sizes.append(0)
        return sizes

    # what the driver of the nodes calls

    def call(self, method: int, call_ids: list[int], messages: list[bytes]) -> None:
        """Calls of clients."""
        self._next.unary.append((method, call_ids, messages, None))

    @property
    def waits(self) -> bool:
        """Whether something has arrived."""
        return bool(self._frames or self._next)


class Group:
    """The nodes; a context manager that leaves nothing behind."""

    def __init__(self, size: int = 5) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="turns-"))
        self._rings = Path(tempfile.mkdtemp(prefix="turns-", dir="/dev/shm"))
        ports: dict[int, LoopTransport] = {}
        ports.update({BASE_PORT + number: LoopTransport(ports) for number in range(size)})
        self._transports = list(ports.values())
        self.nodes = [self._node(number, size) for number in range(size)]
        self._next_call = 1

    def _node(self, number: int, size: int) -> Node:
        ring = self._rings / f"n{number}"
        ring.mkdir()
        cluster = ",".join(f"n{one}=http://127.0.0.1:{BASE_PORT + one}" for one in range(size))
        peer = f"http://127.0.0.1:{BASE_PORT + number}"
        config = parse_arguments(
            [
                *("--name", f"n{number}", "--data-dir", str(self._folder / f"n{number}")),
                *("--listen-client-urls", "http://127.0.0.1:1", "--advertise-client-urls", "http://127.0.0.1:1"),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", cluster, "--adr-path", str(ring), "--minimum-durability", "process"),
            ]
        )
        config.data_dir.mkdir(parents=True)
        identity, founding = identity_of(config, load_or_format(config.data_dir, 0, config.name))
        transport: Any = self._transports[number]
        return Node(config, identity, founding, transport, Logger("error", "json"))

    def __enter__(self) -> Group:
        deadline = time.monotonic() + START_SECONDS
        while not self._settled():
            if time.monotonic() > deadline:
                raise RuntimeError("the nodes found no leader")
            self.run(lambda: False, rounds=1)
            time.sleep(0.001)
        return self

    def _settled(self) -> bool:
        members = [node.member for node in self.nodes]
        return all(one is not None and one.leader_id and one.opened for one in members) and not any(
            transport.waits for transport in self._transports
        )

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.workers.close()
            if node.member is not None:
                node.member.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(self._rings, ignore_errors=True)

    @property
    def leader(self) -> int:
        """Position of the node that leads."""
        return next(at for at, node in enumerate(self.nodes) if node.member and node.member.raft.is_leader)

    def run(self, until: Callable[[], bool], rounds: int = 1_000_000) -> None:
        """Let every node that has something take a turn, one after the other, until then."""
        for _ in range(rounds):
            for node, transport in zip(self.nodes, self._transports, strict=True):
                if transport.waits or rounds == 1:
                    node.turn()
            if until():
                return

    def put(self, leader: int, messages: list[bytes]) -> None:
        """Puts that arrive together at the leader; returns when they are answered and everybody is at rest."""
        transport = self._transports[leader]
        wanted = transport.answered + len(messages)
        transport.call(Method.PUT, list(range(self._next_call, self._next_call + len(messages))), messages)
        self._next_call += len(messages)
        self.run(lambda: transport.answered >= wanted and not any(one.waits for one in self._transports))


def requests(number: int) -> list[bytes]:
    """Encoded puts, like those of the benchmarks."""
    value = bytes(256)
    return [
        rpc_pb2.PutRequest(key=b"/bench/%016d" % (at * 7919 % KEYS), value=value).SerializeToString()
        for at in range(number)
    ]


def puts(group: Group, number: int, together: int) -> float:
    """Processor seconds of the calling thread for a put."""
    messages = deque(requests(number))
    leader = group.leader
    began = time.thread_time()
    while messages:
        group.put(leader, [messages.popleft() for _ in range(min(together, len(messages)))])
    return (time.thread_time() - began) / number


def main() -> None:
    """Print it for one put at a time, and for many."""
    with Group() as group:
        puts(group, 2000, 1)
        for together, number in ((1, 3000), (100, 30_000), (1000, 60_000)):
            best = min(puts(group, number, together) for _ in range(3))
            print(f"{together:5} together: {best * 1e6:7.1f} us of processor time for a put")


if __name__ == "__main__":
    main()
