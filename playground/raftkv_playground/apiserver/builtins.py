"""The built-in kinds that the server has, in discovery's order."""

from __future__ import annotations

from raftkv_playground.apiserver.kinds import ALL_VERBS, Kind, Registry, Strategy, Subresource
from raftkv_playground.apiserver.schema.shapes import builtin
from raftkv_playground.apiserver.strategies import core, pods, volumes, workloads

_CREATE = ("create",)
_PROXY = ("create", "delete", "get", "patch", "update")
_STATUS = "status"


def _subresources(kind: str, names: str) -> dict[str, Subresource]:
    special = {
        "scale": Subresource("scale", "Scale", group="autoscaling", version="v1"),
        "finalize": Subresource("finalize", kind, ("update",)),
        "binding": Subresource("binding", "Binding", _CREATE),
        "eviction": Subresource("eviction", "Eviction", _CREATE, "policy", "v1"),
        "token": Subresource("token", "TokenRequest", _CREATE, "authentication.k8s.io", "v1"),
        "log": Subresource("log", kind, ("get",)),
        "proxy": Subresource("proxy", f"{kind}ProxyOptions", _PROXY),
        "approval": Subresource("approval", kind),
    }
    return {name: special.get(name, Subresource(name, kind)) for name in names.split()}


def _add(
    registry: Registry,
    api_version: str,
    kind: str,
    plural: str,
    strategy: Strategy | None = None,
    *,
    short: str = "",
    sub: str = "",
    all_category: bool = False,
    namespaced: bool = True,
    verbs: tuple[str, ...] = ALL_VERBS,
    shape: str = "",
) -> Kind:
    group, _, version = api_version.rpartition("/")
    entry = Kind(
        group,
        version,
        plural,
        kind,
        namespaced,
        builtin(shape or kind),
        strategy or Strategy(),
        short_names=tuple(short.split()),
        categories=("all",) if all_category else (),
        verbs=verbs,
        subresources=_subresources(kind, sub),
    )
    registry.add(entry)
    return entry


def register(registry: Registry) -> None:
    """Add all built-in kinds to ``registry``."""
    _core(registry)
    _apps(registry)
    _others(registry)
    _reviews(registry)


def _core(registry: Registry) -> None:
    def add(kind: str, plural: str, strategy: Strategy | None = None, **more: object) -> Kind:
        return _add(registry, "v1", kind, plural, strategy, **more)  # type: ignore[arg-type]

    add("Binding", "bindings", verbs=_CREATE)
    add("ConfigMap", "configmaps", core.ConfigMapStrategy(), short="cm")
    add("Endpoints", "endpoints", core.EndpointsStrategy(), short="ep")
    add("Event", "events", core.EventStrategy(), short="ev", shape="CoreV1Event")
    add("LimitRange", "limitranges", short="limits")
    add(
        "Namespace",
        "namespaces",
        core.NamespaceStrategy(),
        short="ns",
        sub="finalize status",
        namespaced=False,
        verbs=tuple(v for v in ALL_VERBS if v != "deletecollection"),
    )
    add("Node", "nodes", core.NodeStrategy(), short="no", sub="proxy status", namespaced=False)
    add("PersistentVolumeClaim", "persistentvolumeclaims", volumes.ClaimStrategy(), short="pvc", sub=_STATUS)
    add("PersistentVolume", "persistentvolumes", volumes.VolumeStrategy(), short="pv", sub=_STATUS, namespaced=False)
    add(
        "Pod",
        "pods",
        pods.PodStrategy(),
        short="po",
        sub="binding eviction log proxy status",
        all_category=True,
    )
    add("PodTemplate", "podtemplates", core.DeletedShownStrategy())
    add(
        "ReplicationController",
        "replicationcontrollers",
        core.JobStrategy(),
        short="rc",
        sub="scale status",
        all_category=True,
    )
    add("ResourceQuota", "resourcequotas", core.DeletedShownStrategy(), short="quota", sub=_STATUS)
    add("Secret", "secrets", core.SecretStrategy())
    add("ServiceAccount", "serviceaccounts", core.ServiceAccountStrategy(), short="sa", sub="token")
    add("Service", "services", core.ServiceStrategy(), short="svc", sub="proxy status", all_category=True)


