"""Shapes: the structural types that field management, pruning, strict decoding and patches share.

A ``Shape`` says of a value whether it is a scalar, a map (a struct with named fields, a map with free keys, or both)
or a list, and how lists and maps merge: ``atomic`` as one value, ``set`` by value, ``map`` by key fields. Shapes of
built-in kinds come from ``builtin.json`` plus the notes below; shapes of custom resources from their OpenAPI schema.

The merge rules are those that Kubernetes publishes in its API types (list types, map types, merge keys).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

Kind = Literal["scalar", "map", "list", "any"]


@dataclass(slots=True, eq=False)
class Shape:
    """One node. ``any`` is deduced from the value: maps by field, lists and scalars as a whole."""

    kind: Kind
    scalar: str = ""
    """string, integer, number, boolean, quantity, int-or-string, time, bytes or any (not checked)."""
    type_name: str = ""
    fields: dict[str, Shape] = field(default_factory=dict)
    extra: Shape | None = None
    """Values of keys that are no named field."""
    items: Shape | None = None
    list_type: Literal["atomic", "set", "map"] = "atomic"
    keys: tuple[str, ...] = ()
    key_defaults: dict[str, Any] = field(default_factory=dict)
    patch_key: str = ""
    """Merge key of a strategic merge patch; empty: the list is replaced (or, for scalars of a set, merged)."""
    atomic: bool = False
    preserve: bool = False
    """Keys without a shape are kept instead of pruned."""
    present: dict[str, Any] = field(default_factory=dict)
    """Fields that the wire form always has, with their zero value (struct values and lists without omitempty)."""

    def child(self, key: str) -> Shape | None:
        """The shape of a map's member, or None if it has none."""
        if self.kind == "any":
            return ANY
        found = self.fields.get(key)
        if found is None:
            found = self.extra
        return ANY if found is None and self.preserve else found

    def element(self) -> Shape:
        return self.items if self.kind == "list" and self.items is not None else ANY


ANY = Shape("any", preserve=True)
UNCHECKED = Shape("scalar", "any")

