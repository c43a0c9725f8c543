"""Debian's etcdctl against a cluster started by hand: the commands that people use first."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "server"))

from processes import START_SECONDS, Cluster, NodeProcess, cluster, free_ports, wait_until

ETCDCTL = shutil.which("etcdctl")
pytestmark = pytest.mark.skipif(ETCDCTL is None, reason="etcdctl is not installed (Debian's package etcd-client)")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("etcdctl"), 3, "adr") as made:
        yield made


def run(under_test: Cluster, *arguments: str, stdin: str = "", check: bool = True, endpoints: str = "") -> str:
    """One etcdctl command; its output."""
    assert ETCDCTL is not None
    targets = endpoints or ",".join(one.endpoint for one in under_test.members)
    result = subprocess.run(
        [ETCDCTL, f"--endpoints={targets}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result.stdout if check else result.stdout + result.stderr


def as_json(under_test: Cluster, *arguments: str, endpoints: str = "") -> Any:
    return json.loads(run(under_test, *arguments, "-w", "json", endpoints=endpoints))


def test_put_and_get(three: Cluster) -> None:
    assert run(three, "put", "pets/cat", "meow") == "OK\n"
    assert run(three, "put", "pets/dog", "woof") == "OK\n"
    assert run(three, "get", "pets/cat") == "pets/cat\nmeow\n"
    assert run(three, "get", "--prefix", "pets/") == "pets/cat\nmeow\npets/dog\nwoof\n"
    assert run(three, "get", "--prefix", "pets/", "--keys-only", "--order=DESCEND").split() == ["pets/dog", "pets/cat"]
    assert as_json(three, "get", "--prefix", "pets/", "--limit=1")["count"] == 2
    assert run(three, "put", "pets/cat", "purr", "--prev-kv") == "OK\npets/cat\nmeow\n"
    assert run(three, "get", "pets/cat", "--consistency=s", endpoints=three.members[0].endpoint).startswith("pets/cat")


def test_every_member_takes_writes_and_answers_for_all(three: Cluster) -> None:
    for member in three.members:
        assert run(three, "put", "from", member.name, endpoints=member.endpoint) == "OK\n"
        for other in three.members:
            assert run(three, "get", "from", "--print-value-only", endpoints=other.endpoint).strip() == member.name


def test_delete(three: Cluster) -> None:
    for number in range(3):
        run(three, "put", f"gone/{number}", "x")
    assert run(three, "del", "gone/0", "--prev-kv") == "1\ngone/0\nx\n"
    assert run(three, "del", "--prefix", "gone/") == "2\n"
    assert run(three, "get", "--prefix", "gone/") == ""


def test_a_transaction_takes_the_branch_that_its_comparison_says(three: Cluster) -> None:
    run(three, "put", "guard", "open")
    text = 'value("guard") = "open"\n\nput guard closed\nget guard\n\nput guard broken\n\n'
    assert run(three, "txn", stdin=text) == "SUCCESS\n\nOK\n\nguard\nclosed\n"
    assert run(three, "txn", stdin=text).startswith("FAILURE")
    assert run(three, "get", "guard", "--print-value-only") == "broken\n"
    absent = 'create("never") = "0"\n\nget guard\n\n\n'
    assert run(three, "txn", stdin=absent) == "SUCCESS\n\nguard\nbroken\n"


def test_watch_sees_history_and_what_comes(three: Cluster) -> None:
    start = as_json(three, "put", "seen/1", "a")["header"]["revision"]
    assert ETCDCTL is not None
    target = three.members[1].endpoint
    watch = subprocess.Popen(
        [ETCDCTL, f"--endpoints={target}", "watch", "--prefix", "seen/", f"--rev={start}", "--prev-kv"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watch.stdout is not None
        ender = threading.Timer(START_SECONDS, watch.kill)
        ender.start()
        assert [watch.stdout.readline().strip() for _ in range(3)] == ["PUT", "seen/1", "a"]
        run(three, "put", "unseen", "x")
        run(three, "put", "seen/1", "b")
        run(three, "del", "seen/1")
        wanted = ["PUT", "seen/1", "a", "seen/1", "b", "DELETE", "seen/1", "b", "seen/1"]
        found: list[str] = []
        while len(found) < len(wanted) and (line := watch.stdout.readline()):
            if line.strip():
                found.append(line.strip())
        assert found == wanted
        ender.cancel()
    finally:
        watch.kill()
        watch.wait()


def test_compaction(three: Cluster) -> None:
    first = as_json(three, "put", "old", "1")["header"]["revision"]
    for value in "234":
        last = as_json(three, "put", "old", value)["header"]["revision"]
    assert run(three, "get", "old", f"--rev={first}", "--print-value-only") == "1\n"
    run(three, "compact", str(last), "--physical=true")
    assert "required revision has been compacted" in run(three, "get", "old", f"--rev={first}", check=False)
    assert "required revision is a future revision" in run(three, "get", "old", f"--rev={last + 999}", check=False)
    assert run(three, "get", "old", "--print-value-only") == "4\n"


def test_members_and_status(three: Cluster) -> None:
    members = as_json(three, "member", "list")["members"]
    assert {one["name"] for one in members} == {"n1", "n2", "n3"}
    assert {one["peerURLs"][0] for one in members} == {one.peer_url for one in three.members}
    wait_until(
        "client URLs of all", lambda: all(one.get("clientURLs") for one in as_json(three, "member", "list")["members"])
    )
    table = run(three, "endpoint", "status", "-w", "table")
    assert table.count("| true |") + table.count("|      true |") == 1, table
    statuses = as_json(three, "endpoint", "status")
    assert len({one["Status"]["header"]["cluster_id"] for one in statuses}) == 1
    assert len({one["Status"]["leader"] for one in statuses}) == 1
    assert run(three, "endpoint", "health", check=False).count("is healthy") == len(three.members)
    assert run(three, "alarm", "list") == ""
    assert len({one["HashKV"]["hash"] for one in as_json(three, "endpoint", "hashkv")}) == 1


def test_the_lead_can_be_moved_and_only_by_the_leader(three: Cluster) -> None:
    statuses = as_json(three, "endpoint", "status")
    leader = statuses[0]["Status"]["leader"]
    by_id = {one["Status"]["header"]["member_id"]: one["Endpoint"] for one in statuses}
    target = next(one for one in by_id if one != leader)
    refused = run(three, "move-leader", f"{target:x}", check=False, endpoints=by_id[target])
    assert "no leader endpoint given" in refused
    assert "bad leader transferee" in run(three, "move-leader", "99", check=False)
    assert "Leadership transferred" in run(three, "move-leader", f"{target:x}")
    assert {one["Status"]["leader"] for one in as_json(three, "endpoint", "status")} == {target}


def test_what_is_not_served_yet_says_so(three: Cluster) -> None:
    assert "Unimplemented" in run(three, "lease", "grant", "10", check=False)
    assert "Unimplemented" in run(three, "user", "list", check=False)


def test_a_member_is_added_started_promoted_and_removed(tmp_path: Path) -> None:
    """By hand, as with etcd: member add --learner, start with existing, promote, remove."""
    with cluster(tmp_path, 1, "adr") as made:
        first = made.members[0]
        ports = free_ports(2)
        joiner = NodeProcess("n2", tmp_path / "n2", *ports)
        added = run(made, "member", "add", "n2", f"--peer-urls={joiner.peer_url}", "--learner")
        assert 'ETCD_INITIAL_CLUSTER_STATE="existing"' in added
        assert "Peer URLs already exists" in run(
            made, "member", "add", "n3", f"--peer-urls={joiner.peer_url}", "--learner", check=False
        )
        assert "too many learner" in run(
            made, "member", "add", "n3", "--peer-urls=http://127.0.0.1:1", "--learner", check=False
        )
        joiner.arguments = [
            *("--initial-cluster", f"n1={first.peer_url},n2={joiner.peer_url}", "--initial-cluster-state", "existing"),
            *("--minimum-durability", "process"),
        ]
        run(made, "put", "before", "joining")
        joiner.start()
        try:
            _promote(made)
            made.members.append(joiner)
        finally:
            if joiner not in made.members:
                joiner.kill()
                print(joiner.log_text())
        members = as_json(made, "member", "list")["members"]
        identifier = next(one["ID"] for one in members if one["peerURLs"] == [joiner.peer_url])
        read = run(made, "get", "before", "--print-value-only", endpoints=joiner.endpoint)
        assert read == "joining\n"
        assert "Removed member" not in run(made, "member", "remove", "99", check=False)
        assert f"Member {identifier:x} removed" in run(
            made, "member", "remove", f"{identifier:x}", endpoints=first.endpoint
        ).replace("  ", " ")
        assert len(as_json(made, "member", "list", endpoints=first.endpoint)["members"]) == 1
        assert run(made, "put", "after", "removal", endpoints=first.endpoint) == "OK\n"


def _promote(made: Cluster) -> None:
    """Promotes the learner once it is in sync; until then etcd's refusals are answered."""
    members = as_json(made, "member", "list")["members"]
    learner = next(one for one in members if one.get("isLearner"))

    def promoted() -> bool:
        answer = run(made, "member", "promote", f"{learner['ID']:x}", check=False)
        return "promoted" in answer or "can only promote a learner member\n" in answer

    wait_until("promotion", promoted)


def test_a_voter_added_by_hand_votes_once_it_has_caught_up(tmp_path: Path) -> None:
    """etcd would count it at once; here nobody votes before having the log, so the quorum is never at risk."""
    with cluster(tmp_path, 1, "disk", ("--minimum-durability", "process")) as made:
        first = made.members[0]
        joiner = NodeProcess("n2", tmp_path / "n2", *free_ports(2))
        run(made, "member", "add", "n2", f"--peer-urls={joiner.peer_url}")
        assert run(made, "put", "still", "served") == "OK\n"
        joiner.arguments = [
            *("--initial-cluster", f"n1={first.peer_url},n2={joiner.peer_url}", "--initial-cluster-state", "existing"),
            *("--minimum-durability", "process"),
        ]
        joiner.start()
        made.members.append(joiner)

        def votes() -> bool:
            members = as_json(made, "member", "list", endpoints=first.endpoint)["members"]
            return len(members) == 2 and not any(one.get("isLearner") for one in members)

        wait_until("second voter", votes)
        assert run(made, "get", "still", "--print-value-only", endpoints=joiner.endpoint) == "served\n"
