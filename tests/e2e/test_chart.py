"""The chart, installed on a playground without an operator of its own, used, upgraded once, and uninstalled."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import yaml
from kube import NAME, ROOT, SAMPLE, START_SECONDS, Kubectl, playground, settled, wait_until

sys.path.insert(0, str(ROOT / "tests" / "chart"))

from helm import Release, RenderError, render, why_not

_CHART = ROOT / "charts" / "raftkv-operator"
_SPACE = "raftkv-system"
_RELEASE = "raftkv"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]


def _release(revision: int, **values: Any) -> Release:
    return render(_CHART, _RELEASE, _SPACE, revision, values)


def _kept(item: dict[str, Any]) -> bool:
    annotations = item["metadata"].get("annotations") or {}
    return bool(annotations.get("helm.sh/resource-policy") == "keep")


def test_the_chart_renders_what_the_plain_manifests_hold() -> None:
    release = _release(1)
    crds = [o for o in [*release.crds, *release.objects] if o["kind"] == "CustomResourceDefinition"]
    plain = yaml.safe_load((ROOT / "deploy" / "crd.yaml").read_text())
    assert [crd["spec"] for crd in crds] == [plain["spec"]]
    assert all(_kept(crd) for crd in crds), "deleting the chart must never delete every cluster"
    rules = [o["rules"] for o in release.objects if o["kind"] == "ClusterRole"]
    roles = [o for o in yaml.safe_load_all((ROOT / "deploy" / "rbac.yaml").read_text()) if o["kind"] == "ClusterRole"]
    assert rules == [role["rules"] for role in roles]


def test_namespaces_narrow_the_rights() -> None:
    release = _release(1, namespaces=["shop", "bank"])
    own = [o["metadata"]["namespace"] for o in release.objects if o["kind"] == "Role"]
    assert sorted(own) == ["bank", "shop"]
    for role in (o for o in release.objects if o["kind"] == "ClusterRole"):
        assert not any("statefulsets" in rule.get("resources", []) for rule in role["rules"])


@pytest.mark.parametrize("values", [{"port": "many"}, {"logLevel": "chatty"}, {"replicaz": 2}], ids=str)
def test_bad_values_are_refused_by_the_schema(values: dict[str, Any]) -> None:
    schema = json.loads((_CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((_CHART / "values.yaml").read_text())
    assert jsonschema_rs.is_valid(schema, defaults)
    assert not jsonschema_rs.is_valid(schema, {**defaults, **values})


def test_a_template_error_is_said() -> None:
    with pytest.raises(RenderError):
        render(ROOT / "charts" / "no-such-chart", _RELEASE, _SPACE)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """A playground with the chart's namespace and nothing else of RaftKV."""
    folder = tmp_path_factory.mktemp("chart")
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _SPACE}}
    (folder / "namespace.yaml").write_text(yaml.safe_dump(space))
    options = ("--no-operator", "--apply", str(folder / "namespace.yaml"))
    with playground(folder, *options, ready=("get", "namespace", _SPACE)) as kubectl:
        yield kubectl


def test_install_use_upgrade_uninstall(bare: Kubectl) -> None:
    system = Kubectl(bare.kubeconfig, _SPACE)

    def pods() -> set[str]:
        found = system.pods(f"app.kubernetes.io/instance={_RELEASE}")
        return {pod["metadata"]["uid"] for pod in found if not pod["metadata"].get("deletionTimestamp")}

    first = _release(1)
    assert "kubectl" in first.notes
    system.apply(*first.objects)
    bare.run("wait", "--for=condition=Established", "crd/raftkvclusters.raftkv.dev", "--timeout=30s")
    system.run("rollout", "status", f"deployment/{_RELEASE}", "--timeout=120s")
    resource = yaml.safe_load(SAMPLE.read_text())
    resource["spec"]["replicas"] = 1
    bare.apply(resource)
    wait_until("one ready member", lambda: settled(bare, 1), START_SECONDS)
    before = pods()

    system.apply(*_release(2, logLevel="debug", podAnnotations={"upgraded": "yes"}).objects)
    system.run("rollout", "status", f"deployment/{_RELEASE}", "--timeout=120s")
    wait_until("another operator pod", lambda: len(pods()) == 1 and not pods() & before, 60)
    assert settled(bare, 1), "an upgrade of the operator touches no cluster"
    bare.run("scale", f"rkv/{NAME}", "--replicas=3")
    wait_until("three ready members, by the new operator", lambda: settled(bare, 3), START_SECONDS)

    bare.run("delete", "rkv", NAME, "--timeout=180s")
    for item in reversed([o for o in first.objects if not _kept(o)]):
        scope = Kubectl(bare.kubeconfig, item["metadata"].get("namespace", "default"))
        scope.run("delete", item["kind"], item["metadata"]["name"], "--wait=false")
    wait_until("the operator to be gone", lambda: not pods(), 60)
    assert bare.run("get", "crd", "raftkvclusters.raftkv.dev", "-o", "name"), "the CRD is kept"
