"""The network between members: a TCP proxy for each directed link, with cuts, delays and losses for each direction.

Each member finds the others in a hosts file of its own, which names one address of the proxy for each of them: member i
reaches member j at 127.2.i.j, and the proxy goes on to where j listens, 127.1.0.j. So the proxy knows both ends of
every connection by the address that was dialled. No privileges are needed; all ports of a run are the same number.

A rule belongs to a direction, "what i sends to j", whoever has dialled the connection: the bytes i to j of a connection
that j has made obey it too. A rule holds bytes back (a cut: they wait, as in the kernel's buffers of a real one, and
arrive when it ends), breaks connections and refuses new ones (a reset), delays them, narrows them to a rate, or loses
some: under TCP a lost segment is one that arrives a retransmission later and holds up all that follows, which is what
is done here. What is not done: bytes are never changed, reordered or doubled, since TCP would not let them through.

It runs as a process of its own, told by lines of JSON on its standard input, so that the load's threads do not slow it:
``{"member": i}`` opens the links from and to member i, ``{"rules": [[i, j, {...}], ...]}`` sets rules; each line is
answered by one line once it holds. It ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass

CHUNK_BYTES = 16 << 10
QUEUE_CHUNKS = 64
"""On their way in one direction of one connection; whoever sends more has to wait, as on a full socket."""
CUT_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Rule:
    """What happens to the bytes of one direction."""

    cut: bool = False
    reset: bool = False
    delay_ms: float = 0.0
    loss: float = 0.0
    """Share of chunks that arrive one retransmission later."""
    bytes_per_second: int = 0
    """0: no bound."""


RETRANSMISSION_SECONDS = 0.2
FREE = Rule()


def listen_host(member: int) -> str:
    return f"127.1.0.{member}"


def link_host(sender: int, receiver: int) -> str:
    return f"127.2.{sender}.{receiver}"


class Proxy:
    """All links of a run."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._rng = random.Random(seed)
        self._members: list[int] = []
        self._rules: dict[tuple[int, int], Rule] = {}
        self._open: dict[tuple[int, int], set[asyncio.StreamWriter]] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def rule(self, sender: int, receiver: int) -> Rule:
        return self._rules.get((sender, receiver), FREE)

    async def add(self, member: int) -> None:
        """Opens the links between a member and all others."""
        for other in self._members:
            for pair in ((member, other), (other, member)):
                await self._listen(*pair)
        self._members.append(member)

    async def _listen(self, sender: int, receiver: int) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(sender, receiver, reader, writer)

        server = await asyncio.start_server(serve, link_host(sender, receiver), self._port, limit=CHUNK_BYTES)
        self._servers.append(server)

    def set_rule(self, sender: int, receiver: int, rule: Rule) -> None:
        """From now on; a reset ends what is open between the two."""
        self._rules[sender, receiver] = rule
        if rule.reset:
            for pair in ((sender, receiver), (receiver, sender)):
                for writer in self._open.get(pair, set()):
                    writer.transport.abort()

    async def _serve(
        self, sender: int, receiver: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection that ``sender`` has made to ``receiver``."""
        if self.rule(sender, receiver).reset or self.rule(receiver, sender).reset:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(listen_host(receiver), self._port, limit=CHUNK_BYTES)
        except OSError:
            writer.transport.abort()
            return
        ends = self._open.setdefault((sender, receiver), set())
        ends |= {writer, far_writer}
        pumps = [
            asyncio.create_task(self._pump(sender, receiver, reader, far_writer)),
            asyncio.create_task(self._pump(receiver, sender, far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, far_writer):
                ends.discard(end)
                end.transport.abort()

    async def _pump(
        self, sender: int, receiver: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carries bytes in one direction until either end is gone."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_CHUNKS)
        delivery = asyncio.create_task(self._deliver(sender, receiver, queue, writer))
        free_at = 0.0
        try:
            while data := await reader.read(CHUNK_BYTES):
                rule, now = self.rule(sender, receiver), asyncio.get_running_loop().time()
                due = now + rule.delay_ms / 1000
                if rule.loss and self._rng.random() < rule.loss:
                    due += RETRANSMISSION_SECONDS
                if rule.bytes_per_second:
                    free_at = max(free_at, now) + len(data) / rule.bytes_per_second
                    due = max(due, free_at)
                await queue.put((due, data))
        except OSError:
            pass
        finally:
            # The end of a connection does not overtake its bytes, unless the link is cut.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(queue.join(), 1.0)
            delivery.cancel()

    async def _deliver(
        self,
        sender: int,
        receiver: int,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
    ) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(OSError):
            while True:
                due, data = await queue.get()
                if (wait := due - clock()) > 0:
                    await asyncio.sleep(wait)
                while self.rule(sender, receiver).cut:
                    await asyncio.sleep(CUT_LOOK_SECONDS)
                writer.write(data)
                await writer.drain()
                queue.task_done()

    async def obey(self, line: str) -> None:
        """One line of orders."""
        order = json.loads(line)
        if "member" in order:
            await self.add(order["member"])
        for sender, receiver, rule in order.get("rules", []):
            self.set_rule(sender, receiver, Rule(**rule))


async def serve(port: int, seed: int) -> None:
    """Obeys standard input until it ends."""
    proxy = Proxy(port, seed)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await proxy.obey(line.decode())
        print("ok", flush=True)


class Links:
    """The driver's side: starts the proxy and tells it."""

    def __init__(self, port: int, seed: int) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def _tell(self, order: dict[str, object]) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            answer = self._process.stdout.readline()
        assert answer == "ok\n", f"the proxy of the links has ended: {answer!r}"

    def add(self, member: int) -> None:
        self._tell({"member": member})

    def set(self, pairs: list[tuple[int, int]], rule: Rule) -> None:
        """The same rule for several directions (sender, receiver)."""
        self._tell({"rules": [[*pair, asdict(rule)] for pair in pairs]})

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait(10)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
