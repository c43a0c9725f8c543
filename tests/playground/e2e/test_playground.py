"""A StatefulSet's whole life by kubectl, pods' restarts, moves between nodes, and the end of it all."""

from __future__ import annotations

import os
import signal
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from raftkv_playground.janitor import marked
from raftkv_playground.objects import owner_reference

from .conftest import Playground, eventually, fetch

Object = dict[str, Any]


def an_app(*args: str, **more: Any) -> Object:
    """A container of the test image, ready when it serves."""
    fields = {"POD_NAME": "metadata.name", "NODE_NAME": "spec.nodeName"}
    env = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    return {
        "name": "app",
        "image": "registry.example/team/app:1",
        "args": ["--listen=0.0.0.0:8080", *args],
        "env": env,
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1},
        **more,
    }


def a_pod(name: str, container: Object, **spec: Any) -> Object:
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}


def a_service(name: str, selector: str, **spec: Any) -> Object:
    ports = [{"name": "http", "port": 8088, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": selector}, "ports": ports, **spec},
    }


def a_set(name: str, replicas: int, image: str = "app:1", **spec: Any) -> Object:
    container = an_app(
        "--file=/data/starts",
        "--ring=/ring",
        image=image,
        volumeMounts=[{"name": "data", "mountPath": "/data"}, {"name": "ring", "mountPath": "/ring"}],
    )
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            "volumes": [{"name": "ring", "hostPath": {"path": "/mnt/pmem0/raftkv", "type": "Directory"}}],
        },
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": template,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
            **spec,
        },
    }


def test_the_life_of_a_statefulset(playground: Playground) -> None:
    play = playground
    on_delete = {"updateStrategy": {"type": "OnDelete"}}
    peers = a_service("web", "web", clusterIP="None", publishNotReadyAddresses=True)
    play.apply(peers, a_service("front", "web"), a_set("web", 2, **on_delete))
    play.kubectl("rollout", "status", "sts/web", "--timeout=60s", check=False)
    eventually("two ready", lambda: play.get("sts", "web")["status"].get("readyReplicas") == 2)

    # One node each, a hostPath per node, a disk per pod.
    nodes = {name: play.get("pod", name)["spec"]["nodeName"] for name in ("web-0", "web-1")}
    assert len(set(nodes.values())) == 2
    assert play.state is not None
    for pod, node in nodes.items():
        ring = play.state / "nodes" / node / "rootfs/mnt/pmem0/raftkv"
        assert [entry.name for entry in ring.iterdir()] == [pod] and (ring / pod).read_text() == node
    assert not Path("/data").exists() and not Path("/ring").exists(), "the host's own root is left alone"

    # The Service's address reaches both, by turns; names are in the file that pods are pointed to.
    address = play.get("svc", "front")["spec"]["clusterIP"]
    eventually(
        "both answer", lambda: {fetch(f"http://{address}:8088/") for _ in range(4)} == {"web-0 1\n", "web-1 1\n"}
    )
    hosts = (play.state / "names" / "default.hosts").read_text()
    ip = play.get("pod", "web-1")["status"]["podIP"]
    assert f"\n{ip} web-1.web.default.svc.cluster.local web-1.web.default.svc " in hosts

    # A pod that is not ready is left out, and comes back.
    fetch(f"http://{ip}:8080/ready/0")
    eventually("only one answers", lambda: {fetch(f"http://{address}:8088/") for _ in range(4)} == {"web-0 1\n"})
    fetch(f"http://{ip}:8080/ready/1")

    # A new template touches nothing (OnDelete) until a pod is deleted; its disk comes back with it.
    uid = play.get("pod", "web-0")["metadata"]["uid"]
    play.apply(a_set("web", 2, image="app:2", **on_delete))
    play.kubectl("delete", "pod", "web-0")
    eventually("web-0 is new", lambda: _is_new(play, "web-0", uid, "app:2"))
    assert play.get("pod", "web-1")["spec"]["containers"][0]["image"] == "app:1"
    eventually("it kept its disk", lambda: "web-0 2" in play.kubectl("get", "--raw", _proxy("web-0")))
    status = play.get("sts", "web")["status"]
    assert status["updatedReplicas"] == 1 and status["currentRevision"] != status["updateRevision"]

    # Out and in; the claims stay.
    play.kubectl("scale", "sts/web", "--replicas=3")
    eventually("three ready", lambda: play.get("sts", "web")["status"].get("readyReplicas") == 3)
    play.kubectl("scale", "sts/web", "--replicas=1")
    eventually(
        "one left", lambda: [p["metadata"]["name"] for p in play.get("pods", "-l", "app=web")["items"]] == ["web-0"]
    )
    assert len(play.get("pvc")["items"]) == 3

    # Logs, whole and in part.
    assert play.kubectl("logs", "web-0").splitlines() == ["started 2"]
    assert play.kubectl("logs", "web-0", "--tail=0") == ""

    # Gone with all that it owned, and the disks with their claims.
    play.kubectl("delete", "sts", "web", "--timeout=60s")
    eventually("no pods", lambda: not play.get("pods", "-l", "app=web")["items"])
    eventually("no revisions", lambda: not play.get("controllerrevisions")["items"])
    disks = play.state / "volumes"
    assert len(list(disks.iterdir())) == 3
    play.kubectl("delete", "pvc", "--all", "--timeout=60s")
    eventually("no volumes", lambda: not play.get("pv")["items"] and not list(disks.iterdir()))
    play.kubectl("delete", "svc", "web", "front")
    eventually("no endpoints", lambda: not play.get("endpointslices")["items"] and not play.get("endpoints")["items"])


