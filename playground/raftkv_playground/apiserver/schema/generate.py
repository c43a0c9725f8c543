"""Write ``builtin.json``: field names and types of the built-in kinds, from the typed Kubernetes client.

Run at development time (``python -m raftkv_playground.apiserver.schema.generate``) when kinds are added. The file
holds protocol facts only: for each type its fields, each with a type expression (see ``shapes.parse_type``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOTS = [
    "V1Pod",
    "V1Service",
    "V1Endpoints",
    "V1ConfigMap",
    "V1Secret",
    "CoreV1Event",
    "EventsV1Event",
    "V1Namespace",
    "V1Node",
    "V1ServiceAccount",
    "V1PersistentVolume",
    "V1PersistentVolumeClaim",
    "V1LimitRange",
    "V1PodTemplate",
    "V1ReplicationController",
    "V1ResourceQuota",
    "V1StatefulSet",
    "V1Deployment",
    "V1ReplicaSet",
    "V1DaemonSet",
    "V1ControllerRevision",
    "V1Job",
    "V1CronJob",
    "V1PodDisruptionBudget",
    "V1Lease",
    "V1EndpointSlice",
    "V1StorageClass",
    "V1Role",
    "V1RoleBinding",
    "V1ClusterRole",
    "V1ClusterRoleBinding",
    "V1NetworkPolicy",
    "V1PriorityClass",
    "V1CustomResourceDefinition",
    "V1Scale",
    "V1Eviction",
    "V1Binding",
    "V1DeleteOptions",
    "V1SelfSubjectAccessReview",
    "V1SelfSubjectReview",
    "V1SelfSubjectRulesReview",
    "V1SubjectAccessReview",
    "V1LocalSubjectAccessReview",
    "V1TokenReview",
    "AuthenticationV1TokenRequest",
    "V1ServiceMonitor",
    "V1Ingress",
    "V1IngressClass",
    "V2HorizontalPodAutoscaler",
    "V1Table",
]
"""Model classes of the client; those it does not have are skipped."""


def type_expression(schema: dict[str, Any]) -> str:
    """One JSON-schema node as a type expression."""
    choices = [c for c in schema.get("anyOf", [schema]) if c.get("type") != "null"]
    kinds = {c.get("type") for c in choices}
    if kinds == {"integer", "string"}:
        return "int-or-string"
    if any(c.get("format") == "binary" for c in choices):
        return "bytes"
    if len(choices) > 1:
        return "any"
    (choice,) = choices
    if "$ref" in choice:
        return short_name(choice["$ref"].rsplit("/", 1)[1])
    match choice.get("type"):
        case "array":
            return "[]" + type_expression(choice["items"])
        case "object":
            values = choice.get("additionalProperties")
            return "{}" + type_expression(values) if isinstance(values, dict) else "any"
        case "string":
            return "time" if choice.get("format") == "date-time" else "string"
        case None:
            return "any"
        case other:
            return str(other)


def short_name(model: str) -> str:
    """``V1PodSpec`` is ``PodSpec``; names without a leading version stay (``CoreV1Event``, ``RbacV1Subject``)."""
    return re.sub(r"^V\d+(?=[A-Z])", "", model)


def generate() -> dict[str, dict[str, str]]:
    """All types reachable from ``ROOTS``: type name -> field name -> type expression."""
    from kubernetes import client

    types: dict[str, dict[str, str]] = {}
    for root in ROOTS:
        model = getattr(client, root, None)
        if model is None:
            continue
        schema = model.model_json_schema()
        for name, body in {**schema.get("$defs", {}), root: schema}.items():
            if "properties" in body:
                fields = {field: type_expression(node) for field, node in body["properties"].items()}
                types[short_name(name)] = dict(sorted(fields.items()))
    return dict(sorted(types.items()))


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in generate().items()]
    (Path(__file__).parent / "builtin.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
