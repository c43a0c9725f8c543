"""Persistent volumes, claims and storage classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkv_playground.apiserver.errors import (
    FieldError,
    Object,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from raftkv_playground.apiserver.kinds import Strategy, setdefaults
from raftkv_playground.apiserver.schema.quantity import parse

if TYPE_CHECKING:
    from raftkv_playground.apiserver.resources import Resources

_ACCESS_MODES = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]
CLAIM_FINALIZER = "kubernetes.io/pvc-protection"
VOLUME_FINALIZER = "kubernetes.io/pv-protection"


def default_claim(claim: Object) -> None:
    claim["spec"].setdefault("volumeMode", "Filesystem")
    claim["status"].setdefault("phase", "Pending")


def _modes(spec: Object) -> list[FieldError]:
    modes = spec.get("accessModes") or []
    if not modes:
        return [required("spec.accessModes", "at least 1 access mode is required")]
    return [not_supported("spec.accessModes", m, _ACCESS_MODES) for m in modes if m not in _ACCESS_MODES]


class ClaimStrategy(Strategy):
    returns_deleted = True

    def default(self, item: Object) -> None:
        default_claim(item)

    def admit_create(self, item: Object, resources: Resources) -> None:
        finalizers = item["metadata"].setdefault("finalizers", [])
        if CLAIM_FINALIZER not in finalizers:
            finalizers.append(CLAIM_FINALIZER)
        if item["spec"].get("storageClassName") is None and (name := _default_class(resources)):
            item["spec"]["storageClassName"] = name

    def prepare_create(self, item: Object, resources: Resources) -> None:
        item["status"] = {"phase": "Pending"}

    def validate(self, item: Object) -> list[FieldError]:
        errors = _modes(item["spec"])
        storage = (item["spec"]["resources"].get("requests") or {}).get("storage")
        if storage is None:
            errors.append(required("spec.resources[storage]"))
        elif parse(storage) <= 0:
            errors.append(invalid_value("spec.resources[storage]", storage, "must be greater than zero"))
        return errors

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        if subresource:
            return []
        errors = self.validate(item)
        new, before = _without_size(item["spec"]), _without_size(old["spec"])
        if not before.get("volumeName"):
            # Binding sets the volume's name once.
            new.pop("volumeName", None)
        if before.get("storageClassName") is None:
            new.pop("storageClassName", None)
        if new != before:
            errors.append(
                forbidden_field(
                    "spec",
                    "spec is immutable after creation except resources.requests and volumeAttributesClassName for "
                    "bound claims",
                )
            )
        wanted, had = (x["spec"]["resources"].get("requests", {}).get("storage", "0") for x in (item, old))
        if parse(wanted) < parse(had):
            errors.append(
                forbidden_field("spec.resources.requests.storage", "field can not be less than status.capacity")
            )
        return errors


def _without_size(spec: Object) -> Object:
    return {k: v for k, v in spec.items() if k != "resources"}


def _default_class(resources: Resources) -> str | None:
    for item in resources.store.scan(("storage.k8s.io", "storageclasses")):
        if (item["metadata"].get("annotations") or {}).get("storageclass.kubernetes.io/is-default-class") == "true":
            return str(item["metadata"]["name"])
    return None


class VolumeStrategy(Strategy):
    returns_deleted = True

    def default(self, item: Object) -> None:
        setdefaults(item["spec"], persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
        if "hostPath" in item["spec"]:
            item["spec"]["hostPath"].setdefault("type", "")
        item["status"].setdefault("phase", "Pending")

    def admit_create(self, item: Object, resources: Resources) -> None:
        finalizers = item["metadata"].setdefault("finalizers", [])
        if VOLUME_FINALIZER not in finalizers:
            finalizers.append(VOLUME_FINALIZER)

    def prepare_create(self, item: Object, resources: Resources) -> None:
        item["status"] = {"phase": "Pending"}

    def validate(self, item: Object) -> list[FieldError]:
        spec = item["spec"]
        errors = _modes(spec)
        if not (spec.get("capacity") or {}).get("storage"):
            errors.append(required("spec.capacity"))
        sources = {"hostPath", "local", "nfs", "csi"} & set(spec)
        if not sources:
            errors.append(required("spec", "must specify a volume type"))
        if "local" in spec and not spec.get("nodeAffinity"):
            errors.append(required("spec.nodeAffinity", "Local volume requires node affinity"))
        return errors

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        if subresource:
            return []
        errors = self.validate(item)
        if any(item["spec"].get(k) != old["spec"].get(k) for k in ("hostPath", "local", "nfs", "csi")):
            errors.append(
                forbidden_field(
                    "spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation"
                )
            )
        return errors


class StorageClassStrategy(Strategy):
    returns_deleted = True

    def default(self, item: Object) -> None:
        setdefaults(item, reclaimPolicy="Delete", volumeBindingMode="Immediate")

    def validate(self, item: Object) -> list[FieldError]:
        return [] if item.get("provisioner") else [required("provisioner")]

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        errors = self.validate(item)
        for key in ("parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"):
            if item.get(key) != old.get(key):
                errors.append(forbidden_field(key, "updates to " + key + " are forbidden."))
        return errors
