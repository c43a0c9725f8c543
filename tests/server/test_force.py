"""M6, D12: the deliberate way out when the quorum is gone."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import NodeProcess, channel, cluster, wait_until
from raftkv_node.adr import (
    EXIT_ABSENT,
    EXIT_MISMATCH,
    Files,
    Log,
    LogOptions,
    Refusal,
    Refused,
    entry,
    hard_state,
    records,
)
from raftkv_node.config import EXIT_USAGE, NodeConfig, parse_arguments
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc
from raftkv_node.raft import Configuration, EntryType, Raft
from raftkv_node.server import force as forcing
from raftkv_node.server.force import ForceError, alone_configuration, finish, force
from raftkv_node.server.hello import Hello, HelloKind, Judge
from raftkv_node.server.identity import Identity, load_or_format, save
from raftkv_node.server.member import log_options
from raftkv_node.server.members import founders
from raftkv_node.server.replica import initial_state, raft_config
from raftkv_node.store import Batch, commands, install
from raftkv_node.store.snapshot import SnapshotSink, SnapshotSource
from raftkv_node.store.store import Store

FLAG, ACCEPT = "--force-new-cluster", "--force-new-cluster-accept-loss"
URLS = {"n1": "http://a:1", "n2": "http://b:1", "n3": "http://c:1"}
STEPS = 12


# -- with processes ---------------------------------------------------------------------------------------------------


def put(node: NodeProcess, key: bytes, value: bytes) -> None:
    with channel(node.endpoint) as connection:
        request = rpc_pb2.PutRequest(key=key, value=value)
        rpc_pb2_grpc.KVStub(connection).Put(request, timeout=20, wait_for_ready=True)


def get(node: NodeProcess, key: bytes) -> bytes:
    with channel(node.endpoint) as connection:
        request = rpc_pb2.RangeRequest(key=key)
        answer = rpc_pb2_grpc.KVStub(connection).Range(request, timeout=20, wait_for_ready=True)
        return bytes(answer.kvs[0].value) if answer.kvs else b""


def members(node: NodeProcess) -> tuple[int, list[int]]:
    """Cluster id and member ids."""
    with channel(node.endpoint) as connection:
        request = rpc_pb2.MemberListRequest()
        answer = rpc_pb2_grpc.ClusterStub(connection).MemberList(request, timeout=20, wait_for_ready=True)
        return answer.header.cluster_id, [one.ID for one in answer.members]


def run(node: NodeProcess, *flags: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to end by itself."""
    return subprocess.run([*node.command(), *flags], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("mode", ["adr", "disk"])
def test_m6_a_member_that_is_left_alone_becomes_a_new_cluster_and_old_members_are_refused(
    mode: str, tmp_path: Path
) -> None:
    minimum = () if mode == "adr" else ("--minimum-durability", "process")
    with cluster(tmp_path, 3, mode, minimum) as old:
        put(old.members[0], b"kept", b"1")
        for one in old.members:
            assert get(one, b"kept") == b"1"
        old_cluster, old_ids = members(old.members[0])
        survivor, *lost = old.members
        for one in old.members:
            one.kill()
        told = run(survivor, FLAG)
        assert told.returncode == EXIT_USAGE
        assert "What may be lost" in told.stdout
        assert "must never be started again" in told.stdout
        assert told.stderr == f"raftkv node: nothing was changed; to accept this loss, add {ACCEPT}={old_cluster:x}\n"
        wrong = run(survivor, FLAG, f"{ACCEPT}=abc")
        assert (wrong.returncode, "nothing was changed" in wrong.stderr) == (EXIT_USAGE, True)
        assert load_or_format(survivor.data_dir, 0, "").cluster_id == old_cluster
        arguments = survivor.arguments
        survivor.arguments = [*arguments, FLAG, f"{ACCEPT}={old_cluster:x}"]
        survivor.start()
        wait_until("healthy new cluster", survivor.healthy)
        new_cluster, new_ids = members(survivor)
        assert new_cluster != old_cluster
        assert len(new_ids) == 1
        assert not set(new_ids) & set(old_ids)
        assert get(survivor, b"kept") == b"1"
        put(survivor, b"kept", b"2")
        refused_when_they_come_back(survivor, lost)
        assert members(survivor) == (new_cluster, new_ids)
        # with the flags again nothing is done again, and without them the member goes on
        assert survivor.stop() == 0, survivor.log_text()[-2000:]
        survivor.start()
        wait_until("healthy again", survivor.healthy)
        assert members(survivor) == (new_cluster, new_ids)
        assert "was done before" in survivor.log_text()
        survivor.kill()
        survivor.arguments = arguments
        survivor.start()
        wait_until("healthy without flags", survivor.healthy)
        assert members(survivor) == (new_cluster, new_ids)
        assert get(survivor, b"kept") == b"2"


def refused_when_they_come_back(survivor: NodeProcess, lost: list[NodeProcess]) -> None:
    """Two of three come back: they are a quorum of the old cluster, and strangers to the new one."""
    for one in lost:
        one.start()
    for one in lost:
        wait_until("refusal", lambda one=one: "cluster ID mismatch" in one.log_text())  # type: ignore[misc]
    wait_until("old cluster that goes on", lost[0].healthy)
    put(lost[0], b"kept", b"old")
    assert get(survivor, b"kept") == b"2"


def test_m6_d12_a_member_whose_ring_is_lost_goes_on_with_what_is_on_its_disk(tmp_path: Path) -> None:
    """Row 11 (and 9, 10): only a loss that was accepted makes such a disk usable, under new ids."""
    with cluster(tmp_path, 3, "adr") as old:
        put(old.members[0], b"kept", b"1")
        old_cluster, _ = members(old.members[0])
        survivor = old.members[0]
        assert survivor.stop() == 0
        survivor.start()
        old.wait_healthy()
        for one in old.members:
            one.kill()
        ring = Path(survivor.arguments[survivor.arguments.index("--adr-path") + 1])
        shutil.rmtree(ring)
        ring.mkdir()
        told = run(survivor, FLAG)
        assert "what its log buffer had and its disk has not" in told.stdout, told.stderr
        assert run(survivor).returncode == EXIT_ABSENT, "without the flag it stays absent"
        survivor.arguments += [FLAG, f"{ACCEPT}={old_cluster:x}"]
        survivor.start()
        wait_until("healthy new cluster", survivor.healthy)
        assert get(survivor, b"kept") == b"1"


def test_m6_what_cannot_be_forced_is_refused(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, "disk", ("--minimum-durability", "process")) as alone:
        node = alone.members[0]
        assert node.stop() == 0
        told = run(node, FLAG)
        assert (told.returncode, "only voter already" in told.stderr) == (EXIT_USAGE, True)
        told = run(node, f"{ACCEPT}=1")
        assert (told.returncode, "means nothing without" in told.stderr) == (EXIT_USAGE, True)
        shutil.rmtree(node.data_dir)
        told = run(node, FLAG)
        assert (told.returncode, "there is no member" in told.stderr) == (EXIT_USAGE, True)


def test_m6_a_founder_with_a_new_disk_is_told_that_its_cluster_runs(tmp_path: Path) -> None:
    """In etcd's words. Identity from the URL after a wipe: the id is derived again, but not the votes."""
    with cluster(tmp_path, 3, "disk", ("--minimum-durability", "process")) as old:
        wiped = old.members[2]
        wiped.kill()
        shutil.rmtree(wiped.data_dir)
        wiped.start()
        assert wiped.wait() == EXIT_MISMATCH, wiped.log_text()
        assert "has already been bootstrapped" in wiped.log_text()
        assert "--initial-cluster-state existing" in wiped.log_text()


# -- step by step -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process was killed."""


class Mortal(Files):
    """Kills the process before its n-th rename: the moment in which each step becomes true."""

    left = 1 << 30

    def rename(self, source: Path, target: Path) -> None:
        Mortal.left -= 1
        if Mortal.left < 0:
            raise Killed
        super().rename(source, target)


def mortal_options(**fields: Any) -> LogOptions:
    return LogOptions(**fields, files=Mortal())


@pytest.fixture
def member(tmp_path: Path) -> tuple[NodeConfig, Identity]:
    """One of three members, killed with five entries in its log, four of which it knows to be committed."""
    data = tmp_path / "data"
    data.mkdir()
    config = parse_arguments(
        [
            *("--name", "n1", "--data-dir", str(data), "--minimum-durability", "process", FLAG),
            *("--initial-cluster", ",".join(f"{name}={url}" for name, url in URLS.items())),
            *("--initial-advertise-peer-urls", URLS["n1"]),
        ],
        {},
    )
    derived = founders(config.initial_cluster, config.initial_cluster_token)
    identity = replace(
        load_or_format(data, 0, "n1"),
        cluster_id=derived.cluster_id,
        member_id=derived.ids["n1"],
        peer_url=URLS["n1"],
        founding=derived.configuration.encode(),
        bindings={derived.ids["n2"]: bytes(16)},
    )
    log, _ = Log.open(log_options(config, identity))
    lsn = log.append([hard_state(3, 0, 4), *(entry(3, index, EntryType.NORMAL, b"") for index in range(1, 6))])
    wait_until("flush", lambda: log.durable_lsn >= lsn)
    log.close(clean=False)
    identity = replace(identity, begun=True)
    save(data, identity)
    return config, identity


def started(config: NodeConfig, identity: Identity) -> Raft:
    """What a start of this identity makes of the disk."""
    store = Store.open(config.data_dir / "backend", cluster_id=identity.cluster_id, member_id=identity.member_id)
    log, recovered = Log.open(log_options(config, identity))
    founding = Configuration.decode(identity.founding) if identity.founding else Configuration()
    settings = raft_config(identity.member_id, 10, True, lambda low, high: low)
    core = Raft(settings, initial_state(recovered, log, store, founding))
    log.close()
    store.close(commit=False)
    return core


def check_new_life(old: Identity, new: Identity, core: Raft) -> None:
    """What must hold for a forced cluster, whoever of the old one comes back (the oracle of the planted bugs)."""
    former, now = Configuration.decode(old.founding), core.configuration
    assert now.voters == {new.member_id}
    assert former.ids <= now.removed
    assert new.member_id not in now.removed
    assert core.commit_index == core.last_index == 6, "all that was here is kept, and one entry more is committed"
    for one in former.ids - {old.member_id}:
        comes_back = Hello(HelloKind.MEMBER, old.cluster_id, one, new.member_id, bytes(16), 9, 1, "")
        judge = Judge(new.cluster_id, new.member_id, now.removed, {}, {})
        assert judge.refusal(comes_back) is not None, "an old member is heard by the new cluster"
        says = Hello(HelloKind.MEMBER, new.cluster_id, new.member_id, one, new.disk_uuid, 9, 1, "")
        assert Judge(old.cluster_id, one, frozenset(), {}, {}).refusal(says) is not None, "it is heard by the old one"


def accepting(config: NodeConfig, identity: Identity) -> NodeConfig:
    return replace(config, force_new_cluster_accept_loss=f"{identity.cluster_id:x}")


def test_m6_it_is_said_first_and_nothing_is_done_without_consent(member: tuple[NodeConfig, Identity]) -> None:
    config, identity = member
    said: list[str] = []
    with pytest.raises(ForceError, match="nothing was changed"):
        force(config, identity, said.append)
    (report,) = said
    for words in ("index 5 of term 3", "known to be committed here: index 4", "1 later entries may never"):
        assert words in report
    ids = founders(config.initial_cluster, config.initial_cluster_token).ids
    assert f"acknowledged more: {', '.join(f'{one:x}' for one in sorted((ids['n2'], ids['n3'])))}" in report
    assert load_or_format(config.data_dir, 0, "") == identity
    core = started(config, identity)
    assert (core.last_index, core.commit_index, len(core.configuration.voters)) == (5, 4, 3)


def test_m6_new_ids_and_all_old_ones_removed(member: tuple[NodeConfig, Identity]) -> None:
    config, identity = member
    new = force(accepting(config, identity), identity, lambda text: None)
    assert new == load_or_format(config.data_dir, 0, "")
    assert new.disk_uuid == identity.disk_uuid
    check_new_life(identity, new, started(config, new))
    said: list[str] = []
    assert force(accepting(config, identity), new, said.append) == new
    assert "was done before" in said[0]


SNAPSHOT_INDEX, SNAPSHOT_TERM = 60, 4


@pytest.fixture
def interrupted(member: tuple[NodeConfig, Identity], tmp_path: Path) -> tuple[NodeConfig, Identity]:
    """The member, killed when its log had a snapshot's mark and the backend had not yet made way for the snapshot."""
    config, identity = member
    source = Store.open(tmp_path / "source", start_thread=False)
    source.apply_configuration(1, 1, identity.founding)
    for index in range(2, SNAPSHOT_INDEX + 1):
        body = rpc_pb2.PutRequest(key=b"k", value=b"%d" % index).SerializeToString()
        source.apply(index, SNAPSHOT_TERM, Batch(1, index, bytes([commands.PUT]), [body]))
    source.set_durable_index(SNAPSHOT_INDEX)
    while source.backend.commit_now():
        pass
    sink = SnapshotSink(config.data_dir / install.PARTIAL, identity.cluster_id, 1 << 26)
    stream = SnapshotSource(source.backend, identity.cluster_id, identity.founding)
    while not stream.done:
        sink.feed(stream.read(1 << 20))
    sink.finish()
    source.close(commit=False)
    install.complete(Files(), config.data_dir)
    Store.open(config.data_dir / install.BACKEND, start_thread=False).close()
    log, _ = Log.open(log_options(config, identity))
    lsn = log.append([records.snapshot(SNAPSHOT_TERM, SNAPSHOT_INDEX), hard_state(SNAPSHOT_TERM, 0, SNAPSHOT_INDEX)])
    wait_until("flush", lambda: log.durable_lsn >= lsn)
    log.close(clean=False)
    return config, identity


def test_m6_d15_an_interrupted_installation_of_a_snapshot_is_finished_first(
    interrupted: tuple[NodeConfig, Identity],
) -> None:
    """It was refused as corrupt: the old backend was held against a log that only the snapshot explains."""
    config, identity = interrupted
    said: list[str] = []
    new = force(accepting(config, identity), identity, said.append)
    assert f"index {SNAPSHOT_INDEX} of term {SNAPSHOT_TERM}" in said[0]
    core = started(config, new)
    assert core.configuration.voters == {new.member_id}
    assert core.commit_index == core.last_index == SNAPSHOT_INDEX + 1
    store = Store.open(config.data_dir / install.BACKEND, start_thread=False)
    assert (store.applied_index, store.revision) == (SNAPSHOT_INDEX, SNAPSHOT_INDEX)
    store.close(commit=False)
    assert not (config.data_dir / install.WHOLE).exists()


@pytest.mark.parametrize("old_is_left", [True, False])
@pytest.mark.parametrize("ring_is_lost", [True, False])
def test_m6_d15_a_swap_cut_off_between_its_renames_keeps_the_snapshot(
    interrupted: tuple[NodeConfig, Identity], monkeypatch: pytest.MonkeyPatch, old_is_left: bool, ring_is_lost: bool
) -> None:
    """With the ring lost an empty backend was made and reported, and then both the old one and the snapshot deleted."""
    config, identity = interrupted
    (config.data_dir / install.BACKEND).rename(config.data_dir / install.REPLACED)
    if not old_is_left:
        shutil.rmtree(config.data_dir / install.REPLACED)
    said: list[str] = []
    with monkeypatch.context() as patched:
        if ring_is_lost:

            def lost(_options: Any) -> Any:
                raise Refused(Refusal.ABSENT, "the ring is lost", 11)

            patched.setattr("raftkv_node.server.force.Log.open", lost)
        with pytest.raises(ForceError, match="nothing was changed"):
            force(replace(config, force_new_cluster=True), identity, said.append)
    assert f"index {SNAPSHOT_INDEX} of term {SNAPSHOT_TERM}" in said[0]
    store = Store.open(config.data_dir / install.BACKEND, start_thread=False)
    assert store.applied_index == SNAPSHOT_INDEX
    store.close(commit=False)


def test_m6_killed_at_any_step_it_is_finished_by_the_next_start(
    member: tuple[NodeConfig, Identity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never half and half: before the decision is durable the old member is whole, after it every start goes on."""
    config, identity = member
    whole = tmp_path / "before"
    shutil.copytree(config.data_dir, whole)
    monkeypatch.setattr("raftkv_node.server.identity.Files", Mortal)
    monkeypatch.setattr("raftkv_node.server.member.LogOptions", mortal_options)
    undecided = decided = ended = 0
    for step in range(STEPS):
        shutil.rmtree(config.data_dir)
        shutil.copytree(whole, config.data_dir)
        Mortal.left = step
        try:
            force(accepting(config, identity), identity, lambda text: None)
            ended += 1
        except Killed:
            pass
        Mortal.left = 1 << 30
        found = load_or_format(config.data_dir, 0, "")
        if found.forcing is None and found.cluster_id == identity.cluster_id:
            undecided += 1
            assert started(config, found).configuration.voters == Configuration.decode(identity.founding).voters
            continue
        decided += found.forcing is not None
        new = finish(config, found) if found.forcing is not None else found
        check_new_life(identity, new, started(config, new))
    assert min(undecided, decided, ended) > 0, (undecided, decided, ended)


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(lambda old: (old.cluster_id, old.member_id), id="force-new-cluster under the old id"),
        pytest.param(lambda old: (old.cluster_id ^ 1, old.member_id), id="only the cluster id is new"),
        pytest.param(lambda old: (old.cluster_id, old.member_id ^ 1), id="only the member id is new"),
    ],
)
def test_m6_planted_bug_is_found(
    member: tuple[NodeConfig, Identity], monkeypatch: pytest.MonkeyPatch, ids: Any
) -> None:
    config, identity = member
    monkeypatch.setattr(forcing, "new_ids", ids)
    with pytest.raises(AssertionError):
        new = force(accepting(config, identity), identity, lambda text: None)
        check_new_life(identity, new, started(config, new))


def test_m6_settings_and_everyone_ever_named_are_carried_over() -> None:
    first = founders([("n1", ("http://a:1",)), ("n2", ("http://b:1",))], "t").configuration
    ids = sorted(first.ids)
    later = Configuration(
        voters=frozenset({ids[0], 77}),
        members={ids[0]: b"", 77: b""},
        removed=frozenset({ids[1], 66}),
        settings=first.settings,
    )
    new = Identity(bytes(16), name="n1", cluster_id=5, member_id=6, peer_url="http://a:1")
    made = alone_configuration([first, later], new)
    assert made.removed == {*ids, 66, 77}
    assert Configuration.decode(made.encode()) == made
    assert made.settings == first.settings
