"""From a pod's spec to the processes to start. Pure.

What a container's environment may refer to (ConfigMaps, Secrets, the pod's fields) is fetched before and handed in as
``Sources``; ``needed_sources`` says what that is. A reference that leads nowhere is a ``ConfigError``: the container
waits as ``CreateContainerConfigError`` until it is there.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING
from typing import Any

from raftkv_playground.kubelet.images import Image
from raftkv_playground.kubelet.rewrite import Rewriter
from raftkv_playground.objects import Object, annotations_of, labels_of, quantity

SourceKey = tuple[str, str]
"""("ConfigMap" or "Secret", name)"""


class ConfigError(Exception):
    """A container cannot be configured (yet); the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Data of the ConfigMaps and Secrets that exist, as text or bytes by key."""

    data: Mapping[SourceKey, Mapping[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodContext:
    """What the kubelet knows of a pod beyond its spec."""

    pod: Object
    pod_ip: str
    host_ip: str
    allocatable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """One process: what to execute, with which environment, and where. ``rewriter`` is for paths to come (probes)."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    rewriter: Rewriter


def source_data(item: Object) -> dict[str, bytes]:
    """The keys of a ConfigMap (``data``, ``binaryData``) or a Secret (``data``), decoded."""
    if item.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}


def all_containers(pod: Mapping[str, Any]) -> list[Object]:
    return [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]


def needed_sources(pod: Mapping[str, Any]) -> set[SourceKey]:
    """ConfigMaps and Secrets that the environments of the pod's containers refer to."""
    found: set[SourceKey] = set()
    for container in all_containers(pod):
        for entry in container.get("envFrom") or []:
            if entry.get("configMapRef"):
                found.add(("ConfigMap", entry["configMapRef"]["name"]))
            if entry.get("secretRef"):
                found.add(("Secret", entry["secretRef"]["name"]))
        for variable in container.get("env") or []:
            source = variable.get("valueFrom") or {}
            if source.get("configMapKeyRef"):
                found.add(("ConfigMap", source["configMapKeyRef"]["name"]))
            if source.get("secretKeyRef"):
                found.add(("Secret", source["secretKeyRef"]["name"]))
    return found


_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")


def expand(text: str, env: Mapping[str, str]) -> str:
    """``$(NAME)`` by the environment; an unknown one stays, ``$$`` is one dollar (as the API documents it)."""

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


def field_value(context: PodContext, path: str) -> str:
    """A downward-API field of a pod. Raises ConfigError for one that is not supported."""
    pod = context.pod
    metadata, spec = pod["metadata"], pod["spec"]
    plain = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": context.pod_ip,
        "status.podIPs": context.pod_ip,
        "status.hostIP": context.host_ip,
        "status.hostIPs": context.host_ip,
    }
    if path in plain:
        return str(plain[path])
    if match := _SUBSCRIPT.fullmatch(path):
        values = labels_of(pod) if match[1] == "labels" else annotations_of(pod)
        return values.get(match[2], "")
    if path in ("metadata.labels", "metadata.annotations"):
        values = labels_of(pod) if path.endswith("labels") else annotations_of(pod)
        return "\n".join(f'{key}="{_escape(value)}"' for key, value in sorted(values.items()))
    raise ConfigError(f"unsupported fieldPath: {path}")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_value(context: PodContext, container: Object | None, reference: Object) -> str:
    """``limits.cpu`` and the like in units of the divisor, rounded up; without a limit, what the node has."""
    if container is None:
        name = reference.get("containerName")
        container = next((c for c in all_containers(context.pod) if c["name"] == name), None)
        if container is None:
            raise ConfigError(f"container {name} not found")
    kind, _, resource = reference["resource"].partition(".")
    amount = ((container.get("resources") or {}).get(kind) or {}).get(resource)
    if amount is None:
        amount = context.allocatable.get(resource, "0") if kind == "limits" else "0"
    divisor = quantity(reference.get("divisor") or "1") or quantity("1")
    return str((quantity(amount) / divisor).to_integral_value(ROUND_CEILING))