def _apps(registry: Registry) -> None:
    def add(kind: str, plural: str, strategy: Strategy, **more: object) -> Kind:
        return _add(registry, "apps/v1", kind, plural, strategy, **more)  # type: ignore[arg-type]

    add("ControllerRevision", "controllerrevisions", workloads.ControllerRevisionStrategy())
    add("DaemonSet", "daemonsets", workloads.DaemonSetStrategy(), short="ds", sub=_STATUS, all_category=True)
    add(
        "Deployment",
        "deployments",
        workloads.DeploymentStrategy(),
        short="deploy",
        sub="scale status",
        all_category=True,
    )
    add("ReplicaSet", "replicasets", workloads.ReplicaSetStrategy(), short="rs", sub="scale status", all_category=True)
    add(
        "StatefulSet",
        "statefulsets",
        workloads.StatefulSetStrategy(),
        short="sts",
        sub="scale status",
        all_category=True,
    )


def _others(registry: Registry) -> None:
    events = _add(
        registry, "events.k8s.io/v1", "Event", "events", core.NewEventStrategy(), short="ev", shape="EventsV1Event"
    )
    events.storage_key = ("", "events")
    events.convert_in, events.convert_out = core.event_to_core, core.event_from_core
    _add(registry, "batch/v1", "CronJob", "cronjobs", core.JobStrategy(), short="cj", sub=_STATUS, all_category=True)
    _add(registry, "batch/v1", "Job", "jobs", core.JobStrategy(), sub=_STATUS, all_category=True)
    _add(
        registry,
        "policy/v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        workloads.DisruptionBudgetStrategy(),
        short="pdb",
        sub=_STATUS,
    )
    rbac = "rbac.authorization.k8s.io/v1"
    _add(registry, rbac, "ClusterRoleBinding", "clusterrolebindings", core.BindingStrategy(), namespaced=False)
    _add(registry, rbac, "ClusterRole", "clusterroles", core.RoleStrategy(), namespaced=False)
    _add(registry, rbac, "RoleBinding", "rolebindings", core.BindingStrategy())
    _add(registry, rbac, "Role", "roles", core.RoleStrategy())
    storage = "storage.k8s.io/v1"
    _add(
        registry,
        storage,
        "StorageClass",
        "storageclasses",
        volumes.StorageClassStrategy(),
        short="sc",
        namespaced=False,
    )
    _add(registry, "coordination.k8s.io/v1", "Lease", "leases", core.LeaseStrategy())
    _add(registry, "discovery.k8s.io/v1", "EndpointSlice", "endpointslices", core.EndpointSliceStrategy())
    _add(
        registry,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "networkpolicies",
        core.NetworkPolicyStrategy(),
        short="netpol",
    )
    _add(
        registry,
        "scheduling.k8s.io/v1",
        "PriorityClass",
        "priorityclasses",
        core.JobStrategy(),
        short="pc",
        namespaced=False,
    )


def _reviews(registry: Registry) -> None:
    for kind, plural, namespaced in (
        ("LocalSubjectAccessReview", "localsubjectaccessreviews", True),
        ("SelfSubjectAccessReview", "selfsubjectaccessreviews", False),
        ("SelfSubjectRulesReview", "selfsubjectrulesreviews", False),
        ("SubjectAccessReview", "subjectaccessreviews", False),
    ):
        _add(registry, "authorization.k8s.io/v1", kind, plural, namespaced=namespaced, verbs=_CREATE)
    for kind, plural in (("SelfSubjectReview", "selfsubjectreviews"), ("TokenReview", "tokenreviews")):
        _add(registry, "authentication.k8s.io/v1", kind, plural, namespaced=False, verbs=_CREATE)
