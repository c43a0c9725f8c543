"""Pods and pod templates: defaults, admission, validation."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

from raftkv_playground.apiserver.errors import (
    FieldError,
    Object,
    duplicate,
    forbidden,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from raftkv_playground.apiserver.kinds import Strategy, setdefaults
from raftkv_playground.apiserver.metadata import name_problems, now
from raftkv_playground.apiserver.schema.quantity import parse

if TYPE_CHECKING:
    from raftkv_playground.apiserver.resources import Resources

_TOKEN_SECONDS = 3607
_MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


def default_pod_spec(spec: Object) -> None:
    """Defaults of a pod's or a template's spec."""
    setdefaults(
        spec,
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        dnsPolicy="ClusterFirst",
        securityContext={},
        schedulerName="default-scheduler",
    )
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif "serviceAccount" in spec:
        spec["serviceAccountName"] = spec["serviceAccount"]
    for container in (spec.get("initContainers") or []) + (spec.get("containers") or []):
        _default_container(container)
    for volume in spec.get("volumes") or []:
        _default_volume(volume)


def _default_container(container: Object) -> None:
    image = str(container.get("image", ""))
    tag = image.rsplit("/", 1)[-1].partition("@")[0].partition(":")[2]
    latest = "@" not in image and tag in {"", "latest"}
    setdefaults(
        container,
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        imagePullPolicy="Always" if latest else "IfNotPresent",
    )
    for port in container.get("ports") or []:
        port.setdefault("protocol", "TCP")
    for variable in container.get("env") or []:
        if reference := (variable.get("valueFrom") or {}).get("fieldRef"):
            reference.setdefault("apiVersion", "v1")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if probe := container.get(name):
            setdefaults(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
            _default_handler(probe)
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict):
            _default_handler(hook)
    resources = container.get("resources") or {}
    for key, value in (resources.get("limits") or {}).items():
        resources.setdefault("requests", {}).setdefault(key, value)


def _default_handler(handler: Object) -> None:
    if get := handler.get("httpGet"):
        setdefaults(get, path="/", scheme="HTTP")
    if call := handler.get("grpc"):
        call.setdefault("service", "")


def _default_volume(volume: Object) -> None:
    for source in ("secret", "configMap", "downwardAPI", "projected"):
        if source in volume:
            volume[source].setdefault("defaultMode", 420)
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    for item in ((volume.get("downwardAPI") or {}).get("items")) or []:
        if "fieldRef" in item:
            item["fieldRef"].setdefault("apiVersion", "v1")
    for source in ((volume.get("projected") or {}).get("sources")) or []:
        if "serviceAccountToken" in source:
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
    if set(volume) == {"name"}:
        volume["emptyDir"] = {}


def validate_pod_spec(spec: Object, path: str) -> list[FieldError]:
    """Complaints about a pod's or a template's spec: names, references between its parts, allowed values."""
    errors: list[FieldError] = []
    volumes: set[str] = set()
    for n, volume in enumerate(spec.get("volumes") or []):
        at, name = f"{path}.volumes[{n}]", volume.get("name", "")
        errors += _part_name(name, f"{at}.name", volumes)
        sources = [k for k in volume if k != "name"]
        if not sources:
            errors.append(required(at, "must specify a volume type"))
        elif len(sources) > 1:
            errors.append(forbidden_field(f"{at}.{sources[1]}", "may not specify more than 1 volume type"))
        if "hostPath" in volume and not volume["hostPath"].get("path"):
            errors.append(required(f"{at}.hostPath.path"))
    if not spec.get("containers"):
        errors.append(required(f"{path}.containers"))
    names: set[str] = set()
    for field in ("containers", "initContainers"):
        for n, container in enumerate(spec.get(field) or []):
            errors += _validate_container(container, f"{path}.{field}[{n}]", names, volumes)
    errors += _allowed(spec, "restartPolicy", ["Always", "OnFailure", "Never"], path)
    errors += _allowed(spec, "dnsPolicy", ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], path)
    if spec.get("terminationGracePeriodSeconds", 0) < 0:
        at = f"{path}.terminationGracePeriodSeconds"
        errors.append(invalid_value(at, spec["terminationGracePeriodSeconds"], "must be greater than or equal to 0"))
    if name := spec.get("serviceAccountName"):
        errors += [invalid_value(f"{path}.serviceAccountName", name, t) for t in name_problems(name, "subdomain")]
    for field in ("hostname", "subdomain"):
        if name := spec.get(field):
            errors += [invalid_value(f"{path}.{field}", name, t) for t in name_problems(name, "label")]
    return errors


def _allowed(item: Object, key: str, values: list[str], path: str) -> list[FieldError]:
    value = item.get(key)
    return [] if value is None or value in values else [not_supported(f"{path}.{key}", value, values)]


def _part_name(name: str, at: str, seen: set[str]) -> list[FieldError]:
    if not name:
        return [required(at)]
    errors = [invalid_value(at, name, text) for text in name_problems(name, "label")]
    if name in seen:
        errors.append(duplicate(at, name))
    seen.add(name)
    return errors


def _validate_container(container: Object, at: str, names: set[str], volumes: set[str]) -> list[FieldError]:
    errors = _part_name(container.get("name", ""), f"{at}.name", names)
    if not container.get("image"):
        errors.append(required(f"{at}.image"))
    errors += _allowed(container, "imagePullPolicy", ["Always", "IfNotPresent", "Never"], at)
    for n, port in enumerate(container.get("ports") or []):
        number = port.get("containerPort")
        if number is None:
            errors.append(required(f"{at}.ports[{n}].containerPort"))
        elif not 0 < number < 65536:
            text = "must be between 1 and 65535, inclusive"
            errors.append(invalid_value(f"{at}.ports[{n}].containerPort", number, text))
        errors += _allowed(port, "protocol", ["SCTP", "TCP", "UDP"], f"{at}.ports[{n}]")
    for n, variable in enumerate(container.get("env") or []):
        if not variable.get("name"):
            errors.append(required(f"{at}.env[{n}].name"))
        if variable.get("value") and variable.get("valueFrom"):
            text = "may not be specified when `value` is not empty"
            errors.append(invalid_value(f"{at}.env[{n}].valueFrom", "", text))
    paths: set[str] = set()
    for n, mount in enumerate(container.get("volumeMounts") or []):
        where = f"{at}.volumeMounts[{n}]"
        if not mount.get("name"):
            errors.append(required(f"{where}.name"))
        elif mount["name"] not in volumes:
            errors.append(FieldError("FieldValueNotFound", f"{where}.name", f'Not found: "{mount["name"]}"'))
        if not mount.get("mountPath"):
            errors.append(required(f"{where}.mountPath"))
        elif mount["mountPath"] in paths:
            errors.append(invalid_value(f"{where}.mountPath", mount["mountPath"], "must be unique"))
        paths.add(mount.get("mountPath", ""))
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(name)
        if probe and not any(k in probe for k in ("exec", "httpGet", "tcpSocket", "grpc")):
            errors.append(required(f"{at}.{name}", "must specify a handler type"))
    resources = container.get("resources") or {}
    for key, value in (resources.get("requests") or {}).items():
        limit = (resources.get("limits") or {}).get(key)
        if limit is not None and parse(value) > parse(limit):
            errors.append(
                invalid_value(
                    f"{at}.resources.requests", value, f"must be less than or equal to {key} limit of {limit}"
                )
            )
    return errors


def quality_of_service(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort, by requests and limits of cpu and memory."""
    containers = (spec.get("initContainers") or []) + (spec.get("containers") or [])
    seen, guaranteed = False, True
    for container in containers:
        resources = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        seen = seen or any(k in {"cpu", "memory"} for k in [*requests, *limits])
        for key in ("cpu", "memory"):
            if key not in limits or requests.get(key, limits[key]) != limits[key]:
                guaranteed = False
    return ("Guaranteed" if guaranteed else "Burstable") if seen else "BestEffort"


