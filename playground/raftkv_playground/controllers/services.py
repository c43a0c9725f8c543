"""Services: Endpoints and EndpointSlices.

Endpoints and one EndpointSlice per Service list the pods that its selector matches: the ready ones (all, with
``publishNotReadyAddresses``) in Endpoints, every one with its conditions in the slice. Cluster addresses are given by
the API server; the kubelet's proxy listens on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raftkv_playground import client as api
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.objects import (
    Key,
    Object,
    deleting,
    key_of,
    labels_of,
    name_hash,
    owner_reference,
    pod_finished,
    pod_ready,
    status_of,
    uid_of,
)

MANAGED_BY = "endpointslice-controller.k8s.io"
ENDPOINTS_PER_SLICE = 1000
"""Kubernetes' limit of one slice; what exceeds it is left out (no cluster of ours comes near)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One pod behind a Service."""

    pod: Object
    address: str
    ready: bool
    serving: bool
    terminating: bool


def headless(service: Mapping[str, Any]) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def target_port(port: Mapping[str, Any], pod: Mapping[str, Any]) -> int | None:
    """The number behind a Service port in this pod; None if the pod names no such port."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target or int(port["port"])
    for container in pod["spec"].get("containers") or []:
        for entry in container.get("ports") or []:
            if entry.get("name") == target and entry.get("protocol", "TCP") == port.get("protocol", "TCP"):
                return int(entry["containerPort"])
    return None


def endpoints_of(service: Mapping[str, Any], pods: Iterable[Object]) -> list[Endpoint]:
    """The pods behind a Service, by name. Pure."""
    selector = service["spec"].get("selector") or {}
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    found = []
    for pod in pods:
        address = status_of(pod).get("podIP")
        if pod["metadata"].get("namespace") != service["metadata"].get("namespace") or not address:
            continue
        if not selector.items() <= labels_of(pod).items() or pod_finished(pod):
            continue
        serving, going = pod_ready(pod), deleting(pod)
        found.append(Endpoint(pod, address, publish or (serving and not going), serving, going))
    return sorted(found, key=lambda endpoint: key_of(endpoint.pod))


def _port_groups(service: Mapping[str, Any], found: Sequence[Endpoint]) -> list[tuple[list[Object], list[Endpoint]]]:
    """Pods may give a named port different numbers: endpoints with equal port lists belong together."""
    groups: dict[tuple[tuple[str, int, str], ...], list[Endpoint]] = {}
    for endpoint in found:
        ports = []
        for port in service["spec"].get("ports") or []:
            number = target_port(port, endpoint.pod)
            if number is not None:
                ports.append((port.get("name", ""), number, port.get("protocol", "TCP")))
        groups.setdefault(tuple(ports), []).append(endpoint)
    result = []
    for ports_key, members in sorted(groups.items()):
        listed: list[Object] = [
            {"name": name, "port": port, "protocol": protocol} for name, port, protocol in ports_key
        ]
        result.append((listed, members))
    return result


def build_subsets(service: Mapping[str, Any], found: Sequence[Endpoint]) -> list[Object]:
    """The ``subsets`` of the Service's Endpoints."""
    subsets = []
    for ports, members in _port_groups(service, found):
        subset: Object = {}
        if ready := [_address(service, endpoint) for endpoint in members if endpoint.ready]:
            subset["addresses"] = ready
        if waiting := [_address(service, e) for e in members if not e.ready and not e.terminating]:
            subset["notReadyAddresses"] = waiting
        if not subset:
            continue
        if ports:
            subset["ports"] = [{name: value for name, value in port.items() if value != ""} for port in ports]
        subsets.append(subset)
    return subsets


def _hostname(service: Mapping[str, Any], pod: Mapping[str, Any]) -> str | None:
    if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == service["metadata"]["name"]:
        return str(pod["spec"]["hostname"])
    return None


