"""The tabular form of objects (``as=Table``): what ``kubectl get`` prints."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

from raftkv_playground.apiserver import jsonpath
from raftkv_playground.apiserver.errors import Object
from raftkv_playground.apiserver.kinds import Kind
from raftkv_playground.apiserver.metadata import parse_time
from raftkv_playground.apiserver.selectors import selector_text

Column = tuple[str, str, int]
"""(name, type, priority); priority 1 is shown with ``-o wide`` only."""
Row = Callable[[Object], list[Any]]


def duration(seconds: float) -> str:
    """A duration in the short form of ages: 5s, 3m10s, 4h, 2d5h, ..."""
    s = int(seconds)
    if s < 0:
        return "0s" if s >= -2 else "<invalid>"
    minutes, hours, days = s // 60, s // 3600, s // 86400
    if s < 120:
        return f"{s}s"
    if minutes < 10:
        return f"{minutes}m{s % 60}s" if s % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    return f"{days // 365}y"


def age(text: str | None) -> str:
    if not text:
        return "<unknown>"
    return duration((datetime.datetime.now(datetime.UTC) - parse_time(text)).total_seconds())


def _get(item: Object, path: str, default: Any = None) -> Any:
    value: Any = item
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return default if value is None else value


def _name(item: Object) -> str:
    return str(item["metadata"]["name"])


def _age(item: Object) -> str:
    return age(item["metadata"].get("creationTimestamp"))


def _pod(item: Object) -> list[Any]:
    spec, status = item["spec"], item.get("status") or {}
    shown = status.get("reason") or status.get("phase", "Unknown")
    gates = [c for c in status.get("conditions") or [] if c["type"] == "PodScheduled"]
    if gates and gates[0].get("reason") == "SchedulingGated":
        shown = "SchedulingGated"
    ready, restarts, last = 0, 0, ""
    for container in status.get("containerStatuses") or []:
        restarts += container.get("restartCount", 0)
        ready += bool(container.get("ready"))
        state = container.get("state") or {}
        if state.get("waiting", {}).get("reason"):
            shown = state["waiting"]["reason"]
        elif "terminated" in state:
            ended = state["terminated"]
            shown = ended.get("reason") or f"ExitCode:{ended.get('exitCode', 0)}"
        before = _get(container, "lastState.terminated.finishedAt", "")
        last = max(last, before)
    if item["metadata"].get("deletionTimestamp"):
        shown = "Terminating"
    text = f"{restarts} ({age(last)} ago)" if restarts and last else str(restarts)
    gates_text = "<none>" if not spec.get("readinessGates") else f"0/{len(spec['readinessGates'])}"
    return [
        _name(item),
        f"{ready}/{len(spec.get('containers') or [])}",
        shown,
        text,
        _age(item),
        status.get("podIP", "<none>"),
        spec.get("nodeName", "<none>"),
        status.get("nominatedNodeName", "<none>"),
        gates_text,
    ]


def _containers(item: Object) -> list[str]:
    containers = _get(item, "spec.template.spec.containers", [])
    return [",".join(c["name"] for c in containers), ",".join(c.get("image", "") for c in containers)]


def _service(item: Object) -> list[Any]:
    spec = item["spec"]
    ports = []
    for port in spec.get("ports") or []:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        ports.append(f"{port['port']}{node}/{port['protocol']}")
    selector = ",".join(f"{k}={v}" for k, v in sorted((spec.get("selector") or {}).items()))
    external = spec.get("externalName") if spec["type"] == "ExternalName" else ",".join(spec.get("externalIPs") or [])
    if spec["type"] == "LoadBalancer" and not external:
        external = "<pending>"
    address = spec.get("clusterIP") or "<none>"
    return [
        _name(item),
        spec["type"],
        address,
        external or "<none>",
        ",".join(ports) or "<none>",
        _age(item),
        selector or "<none>",
    ]


def _modes(item: Object) -> str:
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
    return ",".join(short.get(m, m) for m in _get(item, "spec.accessModes", []))


def _claim(item: Object) -> list[Any]:
    phase = "Terminating" if item["metadata"].get("deletionTimestamp") else _get(item, "status.phase", "")
    return [
        _name(item),
        phase,
        _get(item, "spec.volumeName", ""),
        _get(item, "status.capacity.storage", ""),
        _modes({"spec": item.get("status") or {}}) if _get(item, "spec.volumeName") else "",
        _get(item, "spec.storageClassName", ""),
        "<unset>",
        _age(item),
        _get(item, "spec.volumeMode", ""),
    ]


def _volume(item: Object) -> list[Any]:
    claim = _get(item, "spec.claimRef", {})
    return [
        _name(item),
        _get(item, "spec.capacity.storage", ""),
        _modes(item),
        _get(item, "spec.persistentVolumeReclaimPolicy", ""),
        "Terminating" if item["metadata"].get("deletionTimestamp") else _get(item, "status.phase", ""),
        f"{claim['namespace']}/{claim['name']}" if claim else "",
        _get(item, "spec.storageClassName", ""),
        "<unset>",
        _get(item, "status.reason", ""),
        _age(item),
        _get(item, "spec.volumeMode", ""),
    ]


def _event(item: Object) -> list[Any]:
    target = item.get("involvedObject") or item.get("regarding") or {}
    last = item.get("lastTimestamp") or item.get("eventTime") or item["metadata"].get("creationTimestamp")
    source = item.get("source") or item.get("deprecatedSource") or {}
    return [
        age(last),
        item.get("type", ""),
        item.get("reason", ""),
        f"{target.get('kind', '').lower()}/{target.get('name', '')}",
        target.get("fieldPath", ""),
        source.get("component") or item.get("reportingComponent") or item.get("reportingController") or "",
        (item.get("message") or item.get("note") or "").strip(),
        age(item.get("firstTimestamp") or item["metadata"].get("creationTimestamp")),
        str(item.get("count") or 1),
        _name(item),
    ]


def _node(item: Object) -> list[Any]:
    ready = next((c for c in _get(item, "status.conditions", []) if c["type"] == "Ready"), None)
    status = {"True": "Ready", "False": "NotReady"}.get(ready["status"], "Unknown") if ready else "Unknown"
    if _get(item, "spec.unschedulable"):
        status += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    labels = item["metadata"].get("labels") or {}
    roles = ",".join(sorted(k.removeprefix(prefix) for k in labels if k.startswith(prefix)))
    addresses = {a["type"]: a["address"] for a in _get(item, "status.addresses", [])}
    info = _get(item, "status.nodeInfo", {})
    return [
        _name(item),
        status,
        roles or "<none>",
        _age(item),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


def _budget(item: Object) -> list[Any]:
    spec = item["spec"]
    allowed = _get(item, "status.disruptionsAllowed", 0)
    return [
        _name(item),
        str(spec.get("minAvailable", "N/A")),
        str(spec.get("maxUnavailable", "N/A")),
        allowed,
        _age(item),
    ]


def _deployment(item: Object) -> list[Any]:
    status, wanted = item.get("status") or {}, _get(item, "spec.replicas", 0)
    return [
        _name(item),
        f"{status.get('readyReplicas', 0)}/{wanted}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        _age(item),
        *_containers(item),
        selector_text(_get(item, "spec.selector")),
    ]


def _replica_set(item: Object) -> list[Any]:
    status = item.get("status") or {}
    counts = [_get(item, "spec.replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [_name(item), *counts, _age(item), *_containers(item), selector_text(_get(item, "spec.selector"))]


def _stateful_set(item: Object) -> list[Any]:
    ready = f"{_get(item, 'status.readyReplicas', 0)}/{_get(item, 'spec.replicas', 0)}"
    return [_name(item), ready, _age(item), *_containers(item)]


def _endpoints(item: Object) -> list[Any]:
    pairs = []
    for subset in item.get("subsets") or []:
        for address in subset.get("addresses") or []:
            pairs += [f"{address['ip']}:{port['port']}" for port in subset.get("ports") or []] or [address["ip"]]
    shown = ",".join(pairs[:3]) + (f" + {len(pairs) - 3} more..." if len(pairs) > 3 else "")
    return [_name(item), shown or "<none>", _age(item)]


def _storage_class(item: Object) -> list[Any]:
    annotations = item["metadata"].get("annotations") or {}
    default = annotations.get("storageclass.kubernetes.io/is-default-class") == "true"
    return [
        _name(item) + (" (default)" if default else ""),
        item.get("provisioner", ""),
        item.get("reclaimPolicy", ""),
        item.get("volumeBindingMode", ""),
        bool(item.get("allowVolumeExpansion", False)),
        _age(item),
    ]


def _binding(item: Object) -> list[Any]:
    by_kind: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in item.get("subjects") or []:
        place = f"{subject['namespace']}/" if subject["kind"] == "ServiceAccount" and subject.get("namespace") else ""
        by_kind.setdefault(subject["kind"], []).append(place + subject["name"])
    role = f"{item['roleRef']['kind']}/{item['roleRef']['name']}"
    return [_name(item), role, _age(item), *(", ".join(by_kind[k]) for k in ("User", "Group", "ServiceAccount"))]


def _columns(text: str) -> list[Column]:
    """``Name Ready Age +Node`` as columns; ``+`` marks those of priority 1, ``#`` numbers, ``_`` stands for a blank."""
    out = []
    for word in text.split():
        priority = int(word.startswith("+"))
        word = word.lstrip("+")
        kind = "integer" if word.startswith("#") else "boolean" if word.startswith("?") else "string"
        out.append((word.lstrip("#?").replace("_", " "), kind, priority))
    return out


