"""Namespaces: what each one gets when it is made, and emptying it when it is deleted."""

from __future__ import annotations

import asyncio
import logging

from raftkv_playground import client as api
from raftkv_playground.client import ApiClient, ApiError
from raftkv_playground.controllers.garbage import discover
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.objects import Key, Object, deleting, key_of

log = logging.getLogger(__name__)

ROOT_CA = "kube-root-ca.crt"
EMPTYING_AGAIN_SECONDS = 0.5


class NamespaceDefaults(Controller):
    """Every namespace has the service account ``default`` and the ConfigMap with the API server's certificate."""

    name = "namespace-defaults-controller"
    primary = api.NAMESPACES

    def __init__(self, client: ApiClient, informers: Informers, ca_certificate: str) -> None:
        super().__init__(client, informers)
        self._ca_certificate = ca_certificate
        for resource in (api.SERVICE_ACCOUNTS, api.CONFIG_MAPS):
            self.trigger(resource, self._namespace_of)

    def _namespace_of(self, item: Object) -> list[Key]:
        name = item["metadata"]["name"]
        return [("", item["metadata"]["namespace"])] if name in ("default", ROOT_CA) else []

    async def sync(self, key: Key) -> float | None:
        namespace = self.store(api.NAMESPACES).get(key)
        if namespace is None or deleting(namespace):
            return None
        name = key[1]
        if (name, "default") not in self.store(api.SERVICE_ACCOUNTS):
            await self._create(api.SERVICE_ACCOUNTS, {"metadata": {"name": "default", "namespace": name}})
        data = {"ca.crt": self._ca_certificate}
        current = self.store(api.CONFIG_MAPS).get((name, ROOT_CA))
        if current is None:
            body: Object = {"metadata": {"name": ROOT_CA, "namespace": name}, "data": data}
            await self._create(api.CONFIG_MAPS, body)
        elif current.get("data") != data:
            await self.client.replace(api.CONFIG_MAPS, {**current, "data": data})
        return None

    async def _create(self, resource: api.Resource, body: Object) -> None:
        try:
            await self.client.create(resource, body, body["metadata"]["namespace"])
        except ApiError as error:
            if not error.already_exists:
                raise


class NamespaceEmptier(Controller):
    """Deletes all that is in a namespace that is being deleted, then takes off its finalizer."""

    name = "namespace-controller"
    primary = api.NAMESPACES

    async def sync(self, key: Key) -> float | None:
        namespace = self.store(api.NAMESPACES).get(key)
        if namespace is None or not deleting(namespace):
            return None
        left = await self._empty(key[1])
        if left:
            log.debug("namespace %s still holds %s", key[1], left)
            return EMPTYING_AGAIN_SECONDS
        namespace = await self.client.get(api.NAMESPACES, key[1])
        finalizers = [name for name in namespace["spec"].get("finalizers") or [] if name != "kubernetes"]
        body = {**namespace, "spec": {**namespace["spec"], "finalizers": finalizers}}
        try:
            await self.client.replace(api.NAMESPACES, body, subresource="finalize")
        except ApiError as error:
            if not error.not_found:
                raise
        return None

    async def _empty(self, name: str) -> list[str]:
        """Ask for every object's deletion; returns what is left, as ``plural/name``."""
        left: list[str] = []
        for resource in [r for r in await discover(self.client) if r.namespaced]:
            items, _ = await self.client.list(resource, name)
            for item in items:
                left.append(f"{resource.plural}/{item['metadata']['name']}")
                if deleting(item):
                    continue
                try:
                    await self.client.delete(resource, key_of(item)[1], name, propagation="Background")
                except ApiError as error:
                    if not (error.not_found or error.conflict):
                        raise
            await asyncio.sleep(0)
        return left
