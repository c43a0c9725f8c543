"""The client and its informer against a real server."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from typing import Any

import pytest
from apiserver_harness import Cluster
from raftkv_playground.client import CONFIG_MAPS, NAMESPACES, ApiClient, ApiError, Informer, WatchEvent


def _map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"app": "t"}}, "data": data}


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition did not come true")


def test_objects_go_through_their_life(run: Callable[..., None]) -> None:
    async def scenario(c: Cluster) -> None:
        made = await c.admin.create(CONFIG_MAPS, _map("a", k="1"), "default")
        assert made["metadata"]["uid"]
        assert made["metadata"]["managedFields"][0]["manager"] == "test"
        with pytest.raises(ApiError) as again:
            await c.admin.create(CONFIG_MAPS, _map("a"), "default")
        assert again.value.already_exists
        patched = await c.admin.patch(CONFIG_MAPS, "a", "default", {"data": {"k": "2"}})
        assert patched["data"] == {"k": "2"}
        stale = {**patched, "metadata": {**patched["metadata"], "resourceVersion": made["metadata"]["resourceVersion"]}}
        with pytest.raises(ApiError) as conflict:
            await c.admin.replace(CONFIG_MAPS, stale)
        assert conflict.value.conflict
        patched["data"]["k"] = "3"
        assert (await c.admin.replace(CONFIG_MAPS, patched))["data"] == {"k": "3"}
        items, version = await c.admin.list(CONFIG_MAPS, "default", label_selector="app=t")
        assert [i["metadata"]["name"] for i in items] == ["a"]
        assert int(version) >= int(items[0]["metadata"]["resourceVersion"])
        with pytest.raises(ApiError) as wrong:
            await c.admin.delete(CONFIG_MAPS, "a", "default", uid="00000000-0000-0000-0000-000000000000")
        assert wrong.value.conflict
        await c.admin.delete(CONFIG_MAPS, "a", "default", uid=made["metadata"]["uid"])
        with pytest.raises(ApiError) as gone:
            await c.admin.get(CONFIG_MAPS, "a", "default")
        assert gone.value.not_found

    run(scenario)


def test_an_informer_follows_and_survives_compaction(run: Callable[..., None]) -> None:
    async def scenario(c: Cluster) -> None:
        seen: list[tuple[str, str]] = []
        informer = Informer(
            c.admin,
            CONFIG_MAPS,
            lambda kind, item: seen.append((kind, item["metadata"]["name"])),
            namespace="default",
            label_selector="app=t",
        )
        await c.admin.create(CONFIG_MAPS, _map("a", k="1"), "default")
        informer.start()
        await asyncio.wait_for(informer.synced.wait(), 10)
        assert seen == [("ADDED", "a")]
        await c.admin.patch(CONFIG_MAPS, "a", "default", {"data": {"k": "2"}})
        await _until(lambda: seen[-1] == ("MODIFIED", "a"))
        # The informer's watch breaks, and while it is away the history it would need is dropped.
        c.server.store.close_watchers()
        for n in range(20):
            await c.admin.create(CONFIG_MAPS, _map(f"b{n}"), "default")
        await c.admin.delete(CONFIG_MAPS, "a", "default")
        await _until(lambda: len(informer.store) == 20 and ("DELETED", "a") in seen)
        assert informer.get("b7", "default") is not None
        await informer.stop()

    run(scenario, log_limit_events=8)


def test_a_watch_from_compacted_history_is_gone(run: Callable[..., None]) -> None:
    async def scenario(c: Cluster) -> None:
        _, version = await c.admin.list(CONFIG_MAPS, "default")
        for n in range(20):
            await c.admin.create(CONFIG_MAPS, _map(f"b{n}"), "default")
        with pytest.raises(ApiError) as gone:
            async for event in c.admin.watch(CONFIG_MAPS, "default", resource_version=version):
                raise AssertionError(event)
        assert gone.value.gone

    run(scenario, log_limit_events=8)


def test_a_watch_gives_changes_in_order_and_ends_in_time(run: Callable[..., None]) -> None:
    async def scenario(c: Cluster) -> None:
        _, version = await c.admin.list(CONFIG_MAPS, "default")
        for n in range(50):
            await c.admin.create(CONFIG_MAPS, _map(f"c{n}"), "default")
        events: list[WatchEvent] = [
            e async for e in c.admin.watch(CONFIG_MAPS, "default", resource_version=version, timeout_seconds=1)
        ]
        names = [e.object["metadata"]["name"] for e in events if e.type == "ADDED"]
        assert names == [f"c{n}" for n in range(50)]

    run(scenario)


def test_credentials_are_private_and_work(run: Callable[..., None]) -> None:
    async def scenario(c: Cluster) -> None:
        path = c.server.kubeconfig
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with ApiClient.from_kubeconfig(path) as client:
            items, _ = await client.list(NAMESPACES)
        assert {"default", "kube-system"} <= {i["metadata"]["name"] for i in items}
        async with ApiClient(c.server.url, "wrong", c.server.ca_file) as stranger:
            with pytest.raises(ApiError) as refused:
                await stranger.list(NAMESPACES)
        assert refused.value.code == 401
        async with c.client(None) as nobody:
            with pytest.raises(ApiError) as forbidden:
                await nobody.list(NAMESPACES)
        assert forbidden.value.code == 403

    run(scenario)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    async def main() -> None:
        async with ApiClient("http://127.0.0.1:1") as client:
            with pytest.raises(ApiError) as error:
                await client.list(NAMESPACES)
            assert error.value.code == 0
            assert error.value.reason == "Unreachable"

    asyncio.run(main())
