"""Applying manifests by server-side apply, as ``kubectl apply --server-side`` does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from raftkv_playground.client import ApiClient, ApiError, Resource

FIELD_MANAGER = "raftkv-playground"
RETRY_SECONDS = 0.1


def documents(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """All objects of files and of folders' ``*.yaml``, lists taken apart. Raises OSError, yaml.YAMLError."""
    found: list[dict[str, Any]] = []
    for path in paths:
        files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        for file in files:
            for document in yaml.safe_load_all(file.read_text()):
                if document:
                    found += document["items"] if document.get("kind", "").endswith("List") else [document]
    return found


async def find_resource(client: ApiClient, item: Mapping[str, Any]) -> Resource:
    """By discovery. Raises ApiError (NotFound) for a kind that is not served."""
    group, _, version = item["apiVersion"].rpartition("/")
    listed = await client.request("GET", f"/apis/{group}/{version}" if group else f"/api/{version}")
    for entry in listed["resources"]:
        if entry["kind"] == item["kind"] and "/" not in entry["name"]:
            return Resource(group, version, entry["name"], entry["kind"], entry["namespaced"])
    raise ApiError(404, "NotFound", f"no resource for {item['apiVersion']} {item['kind']}")


async def apply(client: ApiClient, item: dict[str, Any], timeout_seconds: float = 10.0) -> dict[str, Any]:
    """Apply one object. A kind or namespace that was only just made may take a moment to be known. Raises ApiError."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while True:
        try:
            resource = await find_resource(client, item)
            metadata = item["metadata"]
            namespace = metadata.get("namespace", "default") if resource.namespaced else None
            return await client.patch(
                resource, metadata["name"], namespace, item, "apply", field_manager=FIELD_MANAGER, force=True
            )
        except ApiError as error:
            if not error.not_found or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(RETRY_SECONDS)
