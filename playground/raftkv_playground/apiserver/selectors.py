"""Label and field selectors of list, watch and deletecollection requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from raftkv_playground.apiserver.errors import Object, bad_request

Predicate = Callable[[Object], bool]

_SET_FORM = re.compile(r"^(\S+)\s+(in|notin)\s*\(([^)]*)\)$")
_KEY = re.compile(r"^([a-z0-9A-Z]([-a-z0-9A-Z.]*[a-z0-9A-Z])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
Requirement = tuple[str, str, frozenset[str]]


def parse_labels(text: str) -> list[Requirement]:
    """``a=b,c!=d,e in (f,g),!h`` as (key, operator, values). 400 for what cannot be parsed."""
    requirements: list[Requirement] = []
    for part in re.split(r",(?![^()]*\))", text):
        part = part.strip()
        if not part:
            continue
        if match := _SET_FORM.match(part):
            values = frozenset(v.strip() for v in match[3].split(","))
            requirement = (match[1], match[2], values)
        elif "!=" in part:
            key, value = part.split("!=", 1)
            requirement = (key.strip(), "notin", frozenset([value.strip()]))
        elif "=" in part:
            key, value = re.split("==?", part, maxsplit=1)
            requirement = (key.strip(), "in", frozenset([value.strip()]))
        elif part.startswith("!"):
            requirement = (part[1:].strip(), "absent", frozenset())
        else:
            requirement = (part, "exists", frozenset())
        if not _KEY.match(requirement[0]):
            raise bad_request(f"unable to parse requirement: invalid label key {requirement[0]!r}".replace("'", '"'))
        requirements.append(requirement)
    return requirements


def match_labels(requirements: list[Requirement], labels: Mapping[str, str] | None) -> bool:
    labels = labels or {}
    for key, operator, values in requirements:
        match operator:
            case "in":
                fits = labels.get(key) in values
            case "notin":
                fits = labels.get(key) not in values
            case "exists":
                fits = key in labels
            case _:
                fits = key not in labels
        if not fits:
            return False
    return True


def match_selector(selector: Object | None, labels: Mapping[str, str] | None) -> bool:
    """A ``LabelSelector`` object: absent selects nothing, empty selects everything."""
    if selector is None:
        return False
    labels = labels or {}
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or []:
        value, values = labels.get(expression["key"]), expression.get("values") or []
        fits = {
            "In": value is not None and value in values,
            "NotIn": value is None or value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }.get(expression["operator"], False)
        if not fits:
            return False
    return True


def selector_text(selector: Object | None) -> str:
    """A ``LabelSelector`` object in the form of a query."""
    parts = [f"{k}={v}" for k, v in sorted(((selector or {}).get("matchLabels") or {}).items())]
    for expression in (selector or {}).get("matchExpressions") or []:
        key, values = expression["key"], ",".join(sorted(expression.get("values") or []))
        parts.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }[expression["operator"]]
        )
    return ",".join(parts)


_FIELDS: dict[str, tuple[str, ...]] = {
    "Pod": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "Event": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "Secret": ("type",),
    "Service": ("spec.clusterIP", "spec.type"),
    "Namespace": ("status.phase",),
    "Node": ("spec.unschedulable",),
    "ReplicaSet": ("status.replicas",),
    "Job": ("status.successful",),
}


def field_predicate(text: str, kind: str, selectable: tuple[str, ...] = ()) -> Predicate:
    """A predicate over objects. 400 for a field that the kind cannot be selected by; ``selectable`` are further
    fields (a CRD's ``selectableFields``)."""
    allowed = {"metadata.name", "metadata.namespace", *_FIELDS.get(kind, ()), *selectable}
    terms: list[tuple[str, str, bool]] = []
    for part in filter(None, text.split(",")):
        negated = "!=" in part
        key, _, value = part.partition("!=") if negated else part.replace("==", "=", 1).partition("=")
        if key not in allowed:
            raise bad_request(f"field label not supported: {key}")
        terms.append((key, value, negated))

    def predicate(item: Object) -> bool:
        return all((_text_at(item, key) == value) != negated for key, value, negated in terms)

    return predicate


def _text_at(item: Object, path: str) -> str:
    if path == "source":
        return str((item.get("source") or {}).get("component", "") or item.get("reportingComponent", ""))
    value: Any = item
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