class PodStrategy(Strategy):
    generation = True
    returns_deleted = True

    def default(self, item: Object) -> None:
        default_pod_spec(item["spec"])
        item["spec"].setdefault("enableServiceLinks", True)
        status = item.get("status") or {}
        if status.get("podIP") and not status.get("podIPs"):
            status["podIPs"] = [{"ip": status["podIP"]}]

    def admit_create(self, item: Object, resources: Resources) -> None:
        spec, namespace = item["spec"], item["metadata"]["namespace"]
        name = spec.setdefault("serviceAccountName", "default")
        spec["serviceAccount"] = name
        account = resources.store.get(("", "serviceaccounts"), namespace, name)
        if account is None:
            text = f'error looking up service account {namespace}/{name}: serviceaccount "{name}" not found'
            raise forbidden("pods", "", item["metadata"].get("name", ""), text)
        wanted = spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
        if wanted:
            _mount_token(spec)
        tolerations = spec.setdefault("tolerations", [])
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
            if not any(_tolerates(t, key) for t in tolerations):
                tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
        setdefaults(spec, priority=0, preemptionPolicy="PreemptLowerPriority")

    def prepare_create(self, item: Object, resources: Resources) -> None:
        spec = item["spec"]
        status: Object = {"phase": "Pending", "qosClass": quality_of_service(spec)}
        if spec.get("schedulingGates"):
            status["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "lastProbeTime": None,
                    "lastTransitionTime": now(),
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                }
            ]
        item["status"] = status

    def prepare_update(self, item: Object, old: Object, subresource: str) -> None:
        super().prepare_update(item, old, subresource)
        if subresource == "status":
            item["status"].setdefault("qosClass", old["status"].get("qosClass"))

    def validate(self, item: Object) -> list[FieldError]:
        errors = validate_pod_spec(item["spec"], "spec")
        if item["spec"].get("schedulingGates") and item["spec"].get("nodeName"):
            errors.append(forbidden_field("spec.nodeName", "cannot be set until all schedulingGates have been cleared"))
        return errors

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        if subresource:
            return []
        return [*validate_pod_spec(item["spec"], "spec"), *_immutable_spec(item["spec"], old["spec"])]

    def grace(self, item: Object, wanted: int | None) -> int:
        if not item["spec"].get("nodeName") or item.get("status", {}).get("phase") in {"Failed", "Succeeded"}:
            return 0
        if wanted is not None:
            return max(wanted, 0)
        return int(item["spec"].get("terminationGracePeriodSeconds", 30))


