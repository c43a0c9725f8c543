"""The kubelet's own HTTP endpoint, which the API server asks for logs.

``GET /containerLogs/<namespace>/<pod>/<container>`` with the query of ``kubectl logs`` (``follow``, ``previous``,
``tailLines``, ``sinceSeconds``, ``sinceTime``, ``timestamps``, ``limitBytes``) at the node's InternalIP and the port
in ``status.daemonEndpoints.kubeletEndpoint.Port`` of the Node, as with a real kubelet. Every node of this process has
an address of its own. Requests must carry the bearer token that was given at the start; without one given, none is
asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hmac
import logging
import ssl
from collections.abc import Callable, Mapping

from aiohttp import web

from raftkv_playground.kubelet.logs import LogOptions, read
from raftkv_playground.kubelet.worker import PodWorker
from raftkv_playground.objects import parse_time

log = logging.getLogger(__name__)

PORT = 10250
"""The usual kubelet port; another one is taken when it is not free."""
Find = Callable[[str, str], PodWorker | None]


def log_options(query: Mapping[str, str]) -> LogOptions:
    """Raises ValueError for what is no number or no time."""
    since: float | None = None
    if "sinceSeconds" in query:
        since = datetime.datetime.now(datetime.UTC).timestamp() - int(query["sinceSeconds"])
    elif query.get("sinceTime"):
        since = parse_time(query["sinceTime"]).timestamp()
    return LogOptions(
        follow=query.get("follow") in ("true", "1"),
        tail_lines=int(query["tailLines"]) if "tailLines" in query else None,
        since=since,
        timestamps=query.get("timestamps") in ("true", "1"),
        limit_bytes=int(query["limitBytes"]) if "limitBytes" in query else None,
    )


class KubeletServer:
    """Serves on the given addresses; ``find(namespace, pod)`` gives a pod's worker."""

    def __init__(self, find: Find, token: str | None, tls: ssl.SSLContext | None = None) -> None:
        self._find = find
        self._token = token
        self._tls = tls
        self._runner: web.AppRunner | None = None

    async def start(self, hosts: list[str]) -> dict[str, int]:
        """Listen; the port by host."""
        app = web.Application(middlewares=[self._authenticate])
        app.router.add_get("/healthz", _healthy)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        return {host: await self._listen(host) for host in hosts}

    async def _listen(self, host: str) -> int:
        assert self._runner is not None
        for port in (PORT, 0):
            site = web.TCPSite(self._runner, host, port, ssl_context=self._tls)
            try:
                await site.start()
            except OSError:
                if port == 0:
                    raise
                continue
            break
        for address in self._runner.addresses:
            if address[0] == host:
                return int(address[1])
        raise RuntimeError(f"no listening address on {host}")

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._token and not hmac.compare_digest(given.encode(), self._token.encode()):
            raise web.HTTPUnauthorized(text="Unauthorized")
        answer = await handler(request)  # type: ignore[misc]
        assert isinstance(answer, web.StreamResponse)
        return answer

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        where = request.match_info
        worker = self._find(where["namespace"], where["pod"])
        if worker is None:
            raise web.HTTPNotFound(text=f'pod "{where["pod"]}" is not on this node')
        try:
            options = log_options(request.query)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        previous = request.query.get("previous") in ("true", "1")
        file = worker.logs.find(where["container"], previous)
        if file is None:
            what = "previous terminated container" if previous else "container"
            text = f'{what} "{where["container"]}" in pod "{where["pod"]}" not found'
            raise web.HTTPBadRequest(text=text)
        answer = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            async for block in read(file, options):
                await answer.write(block)
            await answer.write_eof()
        return answer


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="ok")
