"""Volumes as directories, with an API in a dictionary."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from raftkv_playground.client import ApiError, Resource
from raftkv_playground.kubelet.plan import PodContext
from raftkv_playground.kubelet.volumes import (
    DISK_DRIVER,
    Attachments,
    MountError,
    NodeRoot,
    VolumeMounter,
    write_files,
)
from raftkv_playground.objects import Object


class Api:
    """Just enough of a client: what is in ``objects``, and tokens."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        try:
            return self.objects[(resource.kind, name)]
        except KeyError:
            raise ApiError(404, "NotFound", f'{resource.plural} "{name}" not found') from None

    async def create(self, resource: Resource, body: Object, namespace: str, **more: Any) -> Object:
        assert more["subresource"] == "token"
        return {"status": {"token": f"token of {more['name']}"}}


class Bench:
    """One node's mounter, and pods for it."""

    def __init__(self, tmp_path: Path, node: str = "n1", attachments: Attachments | None = None) -> None:
        self.path, self.api = tmp_path, Api()
        self.root = NodeRoot(tmp_path / node)
        client: Any = self.api
        self.mounter = VolumeMounter(
            client,
            node,
            self.root,
            disks=tmp_path / "disks",
            memory=tmp_path / "memory",
            attachments=attachments or Attachments(),
        )

    def context(self, *volumes: Object, uid: str = "u") -> PodContext:
        metadata = {"name": "p", "namespace": "ns", "uid": uid, "labels": {"a": "1"}}
        pod = {"metadata": metadata, "spec": {"containers": [], "volumes": list(volumes)}}
        return PodContext(pod, "127.77.0.9", "127.77.0.1")

    def mount(self, *volumes: Object, uid: str = "u") -> dict[str, Path]:
        result = asyncio.run(self.mounter.mount(self.context(*volumes, uid=uid), self.path / "pods" / uid))
        return {name: Path(path) for name, path in result.items()}

    def host(self, path: str, kind: str = "") -> Path:
        return self.mount({"name": "v", "hostPath": {"path": path, "type": kind}})["v"]


