"""Claims and volumes: binding, the playground's "network disk", and protection of what is in use.

The default StorageClass ``standard`` is served by ``DiskProvisioner``: a volume is a directory under the playground's
state, reachable from every node, as a network disk is. That is the opposite of a ``hostPath``, which stays on its
node; so a test can move a pod's disk to another node while its ring stays behind. ``reclaimPolicy: Delete`` removes
the directory.

Binding follows Kubernetes: a claim takes a volume that was made for it, else the smallest available one of its class
that fits, else one is provisioned; with ``WaitForFirstConsumer`` only after the scheduler has named a node. A bound
volume whose claim is gone is ``Released`` and, by its policy, deleted or kept.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raftkv_playground import client as api
from raftkv_playground.controllers.runtime import Controller, Informers
from raftkv_playground.controllers.scheduling import SELECTED_NODE, claim_names
from raftkv_playground.objects import (
    Key,
    Object,
    annotations_of,
    deleting,
    key_of,
    labels_of,
    pod_finished,
    quantity,
    selector_matches,
    status_of,
    uid_of,
)

PROVISIONER = "disk.playground.raftkv.dev"
"""Name of the provisioner and of the CSI driver of its volumes; the volume handle names the directory."""
DEFAULT_CLASS = "standard"
IS_DEFAULT = "storageclass.kubernetes.io/is-default-class"
PVC_PROTECTION = "kubernetes.io/pvc-protection"
PV_PROTECTION = "kubernetes.io/pv-protection"


def default_storage_class() -> Object:
    return {
        "metadata": {"name": DEFAULT_CLASS, "annotations": {IS_DEFAULT: "true"}},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }


def class_of(claim: Mapping[str, Any], classes: Iterable[Object]) -> str:
    """The claim's class; one that names none (not even the empty one) gets the newest default class."""
    name = claim["spec"].get("storageClassName")
    if name is not None:
        return str(name)
    defaults = [item for item in classes if annotations_of(item).get(IS_DEFAULT) == "true"]
    defaults.sort(key=lambda item: item["metadata"].get("creationTimestamp") or "")
    return str(defaults[-1]["metadata"]["name"]) if defaults else ""


