"""The Kubernetes API through the ``kubernetes`` package's asyncio client.

Only its configuration (kubeconfig, service account with token renewal) and its transport are used: objects stay plain
dictionaries, so that a field which this version of the package does not know is never lost on the way.
"""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client
from kubernetes.aio import config as untyped_config

from raftkv_operator import metrics
from raftkv_operator.api import constants
from raftkv_operator.api.types import Object
from raftkv_operator.observe.seams import PODS, KubeError, Resource

config: Final[Any] = untyped_config
REQUEST_TIMEOUT_SECONDS = 30.0
LIST_PAGE_OBJECTS = 500
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"


class KubeClient:
    """``observe.seams.Kube`` over HTTP(S)."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api: Any = api

    @classmethod
    async def connect(cls, kubeconfig: str | None = None) -> Self:
        """Reads the kubeconfig (or ``KUBECONFIG``), or without one the pod's service account."""
        settings = client.Configuration()
        if kubeconfig is not None:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=settings)
        else:
            try:
                config.load_incluster_config(client_configuration=settings)
            except config.ConfigException:
                await config.load_kube_config(client_configuration=settings)
        settings.retries = False
        return cls(client.ApiClient(settings))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections."""
        await self._api.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, None if there is none."""
        try:
            return await self._request("GET", resource, _path(resource, namespace, name))
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    async def select(self, resource: Resource, namespace: str, selector: str) -> list[Object]:
        """The objects of a namespace (of all, if empty) that a label selector matches, from a consistent read."""
        found: list[Object] = []
        query = {"limit": str(LIST_PAGE_OBJECTS), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self._request("GET", resource, f"{_path(resource, namespace)}?{urlencode(query)}")
            found += page.get("items") or ()
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
            query["continue"] = token

    async def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        """Creates; code 409 if the name is taken."""
        return await self._request("POST", resource, _written(_path(resource, namespace)), body)

    async def replace(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Replaces the object of the body's resourceVersion; code 409 if it has changed."""
        return await self._request("PUT", resource, _written(_path(resource, namespace, name)), body)

    async def merge(
        self, resource: Resource, namespace: str, name: str, patch: Object, subresource: str = ""
    ) -> Object:
        """Applies a JSON merge patch."""
        path = _written(_path(resource, namespace, name, subresource))
        return await self._request("PATCH", resource, path, patch, MERGE)

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, patch: list[Any], subresource: str = ""
    ) -> Object:
        """Applies a JSON patch; code 422 (or 409) if one of its tests fails."""
        path = _written(_path(resource, namespace, name, subresource))
        return await self._request("PATCH", resource, path, patch, JSON_PATCH)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Deletes the object of this very uid; one that is gone or was replaced is no error."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._request("DELETE", resource, _path(resource, namespace, name), body)
        except KubeError as error:
            if error.code not in (404, 409):
                raise

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Evicts the pod of this very uid; code 429 where a disruption budget forbids it."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        try:
            await self._request("POST", PODS, _written(_path(PODS, namespace, name, "eviction")), body)
        except KubeError as error:
            if error.code not in (404, 409):
                raise

    async def _request(
        self, method: str, resource: Resource, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Object:
        started, code = time.monotonic(), 0
        try:
            headers = {
                "Accept": "application/json",
                "Content-Type": content_type,
                "User-Agent": constants.FIELD_MANAGER,
            }
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            url = self._api.configuration.host.rstrip("/") + path
            answer = await self._api.call_api(
                method, url, headers, body, _request_timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
            )
            raw = await answer.read()
            code = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            metrics.kube_request(method, resource.plural, code, time.monotonic() - started)
        try:
            found = json.loads(raw) if raw else {}
        except ValueError:
            found = {"message": raw[:200].decode(errors="replace")}
        if not 200 <= code < 300:
            raise KubeError(code, str(found.get("reason", "")), str(found.get("message", "")))
        return dict(found)


def _path(resource: Resource, namespace: str, name: str = "", subresource: str = "") -> str:
    parts = ["/apis", resource.group, resource.version] if resource.group else ["/api", resource.version]
    if namespace:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(resource.plural)
    if name:
        parts.append(quote(name, safe=""))
    if subresource:
        parts.append(subresource)
    return "/".join(parts)


def _written(path: str) -> str:
    return f"{path}?{urlencode({'fieldManager': constants.FIELD_MANAGER})}"