def _is_new(play: Playground, name: str, old_uid: str, image: str) -> bool:
    pod = play.get("pod", name)
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
    return pod["metadata"]["uid"] != old_uid and pod["spec"]["containers"][0]["image"] == image and ready


def _proxy(pod: str) -> str:
    return f"/api/v1/namespaces/default/pods/{pod}:8080/proxy/"


def test_restarts_exit_codes_and_previous_logs(playground: Playground) -> None:
    play = playground
    play.apply(a_pod("crash", an_app("--exit=3", terminationMessagePolicy="FallbackToLogsOnError")))

    def looping() -> Object:
        status = play.get("pod", "crash")["status"]["containerStatuses"][0]
        assert status["restartCount"] >= 2 and status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        return dict(status)

    last = eventually("the crash loop", looping)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (3, "Error") and "ends with 3" in last["message"]
    assert "ends with 3" in play.kubectl("logs", "crash", "--previous")
    reasons = {e["reason"] for e in play.get("events", "--field-selector=involvedObject.name=crash")["items"]}
    assert {"Scheduled", "Pulled", "Created", "Started", "BackOff"} <= reasons

    play.apply(a_pod("killed", an_app()))
    play.kubectl("wait", "pod/killed", "--for=condition=Ready", "--timeout=60s")
    os.kill(play.pid_of("killed"), signal.SIGKILL)
    killed = eventually("a restart", lambda: _restarted(play, "killed"))
    assert killed["lastState"]["terminated"]["exitCode"] == 137

    once = an_app("--exit=0", "--message=/dev/termination-log")
    play.apply(a_pod("once", once, restartPolicy="Never"))
    eventually("success", lambda: play.get("pod", "once")["status"]["phase"] == "Succeeded")
    ended = play.get("pod", "once")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["message"]) == ("Completed", "the last words")
    play.kubectl("delete", "pod", "crash", "killed", "once", "--timeout=60s")


def _restarted(play: Playground, name: str) -> Object | None:
    status: Object = play.get("pod", name)["status"]["containerStatuses"][0]
    return status if status["restartCount"] and "running" in status["state"] else None


