"""What the server does by itself after a write: serve new definitions, empty and remove namespaces and definitions,
and give each namespace its ``default`` ServiceAccount and the cluster's CA certificate.

On a real cluster part of this is done by controllers elsewhere. It is here because it keeps the server's own promises
(a namespace that is gone is empty; a definition that is Established is served); it works on the store, in the event
loop, one object per step.
"""

from __future__ import annotations

import asyncio
import copy
import logging

from raftkv_playground.apiserver.crd.definition import CLEANUP_FINALIZER, custom_kinds
from raftkv_playground.apiserver.errors import Failure, Object
from raftkv_playground.apiserver.fields import Manager, decode_managers, encode_managers, update
from raftkv_playground.apiserver.kinds import Kind
from raftkv_playground.apiserver.metadata import now
from raftkv_playground.apiserver.resources import Options, Resources
from raftkv_playground.apiserver.store import Change

log = logging.getLogger(__name__)

DEFINITIONS = ("apiextensions.k8s.io", "customresourcedefinitions")
NAMESPACES = ("", "namespaces")
RETRY_SECONDS = 0.1
"""How often a namespace or definition that still has content is looked at again."""
_WRITER = "kube-apiserver"
_METADATA = {("f:metadata",)}


class Housekeeping:
    def __init__(self, resources: Resources, ca_certificate: str) -> None:
        self._resources = resources
        self._store = resources.store
        self._ca_certificate = ca_certificate
        self._tasks: set[asyncio.Task[None]] = set()
        self._terminating: set[tuple[str, str]] = set()
        self._store.listen(self._heard)

    def _heard(self, change: Change) -> None:
        if change.resource not in {DEFINITIONS, NAMESPACES}:
            return
        # Later, not inside the write that is being told of.
        asyncio.get_running_loop().call_soon(self._act, change)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _act(self, change: Change) -> None:
        name = change.object["metadata"]["name"]
        item = self._store.get(change.resource, "", name)
        if change.resource == DEFINITIONS:
            if item is None:
                self._withdraw(change.object)
            elif item["metadata"].get("deletionTimestamp"):
                self._start(("crd", name), self._end_definition(name))
            else:
                self._establish(item)
        elif item is not None:
            if item["metadata"].get("deletionTimestamp"):
                self._start(("ns", name), self._end_namespace(name))
            elif change.kind == "ADDED":
                self._equip(name)

    def _start(self, key: tuple[str, str], work: object) -> None:
        if key in self._terminating:
            work.close()  # type: ignore[attr-defined]
            return
        self._terminating.add(key)
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._tasks.discard(finished)
            self._terminating.discard(key)
            if not finished.cancelled() and finished.exception():
                log.error("%s %s: %s", *key, finished.exception())

        task.add_done_callback(done)

    # --------------------------------------------------------------------------------------------- definitions

    def _establish(self, item: Object) -> None:
        registry = self._resources.registry
        names = item["spec"]["names"]
        wanted = {(k.group, k.version, k.plural): k for k in custom_kinds(item)}
        served = [k for k in registry.all() if k.custom and k.custom.name == item["metadata"]["name"]]
        for kind in served:
            if (kind.group, kind.version, kind.plural) not in wanted:
                registry.drop(kind.group, kind.version, kind.plural)
        for key, kind in wanted.items():
            if registry.find(*key) is None:
                self._store.born(kind.key)
            registry.add(kind)
        conditions = [
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]
        had = {c["type"]: c for c in item["status"].get("conditions") or []}
        if set(had) >= {c[0] for c in conditions} and item["status"]["acceptedNames"] == names:
            return
        new = copy.deepcopy(item)
        new["status"]["acceptedNames"] = copy.deepcopy(names)
        new["status"]["conditions"] = [
            had.get(kind)
            or {"type": kind, "status": "True", "lastTransitionTime": now(), "reason": reason, "message": message}
            for kind, reason, message in conditions
        ]
        definition = registry.find(DEFINITIONS[0], "v1", DEFINITIONS[1])
        assert definition is not None
        managers = decode_managers(new["metadata"].get("managedFields"))
        writer = Manager(_WRITER, "Update", definition.api_version, "status", now())
        update(item, new, definition.shape, managers, writer, {("f:spec",), *_METADATA})
        new["metadata"]["managedFields"] = encode_managers(managers.values())
        self._store.put(DEFINITIONS, new)

    def _withdraw(self, item: Object) -> None:
        for kind in self._resources.registry.all():
            if kind.custom and kind.custom.name == item["metadata"]["name"]:
                self._resources.registry.drop(kind.group, kind.version, kind.plural)
                self._store.close_watchers(kind.key)

    async def _end_definition(self, name: str) -> None:
        while (item := self._store.get(DEFINITIONS, "", name)) is not None:
            key = (item["spec"]["group"], item["spec"]["names"]["plural"])
            kind = self._resources.registry.by_key(key)
            if kind is None or not self._delete_all(kind, None):
                new = copy.deepcopy(item)
                rest = [f for f in new["metadata"].get("finalizers") or [] if f != CLEANUP_FINALIZER]
                if not rest:
                    self._store.remove(DEFINITIONS, new)
                    return
                if rest != new["metadata"]["finalizers"]:
                    new["metadata"]["finalizers"] = rest
                    self._store.put(DEFINITIONS, new)
            await asyncio.sleep(RETRY_SECONDS)

    # ---------------------------------------------------------------------------------------------- namespaces

    def _equip(self, name: str) -> None:
        if self._store.get(("", "serviceaccounts"), name, "default") is None:
            account = {"metadata": _meta(name, "default")}
            self._store.put(("", "serviceaccounts"), {"kind": "ServiceAccount", "apiVersion": "v1", **account})
        if self._store.get(("", "configmaps"), name, "kube-root-ca.crt") is None:
            meta = _meta(name, "kube-root-ca.crt")
            item = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": meta, "data": {"ca.crt": self._ca_certificate}}
            self._store.put(("", "configmaps"), item)

    async def _end_namespace(self, name: str) -> None:
        # A moment in which the namespace can be seen as terminating, and late creations are refused.
        await asyncio.sleep(RETRY_SECONDS)
        while (item := self._store.get(NAMESPACES, "", name)) is not None:
            left = 0
            for kind in self._resources.registry.all():
                if kind.namespaced and kind.stored and kind.storage_key is None:
                    left += self._delete_all(kind, name)
            if not left:
                new = copy.deepcopy(item)
                new["spec"]["finalizers"] = [f for f in new["spec"].get("finalizers") or [] if f != "kubernetes"]
                if not new["spec"]["finalizers"] and not new["metadata"].get("finalizers"):
                    self._store.remove(NAMESPACES, new)
                    return
                if new != item:
                    self._store.put(NAMESPACES, new)
            await asyncio.sleep(RETRY_SECONDS)

    def _delete_all(self, kind: Kind, namespace: str | None) -> int:
        """Ask for the deletion of all objects; how many are still there."""
        for item in self._store.scan(kind.key, namespace):
            meta = item["metadata"]
            if not meta.get("deletionTimestamp"):
                try:
                    self._resources.delete(kind, meta.get("namespace") or "", meta["name"], {}, Options(_WRITER))
                except Failure as failure:
                    log.warning("cannot delete %s %s: %s", kind.plural, meta["name"], failure)
        return len(self._store.scan(kind.key, namespace))


def _meta(namespace: str, name: str) -> Object:
    from raftkv_playground.apiserver.metadata import new_uid

    return {"name": name, "namespace": namespace, "uid": new_uid(), "creationTimestamp": now()}
