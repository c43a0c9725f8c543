"""Bugs planted outside of the product, each of which a run must find: the checks of the checks.

They sit where a client or a machine would have them, so that nodes stay what they are. The first two are right for as
long as nothing goes wrong: only faults bring them out.
"""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

from chaos_load import CALL_SECONDS, Put, Range, Session, Watcher
from chaos_members import ChaosCluster, ChaosMember
from google.protobuf.message import Message
from history_records import Operation, Outcome, Watch
from raftkv_node.pb import rpc_pb2

FORGOTTEN_SECONDS = 2.0
"""So long a cluster goes on after the moment to which its disks fall back."""
DROP_EVERY = 25


class TakesSilenceForYes(Session):
    """A client that counts a put as acknowledged though no answer came: it was sent, after all."""

    _newest = 1

    def call(self, request: Message, seconds: float = CALL_SECONDS) -> Operation:
        operation = super().call(request, seconds)
        if operation.response is not None:
            self._newest = max(self._newest, int(operation.response.header.revision))  # type: ignore[attr-defined]
        elif isinstance(request, Put) and operation.outcome is Outcome.UNKNOWN:
            operation.outcome, operation.returned = Outcome.OK, time.monotonic()
            operation.response = rpc_pb2.PutResponse()
            operation.response.header.revision = self._newest + 1
        return operation


class ReadsWithoutAsking(Session):
    """Linearizable reads that any member answers from what it has, as if nobody else had to be asked."""

    def call(self, request: Message, seconds: float = CALL_SECONDS) -> Operation:
        if not isinstance(request, Range) or request.serializable or request.revision:
            return super().call(request, seconds)
        loose = Range()
        loose.CopyFrom(request)
        loose.serializable = True
        operation = super().call(loose, seconds)
        operation.request, operation.session = request, ""
        return operation


class LosesEvents(Watcher):
    """A watch that now and then loses what it was told."""

    _seen = 0

    def _take(self, watch: Watch, response: rpc_pb2.WatchResponse) -> None:
        if response.events:
            self._seen += 1
            if self._seen % DROP_EVERY == 0:
                return
        super()._take(watch, response)


def disks_fall_back(cluster: ChaosCluster) -> None:
    """All disks and rings at once become what they were a moment ago: as if nothing since had been kept.

    A minority that falls back is found out by the others (M5, M15); when all do, no member can know. Clients do.
    """
    members = list(cluster.members)
    for member in members:
        member.signal(signal.SIGSTOP)
    places = [place for member in members for place in _places(member)]
    for place in places:
        shutil.copytree(place, _copy(place), dirs_exist_ok=True)
    for member in members:
        member.signal(signal.SIGCONT)
    time.sleep(FORGOTTEN_SECONDS)
    for member in members:
        member.busy.acquire()
        member.signal(signal.SIGKILL)
    for member in members:
        member.kill()
    for place in places:
        _write_back(place)
    for member in members:
        member.start()
        member.busy.release()


def _places(member: ChaosMember) -> list[Path]:
    return [member.data_dir, *([member.ring] if member.ring is not None else [])]


def _copy(place: Path) -> Path:
    return place.with_name(place.name + ".copy")


def _write_back(place: Path) -> None:
    """The old contents, in the files that were there then: they stay the same files, as on a disk that forgets."""
    copy = _copy(place)
    for one in sorted(place.rglob("*"), reverse=True):
        if one.is_file() and not (copy / one.relative_to(place)).exists():
            one.unlink()
    for one in copy.rglob("*"):
        if one.is_file():
            target = place / one.relative_to(copy)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("r+b" if target.exists() else "wb") as file:
                file.write(one.read_bytes())
                file.truncate()
    shutil.rmtree(copy)


PLANTS: dict[str, dict[str, Any]] = {
    "takes-silence-for-yes": {"session": TakesSilenceForYes},
    "reads-without-asking": {"session": ReadsWithoutAsking},
    "loses-events": {"watcher": LosesEvents},
    "disks-fall-back": {"sabotage": disks_fall_back},
}
"""By name: what `Settings` gets."""