def _tolerates(toleration: Object, key: str) -> bool:
    return toleration.get("key") in {key, None} and toleration.get("effect") in {"NoExecute", None}


def _mount_token(spec: Object) -> None:
    containers = (spec.get("initContainers") or []) + (spec.get("containers") or [])
    without = [c for c in containers if all(m.get("mountPath") != _MOUNT_PATH for m in c.get("volumeMounts") or [])]
    if not without:
        return
    name = "kube-api-access-" + "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
    sources: list[Any] = [
        {"serviceAccountToken": {"expirationSeconds": _TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {
            "downwardAPI": {
                "items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]
            }
        },
    ]
    spec["volumes"] = [
        *(spec.get("volumes") or []),
        {"name": name, "projected": {"sources": sources, "defaultMode": 420}},
    ]
    for container in without:
        mounts = container.setdefault("volumeMounts", [])
        mounts.append({"name": name, "readOnly": True, "mountPath": _MOUNT_PATH})


def _immutable_spec(new: Object, old: Object) -> list[FieldError]:
    """A pod's spec is fixed but for images, a few numbers, more tolerations, and its placement while it is gated."""
    errors: list[FieldError] = []
    masked, kept = copy.deepcopy(new), copy.deepcopy(old)
    for field in ("containers", "initContainers"):
        for spec in (masked, kept):
            for container in spec.get(field) or []:
                container.pop("image", None)
    for spec in (masked, kept):
        for key in ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"):
            spec.pop(key, None)
        if old.get("schedulingGates"):
            spec.pop("nodeSelector", None)
            spec.pop("affinity", None)
    if any(t not in (new.get("tolerations") or []) for t in old.get("tolerations") or []):
        errors.append(
            forbidden_field("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
        )
    gates, before = new.get("schedulingGates") or [], old.get("schedulingGates") or []
    if any(g not in before for g in gates):
        errors.append(
            forbidden_field("spec.schedulingGates", "only deletion is allowed, but found new scheduling gate")
        )
    if before:
        errors += _narrowed(new, old)
    if masked != kept:
        errors.append(
            forbidden_field(
                "spec",
                "pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
                "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
                "previously negative)\n",
            )
        )
    return errors


def _narrowed(new: Object, old: Object) -> list[FieldError]:
    chosen, before = new.get("nodeSelector") or {}, old.get("nodeSelector") or {}
    if any(chosen.get(k) != v for k, v in before.items()):
        return [invalid_value("spec.nodeSelector", chosen, "additions allowed, but no deletions or mutations")]
    return []
