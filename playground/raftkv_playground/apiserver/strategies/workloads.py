"""StatefulSets and the other workload kinds."""

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
from raftkv_playground.apiserver.selectors import match_selector
from raftkv_playground.apiserver.strategies.pods import default_pod_spec, validate_pod_spec
from raftkv_playground.apiserver.strategies.volumes import default_claim

if TYPE_CHECKING:
    from raftkv_playground.apiserver.resources import Resources

_STATEFUL_SET_MUTABLE = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


class WorkloadStrategy(Strategy):
    """A selector, a pod template and a status of its own."""

    generation = True
    blank_status: Object = {}  # noqa: RUF012 - read only
    template_restart_policies: tuple[str, ...] = ("Always",)

    def prepare_create(self, item: Object, resources: Resources) -> None:
        item["status"] = dict(self.blank_status)

    def default(self, item: Object) -> None:
        default_pod_spec(item["spec"]["template"]["spec"])
        item["spec"].setdefault("replicas", 1)
        item["spec"].setdefault("revisionHistoryLimit", 10)

    def validate(self, item: Object) -> list[FieldError]:
        spec = item["spec"]
        errors: list[FieldError] = []
        replicas = spec.get("replicas", 0)
        if replicas < 0:
            errors.append(invalid_value("spec.replicas", replicas, "must be greater than or equal to 0"))
        selector = spec.get("selector")
        labels = (spec["template"].get("metadata") or {}).get("labels") or {}
        if selector is None:
            errors.append(required("spec.selector"))
        elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
            kind = item["kind"].lower()
            errors.append(invalid_value("spec.selector", selector, f"empty selector is invalid for {kind}"))
        elif not match_selector(selector, labels):
            text = "`selector` does not match template `labels`"
            errors.append(invalid_value("spec.template.metadata.labels", labels, text))
        errors += validate_pod_spec(_with_claims(spec), "spec.template.spec")
        policy = spec["template"]["spec"].get("restartPolicy")
        if policy in {"Always", "OnFailure", "Never"} and policy not in self.template_restart_policies:
            at = "spec.template.spec.restartPolicy"
            errors.append(not_supported(at, policy, list(self.template_restart_policies)))
        return errors


class StatefulSetStrategy(WorkloadStrategy):
    blank_status = {"replicas": 0, "availableReplicas": 0}  # noqa: RUF012 - read only

    def default(self, item: Object) -> None:
        super().default(item)
        spec = item["spec"]
        spec.setdefault("podManagementPolicy", "OrderedReady")
        strategy = spec["updateStrategy"]
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
        setdefaults(
            spec.setdefault("persistentVolumeClaimRetentionPolicy", {}), whenDeleted="Retain", whenScaled="Retain"
        )
        for claim in spec.get("volumeClaimTemplates") or []:
            setdefaults(claim, kind="PersistentVolumeClaim", apiVersion="v1")
            default_claim(claim)

    def validate(self, item: Object) -> list[FieldError]:
        spec = item["spec"]
        errors: list[FieldError] = []
        if spec["podManagementPolicy"] not in {"OrderedReady", "Parallel"}:
            text = "must be 'OrderedReady' or 'Parallel'"
            errors.append(invalid_value("spec.podManagementPolicy", spec["podManagementPolicy"], text))
        if spec["updateStrategy"]["type"] not in {"OnDelete", "RollingUpdate"}:
            text = "must be 'RollingUpdate' or 'OnDelete'"
            errors.append(invalid_value("spec.updateStrategy", spec["updateStrategy"], text))
        for key in ("whenDeleted", "whenScaled"):
            value = spec["persistentVolumeClaimRetentionPolicy"][key]
            if value not in {"Retain", "Delete"}:
                at = f"spec.persistentVolumeClaimRetentionPolicy.{key}"
                errors.append(not_supported(at, value, ["Retain", "Delete"]))
        return errors + super().validate(item)

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        if subresource == "status":
            return []
        errors = self.validate(item)
        new, before = item["spec"], old["spec"]
        if any(new.get(k) != before.get(k) for k in new.keys() | before.keys() if k not in _STATEFUL_SET_MUTABLE):
            errors.append(
                forbidden_field(
                    "spec",
                    "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
                    "'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and "
                    "'minReadySeconds' are forbidden",
                )
            )
        return errors


