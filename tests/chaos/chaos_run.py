"""Rounds of faults under load, and the verdict: `make chaos`.

A *round*: clients and watchers run, the planned faults strike, stand and are healed. Then nothing is broken any more,
and the cluster has to show it: a write must be acknowledged within a bound, every member must answer linearizable
reads, all members must have the same contents at one revision, each counter must stand between what was acknowledged
and what was sent, every watch must have told everything up to there. Then the whole history of the cluster so far is
checked (tests/histories).

An *epoch* is a cluster with several rounds; the next one is founded anew, with another size or kind of log. So the
memory of a run is bounded by that of an epoch.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    for folder in ("../server", "../histories", "../store", "../tools"):
        sys.path.insert(0, str((Path(__file__).parent / folder).resolve()))

import chaos_disks
from chaos_faults import Injector
from chaos_links import Links
from chaos_load import ALL, FENCE, KEYS, Client, Range, Record, Session, Watcher
from chaos_members import ChaosCluster, NotHealed, Patience, free_peer_port
from chaos_plan import EPOCHS, Deck, Epoch, Kind, plan_round, usable_kinds
from chaos_plants import PLANTS
from chaos_table import Totals, table
from history_checker import Checked, Contradiction, Undecided, check
from history_records import Outcome
from raftkv_node.pb import rpc_pb2

CLIENTS = 6
ROUND_SECONDS = 22.0
FAULTS_A_ROUND = 16
FENCE_SECONDS = 60.0
"""Once nothing is broken any more, a write must be acknowledged within so long."""


@dataclass
class Settings:
    """What a run does."""

    seed: int
    seconds: float = 0.0
    """Rounds begin until so long after the start; 0: one pass through `epochs`."""
    epochs: tuple[Epoch, ...] = EPOCHS
    round_seconds: float = ROUND_SECONDS
    faults_a_round: int = FAULTS_A_ROUND
    only: frozenset[Kind] = frozenset()
    disks: bool = True
    session: Callable[[str, Record], Session] = Session
    watcher: Callable[..., Watcher] = Watcher
    sabotage: Callable[[ChaosCluster], None] | None = None
    """A planted bug that acts on the members behind everybody's back, once all is healed, under load."""
    clients: int = CLIENTS
    say: Callable[[str], None] = field(default=lambda line: print(line, flush=True))


