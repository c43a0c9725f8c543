"""The life of built-in objects over HTTPS: what a strict server allows and refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from apiserver_harness import Cluster
from raftkv_playground.client import (
    CONFIG_MAPS,
    LEASES,
    NAMESPACES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFUL_SETS,
    ApiError,
)

Run = Callable[..., None]


async def refused(call: Awaitable[Any], code: int, text: str = "") -> ApiError:
    with pytest.raises(ApiError) as error:
        await call
    assert error.value.code == code, error.value
    assert text in error.value.message
    return error.value


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "raftkv:1"}], **spec},
    }


def stateful_set(name: str, **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}
    body = {"serviceName": name, "selector": {"matchLabels": {"a": "b"}}, "template": template, **spec}
    return {"metadata": {"name": name}, "spec": body}


def test_finalizers_hold_an_object_until_they_are_gone(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        body = {"metadata": {"name": "a", "finalizers": ["x.dev/f"]}}
        await c.admin.create(CONFIG_MAPS, body, "default")
        marked = await c.admin.delete(CONFIG_MAPS, "a", "default")
        assert marked["metadata"]["deletionTimestamp"]
        again = await c.admin.delete(CONFIG_MAPS, "a", "default")
        assert again["metadata"]["resourceVersion"] == marked["metadata"]["resourceVersion"]
        more = {"metadata": {"finalizers": ["x.dev/f", "x.dev/g"]}}
        await refused(c.admin.patch(CONFIG_MAPS, "a", "default", more), 422, "no new finalizers")
        await c.admin.patch(CONFIG_MAPS, "a", "default", {"metadata": {"finalizers": None}})
        await refused(c.admin.get(CONFIG_MAPS, "a", "default"), 404)

    run(scenario)


def test_propagation_policies_leave_their_finalizer(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        for policy, finalizer in (("Foreground", "foregroundDeletion"), ("Orphan", "orphan")):
            await c.admin.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, "default")
            marked = await c.admin.delete(CONFIG_MAPS, "a", "default", propagation=policy)  # type: ignore[arg-type]
            assert marked["metadata"]["finalizers"] == [finalizer]
            await c.admin.patch(CONFIG_MAPS, "a", "default", {"metadata": {"finalizers": []}})
            await refused(c.admin.get(CONFIG_MAPS, "a", "default"), 404)

    run(scenario)


def test_a_bound_pod_has_its_grace_period(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await c.admin.create(PODS, pod("p", nodeName="n1", terminationGracePeriodSeconds=7), "default")
        marked = await c.admin.delete(PODS, "p", "default")
        assert marked["metadata"]["deletionGracePeriodSeconds"] == 7
        sooner = await c.admin.delete(PODS, "p", "default", grace=2)
        assert sooner["metadata"]["deletionGracePeriodSeconds"] == 2
        later = await c.admin.delete(PODS, "p", "default", grace=20)
        assert later["metadata"]["deletionGracePeriodSeconds"] == 2
        await c.admin.delete(PODS, "p", "default", grace=0)
        await refused(c.admin.get(PODS, "p", "default"), 404)
        await c.admin.create(PODS, pod("q"), "default")
        await c.admin.delete(PODS, "q", "default")
        await refused(c.admin.get(PODS, "q", "default"), 404)

    run(scenario)


def test_pods_get_their_defaults_and_keep_their_spec(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        made = await c.admin.create(PODS, pod("p"), "default")
        assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
        assert made["spec"]["serviceAccountName"] == "default"
        change = {"spec": {"containers": [{"name": "c", "command": ["x"]}]}}
        await refused(c.admin.patch(PODS, "p", "default", change, "strategic"), 422, "pod updates may not change")
        image = {"spec": {"containers": [{"name": "c", "image": "raftkv:2"}]}}
        changed = await c.admin.patch(PODS, "p", "default", image, "strategic")
        assert changed["metadata"]["generation"] == 2
        # The spec is not the status endpoint's, nor the status the main one's.
        both = {"spec": {"nodeName": "x"}, "status": {"phase": "Running"}}
        after = await c.admin.patch(PODS, "p", "default", both, subresource="status")
        assert "nodeName" not in after["spec"]
        assert after["status"]["phase"] == "Running"
        assert after["metadata"]["generation"] == 2
        await refused(c.admin.create(PODS, pod("r", serviceAccountName="nobody"), "default"), 403, "not found")
        mounts = [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]
        await refused(c.admin.create(PODS, pod("s", containers=mounts), "default"), 422, 'Not found: "v"')

    run(scenario)


def test_binding_puts_a_pod_on_a_node_once(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await c.admin.create(PODS, pod("p"), "default")
        bind = {"target": {"kind": "Node", "name": "n1"}}
        await c.admin.create(PODS, bind, "default", name="p", subresource="binding")
        bound = await c.admin.get(PODS, "p", "default")
        assert bound["spec"]["nodeName"] == "n1"
        assert bound["status"]["conditions"][0]["status"] == "True"
        await refused(c.admin.create(PODS, bind, "default", name="p", subresource="binding"), 409, "already assigned")
        await c.admin.create(PODS, pod("g", schedulingGates=[{"name": "x.dev/g"}]), "default")
        await refused(c.admin.create(PODS, bind, "default", name="g", subresource="binding"), 409, "schedulingGates")

    run(scenario)


def test_stateful_sets_change_only_what_may_change(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await c.admin.create(STATEFUL_SETS, stateful_set("s"), "default")
        for patch in (
            {"spec": {"serviceName": "t"}},
            {"spec": {"podManagementPolicy": "Parallel"}},
            {
                "spec": {
                    "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]
                }
            },
        ):
            await refused(c.admin.patch(STATEFUL_SETS, "s", "default", patch), 422, "are forbidden")
        out = await c.admin.patch(STATEFUL_SETS, "s", "default", {"spec": {"replicas": 0}})
        assert out["spec"]["replicas"] == 0
        assert out["metadata"]["generation"] == 2
        await refused(c.admin.create(STATEFUL_SETS, stateful_set("t", replicas=-1), "default"), 422, "spec.replicas")
        empty = stateful_set("t", selector={"matchLabels": {"a": "other"}})
        await refused(c.admin.create(STATEFUL_SETS, empty, "default"), 422, "does not match template")

    run(scenario)


def test_services_get_an_address_and_keep_it(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        def body(name: str, **spec: Any) -> dict[str, Any]:
            return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}

        first = await c.admin.create(SERVICES, body("a"), "default")
        address = first["spec"]["clusterIP"]
        assert address.startswith("127.78.") and first["spec"]["clusterIPs"] == [address]
        await refused(c.admin.create(SERVICES, body("b", clusterIP=address), "default"), 422, "already allocated")
        await refused(c.admin.create(SERVICES, body("b", clusterIP="10.0.0.1"), "default"), 422, "valid range")
        await refused(
            c.admin.patch(SERVICES, "a", "default", {"spec": {"clusterIP": "127.78.0.9"}}), 422, "may not change"
        )
        replaced = await c.admin.replace(SERVICES, body("a", selector={"x": "y"}), "default")
        assert replaced["spec"]["clusterIP"] == address
        await refused(c.admin.create(SERVICES, body("1a"), "default"), 422, "DNS-1035")
        node_port = await c.admin.create(SERVICES, body("n", type="NodePort"), "default")
        assert 30000 <= node_port["spec"]["ports"][0]["nodePort"] < 32768
        headless = await c.admin.create(SERVICES, body("h", clusterIP="None"), "default")
        assert headless["spec"]["clusterIPs"] == ["None"]

    run(scenario, service_network="127.78.0.0/16")


def test_evictions_respect_the_budget(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        budget = {
            "metadata": {"name": "d"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}},
        }
        await c.admin.create(POD_DISRUPTION_BUDGETS, budget, "default")
        await c.admin.create(PODS, pod("p", nodeName="n1"), "default")
        await c.admin.patch(PODS, "p", "default", {"status": {"phase": "Running"}}, subresource="status")
        evict = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}

        def call() -> Awaitable[Any]:
            return c.admin.create(PODS, evict, "default", name="p", subresource="eviction")

        error = await refused(call(), 429, "disruption budget")
        assert error.reason == "TooManyRequests"
        status = {
            "status": {"disruptionsAllowed": 1, "observedGeneration": 1, "currentHealthy": 2, "desiredHealthy": 1}
        }
        await c.admin.patch(POD_DISRUPTION_BUDGETS, "d", "default", status, subresource="status")
        await call()
        assert (await c.admin.get(PODS, "p", "default"))["metadata"]["deletionTimestamp"]
        after = await c.admin.get(POD_DISRUPTION_BUDGETS, "d", "default")
        assert after["status"]["disruptionsAllowed"] == 0
        assert "p" in after["status"]["disruptedPods"]

    run(scenario)


def test_a_namespace_ends_with_its_content(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await c.admin.create(NAMESPACES, {"metadata": {"name": "n"}})
        accounts, _ = await c.admin.list(SERVICE_ACCOUNTS, "n")
        assert [a["metadata"]["name"] for a in accounts] == ["default"]
        held = {"metadata": {"name": "a", "finalizers": ["x.dev/f"]}}
        await c.admin.create(CONFIG_MAPS, held, "n")
        ending = await c.admin.delete(NAMESPACES, "n")
        assert ending["status"]["phase"] == "Terminating"
        await refused(c.admin.create(CONFIG_MAPS, {"metadata": {"name": "b"}}, "n"), 403, "being terminated")
        await asyncio.sleep(0.5)
        assert (await c.admin.get(NAMESPACES, "n"))["status"]["phase"] == "Terminating"
        assert (await c.admin.get(CONFIG_MAPS, "a", "n"))["metadata"]["deletionTimestamp"]
        await c.admin.patch(CONFIG_MAPS, "a", "n", {"metadata": {"finalizers": None}})
        for _ in range(300):
            try:
                await c.admin.get(NAMESPACES, "n")
            except ApiError as error:
                assert error.not_found
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the namespace is still there")
        await refused(c.admin.delete(NAMESPACES, "default"), 403)
        await refused(c.admin.create(CONFIG_MAPS, {"metadata": {"name": "b"}}, "n"), 404, 'namespaces "n" not found')

    run(scenario)


def test_writes_that_change_nothing_keep_the_version(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        made = await c.admin.create(CONFIG_MAPS, {"metadata": {"name": "a"}, "data": {"k": "v"}}, "default")
        version = made["metadata"]["resourceVersion"]
        same = await c.admin.patch(CONFIG_MAPS, "a", "default", {"data": {"k": "v"}, "metadata": {"labels": {}}})
        assert same["metadata"]["resourceVersion"] == version
        assert (await c.admin.replace(CONFIG_MAPS, made))["metadata"]["resourceVersion"] == version
        dry = await c.admin.patch(CONFIG_MAPS, "a", "default", {"data": {"k": "w"}}, dry_run=True)
        assert dry["data"] == {"k": "w"}
        assert (await c.admin.get(CONFIG_MAPS, "a", "default"))["data"] == {"k": "v"}
        await c.admin.create(CONFIG_MAPS, {"metadata": {"name": "dry"}}, "default", dry_run=True)
        await refused(c.admin.get(CONFIG_MAPS, "dry", "default"), 404)

    run(scenario)


def test_ownership_can_be_handed_over_by_a_patch(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        """What kubectl does when client-side apply becomes server-side: a patch of managedFields alone is stored."""
        made = await c.admin.create(CONFIG_MAPS, {"metadata": {"name": "a"}, "data": {"k": "v"}}, "default")
        entries = [{**made["metadata"]["managedFields"][0], "manager": "kubectl", "operation": "Apply"}]
        patch = [
            {"op": "replace", "path": "/metadata/managedFields", "value": entries},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": made["metadata"]["resourceVersion"]},
        ]
        await c.admin.patch(CONFIG_MAPS, "a", "default", patch, "json")
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "w"}}
        out = await c.admin.patch(CONFIG_MAPS, "a", "default", config, "apply", field_manager="kubectl")
        assert out["data"] == {"k": "w"}
        other = {**config, "data": {"k": "x"}}
        error = await refused(c.admin.patch(CONFIG_MAPS, "a", "default", other, "apply", field_manager="else"), 409)
        assert 'conflict with "kubectl": .data.k' in error.message

    run(scenario)


def test_small_rules_of_small_kinds(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        frozen = {"metadata": {"name": "f"}, "immutable": True, "data": {"k": "v"}}
        await c.admin.create(CONFIG_MAPS, frozen, "default")
        await refused(c.admin.patch(CONFIG_MAPS, "f", "default", {"data": {"k": "w"}}), 422, "immutable")
        await refused(c.admin.create(SECRETS, {"metadata": {"name": "x"}, "data": {"k": "no base64!"}}, "default"), 400)
        await refused(c.admin.create(CONFIG_MAPS, {"metadata": {"name": "x"}, "data": {"a b": "c"}}, "default"), 422)
        claim = {
            "metadata": {"name": "d"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}},
        }
        made = await c.admin.create(PERSISTENT_VOLUME_CLAIMS, claim, "default")
        assert made["spec"]["resources"]["requests"]["storage"] == "1Gi"
        assert made["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
        change = {"spec": {"accessModes": ["ReadWriteMany"]}}
        await refused(c.admin.patch(PERSISTENT_VOLUME_CLAIMS, "d", "default", change), 422, "immutable")
        lease = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}}
        assert (await c.admin.replace(LEASES, lease, "default"))["spec"]["holderIdentity"] == "a"
        node = await c.admin.create(NODES, {"metadata": {"name": "n"}, "status": {"phase": "Running"}})
        assert node["status"]["phase"] == "Running"
        labels = {"metadata": {"name": "y", "labels": {"bad key": "v"}}}
        await refused(c.admin.create(CONFIG_MAPS, labels, "default"), 422, "metadata.labels")
        await refused(c.admin.create(CONFIG_MAPS, {"metadata": {}}, "default"), 422, "name or generateName")

    run(scenario)
