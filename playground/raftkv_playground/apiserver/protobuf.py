"""Decoding of the protobuf bodies that newer kubectl versions send for built-in kinds.

Only requests are decoded (answers are JSON, which kubectl also accepts), and only kinds that kubectl creates by
itself; anything else is refused with 415. The wire format: a magic prefix, then an ``Unknown`` message that holds
the type (1: apiVersion, 2: kind) and the raw bytes of the object's message. Field numbers are those of the
published API definitions.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from raftkv_playground.apiserver.errors import Object, bad_request

MAGIC = b"k8s\x00"

Field = tuple[str, str]
"""(JSON name, type): s string, b bytes, i integer, ? boolean, t time, x integer or
string, or a message's name; ``[]`` and ``{}`` before it
for lists and string-keyed maps."""

_MESSAGES: dict[str, dict[int, Field]] = {
    "ObjectMeta": {
        1: ("name", "s"),
        2: ("generateName", "s"),
        3: ("namespace", "s"),
        5: ("uid", "s"),
        6: ("resourceVersion", "s"),
        7: ("generation", "i"),
        8: ("creationTimestamp", "t"),
        9: ("deletionTimestamp", "t"),
        10: ("deletionGracePeriodSeconds", "i"),
        11: ("labels", "{}s"),
        12: ("annotations", "{}s"),
        13: ("ownerReferences", "[]OwnerReference"),
        14: ("finalizers", "[]s"),
    },
    "OwnerReference": {
        5: ("apiVersion", "s"),
        1: ("kind", "s"),
        3: ("name", "s"),
        4: ("uid", "s"),
        6: ("controller", "?"),
        7: ("blockOwnerDeletion", "?"),
    },
    "Namespace": {1: ("metadata", "ObjectMeta"), 2: ("spec", "NamespaceSpec"), 3: ("status", "NamespaceStatus")},
    "NamespaceSpec": {1: ("finalizers", "[]s")},
    "NamespaceStatus": {1: ("phase", "s")},
    "ConfigMap": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "{}s"),
        3: ("binaryData", "{}b"),
        4: ("immutable", "?"),
    },
    "Secret": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "{}b"),
        3: ("type", "s"),
        4: ("stringData", "{}s"),
        5: ("immutable", "?"),
    },
    "ServiceAccount": {
        1: ("metadata", "ObjectMeta"),
        2: ("secrets", "[]ObjectReference"),
        3: ("imagePullSecrets", "[]LocalObjectReference"),
        4: ("automountServiceAccountToken", "?"),
    },
    "ObjectReference": {
        1: ("kind", "s"),
        2: ("namespace", "s"),
        3: ("name", "s"),
        4: ("uid", "s"),
        5: ("apiVersion", "s"),
        6: ("resourceVersion", "s"),
        7: ("fieldPath", "s"),
    },
    "LocalObjectReference": {1: ("name", "s")},
    "Role": {1: ("metadata", "ObjectMeta"), 2: ("rules", "[]PolicyRule")},
    "ClusterRole": {1: ("metadata", "ObjectMeta"), 2: ("rules", "[]PolicyRule")},
    "PolicyRule": {
        1: ("verbs", "[]s"),
        2: ("apiGroups", "[]s"),
        3: ("resources", "[]s"),
        4: ("resourceNames", "[]s"),
        5: ("nonResourceURLs", "[]s"),
    },
    "RoleBinding": {1: ("metadata", "ObjectMeta"), 2: ("subjects", "[]Subject"), 3: ("roleRef", "RoleRef")},
    "ClusterRoleBinding": {1: ("metadata", "ObjectMeta"), 2: ("subjects", "[]Subject"), 3: ("roleRef", "RoleRef")},
    "Subject": {1: ("kind", "s"), 2: ("apiGroup", "s"), 3: ("name", "s"), 4: ("namespace", "s")},
    "RoleRef": {1: ("apiGroup", "s"), 2: ("kind", "s"), 3: ("name", "s")},
    "SelfSubjectAccessReview": {
        1: ("metadata", "ObjectMeta"),
        2: ("spec", "SelfSubjectAccessReviewSpec"),
        3: ("status", "Ignored"),
    },
    "SelfSubjectAccessReviewSpec": {
        1: ("resourceAttributes", "ResourceAttributes"),
        2: ("nonResourceAttributes", "NonResourceAttributes"),
    },
    "ResourceAttributes": {
        1: ("namespace", "s"),
        2: ("verb", "s"),
        3: ("group", "s"),
        4: ("version", "s"),
        5: ("resource", "s"),
        6: ("subresource", "s"),
        7: ("name", "s"),
    },
    "NonResourceAttributes": {1: ("path", "s"), 2: ("verb", "s")},
    "SelfSubjectRulesReview": {
        1: ("metadata", "ObjectMeta"),
        2: ("spec", "SelfSubjectRulesReviewSpec"),
        3: ("status", "Ignored"),
    },
    "SelfSubjectRulesReviewSpec": {1: ("namespace", "s")},
    "SelfSubjectReview": {1: ("metadata", "ObjectMeta"), 2: ("status", "Ignored")},
    "TokenRequest": {1: ("metadata", "ObjectMeta"), 2: ("spec", "TokenRequestSpec"), 3: ("status", "Ignored")},
    "TokenRequestSpec": {
        1: ("audiences", "[]s"),
        3: ("boundObjectRef", "BoundObjectReference"),
        4: ("expirationSeconds", "i"),
    },
    "BoundObjectReference": {1: ("kind", "s"), 2: ("apiVersion", "s"), 3: ("name", "s"), 4: ("uid", "s")},
    "Eviction": {1: ("metadata", "ObjectMeta"), 2: ("deleteOptions", "DeleteOptions")},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", "i"),
        2: ("preconditions", "Preconditions"),
        3: ("orphanDependents", "?"),
        4: ("propagationPolicy", "s"),
        5: ("dryRun", "[]s"),
    },
    "Preconditions": {1: ("uid", "s"), 2: ("resourceVersion", "s")},
    "PodDisruptionBudget": {
        1: ("metadata", "ObjectMeta"),
        2: ("spec", "PodDisruptionBudgetSpec"),
        3: ("status", "Ignored"),
    },
    "PodDisruptionBudgetSpec": {
        1: ("minAvailable", "x"),
        2: ("selector", "LabelSelector"),
        3: ("maxUnavailable", "x"),
        4: ("unhealthyPodEvictionPolicy", "s"),
    },
    "LabelSelector": {1: ("matchLabels", "{}s"), 2: ("matchExpressions", "[]LabelSelectorRequirement")},
    "LabelSelectorRequirement": {1: ("key", "s"), 2: ("operator", "s"), 3: ("values", "[]s")},
    "Service": {1: ("metadata", "ObjectMeta"), 2: ("spec", "ServiceSpec"), 3: ("status", "Ignored")},
    "ServiceSpec": {
        1: ("ports", "[]ServicePort"),
        2: ("selector", "{}s"),
        3: ("clusterIP", "s"),
        4: ("type", "s"),
        5: ("externalIPs", "[]s"),
        7: ("sessionAffinity", "s"),
        10: ("externalName", "s"),
        11: ("externalTrafficPolicy", "s"),
        13: ("publishNotReadyAddresses", "?"),
    },
    "ServicePort": {
        1: ("name", "s"),
        2: ("protocol", "s"),
        3: ("port", "i"),
        4: ("targetPort", "x"),
        5: ("nodePort", "i"),
        6: ("appProtocol", "s"),
    },
    "IntOrString": {1: ("type", "i"), 2: ("intVal", "i"), 3: ("strVal", "s")},
    "Ignored": {},
}


def decode(raw: bytes) -> Object | None:
    """The object in a request body, or None for a kind that is not decoded. 400 for a broken message."""
    if not raw.startswith(MAGIC):
        raise bad_request("the body is no Kubernetes protobuf message")
    try:
        envelope = dict(_fields(raw[len(MAGIC) :]))
        type_meta = dict(_fields(bytes(envelope[1])))
        version, kind = bytes(type_meta[1]).decode(), bytes(type_meta[2]).decode()
        if kind not in _MESSAGES:
            return None
        item = _message(bytes(envelope.get(2, b"")), kind)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise bad_request(f"cannot decode the protobuf body: {error}") from None
    item.pop("status", None)
    return {"apiVersion": version, "kind": kind, **item}


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
        shift += 7


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: bytes for length-delimited ones, integers for the others."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        match tag & 7:
            case 0:
                value, at = _varint(raw, at)
                yield tag >> 3, value
            case 1:
                yield tag >> 3, int.from_bytes(raw[at : at + 8], "little")
                at += 8
            case 2:
                size, at = _varint(raw, at)
                if at + size > len(raw):
                    raise ValueError("truncated message")
                yield tag >> 3, raw[at : at + size]
                at += size
            case 5:
                yield tag >> 3, int.from_bytes(raw[at : at + 4], "little")
                at += 4
            case other:
                raise ValueError(f"unknown wire type {other}")


def _message(raw: bytes, name: str) -> Object:
    table = _MESSAGES[name]
    out: Object = {}
    for number, value in _fields(raw):
        if number not in table:
            continue
        key, kind = table[number]
        if kind.startswith("[]"):
            out.setdefault(key, []).append(_value(value, kind[2:]))
        elif kind.startswith("{}"):
            entry = dict(_fields(value))
            out.setdefault(key, {})[bytes(entry.get(1, b"")).decode()] = _value(entry.get(2, b""), kind[2:])
        else:
            out[key] = _value(value, kind)
    # Scalars that are no pointers are on the wire even when unset; only pointers' zero values mean something.
    unset = {"nodePort": 0, "publishNotReadyAddresses": False, "generation": 0}
    return {k: v for k, v in out.items() if k == "spec" or (v not in ("", {}, None) and (k, v) not in unset.items())}


def _value(value: Any, kind: str) -> Any:
    match kind:
        case "s":
            return bytes(value).decode()
        case "b":
            return base64.b64encode(bytes(value)).decode()
        case "i":
            return value - (1 << 64) if value >= 1 << 63 else value
        case "?":
            return bool(value)
        case "t":
            return None
        case "x":
            either = _message(bytes(value), "IntOrString")
            return either.get("strVal", "") if either.get("type") == 1 else either.get("intVal", 0)
        case _:
            return _message(bytes(value), kind)