def _target(pod: Object) -> Object:
    metadata = pod["metadata"]
    return {"kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}


def _address(service: Mapping[str, Any], endpoint: Endpoint) -> Object:
    entry: Object = {"ip": endpoint.address, "targetRef": _target(endpoint.pod)}
    if hostname := _hostname(service, endpoint.pod):
        entry["hostname"] = hostname
    if node := endpoint.pod["spec"].get("nodeName"):
        entry["nodeName"] = node
    return entry


def build_slices(service: Object, found: Sequence[Endpoint]) -> list[Object]:
    """The Service's EndpointSlices, one per port list, under names that depend on the Service and the ports only."""
    slices = []
    for ports, members in _port_groups(service, found) or [([], [])]:
        entries = []
        for endpoint in members[:ENDPOINTS_PER_SLICE]:
            entry: Object = {
                "addresses": [endpoint.address],
                "conditions": {
                    "ready": endpoint.ready,
                    "serving": endpoint.serving,
                    "terminating": endpoint.terminating,
                },
                "targetRef": _target(endpoint.pod),
            }
            if hostname := _hostname(service, endpoint.pod):
                entry["hostname"] = hostname
            if node := endpoint.pod["spec"].get("nodeName"):
                entry["nodeName"] = node
            entries.append(entry)
        metadata = service["metadata"]
        labels = {
            **labels_of(service),
            "kubernetes.io/service-name": metadata["name"],
            "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
        }
        if headless(service):
            labels["service.kubernetes.io/headless"] = ""
        slices.append(
            {
                "metadata": {
                    "name": f"{metadata['name'][:240]}-{name_hash([metadata['uid'], ports], 5)}",
                    "namespace": metadata["namespace"],
                    "labels": labels,
                    "ownerReferences": [owner_reference(service)],
                },
                "addressType": "IPv4",
                "endpoints": entries,
                "ports": ports,
            }
        )
    return slices


class EndpointsController(Controller):
    """Keeps Endpoints and EndpointSlices of Services with a selector."""

    name = "endpoints-controller"
    primary = api.SERVICES

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        self._labels: dict[Key, dict[str, str]] = {}
        self.trigger(api.PODS, self._services_of_pod)
        self.trigger(api.ENDPOINTS, lambda item: [key_of(item)] if key_of(item) in self.store(api.SERVICES) else [])
        self.trigger(api.ENDPOINT_SLICES, self._service_of_slice)

    def _services_of_pod(self, pod: Object) -> list[Key]:
        """By the labels that it has and by those that it had when last seen."""
        key = key_of(pod)
        before, labels = self._labels.get(key, {}), labels_of(pod)
        if key in self.store(api.PODS):
            self._labels[key] = labels
        else:
            self._labels.pop(key, None)
        found = []
        for service_key, service in self.store(api.SERVICES).items():
            selector = service["spec"].get("selector")
            if service_key[0] != key[0] or not selector:
                continue
            if selector.items() <= labels.items() or selector.items() <= before.items():
                found.append(service_key)
        return found

    def _service_of_slice(self, item: Object) -> list[Key]:
        labels = labels_of(item)
        if labels.get("endpointslice.kubernetes.io/managed-by") != MANAGED_BY:
            return []
        return [(item["metadata"]["namespace"], labels.get("kubernetes.io/service-name", ""))]

    async def sync(self, key: Key) -> float | None:
        service = self.store(api.SERVICES).get(key)
        if service is None or deleting(service):
            if service is None:
                await self._drop_endpoints(key)
            return None
        if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            return None
        service = {"apiVersion": "v1", "kind": "Service", **service}
        found = endpoints_of(service, self.store(api.PODS).values())
        await self._write_endpoints(service, build_subsets(service, found))
        await self._write_slices(service, build_slices(service, found))
        return None

    async def _drop_endpoints(self, key: Key) -> None:
        """Endpoints have no owner reference in Kubernetes: the controller removes them itself."""
        if key in self.store(api.ENDPOINTS):
            try:
                await self.client.delete(api.ENDPOINTS, key[1], key[0])
            except api.ApiError as error:
                if not error.not_found:
                    raise

    async def _write_endpoints(self, service: Object, subsets: list[Object]) -> None:
        metadata = service["metadata"]
        labels = dict(labels_of(service))
        if headless(service):
            labels["service.kubernetes.io/headless"] = ""
        current = self.store(api.ENDPOINTS).get(key_of(service))
        if current is None:
            body = {"metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
                    "subsets": subsets}  # fmt: skip
            await self.client.create(api.ENDPOINTS, body, metadata["namespace"])
        elif (current.get("subsets") or []) != subsets or labels_of(current) != labels:
            body = {**current, "metadata": {**current["metadata"], "labels": labels}, "subsets": subsets}
            await self.client.replace(api.ENDPOINTS, body)

    async def _write_slices(self, service: Object, wanted: list[Object]) -> None:
        key = key_of(service)
        current = {
            item["metadata"]["name"]: item
            for item in self.store(api.ENDPOINT_SLICES).values()
            if self._service_of_slice(item) == [key]
        }
        for body in wanted:
            before = current.pop(body["metadata"]["name"], None)
            if before is None:
                await self.client.create(api.ENDPOINT_SLICES, body, key[0])
            elif any((before.get(name) or []) != body[name] for name in ("endpoints", "ports")):
                metadata = {**before["metadata"], "labels": body["metadata"]["labels"]}
                await self.client.replace(api.ENDPOINT_SLICES, {**before, **body, "metadata": metadata})
        for name, item in current.items():
            try:
                await self.client.delete(api.ENDPOINT_SLICES, name, key[0], uid=uid_of(item))
            except api.ApiError as error:
                if not error.not_found:
                    raise
