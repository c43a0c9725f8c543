"""Namespaces, services, configuration, events, leases and RBAC objects."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from raftkv_playground.apiserver.errors import (
    FieldError,
    Object,
    bad_request,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from raftkv_playground.apiserver.kinds import Strategy, setdefaults
from raftkv_playground.apiserver.metadata import name_problems

if TYPE_CHECKING:
    from raftkv_playground.apiserver.resources import Resources

_DATA_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")
_DATA_KEY_TEXT = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
OBJECT_DATA_LIMIT_BYTES = 1 << 20
_PORT_TEXT = "must be between 1 and 65535, inclusive"


class NamespaceStrategy(Strategy):
    name_form = "label"

    def default(self, item: Object) -> None:
        metadata = item["metadata"]
        if metadata.get("name"):
            metadata["labels"] = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}

    def prepare_create(self, item: Object, resources: Resources) -> None:
        item["status"] = {"phase": "Active"}
        finalizers = item["spec"].setdefault("finalizers", [])
        if "kubernetes" not in finalizers:
            finalizers.append("kubernetes")

    def prepare_update(self, item: Object, old: Object, subresource: str) -> None:
        if subresource == "finalize":
            item["status"] = old["status"]
            return
        super().prepare_update(item, old, subresource)
        item["spec"] = old["spec"]


class ServiceStrategy(Strategy):
    name_form = "label1035"
    returns_deleted = True

    def default(self, item: Object) -> None:
        spec = item["spec"]
        setdefaults(spec, sessionAffinity="None", type="ClusterIP")
        for port in spec.get("ports") or []:
            port.setdefault("protocol", "TCP")
            if port.get("targetPort") in {0, "", None}:
                port["targetPort"] = port.get("port", 0)
        if spec["type"] in {"ClusterIP", "NodePort", "LoadBalancer"}:
            spec.setdefault("internalTrafficPolicy", "Cluster")
        if spec["type"] in {"NodePort", "LoadBalancer"}:
            spec.setdefault("externalTrafficPolicy", "Cluster")

    def prepare_create(self, item: Object, resources: Resources) -> None:
        item["status"] = {"loadBalancer": {}}
        spec = item["spec"]
        if spec["type"] == "ExternalName" or self.validate(item):
            return
        setdefaults(spec, ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack")
        if not spec.get("clusterIP"):
            spec["clusterIP"] = resources.addresses.allocate()
        elif spec["clusterIP"] != "None":
            resources.addresses.claim(spec["clusterIP"], item["metadata"].get("name", ""))
        spec["clusterIPs"] = [spec["clusterIP"]]
        if spec["type"] in {"NodePort", "LoadBalancer"}:
            for port in spec.get("ports") or []:
                port.setdefault("nodePort", resources.addresses.node_port())

    def prepare_update(self, item: Object, old: Object, subresource: str) -> None:
        super().prepare_update(item, old, subresource)
        spec, before = item["spec"], old["spec"]
        if subresource or spec.get("type") == "ExternalName":
            return
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if key not in spec and key in before:
                spec[key] = before[key]
        if spec.get("clusterIP") != before.get("clusterIP") and spec.get("clusterIPs") == before.get("clusterIPs"):
            # The singular field is what older clients write; the list follows it.
            spec["clusterIPs"] = [spec["clusterIP"]]

    def validate(self, item: Object) -> list[FieldError]:
        spec = item["spec"]
        errors: list[FieldError] = []
        ports = spec.get("ports") or []
        headless = spec.get("clusterIP") == "None"
        if not ports and not headless and spec["type"] != "ExternalName":
            errors.append(required("spec.ports"))
        seen: set[str] = set()
        for n, port in enumerate(ports):
            errors += self._port(port, f"spec.ports[{n}]", len(ports) > 1, seen)
        if spec["type"] not in {"ClusterIP", "ExternalName", "LoadBalancer", "NodePort"}:
            errors.append(
                not_supported("spec.type", spec["type"], ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"])
            )
        if spec["sessionAffinity"] not in {"ClientIP", "None"}:
            errors.append(not_supported("spec.sessionAffinity", spec["sessionAffinity"], ["ClientIP", "None"]))
        if spec["type"] == "ExternalName" and not spec.get("externalName"):
            errors.append(required("spec.externalName"))
        return errors

    def _port(self, port: Object, at: str, named: bool, seen: set[str]) -> list[FieldError]:
        errors: list[FieldError] = []
        name = port.get("name", "")
        if named and not name:
            errors.append(required(f"{at}.name"))
        elif name:
            errors += [invalid_value(f"{at}.name", name, t) for t in name_problems(name, "label")]
            if name in seen:
                errors.append(duplicate(f"{at}.name", name))
            seen.add(name)
        if not 0 < port.get("port", 0) < 65536:
            errors.append(invalid_value(f"{at}.port", port.get("port", 0), _PORT_TEXT))
        if port["protocol"] not in {"SCTP", "TCP", "UDP"}:
            errors.append(not_supported(f"{at}.protocol", port["protocol"], ["SCTP", "TCP", "UDP"]))
        target = port.get("targetPort")
        if isinstance(target, int) and not 0 < target < 65536:
            errors.append(invalid_value(f"{at}.targetPort", target, _PORT_TEXT))
        return errors

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        if subresource:
            return []
        errors: list[FieldError] = []
        new, before = item["spec"], old["spec"]
        if (
            before.get("clusterIP")
            and new["type"] != "ExternalName"
            and new.get("clusterIPs") != before.get("clusterIPs")
        ):
            errors.append(invalid_value("spec.clusterIPs[0]", new.get("clusterIPs"), "may not change once set"))
        return errors + self.validate(item)


def _data_errors(item: Object, fields: tuple[str, ...]) -> list[FieldError]:
    errors: list[FieldError] = []
    size = 0
    for name in fields:
        for key, value in (item.get(name) or {}).items():
            at = f"{name}[{key}]"
            if len(key) > 253:
                errors.append(invalid_value(at, key, "must be no more than 253 bytes"))
            if not _DATA_KEY.match(key) or key in {".", ".."}:
                errors.append(invalid_value(at, key, _DATA_KEY_TEXT))
            size += len(value)
    if size > OBJECT_DATA_LIMIT_BYTES:
        errors.append(
            FieldError("FieldValueTooLong", "", f"Too long: may not be more than {OBJECT_DATA_LIMIT_BYTES} bytes")
        )
    return errors


def _immutable_data(item: Object, old: Object, fields: tuple[str, ...]) -> list[FieldError]:
    if not old.get("immutable"):
        return []
    errors: list[FieldError] = []
    if not item.get("immutable"):
        errors.append(forbidden_field("immutable", "field is immutable when `immutable` is set"))
    for name in fields:
        if (item.get(name) or {}) != (old.get(name) or {}):
            errors.append(forbidden_field(name, "field is immutable when `immutable` is set"))
    return errors


class ConfigMapStrategy(Strategy):
    def validate(self, item: Object) -> list[FieldError]:
        return _data_errors(item, ("data", "binaryData"))

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        return self.validate(item) + _immutable_data(item, old, ("data", "binaryData"))


class SecretStrategy(Strategy):
    def default(self, item: Object) -> None:
        item.setdefault("type", "Opaque")
        for key, text in (item.pop("stringData", None) or {}).items():
            item.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
        for key, value in (item.get("data") or {}).items():
            try:
                base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise bad_request(
                    f'Secret in version "v1" cannot be handled as a Secret: illegal base64 data in data["{key}"]'
                ) from None

    def validate(self, item: Object) -> list[FieldError]:
        errors = _data_errors(item, ("data",))
        data = item.get("data") or {}
        wanted = {"kubernetes.io/tls": ("tls.crt", "tls.key"), "kubernetes.io/dockerconfigjson": (".dockerconfigjson",)}
        errors += [required(f"data[{key}]") for key in wanted.get(item["type"], ()) if key not in data]
        return errors

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        errors: list[FieldError] = []
        if item["type"] != old["type"]:
            errors.append(invalid_value("type", item["type"], "field is immutable"))
        return errors + _immutable_data(item, old, ("data",)) + self.validate(item)


class EventStrategy(Strategy):
    create_on_update = True

    def validate(self, item: Object) -> list[FieldError]:
        namespace = (item.get("involvedObject") or {}).get("namespace") or "default"
        if namespace != item["metadata"].get("namespace"):
            return [
                invalid_value(
                    "involvedObject.namespace",
                    (item.get("involvedObject") or {}).get("namespace", ""),
                    "does not match event.namespace",
                )
            ]
        return []

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        return []


class NewEventStrategy(EventStrategy):
    """``events.k8s.io/v1``: as it is written there, stricter than the core form."""

    def validate(self, item: Object) -> list[FieldError]:
        errors: list[FieldError] = []
        for key, name in (("reportingComponent", "reportingController"), ("reportingInstance", "reportingInstance")):
            if not item.get(key):
                errors.append(required(name))
        errors += [required(key) for key in ("action", "reason") if not item.get(key)]
        if not item.get("eventTime"):
            errors.append(required("eventTime"))
        if item.get("type") not in {"Normal", "Warning"}:
            errors.append(invalid_value("type", item.get("type", ""), "has invalid value"))
        return errors + super().validate(item)


_EVENT_FIELDS = {
    "note": "message",
    "regarding": "involvedObject",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_EVENT_FIELDS_BACK = {v: k for k, v in _EVENT_FIELDS.items()}


def event_to_core(item: Object) -> Object:
    """An ``events.k8s.io/v1`` Event as the core form that is stored."""
    return {**{_EVENT_FIELDS.get(k, k): v for k, v in item.items()}, "apiVersion": "v1"}


def event_from_core(item: Object) -> Object:
    return {**{_EVENT_FIELDS_BACK.get(k, k): v for k, v in item.items()}, "apiVersion": "events.k8s.io/v1"}


class LeaseStrategy(Strategy):
    create_on_update = True

    def validate(self, item: Object) -> list[FieldError]:
        seconds = item["spec"].get("leaseDurationSeconds")
        if seconds is not None and seconds <= 0:
            return [invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0")]
        return []


class EndpointsStrategy(Strategy):
    create_on_update = True

    def default(self, item: Object) -> None:
        for subset in item.get("subsets") or []:
            for port in subset.get("ports") or []:
                port.setdefault("protocol", "TCP")


class EndpointSliceStrategy(Strategy):
    def default(self, item: Object) -> None:
        for port in item.get("ports") or []:
            setdefaults(port, name="", protocol="TCP")

    def validate(self, item: Object) -> list[FieldError]:
        if item.get("addressType") not in {"FQDN", "IPv4", "IPv6"}:
            return [not_supported("addressType", item.get("addressType", ""), ["FQDN", "IPv4", "IPv6"])]
        return []

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        if item.get("addressType") != old.get("addressType"):
            return [invalid_value("addressType", item.get("addressType"), "field is immutable")]
        return self.validate(item)


class RoleStrategy(Strategy):
    name_form = "path"

    def validate(self, item: Object) -> list[FieldError]:
        errors: list[FieldError] = []
        for n, rule in enumerate(item.get("rules") or []):
            if not rule.get("verbs"):
                errors.append(required(f"rules[{n}].verbs", "verbs must contain at least one value"))
            if rule.get("nonResourceURLs"):
                continue
            if not rule.get("apiGroups"):
                errors.append(required(f"rules[{n}].apiGroups", "resource rules must supply at least one api group"))
            if not rule.get("resources"):
                errors.append(required(f"rules[{n}].resources", "resource rules must supply at least one resource"))
        return errors


class BindingStrategy(Strategy):
    name_form = "path"

    def default(self, item: Object) -> None:
        item["roleRef"].setdefault("apiGroup", "rbac.authorization.k8s.io")
        for subject in item.get("subjects") or []:
            if subject.get("kind") in {"User", "Group"}:
                subject.setdefault("apiGroup", "rbac.authorization.k8s.io")

    def validate(self, item: Object) -> list[FieldError]:
        errors: list[FieldError] = []
        kinds = ["ClusterRole", "Role"] if item["kind"] == "RoleBinding" else ["ClusterRole"]
        if item["roleRef"].get("kind") not in kinds:
            errors.append(not_supported("roleRef.kind", item["roleRef"].get("kind", ""), kinds))
        if not item["roleRef"].get("name"):
            errors.append(required("roleRef.name"))
        for n, subject in enumerate(item.get("subjects") or []):
            if not subject.get("name"):
                errors.append(required(f"subjects[{n}].name"))
            if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
                errors.append(required(f"subjects[{n}].namespace"))
            if subject.get("kind") not in {"ServiceAccount", "User", "Group"}:
                kind = subject.get("kind", "")
                errors.append(not_supported(f"subjects[{n}].kind", kind, ["Group", "ServiceAccount", "User"]))
        return errors

    def validate_update(self, item: Object, old: Object, subresource: str) -> list[FieldError]:
        errors = self.validate(item)
        if item["roleRef"] != old["roleRef"]:
            errors.append(invalid_value("roleRef", item["roleRef"], "cannot change roleRef"))
        return errors


class NodeStrategy(Strategy):
    def prepare_create(self, item: Object, resources: Resources) -> None:
        # A node may be registered with its status, unlike other kinds.
        item.setdefault("status", {})


class ServiceAccountStrategy(Strategy):
    returns_deleted = True


class DeletedShownStrategy(Strategy):
    returns_deleted = True


class JobStrategy(Strategy):
    generation = True


class NetworkPolicyStrategy(Strategy):
    generation = True

    def default(self, item: Object) -> None:
        spec = item.setdefault("spec", {})
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
