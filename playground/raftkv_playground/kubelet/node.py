"""A node's own object: registered at the start, renewed by a Lease and now and then by its status."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import platform
from collections.abc import Mapping
from typing import Any

from raftkv_playground import client as api
from raftkv_playground.client import ApiClient, ApiError
from raftkv_playground.objects import Object, labels_of, now, status_of, with_condition

log = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
RENEW_SECONDS = 10.0
STATUS_SECONDS = 60.0
PODS_PER_NODE = 110


def allocatable() -> dict[str, str]:
    """What the machine has. Every node of the playground claims all of it: nothing is limited."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{memory // 1024}Ki",
        "ephemeral-storage": "100Gi",
        "pods": str(PODS_PER_NODE),
    }


def build_status(name: str, host_ip: str, port: int, version: str, before: Mapping[str, Any]) -> Object:
    """The node's status; conditions keep their transition times from ``before``."""
    conditions = list(before.get("conditions") or [])
    for type, status, reason, message in (
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet runs pods as processes"),
    ):
        entry = {"type": type, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now()}
        conditions = with_condition(conditions, entry)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "capacity": allocatable(),
        "allocatable": allocatable(),
        "addresses": [{"type": "InternalIP", "address": host_ip}, {"type": "Hostname", "address": name}],
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "architecture": machine,
            "bootID": "",
            "containerRuntimeVersion": "process://1",
            "kernelVersion": platform.release(),
            "kubeProxyVersion": version,
            "kubeletVersion": version,
            "machineID": name,
            "operatingSystem": "linux",
            "osImage": "RaftKV playground",
            "systemUUID": name,
        },
    }


def build_labels(name: str, zone: str) -> dict[str, str]:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": machine,
        "topology.kubernetes.io/region": "playground",
        "topology.kubernetes.io/zone": zone,
        "node.kubernetes.io/instance-type": "process",
    }


class NodeAgent:
    """Keeps one Node and its Lease."""

    def __init__(self, client: ApiClient, name: str, zone: str, host_ip: str, port: int) -> None:
        self._client = client
        self.name = name
        self._zone = zone
        self._host_ip = host_ip
        self._port = port
        self._version = "v1.36.2"

    async def register(self) -> None:
        """Create the Node, or take over the one of that name. Raises ApiError."""
        labels = build_labels(self.name, self._zone)
        version = await self._client.request("GET", "/version")
        self._version = version.get("gitVersion", self._version) if isinstance(version, dict) else self._version
        try:
            node = await self._client.create(api.NODES, {"metadata": {"name": self.name, "labels": labels}, "spec": {}})
        except ApiError as error:
            if not error.already_exists:
                raise
            node = await self._client.get(api.NODES, self.name)
            if not labels.items() <= labels_of(node).items():
                node = await self._client.patch(api.NODES, self.name, None, {"metadata": {"labels": labels}})
        await self._report()

    async def _report(self) -> None:
        node = await self._client.get(api.NODES, self.name)
        status = build_status(self.name, self._host_ip, self._port, self._version, status_of(node))
        await self._client.patch(api.NODES, self.name, None, {"status": status}, "merge", subresource="status")

    async def run(self) -> None:
        """Renew the Lease, and the status less often; a Node that was deleted is registered again."""
        rounds = 0
        while True:
            try:
                await self._renew()
                if rounds % int(STATUS_SECONDS / RENEW_SECONDS) == 0:
                    await self._report()
            except ApiError as error:
                log.info("node %s: %s", self.name, error)
                if error.not_found:
                    try:
                        await self.register()
                    except ApiError as again:
                        log.info("node %s: %s", self.name, again)
            rounds += 1
            await asyncio.sleep(RENEW_SECONDS)

    async def _renew(self) -> None:
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": moment}
        try:
            await self._client.patch(api.LEASES, self.name, LEASE_NAMESPACE, {"spec": spec})
        except ApiError as error:
            if not error.not_found:
                raise
            body = {"metadata": {"name": self.name, "namespace": LEASE_NAMESPACE}, "spec": spec}
            await self._client.create(api.LEASES, body, LEASE_NAMESPACE)
