"""CRD, RBAC, samples and builders: what a real API server would refuse must fail here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import cel
import jsonschema_rs
import pytest
import yaml
from raftkv_node import adr
from raftkv_operator.act import executor, kube
from raftkv_operator.api import constants
from raftkv_operator.api.types import ClusterSpec, Latch, LatchedMember, Names, milliseconds
from raftkv_operator.observe.views import PodView, StatefulSetView
from raftkv_operator.resources import member as member_objects
from raftkv_operator.resources.common import Owner, covers
from raftkv_operator.resources.shared import in_place, read_token, shared_objects

ROOT = Path(__file__).parents[2]
CRD: dict[str, Any] = yaml.safe_load((ROOT / "deploy/crd.yaml").read_text())
SCHEMA: dict[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
OWNER = Owner(Names("default", "demo"), "uid-1", 0xABCDEF)


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield from _nodes(schema[keyword], f"{path}[]")


def _rules() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    return [(p, s, r) for p, s in _nodes(SCHEMA) for r in s.get("x-kubernetes-validations", ())]


# --- structure ---


def test_the_schema_is_structural() -> None:
    for path, schema in _nodes(SCHEMA):
        typed = "type" in schema or schema.get("x-kubernetes-int-or-string")
        assert typed, f"{path} has no type"
        assert not (schema.get("type") == "array" and "items" not in schema), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        assert "$ref" not in schema, path


def test_every_list_of_objects_in_the_status_is_a_map() -> None:
    for path, schema in _nodes(SCHEMA["properties"]["status"]):
        if schema.get("type") == "array" and schema["items"]["type"] == "object":
            assert schema["x-kubernetes-list-type"] == "map", path
            (key,) = schema["x-kubernetes-list-map-keys"]
            assert key in schema["items"]["required"], path


def test_every_string_of_the_spec_is_bounded() -> None:
    for path, schema in _nodes(SCHEMA["properties"]["spec"]):
        if schema.get("type") == "string":
            assert "enum" in schema or schema.get("maxLength", 1 << 30) <= 317, path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if schema.get("type") == "object" and "properties" not in schema:
            assert "maxProperties" in schema, path


def test_rules_compile_and_use_only_what_every_server_has() -> None:
    for path, _, rule in _rules():
        cel.compile(rule["rule"])
        for absent in ("quantity(", "isQuantity(", "orValue", ".?", "optional", "url(", "ip("):
            assert absent not in rule["rule"], path


def test_messages_are_the_published_ones() -> None:
    published = {value for name, value in vars(constants).items() if name.startswith("MESSAGE_")}
    assert {rule["message"] for _, _, rule in _rules()} == published


def test_defaults_satisfy_schema_and_rules_before_nested_defaults_are_filled_in() -> None:
    for path, schema in _nodes(SCHEMA):
        if "default" not in schema:
            continue
        value = schema["default"]
        jsonschema_rs.validator_for(_json_schema(schema)).validate(value)
        for rule in schema.get("x-kubernetes-validations", ()):
            if "oldSelf" not in rule["rule"]:
                assert cel.evaluate(rule["rule"], {"self": value}), f"{path}: {rule['message']}"


def test_columns_and_scale_paths_exist() -> None:
    version = CRD["spec"]["versions"][0]
    paths = [c["jsonPath"] for c in version["additionalPrinterColumns"]]
    paths += list(version["subresources"]["scale"].values())
    known = {p for p, _ in _nodes(SCHEMA)} | {".metadata.creationTimestamp"}
    assert set(paths) <= known
    assert CRD["spec"]["names"]["shortNames"] == ["rkv"]
    assert CRD["spec"]["names"]["categories"] == ["all", "raftkv"]


# --- validation: the schema and the rules as a server applies them ---


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    found = {k: v for k, v in schema.items() if not k.startswith("x-") and k not in ("default", "format", "nullable")}
    for keyword in ("items", "additionalProperties"):
        if isinstance(found.get(keyword), dict):
            found[keyword] = _json_schema(found[keyword])
    if "properties" in found:
        found["properties"] = {k: _json_schema(v) for k, v in found["properties"].items()}
        found.setdefault("additionalProperties", False)
    return found


def _defaulted(schema: dict[str, Any], value: Any) -> Any:
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = deepcopy(child["default"])
            if name in value:
                value[name] = _defaulted(child, value[name])
    return value


def _broken_rules(schema: dict[str, Any], value: Any, old: Any) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        names = {"self": value} if "oldSelf" not in rule["rule"] else {"self": value, "oldSelf": old}
        if "oldSelf" in names and old is None:
            continue
        if not cel.evaluate(rule["rule"], names):
            yield rule["message"]
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                yield from _broken_rules(child, value[name], old.get(name) if isinstance(old, dict) else None)


def _validate(spec: dict[str, Any], old: dict[str, Any] | None = None, name: str = "demo") -> list[str]:
    """What an API server would say: schema errors, else broken rules."""

    def whole(part: dict[str, Any]) -> dict[str, Any]:
        return {"metadata": {"name": name}, "spec": _defaulted(SCHEMA["properties"]["spec"], deepcopy(part))}

    new, before = whole(spec), whole(old) if old is not None else None
    checked = _json_schema(SCHEMA)
    checked["properties"]["metadata"] = {"type": "object"}
    errors = [str(e.message) for e in jsonschema_rs.validator_for(checked).iter_errors(new)]
    return errors or list(_broken_rules(SCHEMA, new, before))


PMEM = {"medium": "PersistentMemory", "source": {"hostPath": {"path": "/mnt/pmem0"}}}


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 0},
        {"replicas": 1},
        {"replicas": 3, "bootstrap": {"identity": "New"}},
        {"replicas": 3, "bootstrap": {"identity": "Adopt 00000000000000a1"}},
        {"replicas": 50, "consensus": {"maxVoters": 9}},
        {"replicas": 3, "logBuffer": PMEM},
        {"replicas": 3, "logBuffer": {**PMEM, "size": "4Mi"}},
        {"replicas": 3, "logBuffer": {**PMEM, "size": "100Mi"}},
        {"replicas": 3, "logBuffer": {**PMEM, "drain": {"size": "1Mi"}}},
        {"replicas": 3, "logBuffer": {**PMEM, "drain": {"size": "100Mi", "interval": "1s"}}},
        {"replicas": 3, "consensus": {"heartbeatInterval": "200ms", "electionTimeout": "1s"}},
        {"replicas": 3, "resources": {"requests": {"cpu": 1, "memory": "2Gi"}}},
    ],
)
def test_good_specs(spec: dict[str, Any]) -> None:
    assert _validate(spec) == []
    ClusterSpec.parse(_defaulted(SCHEMA["properties"]["spec"], deepcopy(spec)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"replicas": 3, "logBuffer": {**PMEM, "size": "200Mi"}}, constants.MESSAGE_SIZE),
        ({"replicas": 3, "logBuffer": {**PMEM, "size": "3Mi"}}, constants.MESSAGE_SIZE),
        ({"replicas": 3, "logBuffer": {**PMEM, "size": "101Mi"}}, constants.MESSAGE_SIZE),
        ({"replicas": 3, "logBuffer": {**PMEM, "size": "1Gi"}}, constants.MESSAGE_SIZE),
        ({"replicas": 3, "logBuffer": {**PMEM, "drain": {"size": "0Mi"}}}, constants.MESSAGE_DRAIN_SIZE),
        ({"replicas": 3, "logBuffer": {**PMEM, "drain": {"size": "101Mi"}}}, constants.MESSAGE_DRAIN_SIZE),
        ({"replicas": 3, "logBuffer": {**PMEM, "drain": {"size": "64Ki"}}}, constants.MESSAGE_DRAIN_SIZE),
        ({"replicas": 3, "logBuffer": {"medium": "PersistentMemory"}}, constants.MESSAGE_SOURCE),
        ({"replicas": 3, "logBuffer": {**PMEM, "medium": "Disk"}}, constants.MESSAGE_SOURCE),
        (
            {"replicas": 3, "logBuffer": {**PMEM, "source": {"hostPath": {"path": "pmem"}}}},
            constants.MESSAGE_HOST_PATH,
        ),
        (
            {"replicas": 3, "logBuffer": {**PMEM, "source": {"hostPath": {"path": "/mnt/../etc"}}}},
            constants.MESSAGE_HOST_PATH,
        ),
        ({"replicas": 3, "consensus": {"maxVoters": 4}}, constants.MESSAGE_ODD),
        ({"replicas": 3, "consensus": {"heartbeatInterval": "201ms"}}, constants.MESSAGE_TIMEOUTS),
        ({"replicas": 3, "consensus": {"heartbeatInterval": "1ms"}}, constants.MESSAGE_HEARTBEAT),
        ({"replicas": 3, "consensus": {"electionTimeout": "61s"}}, constants.MESSAGE_ELECTION),
        (
            {"replicas": 3, "consensus": {"leaderPreference": ["Writers", "zone-a"]}},
            constants.MESSAGE_LEADER_PREFERENCE,
        ),
    ],
)
def test_bad_specs_break_exactly_their_rule(spec: dict[str, Any], message: str) -> None:
    assert _validate(spec) == [message]


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": -1},
        {"replicas": 3, "bootstrap": {"identity": "Adopt"}},
        {"replicas": 3, "bootstrap": {"identity": "new"}},
        {"replicas": 51},
        {"replicas": "three"},
        {},
        {"replicas": 3, "noSuchField": 1},
        {"replicas": 3, "logBuffer": {"medium": "Tape"}},
        {"replicas": 3, "logBuffer": {"medium": "Disk", "minimumDurability": "perhaps"}},
        {"replicas": 3, "nodeLossPolicy": {"replaceAfter": "soon"}},
        {"replicas": 3, "version": "latest"},
        {"replicas": 3, "storage": {"size": "much"}},
    ],
)
def test_bad_specs_break_the_schema(spec: dict[str, Any]) -> None:
    said = _validate(spec)
    assert said
    assert not any(rule["message"] in said for _, _, rule in _rules())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({"logBuffer": PMEM}, {"logBuffer": {"medium": "Disk"}}, constants.MESSAGE_MEDIUM_IMMUTABLE),
        (
            {"logBuffer": PMEM},
            {"logBuffer": {**PMEM, "source": {"hostPath": {"path": "/elsewhere"}}}},
            constants.MESSAGE_SOURCE_IMMUTABLE,
        ),
        ({"storage": {"size": "2Gi"}}, {"storage": {"size": "1Gi"}}, constants.MESSAGE_STORAGE_SIZE_IMMUTABLE),
        (
            {"storage": {"storageClassName": "a"}},
            {"storage": {"storageClassName": "b"}},
            constants.MESSAGE_STORAGE_CLASS_IMMUTABLE,
        ),
        ({"storage": {}}, {"storage": {"storageClassName": "b"}}, constants.MESSAGE_STORAGE_CLASS_IMMUTABLE),
    ],
)
def test_what_cannot_be_changed(old: dict[str, Any], new: dict[str, Any], message: str) -> None:
    assert message in _validate({"replicas": 3, **new}, {"replicas": 3, **old})
    assert _validate({"replicas": 5, **old}, {"replicas": 3, **old}) == []


@pytest.mark.parametrize(
    ("name", "good"), [("demo", True), ("a" * 40, True), ("a" * 41, False), ("my.db", False), ("9lives", False)]
)
def test_names(name: str, good: bool) -> None:
    assert _validate({"replicas": 3}, name=name) == ([] if good else [constants.MESSAGE_NAME])


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/samples").glob("*.yaml")), ids=lambda p: p.stem)
def test_samples_are_valid(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        assert (document["apiVersion"], document["kind"]) == (constants.API_VERSION, constants.KIND)
        assert _validate(document["spec"], name=document["metadata"]["name"]) == []


def test_defaults_of_the_crd_and_of_the_code_agree() -> None:
    defaulted = _defaulted(SCHEMA["properties"]["spec"], {"replicas": 3})
    assert ClusterSpec.parse(defaulted) == ClusterSpec(replicas=3)


def test_the_status_that_is_written_is_in_the_schema() -> None:
    from operator_world import settled

    world = settled(3)
    world.scale(5)
    loop = world.operator()
    validator = jsonschema_rs.validator_for(_json_schema(SCHEMA["properties"]["status"]))
    for _ in range(60):
        world.step(loop)
        status = {k: v for k, v in world.status.items() if v is not None}
        validator.validate(status)


# --- roles ---


def test_the_operator_may_do_what_it_does_and_no_more() -> None:
    documents = list(yaml.safe_load_all((ROOT / "deploy/rbac.yaml").read_text()))
    rules = next(d for d in documents if d["kind"] == "ClusterRole")["rules"]
    for rule in rules:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
    granted = {(r, v) for rule in rules for r in rule["resources"] for v in rule["verbs"]}
    text = Path(executor.__file__).read_text()
    plural = {"CLAIMS": "persistentvolumeclaims", "STATEFUL_SETS": "statefulsets", "PODS": "pods"}
    verbs = {"get": "get", "create": "create", "replace": "update", "merge": "patch", "delete": "delete"}
    used = re.findall(r"self\.kube\.(\w+)\(\s*(CLAIMS|STATEFUL_SETS|PODS)", text)
    assert len(used) >= 8
    for method, resource in used:
        assert (plural[resource], verbs[method]) in granted
    for resource in plural.values():
        assert {"get", "list", "watch"} <= {v for r, v in granted if r == resource}
    assert ("secrets", "list") not in granted
    assert hasattr(kube.KubeClient, "json_patch")


def test_chart_and_plain_manifests_say_the_same() -> None:
    template = (ROOT / "charts/raftkv-operator/templates/crd.yaml").read_text()
    inner = yaml.safe_load("\n".join(line for line in template.splitlines() if not line.startswith("{{")))
    annotations = inner["metadata"].pop("annotations")
    assert annotations == {"helm.sh/resource-policy": "keep"}
    assert inner == CRD
    helpers = (ROOT / "charts/raftkv-operator/templates/_helpers.tpl").read_text()
    found = re.search(r'define "raftkv-operator.rules" -}}\n(.*?)\n{{- end', helpers, re.S)
    assert found is not None
    documents = list(yaml.safe_load_all((ROOT / "deploy/rbac.yaml").read_text()))
    assert yaml.safe_load(found[1]) == next(d for d in documents if d["kind"] == "ClusterRole")["rules"]


# --- builders ---


def test_exit_codes_are_the_nodes() -> None:
    ours = {n: v for n, v in vars(constants).items() if n.startswith("EXIT_") and n != "EXIT_USAGE"}
    assert ours == {n: getattr(adr, n) for n in ours}


def test_a_stateful_set_reads_back_as_it_was_built() -> None:
    spec = ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0")
    body = member_objects.stateful_set(spec, OWNER, 7, replicas=0, host="n1", halted="X: y")
    body["metadata"]["uid"] = "u"
    view = StatefulSetView.read(body)
    assert view is not None
    assert (view.number, view.owner_uid, view.cluster_id) == (7, "uid-1", 0xABCDEF)
    assert (view.replicas, view.host, view.halted) == (0, "n1", "X: y")
    assert view.template == member_objects.template_hash(spec)


def test_the_pod_mounts_disk_ring_and_token_and_knows_its_member() -> None:
    spec = ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0", minimum_durability="kernel")
    pod = member_objects.stateful_set(spec, OWNER, 2)["spec"]["template"]["spec"]
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["ring"]["hostPath"] == {"path": "/mnt/pmem0", "type": "Directory"}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "data-demo-2"
    (container,) = pod["containers"]
    assert {m["name"] for m in container["volumeMounts"]} == set(volumes)
    arguments = container["args"]
    for wished in ("--operated", "--number=2", "--name=demo-2", "--minimum-durability=kernel", "--adr-size=64Mi"):
        assert wished in arguments
    assert container["image"] == "ghcr.io/raftkv/raftkv:0.1.0"
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_nodes_command_line_is_understood() -> None:
    from raftkv_node.config import parse_arguments

    for spec in (ClusterSpec(), ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0")):
        words = [w.replace("$(POD_IP)", "10.0.0.1") for w in member_objects.arguments(spec, OWNER.names, 3)]
        config = parse_arguments(words[1:], {})
        assert (config.operated, config.number, config.cluster_name) == (True, 3, "demo")
        assert (config.adr_path is not None) == (spec.ring_host_path is not None)
        assert config.peer_url == "http://demo-3-0.demo-peers.default.svc:2380"


@pytest.mark.parametrize(
    ("drain", "wished"), [({}, 8 << 20), ({"size": "1Mi"}, 1 << 20), ({"size": "100Mi"}, 100 << 20)]
)
def test_the_resources_drain_size_is_the_nodes(drain: dict[str, Any], wished: int) -> None:
    from raftkv_node.config import parse_arguments

    given = {"replicas": 3, "logBuffer": {**PMEM, "drain": drain}}
    for spec in (given, _defaulted(SCHEMA["properties"]["spec"], deepcopy(given))):
        words = member_objects.arguments(ClusterSpec.parse(spec), OWNER.names, 3)
        config = parse_arguments([word.replace("$(POD_IP)", "10.0.0.1") for word in words[1:]], {})
        assert config.adr_drain_size == wished


def test_disk_mode_has_no_ring() -> None:
    body = member_objects.stateful_set(ClusterSpec(), OWNER, 1)
    assert "ring" not in {v["name"] for v in body["spec"]["template"]["spec"]["volumes"]}
    assert not any("--adr" in a for a in member_objects.arguments(ClusterSpec(), OWNER.names, 1))


def test_scaling_and_pinning_change_no_template_hash_but_settings_do() -> None:
    base = ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0")
    wished = member_objects.template_hash(base)
    for same in (ClusterSpec(replicas=9, medium="PersistentMemory", ring_host_path="/mnt/pmem0", max_voters=7),):
        assert member_objects.template_hash(same) == wished
    for other in (
        ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0", version="0.2.0"),
        ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0", ring_size="32Mi"),
        ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0", drain_size="2Mi"),
        ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0", minimum_durability="process"),
        ClusterSpec(medium="PersistentMemory", ring_host_path="/mnt/pmem0", election_milliseconds=2000),
    ):
        assert member_objects.template_hash(other) != wished


def test_services_select_by_cluster_id() -> None:
    client = next(s for s in shared_objects(OWNER, "t") if s.name == "demo")
    assert client.body["spec"]["selector"][constants.LABEL_CLUSTER_ID] == "0000000000abcdef"
    peers = next(s for s in shared_objects(OWNER, "t") if s.name == "demo-peers")
    assert peers.body["spec"]["publishNotReadyAddresses"] is True


def test_shared_objects_are_in_place_however_much_a_server_adds() -> None:
    for wished in shared_objects(OWNER, "secret"):
        actual = deepcopy(wished.body)
        actual["metadata"]["annotations"] = {"x": "y"}
        if "spec" in actual:
            actual["spec"]["sessionAffinity"] = "None"
        assert in_place(actual, wished)
        assert not in_place(None, wished)
        if "spec" in actual:
            actual["spec"]["selector"] = {}
            assert not in_place(actual, wished)
        else:
            assert read_token(actual) == "secret"


def test_covers() -> None:
    assert covers({"a": 1, "b": 2}, {"a": 1})
    assert not covers({"a": 1}, {"a": 2})
    assert not covers([1, 2], [1])
    assert covers([{"a": 1, "b": 2}], [{"a": 1}])


def test_latch_reads_back_as_written() -> None:
    latch = Latch(2**64 - 1, "Opened", 5, 1, (LatchedMember(1, 7, "aa"), LatchedMember(4, condemned="Absent")))
    assert Latch.parse({"identity": latch.to_status()}) == latch
    assert Latch.parse({}) is None


@pytest.mark.parametrize(("text", "value"), [("100ms", 100), ("1s", 1000), ("1m30s", 90_000), ("2h", 7_200_000)])
def test_durations(text: str, value: int) -> None:
    assert milliseconds(text) == value


@pytest.mark.parametrize("text", ["", "1", "s", "1d", "1s ", "-1s", "1.5s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        milliseconds(text)


def test_a_pods_last_words_are_read() -> None:
    pod = {
        "metadata": {"name": "demo-1-0", "uid": "u", "labels": {constants.LABEL_NUMBER: "1"}},
        "status": {
            "containerStatuses": [
                {
                    "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 69, "message": "noise\nraftkv: too weak\n\n"}},
                }
            ]
        },
    }
    view = PodView.read(pod)
    assert view is not None
    assert (view.exit_code, view.exit_message, view.running, view.restarts) == (69, "raftkv: too weak", False, 3)


def test_prometheus_finds_the_members_and_the_operator_by_their_labels_and_ports() -> None:
    """A job keeps what matches the joined labels of its ``keep`` rule, anchored, as Prometheus reads it."""
    jobs = {job["job_name"]: job for job in yaml.safe_load((ROOT / "deploy/prometheus/scrape-config.yaml").read_text())}
    operator = yaml.safe_load((ROOT / "deploy/operator.yaml").read_text())["spec"]["template"]
    member = member_objects.stateful_set(ClusterSpec(), OWNER, 1)["spec"]["template"]

    def kept(job: str, pod: dict[str, Any]) -> bool:
        rule = next(one for one in jobs[job]["relabel_configs"] if one.get("action") == "keep")
        labels = {
            "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9]", "_", name): value
            for name, value in pod["metadata"]["labels"].items()
        }
        ports = [port["name"] for container in pod["spec"]["containers"] for port in container["ports"]]
        targets = [{**labels, "__meta_kubernetes_pod_container_port_name": port} for port in ports]
        joined = [";".join(one.get(name, "") for name in rule["source_labels"]) for one in targets]
        return sum(re.fullmatch(rule["regex"], text) is not None for text in joined) == 1

    assert (kept("raftkv", member), kept("raftkv", operator)) == (True, False)
    assert (kept("raftkv-operator", member), kept("raftkv-operator", operator)) == (False, True)
