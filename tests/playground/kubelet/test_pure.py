"""The kubelet's pure parts: images, rewriting, plans, status, names, probes' thresholds."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from raftkv_playground.kubelet.container import Settings, backoff_seconds
from raftkv_playground.kubelet.images import Image, image_map, repository_name
from raftkv_playground.kubelet.logs import LogFile
from raftkv_playground.kubelet.plan import ConfigError, PodContext, Sources, expand, plan_container
from raftkv_playground.kubelet.probes import Threshold
from raftkv_playground.kubelet.process import Exit
from raftkv_playground.kubelet.proxy import Frontend, backends, frontends
from raftkv_playground.kubelet.resolve import addresses_of, build_hosts
from raftkv_playground.kubelet.rewrite import Rewriter
from raftkv_playground.kubelet.status import ContainerState, PodState, build_status, running, terminated
from raftkv_playground.objects import Object, condition

TOOL = Image(("/opt/tool",), {"tool": ("/opt/tool",)}, {"FROM_IMAGE": "1"})


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("raftkv", "raftkv"),
        ("raftkv:1", "raftkv"),
        ("ghcr.io/x/raftkv:1.2", "raftkv"),
        ("host:5000/raftkv", "raftkv"),
        ("host:5000/x/raftkv:1@sha256:abc", "raftkv"),
    ],
)
def test_repository_names(reference: str, name: str) -> None:
    assert repository_name(reference) == name


def test_only_listed_programs_run() -> None:
    assert TOOL.command_line([], ["a"]) == ["/opt/tool", "a"]
    assert TOOL.command_line(["/usr/bin/tool", "b"], ["a"]) == ["/opt/tool", "b", "a"]
    with pytest.raises(LookupError):
        TOOL.command_line(["sh", "-c", "true"], [])
    assert image_map(["x=/bin/x 'a b'"])["x"].entrypoint == ("/bin/x", "a b")
    with pytest.raises(ValueError):
        image_map(["no-command"])


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("/data", "/H/d"),
        ("/data/x", "/H/d/x"),
        ("--dir=/data/x", "--dir=/H/d/x"),
        ("--dirs=/data,/data/log/y", "--dirs=/H/d,/H/l/y"),
        ("hosts-file:/data/h", "hosts-file:/H/d/h"),
        ("cat '/data/x' /data", "cat '/H/d/x' /H/d"),
        ("/database", "/database"),
        ("http://host/data", "http://host/data"),
        ("/other/data", "/other/data"),
        ("--listen=0.0.0.0:80", "--listen=127.7.7.7:80"),
        ("https://0.0.0.0:2379,https://[::]:2380", "https://127.7.7.7:2379,https://127.7.7.7:2380"),
        ("10.0.0.0", "10.0.0.0"),
        ("10.0.0.0.0", "10.0.0.0.0"),
        ("0.0.0.0/0", "127.7.7.7/0"),
    ],
)
def test_rewriting(value: str, result: str) -> None:
    assert Rewriter({"/data": "/H/d", "/data/log/": "/H/l"}, "127.7.7.7")(value) == result


def test_expansion() -> None:
    env = {"A": "1", "B_C": "2"}
    assert expand("$(A)-$(B_C)-$(MISSING)-$$(A)-$$$$", env) == "1-2-$(MISSING)-$(A)-$$"


def a_pod(**container: Any) -> Object:
    return {
        "metadata": {"name": "p-0", "namespace": "ns", "uid": "u", "labels": {"app": "x"}, "annotations": {"n/m": "v"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "tool", **container}]},
    }


def plan_of(pod: Object, sources: Sources | None = None, volumes: dict[str, str] | None = None) -> Any:
    context = PodContext(pod, "127.77.0.9", "127.77.0.1", {"cpu": "4", "memory": "8Gi"})
    return plan_container(
        context,
        pod["spec"]["containers"][0],
        TOOL,
        sources or Sources(),
        volumes or {},
        base_env={"HOME": "/work"},
        extra_mounts={"/dev/termination-log": "/H/t"},
        cwd="/work",
    )


def field(path: str) -> Object:
    return {"name": "V", "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p-0"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u"),
        ("metadata.labels['app']", "x"),
        ("metadata.annotations['n/m']", "v"),
        ("spec.nodeName", "n1"),
        ("status.podIP", "127.77.0.9"),
        ("status.hostIP", "127.77.0.1"),
    ],
)
def test_downward_fields(path: str, value: str) -> None:
    assert plan_of(a_pod(env=[field(path)])).env["V"] == value


def test_environment_order_and_arguments() -> None:
    pod = a_pod(
        args=["--name=$(POD)", "--data=/data", "$(LATER)"],
        env=[
            {"name": "POD", "value": "x"},
            {"name": "TWO", "value": "$(POD)$(LATER)"},
            {"name": "LATER", "value": "l"},
        ],
        envFrom=[{"prefix": "P_", "configMapRef": {"name": "cm"}}],
        volumeMounts=[{"name": "d", "mountPath": "/data", "subPath": "s"}],
        workingDir="/data/w",
    )
    result = plan_of(pod, Sources({("ConfigMap", "cm"): {"K": b"/data/k"}}), {"d": "/H/d"})
    assert result.argv == ["/opt/tool", "--name=x", "--data=/H/d/s", "l"]
    assert result.env == {
        "FROM_IMAGE": "1", "HOME": "/work", "P_K": "/H/d/s/k", "POD": "x", "TWO": "x$(LATER)", "LATER": "l",
    }  # fmt: skip
    assert result.cwd == "/H/d/s/w"


def test_resource_fields() -> None:
    reference = {"resource": "limits.memory", "divisor": "1Mi"}
    pod = a_pod(env=[{"name": "V", "valueFrom": {"resourceFieldRef": reference}}])
    assert plan_of(pod).env["V"] == "8192", "without a limit: the node's"
    pod["spec"]["containers"][0]["resources"] = {"limits": {"memory": "64Mi"}}
    assert plan_of(pod).env["V"] == "64"
    pod["spec"]["containers"][0]["env"][0]["valueFrom"]["resourceFieldRef"] = {"resource": "limits.cpu"}
    pod["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1500m"}}
    assert plan_of(pod).env["V"] == "2", "rounded up"


def test_missing_references_say_what_is_missing() -> None:
    key = {"name": "s", "key": "k"}
    pod = a_pod(env=[{"name": "V", "valueFrom": {"secretKeyRef": key}}])
    with pytest.raises(ConfigError, match='secret "s" not found'):
        plan_of(pod)
    with pytest.raises(ConfigError, match="couldn't find key k in Secret ns/s"):
        plan_of(pod, Sources({("Secret", "s"): {}}))
    pod["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["optional"] = True
    assert "V" not in plan_of(pod).env
    with pytest.raises(ConfigError, match="leaves its volume"):
        plan_of(a_pod(volumeMounts=[{"name": "d", "mountPath": "/d", "subPath": "../x"}]), volumes={"d": "/H"})


MOMENT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def ended(code: int) -> Object:
    return terminated(Exit(code, None, MOMENT, MOMENT), "", "process://1")


@pytest.mark.parametrize(
    ("policy", "states", "phase"),
    [
        ("Always", [{"waiting": {}}], "Pending"),
        ("Always", [running("t")], "Running"),
        ("Always", [ended(1)], "Running"),
        ("OnFailure", [ended(0)], "Succeeded"),
        ("OnFailure", [ended(1)], "Running"),
        ("Never", [ended(0), ended(1)], "Failed"),
        ("Never", [ended(0), running("t")], "Running"),
    ],
)
def test_phases(policy: str, states: list[Object], phase: str) -> None:
    pod = a_pod()
    pod["spec"]["restartPolicy"] = policy
    containers = [ContainerState(f"c{i}", "i", state=state) for i, state in enumerate(states)]
    status = build_status(pod, PodState([], containers, "1.1.1.1", initialized=True), "h")
    assert status["phase"] == phase


def test_conditions_and_the_transition_time() -> None:
    pod = a_pod()
    state = PodState([], [ContainerState("c", "i", state=running("t"))], "1.1.1.1", initialized=True)
    status = build_status(pod, state, "h")
    assert [c["status"] for c in status["conditions"]] == ["True", "True", "False", "False", "True"]
    for entry in status["conditions"]:
        entry["lastTransitionTime"] = "2020-01-01T00:00:00Z"
    mine = {"type": "example.com/gate", "status": "True"}
    pod["status"] = {**status, "conditions": [*status["conditions"], mine]}
    state.containers[0].ready = True
    later = {"status": build_status(pod, state, "h")}
    ready, scheduled = condition(later, "Ready"), condition(later, "PodScheduled")
    assert ready is not None and ready["status"] == "True" and not ready["lastTransitionTime"].startswith("2020")
    assert scheduled is not None and scheduled["lastTransitionTime"].startswith("2020")
    assert condition(later, "example.com/gate") == mine


def test_restart_delays() -> None:
    settings = Settings(backoff_first_seconds=1, backoff_limit_seconds=30)
    assert [backoff_seconds(n, settings) for n in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]


def test_thresholds_count_in_a_row() -> None:
    threshold = Threshold(success=2, failure=3)
    results = [threshold.add(passed) for passed in (True, False, True, True, False, False, True, False, False, False)]
    assert results == [None, None, None, True, None, None, None, None, None, False]


def a_service(name: str, address: str) -> Object:
    ports = [{"name": "client", "port": 2379}, {"port": 53, "protocol": "UDP"}]
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"clusterIP": address, "ports": ports}}


def a_slice(service: str, *endpoints: tuple[str, str, bool]) -> Object:
    return {
        "metadata": {"name": f"{service}-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "client", "port": 1}],
        "endpoints": [{"addresses": [ip], "hostname": host, "conditions": {"ready": r}} for ip, host, r in endpoints],
    }


def test_names() -> None:
    services = [a_service("peers", "None"), a_service("client", "127.78.0.9")]
    slices = [a_slice("peers", ("127.77.0.1", "p-0", True), ("127.77.0.2", "p-1", False))]
    own = addresses_of(build_hosts("ns", services, slices))
    assert own["p-0.peers.ns.svc.cluster.local"] == own["p-0.peers.ns.svc"] == own["p-0.peers"] == ["127.77.0.1"]
    assert own["peers.ns.svc"] == ["127.77.0.1"] and "p-1.peers.ns.svc" not in own
    assert own["client.ns.svc"] == own["client"] == ["127.78.0.9"]
    other = addresses_of(build_hosts("other", services, slices))
    assert other["client.ns.svc"] == ["127.78.0.9"] and "client" not in other


def test_proxy_frontends_and_backends() -> None:
    services = [a_service("peers", "None"), a_service("client", "127.78.0.9"), a_service("real", "10.96.0.1")]
    (frontend,) = frontends(services)
    assert frontend == Frontend("127.78.0.9", 2379, "ns", "client", "client")
    slices = [a_slice("client", ("127.77.0.2", "", True), ("127.77.0.3", "", False)), a_slice("peers", ("x", "", True))]
    assert backends(frontend, slices) == [("127.77.0.2", 1)]


def test_log_tail_and_times(tmp_path: Any) -> None:
    log = LogFile(tmp_path / "0.log")
    log.path.write_bytes(b"one\n")
    log.note(100.0)
    log.path.write_bytes(b"one\ntwo\n")
    log.note(200.0)
    log.path.write_bytes(b"one\ntwo\nthree")
    assert [log.tail_offset(n) for n in (0, 1, 2, 3, 9)] == [13, 8, 4, 0, 0]
    assert log.offset_since(150.0) == 4 and log.offset_since(50.0) == 0 and log.offset_since(250.0) == 8
    assert log.time_at(0) == 100.0 and log.time_at(4) == 200.0
