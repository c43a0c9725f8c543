"""A member belongs to the host of its ring: a clean one may move, a dirty one refuses and says where its ring is.

One member as a plain pod, its disk on a claim that follows it and its ring on a hostPath that does not.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from kube import Kubectl, processes, wait_until
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

_POD = "mover"
_RING = "/mnt/pmem0/raftkv"
_EXIT_ABSENT = 65
_SECONDS = 90.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("KUBECONFIG" in os.environ, reason="kills a process, which only the playground's pods are here"),
]


def _claim() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": _POD},
        "spec": {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def _pod(node: str) -> dict[str, Any]:
    arguments = [
        "node",
        "--name=mover",
        "--data-dir=/data/member",
        "--adr-path=/ring",
        "--adr-size=8Mi",
        "--minimum-durability=process",
        "--host-name=$(NODE_NAME)",
        "--listen-client-urls=http://$(POD_IP):2379",
        "--advertise-client-urls=http://mover:2379",
        "--listen-peer-urls=http://$(POD_IP):2380",
        "--initial-advertise-peer-urls=http://mover:2380",
        "--initial-cluster=mover=http://mover:2380",
    ]

    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    container = {
        "name": "node",
        "image": "ghcr.io/raftkv/raftkv:0.1.0",
        "args": arguments,
        "env": [field("POD_IP", "status.podIP"), field("NODE_NAME", "spec.nodeName")],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "ring", "mountPath": "/ring"}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": _POD}},
        {"name": "ring", "hostPath": {"path": _RING, "type": "Directory"}},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _POD},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [container],
            "volumes": volumes,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 30,
        },
    }


class _Mover:
    """The pod, wherever it is."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        nodes = kubectl.get("nodes")["items"]
        self.nodes = sorted(n["metadata"]["labels"]["kubernetes.io/hostname"] for n in nodes)

    def start_on(self, node: str) -> None:
        self._kubectl.apply(_pod(node))

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._kubectl.get("pod", _POD)["status"]
        return status

    def stub(self) -> tuple[grpc.Channel, rpc_pb2_grpc.KVStub]:
        channel = grpc.insecure_channel(f"{self.status()['podIP']}:2379")
        return channel, rpc_pb2_grpc.KVStub(channel)

    def _serves(self) -> bool:
        channel, kv = self.stub()
        with channel:
            try:
                kv.Range(rpc_pb2.RangeRequest(key=b"x"), timeout=2)
            except grpc.RpcError:
                return False
        return True

    def wait_serving(self) -> None:
        wait_until("the member to serve", self._serves, _SECONDS)

    def put(self, key: str, value: str) -> None:
        channel, kv = self.stub()
        with channel:
            kv.Put(rpc_pb2.PutRequest(key=key.encode(), value=value.encode()), timeout=5)

    def get(self, key: str) -> str | None:
        channel, kv = self.stub()
        with channel:
            kvs = kv.Range(rpc_pb2.RangeRequest(key=key.encode()), timeout=5).kvs
        return kvs[0].value.decode() if kvs else None

    def delete(self, *options: str) -> None:
        self._kubectl.run("delete", "pod", _POD, "--ignore-not-found", *options)
        wait_until("the pod to be gone", lambda: not self._kubectl.run("get", "pods", "-o", "name").count(_POD), 60)

    def kill(self) -> None:
        """SIGKILL, and the pod is not started again: the ring may hold what the disk does not."""
        pids = processes(r"raftkv node .*--name=mover", self._kubectl.folder)
        assert pids, "no process of the member found"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until("the end of the container", lambda: self.refusal() is not None, 60)
        self.delete()

    def refusal(self) -> dict[str, Any] | None:
        """How the container ended, if it has."""
        container = self.status()["containerStatuses"][0]
        for state in (container.get("state", {}), container.get("lastState", {})):
            if "terminated" in state:
                ended: dict[str, Any] = state["terminated"]
                return ended
        return None


@pytest.fixture
def mover(kubectl: Kubectl) -> Iterator[_Mover]:
    """A member on the first node, with one key."""
    it = _Mover(kubectl)
    kubectl.apply(_claim())
    it.start_on(it.nodes[0])
    it.wait_serving()
    it.put("first", "1")
    yield it
    it.delete("--force", "--grace-period=0")
    kubectl.run("delete", "pvc", _POD)


def test_a_clean_member_moves_and_a_dirty_one_refuses(mover: _Mover) -> None:
    home, second, third = mover.nodes[:3]
    mover.delete()  # SIGTERM: drained, marked clean
    mover.start_on(second)
    mover.wait_serving()
    assert mover.get("first") == "1", f"what was written on {home} must be there on {second}"
    mover.put("second", "2")

    mover.kill()
    mover.start_on(third)
    wait_until("the refusal", lambda: mover.refusal() is not None, _SECONDS)
    refusal = mover.refusal()
    assert refusal is not None
    assert refusal["exitCode"] == _EXIT_ABSENT, json.dumps(refusal)
    assert second in refusal["message"], f"the message must name the host of the ring: {refusal['message']}"

    mover.delete()
    mover.start_on(second)  # home again: nothing is lost
    mover.wait_serving()
    assert (mover.get("first"), mover.get("second")) == ("1", "2")
