"""Garbage collection by owner references.

An object goes when all of its owners are gone (``Background``). An owner that is deleted with ``Foreground`` stays,
under the finalizer ``foregroundDeletion``, until the dependents that block it are gone; with ``Orphan``, under
``orphan``, until its dependents have forgotten it. All kinds that the API serves are watched, custom ones too:
discovery is repeated when a CustomResourceDefinition changes, and now and then.

Deleting what is in use cannot be undone, so the cache alone never condemns: an owner that is not in it is asked for
by the API (by name, comparing uids), and the delete carries the dependent's uid and resourceVersion as preconditions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raftkv_playground import client as api
from raftkv_playground.client import ApiClient, ApiError, Resource
from raftkv_playground.controllers.runtime import Informers, WorkQueue
from raftkv_playground.objects import Object, deleting, uid_of

log = logging.getLogger(__name__)

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
DISCOVERY_SECONDS = 30.0
IGNORED = {("", "events"), ("events.k8s.io", "events"), ("", "componentstatuses")}
"""Resources that own nothing and are owned by nothing, but change a lot."""

OwnerState = Literal["solid", "waiting", "absent"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``delete`` with a propagation policy, or ``keep`` these references, or neither."""

    delete: Literal["", "Background", "Foreground", "Orphan"] = ""
    keep: list[Object] | None = None


def judge(item: Mapping[str, Any], state_of: Callable[[Object], OwnerState]) -> Verdict:
    """What becomes of an object with owners. Pure; ``state_of`` says of each owner whether it is there (``solid``),
    being deleted in the foreground (``waiting``), or gone (``absent``)."""
    owners = item["metadata"].get("ownerReferences") or []
    if not owners or item["metadata"].get("deletionTimestamp"):
        return Verdict()
    states = [(reference, state_of(reference)) for reference in owners]
    solid = [reference for reference, state in states if state == "solid"]
    waiting = [reference for reference, state in states if state == "waiting"]
    if solid:
        return Verdict(keep=solid) if len(solid) < len(owners) else Verdict()
    if waiting:
        return Verdict("Foreground")
    finalizers = item["metadata"].get("finalizers") or []
    if ORPHAN in finalizers:
        return Verdict("Orphan")
    return Verdict("Foreground" if FOREGROUND in finalizers else "Background")


@dataclass(slots=True)
class Graph:
    """Who depends on whom, by uid."""

    objects: dict[str, tuple[Resource, Object]] = field(default_factory=dict)
    dependents: dict[str, set[str]] = field(default_factory=dict)

    def put(self, resource: Resource, item: Object) -> None:
        uid = uid_of(item)
        self._unlink(uid)
        self.objects[uid] = (resource, item)
        for reference in item["metadata"].get("ownerReferences") or []:
            self.dependents.setdefault(reference["uid"], set()).add(uid)

    def drop(self, uid: str) -> None:
        self._unlink(uid)
        self.objects.pop(uid, None)

    def _unlink(self, uid: str) -> None:
        if uid not in self.objects:
            return
        for reference in self.objects[uid][1]["metadata"].get("ownerReferences") or []:
            group = self.dependents.get(reference["uid"])
            if group is not None:
                group.discard(uid)
                if not group:
                    del self.dependents[reference["uid"]]

    def of(self, owner_uid: str) -> list[tuple[Resource, Object]]:
        return [self.objects[uid] for uid in sorted(self.dependents.get(owner_uid, ())) if uid in self.objects]


def _reference_to(item: Object, owner_uid: str) -> Object:
    return next(r for r in item["metadata"].get("ownerReferences") or [] if r["uid"] == owner_uid)


async def discover(client: ApiClient) -> list[Resource]:
    """All resources that can be listed, watched and deleted, each in its group's preferred version."""
    versions = ["/api/v1"]
    groups = await client.request("GET", "/apis")
    versions += [f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups["groups"]]
    found: list[Resource] = []
    for path in versions:
        try:
            listed = await client.request("GET", path)
        except ApiError as error:
            if error.not_found:
                continue
            raise
        group, _, version = listed["groupVersion"].rpartition("/")
        for entry in listed["resources"]:
            usable = "/" not in entry["name"] and {"list", "watch", "delete"} <= set(entry["verbs"])
            if usable and (group, entry["name"]) not in IGNORED:
                found.append(Resource(group, version, entry["name"], entry["kind"], entry["namespaced"]))
    return found