_KEYED_LISTS = {
    "PodSpec.containers": "name",
    "PodSpec.initContainers": "name",
    "PodSpec.ephemeralContainers": "name",
    "PodSpec.volumes": "name",
    "PodSpec.imagePullSecrets": "name",
    "PodSpec.hostAliases": "ip",
    "PodSpec.topologySpreadConstraints": "topologyKey,whenUnsatisfiable",
    "PodSpec.schedulingGates": "name",
    "PodSpec.resourceClaims": "name",
    "Container.env": "name",
    "Container.ports": "containerPort,protocol=TCP",
    "Container.volumeMounts": "mountPath",
    "Container.volumeDevices": "devicePath",
    "ResourceRequirements.claims": "name",
    "ObjectMeta.ownerReferences": "uid",
    "ServiceSpec.ports": "port,protocol=TCP",
    "PodStatus.conditions": "type",
    "PodStatus.podIPs": "ip",
    "PodStatus.resourceClaimStatuses": "name",
    "NodeStatus.conditions": "type",
    "NodeStatus.addresses": "type",
    "ServiceStatus.conditions": "type",
    "StatefulSetStatus.conditions": "type",
    "DeploymentStatus.conditions": "type",
    "ReplicaSetStatus.conditions": "type",
    "DaemonSetStatus.conditions": "type",
    "PersistentVolumeClaimStatus.conditions": "type",
    "PodDisruptionBudgetStatus.conditions": "type",
    "NamespaceStatus.conditions": "type",
    "CustomResourceDefinitionStatus.conditions": "type",
    "ServiceAccount.secrets": "name",
}
_PATCH_KEYS = {"ServiceAccount.imagePullSecrets": "name", "JobStatus.conditions": "type", "PodStatus.hostIPs": "ip"}
_SETS = {"ObjectMeta.finalizers", "NodeSpec.podCIDRs", "Endpoint.addresses"}
_ATOMIC_TYPES = {
    "LabelSelector",
    "ObjectReference",
    "LocalObjectReference",
    "OwnerReference",
    "RoleRef",
    "SecretKeySelector",
    "ConfigMapKeySelector",
    "ObjectFieldSelector",
    "ResourceFieldSelector",
    "NodeSelector",
    "NodeSelectorTerm",
    "TypedLocalObjectReference",
    "SecretReference",
    "ScopeSelector",
    "ScopedResourceSelectorRequirement",
    "RbacV1Subject",
    "TopologySelectorTerm",
    "FileKeySelector",
}
_ATOMIC_MAPS = {"PodSpec.nodeSelector", "ServiceSpec.selector"}
_STRUCT = object()
_VALUE_FIELDS: dict[str, dict[str, Any]] = {
    # Struct values and lists without omitempty: on the wire even when nothing was given.
    "StatefulSet": {"spec": _STRUCT, "status": _STRUCT},
    "StatefulSetSpec": {"template": _STRUCT, "updateStrategy": _STRUCT},
    "StatefulSetStatus": {"replicas": 0, "availableReplicas": 0},
    "Deployment": {"spec": _STRUCT, "status": _STRUCT},
    "DeploymentSpec": {"template": _STRUCT, "strategy": _STRUCT},
    "ReplicaSet": {"spec": _STRUCT, "status": _STRUCT},
    "ReplicaSetStatus": {"replicas": 0},
    "DaemonSet": {"spec": _STRUCT, "status": _STRUCT},
    "DaemonSetSpec": {"template": _STRUCT, "updateStrategy": _STRUCT},
    "Pod": {"spec": _STRUCT, "status": _STRUCT},
    "PodTemplate": {"template": _STRUCT},
    "PodTemplateSpec": {"metadata": _STRUCT, "spec": _STRUCT},
    "PodSpec": {"containers": None},
    "Container": {"resources": _STRUCT},
    "ContainerStatus": {"state": _STRUCT, "lastState": _STRUCT},
    "PodCondition": {"lastProbeTime": None, "lastTransitionTime": None},
    "Service": {"spec": _STRUCT, "status": _STRUCT},
    "ServiceStatus": {"loadBalancer": _STRUCT},
    "ServicePort": {"targetPort": 0},
    "Namespace": {"spec": _STRUCT, "status": _STRUCT},
    "Node": {"spec": _STRUCT, "status": _STRUCT},
    "NodeStatus": {"daemonEndpoints": _STRUCT, "nodeInfo": _STRUCT},
    "NodeDaemonEndpoints": {"kubeletEndpoint": _STRUCT},
    "PersistentVolume": {"spec": _STRUCT, "status": _STRUCT},
    "PersistentVolumeClaim": {"spec": _STRUCT, "status": _STRUCT},
    "PersistentVolumeClaimSpec": {"resources": _STRUCT},
    "PodDisruptionBudget": {"spec": _STRUCT, "status": _STRUCT},
    "PodDisruptionBudgetStatus": {
        "disruptionsAllowed": 0,
        "currentHealthy": 0,
        "desiredHealthy": 0,
        "expectedPods": 0,
    },
    "Lease": {"spec": _STRUCT},
    "CoreV1Event": {
        "involvedObject": _STRUCT,
        "source": _STRUCT,
        "firstTimestamp": None,
        "lastTimestamp": None,
        "eventTime": None,
        "reportingComponent": "",
        "reportingInstance": "",
    },
    "EventsV1Event": {
        "regarding": _STRUCT,
        "eventTime": None,
        "deprecatedSource": _STRUCT,
        "deprecatedFirstTimestamp": None,
        "deprecatedLastTimestamp": None,
    },
    "CustomResourceDefinition": {"spec": _STRUCT, "status": _STRUCT},
    "CustomResourceDefinitionSpec": {"names": _STRUCT},
    "CustomResourceDefinitionStatus": {"conditions": None, "acceptedNames": _STRUCT, "storedVersions": None},
    "CustomResourceDefinitionNames": {"plural": "", "kind": ""},
    "RoleBinding": {"roleRef": _STRUCT},
    "ClusterRoleBinding": {"roleRef": _STRUCT},
    "Role": {"rules": None},
    "ClusterRole": {"rules": None},
    "Job": {"spec": _STRUCT, "status": _STRUCT},
    "CronJob": {"spec": _STRUCT, "status": _STRUCT},
    "SelfSubjectAccessReview": {"spec": _STRUCT, "status": _STRUCT},
    "SubjectAccessReview": {"spec": _STRUCT, "status": _STRUCT},
    "LocalSubjectAccessReview": {"spec": _STRUCT, "status": _STRUCT},
    "SubjectAccessReviewStatus": {"allowed": False},
    "SelfSubjectReview": {"status": _STRUCT},
    "TokenReview": {"spec": _STRUCT, "status": _STRUCT},
    "ReplicationController": {"spec": _STRUCT, "status": _STRUCT},
    "ResourceQuota": {"spec": _STRUCT, "status": _STRUCT},
    "LimitRange": {"spec": _STRUCT},
    "Scale": {"spec": _STRUCT, "status": _STRUCT},
    "ScaleStatus": {"replicas": 0},
}
_QUANTITIES = {
    "ResourceRequirements.limits",
    "ResourceRequirements.requests",
    "VolumeResourceRequirements.limits",
    "VolumeResourceRequirements.requests",
    "PersistentVolumeSpec.capacity",
    "PersistentVolumeClaimStatus.capacity",
    "NodeStatus.capacity",
    "NodeStatus.allocatable",
}


