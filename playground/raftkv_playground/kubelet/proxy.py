"""Service addresses: a TCP listener per ClusterIP and port, forwarding to ready endpoints in turn.

What kube-proxy does in the kernel is done here by copying bytes. New connections go to the endpoints that are ready
at that moment; a connection that is open stays where it is. Without any ready endpoint a connection is reset, as a
cluster refuses it. UDP is not forwarded. A port that cannot be bound (below 1024 without privileges; taken by a
process that listens on 0.0.0.0) is retried and reported by an Event on the Service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from raftkv_playground.client import Informer
from raftkv_playground.events import EventRecorder
from raftkv_playground.objects import Object, labels_of

log = logging.getLogger(__name__)

COPY_BYTES = 1 << 16
CONNECT_SECONDS = 3.0
BIND_RETRY_SECONDS = 5.0
CONNECTIONS_PER_PORT = 4096
"""Connections at a time through one Service port; more are reset."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """Where to listen, and for whom."""

    address: str
    port: int
    namespace: str
    service: str
    port_name: str


def frontends(services: Iterable[Object]) -> set[Frontend]:
    """All TCP ports of all cluster addresses. Pure."""
    found = set()
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        address = spec.get("clusterIP") or ""
        if not address.startswith("127.") or metadata.get("deletionTimestamp"):
            continue
        for port in spec.get("ports") or []:
            if port.get("protocol", "TCP") == "TCP":
                name = port.get("name", "")
                found.add(Frontend(address, int(port["port"]), metadata["namespace"], metadata["name"], name))
    return found


def backends(frontend: Frontend, slices: Iterable[Object]) -> list[tuple[str, int]]:
    """The ready endpoints behind a Service port. Pure."""
    found = []
    for item in slices:
        if item["metadata"]["namespace"] != frontend.namespace:
            continue
        if labels_of(item).get("kubernetes.io/service-name") != frontend.service:
            continue
        ports = [p["port"] for p in item.get("ports") or [] if (p.get("name") or "") == frontend.port_name]
        for endpoint in item.get("endpoints") or []:
            if ports and (endpoint.get("conditions") or {}).get("ready", True):
                found += [(address, int(ports[0])) for address in endpoint["addresses"]]
    return sorted(set(found))


class ServiceProxy:
    """Listens for all Services while it runs."""

    def __init__(self, services: Informer, slices: Informer, events: EventRecorder) -> None:
        self._services, self._slices, self.events = services, slices, events
        self._servers: dict[Frontend, asyncio.Server] = {}
        self._turn: dict[Frontend, int] = {}
        self._open: dict[Frontend, int] = {}
        self._changed = asyncio.Event()
        services.add_handler(lambda _type, _item: self._changed.set())

    async def run(self) -> None:
        try:
            while True:
                self._changed.clear()
                complete = await self._reconcile()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if complete else BIND_RETRY_SECONDS):
                        await self._changed.wait()
        finally:
            for server in self._servers.values():
                server.close()

    async def _reconcile(self) -> bool:
        wanted = frontends(self._services.store.values())
        for gone in self._servers.keys() - wanted:
            self._servers.pop(gone).close()
        complete = True
        for frontend in sorted(wanted - self._servers.keys(), key=lambda f: (f.address, f.port)):
            complete &= await self._listen(frontend)
        return complete

    async def _listen(self, frontend: Frontend) -> bool:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(frontend, reader, writer)

        try:
            self._servers[frontend] = await asyncio.start_server(serve, frontend.address, frontend.port)
            return True
        except OSError as error:
            service = self._services.store.get((frontend.namespace, frontend.service))
            if service is not None:
                text = f"the proxy cannot listen on {frontend.address}:{frontend.port}: {error.strerror}"
                item = {"apiVersion": "v1", "kind": "Service", **service}
                self.events.record(item, "Warning", "ProxyNotListening", text)
            return False

    def _choose(self, frontend: Frontend) -> list[tuple[str, int]]:
        """All ready endpoints, the one whose turn it is first."""
        found = backends(frontend, self._slices.store.values())
        if not found:
            return []
        turn = self._turn[frontend] = (self._turn.get(frontend, -1) + 1) % len(found)
        return found[turn:] + found[:turn]

    async def _serve(self, frontend: Frontend, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open.get(frontend, 0) >= CONNECTIONS_PER_PORT:
            _reset(writer)
            return
        self._open[frontend] = self._open.get(frontend, 0) + 1
        try:
            await self._forward(frontend, reader, writer)
        finally:
            self._open[frontend] -= 1

    async def _forward(self, frontend: Frontend, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for host, port in self._choose(frontend):
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    back = await asyncio.open_connection(host, port)
                break
            except (OSError, TimeoutError):
                continue
        else:
            _reset(writer)
            return
        back_reader, back_writer = back
        await asyncio.gather(_copy(reader, back_writer), _copy(back_reader, writer))
        for side in (writer, back_writer):
            side.close()
            with contextlib.suppress(OSError):
                await side.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end, which is passed on; a broken side breaks the other."""
    try:
        while data := await reader.read(COPY_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except (OSError, asyncio.IncompleteReadError):
        _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset, so that the peer learns that this was no orderly end."""
    peer: socket.socket | None = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
