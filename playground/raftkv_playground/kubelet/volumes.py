"""Volumes as directories.

Every node has a root of its own for hostPaths (``<state>/nodes/<node>/rootfs``), so that ``/mnt/pmem0/raftkv`` of two
nodes are two places; the network disks of claims lie beside the nodes (``<state>/volumes``) and can be reached from
each. ConfigMap, Secret and projected volumes are written the way the real kubelet does: all files in a fresh
directory, then one symbolic link moved, so that a reader sees the old set or the new one, never a mixture.
"""

from __future__ import annotations

import asyncio
import datetime
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from raftkv_playground import client as api
from raftkv_playground.client import ApiClient, ApiError
from raftkv_playground.kubelet.plan import ConfigError, PodContext, field_value, resource_value, source_data
from raftkv_playground.objects import Object, status_of

DISK_DRIVER = "disk.playground.raftkv.dev"
TOKEN_SECONDS = 3600


class MountError(Exception):
    """A volume cannot be mounted now. The kubelet says so in a FailedMount Event and tries again."""


class NodeRoot:
    """A node's own file system tree for hostPaths."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def path(self, host_path: str) -> Path:
        """Where a hostPath lies. Raises MountError for one that leaves the root."""
        pure = PurePosixPath(host_path)
        if not pure.is_absolute() or ".." in pure.parts:
            raise MountError(f"hostPath {host_path!r} must be absolute and free of '..'")
        return self.root.joinpath(*pure.parts[1:])

    def mount(self, host_path: str, kind: str) -> Path:
        """Check or create by the hostPath's type. Raises MountError."""
        path = self.path(host_path)
        if kind in ("", "DirectoryOrCreate"):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        elif kind == "FileOrCreate":
            if not path.exists():
                path.touch(mode=0o644)
        else:
            checks = {
                "Directory": (stat.S_ISDIR, "a directory"),
                "File": (stat.S_ISREG, "a file"),
                "Socket": (stat.S_ISSOCK, "a socket file"),
                "CharDevice": (stat.S_ISCHR, "a character device"),
                "BlockDevice": (stat.S_ISBLK, "a block device"),
            }
            test, word = checks[kind]
            if not path.exists() or not test(path.stat().st_mode):
                raise MountError(f"hostPath type check failed: {host_path} is not {word}")
        return path


@dataclass(slots=True)
class Attachments:
    """Which node a ReadWriteOnce disk is attached to: to one at a time, for all pods there."""

    holders: dict[str, tuple[str, set[str]]] = field(default_factory=dict)

    def attach(self, volume: str, node: str, pod_uid: str, modes: list[str]) -> None:
        """Raises MountError if another node has it, or another pod what is for one pod only."""
        if "ReadWriteMany" in modes or "ReadOnlyMany" in modes:
            return
        held = self.holders.get(volume)
        if held is not None and "ReadWriteOncePod" in modes and held[1] - {pod_uid}:
            raise MountError(f'volume "{volume}" is still in use by another pod')
        if held is not None and held[0] != node:
            raise MountError(
                f'Multi-Attach error for volume "{volume}": Volume is already used by pod(s) on node {held[0]}'
            )
        self.holders.setdefault(volume, (node, set()))[1].add(pod_uid)

    def release(self, pod_uid: str) -> None:
        for volume, (_, pods) in list(self.holders.items()):
            pods.discard(pod_uid)
            if not pods:
                del self.holders[volume]