def test_what_cannot_run_says_why(playground: Playground) -> None:
    play = playground
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    missing = {"name": "v", "hostPath": {"path": "/mnt/none", "type": "Directory"}}
    nowhere = {"nodeSelector": {"kubernetes.io/hostname": "node-9"}}
    secret = {"env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}
    play.apply(
        a_pod("image", an_app(image="evil:1")),
        a_pod("command", an_app(command=["sh", "-c", "true"])),
        a_pod("mount", an_app(**mount), volumes=[missing]),
        a_pod("nowhere", an_app(), **nowhere),
        a_pod("secret", {**an_app(), **secret}),
    )

    def waiting(pod: str) -> str:
        states = play.get("pod", pod)["status"].get("containerStatuses") or [{"state": {}}]
        return str(states[0]["state"].get("waiting", {}).get("reason", ""))

    def events(pod: str) -> str:
        items = play.get("events", f"--field-selector=involvedObject.name={pod}")["items"]
        return "\n".join(f"{e['reason']}: {e['message']}" for e in items)

    eventually("the image", lambda: waiting("image") in ("ErrImagePull", "ImagePullBackOff"))
    eventually("the command", lambda: "executable file not found" in events("command"))
    eventually("the mount", lambda: "FailedMount" in events("mount") and "is not a directory" in events("mount"))
    eventually("the scheduler", lambda: "0/3 nodes are available" in events("nowhere"))
    eventually("the secret", lambda: waiting("secret") == "CreateContainerConfigError")
    # What was missing may come.
    assert play.state is not None
    node = play.get("pod", "mount")["spec"]["nodeName"]
    (play.state / "nodes" / node / "rootfs/mnt/none").mkdir()
    play.kubectl("create", "secret", "generic", "s", "--from-literal=k=v")
    play.kubectl("wait", "pod/mount", "pod/secret", "--for=condition=Ready", "--timeout=60s")
    play.kubectl("delete", "pod", "--all", "--timeout=60s")


def test_a_disk_moves_with_its_pod_and_a_cordon_holds(playground: Playground) -> None:
    play = playground
    statefulset = a_set("mover", 1)
    play.apply(statefulset)
    eventually("it runs", lambda: play.get("sts", "mover")["status"].get("readyReplicas") == 1)
    before = play.get("pod", "mover-0")
    play.kubectl("cordon", before["spec"]["nodeName"])
    play.kubectl("delete", "pod", "mover-0", "--timeout=60s")
    eventually("it runs again", lambda: _is_new(play, "mover-0", before["metadata"]["uid"], "app:1"))
    after = play.get("pod", "mover-0")
    assert after["spec"]["nodeName"] != before["spec"]["nodeName"]
    assert "mover-0 2" in fetch(f"http://{after['status']['podIP']}:8080/"), "the disk came along"
    play.kubectl("uncordon", before["spec"]["nodeName"])
    play.kubectl("delete", "sts", "mover", "--timeout=60s")
    play.kubectl("delete", "pvc", "--all", "--timeout=60s")


def test_a_grace_period_ends_in_a_kill(playground: Playground) -> None:
    play = playground
    play.apply(a_pod("deaf", an_app("--deaf", "--child"), terminationGracePeriodSeconds=1))
    play.kubectl("wait", "pod/deaf", "--for=condition=Ready", "--timeout=60s")
    pid = play.pid_of("deaf")
    play.kubectl("delete", "pod", "deaf", "--timeout=60s")
    assert not _living(pid)


def _living(group: int) -> list[str]:
    """Processes of a group, but those that only wait to be reaped by whoever inherited them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state != "Z":
            found.append(name)
    return found


def test_a_deployment_rolls(playground: Playground) -> None:
    play = playground
    template = {"metadata": {"labels": {"app": "roll"}}, "spec": {"containers": [an_app(image="app:1")]}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "roll"}}, "template": template}
    play.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "roll"}, "spec": spec})
    play.kubectl("rollout", "status", "deploy/roll", "--timeout=60s")
    play.kubectl("set", "image", "deploy/roll", "app=app:2")
    play.kubectl("rollout", "status", "deploy/roll", "--timeout=60s")
    eventually("the old are gone", lambda: _images(play, "app=roll") == ["app:2", "app:2"])
    play.kubectl("delete", "deploy", "roll")
    eventually("all gone", lambda: not play.get("pods,rs", "-l", "app=roll")["items"])


def _images(play: Playground, selector: str) -> list[str]:
    return [pod["spec"]["containers"][0]["image"] for pod in play.get("pods", "-l", selector)["items"]]


def test_the_kubelet_is_started_again_and_its_pods_with_it(playground: Playground) -> None:
    play = playground
    play.apply(a_pod("survivor", an_app()))
    play.kubectl("wait", "pod/survivor", "--for=condition=Ready", "--timeout=60s")
    pid, ip = play.pid_of("survivor"), play.get("pod", "survivor")["status"]["podIP"]
    assert play.state is not None
    os.kill(int((play.state / "pids" / "kubelet").read_text()), signal.SIGKILL)
    eventually("its process died with it", lambda: not Path(f"/proc/{pid}").exists())
    status = eventually("it runs again", lambda: _restarted(play, "survivor"))
    assert status["restartCount"] == 1
    assert play.get("pod", "survivor")["status"]["podIP"] == ip
    assert "the kubelet ended (killed by SIGKILL); starting it again" in play.output.read_text()
    play.kubectl("delete", "pod", "survivor", "--timeout=60s")


def test_nothing_is_left_when_the_supervisor_is_killed(fresh: Playground) -> None:
    play = fresh
    play.apply(a_pod("p", an_app("--child")))
    play.kubectl("wait", "pod/p", "--for=condition=Ready", "--timeout=60s")
    assert len(play.marked()) >= 5, "API server, controllers, kubelet, the pod and its child"
    address, state = play.get("pod", "p")["status"]["podIP"], play.state
    assert state is not None
    memory = (state / "nodes/node-1/rootfs/mnt/pmem0").resolve()
    assert memory.is_dir()
    play.process.kill()
    play.process.wait()
    eventually("no process is left", lambda: not marked(play.marker))
    with pytest.raises(urllib.error.URLError):
        fetch(f"http://{address}:8080/")
    eventually("no file is left", lambda: not state.exists() and not memory.exists())


def test_a_pod_with_everything(playground: Playground) -> None:
    """Init container, sidecar, configuration by environment and files, shared volume, exec probe, hooks."""
    play = playground
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"WORD": "plain"}}
    shared, files = {"name": "shared", "mountPath": "/shared"}, {"name": "files", "mountPath": "/files"}
    first = {"name": "first", "image": "app", "args": ["--file=/shared/starts", "--exit=0"], "volumeMounts": [shared]}
    side = {**an_app("--file=/shared/side"), "name": "side", "restartPolicy": "Always", "volumeMounts": [shared]}
    side["args"] = ["--listen=127.0.0.1:0", "--file=/shared/side"]
    del side["readinessProbe"], side["ports"]
    main = an_app(
        "--file=/shared/starts",
        envFrom=[{"configMapRef": {"name": "conf"}}],
        volumeMounts=[shared, files],
        lifecycle={"preStop": {"exec": {"command": ["app", "--file=/disk/stopped", "--exit=0"]}}},
        livenessProbe={"exec": {"command": ["app", "--exit=0"]}, "periodSeconds": 5, "timeoutSeconds": 30},
        startupProbe={"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 10},
    )
    main["volumeMounts"].append({"name": "disk", "mountPath": "/disk"})
    volumes = [
        {"name": "shared", "emptyDir": {"medium": "Memory"}},
        {"name": "files", "configMap": {"name": "conf"}},
        {"name": "disk", "hostPath": {"path": "/var/disk", "type": "DirectoryOrCreate"}},
    ]
    pod = a_pod("all", main, initContainers=[first, side], volumes=volumes, nodeName="node-3")
    play.apply(config, pod)
    play.kubectl("wait", "pod/all", "--for=condition=Ready", "--timeout=60s")
    status = play.get("pod", "all")["status"]
    assert [s["state"].keys() for s in status["initContainerStatuses"]] == [{"terminated"}, {"running"}]
    assert fetch(f"http://{status['podIP']}:8080/") == "all 2\n", "the init container started first, in the same volume"
    environment = Path(f"/proc/{play.pid_of('all')}/environ").read_bytes().split(b"\0")
    assert b"WORD=plain" in environment
    assert play.kubectl("logs", "all", "-c", "first").splitlines()[0] == "started 1"
    assert play.state is not None
    stopped = play.state / "nodes/node-3/rootfs/var/disk/stopped"
    assert not stopped.exists()
    play.kubectl("delete", "pod", "all", "--timeout=60s")
    assert stopped.read_text() == "1", "the hook ran before the end"
    play.kubectl("delete", "configmap", "conf")


def test_a_failing_liveness_probe_restarts(playground: Playground) -> None:
    play = playground
    probe = {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    probe["timeoutSeconds"] = 10
    play.apply(a_pod("alive", an_app(livenessProbe=probe, startupProbe={**probe, "failureThreshold": 60})))
    play.kubectl("wait", "pod/alive", "--for=condition=Ready", "--timeout=60s")
    fetch(f"http://{play.get('pod', 'alive')['status']['podIP']}:8080/ready/0")
    status = eventually("a restart", lambda: _restarted(play, "alive"))
    assert status["lastState"]["terminated"]["exitCode"] == 0, "it was asked, and ended by itself"
    play.kubectl("delete", "pod", "alive", "--timeout=60s")


def test_the_kubelet_knows_best_whether_a_pod_is_ready(playground: Playground) -> None:
    play = playground
    play.apply(a_pod("steady", an_app()))
    play.kubectl("wait", "pod/steady", "--for=condition=Ready", "--timeout=60s")
    patch = '{"status":{"conditions":[{"type":"Ready","status":"False"}]}}'
    play.kubectl("patch", "pod", "steady", "--subresource=status", "--type=strategic", "-p", patch)
    play.kubectl("wait", "pod/steady", "--for=condition=Ready", "--timeout=60s")
    play.kubectl("delete", "pod", "steady", "--timeout=60s")


def test_owners_and_dependents(playground: Playground) -> None:
    """Background, foreground and orphan deletion."""
    play = playground

    def config(name: str, *owners: Object, **more: Any) -> Object:
        references = [owner_reference(owner, controller=False) for owner in owners]
        metadata = {"name": name, "ownerReferences": references, **more}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}

    def names() -> set[str]:
        return {c["metadata"]["name"] for c in play.get("configmaps")["items"]} - {"kube-root-ca.crt"}

    play.apply(config("a"), config("b"))
    a, b = play.get("cm", "a"), play.get("cm", "b")
    play.apply(
        config("of-a", a), config("of-both", a, b), config("stray", {**a, "metadata": {"name": "a", "uid": "x"}})
    )
    eventually("an owner that never was", lambda: "stray" not in names())
    play.kubectl("delete", "cm", "a")
    eventually("only what has no owner left goes", lambda: names() == {"b", "of-both"})
    eventually(
        "the lost owner is forgotten", lambda: len(play.get("cm", "of-both")["metadata"]["ownerReferences"]) == 1
    )

    play.kubectl("delete", "cm", "b", "--cascade=orphan")
    eventually("b went alone", lambda: names() == {"of-both"})
    assert not play.get("cm", "of-both")["metadata"].get("ownerReferences")

    play.apply(config("top"))
    play.apply(config("below", play.get("cm", "top"), finalizers=["example.com/hold"]))
    play.kubectl("delete", "cm", "top", "--cascade=foreground", "--wait=false")
    eventually("the dependent is going", lambda: play.get("cm", "below")["metadata"].get("deletionTimestamp"))
    assert "top" in names(), "it waits for what blocks it"
    play.kubectl("patch", "cm", "below", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    eventually("then both go", lambda: names() == {"of-both"})
    play.kubectl("delete", "cm", "of-both")