def requested(claim: Mapping[str, Any]) -> str:
    return str(((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0"))


def _claimed_by(volume: Object, claim: Object) -> bool:
    """Whether the volume is bound to this claim, or was made for it and not taken yet."""
    reference = volume["spec"].get("claimRef") or {}
    if (reference.get("namespace"), reference.get("name")) != key_of(claim):
        return False
    return reference.get("uid") in (None, "", uid_of(claim))


def find_volume(claim: Object, class_name: str, volumes: Iterable[Object]) -> Object | None:
    """The volume for a claim: the one reserved for it, or the smallest free one that fits. Pure."""
    fitting = []
    for volume in volumes:
        spec = volume["spec"]
        if deleting(volume):
            continue
        if _claimed_by(volume, claim):
            return volume
        wanted = claim["spec"].get("volumeName")
        if spec.get("claimRef") or (wanted and wanted != volume["metadata"]["name"]):
            continue
        if status_of(volume).get("phase") not in (None, "", "Pending", "Available"):
            continue
        if not wanted and spec.get("storageClassName", "") != class_name:
            continue
        if not set(claim["spec"].get("accessModes") or []) <= set(spec.get("accessModes") or []):
            continue
        if quantity(spec["capacity"]["storage"]) < quantity(requested(claim)):
            continue
        selector = claim["spec"].get("selector")
        if selector is not None and not selector_matches(selector, labels_of(volume)):
            continue
        fitting.append(volume)
    return min(fitting, key=lambda v: (quantity(v["spec"]["capacity"]["storage"]), v["metadata"]["name"]), default=None)


def build_volume(claim: Object, storage_class: Object) -> Object:
    """The network disk for a claim."""
    metadata = claim["metadata"]
    name = f"pvc-{metadata['uid']}"
    return {
        "metadata": {
            "name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
            "finalizers": [PV_PROTECTION],
        },
        "spec": {
            "capacity": {"storage": requested(claim)},
            "accessModes": list(claim["spec"].get("accessModes") or []),
            "volumeMode": claim["spec"].get("volumeMode", "Filesystem"),
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
            "storageClassName": storage_class["metadata"]["name"],
            "csi": {"driver": PROVISIONER, "volumeHandle": name},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }


class ClaimBinder(Controller):
    """Binds claims to volumes, and makes network disks."""

    name = "persistentvolume-controller"
    primary = api.PERSISTENT_VOLUME_CLAIMS

    def __init__(self, client: api.ApiClient, informers: Informers, volumes_dir: Path) -> None:
        super().__init__(client, informers)
        self._volumes_dir = volumes_dir
        self.trigger(api.PERSISTENT_VOLUMES, self._claims_of_volume)
        self.trigger(api.STORAGE_CLASSES, lambda _item: self._pending())

    def _pending(self) -> list[Key]:
        claims = self.store(api.PERSISTENT_VOLUME_CLAIMS)
        return [key for key, claim in claims.items() if status_of(claim).get("phase") != "Bound"]

    def _claims_of_volume(self, volume: Object) -> list[Key]:
        reference = volume["spec"].get("claimRef")
        return [(reference["namespace"], reference["name"])] if reference else self._pending()

    async def sync(self, key: Key) -> float | None:
        claim = self.store(api.PERSISTENT_VOLUME_CLAIMS).get(key)
        if claim is None or deleting(claim):
            return None
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim}
        volumes = self.store(api.PERSISTENT_VOLUMES)
        if status_of(claim).get("phase") == "Bound":
            if ("", claim["spec"]["volumeName"]) not in volumes:
                await self._lost(claim)
            return None
        classes = self.store(api.STORAGE_CLASSES)
        class_name = class_of(claim, classes.values())
        volume = find_volume(claim, class_name, volumes.values())
        if volume is None:
            storage_class = classes.get(("", class_name))
            if not self._may_provision(claim, storage_class):
                return None
            assert storage_class is not None
            volume = await self._provision(claim, storage_class)
        await self._bind(claim, volume, class_name)
        return None

    def _may_provision(self, claim: Object, storage_class: Object | None) -> bool:
        if storage_class is None or storage_class["provisioner"] != PROVISIONER or claim["spec"].get("volumeName"):
            if status_of(claim).get("phase") != "Bound" and not claim["spec"].get("volumeName"):
                message = "no persistent volumes available for this claim and no storage class is set"
                if storage_class is None and claim["spec"].get("storageClassName"):
                    message = f'storageclass.storage.k8s.io "{claim["spec"]["storageClassName"]}" not found'
                self.events.record(claim, "Warning", "ProvisioningFailed", message)
            return False
        waits = storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"
        return not waits or SELECTED_NODE in annotations_of(claim)

    async def _provision(self, claim: Object, storage_class: Object) -> Object:
        body = build_volume(claim, storage_class)
        name = body["metadata"]["name"]
        # The directory comes first: a volume that exists must be mountable. A left-over one is found again by name.
        (self._volumes_dir / name).mkdir(mode=0o777, parents=True, exist_ok=True)
        try:
            volume = await self.client.create(api.PERSISTENT_VOLUMES, body)
        except api.ApiError as error:
            if not error.already_exists:
                raise
            volume = await self.client.get(api.PERSISTENT_VOLUMES, name)
        self.events.record(
            claim, "Normal", "ProvisioningSucceeded", f"Successfully provisioned volume {name} using {PROVISIONER}"
        )
        return volume

    async def _bind(self, claim: Object, volume: Object, class_name: str) -> None:
        """First the volume names the claim, then the claim the volume: the order in which a crash can be mended."""
        metadata = claim["metadata"]
        reference = volume["spec"].get("claimRef") or {}
        if reference.get("uid") != metadata["uid"]:
            reference = build_volume(claim, {"metadata": {"name": class_name}})["spec"]["claimRef"]
            spec = {**volume["spec"], "claimRef": reference}
            volume = await self.client.replace(api.PERSISTENT_VOLUMES, {**volume, "spec": spec})
        if status_of(volume).get("phase") != "Bound":
            status = {**status_of(volume), "phase": "Bound"}
            volume = await self.client.replace(
                api.PERSISTENT_VOLUMES, {**volume, "status": status}, subresource="status"
            )
        annotations = {**annotations_of(claim), "pv.kubernetes.io/bind-completed": "yes"}
        if not claim["spec"].get("volumeName"):
            annotations["pv.kubernetes.io/bound-by-controller"] = "yes"
        spec = {**claim["spec"], "volumeName": volume["metadata"]["name"]}
        spec.setdefault("storageClassName", class_name)
        body = {**claim, "metadata": {**metadata, "annotations": annotations}, "spec": spec}
        claim = await self.client.replace(api.PERSISTENT_VOLUME_CLAIMS, body)
        status = {
            "phase": "Bound",
            "accessModes": volume["spec"]["accessModes"],
            "capacity": volume["spec"]["capacity"],
        }
        await self.client.replace(api.PERSISTENT_VOLUME_CLAIMS, {**claim, "status": status}, subresource="status")

    async def _lost(self, claim: Object) -> None:
        message = "Bound claim has lost its PersistentVolume. Any data on the volume is lost!"
        self.events.record(claim, "Warning", "ClaimLost", message)
        status = {**status_of(claim), "phase": "Lost"}
        await self.client.replace(api.PERSISTENT_VOLUME_CLAIMS, {**claim, "status": status}, subresource="status")


class VolumeReclaimer(Controller):
    """What becomes of a volume: ``Available`` while free, ``Released`` when its claim is gone, then deleted or kept."""

    name = "persistentvolume-reclaimer"
    primary = api.PERSISTENT_VOLUMES

    def __init__(self, client: api.ApiClient, informers: Informers, volumes_dir: Path) -> None:
        super().__init__(client, informers)
        self._volumes_dir = volumes_dir
        informers.of(api.PERSISTENT_VOLUME_CLAIMS).add_handler(self._claim_changed)

    def _claim_changed(self, type: str, claim: Object) -> None:
        if type == "DELETED" and (name := claim["spec"].get("volumeName")):
            self.queue.add(("", name))

    async def sync(self, key: Key) -> float | None:
        volume = self.store(api.PERSISTENT_VOLUMES).get(key)
        if volume is None:
            return None
        reference = volume["spec"].get("claimRef")
        phase = status_of(volume).get("phase")
        if reference is None:
            if deleting(volume):
                await self._remove(volume)
            elif phase not in ("Available", "Bound"):
                await self._set_phase(volume, "Available")
            return None
        if not reference.get("uid") or await self._claim_lives(reference):
            return None
        if phase != "Released":
            volume = await self._set_phase(volume, "Released")
        if deleting(volume) or volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete":
            await self._remove(volume)
        return None

    async def _claim_lives(self, reference: Object) -> bool:
        """Asked of the API, not of the informer: a claim that only seems to be gone must not cost its data."""
        claim = self.store(api.PERSISTENT_VOLUME_CLAIMS).get((reference["namespace"], reference["name"]))
        if claim is not None and uid_of(claim) == reference["uid"]:
            return True
        try:
            live = await self.client.get(api.PERSISTENT_VOLUME_CLAIMS, reference["name"], reference["namespace"])
        except api.ApiError as error:
            if error.not_found:
                return False
            raise
        return uid_of(live) == str(reference["uid"])

    async def _set_phase(self, volume: Object, phase: str) -> Object:
        status = {**status_of(volume), "phase": phase}
        return await self.client.replace(api.PERSISTENT_VOLUMES, {**volume, "status": status}, subresource="status")

    async def _remove(self, volume: Object) -> None:
        """The directory of a network disk (by its ``Delete`` policy only), then the protection, then the object."""
        spec, metadata = volume["spec"], volume["metadata"]
        disk = spec.get("csi") or {}
        if disk.get("driver") == PROVISIONER and spec.get("persistentVolumeReclaimPolicy") == "Delete":
            handle = disk["volumeHandle"]
            if not handle or Path(handle).name != handle:
                raise ValueError(f"volume handle {handle!r} of {metadata['name']} is not a plain name")
            await asyncio.to_thread(_remove_directory, self._volumes_dir / handle)
        if not deleting(volume):
            await self.client.delete(api.PERSISTENT_VOLUMES, metadata["name"], uid=uid_of(volume))
        kept = [name for name in metadata.get("finalizers") or [] if name != PV_PROTECTION]
        if len(kept) != len(metadata.get("finalizers") or []):
            try:
                await self.client.patch(
                    api.PERSISTENT_VOLUMES, metadata["name"], None, {"metadata": {"finalizers": kept or None}}
                )
            except api.ApiError as error:
                if not error.not_found:
                    raise


def _remove_directory(path: Path) -> None:
    """Rename first, so that no pod can find the data half deleted."""
    doomed = path.with_name(f".deleting-{path.name}")
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


class ClaimProtection(Controller):
    """A claim that a pod uses stays until the pod has gone, though it was deleted."""

    name = "pvc-protection-controller"
    primary = api.PERSISTENT_VOLUME_CLAIMS

    def __init__(self, client: api.ApiClient, informers: Informers) -> None:
        super().__init__(client, informers)
        self.trigger(api.PODS, lambda pod: [(pod["metadata"]["namespace"], name) for name in claim_names(pod)])

    async def sync(self, key: Key) -> float | None:
        claim = self.store(api.PERSISTENT_VOLUME_CLAIMS).get(key)
        if claim is None:
            return None
        finalizers = claim["metadata"].get("finalizers") or []
        if not deleting(claim):
            if PVC_PROTECTION not in finalizers:
                await self._write(claim, [*finalizers, PVC_PROTECTION])
            return None
        if PVC_PROTECTION in finalizers and not await self._in_use(key):
            await self._write(claim, [name for name in finalizers if name != PVC_PROTECTION])
        return None

    async def _in_use(self, key: Key) -> bool:
        pods = self.store(api.PODS).values()
        if any(_uses(pod, key) for pod in pods):
            return True
        # The informer may lag behind a pod that was just made; what is lost here is data, so ask.
        live, _ = await self.client.list(api.PODS, key[0])
        return any(_uses(pod, key) for pod in live)

    async def _write(self, claim: Object, finalizers: list[str]) -> None:
        metadata = claim["metadata"]
        patch = {"metadata": {"finalizers": finalizers or None, "resourceVersion": metadata["resourceVersion"]}}
        await self.client.patch(api.PERSISTENT_VOLUME_CLAIMS, metadata["name"], metadata["namespace"], patch)


def _uses(pod: Object, key: Key) -> bool:
    if pod["metadata"]["namespace"] != key[0] or key[1] not in claim_names(pod):
        return False
    # A pod that never got to a node holds nothing; one that has ended holds nothing any more.
    return bool(pod["spec"].get("nodeName")) and not pod_finished(pod)
