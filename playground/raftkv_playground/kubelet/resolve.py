"""Names of pods and Services, in a file per namespace that programs are pointed to.

Without a name server of its own (port 53 needs privileges, and ``/etc/hosts`` is the host's) the kubelet writes what
cluster DNS would answer as ``address name name...`` lines, in the format of ``/etc/hosts``, and puts
``RAFTKV_RESOLVER=hosts-file:<path>`` into every container's environment. This variable is the only thing a program
must understand to run here. A file is replaced as a whole (rename), so that a reader never sees half of it.

Records are those of Kubernetes' DNS specification: a ClusterIP Service has its address, a headless one the addresses
of its ready endpoints, and an endpoint with a host name its own name below the Service. Names are given with and
without ``.cluster.local``, as ``name.namespace.svc`` and ``name.namespace``; in the file of their own namespace also
as ``name``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from raftkv_playground.client import Informer
from raftkv_playground.objects import Object, labels_of

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.02
"""Changes that come together are written together."""


def _names(first: str, namespace: str, own: bool) -> list[str]:
    names = [f"{first}.{namespace}.svc.cluster.local", f"{first}.{namespace}.svc", f"{first}.{namespace}"]
    return [*names, first] if own else names


def build_hosts(namespace: str, services: Iterable[Object], slices: Iterable[Object]) -> str:
    """The file's text for pods of ``namespace``. Pure."""
    lines = ["127.0.0.1 localhost"]
    by_service: dict[tuple[str, str], list[Object]] = {}
    for item in slices:
        name = labels_of(item).get("kubernetes.io/service-name")
        if name:
            by_service.setdefault((item["metadata"]["namespace"], name), []).append(item)
    for service in sorted(services, key=lambda s: (s["metadata"]["namespace"], s["metadata"]["name"])):
        where, name = service["metadata"]["namespace"], service["metadata"]["name"]
        own, address = where == namespace, service["spec"].get("clusterIP")
        if address and address != "None":
            lines.append(" ".join([address, *_names(name, where, own)]))
        endpoints = sorted(_ready(by_service.get((where, name), [])))
        for ip, hostname in endpoints:
            if hostname:
                lines.append(" ".join([ip, *_names(f"{hostname}.{name}", where, own)]))
        if address == "None":
            lines += [" ".join([ip, *_names(name, where, own)]) for ip, _ in endpoints]
    return "\n".join(lines) + "\n"


def _ready(slices: Iterable[Object]) -> list[tuple[str, str]]:
    found = []
    for item in slices:
        for endpoint in item.get("endpoints") or []:
            if (endpoint.get("conditions") or {}).get("ready", True):
                found += [(address, endpoint.get("hostname") or "") for address in endpoint["addresses"]]
    return found


class Resolver:
    """Keeps the files up to date from informers of Services, EndpointSlices and namespaces."""

    def __init__(self, directory: Path, services: Informer, slices: Informer) -> None:
        self._directory = directory
        self._services, self._slices = services, slices
        self._asked: set[str] = set()
        self._written: dict[str, str] = {}
        self._changed = asyncio.Event()
        for informer in (services, slices):
            informer.add_handler(lambda _type, _item: self._changed.set())

    def path(self, namespace: str) -> Path:
        """The file for pods of a namespace; it exists when this returns."""
        if namespace not in self._asked:
            self._asked.add(namespace)
            self._write(namespace)
        return self._directory / f"{namespace}.hosts"

    def _write(self, namespace: str) -> None:
        text = build_hosts(namespace, self._services.store.values(), self._slices.store.values())
        if self._written.get(namespace) == text:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{namespace}.hosts"
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(text)
        fresh.replace(path)
        self._written[namespace] = text

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self._changed.clear()
            for namespace in sorted(self._asked):
                try:
                    self._write(namespace)
                except OSError as error:
                    log.warning("names of %s not written: %s", namespace, error)


def addresses_of(hosts: str) -> Mapping[str, list[str]]:
    """The file read back: name -> addresses."""
    found: dict[str, list[str]] = {}
    for line in hosts.splitlines():
        address, *names = line.split()
        for name in names:
            found.setdefault(name, []).append(address)
    return found
