"""Lists and watches, and what others answer: logs and proxies."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from apiserver_harness import Cluster
from raftkv_playground.apiserver import store as store_module
from raftkv_playground.apiserver.store import Gone, Store
from raftkv_playground.client import CONFIG_MAPS, ENDPOINTS, NODES, PODS, SERVICES, ApiError

Run = Callable[..., None]
PATH = "/api/v1/namespaces/default/configmaps"


def _map(name: str, app: str = "a") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"app": app}}}


async def _events(c: Cluster, version: str, **query: str) -> list[tuple[str, str]]:
    selector = query.get("label_selector")
    return [
        (e.type, e.object["metadata"]["name"])
        async for e in c.admin.watch(
            CONFIG_MAPS, "default", resource_version=version, label_selector=selector, timeout_seconds=1
        )
        if e.type != "BOOKMARK"
    ]


def test_an_object_that_stops_to_match_is_deleted_for_the_watcher(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        _, version = await c.admin.list(CONFIG_MAPS, "default")
        await c.admin.create(CONFIG_MAPS, _map("x", "b"), "default")
        for app in ("a", "a2", "a"):
            await c.admin.patch(CONFIG_MAPS, "x", "default", {"metadata": {"labels": {"app": app}}})
        await c.admin.patch(CONFIG_MAPS, "x", "default", {"data": {"k": "v"}})
        await c.admin.delete(CONFIG_MAPS, "x", "default")
        events = await _events(c, version, label_selector="app=a")
        assert events == [("ADDED", "x"), ("DELETED", "x"), ("ADDED", "x"), ("MODIFIED", "x"), ("DELETED", "x")]

    run(scenario)


def test_a_paged_list_is_of_one_moment(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        for n in range(6):
            await c.admin.create(CONFIG_MAPS, _map(f"m{n}"), "default")
        query = {"limit": "2", "labelSelector": "app=a"}
        first = await c.admin.request("GET", PATH, query=query)
        await c.admin.delete(CONFIG_MAPS, "m3", "default")
        await c.admin.create(CONFIG_MAPS, _map("m9"), "default")
        token = first["metadata"]["continue"]
        rest = await c.admin.request("GET", PATH, query={**query, "limit": "100", "continue": token})
        names = [i["metadata"]["name"] for page in (first, rest) for i in page["items"]]
        assert names == [f"m{n}" for n in range(6)]
        assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        with pytest.raises(ApiError) as gone:
            # A token of the right form that the server does not remember.
            import base64

            forged = base64.urlsafe_b64encode(b'{"v":"meta.k8s.io/v1","rv":1,"start":"/a"}').decode().rstrip("=")
            await c.admin.request("GET", PATH, query={**query, "continue": forged})
        assert gone.value.code == 410

    run(scenario)


def test_initial_events_end_with_a_marked_bookmark(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        await c.admin.create(CONFIG_MAPS, _map("m"), "default")
        query = {
            "watch": "true",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "true",
            "labelSelector": "app=a",
            "timeoutSeconds": "1",
        }
        context = ssl.create_default_context(cafile=str(c.server.ca_file))
        headers = {"Authorization": f"Bearer {c.server.admin_token}"}
        async with (
            aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.get(c.server.url + PATH, params=query) as response,
        ):
            lines = [json.loads(line) for line in (await response.text()).splitlines()]
        assert [e["type"] for e in lines] == ["ADDED", "BOOKMARK"]
        assert lines[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        with pytest.raises(ApiError) as refused:
            await c.admin.request("GET", PATH, query={**query, "resourceVersionMatch": ""})
        assert refused.value.code == 422

    run(scenario)


def test_a_slow_watcher_is_closed_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WATCHER_QUEUE_LIMIT_EVENTS", 3)

    async def main() -> None:
        store = Store()
        slow, quick = store.watch(("", "x"), None), store.watch(("", "x"), None)
        seen = []
        for n in range(6):
            store.put(("", "x"), {"metadata": {"name": f"o{n}"}})
            change = quick.queue.get_nowait()
            seen.append(change.object["metadata"]["name"] if change else None)
        assert seen == [f"o{n}" for n in range(6)]
        assert slow.overrun
        got = [slow.queue.get_nowait() for _ in range(slow.queue.qsize())]
        assert len(got) == 4 and got[-1] is None
        assert not quick.overrun

    asyncio.run(main())


def test_history_is_bounded_and_says_so() -> None:
    async def main() -> None:
        store = Store(log_limit=5)
        start = store.revision
        for n in range(8):
            store.put(("", "x"), {"metadata": {"name": f"o{n}"}})
        with pytest.raises(Gone):
            store.watch(("", "x"), start)
        watcher = store.watch(("", "x"), start + 3)
        assert watcher.queue.qsize() == 5
        store.born(("", "y"))
        with pytest.raises(Gone):
            store.watch(("", "y"), start + 4)

    asyncio.run(main())


async def _serve(handler: Any) -> tuple[web.AppRunner, int]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, runner.addresses[0][1]


def test_logs_come_from_the_kubelet_and_proxies_reach_pods_and_services(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        async def answer(request: web.Request) -> web.Response:
            assert "Authorization" not in request.headers
            if request.path.endswith("/gone"):
                return web.Response(status=404, text="no such log")
            return web.Response(text=f"{request.method} {request.path_qs} {await request.text()}")

        runner, port = await _serve(answer)
        try:
            status = {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            }
            await c.admin.create(NODES, {"metadata": {"name": "n"}, "status": status})
            containers = [
                {"name": "c", "image": "i", "ports": [{"containerPort": port}]},
                {"name": "gone", "image": "i"},
            ]
            body = {"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": containers}}
            await c.admin.create(PODS, body, "default")
            base = "/api/v1/namespaces/default/pods/p"
            text = await c.admin.request("GET", base + "/log", query={"container": "c", "tailLines": "3"})
            assert text == "GET /containerLogs/default/p/c?tailLines=3 "
            with pytest.raises(ApiError) as ambiguous:
                await c.admin.request("GET", base + "/log")
            assert "choose one of: [c gone]" in ambiguous.value.message
            with pytest.raises(ApiError) as missing:
                await c.admin.request("GET", base + "/log", query={"container": "gone"})
            assert (missing.value.code, missing.value.message) == (404, "no such log")

            with pytest.raises(ApiError) as no_address:
                await c.admin.request("GET", base + "/proxy/x")
            assert no_address.value.code == 400
            await c.admin.patch(PODS, "p", "default", {"status": {"podIP": "127.0.0.1"}}, subresource="status")
            assert await c.admin.request("GET", base + "/proxy/a/b", query={"q": "1"}) == "GET /a/b?q=1 "
            posted = await c.admin.request("POST", f"{base.removesuffix('/p')}/p:{port}/proxy/x", body={"a": 1})
            assert posted == 'POST /x {"a": 1}'

            service = {"metadata": {"name": "s"}, "spec": {"ports": [{"name": "http", "port": 80}]}}
            await c.admin.create(SERVICES, service, "default")
            proxied = "/api/v1/namespaces/default/services/s:http/proxy/y"
            with pytest.raises(ApiError) as nobody:
                await c.admin.request("GET", proxied)
            assert nobody.value.code == 503
            subset = {"addresses": [{"ip": "127.0.0.1"}], "ports": [{"name": "http", "port": port}]}
            await c.admin.create(ENDPOINTS, {"metadata": {"name": "s"}, "subsets": [subset]}, "default")
            assert await c.admin.request("GET", proxied) == "GET /y "
        finally:
            await runner.cleanup()

    run(scenario)