class DeploymentStrategy(WorkloadStrategy):
    def default(self, item: Object) -> None:
        super().default(item)
        spec = item["spec"]
        if spec["strategy"].setdefault("type", "RollingUpdate") == "RollingUpdate":
            setdefaults(spec["strategy"].setdefault("rollingUpdate", {}), maxUnavailable="25%", maxSurge="25%")
        spec.setdefault("progressDeadlineSeconds", 600)

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        return [] if subresource == "status" else self.validate(item) + _fixed_selector(item, old)


class ReplicaSetStrategy(WorkloadStrategy):
    blank_status = {"replicas": 0}  # noqa: RUF012 - read only

    def default(self, item: Object) -> None:
        default_pod_spec(item["spec"]["template"]["spec"])
        item["spec"].setdefault("replicas", 1)

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        return [] if subresource == "status" else self.validate(item) + _fixed_selector(item, old)


class DaemonSetStrategy(WorkloadStrategy):
    blank_status = {  # noqa: RUF012 - read only
        "currentNumberScheduled": 0,
        "numberMisscheduled": 0,
        "desiredNumberScheduled": 0,
        "numberReady": 0,
    }

    def default(self, item: Object) -> None:
        spec = item["spec"]
        default_pod_spec(spec["template"]["spec"])
        spec.setdefault("revisionHistoryLimit", 10)
        if spec["updateStrategy"].setdefault("type", "RollingUpdate") == "RollingUpdate":
            setdefaults(spec["updateStrategy"].setdefault("rollingUpdate", {}), maxUnavailable=1, maxSurge=0)

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        return [] if subresource == "status" else self.validate(item) + _fixed_selector(item, old)


def _with_claims(spec: Object) -> Object:
    """The template's pod spec as the pods get it: each volumeClaimTemplate is a volume of its name."""
    pod: Object = spec["template"]["spec"]
    names = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates") or []]
    claims = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in names]
    others = [volume for volume in pod.get("volumes") or [] if volume.get("name") not in names]
    return {**pod, "volumes": [*others, *claims]} if claims else pod


def _fixed_selector(item: Object, old: Object) -> list[FieldError]:
    if item["spec"].get("selector") == old["spec"].get("selector"):
        return []
    return [invalid_value("spec.selector", item["spec"].get("selector"), "field is immutable")]


class ControllerRevisionStrategy(Strategy):
    def validate(self, item: Object) -> list[FieldError]:
        if item.get("revision", 0) < 0:
            return [invalid_value("revision", item["revision"], "must be greater than or equal to 0")]
        return []

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        if item.get("data") != old.get("data"):
            return [invalid_value("data", item.get("data"), "field is immutable")]
        return self.validate(item)


class DisruptionBudgetStrategy(Strategy):
    generation = True

    def prepare_create(self, item: Object, resources: Resources) -> None:
        item["status"] = {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}

    def validate(self, item: Object) -> list[FieldError]:
        spec = item["spec"]
        errors: list[FieldError] = []
        if "minAvailable" in spec and "maxUnavailable" in spec:
            text = "minAvailable and maxUnavailable cannot be both set"
            errors.append(invalid_value("spec", spec, text))
        for key in ("minAvailable", "maxUnavailable"):
            value = spec.get(key)
            if isinstance(value, int) and value < 0:
                errors.append(invalid_value(f"spec.{key}", value, "must be greater than or equal to 0"))
            if isinstance(value, str) and not (value.endswith("%") and value[:-1].isdigit()):
                text = "a valid percent string must be a numeric string followed by an ending '%'"
                errors.append(invalid_value(f"spec.{key}", value, text))
        return errors

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        return [] if subresource == "status" else self.validate(item)
