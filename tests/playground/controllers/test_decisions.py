"""Pure decisions of the smaller controllers: garbage, endpoints, claims, Deployments, budgets, and the work queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from raftkv_playground.client import PODS
from raftkv_playground.controllers import deployment, replicaset
from raftkv_playground.controllers.actions import Create, Delete, Patch
from raftkv_playground.controllers.disruption import budget_status
from raftkv_playground.controllers.garbage import Graph, OwnerState, judge
from raftkv_playground.controllers.runtime import WorkQueue
from raftkv_playground.controllers.services import build_slices, build_subsets, endpoints_of
from raftkv_playground.controllers.storage import class_of, find_volume
from raftkv_playground.objects import Object, quantity


def owned(*uids: str, **metadata: Any) -> Object:
    references = [{"uid": uid, "name": uid, "kind": "K", "apiVersion": "v1"} for uid in uids]
    return {"metadata": {"name": "x", "uid": "x", "ownerReferences": references, **metadata}}


@pytest.mark.parametrize(
    ("states", "delete", "kept"),
    [
        ({"a": "solid"}, "", None),
        ({"a": "absent"}, "Background", None),
        ({"a": "absent", "b": "solid"}, "", ["b"]),
        ({"a": "waiting"}, "Foreground", None),
        ({"a": "waiting", "b": "absent"}, "Foreground", None),
        ({"a": "waiting", "b": "solid"}, "", ["b"]),
    ],
)
def test_garbage(states: dict[str, OwnerState], delete: str, kept: list[str] | None) -> None:
    verdict = judge(owned(*states), lambda reference: states[reference["uid"]])
    assert verdict.delete == delete
    assert (None if verdict.keep is None else [r["uid"] for r in verdict.keep]) == kept


def test_garbage_leaves_alone_what_is_going_or_has_no_owner() -> None:
    assert judge(owned(), lambda _: "absent").delete == ""
    assert judge(owned("a", deletionTimestamp="t"), lambda _: "absent").delete == ""


def test_graph_follows_changed_owners() -> None:
    graph = Graph()
    graph.put(PODS, owned("a", "b"))
    assert len(graph.of("a")) == len(graph.of("b")) == 1
    graph.put(PODS, owned("b"))
    assert graph.of("a") == [] and len(graph.of("b")) == 1
    graph.drop("x")
    assert not graph.objects and not graph.dependents


def a_service(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "ns", "uid": "s"},
        "spec": {"selector": {"app": "x"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}], **spec},
    }


def a_pod(name: str, ready: bool = True, port: int = 8080, going: bool = False) -> Object:
    metadata = {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "x"}}
    return {
        "metadata": metadata | ({"deletionTimestamp": "t"} if going else {}),
        "spec": {
            "nodeName": "n1",
            "hostname": name,
            "subdomain": "s",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}],
        },
        "status": {"podIP": f"127.77.0.{len(name)}", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def test_endpoints_hold_the_ready_and_slices_all() -> None:
    service = a_service()
    found = endpoints_of(service, [a_pod("a"), a_pod("bb", ready=False), a_pod("ccc", going=True)])
    (subset,) = build_subsets(service, found)
    assert [(e["ip"], e["hostname"], e["nodeName"]) for e in subset["addresses"]] == [("127.77.0.1", "a", "n1")]
    assert [e["ip"] for e in subset["notReadyAddresses"]] == ["127.77.0.2"]
    assert subset["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    (slice_,) = build_slices(service, found)
    conditions = [e["conditions"] for e in slice_["endpoints"]]
    assert conditions == [
        {"ready": True, "serving": True, "terminating": False},
        {"ready": False, "serving": False, "terminating": False},
        {"ready": False, "serving": True, "terminating": True},
    ]


def test_publish_not_ready_addresses() -> None:
    service = a_service(clusterIP="None", publishNotReadyAddresses=True)
    found = endpoints_of(service, [a_pod("a", ready=False)])
    assert [e["ip"] for e in build_subsets(service, found)[0]["addresses"]] == ["127.77.0.1"]
    assert build_slices(service, found)[0]["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


def test_a_named_port_may_differ_per_pod() -> None:
    service = a_service()
    found = endpoints_of(service, [a_pod("a", port=1), a_pod("bb", port=2)])
    assert [s["ports"][0]["port"] for s in build_subsets(service, found)] == [1, 2]
    names = [s["metadata"]["name"] for s in build_slices(service, found)]
    assert len(set(names)) == 2


def a_volume(name: str, size: str, claim: Object | None = None, **more: Any) -> Object:
    spec = {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c", **more}
    return {"metadata": {"name": name, "uid": name}, "spec": spec | ({"claimRef": claim} if claim else {})}


def test_the_smallest_fitting_volume_is_taken() -> None:
    claim = {
        "metadata": {"name": "d", "namespace": "ns", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
    }
    volumes = [
        a_volume("small", "1Gi"),
        a_volume("big", "9Gi"),
        a_volume("fits", "2048Mi"),
        a_volume("other-class", "2Gi", storageClassName="z"),
        a_volume("taken", "2Gi", {"namespace": "ns", "name": "d", "uid": "someone else"}),
    ]
    found = find_volume(claim, "c", volumes)
    assert found is not None and found["metadata"]["name"] == "fits"
    reserved = a_volume("reserved", "1Gi", {"namespace": "ns", "name": "d"})
    found = find_volume(claim, "c", [*volumes, reserved])
    assert found is not None and found["metadata"]["name"] == "reserved"


def test_the_default_class_is_for_those_who_name_none() -> None:
    classes = [{"metadata": {"name": "s", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}]
    assert class_of({"spec": {}}, classes) == "s"
    assert class_of({"spec": {"storageClassName": ""}}, classes) == ""


def test_quantities() -> None:
    assert quantity("1Gi") == 1 << 30
    assert quantity("100m") * 10 == quantity(1)
    assert quantity("1e3") == quantity("1k")
    for wrong in ("", "Gi", "1 Gi", "1gi"):
        with pytest.raises(ValueError):
            quantity(wrong)


def a_deployment(replicas: int = 3, image: str = "i:1", **spec: Any) -> Object:
    template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "ns", "uid": "d"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "d"}}, "template": template, **spec},
    }


def roll(target: Object, sets: dict[str, Object], rounds: int = 30) -> list[tuple[int, ...]]:
    """Run the controller with ReplicaSets that become what they are told; the sizes over time, oldest set first."""
    history: list[tuple[int, ...]] = []
    for _ in range(rounds):
        result = deployment.plan(target, list(sets.values()))
        for action in result.actions:
            match action:
                case Create(_, body):
                    name = body["metadata"]["name"]
                    metadata = {**body["metadata"], "creationTimestamp": f"{len(sets):05}", "uid": name}
                    sets[name] = {**body, "metadata": metadata}
                case Patch(_, _, name, patch):
                    if "spec" in patch:
                        sets[name] = {**sets[name], "spec": {**sets[name]["spec"], **patch["spec"]}}
                case Delete(_, _, name):
                    del sets[name]
        history.append(tuple(item["spec"]["replicas"] for item in sets.values()))
        for name, item in sets.items():
            size = item["spec"]["replicas"]
            status = {"replicas": size, "readyReplicas": size, "availableReplicas": size}
            sets[name] = {**item, "status": {key: value for key, value in status.items() if value}}
        if not result.actions:
            target["status"] = deployment.plan(target, list(sets.values())).status
            return history
    pytest.fail("it does not settle")


def test_a_deployment_rolls_within_its_limits() -> None:
    sets: dict[str, Object] = {}
    assert roll(a_deployment(4), sets)[-1] == (4,)
    target = a_deployment(4, "i:2")
    history = roll(target, sets)
    assert history[-1] == (0, 4)
    assert all(3 <= sum(sizes) <= 5 for sizes in history)
    conditions = {c["type"]: c for c in target["status"]["conditions"]}
    assert conditions["Progressing"]["reason"] == "NewReplicaSetAvailable"
    assert conditions["Available"]["status"] == "True"


def test_recreate_empties_the_old_first() -> None:
    sets: dict[str, Object] = {}
    recreate = {"strategy": {"type": "Recreate"}}
    roll(a_deployment(2, **recreate), sets)
    history = roll(a_deployment(2, "i:2", **recreate), sets)
    assert history[-1] == (0, 2)
    assert not any(old and new for old, new in history)


def test_a_replicaset_counts_what_it_cannot_see_yet() -> None:
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "r", "namespace": "ns", "uid": "r"},
        "spec": {"replicas": 3, "template": {"metadata": {"labels": {"app": "x"}}, "spec": {}}},
    }
    assert len(replicaset.plan(owner, [], expected=0)) == 3
    assert len(replicaset.plan(owner, [a_pod("a")], expected=2)) == 0
    owner["spec"]["replicas"] = 1
    actions = replicaset.plan(owner, [a_pod("a"), a_pod("bb", ready=False)], expected=0)
    assert [a.name for a in actions if isinstance(a, Delete)] == ["bb"], "the one that is not ready goes"


@pytest.mark.parametrize(
    ("spec", "healthy", "allowed"),
    [
        ({"minAvailable": 2}, 3, 1),
        ({"minAvailable": 2}, 2, 0),
        ({"minAvailable": "50%"}, 3, 1),
        ({"maxUnavailable": 1}, 3, 1),
        ({"maxUnavailable": 1}, 2, 0),
    ],
)
def test_disruption_budgets(spec: Object, healthy: int, allowed: int) -> None:
    pods = [a_pod("x" * (i + 1), ready=i < healthy) for i in range(3)]
    status = budget_status({"metadata": {"name": "b"}, "spec": spec}, pods, expected=3)
    assert (status["currentHealthy"], status["disruptionsAllowed"]) == (healthy, allowed)


def test_work_queue_keeps_a_key_once_and_backs_off() -> None:
    async def story() -> None:
        queue, key = WorkQueue(), ("ns", "x")
        queue.add(key)
        queue.add(key)
        assert await queue.take() == key
        queue.add(key)
        assert len(queue) == 0, "not while it is being worked on"
        queue.done(key)
        assert await queue.take() == key
        delays = []
        for _ in range(12):
            delays.append(queue.failed(key))
        assert delays == sorted(delays) and delays[-1] == 15.0
        queue.done(key)
        assert queue.failed(key) == delays[0]

    asyncio.run(story())


def test_work_queue_has_one_timer_per_key() -> None:
    async def story() -> None:
        queue, key = WorkQueue(), ("ns", "x")
        for delay in (0.05, 0.02, 0.5, 0.02):
            queue.add(key, delay)
        assert await asyncio.wait_for(queue.take(), 5) == key
        queue.done(key)
        assert len(queue) == 0

    asyncio.run(story())