class Round:
    """One round on a cluster."""

    def __init__(self, name: str, settings: Settings, cluster: ChaosCluster, record: Record) -> None:
        self.name, self._settings, self._cluster, self._record = name, settings, cluster, record
        self.injector = Injector(cluster)
        self.began = self.healed = self.recovered = 0.0
        self.checked: Checked | None = None
        self._clients = [
            Client(f"client-{number}", record, cluster, f"{name}/{number}", settings.session)
            for number in range(settings.clients)
        ]
        ranges = ((ALL, ALL), (ALL, ALL), (KEYS[0], b""))
        self._watchers = [
            settings.watcher(f"watcher-{number}", record, cluster, f"{name}/w{number}", *keys)
            for number, keys in enumerate(ranges)
        ]

    def play(self, deck: Deck) -> None:
        """Faults under load, healed, and everything that must be true then."""
        planned = plan_round(self.name, deck, self._settings.round_seconds, self._settings.faults_a_round)
        self.began = time.monotonic()
        for one in [*self._clients, *self._watchers]:
            one.start()
        try:
            self.injector.run(planned, self._settings.round_seconds)
            self.healed = time.monotonic()
            if self.injector.problems:
                raise NotHealed("\n".join(self.injector.problems))
            if self._settings.sabotage is not None:
                self._settings.sabotage(self._cluster)
            self._settle()
        finally:
            for one in [*self._clients, *self._watchers]:
                one.stop()
            for one in [*self._clients, *self._watchers]:
                one.join(30)
        assert not any(one.is_alive() for one in [*self._clients, *self._watchers]), "a client hangs"
        if self.injector.problems:
            raise NotHealed("\n".join(self.injector.problems))
        self.checked = check(self._record.history)

    # -- nothing is broken any more ------------------------------------------------------------------------------------

    def _settle(self) -> None:
        session = self._settings.session("driver", self._record)
        self._fence(session)
        self.recovered = self._record.first_after(self.injector.last_healed(self.began))
        self._cluster.wait_healthy()
        for one in self._clients:
            one.stop()
        for one in self._clients:
            one.join(30)
        revision = max(self._fence(session, FENCE), self._fence(session, KEYS[0]))
        for watcher in self._watchers:
            Patience(f"{watcher.name} at revision {revision}").until(lambda w=watcher: w.reached >= revision)  # type: ignore[misc]
            watcher.vouch(revision)
        self._compare(session, revision)
        session.close()

    def _fence(self, session: Session, key: bytes = FENCE) -> int:
        """A write that must be acknowledged; its revision."""
        found = 0

        def attempt() -> bool:
            nonlocal found
            for member in list(self._cluster.members):
                session.go_to(member)
                value = f"{self.name}/{time.monotonic()}".encode()
                operation = session.call(rpc_pb2.PutRequest(key=key, value=value))
                if operation.outcome is Outcome.OK and operation.response is not None:
                    found = int(operation.response.header.revision)  # type: ignore[attr-defined]
                    return True
            return False

        Patience("acknowledged write after all was healed", FENCE_SECONDS).until(attempt)
        return found

    def _compare(self, session: Session, revision: int) -> None:
        """All members have the same at one revision, and the counters are what was acknowledged."""
        contents: dict[str, list[bytes]] = {}
        for member in self._cluster.members:
            session.go_to(member)
            for request in (Range(key=ALL, range_end=ALL), self._past(revision)):
                answer = self._answer(session, request)
            contents[member.name] = [one.SerializeToString() for one in answer.kvs]
            self._count(answer)
        if len({tuple(one) for one in contents.values()}) != 1:
            raise Contradiction("MEMBERS_AGREE", f"members differ at revision {revision}: {sorted(contents)}")

    @staticmethod
    def _past(revision: int) -> rpc_pb2.RangeRequest:
        return Range(key=ALL, range_end=ALL, serializable=True, revision=revision)

    @staticmethod
    def _answer(session: Session, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        found: list[rpc_pb2.RangeResponse] = []

        def attempt() -> bool:
            operation = session.call(request)
            if isinstance(operation.response, rpc_pb2.RangeResponse):
                found.append(operation.response)
            return bool(found)

        Patience("answered read").until(attempt)
        return found[0]

    def _count(self, answer: rpc_pb2.RangeResponse) -> None:
        """Each client's counter: never below what was acknowledged, never above what was sent."""
        values = {one.key: int(one.value) for one in answer.kvs if one.key.startswith(b"c/")}
        with self._record.lock:
            for key, number in self._record.counters.items():
                if values.get(key, 0) < number:
                    raise Contradiction("COUNTERS_ARE_KEPT", f"{key!r} was acknowledged as {number}: {values.get(key)}")
            for key, number in values.items():
                if number > self._record.sent[key]:
                    raise Contradiction("COUNTERS_ARE_TRUE", f"{key!r} is {number}, which nobody sent")


@contextmanager
def founded(epoch: Epoch, settings: Settings) -> Iterator[ChaosCluster]:
    """A running cluster; nothing is left behind."""
    root = Path(tempfile.mkdtemp(prefix="raftkv-chaos-"))
    rings = Path(tempfile.mkdtemp(prefix="raftkv-chaos-", dir=_memory())) if epoch.rings else None
    port = free_peer_port()
    links = Links(port, settings.seed)
    made = ChaosCluster(root, epoch.size, rings, links, port, settings.disks)
    try:
        made.start()
        yield made
    finally:
        made.close()
        links.close()
        for folder in filter(None, (root, rings)):
            shutil.rmtree(folder, ignore_errors=True)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def run(settings: Settings) -> Totals:
    """Epoch after epoch; stops at the first finding, which the totals tell."""
    if settings.disks:
        chaos_disks.build()
    totals = Totals(settings.seed)
    decks: dict[Epoch, Deck] = {}
    began, turn = time.monotonic(), 0
    while not totals.findings:
        if settings.seconds and time.monotonic() - began >= settings.seconds:
            break
        if not settings.seconds and turn >= len(settings.epochs):
            break
        epoch = settings.epochs[turn % len(settings.epochs)]
        kinds = usable_kinds(epoch, settings.only, settings.disks)
        deck = decks.setdefault(epoch, Deck(random.Random(f"{settings.seed}/{epoch}"), kinds))
        _play_epoch(f"{settings.seed}/{turn}", epoch, deck, settings, totals, began)
        turn += 1
    totals.seconds = time.monotonic() - began
    return totals


def _play_epoch(name: str, epoch: Epoch, deck: Deck, settings: Settings, totals: Totals, began: float) -> None:
    record = Record()
    checked: Checked | None = None
    with founded(epoch, settings) as cluster:
        for number in range(epoch.rounds):
            if settings.seconds and time.monotonic() - began >= settings.seconds:
                break
            one = Round(f"{name}/{number}", settings, cluster, record)
            try:
                one.play(deck)
            except (Contradiction, Undecided, AssertionError) as error:
                rule = getattr(error, "rule", type(error).__name__)
                totals.add_finding(rule, f"round {one.name} ({epoch}): {error}", one.injector.struck)
                for member in cluster.members:
                    settings.say(f"--- {member.name}, running: {member.running}\n{member.account()[-6000:]}")
                break
            finally:
                totals.add_round(one.injector, record, one.began, one.healed or time.monotonic())
            totals.recovered(one.recovered)
            checked = one.checked
            settings.say(_line(one, epoch, record))
    if checked is not None:
        totals.add_checked(checked)


def _line(one: Round, epoch: Epoch, record: Record) -> str:
    kinds = Counter(struck.kind for struck in one.injector.struck)
    gap = max((end - start for start, end in record.gaps(one.began, one.healed)), default=0.0)
    checked = one.checked
    assert checked is not None
    return (
        f"round {one.name} ({epoch}): {sum(kinds.values())} faults, {one.injector.skipped} skipped; "
        f"writes pause for {gap:.1f} s at most, back {one.recovered:.1f} s after healing; "
        f"{checked.acknowledged_writes} writes, {checked.linearizable_reads} linearizable reads, "
        f"{checked.unknown} unknown ({checked.unknown_took_effect} took effect), {checked.watch_events} events: "
        "all true"
    )


def main() -> int:
    """The command line; 0 if nothing was found, or what was planted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=720.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", nargs="*", default=[], help="names of kinds (KILL_ONE ...), all if none")
    parser.add_argument("--no-disks", action="store_true", help="without the FUSE file system")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="with a planted bug, which must be found")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    reason = chaos_disks.usable()
    if reason:
        print(f"no faults of disks: {reason}")
    settings = Settings(
        seed,
        seconds=arguments.seconds,
        only=frozenset(Kind[one] for one in arguments.only),
        disks=not arguments.no_disks and not reason,
        **PLANTS.get(arguments.plant, {}),
    )
    settings.say(f"seed {seed}: make chaos CHAOS_SEED={seed} CHAOS_SECONDS={arguments.seconds:.0f}")
    totals = run(settings)
    print(table(totals))
    for finding in totals.findings:
        print(finding)
    # With a planted bug a run is right if it finds something.
    return int(bool(totals.findings) != bool(arguments.plant))


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    # However it is ended, no member and no mount is left behind.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