_BUILTIN: dict[str, tuple[list[Column], Row]] = {
    "Pod": (_columns("Name Ready Status Restarts Age +IP +Node +Nominated_Node +Readiness_Gates"), _pod),
    "StatefulSet": (_columns("Name Ready Age +Containers +Images"), _stateful_set),
    "Deployment": (_columns("Name Ready Up-to-date Available Age +Containers +Images +Selector"), _deployment),
    "ReplicaSet": (_columns("Name #Desired #Current #Ready Age +Containers +Images +Selector"), _replica_set),
    "Service": (_columns("Name Type Cluster-IP External-IP Port(s) Age +Selector"), _service),
    "Namespace": (_columns("Name Status Age"), lambda o: [_name(o), _get(o, "status.phase", ""), _age(o)]),
    "Node": (
        _columns(
            "Name Status Roles Age Version +Internal-IP +External-IP +OS-Image +Kernel-Version +Container-Runtime"
        ),
        _node,
    ),
    "Event": (
        _columns("Last_Seen Type Reason Object +Subobject +Source Message +First_Seen +Count +Name"),
        _event,
    ),
    "PersistentVolumeClaim": (
        _columns("Name Status Volume Capacity Access_Modes StorageClass VolumeAttributesClass Age +VolumeMode"),
        _claim,
    ),
    "PersistentVolume": (
        _columns(
            "Name Capacity Access_Modes Reclaim_Policy Status Claim StorageClass VolumeAttributesClass Reason Age "
            "+VolumeMode"
        ),
        _volume,
    ),
    "PodDisruptionBudget": (_columns("Name Min_Available Max_Unavailable #Allowed_Disruptions Age"), _budget),
    "ConfigMap": (
        _columns("Name Data Age"),
        lambda o: [_name(o), str(len(o.get("data") or {}) + len(o.get("binaryData") or {})), _age(o)],
    ),
    "Secret": (
        _columns("Name Type Data Age"),
        lambda o: [_name(o), o.get("type", ""), str(len(o.get("data") or {})), _age(o)],
    ),
    "ServiceAccount": (_columns("Name Secrets Age"), lambda o: [_name(o), str(len(o.get("secrets") or [])), _age(o)]),
    "Endpoints": (_columns("Name Endpoints Age"), _endpoints),
    "Lease": (_columns("Name Holder Age"), lambda o: [_name(o), _get(o, "spec.holderIdentity", ""), _age(o)]),
    "StorageClass": (
        _columns("Name Provisioner ReclaimPolicy VolumeBindingMode ?AllowVolumeExpansion Age"),
        _storage_class,
    ),
    "ControllerRevision": (
        _columns("Name Controller Revision Age"),
        lambda o: [
            _name(o),
            next(
                (
                    f"{r['kind'].lower()}.{r['apiVersion'].split('/')[0]}/{r['name']}"
                    for r in o["metadata"].get("ownerReferences") or []
                    if r.get("controller")
                ),
                "<none>",
            ),
            o.get("revision", 0),
            _age(o),
        ],
    ),
    "CustomResourceDefinition": (
        [("Name", "string", 0), ("Created At", "date", 0)],
        lambda o: [_name(o), o["metadata"].get("creationTimestamp")],
    ),
    "Role": (
        [("Name", "string", 0), ("Created At", "date", 0)],
        lambda o: [_name(o), o["metadata"].get("creationTimestamp")],
    ),
    "ClusterRole": (
        [("Name", "string", 0), ("Created At", "date", 0)],
        lambda o: [_name(o), o["metadata"].get("creationTimestamp")],
    ),
    "RoleBinding": (_columns("Name Role Age +Users +Groups +ServiceAccounts"), _binding),
    "ClusterRoleBinding": (_columns("Name Role Age +Users +Groups +ServiceAccounts"), _binding),
}
_PLAIN: tuple[list[Column], Row] = (
    [("Name", "string", 0), ("Age", "date", 0)],
    lambda o: [_name(o), o["metadata"].get("creationTimestamp")],
)