class GarbageCollector:
    """Runs beside the other controllers with informers of its own, since its set of resources changes."""

    name = "generic-garbage-collector"

    def __init__(self, client: ApiClient, shared: Informers) -> None:
        self.client = client
        self._shared = shared
        self._informers = Informers(client)
        self._graph = Graph()
        self._resources: dict[tuple[str, str], Resource] = {}
        self._queue = WorkQueue()
        self._again = asyncio.Event()
        shared.of(api.CUSTOM_RESOURCE_DEFINITIONS).add_handler(lambda _type, _item: self._again.set())

    def _changed(self, resource: Resource) -> Callable[[str, Object], None]:
        def handle(type: str, item: Object) -> None:
            uid = uid_of(item)
            before = self._graph.objects.get(uid)
            if type == "DELETED":
                self._graph.drop(uid)
            else:
                self._graph.put(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **item})
                self._queue.add(("object", uid))
            owners = {r["uid"] for r in item["metadata"].get("ownerReferences") or []}
            if before:
                owners |= {r["uid"] for r in before[1]["metadata"].get("ownerReferences") or []}
            # An owner that waits in the foreground may be free now.
            for owner in owners:
                self._queue.add(("object", owner))
            if type == "DELETED" or deleting(item):
                for _, dependent in self._graph.of(uid):
                    self._queue.add(("object", uid_of(dependent)))

        return handle

    async def _refresh(self) -> None:
        served = {(r.api_version, r.kind): r for r in await discover(self.client)}
        for gone in self._resources.keys() - served.keys():
            resource = self._resources.pop(gone)
            for item in list(self._informers.of(resource).store.values()):
                self._changed(resource)("DELETED", item)
            await self._informers.drop(resource)
        for key in served.keys() - self._resources.keys():
            resource = self._resources[key] = served[key]
            informer = self._informers.of(resource)
            informer.add_handler(self._changed(resource))
        async with asyncio.timeout(10):
            await self._informers.synced()

    async def run(self) -> None:
        self._informers.start()
        refresher = asyncio.create_task(self._keep_fresh(), name="garbage collector discovery")
        try:
            while True:
                key = await self._queue.take()
                try:
                    await self._process(key[1])
                except ApiError as error:
                    delay = self._queue.failed(key)
                    log.debug("garbage collection of %s: %s; again in %.2f s", key[1], error, delay)
                except Exception:
                    self._queue.failed(key)
                    log.exception("garbage collection of %s failed", key[1])
                else:
                    self._queue.done(key)
        finally:
            refresher.cancel()
            await asyncio.gather(refresher, return_exceptions=True)
            await self._informers.stop()

    async def _keep_fresh(self) -> None:
        while True:
            self._again.clear()
            try:
                await self._refresh()
                wait = DISCOVERY_SECONDS
            except (ApiError, TimeoutError) as error:
                log.info("discovery: %s", error)
                wait = 1.0
            try:
                async with asyncio.timeout(wait):
                    await self._again.wait()
                # A new definition is served a moment after it appears.
                await asyncio.sleep(0.2)
            except TimeoutError:
                pass

    async def _process(self, uid: str) -> None:
        entry = self._graph.objects.get(uid)
        if entry is None:
            return
        resource, item = entry
        finalizers = item["metadata"].get("finalizers") or []
        if deleting(item):
            if ORPHAN in finalizers:
                await self._orphan(resource, item)
            elif FOREGROUND in finalizers:
                await self._finish_foreground(resource, item)
            return
        if not item["metadata"].get("ownerReferences"):
            return
        await self._carry_out(resource, item, await self._judge(item))

    async def _judge(self, item: Object) -> Verdict:
        states = {r["uid"]: await self._owner_state(r, item) for r in item["metadata"]["ownerReferences"]}
        return judge(item, lambda reference: states[reference["uid"]])

    async def _owner_state(self, reference: Object, item: Object) -> OwnerState:
        known = self._graph.objects.get(reference["uid"])
        if known is not None:
            owner: Object | None = known[1]
        else:
            owner = await self._live_owner(reference, item)
        if owner is None:
            return "absent"
        if deleting(owner) and FOREGROUND in (owner["metadata"].get("finalizers") or []):
            return "waiting"
        return "solid"

    async def _live_owner(self, reference: Object, item: Object) -> Object | None:
        resource = self._resources.get((reference["apiVersion"], reference["kind"]))
        if resource is None:
            resource = await self._find_resource(reference)
        if resource is None:
            # A kind that is not served (now) says nothing about its objects: never delete for that.
            raise ApiError(0, "UnknownOwnerKind", f"{reference['apiVersion']} {reference['kind']} is not served")
        namespace = item["metadata"].get("namespace") if resource.namespaced else None
        if resource.namespaced and not namespace:
            # A cluster-scoped object cannot have a namespaced owner; Kubernetes leaves such an object alone, too.
            raise ApiError(0, "InvalidOwner", f"{item['metadata']['name']} names a namespaced owner")
        try:
            owner = await self.client.get(resource, reference["name"], namespace)
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return owner if uid_of(owner) == reference["uid"] else None

    async def _find_resource(self, reference: Object) -> Resource | None:
        """By a version of the group other than the preferred one."""
        group, _, version = reference["apiVersion"].rpartition("/")
        path = f"/apis/{group}/{version}" if group else f"/api/{version}"
        try:
            listed = await self.client.request("GET", path)
        except ApiError as error:
            if error.not_found:
                return None
            raise
        for entry in listed["resources"]:
            if entry["kind"] == reference["kind"] and "/" not in entry["name"]:
                return Resource(group, version, entry["name"], entry["kind"], entry["namespaced"])
        return None

    async def _carry_out(self, resource: Resource, item: Object, verdict: Verdict) -> None:
        metadata = item["metadata"]
        namespace = metadata.get("namespace")
        try:
            if verdict.delete:
                await self.client.delete(
                    resource,
                    metadata["name"],
                    namespace,
                    uid=metadata["uid"],
                    resource_version=metadata["resourceVersion"],
                    propagation=verdict.delete,
                )
            elif verdict.keep is not None:
                await self._set_owners(resource, item, verdict.keep)
        except ApiError as error:
            if not error.not_found:
                raise

    async def _set_owners(self, resource: Resource, item: Object, owners: list[Object]) -> None:
        metadata = item["metadata"]
        patch = {
            "metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
                         "ownerReferences": owners or None}
        }  # fmt: skip
        await self.client.patch(resource, metadata["name"], metadata.get("namespace"), patch)

    async def _remove_finalizer(self, resource: Resource, item: Object, finalizer: str) -> None:
        metadata = item["metadata"]
        kept = [name for name in metadata.get("finalizers") or [] if name != finalizer]
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": kept or None}}
        try:
            await self.client.patch(resource, metadata["name"], metadata.get("namespace"), patch)
        except ApiError as error:
            if not error.not_found:
                raise

    async def _orphan(self, resource: Resource, owner: Object) -> None:
        for kind, dependent in self._graph.of(uid_of(owner)):
            left = [r for r in dependent["metadata"]["ownerReferences"] if r["uid"] != uid_of(owner)]
            try:
                await self._set_owners(kind, dependent, left)
            except ApiError as error:
                if not error.not_found:
                    raise
        await self._remove_finalizer(resource, owner, ORPHAN)

    async def _finish_foreground(self, resource: Resource, owner: Object) -> None:
        blocking = False
        for kind, dependent in self._graph.of(uid_of(owner)):
            if _reference_to(dependent, uid_of(owner)).get("blockOwnerDeletion"):
                blocking = True
            if not deleting(dependent):
                await self._carry_out(kind, dependent, await self._judge(dependent))
        if not blocking:
            await self._remove_finalizer(resource, owner, FOREGROUND)
