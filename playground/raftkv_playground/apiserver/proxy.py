"""Requests that somebody else answers: pod logs (the node's kubelet), and HTTP proxies to pods, services and nodes.

A kubelet publishes where it listens in its Node's status: an address of type ``InternalIP`` and
``daemonEndpoints.kubeletEndpoint.Port``. Logs are read from ``GET /containerLogs/<namespace>/<pod>/<container>`` there,
with the query of the client, over plain HTTP (all of the playground is on the loopback interface). An error answer's
body is passed on as the message.
"""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp import web

from raftkv_playground.apiserver import errors
from raftkv_playground.apiserver.errors import Failure, Object
from raftkv_playground.apiserver.kinds import Kind
from raftkv_playground.apiserver.requests import Target
from raftkv_playground.apiserver.resources import Resources

CONNECT_SECONDS = 5.0
CHUNK_BYTES = 64 << 10
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "proxy-authorization",
    "host",
}


class Proxy:
    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self._session

    # ---------------------------------------------------------------------------------------------------- logs

    def _kubelet(self, node_name: str) -> str:
        node = self._resources.store.get(("", "nodes"), "", node_name)
        status = (node or {}).get("status") or {}
        addresses = {a["type"]: a["address"] for a in status.get("addresses") or []}
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
        if "InternalIP" not in addresses or not port:
            text = f'node "{node_name}" does not say where its kubelet listens'
            raise Failure(500, "InternalError", f"Internal error occurred: {text}")
        return f"http://{addresses['InternalIP']}:{port}"

    async def logs(self, request: web.Request, target: Target) -> web.StreamResponse:
        pod = self._resources.store.get(("", "pods"), target.namespace, target.name)
        if pod is None:
            raise errors.not_found("pods", "", target.name)
        spec = pod["spec"]
        names = [c["name"] for c in (spec.get("initContainers") or []) + spec["containers"]]
        container = request.query.get("container", "")
        if not container:
            if len(spec["containers"]) > 1:
                listed = " ".join(c["name"] for c in spec["containers"])
                text = f"a container name must be specified for pod {target.name}, choose one of: [{listed}]"
                raise errors.bad_request(text)
            container = spec["containers"][0]["name"]
        if container not in names:
            raise errors.bad_request(f"container {container} is not valid for pod {target.name}")
        if not spec.get("nodeName"):
            raise errors.bad_request(f"pod {target.name} does not have a host assigned")
        query = {k: v for k, v in request.query.items() if k != "container"}
        url = f"{self._kubelet(spec['nodeName'])}/containerLogs/{target.namespace}/{target.name}/{container}"
        return await self._relay(request, "GET", url, query, {}, None, logs=True)

    # --------------------------------------------------------------------------------------------------- proxy

    async def forward(self, request: web.Request, kind: Kind, target: Target) -> web.StreamResponse:
        """``.../proxy/PATH`` of a pod, a service or a node, by ``name``, ``name:port`` or ``scheme:name:port``."""
        base = self._endpoint(kind, target)
        headers = {
            k: v
            for k, v in request.headers.items()
            if k.lower() not in _HOP_BY_HOP | {"authorization", "content-length"}
        }
        body = await request.read() if request.can_read_body else None
        return await self._relay(request, request.method, f"{base}/{target.rest}", dict(request.query), headers, body)

    def _endpoint(self, kind: Kind, target: Target) -> str:
        parts = target.name.split(":")
        scheme, name, port = (
            ("http", parts[0], "") if len(parts) == 1 else ("http", *parts) if len(parts) == 2 else parts
        )
        item = self._resources.store.get(kind.key, target.namespace if kind.namespaced else "", name)
        if item is None:
            raise errors.not_found(kind.plural, kind.group, name)
        if kind.kind == "Pod":
            address = (item.get("status") or {}).get("podIP")
            if not address:
                raise errors.bad_request("address not allowed")
            return f"{scheme or 'http'}://{address}:{port or _first_port(item)}"
        if kind.kind == "Service":
            return f"{scheme or 'http'}://{self._backend(target.namespace, name, item, port)}"
        return self._kubelet(name)

    def _backend(self, namespace: str, name: str, service: Object, port: str) -> str:
        """One ready address of a service: by its Endpoints."""
        wanted = _service_port(service, port)
        endpoints = self._resources.store.get(("", "endpoints"), namespace, name)
        for subset in (endpoints or {}).get("subsets") or []:
            for candidate in subset.get("ports") or []:
                if candidate.get("name", "") == wanted.get("name", "") and subset.get("addresses"):
                    return f"{subset['addresses'][0]['ip']}:{candidate['port']}"
        raise Failure(503, "ServiceUnavailable", f'no endpoints available for service "{name}"', {})

    async def _relay(
        self,
        request: web.Request,
        method: str,
        url: str,
        query: dict[str, str],
        headers: dict[str, str],
        body: bytes | None,
        *,
        logs: bool = False,
    ) -> web.StreamResponse:
        try:
            answer = await self._client().request(
                method, url, params=query, headers=headers, data=body, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            text = f"error trying to reach service: {error}"
            raise Failure(503, "ServiceUnavailable", text, {}) from None
        async with answer:
            if logs and answer.status >= 400:
                text = (await answer.text()).strip()
                code = answer.status if answer.status < 500 else 500
                raise Failure(
                    code, "BadRequest" if code == 400 else "NotFound" if code == 404 else "InternalError", text
                )
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP | {"content-length"}}
            if logs:
                kept = {"Content-Type": "text/plain"}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            try:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            except (aiohttp.ClientError, ConnectionError):
                pass  # Either side left; there is nobody to tell.
            return response


def _first_port(pod: Object) -> Any:
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or []:
            return port["containerPort"]
    return 80


def _service_port(service: Object, port: str) -> Object:
    ports = service["spec"].get("ports") or []
    for candidate in ports:
        if not port or port in {candidate.get("name"), str(candidate.get("port"))}:
            return dict(candidate)
    raise errors.bad_request(f'no service port "{port}" found for service "{service["metadata"]["name"]}"')