def _definition(name: str, kind: str, priority: int, description: str = "", form: str = "") -> Object:
    form = form or ("name" if name == "Name" else "")
    return {"name": name, "type": kind, "format": form, "description": description, "priority": priority}


def _custom(kind: Kind) -> tuple[list[Object], Row]:
    definitions = [_definition("Name", "string", 0)]
    columns = kind.columns or [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]
    for column in columns:
        text = (
            column.get("description") or f"Custom resource definition column (in JSONPath format): {column['jsonPath']}"
        )
        definitions.append(
            _definition(column["name"], column["type"], column.get("priority", 0), text, column.get("format", ""))
        )

    def row(item: Object) -> list[Any]:
        return [_name(item), *(_cell(item, column) for column in columns)]

    return definitions, row


def _cell(item: Object, column: Object) -> Any:
    values = jsonpath.find(item, column["jsonPath"])
    if not values or values[0] is None:
        return "<unknown>" if column["type"] == "date" and column["jsonPath"] == ".metadata.creationTimestamp" else None
    value = values[0]
    match column["type"]:
        case "date":
            return age(value) if isinstance(value, str) else "<invalid>"
        case "integer":
            return value if isinstance(value, int) else None
        case "string":
            return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return value


def render(kind: Kind, items: list[Object], meta: Object, include: str, *, header: bool = True) -> Object:
    """A Table of ``items``. ``include`` is None, Metadata or Object: what of each object is attached to its row."""
    if kind.custom is not None:
        definitions, row = _custom(kind)
    else:
        columns, row = _BUILTIN.get(kind.kind, _PLAIN)
        definitions = [_definition(*column) for column in columns]
    rows = []
    for item in items:
        entry: Object = {"cells": row(item)}
        if include == "Object":
            entry["object"] = item
        elif include != "None":
            entry["object"] = partial(item)
        rows.append(entry)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": definitions if header else None,
        "rows": rows,
    }


def partial(item: Object) -> Object:
    """An object's metadata alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}
