"""The objects of one member: its claim and its StatefulSet of one pod.

The pod template depends on the spec, the number and the host of the ring only, never on the other members: peers are
found at run time, so that scaling changes no template. ``template_hash`` covers what a running node would have to be
restarted for; the pin to a host is not part of it (a pin changes nothing for a pod that runs there already).
"""

from __future__ import annotations

import hashlib
import json

from raftkv_operator.api import constants
from raftkv_operator.api.types import ClusterSpec, Names, Object
from raftkv_operator.resources import common

_PROBE_PERIOD_SECONDS = 1


def claim(spec: ClusterSpec, owner: common.Owner, number: int) -> Object:
    """The claim for a member's disk: no owner, so that only the retention policy decides on it."""
    names = owner.names
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": names.claim(number),
            "namespace": names.namespace,
            "labels": common.labels(owner, number),
        },
        "spec": {
            "accessModes": ["ReadWriteOncePod"],
            "resources": {"requests": {"storage": spec.storage_size}},
            **({"storageClassName": spec.storage_class} if spec.storage_class is not None else {}),
        },
    }


def stateful_set(
    spec: ClusterSpec, owner: common.Owner, number: int, *, replicas: int = 1, host: str = "", halted: str = ""
) -> Object:
    """A member's StatefulSet; ``host`` pins it, ``halted`` says why it is scaled to 0."""
    names = owner.names
    member_labels = common.labels(owner, number)
    wished_hash = template_hash(spec)
    notes = {constants.ANNOTATION_TEMPLATE: wished_hash}
    if host:
        notes[constants.ANNOTATION_HOST] = host
    if halted:
        notes[constants.ANNOTATION_HALTED] = halted
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {
            "name": names.member(number),
            "namespace": names.namespace,
            "labels": member_labels,
            "annotations": notes,
            "ownerReferences": [common.owner_reference(owner)],
        },
        "spec": {
            "replicas": replicas,
            "serviceName": names.peer_service,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 2,
            "selector": {
                "matchLabels": {
                    **common.selector(names.cluster),
                    constants.LABEL_NUMBER: str(number),
                }
            },
            "template": {
                "metadata": {
                    "labels": member_labels,
                    "annotations": {
                        constants.ANNOTATION_TEMPLATE: wished_hash,
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(constants.METRICS_PORT),
                        "prometheus.io/path": "/metrics",
                    },
                },
                "spec": _pod(spec, names, number, host),
            },
        },
    }


def template_hash(spec: ClusterSpec) -> str:
    """Names what a member is started with; pods of another hash need a restart."""
    pattern = _pod(spec, Names("namespace", "cluster"), 0, "")
    text = json.dumps(pattern, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def arguments(spec: ClusterSpec, names: Names, number: int) -> list[str]:
    """The node's command line; ``$(NAME)`` is filled in by the kubelet."""
    host = names.host(number)
    found = [
        "node",
        "--operated",
        f"--name={names.member(number)}",
        f"--number={number}",
        "--host-name=$(NODE_NAME)",
        f"--namespace={names.namespace}",
        f"--cluster-name={names.cluster}",
        f"--data-dir={constants.DATA_DIR}",
        f"--minimum-durability={spec.minimum_durability}",
        f"--listen-client-urls=http://$(POD_IP):{constants.CLIENT_PORT}",
        f"--listen-peer-urls=http://$(POD_IP):{constants.PEER_PORT}",
        f"--listen-metrics-urls=http://$(POD_IP):{constants.METRICS_PORT}",
        f"--advertise-client-urls=http://{host}:{constants.CLIENT_PORT}",
        f"--initial-advertise-peer-urls=http://{host}:{constants.PEER_PORT}",
        f"--admin-token-file={constants.TOKEN_DIR}/{constants.TOKEN_KEY}",
        f"--heartbeat-interval={spec.heartbeat_milliseconds}",
        f"--election-timeout={spec.election_milliseconds}",
    ]
    if spec.ring_host_path:
        found += [
            f"--adr-path={constants.RING_DIR}",
            f"--adr-size={spec.ring_size}",
            f"--adr-drain-interval={spec.drain_milliseconds}ms",
            f"--adr-drain-size={spec.drain_size}",
        ]
    return found


def _pod(spec: ClusterSpec, names: Names, number: int, host: str) -> Object:
    volumes: list[Object] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": names.claim(number)}},
        {"name": "admin", "secret": {"secretName": names.admin_secret, "defaultMode": 0o440}},
    ]
    mounts: list[Object] = [
        {"name": "data", "mountPath": constants.DATA_DIR},
        {"name": "admin", "mountPath": constants.TOKEN_DIR, "readOnly": True},
    ]
    if spec.ring_host_path:
        # Type Directory: a mount that is missing keeps the pod from starting; it is never made up (D11).
        volumes.append({"name": "ring", "hostPath": {"path": spec.ring_host_path, "type": "Directory"}})
        mounts.append({"name": "ring", "mountPath": constants.RING_DIR})
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": constants.TERMINATION_GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": constants.NODE_USER_ID,
            "runAsGroup": constants.NODE_USER_ID,
            "fsGroup": constants.NODE_USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": _affinity(spec, names, host),
        **({"nodeSelector": dict(spec.node_selector)} if spec.node_selector else {}),
        **({"tolerations": [dict(t) for t in spec.tolerations]} if spec.tolerations else {}),
        "containers": [_container(spec, names, number, mounts)],
        "volumes": volumes,
    }


def _container(spec: ClusterSpec, names: Names, number: int, mounts: list[Object]) -> Object:
    return {
        "name": "node",
        "image": spec.image,
        "imagePullPolicy": spec.image_pull_policy,
        "args": arguments(spec, names, number),
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "ports": [
            {"name": "client", "containerPort": constants.CLIENT_PORT, "protocol": "TCP"},
            {"name": "peer", "containerPort": constants.PEER_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": constants.METRICS_PORT, "protocol": "TCP"},
        ],
        # A recovery may read a whole ring and apply what it held before the node answers: 10 minutes at most. Liveness
        # asks whether the process turns, readiness whether it may serve; only the latter knows of quorum.
        "startupProbe": _probe("/livez", period=_PROBE_PERIOD_SECONDS, failures=600),
        "livenessProbe": _probe("/livez", period=10, failures=6),
        "readinessProbe": _probe("/readyz", period=_PROBE_PERIOD_SECONDS, failures=2),
        "resources": dict(spec.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _probe(path: str, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": constants.METRICS_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _affinity(spec: ClusterSpec, names: Names, host: str) -> Object:
    term = {
        "labelSelector": {"matchLabels": common.selector(names.cluster)},
        "topologyKey": "kubernetes.io/hostname",
    }
    apart: Object = (
        {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
        if spec.anti_affinity == "Required"
        else {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    )
    found: Object = {"podAntiAffinity": apart}
    if host:
        here = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [host]}]}
        found["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [here]}}
    return found
