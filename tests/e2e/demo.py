"""The whole of RaftKV in one scenario, unattended: ``make demo``.

A playground comes up, a cluster of three is applied with kubectl, and a client writes numbered keys through its Service
without pause while the cluster is scaled to five (its operator killed meanwhile), loses its leader's pod, goes back to
three by a patch and has a node process killed. Then every acknowledged key must be there on every member, the members'
hashes must agree, the commit-latency histogram must have grown, and deleting the cluster must leave nothing behind.
The exit code tells.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import grpc
from kube import (
    CLIENT_PORT,
    METRICS_PORT,
    NAME,
    SAMPLE,
    START_SECONDS,
    Kubectl,
    ScenarioError,
    cluster,
    member_pods,
    playground,
    processes,
    settled,
    wait_until,
)
from raftkv_node.pb import rpc_pb2, rpc_pb2_grpc
from writer import History, Writer, missing_writes

# Bounds of the scenario, generous for a small and busy machine: they tell "hangs" from "works", not fast from slow.
_STEP_SECONDS = 180.0
_GAP_SECONDS = 15.0
_COMMIT_COUNT = re.compile(r"^raftkv_commit_duration_seconds_count\{[^}]*\} ([0-9.e+]+)", re.MULTILINE)


def say(text: str) -> None:
    """One line of progress, with the time since the start."""
    print(f"[{time.monotonic() - _BEGIN:6.1f}s] {text}", flush=True)


_BEGIN = time.monotonic()


def commits(kubectl: Kubectl) -> float:
    """Observations in the commit-latency histograms of all members."""
    total = 0.0
    for address in member_pods(kubectl).values():
        with urllib.request.urlopen(f"http://{address}:{METRICS_PORT}/metrics", timeout=5) as answer:
            total += sum(float(n) for n in _COMMIT_COUNT.findall(answer.read().decode()))
    return total


def scale_out_while_the_operator_dies(kubectl: Kubectl) -> None:
    """3 -> 5 by ``kubectl scale``, with a SIGKILL of the operator in the middle."""
    kubectl.run("scale", f"rkv/{NAME}", "--replicas=5")
    wait_until("a fourth member", lambda: len(member_pods(kubectl)) >= 4, _STEP_SECONDS)
    victims = processes(r"raftkv operator", kubectl.folder)
    if not victims:
        raise ScenarioError("no operator process found")
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    say(f"operator killed (process {', '.join(map(str, victims))}) in the middle of scaling out")
    wait_until(
        "another operator process", lambda: bool(set(processes(r"raftkv operator", kubectl.folder)) - set(victims)), 60
    )
    took = wait_until("five members", lambda: settled(kubectl, 5), _STEP_SECONDS)
    say(f"five members after another {took:.1f} s")


def lose_the_leaders_pod(kubectl: Kubectl) -> None:
    """``kubectl delete pod`` of the leader; it comes back, somebody else leads or it again."""
    leader = cluster(kubectl)["status"]["leader"]
    pod = next(name for name in member_pods(kubectl) if name.startswith(f"{leader}-"))
    uid = kubectl.get("pod", pod)["metadata"]["uid"]
    kubectl.run("delete", "pod", pod)
    wait_until(f"another pod {pod}", lambda: kubectl.get("pod", pod)["metadata"]["uid"] != uid, _STEP_SECONDS)
    took = wait_until("five ready members", lambda: settled(kubectl, 5), _STEP_SECONDS)
    say(f"leader's pod {pod} deleted; all five ready again after {took:.1f} s")


def scale_in(kubectl: Kubectl) -> None:
    """5 -> 3 by ``kubectl patch``."""
    kubectl.run("patch", "rkv", NAME, "--type=merge", "-p", '{"spec":{"replicas":3}}')
    took = wait_until("three members", lambda: settled(kubectl, 3), _STEP_SECONDS)
    wait_until("three pods", lambda: len(member_pods(kubectl)) == 3, _STEP_SECONDS)
    say(f"three members after {took:.1f} s")


def kill_a_node_process(kubectl: Kubectl) -> None:
    """SIGKILL of one member's process: its pod restarts it, on its own log."""
    victim = next(iter(sorted(member_pods(kubectl))))
    restarts = _restarts(kubectl, victim)
    pids = processes(rf"raftkv node .*--name[= ]{victim.rsplit('-', 1)[0]}\b", kubectl.folder)
    if not pids:
        raise ScenarioError(f"no process of {victim} found")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(f"a restart of {victim}", lambda: _restarts(kubectl, victim) > restarts, _STEP_SECONDS)
    took = wait_until("three ready members", lambda: settled(kubectl, 3), _STEP_SECONDS)
    say(f"node process of {victim} killed; ready again after {took:.1f} s")


def _restarts(kubectl: Kubectl, pod: str) -> int:
    return int(kubectl.get("pod", pod)["status"]["containerStatuses"][0]["restartCount"])