@cache
def _types() -> dict[str, dict[str, str]]:
    loaded: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "builtin.json").read_text())
    return loaded


@cache
def builtin(type_name: str) -> Shape:
    """The shape of a built-in type such as ``StatefulSet`` or ``PodSpec``. ``KeyError`` for an unknown one."""
    return _struct(type_name, {})


def zero(shape: Shape) -> Any:
    """The wire form of a struct value in which nothing is set."""
    return {key: zero(shape.fields[key]) if value is _STRUCT else value for key, value in shape.present.items()}


_built: dict[str, Shape] = {}


def _struct(name: str, _unused: dict[str, Shape]) -> Shape:
    if name in _built:
        return _built[name]
    shape = _built[name] = Shape("map", type_name=name, atomic=name in _ATOMIC_TYPES)
    for key, expression in _types()[name].items():
        shape.fields[key] = _field(name, key, expression)
    shape.present = {
        key: (_STRUCT if value is _STRUCT else value) for key, value in _VALUE_FIELDS.get(name, {}).items()
    }
    if "apiVersion" in shape.fields and "metadata" in shape.fields:
        shape.present = {"metadata": _STRUCT, **shape.present}
    return shape


def is_struct_value(value: Any) -> bool:
    """Whether an entry of ``Shape.present`` stands for an empty struct (see ``zero``)."""
    return value is _STRUCT


def _field(owner: str, key: str, expression: str) -> Shape:
    where = f"{owner}.{key}"
    if where in _QUANTITIES:
        return Shape("map", type_name="ResourceList", extra=Shape("scalar", "quantity"))
    shape = parse_type(expression)
    if keys := _KEYED_LISTS.get(where):
        names, shape.list_type = [], "map"
        for part in keys.split(","):
            name, _, default = part.partition("=")
            names.append(name)
            if default:
                shape.key_defaults[name] = default
        shape.keys, shape.patch_key = tuple(names), names[0]
    if where in _PATCH_KEYS:
        shape.patch_key = _PATCH_KEYS[where]
    if where in _SETS:
        shape.list_type = "set"
    if where in _ATOMIC_MAPS:
        shape.atomic = True
    return shape


def parse_type(expression: str) -> Shape:
    """A shape from a type expression: ``[]X``, ``{}X``, a scalar's name, ``any``, or the name of a built-in type.

    Named types are shared; lists and maps are new objects, so that their notes can be set.
    """
    if expression.startswith("[]"):
        return Shape("list", items=parse_type(expression[2:]))
    if expression.startswith("{}"):
        return Shape("map", type_name=f"map[string]{expression[2:]}", extra=parse_type(expression[2:]))
    if expression == "any":
        return UNCHECKED
    if expression in {"string", "integer", "number", "boolean", "int-or-string", "time", "bytes", "quantity"}:
        return Shape("scalar", expression)
    return _struct(expression, {})


def from_openapi(schema: dict[str, Any], *, root: bool = False) -> Shape:
    """The shape that a structural OpenAPI schema of a custom resource describes."""
    preserve = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if schema.get("x-kubernetes-int-or-string"):
        return Shape("scalar", "int-or-string")
    kind = schema.get("type")
    if kind == "object" or "properties" in schema or root:
        shape = Shape("map", preserve=preserve, atomic=schema.get("x-kubernetes-map-type") == "atomic")
        for key, node in (schema.get("properties") or {}).items():
            shape.fields[key] = from_openapi(node)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            shape.extra = from_openapi(extra)
        elif extra is True:
            shape.extra = ANY
        if root or schema.get("x-kubernetes-embedded-resource"):
            shape.fields |= {"apiVersion": Shape("scalar", "string"), "kind": Shape("scalar", "string")}
            shape.fields["metadata"] = builtin("ObjectMeta")
        return shape
    if kind == "array":
        shape = Shape("list", items=from_openapi(schema.get("items") or {}))
        shape.list_type = schema.get("x-kubernetes-list-type", "atomic")
        shape.keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
        properties = (schema.get("items") or {}).get("properties") or {}
        shape.key_defaults = {k: properties[k]["default"] for k in shape.keys if "default" in properties.get(k, {})}
        return shape
    if kind is None:
        return ANY if preserve else UNCHECKED
    return Shape("scalar", str(kind))