def test_host_paths_lie_under_their_node(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    made = bench.host("/mnt/x/y", "DirectoryOrCreate")
    assert made == tmp_path / "n1/mnt/x/y" and made.is_dir()
    assert bench.host("/mnt/x", "Directory").is_dir()
    assert bench.host("/mnt/x/f", "FileOrCreate").is_file()
    for path, kind, message in (
        ("/mnt/none", "Directory", "is not a directory"),
        ("/mnt/x/f", "Directory", "is not a directory"),
        ("/mnt/x", "File", "is not a file"),
        ("/mnt/../../etc", "Directory", "free of '..'"),
        ("relative", "", "must be absolute"),
    ):
        with pytest.raises(MountError, match=message):
            bench.host(path, kind)


def test_config_maps_and_secrets_become_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    config = {"name": "c", "configMap": {"name": "cm", "defaultMode": 0o400}}
    with pytest.raises(MountError, match="not found"):
        bench.mount(config)
    bench.api.objects[("ConfigMap", "cm")] = {"data": {"k": "v", "l": "w"}}
    assert (bench.mount(config)["c"] / "k").read_text() == "v"
    picked = {"name": "c", "configMap": {"name": "cm", "items": [{"key": "l", "path": "sub/file", "mode": 0o600}]}}
    place = bench.mount(picked)["c"]
    assert (place / "sub/file").read_text() == "w" and not (place / "k").exists()
    assert (place / "sub/file").stat().st_mode & 0o777 == 0o600
    wrong = {"name": "d", "configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}
    with pytest.raises(MountError, match="non-existent ConfigMap key: z"):
        bench.mount(wrong)
    bench.api.objects[("Secret", "s")] = {"data": {"k": base64.b64encode(b"\x00\xff").decode()}}
    assert (bench.mount({"name": "s", "secret": {"secretName": "s"}})["s"] / "k").read_bytes() == b"\x00\xff"
    assert list(bench.mount({"name": "o", "secret": {"secretName": "none", "optional": True}})["o"].glob("[!.]*")) == []


def test_files_change_all_at_once(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": (b"1", 0o644), "b": (b"1", 0o644)})
    first = (tmp_path / "..data").readlink()
    write_files(tmp_path, {"a": (b"1", 0o644), "b": (b"1", 0o644)})
    assert (tmp_path / "..data").readlink() == first, "nothing changed, nothing written"
    with (tmp_path / "a").open() as still_open:
        write_files(tmp_path, {"a": (b"2", 0o644), "c": (b"2", 0o644)})
        assert still_open.read() == "1"
    assert {path.name: path.read_text() for path in tmp_path.glob("[!.]*")} == {"a": "2", "c": "2"}
    assert len(list(tmp_path.glob("..2*"))) == 1, "the old set is removed"


def test_a_running_pod_sees_changes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.api.objects[("ConfigMap", "cm")] = {"data": {"k": "old"}}
    volume = {"name": "c", "configMap": {"name": "cm"}}
    place = bench.mount(volume)["c"]
    bench.api.objects[("ConfigMap", "cm")] = {"data": {"k": "new"}}
    asyncio.run(bench.mounter.refresh(bench.context(volume), tmp_path / "pods" / "u"))
    assert (place / "k").read_text() == "new"


def test_projected_volumes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.api.objects[("ConfigMap", "ca")] = {"data": {"ca.crt": "cert"}}
    sources: list[Object] = [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "ca"}},
        {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]
    place = bench.mount({"name": "p", "projected": {"sources": sources}})["p"]
    texts = {path.name: path.read_text() for path in place.glob("[!.]*")}
    assert texts == {"token": "token of default", "ca.crt": "cert", "ns": "ns", "labels": 'a="1"'}


def a_claim(bench: Bench, *modes: str) -> Object:
    spec = {"csi": {"driver": DISK_DRIVER, "volumeHandle": "d"}, "accessModes": list(modes)}
    bench.api.objects[("PersistentVolumeClaim", "c")] = {"spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}
    bench.api.objects[("PersistentVolume", "pv")] = {"metadata": {"name": "pv"}, "spec": spec}
    return {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}


def test_network_disks_are_on_one_node_at_a_time(tmp_path: Path) -> None:
    attachments = Attachments()
    one, two = Bench(tmp_path, "n1", attachments), Bench(tmp_path, "n2", attachments)
    volume = a_claim(one, "ReadWriteOnce")
    a_claim(two, "ReadWriteOnce")
    with pytest.raises(MountError, match="is gone"):
        one.mount(volume)
    (tmp_path / "disks/d").mkdir(parents=True)
    assert one.mount(volume, uid="a")["v"] == one.mount(volume, uid="b")["v"] == tmp_path / "disks/d"
    with pytest.raises(MountError, match=r"Multi-Attach error.*n1"):
        two.mount(volume, uid="c")
    one.mounter.release("a", tmp_path / "pods/a")
    with pytest.raises(MountError):
        two.mount(volume, uid="c")
    one.mounter.release("b", tmp_path / "pods/b")
    assert two.mount(volume, uid="c")["v"].is_dir()


def test_a_claim_for_one_pod_waits_for_the_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    volume = a_claim(bench, "ReadWriteOncePod")
    (tmp_path / "disks/d").mkdir(parents=True)
    bench.mount(volume, uid="a")
    bench.mount(volume, uid="a")
    with pytest.raises(MountError, match="in use by another pod"):
        bench.mount(volume, uid="b")


def test_empty_directories_go_with_their_pod(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    volumes = bench.mount({"name": "e", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}})
    assert volumes["m"].is_relative_to(tmp_path / "memory")
    for place in volumes.values():
        (place / "f").write_text("x")
    bench.mounter.release("u", tmp_path / "pods/u")
    assert not any(place.exists() for place in volumes.values())


def test_an_unknown_volume_says_so(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="no volume of type nfs"):
        Bench(tmp_path).mount({"name": "v", "nfs": {}})