def check_writes(kubectl: Kubectl, history: History) -> None:
    """Every acknowledged write is on each member, serializably and linearizably; the members' hashes agree."""
    hashes: dict[str, tuple[int, int]] = {}
    revision = 0
    addresses = {name: f"{ip}:{CLIENT_PORT}" for name, ip in member_pods(kubectl).items()}
    for name, address in addresses.items():
        for serializable in (False, True):
            problems = missing_writes(address, history, serializable=serializable)
            if problems:
                kind = "serializable" if serializable else "linearizable"
                raise ScenarioError(f"{name}, {kind}: {len(problems)} problems, e.g. {problems[:3]}")
        with grpc.insecure_channel(address) as channel:
            if not revision:
                revision = rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"x")).header.revision
            answer = rpc_pb2_grpc.MaintenanceStub(channel).HashKV(rpc_pb2.HashKVRequest(revision=revision), timeout=30)
            hashes[name] = (answer.hash, answer.compact_revision)
    if len(set(hashes.values())) != 1:
        raise ScenarioError(f"the members' hashes differ at revision {revision}: {hashes}")
    say(f"all {len(history.acknowledged)} acknowledged keys are on each of {', '.join(addresses)}; HashKV agrees")


def delete_and_look_for_remains(kubectl: Kubectl, state: Path) -> None:
    """Deleting the resource leaves no pod, no process, and no file but what the retention policy keeps."""
    policy = cluster(kubectl)["spec"]["storage"]["retentionPolicy"]["whenDeleted"]
    kubectl.run("delete", "rkv", NAME, "--timeout=180s")
    wait_until("no pods", lambda: not kubectl.pods(f"raftkv.dev/cluster={NAME}"), _STEP_SECONDS)
    wait_until("no processes", lambda: not processes(rf"raftkv node .*--cluster-name[= ]{NAME}\b", state), 60)
    if policy != "Delete":
        say(f"the retention policy is {policy}: claims and rings are kept")
        return
    wait_until("no claims", lambda: not kubectl.get("pvc")["items"], _STEP_SECONDS)

    def remains() -> list[Path]:
        rings = [p for root in (state / "state").glob("nodes/*/rootfs") for p in root.rglob("*.ring")]
        return rings + list((state / "state").rglob("*.mdb")) + list((state / "state").rglob("*.seg"))

    wait_until("no ring and no data file", lambda: not remains(), 60)
    say("deleted: no pod, no process, no claim, no ring, no data file is left")


def scenario(kubectl: Kubectl, state: Path) -> None:
    """The steps in order."""
    kubectl.run("apply", "-f", str(SAMPLE))
    took = wait_until("the resource", lambda: bool(cluster(kubectl)), 30)
    kubectl.run("wait", "--for=condition=Available", f"rkv/{NAME}", f"--timeout={int(START_SECONDS)}s")
    took = wait_until("three ready members", lambda: settled(kubectl, 3), _STEP_SECONDS)
    say(f"three members (ready {took:.1f} s after Available)")
    service = kubectl.get("service", NAME)["spec"]
    address = f"{service['clusterIP']}:{CLIENT_PORT}"
    before = commits(kubectl)
    writer = Writer(address)
    writer.start()
    try:
        wait_until("first acknowledged writes", lambda: writer.count() > 100, 60)
        say(f"writing through the Service at {address}")
        scale_out_while_the_operator_dies(kubectl)
        lose_the_leaders_pod(kubectl)
        scale_in(kubectl)
        kill_a_node_process(kubectl)
        count = writer.count()
        wait_until("writes after the last fault", lambda: writer.count() > count + 100, 60)
    finally:
        history = writer.stop()
    gap = history.longest_gap_seconds()
    say(f"{len(history.acknowledged)} writes acknowledged, {len(history.maybe)} of unknown fate")
    say(f"longest gap between acknowledgements: {gap:.2f} s")
    for text, count in sorted(history.errors.items()):
        say(f"    {count} x {text}")
    check_writes(kubectl, history)
    after = commits(kubectl)
    if not after > before:
        raise ScenarioError(f"the commit-latency histogram did not grow: {before} -> {after}")
    say(f"commit-latency histogram: {before:.0f} -> {after:.0f} observations")
    if gap > _GAP_SECONDS:
        raise ScenarioError(f"the longest gap was {gap:.1f} s, more than {_GAP_SECONDS} s")
    delete_and_look_for_remains(kubectl, state)


def main() -> int:
    """Runs the scenario on a playground of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raftkv-demo-") as folder:
        state = Path(folder)
        try:
            with playground(state) as kubectl:
                scenario(kubectl, state)
            left = processes("", state)
            if left:
                raise ScenarioError(f"the playground has left processes behind: {left}")
        except ScenarioError as error:
            say(f"FAILED: {error}")
            return 1
    say("demo passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