def _from_source(sources: Sources, kind: str, reference: Object, namespace: str) -> bytes | None:
    name, key = reference["name"], reference["key"]
    data = sources.data.get((kind, name))
    if data is None or key not in data:
        if reference.get("optional"):
            return None
        if data is None:
            raise ConfigError(f'{kind.lower()} "{name}" not found')
        raise ConfigError(f"couldn't find key {key} in {kind} {namespace}/{name}")
    return data[key]


def _variable(context: PodContext, container: Object, sources: Sources, variable: Object) -> str | None:
    """The value of an ``env`` entry with ``valueFrom``; None leaves it out."""
    source, namespace = variable["valueFrom"], context.pod["metadata"]["namespace"]
    if reference := source.get("fieldRef"):
        return field_value(context, reference["fieldPath"])
    if reference := source.get("resourceFieldRef"):
        return resource_value(context, container if not reference.get("containerName") else None, reference)
    for name, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
        if reference := source.get(name):
            value = _from_source(sources, kind, reference, namespace)
            return None if value is None else value.decode(errors="surrogateescape")
    return None


def build_env(context: PodContext, container: Object, sources: Sources, base: Mapping[str, str]) -> dict[str, str]:
    """``base``, then ``envFrom`` in order, then ``env`` in order with ``$(NAME)`` of what came before."""
    env = dict(base)
    for entry in container.get("envFrom") or []:
        for field_name, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            reference = entry.get(field_name)
            if not reference:
                continue
            data = sources.data.get((kind, reference["name"]))
            if data is None:
                if reference.get("optional"):
                    continue
                raise ConfigError(f'{kind.lower()} "{reference["name"]}" not found')
            for key, raw in data.items():
                env[entry.get("prefix", "") + key] = raw.decode(errors="surrogateescape")
    for variable in container.get("env") or []:
        if variable.get("valueFrom"):
            value = _variable(context, container, sources, variable)
            if value is not None:
                env[variable["name"]] = value
        else:
            env[variable["name"]] = expand(variable.get("value") or "", env)
    return env


def mounts_of(
    context: PodContext, container: Object, volumes: Mapping[str, str], env: Mapping[str, str]
) -> dict[str, str]:
    """Mount path -> host path of a container. Raises ConfigError for a mount without its volume or a sly subPath."""
    result: dict[str, str] = {}
    for mount in container.get("volumeMounts") or []:
        if mount["name"] not in volumes:
            raise ConfigError(f'volume "{mount["name"]}" of a mount is not in the pod')
        host = volumes[mount["name"]]
        below = mount.get("subPath") or expand(mount.get("subPathExpr") or "", env)
        if below:
            if below.startswith("/") or ".." in below.split("/"):
                raise ConfigError(f"subPath {below!r} leaves its volume")
            host = f"{host}/{below}"
        result[mount["mountPath"]] = host
    return result


def plan_container(
    context: PodContext,
    container: Object,
    image: Image,
    sources: Sources,
    volumes: Mapping[str, str],
    *,
    base_env: Mapping[str, str],
    extra_mounts: Mapping[str, str],
    cwd: str,
) -> ProcessPlan:
    """The process of a container. ``volumes`` maps volume names to host directories; ``extra_mounts`` are mount paths
    that the kubelet provides itself (termination log, service account).

    Raises ConfigError (what it refers to is missing) and LookupError (its command is not in the image).
    """
    env = build_env(context, container, sources, {**image.env, **base_env})
    rewriter = Rewriter({**extra_mounts, **mounts_of(context, container, volumes, env)}, context.pod_ip)
    command = [rewriter(expand(word, env)) for word in container.get("command") or []]
    args = [rewriter(expand(word, env)) for word in container.get("args") or []]
    # What the kubelet itself put in already names host paths, which no mount path may match by chance.
    own = base_env.keys() - {variable["name"] for variable in container.get("env") or []}
    env = {name: value if name in own else rewriter(value) for name, value in env.items()}
    wished = container.get("workingDir")
    directory = (rewriter.host_path(wished) if wished else None) or cwd
    return ProcessPlan(image.command_line(command, args), env, directory, rewriter)


def exec_argv(plan: ProcessPlan, image: Image, command: Iterable[str]) -> list[str]:
    """The command of an exec probe or hook, with the container's mounts. Raises LookupError."""
    return image.command_line([plan.rewriter(word) for word in command], [])