def write_files(directory: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Make ``directory`` show exactly these files (relative path -> content and mode), changing all at one moment."""
    directory.mkdir(parents=True, exist_ok=True)
    current = directory / "..data"
    if current.exists() and _same(current, files):
        return
    stamp = datetime.datetime.now(datetime.UTC).strftime("..%Y_%m_%d_%H_%M_%S.%f")
    fresh = directory / stamp
    for name, (content, mode) in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    fresh.mkdir(parents=True, exist_ok=True)
    before = current.readlink() if current.is_symlink() else None
    link = directory / "..data_tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(stamp)
    link.rename(current)
    wanted = {PurePosixPath(name).parts[0] for name in files}
    for name in wanted:
        visible = directory / name
        if not visible.is_symlink():
            visible.symlink_to(Path("..data") / name)
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in wanted:
            entry.unlink()
    if before is not None:
        shutil.rmtree(directory / before, ignore_errors=True)


def _same(current: Path, files: Mapping[str, tuple[bytes, int]]) -> bool:
    there = {str(path.relative_to(current)): path for path in current.rglob("*") if path.is_file()}
    return there.keys() == files.keys() and all(
        there[name].read_bytes() == content and stat.S_IMODE(there[name].stat().st_mode) == mode
        for name, (content, mode) in files.items()
    )


def pick_items(
    data: Mapping[str, bytes], source: Mapping[str, Any], default_mode: int, what: str
) -> dict[str, tuple[bytes, int]]:
    """All keys as files, or those that ``items`` names. Raises MountError for a key that is not there."""
    items = source.get("items")
    if not items:
        return {key: (content, default_mode) for key, content in data.items()}
    files = {}
    for item in items:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            raise MountError(f"references non-existent {what} key: {item['key']}")
        files[item["path"]] = (data[item["key"]], int(item.get("mode") or default_mode))
    return files


class VolumeMounter:
    """Provides the directories of one node's pods."""

    def __init__(
        self,
        client: ApiClient,
        node: str,
        root: NodeRoot,
        *,
        disks: Path,
        memory: Path,
        attachments: Attachments,
    ) -> None:
        self._client = client
        self._node = node
        self._root = root
        self._disks = disks
        self._attachments = attachments
        self._memory = memory

    async def mount(self, context: PodContext, directory: Path) -> dict[str, str]:
        """Host paths by volume name; ``directory`` is the pod's own. Raises MountError, ApiError."""
        result = {}
        for volume in context.pod["spec"].get("volumes") or []:
            try:
                result[volume["name"]] = str(await self._mount(context, volume, directory / "volumes" / volume["name"]))
            except (MountError, OSError, ConfigError) as error:
                raise MountError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}') from error
        return result

    async def refresh(self, context: PodContext, directory: Path) -> None:
        """Write anew what changes while a pod runs: ConfigMaps, Secrets, tokens, labels."""
        for volume in context.pod["spec"].get("volumes") or []:
            if {"configMap", "secret", "projected", "downwardAPI"} & volume.keys():
                await self._mount(context, volume, directory / "volumes" / volume["name"])

    def release(self, pod_uid: str, directory: Path) -> None:
        """Remove what was the pod's alone, and let go of its disks."""
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(self._memory / "pods" / pod_uid, ignore_errors=True)
        self._attachments.release(pod_uid)

    async def _mount(self, context: PodContext, volume: Object, place: Path) -> Path:
        if "hostPath" in volume:
            return self._root.mount(volume["hostPath"]["path"], volume["hostPath"].get("type") or "")
        if "persistentVolumeClaim" in volume:
            return await self._claim(context, volume["persistentVolumeClaim"]["claimName"])
        if "emptyDir" in volume:
            in_memory = (volume["emptyDir"] or {}).get("medium") == "Memory"
            uid = context.pod["metadata"]["uid"]
            return _empty_dir(place, self._memory / "pods" / uid / volume["name"] if in_memory else None)
        if {"configMap", "secret", "projected", "downwardAPI"} & volume.keys():
            files = await self._files(context, volume)
            await asyncio.to_thread(write_files, place, files)
            return place
        kinds = ", ".join(sorted(volume.keys() - {"name"}))
        raise MountError(f"this kubelet knows no volume of type {kinds}")

    async def _claim(self, context: PodContext, name: str) -> Path:
        metadata = context.pod["metadata"]
        try:
            claim = await self._client.get(api.PERSISTENT_VOLUME_CLAIMS, name, metadata["namespace"])
            if status_of(claim).get("phase") != "Bound":
                raise MountError(f'persistentvolumeclaim "{name}" is not bound')
            volume = await self._client.get(api.PERSISTENT_VOLUMES, claim["spec"]["volumeName"])
        except ApiError as error:
            if error.not_found:
                raise MountError(error.message) from error
            raise
        spec = volume["spec"]
        if (disk := spec.get("csi")) and disk["driver"] == DISK_DRIVER:
            path = self._disks / str(disk["volumeHandle"])
            if not path.is_dir():
                raise MountError(f"network disk {disk['volumeHandle']} is gone")
            modes = list(spec.get("accessModes") or [])
            self._attachments.attach(volume["metadata"]["name"], self._node, metadata["uid"], modes)
            return path
        if local := spec.get("local"):
            return self._root.mount(local["path"], "Directory")
        if host := spec.get("hostPath"):
            return self._root.mount(host["path"], host.get("type") or "")
        raise MountError(f"this kubelet cannot mount PersistentVolume {volume['metadata']['name']}")

    async def _files(self, context: PodContext, volume: Object) -> dict[str, tuple[bytes, int]]:
        if "projected" in volume:
            projected = volume["projected"] or {}
            mode = int(projected.get("defaultMode") or 0o644)
            files: dict[str, tuple[bytes, int]] = {}
            for source in projected.get("sources") or []:
                files |= await self._source(context, source, mode)
            return files
        mode = int((volume.get("configMap") or volume.get("secret") or volume.get("downwardAPI") or {})
                   .get("defaultMode") or 0o644)  # fmt: skip
        return await self._source(context, volume, mode)

    async def _source(self, context: PodContext, source: Object, mode: int) -> dict[str, tuple[bytes, int]]:
        for kind, resource in (("configMap", api.CONFIG_MAPS), ("secret", api.SECRETS)):
            if kind in source:
                entry = source[kind]
                name = entry.get("name") or entry.get("secretName")
                try:
                    item = await self._client.get(resource, name, context.pod["metadata"]["namespace"])
                except ApiError as error:
                    if error.not_found and entry.get("optional"):
                        return {}
                    if error.not_found:
                        raise MountError(error.message) from error
                    raise
                data = source_data({**item, "kind": resource.kind})
                return pick_items(data, entry, mode, resource.kind)
        if "downwardAPI" in source:
            return {entry["path"]: (_downward(context, entry), mode) for entry in source["downwardAPI"]["items"]}
        if "serviceAccountToken" in source:
            entry = source["serviceAccountToken"]
            seconds = int(entry.get("expirationSeconds") or TOKEN_SECONDS)
            token = await self.service_account_token(context.pod, seconds, entry.get("audience"))
            return {entry["path"]: (token.encode(), 0o600)}
        raise MountError(f"this kubelet knows no projected source of type {', '.join(source)}")

    async def service_account_token(
        self, pod: Object, seconds: int = TOKEN_SECONDS, audience: str | None = None
    ) -> str:
        """A token of the pod's service account, by the TokenRequest API. Raises ApiError."""
        metadata = pod["metadata"]
        spec: Object = {
            "expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
        }
        if audience:
            spec["audiences"] = [audience]
        answer = await self._client.create(
            api.SERVICE_ACCOUNTS,
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
            metadata["namespace"],
            name=pod["spec"].get("serviceAccountName") or "default",
            subresource="token",
        )
        return str(answer["status"]["token"])


def _downward(context: PodContext, entry: Object) -> bytes:
    if entry.get("fieldRef"):
        return field_value(context, entry["fieldRef"]["fieldPath"]).encode()
    return resource_value(context, None, entry["resourceFieldRef"]).encode()


def _empty_dir(place: Path, memory: Path | None) -> Path:
    """A directory that lives as long as the pod; with ``medium: Memory`` it is ``memory``, on tmpfs."""
    path = memory or place
    path.mkdir(parents=True, exist_ok=True)
    return path
