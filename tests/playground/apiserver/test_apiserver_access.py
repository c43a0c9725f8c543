"""Who may do what: tokens, roles, bindings, reviews."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from apiserver_harness import Cluster
from raftkv_playground.client import CONFIG_MAPS, NAMESPACES, PODS, SERVICE_ACCOUNTS, ApiClient, ApiError, Resource

Run = Callable[..., None]
RBAC = "rbac.authorization.k8s.io"
ROLES = Resource(RBAC, "v1", "roles", "Role")
ROLE_BINDINGS = Resource(RBAC, "v1", "rolebindings", "RoleBinding")
CLUSTER_ROLES = Resource(RBAC, "v1", "clusterroles", "ClusterRole", False)
CLUSTER_ROLE_BINDINGS = Resource(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False)


async def may(call: Awaitable[Any]) -> bool:
    """Whether a call was allowed; any failure but 403 counts as allowed."""
    try:
        await call
    except ApiError as error:
        return error.code != 403
    return True


async def grant(c: Cluster, rules: list[dict[str, Any]], subject: dict[str, Any], *, cluster: bool = False) -> None:
    role = {"metadata": {"name": "r"}, "rules": rules}
    binding = {"metadata": {"name": "r"}, "subjects": [subject]}
    if cluster:
        await c.admin.create(CLUSTER_ROLES, role)
        await c.admin.create(CLUSTER_ROLE_BINDINGS, {**binding, "roleRef": {"kind": "ClusterRole", "name": "r"}})
    else:
        await c.admin.create(ROLES, role, "default")
        await c.admin.create(ROLE_BINDINGS, {**binding, "roleRef": {"kind": "Role", "name": "r"}}, "default")


def rule(resources: str, verbs: str, **more: Any) -> dict[str, Any]:
    return {"apiGroups": [""], "resources": resources.split(), "verbs": verbs.split(), **more}


OPER = {"kind": "User", "name": "oper"}


def test_a_role_gives_what_it_says_and_no_more(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await c.admin.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, "default")
        async with c.client("oper") as oper:
            assert not await may(oper.get(CONFIG_MAPS, "a", "default"))
            rules = [rule("configmaps", "get list"), rule("configmaps", "patch", resourceNames=["a"])]
            await grant(c, rules, OPER)
            assert await may(oper.get(CONFIG_MAPS, "a", "default"))
            assert await may(oper.list(CONFIG_MAPS, "default"))
            assert not await may(oper.list(CONFIG_MAPS))
            assert not await may(oper.list(CONFIG_MAPS, "kube-system"))
            assert await may(oper.patch(CONFIG_MAPS, "a", "default", {"data": {"k": "v"}}))
            assert not await may(oper.patch(CONFIG_MAPS, "b", "default", {"data": {"k": "v"}}))
            assert not await may(oper.delete(CONFIG_MAPS, "a", "default"))
            assert not await may(oper.create(CONFIG_MAPS, {"metadata": {"name": "b"}}, "default"))
            watch = oper.watch(CONFIG_MAPS, "default", resource_version="0", timeout_seconds=1)
            with pytest.raises(ApiError) as refused:
                await anext(watch)
            assert refused.value.code == 403
            await c.admin.delete(ROLE_BINDINGS, "r", "default")
            assert not await may(oper.get(CONFIG_MAPS, "a", "default"))

    run(scenario)


def test_subresources_are_granted_by_name(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        body = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        await c.admin.create(PODS, body, "default")
        async with c.client("oper") as oper:
            await grant(c, [rule("pods/status", "patch")], OPER)
            status = {"status": {"phase": "Running"}}
            assert await may(oper.patch(PODS, "p", "default", status, subresource="status"))
            assert not await may(oper.patch(PODS, "p", "default", {"metadata": {"labels": {"a": "b"}}}))

    run(scenario)


def test_cluster_roles_reach_all_namespaces_and_service_accounts_are_users(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        async with c.client("robot") as robot:
            assert not await may(robot.list(CONFIG_MAPS))
            group = {"kind": "Group", "name": "system:serviceaccounts:default"}
            await grant(c, [rule("configmaps", "*")], group, cluster=True)
            assert await may(robot.list(CONFIG_MAPS))
            assert await may(robot.create(CONFIG_MAPS, {"metadata": {"name": "x"}}, "kube-system"))
            assert not await may(robot.list(NAMESPACES))

    run(scenario)


def test_a_cluster_role_bound_in_a_namespace_stays_there(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await c.admin.create(CLUSTER_ROLES, {"metadata": {"name": "maps"}, "rules": [rule("configmaps", "list")]})
        binding = {
            "metadata": {"name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "maps"},
            "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}],
        }
        await c.admin.create(ROLE_BINDINGS, binding, "kube-system")
        async with c.client("robot") as robot:
            assert await may(robot.list(CONFIG_MAPS, "kube-system"))
            assert not await may(robot.list(CONFIG_MAPS, "default"))
            assert not await may(robot.list(CONFIG_MAPS))
        changed = {"roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "other"}}
        with pytest.raises(ApiError) as refused:
            await c.admin.patch(ROLE_BINDINGS, "b", "kube-system", changed)
        assert "cannot change roleRef" in refused.value.message

    run(scenario)


def test_everyone_may_look_around_and_ask(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        async with c.client("oper") as oper:
            assert (await oper.request("GET", "/version"))["gitVersion"] == "v1.36.2"
            assert (await oper.request("GET", "/api"))["versions"] == ["v1"]
            who = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
            answer = await oper.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=who)
            assert answer["status"]["userInfo"] == {"username": "oper", "groups": ["system:authenticated"]}
            wanted = {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}
            ask = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": wanted}
            url = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
            assert (await oper.request("POST", url, body=ask))["status"]["allowed"] is False
            await grant(c, [rule("pods", "list")], OPER)
            assert (await oper.request("POST", url, body=ask))["status"]["allowed"] is True
        async with c.client(None) as nobody:
            assert (await nobody.request("GET", "/version"))["major"] == "1"
            assert not await may(nobody.request("GET", "/api"))

    run(scenario)


def test_issued_tokens_are_the_accounts_and_die_with_it(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await c.admin.create(SERVICE_ACCOUNTS, {"metadata": {"name": "app"}}, "default")
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 900}}
        answer = await c.admin.create(SERVICE_ACCOUNTS, request, "default", name="app", subresource="token")
        token = answer["status"]["token"]
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        url = "/apis/authentication.k8s.io/v1/tokenreviews"
        found = await c.admin.request("POST", url, body=review)
        assert found["status"]["user"]["username"] == "system:serviceaccount:default:app"
        async with ApiClient(c.server.url, token, c.server.ca_file) as app:
            assert not await may(app.list(PODS, "default"))
            await c.admin.delete(SERVICE_ACCOUNTS, "app", "default")
            with pytest.raises(ApiError) as refused:
                await app.list(PODS, "default")
            assert refused.value.code == 401
        found = await c.admin.request("POST", url, body=review)
        assert not found["status"].get("authenticated")
        short = {**request, "spec": {"expirationSeconds": 10}}
        with pytest.raises(ApiError) as invalid:
            await c.admin.create(SERVICE_ACCOUNTS, short, "default", name="default", subresource="token")
        assert invalid.value.code == 422

    run(scenario)


def test_requests_are_counted_by_user_verb_and_resource(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        async with c.client("oper") as oper:
            for _ in range(3):
                assert not await may(oper.list(PODS, "default"))
        await c.admin.create(CONFIG_MAPS, {"metadata": {"name": "x"}}, "default")
        text = await c.admin.request("GET", "/metrics")
        counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        name = "raftkv_playground_apiserver_requests_total"
        assert counted[f'{name}{{user="oper",verb="list",resource="pods"}}'] == "3"
        assert counted[f'{name}{{user="kubernetes-admin",verb="create",resource="configmaps"}}'] == "1"

    run(scenario)
