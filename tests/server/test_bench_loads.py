"""``raftkv bench`` against a real member: what it says it did is what the member has."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import RAFTKV, Cluster, NodeProcess, channel, cluster
from raftkv_node.bench import loads, report
from raftkv_node.bench.loads import LoadPlan, Watchers
from raftkv_node.bench.running import Outcome, Size, fill, run
from raftkv_node.bench.target import Target, TargetError, parse_endpoints
from raftkv_node.bench.templates import Shape
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc

_SIZE = Size(clients=20, connections=2, total=500, key_space=50)
_TIMEOUT = 60


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("bench"), 1, "adr") as made:
        yield made


@pytest.fixture(scope="module")
def member(members: Cluster) -> NodeProcess:
    return members.members[0]


def _target(member: NodeProcess) -> Target:
    return Target(parse_endpoints(member.endpoint)[0])


def _run(member: NodeProcess, plan: LoadPlan, size: Size, prefix: bytes, value_bytes: int = 64) -> Outcome:
    outcome = run(_target(member), plan, size, Shape(prefix, 24, value_bytes))
    assert outcome.snapshot.failure is None
    return outcome


def _stored(member: NodeProcess, prefix: bytes) -> list[Any]:
    with channel(member.endpoint) as made:
        request = rpc_pb2.RangeRequest(key=prefix, range_end=Shape(prefix, 24, 0).end)
        return list(rpc_pb2_grpc.KVStub(made).Range(request, timeout=_TIMEOUT).kvs)


def test_puts_in_turn_leave_that_many_keys(member: NodeProcess) -> None:
    outcome = _run(member, loads.put(), replace(_SIZE, key_space=500, sequential=True), b"/turn/")
    kvs = _stored(member, b"/turn/")
    assert len(kvs) == outcome.all_latencies().count == 500
    assert {(len(kv.key), len(kv.value), kv.version) for kv in kvs} == {(24, 64, 1)}
    assert len({kv.value for kv in kvs}) == 500, "every value is another one"


def test_random_puts_stay_within_the_key_space_and_are_all_counted(member: NodeProcess) -> None:
    outcome = _run(member, loads.put(), _SIZE, b"/random/")
    kvs = _stored(member, b"/random/")
    assert sum(kv.version for kv in kvs) == outcome.all_latencies().count == 500
    assert 10 < len(kvs) <= 50


def test_a_share_of_new_keys_grows_the_key_space(member: NodeProcess) -> None:
    _run(member, loads.put(), replace(_SIZE, key_space=1, new_keys=0.5), b"/new/")
    assert 150 < len(_stored(member, b"/new/")) < 350


def test_a_compare_and_swap_holds_only_where_nobody_was_faster(member: NodeProcess) -> None:
    outcome = _run(member, loads.cas(), replace(_SIZE, key_space=3), b"/cas/")
    (measured,) = outcome.snapshot.operations
    kvs = _stored(member, b"/cas/")
    assert sum(kv.version for kv in kvs) == measured.latency.count - measured.missed
    assert measured.missed > 0, "twenty clients on three keys"
    assert len(kvs) == 3


@pytest.mark.parametrize("ordered", [False, True])
def test_a_compare_and_swap_alone_never_conflicts(member: NodeProcess, ordered: bool) -> None:
    prefix = b"/alone/%d/" % ordered
    one = replace(_SIZE, clients=1, connections=1, key_space=9, total=50, ordered=ordered)
    for _ in range(2):  # the second run learns the keys' revisions first
        outcome = _run(member, loads.cas(), one, prefix)
        assert outcome.snapshot.operations[0].missed == 0
    # One who has not learnt them meets each key's revision as a conflict, once.
    plan = replace(loads.cas(), knows_revisions=False)
    conflicts = _run(member, plan, one, prefix).snapshot.operations[0].missed
    assert 0 < conflicts <= 9


def test_ordered_keys_sort_as_they_were_put(member: NodeProcess) -> None:
    size = replace(_SIZE, clients=1, connections=1, key_space=40, total=40, sequential=True, ordered=True)
    _run(member, loads.put(), size, b"/sorted/")
    revisions = [kv.mod_revision for kv in _stored(member, b"/sorted/")]
    assert revisions == sorted(revisions)
    _run(member, loads.put(), replace(size, ordered=False), b"/spread/")
    revisions = [kv.mod_revision for kv in _stored(member, b"/spread/")]
    assert revisions != sorted(revisions)


def test_transactions_put_each_of_their_keys(member: NodeProcess) -> None:
    _run(member, loads.txn(4), replace(_SIZE, total=10, key_space=40, sequential=True), b"/txn/")
    kvs = _stored(member, b"/txn/")
    assert sum(kv.version for kv in kvs) == 40
    assert {kv.mod_revision for kv in kvs if kv.version == 1}, "puts of one transaction share a revision"
    assert len({kv.mod_revision for kv in kvs}) <= 10


def test_reads_find_what_was_put_first_and_say_what_is_missing(member: NodeProcess) -> None:
    target, shape = _target(member), Shape(b"/read/", 24, 64)
    plan = loads.read(serializable=False, limit=1)
    before = _run(member, plan, _SIZE, b"/read/")
    assert before.snapshot.operations[0].missed == 500
    assert fill(target, _SIZE, shape) == 50
    assert fill(target, _SIZE, shape) == 0
    for serializable, limit in ((False, 1), (True, 1), (False, 10), (True, 0)):
        outcome = _run(member, loads.read(serializable=serializable, limit=limit), _SIZE, b"/read/")
        measured = outcome.snapshot.operations[0]
        assert measured.missed == 0
        assert outcome.all_latencies().count == 500
        assert measured.answer_bytes > 500 * max(1, limit) * 64 * (50 if limit == 0 else 0.3)
    outcome = _run(member, loads.read(serializable=False, limit=0, stream=True), _SIZE, b"/read/")
    assert outcome.all_latencies().count == 500
    assert outcome.snapshot.operations[0].answer_bytes > 500 * 50 * 64


def test_a_mix_keeps_its_ratio(member: NodeProcess) -> None:
    fill(_target(member), _SIZE, Shape(b"/mixed/", 24, 64))
    outcome = _run(member, loads.mixed(1, 9, serializable=False), replace(_SIZE, total=5000), b"/mixed/")
    puts, reads = (one.latency.count for one in outcome.snapshot.operations)
    assert puts + reads == 5000
    assert 350 < puts < 650


@pytest.mark.parametrize("streams", [1, 3])
def test_every_watcher_sees_every_put(member: NodeProcess, streams: int) -> None:
    outcome = _run(member, loads.put(Watchers(7, streams)), _SIZE, b"/watch/")
    assert outcome.snapshot.events.count == outcome.snapshot.events_expected == 7 * 500
    assert outcome.snapshot.ready_streams == streams
    # An event comes after its put was sent; of the same put, it comes in about the time of its answer.
    assert outcome.snapshot.events.min_ns > 0


def test_streams_of_one_connection_are_held_back_and_not_cut_off_when_events_are_large(member: NodeProcess) -> None:
    """Found by the bench: more than 64 MiB of events in one turn reset streams that were read as fast as could be."""
    size = replace(_SIZE, connections=1, total=60)
    outcome = _run(member, loads.put(Watchers(800, 40)), size, b"/many/", value_bytes=8192)
    assert not outcome.errors, outcome.snapshot.errors
    assert outcome.snapshot.events.count == outcome.snapshot.events_expected == 800 * 60


def test_lists_go_through_all_pages_and_updates_are_watched(member: NodeProcess) -> None:
    size = replace(_SIZE, key_space=45)
    fill(_target(member), size, Shape(b"/kube/", 24, 64))
    outcome = _run(member, loads.kubernetes((1, 3, 1), 10, Watchers(3, 2)), size, b"/kube/")
    assert not outcome.errors
    first, following, updates, gets = outcome.snapshot.operations
    assert following.latency.count == 4 * first.latency.count, "45 objects are five pages of ten"
    assert first.latency.count + updates.latency.count + gets.latency.count == 500
    done = updates.latency.count - updates.missed
    assert outcome.snapshot.events.count == outcome.snapshot.events_expected == 3 * done
    assert sum(kv.version - 1 for kv in _stored(member, b"/kube/")) == done


def test_a_rate_is_kept(member: NodeProcess) -> None:
    size = replace(_SIZE, total=None, duration_seconds=2.0, rate=300.0)
    outcome = _run(member, loads.put(), size, b"/rate/")
    assert 0.8 < outcome.all_latencies().count / 600 < 1.05


def test_a_stall_is_charged_for_every_call_that_it_kept_waiting(member: NodeProcess) -> None:
    """Coordinated omission: a closed loop of two clients would see the stall twice."""

    def stall() -> None:
        time.sleep(0.5)
        member.signal(signal.SIGSTOP)
        time.sleep(1.0)
        member.signal(signal.SIGCONT)

    stalling = threading.Thread(target=stall)
    stalling.start()
    size = replace(_SIZE, clients=2, total=None, duration_seconds=3.0, rate=200.0)
    outcome = _run(member, loads.put(), size, b"/stall/")
    stalling.join()
    slow = sum(count for low, _, count in outcome.all_latencies().buckets() if low > 100_000_000)
    assert slow > 100, "200 calls a second were due during the second of the stall"
    assert outcome.all_latencies().count > 500, "and all of them were made"


def test_calls_that_are_due_while_the_server_is_away_at_the_end_are_sent_or_told_of(member: NodeProcess) -> None:
    """A stall at the end is a stall, too."""

    def stall() -> None:
        time.sleep(0.5)
        member.signal(signal.SIGSTOP)
        time.sleep(2.0)
        member.signal(signal.SIGCONT)

    for timeout, all_sent in ((20.0, True), (0.5, False)):
        stalling = threading.Thread(target=stall)
        stalling.start()
        size = replace(_SIZE, clients=2, total=None, duration_seconds=1.0, rate=200.0, call_timeout_seconds=timeout)
        outcome = _run(member, loads.put(), size, b"/end/")
        stalling.join()
        made = outcome.all_latencies().count + outcome.errors
        assert made + outcome.snapshot.unsent == 200
        assert (outcome.snapshot.unsent == 0) == all_sent
        codes = report.as_json(outcome)["errors_by_code"]
        assert set(codes) == (set() if all_sent else {"DEADLINE_EXCEEDED"})
        assert ("never sent" in report.as_text(outcome, precise=False)) != all_sent


def test_what_the_server_refuses_is_counted_by_code(member: NodeProcess) -> None:
    outcome = _run(member, loads.put(), replace(_SIZE, total=20), b"/large/", value_bytes=3 << 20)
    figures = report.as_json(outcome)
    assert figures["errors"] == 20
    assert sum(figures["errors_by_code"].values()) == 20
    assert set(figures["errors_by_code"]) <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    assert outcome.all_latencies().count == 0
    assert not _stored(member, b"/large/")


def test_large_values_arrive_whole(member: NodeProcess) -> None:
    _run(member, loads.put(), replace(_SIZE, total=3, clients=3, sequential=True), b"/big/", value_bytes=1 << 20)
    kvs = _stored(member, b"/big/")
    assert [len(kv.value) for kv in kvs] == [1 << 20] * 3


def _command(member: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [RAFTKV, "bench", arguments[0], "--endpoints", member.endpoint, *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)


def test_the_command_prints_a_report(member: NodeProcess) -> None:
    done = _command(member, "put", "--total", "300", "--clients", "10", "--progress", "--interval", "10ms")
    assert done.returncode == 0, done.stderr
    for part in ("Summary:", "Requests/sec:", "Response time histogram:", "Latency distribution:", "99.9% in"):
        assert part in done.stdout
    assert "Error distribution" not in done.stdout


def test_the_command_prints_json(member: NodeProcess) -> None:
    done = _command(member, "mixed", "--total", "300", "--key-space-size", "20", "--json", "--target-leader")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["count"] == sum(one["count"] for one in figures["operations"].values()) == 300
    assert figures["per_second"] == pytest.approx(300 / figures["total_seconds"])
    assert sum(count for _, _, count in figures["histogram"]) == 300
    points = list(figures["percentiles_seconds"].values())
    assert points == sorted(points)
    assert figures["fastest_seconds"] <= figures["average_seconds"] <= figures["slowest_seconds"]


def test_a_service_that_is_not_there_is_named(member: NodeProcess) -> None:
    """Against a server with leases the same command measures them."""
    done = _command(member, "lease", "--total", "10", "--clients", "2")
    if done.returncode == 0:
        assert "Operation revoke:" in done.stdout
    else:
        assert "UNIMPLEMENTED" in done.stdout
        assert "The server does not implement: grant." in done.stdout


def test_ctrl_c_prints_what_was_measured(member: NodeProcess) -> None:
    command = [RAFTKV, "bench", "put", "--endpoints", member.endpoint, "--duration", "300s", "--rate", "200", "--json"]
    # what a shell starts in the background ignores Ctrl-C, and with it all that is started there
    command = ["env", "--default-signal=INT", *command, "--progress"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run_:
        assert run_.stderr is not None
        while not re.search(r"[1-9][\d,]* calls", line := run_.stderr.readline()):
            assert line, "ended before Ctrl-C"
        run_.send_signal(signal.SIGINT)
        out, _ = run_.communicate(timeout=_TIMEOUT)
    figures = json.loads(out)
    assert figures["interrupted"]
    assert figures["count"] > 0
    assert run_.returncode == 130


def test_nobody_at_the_endpoint_is_said_so() -> None:
    with pytest.raises(TargetError, match=r"cannot connect to localhost:1\b"):
        run(Target(parse_endpoints("localhost:1")[0]), loads.put(), _SIZE, Shape(b"/x/", 24, 8))


def test_a_load_goes_on_after_its_member_was_killed_and_started_again(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, "adr") as made:
        (member,) = made.members

        def restart() -> None:
            time.sleep(0.7)
            member.kill()
            member.start()

        restarting = threading.Thread(target=restart)
        restarting.start()
        size = replace(_SIZE, total=None, duration_seconds=8.0, rate=200.0)
        outcome = run(_target(member), loads.put(), size, Shape(b"/again/", 24, 64), look_seconds=0.25)
        restarting.join()
        codes = report.as_json(outcome)["errors_by_code"]
        assert codes["UNAVAILABLE"] > 0
        failed_at = max(one.at_seconds for one in outcome.intervals if one.errors)
        later = sum(one.calls for one in outcome.intervals if one.at_seconds > failed_at)
        assert later > 0, "calls succeed again after the last failure"


def test_a_load_whose_server_is_gone_for_good_ends_and_says_why(tmp_path: Path) -> None:
    with cluster(tmp_path, 1, "adr") as made:
        (member,) = made.members
        target = replace(_target(member), timeout_seconds=1.0)
        killing = threading.Timer(0.5, member.kill)
        killing.start()
        outcome = run(target, loads.put(), replace(_SIZE, total=1 << 40), Shape(b"/gone/", 24, 64))
        killing.join()
        assert outcome.snapshot.failure is not None
        assert "connections" in outcome.snapshot.failure
        assert outcome.all_latencies().count > 0
