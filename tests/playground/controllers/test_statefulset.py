"""The StatefulSet controller's decisions, as stories of objects in and actions out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raftkv_playground import client as api
from raftkv_playground.controllers import statefulset as sts
from raftkv_playground.controllers.actions import Create, Delete, Patch, Replace
from raftkv_playground.objects import Object


def a_set(replicas: int = 3, **spec: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "web", "namespace": "ns", "uid": "set-uid", "generation": 1, "resourceVersion": "1"},
        "spec": {
            "replicas": replicas,
            "serviceName": "peers",
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}]},
            },
            **spec,
        },
    }


class World:
    """Applies what a plan asks for, and lets pods become ready: a cluster in a dictionary."""

    def __init__(self, statefulset: Object) -> None:
        self.set = statefulset
        self.pods: dict[str, Object] = {}
        self.claims: dict[str, Object] = {}
        self.revisions: dict[str, Object] = {}
        self.uids = 0
        self.log: list[str] = []

    def plan(self) -> sts.Plan:
        return sts.plan(
            sts.Observed(self.set, list(self.pods.values()), list(self.revisions.values()), dict(self.claims))
        )

    def step(self) -> list[str]:
        """One sync; returns what happened to pods and claims."""
        result = self.plan()
        done = []
        for action in result.actions:
            match action:
                case Create(resource, body):
                    self.uids += 1
                    body = {**body, "metadata": {**body["metadata"], "uid": f"u{self.uids}"}}
                    self._table(resource)[body["metadata"]["name"]] = body
                    if resource is not api.CONTROLLER_REVISIONS:
                        done.append(f"+{body['metadata']['name']}")
                case Delete(resource, _, name, uid):
                    assert self._table(resource)[name]["metadata"]["uid"] == uid
                    del self._table(resource)[name]
                    if resource is not api.CONTROLLER_REVISIONS:
                        done.append(f"-{name}")
                case Replace(resource, body):
                    self._table(resource)[body["metadata"]["name"]] = body
                case Patch():
                    pytest.fail("nothing to adopt here")
        self.set = {**self.set, "status": result.status}
        self.log += done
        return done

    def _table(self, resource: api.Resource) -> dict[str, Object]:
        return {
            api.PODS: self.pods,
            api.PERSISTENT_VOLUME_CLAIMS: self.claims,
            api.CONTROLLER_REVISIONS: self.revisions,
        }[resource]

    def ready(self, *names: str, value: bool = True) -> None:
        for name in names or list(self.pods):
            condition = {"type": "Ready", "status": "True" if value else "False"}
            self.pods[name] = {**self.pods[name], "status": {"phase": "Running", "conditions": [condition]}}

    def settle(self) -> list[str]:
        """Sync and let everything become ready until nothing happens any more."""
        before = len(self.log)
        for _ in range(50):
            self.step()
            self.ready()
            if not self.plan().actions and self.plan().status == self.set.get("status"):
                return self.log[before:]
        pytest.fail("it does not settle")

    def change(self, image: str) -> None:
        template = {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        }
        metadata = {**self.set["metadata"], "generation": self.set["metadata"]["generation"] + 1}
        self.set = {**self.set, "metadata": metadata, "spec": {**self.set["spec"], "template": template}}

    def scale(self, replicas: int) -> None:
        self.set = {**self.set, "spec": {**self.set["spec"], "replicas": replicas}}

    def revision(self, pod: str) -> str:
        return str(self.pods[pod]["metadata"]["labels"]["controller-revision-hash"])


def test_ordered_creation_waits_for_each_pod() -> None:
    world = World(a_set())
    assert world.step() == ["+web-0"]
    assert world.step() == []
    world.pods["web-0"]["status"] = {"phase": "Running"}
    assert world.step() == [], "running is not ready"
    world.ready()
    assert world.step() == ["+web-1"]
    world.ready()
    assert world.step() == ["+web-2"]


def test_parallel_creation_does_not_wait() -> None:
    world = World(a_set(podManagementPolicy="Parallel"))
    assert world.step() == ["+web-0", "+web-1", "+web-2"]


def test_identity_of_a_pod() -> None:
    world = World(a_set(1, ordinals={"start": 5}))
    world.step()
    pod = world.pods["web-5"]
    labels = pod["metadata"]["labels"]
    assert labels["statefulset.kubernetes.io/pod-name"] == "web-5"
    assert labels["apps.kubernetes.io/pod-index"] == "5"
    assert labels["controller-revision-hash"] in world.revisions
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("web-5", "peers")
    owner = pod["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["controller"]) == ("set-uid", True)


def test_claims_come_before_their_pod_and_stay() -> None:
    template = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
    world = World(a_set(2, volumeClaimTemplates=[template]))
    assert world.settle() == ["+data-web-0", "+web-0", "+data-web-1", "+web-1"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-1"}} in world.pods["web-1"]["spec"][
        "volumes"
    ]
    world.scale(0)
    assert world.settle() == ["-web-1", "-web-0"]
    assert set(world.claims) == {"data-web-0", "data-web-1"}
    world.scale(1)
    assert world.settle() == ["+web-0"]


def test_scaling_in_takes_the_highest_first_and_one_at_a_time() -> None:
    world = World(a_set(4))
    world.settle()
    world.scale(1)
    assert world.step() == ["-web-3"]
    assert world.step() == ["-web-2"]
    assert world.step() == ["-web-1"]
    assert world.step() == []


def test_a_terminating_pod_holds_up_the_ordered_ones() -> None:
    world = World(a_set(3))
    world.settle()
    world.scale(1)
    world.pods["web-2"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert world.step() == []


def test_rolling_update_goes_down_and_waits() -> None:
    world = World(a_set(3))
    world.settle()
    old = world.revision("web-0")
    world.change("i:2")
    assert world.step() == ["-web-2"]
    assert world.step() == ["+web-2"]
    assert world.step() == [], "the new pod is not ready"
    world.ready("web-2")
    assert world.step() == ["-web-1"]
    status = world.set["status"]
    assert status["currentRevision"] == old != status["updateRevision"]
    world.settle()
    assert {world.revision(name) for name in world.pods} == {status["updateRevision"]}
    assert world.set["status"]["currentRevision"] == status["updateRevision"]


def test_partition_protects_the_lower_pods() -> None:
    world = World(a_set(3, updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}))
    world.settle()
    old = world.revision("web-0")
    world.change("i:2")
    assert world.settle() == ["-web-2", "+web-2"]
    del world.pods["web-0"]
    assert world.settle() == ["+web-0"]
    assert world.revision("web-0") == old, "below the partition a pod comes back as it was"


def test_on_delete_leaves_pods_alone_and_gives_new_ones_the_new_template() -> None:
    world = World(a_set(2, updateStrategy={"type": "OnDelete"}))
    world.settle()
    old = world.revision("web-0")
    world.change("i:2")
    assert world.settle() == []
    assert world.set["status"].get("updatedReplicas", 0) == 0
    del world.pods["web-1"]
    assert world.settle() == ["+web-1"]
    assert world.revision("web-1") != old
    assert world.set["status"]["updatedReplicas"] == 1
    assert world.set["status"]["currentRevision"] == old, "as Kubernetes: only a rolling update moves it"


def test_returning_to_an_old_template_reuses_its_revision() -> None:
    world = World(a_set(1))
    world.settle()
    first = world.revision("web-0")
    world.change("i:2")
    world.settle()
    world.change("i:1")
    world.settle()
    assert world.revision("web-0") == first
    assert len(world.revisions) == 2
    assert max(world.revisions.values(), key=lambda item: item["revision"])["metadata"]["name"] == first


def test_old_revisions_are_forgotten_beyond_the_limit() -> None:
    world = World(a_set(1, revisionHistoryLimit=2))
    for number in range(6):
        world.change(f"i:{number}")
        world.settle()
    assert len(world.revisions) == 3, "the used one and two more"


def test_a_failed_pod_is_made_anew() -> None:
    world = World(a_set(1))
    world.settle()
    world.pods["web-0"]["status"] = {"phase": "Failed"}
    assert world.step() == ["-web-0"]
    assert world.step() == ["+web-0"]


def test_a_set_that_is_going_does_nothing() -> None:
    world = World(a_set(2))
    world.step()
    world.set["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.pods.clear()
    assert world.step() == []


def test_status_counts() -> None:
    world = World(a_set(3, podManagementPolicy="Parallel"))
    world.step()
    assert world.plan().status["replicas"] == 0, "a pod counts once it has a phase"
    world.ready()
    world.ready("web-1", value=False)
    status = world.plan().status
    assert (status["replicas"], status["readyReplicas"], status["availableReplicas"]) == (3, 2, 2)
    assert (status["currentReplicas"], status["updatedReplicas"], status["observedGeneration"]) == (3, 3, 1)


def test_minimum_ready_seconds_delay_the_next() -> None:
    world = World(a_set(2, minReadySeconds=3600))
    world.step()
    condition = {"type": "Ready", "status": "True", "lastTransitionTime": sts.status_of({}) or None}
    from raftkv_playground.objects import now

    condition["lastTransitionTime"] = now()
    world.pods["web-0"]["status"] = {"phase": "Running", "conditions": [condition]}
    assert world.step() == []
    result = world.plan()
    assert result.again_seconds is not None and 3000 < result.again_seconds <= 3600
    assert result.status["availableReplicas"] == 0


@pytest.mark.parametrize("policy", [{"whenDeleted": "Delete", "whenScaled": "Retain"}])
def test_when_deleted_the_claims_belong_to_the_set(policy: Object) -> None:
    template = {"metadata": {"name": "data"}, "spec": {}}
    world = World(a_set(1, volumeClaimTemplates=[template], persistentVolumeClaimRetentionPolicy=policy))
    world.settle()
    assert [r["uid"] for r in world.claims["data-web-0"]["metadata"]["ownerReferences"]] == ["set-uid"]
    world.set["spec"]["persistentVolumeClaimRetentionPolicy"] = {"whenDeleted": "Retain"}
    world.settle()
    assert world.claims["data-web-0"]["metadata"]["ownerReferences"] == []


def test_when_scaled_the_claim_belongs_to_the_pod_that_goes() -> None:
    template = {"metadata": {"name": "data"}, "spec": {}}
    world = World(
        a_set(2, volumeClaimTemplates=[template], persistentVolumeClaimRetentionPolicy={"whenScaled": "Delete"})
    )
    world.settle()
    uid = world.pods["web-1"]["metadata"]["uid"]
    world.scale(1)
    world.step()
    owners = world.claims["data-web-1"]["metadata"]["ownerReferences"]
    assert [(r["kind"], r["uid"]) for r in owners] == [("Pod", uid)]
    assert not world.claims["data-web-0"]["metadata"].get("ownerReferences")


def test_a_failed_pod_of_an_old_template_is_deleted_once() -> None:
    """Once for having failed; it used to be deleted for being old as well, in the same sync."""
    world = World(a_set(2, podManagementPolicy="Parallel"))
    world.settle()
    world.change("i:2")
    world.pods["web-1"]["status"] = {"phase": "Failed"}
    assert world.step() == ["-web-1"]
    world.settle()
    assert {world.revision(name) for name in world.pods} == {world.set["status"]["updateRevision"]}


def test_orphans_with_a_fitting_name_are_adopted() -> None:
    statefulset = a_set(1)
    orphan = {"metadata": {"name": "web-0", "namespace": "ns", "uid": "o", "labels": {"app": "web"}}, "spec": {}}
    other = {"metadata": {"name": "stray", "namespace": "ns", "uid": "s", "labels": {"app": "web"}}, "spec": {}}
    actions = sts.plan(sts.Observed(statefulset, [], [], {}, [orphan, other])).actions
    patches = [action for action in actions if isinstance(action, Patch)]
    assert [patch.name for patch in patches] == ["web-0"]


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(["OrderedReady", "Parallel"]),
    changes=st.lists(
        st.one_of(
            st.tuples(st.just("scale"), st.integers(0, 4)),
            st.tuples(st.just("image"), st.integers(0, 3)),
            st.tuples(st.just("lose"), st.integers(0, 4)),
            st.tuples(st.just("fail"), st.integers(0, 4)),
            st.tuples(st.just("unready"), st.integers(0, 4)),
            st.tuples(st.just("step"), st.integers(0, 3)),
        ),
        max_size=12,
    ),
)
def test_whatever_happens_it_ends_as_wished(policy: str, changes: list[tuple[str, int]]) -> None:
    """Scaling, new templates and lost pods in any order: every pod of the range, of the newest template, and no other;
    and an ordered set never touches more than one pod at a time."""
    world = World(a_set(2, podManagementPolicy=policy))
    for change, number in changes:
        pod = f"web-{number}"
        match change:
            case "scale":
                world.scale(number)
            case "image":
                world.change(f"i:{number}")
            case "lose":
                world.pods.pop(pod, None)
            case "fail" if pod in world.pods:
                world.pods[pod]["status"] = {"phase": "Failed"}
            case "unready" if pod in world.pods:
                world.ready(pod, value=False)
            case "step":
                done = world.step()
                assert policy == "Parallel" or len(done) <= 1
    world.settle()
    assert sorted(world.pods) == [f"web-{n}" for n in range(world.set["spec"]["replicas"])]
    status = world.set["status"]
    assert {world.revision(name) for name in world.pods} <= {status["updateRevision"]}
    assert status["currentRevision"] == status["updateRevision"]
    assert status["replicas"] == status.get("readyReplicas", 0) == len(world.pods)
