"""Replay a recording of a real Kubernetes API server against the playground's, and tell the differences.

``python recorded_replay.py RECORDING`` starts a server (and the controllers, see ``--without-controllers``), sends
all recorded requests in order, then runs the recorded kubectl commands, and compares every answer as a whole after
the normalisation in ``recorded_normal``. Differences that ``known-differences.yaml`` lists, each with its reason, are
counted; any other is printed and makes the exit code 1.

Reading requests that follow a pause in the recording depend on controllers: they are repeated until they agree or
the patience (the recorded pause and a margin) is over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fnmatch
import importlib.util
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import recorded_normal as normal
import yaml

HERE = Path(__file__).parent
CONTROLLERS = "raftkv_playground.controllers.manager"
GONE_POD = ("delete graceful", "terminating", "delete force")
# The recorded cluster lost its only node between these two requests (see the README of the recording): the pod on it
# was there for one status update, and then collected.
NODE_NEEDED_BY, NODE_GONE_AFTER = "pod for eviction", "pod running ready"
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"unschedulable": True}}
NODES_POD = "/api/v1/namespaces/conf/pods/q"
NODE_LOSS_SECONDS = 30.0
PAUSE_LIMIT_SECONDS = 3.0
PATIENCE_SECONDS = 5.0
COMMAND_SECONDS = 60.0
_PLACEHOLDER = re.compile(r"\{(rv|uid):([^}]+)\}")
_STRICT = re.compile(r"/apis/example\.dev/v1/")
"""Requests for custom resources: no difference may be listed for them."""


@dataclass(frozen=True)
class Difference:
    label: str
    path: str
    expected: Any
    found: Any

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            out = json.dumps(value, ensure_ascii=False)
            return out if len(out) < 700 else out[:700] + "..."

        return f"[{self.label}] {self.path}\n    recorded: {shown(self.expected)}\n    found:    {shown(self.found)}"


@dataclass
class Known:
    """One listed difference: a label and a path, both with ``*``, and why it is so."""

    label: str
    field: str
    reason: str
    used: int = 0

    def covers(self, difference: Difference) -> bool:
        pattern = self.field.replace("[", "[[]")
        return fnmatch.fnmatchcase(difference.label, self.label) and fnmatch.fnmatchcase(difference.path, pattern)


def load_known(path: Path) -> list[Known]:
    entries = yaml.safe_load(path.read_text()) or []
    known = []
    for entry in entries:
        if set(entry) != {"label", "field", "reason"} or not all(str(v).strip() for v in entry.values()):
            raise SystemExit(f"{path}: each entry needs label, field and reason: {entry}")
        known.append(Known(entry["label"], entry["field"], entry["reason"]))
    return known


def strict_labels(requests: list[dict[str, Any]]) -> set[str]:
    """Labels for which nothing may be listed: custom resources, immutability of StatefulSets, RBAC."""
    return {
        r["label"]
        for r in requests
        if (_STRICT.search(r["path"]) and not r["path"].startswith("/openapi"))
        or (r["label"].startswith("sts ") and r["label"].endswith("immutable"))
        or r["label"].startswith("rbac")
    }


@dataclass
class Replay:
    url: str
    ca_file: Path
    tokens: dict[str, str]
    known: list[Known]
    answers: dict[str, Any] = field(default_factory=dict)
    waits: bool = True
    """Whether there are controllers to wait for."""

    async def run(self, requests: list[dict[str, Any]]) -> list[Difference]:
        found: list[Difference] = []
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, headers={"User-Agent": "python-httpx/0"}) as session:
            patience, pause = 0.0, 0.0
            for request in requests:
                if request["method"] != "GET" or request["stream_seconds"]:
                    # What was waited for in the recording is waited for here before the next change, unless that
                    # is about something being under way (a namespace that ends), which is quicker here.
                    patience = 0.0
                    under_way = "is being terminated" in json.dumps(request["answer"])
                    if self.waits and not under_way:
                        await asyncio.sleep(min(pause, PAUSE_LIMIT_SECONDS))
                elif pause:
                    patience = (pause + PATIENCE_SECONDS) * self.waits
                pause = 0.0
                if self.waits and request["label"] == NODE_NEEDED_BY:
                    await self._admin(session, "POST", "/api/v1/nodes", NODE)
                found += await self._one(session, request, patience)
                pause = float(request["pause_seconds"] or 0)
                if self.waits and request["label"] == NODE_GONE_AFTER:
                    await self._lose_node(session)
        return found

    async def _admin(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None = None
    ) -> int:
        media = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self.tokens['admin']}", "Content-Type": media}
        async with session.request(method, self.url + path, data=json.dumps(body or {}), headers=headers) as response:
            return response.status

    async def _lose_node(self, session: aiohttp.ClientSession) -> None:
        """Remove the recording's node, and wait for the pod garbage collector to take its pod (which looks at a pod
        when something about it changes, or after a grace period)."""
        await self._admin(session, "DELETE", "/api/v1/nodes/n1")
        deadline = time.monotonic() + NODE_LOSS_SECONDS
        while await self._admin(session, "GET", NODES_POD) == 200 and time.monotonic() < deadline:
            poke = {"metadata": {"annotations": {"poke": str(time.monotonic())}}}
            await self._admin(session, "PATCH", NODES_POD, poke)
            await asyncio.sleep(0.2)

    async def _one(self, session: aiohttp.ClientSession, request: dict[str, Any], patience: float) -> list[Difference]:
        deadline = time.monotonic() + patience
        while True:
            answer = await self._send(session, request)
            differences = list(compare(request, answer))
            open_ones = [d for d in differences if not any(k.covers(d) for k in self.known)]
            if not open_ones or time.monotonic() >= deadline:
                self.answers[request["label"]] = answer.get("body")
                return differences
            await asyncio.sleep(0.1)

    def _fill(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            meta = (self.answers.get(match[2]) or {}).get("metadata") or {}
            return str(meta.get("resourceVersion" if match[1] == "rv" else "uid", "unknown"))

        return _PLACEHOLDER.sub(value, text)

    async def _send(self, session: aiohttp.ClientSession, request: dict[str, Any]) -> dict[str, Any]:
        headers = {}
        if token := request["token"]:
            headers["Authorization"] = f"Bearer {self.tokens.get(token, token)}"
        if request["content_type"]:
            headers["Content-Type"] = request["content_type"]
        if request["accept"]:
            headers["Accept"] = request["accept"]
        body = request["body"]
        data = None
        if body is not None:
            data = self._fill(body if isinstance(body, str) else json.dumps(body)).encode()
        from yarl import URL

        url = URL(self.url + self._fill(request["path"]), encoded=True)
        async with session.request(
            request["method"], url, data=data, headers=headers, skip_auto_headers=["Content-Type"]
        ) as response:
            if request["stream_seconds"]:
                return {"status": response.status, "lines": await _lines(response, request["stream_seconds"])}
            raw = await response.text()
            answer: dict[str, Any] = {
                "status": response.status,
                "content_type": response.headers.get("Content-Type"),
                "warning": ", ".join(response.headers.getall("Warning", [])) or None,
            }
            try:
                answer["body"] = json.loads(raw)
            except ValueError:
                answer["body"] = raw
            return answer


async def _lines(response: aiohttp.ClientResponse, seconds: float) -> list[Any]:
    lines: list[Any] = []

    async def read() -> None:
        buffer = b""
        async for chunk in response.content.iter_any():
            buffer += chunk
            *whole, buffer = buffer.split(b"\n")
            lines.extend(json.loads(line) for line in whole if line)

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(read(), seconds)
    return lines


def compare(request: dict[str, Any], answer: dict[str, Any]) -> Iterator[Difference]:
    recorded = request["answer"]
    for key in ("status", "content_type", "warning"):
        if key in recorded and recorded[key] != answer.get(key):
            yield Difference(request["label"], key, recorded[key], answer.get(key))
    for key in ("body", "lines"):
        if key in recorded:
            expected, found = normal.answer(recorded[key]), normal.answer(answer.get(key))
            for path, left, right in normal.differences(expected, found, key):
                yield Difference(request["label"], path, left, right)


# ------------------------------------------------------------------------------------------------------- commands


def find_kubectl() -> str | None:
    """The kubectl to run: ``$KUBECTL``, one of the recorded version beside the machine's, or the machine's."""
    if chosen := os.environ.get("KUBECTL"):
        return chosen
    plain = shutil.which("kubectl")
    if plain is None:
        return None
    beside = Path(plain).resolve().parent / "kubectl.1.32"
    return str(beside) if beside.exists() else plain


def run_commands(recording: Path, kubeconfig: Path, kubectl: str) -> list[Difference]:
    found: list[Difference] = []
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory) / "manifests"
        shutil.copytree(recording / "manifests", work)
        work.chmod(0o700)
        # kubectl names itself as the field manager by the name that it was called by.
        program = Path(directory) / "kubectl"
        program.symlink_to(kubectl)
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": directory, "LC_ALL": "C"}
        for line in (recording / "kubectl.jsonl").read_text().splitlines():
            recorded = json.loads(line)
            arguments = recorded["command"]
            done = subprocess.run(
                [str(program), *arguments[1:]],
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            label = " ".join(arguments)
            if done.returncode != recorded["exit"]:
                found.append(Difference(label, "exit", recorded["exit"], done.returncode))
            for name, output in (("stdout", done.stdout), ("stderr", done.stderr)):
                left, right = normal.command_text(recorded[name]), normal.command_text(output)
                if left != right:
                    found.append(Difference(label, name, left, right))
    return found


# --------------------------------------------------------------------------------------------------------- server


@contextmanager
def playground(directory: Path, *, controllers: bool) -> Iterator[Path]:
    """A server (and controllers) in processes of their own; yields the state directory."""
    processes: list[subprocess.Popen[str]] = []
    state = directory / "state"
    identities = ["oper=user:oper", "controllers=masters:system:kube-controller-manager"]
    command = [sys.executable, "-m", "raftkv_playground.apiserver", "--state-dir", str(state)]
    command += [a for i in identities for a in ("--identity", i)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes.append(server)
    try:
        assert server.stdout is not None
        if not server.stdout.readline().startswith("ready"):
            raise SystemExit("the API server did not start")
        if controllers:
            processes.append(start_controllers(directory, state))
        yield state
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_controllers(directory: Path, state: Path) -> subprocess.Popen[str]:
    """The playground's controllers under an identity of their own."""
    config = yaml.safe_load((state / "kubeconfig").read_text())
    config["users"][0]["user"]["token"] = (state / "tokens" / "controllers").read_text()
    own = directory / "controllers.kubeconfig"
    own.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", CONTROLLERS, f"--kubeconfig={own}", f"--volumes-dir={directory / 'volumes'}"]
    with (directory / "controllers.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)


def has_controllers() -> bool:
    return importlib.util.find_spec(CONTROLLERS) is not None


def controlled_labels(requests: list[dict[str, Any]]) -> set[str]:
    """Labels whose answers show what controllers did; without controllers they are not compared."""
    traces = ("kube-controller-manager", "kube-scheduler", "Unschedulable")
    seen = {r["label"] for r in requests if any(t in json.dumps(r["answer"]) for t in traces)}
    return seen | {"sts scale", "owned collected", "evict blocked", "namespace gone"} | {f"pod {x}" for x in GONE_POD}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="the folder with requests.jsonl, kubectl.jsonl and manifests/")
    parser.add_argument("--without-controllers", action="store_true")
    parser.add_argument("--only", choices=["requests", "commands"])
    parser.add_argument("--verbose", action="store_true", help="print the listed differences, too")
    options = parser.parse_args()
    requests = [json.loads(line) for line in (options.recording / "requests.jsonl").read_text().splitlines()]
    known = load_known(HERE / "known-differences.yaml")
    for entry in known:
        if hit := sorted(label for label in strict_labels(requests) if fnmatch.fnmatchcase(label, entry.label)):
            print(f"known-differences.yaml: no difference may be listed for {', '.join(hit)}")
            return 1
    controllers = has_controllers() and not options.without_controllers
    found: list[Difference] = []
    kubectl = find_kubectl()
    with tempfile.TemporaryDirectory() as directory, playground(Path(directory), controllers=controllers) as state:
        if options.only != "commands":
            tokens = {p.name: p.read_text() for p in (state / "tokens").iterdir()}
            replay = Replay(
                (state / "endpoint").read_text().strip(), state / "ca.crt", tokens, known, waits=controllers
            )
            skipped = set() if controllers else controlled_labels(requests)
            found += [d for d in asyncio.run(replay.run(requests)) if d.label not in skipped]
            print(f"{len(requests) - len(skipped)} of {len(requests)} requests compared")
            if skipped:
                print("no controllers here: what depends on them was not compared: " + ", ".join(sorted(skipped)))
        if options.only != "requests":
            if kubectl is None:
                print("no kubectl on this machine: its commands are skipped")
            else:
                found += run_commands(options.recording, state / "kubeconfig", kubectl)
                print(f"all recorded commands compared, run by {kubectl}")
    return report(found, known, verbose=options.verbose)


def report(found: list[Difference], known: list[Known], *, verbose: bool) -> int:
    unlisted, listed = [], 0
    for difference in found:
        entry = next((k for k in known if k.covers(difference)), None)
        if entry is None:
            unlisted.append(difference)
        else:
            entry.used += 1
            listed += 1
            if verbose:
                print(f"listed: {difference}\n    reason:   {entry.reason}")
    for difference in unlisted:
        print(difference)
    for entry in known:
        if not entry.used and verbose:
            print(f"note: nothing differs any more in [{entry.label}] {entry.field}")
    print(f"{len(unlisted)} differences, {listed} more are listed with their reasons")
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
